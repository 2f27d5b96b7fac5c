"""Repeated layers are solved once: order and addresses of a few stand for all.

A bi-level plan in the manner of Zhao et al., "MEMO: Fine-grained Tensor Management For Ultra-long
Context LLM Training" (2025): the layers of a model are found (``find``), all but a few are left out
(``fold``), the small problem is solved, and its order and addresses (``pack``) are repeated.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat as repeat_value
from math import gcd, lcm
from typing import TYPE_CHECKING

from mplan.ir.plan import Placement, Problem
from mplan.passes.allocate import Allocated
from mplan.passes.live import live_peak, padded_peak, peak
from mplan.passes.repeats.fold import Fold, Unfolded, fold
from mplan.passes.repeats.pack import Layout, pack
from mplan.passes.schedule import Ordered, bounds, schedule
from mplan.passes.schedule.greedy import near_order
from mplan.passes.schedule.instance import from_problem as steps_of
from mplan.passes.solvers.interface import Bound, Deadline, Search

if TYPE_CHECKING:
    from mplan.ir.table import Ints

#: The share of the time that the order of the kept layers may take; the same again is for addresses.
_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Repeated:
    """An order of the whole problem that does the same in each layer, and addresses of one region that
    lie alike in each; None if the layers' addresses collide or exceed the region."""

    ordered: Ordered
    placed: Allocated | None


def repeat(problem: Problem, region: str, deadline: Deadline, seed: int) -> Repeated | None:
    """Solve a few layers of ``problem`` and repeat the answer; None if it has no layers to repeat.

    The certificates hold for the whole problem.
    """
    started = time.monotonic()
    folded = fold(problem, region)
    if folded is None:
        return None
    small = schedule(
        folded.loaded, region=region, limit_s=deadline.share(_SHARE).remaining(), seed=seed
    )
    ways = list(_ways(folded, region, small))
    if not ways:
        return None
    peaks = [live_peak(problem, way.full, region) for way in ways]
    most, position = min(peaks)
    best = [way for way, peak in zip(ways, peaks, strict=True) if peak[0] == most]
    step = int(ways[peaks.index((most, position))].full[position])
    way, placed = _lowest(folded, best, region, deadline, seed)
    full: tuple[int, ...] = tuple(way.full.tolist())
    solver = "none" if full == tuple(range(len(full))) else small.certificate.solver
    search = Search(full, most, solver, bounds.boundary(problem, region))
    search.raise_bound(bounds.working_set(problem, region))
    if not search.closed:
        search.raise_bound(bounds.closure_in(problem, region, step))
    certificate = search.certificate(f"schedule:{region}", seed, time.monotonic() - started)
    return Repeated(Ordered(full, certificate), placed)


def _ways(folded: Fold, region: str, small: Ordered) -> Iterator[Unfolded]:
    """Orders to repeat: the captured one, ``small``, and such as stay close to the captured one within
    the peak of ``small``."""
    instance, limit = steps_of(folded.loaded, region), small.certificate.value_bytes
    near = (near_order(instance, limit, eager) for eager in (False, True))
    for order in dict.fromkeys((tuple(range(instance.count)), small.order, *near)):
        way = folded.unfold(order)
        if way is not None:
            yield way


def _lowest(
    folded: Fold, ways: Sequence[Unfolded], region: str, deadline: Deadline, seed: int
) -> tuple[Unfolded, Allocated | None]:
    """The way with the lowest addresses, and these."""
    best: tuple[Unfolded, Allocated | None] = ways[0], None
    for way in ways:
        placed = _place(folded, way, region, deadline, seed)
        if placed and (best[1] is None or placed.height_bytes < best[1].height_bytes):
            best = way, placed
            if placed.certificate.status == "optimal":
                break
    return best


def repeat_at(
    problem: Problem, order: Sequence[int], region: str, deadline: Deadline, seed: int
) -> Allocated | None:
    """Addresses of ``region`` at ``order`` that lie alike in each layer, if there are layers to repeat,
    all in the same order, and their addresses do not collide."""
    import numpy as np

    steps = np.array(order, np.int64)
    if not np.array_equal(np.sort(steps), np.arange(len(problem.steps))):
        return None
    folded = fold(problem, region)
    way = folded.unfold(folded.project(steps.tolist())) if folded else None
    if folded is None or way is None or not np.array_equal(way.full, steps):
        return None
    return _place(folded, way, region, deadline, seed)


def _place(folded: Fold, way: Unfolded, region: str, deadline: Deadline, seed: int) -> Allocated | None:
    import numpy as np

    started = time.monotonic()
    problem, table = folded.full, folded.full.table
    start, end = table.lifetimes(way.full)
    home = table.lies_in(region)
    held = home & (start < end) & (table.size > 0)
    boxes = start[held], end[held], table.size[held]
    live, position = peak(*boxes)
    padded, padded_at = padded_peak(*boxes, _common_alignment(problem, region))
    bound = Bound(live, "live", (position,))
    if padded > live:
        bound = Bound(padded, "padded", (padded_at,))
    at = np.where(held, pack(Layout(folded, way, region), bound.bytes, deadline.share(_SHARE), seed), 0)
    height = int((at[held] + table.size[held]).max(initial=0))
    capacity = problem.region(region).capacity_bytes
    too_high = capacity is not None and height > capacity
    if at.min(initial=0) < 0 or too_high or _collide(*boxes, at[held]):
        return None
    buffers, *rows = np.stack((np.flatnonzero(home), at[home], start[home], end[home])).tolist()
    placements = tuple(map(Placement, buffers, repeat_value(region), *rows))
    search = Search(placements, height, "repeats", bound)
    certificate = search.certificate(f"allocate:{region}", seed, time.monotonic() - started)
    return Allocated(placements, height, certificate)


def _common_alignment(problem: Problem, region: str) -> int:
    own, mine = problem.region(region).alignment, problem.table.lies_in(region)
    return gcd(*(lcm(own, a) for a in set(problem.columns.alignment[mine].tolist())))


def _collide(start: Ints, end: Ints, size: Ints, low: Ints) -> bool:
    """Whether two boxes overlap: a sweep over time with the live boxes sorted by address."""
    import numpy as np

    count = len(start)
    order = np.argsort(np.concatenate((end, start)), kind="stable")  # of equal times, ends come first
    lows, highs, find = low.tolist(), (low + size).tolist(), bisect_left
    live: list[int] = []
    top: dict[int, int] = {}
    for event in order.tolist():
        if event < count:
            del live[find(live, lows[event])]
            continue
        first, last = lows[event - count], highs[event - count]
        at = find(live, first)
        if (at and top[live[at - 1]] > first) or (at < len(live) and live[at] < last):
            return True
        live.insert(at, first)
        top[first] = last
    return False
