"""The op table: rows from torch's schemas, shape rules against real execution, costs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir import ops
from mplan.ir.aten_ops import flat_results, type_of
from mplan.ir.graph import Op, Ref, Value
from mplan.ir.loops import tiles
from mplan.ir.ops import OpDef, Param, lookup
from mplan.ir.parser import parse
from mplan.ir.types import DType, ScalarType, Sym, TensorType

DATA = Path(__file__).parent / "data" / "ir"


def f(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(shape) + 0.5


def ints(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


def last(*shape: int) -> torch.Tensor:
    """A tensor in the channels-last layout."""
    return torch.randn(shape).to(memory_format=torch.channels_last)


CONV = {"dilation": (1, 1), "transposed": False, "output_padding": (0, 0)}
POOL = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
STATS = {"weight": f(4), "bias": f(4), "running_mean": f(4), "running_var": positive(4)}

#: kind → arguments. The shape rule must give what the call really yields, strides included.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("aten.add.Tensor", {"self": f(3, 1, 4), "other": f(2, 4), "alpha": 2}),
    ("aten.add.Tensor", {"self": last(1, 3, 4, 4), "other": last(1, 3, 4, 4)}),
    ("aten.mul.Tensor", {"self": f(3).half(), "other": 2.5}),
    ("aten.div.Tensor", {"self": ints(9, 3), "other": ints(9, 3) + 1}),
    ("aten.div.Tensor_mode", {"self": ints(9, 3), "other": 2, "rounding_mode": "floor"}),
    ("aten.eq.Scalar", {"self": f(3, 4), "other": 0}),
    ("aten.where.self", {"condition": f(3, 1) > 0, "self": f(4), "other": f(3, 4)}),
    ("aten.relu.default", {"self": f(3, 4).T}),
    ("aten.gelu.default", {"self": f(3, 4), "approximate": "tanh"}),
    ("aten.clamp.default", {"self": f(3, 4), "min": 0, "max": None}),
    ("aten.masked_fill.Scalar", {"self": f(3, 4), "mask": f(4) > 0, "value": -1e9}),
    ("aten.pow.Tensor_Scalar", {"self": ints(5, 3), "exponent": 2}),
    ("aten.mm.default", {"self": f(3, 4), "mat2": f(5, 4).T}),
    ("aten.bmm.default", {"self": f(2, 3, 4), "mat2": f(2, 4, 5)}),
    ("aten.addmm.default", {"self": f(5), "mat1": f(3, 4), "mat2": f(4, 5)}),
    ("aten.matmul.default", {"self": f(2, 1, 3, 4), "other": f(5, 4, 6)}),
    ("aten.linear.default", {"input": f(2, 3, 4), "weight": f(5, 4), "bias": f(5)}),
    ("aten.einsum.default", {"equation": "bij,bkj->bik", "tensors": (f(2, 3, 4), f(2, 5, 4))}),
    (
        "aten.convolution.default",
        {
            "input": f(2, 4, 9, 8),
            "weight": f(6, 2, 3, 3),
            "bias": f(6),
            "stride": (2, 1),
            "padding": (1, 0),
        }
        | CONV
        | {"groups": 2},
    ),
    (
        "aten.convolution.default",
        {"input": last(2, 4, 9, 8), "weight": f(6, 4, 3, 3), "bias": None, "stride": (1, 1)}
        | {"padding": (1, 1)}
        | CONV
        | {"groups": 1},
    ),
    ("aten.conv1d.default", {"input": f(2, 4, 9), "weight": f(6, 4, 3), "padding": (1,)}),
    ("aten.conv2d.padding", {"input": f(2, 4, 9, 9), "weight": f(6, 4, 3, 3), "padding": "same"}),
    (
        "aten.conv_transpose2d.input",
        {"input": f(2, 4, 5, 5), "weight": f(4, 6, 3, 3), "stride": (2, 2)},
    ),
    (
        "aten.convolution_backward.default",
        {"grad_output": f(2, 6, 7, 7), "input": f(2, 4, 9, 9), "weight": f(6, 4, 3, 3)}
        | {"bias_sizes": (6,), "stride": (1, 1), "padding": (0, 0)}
        | CONV
        | {"groups": 1, "output_mask": (True, True, False)},
    ),
    ("aten.max_pool2d_with_indices.default", {"self": f(1, 3, 9, 9), **POOL}),
    ("aten.avg_pool2d.default", {"self": f(1, 3, 9, 9), **POOL, "ceil_mode": True}),
    ("aten._adaptive_avg_pool2d.default", {"self": f(1, 3, 9, 9), "output_size": (2, 2)}),
    ("aten.mean.dim", {"self": f(2, 3, 4), "dim": (-1, 1), "keepdim": True}),
    ("aten.sum.dim_IntList", {"self": ints(9, 2, 3), "dim": (0,), "dtype": DType.F32}),
    ("aten.amax.default", {"self": f(2, 3, 4), "dim": (1,)}),
    ("aten.max.dim", {"self": f(2, 3), "dim": 1}),
    ("aten.var.correction", {"self": f(2, 3), "dim": (1,), "correction": 0, "keepdim": True}),
    ("aten.argmax.default", {"self": f(2, 3), "dim": -1}),
    ("aten.cumsum.default", {"self": f(2, 3), "dim": 1}),
    ("aten.sort.default", {"self": f(2, 3), "dim": 0, "descending": True}),
    ("aten.topk.default", {"self": f(2, 9), "k": 3}),
    ("aten._softmax.default", {"self": f(2, 3).half(), "dim": -1, "half_to_float": False}),
    ("aten._log_softmax.default", {"self": f(2, 3), "dim": 1, "half_to_float": False}),
    (
        "aten.native_layer_norm.default",
        {"input": f(2, 3, 4), "normalized_shape": (4,), "weight": f(4), "bias": None, "eps": 1e-5},
    ),
    (
        "aten.native_group_norm.default",
        {
            "input": f(2, 4, 6),
            "weight": f(4),
            "bias": f(4),
            "N": 2,
            "C": 4,
            "HxW": 6,
            "group": 2,
            "eps": 1e-5,
        },
    ),
    (
        "aten._native_batch_norm_legit_no_training.default",
        {"input": f(2, 4, 3, 3), **STATS, "momentum": 0.1, "eps": 1e-5},
    ),
    (
        "aten.native_batch_norm.default",
        {"input": f(2, 4, 3, 3), **STATS, "training": True, "momentum": 0.1, "eps": 1e-5},
    ),
    (
        "aten.scaled_dot_product_attention.default",
        {"query": f(1, 2, 3, 4), "key": f(1, 2, 5, 4), "value": f(1, 2, 5, 4)},
    ),
    (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        {"query": f(1, 2, 16, 8), "key": f(1, 2, 16, 8), "value": f(1, 2, 16, 8)},
    ),
    ("aten.embedding.default", {"weight": f(9, 4), "indices": ints(9, 2, 3)}),
    ("aten.index.Tensor", {"self": f(5, 6, 7), "indices": (None, ints(6, 3), ints(7, 3))}),
    ("aten.index_select.default", {"self": f(5, 6), "dim": 1, "index": ints(6, 3)}),
    ("aten.gather.default", {"self": f(5, 6), "dim": 1, "index": ints(6, 5, 2)}),
    ("aten.scatter.src", {"self": f(5, 6), "dim": 1, "index": ints(6, 5, 2), "src": f(5, 2)}),
    ("aten.slice_scatter.default", {"self": f(5, 6), "src": f(2, 6), "dim": 0, "start": 1, "end": 3}),
    ("aten.index_put.default", {"self": f(5, 6), "indices": (ints(5, 2),), "values": f(2, 6)}),
    ("aten.cat.default", {"tensors": (f(2, 3), f(4, 3)), "dim": 0}),
    ("aten.stack.default", {"tensors": (f(2, 3), f(2, 3)), "dim": -1}),
    ("aten.constant_pad_nd.default", {"self": f(2, 3), "pad": (1, 2), "value": 0.0}),
    (
        "aten.upsample_nearest2d.vec",
        {"input": f(1, 2, 3, 3), "output_size": (6, 6), "scale_factors": None},
    ),
    (
        "aten.upsample_bilinear2d.vec",
        {"input": f(1, 2, 3, 3), "output_size": (6, 6), "align_corners": False, "scale_factors": None},
    ),
    ("aten.roll.default", {"self": f(4, 5), "shifts": (1,), "dims": (0,)}),
    ("aten.flip.default", {"self": f(4, 5), "dims": (0,)}),
    ("aten.repeat.default", {"self": f(4, 5), "repeats": (2, 1, 3)}),
    ("aten.tril.default", {"self": f(4, 5), "diagonal": 1}),
    ("aten.clone.default", {"self": f(4, 5).T}),
    ("aten.clone.default", {"self": f(1, 2, 3, 4), "memory_format": "channels_last"}),
    ("aten._to_copy.default", {"self": f(4, 5), "dtype": DType.BF16}),
    ("aten.full.default", {"size": (2, 3), "fill_value": True, "dtype": DType.BOOL, "device": "cpu"}),
    ("aten.arange.start_step", {"start": 2, "end": 11, "step": 3, "layout": "strided"}),
    ("aten.full_like.default", {"self": f(4, 5).T, "fill_value": 1, "dtype": DType.I64}),
    ("aten.view.default", {"self": f(4, 6), "size": (2, -1)}),
    ("aten.permute.default", {"self": f(2, 3, 4), "dims": (2, 0, 1)}),
    ("aten.expand.default", {"self": f(1, 3), "size": (4, -1)}),
    ("aten.slice.Tensor", {"self": f(9, 4), "dim": 0, "start": 1, "end": 9, "step": 3}),
    (
        "aten.as_strided.default",
        {"self": f(4, 6), "size": (3, 2), "stride": (6, 2), "storage_offset": 1},
    ),
    ("aten.split_with_sizes.default", {"self": f(4, 6), "split_sizes": (1, 5), "dim": 1}),
    ("aten.unbind.int", {"self": f(3, 4), "dim": 0}),
    ("aten.add_.Tensor", {"self": f(3, 4), "other": f(4)}),
    ("mplan.copy", {"self": f(4, 6).T}),
    ("mplan.copy", {"self": f(4, 6)[:, ::2]}),
    ("mplan.attention", {"query": f(2, 4, 5, 8), "key": f(2, 1, 7, 8), "value": f(2, 1, 7, 3)}),
]


def as_types(arg: Any) -> Any:
    if isinstance(arg, tuple):
        return tuple(as_types(item) for item in arg)
    return type_of(arg) if isinstance(arg, torch.Tensor) else arg


def ids(call: tuple[str, dict[str, Any]]) -> str:
    return call[0]


@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_the_shape_rule_gives_what_execution_yields(call: tuple[str, dict[str, Any]]) -> None:
    kind, args = call
    row = lookup(kind)
    inferred = row.infer({name: as_types(arg) for name, arg in args.items()})
    real = tuple(type_of(item) for item in flat_results(row.reference(**args)))
    assert inferred == real


@pytest.mark.parametrize("call", CALLS, ids=ids)
def test_every_call_costs_something_sensible(call: tuple[str, dict[str, Any]]) -> None:
    op, types = build(*call)
    row = lookup(op.kind)
    assert ops.macs(op, types) >= 0
    if row.is_view or row.pointwise:
        assert ops.macs(op, types) == 0


def build(kind: str, args: dict[str, Any]) -> tuple[Op, dict[str, Any]]:
    """The op that makes the call, with the types of its operands and results."""
    types: dict[str, Any] = {}

    def arg_of(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(arg_of(item) for item in arg)
        if not isinstance(arg, torch.Tensor):
            return arg
        name = f"a{len(types)}"
        types[name] = type_of(arg)
        return Ref(name)

    given = tuple((name, arg_of(arg)) for name, arg in args.items())
    op = Op(kind, given, ())
    results = [None if t is None else Value(f"r{i}", t) for i, t in enumerate(ops.infer(op, types))]
    types |= {v.name: v.type for v in results if v}
    return Op(kind, given, tuple(results)), types


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_has_what_the_schema_says() -> None:
    row = lookup("aten.convolution.default")
    assert [p.name for p in row.params][:4] == ["input", "weight", "bias", "stride"]
    assert row.param("bias") == Param("bias", "Tensor?")
    assert row.param("stride") == Param("stride", "int[]")
    assert row.returns == ("Tensor",)
    assert not row.pointwise and not row.is_view and not row.random
    assert lookup("aten.add.Tensor").param("alpha") == Param("alpha", "Scalar", False, 1)
    assert lookup("aten.index.Tensor").param("indices") == Param("indices", "Tensor?[]")
    assert lookup("aten.split.Tensor").returns == ("Tensor[]",)


def test_flags_of_rows() -> None:
    assert lookup("aten.relu.default").pointwise
    assert lookup("aten.view.default").is_view
    assert lookup("aten.split.Tensor").is_view
    assert not lookup("aten.add_.Tensor").is_view
    assert lookup("aten.add_.Tensor").params[0].written
    assert lookup("aten.bernoulli.p").random


UNKNOWN = [
    ("mplan.atention", "did you mean mplan.attention?"),
    ("mplan.zzz", "mplan.attention, mplan.copy, mplan.dequantize"),
    ("aten.add.Tensr", "aten.add.Tensor"),
    ("aten.frobnicate.default", "namespace.name.overload"),
    ("aten.add", "namespace.name.overload"),
    ("", "namespace.name.overload"),
    ("os.path.join", "namespace.name.overload"),
]


@pytest.mark.parametrize(("kind", "help"), UNKNOWN)
def test_unknown_kinds(kind: str, help: str) -> None:
    with pytest.raises(UserError) as caught:
        lookup(kind)
    assert caught.value.code == "MP102"
    assert help in caught.value.help


def test_a_custom_operator_has_a_row() -> None:
    with torch.library._scoped_library("mplan_test", "DEF") as library:
        library.define("twice(Tensor x, *, float by=2.0) -> Tensor")
        library.impl("twice", lambda x, *, by=2.0: x * by, "CPU")
        row = lookup("mplan_test.twice.default")
        assert row.params == (Param("x", "Tensor"), Param("by", "float", False, 2.0))
        assert torch.equal(row.reference(x=torch.ones(2)), torch.full((2,), 2.0))
        with pytest.raises(UnsupportedError, match="no shape rule"):
            row.infer({"x": TensorType(DType.F32, (2,))})
        library._register_fake("twice", lambda x, *, by=2.0: torch.empty_like(x))
        assert row.infer({"x": TensorType(DType.F32, (3,))}) == (TensorType(DType.F32, (3,)),)


def test_own_rows_can_be_registered_once() -> None:
    row = lookup("mplan.copy")
    own = OpDef("test.copy.default", row.params, row.returns, row.infer, row.reference, row.macs)
    try:
        assert ops.register(own) is own
        assert lookup("test.copy.default") is own
        assert "test.copy.default" in ops.own_kinds()
        with pytest.raises(ValueError, match="registered twice"):
            ops.register(OpDef(own.kind, (), (), row.infer, row.reference, row.macs))
    finally:
        ops._REGISTERED.pop(own.kind, None)
        lookup.cache_clear()


def test_mplans_own_rows_need_no_torch() -> None:
    code = (
        "import sys; from mplan.ir.ops import lookup, infer; from mplan.ir.types import *\n"
        "q = TensorType(DType.F32, (2, 3, 4)); row = lookup('mplan.attention')\n"
        "assert row.infer({'query': q, 'key': q, 'value': q}) == (q,)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_equal_numbers_of_different_types_differ() -> None:
    """1 == 1.0 == True in Python; a cache must not take them for the same argument."""
    row = lookup("aten.full.default")
    found = [row.infer({"size": (2,), "fill_value": value})[0] for value in (1, 1.0, True, 1)]
    assert [t.dtype for t in found if isinstance(t, TensorType)] == [
        DType.I64,
        DType.F32,
        DType.BOOL,
        DType.I64,
    ]


def test_rejected_arguments_are_a_user_error(caplog: pytest.LogCaptureFixture) -> None:
    wrong = {"self": TensorType(DType.F32, (4, 5)), "mat2": TensorType(DType.F32, (4, 5))}
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as caught:
        lookup("aten.mm.default").infer(wrong)
    assert caught.value.code == "MP107"
    assert "aten.mm.default(self=f32[4,5], mat2=f32[4,5]) is rejected" in caught.value.message
    assert not caplog.records


def test_shapes_that_depend_on_data() -> None:
    with pytest.raises(UnsupportedError, match="depends on data"):
        lookup("aten.nonzero.default").infer({"self": TensorType(DType.F32, (4,))})


@pytest.mark.parametrize(
    ("dtype", "name"), [(DType.F32, "float"), (DType.I64, "int"), (DType.BOOL, "bool")]
)
def test_numbers_read_from_tensors(dtype: DType, name: str) -> None:
    assert lookup("aten.item.default").infer({"self": TensorType(dtype, ())}) == (ScalarType(name),)


def test_sizes_are_evaluated() -> None:
    op = Op("aten.full.default", (("size", (Sym("n * 2"), 3)), ("fill_value", 0.0)), ())
    assert ops.infer(op, {}, {"n": 4}) == (TensorType(DType.F32, (8, 3)),)
    with pytest.raises(UserError, match="'n' has no value"):
        ops.infer(op, {})


@pytest.mark.parametrize("name", ["conv_tiles", "flash", "chunked_mlp", "matmul_tiles"])
def test_loops_have_a_shape_rule(name: str) -> None:
    """Also those inside of bodies, whose types depend on the tile of the loop around them."""
    graph = parse((DATA / f"{name}.mpir").read_text(encoding="utf-8"))
    symbols: dict[str, int] = {}
    while True:
        types = {v.name: v.type.bound(symbols) for v in graph.values if isinstance(v.type, TensorType)}
        loops = [op for op in graph.ops if op.loop]
        for op in loops:
            assert ops.infer(op, types, symbols) == tuple(types[v.name] for v in op.values)
        if not loops or loops[0].loop is None:
            return
        symbols |= list(tiles(loops[0].loop))[-1]
        graph = loops[0].loop.body


# --- costs ----------------------------------------------------------------------------------------

CONV_ARGS = {"input": f(2, 4, 9, 8), "weight": f(6, 2, 3, 3), "bias": f(6)}
MACS = [
    ("aten.mm.default", {"self": f(3, 4), "mat2": f(4, 5)}, 3 * 4 * 5),
    ("aten.addmm.default", {"self": f(5), "mat1": f(3, 4), "mat2": f(4, 5)}, 3 * 4 * 5),
    ("aten.linear.default", {"input": f(2, 3, 4), "weight": f(5, 4), "bias": f(5)}, 6 * 4 * 5),
    ("aten.matmul.default", {"self": f(2, 3, 4), "other": f(4, 5)}, 6 * 4 * 5),
    (
        "aten.einsum.default",
        {"equation": "bij,bkj->bik", "tensors": (f(2, 3, 4), f(2, 5, 4))},
        2 * 3 * 4 * 5,
    ),
    ("aten.conv2d.default", {**CONV_ARGS, "groups": 2}, 2 * 6 * 7 * 6 * (2 * 9)),
    ("aten.conv1d.default", {"input": f(2, 4, 9), "weight": f(6, 4, 3)}, 2 * 6 * 7 * (4 * 3)),
    (
        "aten.conv_transpose2d.input",
        {"input": f(2, 4, 5, 5), "weight": f(4, 6, 3, 3)},
        2 * 25 * 4 * 6 * 9,
    ),
    (
        "aten.scaled_dot_product_attention.default",
        {"query": f(1, 2, 3, 4), "key": f(1, 2, 5, 4), "value": f(1, 2, 5, 4)},
        2 * 3 * 5 * (4 + 4),
    ),
    (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        {"query": f(1, 2, 16, 8), "key": f(1, 2, 16, 8), "value": f(1, 2, 16, 8)},
        2 * 16 * 16 * 16,
    ),
    (
        "mplan.attention",
        {"query": f(2, 4, 5, 8), "key": f(2, 2, 7, 8), "value": f(2, 2, 7, 3), "enable_gqa": True},
        8 * 5 * 7 * (8 + 3),
    ),
    ("aten.relu.default", {"self": f(3, 4)}, 0),
]


@pytest.mark.parametrize(("kind", "args", "expected"), MACS)
def test_multiply_accumulates(kind: str, args: dict[str, Any], expected: int) -> None:
    op, types = build(kind, args)
    assert ops.macs(op, types) == expected


MOVES = ["cat", "embedding", "slice_scatter", "clone", "full", "roll", "repeat", "permute", "_to_copy"]


@pytest.mark.parametrize("name", MOVES)
def test_moving_data_multiplies_nothing(name: str) -> None:
    call = next(c for c in CALLS if c[0].split(".")[1] == name)
    assert ops.macs(*build(*call)) == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv_tiles", 4 * 6 * 5 * 27),
        ("flash", 7 * 10 * (4 + 3)),
        ("chunked_mlp", 10 * 9 * (6 + 4)),
        ("matmul_tiles", 7 * 5 * 9),
        ("mlp", 4 * 32 * (16 + 10)),
        ("symbolic", 16 * 128 * 8 * 8),
    ],
)
def test_tiles_of_a_graph_add_up(name: str, expected: int) -> None:
    graph = parse((DATA / f"{name}.mpir").read_text(encoding="utf-8"))
    assert ops.graph_macs(graph) == expected
