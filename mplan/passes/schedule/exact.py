"""Close the gap between bound and best: decide budgets segment by segment.

A step that is comparable with every other splits each order at the same place; between such steps the
segments are independent. The worst segment is solved first: the search over downsets runs forward and
on the reversed graph, just below its best and halfway to the bound, with ever more states. Attempts of
many states are compiled, and start from the precedence that the budget implies.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from mplan.passes.schedule.compiled import available
from mplan.passes.schedule.downsets import decide
from mplan.passes.schedule.greedy import Order
from mplan.passes.schedule.implied import Implied, imply
from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Bound, Deadline, Search

#: States of the first attempts at a budget, and how they grow when none is decided.
_FIRST_STATES = 1_000
_GROWTH = 4
#: Attempts of more states are compiled; there are none of more than the last.
_MANY_STATES = 4_000
_LAST_STATES = 5_000_000
#: Segments of so many steps are tried with the precedence that the budget implies, which takes at most
#: this part of the time.
_IMPLIED_STEPS = 600
_IMPLIED_SHARE = 0.5
#: Bit sets of longer segments take too much memory.
_MAX_STEPS = 12_000


def prove(instance: Instance, search: Search[Order], deadline: Deadline) -> None:
    """Close ``search`` if little effort is enough."""
    run(instance, search, deadline, 0, _FIRST_STATES)


def run(
    instance: Instance,
    search: Search[Order],
    deadline: Deadline,
    seed: int,
    last_states: int = _LAST_STATES,
) -> None:
    """Improve ``search`` until it is closed or too hard, or time is up; the bound is ``exhaustive``."""
    parts = _parts(instance, search.answer)
    while not search.closed and not deadline.expired:
        worst = max(parts, key=lambda part: part.best)
        if worst.states > last_states or len(worst.steps) > _MAX_STEPS:
            return
        worst.low = max(worst.low, search.bound.bytes)
        if worst.low < worst.best:
            many = worst.states > _MANY_STATES
            worst.narrow(instance, deadline, compiled=many and available(deadline))
        order = tuple(s for part in parts for s in part.steps)
        search.offer(order, instance.peak(order), "exact")
        search.raise_bound(Bound(worst.low, "exhaustive"))


def segments(instance: Instance, order: Order) -> list[list[int]]:
    """``order`` cut at the steps that are comparable with every other step."""
    position = {step: p for p, step in enumerate(order)}
    last = instance.count
    used = [min((position[s] for s in instance.succs[step]), default=last) for step in order]
    needs = [max((position[s] for s in instance.preds[step]), default=-1) for step in order]
    tail = [*accumulate(reversed(needs), min, initial=last)][::-1]
    parts: list[list[int]] = [[]]
    reach = -1
    for p, step in enumerate(order):
        if reach <= p <= tail[p + 1]:
            parts += [[step], []]
        else:
            parts[-1].append(step)
        reach = max(reach, used[p])
    return [part for part in parts if part]


def _parts(instance: Instance, order: Order) -> list[_Segment]:
    profile = instance.profile(order)
    parts: list[_Segment] = []
    start = 0
    for steps in segments(instance, order):
        end = start + len(steps)
        parts.append(_Segment(steps, order[:start], max(profile[start:end])))
        start = end
    return parts


class _Segment:
    """An interval of every order: its best order yet, its peak, and a bound on its optimum."""

    def __init__(self, steps: list[int], before: Sequence[int], peak: int) -> None:
        self.steps = steps
        self.before = before
        self.best = peak
        self.low = 0
        self.states = _FIRST_STATES
        self._names = steps
        self._stuck: set[int] = set()
        self._local: Instance | None = None
        self._implied: dict[int, Implied] = {}

    def narrow(self, instance: Instance, deadline: Deadline, compiled: bool) -> None:
        """Decide a budget just below the best or halfway; if neither can be, allow more states."""
        if self._local is None:
            done = [False] * instance.count
            for s in self.before:
                done[s] = True
            self._local = instance.restrict(self._names, done)
        for budget in dict.fromkeys((self.best - 1, (self.low + self.best) // 2)):
            if budget not in self._stuck and not deadline.expired:
                return self._decide(self._local, budget, deadline, compiled)
        self.states *= _GROWTH
        self._stuck.clear()

    def _decide(self, local: Instance, budget: int, deadline: Deadline, compiled: bool) -> None:
        implied = Implied(local, local.base + sum(local.sizes))
        if self.states > _MANY_STATES and local.count <= _IMPLIED_STEPS:
            if budget not in self._implied:
                self._implied[budget] = imply(local, budget, deadline.share(_IMPLIED_SHARE))
            implied = self._implied[budget]
        if implied.instance is None:
            self.low = max(self.low, min(implied.next_bytes, self.best))
            return
        verdict = decide(implied.instance, budget, self.states, deadline, compiled)
        if verdict.order is not None:
            self.best = local.peak(verdict.order)
            self.steps = [self._names[s] for s in verdict.order]
        elif verdict.next_bytes is not None:
            least = min(verdict.next_bytes, implied.next_bytes)
            self.low = max(self.low, min(least, self.best))
        else:
            self._stuck.add(budget)
