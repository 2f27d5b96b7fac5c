"""Results that nobody uses need no memory where the kernels are our own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.ir.graph import Graph, Op
from mplan.passes.base import Context, Pass


@dataclass(frozen=True, slots=True)
class DropUnused(Pass):
    """Drop unused results of ops that have a used one: a max pool's indices, a norm's statistics.

    For targets with generated kernels, which compute only what exists. PyTorch's kernels compute and
    allocate every result.
    """

    name: ClassVar[str] = "drop_unused"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with None in the place of those results."""
        used = {name for op in graph.ops for name in op.operands} | set(graph.output_names)
        ops = tuple(_trimmed(op, used) for op in graph.ops)
        return graph if ops == graph.ops else replace(graph, ops=ops)


def _trimmed(op: Op, used: set[str]) -> Op:
    kept = tuple(v if v is not None and (v.name in used or v.alias) else None for v in op.results)
    return op if kept == op.results or not any(kept) else replace(op, results=kept)
