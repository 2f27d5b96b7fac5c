"""Rules of TFLite's operators that compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, TypeAlias

from mplan.capture.tflite import quantization as q
from mplan.capture.tflite.model import TfOp, TfTensor, enum_names
from mplan.capture.tflite.moves import view
from mplan.capture.tflite.reader import Reader, Unreadable, activation_of, integers
from mplan.capture.tflite.table import RULES, operand, rule
from mplan.ir import affine
from mplan.ir.fixed_point import quantize_multiplier
from mplan.ir.graph import Arg, Ref
from mplan.ir.quantized_reference import ADD_LEFT_SHIFT
from mplan.ir.quantized_transposed import result_size

# --- contractions ------------------------------------------------------------------------------


@rule("CONV_2D", "DEPTHWISE_CONV_2D")
def _convolution(reader: Reader, op: TfOp) -> None:
    x, w, (y,), options = operand(op, 0), operand(op, 1), op.outputs, op.options
    depthwise = op.name == "DEPTHWISE_CONV_2D"
    stride = options.StrideH(), options.StrideW()
    dilation = options.DilationHFactor(), options.DilationWFactor()
    reader.emit(
        "mplan.qdepthwise_conv2d" if depthwise else "mplan.qconv2d",
        {
            "input": reader.ref(x),
            **_weights(reader, op, x, axis=3 if depthwise else 0),
            "stride": stride,
            "padding": _padding(options.Padding(), x.shape[1:3], w.shape[1:3], stride, dilation),
            "dilation": dilation,
            **_zero_points(reader, x, y),
            **q.clamp_range(activation_of(op), reader.affine(y)),
        },
        y,
    )


@rule("TRANSPOSE_CONV")
def _transposed_convolution(reader: Reader, op: TfOp) -> None:
    """Padding is that of the convolution which would make the input of the result."""
    x, w, (y,), options = operand(op, 2), operand(op, 1), op.outputs, op.options
    stride = options.StrideH(), options.StrideW()
    sizes, kernel = y.shape[1:3], w.shape[1:3]
    top, _, left, _ = _padding(options.Padding(), sizes, kernel, stride, (1, 1))
    below, right = (
        result_size(x.shape[1 + d], kernel[d], stride[d], 1, before, sizes[d])
        for d, before in enumerate((top, left))
    )
    reader.emit(
        "mplan.qconv_transpose2d",
        {
            "input": reader.ref(x),
            **_weights(reader, op, x, axis=0, bias=3),
            "stride": stride,
            "padding": (top, below, left, right),
            "dilation": (1, 1),
            **_zero_points(reader, x, y),
            **q.clamp_range(activation_of(op), reader.affine(y)),
        },
        y,
    )


@rule("FULLY_CONNECTED")
def _fully_connected(reader: Reader, op: TfOp) -> None:
    x, w, (y,) = operand(op, 0), operand(op, 1), op.outputs
    if op.options and op.options.WeightsFormat():
        raise Unreadable("its weights are shuffled")
    rows = reader.ref(x)
    if x.shape[:-1] != y.shape[:-1]:
        rows = view(reader, x, (prod(x.shape) // w.shape[1], w.shape[1]), y)
    reader.emit(
        "mplan.qlinear",
        {
            "input": rows,
            **_weights(reader, op, x, axis=0),
            **_zero_points(reader, x, y),
            **q.clamp_range(activation_of(op), reader.affine(y)),
            "rounding": reader.linear_rounding,
        },
        y,
    )


@rule("BATCH_MATMUL")
def _batch_matmul(reader: Reader, op: TfOp) -> None:
    a, b, (y,) = operand(op, 0), operand(op, 1), op.outputs
    qa, qb, qy = reader.affine(a), reader.affine(b), reader.affine(y)
    multiplier, shift = quantize_multiplier(affine.matmul_factor(qa.scale, qb.scale, qy.scale))
    swapped = (op.options.AdjX(), op.options.AdjY()) if op.options else (False, False)
    refs = [
        _transposed(reader, t, y) if swap else reader.ref(t)
        for t, swap in zip((a, b), swapped, strict=True)
    ]
    reader.emit(
        "mplan.qmatmul",
        {
            "input": refs[0],
            "other": refs[1],
            "input_zero_point": qa.zero_point,
            "other_zero_point": qb.zero_point,
            "multiplier": multiplier,
            "shift": shift,
            "output_zero_point": qy.zero_point,
        },
        y,
    )


def _transposed(reader: Reader, tensor: TfTensor, target: TfTensor) -> Ref:
    ref = reader.ref(tensor)
    swap: dict[str, Arg] = {"self": ref, "dim0": -2, "dim1": -1}
    return reader.emit("aten.transpose.int", swap, target, view_of=ref.name, final=False)


def _zero_points(reader: Reader, x: TfTensor, y: TfTensor) -> dict[str, Arg]:
    return {
        "input_zero_point": reader.affine(x).zero_point,
        "output_zero_point": reader.affine(y).zero_point,
    }


def _weights(reader: Reader, op: TfOp, x: TfTensor, axis: int, bias: int = 2) -> dict[str, Arg]:
    """Weight, bias (input number ``bias``) and the factors per output channel for the image ``x``."""
    w, (y,) = operand(op, 1), op.outputs
    given = op.inputs[bias] if len(op.inputs) > bias else None
    if w.dtype != "int8" or w.data is None:
        raise Unreadable(f"the weights {w.name!r} are no int8 constant")
    if any(w.zero_points) or not w.scales:
        raise Unreadable(f"the weights {w.name!r} are not symmetric")
    if len(w.scales) > 1 and w.axis != axis:
        raise Unreadable(f"the weights {w.name!r} are scaled along dimension {w.axis}, not {axis}")
    if given is not None and (given.dtype != "int32" or given.data is None):
        raise Unreadable(f"the bias {given.name!r} is no int32 constant")
    source, out = reader.affine(x), reader.affine(y)
    factors = [quantize_multiplier(source.scale * s / out.scale) for s in w.scales]
    return {
        "weight": reader.ref(w),
        "bias": reader.ref(given) if given else None,
        "multiplier": reader.constant(f"{y.name}_multiplier", [m for m, _ in factors], "int32"),
        "shift": reader.constant(f"{y.name}_shift", [s for _, s in factors], "int8"),
    }


def _padding(
    kind: int,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right); SAME gives ``ceil(size / stride)`` outputs, odd pixels at the end."""
    if enum_names("Padding")[kind] != "SAME":
        return 0, 0, 0, 0
    found = []
    for size, taps, step, spread in zip(sizes, kernel, stride, dilation, strict=True):
        reach = (-(-size // step) - 1) * step + (taps - 1) * spread + 1
        found.append(max(reach - size, 0))
    return found[0] // 2, found[0] - found[0] // 2, found[1] // 2, found[1] - found[1] // 2


# --- element by element ------------------------------------------------------------------------


@rule("ADD", "SUB")
def _sum(reader: Reader, op: TfOp) -> None:
    a, b, (y,) = operand(op, 0), operand(op, 1), op.outputs
    qa, qb, qy = reader.affine(a), reader.affine(b), reader.affine(y)
    first, second, result = affine.sum_factors(qa, qb, qy, ADD_LEFT_SHIFT)
    reader.emit(
        f"mplan.q{op.name.lower()}",
        {
            "input": reader.ref(a),
            "other": reader.ref(b),
            **_factor("input_", qa.zero_point, first),
            **_factor("other_", qb.zero_point, second),
            "multiplier": result[0],
            "shift": result[1],
            "output_zero_point": qy.zero_point,
            **q.clamp_range(activation_of(op), qy),
        },
        y,
    )


def _factor(prefix: str, zero_point: int, factor: tuple[int, int]) -> dict[str, Arg]:
    return {
        f"{prefix}zero_point": zero_point,
        f"{prefix}multiplier": factor[0],
        f"{prefix}shift": factor[1],
    }


@rule("MUL")
def _product(reader: Reader, op: TfOp) -> None:
    a, b, (y,) = operand(op, 0), operand(op, 1), op.outputs
    qa, qb, qy = reader.affine(a), reader.affine(b), reader.affine(y)
    multiplier, shift = quantize_multiplier(affine.float32_factor(qa.scale, qb.scale, qy.scale))
    reader.emit(
        "mplan.qmul",
        {
            "input": reader.ref(a),
            "other": reader.ref(b),
            "input_zero_point": qa.zero_point,
            "other_zero_point": qb.zero_point,
            "multiplier": multiplier,
            "shift": shift,
            "output_zero_point": qy.zero_point,
            **q.clamp_range(activation_of(op), qy),
        },
        y,
    )


@rule("PRELU")
def _prelu(reader: Reader, op: TfOp) -> None:
    x, slope, (y,) = operand(op, 0), operand(op, 1), op.outputs
    qx, qs, qy = reader.affine(x), reader.affine(slope), reader.affine(y)
    above = quantize_multiplier(affine.float32_factor(qx.scale, qy.scale))
    below = quantize_multiplier(affine.float32_factor(qx.scale, qs.scale, qy.scale))
    reader.emit(
        "mplan.qprelu",
        {
            "input": reader.ref(x),
            "other": reader.ref(slope),
            **_factor("input_", qx.zero_point, above),
            "other_zero_point": qs.zero_point,
            "multiplier": below[0],
            "shift": below[1],
            "output_zero_point": qy.zero_point,
        },
        y,
    )


@rule("QUANTIZE")
def _quantize(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    out = reader.affine(y)
    if x.dtype == "float32":
        scale: dict[str, Arg] = {"scale": out.scale, "zero_point": out.zero_point}
        reader.emit("mplan.quantize", {"input": reader.ref(x), **scale}, y)
    else:
        _requantize(reader, x, y, reader.affine(x).scale / out.scale)


@rule("DEQUANTIZE")
def _dequantize(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    source = reader.affine(x)
    scale: dict[str, Arg] = {"scale": source.scale, "zero_point": source.zero_point}
    reader.emit("mplan.dequantize", {"input": reader.ref(x), **scale}, y)


@rule("RELU", "RELU6", "RELU_N1_TO_1")
def _relu(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    factor = affine.float32_factor(reader.affine(x).scale, reader.affine(y).scale)
    _requantize(reader, x, y, factor, op.name)


def _requantize(
    reader: Reader, x: TfTensor, y: TfTensor, factor: float, activation: str = "NONE"
) -> None:
    multiplier, shift = quantize_multiplier(factor)
    zero_points = _zero_points(reader, x, y)
    reader.emit(
        "mplan.requantize",
        {
            "input": reader.ref(x),
            "input_zero_point": zero_points["input_zero_point"],
            "multiplier": multiplier,
            "shift": shift,
            "output_zero_point": zero_points["output_zero_point"],
            **q.clamp_range(activation, reader.affine(y)),
        },
        y,
    )


Table: TypeAlias = Callable[[affine.Affine, affine.Affine, Any], tuple[int, ...]]


def _table(reader: Reader, op: TfOp, *, make: Table) -> None:
    x, (y,) = operand(op, 0), op.outputs
    entries = make(reader.affine(x), reader.affine(y), op.options)
    table = reader.constant(f"{y.name}_table", entries, "int8")
    reader.emit("mplan.qtable", {"input": reader.ref(x), "table": table}, y)


def _hard_swish(x: affine.Affine, y: affine.Affine, _: Any) -> tuple[int, ...]:
    if x.scale / 128 >= y.scale:
        raise Unreadable(f"its result has the scale {y.scale:g}, less than 1/128 of its input's")
    return q.hard_swish_table(x, y)


_TABLES: dict[str, Table] = {
    "LOGISTIC": lambda x, y, _: q.table_of(q.logistic, x, y),
    "TANH": lambda x, y, _: q.table_of(q.tanh, x, y),
    "GELU": lambda x, y, o: q.table_of(q.gelu_tanh if o and o.Approximate() else q.gelu, x, y),
    "HARD_SWISH": _hard_swish,
    "LEAKY_RELU": lambda x, y, o: q.leaky_relu_table(x, y, o.Alpha()),
}
RULES.update({name: partial(_table, make=make) for name, make in _TABLES.items()})


# --- windows and reductions --------------------------------------------------------------------


@rule("AVERAGE_POOL_2D", "MAX_POOL_2D")
def _pool(reader: Reader, op: TfOp) -> None:
    x, (y,), options = operand(op, 0), op.outputs, op.options
    kernel = options.FilterHeight(), options.FilterWidth()
    stride = options.StrideH(), options.StrideW()
    reader.emit(
        "mplan.qavg_pool2d" if op.name == "AVERAGE_POOL_2D" else "mplan.qmax_pool2d",
        {
            "input": reader.ref(x),
            "kernel_size": kernel,
            "stride": stride,
            "padding": _padding(options.Padding(), x.shape[1:3], kernel, stride, (1, 1)),
            **q.clamp_range(activation_of(op), reader.same_affine(x, y)),
        },
        y,
    )


@rule("MEAN")
def _mean(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    source, out = reader.affine(x), reader.affine(y)
    dims = sorted({d % len(x.shape) for d in integers(operand(op, 1), "the axis")})
    multiplier, shift = affine.mean_factor(source.scale / out.scale, prod(x.shape[d] for d in dims))
    reader.emit(
        "mplan.qmean",
        {
            "input": reader.ref(x),
            "dim": tuple(dims),
            "keepdim": bool(op.options and op.options.KeepDims()),
            "input_zero_point": source.zero_point,
            "multiplier": multiplier,
            "shift": shift,
            "output_zero_point": out.zero_point,
        },
        y,
    )


@rule("SOFTMAX")
def _softmax(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    if reader.affine(y) != affine.Affine(1 / 256, -128):
        raise Unreadable("its result must have the scale 1/256 and the zero point -128")
    multiplier, shift, lowest = affine.softmax_factors(op.options.Beta(), reader.affine(x).scale)
    factors: dict[str, Arg] = {"multiplier": multiplier, "shift": shift, "diff_min": lowest}
    reader.emit("mplan.qsoftmax", {"input": reader.ref(x), **factors}, y)
