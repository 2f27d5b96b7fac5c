"""Many buffers shared out between memories: an answer whatever the limit, a good one in time."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mplan.ir.plan import Problem, Region
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
