"""Close the gap between height and bound: branch and bound, then CP-SAT, then local search.

Of many boxes the highest ones are ejected first.
"""

from __future__ import annotations

from mplan.passes.allocate import canonical, ejection, hill, packing
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import MANY, Instance
from mplan.passes.solvers.interface import Deadline, Search

#: The share of the time that many boxes have for ejection.
_EJECTION = 0.8
#: The branch and bound's share of the time; CP-SAT, which learns from conflicts, has the rest, and
#: local search what both leave.
_FIRST_LINE = 0.7
#: Of rigid bodies the branch and bound knows only the hulls: it has less, and local search comes next.
_HULLS = 0.2
_CLIMB = 0.6
_PATIENCE = 1_000
#: The share of the time left that is spent on lower packings once one meets the goal.
_AFTER_GOAL = 0.2


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Meet the goal of ``search``, if it has one, then improve until it is closed or time is up."""
    if not search.met:
        _work(instance, search, deadline, seed)
    if search.met and not search.closed:
        spare = deadline if search.goal is None else deadline.share(_AFTER_GOAL)
        _work(instance, search, spare, seed)


class _Hull(Search[Offsets]):
    """The search for a packing of hulls: what it finds holds for ``whole``, what it proves does not."""

    def __init__(self, whole: Search[Offsets]) -> None:
        super().__init__(whole.answer, whole.value, whole.solver, whole.bound, whole.goal)
        self.whole = whole

    def offer(self, answer: Offsets, value: int, solver: str) -> bool:
        """Take ``answer`` for both."""
        return super().offer(answer, value, solver) and self.whole.offer(answer, value, solver)


def _work(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """The solvers in turn, until the search is closed, meets its goal for the first time or cannot."""
    met = search.met

    def going() -> bool:
        return search.met == met and not (search.closed or search.hopeless or deadline.expired)

    if len(instance.boxes) >= MANY:
        ejection.run(instance, search, deadline.share(_EJECTION), seed)
    if going() and instance.rigid:
        if canonical.available(deadline):
            canonical.run(instance.hull(), _Hull(search), deadline.share(_HULLS), seed)
        if going():
            hill.climb(instance, search, deadline.share(_CLIMB), seed, _PATIENCE)
    elif going() and canonical.available(deadline):
        canonical.run(instance, search, deadline.share(_FIRST_LINE), seed)
    if going():
        packing.run(instance, search, deadline, seed)
    if going():
        hill.run(instance, search, deadline, seed + 1)
