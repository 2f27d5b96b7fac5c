"""The order of the steps: the peak of live bytes in one region, least over all valid orders."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mplan.ir.plan import Certificate, Problem
from mplan.ir.table import levels
from mplan.passes.live import live_peak
from mplan.passes.schedule import bounds, exact
from mplan.passes.schedule.contract import Contraction
from mplan.passes.schedule.instance import from_problem
from mplan.passes.solvers.interface import (
    Bound,
    Deadline,
    Search,
    find_solver,
    guard,
    run_solver,
)
from mplan.passes.solvers.interrupt import graceful

#: At so many of the highest positions of the order found its bound is looked for, in this part of the
#: time, even where the search for orders has not left it.
_PEAKS = 40
_TIGHTEN = 0.05
#: Seconds per step that the first order takes. It is made in any case where it takes no more than
#: ``_GRACE_S``, and otherwise if there is time for it.
_BUILD_S = 4e-5
_GRACE_S = 0.2


@dataclass(frozen=True, slots=True)
class Ordered:
    """An order of the steps (``order[p]`` is the step at position p) and what is known about it."""

    order: tuple[int, ...]
    certificate: Certificate


def schedule(
    problem: Problem,
    *,
    region: str | None = None,
    solver: str = "auto",
    limit_s: float = 10.0,
    seed: int = 0,
    start: Ordered | None = None,
) -> Ordered:
    """The order with the lowest peak of ``region`` that ``solver`` finds within ``limit_s`` seconds.

    Only buffers whose first choice is ``region`` count; by default it is the first region in which
    an order matters. ``start`` is an answer known already, to be proven or improved. The order is
    valid and its peak never above that of the captured order, even without any time; Ctrl-C ends the
    search. Raises UserError MP215 (malformed problem), MP220 (unknown solver) and MP226 (sizes out of
    range).
    """
    started = time.monotonic()
    deadline = Deadline(limit_s)
    guard(problem)
    name = region or arena(problem)
    problem.region(name)
    row = find_solver("schedule", solver)
    with graceful():
        order, search = _search(problem, name, row.name, deadline, seed, start)
    certificate = search.certificate(f"schedule:{name}", seed, time.monotonic() - started)
    return Ordered(order, certificate)


def arena(problem: Problem) -> str:
    """The first region with a buffer that is not live throughout; else the first region."""
    columns = problem.columns
    moving_choices = set(columns.choice[~(columns.live_in & columns.live_out)].tolist())
    moving = {columns.choices[c][0] for c in moving_choices}
    return next((r.name for r in problem.regions if r.name in moving), problem.regions[0].name)


def _search(
    problem: Problem,
    region: str,
    solver: str,
    deadline: Deadline,
    seed: int,
    known: Ordered | None,
) -> tuple[tuple[int, ...], Search[tuple[int, ...]]]:
    """The best order and a search that holds its value (all live bytes) and bound."""
    captured = tuple(range(len(problem.steps)))
    peak, position = live_peak(problem, captured, region)
    if not problem.steps:
        return captured, Search(captured, peak, "none", Bound(peak, "live", (position,)))
    found = Search(captured, peak, "none", bounds.boundary(problem, region))
    found.raise_bound(bounds.working_set(problem, region))
    if known is not None:
        mine = known.certificate
        found.offer(known.order, mine.value_bytes, mine.solver)
        found.raise_bound(Bound(mine.lower_bound_bytes, mine.bound_kind, mine.witness))
    too_late = len(problem.steps) * _BUILD_S > max(deadline.remaining(), _GRACE_S)
    if solver == "none" or found.closed or too_late:
        return found.answer, found
    small = Contraction(from_problem(problem, region))
    start = small.project(found.answer)
    inner = Search(start, small.instance.peak(start), "greedy", found.bound)
    if known is not None:
        exact.prove(small.instance, inner, deadline)
    tightening_s = deadline.remaining() * _TIGHTEN
    searching = deadline.share(1 - _TIGHTEN)
    run_solver(find_solver("schedule", solver), small.instance, inner, searching, seed)
    order = small.expand(inner.answer)
    found.offer(order, live_peak(problem, order, region)[0], inner.solver)
    _adopt(found, inner.bound, small)
    _tighten(problem, region, found, deadline.at_least(tightening_s))
    return found.answer, found


def _tighten(problem: Problem, region: str, found: Search[tuple[int, ...]], deadline: Deadline) -> None:
    """Raise the bound by the closures of the steps at which the order holds more, worst first."""
    if found.closed:
        return
    times, live = levels(*problem.table.extents(found.answer, region))
    for i in (-live).argsort(kind="stable")[:_PEAKS].tolist():
        if live[i] <= found.bound.bytes:
            return
        found.raise_bound(bounds.closure_in(problem, region, found.answer[int(times[i])]))
        if deadline.expired:
            return


def _adopt(found: Search[tuple[int, ...]], bound: Bound, small: Contraction) -> None:
    """Raise the bound by that of the contracted instance, its witness as a step of the problem.

    The end of the order, which contraction may have made a step, is none: such a cut has no witness.
    """
    if bound.kind == "closure" and bound != found.bound:
        origin = small.origin(bound.witness[0])
        kind, witness = ("exhaustive", ()) if origin is None else ("closure", (origin,))
        bound = Bound(bound.bytes, kind, witness)
    found.raise_bound(bound)
