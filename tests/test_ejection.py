"""Ejection: the box that ends highest goes lower, and what it pushes out is put back."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.ir.check import check
from mplan.ir.plan import Buffer, Extent, Plan, Problem, Region
from mplan.passes.allocate import Allocated, OverBudget, allocate, ejection
from mplan.passes.allocate.columns import Columns, columns_of
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import from_problem
from mplan.passes.allocate.skyline import place_many
from mplan.passes.planner import place
from mplan.passes.prepare import prepare
from mplan.passes.solvers.interface import Deadline

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from planner_generated import skips


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """What is compiled counts against no limit."""
    prepare()


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


def _skyline(problem: Problem) -> tuple[Columns, Offsets]:
    """The boxes of ``problem`` at its captured order, and a skyline of them."""
    columns = columns_of(from_problem(problem, range(len(problem.steps)), "arena"))
    return columns, place_many(columns, columns.rank(("size", "width")))


@given(st.integers(1, 200), st.sampled_from((1, 8)), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_what_is_ejected_comes_back(count: int, alignment: int, rng: random.Random) -> None:
    problem = boxes(count, alignment, rng)
    first = allocate(problem, solver="none")
    found = allocate(problem, solver="ejection", limit_s=0.1)
    assert check(problem, plan_of(problem, found)) == ()
    assert found.height_bytes <= first.height_bytes


def test_an_attempt_that_fails_changes_nothing() -> None:
    columns, offsets = _skyline(skips(1_000))
    packing, deadline = ejection.Packing(columns, offsets, 0), Deadline(2)
    out_of_reach = int(columns.load.max()) // 2
    while packing.lower(out_of_reach, deadline):
        assert packing.offsets != offsets
        offsets = packing.offsets
    assert packing.offsets == offsets


def test_high_places_come_down() -> None:
    problem = skips(3_000)
    order = tuple(range(3_000))
    first = allocate(problem, order, solver="greedy", limit_s=20)
    found = allocate(problem, order, solver="ejection", limit_s=10)
    assert check(problem, plan_of(problem, found, order)) == ()
    assert found.certificate.solver == "ejection"
    assert found.certificate.gap < first.certificate.gap / 4


def test_a_seed_gives_the_same_packing() -> None:
    columns, offsets = _skyline(skips(1_000))
    packings = [ejection.Packing(columns, offsets, seed) for seed in (0, 0, 1)]
    for packing in packings:
        goal = packing.height * 9 // 10
        while packing.height > goal:
            assert packing.lower(goal, Deadline(20))
    assert packings[0].offsets == packings[1].offsets != packings[2].offsets


def test_many_buffers_fit_a_capacity_that_skylines_miss() -> None:
    problem, order = skips(13_000), tuple(range(13_000))
    greedy = allocate(problem, order, solver="greedy", limit_s=10)
    capacity = (greedy.certificate.lower_bound_bytes + greedy.height_bytes) // 2
    tight = replace(problem, regions=(Region("arena", capacity),))
    with pytest.raises(OverBudget, match="best placement found"):
        allocate(tight, order, solver="greedy", limit_s=10)
    plan = place(tight, order, limit_s=10)
    assert plan.peak_bytes("arena") <= capacity
    assert plan.certificate("allocate:arena").solver == "ejection"


def test_special_buffers_are_left_alone() -> None:
    problem = boxes(1_200, 1, random.Random(0))
    first, *others = problem.buffers
    first = replace(first, lifetime=(0, 9))
    for change in ({"offset": 0}, {"gaps": (Extent(2, 3),)}):
        special = replace(problem, buffers=(replace(first, **change), *others))
        found = allocate(special, solver="ejection", limit_s=2)
        assert check(special, plan_of(special, found)) == ()
        assert found.certificate.solver != "ejection"
