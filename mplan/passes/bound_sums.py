"""Quantised layers whose sums are small for every input say so, and kernels scale them faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mplan.ir.fixed_point import rescale
from mplan.ir.graph import Graph, Op, Ref
from mplan.ir.quantized_reference import BOUNDED_SUM, LEAST_SHIFT
from mplan.passes.base import Context, Pass
from mplan.passes.fold_zero_points import SUMMED, largest_sums
from mplan.passes.rewrite import NewConstants


@dataclass(frozen=True, slots=True)
class BoundSums(Pass):
    """Mark layers as ``bounded`` whose constants prove it; bias and factors become one per channel (a
    bias per phase stays one).

    The proof adds the absolute values of a channel's weights. Layers with an input zero point, without
    constant weights, with a weight of -128, or that round once stay as they are.
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
    channels = weight.shape[3 if "depthwise" in op.kind else 0]
    per_channel = {
        "bias": torch.zeros(channels, dtype=torch.int32) if bias is None else bias,
        "multiplier": multiplier.expand(channels).contiguous(),
        "shift": shift.expand(channels).contiguous(),
    }
    spread = largest_sums(op, weight, 0 * per_channel["bias"].long()).reshape(-1, channels).amax(0)
    per_channel = _without_idle(per_channel, spread)
    shifts = per_channel["shift"].long()
    sums = largest_sums(op, weight, per_channel["bias"].long()) << shifts.clamp(min=0)
    if int(sums.max()) >= BOUNDED_SUM or int(shifts.min()) < LEAST_SHIFT or int(weight.min()) == -128:
        return op
    given = {"bias": bias, "multiplier": multiplier, "shift": shift}
    new = {k: t for k, t in per_channel.items() if given[k] is None or not torch.equal(given[k], t)}
    named = op.arg("weight")
    assert isinstance(named, Ref)
    return constants.changed(
        op, named.name, new, {"bounded": True, "below_half": int(shifts.max()) < 0}
    )


def _without_idle(layer: Mapping[str, Any], spread: Any) -> dict[str, Any]:
    """Bias and factors of channels with one result only, made such that their shifts are -1.

    ``spread`` is what inputs can add to a channel's sum. Without weights the result is that of the
    bias, far beyond the range of int8 at most; a factor of 0 or below 2**-31 yields 0.
    """
    import torch

    bias, multiplier, shift = (layer[name] for name in ("bias", "multiplier", "shift"))
    fixed = rescale(bias, multiplier, shift).clamp(-1024, 1024)
    constant, zero = spread == 0, (multiplier == 0) | (shift < LEAST_SHIFT)
    return {
        "bias": torch.where(constant, 4 * fixed, bias).int(),
        "multiplier": torch.where(constant, 1 << 30, torch.where(zero, 0, multiplier)).int(),
        "shift": torch.where(constant | zero, -1, shift).to(torch.int8),
    }
