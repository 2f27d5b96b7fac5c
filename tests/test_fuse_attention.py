"""Attention is recognised by what it computes, fused once, and computes the same afterwards."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from mplan.capture.captured import Captured
from mplan.capture.export import _sources, capture_exported, export
from mplan.capture.fx import GraphReader
from mplan.capture.symbols import SymbolReader
from mplan.ir.graph import Graph, Op, Ref, tensor_type
from mplan.ir.interp import run
from mplan.ir.ops import lookup
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.fuse_attention import FuseAttention
from mplan.runtime.attention import cpu_attention
from tests.attention_lookalikes import OTHERS
from tests.attention_variants import VARIANTS, E

LEVELS = ("as written", "eager ops", "core ATen")


class Model(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@cache
def exported(name: str) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    function, make, *_ = {**VARIANTS, **OTHERS}[name]
    module = Model(function)
    with torch.no_grad():
        return export(module.eval() if name in VARIANTS else module, make(), {}, None)


@cache
def captured(name: str, level: str) -> Captured:
    """The graph before decomposition, with the ops an eager run dispatches, or in core ATen."""
    program = exported(name)
    if level != "as written":
        return capture_exported(program, decompose=level == "core ATen")
    reader = GraphReader("model", SymbolReader(), _sources(program))
    graph = reader.read(program.graph_module)
    return Captured(graph, reader.constants, program.example_inputs[0])


def fused(found: Captured) -> tuple[Graph, list[str]]:
    context = Context(Layout(Region("arena")), constants=found.constants)
    graph = FuseAttention().run(found.graph, context)
    verify(graph, deep=True)
    return graph, context.notes


def count(graph: Graph, kind: str = "mplan.attention") -> int:
    return sum(op.kind == kind for op in graph.ops)


def outputs(graph: Graph, found: Captured, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    values = iter(inputs)
    named = {
        i.value.name: found.constants[i.value.name] if i.value.name in found.constants else next(values)
        for i in graph.inputs
    }
    return run(graph, named)


def attention(graph: Graph) -> Op:
    (found,) = (op for op in graph.ops if op.kind == "mplan.attention")
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_fused_and_computes_the_same(name: str, level: str) -> None:
    found = captured(name, level)
    graph, notes = fused(found)
    assert count(graph) == 1, (notes, str(found.graph))
    assert notes == []
    inputs = found.example_inputs
    (expected,), (actual,) = outputs(found.graph, found, inputs), outputs(graph, found, inputs)
    half = expected.dtype in (torch.float16, torch.bfloat16)
    torch.testing.assert_close(actual, expected, **({"atol": 2e-2, "rtol": 2e-2} if half else {}))
    op = attention(graph)
    assert op.arg("is_causal", False) == name.startswith("causal")
    assert op.arg("enable_gqa", False) == name.startswith("grouped")
    query = op.arg("query")
    assert isinstance(query, Ref)
    assert tensor_type(graph.value_table[query.name]).shape[-1] == E
    masked = any(word in name for word in ("padding", "bias", "blind", "alibi", "window"))
    assert (op.arg("attn_mask") is not None) == masked


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cpu_computes_what_was_fused(name: str) -> None:
    """The fused op's operands go to the function that the CPU runtime calls for it."""
    found = captured(name, "eager ops")
    graph, _ = fused(found)
    op = attention(graph)
    before = graph.ops[: graph.ops.index(op)]
    operands = Graph("operands", graph.inputs, before, tuple(arg for _, arg in op.args))
    values = outputs(operands, found, found.example_inputs)
    args = dict(zip((name for name, _ in op.args), values, strict=True))
    expected = lookup(op.kind).reference(**args)
    half = expected.dtype in (torch.float16, torch.bfloat16)
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if half else {}
    torch.testing.assert_close(cpu_attention(**args), expected, **tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", OTHERS)
def test_look_alike_is_left_alone_with_a_reason(name: str, level: str) -> None:
    found = captured(name, level)
    graph, notes = fused(found)
    assert graph is found.graph
    assert len(notes) == 1
    assert OTHERS[name][2] in notes[0]
    assert "attention_lookalikes.py:" in notes[0]


MASKED = """
graph @masked(%q: f32[2,3,4], %k: f32[2,4,3], %v: f32[2,3,4], buffer %m: bool[3,3] "m") {{
  {change}
  %s: f32[2,3,3] = aten.bmm.default(self=%q, mat2=%k)
  %f: f32[2,3,3] = aten.masked_fill.Scalar(self=%s, mask=%{mask}, value=-inf)
  %p: f32[2,3,3] = aten._softmax.default(self=%f, dim=-1, half_to_float=false)
  %o: f32[2,3,4] = aten.bmm.default(self=%p, mat2=%v)
  return %o{more}
}}
"""
CHANGES = {
    "not at all": ("", "m", "", True),
    "in place": (
        "%n: bool[3,3] inplace(%m) = aten.logical_not_.default(self=%m)",
        "n",
        "",
        False,
    ),
    "by assignment": ("%n: bool[3,3] = aten.logical_not.default(self=%m)", "m", ", %n", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_buffer_that_changes_is_no_constant(change: str) -> None:
    line, mask, more, causal = CHANGES[change]
    graph = parse(MASKED.format(change=line, mask=mask, more=more))
    constants = {"m": torch.ones(3, 3).triu(1).bool()}
    found = FuseAttention().run(graph, Context(Layout(Region("arena")), constants=constants))
    verify(found, deep=True)
    assert bool(attention(found).arg("is_causal")) == causal
    assert (attention(found).arg("attn_mask") is None) == causal
