"""A problem as the passes see it: its columns, and the steps that touch each buffer.

``Problem.table`` makes it once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from mplan.ir.plan import Problem
from mplan.ir.problem_columns import exact

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Bools: TypeAlias = NDArray[np.bool_]
    Ints: TypeAlias = NDArray[np.int64]


#: Times up to so many times their number are found without sorting.
_DENSE = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """Lists of indices behind each other: row i is ``flat[at[i]:at[i + 1]]``."""

    flat: Ints
    at: Ints

    @classmethod
    def grouped(cls, owner: Ints, items: Ints, count: int) -> Rows:
        """``count`` rows: row i holds, once and in ascending order, the ``items`` of ``owner`` i."""
        import numpy as np

        span = int(items.max(initial=0)) + 1
        pairs = np.sort(owner * span + items)
        pairs = pairs[np.append(pairs[1:] != pairs[:-1], True)] if len(pairs) else pairs
        return cls(pairs % span, _begins(np.bincount(pairs // span, minlength=count)))

    @property
    def lengths(self) -> Ints:
        """The length of each row."""
        return self.at[1:] - self.at[:-1]

    @property
    def owner(self) -> Ints:
        """The row of each entry of ``flat``."""
        import numpy as np

        return np.repeat(np.arange(len(self.at) - 1), self.lengths)

    @property
    def place(self) -> Ints:
        """Where each entry of ``flat`` stands in its row."""
        import numpy as np

        return np.arange(len(self.flat)) - np.repeat(self.at[:-1], self.lengths)

    def row(self, index: int) -> list[int]:
        """The entries of one row."""
        found: list[int] = self.flat[self.at[index] : self.at[index + 1]].tolist()
        return found

    def any(self, flags: Bools) -> Bools:
        """Per row whether one of its entries has its flag set."""
        import numpy as np

        hits = np.concatenate(([0], np.cumsum(flags[self.flat])))
        return hits[self.at[1:]] > hits[self.at[:-1]]


class Table:
    """The columns of a problem: ``size`` … of its buffers, ``reads`` … of its steps.

    ``region`` is the index of the first region in which a buffer may be; ``users`` are the steps that
    touch it, ascending.
    """

    def __init__(self, problem: Problem) -> None:
        import numpy as np

        columns = problem.columns
        self.horizon = problem.horizon
        self.steps = len(problem.steps)
        self.regions = {r.name: i for i, r in reversed(list(enumerate(problem.regions)))}
        self.size, self.live_in, self.live_out = columns.size, columns.live_in, columns.live_out
        first = np.array([self.regions[names[0]] for names in columns.choices], np.int64)
        self.region: Ints = first[columns.choice]
        self.reads, self.writes, self.after = (
            Rows(lists.flat, _begins(lists.lengths))
            for lists in (columns.reads, columns.writes, columns.after)
        )
        touched = np.concatenate((self.reads.flat, self.writes.flat))
        touching = np.concatenate((self.reads.owner, self.writes.owner))
        self.users = Rows.grouped(touched, touching, len(self.size))
        fixed = [(i, *span) for i, span in columns.lifetimes.items()]
        self._fixed = exact(list(chain.from_iterable(fixed))).reshape(-1, 3).T
        self._gapped = [(i, problem.buffers[i]) for i in columns.gaps]

    def lies_in(self, region: str) -> Bools:
        """Whether each buffer's first choice is ``region``."""
        found: Bools = self.region == self.regions[region]
        return found

    def lifetimes(self, order: Iterable[int]) -> tuple[Ints, Ints]:
        """When each buffer's half-open lifetime starts and ends if the steps run in ``order``.

        A buffer that no step touches and that is not live from the start has the empty lifetime (0, 0).
        """
        import numpy as np

        position = np.zeros(self.steps, np.int64)
        order = order if isinstance(order, np.ndarray) else np.fromiter(order, np.int64)
        position[order] = np.arange(len(order))
        at, used = position[self.users.flat], self.users.lengths > 0
        start = np.zeros(len(used), self._fixed.dtype)
        end = (self.live_in & (self.steps > 0)).astype(start.dtype)
        if len(at):
            rows = self.users.at[:-1][used]
            start[used] = np.minimum.reduceat(at, rows)
            end[used] = np.maximum.reduceat(at, rows) + 1
        start[self.live_in] = 0
        end[self.live_out] = self.horizon
        index, low, high = self._fixed
        index = index.astype(np.int64)
        start[index], end[index] = low, high
        return start, end

    def extents(self, order: Iterable[int], region: str) -> tuple[Ints, Ints, Ints]:
        """Start, end and bytes of whatever the buffers of ``region`` hold while they live."""
        import numpy as np

        start, end = self.lifetimes(order)
        mine = self.lies_in(region) & (start < end) & (self.size > 0)
        gapped = [(i, b) for i, b in self._gapped if mine[i]]
        mine[[i for i, _ in gapped]] = False
        held = [x for i, b in gapped for x in b.held(int(start[i]), int(end[i]))]
        columns = ([x.start for x in held], [x.end for x in held], [x.high - x.low for x in held])
        whole = (start[mine], end[mine], self.size[mine])
        first, last, size = (np.concatenate((a, exact(b))) for a, b in zip(whole, columns, strict=True))
        return first, last, size


def levels(start: Ints, end: Ints, size: Ints) -> tuple[Ints, Ints]:
    """The times at which live bytes may change, 0 among them, and the bytes live from each on."""
    import numpy as np

    both = np.concatenate((start, end, np.zeros(1, start.dtype)))
    if both.dtype == np.int64 and both.max() <= _DENSE * len(both):
        there = np.zeros(both.max() + 1, np.bool_)
        there[both] = True
        times, at = np.flatnonzero(there), (np.cumsum(there) - 1)[both]
    else:
        times, at = np.unique(both, return_inverse=True)
    change = np.zeros(len(times), size.dtype)
    np.add.at(change, at[: len(start)], size)
    np.subtract.at(change, at[len(start) : -1], size)
    return times, np.cumsum(change)


def _begins(lengths: Ints) -> Ints:
    import numpy as np

    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
