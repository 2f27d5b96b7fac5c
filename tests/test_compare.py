"""Comparisons of plans: every kind of difference is found, and nothing else."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from plan_factory import first_fit, plan_file, random_problem, spilled_plan_file
from rich.console import Console

from mplan.compare import compare, render_comparison
from mplan.ir.plan import PlanFile, Problem


def file_of(problem: Problem, order: tuple[int, ...] | None = None) -> PlanFile:
    return PlanFile(problem, first_fit(problem, order))


def test_a_plan_equals_itself() -> None:
    for file in (plan_file(), spilled_plan_file()):
        found = compare(file, file)
        assert found.equal
        assert (found.steps, found.buffers, found.certificates) == ((), (), ())
        assert "equal" in found.to_text()


def test_running_times_do_not_count() -> None:
    file = plan_file()
    slow = tuple(replace(c, seconds=c.seconds + 1) for c in file.plan.certificates)
    assert compare(file, replace(file, plan=replace(file.plan, certificates=slow))).equal


def test_moved_buffers_and_peaks() -> None:
    a, b = plan_file(slack=4096), plan_file()
    found = compare(a, b)
    assert not found.equal
    sram = next(r for r in found.regions if r.name == "sram")
    assert sram.peak_bytes_before == a.plan.peak_bytes("sram")
    assert sram.peak_bytes_after == b.plan.peak_bytes("sram")
    assert sram.live_bytes_before == sram.live_bytes_after
    names = [buffer.name for buffer in a.problem.buffers]
    offsets = [{names[p.buffer]: (p.region, p.offset) for p in f.plan.placements} for f in (a, b)]
    moved = {name for name in names if offsets[0][name] != offsets[1][name]}
    assert {c.name for c in found.buffers} == moved
    assert {c.change for c in found.buffers} == {"moved"}
    one = next(c for c in found.buffers if c.name == "gelu_15")
    assert one.before == "sram+{}".format(offsets[0]["gelu_15"][1])
    assert one.after == "sram+{}".format(offsets[1]["gelu_15"][1])
    assert found.steps == ()
    assert {c.subject for c in found.certificates} == {"allocate:sram", "allocate:flash"}


def test_added_removed_and_resized_buffers() -> None:
    problem = random_problem(6, 1)
    grown = tuple(
        replace(b, name="renamed")
        if i == 3
        else replace(b, size_bytes=b.size_bytes + 16)
        if i == 0
        else b
        for i, b in enumerate(problem.buffers)
    )
    found = compare(file_of(problem), file_of(replace(problem, buffers=grown)))
    changes = {(c.name, c.change): (c.before, c.after) for c in found.buffers if c.change != "moved"}
    old = problem.buffers[3]
    assert changes == {
        ("image", "resized"): (12288, 12304),
        (old.name, "removed"): (old.size_bytes, None),
        ("renamed", "added"): (None, old.size_bytes),
    }
    assert not found.same_problem


def test_one_moved_step_is_one_change() -> None:
    problem = random_problem(12, 4)
    free = replace(problem, steps=tuple(replace(s, after=()) for s in problem.steps))
    order = (0, 1, 9, 2, 3, 4, 5, 6, 7, 8, 10, 11)
    found = compare(file_of(free), file_of(free, order))
    assert [(s.name, s.change, s.before, s.after) for s in found.steps] == [
        (free.steps[9].name, "moved", 9, 2)
    ]


def test_an_inserted_step_moves_no_other() -> None:
    problem = random_problem(12, 4)
    shorter = replace(problem, steps=problem.steps[:5] + problem.steps[6:])
    shorter = replace(shorter, steps=tuple(replace(s, after=()) for s in shorter.steps))
    found = compare(file_of(shorter), file_of(problem))
    assert [(s.name, s.change, s.before, s.after) for s in found.steps] == [
        (problem.steps[5].name, "added", None, 5)
    ]


def test_equal_names_are_told_apart() -> None:
    problem = random_problem(5, 1)
    twins = replace(problem, buffers=tuple(replace(b, name="same") for b in problem.buffers))
    other = replace(twins, buffers=(replace(twins.buffers[0], size_bytes=64), *twins.buffers[1:]))
    assert compare(file_of(twins), file_of(twins)).equal
    resized = [c for c in compare(file_of(twins), file_of(other)).buffers if c.change == "resized"]
    assert [(c.before, c.after) for c in resized] == [(12288, 64)]


def test_capacity_alone_is_a_difference() -> None:
    found = compare(plan_file(capacity=160 << 10), plan_file(capacity=None))
    assert not found.equal
    assert [r.name for r in found.regions if not r.equal] == ["sram"]


def test_other_proofs_are_a_difference() -> None:
    file = plan_file()
    proofs = tuple(replace(c, lower_bound_bytes=1, status="feasible") for c in file.plan.certificates)
    found = compare(file, replace(file, plan=replace(file.plan, certificates=proofs)))
    assert not found.equal
    assert len(found.certificates) == len(file.plan.certificates)


@pytest.mark.parametrize(
    "pair", [(plan_file(seed=1), plan_file(seed=2)), (plan_file(), spilled_plan_file())]
)
def test_unrelated_plans_compare_in_every_form(pair: tuple[PlanFile, PlanFile]) -> None:
    found = compare(*pair)
    content = json.loads(json.dumps(found.to_json()))
    assert content["schema_version"] == 1
    assert content["equal"] is False
    console = Console(file=io.StringIO(), width=200, color_system=None)
    render_comparison(found, console)
    assert console.file.getvalue().splitlines()[0] == found.to_text().splitlines()[0]
    assert "more changes of buffers" in found.to_text()
