"""Clamps, factors, sums, products and slopes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mplan.ir.affine import sum_factors
from mplan.ir.fixed_point import quantize_multiplier
from mplan.ir.graph import Arg, Op, Ref
from mplan.ir.quantized_reference import ADD_LEFT_SHIFT
from mplan.passes.lower_quantized.goal import Goal, Unlowered
from mplan.passes.lower_quantized.layout import Stored
from mplan.passes.lower_quantized.lowering import Get, Lowering, move, rule

if TYPE_CHECKING:
    from torch import Tensor

#: Clamps, with the names (or the values) of their limits.
CLAMPS: dict[str, tuple[str | float | None, str | float | None]] = {
    "aten.relu.default": (0.0, None),
    "aten.relu6.default": (0.0, 6.0),
    "aten.hardtanh.default": ("min_val", "max_val"),
    "aten.clamp.default": ("min", "max"),
    "aten.clamp_min.default": ("min", None),
    "aten.clamp_max.default": (None, "max"),
}
_DEFAULTS = {"min_val": -1.0, "max_val": 1.0}


@rule(*CLAMPS)
def clamp(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A clamp is part of the goal of what it clamps."""
    return low.integer(low.source(op, "self"), goal.within(*limits(op)))


def limits(op: Op) -> tuple[float | None, float | None]:
    """The real limits of a clamp."""
    found = []
    for limit in CLAMPS[op.kind]:
        given = op.arg(limit, _DEFAULTS.get(limit)) if isinstance(limit, str) else limit
        if given is not None and not isinstance(given, (int, float)):
            raise Unlowered("its limits are no numbers")
        found.append(None if given is None else float(given))
    return found[0], found[1]


def factor_of(low: Lowering, op: Op) -> float | None:
    """The positive number that ``op`` multiplies its operand by; None for other ops."""
    if op.kind not in ("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"):
        return None
    other = op.arg("other")
    constant = low.constant(other)
    if constant is not None and constant.numel() == 1 and constant.dim() == 0:
        other = float(constant)
    if not isinstance(other, (int, float)) or not other > 0:
        return None
    return float(other) if ".mul." in op.kind else 1.0 / float(other)


def _constant_factor(low: Lowering, op: Op, goal: Goal) -> Stored | None:
    factor = factor_of(low, op)
    return None if factor is None else low.integer(low.source(op, "self"), goal.divided(factor))


