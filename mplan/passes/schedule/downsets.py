"""Decide whether some order stays within a budget: best-first search over downsets.

States are sets of executed steps (bit masks); the one with the fewest live bytes is expanded first.
The search starts at the empty set; when it is stuck, another runs from the full set on the reversed
graph, over what is left, and so on from both ends. Three facts, all from submodularity, keep it small,
and none loses a feasible order:

* *Safe move.* A ready step that fits and frees at least what it allocates may run at once.
* *Valley.* If T is reached from the root R and holds the fewest live bytes of all downsets between R
  and T, the search may restart at T: merged with T, no state of a completion from R gets larger.
* Whatever is reached on the way to T, the downset Z of fewest bytes between R and T is also reached,
  by the same steps restricted to Z.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Deadline
from mplan.passes.solvers.maxflow import MinCut

#: States whose live bytes agree to this fraction of the slack are expanded deepest first.
_GRAINS = 16

#: A ready step with the bytes it allocates and frees in the state at hand.
_Move = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one budget.

    ``order`` is an order within the budget, if one was found. Otherwise, if the search space is
    exhausted, ``next_bytes`` is the least budget that may be feasible; None means undecided.
    """

    order: tuple[int, ...] | None = None
    next_bytes: int | None = None


def decide(
    instance: Instance,
    budget_bytes: int,
    states: int,
    deadline: Deadline,
    compiled: bool = False,
) -> Verdict:
    """Search for an order within ``budget_bytes``; each end stops after ``states`` states in vain.

    ``compiled`` searches are faster by far and need Numba.
    """
    engine = _engine(compiled)
    names = list(range(instance.count))
    front: list[int] = []
    back: list[int] = []
    side, other = front, back
    next_bytes = instance.base + sum(instance.sizes)
    idle = 0
    while idle < 2 and not deadline.expired:
        search = engine(Downsets(instance), budget_bytes, states, deadline)
        exhausted = search.run()
        next_bytes = min(next_bytes, search.next_bytes or next_bytes)
        if exhausted:
            return Verdict(next_bytes=next_bytes)
        side.extend(names[s] for s in search.done)
        if len(search.done) == instance.count:
            return Verdict(order=(*front, *reversed(back)))
        idle = 0 if search.done else idle + 1
        run = [search.root >> s & 1 == 1 for s in range(instance.count)]
        rest = [s for s in range(instance.count) if not run[s]]
        instance = instance.restrict(rest, run).reversed()
        names = [names[s] for s in reversed(rest)]
        side, other = other, side
    return Verdict()


def _engine(compiled: bool) -> type[Decision]:
    if not compiled:
        return Decision
    from mplan.passes.schedule.compiled import CompiledDecision

    return CompiledDecision


