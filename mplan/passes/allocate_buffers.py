"""The pass that gives every buffer an address and completes the plan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from mplan.diagnostics import InfeasibleError
from mplan.ir.accesses import accessed_bytes
from mplan.ir.graph import Graph
from mplan.ir.plan import Certificate
from mplan.ir.storage import problem_of, share
from mplan.passes.base import Context, Pass
from mplan.passes.schedule_ops import renumber


@dataclass(frozen=True, slots=True)
class AllocateBuffers(Pass):
    """Place the buffers of every region at the graph's order; leaves ``lowered`` and ``plan``.

    Where the captured order, which ``schedule`` has replaced, leads to a lower arena or to the only
    one that fits, the graph goes back to it; where an order found together with addresses does, it
    gets that one. Of several memories it is not the height that counts: the order stays if there is a
    way to share the buffers out at it. Empty ``solver`` and zero ``limit_s`` stand for those of
    the run's context (less what the schedule took). InfeasibleError when a region overflows.
    """

    name: ClassVar[str] = "allocate"

    solver: str = ""
    limit_s: float = 0.0

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """``graph``, or one with its ops in an order at which the arena is lower."""
        return self._rearranged(self._placed(graph, ctx), ctx)

    def _placed(self, graph: Graph, ctx: Context) -> Graph:
        """``graph``, or the graph in captured order if that is better."""
        captured = ctx.captured
        if captured is None:
            self._place(graph, ctx, ctx.schedule_certificate)
            return graph
        try:
            height = self._place(graph, ctx, ctx.schedule_certificate)
        except InfeasibleError:
            ctx.spent_s = ctx.limit_s
            self._place(captured, ctx, ctx.captured_certificate)
            return captured
        baseline = ctx.baseline_peak_bytes
        if baseline is None or baseline >= height or ctx.layout.memories:
            return graph
        found = ctx.lowered, ctx.plan
        ctx.spent_s = ctx.limit_s
        if self._place(captured, ctx, ctx.captured_certificate) < height:
            arena = ctx.layout.arena.name
            ctx.notes.append(f"captured order kept: its addresses are better packed in {arena}")
            return captured
        ctx.lowered, ctx.plan = found
        return graph

    def _rearranged(self, graph: Graph, ctx: Context) -> Graph:
        """``graph`` in an order found together with addresses, if its arena is one memory that exceeds
        the least that an order needs, every op is one step, and that helps."""
        from mplan.passes.planner import rearrange

        lowered, plan = ctx.lowered, ctx.plan
        assert lowered is not None and plan is not None
        left = self._left(ctx)
        single = lowered.op_of == tuple(range(len(graph.ops))) and not ctx.layout.memories
        if (self.solver or ctx.solver) != "auto" or left <= 0 or not single:
            return graph
        found = rearrange(lowered.problem, plan, limit_s=left, seed=ctx.seed)
        if found is None:
            return graph
        certificate = plan.certificate(f"schedule:{ctx.layout.arena.name}")
        known = renumber(certificate, found.order, lowered.op_of) if certificate else None
        names = {lowered.problem.buffers[i].name: offset for i, offset in found.offsets.items()}
        better = replace(graph, ops=tuple(graph.ops[i] for i in found.order))
        if self._place(better, ctx, known, names) < plan.peak_bytes(ctx.layout.arena.name):
            return better
        ctx.lowered, ctx.plan = lowered, plan
        return graph

    def _left(self, ctx: Context) -> float:
        return self.limit_s or max(ctx.limit_s - ctx.spent_s, 0.0)

    def _place(
        self,
        graph: Graph,
        ctx: Context,
        certificate: Certificate | None,
        hints: Mapping[str, int] = MappingProxyType({}),
    ) -> int:
        """Set the context's plan to one of ``graph``; returns the height of the arena.

        ``certificate`` is the schedule's; ``hints`` are offsets to try first, by buffer name.
        """
        from mplan.passes.planner import place

        started = time.monotonic()
        lowered = problem_of(graph, ctx.layout)
        if ctx.layout.memories:
            lowered = share(lowered, ctx.layout, accessed_bytes(graph, lowered))
        problem = lowered.problem
        # within a budget it is work that is least, not bytes
        streamed = ctx.streamed.certificate if ctx.streamed and not ctx.streamed.budget else None
        ctx.plan = place(
            problem,
            tuple(range(len(problem.steps))),
            certificates=tuple(c for c in (streamed, certificate) if c),
            hints={i: hints[b.name] for i, b in enumerate(problem.buffers) if b.name in hints},
            solver=self.solver or ctx.solver,
            limit_s=self._left(ctx),
            seed=ctx.seed,
        )
        ctx.lowered = lowered
        ctx.spent_s += time.monotonic() - started
        return ctx.plan.peak_bytes(ctx.layout.arena.name)
