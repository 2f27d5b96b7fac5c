"""A problem with most of its repeated layers left out, and the way back for an order.

The layers that stay are wired to each other as those between them were, so what is decided for them
can be repeated: the order by running a stretch of steps, one of each kind, once more for every layer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from mplan.ir.plan import Problem, Step
from mplan.passes.repeats.find import KEPT, Run, find_runs

if TYPE_CHECKING:
    from mplan.ir.table import Bools, Ints

Order = tuple[int, ...]

#: The layer of steps outside of all runs: none that a run has.
_OUTSIDE = -(2**40)


@dataclass(frozen=True, slots=True)
class Unfolded:
    """An order of the kept steps (indices of these), that of all steps that follows from it, and the
    positions in the former (``seams``) before which the layers left out run."""

    order: Order
    full: Ints
    seams: tuple[int, ...]


class Fold:
    """``problem`` without the layers ``[first, first + count)`` of its runs.

    ``steps`` and ``buffers`` are the kept ones, by their index in the full problem. A step of a run
    belongs to a ``layer``, and its like of the next one stands ``stride`` steps further on; others have
    stride 0. The ``home`` of a buffer is the first step that touches it (-1: none), its
    layer that of its home. Buffers that take the same part in different layers have the same ``key``.
    """

    def __init__(self, problem: Problem, runs: Sequence[Run], kept: int = KEPT) -> None:
        import numpy as np

        self.full = problem
        self.runs = tuple(runs)
        low = max(min(r.layer(0), r.layer(r.layers - 1)) for r in runs)
        high = min(max(r.layer(0), r.layer(r.layers - 1)) for r in runs)
        self.first = low + kept // 2
        self.count = (high - low + 1 - kept) // 2 * 2
        table = problem.table
        self.layer = np.full(table.steps, _OUTSIDE)
        self.stride = np.zeros(table.steps, np.int64)
        part = np.full(table.steps, -1)
        for run in runs:
            turn, place = np.divmod(np.arange(run.end - run.start), run.period)
            mine = slice(run.start, run.end)
            self.layer[mine], self.stride[mine] = run.layer(turn), run.offset(1)
            part[mine] = run.start + place
        self.removed = (self.first <= self.layer) & (self.layer < self.first + self.count)
        self.home, self.slot = self._homes()
        at_home = self.home >= 0
        self.buffer_layer = np.where(at_home, self.layer[self.home], 0)
        repeats = at_home & (part[self.home] >= 0)
        slots = int(self.slot.max(initial=0)) + 1
        alone = -1 - np.arange(len(self.home))
        self.key = np.where(repeats, part[self.home] * slots + self.slot, alone)
        self.steps: list[int] = np.flatnonzero(~self.removed).tolist()
        self.buffers: list[int] = np.flatnonzero(~(at_home & self.removed[self.home])).tolist()
        self.problem = self._reduced()

    def _homes(self) -> tuple[Ints, Ints]:
        """The home of each buffer, and which of the buffers that it writes and reads this one is."""
        import numpy as np

        table = self.full.table
        used = table.users.lengths > 0
        home = np.full(len(used), -1)
        home[used] = table.users.flat[table.users.at[:-1][used]]
        slot = np.full(len(used), table.steps + len(used))
        for rows, before in ((table.writes, 0), (table.reads, table.writes.lengths)):
            there = home[rows.flat] == rows.owner
            place = (rows.place + np.broadcast_to(before, table.steps)[rows.owner])[there]
            np.minimum.at(slot, rows.flat[there], place)
        return home, np.where(used, slot, 0)

    def _reduced(self) -> Problem:
        number = {s: i for i, s in enumerate(self.steps)}
        names = {b: i for i, b in enumerate(self.buffers)}
        steps = []
        for s in self.steps:
            step = self.full.steps[s]
            after = {number[p] for p in (self._near(s, p) for p in step.after) if p is not None}
            steps.append(
                replace(
                    step,
                    reads=tuple(names[b] for b in self._near_buffers(s, step.reads)),
                    writes=tuple(names[b] for b in self._near_buffers(s, step.writes)),
                    after=tuple(sorted(p for p in after if p < number[s])),
                )
            )
        buffers = tuple(self.full.buffers[b] for b in self.buffers)
        return replace(self.full, buffers=buffers, steps=tuple(steps))

    def _near(self, step: int, other: int) -> int | None:
        """The kept step that is to ``step`` what ``other`` was: ``other`` itself, or its like in the
        layer that takes its layer's place. None if a step outside of the runs names a left-out one."""
        if not self.removed[other]:
            return other
        if not self.stride[step]:
            return None
        layers = self.count if self.layer[step] < self.first else -self.count
        like = other + layers * int(self.stride[other])
        run = next(r for r in self.runs if r.start <= other < r.end)
        return like if run.start <= like < run.end else None

    def _near_buffers(self, step: int, buffers: Iterable[int]) -> Iterator[int]:
        for b in buffers:
            own = int(self.home[b])
            home = self._near(step, own)
            if home == own:
                yield b
            elif home is not None:
                like = self.full.steps[home]
                yield (*like.writes, *like.reads)[int(self.slot[b])]

    @cached_property
    def loaded(self) -> Problem:
        """``problem`` with the bytes of the layers left out: where they pile up, they count.

        What all of them hold at once is one buffer more. Each run has a step more where its layers are
        left out, which ends such buffers, and behind it one that begins others.
        """
        reads, writes = self._piles()
        number = {s: i for i, s in enumerate(self.lineup) if s >= 0}
        piles = list(dict.fromkeys(b for row in (*reads, *writes) for b in row))
        name = {b: len(self.buffers) + i for i, b in enumerate(piles)}
        buffers = [
            replace(b, size_bytes=b.size_bytes * self.count)
            for b in (self.problem.buffers[b] for b in piles)
        ]
        steps: list[Step] = []
        for at, s in enumerate(self.lineup):
            if s >= 0:
                step = self.problem.steps[s]
                opens = (at - 1,) if at and self.lineup[at - 1] < 0 else ()
                steps.append(replace(step, after=(*(number[p] for p in step.after), *opens)))
            else:
                run, begins = divmod(-1 - s, 2)
                touched = tuple(name[b] for b in (writes if begins else reads)[run])
                steps.append(Step("left out", (), touched, (at - 1,)))
        return replace(self.problem, buffers=(*self.problem.buffers, *buffers), steps=tuple(steps))

    @cached_property
    def lineup(self) -> list[int]:
        """The steps of ``loaded``: those of ``problem``, -1 - 2r and -2 - 2r for the gap of run r."""
        gaps = {self._gap(run): -1 - 2 * r for r, run in enumerate(self.runs)}
        row: list[int] = []
        for i in range(len(self.steps)):
            if i in gaps:
                row += [gaps[i], gaps[i] - 1]
            row.append(i)
        return row

    def _gap(self, run: Run) -> int:
        """The first of the kept steps behind the layers that ``run`` leaves out."""
        behind = self.first - 1 if run.mirrored else self.first + self.count
        return bisect_left(self.steps, run.start + run.turn(behind) * run.period)

    def _piles(self) -> tuple[list[list[int]], list[list[int]]]:
        """Per run the buffers of the last layer before the gap whose likes pile up: those that end in
        it, and those that begin in it."""
        users = self.problem.table.users
        kept = {(int(self.key[b]), int(self.buffer_layer[b])): i for i, b in enumerate(self.buffers)}
        ends: list[list[int]] = [[] for _ in self.runs]
        begins: list[list[int]] = [[] for _ in self.runs]
        for (key, layer), i in kept.items():
            beyond = kept.get((key, self.first + self.count))
            below = kept.get((key, self.first - 2))
            if layer != self.first - 1 or beyond is None or below is None:
                continue
            b, low, high = self.problem.buffers[i], users.row(below), users.row(beyond)
            if b.live_in or b.live_out or max(low[0], high[0]) <= min(low[-1], high[-1]):
                last = self._run(users.row(i)[-1])
                if not b.live_out and last is not None:
                    ends[last].append(i)
                if not b.live_in:
                    begins[self._run(users.row(i)[0]) or 0].append(i)
        return ends, begins

    def _run(self, kept: int) -> int | None:
        step = self.steps[kept]
        return next((i for i, r in enumerate(self.runs) if r.start <= step < r.end), None)

    def unfold(self, order: Order) -> Unfolded | None:
        """The order of all steps that does for each layer what ``order`` (of ``loaded``) does.

        The steps of the last layer before the gap are repeated for each layer left out: in the gap, or,
        of a layer that does not run together, beside each part of it. None if that breaks the
        precedence of a step.
        """
        import numpy as np

        line = [self.lineup[s] for s in order]
        kept = [s for s in line if s >= 0]
        position = {self.steps[s]: p for p, s in enumerate(kept)}
        gaps = {}
        for p, s in enumerate(line):
            if s < 0 and s % 2:
                gaps[(-1 - s) // 2] = p - sum(other < 0 for other in line[:p])
        layers = np.arange(1, self.count + 1)[:, None]
        pieces: list[tuple[int, int, Ints]] = []
        seams: list[int] = []
        for beat in self._beats([self.steps[s] for s in kept], sorted(gaps.values())):
            first, start = int(beat[0]), position[int(beat[0])]
            pieces.append((start, 1, beat))
            if self.layer[first] == self.first - 1:
                like = first + (self.count + 1) * int(self.stride[first])
                rising = position[like] > start
                copies = (beat + (layers if rising else layers[::-1]) * self.stride[beat]).ravel()
                seam = start + len(beat) if rising else start
                if (self.stride[beat] == self.stride[first]).sum() == abs(self.stride[first]):
                    seam = gaps[self._run(kept[start]) or 0]
                pieces.append((seam, 0, copies))
                seams.append(seam)
        pieces.sort(key=lambda piece: piece[:2])
        whole = np.concatenate([steps for _, _, steps in pieces])
        valid = _valid(self.full, whole)
        return Unfolded(tuple(kept), whole, tuple(seams)) if valid else None

    def project(self, order: Sequence[int]) -> Order:
        """The order of ``loaded`` of which ``unfold`` makes ``order``, a permutation of all steps, if
        there is one: kept steps as they come, the gap of a run where its first left-out step stands."""
        number = {s: i for i, s in enumerate(self.lineup)}
        kept = {s: number[i] for i, s in enumerate(self.steps)}
        ends = [run.end for run in self.runs]
        line: dict[int, None] = {}
        for step in order:
            if step in kept:
                line[kept[step]] = None
            else:
                gap = -1 - 2 * bisect_right(ends, step)
                line |= {number[gap]: None, number[gap - 1]: None}
        return tuple(line)

    def _beats(self, steps: Sequence[int], cuts: Sequence[int]) -> Iterator[Ints]:
        """``steps`` cut wherever the layer changes, and at the positions ``cuts``."""
        import numpy as np

        keys = [(int(self.layer[s]), bisect_right(cuts, p)) for p, s in enumerate(steps)]
        for _, group in groupby(range(len(steps)), key=keys.__getitem__):
            yield np.array([steps[p] for p in group], np.int64)


def fold(problem: Problem, region: str, kept: int = KEPT) -> Fold | None:
    """``problem`` folded to ``kept`` layers, or one more; None if it has no layers worth folding, or
    wishes for addresses in ``region`` that layers cannot share."""
    placed = (problem.buffers[b] for b in (*problem.columns.offsets, *problem.columns.gaps))
    if problem.adjacent or any(b.regions[0] == region for b in placed):
        return None
    runs = find_runs(problem.table, [s.kind for s in problem.steps])
    if not runs:
        return None
    folded = Fold(problem, runs, kept)
    return folded if folded.count > 0 else None


def _valid(problem: Problem, order: Ints) -> bool:
    """Whether ``order`` is a permutation of the steps that respects precedence."""
    import numpy as np

    after = problem.table.after
    position = np.full(len(problem.steps), -1)
    if len(order) != len(position):
        return False
    position[order] = np.arange(len(order))
    ahead: Bools = position[after.flat] < position[after.owner]
    return bool((position >= 0).all() and ahead.all())
