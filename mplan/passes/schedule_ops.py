"""The pass that permutes the ops of a graph so that the peak of live bytes is least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.ir.graph import Graph
from mplan.ir.plan import Certificate
from mplan.ir.storage import problem_of
from mplan.passes.base import Context, Pass


@dataclass(frozen=True, slots=True)
class ScheduleOps(Pass):
    """Order the ops for the arena; the captured order is kept unless a better one is found.

    Empty ``solver`` and zero ``limit_s`` stand for those of the run's context. Leaves the
    certificate and the captured order's peak in the context.
    """

    name: ClassVar[str] = "schedule"

    solver: str = ""
    limit_s: float = 0.0

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with its ops permuted."""
        from mplan.passes.planner import baseline
        from mplan.passes.schedule import schedule

        problem = problem_of(graph, ctx.layout).problem
        ctx.baseline_peak_bytes = baseline(problem)
        ordered = schedule(
            problem,
            solver=self.solver or ctx.solver,
            limit_s=self.limit_s or ctx.limit_s / 2,
            seed=ctx.seed,
        )
        ctx.schedule_certificate = _renumber(ordered.certificate, ordered.order)
        if ordered.order == tuple(range(len(graph.ops))):
            return graph
        return replace(graph, ops=tuple(graph.ops[i] for i in ordered.order))


def _renumber(certificate: Certificate, order: tuple[int, ...]) -> Certificate:
    """Witness steps of a working set, given by captured index, named by their new position."""
    if certificate.bound_kind != "working_set":
        return certificate
    position = {step: p for p, step in enumerate(order)}
    return replace(certificate, witness=tuple(position[w] for w in certificate.witness))
