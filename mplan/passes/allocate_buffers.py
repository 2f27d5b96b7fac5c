"""The pass that gives every buffer an address and completes the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mplan.ir.graph import Graph
from mplan.ir.plan import Plan
from mplan.ir.storage import problem_of
from mplan.passes.base import Context, Pass


@dataclass(frozen=True, slots=True)
class AllocateBuffers(Pass):
    """Place the buffers of every region at the graph's order; the graph stays as it is.

    Empty ``solver`` and zero ``limit_s`` stand for those of the run's context. Leaves ``lowered`` and
    ``plan`` in the context; raises InfeasibleError when a region overflows and CheckError never: a
    plan that fails its own check is a bug (InternalError).
    """

    name: ClassVar[str] = "allocate"

    solver: str = ""
    limit_s: float = 0.0

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """``graph`` itself."""
        from mplan.passes.planner import place

        lowered = problem_of(graph, ctx.layout)
        problem = lowered.problem
        certificate = ctx.schedule_certificate
        plan: Plan = place(
            problem,
            tuple(range(len(problem.steps))),
            certificates=(certificate,) if certificate else (),
            solver=self.solver or ctx.solver,
            limit_s=self.limit_s or ctx.limit_s / 2,
            seed=ctx.seed,
        )
        ctx.lowered, ctx.plan = lowered, plan
        return graph
