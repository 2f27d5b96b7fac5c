"""List scheduling that watches memory, run forward and on the reversed graph.

Beside rules of our own there are those that PyTorch's Inductor tries: least peak first, breadth first
and depth first, where bytes decide among equals.

Scores are updated only for the steps whose buffers changed state, so a schedule costs O(touches *
log steps).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Deadline, Search

Order = tuple[int, ...]
Key = Callable[[int, int, int, int], tuple[int, ...]]


#: The part of the remaining time that the portfolio may take.
_SHARE = 0.15


def run(instance: Instance, search: Search[Order], deadline: Deadline, seed: int) -> None:
    """Offer each order of the portfolio. The first is always tried, whatever the deadline."""
    deadline = deadline.share(_SHARE)
    for order in portfolio(instance, search.value):
        search.offer(order, instance.peak(order), "greedy")
        if search.closed or deadline.expired:
            return


def portfolio(instance: Instance, limit_bytes: int) -> Iterator[Order]:
    """Orders from cheap rules: eager frees under ``limit_bytes``, then list schedules, both ways."""
    backward = instance.reversed()
    last = instance.count - 1
    yield eager_order(instance, limit_bytes)
    yield tuple(last - s for s in reversed(eager_order(backward, limit_bytes)))
    for key in (_growth, _growth_then_young, _peak, _breadth, _depth):
        yield list_order(instance, key)
        yield tuple(last - s for s in reversed(list_order(backward, key)))


def _growth(step: int, allocates: int, frees: int, turn: int) -> tuple[int, ...]:
    return allocates - frees, step


def _growth_then_young(step: int, allocates: int, frees: int, turn: int) -> tuple[int, ...]:
    return allocates - frees, -step


def _peak(step: int, allocates: int, frees: int, turn: int) -> tuple[int, ...]:
    return allocates, -frees, step


def _breadth(step: int, allocates: int, frees: int, turn: int) -> tuple[int, ...]:
    return turn, allocates - frees, step


def _depth(step: int, allocates: int, frees: int, turn: int) -> tuple[int, ...]:
    return -turn, allocates - frees, step


def list_order(instance: Instance, key: Key) -> Order:
    """Always run the ready step with the least ``key(step, bytes allocated, bytes freed, turn)``.

    ``turn`` is the position from which on the step is ready.
    """
    front = Front(instance)
    turns = [0] * instance.count

    def rank(s: int) -> tuple[int, ...]:
        return key(s, front.allocates[s], front.frees[s], turns[s])

    heap = [(rank(s), s) for s in front.ready]
    heapq.heapify(heap)
    while heap:
        ranked, step = heapq.heappop(heap)
        if step not in front.ready or ranked != rank(step):
            continue
        for s in front.run(step):
            turns[s] = turns[s] or len(front.order)
            heapq.heappush(heap, (rank(s), s))
    return tuple(front.order)


def eager_order(instance: Instance, limit_bytes: int) -> Order:
    """The given order, except that a step that frees what it allocates runs as soon as it fits."""
    front = Front(instance)
    heap: list[tuple[int, int]] = []
    for s in front.ready:
        _push_frugal(front, heap, s)
    for step in range(instance.count):
        while heap and front.live + heap[0][0] <= limit_bytes:
            allocates, s = heapq.heappop(heap)
            if s in front.ready and allocates == front.allocates[s]:
                for changed in front.run(s):
                    _push_frugal(front, heap, changed)
        if step in front.ready:
            for changed in front.run(step):
                _push_frugal(front, heap, changed)
    return tuple(front.order)


def near_order(instance: Instance, limit_bytes: int, eager: bool) -> Order:
    """The given order, except that a step waits as long as it exceeds ``limit_bytes`` and another one
    does not; if ``eager``, those that free what they allocate come first."""
    front = Front(instance)

    def rank(s: int) -> tuple[bool, bool, int]:
        waits = eager and front.allocates[s] > front.frees[s]
        return front.live + front.allocates[s] > limit_bytes, waits, s

    while front.ready:
        front.run(min(front.ready, key=rank))
    return tuple(front.order)


def _push_frugal(front: Front, heap: list[tuple[int, int]], step: int) -> None:
    if front.allocates[step] <= front.frees[step]:
        heapq.heappush(heap, (front.allocates[step], step))


class Front:
    """A partial schedule: what has run, what is ready, and what each step would allocate and free."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.order: list[int] = []
        self.live = instance.base
        self.allocates = [0] * instance.count
        self.frees = [0] * instance.count
        self._missing = [len(p) for p in instance.preds]
        self._begun = [not starts for starts in instance.starts]
        self._left = [len(ends) for ends in instance.ends]
        self._sum = [sum(ends) for ends in instance.ends]
        self.ready = {s for s, n in enumerate(self._missing) if n == 0}
        for size, starts, ends in zip(instance.sizes, instance.starts, instance.ends, strict=True):
            self.live += 0 if starts else size
            for s in starts:
                self.allocates[s] += size
            if len(ends) == 1:
                self.frees[ends[0]] += size

    def run(self, step: int) -> set[int]:
        """Run ``step``, which must be ready; the ready steps that are new or changed their score."""
        instance = self.instance
        self.order.append(step)
        self.ready.remove(step)
        self.live += self.allocates[step] - self.frees[step]
        changed: set[int] = set()
        for b in instance.begins[step]:
            if not self._begun[b]:
                self._begun[b] = True
                for s in instance.starts[b]:
                    self.allocates[s] -= instance.sizes[b]
                changed.update(instance.starts[b])
        for b in instance.finishes[step]:
            self._left[b] -= 1
            self._sum[b] -= step
            if self._left[b] == 1:
                self.frees[self._sum[b]] += instance.sizes[b]
                changed.add(self._sum[b])
        for s in instance.succs[step]:
            self._missing[s] -= 1
            if not self._missing[s]:
                self.ready.add(s)
                changed.add(s)
        return changed & self.ready
