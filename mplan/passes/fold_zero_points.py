"""Input zero points of quantised layers become part of their biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mplan.ir.graph import Arg, Graph, Op, Ref
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import NewConstants

#: The dimensions of each layer's weights that one output sums over.
SUMMED = {
    "mplan.qconv2d": (1, 2, 3),
    "mplan.qdepthwise_conv2d": (0, 1, 2),
    "mplan.qlinear": (1,),
}


@dataclass(frozen=True, slots=True)
class FoldZeroPoints(Pass):
    """Let layers sum plain products, as ``sum((x - zero) * w) = sum(x * w) - zero * sum(w)``.

    The new biases are constants of the context; padding keeps reading as the old zero point
    (``padding_value``). Layers whose weights or biases are not constant stay, and those whose sums
    could leave 32 bits for some input.
    """

    name: ClassVar[str] = "fold_zero_points"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with folded layers; ``graph`` itself when there are none."""
        constants = NewConstants(graph, dict(ctx.constants))
        return constants.finish(tuple(_folded(op, constants) for op in graph.ops), ctx)


def _folded(op: Op, constants: NewConstants) -> Op:
    """``op`` without an input zero point, if it is a layer that can do without."""
    zero = op.arg("input_zero_point", 0)
    if op.kind not in SUMMED or not isinstance(zero, int) or zero == 0:
        return op
    weight, bias = (constants.of(op.arg(name)) for name in ("weight", "bias"))
    if weight is None or (bias is None and op.arg("bias") is not None):
        return op
    moved = (0 if bias is None else bias.long()) - zero * weight.long().sum(SUMMED[op.kind])
    if int(largest_sums(op, weight, moved).max()) >= 2**31:
        return op
    args: dict[str, Arg] = {"input_zero_point": 0}
    padding = op.arg("padding")
    if isinstance(padding, tuple) and any(padding) and op.arg("padding_value") is None:
        args["padding_value"] = zero
    named = op.arg("weight")
    assert isinstance(named, Ref)
    return constants.changed(op, named.name, {"bias": moved.int()}, args)


def largest_sums(op: Op, weight: Any, bias: Any) -> Any:
    """What the sums of each output channel, zero points folded, are at most in absolute value."""
    return bias.abs() + 128 * weight.long().abs().sum(SUMMED[op.kind])
