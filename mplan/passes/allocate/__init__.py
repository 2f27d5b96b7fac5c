"""Addresses: an offset for every buffer of one region at a fixed order, the least height first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.plan import Certificate, Placement, Problem
from mplan.passes.allocate.chains import chains_of, loose
from mplan.passes.allocate.greedy import Offsets, order_by, pack
from mplan.passes.allocate.instance import Instance, from_problem
from mplan.passes.solvers.interface import (
    Bound,
    Deadline,
    Search,
    find_solver,
    guard,
    run_solver,
)
from mplan.passes.solvers.interrupt import graceful

#: Seconds that writing a buffer's placement takes; at most half of the limit.
_WRITE_S = 3e-6
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
    left. Raises OverBudget (an InfeasibleError) MP221 if no placement fits the capacity, MP222 if none
    was found in time; UserError MP215 (malformed problem), MP220 (unknown solver), MP223 (fixed offsets
    collide), MP226 (sizes out of range).
    """
    started = time.monotonic()
    deadline = Deadline.before_last(len(problem.buffers) * _WRITE_S, limit_s)
    guard(problem)
    order = range(len(problem.steps)) if order is None else order
    name = region or problem.regions[0].name
    row = find_solver("allocate", solver)
    capacity = problem.region(name).capacity_bytes if capacity_bytes is None else capacity_bytes
    instance = from_problem(problem, order, name)
    _check_fixed(problem, instance)
    live, position = instance.live()
    if capacity is not None and live > capacity:
        raise _over_budget("MP221", problem, order, name, instance, live, capacity)
    start = pack(instance, _first_order(problem, instance), best_fit=False)
    floor = _floor(problem, instance, live, position)
    search = Search(start, instance.height(start), "first-fit", floor, goal=capacity)
    with graceful():
        run_solver(row, instance, search, deadline, seed)
    if capacity is not None and search.value > capacity:
        code = "MP221" if search.bound.bytes > capacity else "MP222"
        needs = search.bound.bytes if code == "MP221" else search.value
        raise _over_budget(code, problem, order, name, instance, needs, capacity)
    certificate = search.certificate(f"allocate:{name}", seed, time.monotonic() - started)
    placements = _placements(problem, order, name, instance, search.answer)
    return Allocated(placements, search.value, certificate)


def _first_order(problem: Problem, instance: Instance) -> list[int]:
    """The boxes with the lowest hint first, then, like those without a hint, by birth."""
    hints = {i: b.hint for i, b in enumerate(problem.buffers) if b.hint is not None}
    unknown = max(hints.values(), default=0)
    return order_by(instance, lambda b: (hints.get(b.buffer, unknown), b.start, b.buffer))


def _floor(problem: Problem, instance: Instance, live: int, position: int) -> Bound:
    """The most bytes live together, padded or not, or what a box takes alone or at its fixed place."""
    best = Bound(live, "live", (position,))
    alone = max((b.size for b in instance.boxes), default=0)
    if alone > best.bytes:
        best = Bound(alone, "exhaustive")
    padded, at = instance.padded()
    if padded > best.bytes and not problem.adjacent:  # a neighbour need not be aligned
        best = Bound(padded, "padded", (at,))
    fixed = max((b.fixed + b.size for b in instance.boxes if b.fixed is not None), default=0)
    return Bound(fixed, "fixed") if fixed > best.bytes else best


def _placements(
    problem: Problem, order: Sequence[int], region: str, instance: Instance, offsets: Offsets
) -> tuple[Placement, ...]:
    bases = {b.buffer: offset for b, offset in zip(instance.boxes, offsets, strict=True)}
    at = dict.fromkeys(loose(problem, region).nonzero()[0].tolist(), 0) | bases
    for chain in chains_of(problem, region):
        base = bases.get(chain.places[0][0], chain.fixed or 0)
        at |= {i: base + place for i, place in chain.places}
    buffers = sorted(at)
    rows = (column[buffers].tolist() for column in problem.table.lifetimes(order))
    return tuple(map(Placement, buffers, repeat(region), (at[i] for i in buffers), *rows))


def _check_fixed(problem: Problem, instance: Instance) -> None:
    """Raise UserError MP223 if boxes of fixed offsets overlap."""
    live: list[tuple[int, int, int, int]] = []
    fixed = [(b, x) for b in instance.boxes if b.fixed is not None for x in b.extents]
    for b, x in sorted(fixed, key=lambda pair: pair[1].start):
        low, high = (b.fixed or 0) + x.low, (b.fixed or 0) + x.high
        live = [other for other in live if other[0] > x.start]
        for _, other_low, other_high, other in live:
            if other_low < high and low < other_high:
                both = f"{problem.buffers[other].name} and {problem.buffers[b.buffer].name}"
                common = f"[{max(low, other_low)}, {min(high, other_high)})"
                message = f"the fixed offsets of {both} give both the bytes {common}"
                raise UserError("MP223", message, help="change a fixed offset or leave it out")
        live.append((x.end, low, high, b.buffer))


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
