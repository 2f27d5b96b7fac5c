"""Local search over priorities: boxes at the top move forward, and the skyline is built again."""

from __future__ import annotations

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
    """Climb from the best skyline until it is proven or time is up; equal heights are accepted.

    Instances with fixed offsets are left alone.
    """
    if not instance.boxes or any(b.fixed is not None for b in instance.boxes):
        return
    columns, rng = columns_of(instance), random.Random(seed)
    starts = [columns.rank(priority) for priority in PRIORITIES]
    height, offsets, rank = min(
        ((instance.height(o), o, r) for r in starts for o in (place(columns, r, deadline),)),
        key=lambda row: row[0],
    )
    while not search.closed and not deadline.expired:
        trial = _neighbour(columns, offsets, height, rank, rng)
        packed = place(columns, trial, deadline)
        found = instance.height(packed)
        if found <= height:
            rank, offsets, height = trial, packed, found
            search.offer(packed, found, "hill")


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
