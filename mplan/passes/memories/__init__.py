"""Which buffers lie in which of several memories, at a given order of the steps.

Buffers that may lie in several regions of known cost are *assigned* to one each, so that accessed
bytes times cost are least. Every region has room for what lives in it at once; that alone makes a 0/1
program whose optimum is a bound. Whether addresses exist is then asked region by region. Where they
do not, or only higher up than the total of all regions allows, that set of buffers is known to need
more (a combinatorial Benders cut) and, if that does not lead on, the room made smaller, which ends the
proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, TypeVar

from mplan.diagnostics import InfeasibleError
from mplan.ir.plan import Certificate, Problem, Region
from mplan.passes.allocate import Allocated, OverBudget
from mplan.passes.allocate.instance import MANY
from mplan.passes.live import live_peak
from mplan.passes.memories.packed import densest_packed
from mplan.passes.memories.program import Item, Program, items_of, width
from mplan.passes.solvers.interface import Deadline


class Placed(Protocol):
    """Something with the placements of every region, in the order of the problem's regions."""

    @property
    def parts(self) -> Sequence[Allocated]:
        """What was found for each region."""


Draft = TypeVar("Draft", bound=Placed)
Attempt = Callable[[Problem, Deadline], Draft]

#: How often a set of buffers is ruled out before the room of the region that overflows shrinks, if
#: buffers are not many: of many, other sets that overflow as well are too near.
_CUTS = 8
#: How many assignments are tried at most.
_ROUNDS = 40
#: The share of the time left that one 0/1 program may take, and the addresses of one assignment.
_PROGRAM, _ADDRESSES = 0.3, 0.5
#: The share of the time left for packing the densest items where an assignment has no addresses.
_PACKING = 0.2
#: Seconds after which, at the latest, no more assignments are tried if the deadline has passed.
_GRACE_S = 0.2


def choices(problem: Problem) -> tuple[str, ...]:
    """The regions among which buffers can choose by their costs; empty if there is no such buffer."""
    return problem.shared if all(problem.region(name).cost for name in problem.shared) else ()


def together(regions: Sequence[Region]) -> Region:
    """Several regions as one, whose name is theirs joined by ``+``."""
    sizes = [r.capacity_bytes for r in regions]
    limited = [n for n in sizes if n is not None]
    return replace(
        regions[0],
        name="+".join(r.name for r in regions),
        capacity_bytes=sum(limited) if len(limited) == len(sizes) else None,
        alignment=max(r.alignment for r in regions),
        cost=0,
    )


def pooled(problem: Problem) -> Problem:
    """``problem`` with the regions among which buffers can choose as one."""
    names = choices(problem)
    pool = together([problem.region(name) for name in names])
    if problem.total_bytes is not None:
        pool = replace(pool, capacity_bytes=problem.total_bytes)
    others = tuple(r for r in problem.regions if r.name not in names)
    buffers = tuple(
        replace(b, regions=(pool.name,)) if b.regions[0] in names else b for b in problem.buffers
    )
    return replace(problem, regions=(pool, *others), buffers=buffers, total_bytes=None)


