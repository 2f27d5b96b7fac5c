"""The fields of a problem as arrays, nothing that follows from them.

Planning ten thousand steps means going through them a dozen times; over arrays that takes a hundredth
of what it takes over objects. ``Problem.columns`` makes them once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from mplan.ir.plan import Problem

    Bools: TypeAlias = NDArray[np.bool_]
    Ints: TypeAlias = NDArray[np.int64]

#: Sums below this are exact in 64 bits, and so is twice as much.
_EXACT = 2**62


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of indices behind each other in ``flat``; list i has ``lengths[i]`` of them."""

    flat: Ints
    lengths: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Lists:
        """The lists of ``rows``."""
        import numpy as np

        return cls(exact(list(chain.from_iterable(rows))), np.array([len(r) for r in rows], np.int64))

    @property
    def owner(self) -> Ints:
        """The list of each entry of ``flat``."""
        import numpy as np

        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def sorted(self) -> Ints:
        """``flat`` with each list in ascending order."""
        import numpy as np

        if self.flat.dtype == object:
            pairs = sorted(zip(self.owner.tolist(), self.flat.tolist(), strict=True))
            return np.array([item for _, item in pairs], object)
        return self.flat[np.lexsort((self.flat, self.owner))]


class Columns:
    """The columns of a problem: ``size`` … of its buffers, ``reads`` … of its steps.

    ``choice`` says which of ``choices`` the regions of a buffer are. ``lifetimes``, ``offsets`` and
    ``gaps`` hold the buffers that have them, by index.
    """

    def __init__(self, problem: Problem) -> None:
        import numpy as np

        buffers, steps = problem.buffers, problem.steps
        self.size = exact([b.size_bytes for b in buffers])
        self.alignment = exact([b.alignment for b in buffers])
        self.accessed = exact([b.accessed_bytes for b in buffers])
        self.live_in = np.array([b.live_in for b in buffers], np.bool_)
        self.live_out = np.array([b.live_out for b in buffers], np.bool_)
        number: dict[tuple[str, ...], int] = {}
        choice = [number.setdefault(b.regions, len(number)) for b in buffers]
        self.choice = np.array(choice, np.int64)
        self.choices = tuple(number)
        self.lifetimes = {i: b.lifetime for i, b in enumerate(buffers) if b.lifetime is not None}
        self.offsets = {i: b.offset for i, b in enumerate(buffers) if b.offset is not None}
        self.gaps = {i: b.gaps for i, b in enumerate(buffers) if b.gaps}
        self.reads = Lists.of([s.reads for s in steps])
        self.writes = Lists.of([s.writes for s in steps])
        self.after = Lists.of([s.after for s in steps])

    def digest(self, problem: Problem) -> str:
        """SHA-256 over the canonical content of ``problem``, whose columns these are."""
        head: dict[str, object] = {
            "regions": [
                [r.name, r.capacity_bytes, r.alignment, r.addressable] for r in problem.regions
            ],
            "choices": self.choices,
            "lifetimes": list(self.lifetimes.items()),
            "offsets": list(self.offsets.items()),
            "gaps": [(i, [astuple(gap) for gap in gaps]) for i, gaps in self.gaps.items()],
            "adjacent": problem.adjacent,
            "costs": [r.cost for r in problem.regions] if self.accessed.any() else [],
        }
        if problem.total_bytes is not None:
            head["total"] = problem.total_bytes
        lists = (self.reads, self.writes, self.after)
        columns = (self.size, self.alignment, self.accessed, self.live_in, self.live_out, self.choice)
        found = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
        for column in (*columns, *(x for row in lists for x in (row.lengths, row.sorted()))):
            found.update(f"{len(column)} {column.dtype}:".encode())
            found.update(_bytes(column))
        return found.hexdigest()


def exact(numbers: Sequence[int]) -> Ints:
    """``numbers`` as an array in which any sum of them is exact: of Python's integers if need be."""
    import numpy as np

    found = np.array(numbers) if len(numbers) else np.zeros(0, np.int64)
    if found.dtype == np.int64:
        most = max(int(found.max(initial=0)), -int(found.min(initial=0)))
        if most * len(found) < _EXACT:
            return found
    return np.array(numbers, np.int64 if sum(map(abs, numbers)) < _EXACT else object)


def _bytes(column: NDArray[Any]) -> bytes:
    """What ``column`` holds, the same on every machine."""
    if column.dtype == object:
        return json.dumps(column.tolist()).encode()
    return column.astype(column.dtype.newbyteorder("<")).tobytes()
