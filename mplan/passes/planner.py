"""Whole plans: schedule, then place every region, then check; and the figures plans are held against.

``solve`` answers a bare problem; the passes ``schedule`` and ``allocate`` do the same for a graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import gcd, lcm

from mplan.diagnostics import InfeasibleError, InternalError
from mplan.ir.check import check
from mplan.ir.plan import Certificate, Plan, Problem, Status
from mplan.passes import joint, repeats
from mplan.passes.allocate import Allocated, OverBudget, allocate
from mplan.passes.allocate.instance import MANY
from mplan.passes.live import live_peak
from mplan.passes.memories import assign, choices, pooled
from mplan.passes.schedule import Ordered, arena, schedule
from mplan.passes.solvers.interface import SOLVERS, Deadline, Decision, find_solver, guard
from mplan.passes.solvers.interrupt import graceful

#: Seconds that greedy placement at the captured order may take even if the deadline has passed.
_GRACE_S = 0.05
#: The share of the time left after the schedule for addresses at its order; the rest is for others,
#: which gain less where buffers are many.
_FIRST_ORDER = 0.6
_FIRST_ORDER_OF_MANY = 0.9
#: The share of the time left after the schedule for sharing buffers out at its order; the rest is for
#: the captured order, if no way is found at this one.
_FIRST_SHARED = 0.9
#: The share of the time for a joint search that a better bound on its goal may take.
_PADDED = 0.3
#: Seconds that sealing and checking a plan takes per step and buffer; at most half of the limit.
_CHECK_S = 4e-6
#: Seconds that placing a buffer takes, its offset known or not.
_PLACE_S = 1.5e-5
#: Seconds that sharing a buffer out between several memories takes.
_SHARE_S = 8e-5


@dataclass(frozen=True, slots=True)
class _Draft:
    """An order and the placements of every region at it."""

    problem: Problem
    order: tuple[int, ...]
    parts: tuple[Allocated, ...]

    @property
    def arena(self) -> Allocated:
        """The placements of the arena."""
        names = [r.name for r in self.problem.regions]
        return self.parts[names.index(arena(self.problem))]

    @property
    def height(self) -> int:
        """The height of the arena."""
        return self.arena.height_bytes

    @property
    def positions(self) -> joint.Draft:
        """The order and the offsets of the arena."""
        return joint.Draft(self.order, {p.buffer: p.offset for p in self.arena.placements})


def solve(problem: Problem, *, solver: str = "auto", limit_s: float = 10.0, seed: int = 0) -> Plan:
    """A checked plan for ``problem``; its arena is never higher than that of the captured order.

    ``solver`` names a solver of either decision; the other one is then made by ``auto``. The limit
    holds for the whole plan: at most half of it is the scheduler's. Ctrl-C ends the search; the best
    plan so far is returned. Buffers that may lie in several regions of known cost are shared out at
    the order of fewest live bytes. Raises OverBudget (an InfeasibleError) MP221 or MP222 if a region
    overflows, InfeasibleError MP228 if several do, UserError MP215 for a malformed problem and MP220
    for an unknown solver.
    """
    deadline = _deadline(problem, limit_s)
    name = solver_for("allocate", solver)
    guard(problem)
    captured = tuple(range(len(problem.steps)))
    with graceful():
        if not problem.steps:
            return place(problem, captured, solver=name, limit_s=deadline.remaining(), seed=seed)
        if choices(problem):
            return _shared_out(problem, solver, deadline, seed)
        placing_s = len(problem.buffers) * _PLACE_S  # at this order, and at the captured one
        half = Deadline(min(deadline.remaining() / 2, deadline.remaining() - 2 * placing_s))
        ordered, known = _order(problem, solver_for("schedule", solver), half, seed)
        certificate = ordered.certificate
        try:
            part = _FIRST_ORDER_OF_MANY if len(problem.buffers) >= MANY else _FIRST_ORDER
            share = Deadline(min(deadline.remaining() * part, deadline.remaining() - placing_s))
            best = _allocate_all(problem, ordered.order, name, share, seed, known)
        except OverBudget as error:
            other = _at_captured(problem, math.inf, name, deadline, seed)
            if other is None and name == "auto":
                other = _squeezed(problem, ordered, deadline, seed)
            if other is None:
                raise _for_any_order(error, certificate) from None
            best = other
        else:
            if best.order != captured and live_peak(problem, captured, arena(problem))[0] < best.height:
                best = _at_captured(problem, best.height, name, deadline, seed) or best
        if name == "auto":
            spare = Deadline(deadline.remaining() - placing_s)
            found = _jointly(problem, best.positions, certificate.lower_bound_bytes, spare, seed)
            best = (_hinted(problem, found, seed) if found else None) or best
        return _complete(best, (certificate,))


def _shared_out(problem: Problem, solver: str, deadline: Deadline, seed: int) -> Plan:
    """A plan of several memories, at the captured order if no way is found at the scheduled one."""
    pool, name = pooled(problem), solver_for("allocate", solver)
    sharing_s = len(problem.buffers) * _SHARE_S
    half = Deadline(min(deadline.remaining() / 2, deadline.remaining() - sharing_s))
    ordered, _ = _order(pool, solver_for("schedule", solver), half, seed)
    captured = tuple(range(len(problem.steps)))
    if ordered.order != captured:
        limit = deadline.share(_FIRST_SHARED)
        with suppress(InfeasibleError):
            return _assigned(problem, ordered.order, (ordered.certificate,), name, limit, seed)
    return _assigned(problem, captured, (ordered.certificate,), name, deadline, seed)


def _assigned(
    problem: Problem,
    order: tuple[int, ...],
    certificates: tuple[Certificate, ...],
    solver: str,
    deadline: Deadline,
    seed: int,
) -> Plan:
    """The plan at ``order`` whose buffers lie in the regions where accesses cost least."""

    def attempt(narrowed: Problem, limit: Deadline) -> _Draft:
        return _allocate_all(narrowed, order, solver, limit, seed)

    exact = solver in ("auto", "exact")
    draft, found = assign(problem, order, attempt, deadline, seed=seed, exact=exact)
    return _complete(replace(draft, problem=problem), certificates, found)


def _deadline(problem: Problem, limit_s: float) -> Deadline:
    """The end of the search, so that the plan can be sealed and checked within the limit."""
    items = len(problem.steps) + len(problem.buffers)
    return Deadline.before_last(items * _CHECK_S, limit_s)


def order_steps(
    problem: Problem,
    *,
    region: str | None = None,
    solver: str = "auto",
    limit_s: float = 10.0,
    seed: int = 0,
) -> Ordered:
    """The order with the lowest peak of ``region`` that ``solver`` finds within ``limit_s`` seconds.

    Only buffers whose first choice is ``region`` count; by default it is the first region in which
    an order matters. Repeated layers are solved once. The order is valid and its peak never above that
    of the captured order, even without any time; Ctrl-C ends the search. Raises UserError MP215
    (malformed problem), MP220 (unknown solver) and MP226 (sizes out of range).
    """
    deadline = Deadline(limit_s)
    guard(problem)
    name = find_solver("schedule", solver).name
    with graceful():
        return _order(problem, name, deadline, seed, region)[0]


def place_buffers(
    problem: Problem,
    order: Sequence[int] | None = None,
    *,
    region: str | None = None,
    solver: str = "auto",
    limit_s: float = 10.0,
    seed: int = 0,
    capacity_bytes: int | None = None,
) -> Allocated:
    """Place the buffers whose first choice is ``region`` (default: the first region).

    ``order`` must be valid; by default the steps run as captured. ``capacity_bytes`` replaces the
    region's capacity. Repeated layers are solved once. Stops at the deadline, at a proof or by Ctrl-C.
    Raises OverBudget (an InfeasibleError) MP221 if no placement fits the capacity, MP222 if none was
    found in time; UserError MP215 (malformed problem), MP220 (unknown solver), MP223 (fixed offsets
    collide), MP226 (sizes out of range).
    """
    deadline = Deadline(limit_s)
    guard(problem)
    name = region or problem.regions[0].name
    solver = find_solver("allocate", solver).name
    if capacity_bytes is not None:
        limited = replace(problem.region(name), capacity_bytes=capacity_bytes)
        regions = tuple(limited if r.name == name else r for r in problem.regions)
        problem = replace(problem, regions=regions)
    steps = tuple(range(len(problem.steps)) if order is None else order)
    with graceful():
        known = repeats.repeat_at(problem, steps, name, deadline, seed) if solver == "auto" else None
        if known is not None and known.certificate.status == "optimal":
            return known
        return _better(known, problem, steps, name, solver, deadline, seed)


def _order(
    problem: Problem, solver: str, deadline: Deadline, seed: int, region: str | None = None
) -> tuple[Ordered, Allocated | None]:
    """The order, and the region (the arena) at it if layers repeat themselves."""
    region = region or arena(problem)
    problem.region(region)
    found = repeats.repeat(problem, region, deadline, seed) if solver == "auto" else None
    if found is not None and found.ordered.certificate.status == "optimal":
        return found.ordered, found.placed
    limit_s = deadline.remaining()
    start = found.ordered if found else None
    ordered = schedule(problem, region=region, solver=solver, limit_s=limit_s, seed=seed, start=start)
    kept = found is not None and ordered.order == found.ordered.order
    return ordered, found.placed if found and kept else None


def _at_captured(
    problem: Problem, height: float, solver: str, deadline: Deadline, seed: int
) -> _Draft | None:
    """The captured order if the arena gets lower than ``height`` at it."""
    captured = tuple(range(len(problem.steps)))
    best: _Draft | None = None
    for name, limit in (("greedy", deadline.at_least(_GRACE_S)), (solver, deadline)):
        if limit.expired:
            break
        with suppress(OverBudget):
            draft = _allocate_all(problem, captured, name, limit, seed)
            if draft.height < height:
                best, height = draft, draft.height
    return best


def _squeezed(problem: Problem, ordered: Ordered, deadline: Deadline, seed: int) -> _Draft | None:
    """Another order than that of ``ordered``, at which the arena overflows, that fits."""
    region = arena(problem)
    capacity = problem.region(region).capacity_bytes
    if capacity is None or ordered.certificate.lower_bound_bytes > capacity or deadline.expired:
        return None
    above = _allocate_all(
        problem.unlimited(), ordered.order, "auto", deadline.share(_FIRST_ORDER), seed
    )
    found = joint.improve(problem, region, above.positions, capacity, deadline, seed)
    return _hinted(problem, found, seed)


def rearrange(problem: Problem, plan: Plan, *, limit_s: float, seed: int = 0) -> joint.Draft | None:
    """An order and offsets of the arena, found together, that take less than those of ``plan``.

    None if there is no bound on orders, or nothing is found in time.
    """
    region = arena(problem)
    bound = plan.certificate(f"schedule:{region}")
    if bound is None:
        return None
    start = joint.Draft(plan.order, {p.buffer: p.offset for p in plan.placements if p.region == region})
    with graceful():
        return _jointly(problem, start, bound.lower_bound_bytes, _deadline(problem, limit_s), seed)


def _jointly(
    problem: Problem, start: joint.Draft, goal: int, deadline: Deadline, seed: int
) -> joint.Draft | None:
    """What takes less than ``start``; None if it needs no more than its live bytes or ``goal``."""
    region, height = arena(problem), joint.height(problem, start)
    if height <= goal or deadline.expired or height <= live_peak(problem, start.order, region)[0]:
        return None
    goal = max(goal, padded_bound(problem, region, deadline.share(_PADDED), seed))
    if height <= goal:
        return None
    found = joint.improve(problem, region, start, goal, deadline, seed)
    return found if joint.height(problem, found) < height else None


def _hinted(problem: Problem, found: joint.Draft, seed: int) -> _Draft | None:
    """Every region at the order of ``found``, the arena no higher than that; None if one overflows."""
    with suppress(OverBudget):
        hints = _with_hints(problem, found.offsets)
        draft = _allocate_all(hints, found.order, "greedy", Deadline(_GRACE_S), seed)
        if draft.height <= joint.height(problem, found):
            return replace(draft, problem=problem)
    return None


def _with_hints(problem: Problem, offsets: Mapping[int, int]) -> Problem:
    buffers = tuple(replace(b, hint=offsets.get(i, b.hint)) for i, b in enumerate(problem.buffers))
    return replace(problem, buffers=buffers)


def padded_bound(problem: Problem, region: str, deadline: Deadline, seed: int) -> int:
    """A lower bound on the arena over all orders and addresses, from the alignment.

    Offsets are multiples of the alignment that all buffers have in common, so each buffer but the
    highest takes its size rounded up.
    """
    mine = [b for b in problem.buffers if b.regions[0] == region]
    common = gcd(*(lcm(problem.region(region).alignment, b.alignment) for b in mine))
    saved = max((-b.size_bytes % common for b in mine), default=0)
    if not saved or problem.adjacent or any(b.gaps for b in mine):
        return 0
    buffers = tuple(
        replace(b, size_bytes=b.size_bytes + -b.size_bytes % common) if b.regions[0] == region else b
        for b in problem.buffers
    )
    padded, limit_s = replace(problem, buffers=buffers), deadline.remaining()
    found = schedule(padded, region=region, limit_s=limit_s, seed=seed)
    return found.certificate.lower_bound_bytes - saved


def _for_any_order(error: OverBudget, certificate: Certificate) -> OverBudget:
    """``error`` with what the schedule's bound says of other orders in its help."""
    least = certificate.lower_bound_bytes
    if certificate.subject != f"schedule:{error.region}" or not error.proven:
        return error
    if least > error.capacity_bytes:
        error.help = f"no order of the steps needs less than {least:,} B: use less memory"
    else:
        error.help = f"{error.help}; an order that needs less is not ruled out (at least {least:,} B)"
    return error


