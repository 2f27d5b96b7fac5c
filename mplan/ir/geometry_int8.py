"""The geometry of quantised ops, whose images are NHWC (see ``mplan.ir.geometry``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mplan.ir.bilinear import PLACE_BITS, reach_of
from mplan.ir.geometry import (
    NHWC,
    Access,
    Reach,
    Rule,
    Spatial,
    Tile,
    Types,
    enlarging,
    plain,
    pointwise,
    shape_of,
    unpadded,
)
from mplan.ir.graph import Arg, Op, Ref
from mplan.ir.ops import BoundArg
from mplan.ir.quantized_reference import nearest_indices, requantized
from mplan.ir.quantized_transposed import result_size

if TYPE_CHECKING:
    from torch import Tensor


def _integers(arg: Arg) -> tuple[int, ...]:
    return tuple(n for n in arg if isinstance(n, int)) if isinstance(arg, tuple) else ()


def _window(op: Op, types: Types) -> Spatial | None:
    """Convolutions and maximum pools: windows that may take padding for pixels of a certain value."""
    given = op.arg("input")
    assert isinstance(given, Ref)
    kernel = _integers(op.arg("kernel_size")) or shape_of(types, op.arg("weight"))[1:3]
    stride, padding = _integers(op.arg("stride")), _integers(op.arg("padding"))
    dilation = _integers(op.arg("dilation")) or (1, 1)
    rows, cols = (
        Reach(stride[d], -padding[2 * d], (kernel[d] - 1) * dilation[d] - padding[2 * d])
        for d in range(2)
    )
    value = op.arg("padding_value", op.arg("input_zero_point", -128))
    fill = float(value) if isinstance(value, int) else 0.0
    access = Access(given.name, (rows, cols), fill)
    if op.kind == "mplan.qavg_pool2d" and any(padding):
        return Spatial(NHWC, (access,), partial(_average, op.kind, given.name, types, access.reach))
    run = partial(unpadded, op.kind, {"padding": (0, 0, 0, 0)})
    return Spatial(NHWC, (access,), run)


def _transposed(op: Op, types: Types) -> Spatial | None:
    """Transposed convolutions, in which pixels beside the image take part as in others."""
    given = op.arg("input")
    assert isinstance(given, Ref)
    kernel = shape_of(types, op.arg("weight"))[1:3]
    stride, padding, dilation = (_integers(op.arg(n)) for n in ("stride", "padding", "dilation"))
    rows, cols = (enlarging(kernel[d], stride[d], padding[2 * d], dilation[d]) for d in range(2))
    value = op.arg("padding_value", op.arg("input_zero_point"))
    fill = float(value) if isinstance(value, int) else 0.0
    taps = (kernel, stride, padding, dilation)
    return Spatial(NHWC, (Access(given.name, (rows, cols), fill),), partial(_enlarge, op.kind, taps))


def _enlarge(
    kind: str,
    taps: tuple[tuple[int, ...], ...],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    """The tile, as what the operand's tile yields lacks what lies around it."""
    kernel, stride, padding, dilation = taps
    cut: list[int] = []
    for d, (first, end) in enumerate(tile):
        before = first + padding[2 * d] - starts["input"][d] * stride[d]
        whole = result_size(args["input"].shape[1 + d], kernel[d], stride[d], dilation[d], before, 0)
        cut += [before, whole - (end - first)]
    return plain(kind, {**args, "padding": tuple(cut)}, tile, starts)


