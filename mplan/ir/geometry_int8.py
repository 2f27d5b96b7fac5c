"""The geometry of quantised ops, whose images are NHWC (see ``mplan.ir.geometry``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mplan.ir.geometry import (
    Access,
    Reach,
    Rule,
    Spatial,
    Tile,
    Types,
    plain,
    pointwise,
    shape_of,
    unpadded,
)
from mplan.ir.graph import Arg, Op, Ref
from mplan.ir.ops import BoundArg
from mplan.ir.quantized_reference import requantized

if TYPE_CHECKING:
    from torch import Tensor

NHWC = (1, 2)


def _integers(arg: Arg) -> tuple[int, ...]:
    return tuple(n for n in arg if isinstance(n, int)) if isinstance(arg, tuple) else ()


def _window(op: Op, types: Types) -> Spatial | None:
    """Convolutions and maximum pools: windows that may take padding for pixels of a certain value."""
    given = op.arg("input")
    assert isinstance(given, Ref)
    kernel = _integers(op.arg("kernel_size")) or shape_of(types, op.arg("weight"))[1:3]
    stride, padding = _integers(op.arg("stride")), _integers(op.arg("padding"))
    dilation = _integers(op.arg("dilation")) or (1, 1)
    if op.kind == "mplan.qavg_pool2d" and any(padding):
        return None
    rows, cols = (
        Reach(stride[d], -padding[2 * d], (kernel[d] - 1) * dilation[d] - padding[2 * d])
        for d in range(2)
    )
    value = op.arg("padding_value", op.arg("input_zero_point", -128))
    fill = float(value) if isinstance(value, int) else 0.0
    access = Access(given.name, (rows, cols), fill)
    run = partial(unpadded, op.kind, {"padding": (0, 0, 0, 0)})
    return Spatial(NHWC, (access,), run)


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
    "mplan.qmax_pool2d": _window,
    "mplan.qavg_pool2d": _window,
    "mplan.qmean": _mean,
    **dict.fromkeys(
        ("mplan.qadd", "mplan.qsub", "mplan.qmul", "mplan.qtable", "mplan.requantize"), _pointwise
    ),
    **dict.fromkeys(("mplan.quantize", "mplan.dequantize"), _pointwise),
}
