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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol, TypeVar

from mplan.diagnostics import InfeasibleError
from mplan.ir.plan import Certificate, Extent, Problem, Region
from mplan.passes.allocate import Allocated, OverBudget
from mplan.passes.live import live_peak
from mplan.passes.solvers import cpsat
from mplan.passes.solvers.interface import Deadline


class Placed(Protocol):
    """Something with the placements of every region, in the order of the problem's regions."""

    @property
    def parts(self) -> Sequence[Allocated]:
        """What was found for each region."""


Draft = TypeVar("Draft", bound=Placed)

#: How often a set of buffers is ruled out before the room of the region that overflows shrinks.
_CUTS = 8
#: How many assignments are tried at most.
_ROUNDS = 40
#: The share of the time left that one 0/1 program may take, and the addresses of one assignment.
_PROGRAM, _ADDRESSES = 0.3, 0.5


@dataclass(frozen=True, slots=True)
class Item:
    """Buffers that lie in one region: those allowed, the cheapest first, and what they hold and
    when."""

    buffers: tuple[int, ...]
    regions: tuple[str, ...]
    accessed_bytes: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class _Cut:
    """The items (by number) need so many bytes if all of them lie in ``region``."""

    region: str
    items: tuple[int, ...]
    needs_bytes: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """A region per item, none if there is no way; ``bound`` on the cost of all ways, or -1; whether
    it is proven that there is none."""

    regions: tuple[str, ...]
    bound: int = -1
    impossible: bool = False


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
    attempt: Callable[[Problem, Deadline], Draft],
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
    names = choices(problem)
    items = tuple(_items(problem, order, names))
    program = _Program(problem, items, names)
    floor = sum(i.accessed_bytes * program.costs[i.regions[0]] for i in items)
    bound, kind, sound = floor, "fastest", True
    for turn in range(_ROUNDS):
        choice = program.choose(deadline.share(_PROGRAM), seed, exact)
        if sound and choice.bound > bound:
            bound, kind = choice.bound, "exhaustive"
        if not choice.regions:
            raise _no_way(problem, order, items, proven=sound and choice.impossible)
        try:
            draft = attempt(_narrowed(problem, items, choice.regions), deadline.share(_ADDRESSES))
        except OverBudget as error:
            if error.region not in names:
                raise
            program.cut(error.region, choice.regions, error.needs_bytes)
            sound = sound and error.proven
            if turn >= _CUTS:
                program.shrink(error.region, error.needs_bytes - error.capacity_bytes)
                sound = False
            continue
        parts = dict(zip((r.name for r in problem.regions), draft.parts, strict=True))
        excess = program.excess(sum(parts[name].height_bytes for name in names))
        if excess > 0:
            for name in names:
                program.cut(name, choice.regions, parts[name].height_bytes)
                sound = sound and parts[name].certificate.status == "optimal"
            if turn >= _CUTS:
                program.shrink_all(excess)
                sound = False
            continue
        value = program.cost(choice.regions)
        bound = min(bound, value)
        return draft, Certificate(
            subject=f"assign:{'+'.join(names)}",
            value_bytes=value,
            lower_bound_bytes=bound,
            bound_kind="fastest" if bound == floor else kind,
            status="optimal" if bound == value else "feasible",
            solver="cp-sat" if exact else "greedy",
            seed=seed,
            seconds=time.monotonic() - started,
        )
    raise _no_way(problem, order, items, proven=False)


def _items(problem: Problem, order: Sequence[int], names: tuple[str, ...]) -> Iterator[Item]:
    grouped = {i for group in problem.adjacent for i in group}
    alone = ((i,) for i in range(len(problem.buffers)) if i not in grouped)
    spans = problem.lifetimes(order)
    for group in (*(g for g in problem.adjacent if g), *alone):
        buffers = [problem.buffers[i] for i in group]
        if buffers[0].regions[0] not in names:
            continue
        allowed = sorted(buffers[0].regions, key=lambda name: problem.region(name).cost)
        yield Item(
            tuple(group),
            tuple(allowed),
            sum(b.accessed_bytes for b in buffers),
            tuple(x for i, b in zip(group, buffers, strict=True) for x in b.held(*spans[i])),
        )


