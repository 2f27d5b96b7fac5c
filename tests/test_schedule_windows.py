"""Windows: an order that changes part by part keeps its books; large graphs gain within the limit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.ir.dag_format import load_dag
from mplan.ir.plan import Buffer, Problem, Region, Step
from mplan.passes.schedule import schedule
from mplan.passes.schedule.course import Course
from mplan.passes.schedule.cuts import bend
from mplan.passes.schedule.instance import from_problem
from mplan.passes.solvers.interface import Deadline
from tests.problems import graphs, is_valid, random_order

GRAPHS = Path(__file__).parent / "data" / "graphs"


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_window_holds_what_the_order_holds_there(problem: Problem, rng: random.Random) -> None:
    instance = from_problem(problem, "arena")
    if not instance.count:
        return
    course = Course(instance, random_order([s.after for s in problem.steps], rng))
    for _ in range(4):
        low = rng.randrange(instance.count)
        high = rng.randrange(low, instance.count) + 1
        local = course.window(low, high)
        assert local.profile(range(high - low)) == course.profile[low:high]
        inside = [course.steps[low + s] for s in random_order(local.preds, rng)]
        course.replace(low, inside)
        assert course.steps[low:high] == inside
        assert is_valid(problem, course.order)
        assert course.profile == instance.profile(course.order)


@given(graphs(), st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_the_interval_around_a_position_holds_it(
    problem: Problem, rng: random.Random, width: int
) -> None:
    instance = from_problem(problem, "arena")
    if not instance.count:
        return
    course = Course(instance, random_order([s.after for s in problem.steps], rng))
    for position in range(instance.count):
        low, high = course.around(position, width)
        assert 0 <= low <= position < high <= instance.count
        assert high - low <= width


@given(graphs(), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=100, deadline=None)
def test_cuts_bend_a_window_and_nothing_else(
    problem: Problem, rng: random.Random, thorough: bool
) -> None:
    instance = from_problem(problem, "arena")
    if not instance.count:
        return
    course = Course(instance, random_order([s.after for s in problem.steps], rng))
    position = rng.randrange(instance.count)
    low, high = course.around(position, min(5, instance.count))
    steps, profile = list(course.steps), list(course.profile)
    lowered = bend(course, position, 5, Deadline(60), thorough=thorough)
    assert is_valid(problem, course.order)
    assert course.profile == instance.profile(course.order)
    outside = (course.steps[:low], course.steps[high:], course.profile[:low], course.profile[high:])
    assert outside == (steps[:low], steps[high:], profile[:low], profile[high:])
    assert (max(course.profile[low:high]) < max(profile[low:high])) == lowered
    assert lowered or course.steps == steps


@pytest.mark.slow
def test_windows_lower_what_greedy_and_cuts_leave() -> None:
    problem = irregular(1_000)
    cuts = schedule(problem, solver="cuts", limit_s=60).certificate.value_bytes
    assert schedule(problem, solver="windows", limit_s=60).certificate.value_bytes < 0.98 * cuts


@pytest.mark.slow
def test_ten_thousand_irregular_steps_gain_within_the_limit() -> None:
    problem = irregular(10_000)
    greedy = schedule(problem, solver="greedy", limit_s=60).certificate.value_bytes
    ordered = schedule(problem, limit_s=15)
    assert is_valid(problem, ordered.order)
    assert ordered.certificate.seconds <= 18
    assert ordered.certificate.value_bytes < 0.95 * greedy


@pytest.mark.parametrize("name", ["hm_darts_cifar_6", "train_resnet18_b32"])
def test_a_longer_deadline_never_gives_a_worse_order(name: str) -> None:
    problem = load_dag(GRAPHS / f"{name}.json")
    found = [schedule(problem, limit_s=limit_s).certificate for limit_s in (0, 5)]
    values = [certificate.value_bytes for certificate in found]
    assert values[1] < values[0]


def irregular(count: int) -> Problem:
    """Steps that read results of steps before them, mostly of recent ones."""
    rng = random.Random(count)
    buffers = [Buffer("in", 1_000, ("arena",), live_in=True)]
    steps = []
    for i in range(count):
        ages = [1 + int(rng.expovariate(1 / 8)) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        if rng.random() < 0.02:
            ages.append(rng.randrange(1, 600))
        reads = tuple(sorted({max(0, i + 1 - age) for age in ages}))
        size = rng.choice((64, 128, 256, 512, 1024, 2048)) * rng.randrange(1, 9)
        buffers.append(Buffer(f"b{i}", size, ("arena",), live_out=i == count - 1))
        steps.append(Step(f"s{i}", reads, (i + 1,), tuple(b - 1 for b in reads if b)))
    return Problem("irregular", (Region("arena"),), tuple(buffers), tuple(steps))


def test_no_order_is_made_where_that_alone_takes_longer_than_the_limit() -> None:
    small, large = (schedule(irregular(count), limit_s=0) for count in (1_000, 10_000))
    assert small.certificate.solver != "none" and small.order != tuple(range(1_000))
    assert large.certificate.solver == "none" and large.order == tuple(range(10_000))
    assert large.certificate.lower_bound_bytes > 0
