"""Addresses that repeat: all layers at the same ones, or each a fixed pitch above the one before.

The buffers that take the same part in each layer form a group with one address: those that are gone
when the next layer's is born share it; those that pile up over the layers lie in a stack, a fixed pitch
apart. Groups are placed at the kept layers, lowest place first. The left-out layers of a stack stand
there as one row that fills all their room, so addresses are those of the full problem.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

from mplan.passes.allocate.columns import PRIORITIES
from mplan.passes.repeats.fold import Fold, Unfolded
from mplan.passes.solvers.interface import Deadline

if TYPE_CHECKING:
    from mplan.ir.table import Bools, Ints

#: Placements in vain after which the best one is taken.
_PATIENCE = 60
_FAR = 2**62


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share an address, but for what each ``rises`` above it.

    In a stack, the buffers of each key in ``inner`` lie so far above the lowest of their layer, and a
    layer ``pitch`` bytes above the one before. ``turns`` says whether even (0) and odd (1) layers are
    in the group.
    """

    rows: Ints
    rises: Ints
    inner: Mapping[int, int]
    pitch: int = 0
    turns: tuple[int, ...] = (0, 1)


class Layout:
    """The buffers of one region at an order of the folded problem, as rows in groups.

    A row has ``size`` bytes during ``[start, end)``. Behind the rows of the kept buffers stand those of
    the layers left out of each stack.
    """

    def __init__(self, folded: Fold, unfolded: Unfolded, region: str) -> None:
        problem = folded.problem
        spans = problem.lifetimes(unfolded.order)
        kept = [
            i
            for i, (b, (start, end)) in enumerate(zip(problem.buffers, spans, strict=True))
            if b.regions[0] == region and b.size_bytes and end > start
        ]
        self.folded = folded
        self.seams = unfolded.seams
        self.names = [folded.buffers[i] for i in kept]
        self.align = lcm(
            problem.region(region).alignment, *(problem.buffers[i].alignment for i in kept)
        )
        self._size = [problem.buffers[i].size_bytes for i in kept]
        self._spans = [spans[i] for i in kept]
        self.groups = self._make_groups()
        self._freeze()

    def _freeze(self) -> None:
        import numpy as np

        self.size = np.array(self._size, np.int64)
        self.start, self.end = np.array(self._spans, np.int64).reshape(-1, 2).T
        self.meets: Bools = (self.start[:, None] < self.end) & (self.end[:, None] > self.start)

    def _make_groups(self) -> list[Group]:
        found: list[Group] = []
        stacks = defaultdict[tuple[int, int], dict[int, list[int]]](dict)
        for key, members in self._alike().items():
            if not self._overlap(members, 1):
                found.append(_group(members, [0] * len(members), {key: 0}))
            elif not self._overlap(members, 2):
                for odd in (0, 1):
                    half = [m for m in members if self._layer(m) % 2 == odd]
                    found.append(_group(half, [0] * len(half), {key: 0}, turns=(odd,)))
            else:
                stacks[self._trend(members)][key] = members
        return found + [self._stack(stack, trend) for trend, stack in stacks.items()]

    def _alike(self) -> dict[int, list[int]]:
        """Rows by what the buffers that take the same part in different layers have in common."""
        alike = defaultdict[int, list[int]](list)
        for row, buffer in enumerate(self.names):
            alike[int(self.folded.key[buffer])].append(row)
        for members in alike.values():
            members.sort(key=self._layer)
        return alike

    def _layer(self, row: int) -> int:
        return int(self.folded.buffer_layer[self.names[row]])

    def _room(self, row: int) -> int:
        return -(-self._size[row] // self.align) * self.align

    def _overlap(self, members: Sequence[int], apart: int) -> bool:
        pairs = zip(members, members[apart:], strict=False)
        spans = ((self._spans[a], self._spans[b]) for a, b in pairs)
        return any(a[0] < b[1] and b[0] < a[1] for a, b in spans)

    def _trend(self, members: Sequence[int]) -> tuple[int, int]:
        """Whether the rows of later layers begin, and end, later (1), earlier (-1) or together (0)."""
        first, last = self._spans[members[0]], self._spans[members[-1]]
        return _sign(last[0] - first[0]), _sign(last[1] - first[1])

    def _stack(self, members: Mapping[int, Sequence[int]], trend: tuple[int, int]) -> Group:
        """The group of a stack, with a row for the layers left out.

        What is born first lies at the bottom of its layer, or at the top where the stack grows down.
        """
        grows = -1 if trend[0] < 0 else 1
        inner: dict[int, int] = {}
        pitch = 0
        for key, rows in sorted(members.items(), key=lambda item: grows * self._spans[item[1][0]][0]):
            inner[key] = pitch
            pitch += self._room(rows[0])
        rows = [row for own in members.values() for row in own]
        rises = [inner[key] + pitch * self._layer(row) for key, own in members.items() for row in own]
        self._size.append(pitch * self.folded.count)
        self._spans.append(self._hull(members.values()))
        return _group([*rows, len(self._size) - 1], [*rises, pitch * self.folded.first], inner, pitch)

    def _hull(self, members: Iterable[Sequence[int]]) -> tuple[int, int]:
        """From when to when a buffer of the layers left out may be live."""
        starts, ends = [], []
        for own in members:
            low = max(own, key=lambda row: (self._layer(row) < self.folded.first, self._layer(row)))
            high = min(own, key=lambda row: (self._layer(row) < self.folded.first, self._layer(row)))
            (start, end), (other_start, other_end) = self._spans[low], self._spans[high]
            starts.append(self._seam(start, other_start, min))
            ends.append(self._seam(end - 1, other_end - 1, max))
        return min(starts), max(ends)

    def _seam(self, low: int, high: int, choose: Callable[[list[int]], int]) -> int:
        """Where between two positions the layers left out run."""
        if low == high:
            return low + (choose is max)
        between = [p for p in self.seams if min(low, high) < p <= max(low, high)]
        return choose(between or [low, high])


def _group(
    rows: list[int],
    rises: list[int],
    inner: Mapping[int, int],
    pitch: int = 0,
    turns: tuple[int, ...] = (0, 1),
) -> Group:
    import numpy as np

    return Group(np.array(rows, np.int64), np.array(rises, np.int64), inner, pitch, turns)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def place(layout: Layout, groups: Sequence[Group]) -> Ints:
    """The address of each row when the group that may lie lowest is placed next; ties as given.

    A group rests on the rows placed before it, as in ``allocate/skyline``.
    """
    import numpy as np

    owner = np.zeros(len(layout.size), np.int64)
    rises = np.zeros(len(layout.size), np.int64)
    for i, g in enumerate(groups):
        owner[g.rows], rises[g.rows] = i, g.rises
    bottom = np.array([g.rises.min() for g in groups], np.int64)
    base = -bottom
    left = np.ones(len(groups), np.bool_)
    at = np.zeros(len(layout.size), np.int64)
    for _ in groups:
        k = int(np.where(left, base + bottom, _FAR).argmin())
        left[k] = False
        rows = groups[k].rows
        at[rows] = base[k] + groups[k].rises
        tops = np.where(layout.meets[rows], (at[rows] + layout.size[rows])[:, None], -_FAR).max(axis=0)
        np.maximum.at(base, owner, tops - rises)
        base += -base % layout.align
    return at


def pack(layout: Layout, goal: int, deadline: Deadline, seed: int) -> Ints:
    """Offsets of all buffers by the lowest placement found; stops at the height ``goal``.

    A portfolio of priorities, then local search: a group at the top, or one that meets it, moves to a
    random earlier turn.
    """
    rng = random.Random(seed)
    trials = _priorities(layout)
    groups = next(trials)
    at = place(layout, groups)
    height = int((at + layout.size).max(initial=0))
    idle = 0
    while goal < height and idle < _PATIENCE and not deadline.expired:
        trial = next(trials, None) or _neighbour(layout, groups, at, rng)
        moved = place(layout, trial)
        found = int((moved + layout.size).max())
        idle = 0 if found < height else idle + 1
        if found <= height:
            groups, at, height = trial, moved, found
    return _spread(layout, at)


def _spread(layout: Layout, at: Ints) -> Ints:
    """The offset of every buffer, also of the layers left out, from those of the rows; -1 for none."""
    import numpy as np

    keys, which = np.unique(layout.folded.key, return_inverse=True)
    number = {key: i for i, key in enumerate(keys.tolist())}
    bases, pitches = np.full((2, len(keys)), -1), np.zeros(len(keys), np.int64)
    for g in layout.groups:
        base = int(at[g.rows[0]] - g.rises[0])
        for key, above in g.inner.items():
            bases[list(g.turns), number[key]] = base + above
            pitches[number[key]] = g.pitch
    layer = layout.folded.buffer_layer
    offsets: Ints = bases[layer % 2, which] + pitches[which] * layer
    return offsets


def _priorities(layout: Layout) -> Iterator[list[Group]]:
    """The groups by the largest figures of their rows, as in ``allocate/columns``."""
    import numpy as np

    level = np.zeros(int(layout.end.max(initial=0)) + 1, np.int64)
    np.add.at(level, layout.start, layout.size)
    np.subtract.at(level, layout.end, layout.size)
    level = np.cumsum(level)
    load = np.array([level[s:e].max(initial=0) for s, e in zip(layout.start, layout.end, strict=True)])
    width = layout.end - layout.start
    figures = {"load": load, "width": width, "size": layout.size, "area": width * layout.size}
    for names in PRIORITIES:
        most = [tuple(-int(figures[n][g.rows].max()) for n in names) for g in layout.groups]
        yield [layout.groups[i] for i in sorted(range(len(most)), key=most.__getitem__)]


def _neighbour(layout: Layout, groups: Sequence[Group], at: Ints, rng: random.Random) -> list[Group]:
    import numpy as np

    tops = at + layout.size
    row = rng.choice(np.flatnonzero(tops == tops.max()).tolist())
    if rng.random() < 0.7:
        row = rng.choice(np.flatnonzero(layout.meets[row]).tolist())
    place = next(i for i, g in enumerate(groups) if row in g.rows)
    earlier = rng.randrange(place + 1)
    rest = [*groups[:place], *groups[place + 1 :]]
    return [*rest[:earlier], groups[place], *rest[earlier:]]