def _average(
    kind: str,
    name: str,
    types: Types,
    reach: tuple[Reach, Reach],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    """Means of the pixels inside the image: without those of the tile's operand that lie outside, which
    the op then takes for padding of its own."""
    part: Tensor = args["input"]
    padding: list[int] = []
    for d, size in enumerate(shape_of(types, Ref(name))[1:3]):
        first, end = reach[d].span(*tile[d])
        low, high = max(-first, 0), max(end - size, 0)
        part = part.narrow(1 + d, low, end - first - low - high)
        padding += [low, high]
    return plain(kind, {**args, "input": part, "padding": tuple(padding)}, tile, starts)


def _resize(op: Op, types: Types) -> Spatial | None:
    """The nearest pixel, where it is that of a whole factor."""
    given = op.arg("input")
    assert isinstance(given, Ref)
    sizes, wanted = shape_of(types, given)[1:3], _integers(op.arg("size"))
    how = (op.arg("align_corners") is True, op.arg("half_pixel_centers") is True)
    factors = [max(n // size, 1) for n, size in zip(wanted, sizes, strict=True)]
    for size, n, factor in zip(sizes, wanted, factors, strict=True):
        if nearest_indices(size, n, *how) != [o // factor for o in range(n)]:
            return None
    reach = (Reach(div=factors[0]), Reach(div=factors[1]))
    return Spatial(NHWC, (Access(given.name, reach),), partial(_enlarged, tuple(factors)))


def _enlarged(
    factors: tuple[int, ...],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    import torch

    part: Tensor = args["input"]
    for d, factor in enumerate(factors):
        index = torch.tensor([o // factor - starts["input"][d] for o in range(*tile[d])])
        part = part.index_select(1 + d, index)
    return part


def _interpolate(op: Op, types: Types) -> Spatial | None:
    """The pixels around a place."""
    given = op.arg("input")
    assert isinstance(given, Ref)
    places = (_integers(op.arg("rows")), _integers(op.arg("columns")))
    sizes = shape_of(types, given)[1:3]
    rows, cols = (reach_of(p, length) for p, length in zip(places, sizes, strict=True))
    return Spatial(NHWC, (Access(given.name, (rows, cols)),), partial(_interpolated, op.kind))


def _interpolated(
    kind: str, args: Mapping[str, BoundArg], tile: Tile, starts: Mapping[str, tuple[int, int]]
) -> Tensor:
    moved = {
        name: tuple(p - (start << PLACE_BITS) for p in args[name][first:end])
        for name, (first, end), start in zip(("rows", "columns"), tile, starts["input"], strict=True)
    }
    return plain(kind, {**args, **moved}, tile, starts)


def _by_pixel(op: Op, types: Types) -> Spatial | None:
    """Ops along the channels of every pixel."""
    given = op.arg("input")
    shape = shape_of(types, given)
    if len(shape) != 4 or not isinstance(given, Ref) or op.operands.count(given.name) > 1:
        return None
    return Spatial(NHWC, (Access(given.name),), partial(plain, op.kind))


def _mean(op: Op, types: Types) -> Spatial | None:
    given = op.arg("input")
    if {n % 4 for n in _integers(op.arg("dim"))} != set(NHWC) or len(shape_of(types, given)) != 4:
        return None
    assert isinstance(given, Ref)
    names = ("multiplier", "shift", "output_zero_point")
    multiplier, shift, zero_point = _integers(tuple(op.arg(name) for name in names))

    def finish(total: Tensor) -> Tensor:
        return requantized(total, None, multiplier, shift, zero_point, (-128, 127))

    return Spatial(NHWC, (Access(given.name),), _sum, reduces=True, finish=finish)


def _sum(args: Mapping[str, BoundArg], tile: Tile, starts: Mapping[str, tuple[int, int]]) -> Tensor:
    import torch

    part: Tensor = args["input"].to(torch.int32) - args["input_zero_point"]
    return part.sum(NHWC, dtype=torch.int32)


def _pointwise(op: Op, types: Types) -> Spatial | None:
    return pointwise(op, types, NHWC, partial(plain, op.kind))


RULES: dict[str, Rule] = {
    "mplan.qconv2d": _window,
    "mplan.qdepthwise_conv2d": _window,
    "mplan.qconv_transpose2d": _transposed,
    "mplan.qdepthwise_conv_transpose2d": _transposed,
    "mplan.qmax_pool2d": _window,
    "mplan.qavg_pool2d": _window,
    "mplan.qmean": _mean,
    "mplan.resize_nearest2d": _resize,
    "mplan.resize_bilinear2d": _interpolate,
    **dict.fromkeys(("mplan.qlinear", "mplan.qsoftmax", "mplan.qlayer_norm"), _by_pixel),
    **dict.fromkeys(
        ("mplan.qadd", "mplan.qsub", "mplan.qmul", "mplan.qprelu", "mplan.qtable"), _pointwise
    ),
    "mplan.requantize": _pointwise,
    **dict.fromkeys(("mplan.quantize", "mplan.dequantize"), _pointwise),
}
