"""A part of a packing problem laid out for the compiled search."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from mplan.passes.allocate.canonical_records import BOX, CHANGE, CLOCK, FRAME, SECTION, State
from mplan.passes.allocate.grid import Grid
from mplan.passes.allocate.reduction import Part
from mplan.passes.solvers.interface import Deadline

Verdict = Literal["found", "infeasible", "unknown", "too large"]

#: Elementary steps between looks at the clock: about 20 ms.
_SLICE = 3_000_000
#: The most changes that can be undone, of 40 bytes each.
_MAX_TRAIL = 6_000_000
#: How many failures are remembered, of 16 bytes each.
_NOGOODS = 2**18
#: How far chance moves boxes in the order of preference, as a fraction of their number.
_NOISE = 0.3


def _kernel() -> Any:
    """The compiled search; imports Numba."""
    from mplan.passes.allocate import canonical_kernel

    return canonical_kernel


class Board:
    """The boxes of a part as columns of ``rows``, which count time in sections.

    Sections are the maximal sets of boxes that are live together. Boxes alike in every column have the
    same ``twin``; ``life`` is their time in positions. ``offsets`` holds what the last search found, in
    units by the boxes' indices in the instance.
    """

    def __init__(self, grid: Grid, last: Sequence[int], part: Part) -> None:
        import numpy as np

        least = grid.least(part.base)
        start, end = (
            np.array([getattr(grid.boxes[i], at) for i in part.boxes]) for at in ("start", "end")
        )
        low, high = _sections(start, end)
        columns = {"size": grid.sizes, "alignment": grid.alignments, "last": last, "least": least}
        self.part = part
        self.offsets: dict[int, int] = {}
        self.life = end - start
        self.rows = {"low": low, "high": high}
        self.rows |= {
            name: np.array([column[i] for i in part.boxes]) for name, column in columns.items()
        }
        _, twin = np.unique(np.stack(list(self.rows.values())), axis=1, return_inverse=True)
        self.twin = twin.ravel()
        self.nogoods = np.zeros((_NOGOODS, 2), np.int64)

    @property
    def terms(self) -> int:
        """How many boxes the sections hold, all together."""
        return int((self.rows["high"] - self.rows["low"]).sum())

    @cached_property
    def members(self) -> tuple[Any, Any]:
        """Section and box of every membership, by section."""
        import numpy as np

        low, width = self.rows["low"], self.rows["high"] - self.rows["low"]
        box = np.repeat(np.arange(len(low)), width)
        section = low[box] + np.arange(len(box)) - np.repeat(np.cumsum(width) - width, width)
        order = np.argsort(section, kind="stable")
        return section[order], box[order]

    @cached_property
    def load(self) -> Any:
        """The units live in each section."""
        import numpy as np

        section, box = self.members
        begins = np.searchsorted(section, np.arange(section[-1] + 1))
        return np.add.reduceat(self.rows["size"][box], begins)

    def order(self, preference: str, noise: random.Random | None) -> Any:
        """The boxes, preferred ones first; equal boxes stay side by side."""
        import numpy as np

        section, box = self.members
        size, area = self.rows["size"], self.rows["size"] * self.life.astype(float)
        heaviest = np.zeros(len(size), np.int64)
        np.maximum.at(heaviest, box, self.load[section])
        keys = {
            "size": (self.life, size),
            "area": (self.life, area),
            "lifetime": (size, self.life),
            "load": (area, self.life, heaviest),
        }[preference]
        order = np.lexsort((self.twin, *(-key for key in keys)))
        place = np.zeros(len(size))
        place[self.twin[order[::-1]]] = np.arange(len(size))[::-1]
        if noise is not None:
            place += [noise.random() * _NOISE * len(size) for _ in place]
        return np.lexsort((self.twin, place[self.twin]))

    def search(self, rule: str, fitting: bool, order: Any, work: int, deadline: Deadline) -> Verdict:
        """Search for about ``work`` elementary steps, or until ``deadline``.

        What is learnt about parts without a packing is kept for the next search.
        """
        kernel = _kernel()
        state = self._state(order)
        answer = kernel.PAUSED
        while answer in (kernel.PAUSED, kernel.FULL) and not deadline.expired:
            left = work - int(state.clock["work"][0])
            if left <= 0 or len(state.trail) > _MAX_TRAIL:
                break
            answer = kernel.search(state, getattr(kernel, rule), fitting, min(left, _SLICE))
            if answer == kernel.FULL:
                state = _longer(state)
        if answer == kernel.FOUND:
            indices = (self.part.boxes[k] for k in order.tolist())
            self.offsets = dict(zip(indices, state.boxes["offset"].tolist(), strict=True))
            return "found"
        return "infeasible" if answer == kernel.INFEASIBLE else "unknown"

    def _state(self, order: Any) -> State:
        """The arrays of a search that prefers boxes in ``order``."""
        import numpy as np

        count = len(order)
        boxes = np.zeros(count, np.dtype(BOX))
        for name, column in self.rows.items():
            boxes[name] = column[order]
        boxes["twin"], boxes["offset"] = self.twin[order], -1
        boxes["ground"] = self.part.base
        rank = np.empty(count, np.int64)
        rank[order] = np.arange(count)
        section, box = self.members
        sections = self._section_records(boxes)
        return State(
            boxes=boxes,
            sections=sections,
            members=rank[box][np.lexsort((rank[box], section))],
            starts=np.argsort(boxes["low"], kind="stable"),
            frames=np.zeros(2 * count + 2, np.dtype(FRAME)),
            choices=np.zeros(8 * count + 8, np.int64),
            trail=np.zeros(8 * (count + len(sections)), np.dtype(CHANGE)),
            dirty=np.zeros(len(sections), np.int64),
            clock=np.zeros(1, np.dtype(CLOCK)),
            nogoods=self.nogoods,
        )

    def _section_records(self, boxes: Any) -> Any:
        """The records of the sections, and one to end them, before anything is placed."""
        import numpy as np

        count = len(self.load)
        section, box = self.members
        sections = np.zeros(count + 1, np.dtype(SECTION))
        sections["first"] = np.searchsorted(section, np.arange(count + 1))
        sections["opening"] = np.searchsorted(np.sort(boxes["low"]), np.arange(count + 1))
        np.maximum.at(sections["ceiling"], section, (self.rows["last"] + self.rows["size"])[box])
        sections["rest"][:count] = self.load
        np.add.at(sections["crossing"], boxes["low"] + 1, 1)
        np.subtract.at(sections["crossing"], boxes["high"], 1)
        sections["crossing"] = np.cumsum(sections["crossing"])
        return sections


def _sections(start: Any, end: Any) -> tuple[Any, Any]:
    """The half-open range of sections in which each box lives.

    A set of boxes that are live together is maximal where a box begins and another one ends before the
    next begins.
    """
    import numpy as np

    times, ends = np.unique(start), np.sort(end)
    ended = np.searchsorted(ends, times, "right")
    last = np.append(ended[1:] > ended[:-1], True)
    return np.searchsorted(times[last], start), np.searchsorted(times[last], end)


def _longer(state: Any) -> Any:
    """The state with room for twice as much in every array that grows with the depth."""
    import numpy as np

    growing = {name: getattr(state, name) for name in ("frames", "choices", "trail")}
    longer = {name: np.concatenate((a, np.zeros_like(a))) for name, a in growing.items()}
    return state._replace(**longer)
