"""Skyline placement: the lowest place first, and there the box of highest priority.

Every box rests on those placed before it, at the lowest offset any box may take: the first descent of
the branch and bound in ``decide``. On the memory of networks it is at or near the bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mplan.passes.allocate.columns import PRIORITIES, Columns, columns_of, lift
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers.interface import Deadline, Search

if TYPE_CHECKING:
    from mplan.passes.allocate.columns import Ints


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Offer the placement of each priority; stop at a proof or at the deadline.

    The skyline knows no holes, so instances with fixed offsets are left alone.
    """
    if not instance.boxes or any(b.fixed is not None for b in instance.boxes):
        return
    columns = columns_of(instance)
    for priority in PRIORITIES:
        if search.closed or deadline.expired:
            return
        offsets = place(columns, columns.rank(priority))
        search.offer(offsets, instance.height(offsets), "skyline")


def place(columns: Columns, rank: Ints) -> Offsets:
    """Offsets when, of the boxes that may lie lowest, the one of least ``rank`` is placed first."""
    import numpy as np

    start, end, size = columns.start, columns.end, columns.size
    low = np.zeros(len(size), np.int64)
    # One key per box: lowest offset first, then rank. Placed boxes sort behind all others.
    done = np.zeros(len(size), np.bool_)
    offsets = np.zeros(len(size), np.int64)
    for _ in range(len(size)):
        floor = low[~done].min()
        lowest = np.flatnonzero((low == floor) & ~done)
        k = lowest[rank[lowest].argmin()]
        offsets[k] = floor
        done[k] = True
        above = (start < end[k]) & (end > start[k]) & ~done
        lift(columns, low, above, int(floor + size[k]))
    return tuple(int(o) for o in offsets)
