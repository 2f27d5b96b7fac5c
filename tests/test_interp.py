"""The interpreter against PyTorch, loops against the whole op."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from corpus import (
    CORPUS,
    EAGER,
    LAYOUTS,
    assert_close,
    assert_equal,
    conv_tiles,
    inputs_of,
    load,
    place,
    symbolic,
)
from torch import Tensor

from mplan.diagnostics import UserError
from mplan.ir.graph import Graph
from mplan.ir.interp import run, run_in_arena
from mplan.ir.parser import parse
from mplan.ir.storage import problem_of
from mplan.ir.verify import verify


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
