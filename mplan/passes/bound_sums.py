"""Quantised layers whose sums are small for every input say so, and kernels round them faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mplan.ir.graph import Graph, Op, Ref
from mplan.ir.quantized_reference import BOUNDED_SHIFTS, BOUNDED_SUM
from mplan.passes.base import Context, Pass
from mplan.passes.fold_zero_points import SUMMED, largest_sums
from mplan.passes.rewrite import NewConstants


@dataclass(frozen=True, slots=True)
class BoundSums(Pass):
    """Mark layers as ``bounded`` whose constants prove it; bias and factors become one per channel.

    The proof adds the absolute values of a channel's weights. Layers with an input zero point, without
    constant weights, or that round once stay as they are.
    """

    name: ClassVar[str] = "bound_sums"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with marks; ``graph`` itself when there are no new ones."""
        constants = NewConstants(graph, dict(ctx.constants))
        return constants.finish(tuple(_bounded(op, constants) for op in graph.ops), ctx)


def _bounded(op: Op, constants: NewConstants) -> Op:
    """``op`` with the mark, if its constants allow it."""
    import torch

    if op.kind not in SUMMED or op.arg("bounded", False) or op.arg("input_zero_point") != 0:
        return op
    names = ("weight", "bias", "multiplier", "shift")
    weight, bias, multiplier, shift = (constants.of(op.arg(name)) for name in names)
    known = all(t is not None for t in (weight, multiplier, shift)) and op.arg("rounding") != "single"
    if not known or (bias is None and op.arg("bias") is not None):
        return op
    channels = weight.shape[3 if op.kind == "mplan.qdepthwise_conv2d" else 0]
    per_channel = {
        "bias": torch.zeros(channels, dtype=torch.int32) if bias is None else bias,
        "multiplier": multiplier.expand(channels).contiguous(),
        "shift": shift.expand(channels).contiguous(),
    }
    low, high = BOUNDED_SHIFTS
    small = int(largest_sums(op, weight, per_channel["bias"].long()).max()) < BOUNDED_SUM
    if not small or int(shift.min()) < low or int(shift.max()) > high:
        return op
    given = {"bias": bias, "multiplier": multiplier, "shift": shift}
    new = {k: t for k, t in per_channel.items() if given[k] is None or given[k].shape != t.shape}
    named = op.arg("weight")
    assert isinstance(named, Ref)
    return constants.changed(op, named.name, new, {"bounded": True})
