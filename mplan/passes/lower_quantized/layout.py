"""Orders of dimensions: how an int8 tensor of the new graph stores what the old one had row-major.

A tensor of logical ``shape`` is stored with its dimensions in ``order``: stored dimension ``i`` is
logical dimension ``order[i]``. Images are stored NHWC, which is the order (0, 2, 3, 1) of NCHW. Moving
a dimension in the logical shape (permute) then moves nothing, and reshaping moves nothing where the
dimensions that it merges or splits lie together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from mplan.ir.affine import Affine

Sizes: TypeAlias = tuple[int, ...]
#: The order in which quantised ops want images.
NHWC: Sizes = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class Stored:
    """An int8 value of the new graph: its logical shape, the order it is stored in, its quantisation.

    All its integers lie in ``[least, most]``.
    """

    name: str
    shape: Sizes
    order: Sizes
    affine: Affine
    least: int = -128
    most: int = 127

    @property
    def sizes(self) -> Sizes:
        """The shape as stored."""
        return tuple(self.shape[d] for d in self.order)

    @property
    def in_order(self) -> bool:
        """Whether the elements lie in row-major order of the logical shape."""
        return same_places(self.shape, self.order, plain(len(self.shape)))


def plain(rank: int) -> Sizes:
    """The order of a row-major tensor."""
    return tuple(range(rank))


def same_places(shape: Sizes, order: Sizes, other: Sizes) -> bool:
    """Whether two orders put all elements at the same places: dimensions of size 1 do not count."""
    return _wide(shape, order) == _wide(shape, other)


def _wide(shape: Sizes, order: Sizes) -> list[int]:
    return [d for d in order if shape[d] != 1]


def reshaped_order(shape: Sizes, order: Sizes, wanted: Sizes) -> Sizes | None:
    """The order of the same bytes seen as ``wanted``; None where elements would have to move."""
    place = {d: i for i, d in enumerate(_wide(shape, order))}
    blocks = []
    for old, new in _blocks(shape, wanted):
        places = [place[d] for d in old]
        if places != list(range(places[0], places[0] + len(places))):
            return None
        blocks.append((places[0], new))
    stored = [d for _, new in sorted(blocks) for d in new]
    return _with_ones(stored, wanted)


def _blocks(shape: Sizes, wanted: Sizes) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of dimensions (without those of size 1) that become each other."""
    olds = [d for d, n in enumerate(shape) if n != 1]
    news = [d for d, n in enumerate(wanted) if n != 1]
    found = []
    while olds or news:
        old, new = [olds.pop(0)], [news.pop(0)]
        while (a := prod(shape[d] for d in old)) != (b := prod(wanted[d] for d in new)):
            (old if a < b else new).append((olds if a < b else news).pop(0))
        found.append((old, new))
    return found


def _with_ones(stored: list[int], shape: Sizes) -> Sizes:
    """``stored`` with the dimensions of size 1 put in: in row-major order if possible, else first."""
    if stored == sorted(stored):
        return plain(len(shape))
    return (*(d for d, n in enumerate(shape) if n == 1), *stored)
