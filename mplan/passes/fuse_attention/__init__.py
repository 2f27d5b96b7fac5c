"""Attention as one op: ``FuseAttention`` replaces every softmax(query · keyᵀ) · value of a graph.

``recognise`` finds the regions by data flow; ``rewrite`` replaces them. The recogniser is a plain
function of type ``Recogniser``, so that another one can take its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mplan.ir.graph import Graph
from mplan.passes.base import Context, Pass
from mplan.passes.fuse_attention.recognise import recognise
from mplan.passes.fuse_attention.region import Recogniser, Region, Rejected
from mplan.passes.fuse_attention.rewrite import fuse

__all__ = ["FuseAttention", "Recogniser", "Region", "Rejected", "recognise"]

_RECOGNISER: Recogniser = recognise


@dataclass(frozen=True, slots=True)
class FuseAttention(Pass):
    """Replace attention by ``mplan.attention``, which never holds scores of all queries and keys.

    Queries from which masks of minus infinity hide all keys yield 0 (NaN in the spelled-out form);
    with masks of finite numbers such queries attend to all masked keys alike, as before.
    ``Context.notes`` says of every product with a softmax that was not fused why.
    """

    name: ClassVar[str] = "fuse_attention"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with its attention fused; the same object if it has none."""
        findings = _RECOGNISER(graph, ctx.constants)
        ctx.notes += [str(f) for f in findings if isinstance(f, Rejected)]
        return fuse(graph, [f for f in findings if isinstance(f, Region)])
