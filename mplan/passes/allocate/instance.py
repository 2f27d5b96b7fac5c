"""The allocation problem of one region at a fixed order: rectangles of fixed time and free offset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from math import gcd, lcm
from typing import TYPE_CHECKING

from mplan.ir.plan import Extent, Problem
from mplan.ir.problem_columns import exact
from mplan.passes.allocate.chains import Chain, chains_of, loose
from mplan.passes.live import padded_peak, peak

if TYPE_CHECKING:
    from mplan.ir.table import Ints


#: Of so many boxes or more, what is left of the time is better spent where they end too high than on
#: searches that see all of them.
MANY = 1_000


@dataclass(frozen=True, slots=True)
class Box:
    """``size`` bytes during ``[start, end)``, at a multiple of ``alignment`` or at ``fixed``.

    ``buffer`` is the index in the problem, of the first buffer if several lie adjacent. A box with
    ``parts`` is a rigid body that holds only those, each some bytes above its offset for some time.
    """

    buffer: int
    start: int
    end: int
    size: int
    alignment: int = 1
    fixed: int | None = None
    parts: tuple[Extent, ...] = ()

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The parts, or the whole box as one."""
        return self.parts or (Extent(self.start, self.end, 0, self.size),)

    @property
    def area(self) -> int:
        """Bytes times positions."""
        return sum((x.high - x.low) * (x.end - x.start) for x in self.extents)


@dataclass(frozen=True)
class Instance:
    """The boxes that occupy room: none is empty in time or size."""

    boxes: tuple[Box, ...]

    @cached_property
    def extents(self) -> tuple[tuple[int, Extent], ...]:
        """All extents, each with the index of its box."""
        return tuple((i, x) for i, b in enumerate(self.boxes) for x in b.extents)

    @property
    def rigid(self) -> bool:
        """Whether a box has parts."""
        return any(b.parts for b in self.boxes)

    @property
    def anchored(self) -> bool:
        """Whether a box has a fixed offset."""
        return any(b.fixed is not None for b in self.boxes)

    def hull(self) -> Instance:
        """The boxes without parts: what packs them packs the parts as well."""
        return Instance(tuple(replace(b, parts=()) for b in self.boxes))

    def height(self, offsets: Sequence[int]) -> int:
        """The highest end address."""
        return max((o + b.size for o, b in zip(offsets, self.boxes, strict=True)), default=0)

    def live(self) -> tuple[int, int]:
        """The largest number of bytes live together, and the first position where they are."""
        return peak(*self._spans)

    def padded(self) -> tuple[int, int]:
        """``live`` with each box but one padded to the alignment that all have in common.

        Nothing where boxes have parts, which may fill the padding of others.
        """
        common = gcd(*(b.alignment for b in self.boxes)) or 1
        return (0, 0) if self.rigid else padded_peak(*self._spans, common)

    @cached_property
    def _spans(self) -> tuple[Ints, Ints, Ints]:
        """Start, end and bytes of each extent."""
        rows = [(b.start, b.end, b.size) for b in self.boxes]
        if self.rigid:
            rows = [(x.start, x.end, x.high - x.low) for _, x in self.extents]
        start, end, size = zip(*rows, strict=True) if rows else ((), (), ())
        return exact(start), exact(end), exact(size)

    def cliques(self) -> Iterator[tuple[int, ...]]:
        """The maximal sets of extents (indices) that are live together, in order of time."""
        extents = [x for _, x in self.extents]
        events = sorted({x.start for x in extents})
        starts: dict[int, list[int]] = {time: [] for time in events}
        for i, x in enumerate(extents):
            starts[x.start].append(i)
        live: list[int] = []
        for time, following in zip_longest(events, events[1:]):
            live = [i for i in live if extents[i].end > time] + starts[time]
            first_end = min(extents[i].end for i in live)
            if following is None or first_end <= following:
                yield tuple(live)


def from_problem(problem: Problem, order: Sequence[int], region: str) -> Instance:
    """The instance of the buffers whose first choice is ``region`` when the steps run in ``order``.

    UserError MP223 if an adjacent group contradicts itself.
    """
    import numpy as np

    columns, (start, end) = problem.columns, problem.table.lifetimes(order)
    free = np.flatnonzero(loose(problem, region) & (start < end) & (columns.size > 0))
    own = problem.region(region).alignment
    rows = (free, start[free], end[free], columns.size[free])
    alignment = (lcm(own, a) for a in columns.alignment[free].tolist())
    boxes = [*map(Box, *(row.tolist() for row in rows), alignment)]
    spans = list(zip(start.tolist(), end.tolist(), strict=True))
    chained = (_box(problem, spans, chain) for chain in chains_of(problem, region))
    boxes += [box for box in chained if box is not None]
    return Instance(tuple(sorted(boxes, key=lambda b: b.buffer)))


def _box(problem: Problem, spans: Sequence[tuple[int, int]], chain: Chain) -> Box | None:
    """The box of adjacent buffers, or of one; None if they never hold anything.

    The size reaches to the end of the last buffer that does, even if what it holds ends lower.
    """
    parts = tuple(_extents(problem, spans, chain))
    if not parts:
        return None
    start, end = min(x.start for x in parts), max(x.end for x in parts)
    ends = (
        place + b.size_bytes
        for i, place in chain.places
        for b in (problem.buffers[i],)
        if next(b.held(*spans[i]), None)
    )
    size = max(ends)
    whole = len(parts) == 1 and parts[0].low == 0 and parts[0].high == size
    return Box(
        chain.places[0][0], start, end, size, chain.alignment, chain.fixed, () if whole else parts
    )


def _extents(problem: Problem, spans: Sequence[tuple[int, int]], chain: Chain) -> Iterator[Extent]:
    for i, place in chain.places:
        for x in problem.buffers[i].held(*spans[i]):
            yield Extent(x.start, x.end, place + x.low, place + x.high)
