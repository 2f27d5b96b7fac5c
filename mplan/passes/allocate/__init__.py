"""Addresses: an offset for every buffer of one region at a fixed order, the least height first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.plan import Certificate, Placement, Problem
from mplan.passes.allocate.greedy import Offsets, order_by, pack
from mplan.passes.allocate.instance import Box, Instance, from_problem
from mplan.passes.solvers.interface import (
    Bound,
    Deadline,
    Search,
    find_solver,
    guard_total,
    run_solver,
)

#: How many of the buffers that hold the peak an error names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Allocated:
    """The placements of a region's buffers, its height, and what is known about the height."""

    placements: tuple[Placement, ...]
    height_bytes: int
    certificate: Certificate


class OverBudget(InfeasibleError):
    """A region is too small, or no placement that fits it was found.

    ``proven`` tells the two apart: whether ``needs_bytes`` is a lower bound for every placement at
    this order, or the least height found before the deadline. ``position`` is the peak's.
    """

    def __init__(
        self,
        code: str,
        message: str,
        help: str,
        notes: tuple[tuple[str, None], ...],
        *,
        region: str,
        needs_bytes: int,
        capacity_bytes: int,
        position: int,
    ) -> None:
        super().__init__(code, message, help=help, notes=notes)
        self.region = region
        self.needs_bytes = needs_bytes
        self.capacity_bytes = capacity_bytes
        self.position = position
        self.proven = code == "MP221"


def allocate(
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
    region's capacity. The solver stops at the deadline or at a proof. A placement that fits the
    capacity comes first; once there is one, lower ones are looked for in a fifth of the time that is
    left. Raises OverBudget (an
    InfeasibleError) MP221 if no placement fits the capacity, MP222 if none was found in time;
    UserError MP220 (unknown solver), MP223 (fixed offsets collide), MP226 (sizes out of range).
    """
    started = time.monotonic()
    deadline = Deadline(limit_s)
    order = range(len(problem.steps)) if order is None else order
    name = region or problem.regions[0].name
    row = find_solver("allocate", solver)
    guard_total(sum(b.size_bytes for b in problem.buffers))
    capacity = problem.region(name).capacity_bytes if capacity_bytes is None else capacity_bytes
    instance = from_problem(problem, order, name)
    _check_fixed(problem, instance)
    live, position = instance.live()
    if capacity is not None and live > capacity:
        raise _over_budget("MP221", problem, order, name, instance, live, capacity)
    start = pack(instance, order_by(instance, lambda b: (b.start, b.buffer)), best_fit=False)
    floor = _floor(instance, live, position)
    search = Search(start, instance.height(start), "first-fit", floor, goal=capacity)
    run_solver(row, instance, search, deadline, seed)
    if capacity is not None and search.value > capacity:
        code = "MP221" if search.bound.bytes > capacity else "MP222"
        needs = search.bound.bytes if code == "MP221" else search.value
        raise _over_budget(code, problem, order, name, instance, needs, capacity)
    certificate = search.certificate(f"allocate:{name}", seed, time.monotonic() - started)
    placements = _placements(problem, order, name, instance, search.answer)
    return Allocated(placements, search.value, certificate)


def _floor(instance: Instance, live: int, position: int) -> Bound:
    """The most bytes live together, padded or not, or the end of a fixed box that lies higher."""
    best = Bound(live, "live", (position,))
    padded, at = instance.padded()
    if padded > best.bytes:
        best = Bound(padded, "padded", (at,))
    fixed = max((b.fixed + b.size for b in instance.boxes if b.fixed is not None), default=0)
    return Bound(fixed, "fixed") if fixed > best.bytes else best


def _placements(
    problem: Problem, order: Sequence[int], region: str, instance: Instance, offsets: Offsets
) -> tuple[Placement, ...]:
    at = {b.buffer: offset for b, offset in zip(instance.boxes, offsets, strict=True)}
    return tuple(
        Placement(i, region, at.get(i, b.offset or 0), start, end)
        for i, (b, (start, end)) in enumerate(
            zip(problem.buffers, problem.lifetimes(order), strict=True)
        )
        if b.regions[0] == region
    )


def _check_fixed(problem: Problem, instance: Instance) -> None:
    """Raise UserError MP223 if fixed offsets are misaligned or overlap."""
    live: list[tuple[Box, int]] = []
    for b in sorted(instance.boxes, key=lambda b: b.start):
        if b.fixed is None:
            continue
        name = problem.buffers[b.buffer].name
        if b.fixed % b.alignment:
            raise _bad_offset(f"{name} is fixed at {b.fixed}, its alignment is {b.alignment}")
        live = [(other, at) for other, at in live if other.end > b.start]
        for other, at in live:
            if at < b.fixed + b.size and b.fixed < at + other.size:
                both = f"{problem.buffers[other.buffer].name} and {name}"
                raise _bad_offset(f"{both} are fixed at {at} and {b.fixed}, where they overlap")
        live.append((b, b.fixed))


def _bad_offset(message: str) -> UserError:
    return UserError("MP223", message, help="change a fixed offset or leave it out")


def _over_budget(
    code: str,
    problem: Problem,
    order: Sequence[int],
    region: str,
    instance: Instance,
    needs: int,
    capacity: int,
) -> OverBudget:
    live, position = instance.live()
    held = sorted(
        (b for b in instance.boxes if b.start <= position < b.end), key=lambda b: (-b.size, b.buffer)
    )
    names = [f"{problem.buffers[b.buffer].name} ({b.size:,} B)" for b in held[:_NAMED]]
    more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    step = f" ({problem.steps[order[position]].name})" if problem.steps else ""
    if code == "MP221":
        claim = f"region {region} needs at least {needs:,} B and has {capacity:,} B"
        help = "no placement at this order fits: give a larger budget, or use less memory"
    else:
        claim = f"region {region} has {capacity:,} B; the best placement found needs {needs:,} B"
        help = "not proven impossible: give the solver more time (limit), or a larger budget"
    peak = f"the peak of {live:,} B is at step {position}{step}, held by {', '.join(names)}{more}"
    notes = tuple(
        (f"{problem.buffers[b.buffer].name}: {problem.buffers[b.buffer].where}", None)
        for b in held[:_NAMED]
        if problem.buffers[b.buffer].where
    )
    return OverBudget(
        code,
        f"{claim}; {peak}",
        help,
        notes,
        region=region,
        needs_bytes=needs,
        capacity_bytes=capacity,
        position=position,
    )
