"""Repeated layers are solved once: order and addresses of a few stand for all.

A bi-level plan in the manner of Zhao et al., "MEMO: Fine-grained Tensor Management For Ultra-long
Context LLM Training" (2025): the layers of a model are found (``find``), all but a few are left out
(``fold``), the small problem is solved, and its order and addresses (``pack``) are repeated.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect, insort
from collections.abc import Sequence
from dataclasses import dataclass

from mplan.ir.plan import Placement, Problem
from mplan.passes.allocate import Allocated
from mplan.passes.allocate.instance import Instance, from_problem
from mplan.passes.live import live_peak
from mplan.passes.repeats.fold import Fold, Unfolded, fold
from mplan.passes.repeats.pack import Layout, pack
from mplan.passes.schedule import Ordered, bounds, schedule
from mplan.passes.schedule.instance import from_problem as steps_of
from mplan.passes.solvers.interface import Bound, Deadline, Search

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
        folded.problem, region=region, limit_s=deadline.share(_SHARE).remaining(), seed=seed
    )
    captured = tuple(range(len(folded.steps)))
    ways = (folded.unfold(order) for order in dict.fromkeys((small.order, captured)))
    peaks = [(*live_peak(problem, way.full, region), way) for way in ways if way is not None]
    if not peaks:
        return None
    peak, position, way = min(peaks, key=lambda row: row[0])
    solver = small.certificate.solver if way.order == small.order else "none"
    search = Search(way.full, peak, solver, bounds.boundary(problem, region))
    search.raise_bound(bounds.working_set(problem, region))
    if not search.closed:
        step = way.full[position]
        least, _ = bounds.closure(steps_of(problem, region), step)
        search.raise_bound(Bound(least, "closure", (step,)))
    certificate = search.certificate(f"schedule:{region}", seed, time.monotonic() - started)
    return Repeated(Ordered(way.full, certificate), _place(folded, way, region, deadline, seed))


def repeat_captured(problem: Problem, region: str, deadline: Deadline, seed: int) -> Allocated | None:
    """Addresses of ``region`` that lie alike in each layer of the captured order, if there are layers
    to repeat and theirs do not collide."""
    folded = fold(problem, region)
    way = folded.unfold(tuple(range(len(folded.steps)))) if folded else None
    if folded is None or way is None or way.full != tuple(range(len(problem.steps))):
        return None
    return _place(folded, way, region, deadline, seed)


def _place(folded: Fold, way: Unfolded, region: str, deadline: Deadline, seed: int) -> Allocated | None:
    started = time.monotonic()
    problem = folded.full
    instance = from_problem(problem, way.full, region)
    (live, position), (padded, padded_at) = instance.live(), instance.padded()
    bound = Bound(live, "live", (position,))
    if padded > live:
        bound = Bound(padded, "padded", (padded_at,))
    at = pack(Layout(folded, way, region), bound.bytes, deadline.share(_SHARE), seed)
    offsets = {b.buffer: at.get(b.buffer, -1) for b in instance.boxes}
    if min(offsets.values(), default=0) < 0 or _collide(instance, list(offsets.values())):
        return None
    height = instance.height(list(offsets.values()))
    capacity = problem.region(region).capacity_bytes
    if capacity is not None and height > capacity:
        return None
    placements = tuple(
        Placement(i, region, offsets.get(i, 0), start, end)
        for i, (b, (start, end)) in enumerate(
            zip(problem.buffers, problem.lifetimes(way.full), strict=True)
        )
        if b.regions[0] == region
    )
    search = Search(way.full, height, "repeats", bound)
    certificate = search.certificate(f"allocate:{region}", seed, time.monotonic() - started)
    return Allocated(placements, height, certificate)


def _collide(instance: Instance, offsets: Sequence[int]) -> bool:
    """Whether two boxes overlap: a sweep over time with the live boxes sorted by address."""
    live: list[tuple[int, int]] = []
    ends: list[tuple[int, tuple[int, int]]] = []
    for start, low, b in sorted(
        ((b.start, low, b) for b, low in zip(instance.boxes, offsets, strict=True)),
        key=lambda row: row[:2],
    ):
        while ends and ends[0][0] <= start:
            live.remove(heapq.heappop(ends)[1])
        entry = (low, low + b.size)
        at = bisect(live, entry)
        if (at and live[at - 1][1] > low) or (at < len(live) and live[at][0] < entry[1]):
            return True
        insort(live, entry)
        heapq.heappush(ends, (b.end, entry))
    return False