def place(
    problem: Problem,
    order: Sequence[int],
    *,
    certificates: tuple[Certificate, ...] = (),
    hints: Mapping[int, int] | None = None,
    solver: str = "auto",
    limit_s: float = 10.0,
    seed: int = 0,
) -> Plan:
    """A checked plan at a given order: every region allocated, buffers that have a choice shared out.

    ``certificates`` of a schedule or of streams are carried over, with the value that ``order`` has;
    ``hints`` are offsets to try first, by buffer. Raises
    OverBudget MP221 or MP222 if a region overflows, InfeasibleError MP228 if several do together,
    InternalError MP299 if the plan fails ``check``.
    """
    name = solver_for("allocate", solver)
    with graceful():
        deadline = _deadline(problem, limit_s)
        if choices(problem):
            return _assigned(problem, tuple(order), certificates, name, deadline, seed)
        known = None
        if name == "auto":
            known = repeats.repeat_at(problem, order, arena(problem), deadline, seed)
        hinted = _with_hints(problem, hints) if hints else problem
        draft = _allocate_all(hinted, tuple(order), name, deadline, seed, known)
        return _complete(replace(draft, problem=problem), certificates)


def _allocate_all(
    problem: Problem,
    order: tuple[int, ...],
    solver: str,
    deadline: Deadline,
    seed: int,
    known: Allocated | None = None,
) -> _Draft:
    """Every region at ``order``; the arena as ``known`` unless that can be and is improved."""
    parts = []
    for region in problem.regions:
        mine = known if region.name == arena(problem) else None
        if mine is None or mine.certificate.status != "optimal":
            mine = _better(mine, problem, order, region.name, solver, deadline, seed)
        parts.append(mine)
    return _Draft(problem, order, tuple(parts))


