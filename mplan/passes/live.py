"""Live bytes of a region at a given order, from the problem alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from mplan.ir.plan import Problem


def live_levels(problem: Problem, order: Sequence[int], region: str) -> list[tuple[int, int]]:
    """``(position, bytes)`` wherever the live bytes of ``region`` may change, in order of position.

    A buffer counts in the first of its regions. The last entry is at the end of the last lifetime.
    """
    delta = {0: 0}
    for buffer, (start, end) in zip(problem.buffers, problem.lifetimes(order), strict=True):
        for x in buffer.held(start, end) if buffer.regions[0] == region else ():
            delta[x.start] = delta.get(x.start, 0) + x.high - x.low
            delta[x.end] = delta.get(x.end, 0) - x.high + x.low
    positions = sorted(delta)
    return list(zip(positions, accumulate(delta[p] for p in positions), strict=True))


def live_peak(problem: Problem, order: Sequence[int], region: str) -> tuple[int, int]:
    """The most bytes of ``region`` live at one position, and the first such position."""
    position, peak = max(live_levels(problem, order, region), key=lambda level: (level[1], -level[0]))
    return peak, position
