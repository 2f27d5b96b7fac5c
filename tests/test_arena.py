"""Execution inside planned memory: right plans change nothing, wrong ones are seen in the outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from corpus import CORPUS, HOST, LAYOUTS, SRAM, assert_equal, inputs_of, load, place
from hypothesis import given, settings
from strategies import GraphBuilder, random_inputs, runnable_graph, topological_order
from torch import Tensor

from mplan.diagnostics import UserError
from mplan.ir.check import check
from mplan.ir.graph import Graph
from mplan.ir.interp import run, run_in_arena
from mplan.ir.parser import parse
from mplan.ir.plan import Placement, Plan, Problem, Region, Transfer
from mplan.ir.storage import Layout, Lowered, problem_of
from mplan.ir.verify import verify


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CORPUS)
def test_arena_computes_the_same(name: str, layout: str) -> None:
    graph, inputs = load(name), inputs_of(name)
    before = {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}
    lowered = problem_of(graph, LAYOUTS[layout])
    plan = place(lowered.problem)
    assert not check(lowered.problem, plan)
    for poison in (0xA5, 0x00, 0xFF):
        assert_equal(run_in_arena(graph, lowered, plan, inputs, poison), run(graph, inputs))
    for key, value in before.items():
        assert torch.equal(inputs[key], value), f"the caller's {key} was overwritten"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_graphs_in_any_order(data: st.DataObject) -> None:
    graph = data.draw(runnable_graph())
    verify(graph, deep=True)
    inputs = random_inputs(graph)
    lowered = problem_of(graph, LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))])
    order = data.draw(topological_order(lowered.problem))
    plan = place(lowered.problem, order)
    assert not check(lowered.problem, plan)
    assert_equal(run_in_arena(graph, lowered, plan, inputs), run(graph, inputs))


# --- wrong plans ----------------------------------------------------------------------------------


@pytest.fixture
def planned() -> tuple[Graph, Lowered, Plan, dict[str, Any]]:
    b = GraphBuilder()
    x = b.input(8, 8)
    a = b.op("aten.relu.default", self=f"%{x}", name="a")
    c = b.op("aten.sigmoid.default", self=f"%{a}", name="c")
    d = b.op("aten.tanh.default", self=f"%{c}", name="d")
    e = b.op("aten.add.Tensor", self=f"%{a}", other=f"%{d}", name="e")
    graph = b.build(e)
    lowered = problem_of(graph, Layout(SRAM, inputs=SRAM))
    return graph, lowered, place(lowered.problem), random_inputs(graph)


def _moved(plan: Plan, problem: Problem, name: str, **change: Any) -> Plan:
    """``plan`` with the placement of one buffer changed."""
    placements = tuple(
        replace(p, **change) if problem.buffers[p.buffer].name == name else p for p in plan.placements
    )
    return replace(plan, placements=placements)


def _offset(plan: Plan, problem: Problem, name: str) -> int:
    return next(p.offset for p in plan.placements if problem.buffers[p.buffer].name == name)


@pytest.mark.parametrize(
    ("moved", "onto"), [("c", "a"), ("d", "a"), ("d", "c"), ("e", "d"), ("a", "x0")]
)
def test_buffers_that_overlap_change_the_output(planned: Any, moved: str, onto: str) -> None:
    graph, lowered, plan, inputs = planned
    wrong = _moved(plan, lowered.problem, moved, offset=_offset(plan, lowered.problem, onto))
    assert {v.reason for v in check(lowered.problem, wrong)} >= {"overlap"}
    assert not torch.equal(run_in_arena(graph, lowered, wrong, inputs)[0], run(graph, inputs)[0])


def test_a_partial_overlap_changes_the_output(planned: Any) -> None:
    graph, lowered, plan, inputs = planned
    offset = _offset(plan, lowered.problem, "a") + 8 * 8 * 4 - 16
    wrong = _moved(plan, lowered.problem, "c", offset=offset)
    assert not torch.equal(run_in_arena(graph, lowered, wrong, inputs)[0], run(graph, inputs)[0])


@pytest.mark.parametrize(("name", "end"), [("a", 3), ("c", 2), ("d", 3)])
def test_a_buffer_freed_too_early_changes_the_output(planned: Any, name: str, end: int) -> None:
    graph, lowered, plan, inputs = planned
    wrong = _moved(plan, lowered.problem, name, end=end)
    assert check(lowered.problem, wrong)
    assert not torch.equal(run_in_arena(graph, lowered, wrong, inputs)[0], run(graph, inputs)[0])


def test_a_wrong_order_is_noticed(planned: Any) -> None:
    graph, lowered, plan, inputs = planned
    swapped = replace(plan, order=(0, 2, 1, 3))
    with pytest.raises(UserError) as caught:
        run_in_arena(graph, lowered, swapped, inputs)
    assert caught.value.code == "MP110"
    early = replace(swapped, placements=tuple(replace(p, start=0) for p in plan.placements))
    assert not torch.equal(run_in_arena(graph, lowered, early, inputs)[0], run(graph, inputs)[0])


def test_a_misaligned_place_is_refused(planned: Any) -> None:
    graph, lowered, plan, inputs = planned
    with pytest.raises(UserError) as caught:
        run_in_arena(graph, lowered, _moved(plan, lowered.problem, "c", offset=3), inputs)
    assert caught.value.code == "MP110"


# --- scratch, phases, transfers --------------------------------------------------------------------


def test_scratch_memory_is_poisoned() -> None:
    text = """graph @g(%x: f32[4]) {
      %a: f32[4] = aten.relu.default(self=%x)
      %b: f32[4] = aten.neg.default(self=%a) scratch(16)
      return %b
    }"""
    graph, inputs = parse(text), {"x": torch.ones(4)}
    lowered = problem_of(graph, Layout(SRAM))
    plan, problem = place(lowered.problem), lowered.problem
    assert_equal(run_in_arena(graph, lowered, plan, inputs), (-torch.ones(4),))
    for victim in ("a", "b"):
        wrong = _moved(plan, problem, "b.scratch0", offset=_offset(plan, problem, victim))
        assert not torch.equal(run_in_arena(graph, lowered, wrong, inputs)[0], -torch.ones(4))


def test_a_late_result_may_lie_where_scratch_was() -> None:
    graph, inputs = load("phases"), inputs_of("phases")
    lowered = problem_of(graph, Layout(SRAM))
    problem = lowered.problem
    names = {b.name: i for i, b in enumerate(problem.buffers)}
    plan = place(problem)
    first = _offset(plan, problem, "y.scratch0")
    over = _moved(plan, problem, "y", offset=first)
    if check(problem, over):  # another buffer lies there: shift the result above everything
        over = _moved(plan, problem, "y.scratch0", offset=_offset(plan, problem, "y"))
    assert problem.lifetimes(plan.order)[names["y"]][0] == 2
    assert not [v for v in check(problem, over) if v.reason != "height"]
    assert_equal(run_in_arena(graph, lowered, over, inputs), run(graph, inputs))
    late = _moved(plan, problem, "y.scratch1", offset=_offset(plan, problem, "y"))
    assert {v.reason for v in check(problem, late)} >= {"overlap"}
    assert not torch.equal(run_in_arena(graph, lowered, late, inputs)[0], run(graph, inputs)[0])


def _spilled() -> tuple[Graph, Lowered, Plan, dict[str, Any]]:
    """``a`` waits in host memory while ``c`` and ``d`` are computed where it lay."""
    b = GraphBuilder()
    x = b.input(4)
    a = b.op("aten.relu.default", self=f"%{x}", name="a")
    c = b.op("aten.sigmoid.default", self=f"%{x}", name="c")
    d = b.op("aten.tanh.default", self=f"%{c}", name="d")
    e = b.op("aten.add.Tensor", self=f"%{a}", other=f"%{d}", name="e")
    graph = b.build(e)
    lowered = problem_of(graph, Layout(Region("sram", 48, 16)))
    problem = replace(lowered.problem, regions=(*lowered.problem.regions, HOST))
    at = {buffer.name: i for i, buffer in enumerate(problem.buffers)}
    placements = (
        Placement(at["a"], "sram", 0, 0, 1),
        Placement(at["a"], "host", 0, 1, 3),
        Placement(at["a"], "sram", 16, 3, 4),
        Placement(at["c"], "sram", 0, 1, 3),
        Placement(at["d"], "sram", 32, 2, 4),
        Placement(at["e"], "sram", 0, 3, 4),
    )
    moves = (Transfer(1, at["a"], "sram", "host"), Transfer(3, at["a"], "host", "sram"))
    plan = Plan(problem.digest, (0, 1, 2, 3), placements, moves, (("sram", 48), ("host", 16)))
    return graph, replace(lowered, problem=problem), plan, random_inputs(graph)


def test_spilled_values_come_back() -> None:
    graph, lowered, plan, inputs = _spilled()
    assert not check(lowered.problem, plan)
    assert_equal(run_in_arena(graph, lowered, plan, inputs), run(graph, inputs))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_missing_transfer_changes_the_output(kept: int) -> None:
    graph, lowered, plan, inputs = _spilled()
    wrong = replace(plan, transfers=(plan.transfers[kept],))
    assert not torch.equal(run_in_arena(graph, lowered, wrong, inputs)[0], run(graph, inputs)[0])


def test_a_transfer_from_where_nothing_is() -> None:
    graph, lowered, plan, inputs = _spilled()
    early = tuple(replace(t, source="host", target="sram") for t in plan.transfers)
    with pytest.raises(UserError, match="a is copied from host at 1, where it is not"):
        run_in_arena(graph, lowered, replace(plan, transfers=early), inputs)


def test_a_value_in_host_memory_cannot_be_read() -> None:
    graph, lowered, plan, inputs = _spilled()
    no_return = tuple(
        p for p in plan.placements if (p.region, p.start) not in (("sram", 0), ("sram", 3))
    )
    with pytest.raises(UserError) as caught:
        run_in_arena(graph, lowered, replace(plan, placements=no_return, transfers=()), inputs)
    assert caught.value.code == "MP110"
