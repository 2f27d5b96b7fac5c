"""Problems and valid plans for tests: random graphs placed by first fit, independent of the solvers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

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
)

KINDS = ("conv2d", "linear", "softmax", "gelu", "layer_norm", "add", "matmul", "embedding")


def random_problem(
    steps: int, seed: int = 0, capacity: int | None = None, weights: bool = True
) -> Problem:
    """A chain with skip connections: step i reads up to three recent tensors and writes one."""
    rng = random.Random(seed)
    regions = (
        Region("sram", capacity, 16, "scratchpad"),
        Region("flash", 1 << 24, 16, "flash", addressable=True),
    )
    buffers = [Buffer("image", 3 * 64 * 64, ("sram",), 16, "input", live_in=True, shape="(3, 64, 64)")]
    activations, nodes, writer = [0], [], {}
    for i in range(steps):
        kind = rng.choice(KINDS)
        where = f"model.py:{20 + rng.randrange(12)}"
        recent = activations[-6:]
        reads = sorted({activations[-1], *rng.sample(recent, min(len(recent), rng.randrange(3)))})
        if weights and kind in ("conv2d", "linear", "embedding"):
            size = rng.choice((144, 576, 1152, 4608))
            name = f"blocks.{i}.weight"
            buffers.append(
                Buffer(name, size, ("flash",), 16, "weight", True, shape=f"({size},)", dtype="i8")
            )
            reads.append(len(buffers) - 1)
        side = rng.choice((8, 16, 32, 48))
        channels = rng.choice((8, 16, 24))
        last = i == steps - 1
        buffers.append(
            Buffer(
                f"{kind}_{i}",
                channels * side * side,
                ("sram",),
                16,
                "output" if last else "scratch" if rng.random() < 0.05 else "intermediate",
                live_out=last,
                shape=f"({channels}, {side}, {side})",
                dtype="i8",
                where=where,
            )
        )
        written = len(buffers) - 1
        after = tuple(sorted({writer[b] for b in reads if b in writer}))
        writer[written] = i
        nodes.append(Step(f"{kind}.{i}", tuple(reads), (written,), after, kind, where))
        activations.append(written)
    return Problem("random", regions, tuple(buffers), tuple(nodes))


def first_fit(problem: Problem, order: tuple[int, ...] | None = None, slack: int = 0) -> Plan:
    """Place each buffer at the lowest free address, in order of birth, ``slack`` bytes apart.

    The certificates are honest: the bound of an arena is its live peak, that of a schedule the
    largest working set of a step.
    """
    order = tuple(range(len(problem.steps))) if order is None else order
    spans = problem.lifetimes(order)
    region_of = [b.regions[0] for b in problem.buffers]
    live: dict[str, list[tuple[int, int, int]]] = {r.name: [] for r in problem.regions}
    placements, peaks = [], {r.name: 0 for r in problem.regions}
    for i in sorted(range(len(problem.buffers)), key=lambda i: (spans[i][0], i)):
        (start, end), b, name = spans[i], problem.buffers[i], region_of[i]
        live[name] = [e for e in live[name] if e[2] > start]
        offset = 0
        for low, high, _ in sorted(live[name]):
            if offset + b.size_bytes <= low:
                break
            align = max(b.alignment, problem.region(name).alignment)
            offset = max(offset, -(-(high + slack) // align) * align)
        live[name].append((offset, offset + b.size_bytes, end))
        placements.append(Placement(i, name, offset, start, end))
        if end > start:
            peaks[name] = max(peaks[name], offset + b.size_bytes)
    plan = Plan(problem.digest, order, tuple(placements), peaks=tuple(peaks.items()))
    return replace(plan, certificates=tuple(_certificates(problem, plan)))


def _live(problem: Problem, plan: Plan, region: str) -> list[int]:
    delta = [0] * (problem.horizon + 1)
    for p in plan.placements:
        if p.region == region:
            delta[p.start] += problem.buffers[p.buffer].size_bytes
            delta[p.end] -= problem.buffers[p.buffer].size_bytes
    return list(accumulate(delta))


def _certificates(problem: Problem, plan: Plan) -> Iterator[Certificate]:
    main = problem.regions[0].name
    for region in problem.regions:
        name, live = region.name, _live(problem, plan, region.name)
        peak, height = max(live), plan.peak_bytes(region.name)
        at, done = (live.index(peak),), "optimal" if peak == height else "feasible"
        yield Certificate(f"allocate:{name}", height, peak, "live", done, "first-fit", 0, 0.01, at)
        if name == main and problem.steps:
            buffers = problem.buffers
            needs = [
                sum(buffers[b].size_bytes for b in s.touches if buffers[b].regions[0] == main)
                for s in problem.steps
            ]
            least = max(needs)
            done, at = "optimal" if least == peak else "feasible", (needs.index(least),)
            yield Certificate(f"schedule:{main}", peak, least, "working_set", done, "given", 0, 0.2, at)


def plan_file(
    steps: int = 40, seed: int = 0, capacity: int | None = 160 << 10, slack: int = 0
) -> PlanFile:
    """A plan file of a random graph, valid under ``check``."""
    problem = random_problem(steps, seed, capacity)
    return PlanFile(
        problem, first_fit(problem, slack=slack), "mplan test", f"tiny-net-{seed}", "stm32f746"
    )


def spilled_plan_file() -> PlanFile:
    """A chain in which ``t1`` waits in ``dram`` from step 2 to step 9, where it is read again."""
    regions = (Region("sram", 8192, 16), Region("dram", None, 16, addressable=False))
    buffers = tuple(
        Buffer(f"t{i}", 1024 + 512 * (i % 3), ("sram",), 16, live_in=i == 0, live_out=i == 11)
        for i in range(12)
    )
    steps = [Step(f"op{i}", (i,), (i + 1,), (i - 1,) if i else (), "op") for i in range(11)]
    steps[9] = replace(steps[9], reads=(9, 1), after=(0, 8))
    problem = Problem("spill", regions, buffers, tuple(steps))
    placements = [
        Placement(i, "sram", 0 if i % 2 else 2048, start, end)
        for i, (start, end) in enumerate(problem.lifetimes(range(11)))
        if i != 1
    ]
    stays = (("sram", 0, 0, 2), ("dram", 0, 2, 9), ("sram", 4096, 9, 10))
    placements += [Placement(1, *stay) for stay in stays]
    copies = (Transfer(2, 1, "sram", "dram"), Transfer(9, 1, "dram", "sram"))
    plan = Plan(
        problem.digest, tuple(range(11)), tuple(placements), copies, (("sram", 5632), ("dram", 1536))
    )
    return PlanFile(problem, plan, "mplan test", "spill", "two-level")
