"""The choice of a region for each buffer as a 0/1 program, and the greedy ways through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise, product
from math import lcm
from typing import Any

from mplan.ir.plan import Extent, Problem
from mplan.passes.solvers import cpsat
from mplan.passes.solvers.interface import Deadline

#: Seconds that a program takes to state per item, region and moment at which the item lives.
_TERM_S = 2.5e-6


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
    items: frozenset[int]
    needs_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A region per item, none if there is no way; ``bound`` on the cost of all ways, or -1; whether
    it is proven that there is none; who chose."""

    regions: tuple[str, ...]
    bound: int = -1
    impossible: bool = False
    solver: str = "greedy"


def items_of(problem: Problem, order: Sequence[int], names: tuple[str, ...]) -> Iterator[Item]:
    """The adjacent groups and the other buffers that lie in one of the regions ``names``."""
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


class Program:
    """The 0/1 program: one region per item, in no region more bytes at once than it has room for, and
    in all of them no more than the total.

    A region without a limit has as much as all its buffers can need. Where every item is one buffer
    without gaps, all begin at multiples of the region's alignment, so each takes its size rounded up
    to that (``units``) of the room rounded up.
    """

    def __init__(self, problem: Problem, items: tuple[Item, ...], names: tuple[str, ...]) -> None:
        self.problem = problem
        whole = not any(problem.buffers[i].gaps for item in items for i in item.buffers)
        apart = whole and all(len(item.buffers) == 1 for item in items)
        self.units = {name: problem.region(name).alignment if apart else 1 for name in names}
        inside = [problem.buffers[i] for item in items for i in item.buffers]
        common = lcm(*(problem.region(n).alignment for n in names), *(b.alignment for b in inside))
        every = sum(b.size_bytes + -b.size_bytes % common for b in inside)
        every += max((b.offset or 0 for b in inside), default=0)
        sizes = {name: problem.region(name).capacity_bytes for name in names}
        self.items = items
        self.room = {name: every if size is None else size for name, size in sizes.items()}
        self.costs = {name: problem.region(name).cost for name in names}
        self.total = problem.total_bytes
        self.cuts: list[_Cut] = []
        self.moments, self.spans = _moments(items)

    def cost(self, regions: Sequence[str]) -> int:
        """Accessed bytes times cost."""
        return sum(i.accessed_bytes * self.costs[r] for i, r in zip(self.items, regions, strict=True))

    def padded(self, size: int, region: str) -> int:
        """``size`` rounded up to the unit of ``region``."""
        return size + -size % self.units[region]

    def height(self, padded: int, region: str) -> int:
        """How high ``region`` is at least with so many padded bytes: the highest item is not padded."""
        return max(padded - self.units[region] + 1, 0)

    def narrowed(self, regions: Sequence[str], hints: Mapping[int, int] | None = None) -> Problem:
        """The problem with one region for each buffer of an item, and offsets to try first."""
        chosen = {i: r for item, r in zip(self.items, regions, strict=True) for i in item.buffers}
        hints = hints or {}
        buffers = tuple(
            replace(b, regions=(chosen[i],), hint=hints.get(i, b.hint)) if i in chosen else b
            for i, b in enumerate(self.problem.buffers)
        )
        return replace(self.problem, buffers=buffers)

    def excess(self, height: int) -> int:
        """How much all regions together exceed the total with so many bytes."""
        return 0 if self.total is None else height - self.total

    def cut(self, region: str, regions: Sequence[str], needs_bytes: int) -> None:
        """The items that now lie in ``region`` need so many bytes there."""
        items = frozenset(n for n, r in enumerate(regions) if r == region)
        self.cuts.append(_Cut(region, items, needs_bytes))

    def shrink(self, region: str, excess: int) -> None:
        """Give ``region`` less room."""
        self.room[region] = max(self.room[region] - max(excess, 1), 0)

    def shrink_all(self, excess: int) -> None:
        """Give all regions together less room."""
        assert self.total is not None
        self.total = max(self.total - excess, 0)

    def choose(self, deadline: Deadline, seed: int, exact: bool) -> Choice:
        """The least cost; by density alone if not ``exact`` or if time is too short."""
        start = self._densest(deadline)
        work = len(self.room) * sum(last - first for own in self.spans for first, last, _ in own)
        if not exact or deadline.remaining() <= work * _TERM_S:
            return Choice(start or ())
        cp: Any = cpsat.cp_model()
        model = cp.CpModel()
        lies = [{r: model.new_bool_var("") for r in item.regions} for item in self.items]
        for row in lies:
            model.add_exactly_one(row.values())
        tops: dict[str, Any] = dict(self.room)
        if self.total is not None:
            tops = {name: model.new_int_var(0, room, "") for name, room in self.room.items()}
            model.add(sum(tops.values()) <= self.total)
        for live in self._live():
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
            inside = [lies[n][cut.region] for n in sorted(cut.items)]
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
            return Choice(start or (), impossible=found.status == "infeasible")
        chosen = [r for (_, r), taken in zip(pairs, found.values, strict=True) if taken]
        bound = self.cost(chosen) if found.status == "optimal" else int(max(found.bound, -1))
        return Choice(tuple(chosen), bound, solver="cp-sat")

    def _live(self) -> Iterator[dict[int, int]]:
        """The bytes of each item that lives, moment by moment."""
        changes: list[list[tuple[int, int]]] = [[] for _ in range(self.moments + 1)]
        for n, own in enumerate(self.spans):
            for first, last, size in own:
                changes[first].append((n, size))
                changes[last].append((n, -size))
        live: dict[int, int] = {}
        for change in changes[:-1]:
            for n, size in change:
                live[n] = live.get(n, 0) + size
                if not live[n]:
                    del live[n]
            yield live

    @cached_property
    def orders(self) -> tuple[list[int], ...]:
        """The items by accesses per byte and position, by accesses per byte, by size; most first."""
        items = self.items
        held = [max((x.high - x.low for x in i.extents), default=0) for i in items]
        area = [sum((x.high - x.low) * (x.end - x.start) for x in i.extents) for i in items]
        return (
            sorted(range(len(items)), key=lambda n: -items[n].accessed_bytes / (area[n] or 1)),
            sorted(range(len(items)), key=lambda n: -items[n].accessed_bytes / (held[n] or 1)),
            sorted(range(len(items)), key=lambda n: -held[n]),
        )

    @property
    def ways(self) -> Iterator[tuple[list[int], Collection[str]]]:
        """Greedy ways: the order of the items, and the regions of which each takes the cheapest with
        room: all of them or, as this leaves gaps in a total, one alone."""
        alone = [{name} for name in self.room] if self.total is not None else []
        return product(self.orders, (self.room.keys(), *alone))

    def _densest(self, deadline: Deadline) -> tuple[str, ...] | None:
        """The cheapest of what ``ways`` lead to, by the bytes at each moment."""
        best: tuple[str, ...] | None = None
        for order, names in self.ways:
            if best is not None and deadline.expired:
                break
            found = self._filled(order, names)
            best = min(filter(None, (best, found)), key=self.cost, default=None)
        return best

    def _filled(self, order: Iterable[int], names: Collection[str]) -> tuple[str, ...] | None:
        """The items of ``order``, one by one in the cheapest region of ``names`` with room."""
        import numpy as np

        levels = {name: np.zeros(self.moments, np.int64) for name in self.room}
        tops = dict.fromkeys(self.room, 0)
        regions: dict[int, str] = {}
        for n in order:
            for name in self.items[n].regions:
                if name not in names:
                    continue
                held = (
                    int(levels[name][first:last].max()) + self.padded(size, name)
                    for first, last, size in self.spans[n]
                )
                top = max(self.height(max(held, default=0), name), self._known(n, name, regions))
                higher = {**tops, name: max(tops[name], top)}
                if higher[name] <= self.room[name] and self.excess(sum(higher.values())) <= 0:
                    regions[n], tops = name, higher
                    break
            else:
                return None
            for first, last, size in self.spans[n]:
                levels[regions[n]][first:last] += self.padded(size, regions[n])
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


def _moments(items: Sequence[Item]) -> tuple[int, list[list[tuple[int, int, int]]]]:
    """How many moments there are at which no other holds all that lives, and per item from the first to
    the last (exclusive) of which it holds how many bytes."""
    extents = [(n, x) for n, item in enumerate(items) for x in item.extents]
    events = sorted(
        (time, begins, e)
        for e, (_, x) in enumerate(extents)
        for time, begins in ((x.start, True), (x.end, False))
    )
    moments, grew = 0, False
    changes: list[dict[int, int]] = [defaultdict(int) for _ in items]
    for _, begins, e in events:
        moments += grew and not begins
        grew = begins
        n, x = extents[e]
        changes[n][moments] += x.high - x.low if begins else x.low - x.high
    return moments, [_pieces(change) for change in changes]


def _pieces(changes: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """From where to where how many bytes are held that change by ``changes``, in order of time."""
    levels = accumulate(changes.values())
    return [(*span, size) for span, size in zip(pairwise(changes), levels, strict=False) if size]


def width(item: Item) -> int:
    """The most bytes that an item holds at once."""
    return max((size for _, _, size in _moments([item])[1][0]), default=0)
