"""The pass that gives every buffer an address and completes the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mplan.diagnostics import InfeasibleError
from mplan.ir.graph import Graph
from mplan.ir.storage import problem_of
from mplan.passes.base import Context, Pass


@dataclass(frozen=True, slots=True)
class AllocateBuffers(Pass):
    """Place the buffers of every region at the graph's order; leaves ``lowered`` and ``plan``.

    Where the captured order, which ``schedule`` has replaced, leads to a lower arena or to the only
    one that fits, the graph goes back to it. Empty ``solver`` and zero ``limit_s`` stand for those of
    the run's context (less what the schedule took). InfeasibleError when a region overflows.
    """

    name: ClassVar[str] = "allocate"

    solver: str = ""
    limit_s: float = 0.0

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """``graph``, or the graph in captured order if that is better."""
        captured = ctx.captured
        if captured is None:
            self._place(graph, ctx)
            return graph
        try:
            height = self._place(graph, ctx)
        except InfeasibleError:
            ctx.spent_s = ctx.limit_s
            self._place(captured, ctx)
            return captured
        arena = ctx.layout.arena.name
        if ctx.baseline_peak_bytes is None or ctx.baseline_peak_bytes >= height:
            return graph
        found = ctx.lowered, ctx.plan
        ctx.spent_s = ctx.limit_s
        if self._place(captured, ctx) < height:
            ctx.notes.append(f"captured order kept: its addresses are better packed in {arena}")
            return captured
        ctx.lowered, ctx.plan = found
        return graph

    def _place(self, graph: Graph, ctx: Context) -> int:
        """Set the context's plan to one of ``graph``; returns the height of the arena."""
        from mplan.passes.planner import place

        lowered = problem_of(graph, ctx.layout)
        problem = lowered.problem
        again = graph is ctx.captured
        known = ctx.captured_certificate if again else ctx.schedule_certificate
        ctx.plan = place(
            problem,
            tuple(range(len(problem.steps))),
            certificates=(known,) if known else (),
            solver=self.solver or ctx.solver,
            limit_s=self.limit_s or max(ctx.limit_s - ctx.spent_s, 0.0),
            seed=ctx.seed,
        )
        ctx.lowered = lowered
        return ctx.plan.peak_bytes(ctx.layout.arena.name)
