"""Close the gap between height and bound: branch and bound with restarts, local search, CP-SAT.

A packing problem is often easy for one priority of the boxes and hopeless for another, so each height
is tried with every priority and with random ones, a few thousand states at a time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mplan.passes.allocate import hill, packing
from mplan.passes.allocate.columns import PRIORITIES, Columns, columns_of
from mplan.passes.allocate.decide import MAX_CELLS, Decider, Verdict
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers.interface import Bound, Deadline, Search

if TYPE_CHECKING:
    from mplan.passes.allocate.columns import Ints

#: States of the first attempts, and how they grow per round.
_FIRST_STATES = 1_000
_GROWTH = 2

#: Random priorities per round, and the strengths of the noise in their logarithm.
_RANDOM = 12
_NOISE = (0.03, 0.1, 0.3)


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Improve ``search`` until it is closed or time is up.

    Branch and bound has two fifths of the time, local search one, CP-SAT the rest; fixed offsets are
    CP-SAT's alone.
    """
    if all(b.fixed is None for b in instance.boxes):
        branch_and_bound(instance, search, deadline.share(0.4), seed)
        hill.run(instance, search, deadline.share(0.3), seed)
    if not (search.closed or deadline.expired):
        packing.run(instance, search, deadline, seed)


def branch_and_bound(
    instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int
) -> None:
    """Decide heights between bound and best; only an exhausted search raises the bound."""
    if len(instance.boxes) * len(instance.cliques()) > MAX_CELLS:
        return
    columns = columns_of(instance)
    decider = Decider(instance, columns)
    rng = random.Random(seed)
    states = _FIRST_STATES
    while not deadline.expired:
        for rank, share in _ranks(columns, rng):
            for height in _heights(search, packing.unit_of(instance)):
                verdict = decider.decide(height, rank, share * states, deadline)
                _take(instance, search, height, verdict)
            if search.closed or deadline.expired:
                return
        states *= _GROWTH


def _take(instance: Instance, search: Search[Offsets], height: int, verdict: Verdict) -> None:
    if verdict.offsets is not None:
        search.offer(verdict.offsets, instance.height(verdict.offsets), "exact")
    elif verdict.exhausted:
        above = height + packing.unit_of(instance)
        search.raise_bound(Bound(min(above, search.value), "exhaustive"))


def _heights(search: Search[Offsets], unit: int) -> Iterator[int]:
    """The bound, and a height halfway between it and the best, in whole units."""
    low = search.bound.bytes
    yield low
    middle = (low + search.value) // 2
    middle -= middle % unit
    if low < middle < search.value:
        yield middle


def _ranks(columns: Columns, rng: random.Random) -> Iterator[tuple[Ints, int]]:
    """The rank of every priority, then of random mixtures of them, with their shares of states."""
    import numpy as np

    for place, priority in enumerate(PRIORITIES):
        yield columns.rank(priority), 2 if place else 8
    logs = [np.log(column) for column in (columns.size, columns.end - columns.start, columns.load)]
    for _ in range(_RANDOM):
        weights = [rng.choice((0.0, 0.3, 1.0)), rng.choice((0.3, 1.0)), rng.choice((0.0, 4.0, 12.0))]
        noise = np.array([rng.gauss(0, rng.choice(_NOISE)) for _ in columns.size])
        score = noise + sum(w * log for w, log in zip(weights, logs, strict=True))
        rank = np.empty(len(score), np.int64)
        rank[np.argsort(-score, kind="stable")] = np.arange(len(score))
        yield rank, 1
