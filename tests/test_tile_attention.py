"""Tiled attention computes what attention computes, for every tiling; its text form is fixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.ir.graph import Graph, Input, Op, Ref, Value
from mplan.ir.interp import run
from mplan.ir.ops import infer
from mplan.ir.own_ops import attention
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout
from mplan.ir.types import DType, Sym, Symbol, TensorType
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.tile_attention import TileAttention


def tensors(
    *, batch: tuple[int, ...] = (2,), heads: int = 2, kv: int = 2, rows: int = 5, keys: int = 7
) -> dict[str, torch.Tensor]:
    return {
        "query": torch.randn(*batch, heads, rows, 4),
        "key": torch.randn(*batch, kv, keys, 4),
        "value": torch.randn(*batch, kv, keys, 3),
    }


def type_of(tensor: torch.Tensor) -> TensorType:
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    return TensorType(DType.of_torch(str(tensor.dtype)), tuple(tensor.shape), strides)


def graph_of(inputs: dict[str, torch.Tensor], **options: Any) -> Graph:
    """A graph that is one attention."""
    values = {name: Value(name, type_of(t)) for name, t in inputs.items()}
    args = (*((name, Ref(name)) for name in inputs), *options.items())
    op = Op("mplan.attention", args, ())
    (type_,) = infer(op, {name: v.type for name, v in values.items()})
    assert type_ is not None
    result = Op("mplan.attention", args, (Value("out", type_),))
    return Graph("attention", tuple(Input(v) for v in values.values()), (result,), (Ref("out"),))


def context() -> Context:
    return Context(Layout(Region("arena")))


def tiled(graph: Graph, block_q: int, block_k: int) -> Graph:
    found = TileAttention(block_q, block_k).run(graph, context())
    verify(found, deep=True)
    return found


def check(inputs: dict[str, torch.Tensor], block_q: int, block_k: int, **options: Any) -> None:
    graph = tiled(graph_of(inputs, **options), block_q, block_k)
    assert [op.kind for op in graph.ops if op.kind.startswith("mplan")] == ["mplan.loop"]
    (actual,) = run(graph, inputs)
    torch.testing.assert_close(actual, attention(**inputs, **options))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (5, 7), (4, 2), (64, 64)])
def test_any_tiling(blocks: tuple[int, int], causal: bool) -> None:
    check(tensors(), *blocks, is_causal=causal)


@pytest.mark.parametrize("shape", [(7,), (5, 1), (1, 7), (5, 7), (2, 5, 7), (2, 1, 1, 7), (2, 2, 5, 7)])
@pytest.mark.parametrize("boolean", [False, True])
def test_masks_broadcast(shape: tuple[int, ...], boolean: bool) -> None:
    mask = torch.randn(shape)
    check({**tensors(), "attn_mask": mask > -0.8 if boolean else mask}, 2, 3)


def test_mask_and_causal() -> None:
    check({**tensors(), "attn_mask": torch.randn(5, 7) > -0.5}, 2, 3, is_causal=True)
    check({**tensors(), "attn_mask": torch.randn(5, 7)}, 2, 3, is_causal=True)


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min])
def test_queries_without_any_key(lowest: float) -> None:
    mask = torch.zeros(5, 7)
    mask[1] = lowest
    mask[2, :4] = lowest
    check({**tensors(), "attn_mask": mask}, 2, 3)
    check({**tensors(), "attn_mask": mask == 0}, 2, 3)


@pytest.mark.parametrize("scale", [None, 0.7, 0.0, -1.3])
def test_scale(scale: float | None) -> None:
    check(tensors(), 3, 2, scale=scale)


@pytest.mark.parametrize("mask", [None, (6, 5, 7), (1, 5, 7), (2, 1, 1, 7)])
@pytest.mark.parametrize("kv", [1, 2, 3])
def test_groups_of_heads(kv: int, mask: tuple[int, ...] | None) -> None:
    inputs = tensors(heads=6, kv=kv)
    if mask:
        inputs["attn_mask"] = torch.randn(mask)
    check(inputs, 2, 3, enable_gqa=True)


def test_groups_of_strided_heads() -> None:
    inputs = tensors(heads=6, kv=2)
    strided = {k: t.transpose(1, 2).contiguous().transpose(1, 2) for k, t in inputs.items()}
    check(strided, 2, 3, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_element_types(dtype: torch.dtype) -> None:
    inputs = {name: t.to(dtype) for name, t in tensors().items()}
    graph = tiled(graph_of(inputs), 2, 3)
    (actual,) = run(graph, inputs)
    tolerance = {torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(actual, attention(**inputs), atol=tolerance, rtol=tolerance)


def test_batch_dimensions_broadcast() -> None:
    inputs = {
        "query": torch.randn(2, 1, 3, 5, 4),
        "key": torch.randn(4, 3, 7, 4),
        "value": torch.randn(2, 4, 1, 7, 3),
    }
    check(inputs, 2, 3)


def test_no_batch() -> None:
    inputs = {name: t[0, 0] for name, t in tensors().items()}
    check(inputs, 2, 3, is_causal=True)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    keys=st.integers(1, 9),
    block_q=st.integers(1, 10),
    block_k=st.integers(1, 10),
    causal=st.booleans(),
)
def test_any_sizes(rows: int, keys: int, block_q: int, block_k: int, causal: bool) -> None:
    check(tensors(batch=(), rows=rows, keys=keys), block_q, block_k, is_causal=causal)


def test_scores_exist_for_one_pair_of_tiles() -> None:
    graph = tiled(graph_of(tensors(rows=64, keys=64)), 8, 4)
    (op,) = graph.ops
    assert op.loop is not None
    (inner,) = (o.loop for o in op.loop.body.ops if o.loop)
    products = inner.body.value_table["products"].type
    assert isinstance(products, TensorType)
    assert products.shape[-2:] == (Sym("q_len"), Sym("k_len"))
    assert [(s.name, s.high) for s in inner.body.symbols if s.name.endswith("len")] == [
        ("q_len", 8),
        ("k_len", 4),
    ]


def test_text_form_reads_back() -> None:
    graph = tiled(graph_of({**tensors(), "attn_mask": torch.randn(5, 7)}, is_causal=True), 2, 3)
    assert parse(str(graph)) == graph


def test_sizes_known_at_run_time_stay_with_a_note() -> None:
    inputs = [
        Input(Value(name, TensorType(DType.F32, (Sym("n"), 4)))) for name in ("query", "key", "value")
    ]
    out = Value("out", TensorType(DType.F32, (Sym("n"), 4)))
    op = Op("mplan.attention", tuple((i.value.name, Ref(i.value.name)) for i in inputs), (out,))
    graph = Graph("g", tuple(inputs), (op,), (Ref("out"),), (Symbol("n", 1, 9),))
    notes = context()
    assert TileAttention().run(graph, notes) is graph
    assert notes.notes == ["attention not tiled: its sizes are known only at run time"]


def test_graph_without_attention_is_the_same_object() -> None:
    graph = tiled(graph_of(tensors()), 2, 3)
    assert TileAttention().run(graph, context()) is graph
