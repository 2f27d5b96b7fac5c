"""Bilinear resizing in integers: the places of results, and the reference function.

The place of a row or a column of the result is where it lies in the input, in units of 2**-10 pixels.
A result sums the four pixels around its place, weighted in units of 2**-20, and halves are rounded away
from zero. As the weights sum up to 1, scale and zero point stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING

from mplan.ir.geometry import Reach

if TYPE_CHECKING:
    from torch import Tensor

#: Fractional bits of a place.
PLACE_BITS = 10
_ONE = 1 << PLACE_BITS


def within(places: Sequence[int], length: int) -> tuple[int, ...]:
    """Places inside of ``length`` pixels: those beside them become the nearest ones."""
    return tuple(min(max(p, 0), (length - 1) * _ONE) for p in places)


def tflite_places(length: int, wanted: int, align_corners: bool, half_pixel: bool) -> tuple[int, ...]:
    """The places of ``wanted`` results as TFLite's integer kernel has them: multiples of a step."""
    step = (_ONE * length + wanted // 2) // wanted
    if align_corners and wanted > 1:
        step = (_ONE * (length - 1) + (wanted - 1) // 2) // (wanted - 1)
    first = step // 2 - _ONE // 2 if half_pixel else 0
    return within([first + step * o for o in range(wanted)], length)


def reach_of(places: Sequence[int], length: int) -> Reach:
    """The least reach of results at ``places`` in one dimension of ``length`` pixels."""
    slopes = [(length, len(places))]
    if min(length, len(places)) > 1:  # corners that are aligned
        slopes.append((length - 1, len(places) - 1))
    found = [_reach(places, a // gcd(a, b), b // gcd(a, b)) for a, b in slopes]
    return min(found, key=lambda reach: (reach.high - reach.low) / reach.div)


def _reach(places: Sequence[int], scale: int, div: int) -> Reach:
    firsts = [p // _ONE * div + div - 1 - o * scale for o, p in enumerate(places)]
    lasts = [-(-p // _ONE) * div - o * scale for o, p in enumerate(places)]
    return Reach(scale, min(firsts), max(lasts), div)


def resize_bilinear2d(input: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """An image of another size, each pixel between the four around its place."""
    import torch

    whole = input.to(torch.int64)
    for dim, places in ((1, rows), (2, columns)):
        at = torch.tensor(places)
        first, part = at >> PLACE_BITS, at & (_ONE - 1)
        last = (first + 1).clamp(max=input.shape[dim] - 1)
        part = part.reshape(-1, *[1] * (3 - dim))
        before, after = (whole.index_select(dim, index) for index in (first, last))
        whole = before * (_ONE - part) + after * part
    half = 1 << (2 * PLACE_BITS - 1)
    return (whole.sign() * ((whole.abs() + half) >> 2 * PLACE_BITS)).to(torch.int8)
