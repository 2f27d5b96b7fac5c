"""Skyline placement: the lowest place first, and there the box of highest priority.

Every box rests on those placed before it, at the lowest offset any box may take: the first descent of
the branch and bound in ``decide``. On the memory of networks it is at or near the bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mplan.passes.allocate.columns import PRIORITIES, Columns, columns_of
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

    owner, begin, until, low, high = (
        columns.owner,
        columns.begin,
        columns.until,
        columns.low,
        columns.high,
    )
    first = np.searchsorted(owner, np.arange(len(rank) + 1)).tolist()
    least = np.zeros(len(rank), np.int64)
    done = np.zeros(len(rank), np.bool_)
    for _ in range(len(rank)):
        floor = least[~done].min()
        lowest = np.flatnonzero((least == floor) & ~done)
        k = lowest[rank[lowest].argmin()]
        done[k] = True
        for part in range(first[k], first[k + 1]):
            above = (begin < until[part]) & (until > begin[part]) & ~done[owner]
            boxes = owner[above]
            np.maximum.at(least, boxes, floor + high[part] - low[above])
            least[boxes] += -least[boxes] % columns.alignment[boxes]
    return tuple(least.tolist())
