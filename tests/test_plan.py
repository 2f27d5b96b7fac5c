"""The data classes of problems and plans: lifetimes, digests, gaps and the plan file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings

from mplan.ir.check import check_problem
from mplan.ir.plan import (
    Buffer,
    Certificate,
    Extent,
    Placement,
    Plan,
    PlanFile,
    Problem,
    Region,
    Step,
    Transfer,
    content_digest,
)
from tests.problems import graphs, live_bytes

PROBLEM = Problem(
    "p",
    (Region("a", 64, 4), Region("host", addressable=False)),
    (Buffer("x", 8, ("a",), 4, "input", True), Buffer("y", 4, ("a",), live_out=True)),
    (Step("f", (0,), (1,)), Step("g", (1,), (1,), (0,))),
)


def certificate(value: int, bound: int) -> Certificate:
    status = "optimal" if value == bound else "feasible"
    return Certificate("allocate:a", value, bound, "live", status, "s", witness=(0,))


def test_lifetimes_by_hand() -> None:
    assert PROBLEM.lifetimes((0, 1)) == ((0, 1), (0, 2))
    untouched = (
        Buffer("in", 1, ("a",), live_in=True),
        Buffer("out", 1, ("a",), live_out=True),
        Buffer("none", 1, ("a",)),
    )
    problem = replace(PROBLEM, buffers=(*PROBLEM.buffers, *untouched))
    assert problem.lifetimes((0, 1))[2:] == ((0, 1), (0, 2), (0, 0))


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_lifetimes_agree_with_the_definition_of_live(problem: Problem) -> None:
    order = tuple(range(len(problem.steps)))
    spans = problem.lifetimes(order)
    for region in problem.regions:
        levels = [
            sum(
                b.size_bytes
                for b, (start, end) in zip(problem.buffers, spans, strict=True)
                if b.regions[0] == region.name and start <= p < end
            )
            for p in order
        ]
        assert levels == live_bytes(problem, order, region.name)


def test_what_a_buffer_holds_around_its_gaps() -> None:
    gaps = (Extent(2, 4), Extent(4, 5, 1, 3), Extent(8, 9))
    buffer = Buffer("x", 6, ("a",), lifetime=(0, 9), gaps=gaps)
    whole = (Extent(0, 2, 0, 6), Extent(4, 5, 1, 3), Extent(5, 8, 0, 6))
    assert tuple(buffer.held(0, 9)) == whole
    assert tuple(replace(buffer, gaps=()).held(3, 5)) == (Extent(3, 5, 0, 6),)
    assert tuple(replace(buffer, size_bytes=0, gaps=()).held(0, 9)) == ()
    assert tuple(replace(buffer, gaps=()).held(0, 0)) == ()


def test_capacities_can_be_left_out() -> None:
    free = PROBLEM.unlimited()
    assert [r.capacity_bytes for r in free.regions] == [None, None]
    assert replace(free, regions=PROBLEM.regions) == PROBLEM


def test_horizon_and_region() -> None:
    assert PROBLEM.horizon == 2
    fixed = Problem("q", (Region("a"),), (Buffer("x", 1, ("a",), lifetime=(3, 9)),))
    assert fixed.horizon == 9 and fixed.lifetimes(()) == ((3, 9),)
    assert replace(fixed, buffers=()).horizon == 0
    assert PROBLEM.region("host").addressable is False
    with pytest.raises(KeyError):
        PROBLEM.region("nowhere")


def test_the_problem_digest_follows_content_and_not_names() -> None:
    digest = PROBLEM.digest
    x, y = PROBLEM.buffers
    f, g = PROBLEM.steps
    same = (
        replace(PROBLEM, name="other"),
        replace(PROBLEM, buffers=(replace(x, name="z", shape="(8,)", dtype="i8", where="m.py:1"), y)),
        replace(PROBLEM, buffers=(replace(x, hint=16), y)),
        replace(PROBLEM, steps=(replace(f, name="h", kind="conv", where="m.py:2"), g)),
    )
    assert {p.digest for p in same} == {digest}
    arena, host = PROBLEM.regions
    different = [
        replace(PROBLEM, adjacent=((0, 1),)),
        replace(PROBLEM, adjacent=((1, 0),)),
        replace(PROBLEM, regions=(replace(arena, capacity_bytes=65), host)),
        replace(PROBLEM, regions=(replace(arena, alignment=8), host)),
        replace(PROBLEM, regions=(replace(arena, name="b"), host)),
        replace(PROBLEM, regions=(arena, replace(host, addressable=True))),
        *(
            replace(PROBLEM, buffers=(replace(x, **change), y))
            for change in (
                {"size_bytes": 9},
                {"regions": ("host",)},
                {"alignment": 8},
                {"live_in": False},
                {"live_out": True},
                {"offset": 0},
                {"lifetime": (0, 1)},
                {"gaps": (Extent(0, 1),)},
                {"gaps": (Extent(0, 1, 2, 4),)},
            )
        ),
        *(
            replace(PROBLEM, steps=(f, replace(g, **change)))
            for change in ({"reads": (0,)}, {"writes": (0,)}, {"after": ()})
        ),
    ]
    assert len({p.digest for p in different} | {digest}) == len(different) + 1


@pytest.mark.parametrize("unit", (1, 2**60, 2**70))
def test_the_order_in_which_a_step_names_buffers_is_not_content(unit: int) -> None:
    """Also of sizes beyond 64 bits, and of indices that name nothing."""
    buffers = tuple(Buffer(f"b{i}", (i + 1) * unit, ("a",)) for i in range(3))
    first, last = Step("f", (0, 2), ()), Step("g", (1,), (2, 0), (0,))
    problem = Problem("p", (Region("a"),), buffers, (first, last))
    turned = (replace(first, reads=(2, 0)), replace(last, writes=(0, 2)))
    assert replace(problem, steps=turned).digest == problem.digest
    moved = (replace(first, reads=(0,)), replace(last, reads=(1, 2)))
    assert replace(problem, steps=moved).digest != problem.digest
    wider = (replace(buffers[0], size_bytes=unit + 1), *buffers[1:])
    assert replace(problem, buffers=wider).digest != problem.digest
    far = replace(problem, steps=(replace(first, reads=(2**70, 0)), last))
    assert replace(far, steps=(replace(first, reads=(0, 2**70)), last)).digest == far.digest
    assert far.digest != problem.digest
    assert [v.reason for v in check_problem(far)] == ["problem"]


def test_the_plan_digest_follows_everything_but_running_times() -> None:
    plan = Plan(
        PROBLEM.digest,
        (0, 1),
        (Placement(0, "a", 0, 0, 1), Placement(1, "a", 8, 0, 2)),
        (Transfer(1, 0, "a", "host"),),
        (("a", 12),),
        (certificate(12, 12),),
    )
    timed = replace(plan, certificates=(replace(plan.certificates[0], seconds=9.0),))
    assert timed.digest == plan.digest
    changed = [
        replace(plan, order=(1, 0)),
        replace(plan, placements=plan.placements[:1]),
        replace(plan, transfers=()),
        replace(plan, peaks=(("a", 13),)),
        replace(plan, certificates=(replace(plan.certificates[0], seed=1),)),
    ]
    assert len({p.digest for p in changed} | {plan.digest}) == len(changed) + 1


def test_gap_and_status() -> None:
    assert certificate(12, 12).gap == 0
    assert certificate(12, 8).gap == 0.5
    assert certificate(12, 0).gap == 1.0 and certificate(0, 0).gap == 0.0
    plan = Plan("", (), (), peaks=(("a", 3),))
    assert plan.status == "feasible" and plan.gap == 0.0
    assert plan.peak_bytes("a") == 3 and plan.peak_bytes("b") == 0
    worst = replace(plan, certificates=(certificate(4, 4), certificate(4, 2)))
    assert worst.status == "feasible" and worst.gap == 1.0
    assert worst.certificate("allocate:a") == certificate(4, 4)
    assert worst.certificate("schedule:a") is None
    assert replace(plan, certificates=(certificate(4, 4),)).status == "optimal"
    impossible = replace(certificate(4, 4), status="infeasible")
    assert replace(worst, certificates=(*worst.certificates, impossible)).status == "infeasible"


def test_the_content_digest_seals_every_field() -> None:
    file = PlanFile(PROBLEM, Plan(PROBLEM.digest, (0, 1), ()), "mplan", "m.py", "cpu")
    document = file.to_json()
    assert content_digest(document) == document["content_digest"]
    assert document["problem_digest"] == PROBLEM.digest
    assert document["plan_digest"] == file.plan.digest
    for key in ("producer", "model", "target", "schema_version"):
        assert content_digest({**document, key: "changed"}) != document["content_digest"]
    assert json.loads(json.dumps(document)) == document
