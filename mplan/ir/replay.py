"""A plan replayed from its problem: true lifetimes, and what lies where and when.

It is part of ``check`` and, like it, shares no code with the passes that make plans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

from mplan.ir.plan import Placement, Plan, Problem


class Replay:
    """The derived facts that the checks share, as columns of buffers, placements and boxes.

    ``first`` and ``last`` are the true lifetimes. A box is what the buffer of a placement (``of``)
    holds of its bytes, from ``low`` to ``high`` above the offset, for some time.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        import numpy as np

        buffers, placements = problem.buffers, plan.placements
        self.problem, self.plan = problem, plan
        self.regions = {r.name: i for i, r in enumerate(problem.regions)}
        self.followers = {i for group in problem.adjacent for i in group[1:]}
        self.exact = _exact_type(problem, plan)
        self.size = self.column(b.size_bytes for b in buffers)
        self.live_in = np.array([b.live_in for b in buffers], np.bool_)
        self.live_out = np.array([b.live_out for b in buffers], np.bool_)
        self.buffer = np.array([p.buffer for p in placements], np.int64)
        self.region = np.array([self.regions[p.region] for p in placements], np.int64)
        self.offset = self.column(p.offset for p in placements)
        self.start = self.column(p.start for p in placements)
        self.end = self.column(p.end for p in placements)
        self.usable = np.array([self.is_usable(p) for p in placements], np.bool_)
        self.touched, self.touching = self._touches()
        self.first, self.last = self._lifetimes()
        self._find_boxes()
        self._levels: dict[str, tuple[Any, Any]] = {}

    def column(self, numbers: Iterable[int]) -> Any:
        """``numbers`` as an array in which their sums are exact."""
        import numpy as np

        return np.array(list(numbers), self.exact)

    def _touches(self) -> tuple[Any, Any]:
        """Buffer and position of every touch, by buffer and position."""
        import numpy as np

        steps = self.problem.steps
        position = np.zeros(len(steps), np.int64)
        position[list(self.plan.order)] = np.arange(len(steps))
        touches = [(*s.reads, *s.writes) for s in steps]
        counts = np.fromiter(map(len, touches), np.int64, len(steps))
        buffer = np.fromiter(chain.from_iterable(touches), np.int64, int(counts.sum()))
        span = len(steps) + 1
        pairs = np.unique(buffer * span + np.repeat(position, counts))
        return pairs // span, pairs % span

    def _lifetimes(self) -> tuple[Any, Any]:
        import numpy as np

        steps = len(self.problem.steps)
        first, last = np.full(len(self.size), steps), np.zeros(len(self.size), np.int64)
        np.minimum.at(first, self.touched, self.touching)
        np.maximum.at(last, self.touched, self.touching + 1)
        first = np.where(self.live_in | (last == 0), 0, first).astype(self.exact)
        last = np.where((last == 0) & self.live_in & (steps > 0), 1, last).astype(self.exact)
        last[self.live_out] = self.problem.horizon
        for i, b in enumerate(self.problem.buffers):
            if b.lifetime is not None:
                first[i], last[i] = b.lifetime
        return first, last

    def _find_boxes(self) -> None:
        import numpy as np

        gapped = np.array([bool(b.gaps) for b in self.problem.buffers], np.bool_)[self.buffer]
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


def _exact_type(problem: Problem, plan: Plan) -> Any:
    """The type of columns in which sums are exact: 64 bits, or Python's integers."""
    import numpy as np

    total = sum(b.size_bytes for b in problem.buffers) + problem.horizon
    total += max((abs(n) for p in plan.placements for n in (p.offset, p.start, p.end)), default=0)
    total += max((b.alignment for b in problem.buffers), default=0)
    total += max(((r.capacity_bytes or 0) + r.alignment for r in problem.regions), default=0)
    return np.int64 if total < 2**61 else object
