"""Precedence that a budget implies: what every order within it must do, found by minimum cuts.

If, while step v runs, no downset that holds u has few enough live bytes, u comes after v in every order
within the budget; if none without u has, before it. Such precedence makes the cuts of other steps more
expensive, until nothing follows any more, or no order is left. The same idea as edge finding for a
cumulative resource (Nuijten, 1994), with the closure bound in the place of energy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mplan.passes.schedule.bounds import closure_between, reach
from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Deadline

#: Steps whose neighbours are examined in a round: those of the highest closures.
_STEPS = 12
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Implied:
    """``instance`` with the implied precedence, None if there is no order within the budget.

    Either holds for all budgets under ``next_bytes``.
    """

    instance: Instance | None
    next_bytes: int


def imply(instance: Instance, budget_bytes: int, deadline: Deadline) -> Implied:
    """The precedence that orders within ``budget_bytes`` keep, as far as it is found in time.

    Steps keep their numbers, which need no longer be a valid order.
    """
    search = _Implication(instance, budget_bytes, deadline)
    for _ in range(_ROUNDS):
        before = search.instance
        if not search.round():
            return Implied(None, search.next_bytes)
        if search.instance is before or deadline.expired:
            break
    return Implied(search.instance, search.next_bytes)


class _Implication:
    def __init__(self, instance: Instance, budget: int, deadline: Deadline) -> None:
        self.instance = instance
        self.budget = budget
        self.deadline = deadline
        self.next_bytes = max(budget, instance.base + sum(instance.sizes)) + 1

    def round(self) -> bool:
        """Examine the steps of the highest closures; False if there is no order."""
        values = []
        for step in range(self.instance.count):
            if self.deadline.expired:
                return True
            before, after = reach(self.instance.preds, step), reach(self.instance.succs, step)
            values.append((self._value(step, before, after), step))
        worst = max(values)[0]
        if worst > self.budget:
            return self._exceeded(worst)
        return all(self._examine(step) for _, step in sorted(values, reverse=True)[:_STEPS])

    def _value(self, step: int, before: frozenset[int], after: frozenset[int]) -> int:
        return closure_between(self.instance, step, before, after)[0]

    def _exceeded(self, value: int) -> bool:
        self.next_bytes = min(self.next_bytes, value)
        return False

    def _examine(self, step: int) -> bool:
        """Find which steps come before ``step`` or after it; False if one can do neither."""
        instance = self.instance
        known = first, last = reach(instance.preds, step), reach(instance.succs, step)
        for other in range(instance.count):
            if other == step or other in first or other in last:
                continue
            if self.deadline.expired:
                break
            sooner = first | reach(instance.preds, other) | {other}
            later = last | reach(instance.succs, other) | {other}
            if (value := self._value(step, sooner, last)) > self.budget:
                self._exceeded(value)
                last = later
            if (value := self._value(step, first, later)) > self.budget:
                self._exceeded(value)
                if last is later:
                    return False
                first = sooner
        self._add(step, first - known[0], last - known[1])
        return True

    def _add(self, step: int, before: frozenset[int], after: frozenset[int]) -> None:
        if not before | after:
            return
        preds, succs = [list(p) for p in self.instance.preds], [list(s) for s in self.instance.succs]
        for first, last in (*((b, step) for b in before), *((step, a) for a in after)):
            preds[last].append(first)
            succs[first].append(last)
        self.instance = replace(
            self.instance,
            preds=tuple(tuple(sorted(p)) for p in preds),
            succs=tuple(tuple(sorted(s)) for s in succs),
        )
