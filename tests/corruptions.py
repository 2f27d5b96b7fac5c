"""Plan files of many kinds, and every way to change one field of a plan for the worse.

A corruption is a path into the JSON document, a new value, and the reasons of which the checker must
give one when all digests are made to fit again; no reason means that only the seal can tell.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mplan.ir.plan import (
    Buffer,
    Certificate,
    Placement,
    Plan,
    PlanFile,
    Problem,
    Region,
    Step,
    Transfer,
    content_digest,
)
from mplan.passes.planner import solve

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Corruption:
    """Set ``path`` to ``value`` (delete it if ``value`` is DELETE)."""

    path: Path
    value: Any
    reasons: frozenset[str]

    def apply(self, document: dict[str, Any], reseal: bool) -> dict[str, Any]:
        changed = copy.deepcopy(document)
        parent: Any = changed
        for key in self.path[:-1]:
            parent = parent[key]
        if self.value is DELETE:
            del parent[self.path[-1]]
        else:
            parent[self.path[-1]] = self.value
        if reseal:
            changed["content_digest"] = content_digest(changed)
        return changed


class _Delete:
    def __repr__(self) -> str:
        return "DELETE"


DELETE = _Delete()


def plan_files() -> Iterator[PlanFile]:
    """Eight random graphs, six problems without steps, six plans that move buffers."""
    for seed in range(8):
        problem = _graph(seed)
        yield PlanFile(problem, solve(problem, solver="auto", limit_s=5), "test", f"g{seed}", "t")
    for seed in range(6):
        problem = _rectangles(seed)
        yield PlanFile(problem, solve(problem, solver="greedy", limit_s=5), "test", f"c{seed}", "t")
    for seed in range(6):
        yield _spilling(seed)


def _graph(seed: int) -> Problem:
    """A chain with skips; even seeds limit the arena, all pin weights in flash."""
    rng = random.Random(seed)
    count = 5 + seed
    capacity = 1 << 14 if seed % 2 == 0 else None
    regions = (Region("sram", capacity, 8), Region("flash", 1 << 14, 4))
    buffers = [Buffer("in", 48, ("sram",), 8, "input", live_in=True)]
    steps = []
    for i in range(count):
        buffers.append(Buffer(f"t{i}", rng.randrange(1, 40) * 8, ("sram",), 8, live_out=i == count - 1))
        reads = sorted({i, max(0, i - rng.randrange(1, 4))})
        after = tuple(r - 1 for r in reads if r)
        steps.append(Step(f"op{i}", tuple(reads), (i + 1,), after, "op", f"m.py:{i}"))
    weight = Buffer("w", 100, ("flash",), 4, "weight", live_in=True, live_out=True, shape="(10, 10)")
    steps[0] = replace(steps[0], reads=(*steps[0].reads, len(buffers)))
    return Problem(f"graph{seed}", regions, (*buffers, weight), tuple(steps))


def _rectangles(seed: int) -> Problem:
    rng = random.Random(100 + seed)
    buffers = []
    for i in range(4 + seed):
        start = rng.randrange(20)
        end = start + rng.randrange(1, 12)
        buffers.append(Buffer(f"b{i}", rng.randrange(1, 30) * 4, ("arena",), 4, lifetime=(start, end)))
    if seed % 3 == 0:
        buffers.append(Buffer("pinned", 8, ("arena",), 4, lifetime=(0, 40), offset=0))
    return Problem(f"csv{seed}", (Region("arena", 4096, 4),), tuple(buffers))


def _spilling(seed: int) -> PlanFile:
    """A chain whose first tensor waits in ``dram`` while the others pass through ``sram``."""
    rng = random.Random(200 + seed)
    count = 6 + seed
    regions = (Region("sram", 1 << 13, 8), Region("dram", None, 8, addressable=False))
    sizes = [rng.randrange(1, 20) * 8 for _ in range(count + 1)]
    buffers = tuple(
        Buffer(f"t{i}", size, ("sram",), 8, live_in=i == 0, live_out=i == count)
        for i, size in enumerate(sizes)
    )
    steps = [Step(f"op{i}", (i,), (i + 1,), (i - 1,) if i else ()) for i in range(count)]
    steps[-1] = replace(steps[-1], reads=(0, count - 1))
    problem = Problem(f"spill{seed}", regions, buffers, tuple(steps))
    low, high = sizes[0], sizes[0] + max(sizes)
    placements = [
        Placement(i, "sram", low if i % 2 else high, *problem.lifetimes(range(count))[i])
        for i in range(1, count + 1)
    ]
    stays = (("sram", 0, 1), ("dram", 1, count - 1), ("sram", count - 1, count))
    placements += [Placement(0, region, 0, start, end) for region, start, end in stays]
    copies = (Transfer(1, 0, "sram", "dram"), Transfer(count - 1, 0, "dram", "sram"))
    top = max(p.offset + sizes[p.buffer] for p in placements)
    plan = Plan(
        problem.digest, tuple(range(count)), tuple(placements), copies, (("sram", top), ("dram", low))
    )
    return PlanFile(problem, replace(plan, certificates=_certificates(problem, plan)), "test", "s", "t")


def _certificates(problem: Problem, plan: Plan) -> tuple[Certificate, ...]:
    sizes = [b.size_bytes for b in problem.buffers]
    levels = [
        sum(sizes[p.buffer] for p in plan.placements if p.region == "sram" and p.start <= t < p.end)
        for t in range(problem.horizon)
    ]
    needs = [sum(sizes[i] for i in s.touches) for s in problem.steps]
    pairs = (
        ("schedule:sram", max(levels), max(needs), "working_set", needs.index(max(needs))),
        ("allocate:sram", plan.peak_bytes("sram"), max(levels), "live", levels.index(max(levels))),
    )
    return tuple(
        Certificate(
            subject, value, low, kind, "optimal" if low == value else "feasible", "hand", 1, 0.5, (at,)
        )
        for subject, value, low, kind, at in pairs
    )


def corruptions(file: PlanFile) -> Iterator[Corruption]:
    """Every field of the plan, changed in every way that makes the plan wrong."""
    yield _one(("plan", "problem"), "0" * 64, "digest")
    yield _one(("producer",), "someone else")
    yield _one(("model",), "another model")
    yield _one(("target",), "another target")
    for part in (_of_order, _of_placements, _of_transfers, _of_peaks, _of_certificates, _of_problem):
        yield from part(file)


def _one(path: Path, value: Any, *reasons: str) -> Corruption:
    return Corruption(path, value, frozenset(reasons))


def _of_order(file: PlanFile) -> Iterator[Corruption]:
    order = list(file.plan.order)
    place = {s: p for p, s in enumerate(order)}
    for i, step in enumerate(file.problem.steps):
        for before in step.after:
            swapped = list(order)
            swapped[place[i]], swapped[place[before]] = before, i
            yield _one(("plan", "order"), swapped, "order")
    for p, step in enumerate(order):
        yield _one(("plan", "order", p), len(order), "order")
        yield _one(("plan", "order", p), order[p - 1] if len(order) > 1 else step + 1, "order")
    yield _one(("plan", "order"), [*order, len(order)], "order")


def _of_placements(file: PlanFile) -> Iterator[Corruption]:
    problem, plan = file.problem, file.plan
    times = [sum(q.buffer == p.buffer for q in plan.placements) for p in plan.placements]
    for k, p in enumerate(plan.placements):
        path = ("plan", "placements", k)
        b, region = problem.buffers[p.buffer], problem.region(p.region)
        moved = ("lifetime", "missing_copy", "use_after_eviction")
        yield (
            _one(path, DELETE, "reference", *moved) if times[k] > 1 else _one(path, DELETE, "reference")
        )
        yield _one((*path, "buffer"), len(problem.buffers), "reference")
        yield _one((*path, "buffer"), -1, "reference")
        other = (p.buffer + 1) % len(problem.buffers)
        yield _one((*path, "buffer"), other, "reference", *moved)
        yield _one((*path, "region"), "nowhere", "reference")
        for r in problem.regions:
            if r.name != p.region:
                yield _one((*path, "region"), r.name, "region", "use_after_eviction", *moved, "height")
        yield _one((*path, "offset"), -b.alignment * region.alignment, "alignment")
        yield _one((*path, "offset"), p.offset + 1, "alignment")
        high = plan.peak_bytes(p.region) + b.alignment * region.alignment
        aligned = high + -high % (b.alignment * region.alignment)
        if p.end > p.start:
            yield _one((*path, "offset"), aligned, "height")
        for start in (p.start - 1, p.start + 1):
            yield _one((*path, "start"), start, "lifetime", "missing_copy", "use_after_eviction")
        late = (*moved, "overlap")
        for end in (p.end - 1, p.end + 1, p.end + 1_000):
            if times[k] == 1:
                yield _one((*path, "end"), end, "lifetime")
            elif end < p.end:
                yield _one((*path, "end"), end, *late)
    yield _one(
        ("plan", "placements"),
        [*_json(plan.placements), *_json(plan.placements[:1])],
        "overlap",
        "missing_copy",
    )


def _of_transfers(file: PlanFile) -> Iterator[Corruption]:
    for k, t in enumerate(file.plan.transfers):
        path = ("plan", "transfers", k)
        yield _one(path, DELETE, "missing_copy")
        for step in (t.step - 1, t.step + 1):
            yield _one((*path, "step"), step, "missing_copy")
        yield _one((*path, "step"), -1, "reference")
        yield _one((*path, "step"), file.problem.horizon + 1, "reference")
        yield _one((*path, "buffer"), t.buffer + 1, "missing_copy")
        yield _one((*path, "buffer"), len(file.problem.buffers), "reference")
        for end in ("source", "target"):
            yield _one((*path, end), "nowhere", "reference")
            yield _one((*path, end), t.target if end == "source" else t.source, "missing_copy")
    extra = {"step": 0, "buffer": 0, "source": "arena", "target": "arena"}
    name = file.problem.regions[0].name
    extra["source"] = extra["target"] = name
    yield _one(("plan", "transfers"), [*_json(file.plan.transfers), extra], "missing_copy")


def _of_peaks(file: PlanFile) -> Iterator[Corruption]:
    for k, (_, height) in enumerate(file.plan.peaks):
        path = ("plan", "peaks", k)
        yield _one((*path, 0), "nowhere", "reference")
        for value in (height - 1, height + 1):
            yield _one((*path, 1), value, "height")
        if height:
            yield _one(path, DELETE, "height")
    twice = [*file.plan.peaks, file.plan.peaks[0]]
    yield _one(("plan", "peaks"), [list(p) for p in twice], "reference")


def _of_certificates(file: PlanFile) -> Iterator[Corruption]:
    for k, c in enumerate(file.plan.certificates):
        path = ("plan", "certificates", k)
        decision = c.subject.partition(":")[0]
        for subject in (f"{decision}:nowhere", f"guess:{file.problem.regions[0].name}", "", decision):
            yield _one((*path, "subject"), subject, "bound")
        for value in (c.value_bytes - 1, c.value_bytes + 1):
            yield _one((*path, "value_bytes"), value, "bound")
        yield _one((*path, "lower_bound_bytes"), c.lower_bound_bytes + 1, "bound")
        yield _one((*path, "lower_bound_bytes"), -1, "bound")
        replayed = c.bound_kind != "exhaustive" or c.status == "optimal"
        lower = ("bound",) if replayed else ()
        if c.lower_bound_bytes:
            yield _one((*path, "lower_bound_bytes"), c.lower_bound_bytes - 1, *lower)
        for status in {"optimal", "feasible", "infeasible"} - {c.status}:
            yield _one((*path, "status"), status, "bound")
        yield _one((*path, "bound_kind"), "guess", "bound")
        if decision == "schedule":
            yield _one((*path, "bound_kind"), "live", "bound")
        if c.bound_kind != "exhaustive":
            yield _one((*path, "witness"), [10**9], "bound")
            yield _one((*path, "witness"), [*c.witness, 0], "bound")
        for key, value in (("solver", "another"), ("seed", c.seed + 1), ("seconds", c.seconds + 1)):
            yield _one((*path, key), value)
    if file.plan.certificates:
        again = [*_json(file.plan.certificates), *_json(file.plan.certificates[:1])]
        yield _one(("plan", "certificates"), again, "bound")


def _of_problem(file: PlanFile) -> Iterator[Corruption]:
    """The problem's own fields: what counts changes its digest, the rest breaks the seal."""
    yield _one(("problem", "name"), "renamed")
    for k, b in enumerate(file.problem.buffers):
        path = ("problem", "buffers", k)
        yield _one((*path, "size_bytes"), b.size_bytes + 8, "digest")
        yield _one((*path, "size_bytes"), -1, "problem")
        yield _one((*path, "alignment"), 0, "problem")
        yield _one((*path, "alignment"), b.alignment * 2, "digest")
        yield _one((*path, "live_in"), not b.live_in, "digest")
        yield _one((*path, "live_out"), not b.live_out, "digest")
        yield _one((*path, "regions"), ["nowhere"], "problem")
        yield _one((*path, "offset"), 8 if b.offset is None else None, "digest")
        yield _one((*path, "lifetime"), [3, 2], "problem")
        for key in ("name", "shape", "dtype", "where"):
            yield _one((*path, key), "changed")
        yield _one((*path, "kind"), "scratch" if b.kind != "scratch" else "input")
    for k, s in enumerate(file.problem.steps):
        path = ("problem", "steps", k)
        yield _one((*path, "after"), [k], "problem")
        yield _one((*path, "reads"), [len(file.problem.buffers)], "problem")
        yield _one((*path, "writes"), [], "digest") if s.writes else _one((*path, "name"), "renamed")
        for key in ("name", "kind", "where"):
            yield _one((*path, key), "changed")
    for k, r in enumerate(file.problem.regions):
        path = ("problem", "regions", k)
        yield _one((*path, "capacity_bytes"), (r.capacity_bytes or 0) + 4096, "digest")
        yield _one((*path, "alignment"), 0, "problem")
        yield _one((*path, "addressable"), not r.addressable, "digest")
        yield _one((*path, "kind"), "changed")


def _json(rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(r).items()} for r in rows]
