"""Pools, means, softmax and layer norm."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from mplan.ir.affine import Affine, mean_factor, softmax_factors
from mplan.ir.graph import Arg, Op, Ref
from mplan.ir.quantized_norm import norm_epsilon, norm_integers
from mplan.passes.lower_quantized.goal import Goal, Unlowered
from mplan.passes.lower_quantized.layout import NHWC, Sizes, Stored, plain
from mplan.passes.lower_quantized.lowering import Lowering, rule
from mplan.passes.lower_quantized.moves import image, integers, number, padded
from mplan.passes.lower_quantized.windows import windows

#: The only scale and zero point of a softmax.
PROBABILITIES = Affine(1 / 256, -128)


@rule("aten.mean.dim", "aten.sum.dim_IntList", "aten.mean.default")
def mean(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A mean or a sum over some dimensions."""
    x = low.operand(op, "self")
    rank = len(x.shape)
    dims = {d % rank for d in integers(op, "dim")} or set(range(rank))
    return _mean(low, op, x, dims, op.arg("keepdim", False) is True, goal)


def _mean(low: Lowering, op: Op, x: Stored, dims: set[int], keepdim: bool, goal: Goal) -> Stored:
    count = prod(x.shape[d] for d in dims)
    factor = x.affine.scale / goal.affine.scale
    multiplier, shift = mean_factor(factor, 1 if ".sum." in op.kind else count)
    if not (-31 <= shift <= 31):
        raise Unlowered("the factor to its result's scale is out of range")
    args: dict[str, Arg] = {
        "input": Ref(x.name),
        "dim": tuple(sorted(x.order.index(d) for d in dims)),
        "keepdim": True,
        "input_zero_point": x.affine.zero_point,
        "multiplier": multiplier,
        "shift": shift,
        "output_zero_point": goal.affine.zero_point,
    }
    name = low.builder.emit("mplan.qmean", args, op.result.name, op.loc)
    kept = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    made = Stored(name, kept, x.order, goal.affine)
    if not keepdim:
        made = low.reshaped(made, tuple(n for d, n in enumerate(x.shape) if d not in dims))
    return low.requantized(made, goal)


_ADAPTIVE = ("aten._adaptive_avg_pool2d.default", "aten.adaptive_avg_pool2d.default")


@rule("aten.avg_pool2d.default", *_ADAPTIVE)
def avg_pool(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A mean of windows, in the scale of the operand; over the whole image a mean."""
    x = low.operand(op, "self")
    if len(x.shape) != 4:
        raise Unlowered("pools of two dimensions alone have an integer form")
    kernel, stride, padding = _adaptive(op, x) if "adaptive" in op.kind else _window(op)
    if kernel == x.shape[2:] and not any(padding):
        return _mean(low, op, x, {2, 3}, True, goal)
    x = image(low, x)
    if any(padding) and op.arg("count_include_pad", True) is True:
        widths = (padding[1], padding[1], padding[0], padding[0])
        x = padded(low, x, widths, x.affine.zero_point, op.result.name, op)
        padding = (0, 0)
    shape = low.shape(op.result.name)
    args = windows(x, kernel, stride, padding, shape)
    name = low.builder.emit("mplan.qavg_pool2d", args, op.result.name, op.loc)
    made = Stored(name, shape, NHWC, x.affine, x.least, x.most)
    return low.requantized(made, goal)


def _window(op: Op) -> tuple[Sizes, Sizes, Sizes]:
    if op.arg("divisor_override") is not None:
        raise Unlowered("a pool with a divisor of its own")
    kernel = integers(op, "kernel_size", 2)
    return kernel, integers(op, "stride", 2) or kernel, integers(op, "padding", 2) or (0, 0)


def _adaptive(op: Op, x: Stored) -> tuple[Sizes, Sizes, Sizes]:
    size = integers(op, "output_size", 2)
    if any(n % m for n, m in zip(x.shape[2:], size, strict=True)):
        raise Unlowered("its windows overlap")
    kernel = tuple(n // m for n, m in zip(x.shape[2:], size, strict=True))
    return kernel, kernel, (0, 0)


@rule("aten._softmax.default", "aten.softmax.int")
def softmax(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A softmax over one dimension, which is stored last for it."""
    x = low.operand(op, "self")
    rank = len(x.shape)
    dim = number(op, "dim") % rank
    x = _last(low, x, (dim,))
    multiplier, shift, lowest = softmax_factors(1.0, x.affine.scale)
    factors: dict[str, Arg] = {"multiplier": multiplier, "shift": shift, "diff_min": lowest}
    args: dict[str, Arg] = {"input": Ref(x.name), **factors}
    name = low.builder.emit("mplan.qsoftmax", args, op.result.name, op.loc)
    return low.requantized(Stored(name, x.shape, x.order, PROBABILITIES), goal)


def _last(low: Lowering, x: Stored, dims: Sizes) -> Stored:
    """``x`` with ``dims`` stored last, in this order."""
    wide = [d for d in x.order if x.shape[d] != 1]
    wanted = [d for d in dims if x.shape[d] != 1]
    if wide[len(wide) - len(wanted) :] == wanted:
        first = tuple(d for d in x.order if d not in dims)
    else:
        first = tuple(d for d in plain(len(x.shape)) if d not in dims)
    return low.arranged(x, (*first, *dims))


@rule("aten.native_layer_norm.default", "aten.layer_norm.default")
def layer_norm(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A layer norm over the last dimensions."""
    import torch

    x = low.operand(op, "input")
    count = len(integers(op, "normalized_shape"))
    rank = len(x.shape)
    x = _last(low, x, tuple(range(rank - count, rank)))
    rows = low.reshaped(x, (*x.shape[: rank - count], prod(x.shape[rank - count :])))
    length, epsilon = rows.shape[-1], op.arg("eps", 1e-5)
    assert isinstance(epsilon, float)
    weight, bias = (_per_channel(low, op, name, length) for name in ("weight", "bias"))
    integers_ = norm_integers(weight or [1.0], bias or [], goal.affine.scale)
    parts = dict(zip(("multiplier", "shift", "bias"), integers_, strict=True))
    types = {"multiplier": torch.int32, "shift": torch.int8, "bias": torch.int32}
    refs: dict[str, Arg] = {
        key: low.builder.constant(f"{op.result.name}_{key}", torch.tensor(part, dtype=types[key]))
        for key, part in parts.items()
        if part
    }
    args: dict[str, Arg] = {
        "input": Ref(rows.name),
        **refs,
        "epsilon": norm_epsilon(epsilon, length, x.affine.scale),
        **goal.output(),
    }
    name = low.builder.emit("mplan.qlayer_norm", args, op.result.name, op.loc)
    made = low.made(name, rows.shape, rows.order, goal)
    return replace(low.reshaped(made, x.shape), affine=goal.affine)


def _per_channel(low: Lowering, op: Op, name: str, length: int) -> list[float]:
    """A constant of one number per channel; empty if it is absent."""
    if op.arg(name) is None:
        return []
    found = low.constant(op.arg(name))
    if found is None or found.numel() != length:
        raise Unlowered(f"its {name} is no constant")
    return [float(n) for n in found.reshape(-1)]
