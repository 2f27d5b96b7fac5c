"""An independent replay of a plan: it shares no code with the passes that made it.

``check`` recomputes lifetimes, overlaps, capacities, heights and bounds from the problem alone and
names each condition that fails. Of mplan it imports ``ir/plan.py``, whose problem has its fields as
arrays, too, and its own ``ir/replay.py`` and ``ir/closure.py``, no more.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import gcd, lcm
from typing import Any

from mplan.ir.closure import closure
from mplan.ir.plan import (
    Buffer,
    Certificate,
    Placement,
    Plan,
    PlanFile,
    Problem,
    Region,
    content_digest,
    summary,
)
from mplan.ir.replay import Replay

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
    replay = _Checks(problem, plan)
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
    if not names or (problem.total_bytes or 0) < 0:
        yield Violation("problem", "there is no region, or all have less than no room")
    for region in problem.regions:
        if region.alignment < 1 or (region.capacity_bytes or 0) < 0 or region.cost < 0:
            yield Violation("problem", f"region {region.name} has a bad alignment, capacity or cost")
        if problem.total_bytes is not None and region.name in problem.shared and not region.cost:
            yield Violation("problem", f"a total is shared by regions of cost, {region.name} has none")
    yield from _buffer_faults(problem, frozenset(names))
    yield from _step_faults(problem)
    members = [i for group in problem.adjacent for i in group]
    if len(set(members)) != len(members) or set(members) - set(range(len(problem.buffers))):
        yield Violation("problem", "adjacent groups share a buffer or name one that does not exist")
    elif any(len({problem.buffers[i].regions for i in group}) > 1 for group in problem.adjacent):
        yield Violation("problem", "adjacent buffers are allowed in different regions")


def _buffer_faults(problem: Problem, regions: frozenset[str]) -> Iterator[Violation]:
    import numpy as np

    columns = problem.columns
    known = np.array([bool(c) and regions.issuperset(c) for c in columns.choices], np.bool_)
    bad = (columns.size < 0) | (columns.accessed < 0) | (columns.alignment < 1)
    for i in np.flatnonzero(bad | ~known[columns.choice]).tolist():
        name = problem.buffers[i].name
        yield Violation("problem", f"buffer {name} has a bad size, alignment or region")
    for i, (start, end) in columns.lifetimes.items():
        if not 0 <= start <= end:
            name = problem.buffers[i].name
            yield Violation("problem", f"buffer {name} has the lifetime {(start, end)}")
        if problem.steps:
            name = problem.buffers[i].name
            yield Violation("problem", f"buffer {name} has a fixed lifetime in a graph of steps")
    for i, gaps in columns.gaps.items():
        b = problem.buffers[i]
        at, last = b.lifetime or (0, 0)
        for gap in gaps:
            if not (at <= gap.start < gap.end <= last and 0 <= gap.low <= gap.high <= b.size_bytes):
                yield Violation("problem", f"buffer {b.name} has a bad gap at {gap.start}")
            at = gap.end


def _step_faults(problem: Problem) -> Iterator[Violation]:
    columns, count = problem.columns, len(problem.buffers)
    for lists in (columns.reads, columns.writes):
        for i in lists.owner[(lists.flat < 0) | (lists.flat >= count)].tolist():
            name = problem.steps[i].name
            yield Violation("problem", f"step {name} touches a buffer that does not exist")
    after = columns.after
    for i in after.owner[(after.flat < 0) | (after.flat >= after.owner)].tolist():
        name = problem.steps[i].name
        yield Violation("problem", f"step {name} follows a step that is not before it")


def _check_order(problem: Problem, plan: Plan) -> Iterator[Violation]:
    import numpy as np

    steps = problem.steps
    if sorted(plan.order) != list(range(len(steps))):
        yield Violation("order", f"the order is not a permutation of the {len(steps)} steps")
        return
    position = np.zeros(len(steps), np.int64)
    position[list(plan.order)] = np.arange(len(steps))
    after = problem.columns.after
    before, owner = after.flat.astype(np.int64), after.owner
    late = position[before] > position[owner]
    for p, i in zip(before[late].tolist(), owner[late].tolist(), strict=True):
        names = f"{steps[i].name} (position {position[i]}) runs before {steps[p].name}"
        yield Violation("order", f"{names} (position {position[p]}), which it needs")


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
    for i in sorted(set(range(count)) - placed):
        yield Violation("reference", f"buffer {problem.buffers[i].name} is not placed")
    named = [name for name, _ in plan.peaks]
    if len(set(named)) != len(named) or set(named) - regions:
        yield Violation("reference", "the heights name a region twice or one that does not exist")


class _Checks(Replay):
    """The conditions that a plan must keep; each yields what breaks it."""

    def _placements(self, mask: Any) -> Iterator[tuple[Placement, Buffer, Region]]:
        """The placements that ``mask`` marks, with their buffers and regions."""
        for i in mask.nonzero()[0].tolist():
            p = self.plan.placements[i]
            yield p, self.problem.buffers[p.buffer], self.problem.region(p.region)

    def addresses(self) -> Iterator[Violation]:
        """Alignment, fixed offsets, allowed regions and capacities."""
        import numpy as np

        problem, ends = self.problem, self.offset + self.size[self.buffer]
        own = problem.columns.alignment[self.buffer]
        common = self.column(r.alignment for r in problem.regions)[self.region]
        leads = ~np.isin(self.buffer, list(self.followers))
        skewed = (self.offset % own != 0) | (leads & (self.offset % common != 0))
        for p, b, region in self._placements((self.offset < 0) | skewed):
            needed = f"{b.alignment} (buffer), {1 if p.buffer in self.followers else region.alignment}"
            message = f"{b.name} lies at {p.offset}; alignment: {needed} (region)"
            yield Violation("alignment", message)
        fixed = np.isin(self.buffer, list(problem.columns.offsets))
        for p, b, _ in self._placements(fixed):
            if p.offset != b.offset and p.region in b.regions:
                yield Violation("fixed_offset", f"{b.name} lies at {p.offset}, must at {b.offset}")
        for p, b, region in self._placements(~self.usable):
            if region.addressable:
                yield Violation("region", f"{b.name} lies in {p.region}, allowed: {b.regions}")
        room = [r.capacity_bytes for r in problem.regions]
        limit = self.column(0 if r is None else r for r in room)[self.region]
        limited = np.array([r is not None for r in room], np.bool_)[self.region]
        for p, b, region in self._placements(self.holds & limited & (ends > limit)):
            message = f"{p.region} has {region.capacity_bytes or 0:,} B"
            yield Violation("capacity", f"{b.name} ends at {p.offset + b.size_bytes:,} B, {message}")

    def lifetimes(self) -> Iterator[Violation]:
        """Every buffer is placed for its lifetime, and addressable wherever it is touched."""
        import numpy as np

        buffers = self.problem.buffers
        first, last = self.first.copy(), self.last.copy()
        first[self.buffer], last[self.buffer] = self.start, self.end
        np.minimum.at(first, self.buffer, self.start)
        np.maximum.at(last, self.buffer, self.end)
        for i in np.flatnonzero((first != self.first) | (last != self.last)).tolist():
            placed = f"[{first[i]}, {last[i]}), lives [{self.first[i]}, {self.last[i]})"
            yield Violation("lifetime", f"{buffers[i].name} is placed during {placed}")
        for _, b, _ in self._placements(self.start > self.end):
            yield Violation("lifetime", f"{b.name} has a placement that ends before it starts")
        there = np.zeros(len(buffers), np.int64)
        there[self.buffer] = np.arange(len(self.buffer))
        at = there[self.touched]
        reached = self.usable[at] & (self.start[at] <= self.touching) & (self.touching < self.end[at])
        for k in np.flatnonzero(~reached).tolist():
            i, position = int(self.touched[k]), int(self.touching[k])
            segments = self.segments[i]
            if not any(s.start <= position < s.end and self.is_usable(s) for s in segments):
                message = f"is touched at position {position} where it is not addressable"
                yield Violation("use_after_eviction", f"{buffers[i].name} {message}")

    def copies(self) -> Iterator[Violation]:
        """Buffers change regions by copies, from where they lie to where they will."""
        arrivals = {(t.buffer, t.step, t.target) for t in self.plan.transfers}
        moves = len(self.plan.placements) > len(self.problem.buffers)
        for i, segments in self.segments.items() if moves else ():
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
            positions = self.touching[self.touched == t.buffer].tolist()
            for s in self.segments[t.buffer]:
                if s.region != t.source or not s.start < t.step <= s.end or self.is_usable(s):
                    continue
                written = [p for p in positions if s.start <= p < t.step]
                steps = [self.problem.steps[self.plan.order[p]] for p in written]
                if any(t.buffer in step.writes for step in steps):
                    name = self.problem.buffers[t.buffer].name
                    message = f"{name} is fetched from {t.source} at {t.step}"
                    yield Violation("stale_copy", f"{message}, but was written since {s.start}")

    def overlaps(self) -> Iterator[Violation]:
        """Boxes of one region that are there at the same time are disjoint."""
        for region, index in self.regions.items():
            yield from self._sweep(region, self.region[self.of] == index)

    def _sweep(self, region: str, mine: Any) -> Iterator[Violation]:
        """Walk through time with the disjoint boxes there by address; others are reported, left out."""
        import numpy as np

        base = self.offset[self.of[mine]]
        lows, highs = (base + self.low[mine]).tolist(), (base + self.high[mine]).tolist()
        times = np.concatenate((self.until[mine], self.begin[mine]))  # of equal times, ends come first
        there: list[int] = []
        box: dict[int, int] = {}
        count, find = len(lows), bisect.bisect_left
        for event in np.argsort(times, kind="stable").tolist():
            if event < count:
                if box.get(lows[event]) == event:
                    del there[find(there, lows[event])]
                continue
            new = event - count
            low, high = lows[new], highs[new]
            at = find(there, low)
            if at and highs[box[there[at - 1]]] > low:
                met = box[there[at - 1]]
            elif at < len(there) and there[at] < high:
                met = box[there[at]]
            else:
                there.insert(at, low)
                box[low] = new
                continue
            pair = self.buffer[self.of[mine][[met, new]]].tolist()
            names = " and ".join(self.problem.buffers[i].name for i in pair)
            common = f"[{max(low, lows[met])}, {min(high, highs[met])})"
            message = f"{names} share bytes {common} of {region} at {times[event]}"
            yield Violation("overlap", message)

    def groups(self) -> Iterator[Violation]:
        """The buffers of a group lie one directly behind the other wherever steps can touch them."""
        for group in self.problem.adjacent:
            places, below = set(), 0
            for i in group:
                usable = [s for s in self.segments[i] if self.is_usable(s)]
                places |= {(s.region, s.offset - below) for s in usable}
                below += self.problem.buffers[i].size_bytes
            if len(places) > 1:
                names = ", ".join(self.problem.buffers[i].name for i in group)
                yield Violation("adjacent", f"{names} do not lie one directly behind the other")

    def heights(self) -> Iterator[Violation]:
        """The stated heights are the highest ends, and all that are shared stay within the total."""
        ends, tops = self.offset + self.size[self.buffer], {}
        for region, index in self.regions.items():
            top = tops[region] = int(ends[self.holds & (self.region == index)].max(initial=0))
            stated = dict(self.plan.peaks).get(region, 0)
            if stated != top:
                yield Violation("height", f"{region} is {top:,} B high, the plan says {stated:,} B")
        shared, most = self.problem.shared, self.problem.total_bytes
        if most is not None and (total := sum(tops[name] for name in shared)) > most:
            message = f"take {total:,} B, together they have {most:,} B"
            yield Violation("capacity", f"{'+'.join(shared)} {message}")

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
        names = [region] if decision == "allocate" else region.split("+")
        if len(set(names)) != len(names) or not {*names} <= {r.name for r in self.problem.regions}:
            return "it names no region"
        if decision not in ("schedule", "allocate", "stream", "assign"):
            return f"unknown decision {decision!r}"
        if decision == "assign":
            value = self._cost(region)
        else:
            live = int(self.live_levels(region)[1].max())
            value = self.plan.peak_bytes(region) if decision == "allocate" else live
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
        """What is wrong with the argument behind a bound; an exhausted search cannot be replayed, nor
        one of cuts, of which the problem knows only the one that was made."""
        steps, horizon = range(len(self.problem.steps)), range(max(self.problem.horizon, 1))
        kinds: dict[str, tuple[range | None, Callable[[], int]]] = {
            "live": (horizon, lambda: self._live_at(c.witness[0], region)),
            "padded": (horizon, lambda: self._padded_at(c.witness[0], region)),
            "fixed": (None, lambda: self._fixed_end(region)),
            "boundary": (None, lambda: self._boundary(region)),
            "fastest": (None, lambda: self._fastest(region)),
            "working_set": (steps, lambda: self._working_set(c.witness[0], region)),
            "closure": (steps, lambda: self._closure(c.witness[0], region)),
        }
        known = {"stream": ("cuts",), "assign": ("fastest", "exhaustive")}.get(decision)
        if c.bound_kind not in known if known else c.bound_kind in ("cuts", "fastest"):
            return f"a {c.bound_kind} bound says nothing of what is decided"
        if c.bound_kind in ("exhaustive", "cuts"):
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
        times, levels = self.live_levels(region)
        return int(levels[times.searchsorted(position, "right") - 1])

    def _padded_at(self, position: int, region: str) -> int:
        """Bytes live at ``position`` when each buffer but the highest is padded to the alignment that
        all of ``region`` have in common; nothing where gaps or adjacent buffers let others in there."""
        import numpy as np

        mine = self.region[self.of] == self.regions[region]
        owner, size = self.buffer[self.of[mine]], (self.high - self.low)[mine]
        apart = len(np.unique(self.of[mine])) == len(owner) and not self.followers & set(owner.tolist())
        if not apart or (size != self.size[owner]).any():
            return 0
        own = self.problem.region(region).alignment
        common = gcd(*(lcm(own, a) for a in {self.problem.buffers[i].alignment for i in owner})) or 1
        live = size[(self.begin[mine] <= position) & (position < self.until[mine])]
        pads = -live % common
        return int(live.sum() + pads.sum() - pads.max(initial=0))

    def _cost(self, region: str) -> int:
        """Bytes accessed in ``region``, each times its cost, where no buffer changes regions."""
        home, costs = self.home(region), {r.name: r.cost for r in self.problem.regions}
        lies = {p.buffer: costs[p.region] for p in self.plan.placements}
        return sum(b.accessed_bytes * lies[i] for i, b in enumerate(self.problem.buffers) if home[i])

    def _fastest(self, region: str) -> int:
        """``_cost`` if each buffer of ``region`` lay where it costs least."""
        home, costs = self.home(region), {r.name: r.cost for r in self.problem.regions}
        mine = (b for i, b in enumerate(self.problem.buffers) if home[i])
        return sum(b.accessed_bytes * min(costs[name] for name in b.regions) for b in mine)

    def _fixed_end(self, region: str) -> int:
        """The highest end of a buffer that lies in ``region`` for good and has a fixed offset, its
        own or that of an adjacent one."""
        buffers = self.problem.buffers
        fixed = {i: b.offset for i, b in enumerate(buffers) if b.offset is not None}
        for group in self.problem.adjacent:
            below = accumulate((buffers[i].size_bytes for i in group), initial=0)
            places = dict(zip(group, below, strict=False))
            for base in [fixed[i] - places[i] for i in group if i in fixed]:
                fixed |= {i: base + place for i, place in places.items()}
        held = set(self.buffer[self.of].tolist())
        home = self.home(region)
        ends = (
            fixed[i] + b.size_bytes
            for i, b in enumerate(buffers)
            if i in fixed
            and i in held
            and home[i]
            and (b.regions == (region,) or not self.plan.transfers)
        )
        return max(ends, default=0)

    def _boundary(self, region: str) -> int:
        """Bytes live before the first step or after the last, whichever is more."""
        home = self.home(region)
        return max(int(self.size[home & there].sum()) for there in (self.live_in, self.live_out))

    def _closure(self, index: int, region: str) -> int:
        return closure(self.problem, index, self.home(region))

    def _working_set(self, index: int, region: str) -> int:
        """Bytes that must be live while step ``index`` runs, whatever the order.

        Buffers that are live throughout count beside those that the step touches; if the plan moves
        buffers, only those that the step touches and that may lie nowhere else.
        """
        import numpy as np

        touched = np.zeros(len(self.size), np.bool_)
        touched[list(self.problem.steps[index].touches)] = True
        if self.plan.transfers:
            only = [b.regions == (region,) for b in self.problem.buffers]
            needed = touched & np.array(only, np.bool_)
        else:
            needed = self.home(region) & (touched | (self.live_in & self.live_out))
        return int(self.size[needed].sum())
