"""All streams of one graph while its inputs arrive in one way: what they cost, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

from mplan.diagnostics import InfeasibleError
from mplan.ir.accesses import accessed_bytes
from mplan.ir.geometry import Spatial
from mplan.ir.graph import Graph, Op
from mplan.ir.storage import Layout, problem_of, share
from mplan.ir.streaming import dims_of, nodes_of
from mplan.passes.allocate import allocate
from mplan.passes.stream.attach import attach
from mplan.passes.stream.chain import Chain
from mplan.passes.stream.costs import Limits, Option, options
from mplan.passes.stream.realize import Ways, realize
from mplan.passes.stream.search import Schedule, Segment, frontier, least_peak, least_work

Emits: TypeAlias = Callable[[Op, Spatial], bool]
#: How the user's inputs arrive: in the arena, row by row, or in memory outside of the arena.
Arrival: TypeAlias = Literal["whole", "rows", "flash"]
ARRIVALS: tuple[Arrival, ...] = ("whole", "rows", "flash")
#: Seconds that a quick placement in several memories may take.
_QUICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Built:
    """A graph of streams and the height at which a quick placement puts its arena; ``shared`` says
    whether it finds addresses in each of several memories."""

    schedule: Schedule
    graph: Graph
    height_bytes: int
    shared: bool = True


def _all(op: Op, rule: Spatial) -> bool:
    return True


class Space:
    """The cuts of ``graph`` into streams within ``limits``; its inputs arrive as ``arrival`` says.

    Inputs without rows lie in the arena while others arrive by rows. ``emits`` says which ops may be
    part of a stream.
    """

    def __init__(
        self, graph: Graph, arrival: Arrival, limits: Limits, layout: Layout, emits: Emits = _all
    ):
        users = frozenset(i.value.name for i in graph.inputs if i.role == "input")
        self.arrival = arrival
        graph = attach(graph)
        images = users & dims_of(nodes_of(graph)).keys() or users
        pushed = images if arrival == "rows" else frozenset[str]()
        held = users - pushed if arrival != "flash" else frozenset[str]()
        self.chain = Chain(graph, held, pushed, emits)
        self.limits, self.emits = limits, emits
        self.layout = replace(layout, inputs=layout.arena if held else None, apart=pushed)
        self.known: dict[Segment, Ways] = {}
        self.units = len(self.chain.units)
        self.macs = sum(unit.macs for unit in self.chain.units)

    @property
    def has_streams(self) -> bool:
        """Whether any op has rows."""
        return any(unit.node for unit in self.chain.units)

    def against(self, other: Arrival) -> Space:
        """The same graph, its inputs arriving in another way."""
        return Space(self.chain.graph, other, self.limits, self.layout, self.emits)

    @cached_property
    def table(self) -> dict[tuple[int, int], list[Option]]:
        """The ways to run every interval of the chain."""
        return options(self.chain, self.limits)

    @cached_property
    def frontier(self) -> list[Schedule]:
        """The schedules of which none is better in both bytes and work, the cheapest first."""
        return frontier(self.table, self.units)

    def factor(self, macs: int) -> float:
        """So many multiply-accumulates over those of the graph."""
        return macs / self.macs if self.macs else 1.0

    def least_peak(self, macs: int) -> Schedule | None:
        """The schedule of the fewest bytes within ``macs``."""
        return least_peak(self.table, self.units, macs)

    def least_work(self, peak_bytes: int) -> Schedule | None:
        """The schedule of the least work within ``peak_bytes``."""
        return least_work(self.table, self.units, peak_bytes)

    def build(self, schedule: Schedule) -> Built:
        """The graph that runs ``schedule``, at the lowest height that was found for it."""
        return _lowest(realize(self.chain, schedule, self.known), schedule, self.layout)


def _lowest(graphs: Iterable[Graph], schedule: Schedule, layout: Layout) -> Built:
    """The graph that a quick placement puts lowest; none can be lower than the schedule's bytes."""
    best: Built | None = None
    for graph in graphs:
        problem = problem_of(graph, layout).problem.unlimited()
        height = allocate(problem, region=layout.arena.name, solver="greedy").height_bytes
        built = Built(schedule, graph, height, shares_out(graph, layout))
        if best is None or (built.shared, -height) > (best.shared, -best.height_bytes):
            best = built
        if built.shared and height <= schedule.peak_bytes:
            break
    assert best is not None
    return best


def shares_out(graph: Graph, layout: Layout) -> bool:
    """Whether a quick placement finds addresses for ``graph`` in each of several memories, where
    ``layout`` has some."""
    from mplan.passes.planner import place

    if not layout.memories:
        return True
    lowered = problem_of(graph, layout)
    problem = share(lowered, layout, accessed_bytes(graph, lowered)).problem
    try:
        place(problem, range(len(problem.steps)), solver="greedy", limit_s=_QUICK_S)
    except InfeasibleError:
        return False
    return True
