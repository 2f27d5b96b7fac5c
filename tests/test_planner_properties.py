"""Laws that every plan obeys, whatever solver made it: brute force, constraints, time, names, order."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest

from mplan.ir.check import check
from mplan.ir.dag_format import load_dag
from mplan.ir.plan import Buffer, Extent, Plan, Problem, Region, Step
from mplan.ir.problem_file import load_problem
from mplan.passes.allocate import OverBudget, allocate
from mplan.passes.live import live_peak
from mplan.passes.planner import solve
from mplan.passes.schedule import schedule
from tests.problems import is_valid, least_height

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

DATA = Path(__file__).parent / "data"


def small_graph(seed: int) -> Problem:
    """Up to five steps and six buffers: inputs, outputs, several results, mutation, alignment.

    Inputs that no step touches are left out: they are live for the first step, whichever it is.
    """
    rng = random.Random(seed)
    buffers: list[Buffer] = []
    steps: list[Step] = []
    writer: dict[int, int] = {}

    def buffer(live_in: bool = False) -> int:
        align, size = rng.choice((1, 1, 1, 2, 4)), rng.randint(0, 9)
        out = rng.random() < 0.2
        name = f"b{len(buffers)}"
        buffers.append(Buffer(name, size, ("arena",), align, live_in=live_in, live_out=out))
        return len(buffers) - 1

    for _ in range(rng.randint(0, 2)):
        buffer(live_in=True)
    for i in range(rng.randint(1, 5)):
        known = range(len(buffers))
        reads = set(rng.sample(known, min(len(buffers), rng.randint(0, 2))))
        after = {writer[b] for b in reads if b in writer}
        if (reads and rng.random() < 0.2) or len(buffers) >= 6:
            written = {rng.choice(sorted(reads or set(known)))}
            after |= {j for j, s in enumerate(steps) if written & s.touches}
        else:
            written = {buffer() for _ in range(min(rng.choice((1, 1, 1, 2)), 6 - len(buffers)))}
        writer |= dict.fromkeys(written, i)
        steps.append(Step(f"s{i}", tuple(sorted(reads)), tuple(sorted(written)), tuple(sorted(after))))
    used = set().union(*(s.touches for s in steps))
    buffers = [replace(b, live_in=b.live_in and i in used) for i, b in enumerate(buffers)]
    arena = Region("arena", None, rng.choice((1, 1, 2)))
    return Problem(f"small{seed}", (arena,), tuple(buffers), tuple(steps))


@cache
def orders(problem: Problem) -> list[tuple[int, ...]]:
    return [o for o in permutations(range(len(problem.steps))) if is_valid(problem, o)]


def peak(problem: Problem, order: tuple[int, ...]) -> int:
    return live_peak(problem, order, "arena")[0]


def boxes(problem: Problem, order: tuple[int, ...]) -> Problem:
    """The buffers with the lifetimes that ``order`` gives them."""
    spans = problem.lifetimes(order)
    fixed = tuple(
        replace(b, lifetime=s, live_in=False, live_out=False)
        for b, s in zip(problem.buffers, spans, strict=True)
    )
    return Problem(problem.name, problem.regions, fixed)


def least_arena(problem: Problem) -> int:
    """The least height over all orders and all placements."""
    best, seen = None, set()
    for order in sorted(orders(problem), key=lambda o: peak(problem, o)):
        if best is not None and peak(problem, order) >= best:
            break
        fixed = boxes(problem, order)
        if fixed.digest not in seen:
            seen.add(fixed.digest)
            height = least_height(fixed)
            assert height is not None
            best = height if best is None else min(best, height)
    assert best is not None
    return best


def bound(plan: Plan) -> int:
    """A lower bound on the arena of every plan."""
    certificate = plan.certificate("schedule:arena") or plan.certificate("allocate:arena")
    assert certificate is not None
    return certificate.lower_bound_bytes


@pytest.mark.slow
def test_brute_force_over_orders_and_placements_agrees() -> None:
    for seed in range(500):
        problem = small_graph(seed)
        plan = solve(problem, limit_s=20)
        assert check(problem, plan) == (), seed
        ordered = schedule(problem, limit_s=20).certificate
        assert ordered.value_bytes == min(peak(problem, o) for o in orders(problem)), seed
        assert ordered.status == "optimal", seed
        assert bound(plan) <= least_arena(problem) == plan.peak_bytes("arena"), seed


def constrained(problem: Problem, rng: random.Random) -> Problem:
    """The same problem with one more constraint, as far as it can have one."""
    i = rng.randrange(len(problem.buffers))
    b = problem.buffers[i]
    changed = rng.choice(
        (
            replace(b, size_bytes=b.size_bytes + rng.randint(1, 4)),
            replace(b, alignment=b.alignment * 2),
            replace(b, live_out=True),
            None,
        )
    )
    if changed is not None:
        return replace(problem, buffers=(*problem.buffers[:i], changed, *problem.buffers[i + 1 :]))
    later = rng.randrange(len(problem.steps))
    before = {*problem.steps[later].after, *range(later)} - {later}
    added = {rng.choice(sorted(before))} if before else set()
    step = problem.steps[later]
    step = replace(step, after=tuple(sorted({*step.after, *added})))
    return replace(problem, steps=(*problem.steps[:later], step, *problem.steps[later + 1 :]))


def test_a_constraint_never_lowers_the_optimum() -> None:
    raised = 0
    for seed in range(150):
        rng = random.Random(seed)
        problem = small_graph(seed)
        if not problem.buffers:
            continue
        before = solve(problem, limit_s=20)
        after = solve(constrained(problem, rng), limit_s=20)
        assert bound(before) <= bound(after), seed
        assert before.peak_bytes("arena") <= after.peak_bytes("arena"), seed
        raised += bound(before) < bound(after)
    assert raised > 20


def test_neighbours_raise_and_gaps_lower_the_least_height() -> None:
    raised = lowered = 0
    for seed in range(200):
        rng = random.Random(seed)
        graph = small_graph(seed)
        plain = boxes(graph, tuple(range(len(graph.steps))))
        free = tuple(replace(b, alignment=1) for b in plain.buffers)
        plain = replace(plain, buffers=free, regions=(Region("arena"),))
        height = allocate(plain, limit_s=20).height_bytes
        if len(plain.buffers) > 1:
            pair = tuple(rng.sample(range(len(plain.buffers)), 2))
            tied = allocate(replace(plain, adjacent=(pair,)), limit_s=20)
            low, high = (next(p for p in tied.placements if p.buffer == i) for i in pair)
            assert high.offset == low.offset + plain.buffers[pair[0]].size_bytes, seed
            assert tied.height_bytes >= height and tied.certificate.status == "optimal", seed
            raised += tied.height_bytes > height
        longest = max(range(len(plain.buffers)), key=lambda i: _length(plain.buffers[i]), default=0)
        if not plain.buffers or _length(plain.buffers[longest]) < 3:
            continue
        start, end = plain.buffers[longest].lifetime or (0, 0)
        gap = replace(plain.buffers[longest], gaps=(Extent(start + 1, end - 1),))
        buffers = (*plain.buffers[:longest], gap, *plain.buffers[longest + 1 :])
        loose = allocate(replace(plain, buffers=buffers), limit_s=20)
        assert loose.height_bytes <= height and loose.certificate.status == "optimal", seed
        lowered += loose.height_bytes < height
    assert raised > 10 and lowered > 10


def _length(buffer: Buffer) -> int:
    start, end = buffer.lifetime or (0, 0)
    return end - start


def test_a_smaller_capacity_is_met_or_refuted() -> None:
    for seed in range(120):
        problem = small_graph(seed)
        least = least_arena(problem)
        for capacity in (least, least - 1):
            tight = replace(problem, regions=(replace(problem.regions[0], capacity_bytes=capacity),))
            if capacity == least:
                assert solve(tight, limit_s=20).peak_bytes("arena") <= least, seed
            elif capacity >= 0:
                with pytest.raises(OverBudget):
                    solve(tight, limit_s=20)


@pytest.mark.parametrize("name", ["minimalloc/E.1048576.csv", "graphs/train_resnet18_b32.json"])
def test_more_time_never_gives_a_worse_plan(name: str) -> None:
    problem = load_problem(DATA / name)
    plans = [solve(problem, limit_s=limit_s) for limit_s in (0, 6)]
    heights = [p.peak_bytes("arena") for p in plans]
    assert heights[1] < heights[0]
    bounds = [bound(p) for p in plans]
    assert bounds[0] <= bounds[1]


def shuffled(problem: Problem, rng: random.Random) -> Problem:
    """The buffers and the steps in another order; the steps in a valid one."""
    order: list[int] = []
    while len(order) < len(problem.steps):
        ready = [
            i for i, s in enumerate(problem.steps) if i not in order and set(s.after) <= set(order)
        ]
        order.append(rng.choice(ready))
    place = {old: new for new, old in enumerate(order)}
    mixed = list(range(len(problem.buffers)))
    rng.shuffle(mixed)
    at = {old: new for new, old in enumerate(mixed)}

    def moved(step: Step) -> Step:
        reads, writes = (tuple(sorted(at[b] for b in ends)) for ends in (step.reads, step.writes))
        return replace(
            step, reads=reads, writes=writes, after=tuple(sorted(place[a] for a in step.after))
        )

    steps = tuple(moved(problem.steps[i]) for i in order)
    return replace(problem, buffers=tuple(problem.buffers[i] for i in mixed), steps=steps)


def test_names_do_not_count() -> None:
    for name in ("minimalloc/C.1048576.csv", "graphs/ind_vgg16_tr_1.json"):
        problem = load_problem(DATA / name)
        other = replace(
            problem,
            name="other",
            buffers=tuple(
                replace(b, name=f"z{i * 7919 % 997}.{i}") for i, b in enumerate(problem.buffers)
            ),
            steps=tuple(replace(s, name=f"y{i * 7919 % 997}.{i}") for i, s in enumerate(problem.steps)),
        )
        first, second = (solve(p, limit_s=60) for p in (problem, other))
        assert first.digest == second.digest


def test_the_order_of_buffers_and_steps_does_not_count() -> None:
    for seed in range(100):
        problem = small_graph(seed)
        same = [problem, *(shuffled(problem, random.Random(k)) for k in range(2))]
        plans = [solve(p, limit_s=20) for p in same]
        assert len({(bound(p), p.peak_bytes("arena")) for p in plans}) == 1, seed
    vgg = load_dag(DATA / "graphs" / "ind_vgg16_tr_1.json")
    mixed = solve(shuffled(vgg, random.Random(1)), limit_s=60)
    assert mixed.status == "optimal"
    assert mixed.peak_bytes("arena") == solve(vgg, limit_s=60).peak_bytes("arena")
    csv = load_problem(DATA / "minimalloc" / "C.1048576.csv")
    heights = {allocate(p, limit_s=60).height_bytes for p in (csv, shuffled(csv, random.Random(2)))}
    assert heights == {1_039_360}


# ---- Inductor on the same graphs ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("inference", "nasnet"),
        ("inference", "googlenet"),
        ("training", "gpt"),
        ("training", "vit"),
        ("splits", "autoencoder.backward"),
        ("splits", "autoencoder.forward"),
    ],
)
def test_orders_are_never_above_inductors(kind: str, name: str) -> None:
    from planner_peers import inductor_order
    from planner_sets import SETS

    problem = dict(SETS[kind]())[name]()
    region = problem.regions[0].name
    _, order, theirs = inductor_order(problem)
    assert is_valid(problem, order)
    ours = schedule(problem, limit_s=20).certificate
    assert ours.value_bytes <= theirs == live_peak(problem, order, region)[0]
    assert ours.gap <= 0.01
