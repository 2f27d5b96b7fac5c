"""The search that ``ejection`` describes, compiled by Numba; import this module inside functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from numba import njit

from mplan.passes.solvers.compiled import entry

Function = TypeVar("Function", bound=Callable[..., Any])

#: Where ``Rows.clock`` counts: boxes out, boxes touched, the number of this attempt, work done in it,
#: the state of the random numbers.
OUT, TOUCHED, ATTEMPT, WORK, RANDOM = 0, 1, 2, 3, 4
#: More neighbours than these are sorted by numpy.
_FEW = 48
#: A step takes as long as this many visits of a neighbour, beside those that it makes.
_STEP_WORK = 20
#: The most that chance adds to a cost.
_NOISE = 0.1


class Rows(NamedTuple):
    """Columns of the boxes by time of their beginning, and room to work in.

    ``offset`` is -1 of boxes that are out. ``members[at[k]:at[k + 1]]`` are the boxes before number
    ``k * block`` that live when that one begins. ``price`` is what it takes to eject a box now,
    ``area`` what it takes at first. ``out`` are the boxes to put back, ``touched`` those that moved,
    ``before`` where they lay; a box that moved in this attempt has its number in ``seen``. The rest
    holds the neighbours of one box: which they are, their low and high ends, sorted, and the indices
    behind them.
    """

    start: Any
    end: Any
    size: Any
    alignment: Any
    area: Any
    offset: Any
    price: Any
    block: int
    members: Any
    at: Any
    out: Any
    touched: Any
    before: Any
    seen: Any
    near: Any
    low: Any
    high: Any
    by_low: Any
    by_high: Any
    clock: Any


def _inner(function: Function) -> Function:
    """Compile together with the function that calls it."""
    compiled: Function = cast(Any, njit)(no_cpython_wrapper=True, error_model="numpy")(function)
    return compiled


@entry
def put_back(t: Rows, height: int, work: int) -> bool:
    """Put the boxes that are out back under ``height``, until all are or about ``work`` is done.

    Work counts visits of neighbours. A box that has no place ejects the cheapest ones, and gets dearer.
    """
    clock = t.clock
    while clock[OUT] and clock[WORK] < work:
        box = _largest(t)
        near = _gather(t, box)
        offset, free = _cheapest(t, box, near, height)
        if offset < 0:
            clock[WORK] = work
            t.out[clock[OUT]] = box
            clock[OUT] += 1
            break
        if not free:
            t.price[box] += t.area[box]
            for k in range(near):
                i = t.near[k]
                if t.offset[i] < offset + t.size[box] and t.offset[i] + t.size[i] > offset:
                    _take_out(t, i)
        t.offset[box] = offset
    return bool(clock[OUT] == 0)


@_inner
def _take_out(t: Rows, box: int) -> None:
    clock = t.clock
    if t.seen[box] != clock[ATTEMPT]:
        t.seen[box] = clock[ATTEMPT]
        t.touched[clock[TOUCHED]] = box
        t.before[clock[TOUCHED]] = t.offset[box]
        clock[TOUCHED] += 1
    t.offset[box] = -1
    t.out[clock[OUT]] = box
    clock[OUT] += 1


@_inner
def _largest(t: Rows) -> int:
    """The largest box that is out, of equals the one that has been so for longest, taken from them."""
    place = 0
    for k in range(1, t.clock[OUT]):
        if t.size[t.out[k]] > t.size[t.out[place]]:
            place = k
    box = int(t.out[place])
    for k in range(place + 1, t.clock[OUT]):
        t.out[k - 1] = t.out[k]
    t.clock[OUT] -= 1
    return box


@_inner
def _gather(t: Rows, box: int) -> int:
    """Find the boxes placed that live together with ``box``; how many they are."""
    start, end, number = t.start[box], t.end[box], box // t.block
    found = 0
    for k in range(t.at[number], t.at[number + 1]):
        i = t.members[k]
        if t.end[i] > start and t.offset[i] >= 0:
            t.near[found] = i
            found += 1
    first = i = number * t.block
    while i < len(t.start) and t.start[i] < end:
        if t.end[i] > start and t.offset[i] >= 0:
            t.near[found] = i
            found += 1
        i += 1
    t.clock[WORK] += _STEP_WORK + t.at[number + 1] - t.at[number] + i - first + 4 * found
    for k in range(found):
        t.low[k] = t.offset[t.near[k]]
        t.high[k] = t.low[k] + t.size[t.near[k]]
    _sort(t.low, t.by_low, found)
    _sort(t.high, t.by_high, found)
    return found


@_inner
def _sort(values: Any, index: Any, count: int) -> None:
    """Sort the first ``count`` of ``values``; ``index`` says where they stood."""
    if count > _FEW:
        index[:count] = values[:count].argsort()
        values[:count] = values[:count][index[:count]]
        return
    for k in range(count):
        value, place = values[k], k
        while place and values[place - 1] > value:
            values[place], index[place] = values[place - 1], index[place - 1]
            place -= 1
        values[place], index[place] = value, k


@_inner
def _cheapest(t: Rows, box: int, near: int, height: int) -> tuple[int, bool]:
    """Where ``box`` costs least among its neighbours, and whether it ejects none of them.

    Of free places it is the tightest, -1 if the box is higher than ``height``. It lies on or directly
    under a neighbour, at the bottom or at the top.
    """
    size, step = t.size[box], t.alignment[box]
    top = (height - size) // step * step
    best, best_cost, best_gap = -1, 0.0, -1
    for side in range(2):
        below = above = 0
        cost = 0.0
        for k in range(near + 1):
            if side:
                offset = (t.low[k] - size) // step * step if k < near else top
            else:
                offset = (t.high[k - 1] + step - 1) // step * step if k else 0
            if offset < 0 or offset > top:
                continue
            while above < near and t.low[above] < offset + size:
                cost += t.price[t.near[t.by_low[above]]]
                above += 1
            while below < near and t.high[below] <= offset:
                cost -= t.price[t.near[t.by_high[below]]]
                below += 1
            if above == below:
                gap = (t.low[above] if above < near else height) - (t.high[below - 1] if below else 0)
                if best_gap < 0 or gap < best_gap:
                    best, best_gap = offset, gap
            elif best_gap < 0:
                noisy = cost * (1 + _NOISE * _chance(t))
                if best < 0 or noisy < best_cost:
                    best, best_cost = offset, noisy
    return best, best_gap >= 0


@_inner
def _chance(t: Rows) -> float:
    """The next random number from 0 to 1 (xorshift, Marsaglia, 2003)."""
    x = t.clock[RANDOM]
    x ^= x << 13
    x ^= (x >> 7) & ((1 << 57) - 1)
    x ^= x << 17
    t.clock[RANDOM] = x
    return float((x >> 33) & 1023) / 1024
