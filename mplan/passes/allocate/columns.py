"""The boxes and extents of an instance as numpy columns, and the orders of priority among boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplan.passes.allocate.instance import Instance

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Ints: TypeAlias = NDArray[np.int64]

#: Priorities: which figures of a box count, the first most; larger comes first. ``load`` is the most
#: bytes live at once during the box, ``width`` its time, ``area`` size times width.
PRIORITIES: tuple[tuple[str, ...], ...] = (
    ("load", "width", "area"),
    ("area", "width"),
    ("width", "size"),
    ("width", "area", "load"),
    ("size", "width"),
    ("area", "load"),
    ("load", "size"),
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Row i of each of the first columns belongs to box i; no box has a fixed offset.

    Row k of the others is an extent of box ``owner[k]``, from ``low`` to ``high`` above its offset
    during ``[begin, until)``.
    """

    start: Ints
    end: Ints
    size: Ints
    alignment: Ints
    load: Ints
    owner: Ints
    begin: Ints
    until: Ints
    low: Ints
    high: Ints

    def rank(self, priority: tuple[str, ...]) -> Ints:
        """The place of each box when the first by ``priority`` has place 0; ties by index."""
        import numpy as np

        width = self.end - self.start
        figures = {"load": self.load, "width": width, "size": self.size, "area": width * self.size}
        rank = np.empty(len(self.size), np.int64)
        rank[np.lexsort([-figures[name] for name in reversed(priority)])] = np.arange(len(rank))
        return rank


def columns_of(instance: Instance) -> Columns:
    """The columns of ``instance``."""
    import numpy as np

    rows = [(b.start, b.end, b.size, b.alignment) for b in instance.boxes]
    start, end, size, alignment = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    owner, begin, until, low, high = np.arange(len(size)), start, end, np.zeros_like(size), size
    if instance.rigid:
        parts = [(i, x.start, x.end, x.low, x.high) for i, x in instance.extents]
        owner, begin, until, low, high = np.array(parts, np.int64).reshape(-1, 5).T.copy()
    level = _levels(begin, until, high - low)
    load = _most(level, *(np.searchsorted(np.unique(begin), times) for times in (start, end)))
    return Columns(start, end, size, alignment, load, owner, begin, until, low, high)


def _levels(begin: Ints, until: Ints, size: Ints) -> Ints:
    """The bytes live from each time on at which an extent begins."""
    import numpy as np

    times = np.unique(begin)
    change = np.zeros(len(times) + 1, np.int64)
    np.add.at(change, np.searchsorted(times, begin), size)
    np.subtract.at(change, np.searchsorted(times, until), size)
    return np.cumsum(change[:-1])


def _most(level: Ints, first: Ints, last: Ints) -> Ints:
    """The greatest of ``level[first:last]`` of each row, by a table of maxima over 2^k levels."""
    import numpy as np

    most = np.zeros(len(first), np.int64)
    span, step = last - first, 1
    while len(level) and step <= int(span.max(initial=0)):
        now = (span >= step) & (span < 2 * step)
        most[now] = np.maximum(level[first[now]], level[last[now] - step])
        if len(level) <= step:
            break
        level = np.maximum(level[:-step], level[step:])
        step *= 2
    return most
