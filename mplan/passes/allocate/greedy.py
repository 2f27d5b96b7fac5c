"""Place boxes one by one, at the first or the tightest gap, in each order of a portfolio.

By size is TFLite Micro's rule; by lifetime, area and start are the classics beside it. By padding,
weights that are live together end with the one whose padding is saved.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any

from mplan.passes.allocate.instance import Box, Instance
from mplan.passes.solvers.interface import Deadline, Search

Offsets = tuple[int, ...]

#: Sort keys, smallest first; ties by start and then by index.
ORDERS: dict[str, Callable[[Box], tuple[int, ...]]] = {
    "size": lambda b: (-b.size, b.start),
    "area": lambda b: (-b.area, b.start),
    "lifetime": lambda b: (b.start - b.end, -b.size),
    "start": lambda b: (b.start, -b.size),
    "end": lambda b: (-b.end, -b.size),
    "padding": lambda b: (-b.size % b.alignment, -b.size),
}


#: After so many boxes, those that are gone when any later one begins are forgotten.
_TIDY = 64


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Offer the packings of all orders; stop at a proof or at the deadline."""
    for best_fit in (True, False):
        for key in ORDERS.values():
            if search.closed or deadline.expired:
                return
            with suppress(TimeoutError):
                offsets = pack(instance, order_by(instance, key), best_fit, deadline)
                search.offer(offsets, instance.height(offsets), "greedy")


def order_by(instance: Instance, key: Callable[[Box], tuple[int, ...]]) -> list[int]:
    """The boxes sorted by ``key``."""
    return sorted(range(len(instance.boxes)), key=lambda i: (*key(instance.boxes[i]), i))


def pack(
    instance: Instance, order: Sequence[int], best_fit: bool, deadline: Deadline | None = None
) -> Offsets:
    """Offsets from placing the boxes in ``order``, those of fixed offset first.

    Each box takes the lowest gap that holds it, or, with ``best_fit``, the tightest. TimeoutError when
    the deadline expires before all are placed.
    """
    starts = [instance.boxes[i].start for i in order]
    if all(a <= b for a, b in pairwise(starts)) and not instance.rigid and not instance.anchored:
        return _pack_by_birth(instance.boxes, order, best_fit, deadline)
    shelf = _Shelf(instance)
    free = [i for i in order if instance.boxes[i].fixed is None]
    turns = [*(i for i, b in enumerate(instance.boxes) if b.fixed is not None), *free]
    begins = [*accumulate((instance.boxes[i].start for i in reversed(turns)), min)][::-1]
    for turn, i in enumerate(turns):
        if deadline is not None and deadline.expired:
            raise TimeoutError
        if turn % _TIDY == 0:
            shelf.forget(begins[turn])
        shelf.place(i, best_fit)
    return tuple(shelf.offsets)


def pack_within(
    instance: Instance, order: Sequence[int], limit_bytes: int, deadline: Deadline
) -> list[int | None]:
    """The lowest gap that holds each box of ``order`` in turn, those of fixed offset first; None for a
    box that would end above ``limit_bytes``, and for all once the deadline has passed."""
    shelf = _Shelf(instance)
    found: list[int | None] = [None] * len(instance.boxes)
    for i in sorted(order, key=lambda i: instance.boxes[i].fixed is None):
        if deadline.expired:
            break
        if shelf.place(i, False, limit_bytes):
            found[i] = shelf.offsets[i]
    return found


def _pack_by_birth(
    boxes: Sequence[Box], order: Sequence[int], best_fit: bool, deadline: Deadline | None
) -> Offsets:
    """``pack`` where no box begins before the one placed last.

    What meets a box is then what is there when it begins, as in a heap: a list of gaps will do.
    """
    offsets = [0] * len(boxes)
    gaps = _Gaps()
    ends = iter(sorted(order, key=lambda i: boxes[i].end))
    next_end = next(ends, 0)
    for i in order:
        if deadline is not None and deadline.expired:
            raise TimeoutError
        box = boxes[i]
        while boxes[next_end].end <= box.start:
            gaps.give(offsets[next_end], boxes[next_end].size)
            next_end = next(ends)
        offsets[i] = gaps.take(box.size, box.alignment, best_fit)
    return tuple(offsets)


