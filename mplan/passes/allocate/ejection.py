"""Ejection: the box that ends highest is put back lower, whatever it pushes out is put back in turn.

A box goes where it fits tightest or, if nowhere, where what it overlaps costs least to eject. A box
costs its bytes times its lifetime, and as much more each time it had to eject others: guided ejection
search (Nagata and Bräysy, "A Powerful Route Minimization Heuristic for the Vehicle Routing Problem with
Time Windows", 2009) for addresses. An attempt that takes too much work is undone. It sees only what
lives around the boxes that it moves, so that many boxes are no harder than few.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from mplan.passes.allocate.columns import columns_of
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers import compiled
from mplan.passes.solvers.interface import Deadline, Search

if TYPE_CHECKING:
    from mplan.passes.allocate.columns import Columns, Ints
    from mplan.passes.allocate.ejection_kernel import Rows

#: Work of the first attempts at a box, and by what it grows when all fail: about a millisecond.
_FIRST_WORK = 100_000
_GROWTH = 2
#: Work between looks at the clock: about 20 ms.
_SLICE = 2_000_000
#: Attempts in turn: how many eighths of what the box exceeds the goal by may stay.
_PARTS = (0, 3, 6, 8)
#: What a box costs beside its area, in mean areas: the smallest ones are not free to eject.
_FLOOR = 0.1
#: Boxes in a block, more if the boxes that live when blocks begin are more than these, all together.
_BLOCK = 64
_MAX_MEMBERS = 8_000_000
_KERNEL = "mplan.passes.allocate.ejection_kernel:put_back"


def available(deadline: Deadline) -> bool:
    """Whether there is Numba, and time to load or compile the search."""
    return compiled.ready(_KERNEL, deadline)


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Lower the best packing until it is proven, meets the goal for the first time or time is up.

    Instances with fixed offsets or rigid bodies are left alone.
    """
    special = instance.rigid or instance.anchored
    if special or not instance.boxes or search.closed or not available(deadline):
        return
    packing = Packing(columns_of(instance), search.answer, seed)
    goal = search.bound.bytes if search.met else max(search.bound.bytes, search.goal or 0)
    while packing.height > goal and packing.lower(goal, deadline):
        pass
    offsets = packing.offsets
    search.offer(offsets, instance.height(offsets), "ejection")


class Packing:
    """Boxes whose offsets change."""

    def __init__(self, columns: Columns, offsets: Offsets, seed: int) -> None:
        import numpy as np

        self._index = np.argsort(columns.start, kind="stable")
        self._rows = _rows(columns, np.array(offsets, np.int64), self._index, seed)

    @property
    def height(self) -> int:
        """Where the highest box ends."""
        return int((self._rows.offset + self._rows.size).max())

    @property
    def offsets(self) -> Offsets:
        """The offsets by box."""
        import numpy as np

        found = np.empty_like(self._rows.offset)
        found[self._index] = self._rows.offset
        return tuple(found.tolist())

    def lower(self, goal: int, deadline: Deadline) -> bool:
        """Lower the highest box towards ``goal``, which it exceeds; False if time is up first."""
        ends = self._rows.offset + self._rows.size
        top = int(ends.argmax())
        excess = int(ends[top]) - 1 - goal
        heights = dict.fromkeys(goal + excess * part // 8 for part in _PARTS)
        work = _FIRST_WORK
        while not deadline.expired:
            if any(self._attempt(top, height, work, deadline) for height in heights):
                return True
            work *= _GROWTH
        return False

    def _attempt(self, box: int, height: int, work: int, deadline: Deadline) -> bool:
        """Whether ``box`` was put back under ``height``; nothing has changed if not."""
        from mplan.passes.allocate import ejection_kernel as kernel

        rows, clock = self._rows, self._rows.clock
        clock[kernel.ATTEMPT] += 1
        clock[[kernel.OUT, kernel.TOUCHED, kernel.WORK]] = 1, 1, 0
        rows.out[0] = rows.touched[0] = box
        rows.before[0], rows.seen[box], rows.offset[box] = rows.offset[box], clock[kernel.ATTEMPT], -1
        done, spent = False, 0
        while not done and spent < work and not deadline.expired:
            spent = min(spent + _SLICE, work)
            done = kernel.put_back(rows, height, spent)
        touched = rows.touched[: clock[kernel.TOUCHED]]
        rows.price[touched] = rows.area[touched]
        if not done:
            rows.offset[touched] = rows.before[: len(touched)]
        return done


def _rows(columns: Columns, offsets: Ints, index: Ints, seed: int) -> Rows:
    """The boxes in the order of ``index``, by time of their beginning, for the kernel."""
    import numpy as np

    from mplan.passes.allocate.ejection_kernel import RANDOM, Rows

    count = len(index)
    start, end, size = columns.start[index], columns.end[index], columns.size[index]
    area = size * (end - start).astype(np.float64)
    area += _FLOOR * area.mean()
    block, members, at = _blocks(start, end)
    clock = np.zeros(RANDOM + 1, np.int64)
    clock[RANDOM] = random.Random(seed).getrandbits(62) | 1
    spare: Any = np.empty((8, count), np.int64)
    return Rows(
        start=start,
        end=end,
        size=size,
        alignment=columns.alignment[index],
        area=area,
        offset=offsets[index],
        price=area.copy(),
        block=block,
        members=members,
        at=at,
        out=spare[0],
        touched=spare[1],
        before=spare[2],
        seen=np.zeros(count, np.int64),
        near=spare[3],
        low=spare[4],
        high=spare[5],
        by_low=spare[6],
        by_high=spare[7],
        clock=clock,
    )


def _blocks(start: Ints, end: Ints) -> tuple[int, Ints, Ints]:
    """How many boxes a block has; per block those before it that live when its first box begins, and
    where they begin in that list."""
    import numpy as np

    block, ends = _BLOCK, np.sort(end)
    while True:
        firsts = np.arange(0, len(start), block)
        alive = firsts - np.searchsorted(ends, start[firsts], side="right")
        if len(firsts) == 1 or alive.sum() <= _MAX_MEMBERS:
            break
        block *= 2
    live = np.zeros(0, np.int64)
    rows = []
    for first in firsts.tolist():
        live = live[end[live] > start[first]]
        rows.append(live)
        live = np.concatenate((live, np.arange(first, min(first + block, len(start)))))
    at = np.concatenate((np.zeros(1, np.int64), np.cumsum([len(row) for row in rows])))
    return block, np.concatenate(rows), at
