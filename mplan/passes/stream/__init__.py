"""Spatial partial execution: networks of convolutions run as streams of rows or pixels.

Patch inference (Lin et al. 2021, MCUNetV2) recomputes halos; a stream keeps the last rows in rings
instead (Alwani et al. 2016, fused-layer CNN accelerators), and strips of columns trade a little of the
one for the other. The result of a stream may follow its dying operand through the same memory (Zheng et
al. 2024, vMCU).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import ClassVar, NoReturn

from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.graph import Graph
from mplan.ir.plan import Certificate
from mplan.ir.rings import row_inputs
from mplan.ir.storage import problem_of
from mplan.passes.base import Context, Pass, Streamed
from mplan.passes.inplace import Inplace
from mplan.passes.live import live_peak
from mplan.passes.stream.costs import Limits
from mplan.passes.stream.orders import orders
from mplan.passes.stream.space import ARRIVALS, Arrival, Built, Space, shares_out

#: When the pass acts.
WHEN = ("always", "emitted", "needed")


@dataclass(frozen=True, slots=True)
class StreamRows(Pass):
    """Run a network of static sizes as streams, for the least arena within a limit of work.

    ``max_mac_factor`` limits the multiply-accumulates to so many times those of the whole graph (0: to
    once as many, or not at all with a budget). With a ``budget`` in bytes they are minimised within it,
    and of the cuts with so few the one is taken that is the quickest to walk: by rows rather than
    pixels. ``rows``, ``pixels`` and ``strips`` (the most strips of columns) say what may be chosen. The
    user's input arrives row by row and lies in no memory but a ring (``input=rows``), lies in the arena
    (``whole``), or outside of it (``flash``); by default it is where the layout has it. Rows may arrive
    up to ``scans`` times over, once for each strip of columns. ``compare``
    also finds what the other two ways would need. ``when=emitted`` leaves graphs alone for which no
    code would be generated, ``needed`` also those that fit as they are. Runs before ``inplace``.
    """

    name: ClassVar[str] = "stream"

    max_mac_factor: float = 0.0
    budget: int = 0
    rows: bool = True
    pixels: bool = True
    strips: int = 64
    scans: int = 1
    input: str = ""
    when: str = "always"
    compare: bool = False

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph of streams; ``graph`` itself if there is none to make. InfeasibleError MP235."""
        started = time.monotonic()
        if self.when == "needed" and (not _fixed(graph) or self._fits(graph, ctx)):
            return graph
        space = self.space(graph, ctx)
        if space is None:
            return graph
        layered = live_bytes(Inplace().run(graph, ctx), ctx)
        built, limit = self._best(space, ctx)
        ctx.layout = space.layout
        live = live_bytes(Inplace().run(built.graph, ctx), ctx)
        least = space.least_peak(limit)
        bound = least.peak_bytes if least else 0
        certificate = Certificate(
            subject=f"stream:{ctx.layout.arena.name}",
            value_bytes=live,
            lower_bound_bytes=bound,
            bound_kind="cuts",
            status="optimal" if live == bound else "feasible",
            solver="cuts",
            seconds=time.monotonic() - started,
        )
        ctx.streamed = Streamed(
            space.arrival,
            max((rows.scans for rows in row_inputs(built.graph).values()), default=1),
            built.schedule.streams,
            built.schedule.macs,
            space.factor(built.schedule.macs),
            limit,
            self._budget(ctx),
            dict(self._arrivals(built, space, limit)),
            layered,
            certificate,
        )
        return built.graph

    def space(self, graph: Graph, ctx: Context) -> Space | None:
        """What the pass chooses from; None if ``graph`` has no op with rows.

        UserError MP421 for options out of range, InfeasibleError MP235 if rows are to arrive where
        there are none.
        """
        if self.input not in ("", *ARRIVALS) or self.when not in WHEN:
            known = f"input: {', '.join(ARRIVALS)}; when: {', '.join(WHEN)}"
            given = f"input={self.input!r}, when={self.when!r}"
            raise UserError("MP421", f"stream: {given} is not known", help=known)
        arrival = self._arrival(ctx)
        found = None
        if _fixed(graph):
            found = self._space(graph, arrival, ctx)
        else:
            ctx.notes.append("not streamed: sizes are known only at run time, or there are loops")
        if found is not None and found.has_streams:
            return found
        if arrival == "rows":
            raise InfeasibleError(
                "MP235", f"graph {graph.name} has no ops that rows could stream through"
            )
        return None

    def _space(self, graph: Graph, arrival: Arrival, ctx: Context) -> Space | None:
        """The streams of ops for which code is generated, in the order of least bytes; if it is not for
        all that multiply, those of all ops, or None where streams without code are not wanted."""
        limits = Limits(self.rows, self.pixels, self.strips, self.scans)
        free = Space(graph, arrival, limits, ctx.layout)
        if not free.has_streams:
            return free
        asked = self.when == "always"
        work = [unit.node for unit in free.chain.units if unit.node and unit.macs]
        known = all(ctx.emits(op, rule) for n in work for op, rule in zip(n.ops, n.rules, strict=True))
        if known and (work or asked):
            emits = ctx.emits
        elif asked:
            ctx.notes.append("no C is generated for some ops of these streams: a plan only")
            emits = free.emits
        else:
            return None
        spaces = [Space(g, arrival, limits, ctx.layout, emits) for g in orders(graph, ctx.layout)]
        return min(spaces, key=_least_bytes) if len(spaces) > 1 else spaces[0]

    def _arrival(self, ctx: Context) -> Arrival:
        held: Arrival = "whole" if ctx.layout.inputs == ctx.layout.arena else "flash"
        return next((a for a in ARRIVALS if a == self.input), held)

    def _budget(self, ctx: Context) -> int:
        """The bytes within which work is minimised; 0 if bytes are."""
        fits = ctx.layout.arena.capacity_bytes if self.when == "needed" else 0
        return min((n for n in (self.budget, fits) if n), default=0)

    def _fits(self, graph: Graph, ctx: Context) -> bool:
        """Whether the budget, and each of several memories, holds the graph as it is."""
        written = Inplace().run(graph, ctx)
        fits = live_bytes(written, ctx) <= (self._budget(ctx) or inf)
        return fits and shares_out(written, ctx.layout)

    def _best(self, space: Space, ctx: Context) -> tuple[Built, int]:
        """The graph to run, and the multiply-accumulates within which none has fewer bytes."""
        budget = self._budget(ctx)
        factor = self.max_mac_factor or (inf if budget else 1.0)
        limit = int(min(space.macs * factor, max(space.macs, 1) << 32))
        if not budget:
            found = space.least_peak(limit)
            return (space.build(found), limit) if found else _refuse(space, budget, limit)
        fitting = [s for s in space.frontier if s.peak_bytes <= budget and s.macs <= limit]
        quickest = space.least_work(budget)
        for schedule in (*([quickest] if quickest and fitting else []), *fitting):
            built = space.build(schedule)
            if built.height_bytes <= budget and built.shared:
                break
        return (built, schedule.macs) if fitting else _refuse(space, budget, limit)

    def _arrivals(self, built: Built, space: Space, limit: int) -> Iterator[tuple[str, int | None]]:
        """The bytes of the arena for every way in which inputs may arrive, within the same work."""
        yield space.arrival, built.height_bytes
        for arrival in ARRIVALS if self.compare else ():
            if arrival == space.arrival:
                continue
            other = space.against(arrival)
            found = other.least_peak(limit)
            yield arrival, other.build(found).height_bytes if found else None


