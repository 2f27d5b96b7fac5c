"""Skyline placement of many boxes, compiled by Numba; import this module inside functions.

Boxes and extents are looked at in blocks of neighbours in time: each block knows the lowest place that
a box in it may take, and the last time at which one of its extents is live, and most are passed over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mplan.passes.solvers.compiled import entry

BLOCK = 64


class Rows(NamedTuple):
    """Columns of the boxes and, from ``owner`` on, of the extents, both by time of their beginning.

    The extents of box i are ``parts[first[i]:first[i + 1]]``. ``least`` is where a box may lie at
    lowest, ``done`` whether it is placed. Of a block of boxes ``best`` is the next one to place unless
    the block is ``stale``; of a block of extents none that is not placed lives after ``latest``.
    """

    rank: Any
    alignment: Any
    first: Any
    parts: Any
    owner: Any
    begin: Any
    until: Any
    low: Any
    high: Any
    least: Any
    done: Any
    best: Any
    stale: Any
    latest: Any


@entry
def place(t: Rows) -> None:
    """Write offsets to ``least``: of the boxes that may lie lowest that of least ``rank`` is next."""
    boxes, extents = len(t.rank), len(t.owner)
    least, done, best, stale, latest = t.least, t.done, t.best, t.stale, t.latest
    for _ in range(boxes):
        k = -1
        for block in range(len(best)):
            if stale[block]:
                stale[block] = False
                best[block] = -1
                for i in range(block * BLOCK, min((block + 1) * BLOCK, boxes)):
                    c = best[block]
                    if not done[i] and (
                        c < 0 or least[i] < least[c] or (least[i] == least[c] and t.rank[i] < t.rank[c])
                    ):
                        best[block] = i
            c = best[block]
            if c >= 0 and (
                k < 0 or least[c] < least[k] or (least[c] == least[k] and t.rank[c] < t.rank[k])
            ):
                k = c
        done[k] = True
        stale[k // BLOCK] = True
        for at in range(t.first[k], t.first[k + 1]):
            e = t.parts[at]
            start, end, top = t.begin[e], t.until[e], least[k] + t.high[e]
            for block in range(len(latest)):
                if t.begin[block * BLOCK] >= end:
                    break
                if latest[block] <= start:
                    continue
                last = 0
                for j in range(block * BLOCK, min((block + 1) * BLOCK, extents)):
                    i = t.owner[j]
                    if done[i]:
                        continue
                    last = max(last, t.until[j])
                    if t.begin[j] < end and t.until[j] > start and top - t.low[j] > least[i]:
                        step = t.alignment[i]
                        least[i] = (top - t.low[j] + step - 1) // step * step
                        stale[i // BLOCK] = True
                latest[block] = last