class _Gaps:
    """The free addresses: gaps from ``lows`` to ``highs``, ascending, the last without an end."""

    def __init__(self) -> None:
        self.lows: list[int] = [0]
        self.highs: list[float] = [math.inf]

    def take(self, size: int, alignment: int, best_fit: bool) -> int:
        """The start of the lowest or the tightest gap that has ``size`` bytes, which are taken."""
        at = len(self.lows) - 1
        offset, tightest = self.lows[at] + -self.lows[at] % alignment, math.inf
        for k, (low, high) in enumerate(zip(self.lows, self.highs, strict=True)):
            first = low + -low % alignment
            room = high - first - size
            if 0 <= room < tightest:
                at, offset, tightest = k, first, room
                if not best_fit:
                    break
        low, high = self.lows[at], self.highs[at]
        left = ((low, offset), (offset + size, high))
        self.lows[at : at + 1] = [a for a, b in left if a < b]
        self.highs[at : at + 1] = [b for a, b in left if a < b]
        return offset

    def give(self, low: int, size: int) -> None:
        """Free the ``size`` bytes from ``low`` on."""
        at = bisect_left(self.highs, low)
        high: float = low + size
        if self.highs[at] == low:
            if self.lows[at + 1] == high:
                high = self.highs.pop(at + 1)
                del self.lows[at + 1]
            self.highs[at] = high
        elif self.lows[at] == high:
            self.lows[at] = low
        else:
            self.lows.insert(at, low)
            self.highs.insert(at, high)


class _Shelf:
    """The extents placed so far as columns sorted by address; one vector operation finds the gaps."""

    def __init__(self, instance: Instance) -> None:
        import numpy as np

        self.np = np
        self.boxes = instance.boxes
        self.offsets = [0] * len(self.boxes)
        self.count = 0
        #: Rows: low and high address, start and end position.
        self.columns = np.zeros((4, len(instance.extents)), np.int64)

    def forget(self, time: int) -> None:
        """Drop what ends at ``time`` or earlier, before which nothing more begins."""
        later = self.columns[:, : self.count][:, self.columns[3, : self.count] > time]
        self.count = later.shape[1]
        self.columns[:, : self.count] = later

    def place(self, i: int, best_fit: bool, limit_bytes: int | None = None) -> bool:
        """Give box ``i`` an offset, unless it would end above ``limit_bytes``; whether it got one."""
        b = self.boxes[i]
        offset = b.fixed if b.fixed is not None else self._gap(b, best_fit)
        if limit_bytes is not None and offset + b.size > limit_bytes:
            return False
        self.offsets[i] = offset
        for x in b.extents:
            placed = self.columns[:, : self.count]
            at = int(self.np.searchsorted(placed[0], offset + x.low))
            self.columns[:, at + 1 : self.count + 1] = placed[:, at:].copy()
            self.columns[:, at] = (offset + x.low, offset + x.high, x.start, x.end)
            self.count += 1
        return True

    def _gap(self, b: Box, best_fit: bool) -> int:
        """The offset of the lowest or the tightest gap between those that are taken."""
        np = self.np
        below, above = self._taken(b)
        if not below.size:
            return 0
        floor = np.empty(below.size + 1, np.int64)
        floor[0] = 0
        np.maximum.accumulate(np.maximum(above, 0), out=floor[1:])
        if b.alignment > 1:
            floor += -floor % b.alignment
        room = below - floor[:-1]
        fits = room >= 0
        if not fits.any():
            return int(floor[-1])
        if best_fit:
            return int(floor[np.where(fits, room, np.iinfo(np.int64).max).argmin()])
        return int(floor[fits.argmax()])

    def _taken(self, b: Box) -> tuple[Any, Any]:
        """Box ``b`` may lie up to each of ``below``, which ascends, or from its ``above`` on."""
        np = self.np
        low, high, start, end = self.columns[:, : self.count]
        pairs = []
        for x in b.extents:
            live = (start < x.end) & (end > x.start)
            pairs.append((low[live] - x.high, high[live] - x.low))
        if len(pairs) == 1:
            return pairs[0]
        below, above = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
        order = below.argsort(kind="stable")
        return below[order], above[order]
