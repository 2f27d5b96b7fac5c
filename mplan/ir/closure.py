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
    before, after = _ancestors(problem, index), _descendants(problem, index)
    early, late = before | {index}, after | {index}
    nodes = {s: s + 2 for s in range(len(problem.steps)) if s not in early and s not in late}
    users: dict[int, set[int]] = {i: set() for i in home}
    network = _Network()
    for s, step in enumerate(problem.steps):
        for i in step.touches & home:
            users[i].add(s)
        for p in step.after:
            if s in nodes and p in nodes:
                network.arc(nodes[s], nodes[p], None)
    fixed, fresh = 0, len(problem.steps) + 2
    for i, touch in users.items():
        b = problem.buffers[i]
        begun = b.live_in or bool(touch & early) or (b.live_out and not touch)
        needed = b.live_out or bool(touch & late)
        if begun and needed:
            fixed += b.size_bytes
        elif touch & nodes.keys():
            start, end = (0 if begun else fresh), (1 if needed else fresh + 1)
            fresh += 2
            network.arc(start, end, b.size_bytes)
            for s in touch & nodes.keys():
                if not begun:
                    network.arc(nodes[s], start, None)
                if not needed:
                    network.arc(end, nodes[s], None)
    return fixed + network.cut(0, 1)


def _ancestors(problem: Problem, index: int) -> set[int]:
    seen: set[int] = set()
    stack = [index]
    while stack:
        new = set(problem.steps[stack.pop()].after) - seen
        seen |= new
        stack.extend(new)
    return seen


def _descendants(problem: Problem, index: int) -> set[int]:
    """The steps that follow ``index``; steps stand in a valid order."""
    seen: set[int] = {index}
    for s in range(index + 1, len(problem.steps)):
        if not seen.isdisjoint(problem.steps[s].after):
            seen.add(s)
    return seen - {index}


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