class _Program:
    """The 0/1 program: one region per item, in no region more bytes at once than it has room for, and
    in all of them no more than the total.

    Where every item is one buffer without gaps, all begin at multiples of the region's alignment, so
    each takes its size rounded up to that (``units``) of the room rounded up.
    """

    def __init__(self, problem: Problem, items: tuple[Item, ...], names: tuple[str, ...]) -> None:
        whole = not any(problem.buffers[i].gaps for item in items for i in item.buffers)
        apart = whole and all(len(item.buffers) == 1 for item in items)
        self.units = {name: problem.region(name).alignment if apart else 1 for name in names}
        every = sum(x.high - x.low for item in items for x in item.extents)
        every += len(items) * max(self.units.values())
        sizes = {name: problem.region(name).capacity_bytes for name in names}
        self.items = items
        self.room = {name: every if size is None else size for name, size in sizes.items()}
        self.costs = {name: problem.region(name).cost for name in names}
        self.total = problem.total_bytes
        self.cuts: list[_Cut] = []
        self.moments = _moments(items)

    def cost(self, regions: Sequence[str]) -> int:
        """Accessed bytes times cost."""
        return sum(i.accessed_bytes * self.costs[r] for i, r in zip(self.items, regions, strict=True))

    def padded(self, size: int, region: str) -> int:
        """``size`` rounded up to the unit of ``region``."""
        return size + -size % self.units[region]

    def height(self, padded: int, region: str) -> int:
        """How high ``region`` is at least with so many padded bytes: the highest item is not padded."""
        return max(padded - self.units[region] + 1, 0)

    def excess(self, height: int) -> int:
        """How much all regions together exceed the total with so many bytes."""
        return 0 if self.total is None else height - self.total

    def cut(self, region: str, regions: Sequence[str], needs_bytes: int) -> None:
        """The items that now lie in ``region`` need so many bytes there."""
        items = tuple(n for n, r in enumerate(regions) if r == region)
        self.cuts.append(_Cut(region, items, needs_bytes))

    def shrink(self, region: str, excess: int) -> None:
        """Give ``region`` less room."""
        self.room[region] = max(self.room[region] - max(excess, 1), 0)

    def shrink_all(self, excess: int) -> None:
        """Give all regions together less room."""
        assert self.total is not None
        self.total = max(self.total - excess, 0)

    def choose(self, deadline: Deadline, seed: int, exact: bool) -> _Choice:
        """The least cost; by density alone if not ``exact`` or if time is too short."""
        start = self._densest()
        if not exact or deadline.expired:
            return _Choice(start or ())
        cp: Any = cpsat.cp_model()
        model = cp.CpModel()
        lies = [{r: model.new_bool_var("") for r in item.regions} for item in self.items]
        for row in lies:
            model.add_exactly_one(row.values())
        tops: dict[str, Any] = dict(self.room)
        if self.total is not None:
            tops = {name: model.new_int_var(0, room, "") for name, room in self.room.items()}
            model.add(sum(tops.values()) <= self.total)
        for live in self.moments:
            for region, room in self.room.items():
                terms = [
                    (lies[n][region], self.padded(size, region))
                    for n, size in live.items()
                    if region in lies[n]
                ]
                every = self.height(sum(size for _, size in terms), region)
                if every > room or (every and self.total is not None):
                    load = sum(var * size for var, size in terms)
                    model.add(load - self.units[region] + 1 <= tops[region])
        for cut in self.cuts:
            inside = [lies[n][cut.region] for n in cut.items]
            if self.total is None or cut.needs_bytes > self.room[cut.region]:
                model.add_bool_or([var.negated() for var in inside])
            else:
                model.add(tops[cut.region] >= cut.needs_bytes).only_enforce_if(inside)
        pairs = [(n, r) for n, item in enumerate(self.items) for r in item.regions]
        priced = ((lies[n][r], self.items[n].accessed_bytes * self.costs[r]) for n, r in pairs)
        model.minimize(sum(var * price for var, price in priced if price))
        for n, region in enumerate(start or ()):
            for name, var in lies[n].items():
                model.add_hint(var, name == region)
        found = cpsat.solve(model, [lies[n][r] for n, r in pairs], deadline, seed)
        if not found.values:
            return _Choice(start or (), impossible=found.status == "infeasible")
        chosen = [r for (_, r), taken in zip(pairs, found.values, strict=True) if taken]
        bound = self.cost(chosen) if found.status == "optimal" else int(max(found.bound, -1))
        return _Choice(tuple(chosen), bound)

    def _densest(self) -> tuple[str, ...] | None:
        """The cheapest of what three orders lead to when each item takes the cheapest region with
        room; of all regions or, as this leaves gaps in a total, of one alone."""
        items = self.items
        held = [max((x.high - x.low for x in i.extents), default=0) for i in items]
        area = [sum((x.high - x.low) * (x.end - x.start) for x in i.extents) for i in items]
        orders = (
            sorted(range(len(items)), key=lambda n: -items[n].accessed_bytes / (held[n] or 1)),
            sorted(range(len(items)), key=lambda n: -items[n].accessed_bytes / (area[n] or 1)),
            sorted(range(len(items)), key=lambda n: -held[n]),
        )
        alone = [{name} for name in self.room] if self.total is not None else []
        ways = product(orders, (self.room.keys(), *alone))
        found = [regions for order, names in ways if (regions := self._filled(order, names))]
        return min(found, key=self.cost) if found else None

    def _filled(self, order: Iterable[int], names: Collection[str]) -> tuple[str, ...] | None:
        """The items of ``order``, one by one in the cheapest region of ``names`` with room."""
        moments: dict[int, list[tuple[int, int]]] = {}
        for number, live in enumerate(self.moments):
            for n, size in live.items():
                moments.setdefault(n, []).append((number, size))
        levels = {name: [0] * len(self.moments) for name in self.room}
        tops = dict.fromkeys(self.room, 0)
        regions: dict[int, str] = {}
        for n in order:
            needs = moments.get(n, [])
            for name in self.items[n].regions:
                if name not in names:
                    continue
                held = (levels[name][at] + self.padded(size, name) for at, size in needs)
                top = max(self.height(max(held, default=0), name), self._known(n, name, regions))
                higher = {**tops, name: max(tops[name], top)}
                if higher[name] <= self.room[name] and self.excess(sum(higher.values())) <= 0:
                    regions[n], tops = name, higher
                    break
            else:
                return None
            for number, size in needs:
                levels[regions[n]][number] += self.padded(size, regions[n])
        return tuple(regions[n] for n in range(len(self.items)))

    def _known(self, item: int, region: str, regions: Mapping[int, str]) -> int:
        """How high ``region`` is known to be if ``item`` joins the items that have ``regions``."""
        found = (
            cut.needs_bytes
            for cut in self.cuts
            if cut.region == region
            and item in cut.items
            and all(regions.get(m) == region for m in cut.items if m != item)
        )
        return max(found, default=0)


