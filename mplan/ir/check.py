"""An independent replay of a plan: it shares no code with the passes that made it.

``check`` recomputes lifetimes, overlaps, capacities, heights and bounds from the problem alone and
names each condition that fails. It imports nothing but ``ir/plan.py`` and its own ``ir/closure.py``.
"""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd, lcm
from typing import Any

from mplan.ir.closure import closure
from mplan.ir.plan import Certificate, Placement, Plan, PlanFile, Problem, content_digest, summary

#: Code and name of each condition; the name is stable and is what tests and JSON use.
REASONS = {
    "digest": "MP201",
    "order": "MP202",
    "reference": "MP203",
    "lifetime": "MP204",
    "overlap": "MP205",
    "capacity": "MP206",
    "alignment": "MP207",
    "fixed_offset": "MP208",
    "region": "MP209",
    "missing_copy": "MP210",
    "use_after_eviction": "MP211",
    "height": "MP212",
    "bound": "MP213",
    "seal": "MP214",
    "problem": "MP215",
    "stale_copy": "MP216",
    "adjacent": "MP217",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One failed condition: its name (a key of ``REASONS``) and the numbers."""

    reason: str
    message: str

    @property
    def code(self) -> str:
        """The error code of the condition."""
        return REASONS[self.reason]


def check(problem: Problem, plan: Plan) -> tuple[Violation, ...]:
    """All conditions that ``plan`` breaks as an answer to ``problem``; empty means that it holds."""
    found = check_problem(problem)
    if found:
        return found
    if plan.problem != problem.digest:
        found += (Violation("digest", f"the plan answers problem {plan.problem[:12]}…, not this"),)
    structural = (*_check_order(problem, plan), *_check_references(problem, plan))
    if structural:
        return found + structural
    replay = _Replay(problem, plan)
    checks = (
        replay.addresses,
        replay.lifetimes,
        replay.copies,
        replay.freshness,
        replay.overlaps,
        replay.groups,
        replay.heights,
        replay.bounds,
    )
    return found + tuple(v for run in checks for v in run())


def check_file(document: dict[str, Any], file: PlanFile) -> tuple[Violation, ...]:
    """``check`` plus the seals of a plan file; ``document`` is the JSON object behind ``file``."""
    found = []
    if document.get("content_digest") != content_digest(document):
        found.append(Violation("seal", "the file's content does not match its content_digest"))
    if document.get("problem_digest") != file.problem.digest:
        found.append(Violation("digest", "the problem does not match its problem_digest"))
    if document.get("plan_digest") != file.plan.digest:
        found.append(Violation("digest", "the plan does not match its plan_digest"))
    if any(document.get(key) != value for key, value in summary(file.plan).items()):
        found.append(Violation("seal", "the file's order or offsets are not those of its plan"))
    return (*found, *check(file.problem, file.plan))


def check_problem(problem: Problem) -> tuple[Violation, ...]:
    """What is wrong with ``problem`` itself; empty means that a planner can take it."""
    return tuple(_faults(problem))


def _faults(problem: Problem) -> Iterator[Violation]:
    names = [r.name for r in problem.regions]
    if len(set(names)) != len(names):
        yield Violation("problem", "two regions have the same name")
    if not names:
        yield Violation("problem", "there is no region")
    for region in problem.regions:
        if region.alignment < 1 or (region.capacity_bytes or 0) < 0:
            yield Violation("problem", f"region {region.name} has a bad alignment or capacity")
    for b in problem.buffers:
        if b.size_bytes < 0 or b.alignment < 1 or not b.regions or set(b.regions) - set(names):
            yield Violation("problem", f"buffer {b.name} has a bad size, alignment or region")
        if b.lifetime is not None and not 0 <= b.lifetime[0] <= b.lifetime[1]:
            yield Violation("problem", f"buffer {b.name} has the lifetime {b.lifetime}")
        if b.lifetime is not None and problem.steps:
            yield Violation("problem", f"buffer {b.name} has a fixed lifetime in a graph of steps")
        at, last = b.lifetime or (0, 0)
        for gap in b.gaps:
            if not (at <= gap.start < gap.end <= last and 0 <= gap.low <= gap.high <= b.size_bytes):
                yield Violation("problem", f"buffer {b.name} has a bad gap at {gap.start}")
            at = gap.end
    for i, step in enumerate(problem.steps):
        if any(not 0 <= b < len(problem.buffers) for b in step.touches):
            yield Violation("problem", f"step {step.name} touches a buffer that does not exist")
        if any(not 0 <= p < i for p in step.after):
            yield Violation("problem", f"step {step.name} follows a step that is not before it")
    members = [i for group in problem.adjacent for i in group]
    if len(set(members)) != len(members) or set(members) - set(range(len(problem.buffers))):
        yield Violation("problem", "adjacent groups share a buffer or name one that does not exist")
    elif any(len({problem.buffers[i].regions for i in group}) > 1 for group in problem.adjacent):
        yield Violation("problem", "adjacent buffers are allowed in different regions")


def _check_order(problem: Problem, plan: Plan) -> Iterator[Violation]:
    steps = problem.steps
    if sorted(plan.order) != list(range(len(steps))):
        yield Violation("order", f"the order is not a permutation of the {len(steps)} steps")
        return
    position = {step: p for p, step in enumerate(plan.order)}
    for i, step in enumerate(steps):
        for before in step.after:
            if position[before] > position[i]:
                names = f"{step.name} (position {position[i]}) runs before {steps[before].name}"
                yield Violation("order", f"{names} (position {position[before]}), which it needs")


def _check_references(problem: Problem, plan: Plan) -> Iterator[Violation]:
    regions = {r.name for r in problem.regions}
    count = len(problem.buffers)
    for p in plan.placements:
        if not 0 <= p.buffer < count or p.region not in regions:
            yield Violation("reference", f"a placement names buffer {p.buffer} in {p.region!r}")
    for t in plan.transfers:
        known = 0 <= t.buffer < count and {t.source, t.target} <= regions
        if not known or not 0 <= t.step <= problem.horizon:
            yield Violation("reference", f"a transfer names buffer {t.buffer} at step {t.step}")
    placed = {p.buffer for p in plan.placements}
    for i, b in enumerate(problem.buffers):
        if i not in placed:
            yield Violation("reference", f"buffer {b.name} is not placed")
    named = [name for name, _ in plan.peaks]
    if len(set(named)) != len(named) or set(named) - regions:
        yield Violation("reference", "the heights name a region twice or one that does not exist")


class _Replay:
    """The derived facts that the checks share: true lifetimes and placements by buffer."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem = problem
        self.plan = plan
        self.touched: dict[int, list[int]] = defaultdict(list)
        for position, index in enumerate(plan.order):
            for buffer in problem.steps[index].touches:
                self.touched[buffer].append(position)
        self.spans = [self._span(i) for i in range(len(problem.buffers))]
        self.segments: dict[int, list[Any]] = defaultdict(list)
        for placement in sorted(plan.placements, key=lambda p: (p.start, p.end)):
            self.segments[placement.buffer].append(placement)
        self.followers = {i for group in problem.adjacent for i in group[1:]}

    def _span(self, i: int) -> tuple[int, int]:
        b, touched = self.problem.buffers[i], self.touched[i]
        if b.lifetime is not None:
            return b.lifetime
        start = touched[0] if touched and not b.live_in else 0
        end = touched[-1] + 1 if touched else int(b.live_in and bool(self.problem.steps))
        return start, self.problem.horizon if b.live_out else end

    def addresses(self) -> Iterator[Violation]:
        for p in self.plan.placements:
            b, region = self.problem.buffers[p.buffer], self.problem.region(p.region)
            common = 1 if p.buffer in self.followers else region.alignment
            if p.offset < 0 or p.offset % b.alignment or p.offset % common:
                needed = f"{b.alignment} (buffer), {common} (region)"
                yield Violation("alignment", f"{b.name} lies at {p.offset}; alignment: {needed}")
            if b.offset is not None and p.offset != b.offset and p.region in b.regions:
                yield Violation("fixed_offset", f"{b.name} lies at {p.offset}, must at {b.offset}")
            if region.addressable and p.region not in b.regions:
                yield Violation("region", f"{b.name} lies in {p.region}, allowed: {b.regions}")
            end = p.offset + b.size_bytes
            full = region.capacity_bytes is not None and end > region.capacity_bytes
            if full and self._holds(p):
                limit = f"{p.region} has {region.capacity_bytes or 0:,} B"
                yield Violation("capacity", f"{b.name} ends at {end:,} B, {limit}")

    def lifetimes(self) -> Iterator[Violation]:
        for i, b in enumerate(self.problem.buffers):
            start, end = self.spans[i]
            segments = self.segments[i]
            first, last = segments[0].start, max(s.end for s in segments)
            if (first, last) != (start, end):
                yield Violation(
                    "lifetime",
                    f"{b.name} is placed during [{first}, {last}), lives [{start}, {end})",
                )
            if any(s.start > s.end for s in segments):
                yield Violation("lifetime", f"{b.name} has a placement that ends before it starts")
            for position in self.touched[i]:
                if not any(s.start <= position < s.end and self._usable(s) for s in segments):
                    message = f"{b.name} is touched at position {position} where it is not addressable"
                    yield Violation("use_after_eviction", message)

    def _usable(self, segment: Any) -> bool:
        allowed = self.problem.buffers[segment.buffer].regions
        return self.problem.region(segment.region).addressable and segment.region in allowed

    def copies(self) -> Iterator[Violation]:
        arrivals = {(t.buffer, t.step, t.target) for t in self.plan.transfers}
        for i, segments in self.segments.items():
            for s in segments[1:]:
                if (i, s.start, s.region) not in arrivals:
                    name = self.problem.buffers[i].name
                    message = f"{name} appears in {s.region} at {s.start} without a copy"
                    yield Violation("missing_copy", message)
        for t in self.plan.transfers:
            segments = self.segments[t.buffer]
            held = any(s.region == t.source and s.start < t.step <= s.end for s in segments)
            lands = any(s.region == t.target and s.start == t.step for s in segments)
            if not held or not lands or t.source == t.target:
                name = self.problem.buffers[t.buffer].name
                message = f"{name} is copied {t.source} → {t.target} at {t.step}"
                yield Violation("missing_copy", f"{message}, but does not lie there then")

    def freshness(self) -> Iterator[Violation]:
        """A copy where steps do not write must not be brought back after a write elsewhere."""
        for t in self.plan.transfers:
            for s in self.segments[t.buffer]:
                if s.region != t.source or not s.start < t.step <= s.end or self._usable(s):
                    continue
                written = [p for p in self.touched[t.buffer] if s.start <= p < t.step]
                steps = [self.problem.steps[self.plan.order[p]] for p in written]
                if any(t.buffer in step.writes for step in steps):
                    name = self.problem.buffers[t.buffer].name
                    message = f"{name} is fetched from {t.source} at {t.step}"
                    yield Violation("stale_copy", f"{message}, but was written since {s.start}")

    def overlaps(self) -> Iterator[Violation]:
        by_region = defaultdict(list)
        for p in self.plan.placements:
            for start, end, low, high in self._held(p):
                by_region[p.region].append((start, end, p.offset + low, p.offset + high, p.buffer))
        for region, boxes in by_region.items():
            yield from self._sweep(region, sorted(boxes))

    def _held(self, p: Placement) -> Iterator[tuple[int, int, int, int]]:
        """Start, end, low and high of what the buffer holds of its bytes where it is placed."""
        b = self.problem.buffers[p.buffer]
        cuts = {p.start, p.end} | {t for g in b.gaps for t in (g.start, g.end) if p.start < t < p.end}
        for start, end in pairwise(sorted(cuts)):
            low, high = 0, b.size_bytes
            for gap in b.gaps:
                if gap.start <= start < gap.end:
                    low, high = gap.low, gap.high
            if low < high:
                yield start, end, low, high

    def _holds(self, p: Placement) -> bool:
        """Whether the buffer holds anything where it is placed; else it takes no room."""
        return any(True for _ in self._held(p))

    def groups(self) -> Iterator[Violation]:
        """The buffers of a group lie one directly behind the other wherever steps can touch them."""
        for group in self.problem.adjacent:
            places, below = set(), 0
            for i in group:
                usable = [s for s in self.segments[i] if self._usable(s)]
                places |= {(s.region, s.offset - below) for s in usable}
                below += self.problem.buffers[i].size_bytes
            if len(places) > 1:
                names = ", ".join(self.problem.buffers[i].name for i in group)
                yield Violation("adjacent", f"{names} do not lie one directly behind the other")

    def _sweep(self, region: str, boxes: list[tuple[int, int, int, int, int]]) -> Iterator[Violation]:
        """Walk through time with the live address intervals sorted; neighbours must be disjoint."""
        live: list[tuple[int, int, int]] = []
        leaving: list[tuple[int, tuple[int, int, int]]] = []
        for start, end, low, high, buffer in boxes:
            while leaving and leaving[0][0] <= start:
                del live[bisect.bisect_left(live, heapq.heappop(leaving)[1])]
            entry = (low, high, buffer)
            for other_low, other_high, other in _neighbours(live, entry):
                if other_low < high and low < other_high:
                    names = [self.problem.buffers[i].name for i in (other, buffer)]
                    common = f"[{max(low, other_low)}, {min(high, other_high)})"
                    message = f"{names[0]} and {names[1]} share bytes {common} of {region} at {start}"
                    yield Violation("overlap", message)
            bisect.insort(live, entry)
            heapq.heappush(leaving, (end, entry))

    def heights(self) -> Iterator[Violation]:
        tops = {r.name: 0 for r in self.problem.regions}
        for p in self.plan.placements:
            if self._holds(p):
                end = p.offset + self.problem.buffers[p.buffer].size_bytes
                tops[p.region] = max(tops[p.region], end)
        for region, top in tops.items():
            stated = dict(self.plan.peaks).get(region, 0)
            if stated != top:
                yield Violation("height", f"{region} is {top:,} B high, the plan says {stated:,} B")

    def live_levels(self, region: str) -> tuple[list[int], list[int]]:
        """The positions where the bytes placed in ``region`` change, and the bytes from there on."""
        delta = {0: 0}
        for p in self.plan.placements:
            for start, end, low, high in self._held(p) if p.region == region else ():
                delta[start] = delta.get(start, 0) + high - low
                delta[end] = delta.get(end, 0) - high + low
        positions = sorted(delta)
        return positions, list(accumulate(delta[p] for p in positions))

    def bounds(self) -> Iterator[Violation]:
        subjects = [c.subject for c in self.plan.certificates]
        if len(set(subjects)) != len(subjects):
            yield Violation("bound", "two certificates speak of the same subject")
        for c in self.plan.certificates:
            problem = self._bound_fault(c)
            if problem:
                yield Violation("bound", f"certificate {c.subject}: {problem}")

    def _bound_fault(self, c: Certificate) -> str:
        decision, _, region = c.subject.partition(":")
        if region not in {r.name for r in self.problem.regions}:
            return "it names no region"
        if decision not in ("schedule", "allocate"):
            return f"unknown decision {decision!r}"
        live = max(self.live_levels(region)[1])
        value = live if decision == "schedule" else self.plan.peak_bytes(region)
        if c.value_bytes != value:
            return f"it states {c.value_bytes:,} B, the plan has {value:,} B"
        if not 0 <= c.lower_bound_bytes <= value:
            return f"its bound {c.lower_bound_bytes:,} B exceeds the value {value:,} B"
        if c.status not in ("optimal", "feasible"):
            return f"a plan cannot be {c.status}"
        if (c.status == "optimal") != (c.lower_bound_bytes == value):
            return f"status {c.status} with bound {c.lower_bound_bytes:,} B of {value:,} B"
        return self._witness_fault(c, decision, region)

    def _witness_fault(self, c: Certificate, decision: str, region: str) -> str:
        """What is wrong with the argument behind a bound; an exhausted search cannot be replayed."""
        steps, horizon = range(len(self.problem.steps)), range(max(self.problem.horizon, 1))
        kinds: dict[str, tuple[range | None, Callable[[], int]]] = {
            "live": (horizon, lambda: self._live_at(c.witness[0], region)),
            "padded": (horizon, lambda: self._padded_at(c.witness[0], region)),
            "fixed": (None, lambda: self._fixed_end(region)),
            "boundary": (None, lambda: self._boundary(region)),
            "working_set": (steps, lambda: self._working_set(c.witness[0], region)),
            "closure": (steps, lambda: closure(self.problem, c.witness[0], self._home(region))),
        }
        if c.bound_kind == "exhaustive":
            return ""
        if c.bound_kind not in kinds:
            return f"unknown kind of bound {c.bound_kind!r}"
        foreign = ("padded", "fixed", "live") if steps else ("padded", "fixed")
        if decision == "schedule" and c.bound_kind in foreign:
            return f"a {c.bound_kind} bound says nothing of orders"
        if c.bound_kind in ("boundary", "closure") and self.plan.transfers:
            return f"a {c.bound_kind} bound does not hold for a plan that moves buffers"
        wanted, replay = kinds[c.bound_kind]
        named = len(c.witness) == 1 and c.witness[0] in wanted if wanted is not None else not c.witness
        if not named:
            return f"a {c.bound_kind} bound cannot have the witness {c.witness}"
        shown = replay()
        if shown != c.lower_bound_bytes:
            return f"its witness shows {shown:,} B, not {c.lower_bound_bytes:,} B"
        return ""

    def _live_at(self, position: int, region: str) -> int:
        positions, levels = self.live_levels(region)
        return levels[bisect.bisect_right(positions, position) - 1]

    def _padded_at(self, position: int, region: str) -> int:
        """Bytes live at ``position`` when each buffer but the highest is padded to the alignment that
        all of ``region`` have in common; nothing where gaps or adjacent buffers let others in there."""
        home = [p for p in self.plan.placements if p.region == region and self._holds(p)]
        occupied = [(self.problem.buffers[p.buffer], held) for p in home for held in self._held(p)]
        whole = all((low, high) == (0, b.size_bytes) for b, (_, _, low, high) in occupied)
        if len(occupied) > len(home) or not whole or self.followers & {p.buffer for p in home}:
            return 0
        own = self.problem.region(region).alignment
        common = gcd(*(lcm(b.alignment, own) for b, _ in occupied)) or 1
        live = [b.size_bytes for b, (start, end, *_) in occupied if start <= position < end]
        pads = [-size % common for size in live]
        return sum(live) + sum(pads) - max(pads, default=0)

    def _fixed_end(self, region: str) -> int:
        """The highest end of a buffer that must lie in ``region`` and has a fixed offset, its own or
        that of an adjacent one."""
        buffers = self.problem.buffers
        fixed = {i: b.offset for i, b in enumerate(buffers) if b.offset is not None}
        for group in self.problem.adjacent:
            below = accumulate((buffers[i].size_bytes for i in group), initial=0)
            places = dict(zip(group, below, strict=False))
            for base in [fixed[i] - places[i] for i in group if i in fixed]:
                fixed |= {i: base + place for i, place in places.items()}
        ends = (
            fixed[i] + b.size_bytes
            for i, b in enumerate(buffers)
            if b.regions == (region,) and i in fixed and any(map(self._holds, self.segments[i]))
        )
        return max(ends, default=0)

    def _boundary(self, region: str) -> int:
        """Bytes live before the first step or after the last, whichever is more."""
        home = [self.problem.buffers[i] for i in self._home(region)]
        start = sum(b.size_bytes for b in home if b.live_in)
        return max(start, sum(b.size_bytes for b in home if b.live_out))

    def _home(self, region: str) -> frozenset[int]:
        """The buffers that lie in ``region``, where no buffer changes regions."""
        return frozenset(p.buffer for p in self.plan.placements if p.region == region)

    def _working_set(self, index: int, region: str) -> int:
        """Bytes that must be live while step ``index`` runs, whatever the order.

        Buffers that are live throughout count beside those that the step touches; if the plan moves
        buffers, only those that the step touches and that may lie nowhere else.
        """
        touched = self.problem.steps[index].touches
        home = self._home(region)
        total = 0
        for i, b in enumerate(self.problem.buffers):
            if self.plan.transfers:
                needed = i in touched and b.regions == (region,)
            else:
                needed = i in home and (i in touched or (b.live_in and b.live_out))
            total += b.size_bytes if needed else 0
        return total


def _neighbours(
    live: list[tuple[int, int, int]], entry: tuple[int, int, int]
) -> Iterator[tuple[int, int, int]]:
    """Live intervals that may overlap ``entry``: the one below and all that start inside."""
    at = bisect.bisect_left(live, entry)
    if at:
        yield live[at - 1]
    while at < len(live) and live[at][0] < entry[1]:
        yield live[at]
        at += 1
