"""Boxes glued together: a guess that leaves a smaller packing problem.

Where little room is left, many a box takes over just what another one leaves. Two boxes of one
lifetime may lie on each other, and of two boxes of one size one may begin where and when the other
ends: either pair makes a box that wastes nothing, and may be glued to further ones. A packing of
the few boxes that are left is one of all; where they have none, the guess was wrong, and chance leads
to others. Undoing the cuts of a rectangle in this way is as old as guillotine patterns (Wang, "Two
Algorithms for Constrained Two-Dimensional Cutting Stock Problems", Operations Research 1983).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm

from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Box, Instance

#: How far chance moves pairs in the order of their areas.
_NOISE = 0.7

_Inner = tuple[tuple[int, int], ...]
_Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Glued:
    """The boxes that are left, each made of others: their indices, and their bytes above its offset."""

    instance: Instance
    made_of: tuple[_Inner, ...]

    def expand(self, offsets: Sequence[int]) -> Offsets:
        """The offset of every box that was glued, from those of the boxes that are left."""
        made = zip(offsets, self.made_of, strict=True)
        places = {i: at + rise for at, inner in made for i, rise in inner}
        return tuple(places[i] for i in range(len(places)))


@dataclass(frozen=True, slots=True)
class _Piece:
    box: Box
    inner: _Inner

    @property
    def room(self) -> int:
        """Bytes up to where another box of the same alignment can begin."""
        return -(-self.box.size // self.box.alignment) * self.box.alignment


def glue(instance: Instance, noise: random.Random | None = None) -> Glued:
    """Glue the pairs of the largest area first, until none is left; ``noise`` leads to other pairs.

    Boxes of fixed offset stay as they are. None may have parts.
    """
    pieces = [_Piece(b, ((i, 0),)) for i, b in enumerate(instance.boxes)]
    while True:
        if noise:
            noise.shuffle(pieces)
        pairs = [*_of_one_lifetime(pieces), *_in_succession(pieces)]
        if not pairs:
            return Glued(Instance(tuple(p.box for p in pieces)), tuple(p.inner for p in pieces))
        pieces = _joined(pieces, pairs, noise)


def _of_one_lifetime(pieces: Sequence[_Piece]) -> Iterator[_Pair]:
    """Pairs of which the second may lie on the first."""
    alike = defaultdict[tuple[int, int, int], list[int]](list)
    for k, p in enumerate(pieces):
        if p.box.fixed is None:
            alike[p.box.start, p.box.end, p.box.alignment].append(k)
    for members in alike.values():
        members.sort(key=lambda k: pieces[k].room - pieces[k].box.size)
        yield from zip(members[::2], members[1::2], strict=False)


def _in_succession(pieces: Sequence[_Piece]) -> Iterator[_Pair]:
    """Pairs of which the second may take over the room of the first."""
    ending = defaultdict[tuple[int, int], list[int]](list)
    for k, p in enumerate(pieces):
        if p.box.fixed is None:
            ending[p.box.end, p.room].append(k)
    for k, p in enumerate(pieces):
        before = ending.get((p.box.start, p.room))
        if before and p.box.fixed is None:
            yield before.pop(), k


def _joined(
    pieces: Sequence[_Piece], pairs: Sequence[_Pair], noise: random.Random | None
) -> list[_Piece]:
    """The pieces with as many of the pairs glued as do not share one."""

    def rank(pair: _Pair) -> float:
        area = pieces[pair[0]].box.area + pieces[pair[1]].box.area
        return -area * (noise.uniform(1 - _NOISE, 1) if noise else 1)

    left = dict(enumerate(pieces))
    made: list[_Piece] = []
    for first, second in sorted(pairs, key=rank):
        if first in left and second in left:
            made.append(_glued(left.pop(first), left.pop(second)))
    return [*left.values(), *made]


def _glued(first: _Piece, second: _Piece) -> _Piece:
    """One piece of two: ``second`` follows where ``first`` ends in time, or else lies on it."""
    a, b = first.box, second.box
    follows = a.end == b.start
    rise = 0 if follows else first.room
    size = max(a.size, b.size) if follows else rise + b.size
    inner = (*first.inner, *((i, rise + above) for i, above in second.inner))
    return _Piece(Box(a.buffer, a.start, b.end, size, lcm(a.alignment, b.alignment)), inner)
