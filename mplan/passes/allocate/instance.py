"""The allocation problem of one region at a fixed order: rectangles of fixed time and free offset."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import gcd, lcm

from mplan.ir.plan import Problem


@dataclass(frozen=True, slots=True)
class Box:
    """``size`` bytes during ``[start, end)``, at a multiple of ``alignment`` or at ``fixed``.

    ``buffer`` is the index in the problem.
    """

    buffer: int
    start: int
    end: int
    size: int
    alignment: int = 1
    fixed: int | None = None

    @property
    def area(self) -> int:
        """Bytes times positions."""
        return self.size * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Instance:
    """The boxes that occupy room: none is empty in time or size."""

    boxes: tuple[Box, ...]

    def height(self, offsets: Sequence[int]) -> int:
        """The highest end address."""
        return max((o + b.size for o, b in zip(offsets, self.boxes, strict=True)), default=0)

    def live(self) -> tuple[int, int]:
        """The largest number of bytes live together, and the first position where they are."""
        changes: dict[int, int] = {}
        for b in self.boxes:
            changes[b.start] = changes.get(b.start, 0) + b.size
            changes[b.end] = changes.get(b.end, 0) - b.size
        level = best = position = 0
        for time in sorted(changes):
            level += changes[time]
            if level > best:
                best, position = level, time
        return best, position

    def padded(self) -> tuple[int, int]:
        """``live`` with each box but one padded to the alignment that all have in common.

        Offsets are multiples of it, so of boxes live together only the highest may end anywhere.
        """
        common = gcd(*(b.alignment for b in self.boxes))
        best = position = level = 0
        ends: list[tuple[int, int]] = []
        pads: list[tuple[int, int]] = []
        for b in sorted(self.boxes, key=lambda b: b.start):
            pad = -b.size % common
            while ends and ends[0][0] <= b.start:
                level -= heapq.heappop(ends)[1]
            level += b.size + pad
            heapq.heappush(ends, (b.end, b.size + pad))
            heapq.heappush(pads, (-pad, b.end))
            while pads[0][1] <= b.start:
                heapq.heappop(pads)
            if level + pads[0][0] > best:
                best, position = level + pads[0][0], b.start
        return best, position

    def cliques(self) -> list[tuple[int, ...]]:
        """The maximal sets of boxes that are live together, in order of time."""
        events = sorted({b.start for b in self.boxes})
        starts: dict[int, list[int]] = {time: [] for time in events}
        for i, b in enumerate(self.boxes):
            starts[b.start].append(i)
        found: list[tuple[int, ...]] = []
        live: list[int] = []
        for time, following in zip_longest(events, events[1:]):
            live = [i for i in live if self.boxes[i].end > time] + starts[time]
            first_end = min(self.boxes[i].end for i in live)
            if following is None or first_end <= following:
                found.append(tuple(live))
        return found


def from_problem(problem: Problem, order: Sequence[int], region: str) -> Instance:
    """The instance of the buffers whose first choice is ``region`` when the steps run in ``order``."""
    alignment = problem.region(region).alignment
    spans = problem.lifetimes(order)
    return Instance(
        tuple(
            Box(i, start, end, b.size_bytes, lcm(alignment, b.alignment), b.offset)
            for i, (b, (start, end)) in enumerate(zip(problem.buffers, spans, strict=True))
            if b.regions[0] == region and b.size_bytes and end > start
        )
    )
