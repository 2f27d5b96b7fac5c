"""From quantize and dequantize nodes around float ops to integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mplan.ir.graph import Graph, Op
from mplan.passes.base import Context, Pass
from mplan.passes.lower_quantized import contractions, elementwise, moves, reductions, windows  # noqa: F401
from mplan.passes.lower_quantized.builder import Builder
from mplan.passes.lower_quantized.lowering import Lowering
from mplan.passes.lower_quantized.scales import is_quantised, refuse_others


@dataclass(frozen=True, slots=True)
class LowerQuantized(Pass):
    """Replace float ops between ``quantized_decomposed`` ops by quantised ones.

    A graph as PT2E makes it computes in float between dequantize and quantize; the result computes
    the same in integers (``mplan.ir.quantized_ops``): images are stored NHWC, clamps are part of the
    op before them, functions of one value become tables. Each op's result is within one of what the
    float ops yield for the same operands. What has no integer form stays float, with a note.
    UnsupportedError MP314 lists everything that is not quantised to 8 bits with fixed scales.
    """

    name: ClassVar[str] = "lower_quantized"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph in integers; ``graph`` itself if nothing in it is quantised."""
        if not is_quantised(graph):
            return graph
        lowering = Lowering(Builder(graph, dict(ctx.constants)))
        refuse_others(graph, lowering.constant)
        outputs = lowering.run()
        lowered, ctx.constants = lowering.builder.finish(outputs)
        ctx.notes.extend(f"stays float: {_site(op)}: {why}" for op, why in lowering.kept.values())
        return lowered


def _site(op: Op) -> str:
    return f"{op.kind} at {op.loc}" if op.loc else op.kind