def _better(
    known: Allocated | None,
    problem: Problem,
    order: tuple[int, ...],
    region: str,
    solver: str,
    deadline: Deadline,
    seed: int,
) -> Allocated:
    """The lower one of ``known`` and what the solver finds."""
    try:
        limit_s = deadline.remaining()
        found = allocate(problem, order, region=region, solver=solver, limit_s=limit_s, seed=seed)
    except OverBudget:
        if known is None:
            raise
        return known
    return found if known is None or found.height_bytes < known.height_bytes else known


def _complete(draft: _Draft, certificates: tuple[Certificate, ...], *others: Certificate) -> Plan:
    """The sealed plan; ``certificates`` are restated for its order, ``others`` are as they are."""
    problem, order, parts = draft.problem, draft.order, draft.parts
    live = pooled(problem) if choices(problem) else problem
    plan = Plan(
        problem=problem.digest,
        order=order,
        placements=tuple(sorted((p for a in parts for p in a.placements), key=lambda p: p.buffer)),
        peaks=tuple((r.name, a.height_bytes) for r, a in zip(problem.regions, parts, strict=True)),
        certificates=(
            *_restated(live, order, certificates),
            *others,
            *(a.certificate for a in parts),
        ),
    )
    violations = check(problem, plan)
    if violations:
        notes = tuple((f"{v.code} {v.reason}: {v.message}", None) for v in violations)
        raise InternalError("MP299", "the plan fails its own check", notes=notes)
    return plan


