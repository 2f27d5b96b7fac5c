"""Order and addresses together: where the arena exceeds what its order needs, another order may fit.

An order of least live bytes can still be one that no placement packs at that height. Around a buffer
that ends too high, a window of steps is opened: the steps in it may change places, the buffers that
live in it addresses, everything else stays. CP-SAT packs rectangles whose times are variables too (the
joint model of Steiner et al., "OLLA", 2022, in a window: a large-neighbourhood search).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

from mplan.ir.plan import Problem
from mplan.passes.solvers import cpsat
from mplan.passes.solvers.interface import Deadline

#: Steps of the windows, in turn; a problem of no more than the last is opened as a whole.
_WINDOWS = (8, 16, 32)
#: Models with more rectangles are not built.
_MAX_BOXES = 400
#: Seconds for one window; with less than the least, which building a model can take, none is opened.
_WINDOW_S = 4.0
_LEAST_S = 0.4


@dataclass(frozen=True, slots=True)
class Draft:
    """An order of the steps and the offsets of one region's buffers, by buffer."""

    order: tuple[int, ...]
    offsets: Mapping[int, int]


def height(problem: Problem, draft: Draft) -> int:
    """Where the highest buffer of ``draft`` ends."""
    return max((o + problem.buffers[b].size_bytes for b, o in draft.offsets.items()), default=0)


def improve(
    problem: Problem, region: str, draft: Draft, goal: int, deadline: Deadline, seed: int
) -> Draft:
    """A valid draft whose height is no more than that of ``draft``, and ``goal`` if one was found.

    Problems with adjacent groups or fixed offsets are left alone.
    """
    if problem.adjacent or any(b.offset is not None or b.gaps for b in problem.buffers):
        return draft
    for size in _WINDOWS if len(problem.steps) > _WINDOWS[-1] else (len(problem.steps),):
        tried: set[tuple[int, int]] = set()
        while deadline.remaining() > _LEAST_S:
            hot = (w for w in _windows(problem, draft, goal, size) if w not in tried)
            window = next(hot, None)
            if window is None:
                break
            better = _Window(problem, region, draft, *window).solve(goal, deadline, seed)
            if better is None:
                tried.add(window)
            else:
                draft = better
    return draft


