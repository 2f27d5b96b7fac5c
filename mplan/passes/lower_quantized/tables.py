"""Functions of one int8 value: computed for all 256 integers as the float ops compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mplan.ir.affine import Affine
from mplan.ir.graph import Op, Ref
from mplan.ir.ops import bind_arg, lookup
from mplan.passes.lower_quantized.elementwise import CLAMPS, factor_of
from mplan.passes.lower_quantized.goal import Goal
from mplan.passes.lower_quantized.layout import Stored
from mplan.passes.lower_quantized.lowering import Lowering

if TYPE_CHECKING:
    from torch import Tensor


#: Functions of one number that torch does not tag as such.
UNTAGGED = frozenset({"aten.hardswish.default", "aten.leaky_relu.default"})


def tabulated(low: Lowering, op: Op, goal: Goal) -> Stored | None:
    """The result of ``op`` by a table; None unless it is a pointwise function of one int8 value.

    Clamps and factors alone need no table. A table that changes nothing is none.
    """
    import torch

    if op.kind in CLAMPS or factor_of(low, op):
        return None
    leaves: dict[str, Stored] = {}
    if not _leaves(low, op, leaves) or len(set(leaves.values())) != 1:  # x and its transpose are two
        return None
    leaf = next(iter(leaves.values()))
    numbers = torch.arange(-128, 128)
    reals = (numbers - leaf.affine.zero_point).float() * leaf.affine.scale
    results = _evaluate(low, op, dict.fromkeys(leaves, reals))
    table = _quantise(results, goal)
    occurring = slice(leaf.least + 128, leaf.most + 129)
    if torch.equal(table[occurring], numbers[occurring]):
        return low.made(leaf.name, leaf.shape, leaf.order, goal)
    ref = low.builder.constant(f"{op.result.name}_table", table.to(torch.int8))
    args = {"input": Ref(leaf.name), "table": ref}
    name = low.builder.emit("mplan.qtable", args, op.result.name, op.loc)
    return low.made(name, leaf.shape, leaf.order, goal)


def _leaves(low: Lowering, op: Op, leaves: dict[str, Stored]) -> bool:
    """Collect the int8 values that the pointwise ops up to ``op`` start from; False for other ops."""
    if not (lookup(op.kind).pointwise or op.kind in UNTAGGED) or len(op.results) != 1:
        return False
    for name in op.operands:
        constant = low.constant(Ref(name))
        if constant is not None:
            if constant.numel() != 1:
                return False
            continue
        stored = low.real(name)
        if stored is not None:
            leaves[name] = stored
            continue
        maker = low.producers.get(name)
        if maker is None or not _leaves(low, maker, leaves):
            return False
    return low.shape(op.result.name) in [leaf.shape for leaf in leaves.values()]


def _evaluate(low: Lowering, op: Op, env: dict[str, Tensor]) -> Tensor:
    """The result of ``op`` for operands of 256 numbers."""
    for name in op.operands:
        if name not in env:
            constant = low.constant(Ref(name))
            known = None if constant is None else constant.reshape(())
            env[name] = _evaluate(low, low.producers[name], env) if known is None else known
    args = {key: bind_arg(arg, env, {}) for key, arg in op.args}
    result: Any = lookup(op.kind).reference(**args)
    return result  # type: ignore[no-any-return]


def _quantise(reals: Tensor, goal: Goal) -> Tensor:
    """Integers as ``quantized_decomposed`` rounds them: to nearest, ties to even."""
    import torch

    affine: Affine = goal.affine
    within = reals.clamp(goal.low, goal.high) if (goal.low, goal.high) != (None, None) else reals
    whole = torch.round(within * (1.0 / affine.scale)).nan_to_num(0.0, 1e9, -1e9)
    low, high = goal.range
    return (whole + affine.zero_point).clamp(low, high).to(torch.int64)