def _restated(
    problem: Problem, order: Sequence[int], certificates: Sequence[Certificate]
) -> Iterator[Certificate]:
    """Certificates of live bytes with the value of ``order``, maybe not the order they were made for.

    A bound over a family of streams does not hold for what later passes made of them: no certificate.
    """
    for certificate in certificates:
        decision, _, region = certificate.subject.partition(":")
        value = live_peak(problem, order, region)[0]
        if value == certificate.value_bytes:
            yield certificate
        elif decision == "schedule" or value >= certificate.lower_bound_bytes:
            captured = tuple(order) == tuple(range(len(order))) and decision == "schedule"
            status: Status = "optimal" if value == certificate.lower_bound_bytes else "feasible"
            solver = "none" if captured else certificate.solver
            yield replace(certificate, value_bytes=value, status=status, solver=solver)


def solver_for(decision: Decision, solver: str) -> str:
    """``solver`` if it makes this decision, ``auto`` if it makes only the other one."""
    known = {s.name for s in SOLVERS if s.decision == decision}
    if solver not in known and any(s.name == solver for s in SOLVERS):
        return "auto"
    return find_solver(decision, solver).name


def baseline(problem: Problem) -> int:
    """The most live bytes of the arena when the steps run in captured order."""
    return live_peak(problem, range(len(problem.steps)), arena(problem))[0]
