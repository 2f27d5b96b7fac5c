"""Lower bounds on the peak of every order.

*Boundary*: what is live before the first step, or after the last, is live at the first, or last,
position. *Working set*: a step needs its buffers at once. *Closure*: while step v runs, some downset
that holds v's ancestors and not v has run; the least bytes live over all of them are a minimum cut in
which buffers are hyperedges (a project-selection network in the manner of Picard, 1976).
"""

from __future__ import annotations

from collections.abc import Sequence

from mplan.ir.plan import Problem
from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Bound
from mplan.passes.solvers.maxflow import MinCut


def working_set(problem: Problem, region: str) -> Bound:
    """The largest working set of a step, as ``ir/check`` replays it."""
    home = [b.regions[0] == region for b in problem.buffers]
    sizes = [b.size_bytes if mine else 0 for b, mine in zip(problem.buffers, home, strict=True)]
    pinned = {i for i, b in enumerate(problem.buffers) if b.live_in and b.live_out}
    base = sum(sizes[i] for i in pinned)
    best = Bound(0, "working_set", (0,))
    for index, step in enumerate(problem.steps):
        needed = base + sum(sizes[i] for i in step.touches - pinned)
        if needed > best.bytes:
            best = Bound(needed, "working_set", (index,))
    return best


def boundary(problem: Problem, region: str) -> Bound:
    """The bytes that every order holds before its first step, or after its last."""
    mine = [b for b in problem.buffers if b.regions[0] == region]
    start = sum(b.size_bytes for b in mine if b.live_in)
    end = sum(b.size_bytes for b in mine if b.live_out)
    return Bound(max(start, end), "boundary")


def closure(instance: Instance, step: int, largest: bool = False) -> tuple[int, list[int]]:
    """The least bytes live while ``step`` runs, and the steps of a downset that attains it.

    Of all downsets that attain it, the smallest one, or the largest.
    """
    before, after = reach(instance.preds, step), reach(instance.succs, step)
    return closure_between(instance, step, before, after, largest)


def closure_between(
    instance: Instance,
    step: int,
    before: frozenset[int],
    after: frozenset[int],
    largest: bool = False,
) -> tuple[int, list[int]]:
    """``closure`` over the downsets that hold all of ``before``, a downset, and none of ``after``."""
    network = _Network(instance, step, before, after)
    value, side = network.cut.solve(largest)
    chosen = [s for s in range(instance.count) if s in before or network.nodes.get(s) in side]
    return value + network.fixed, chosen


class _Network:
    """Nodes for the steps comparable with ``step`` in no way; arcs for precedence and blocks."""

    def __init__(
        self, instance: Instance, step: int, before: frozenset[int], after: frozenset[int]
    ) -> None:
        self.instance = instance
        self.step, self.before, self.after = step, before, after
        self.cut = MinCut(infinity=sum(instance.sizes) + 1)
        self.nodes: dict[int, int] = {}
        for s in range(instance.count):
            if s != step and s not in before and s not in after:
                self.nodes[s] = self.cut.node()
        for s, node in self.nodes.items():
            for p in instance.preds[s]:
                if p in self.nodes:
                    self.cut.arc(node, self.nodes[p])
        self.fixed = instance.base + sum(self._block(b) for b in range(len(instance.sizes)))

    def _block(self, b: int) -> int:
        """Bytes of block b that are live whatever the downset; arcs for those that may be."""
        starts, ends = self.instance.starts[b], self.instance.ends[b]
        begun = not starts or any(s == self.step or s in self.before for s in starts)
        pending = not ends or any(s == self.step or s in self.after for s in ends)
        if begun and pending:
            return self.instance.sizes[b]
        first = [] if begun else [self.nodes[s] for s in starts if s in self.nodes]
        last = [] if pending else [self.nodes[s] for s in ends if s in self.nodes]
        if (begun or first) and (pending or last):
            self.cut.charge(self.instance.sizes[b], first, last)
        return 0


def reach(edges: Sequence[Sequence[int]], start: int) -> frozenset[int]:
    """All steps that ``edges`` lead to from ``start``, without itself."""
    seen: set[int] = set()
    stack = list(edges[start])
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(edges[node])
    return frozenset(seen)
