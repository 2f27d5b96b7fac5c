"""Convolutions, linear layers and matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mplan.ir.fixed_point import quantize_multiplier
from mplan.ir.graph import Arg, Op, Ref
from mplan.passes.lower_quantized.goal import Goal, Unlowered
from mplan.passes.lower_quantized.layout import Sizes, Stored, plain
from mplan.passes.lower_quantized.lowering import Lowering, rule
from mplan.passes.lower_quantized.moves import image, integers, number
from mplan.passes.lower_quantized.scales import Weight

if TYPE_CHECKING:
    from torch import Tensor

#: Biases are at most this, so that sums of products fit 32 bits beside them.
BIAS_LIMIT = 1 << 30


@rule(
    "aten.convolution.default",
    "aten.conv2d.default",
    "aten.conv1d.default",
    "aten.conv_transpose2d.input",
    "aten.conv_transpose1d.default",
)
def convolution(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A convolution of one or two dimensions with constant weights, transposed or not."""
    transposed = op.arg("transposed") is True or "conv_transpose" in op.kind
    x = low.operand(op, "input")
    rank = len(x.shape)
    padding, groups = op.arg("padding", 0), number(op, "groups", 1)
    if rank not in (3, 4) or isinstance(padding, str):
        raise Unlowered("convolutions of one or two dimensions alone have an integer form")
    weight = _turned(low, op, groups) if transposed else _weight(low, op, "weight", 0)
    stride, dilation = (_spatial(integers(op, n, rank - 2), 1) for n in ("stride", "dilation"))
    rows, columns = _spatial(integers(op, "padding", rank - 2), 0)
    more = _spatial(integers(op, "output_padding", rank - 2), 0) if transposed else (0, 0)
    if rank == 3:
        x = low.reshaped(x, (*x.shape[:2], 1, x.shape[2]))
        weight = replace(weight, values=weight.values.unsqueeze(2))
    x = image(low, x)
    depthwise = groups == x.shape[1] > 1
    constants = _constants(low, op, x, weight, low.constant(op.arg("bias")), goal)
    values = constants.pop("values").permute((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    name = low.builder.emit(
        f"mplan.q{'depthwise_' if depthwise else ''}conv{'_transpose' if transposed else ''}2d",
        {
            "input": Ref(x.name),
            "weight": low.builder.constant(low.source(op, "weight"), values, "param"),
            **_refs(low, op, constants),
            "stride": stride,
            "padding": (rows, rows - more[0], columns, columns - more[1]),
            "dilation": dilation,
            "input_zero_point": x.affine.zero_point,
            **goal.output(),
        },
        op.result.name,
        op.loc,
    )
    shape = low.shape(op.result.name)
    wide = (*shape[:2], 1, shape[2]) if rank == 3 else shape
    return low.reshaped(low.made(name, wide, x.order, goal), shape)


def _spatial(numbers: Sizes, default: int) -> Sizes:
    """Two entries, the first for a dimension that is not there."""
    return (default,) * (2 - len(numbers)) + numbers


def _weight(low: Lowering, op: Op, name: str, axis: int) -> Weight:
    """Constant weights whose scales belong to dimension ``axis``."""
    found = low.weight(low.source(op, name))
    if found is None:
        raise Unlowered("its weights are no constant of symmetric int8")
    if found.axis not in (None, axis):
        raise Unlowered(f"its weights are scaled along dimension {found.axis}, not {axis}")
    return found


def _turned(low: Lowering, op: Op, groups: int) -> Weight:
    """Those of a transposed convolution, ``[I, O / groups, …]``, as ``[O, I / groups, …]``."""
    found = low.weight(low.source(op, "weight"))
    if found is None:
        raise Unlowered("its weights are no constant of symmetric int8")
    inputs, share, *kernel = found.values.shape
    depth = inputs // groups
    values = found.values.reshape(groups, depth, share, *kernel).transpose(1, 2)
    values = values.reshape(groups * share, depth, *kernel)
    if found.axis is None:
        return Weight(values, found.scales, None)
    if found.axis == 1:
        return Weight(values, found.scales.repeat(groups), 0)
    if found.axis == 0 and depth == 1:
        return Weight(values, found.scales.repeat_interleave(share), 0)
    raise Unlowered(f"its weights are scaled along dimension {found.axis}, not 1")


def _constants(
    low: Lowering, op: Op, x: Stored, weight: Weight, bias: Tensor | None, goal: Goal
) -> dict[str, Tensor]:
    """Weights, biases and factors per output channel (dimension 0 of the weights).

    Channels whose bias would not fit get coarser weights.
    """
    import torch

    values, scales = weight.values, weight.scales
    found = {}
    if bias is not None:
        real = bias.double().reshape(-1)
        least = real.abs() / (x.affine.scale * BIAS_LIMIT)
        if bool((least > scales).any()):
            scales = torch.maximum(scales.expand_as(least), least)
            ratio = (weight.scales / scales).reshape(-1, *[1] * (values.dim() - 1))
            values = torch.round(values * ratio).to(torch.int8)
        found["bias"] = torch.round(real / (x.affine.scale * scales)).to(torch.int32)
    factors = [quantize_multiplier(x.affine.scale * float(s) / goal.affine.scale) for s in scales]
    found["multiplier"] = torch.tensor([m for m, _ in factors], dtype=torch.int32)
    found["shift"] = torch.tensor([s for _, s in factors], dtype=torch.int8)
    return {"values": values, **found}


def _refs(low: Lowering, op: Op, constants: dict[str, Tensor]) -> dict[str, Arg]:
    """Bias and factors as constants of the new graph."""
    name = op.result.name
    return {key: low.builder.constant(f"{name}_{key}", t) for key, t in constants.items()}


@rule("aten.linear.default")
def linear(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A linear layer over the last dimension."""
    weight = _weight(low, op, "weight", 0)
    return _linear(low, op, low.operand(op, "input"), weight, op.arg("bias"), goal)


@rule("aten.addmm.default")
def addmm(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A linear layer whose weights are transposed."""
    if op.arg("beta", 1) != 1 or op.arg("alpha", 1) != 1:
        raise Unlowered("its operands have factors")
    weight = _weight(low, op, "mat2", 1).moved((1, 0))
    return _linear(low, op, low.operand(op, "mat1"), weight, op.arg("self"), goal)


def _linear(low: Lowering, op: Op, x: Stored, weight: Weight, bias: Arg, goal: Goal) -> Stored:
    given = low.constant(bias)
    if bias is not None and (given is None or given.numel() != weight.values.shape[0]):
        raise Unlowered("its bias is no constant per output")
    last = len(x.shape) - 1
    if x.order[-1] != last:
        x = low.arranged(x, plain(len(x.shape)))
    constants = _constants(low, op, x, weight, given, goal)
    args: dict[str, Arg] = {
        "input": Ref(x.name),
        "weight": low.builder.constant(f"{op.result.name}_weight", constants.pop("values"), "param"),
        **_refs(low, op, constants),
        "input_zero_point": x.affine.zero_point,
        **goal.output(),
    }
    name = low.builder.emit("mplan.qlinear", args, op.result.name, op.loc)
    return low.made(name, low.shape(op.result.name), x.order, goal)


@rule("aten.mm.default", "aten.bmm.default", "aten.matmul.default")
def matmul(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A product of two int8 matrices, or a linear layer where the second is constant."""
    first, second = ("self", "other") if "matmul" in op.kind else ("self", "mat2")
    right = low.weight(low.source(op, second))
    a = low.operand(op, first)
    if right is not None and right.values.dim() == 2:
        return _linear(low, op, a, _weight(low, op, second, 1).moved((1, 0)), None, goal)
    a, b = low.ordered(a), low.ordered(low.operand(op, second))
    if min(len(a.shape), len(b.shape)) < 2:
        raise Unlowered("its operands are no matrices")
    scale = a.affine.scale * b.affine.scale / goal.affine.scale
    multiplier, shift = quantize_multiplier(scale)
    args: dict[str, Arg] = {
        "input": Ref(a.name),
        "other": Ref(b.name),
        "input_zero_point": a.affine.zero_point,
        "other_zero_point": b.affine.zero_point,
        "multiplier": multiplier,
        "shift": shift,
        **goal.output(),
    }
    name = low.builder.emit("mplan.qmatmul", args, op.result.name, op.loc)
    shape = low.shape(op.result.name)
    return low.made(name, shape, plain(len(shape)), goal)
