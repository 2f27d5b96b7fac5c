"""The checker's own proof of a schedule's bound: a minimum cut, solved here from scratch.

It is part of ``check`` and, like it, shares no code with the passes that claim the bound.
"""

from __future__ import annotations

from collections import defaultdict, deque

from mplan.ir.plan import Problem


def closure(problem: Problem, index: int, home: frozenset[int]) -> int:
    """The least bytes of ``home`` live while step ``index`` runs, over all valid orders.

    Whichever steps have run before it, they are a downset that holds its ancestors. A buffer costs
    its size if it has begun and is still needed, so the least is a minimum cut between the steps
    before (source) and after (sink), in which buffers are hyperedges.
    """
    steps = problem.steps
    early, late = _ancestors(problem, index), _descendants(problem, index)
    begun, needed = ({i for s in side for i in steps[s].touches} for side in (early, late))
    network = _Network()
    nodes = {s: s + 2 for s in range(len(steps)) if s not in early and s not in late}
    users: dict[int, list[int]] = defaultdict(list)
    for s, node in nodes.items():
        for i in steps[s].touches & home:
            users[i].append(node)
        for p in steps[s].after:
            if p in nodes:
                network.arc(node, nodes[p], None)
    fixed, fresh = 0, len(steps) + 2
    for i in home:
        b = problem.buffers[i]
        idle = b.live_out and i not in begun and i not in needed and i not in users
        starts, ends = b.live_in or i in begun or idle, b.live_out or i in needed
        if starts and ends:
            fixed += b.size_bytes
        elif i in users:
            start, end = (0 if starts else fresh), (1 if ends else fresh + 1)
            fresh += 2
            network.arc(start, end, b.size_bytes)
            for node in users[i]:
                if not starts:
                    network.arc(node, start, None)
                if not ends:
                    network.arc(end, node, None)
    return fixed + network.cut(0, 1)


def _ancestors(problem: Problem, index: int) -> set[int]:
    """The steps that ``index`` follows, and itself."""
    seen: set[int] = {index}
    stack = [index]
    while stack:
        new = set(problem.steps[stack.pop()].after) - seen
        seen |= new
        stack.extend(new)
    return seen


def _descendants(problem: Problem, index: int) -> set[int]:
    """The steps that follow ``index``, and itself; steps stand in a valid order."""
    seen: set[int] = {index}
    for s in range(index + 1, len(problem.steps)):
        if not seen.isdisjoint(problem.steps[s].after):
            seen.add(s)
    return seen


class _Network:
    """A flow network; the value of its minimum cut by Dinic's algorithm (1970), without recursion."""

    def __init__(self) -> None:
        self.arcs: dict[int, list[int]] = defaultdict(list)
        self.heads: list[int] = []
        self.room: list[float] = []

    def arc(self, tail: int, head: int, capacity: int | None) -> None:
        """An arc (None: of unlimited capacity) and its reverse, which has the next number."""
        for node, other, room in ((tail, head, capacity), (head, tail, 0)):
            self.arcs[node].append(len(self.heads))
            self.heads.append(other)
            self.room.append(float("inf") if room is None else room)

    def cut(self, source: int, sink: int) -> int:
        """The capacity of a minimum cut; there must be a finite one."""
        total = 0
        while sink in (levels := self._levels(source)):
            at = dict.fromkeys(levels, 0)
            while path := self._path(source, sink, levels, at):
                push = min(self.room[a] for a in path)
                total += int(push)
                for a in path:
                    self.room[a] -= push
                    self.room[a ^ 1] += push
        return total

    def _levels(self, source: int) -> dict[int, int]:
        levels = {source: 0}
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for a in self.arcs[node]:
                if self.room[a] and self.heads[a] not in levels:
                    levels[self.heads[a]] = levels[node] + 1
                    queue.append(self.heads[a])
        return levels

    def _path(self, source: int, sink: int, levels: dict[int, int], at: dict[int, int]) -> list[int]:
        """The arcs of a path with room that climbs the levels; ``at`` skips arcs that led nowhere."""
        path: list[int] = []
        node = source
        while node != sink:
            arcs = self.arcs[node]
            while at[node] < len(arcs) and not self._climbs(arcs[at[node]], levels):
                at[node] += 1
            if at[node] < len(arcs):
                path.append(arcs[at[node]])
                node = self.heads[path[-1]]
            elif path:
                node = self.heads[path.pop() ^ 1]
                at[node] += 1
            else:
                return []
        return path

    def _climbs(self, a: int, levels: dict[int, int]) -> bool:
        head, tail = self.heads[a], self.heads[a ^ 1]
        return self.room[a] > 0 and levels.get(head) == levels[tail] + 1