class Downsets:
    """The search space of one instance: moves between its downsets, and valleys."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.full = (1 << instance.count) - 1
        self.preds = [_mask(p) for p in instance.preds]
        self.starts = [_mask(s) for s in instance.starts]
        self.ends = [_mask(e) for e in instance.ends]
        self.beside = [self._neighbours(s) for s in range(instance.count)]
        self.start = instance.base + sum(
            size for size, starts in zip(instance.sizes, self.starts, strict=True) if not starts
        )

    def _neighbours(self, step: int) -> int:
        """The steps whose allocations and frees may change when ``step`` runs."""
        mask = 0
        for b in self.instance.begins[step]:
            mask |= self.starts[b]
        for b in self.instance.finishes[step]:
            mask |= self.ends[b]
        return mask

    def move(self, step: int, state: int) -> _Move:
        """``step`` with the bytes that it allocates and frees in ``state``."""
        sizes = self.instance.sizes
        rest = ~(state | 1 << step)
        allocates = sum(sizes[b] for b in self.instance.begins[step] if not self.starts[b] & state)
        frees = sum(sizes[b] for b in self.instance.finishes[step] if not self.ends[b] & rest)
        return step, allocates, frees

    def moves_after(self, moves: Sequence[_Move], step: int, state: int) -> list[_Move]:
        """The moves of ``state``, which ``step`` led to from a state with ``moves``."""
        beside = self.beside[step]
        found = [self.move(m[0], state) if beside >> m[0] & 1 else m for m in moves if m[0] != step]
        for s in self.instance.succs[step]:
            if self.preds[s] & ~state == 0:
                found.append(self.move(s, state))
        return found

    def valley(self, root: int, path: Sequence[int]) -> list[int]:
        """Of the downsets between ``root`` and ``root`` + ``path``, the largest of fewest live bytes.

        Given as the steps of ``path`` that it holds, in the order of ``path``.
        """
        if len(path) == 1:
            return list(path)
        cut = MinCut(infinity=sum(self.instance.sizes) + 1)
        node = {s: cut.node() for s in path}
        for s in path:
            for p in self.instance.preds[s]:
                if p in node:
                    cut.arc(node[s], node[p])
        self._charge(cut, node, root)
        side = cut.solve(largest=True)[1]
        return [s for s in path if node[s] in side]

    def _charge(self, cut: MinCut, node: dict[int, int], root: int) -> None:
        instance = self.instance
        top = root | _mask(node)
        for b in dict.fromkeys(b for s in node for b in (*instance.begins[s], *instance.finishes[s])):
            begun = not self.starts[b] or self.starts[b] & root
            pending = not self.ends[b] or self.ends[b] & ~top
            first = [] if begun else [node[s] for s in instance.starts[b] if s in node]
            last = [] if pending else [node[s] for s in instance.ends[b] if s in node]
            if not (begun and pending) and (begun or first) and (pending or last):
                cut.charge(instance.sizes[b], first, last)


class Decision:
    """One run for one budget, from ``root``; ``done`` are the steps up to there.

    ``came`` holds the states since the last restart and how we got there.
    """

    def __init__(self, space: Downsets, budget: int, states: int, deadline: Deadline) -> None:
        self.space = space
        self.budget = budget
        self.states = states
        self.deadline = deadline
        self.next_bytes: int | None = None
        self.done: list[int] = []
        self.root = 0
        self.level = space.start
        self.came: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.heap: list[tuple[int, int, int, int, int, Sequence[_Move]]] = []

    def run(self) -> bool:
        """Search until ``done`` is an order, or time or states run out; True if there is no order."""
        self.restart(())
        while self.heap:
            if self.states <= 0 or (self.states % 64 == 0 and self.deadline.expired):
                return False
            self.states -= 1
            self._expand()
        return self.root != self.space.full

    def restart(self, path: Sequence[int]) -> None:
        """Make the state after ``path`` the root and forget all others."""
        for step in path:
            _, allocates, frees = self.space.move(step, self.root)
            self.level += allocates - frees
            self.root |= 1 << step
        self.done.extend(path)
        self.grain = max(1, (self.budget - self.level) // _GRAINS)
        self.came = {self.root: (self.root, ())}
        ready = [self.space.move(s, self.root) for s in self.ready()]
        self.heap = [(0, 0, self.root, -1, self.level, ready)] if self.root != self.space.full else []

    def ready(self) -> list[int]:
        """The steps that may run at the root."""
        preds = self.space.preds
        waiting = ~self.root
        return [s for s, p in enumerate(preds) if waiting >> s & 1 and p & waiting == 0]

    def commit(self, path: Sequence[int]) -> None:
        """Restart at the valley on ``path``, which leads from the root to its like or to the end."""
        whole = self.root | _mask(path) == self.space.full
        self.restart(path if whole else self.space.valley(self.root, path))

    def _expand(self) -> None:
        """Take the state of fewest live bytes, slide down its safe moves, then branch or restart."""
        _, depth, state, last, live, moves = heapq.heappop(self.heap)
        if last >= 0:
            moves = self.space.moves_after(moves, last, state)
        top = state
        state, live, moves, slide = self._slide(state, live, moves)
        if slide:
            if state in self.came:
                return
            self.came[state] = (top, slide)
        if state == self.space.full or (live <= self.level and state != self.root):
            self.commit(self._path(state))
        else:
            self._branch(state, live, depth - len(slide) - 1, moves)

    def _slide(
        self, state: int, live: int, moves: Sequence[_Move]
    ) -> tuple[int, int, Sequence[_Move], tuple[int, ...]]:
        """Run safe moves while there are any."""
        slide: list[int] = []
        while True:
            safe = [(a, s, f) for s, a, f in moves if a <= f and live + a <= self.budget]
            if not safe:
                return state, live, moves, tuple(slide)
            allocates, step, frees = min(safe)
            state |= 1 << step
            live += allocates - frees
            moves = self.space.moves_after(moves, step, state)
            slide.append(step)

    def _branch(self, state: int, live: int, depth: int, moves: Sequence[_Move]) -> None:
        for step, allocates, frees in moves:
            needed = live + allocates
            if needed > self.budget:
                self.next_bytes = min(needed, self.next_bytes or needed)
                continue
            child = state | 1 << step
            if child not in self.came:
                self.came[child] = (state, (step,))
                heapq.heappush(
                    self.heap,
                    ((needed - frees) // self.grain, depth, child, step, needed - frees, moves),
                )

    def _path(self, state: int) -> list[int]:
        """The steps on the way from the root to ``state``."""
        path: list[int] = []
        while state != self.root:
            state, steps = self.came[state]
            path.extend(reversed(steps))
        return path[::-1]


def _mask(steps: Iterable[int]) -> int:
    mask = 0
    for s in steps:
        mask |= 1 << s
    return mask
