"""Local search over priorities: boxes at the top move forward, and the skyline is built again."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from mplan.passes.allocate.columns import PRIORITIES, columns_of
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.allocate.skyline import place
from mplan.passes.solvers.interface import Deadline, Search

if TYPE_CHECKING:
    from mplan.passes.allocate.columns import Columns, Ints


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """``climb`` without end."""
    climb(instance, search, deadline, seed, patience=math.inf)


def climb(
    instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int, patience: float
) -> None:
    """Climb from the best skyline until it is proven, meets the goal, time is up or as many trials as
    ``patience`` in a row were no better.

    Equal heights are accepted. Instances with fixed offsets are left alone.
    """
    if not instance.boxes or instance.anchored:
        return
    columns, rng, met = columns_of(instance), random.Random(seed), search.met
    start = _best_skyline(instance, columns, deadline)
    if start is None:
        return
    height, offsets, rank = start
    idle = 0
    while search.met == met and idle < patience and not (search.closed or deadline.expired):
        trial = _neighbour(columns, offsets, height, rank, rng)
        try:
            packed = place(columns, trial, deadline, often=True)
        except TimeoutError:
            return
        found = instance.height(packed)
        idle = 0 if found < height else idle + 1
        if found <= height:
            rank, offsets, height = trial, packed, found
            search.offer(packed, found, "hill")


def _best_skyline(
    instance: Instance, columns: Columns, deadline: Deadline
) -> tuple[int, Offsets, Ints] | None:
    """Height, offsets and rank of the lowest; None if there is no time to find it."""
    best: tuple[int, Offsets, Ints] | None = None
    for rank in map(columns.rank, PRIORITIES):
        if deadline.expired:
            return None
        try:
            packed = place(columns, rank, deadline, often=True)
        except TimeoutError:
            return None
        if best is None or instance.height(packed) < best[0]:
            best = instance.height(packed), packed, rank
    return best


def _neighbour(columns: Columns, offsets: Offsets, height: int, rank: Ints, rng: random.Random) -> Ints:
    """A box that ends at the height, or one that meets it, moves to a random earlier place."""
    import numpy as np

    ends = np.array(offsets, np.int64) + columns.size
    top = int(rng.choice(np.flatnonzero(ends == height).tolist()))
    if rng.random() < 0.7:
        meets = (columns.start < columns.end[top]) & (columns.end > columns.start[top])
        top = int(rng.choice(np.flatnonzero(meets).tolist()))
    place = rng.randrange(int(rank[top]) + 1)
    trial: Ints = rank + ((rank >= place) & (rank < rank[top]))
    trial[top] = place
    return trial