def _windows(problem: Problem, draft: Draft, goal: int, size: int) -> Iterator[tuple[int, int]]:
    """Windows of ``size`` steps around the ends of the buffers that end above ``goal``, worst first."""
    count = len(problem.steps)
    spans = problem.lifetimes(draft.order)
    tops = sorted(
        ((o + problem.buffers[b].size_bytes, b) for b, o in draft.offsets.items()), reverse=True
    )
    for top, b in tops:
        if top <= goal:
            return
        for middle in spans[b]:
            start = max(0, min(middle - size // 2, count - size))
            yield start, min(start + size, count)


class _Window:
    """The model of the positions ``[start, end)``; boxes that live there may move, others may not."""

    def __init__(self, problem: Problem, region: str, draft: Draft, start: int, end: int) -> None:
        self.problem, self.draft = problem, draft
        self.start, self.end = start, end
        self.align = problem.region(region).alignment
        self.steps = draft.order[start:end]
        self.spans = problem.lifetimes(draft.order)
        self.boxes = [b for b in draft.offsets if problem.buffers[b].size_bytes and self._occupied(b)]
        self.free = [b for b in self.boxes if self._meets(b, start, end)]
        reach = [self.spans[b] for b in self.free]
        first, last = min((s for s, _ in reach), default=0), max((e for _, e in reach), default=0)
        inside = set(self.free)
        self.fixed = [b for b in self.boxes if b not in inside and self._meets(b, first, last)]

    def _occupied(self, b: int) -> bool:
        return self.spans[b][0] < self.spans[b][1]

    def _meets(self, b: int, start: int, end: int) -> bool:
        return self.spans[b][0] < end and self.spans[b][1] > start

    def _top(self, boxes: Sequence[int], offsets: Mapping[int, int]) -> int:
        return max((offsets[b] + self.problem.buffers[b].size_bytes for b in boxes), default=0)

    def solve(self, goal: int, deadline: Deadline, seed: int) -> Draft | None:
        """A draft in which the free boxes end lower than before, no lower than needed for ``goal``."""
        top = self._top(self.free, self.draft.offsets)
        if not goal < top or len(self.free) + len(self.fixed) > _MAX_BOXES:
            return None
        self._build(goal, top - 1)
        wanted = [*self._position.values(), *self._offset.values()]
        result = cpsat.solve(self._model, wanted, deadline.within(_WINDOW_S), seed)
        if not result.values:
            return None
        positions = result.values[: len(self.steps)]
        by_position = sorted(zip(positions, self._position, strict=True))
        order = list(self.draft.order)
        order[self.start : self.end] = [s for _, s in by_position]
        moved = zip(self._offset, result.values[len(self.steps) :], strict=True)
        offsets = {**self.draft.offsets, **{b: v * self._unit for b, v in moved}}
        return Draft(tuple(order), offsets)

    def _build(self, low: int, high: int) -> None:
        cp: Any = cpsat.cp_model()
        buffers = self.problem.buffers
        self._model = cp.CpModel()
        self._unit = gcd(
            *(n for b in self.free for n in (buffers[b].size_bytes, self._alignment(b))),
            *(n for b in self.fixed for n in (buffers[b].size_bytes, self.draft.offsets[b])),
        )
        self._position = {s: self._model.new_int_var(self.start, self.end - 1, "") for s in self.steps}
        self._order_steps()
        ceiling = high // self._unit
        height = self._model.new_int_var(min(-(-low // self._unit), ceiling), ceiling, "")
        self._offset = {b: self._new_offset(b, ceiling) for b in self.free}
        columns, rows, sizes = [], [], []
        for b in (*self.free, *self.fixed):
            size = buffers[b].size_bytes // self._unit
            offset = self._offset.get(b, self.draft.offsets[b] // self._unit)
            columns.append(self._lifetime(b))
            rows.append(self._model.new_fixed_size_interval_var(offset, size, ""))
            sizes.append(size)
            if b in self._offset:
                self._model.add(offset + size <= height)
        self._model.add_no_overlap_2d(columns, rows)
        self._model.add_cumulative(columns[: len(self.free)], sizes[: len(self.free)], height)
        self._model.minimize(height)

    def _alignment(self, b: int) -> int:
        return lcm(self.align, self.problem.buffers[b].alignment)

    def _new_offset(self, b: int, ceiling: int) -> Any:
        last = ceiling - self.problem.buffers[b].size_bytes // self._unit
        step = self._alignment(b) // self._unit
        multiple = self._model.new_int_var(0, max(last, 0) // step, "")
        return multiple if step == 1 else multiple * step

    def _order_steps(self) -> None:
        self._model.add_all_different(self._position.values())
        for s, position in self._position.items():
            for p in self.problem.steps[s].after:
                if p in self._position:
                    self._model.add(self._position[p] < position)

    def _lifetime(self, b: int) -> Any:
        """The interval of a box: fixed where a step outside of the window decides, else a variable."""
        start, end = self.spans[b]
        users = [v for s, v in self._position.items() if b in self.problem.steps[s].touches]
        begins = users and start >= self.start and not self.problem.buffers[b].live_in
        finishes = users and end <= self.end and not self.problem.buffers[b].live_out
        if not begins and not finishes:
            return self._model.new_fixed_size_interval_var(start, end - start, "")
        first = self._model.new_int_var(self.start, self.end - 1, "") if begins else start
        last = self._model.new_int_var(self.start + 1, self.end, "") if finishes else end
        for v in users:
            if begins:
                self._model.add(first <= v)
            if finishes:
                self._model.add(last >= v + 1)
        size = self._model.new_int_var(1, end - start + (self.end - self.start), "")
        return self._model.new_interval_var(first, size, last, "")
