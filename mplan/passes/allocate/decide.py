"""Decide whether the boxes fit a height: branch and bound over canonical packings.

In a packing whose offsets have the least sum, no box can be moved down, so each rests on the ground or
on another. Placed in order of offset, each box takes the lowest place that the placed ones leave it.
The search asks of the box that may lie lowest: is it there, or on a box that is still to come?

* A box that was said to rest on another and could meanwhile slide under all that is to come makes the
  packing one that is not canonical. (MiniMalloc, ASPLOS 2023, prunes likewise.)
* A maximal set of boxes that live together must fit between the lowest place of its unplaced boxes and
  the height.
* Parts of the unplaced boxes that do not meet in time are independent: each is solved once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplan.passes.allocate.columns import Columns, lift
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers.interface import Deadline

if TYPE_CHECKING:
    from mplan.passes.allocate.columns import Bools, Ints

#: Above every offset; twice it still fits 64 bits.
_PLACED = 1 << 61

#: A scope is cut down to its unplaced boxes when they are less than this share.
_SHRINK = 0.6

#: The largest table of boxes by cliques; beyond it a state takes milliseconds.
MAX_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """``offsets`` within the height if found; else ``exhausted`` says whether there are none.

    ``states`` is how many were visited.
    """

    offsets: Offsets | None
    exhausted: bool
    states: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Boxes that are solved together, in order of start: their numbers, columns and ranks, who meets
    whom in time, the maximal sets live together (rows), and the bytes of each."""

    ids: Ints
    columns: Columns
    rank: Ints
    meets: Bools
    cliques: Bools
    loads: Ints

    def part(self, places: Ints) -> Scope:
        """The scope of the boxes at ``places`` (ascending) alone."""
        return _scope(
            self.ids[places],
            self.columns.at(places),
            self.rank[places],
            self.meets[places[:, None], places[None, :]],
            self.cliques[:, places],
        )

    def parts(self, unplaced: Bools) -> list[Ints]:
        """The places of the unplaced boxes as groups that do not meet in time."""
        import numpy as np

        places = np.flatnonzero(unplaced)
        reach = np.maximum.accumulate(self.columns.end[places])
        cuts = np.flatnonzero(self.columns.start[places][1:] >= reach[:-1]) + 1
        return list(np.split(places, cuts))


def _scope(ids: Ints, columns: Columns, rank: Ints, meets: Bools, cliques: Bools) -> Scope:
    """A scope whose cliques are reduced to those that no other contains."""
    import numpy as np

    rows = np.unique(cliques[cliques.any(axis=1)], axis=0)
    counts = rows.sum(axis=1)
    common = rows.astype(np.float32) @ rows.T.astype(np.float32)
    inside = (common == counts[:, None]) & (counts[None, :] > counts[:, None])
    rows = rows[~inside.any(axis=1)]
    return Scope(ids, columns, rank, meets, rows, rows @ columns.size)


@dataclass(slots=True)
class _State:
    """A node of the search.

    Per box of the scope ``low``, the lowest place that it may take (``_PLACED`` if it has one), and
    ``denied``, the place that it was said not to take (-1: none); per clique the bytes still to place;
    ``then`` is the part to solve afterwards; ``fresh`` says that a box was just placed.
    """

    scope: Scope
    low: Ints
    denied: Ints
    loads: Ints
    then: _Goal | None
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class _Goal:
    """A part to solve once the present one is; the alternatives of the present one, above ``height``
    on the stack, are then dropped."""

    scope: Scope
    low: Ints
    denied: Ints
    height: int
    then: _Goal | None


