"""The pass that permutes the ops of a graph so that the peak of live bytes is least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.ir.graph import Graph
from mplan.ir.plan import Certificate
from mplan.ir.storage import Lowered, problem_of
from mplan.passes.base import Context, Pass
from mplan.passes.live import live_peak


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
        from mplan.passes.planner import baseline, order_steps, solver_for

        lowered = problem_of(graph, ctx.layout)
        ctx.baseline_peak_bytes = baseline(lowered.problem)
        ordered = order_steps(
            lowered.problem,
            solver=solver_for("schedule", self.solver or ctx.solver),
            limit_s=self.limit_s or ctx.limit_s / 2,
            seed=ctx.seed,
        )
        order = _best_order(lowered, ordered.order)
        ctx.schedule_certificate = renumber(ordered.certificate, order, lowered.op_of)
        ctx.spent_s = ordered.certificate.seconds
        if order == tuple(range(len(graph.ops))):
            return graph
        ctx.captured, ctx.captured_certificate = graph, ordered.certificate
        return replace(graph, ops=tuple(graph.ops[i] for i in order))


def _best_order(lowered: Lowered, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Whole ops in the order of ``steps``, where phases of several ops may stand between each other.

    Ops are taken by their last phase and by their first; of these and the captured order, the one
    with the lowest peak.
    """
    position = {step: p for p, step in enumerate(steps)}
    phases: dict[int, list[int]] = {}
    for step, op in enumerate(lowered.op_of):
        phases.setdefault(op, []).append(step)
    by_last = tuple(sorted(phases, key=lambda op: position[phases[op][-1]]))
    by_first = tuple(sorted(phases, key=lambda op: position[phases[op][0]]))
    captured = tuple(range(len(phases)))
    region = lowered.problem.regions[0].name

    def peak(order: tuple[int, ...]) -> int:
        return live_peak(lowered.problem, [s for op in order for s in phases[op]], region)[0]

    return min(dict.fromkeys((by_last, by_first, captured)), key=peak)


def renumber(certificate: Certificate, order: tuple[int, ...], op_of: tuple[int, ...]) -> Certificate:
    """Witness steps of a bound, numbered as they stand in the reordered graph."""
    if certificate.bound_kind not in ("working_set", "closure"):
        return certificate
    steps_of: dict[int, list[int]] = {}
    for step, op in enumerate(op_of):
        steps_of.setdefault(op, []).append(step)
    renumbered = [step for op in order for step in steps_of[op]]
    position = {step: p for p, step in enumerate(renumbered)}
    return replace(certificate, witness=tuple(position[w] for w in certificate.witness))