def _fixed(graph: Graph) -> bool:
    """Whether all sizes are known and no op is a loop yet."""
    return not graph.symbols and not any(op.loop for op in graph.ops)


def _least_bytes(space: Space) -> float:
    """The fewest bytes without recomputation."""
    found = space.least_peak(space.macs)
    return found.peak_bytes if found else inf


def _refuse(space: Space, budget: int, limit: int) -> NoReturn:
    """InfeasibleError with the points of the frontier next to what was asked."""
    name, found = space.chain.graph.name, space.frontier
    if not found:
        raise InfeasibleError(
            "MP235",
            f"no streams of graph {name} fit: an op needs more than the rows that its inputs have",
            help="let the caller pass pixels with all their channels (io=int8-nhwc), or give the "
            "input whole (input=whole) or from flash (input=flash)",
        )
    within = [f"{budget:,} B"] if budget else []
    within += [f"{limit:,} multiply-accumulates"] if limit < found[-1].macs or not budget else []
    points = [s for s in found if s.macs <= limit][-1:]
    points += [s for s in found if budget and s.peak_bytes <= budget][:1] or found[-1:]
    nearest = dict.fromkeys(
        f"{s.peak_bytes:,} B at {space.factor(s.macs):.3f} times the multiply-accumulates"
        for s in points
    )
    raise InfeasibleError(
        "MP235",
        f"no streams of graph {name} stay within {' and '.join(within)}",
        help=f"nearest on the frontier: {'; '.join(nearest)}{_elsewhere(space)}",
    )


def _elsewhere(space: Space) -> str:
    lies = "for images that arrive by rows or lie in flash (--input) see `mplan plan --pareto`"
    return f"; {lies}" if space.arrival == "whole" else ""


def live_bytes(graph: Graph, ctx: Context) -> int:
    """The arena's live bytes when the ops run in the order of ``graph``."""
    problem = problem_of(graph, ctx.layout).problem
    return live_peak(problem, range(len(problem.steps)), ctx.layout.arena.name)[0]