@rule("aten.div.Tensor", "aten.div.Scalar", "aten.mul.Scalar")
def factor(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A constant factor is part of the goal's scale."""
    found = _constant_factor(low, op, goal)
    if found is None:
        raise Unlowered("it has no integer form")
    return found


@rule("aten.add.Tensor", "aten.sub.Tensor")
def summed(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A sum or difference of two int8 values."""
    alpha = op.arg("alpha", 1)
    if not isinstance(alpha, (int, float)) or alpha == 0:
        raise Unlowered("the factor of its second operand is no number but 0")
    a, b = _operands(low, op)
    other = replace(b.affine, scale=b.affine.scale * abs(alpha))
    first, second, result = sum_factors(a.affine, other, goal.affine, ADD_LEFT_SHIFT)
    args: dict[str, Arg] = {
        "input_multiplier": first[0],
        "input_shift": first[1],
        "other_multiplier": second[0],
        "other_shift": second[1],
        "multiplier": result[0],
        "shift": result[1],
    }
    kind = "mplan.qadd" if (op.kind == "aten.add.Tensor") == (alpha > 0) else "mplan.qsub"
    return _binary(low, op, kind, (a, b), args, goal)


@rule("aten.mul.Tensor")
def product(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A product of two int8 values, or of one and a constant number."""
    found = _constant_factor(low, op, goal)
    if found is not None:
        return found
    a, b = _operands(low, op)
    scale = a.affine.scale * b.affine.scale / goal.affine.scale
    multiplier, shift = quantize_multiplier(scale)
    return _binary(low, op, "mplan.qmul", (a, b), {"multiplier": multiplier, "shift": shift}, goal)


@rule("aten.where.self")
def prelu(low: Lowering, op: Op, goal: Goal) -> Stored:
    """A PReLU, which is ``where(x > 0, x, slopes * x)``, with constant slopes along dimension 1."""
    import torch

    x = low.source(op, "self")
    slopes = _slopes(low, op, x)
    given = low.required(x)
    rank = len(given.shape)
    if slopes is None or rank < 2 or slopes.numel() != given.shape[1]:
        raise Unlowered("it has no integer form")
    given = low.arranged(given, (0, *range(2, rank), 1))
    scale = float(slopes.abs().max()) / 127 or 1.0
    values = torch.round(slopes.double().flatten() / scale).to(torch.int8)
    above = quantize_multiplier(given.affine.scale / goal.affine.scale)
    below = quantize_multiplier(given.affine.scale * scale / goal.affine.scale)
    args: dict[str, Arg] = {
        "input": Ref(given.name),
        "other": low.builder.constant(f"{op.result.name}_slopes", values, "param"),
        "input_zero_point": given.affine.zero_point,
        "input_multiplier": above[0],
        "input_shift": above[1],
        "other_zero_point": 0,
        "multiplier": below[0],
        "shift": below[1],
        **goal.output(),
    }
    name = low.builder.emit("mplan.qprelu", args, op.result.name, op.loc)
    return low.made(name, given.shape, given.order, goal)


def _slopes(low: Lowering, op: Op, x: str) -> Tensor | None:
    """The constant that ``x`` is multiplied by where it is not above 0; None for other choices."""
    above, below = (low.producers.get(low.source(op, name)) for name in ("condition", "other"))
    if above is None or above.kind != "aten.gt.Scalar" or above.arg("self") != Ref(x):
        return None
    if above.arg("other") != 0 or below is None or below.kind != "aten.mul.Tensor":
        return None
    factors = [below.arg("self"), below.arg("other")]
    if Ref(x) not in factors:
        return None
    factors.remove(Ref(x))
    found = low.constant(factors[0])
    if found is None:
        return None
    sizes = enumerate(found.shape, len(low.shape(x)) - found.dim())
    return found if all(n == 1 for d, n in sizes if d != 1) else None


@move("aten.maximum.default", "aten.minimum.default")
def extreme(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The larger or the smaller one of two values of one scale."""
    a, b = _aligned(low, *(get(low.source(op, key)) for key in ("self", "other")))
    if a.affine != b.affine:
        raise Unlowered("its operands have different scales")
    args: dict[str, Arg] = {"self": Ref(a.name), "other": Ref(b.name)}
    result = low.builder.emit(op.kind, args, name, op.loc)
    least, most = min(a.least, b.least), max(a.most, b.most)
    return Stored(result, low.shape(name), a.order, a.affine, least, most)


def _operands(low: Lowering, op: Op) -> tuple[Stored, Stored]:
    """Both operands with the rank of the result, stored in the same order."""
    return _aligned(low, low.operand(op, "self"), low.operand(op, "other"))


def _aligned(low: Lowering, *operands: Stored) -> tuple[Stored, Stored]:
    """Two values with the higher rank of both, stored in the same order."""
    rank = max(len(t.shape) for t in operands)
    a, b = (low.reshaped(t, (1,) * (rank - len(t.shape)) + t.shape) for t in operands)
    size = [len([n for n in t.shape if n != 1]) for t in (a, b)]
    order = a.order if size[0] >= size[1] else b.order
    return low.arranged(a, order), low.arranged(b, order)


def _binary(
    low: Lowering, op: Op, kind: str, operands: tuple[Stored, Stored], args: dict[str, Arg], goal: Goal
) -> Stored:
    a, b = operands
    given: dict[str, Arg] = {
        "input": Ref(a.name),
        "other": Ref(b.name),
        "input_zero_point": a.affine.zero_point,
        "other_zero_point": b.affine.zero_point,
    }
    name = low.builder.emit(kind, {**given, **args, **goal.output()}, op.result.name, op.loc)
    return low.made(name, low.shape(op.result.name), a.order, goal)