def assign(
    problem: Problem,
    order: Sequence[int],
    attempt: Attempt[Draft],
    deadline: Deadline,
    *,
    seed: int = 0,
    exact: bool = True,
) -> tuple[Draft, Certificate]:
    """What ``attempt`` makes of the problem with one region per buffer, at the least cost found.

    ``attempt`` gives addresses to a narrowed problem or raises OverBudget. Without ``exact`` the
    densest buffers take the fastest region with room. InfeasibleError MP228 if no way is found.
    """
    started = time.monotonic()
    grace = deadline.at_least(_GRACE_S)
    names = choices(problem)
    items = tuple(items_of(problem, order, names))
    program = Program(problem, items, names)
    floor = sum(i.accessed_bytes * program.costs[i.regions[0]] for i in items)
    bound, kind, sound, impossible = floor, "fastest", True, False
    best: tuple[int, Draft, str] | None = None
    cuts = _CUTS if len(items) < MANY else 0
    for turn in range(_ROUNDS):
        if turn == 1:
            best = _packed(program, order, attempt, deadline.share(_PACKING))
        if turn and grace.expired:
            break
        choice = program.choose(deadline.share(_PROGRAM), seed, exact)
        if sound and choice.bound > bound:
            bound, kind = choice.bound, "exhaustive"
        if best and sound and bound >= best[0]:
            break
        if not choice.regions:
            impossible = sound and choice.impossible
            break
        try:
            draft = attempt(program.narrowed(choice.regions), deadline.share(_ADDRESSES))
        except OverBudget as error:
            if error.region not in names:
                raise
            program.cut(error.region, choice.regions, error.needs_bytes)
            sound = sound and error.proven
            if turn >= cuts:
                program.shrink(error.region, error.needs_bytes - error.capacity_bytes)
                sound = False
            continue
        excess = _excess(problem, draft, names)
        if excess > 0:
            for region, part in zip(problem.regions, draft.parts, strict=True):
                if region.name in names:
                    program.cut(region.name, choice.regions, part.height_bytes)
                    sound = sound and part.certificate.status == "optimal"
            if turn >= cuts:
                program.shrink_all(excess)
                sound = False
            continue
        value = program.cost(choice.regions)
        if best is None or value <= best[0]:
            best = value, draft, choice.solver
        break
    if best is None:
        raise _no_way(problem, order, items, proven=impossible)
    value, draft, solver = best
    bound = min(bound, value)
    return draft, Certificate(
        subject=f"assign:{'+'.join(names)}",
        value_bytes=value,
        lower_bound_bytes=bound,
        bound_kind="fastest" if bound == floor else kind,
        status="optimal" if bound == value else "feasible",
        solver=solver,
        seed=seed,
        seconds=time.monotonic() - started,
    )


def _packed(
    program: Program, order: Sequence[int], attempt: Attempt[Draft], deadline: Deadline
) -> tuple[int, Draft, str] | None:
    """Cost and addresses where the densest items that find a gap in a fast region lie there."""
    for regions, hints in densest_packed(program, order, deadline):
        with suppress(OverBudget):  # bodies with gaps may not find their places again
            draft = attempt(program.narrowed(regions, hints), deadline)
            if _excess(program.problem, draft, program.room) <= 0:
                return program.cost(regions), draft, "greedy"
    return None


def _excess(problem: Problem, draft: Placed, names: Collection[str]) -> int:
    """How much the regions ``names`` together exceed the total that they have."""
    parts = zip(problem.regions, draft.parts, strict=True)
    taken = sum(part.height_bytes for region, part in parts if region.name in names)
    return 0 if problem.total_bytes is None else taken - problem.total_bytes


def _no_way(
    problem: Problem, order: Sequence[int], items: Sequence[Item], *, proven: bool
) -> InfeasibleError:
    names = choices(problem)
    rooms: Mapping[str, int | None] = {name: problem.region(name).capacity_bytes for name in names}
    have = " and ".join(
        f"{name} ({'unlimited' if n is None else f'{n:,} B'})" for name, n in rooms.items()
    )
    if problem.total_bytes is not None:
        have = f"{have}, {problem.total_bytes:,} B together"
    pool = pooled(problem)
    live, position = live_peak(pool, order, pool.regions[0].name)
    step = f" ({problem.steps[order[position]].name})" if problem.steps else ""
    largest = max(items, key=width)
    piece = f"the largest piece is {problem.buffers[largest.buffers[0]].name} of {width(largest):,} B"
    return InfeasibleError(
        "MP228",
        f"no way was found to share the buffers out between {have}: {live:,} B live at step "
        f"{position}{step}, {piece}",
        help="no way exists at this order: name more memories, or use less memory"
        if proven
        else "not proven impossible: give the solver more time (limit), or more memories",
    )
