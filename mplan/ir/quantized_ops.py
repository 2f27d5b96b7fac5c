"""Rows of the quantised ops: int8 tensors, int32 accumulators, integer arithmetic stated to the bit.

Images are NHWC (``[N, H, W, C]``), the layout that microcontroller kernels and TFLite use; weights of
a convolution ``[O, kernel_h, kernel_w, C / groups]``, of a depthwise one ``[1, kernel_h, kernel_w,
O]``, of a linear layer ``[O, I]``. Weights are symmetric (zero point 0). A real number is
``scale * (q - zero_point)``; ``multiplier`` and ``shift`` (see ``fixed_point``) are the factor
``input scale * weight scale / output scale``, as tensors (int32, int8) of one entry or one per output
channel where weights are scaled per channel. Results are clamped to ``[clamp_min, clamp_max]``, which
is how activations such as ReLU6 are fused. ``padding`` is (top, bottom, left, right); padding reads
as ``padding_value`` in convolutions, which is the input's zero point unless given, and as nothing in
pools. A layer is ``bounded`` if its constants prove that no input overflows: no sum with its bias,
shifted left where the shift is positive, reaches 2**30 in absolute value. Its bias and factors are
then given, one per output channel, shifts are at least -30, no weight is -128 and the input's zero
point is 0. It is ``below_half``, too, if all its shifts are negative.

A transposed convolution has the weights of a convolution; its ``padding`` is what the result lacks at
its sides, which below and on the right may be negative (torch's ``padding - output_padding``). Pixels
beside the image read as ``padding_value`` as well. Its bias may be one per phase (``[stride_h,
stride_w, O]``, see ``quantized_transposed``), in which an input zero point is folded.

The weights of a depthwise convolution with as many outputs as channels, a multiple of 4, may lie in the
``weight_order`` "pairs" (see ``paired`` in ``quantized_reference``) rather than "plain".

Views, concatenation and constant padding need no quantised op: they stay ATen's. Layer by layer, the
arithmetic is TFLite's (Jacob et al. 2018): ``double`` rounding everywhere but in linear layers, which
say which of both they use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import ModuleType
from typing import Any

from mplan.diagnostics import UserError
from mplan.ir import bilinear, quantized_norm
from mplan.ir import quantized_reference as reference
from mplan.ir import quantized_transposed as transposed
from mplan.ir.bilinear import within
from mplan.ir.fixed_point import ROUNDINGS
from mplan.ir.graph import Op, Ref
from mplan.ir.ops import BoundArg, OpDef, Param, bound_args
from mplan.ir.quantized_transposed import phases, result_size
from mplan.ir.types import DType, TensorType, Type

#: Orders of a depthwise convolution's weights.
WEIGHT_ORDERS = ("plain", "pairs")
#: The sum of as many exponentials need not fit the 12 integer bits that it has.
SOFTMAX_LIMIT = 1 << 12

_Args = Mapping[str, BoundArg]


def _image(args: _Args, name: str = "input") -> tuple[int, ...]:
    """The sizes of an int8 image."""
    sizes = _sizes(args, name)
    if len(sizes) != 4:
        raise UserError("MP107", f"{name} must be [N, H, W, C], got {len(sizes)} dimensions")
    return sizes


def _sizes(args: _Args, name: str, dtype: DType = DType.I8) -> tuple[int, ...]:
    type_ = args[name]
    if not isinstance(type_, TensorType) or type_.dtype is not dtype:
        raise UserError("MP107", f"{name} must be a tensor of {dtype.value}")
    sizes = tuple(n for n in type_.shape if isinstance(n, int))
    if len(sizes) != len(type_.shape):
        raise UserError("MP105", f"the shape of {name} is symbolic; bind or bound it first")
    return sizes


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError("MP107", message)


def _channel_factors(args: _Args, channels: int, biases: Sequence[tuple[int, ...]] = ()) -> None:
    """Bias (of one of the shapes ``biases``), multiplier and shift must fit ``channels`` outputs."""
    if args.get("bias") is not None:
        fits = _sizes(args, "bias", DType.I32) in (biases or ((channels,),))
        _require(fits, f"bias must have {channels} entries")
    for name, dtype in (("multiplier", DType.I32), ("shift", DType.I8)):
        fits = _sizes(args, name, dtype) in ((1,), (channels,))
        _require(fits, f"{name} must have 1 or {channels} entries")


def _spatial(
    sizes: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Height and width of what a window yields that moves over an image of ``sizes``."""
    counts = [len(t) for t in (kernel, stride, padding, dilation)]
    _require(counts == [2, 2, 4, 2], "kernel, stride and dilation have 2 entries, padding 4")
    _require(min(*kernel, *stride, *dilation) > 0, "kernel, stride and dilation must be positive")
    _require(min(padding) >= 0, "padding must not be negative")
    found = []
    for d in (0, 1):
        room = sizes[d] + padding[2 * d] + padding[2 * d + 1] - (kernel[d] - 1) * dilation[d] - 1
        _require(room >= 0, f"the window {list(kernel)} exceeds the padded image {list(sizes)}")
        found.append(room // stride[d] + 1)
    return found[0], found[1]


def _int8(*shape: int) -> tuple[Type | None, ...]:
    return (TensorType(DType.I8, shape),)


def _infer_conv(args: _Args) -> tuple[Type | None, ...]:
    n, height, width, channels = _image(args)
    out, kernel_h, kernel_w, depth = _image(args, "weight")
    fits = depth > 0 and channels % depth == 0 and out % (channels // depth) == 0
    _require(fits, f"{out} outputs of depth {depth} do not fit {channels} channels in groups")
    _channel_factors(args, out)
    window = (kernel_h, kernel_w), args["stride"], args["padding"], args["dilation"]
    return _int8(n, *_spatial((height, width), *window), out)


def _infer_depthwise(args: _Args) -> tuple[Type | None, ...]:
    n, height, width, channels = _image(args)
    one, kernel_h, kernel_w, out = _image(args, "weight")
    fits = one == 1 and channels > 0 and out % channels == 0
    _require(fits, f"weights [{one}, …, {out}] do not fit {channels} channels")
    order = args.get("weight_order", WEIGHT_ORDERS[0])
    known = order == WEIGHT_ORDERS[0] or (order in WEIGHT_ORDERS and out == channels and out % 4 == 0)
    _require(known, f"weights of {out} outputs of {channels} channels cannot be in the order {order!r}")
    _channel_factors(args, out)
    window = (kernel_h, kernel_w), args["stride"], args["padding"], args["dilation"]
    return _int8(n, *_spatial((height, width), *window), out)


def _infer_transposed(args: _Args) -> tuple[Type | None, ...]:
    n, height, width, channels = _image(args)
    out, *kernel, depth = _image(args, "weight")
    fits = depth > 0 and channels % depth == 0 and out % (channels // depth) == 0
    _require(fits, f"{out} outputs of depth {depth} do not fit {channels} channels in groups")
    return _int8(n, *_enlarged(args, (height, width), kernel, out), out)


def _infer_depthwise_transposed(args: _Args) -> tuple[Type | None, ...]:
    n, height, width, channels = _image(args)
    one, *kernel, out = _image(args, "weight")
    fits = one == 1 and channels > 0 and out % channels == 0
    _require(fits, f"weights [{one}, …, {out}] do not fit {channels} channels")
    return _int8(n, *_enlarged(args, (height, width), kernel, out), out)


def _enlarged(
    args: _Args, sizes: tuple[int, int], kernel: Sequence[int], channels: int
) -> tuple[int, int]:
    """Height and width of what a transposed convolution of ``channels`` outputs yields."""
    stride, padding, dilation = (args[name] for name in ("stride", "padding", "dilation"))
    counts = [len(t) for t in (stride, padding, dilation)]
    _require(counts == [2, 4, 2], "stride and dilation have 2 entries, padding 4")
    _require(min(*kernel, *stride, *dilation) > 0, "kernel, stride and dilation must be positive")
    _require(min(padding[::2]) >= 0, "padding above and on the left must not be negative")
    _channel_factors(args, channels, ((channels,), (*stride, channels)))
    found = [
        result_size(sizes[d], kernel[d], stride[d], dilation[d], *padding[2 * d : 2 * d + 2])
        for d in range(2)
    ]
    _require(min(found) > 0, f"the padding {list(padding)} leaves no results")
    return found[0], found[1]


def _infer_linear(args: _Args) -> tuple[Type | None, ...]:
    sizes, weight = _sizes(args, "input"), _sizes(args, "weight")
    fits = len(weight) == 2 and bool(sizes) and sizes[-1] == weight[1]
    _require(fits, f"weights {list(weight)} do not fit an input {list(sizes)}")
    _require(args.get("rounding", "double") in ROUNDINGS, f"rounding is one of {', '.join(ROUNDINGS)}")
    _channel_factors(args, weight[0])
    return _int8(*sizes[:-1], weight[0])


def _infer_matmul(args: _Args) -> tuple[Type | None, ...]:
    a, b = _sizes(args, "input"), _sizes(args, "other")
    fits = min(len(a), len(b)) >= 2 and a[-1] == b[-2]
    _require(fits, f"{list(a)} and {list(b)} are no matrices that can be multiplied")
    return _int8(*_broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def _infer_binary(args: _Args) -> tuple[Type | None, ...]:
    return _int8(*_broadcast(_sizes(args, "input"), _sizes(args, "other")))


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))
    _require(all(m == n or 1 in (m, n) for m, n in pairs), f"{list(a)}, {list(b)} do not broadcast")
    return tuple(n if m == 1 else m for m, n in pairs)


def _infer_pool(args: _Args) -> tuple[Type | None, ...]:
    n, height, width, channels = _image(args)
    kernel, padding = args["kernel_size"], args["padding"]
    spatial = _spatial((height, width), kernel, args["stride"], padding)
    inside = max(padding[:2]) < kernel[0] and max(padding[2:]) < kernel[1]
    _require(inside, f"the padding {list(padding)} leaves windows without a pixel")
    return _int8(n, *spatial, channels)


def _infer_mean(args: _Args) -> tuple[Type | None, ...]:
    sizes = _sizes(args, "input")
    inside = all(-len(sizes) <= d < len(sizes) for d in args["dim"]) and args["dim"]
    _require(bool(inside), f"dim {list(args['dim'])} is not among the {len(sizes)} dimensions")
    reduced = {d % len(sizes) for d in args["dim"]}
    kept = [1 if d in reduced else n for d, n in enumerate(sizes)]
    return _int8(*(n for d, n in enumerate(kept) if args["keepdim"] or d not in reduced))


def _infer_resize(args: _Args) -> tuple[Type | None, ...]:
    n, _, _, channels = _image(args)
    _require(len(args["size"]) == 2 and min(args["size"]) > 0, "size must be two positive numbers")
    return _int8(n, *args["size"], channels)


def _infer_places(args: _Args) -> tuple[Type | None, ...]:
    n, *sizes, channels = _image(args)
    for length, name in zip(sizes, ("rows", "columns"), strict=True):
        places = args[name]
        inside = bool(places) and within(places, length) == tuple(places)
        _require(inside, f"{name} must be places inside of the {length} of the image")
    return _int8(n, len(args["rows"]), len(args["columns"]), channels)


def _infer_same(args: _Args) -> tuple[Type | None, ...]:
    return _int8(*_sizes(args, "input"))


def _infer_softmax(args: _Args) -> tuple[Type | None, ...]:
    sizes = _sizes(args, "input")
    fits = bool(sizes) and 0 < sizes[-1] < SOFTMAX_LIMIT
    _require(fits, f"the last of {list(sizes)} must be from 1 to {SOFTMAX_LIMIT - 1:,}")
    return _int8(*sizes)


def _infer_layer_norm(args: _Args) -> tuple[Type | None, ...]:
    sizes = _sizes(args, "input")
    fits = bool(sizes) and 0 < sizes[-1] <= quantized_norm.LENGTH_LIMIT
    _require(fits, f"the last of {list(sizes)} must be from 1 to {quantized_norm.LENGTH_LIMIT:,}")
    within = 0 < args["epsilon"] <= quantized_norm.EPSILON_LIMIT
    _require(within, f"epsilon must be from 1 to {quantized_norm.EPSILON_LIMIT:,}")
    _channel_factors(args, sizes[-1])
    return _int8(*sizes)


def _infer_table(args: _Args) -> tuple[Type | None, ...]:
    _require(_sizes(args, "table") == (256,), "table must have 256 entries")
    return _infer_same(args)


def _infer_quantize(args: _Args) -> tuple[Type | None, ...]:
    return _int8(*_sizes(args, "input", DType.F32))


def _infer_dequantize(args: _Args) -> tuple[Type | None, ...]:
    return (TensorType(DType.F32, _sizes(args, "input")),)


def _shape(op: Op, types: Mapping[str, Type], name: str) -> tuple[int, ...]:
    ref = op.arg(name)
    assert isinstance(ref, Ref)
    return _sizes({name: types[ref.name]}, name)


def _outputs(op: Op, types: Mapping[str, Type]) -> int:
    return prod(_result(op, types))


def _result(op: Op, types: Mapping[str, Type]) -> tuple[int, ...]:
    return _sizes({"the result": types[op.result.name]}, "the result")


def _conv_macs(op: Op, types: Mapping[str, Type]) -> int:
    return _outputs(op, types) * prod(_shape(op, types, "weight")[1:])


def _depthwise_macs(op: Op, types: Mapping[str, Type]) -> int:
    return _outputs(op, types) * prod(_shape(op, types, "weight")[1:3])


def _transposed_macs(op: Op, types: Mapping[str, Type]) -> int:
    """The products of all results, as a convolution counts them: those with padding, too."""
    depthwise = op.kind == "mplan.qdepthwise_conv_transpose2d"
    _, *kernel, last = _shape(op, types, "weight")
    args = bound_args(op, types)
    n, *sizes, channels = _result(op, types)
    total = n * channels * (1 if depthwise else last)
    for d, size in enumerate(sizes):
        reads = [len(p.taps) for p in phases(kernel[d], args["stride"][d], args["dilation"][d])]
        total *= sum(reads[(o + args["padding"][2 * d]) % len(reads)] for o in range(size))
    return total


def _last_macs(op: Op, types: Mapping[str, Type]) -> int:
    return _outputs(op, types) * _shape(op, types, "input")[-1]


def _zero(op: Op, types: Mapping[str, Type]) -> int:
    return 0


_TYPES = {"t": "Tensor", "t?": "Tensor?", "i": "int", "i[]": "int[]", "b": "bool", "f": "float"}
_CLAMP = (
    Param("clamp_min", "int", required=False, default=-128),
    Param("clamp_max", "int", required=False, default=127),
)

_BOUNDED = tuple(
    Param(name, "bool", required=False, default=False) for name in ("bounded", "below_half")
)

_ORDER = Param("weight_order", "str", required=False, default=WEIGHT_ORDERS[0])


def _params(text: str, *rest: Param) -> tuple[Param, ...]:
    """``input:t stride:i[]`` as parameters; an optional tensor may be left out."""
    pairs = (item.split(":") for item in text.split())
    required = (Param(name, _TYPES[key], required=key != "t?") for name, key in pairs)
    return (*required, *rest)


def _row(
    name: str,
    params: tuple[Param, ...],
    infer: Callable[[_Args], tuple[Type | None, ...]],
    macs: Callable[[Op, Mapping[str, Type]], int] = _zero,
    *,
    pointwise: bool = False,
    module: ModuleType = reference,
) -> OpDef:
    function: Callable[..., Any] = getattr(module, name)
    return OpDef(f"mplan.{name}", params, ("Tensor",), infer, function, macs, pointwise=pointwise)


_CONV = _params(
    "input:t weight:t bias:t? multiplier:t shift:t stride:i[] padding:i[] dilation:i[] "
    "input_zero_point:i output_zero_point:i",
    *_CLAMP,
    Param("padding_value", "int?", required=False),
    *_BOUNDED,
)
_POOL = _params("input:t kernel_size:i[] stride:i[] padding:i[]", *_CLAMP)
_SUM = _params(
    "input:t other:t input_zero_point:i input_multiplier:i input_shift:i other_zero_point:i "
    "other_multiplier:i other_shift:i multiplier:i shift:i output_zero_point:i",
    *_CLAMP,
)
_PRODUCT = _params(
    "input:t other:t input_zero_point:i other_zero_point:i multiplier:i shift:i output_zero_point:i",
    *_CLAMP,
)
_SLOPED = _params(
    "input:t other:t input_zero_point:i input_multiplier:i input_shift:i other_zero_point:i "
    "multiplier:i shift:i output_zero_point:i",
    *_CLAMP,
)
_LINEAR = (
    *_params(
        "input:t weight:t bias:t? multiplier:t shift:t input_zero_point:i output_zero_point:i", *_CLAMP
    ),
    Param("rounding", "str", required=False, default="double"),
    *_BOUNDED,
)
_MEAN = _params("input:t dim:i[] keepdim:b input_zero_point:i multiplier:i shift:i output_zero_point:i")
_RESCALE = _params("input:t input_zero_point:i multiplier:i shift:i output_zero_point:i", *_CLAMP)
_NORM = _params("input:t bias:t? multiplier:t shift:t epsilon:i output_zero_point:i", *_CLAMP)
_FLOAT = _params("input:t scale:f zero_point:i")

ROWS: dict[str, OpDef] = {
    row.kind: row
    for row in (
        _row("qconv2d", _CONV, _infer_conv, _conv_macs),
        _row("qdepthwise_conv2d", (*_CONV, _ORDER), _infer_depthwise, _depthwise_macs),
        _row("qconv_transpose2d", _CONV, _infer_transposed, _transposed_macs, module=transposed),
        _row(
            "qdepthwise_conv_transpose2d",
            _CONV,
            _infer_depthwise_transposed,
            _transposed_macs,
            module=transposed,
        ),
        _row("qlinear", _LINEAR, _infer_linear, _last_macs),
        _row("qmatmul", _PRODUCT, _infer_matmul, _last_macs),
        _row("qadd", _SUM, _infer_binary, pointwise=True),
        _row("qsub", _SUM, _infer_binary, pointwise=True),
        _row("qmul", _PRODUCT, _infer_binary, pointwise=True),
        _row("qprelu", _SLOPED, _infer_binary, pointwise=True),
        _row("qavg_pool2d", _POOL, _infer_pool),
        _row("qmax_pool2d", _POOL, _infer_pool),
        _row("qmean", _MEAN, _infer_mean),
        _row("qsoftmax", _params("input:t multiplier:i shift:i diff_min:i"), _infer_softmax),
        _row("qlayer_norm", _NORM, _infer_layer_norm, module=quantized_norm),
        _row("qtable", _params("input:t table:t"), _infer_table, pointwise=True),
        _row(
            "resize_nearest2d",
            _params("input:t size:i[] align_corners:b half_pixel_centers:b"),
            _infer_resize,
        ),
        _row(
            "resize_bilinear2d",
            _params("input:t rows:i[] columns:i[]"),
            _infer_places,
            module=bilinear,
        ),
        _row("requantize", _RESCALE, _infer_same, pointwise=True),
        _row("quantize", _FLOAT, _infer_quantize, pointwise=True),
        _row("dequantize", _FLOAT, _infer_dequantize, pointwise=True),
    )
}
