"""Few buffers end too high: those that live around one are packed anew, the others stay.

On long irregular graphs a skyline ends at the bound nearly everywhere and far above it at a few places.
A window of time around the highest buffer, with what reaches beyond it fixed, is a small instance for
the branch and bound: a large-neighbourhood search over addresses (Shaw, CP 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mplan.ir.plan import Problem, Status
from mplan.passes.allocate import Allocated
from mplan.passes.allocate.canonical import available, decide
from mplan.passes.allocate.grid import grid_of
from mplan.passes.allocate.instance import Box, Instance, from_problem
from mplan.passes.solvers.interface import Deadline

if TYPE_CHECKING:
    from mplan.ir.problem_columns import Ints

#: Smaller instances are packed as a whole.
_FEWEST = 1_000
#: Attempts in turn: the steps that a window reaches beyond the buffer that ends too high, and how many
#: eighths of what this exceeds the goal by may stay.
_TRIES = tuple((reach, part) for part in (0, 3, 6, 8) for reach in (10, 30, 90, 270))
#: With so many seeds, each with more work than the one before.
_ROUNDS = 4
#: Windows with more boxes are not tried.
_MAX_BOXES = 600


def worthwhile(problem: Problem, region: str) -> bool:
    """Whether ``region`` has many buffers, and none with a gap, a fixed offset or neighbours."""
    special = (problem.buffers[b] for b in (*problem.columns.offsets, *problem.columns.gaps))
    if problem.adjacent or any(b.regions[0] == region for b in special):
        return False
    return int(problem.table.lies_in(region).sum()) >= _FEWEST


def repair(
    problem: Problem,
    order: Sequence[int],
    region: str,
    placed: Allocated,
    deadline: Deadline,
    seed: int,
) -> Allocated:
    """``placed`` with lower addresses where the highest buffers lie, as far as time suffices.

    For regions for which that is ``worthwhile``.
    """
    certificate = placed.certificate
    if certificate.status == "optimal" or not available(deadline):
        return placed
    offsets = {p.buffer: p.offset for p in placed.placements}
    boxes = from_problem(problem, order, region).boxes
    found = _Packing(boxes, [offsets[b.buffer] for b in boxes])
    found.lower(certificate.lower_bound_bytes, deadline, seed)
    height = found.height
    if height >= placed.height_bytes:
        return placed
    offsets |= zip((b.buffer for b in boxes), found.offsets.tolist(), strict=True)
    status: Status = "optimal" if height == certificate.lower_bound_bytes else "feasible"
    return Allocated(
        tuple(replace(p, offset=offsets[p.buffer]) for p in placed.placements),
        height,
        replace(certificate, value_bytes=height, status=status, solver="repair"),
    )


class _Packing:
    """Boxes in columns, and the offsets that change."""

    def __init__(self, boxes: Sequence[Box], offsets: Sequence[int]) -> None:
        import numpy as np

        self.boxes = boxes
        self.offsets: Ints = np.array(offsets, np.int64)
        self.start, self.end, self.size = np.array(
            [(b.start, b.end, b.size) for b in boxes], np.int64
        ).T

    @property
    def height(self) -> int:
        """Where the highest box ends."""
        return int((self.offsets + self.size).max(initial=0))

    def lower(self, goal: int, deadline: Deadline, seed: int) -> None:
        """Lower the highest box until it ends at ``goal``, no window yields or time is up."""
        while not deadline.expired:
            top = int((self.offsets + self.size).argmax())
            if self.offsets[top] + self.size[top] <= goal:
                return
            excess = int(self.offsets[top] + self.size[top]) - 1 - goal
            tries = dict.fromkeys((reach, goal + excess * part // 8) for reach, part in _TRIES)
            if not any(
                self._pack(top, reach, height, deadline, seed, number)
                for number in range(_ROUNDS)
                for reach, height in tries
            ):
                return

    def _pack(
        self, top: int, reach: int, height: int, deadline: Deadline, seed: int, number: int
    ) -> bool:
        """Pack the boxes within ``reach`` steps of box ``top`` under ``height``, if it is found how."""
        import numpy as np

        low, high = self.start[top] - reach, self.end[top] + reach
        inside = (low <= self.start) & (self.end <= high)
        meets = (self.start < self.end[inside].max()) & (self.end > self.start[inside].min())
        rows = np.flatnonzero(meets).tolist()
        stuck = int((self.offsets + self.size)[meets & ~inside].max(initial=0))
        if deadline.expired or len(rows) > _MAX_BOXES or stuck > height:
            return False
        fixed = [None if inside[i] else int(self.offsets[i]) for i in rows]
        local = [replace(self.boxes[i], fixed=at) for i, at in zip(rows, fixed, strict=True)]
        verdict, offsets = decide(grid_of(Instance(tuple(local))), height, deadline, seed, number)
        if verdict == "found":
            self.offsets[rows] = offsets
        return verdict == "found"
