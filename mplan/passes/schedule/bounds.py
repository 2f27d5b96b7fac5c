"""Lower bounds on the peak of every order.

*Boundary*: what is live before the first step, or after the last, is live at the first, or last,
position. *Working set*: a step needs its buffers at once. *Closure*: while step v runs, some downset
that holds v's ancestors and not v has run; the least bytes live over all of them are a minimum cut in
which buffers are hyperedges (a project-selection network in the manner of Picard, 1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mplan.ir.plan import Problem
from mplan.ir.table import Table
from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Bound
from mplan.passes.solvers.maxflow import MinCut

if TYPE_CHECKING:
    from mplan.ir.table import Bools


def working_set(problem: Problem, region: str) -> Bound:
    """The largest working set of a step, as ``ir/check`` replays it."""
    import numpy as np

    table = problem.table
    pinned = table.live_in & table.live_out
    size = np.where(table.lies_in(region), table.size, 0)
    needed = np.zeros(max(table.steps, 1), size.dtype)
    moving = np.repeat(~pinned, table.users.lengths)
    np.add.at(needed, table.users.flat[moving], np.repeat(size, table.users.lengths)[moving])
    step = int(needed.argmax())
    return Bound(int(needed[step] + size[pinned].sum()), "working_set", (step,))


def boundary(problem: Problem, region: str) -> Bound:
    """The bytes that every order holds before its first step, or after its last."""
    table = problem.table
    mine = table.lies_in(region)
    ends = (int(table.size[mine & there].sum()) for there in (table.live_in, table.live_out))
    return Bound(max(ends), "boundary")


def closure_in(problem: Problem, region: str, step: int) -> Bound:
    """``closure`` of a problem's step, without an instance of all its blocks."""
    import numpy as np

    table = problem.table
    early, late = _around(table, step)
    free = ~(early | late)
    users, size = table.users, np.where(table.lies_in(region), table.size, 0)
    unused = users.lengths == 0
    begun = table.live_in | users.any(early) | (table.live_out & unused)
    needed = table.live_out | users.any(late)
    undecided = users.any(free) & ~(begun & needed) & (size > 0)
    cut = MinCut(infinity=int(size.sum()) + 1)
    node = np.zeros(table.steps, np.int64)
    node[free] = cut.nodes(int(free.sum()))
    count = int(undecided.sum())
    opens, closes = np.zeros((2, len(size)), np.int64)
    opens[undecided] = np.where(begun[undecided], cut.SOURCE, cut.nodes(count))
    closes[undecided] = np.where(needed[undecided], cut.SINK, cut.nodes(count))
    cut.arcs(opens[undecided], closes[undecided], size[undecided])
    before, follower = table.after.flat, table.after.owner
    inside = free[before] & free[follower]
    cut.arcs(node[follower[inside]], node[before[inside]])
    inside = free[users.flat] & undecided[users.owner]
    user, buffer = users.flat[inside], users.owner[inside]
    begins, ends = ~begun[buffer], ~needed[buffer]
    cut.arcs(node[user[begins]], opens[buffer[begins]])
    cut.arcs(closes[buffer[ends]], node[user[ends]])
    value, _ = cut.solve()
    return Bound(int(size[begun & needed].sum()) + value, "closure", (step,))


def _around(table: Table, step: int) -> tuple[Bools, Bools]:
    """The steps that every order runs before ``step``, and those that it runs after; itself in both."""
    import numpy as np

    flat, at = table.after.flat.tolist(), table.after.at.tolist()
    early, late = [False] * table.steps, {step}
    early[step] = True
    for s in range(step, -1, -1):
        if early[s]:
            for p in flat[at[s] : at[s + 1]]:
                early[p] = True
    for s in range(step + 1, table.steps):
        if not late.isdisjoint(flat[at[s] : at[s + 1]]):
            late.add(s)
    behind = np.zeros(table.steps, np.bool_)
    behind[list(late)] = True
    return np.array(early, np.bool_), behind


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
