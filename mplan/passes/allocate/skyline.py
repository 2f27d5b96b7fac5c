"""Skyline placement: the lowest place first, and there the box of highest priority.

Every box rests on those placed before it, at the lowest offset any box may take: the first descent of
the branch and bound in ``decide``. On the memory of networks it is at or near the bound.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mplan.passes.allocate.columns import PRIORITIES, Columns, columns_of
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers import compiled
from mplan.passes.solvers.interface import Deadline, Search

if TYPE_CHECKING:
    from mplan.passes.allocate.columns import Ints

#: More extents than these are placed by the compiled search.
_MANY = 2_000
_KERNEL = "mplan.passes.allocate.skyline_kernel:place"


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Offer the placement of each priority; stop at a proof or at the deadline.

    The skyline knows no holes, so instances with fixed offsets are left alone.
    """
    if not instance.boxes or instance.anchored:
        return
    columns = columns_of(instance)
    for priority in PRIORITIES:
        if search.closed or deadline.expired:
            return
        with suppress(TimeoutError):
            offsets = place(columns, columns.rank(priority), deadline)
            search.offer(offsets, instance.height(offsets), "skyline")


def place(columns: Columns, rank: Ints, deadline: Deadline, *, often: bool = False) -> Offsets:
    """Offsets when, of the boxes that may lie lowest, the one of least ``rank`` is placed first.

    ``often`` says that it pays to load the compiled function even for few boxes. TimeoutError when the
    deadline expires before all are placed.
    """
    if (often or len(columns.owner) > _MANY) and compiled.ready(_KERNEL, deadline):
        return place_many(columns, rank)
    return place_few(columns, rank, deadline)


def place_few(columns: Columns, rank: Ints, deadline: Deadline) -> Offsets:
    """A vector operation for every box finds the next and lifts those above it."""
    import numpy as np

    begin, until, low, high = columns.begin, columns.until, columns.low, columns.high
    owner, alignment = columns.owner, columns.alignment
    first = np.searchsorted(owner, np.arange(len(rank) + 1)).tolist()
    least = np.zeros(len(rank), np.int64)
    done = np.zeros(len(rank), np.bool_)
    for _ in range(len(rank)):
        if deadline.expired:
            raise TimeoutError
        floor = least[~done].min()
        lowest = np.flatnonzero((least == floor) & ~done)
        k = lowest[rank[lowest].argmin()]
        done[k] = True
        for part in range(first[k], first[k + 1]):
            above = (begin < until[part]) & (until > begin[part]) & ~done[owner]
            boxes = owner[above]
            np.maximum.at(least, boxes, floor + high[part] - low[above])
            least[boxes] += -least[boxes] % alignment[boxes]
    return tuple(least.tolist())


def place_many(columns: Columns, rank: Ints) -> Offsets:
    """The same, compiled: boxes and extents in order of time."""
    import numpy as np

    from mplan.passes.allocate.skyline_kernel import BLOCK, Rows
    from mplan.passes.allocate.skyline_kernel import place as run_compiled

    boxes = np.argsort(columns.start, kind="stable")
    extents = np.argsort(columns.begin, kind="stable")
    index = np.empty_like(boxes)
    index[boxes] = np.arange(len(boxes))
    owner = index[columns.owner[extents]]
    parts = np.argsort(owner, kind="stable")
    least = np.zeros(len(boxes), np.int64)
    run_compiled(
        Rows(
            rank=rank[boxes],
            alignment=columns.alignment[boxes],
            first=np.searchsorted(owner[parts], np.arange(len(boxes) + 1)),
            parts=parts,
            owner=owner,
            begin=columns.begin[extents],
            until=columns.until[extents],
            low=columns.low[extents],
            high=columns.high[extents],
            least=least,
            done=np.zeros(len(boxes), np.bool_),
            best=np.full(-(-len(boxes) // BLOCK), -1),
            stale=np.ones(-(-len(boxes) // BLOCK), np.bool_),
            latest=np.full(-(-len(extents) // BLOCK), np.iinfo(np.int64).max),
        )
    )
    return tuple(least[index].tolist())
