"""A problem with most of its repeated layers left out, and the way back for an order.

The layers that stay are wired to each other as those between them were, so what is decided for them
can be repeated: the order by running a stretch of steps, one of each kind, once more for every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mplan.ir.plan import Problem, Step
from mplan.passes.repeats.find import KEPT, Run, find_runs

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Role:
    """Where a step stands in the runs: the run (an index), its turn there, the step of that turn."""

    run: int
    turn: int
    place: int


@dataclass(frozen=True, slots=True)
class Unfolded:
    """An order of the kept steps, that of all steps that follows from it, and the positions in the
    former (``seams``) before which the layers left out run."""

    order: Order
    full: Order
    seams: tuple[int, ...]


class Fold:
    """``problem`` without the layers ``[first, first + count)`` of its runs.

    ``steps`` and ``buffers`` are the kept ones, by their index in the full problem. Every step of a run
    has a ``role``; the ``home`` of a buffer is the first step that touches it.
    """

    def __init__(self, problem: Problem, runs: Sequence[Run]) -> None:
        self.full = problem
        self.runs = tuple(runs)
        low = max(min(r.layer(0), r.layer(r.layers - 1)) for r in runs)
        high = min(max(r.layer(0), r.layer(r.layers - 1)) for r in runs)
        self.first = low + KEPT // 2
        self.count = (high - low + 1 - KEPT) // 2 * 2
        self.roles: dict[int, Role] = {
            r.start + turn * r.period + place: Role(i, turn, place)
            for i, r in enumerate(runs)
            for turn in range(r.layers)
            for place in range(r.period)
        }
        self.home: dict[int, int] = {}
        for s, step in enumerate(problem.steps):
            for b in step.touches:
                self.home.setdefault(b, s)
        self.steps = [s for s in range(len(problem.steps)) if not self.removed(s)]
        self.buffers = [
            b
            for b in range(len(problem.buffers))
            if b not in self.home or not self.removed(self.home[b])
        ]
        self.problem = self._reduced()

    def layer(self, step: int) -> int | None:
        """The layer that a step belongs to; None outside of the runs."""
        role = self.roles.get(step)
        return None if role is None else self.runs[role.run].layer(role.turn)

    def removed(self, step: int) -> bool:
        """Whether a step belongs to a layer that is left out."""
        layer = self.layer(step)
        return layer is not None and self.first <= layer < self.first + self.count

    def slot(self, buffer: int) -> int:
        """Which of the buffers that its home touches ``buffer`` is."""
        return _touched(self.full.steps[self.home[buffer]]).index(buffer)

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
        if not self.removed(other):
            return other
        layer = self.layer(step)
        if layer is None:
            return None
        run = self.runs[self.roles[other].run]
        like = other + run.offset(self.count if layer < self.first else -self.count)
        return like if run.start <= like < run.end else None

    def _near_buffers(self, step: int, buffers: Iterable[int]) -> list[int]:
        found = []
        for b in buffers:
            home = self._near(step, self.home[b])
            if home == self.home[b]:
                found.append(b)
            elif home is not None:
                found.append(_touched(self.full.steps[home])[self.slot(b)])
        return found

    def layer_of(self, buffer: int) -> int:
        """The layer of the step that first touches ``buffer``; 0 outside of the runs."""
        return self.layer(self.home.get(buffer, -1)) or 0

    def key(self, buffer: int) -> tuple[int, ...]:
        """What the buffers that take the same part in different layers have in common."""
        role = self.roles.get(self.home.get(buffer, -1))
        return (buffer,) if role is None else (role.run, role.place, self.slot(buffer))

    def unfold(self, order: Order) -> Unfolded | None:
        """The order of all steps that does for each layer what ``order`` (of the kept ones) does.

        What runs together of the last layer before the gap is repeated for each layer left out: behind
        it, or before it where the layers go down. None if that breaks the precedence of a step.
        """
        kept = [self.steps[s] for s in order]
        position = {s: p for p, s in enumerate(kept)}
        layers = range(1, self.count + 1)
        full: list[int] = []
        seams: list[int] = []
        for beat in self._beats(kept):
            like = beat[0] + self._offset(beat[0], self.count + 1)
            repeats = self.layer(beat[0]) == self.first - 1
            rising = repeats and position[like] > position[beat[0]]
            copies = [s + self._offset(s, n) for n in layers[:: 1 if rising else -1] for s in beat]
            full += [*beat, *copies] if rising else [*(copies if repeats else ()), *beat]
            if repeats:
                seams.append(position[beat[-1]] + 1 if rising else position[beat[0]])
        if not _valid(self.full, full):
            return None
        return Unfolded(order, tuple(full), tuple(seams))

    def _offset(self, step: int, layers: int) -> int:
        role = self.roles.get(step)
        return self.runs[role.run].offset(layers) if role else 0

    def _beats(self, steps: Sequence[int]) -> list[list[int]]:
        """``steps`` cut wherever the layer changes."""
        return [list(beat) for _, beat in groupby(steps, key=self.layer)]


def fold(problem: Problem, region: str) -> Fold | None:
    """``problem`` folded; None if it has no layers worth folding, or wishes for addresses in ``region``
    that layers cannot share."""
    mine = (b for b in problem.buffers if b.regions[0] == region)
    if problem.adjacent or any(b.offset is not None or b.gaps for b in mine):
        return None
    runs = find_runs(problem)
    if not runs:
        return None
    folded = Fold(problem, runs)
    return folded if folded.count > 0 else None


def _touched(step: Step) -> tuple[int, ...]:
    return (*step.writes, *step.reads)


def _valid(problem: Problem, order: Sequence[int]) -> bool:
    """Whether ``order`` is a permutation of the steps that respects precedence."""
    position = {s: p for p, s in enumerate(order)}
    return len(order) == len(position) == len(problem.steps) and all(
        position[p] < position[s] for s, step in enumerate(problem.steps) for p in step.after
    )
