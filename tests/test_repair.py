"""Repair: what lives around the buffers that end too high is packed anew."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.ir.check import check
from mplan.ir.plan import Buffer, Extent, Plan, Problem, Region
from mplan.passes import repair
from mplan.passes.allocate import Allocated, allocate
from mplan.passes.planner import place
from mplan.passes.solvers.interface import Deadline

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from planner_generated import skips


def boxes(count: int, alignment: int, rng: random.Random) -> Problem:
    """Buffers of fixed lifetimes; about ten live together."""
    buffers = []
    for i in range(count):
        start = rng.randrange(count)
        span = (start, start + rng.randrange(0, 20))
        size = rng.randrange(0, 50)
        buffers.append(Buffer(f"b{i}", size, ("arena",), alignment, lifetime=span))
    return Problem("boxes", (Region("arena"),), tuple(buffers))


def plan_of(problem: Problem, placed: Allocated, order: tuple[int, ...] = ()) -> Plan:
    """The plan that consists of ``placed``."""
    peaks = (("arena", placed.height_bytes),)
    facts = (placed.certificate,)
    return Plan(problem.digest, order, placed.placements, peaks=peaks, certificates=facts)


@given(st.integers(1, 60), st.sampled_from((1, 8)), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_what_is_repaired_holds_and_is_never_higher(
    count: int, alignment: int, rng: random.Random
) -> None:
    problem = boxes(count, alignment, rng)
    first = allocate(problem, solver="none")
    found = repair.repair(problem, (), "arena", first, Deadline(5), 0)
    assert check(problem, plan_of(problem, found)) == ()
    assert found.height_bytes <= first.height_bytes
    assert (found is first) == (found.height_bytes == first.height_bytes)


def test_high_places_come_down() -> None:
    problem = skips(3_000)
    order = tuple(range(3_000))
    first = allocate(problem, order, solver="greedy", limit_s=20)
    found = repair.repair(problem, order, "arena", first, Deadline(8), 0)
    assert check(problem, plan_of(problem, found, order)) == ()
    assert found.certificate.solver == "repair"
    assert found.certificate.gap < first.certificate.gap / 2


def test_plans_of_more_buffers_than_are_packed_as_a_whole_are_repaired() -> None:
    problem = skips(13_000)
    order = tuple(range(13_000))
    plan = place(problem, order, limit_s=10)
    greedy = allocate(problem, order, solver="greedy", limit_s=10)
    assert plan.peak_bytes("arena") < greedy.height_bytes
    assert plan.certificate("allocate:arena").solver == "repair"


def test_special_buffers_are_left_alone() -> None:
    problem = boxes(1_200, 1, random.Random(0))
    first, *others = problem.buffers
    first = replace(first, lifetime=(0, 9))
    assert repair.worthwhile(problem, "arena")
    assert not repair.worthwhile(replace(problem, buffers=problem.buffers[:900]), "arena")
    assert not repair.worthwhile(replace(problem, adjacent=((0, 1),)), "arena")
    for change in ({"offset": 0}, {"gaps": (Extent(2, 3),)}):
        special = (replace(first, **change), *others)
        assert not repair.worthwhile(replace(problem, buffers=special), "arena")
