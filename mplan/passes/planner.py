"""Whole plans: schedule, then place every region, then check; and the figures plans are held against.

``solve`` answers a bare problem; the passes ``schedule`` and ``allocate`` do the same for a graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from mplan.diagnostics import InternalError
from mplan.ir.check import check
from mplan.ir.plan import Certificate, Plan, Problem, Status
from mplan.passes.allocate import Allocated, OverBudget, allocate
from mplan.passes.live import live_peak, live_profile
from mplan.passes.schedule import arena, schedule
from mplan.passes.solvers.interface import SOLVERS, Deadline, Decision, find_solver

#: Seconds that greedy placement at the captured order may take even if the deadline has passed.
_GRACE_S = 1.0

__all__ = ["baseline", "live_profile", "place", "solve"]


def solve(problem: Problem, *, solver: str = "auto", limit_s: float = 10.0, seed: int = 0) -> Plan:
    """A checked plan for ``problem``; its arena is never higher than that of the captured order.

    ``solver`` names a solver of either decision; the other one is then made by ``auto``. The limit
    holds for the whole plan: half of it is the scheduler's. Raises OverBudget (an InfeasibleError)
    MP221 or MP222 if a region overflows, UserError MP220 for an unknown solver.
    """
    deadline = Deadline(limit_s)
    captured = tuple(range(len(problem.steps)))
    if not problem.steps:
        return place(problem, captured, solver=solver, limit_s=limit_s, seed=seed)
    ordered = schedule(problem, solver=_name("schedule", solver), limit_s=limit_s / 2, seed=seed)
    name = _name("allocate", solver)
    try:
        order, parts = ordered.order, _allocate_all(problem, ordered.order, name, deadline, seed)
    except OverBudget as error:
        order, parts = captured, _at_captured(problem, math.inf, name, deadline, seed)
        if not parts:
            raise _for_any_order(error, ordered.certificate) from None
    else:
        height = _height(problem, parts)
        if order != captured and live_peak(problem, captured, arena(problem))[0] < height:
            other = _at_captured(problem, height, name, deadline, seed)
            order, parts = (captured, other) if other else (order, parts)
    return _complete(problem, order, parts, (ordered.certificate,))


def _height(problem: Problem, parts: Sequence[Allocated]) -> int:
    """The height of the arena."""
    names = [r.name for r in problem.regions]
    return parts[names.index(arena(problem))].height_bytes


def _at_captured(
    problem: Problem, height: float, solver: str, deadline: Deadline, seed: int
) -> list[Allocated]:
    """The regions at the captured order if the arena gets lower than ``height``, else nothing."""
    captured = range(len(problem.steps))
    best: list[Allocated] = []
    for name, limit in (("greedy", Deadline(max(deadline.remaining(), _GRACE_S))), (solver, deadline)):
        if best and limit.expired:
            break
        with suppress(OverBudget):
            parts = _allocate_all(problem, captured, name, limit, seed)
            if _height(problem, parts) < height:
                best, height = parts, _height(problem, parts)
    return best


def _for_any_order(error: OverBudget, certificate: Certificate) -> OverBudget:
    """``error`` with what the schedule's bound says of other orders in its help."""
    least = certificate.lower_bound_bytes
    if certificate.subject != f"schedule:{error.region}" or not error.proven:
        return error
    if least > error.capacity_bytes:
        error.help = f"no order of the steps needs less than {least:,} B: use less memory"
    elif certificate.status == "feasible":
        error.help = f"{error.help}; an order that needs less is not ruled out (at least {least:,} B)"
    return error


def place(
    problem: Problem,
    order: Sequence[int],
    *,
    certificates: tuple[Certificate, ...] = (),
    solver: str = "auto",
    limit_s: float = 10.0,
    seed: int = 0,
) -> Plan:
    """A checked plan at a given order: every region allocated.

    ``certificates`` of a schedule are carried over, with the value that ``order`` has. Raises
    OverBudget MP221 or MP222 if a region overflows, InternalError MP299 if the plan fails ``check``.
    """
    name = _name("allocate", solver)
    parts = _allocate_all(problem, order, name, Deadline(limit_s), seed)
    return _complete(problem, order, parts, certificates)


def _allocate_all(
    problem: Problem, order: Sequence[int], solver: str, deadline: Deadline, seed: int
) -> list[Allocated]:
    return [
        allocate(problem, order, region=r.name, solver=solver, limit_s=deadline.remaining(), seed=seed)
        for r in problem.regions
    ]


def _complete(
    problem: Problem,
    order: Sequence[int],
    parts: Sequence[Allocated],
    certificates: tuple[Certificate, ...],
) -> Plan:
    plan = Plan(
        problem=problem.digest,
        order=tuple(order),
        placements=tuple(sorted((p for a in parts for p in a.placements), key=lambda p: p.buffer)),
        peaks=tuple((r.name, a.height_bytes) for r, a in zip(problem.regions, parts, strict=True)),
        certificates=(
            *(_restate(problem, order, c) for c in certificates),
            *(a.certificate for a in parts),
        ),
    )
    violations = check(problem, plan)
    if violations:
        notes = tuple((f"{v.code} {v.reason}: {v.message}", None) for v in violations)
        raise InternalError("MP299", "the plan fails its own check", notes=notes)
    return plan


def _restate(problem: Problem, order: Sequence[int], certificate: Certificate) -> Certificate:
    """A schedule's certificate with the value of ``order``, maybe not the order it was made for."""
    decision, _, region = certificate.subject.partition(":")
    value = live_peak(problem, order, region)[0]
    if decision != "schedule" or value == certificate.value_bytes:
        return certificate
    solver = "none" if tuple(order) == tuple(range(len(order))) else certificate.solver
    status: Status = "optimal" if value == certificate.lower_bound_bytes else "feasible"
    return replace(certificate, value_bytes=value, status=status, solver=solver)


def _name(decision: Decision, solver: str) -> str:
    """``solver`` if it makes this decision, ``auto`` if it makes only the other one."""
    known = {s.name for s in SOLVERS if s.decision == decision}
    if solver not in known and any(s.name == solver for s in SOLVERS):
        return "auto"
    return find_solver(decision, solver).name


def baseline(problem: Problem) -> int:
    """The most live bytes of the arena when the steps run in captured order."""
    return live_peak(problem, range(len(problem.steps)), arena(problem))[0]
