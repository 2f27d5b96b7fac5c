"""Many buffers or bodies shared out between memories: an answer whatever the limit, better in time."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mplan.diagnostics import InfeasibleError
from mplan.ir.check import check
from mplan.ir.plan import Buffer, Extent, Problem, Region
from mplan.passes.live import live_peak
from mplan.passes.planner import solve

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from planner_generated import skips


def shared(slow: Region) -> Problem:
    """A quarter of what lives at once has room in the fast region."""
    rng, plain = random.Random(1), skips(1_200)
    quarter = live_peak(plain, range(len(plain.steps)), "arena")[0] // 4
    buffers = tuple(
        replace(b, regions=("fast", "slow"), accessed_bytes=b.size_bytes * rng.randint(1, 9))
        for b in plain.buffers
    )
    return replace(plain, regions=(Region("fast", quarter, 4, cost=1), slow), buffers=buffers)


@pytest.mark.parametrize("room", [None, 120_000])
def test_many_buffers_are_shared_out_without_time(room: int | None) -> None:
    problem = shared(Region("slow", room, 8, cost=5))
    plan = solve(problem, limit_s=0)
    found, fast = plan.certificate("assign:fast+slow"), problem.regions[0].capacity_bytes or 0
    assert found is not None and plan.peak_bytes("fast") > fast / 10
    assert found.value_bytes < 5 * sum(b.accessed_bytes for b in problem.buffers)


def test_many_buffers_are_shared_out_better_in_time() -> None:
    problem = shared(Region("slow", None, 4, cost=5))
    quick = solve(problem, limit_s=0).certificate("assign:fast+slow")
    started = time.monotonic()
    found = solve(problem, limit_s=8).certificate("assign:fast+slow")
    assert time.monotonic() - started < 8 * 1.1 + 1
    assert found is not None and quick is not None and found.value_bytes < quick.value_bytes


def bodies(seed: int) -> Problem:
    """A few buffers with gaps, many of them side by side, in two or three regions with little room."""
    rng = random.Random(seed)
    names = tuple("abc"[: rng.choice((2, 2, 3))])
    buffers = []
    for i in range(rng.randint(6, 14)):
        size, start = rng.randint(1, 9), rng.randint(0, 6)
        end = start + rng.randint(1, 5)
        gaps: tuple[Extent, ...] = ()
        if end - start > 1 and rng.random() < 0.5:
            at = rng.randint(start, end - 1)
            low = rng.randint(0, size)
            gaps = (Extent(at, rng.randint(at + 1, end), low, rng.randint(low, size)),)
        b = Buffer(f"b{i}", size, names, lifetime=(start, end), gaps=gaps)
        buffers.append(replace(b, accessed_bytes=rng.randint(0, 20)))
    ids = rng.sample(range(len(buffers)), len(buffers))
    adjacent = tuple((ids.pop(), ids.pop()) for _ in range(rng.randint(0, 3)))
    spans = [(b.size_bytes, *(b.lifetime or (0, 0))) for b in buffers]
    live = max(sum(size for size, start, end in spans if start <= t < end) for t in range(12))
    regions = tuple(
        Region(name, max(3, int(live * rng.uniform(0.2, 0.6))), rng.choice((1, 1, 2)), cost=i + 1)
        for i, name in enumerate(names)
    )
    return Problem("bodies", regions, tuple(buffers), adjacent=adjacent)


@pytest.mark.parametrize("seed", (*range(20), 191, 336, 1309, 1895, 1979, 2280, 2362, 2541))
def test_bodies_that_do_not_find_their_places_again_are_no_error(seed: int) -> None:
    """Of those behind the first twenty, bodies that move down collide with others."""
    problem = bodies(seed)
    for solver in ("greedy", "auto"):
        try:
            assert check(problem, solve(problem, solver=solver, limit_s=0.02)) == ()
        except InfeasibleError as error:
            assert error.code == "MP228"