class Decider:
    """The tables of an instance without fixed offsets, for several heights and ranks."""

    def __init__(self, instance: Instance, columns: Columns) -> None:
        import numpy as np

        self._order = np.argsort(columns.start, kind="stable")
        self._columns = columns.at(self._order)
        start, end = self._columns.start, self._columns.end
        self._meets = (start[:, None] < end[None, :]) & (end[:, None] > start[None, :])
        np.fill_diagonal(self._meets, False)
        rows = instance.cliques()
        cliques = np.zeros((len(rows), len(start)), np.bool_)
        for row, clique in enumerate(rows):
            cliques[row, list(clique)] = True
        self._cliques = cliques[:, self._order]

    def decide(self, height: int, rank: Ints, states: int, deadline: Deadline) -> Verdict:
        """Search for offsets within ``height``; boxes of low ``rank`` are tried first."""
        import numpy as np

        offsets = np.zeros(len(rank), np.int64)
        root = _scope(self._order, self._columns, rank[self._order], self._meets, self._cliques)
        low, denied = np.zeros(len(rank), np.int64), np.full(len(rank), -1, np.int64)
        stack = [_State(root, low, denied, root.loads, None)]
        visited = 0
        while stack:
            if visited >= states or (visited % 64 == 0 and deadline.expired):
                return Verdict(None, False, visited)
            visited += 1
            state = stack.pop()
            if (state.low == _PLACED).all():
                goal = state.then
                if goal is None:
                    return Verdict(tuple(int(o) for o in offsets), False, visited)
                del stack[goal.height :]
                state = _State(goal.scope, goal.low, goal.denied, goal.scope.loads, goal.then)
            elif state.fresh:
                state = _split(state, len(stack))
            if _fits(state, height):
                _branch(state, stack, offsets)
        return Verdict(None, True, visited)


def _split(state: _State, height: int) -> _State:
    """``state`` reduced to its first part, if the unplaced boxes fall apart or are few."""
    scope = state.scope
    parts = scope.parts(state.low < _PLACED)
    if len(parts) == 1 and len(parts[0]) >= _SHRINK * len(state.low):
        return state
    then = state.then
    first, *others = sorted(parts, key=len, reverse=True)
    for places in others:
        then = _Goal(scope.part(places), state.low[places], state.denied[places], height, then)
    small = scope.part(first)
    return _State(small, state.low[first], state.denied[first], small.loads, then, False)


def _fits(state: _State, height: int) -> bool:
    """Whether no bound rules ``state`` out; drops denials that are fulfilled."""
    import numpy as np

    low, denied, size = state.low, state.denied, state.scope.columns.size
    denied[low > denied] = -1
    waiting = np.flatnonzero(denied >= 0)
    allowed = low[denied < 0]
    floor = int(allowed.min(initial=_PLACED))
    if floor == _PLACED:
        return False
    least = np.maximum(low, floor)
    if len(waiting):
        if (low[waiting] + size[waiting] <= floor).any():
            return False
        under = np.where(state.scope.meets[waiting], least + size, 2 * _PLACED).min(axis=1)
        if (under + size[waiting] > height).any():
            return False
        least[waiting] = np.maximum(least[waiting], under)
    bottoms = np.where(state.scope.cliques, least, _PLACED).min(axis=1, initial=_PLACED)
    return not ((bottoms + state.loads > height) & (state.loads > 0)).any()


def _branch(state: _State, stack: list[_State], offsets: Ints) -> None:
    """Push two states: the first box is on something still to come; or (on top) where it may lie."""
    import numpy as np

    scope, low = state.scope, state.low
    free = np.where(state.denied < 0, low, _PLACED)
    lowest = np.flatnonzero(free == free.min())
    k = int(lowest[scope.rank[lowest].argmin()])
    denied = state.denied.copy()
    denied[k] = low[k]
    stack.append(_State(scope, low, denied, state.loads, state.then, False))
    offsets[scope.ids[k]] = low[k]
    size = int(scope.columns.size[k])
    raised = low.copy()
    lift(scope.columns, raised, scope.meets[k] & (low < _PLACED), int(low[k]) + size)
    raised[k] = _PLACED
    loads = state.loads - scope.cliques[:, k] * size
    stack.append(_State(scope, raised, state.denied.copy(), loads, state.then))