def _moments(items: Sequence[Item]) -> list[dict[int, int]]:
    """The bytes of each item that lives, at the moments at which no other holds them all."""
    events = sorted(
        (
            (time, begins, n, x.high - x.low)
            for n, item in enumerate(items)
            for x in item.extents
            for time, begins in ((x.start, 1), (x.end, 0))
        ),
    )
    live: dict[int, int] = {}
    found: list[dict[int, int]] = []
    grew = False
    for _, begins, n, size in events:
        if grew and not begins:
            found.append(dict(live))
        grew = bool(begins)
        live[n] = live.get(n, 0) + (size if begins else -size)
        if not live[n]:
            del live[n]
    return found


def _narrowed(problem: Problem, items: Sequence[Item], regions: Sequence[str]) -> Problem:
    """``problem`` with one region for each buffer of ``items``."""
    chosen = {i: r for item, r in zip(items, regions, strict=True) for i in item.buffers}
    buffers = tuple(
        replace(b, regions=(chosen[i],)) if i in chosen else b for i, b in enumerate(problem.buffers)
    )
    return replace(problem, buffers=buffers)


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
    largest = max(items, key=_width)
    piece = f"the largest piece is {problem.buffers[largest.buffers[0]].name} of {_width(largest):,} B"
    return InfeasibleError(
        "MP228",
        f"no way was found to share the buffers out between {have}: {live:,} B live at step "
        f"{position}{step}, {piece}",
        help="no way exists at this order: name more memories, or use less memory"
        if proven
        else "not proven impossible: give the solver more time (limit), or more memories",
    )


def _width(item: Item) -> int:
    """The most bytes that an item holds at once."""
    return max((live[0] for live in _moments([item]) if 0 in live), default=0)
