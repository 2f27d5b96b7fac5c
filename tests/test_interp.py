"""The interpreter against PyTorch, loops against the whole op, planned memory against eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from plan_factory import first_fit
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

DATA = Path(__file__).parent / "data" / "ir"
CORPUS = sorted(p.stem for p in DATA.glob("*.mpir"))
SRAM, FLASH, HOST = (
    Region("sram", None, 16),
    Region("flash", None, 16),
    Region("host", None, 1, addressable=False),
)
LAYOUTS = {"activations": Layout(SRAM), "everything": Layout(SRAM, FLASH, SRAM)}


def place(problem: Problem, order: tuple[int, ...] | None = None) -> Plan:
    """A valid plan without certificates."""
    return replace(first_fit(problem, order), certificates=())


def load(name: str) -> Graph:
    path = DATA / f"{name}.mpir"
    return parse(path.read_text(encoding="utf-8"), str(path))


def inputs_of(name: str) -> dict[str, Any]:
    """Random inputs for a graph of the corpus."""
    if name == "symbolic":
        return {"n": 3, "x": torch.randn(3, 10, 8), "w": torch.randn(8, 8)}
    if name == "phases":
        return {"x": torch.randn(4, 8), "scale": 1.5}
    inputs = random_inputs(load(name))
    if name == "conv_block":
        inputs["var"] = inputs["var"].abs() + 0.5
    if name == "cache":
        inputs["at"] = torch.tensor([2])
    return inputs


# --- what the graphs of the corpus compute, in plain PyTorch ---------------------------------------


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Any, ...]:
    return (F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2).softmax(-1),)


def conv_block(
    image: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor
) -> tuple[Any, ...]:
    y = F.batch_norm(F.conv2d(image, w, stride=2, padding=1), mean, var, gamma, beta)
    return (F.max_pool2d(F.relu(y), 2),)


def views(x: Tensor) -> tuple[Any, ...]:
    s = x[3:6]
    return s + x[1], s.T.reshape(-1), torch.cat([s[:, 6:], s[:, 3:6], s[:, :3]], 1), s.T


def cache(k: Tensor, old: Tensor, at: Tensor) -> tuple[Any, ...]:
    new = old.clone()
    new[int(at)] = k[0]
    return new[:4].mean(0), new * 0.5


def symbolic(n: int, x: Tensor, w: Tensor) -> tuple[Any, ...]:
    y = (x @ w).transpose(0, 1)
    half = y.shape[0] // 2
    return y[half:] * max(n, half), n * half


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Any, ...]:
    return (F.scaled_dot_product_attention(q, k, v, mask, scale=0.25, enable_gqa=True),)


def conv_tiles(x: Tensor, w: Tensor, b: Tensor) -> tuple[Any, ...]:
    return (F.conv2d(x, w, b, stride=2, padding=1),)


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    return (F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=0.5)[0],)


def chunked_mlp(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Any, ...]:
    return (F.linear(F.gelu(F.linear(x, w1)), w2),)


def matmul_tiles(a: Tensor, b: Tensor) -> tuple[Any, ...]:
    return (a @ b,)


def phases(x: Tensor, scale: float) -> tuple[Any, ...]:
    y = x * scale
    return y + 2 * y.sum().item(), y.sum().item(), True, "done"


EAGER: dict[str, Callable[..., tuple[Any, ...]]] = {
    f.__name__: f
    for f in (
        mlp,
        conv_block,
        views,
        cache,
        symbolic,
        attention,
        conv_tiles,
        flash,
        chunked_mlp,
        matmul_tiles,
        phases,
    )
}


def assert_close(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, Tensor):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)
        else:
            assert a == (pytest.approx(e, rel=1e-5) if isinstance(e, float) else e)


def assert_equal(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Bit by bit."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e) if isinstance(e, Tensor) else a == e


def test_every_graph_of_the_corpus_has_an_eager_counterpart() -> None:
    assert set(EAGER) == set(CORPUS)


@pytest.mark.parametrize("name", CORPUS)
def test_run_computes_what_pytorch_computes(name: str) -> None:
    graph, inputs = load(name), inputs_of(name)
    before = {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}
    assert_close(run(graph, inputs), EAGER[name](**inputs))
    assert_equal(run(graph, list(inputs.values())), run(graph, inputs))
    for key, value in before.items():
        assert torch.equal(inputs[key], value), f"the caller's {key} was overwritten"


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


# --- symbols --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (16, 64)])
def test_one_plan_serves_all_sizes(batch: int, length: int) -> None:
    graph = load("symbolic")
    inputs = {"n": batch, "x": torch.randn(batch, 2 * length, 8), "w": torch.randn(8, 8)}
    lowered = problem_of(graph, LAYOUTS["activations"])
    plan = place(lowered.problem)
    assert_close(run(graph, inputs), symbolic(**inputs))
    assert_equal(run_in_arena(graph, lowered, plan, inputs), run(graph, inputs))


def test_symbols_must_fit() -> None:
    graph, w = load("symbolic"), torch.randn(8, 8)
    cases = [
        ({"n": 17, "x": torch.randn(17, 2, 8), "w": w}, "s0 is 17, must be in [1, 16]"),
        ({"n": 3, "x": torch.randn(2, 2, 8), "w": w}, "must be f32[3,2,8], got float32[2,2,8]"),
        ({"n": 3, "x": torch.randn(3, 5, 8), "w": w}, "no input says what s1 is"),
    ]
    for inputs, message in cases:
        with pytest.raises(UserError) as caught:
            run(graph, inputs)
        assert caught.value.code == "MP108"
        assert message in caught.value.message


def test_symbols_can_be_given() -> None:
    text = """graph @g() symbols(n in [1, 9]) {
      %x: f32[{n}] = aten.full.default(size=[{n}], fill_value=2.0)
      return %x
    }"""
    assert_equal(run(parse(text), (), {"n": 3}), (torch.full((3,), 2.0),))
    with pytest.raises(UserError, match="no input says what n is"):
        run(parse(text), ())


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_inputs() -> None:
    graph, good = load("matmul_tiles"), inputs_of("matmul_tiles")
    cases: list[tuple[Any, str]] = [
        ([good["a"]], "takes 2 inputs, got 1"),
        ({"a": good["a"]}, "missing: b"),
        ({**good, "c": 1}, "unknown: c"),
        ({**good, "b": torch.randn(5, 8)}, "input %b must be f32[5,9], got float32[5,8]"),
        ({**good, "b": good["b"].double()}, "input %b must be f32[5,9], got float64[5,9]"),
        ({**good, "b": 3}, "must be a tensor f32[5,9], got int"),
    ]
    _refused(graph, cases, "MP108")
    number = {"x": torch.randn(4, 8), "scale": torch.tensor(1.0)}
    _refused(load("phases"), [(number, "input %scale must be a number, got Tensor")], "MP108")


def _refused(graph: Graph, cases: list[tuple[Any, str]], code: str) -> None:
    for inputs, message in cases:
        with pytest.raises(UserError) as caught:
            run(graph, inputs)
        assert caught.value.code == code
        assert message in caught.value.message


def test_a_failing_op_is_named_with_its_place() -> None:
    text = """graph @g(%x: f32[2,3]) {
      %y: f32[2,2] = aten.mm.default(self=%x, mat2=%x) loc("net.py":7)
      return %y
    }"""
    with pytest.raises(UserError) as caught:
        run(parse(text), [torch.randn(2, 3)])
    assert caught.value.code == "MP109"
    assert "%y = aten.mm.default failed" in caught.value.message
    assert str(caught.value.where) == "net.py:7"


def test_a_result_that_is_not_what_the_graph_states() -> None:
    x = [torch.randn(2, 3)]
    text = "graph @g(%x: f32[2,3]) { %y: f32[2,4] = aten.relu.default(self=%x) return %y }"
    _refused(parse(text), [(x, "must be f32[2,4], got float32[2,3]")], "MP109")
    text = "graph @g(%x: f32[2,3]) { %y: f32[1,3] = aten.unbind.int(self=%x) return %y }"
    _refused(parse(text), [(x, "it yields 2 results, the graph states 1")], "MP109")
    text = "graph @g(%x: f32[2,3]) { %y: f32[2,3] = mplan.cpy(self=%x) return %y }"
    _refused(parse(text), [(x, "there is no op 'mplan.cpy'")], "MP102")


# --- aliases --------------------------------------------------------------------------------------


def test_an_in_place_result_overwrites_its_alias() -> None:
    """Reading the old value (which ``verify`` forbids) shows the new bytes."""
    text = """graph @g(%x: f32[4]) {
      %a: f32[4] = aten.mul.Scalar(self=%x, other=2)
      %v: f32[2] view(%a + 8) = aten.slice.Tensor(self=%a, dim=0, start=2, end=4)
      %b: f32[4] inplace(%a) = aten.relu.default(self=%a)
      return %a, %v, %b
    }"""
    graph, x = parse(text), torch.tensor([-1.0, 2.0, -3.0, 4.0])
    expected = (x * 2).relu()
    _both(graph, [x], (expected, expected[2:], expected))


def test_a_result_without_alias_has_bytes_of_its_own() -> None:
    """``contiguous`` returns its operand; what overwrites the result must not touch the operand."""
    text = """graph @g(%x: f32[4]) {
      %a: f32[4] = aten.relu.default(self=%x)
      %b: f32[4] = aten.contiguous.default(self=%a)
      %c: f32[4] inplace(%b) = aten.add_.Scalar(self=%b, other=1)
      return %a, %c
    }"""
    _both(parse(text), [torch.ones(4)], (torch.ones(4), torch.full((4,), 2.0)))


def test_a_view_op_can_permute_in_place() -> None:
    text = """graph @g(%x: f32[2,3]) {
      %a: f32[2,3] = aten.relu.default(self=%x)
      %b: f32[3,2] inplace(%a) = aten.transpose.int(self=%a, dim0=0, dim1=1)
      %c: f32[6] view(%b) = aten.view.default(self=%b, size=[6])
      return %c
    }"""
    _both(parse(text), [torch.arange(6.0).view(2, 3)], (torch.tensor([0.0, 3, 1, 4, 2, 5]),))


def _both(graph: Graph, inputs: list[Tensor], expected: tuple[Tensor, ...]) -> None:
    lowered = problem_of(graph, LAYOUTS["everything"])
    assert_equal(run(graph, inputs), expected)
    assert_equal(run_in_arena(graph, lowered, place(lowered.problem), inputs), expected)


def test_inputs_in_another_layout() -> None:
    graph, inputs = load("mlp"), inputs_of("mlp")
    turned = {**inputs, "x": inputs["x"].T.contiguous().T, "w1": inputs["w1"].T.contiguous().T}
    assert not turned["x"].is_contiguous()
    assert_equal(run(graph, turned), run(graph, inputs))


# --- loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(1, 1), (2, 5), (3, 2), (4, 4), (6, 5)])
def test_conv_tiles_of_any_size(steps: tuple[int, int]) -> None:
    graph = load("conv_tiles")
    (op,) = graph.ops
    assert op.loop
    axes = tuple(replace(a, step=s) for a, s in zip(op.loop.axes, steps, strict=True))
    body = replace(op.loop.body, symbols=())
    tiled = replace(graph, ops=(replace(op, loop=replace(op.loop, axes=axes, body=_free(body))),))
    inputs = inputs_of("conv_tiles")
    verify(tiled, deep=True)
    assert_close(run(tiled, inputs), conv_tiles(**inputs))


def _free(body: Graph) -> Graph:
    """``body`` with wide ranges for its symbols."""
    wide = parse("graph @g() symbols(h_len in [1, 9], w_len in [1, 9]) { return }").symbols
    return replace(body, symbols=wide)


def test_positions_outside_read_as_zero() -> None:
    text = """graph @g(%x: f32[3]) {
      %y: f32[5] = mplan.loop() loop {
        axis i = 5 by 2
        in %x [0 by i offset -2 extent 3]
        out concat [0 by i]
        body graph @b(%t: f32[{i_len + 2}]) symbols(i_len in [1, 2]) {
          %u: f32[{i_len},3]<1,1> view(%t) = aten.unfold.default(self=%t, dimension=0, size=3, step=1)
          %s: f32[{i_len}] = aten.sum.dim_IntList(self=%u, dim=[1])
          return %s
        }
      }
      return %y
    }"""
    graph = parse(text)
    verify(graph, deep=True)
    assert_equal(
        run(graph, [torch.tensor([1.0, 10.0, 100.0])]), (torch.tensor([1.0, 11, 111, 110, 100]),)
    )


def test_concat_and_carry_in_one_loop() -> None:
    """A running sum (carry) whose value after each tile is kept (concat)."""
    text = """graph @g(%x: i64[6], %zero: i64[1]) {
      %parts: i64[6], %sum: i64[1] = mplan.loop() loop {
        axis i = 6 by 1
        in %x [0 by i]
        out concat [0 by i]
        out carry %zero
        body graph @b(%t: i64[1], %s: i64[1]) {
          %n: i64[1] = aten.add.Tensor(self=%s, other=%t)
          return %n, %n
        }
      }
      return %parts, %sum
    }"""
    graph, x = parse(text), torch.arange(6)
    verify(graph, deep=True)
    assert_equal(run(graph, [x, torch.zeros(1, dtype=torch.int64)]), (x.cumsum(0), x.sum()[None]))


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
