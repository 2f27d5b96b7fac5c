"""A plan replayed from its problem: true lifetimes, and what lies where and when.

It is part of ``check`` and, like it, shares no code with the passes that make plans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

from mplan.ir.plan import Placement, Plan, Problem


class Replay:
    """The derived facts that the checks share, as columns of buffers, placements and boxes.

    ``first`` and ``last`` are the true lifetimes. A box is what the buffer of a placement (``of``)
    holds of its bytes, from ``low`` to ``high`` above the offset, for some time.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        import numpy as np

        columns, placements = problem.columns, plan.placements
        self.problem, self.plan = problem, plan
        self.regions = {r.name: i for i, r in enumerate(problem.regions)}
        self.followers = {i for group in problem.adjacent for i in group[1:]}
        numbers = [[p.offset for p in placements], [p.start for p in placements]]
        numbers.append([p.end for p in placements])
        self.exact = _exact_type(problem, numbers)
        self.size = columns.size.astype(self.exact)
        self.live_in, self.live_out = columns.live_in, columns.live_out
        self.buffer = np.array([p.buffer for p in placements], np.int64)
        self.region = np.array([self.regions[p.region] for p in placements], np.int64)
        self.offset, self.start, self.end = map(self.column, numbers)
        self.usable = self._allowed()[columns.choice[self.buffer], self.region]
        self.touched, self.touching = self._touches()
        self.first, self.last = self._lifetimes()
        self._find_boxes()
        self._levels: dict[str, tuple[Any, Any]] = {}

    def _allowed(self) -> Any:
        """Whether steps can touch buffers of each choice of regions in each region."""
        import numpy as np

        regions, choices = self.problem.regions, self.problem.columns.choices
        allowed = [[r.addressable and r.name in choice for r in regions] for choice in choices]
        return np.array(allowed, np.bool_).reshape(len(choices), len(regions))

    def column(self, numbers: Iterable[int]) -> Any:
        """``numbers`` as an array in which their sums are exact."""
        import numpy as np

        return np.array(list(numbers), self.exact)

    def _touches(self) -> tuple[Any, Any]:
        """Buffer and position of every touch, by buffer and position."""
        import numpy as np

        columns, steps = self.problem.columns, len(self.problem.steps)
        position = np.zeros(steps, np.int64)
        position[list(self.plan.order)] = np.arange(steps)
        sides = (columns.reads, columns.writes)
        buffer = np.concatenate([side.flat.astype(np.int64) for side in sides])
        step = np.concatenate([side.owner for side in sides])
        span = steps + 1
        pairs = np.sort(buffer * span + position[step])
        pairs = pairs[np.append(pairs[1:] != pairs[:-1], True)] if len(pairs) else pairs
        return pairs // span, pairs % span

    def _lifetimes(self) -> tuple[Any, Any]:
        import numpy as np

        steps = len(self.problem.steps)
        first, last = np.zeros((2, len(self.size)), np.int64)
        changes = np.flatnonzero(np.diff(self.touched, prepend=-1))
        first[self.touched[changes]] = self.touching[changes]
        last[self.touched[changes]] = np.append(self.touching[changes[1:] - 1], self.touching[-1:]) + 1
        first = np.where(self.live_in, 0, first).astype(self.exact)
        last = np.where((last == 0) & self.live_in & (steps > 0), 1, last).astype(self.exact)
        last[self.live_out] = self.problem.horizon
        for i, span in self.problem.columns.lifetimes.items():
            first[i], last[i] = span
        return first, last

    def _find_boxes(self) -> None:
        import numpy as np

        gapped = np.isin(self.buffer, list(self.problem.columns.gaps))
        whole = np.flatnonzero(~gapped & (self.start < self.end) & (self.size[self.buffer] > 0))
        parts = [(i, *held) for i in np.flatnonzero(gapped).tolist() for held in self._held(i)]
        columns = list(zip(*parts, strict=True)) or [()] * 5
        size = self.size[self.buffer[whole]]
        rows = (whole, self.start[whole], self.end[whole], np.zeros_like(size), size)
        of, self.begin, self.until, self.low, self.high = (
            np.concatenate((row, self.column(column)))
            for row, column in zip(rows, columns, strict=True)
        )
        self.of = of.astype(np.int64)
        self.holds = np.zeros(len(self.buffer), np.bool_)
        self.holds[self.of] = True

    def _held(self, index: int) -> Iterator[tuple[int, int, int, int]]:
        """Start, end, low and high of what a buffer with gaps holds of its bytes where it is placed."""
        p = self.plan.placements[index]
        b = self.problem.buffers[p.buffer]
        cuts = {p.start, p.end} | {t for g in b.gaps for t in (g.start, g.end) if p.start < t < p.end}
        for start, end in pairwise(sorted(cuts)):
            low, high = 0, b.size_bytes
            for gap in b.gaps:
                if gap.start <= start < gap.end:
                    low, high = gap.low, gap.high
            if low < high:
                yield start, end, low, high

    @cached_property
    def segments(self) -> dict[int, list[Placement]]:
        """The placements of each buffer, in order of time."""
        found = defaultdict[int, list[Placement]](list)
        for placement in sorted(self.plan.placements, key=lambda p: (p.start, p.end)):
            found[placement.buffer].append(placement)
        return found

    def is_usable(self, segment: Placement) -> bool:
        """Whether steps can touch the buffer of ``segment`` there."""
        allowed = self.problem.buffers[segment.buffer].regions
        return segment.region in allowed and self.problem.region(segment.region).addressable

    def live_levels(self, region: str) -> tuple[Any, Any]:
        """The positions where the bytes placed in ``region`` (or several, joined by ``+``) change,
        and the bytes from there on."""
        import numpy as np

        if region not in self._levels:
            mine = self._among(region)[self.of]
            bytes_ = (self.high - self.low)[mine]
            times = np.concatenate(([0], self.begin[mine], self.until[mine]))
            order = np.argsort(times, kind="stable")
            levels = np.cumsum(np.concatenate(([0], bytes_, -bytes_)).astype(self.exact)[order])
            last = np.append(times[order][1:] != times[order][:-1], True)
            self._levels[region] = times[order][last], levels[last]
        return self._levels[region]

    def home(self, region: str) -> Any:
        """Whether each buffer lies in ``region`` (or several), where no buffer changes regions."""
        import numpy as np

        home = np.zeros(len(self.size), np.bool_)
        home[self.buffer[self._among(region)]] = True
        return home

    def _among(self, region: str) -> Any:
        """Whether each placement is in ``region``, or in one of several joined by ``+``."""
        import numpy as np

        return np.isin(self.region, [self.regions[name] for name in region.split("+")])


def _exact_type(problem: Problem, placed: list[list[int]]) -> Any:
    """The type of columns in which sums are exact: 64 bits, or Python's integers."""
    import numpy as np

    columns = problem.columns
    total = len(columns.size) * int(columns.size.max(initial=0)) + problem.horizon
    total += max(
        (abs(n) for numbers in placed if numbers for n in (min(numbers), max(numbers))), default=0
    )
    total += int(columns.alignment.max(initial=0))
    total += max(((r.capacity_bytes or 0) + r.alignment for r in problem.regions), default=0)
    return np.int64 if total < 2**61 else object
