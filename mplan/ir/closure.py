"""The checker's own proof of a schedule's bound: a minimum cut, solved here from scratch.

It is part of ``check`` and, like it, shares no code with the passes that claim the bound.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mplan.ir.plan import Problem

#: More than any buffers together: what an arc carries that a cut must not cross.
_UNLIMITED = float("inf")


def closure(problem: Problem, index: int, home: Any) -> int:
    """The least bytes of the buffers that ``home`` marks live while step ``index`` runs, over all
    valid orders.

    Whichever steps have run before it, they are a downset that holds its ancestors. A buffer costs
    its size if it has begun and is still needed, so the least is a minimum cut between the steps
    before (source) and after (sink), in which buffers are hyperedges.
    """
    import numpy as np

    columns = problem.columns
    early, late = _ancestors(problem, index), _descendants(problem, index)
    free = ~(early | late)
    touched = np.concatenate([columns.reads.flat, columns.writes.flat]).astype(np.int64)
    touching = np.concatenate([columns.reads.owner, columns.writes.owner])

    def reached(steps: Any) -> Any:
        """The buffers that one of ``steps`` touches."""
        found = np.zeros(len(home), np.bool_)
        found[touched[steps[touching]]] = True
        return found

    used, any_step = reached(free), reached(free | early | late)
    begun = columns.live_in | reached(early) | (columns.live_out & ~any_step)
    needed = columns.live_out | reached(late)
    undecided = home & used & ~(begun & needed)
    node = np.cumsum(free) + 1  # behind the source, 0, and the sink, 1
    network = _Network(2 + int(free.sum()))
    after, follower = columns.after.flat.astype(np.int64), columns.after.owner
    inside = free[after] & free[follower]
    for tail, head in zip(node[follower[inside]].tolist(), node[after[inside]].tolist(), strict=True):
        network.arc(tail, head, _UNLIMITED)
    users: dict[int, set[int]] = defaultdict(set)
    mine = undecided[touched] & free[touching]
    for i, user in zip(touched[mine].tolist(), node[touching[mine]].tolist(), strict=True):
        users[i].add(user)
    for i, nodes in users.items():
        start = 0 if begun[i] else network.meet(nodes, ahead=False)
        end = 1 if needed[i] else network.meet(nodes, ahead=True)
        network.arc(start, end, int(columns.size[i]))
    return int(columns.size[home & begun & needed].sum()) + network.cut()


def _ancestors(problem: Problem, index: int) -> Any:
    """Whether each step is one that ``index`` follows, or itself; steps stand in a valid order."""
    import numpy as np

    seen = [False] * len(problem.steps)
    seen[index] = True
    for s in range(index, -1, -1):
        if seen[s]:
            for before in problem.steps[s].after:
                seen[before] = True
    return np.array(seen, np.bool_)


def _descendants(problem: Problem, index: int) -> Any:
    """Whether each step follows ``index``, or is itself; steps stand in a valid order."""
    import numpy as np

    seen = {index}
    for s in range(index + 1, len(problem.steps)):
        if not seen.isdisjoint(problem.steps[s].after):
            seen.add(s)
    found = np.zeros(len(problem.steps), np.bool_)
    found[list(seen)] = True
    return found


class _Network:
    """A flow network; the value of its minimum cut by Dinic's algorithm (1970), without recursion."""

    def __init__(self, nodes: int) -> None:
        self.arcs: list[list[int]] = [[] for _ in range(nodes)]
        self.heads: list[int] = []
        self.room: list[float] = []

    def arc(self, tail: int, head: int, capacity: float) -> None:
        """An arc and its reverse, which has the next number."""
        number = len(self.heads)
        self.arcs[tail].append(number)
        self.arcs[head].append(number + 1)
        self.heads += (head, tail)
        self.room += (capacity, 0)

    def meet(self, nodes: set[int], ahead: bool) -> int:
        """The node that stands for ``nodes``: the only one, or a new one before or behind them all."""
        if len(nodes) == 1:
            return next(iter(nodes))
        self.arcs.append([])
        new = len(self.arcs) - 1
        for node in nodes:
            if ahead:
                self.arc(new, node, _UNLIMITED)
            else:
                self.arc(node, new, _UNLIMITED)
        return new

    def cut(self) -> int:
        """The capacity of a minimum cut; there must be a finite one."""
        total = 0
        while (levels := self._levels())[1] >= 0:
            total += self._fill(levels)
        return total

    def _levels(self) -> list[int]:
        """How many arcs with room lead from the source to each node; -1: none do."""
        levels = [-1] * len(self.arcs)
        levels[0] = 0
        queue = [0]
        for node in queue:
            for a in self.arcs[node]:
                if self.room[a] and levels[self.heads[a]] < 0:
                    levels[self.heads[a]] = levels[node] + 1
                    queue.append(self.heads[a])
        return levels

    def _fill(self, levels: list[int]) -> int:
        """Push what fits along paths that climb the levels; ``left`` drops arcs that lead nowhere."""
        heads, room = self.heads, self.room
        left = [list(arcs) for arcs in self.arcs]
        path: list[int] = []
        total, node = 0, 0
        while True:
            arcs = left[node]
            while arcs and not (room[arcs[-1]] and levels[heads[arcs[-1]]] == levels[node] + 1):
                arcs.pop()
            if arcs:
                path.append(arcs[-1])
                node = heads[path[-1]]
            elif path:
                node = heads[path.pop() ^ 1]
                left[node].pop()
            else:
                return total
            if node == 1:
                push = min(room[a] for a in path)
                total += int(push)
                for a in path:
                    room[a] -= push
                    room[a ^ 1] += push
                path, node = [], 0
