"""The boxes of an instance as numpy columns, and the orders of priority derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplan.passes.allocate.instance import Instance

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Ints: TypeAlias = NDArray[np.int64]
    Bools: TypeAlias = NDArray[np.bool_]

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
    """Row i of each column belongs to box i; no box has a fixed offset."""

    start: Ints
    end: Ints
    size: Ints
    alignment: Ints
    load: Ints

    def at(self, places: Ints) -> Columns:
        """The rows at ``places``."""
        return Columns(
            self.start[places],
            self.end[places],
            self.size[places],
            self.alignment[places],
            self.load[places],
        )

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

    boxes = instance.boxes
    start, end, size, alignment = (
        np.array(column, np.int64).reshape(-1)
        for column in (
            [b.start for b in boxes],
            [b.end for b in boxes],
            [b.size for b in boxes],
            [b.alignment for b in boxes],
        )
    )
    return Columns(start, end, size, alignment, _load(start, end, size))


def _load(start: Ints, end: Ints, size: Ints) -> Ints:
    """The most bytes live at once during each box, by a table of maxima over 2^k events."""
    import numpy as np

    times = np.unique(start)
    first, last = np.searchsorted(times, start), np.searchsorted(times, end)
    change = np.zeros(len(times) + 1, np.int64)
    np.add.at(change, first, size)
    np.subtract.at(change, last, size)
    level = np.cumsum(change[:-1])
    load = np.zeros(len(start), np.int64)
    span, step = last - first, 1
    while len(level) and step <= int(span.max(initial=0)):
        now = (span >= step) & (span < 2 * step)
        load[now] = np.maximum(level[first[now]], level[last[now] - step])
        if len(level) <= step:
            break
        level = np.maximum(level[:-step], level[step:])
        step *= 2
    return load


def lift(columns: Columns, low: Ints, which: Bools, top: int) -> None:
    """Raise ``low[which]`` to at least ``top``, to the next multiple of the alignment."""
    import numpy as np

    raised = np.maximum(low[which], top)
    alignment = columns.alignment[which]
    low[which] = raised + -raised % alignment
