"""Input zero points of quantised layers become part of their biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mplan.ir.graph import Arg, Graph, Op, Ref
from mplan.ir.quantized_transposed import phase_sums
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import NewConstants

#: The dimensions of each layer's weights that one output sums over; of those with phases without the
#: taps, of which each phase has its own.
SUMMED = {
    "mplan.qconv2d": (1, 2, 3),
    "mplan.qdepthwise_conv2d": (0, 1, 2),
    "mplan.qconv_transpose2d": (3,),
    "mplan.qdepthwise_conv_transpose2d": (0,),
    "mplan.qlinear": (1,),
}
#: The order that makes rows and columns of taps the first two of the dimensions that are left.
_PHASES = {"mplan.qconv_transpose2d": (1, 2, 0), "mplan.qdepthwise_conv_transpose2d": (0, 1, 2)}


@dataclass(frozen=True, slots=True)
class FoldZeroPoints(Pass):
    """Let layers sum plain products, as ``sum((x - zero) * w) = sum(x * w) - zero * sum(w)``.

    The new biases are constants of the context; padding keeps reading as the old zero point
    (``padding_value``). A transposed convolution gets a bias per phase. Layers whose weights or biases
    are not constant stay, and those whose sums could leave 32 bits for some input.
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
    moved = (0 if bias is None else bias.long()) - zero * summed(op, weight.long())
    if int(largest_sums(op, weight, moved).max()) >= 2**31:
        return op
    args: dict[str, Arg] = {"input_zero_point": 0}
    padding = op.arg("padding")
    beside = op.kind in _PHASES or (isinstance(padding, tuple) and any(padding))
    if beside and op.arg("padding_value") is None:
        args["padding_value"] = zero
    named = op.arg("weight")
    assert isinstance(named, Ref)
    return constants.changed(op, named.name, {"bias": moved.int()}, args)


def summed(op: Op, values: Any) -> Any:
    """``values`` in the place of a layer's weights, summed for each output channel, if there are phases
    ``[stride_h, stride_w, O]`` of them."""
    sums = values.sum(SUMMED[op.kind])
    if op.kind not in _PHASES:
        return sums
    stride, dilation = (_pair(op.arg(name)) for name in ("stride", "dilation"))
    return phase_sums(sums.permute(_PHASES[op.kind]), stride, dilation)


def _pair(arg: Arg) -> tuple[int, int]:
    assert isinstance(arg, tuple)
    first, second = arg
    assert isinstance(first, int) and isinstance(second, int)
    return first, second


def largest_sums(op: Op, weight: Any, bias: Any) -> Any:
    """What the sums of each output channel, zero points folded, are at most in absolute value."""
    return bias.abs() + 128 * summed(op, weight.long().abs())
