"""Spatial partial execution: networks of convolutions run as streams of rows or pixels.

Patch inference (Lin et al. 2021, MCUNetV2) recomputes halos; a stream keeps the last rows in rings
instead (Alwani et al. 2016, fused-layer CNN accelerators), and strips of columns trade a little of the
one for the other. The result of a stream may follow its dying operand through the same memory (Zheng et
al. 2024, vMCU).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.graph import Graph
from mplan.ir.storage import problem_of
from mplan.passes.allocate import allocate
from mplan.passes.base import Context, Pass
from mplan.passes.live import live_peak
from mplan.passes.stream.attach import attach
from mplan.passes.stream.chain import Chain
from mplan.passes.stream.costs import Limits, Option, options
from mplan.passes.stream.realize import realize
from mplan.passes.stream.search import Schedule, least_peak, least_work


@dataclass(frozen=True, slots=True)
class StreamRows(Pass):
    """Run a network of static sizes as streams, for the least arena within a limit of work.

    ``max_mac_factor`` limits the multiply-accumulates to so many times those of the whole graph; with
    a ``budget`` in bytes they are minimised instead. ``rows``, ``pixels`` and ``strips`` (the most
    strips of columns) say what may be chosen. With ``input=rows`` the user's input arrives row by row
    and lies in no memory but a ring; ``whole`` is wherever the layout has it. Runs before ``inplace``.
    """

    name: ClassVar[str] = "stream"

    max_mac_factor: float = 1.0
    budget: int = 0
    rows: bool = True
    pixels: bool = True
    strips: int = 64
    input: str = "whole"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph of streams; ``graph`` itself if none of its ops has rows."""
        if self.input not in ("whole", "rows"):
            raise UserError("MP421", f"stream: input={self.input!r} is neither whole nor rows")
        if graph.symbols or any(op.loop for op in graph.ops):
            ctx.notes.append("not streamed: sizes are known only at run time, or there are loops")
            return graph
        chain = self.chain(graph, ctx)
        if all(unit.node is None for unit in chain.units):
            return graph
        table = self.table(chain)
        schedule = self._schedule(chain, table)
        if self.input == "rows":
            ctx.layout = replace(ctx.layout, inputs=None)
        found = _lowest(realize(chain, schedule), schedule.peak_bytes, ctx)
        ctx.notes.append(self._note(chain, schedule, _live_bytes(found, ctx)))
        return found

    def chain(self, graph: Graph, ctx: Context) -> Chain:
        """What the pass decides about: the units of ``graph`` and where its inputs lie."""
        users = frozenset(i.value.name for i in graph.inputs if i.role == "input")
        held = users if ctx.layout.inputs == ctx.layout.arena else frozenset[str]()
        pushed = users if self.input == "rows" else frozenset[str]()
        return Chain(attach(graph), held - pushed, pushed)

    def table(self, chain: Chain) -> dict[tuple[int, int], list[Option]]:
        """The ways to run every interval of ``chain``, within the options of the pass."""
        return options(chain, Limits(self.rows, self.pixels, self.strips))

    def _schedule(self, chain: Chain, table: dict[tuple[int, int], list[Option]]) -> Schedule:
        count = len(chain.units)
        work = sum(unit.macs for unit in chain.units)
        if not self.budget:
            found = least_peak(table, count, int(work * self.max_mac_factor))
        else:
            found = least_work(table, count, self.budget)
        if found is not None:
            return found
        least = least_peak(table, count, max(work, 1) << 32)
        needs = f"{least.peak_bytes:,} B" if least else "rows that its inputs do not have"
        raise InfeasibleError(
            "MP235",
            f"no streams of graph {chain.graph.name} fit: they need {needs}",
            help="allow more strips or multiply-accumulates, or a larger budget",
        )

    def _note(self, chain: Chain, schedule: Schedule, live_bytes: int) -> str:
        """What was made, and what no schedule of the same kind falls below."""
        streams = sum(s.option.choice is not None for s in schedule.segments)
        work = sum(unit.macs for unit in chain.units)
        factor = schedule.macs / work if work else 1.0
        if self.budget:
            bound = f"{schedule.macs:,} of them within {self.budget:,} B"
        else:
            bound = f"{schedule.peak_bytes:,} B within {self.max_mac_factor:g} times as many"
        return (
            f"streams: {streams}, {live_bytes:,} B live at {factor:.3f} times the "
            f"multiply-accumulates; no cut of this order into such streams has less than {bound}"
        )


def _lowest(graphs: Iterable[Graph], least_bytes: int, ctx: Context) -> Graph:
    """The graph that a quick placement puts lowest; none is lower than ``least_bytes``."""
    best, height = None, 0
    for graph in graphs:
        problem = problem_of(graph, ctx.layout).problem.unlimited()
        arena = ctx.layout.arena.name
        found = allocate(problem, region=arena, solver="greedy").height_bytes
        if best is None or found < height:
            best, height = graph, found
        if height <= least_bytes:
            break
    assert best is not None
    return best


def _live_bytes(graph: Graph, ctx: Context) -> int:
    """The arena's live bytes when the ops run in the order of ``graph``."""
    problem = problem_of(graph, ctx.layout).problem
    return live_peak(problem, range(len(problem.steps)), ctx.layout.arena.name)[0]
