"""Depthwise weights in the order in which DSP instructions multiply them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mplan.ir.graph import Graph, Op, Ref, Value
from mplan.ir.quantized_reference import paired
from mplan.ir.types import TensorType
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import NewConstants


@dataclass(frozen=True, slots=True)
class PairWeights(Pass):
    """Store depthwise weights by pairs of pixels where the target multiplies pairs of 16-bit numbers.

    Weights stay as they are for targets without such instructions or with vectors, of layers that are
    not ``bounded``, and if the channels are no multiple of 4 or yield several outputs each.
    """

    name: ClassVar[str] = "pair_weights"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with reordered weights; ``graph`` itself when there are none."""
        if not ctx.pairs:
            return graph
        constants, types = NewConstants(graph, dict(ctx.constants)), graph.value_table
        return constants.finish(tuple(_paired(op, constants, types) for op in graph.ops), ctx)


def _paired(op: Op, constants: NewConstants, types: Mapping[str, Value]) -> Op:
    weight, source = constants.of(op.arg("weight")), op.arg("input")
    known = op.kind == "mplan.qdepthwise_conv2d" and op.arg("bounded", False) and weight is not None
    if not known or op.arg("weight_order", "plain") != "plain" or not isinstance(source, Ref):
        return op
    type_, named = types[source.name].type, op.arg("weight")
    assert isinstance(type_, TensorType) and isinstance(named, Ref)
    channels = weight.shape[3]
    if channels % 4 or type_.shape[3] != channels:
        return op
    return constants.changed(op, named.name, {"weight": paired(weight)}, {"weight_order": "pairs"})
