"""What can be said of a packing before it is searched for, and the parts that are left to search.

Boxes that find room wherever the others lie are set aside; what does not touch in time is taken apart;
a box that lives as long as all the others of its part goes to the bottom. None of it loses a packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mplan.passes.allocate.greedy import Offsets, pack
from mplan.passes.allocate.grid import Grid
from mplan.passes.allocate.instance import Instance


@dataclass(frozen=True, slots=True)
class Part:
    """Boxes (indices) that must be packed together, at ``base`` units or higher."""

    boxes: tuple[int, ...]
    base: int


@dataclass(frozen=True, slots=True)
class Reduction:
    """The parts to search, the offsets known already, and the boxes set aside, in that order."""

    grid: Grid
    parts: tuple[Part, ...]
    offsets: dict[int, int]
    aside: tuple[int, ...]

    def complete(self, found: dict[int, int]) -> Offsets:
        """Offsets in bytes from those in units of the boxes of all parts.

        The boxes set aside come back in reverse: each finds room among those it was weighed against.
        """
        known = {**self.offsets, **found}
        boxes = tuple(
            replace(b, fixed=known[i] * self.grid.unit) if i in known else b
            for i, b in enumerate(self.grid.boxes)
        )
        return pack(Instance(boxes), self.aside[::-1], best_fit=False)


def reduce(grid: Grid, last: Sequence[int]) -> Reduction:
    """Reduce the question whether boxes fit with offsets up to ``last`` (units)."""
    aside = _set_aside(grid, last)
    parts: list[Part] = []
    offsets: dict[int, int] = {}
    left = [(sorted(set(range(len(grid.boxes))) - set(aside)), 0)]
    while left:
        boxes, base = left.pop()
        for together in _components(grid, boxes):
            widest = _widest(grid, last, together)
            if not widest:
                parts.append(Part(tuple(together), base))
                continue
            level = base
            for i in widest:
                offsets[i] = level
                level += grid.sizes[i]
            left.append(([i for i in together if i not in offsets], level))
    return Reduction(grid, tuple(sorted(parts, key=lambda p: len(p.boxes))), offsets, tuple(aside))


def _set_aside(grid: Grid, last: Sequence[int]) -> list[int]:
    """Boxes that have more places than the others can take away, as in Chaitin's graph colouring.

    A neighbour in time takes away the multiples of the box's alignment in an open interval of the
    length of both sizes together.
    """
    import numpy as np

    start, end = (np.array([getattr(b, at) for b in grid.boxes]) for at in ("start", "end"))
    size, alignment = np.array(grid.sizes), np.array(grid.alignments)
    places = np.array(last) // alignment + 1
    places[[b.fixed is not None for b in grid.boxes]] = 0
    near = ((start < e) & (end > s) for s, e in zip(start, end, strict=True))
    taken = np.array(
        [-(-(size[row] + size[i] - 1) // alignment[i]).sum() for i, row in enumerate(near)]
    )
    taken -= -(-(2 * size - 1) // alignment)
    aside: list[int] = []
    kept = np.ones(len(size), bool)
    while (ready := np.flatnonzero(kept & (taken < places))).size:
        kept[ready] = False
        aside.extend(ready.tolist())
        for i in ready:
            row = (start < end[i]) & (end > start[i])
            taken[row] -= -(-(size[row] + size[i] - 1) // alignment[row])
    return aside


def _components(grid: Grid, boxes: Sequence[int]) -> list[list[int]]:
    """The boxes in groups that no live box connects, in order of time."""
    groups: list[list[int]] = []
    end = -1
    for i in sorted(boxes, key=lambda i: grid.boxes[i].start):
        if grid.boxes[i].start >= end:
            groups.append([])
        groups[-1].append(i)
        end = max(end, grid.boxes[i].end)
    return groups


def _widest(grid: Grid, last: Sequence[int], together: Sequence[int]) -> list[int]:
    """The boxes that can go to the bottom of ``together``: as others move up into their room, these
    must keep their alignment and end no higher than one at the bottom could have ended."""
    boxes = [grid.boxes[i] for i in together]
    if any(b.fixed is not None for b in boxes):
        return []
    span = min(b.start for b in boxes), max(b.end for b in boxes)
    roof = min(last[i] + grid.sizes[i] for i in together)
    return [
        i
        for i, b in zip(together, boxes, strict=True)
        if (b.start, b.end) == span
        and last[i] + grid.sizes[i] == roof
        and all(grid.sizes[i] % grid.alignments[j] == 0 for j in together)
    ]
