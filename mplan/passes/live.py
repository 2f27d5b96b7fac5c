"""Live bytes at a given order, and what is needed at least to hold them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mplan.ir.plan import Problem
from mplan.ir.table import levels

if TYPE_CHECKING:
    from mplan.ir.table import Ints


def live_peak(problem: Problem, order: Iterable[int], region: str) -> tuple[int, int]:
    """The most bytes of ``region`` live at one position, and the first such position.

    A buffer counts in the first of its regions.
    """
    return peak(*problem.table.extents(order, region))


def peak(start: Ints, end: Ints, size: Ints) -> tuple[int, int]:
    """The most bytes of what lives during ``[start, end)`` that live together, and when first."""
    times, live = levels(start, end, size)
    at = int(live.argmax())
    return int(live[at]), int(times[at])


def padded_peak(start: Ints, end: Ints, size: Ints, common: int) -> tuple[int, int]:
    """``peak`` with each buffer but one padded to ``common``, which divides all offsets.

    Of buffers live together only the highest may end anywhere.
    """
    import numpy as np

    pad = -size % common
    if not pad.any():
        return peak(start, end, size)
    best = position = level = 0
    ends: list[tuple[int, int]] = []
    pads: list[tuple[int, int]] = []
    by_start = np.argsort(start, kind="stable")
    rows = (column[by_start].tolist() for column in (start, end, size + pad, pad))
    for begin, until, room, own in zip(*rows, strict=True):
        while ends and ends[0][0] <= begin:
            level -= heapq.heappop(ends)[1]
        level += room
        heapq.heappush(ends, (until, room))
        heapq.heappush(pads, (-own, until))
        while pads[0][1] <= begin:
            heapq.heappop(pads)
        if level + pads[0][0] > best:
            best, position = level + pads[0][0], begin
    return best, position
