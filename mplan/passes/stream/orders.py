"""Orders of the ops that streams may start from: networks that branch have several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mplan.ir.graph import Graph
from mplan.ir.storage import Layout, problem_of
from mplan.passes.base import Context
from mplan.passes.schedule_ops import ScheduleOps


def orders(graph: Graph, layout: Layout) -> Iterator[Graph]:
    """``graph`` as it is, then depth first, then in an order of few live bytes; each order once."""
    yield graph
    deep = _depth_first(graph, layout)
    if deep.ops != graph.ops:
        yield deep
    lean = ScheduleOps(solver="greedy").run(graph, Context(layout))
    if lean.ops not in (graph.ops, deep.ops):
        yield lean


def _depth_first(graph: Graph, layout: Layout) -> Graph:
    """After every op the one, if any may run, that needs the op made last."""
    lowered = problem_of(graph, layout)
    steps = lowered.problem.steps
    if len(steps) != len(graph.ops):  # ops in phases
        return graph
    place: dict[int, int] = {}
    order: list[int] = []
    left = set(range(len(steps)))
    while left:
        ready = (i for i in left if all(before in place for before in steps[i].after))
        chosen = max(ready, key=lambda i: (max((place[b] for b in steps[i].after), default=-1), -i))
        place[chosen] = len(order)
        order.append(chosen)
        left.remove(chosen)
    return replace(graph, ops=tuple(graph.ops[i] for i in order))
