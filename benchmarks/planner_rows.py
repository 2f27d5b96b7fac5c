"""One row of the planner's benchmark: our plan of a problem beside what each peer does with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import planner_peers as peers
from nas_graphs import cell_network

from mplan.ir.plan import Problem
from mplan.passes.allocate import OverBudget
from mplan.passes.live import live_peak
from mplan.passes.planner import padded_bound, solve
from mplan.passes.prepare import prepare
from mplan.passes.schedule import arena, schedule
from mplan.passes.solvers.interface import Deadline

Figures = dict[str, Any]

SYSTEMS = ("ours", "tflm", "best_fit", "inductor", "cpsat")


def measure(problem: Problem, systems: tuple[str, ...], limit_s: float) -> Figures:
    """The figures of ``problem`` under ``systems``; bytes, and seconds of CPU and of the clock."""
    region = arena(problem)
    makers: dict[str, Callable[[], Figures | None]] = {
        "ours": lambda: _ours(problem, region, limit_s),
        "tflm": lambda: {"arena_bytes": peers.greedy_by_size(problem)},
        "best_fit": lambda: {"arena_bytes": peers.best_fit(problem)},
        "inductor": lambda: _inductor(problem) if problem.steps else None,
        "cpsat": lambda: _cpsat(problem, limit_s),
    }
    row: Figures = {
        "problem": problem.digest,
        "steps": len(problem.steps),
        "buffers": len(problem.buffers),
        "capacity_bytes": problem.region(region).capacity_bytes,
        "captured_peak_bytes": live_peak(problem, range(len(problem.steps)), region)[0],
    }
    return row | {name: _timed(makers[name]) for name in systems}


def _timed(make: Callable[[], Figures | None]) -> Figures | None:
    cpu, wall = time.process_time(), time.monotonic()
    made = make()
    if made is None:
        return None
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall}
    return made | {name: round(seconds, 3) for name, seconds in spent.items()}


def warm_up() -> None:
    """Load what the solvers compile once per installation, so that no row pays for it."""
    prepare()
    schedule(cell_network("pnasnet"), limit_s=30)


def _ours(problem: Problem, region: str, limit_s: float) -> Figures:
    try:
        plan = solve(problem, limit_s=limit_s)
    except OverBudget as error:
        figures = {"arena_bytes": error.needs_bytes, "fits": False, "status": "infeasible"}
        return {**figures, "limit_s": limit_s}
    order = plan.certificate(f"schedule:{region}")
    address = plan.certificate(f"allocate:{region}")
    assert address is not None
    bound = order.lower_bound_bytes if order else address.lower_bound_bytes
    rounded = padded_bound(problem, region, Deadline(limit_s), 0) if order else 0
    return {
        "peak_bytes": order.value_bytes if order else None,
        "arena_bytes": plan.peak_bytes(region),
        "bound_bytes": bound,
        "arena_bound_bytes": max(bound, rounded),
        "bound_kind": (order or address).bound_kind,
        "status": "optimal" if plan.peak_bytes(region) == max(bound, rounded) else "feasible",
        "order_status": order.status if order else None,
        "fits": True,
        "limit_s": limit_s,
    }


def _inductor(problem: Problem) -> Figures | None:
    try:
        method, _, peak = peers.inductor_order(problem)
    except ImportError:  # PyTorch before it had torch._inductor.memory
        return None
    return {"peak_bytes": peak, "method": method}


def _cpsat(problem: Problem, limit_s: float) -> Figures | None:
    found = peers.cpsat(problem, limit_s)
    if found is None:
        return None
    key = "peak_bytes" if problem.steps else "arena_bytes"
    return {key: found.value, "bound_bytes": found.bound, "limit_s": limit_s}
