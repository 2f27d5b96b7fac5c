"""Where the captured order repeats itself: runs of layers, found from what their steps look like.

Steps are compared by kind and by the sizes and properties of the buffers they touch, so a layer is
found wherever its steps follow each other as those of the layer before did. Backward runs go through
the same layers in reverse; what their steps read tells which way a run goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplan.ir.plan import Problem

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Bools: TypeAlias = NDArray[np.bool_]
    Ints: TypeAlias = NDArray[np.int64]

#: Layers that are kept when a run is folded; one more if the number of the others is odd.
KEPT = 4
#: Distances between equal steps that are tried as periods, the most frequent first.
_PERIODS = 24
#: Runs of fewer layers are not worth folding.
_FEWEST = KEPT + 2
#: Runs of one model may differ by as many layers, where its ends are unlike the rest.
_SPREAD = 2


@dataclass(frozen=True, slots=True)
class Run:
    """``layers`` times ``period`` steps from ``start`` on.

    Turn j of the run works on layer ``base + j``, or ``base - j`` if ``mirrored``.
    """

    start: int
    period: int
    layers: int
    base: int = 0
    mirrored: bool = False

    @property
    def end(self) -> int:
        """The first step behind the run."""
        return self.start + self.period * self.layers

    def layer(self, turn: int) -> int:
        """The layer of a turn."""
        return self.base - turn if self.mirrored else self.base + turn

    def turn(self, layer: int) -> int:
        """The turn that works on ``layer``."""
        return self.base - layer if self.mirrored else layer - self.base

    def offset(self, layers: int) -> int:
        """By how many steps the run's step for a layer lies before that for ``layers`` layers on."""
        return (-layers if self.mirrored else layers) * self.period


def find_runs(problem: Problem) -> tuple[Run, ...]:
    """The runs of the most steps, in order of time, over the same layers; empty if there are none."""
    looks = _looks(problem)
    found: list[Run] = []
    while True:
        run = _longest(looks, found)
        if run is None or (found and abs(run.layers - found[0].layers) > _SPREAD):
            break
        found.append(run)
    return _related(problem, sorted(found, key=lambda r: r.start))


def _looks(problem: Problem) -> Ints:
    """A number for each step; equal numbers for steps that look alike."""
    import numpy as np

    numbers: dict[object, int] = {}
    buffers = [
        numbers.setdefault(
            (b.size_bytes, b.regions, b.alignment, b.live_in, b.live_out, b.offset), len(numbers)
        )
        for b in problem.buffers
    ]
    return np.array(
        [
            numbers.setdefault(
                (s.kind, tuple(buffers[i] for i in s.reads), tuple(buffers[i] for i in s.writes)),
                len(numbers),
            )
            for s in problem.steps
        ],
        np.int64,
    )


def _longest(looks: Ints, taken: Sequence[Run]) -> Run | None:
    """The run of the most steps outside those taken; of those, the one of the shortest period."""
    import numpy as np

    free = np.ones(len(looks), np.bool_)
    for run in taken:
        free[run.start : run.end] = False
    best: Run | None = None
    for period in _periods(looks, free):
        alike = (looks[:-period] == looks[period:]) & free[:-period] & free[period:]
        breaks = np.concatenate(([-1], np.flatnonzero(~alike), [len(alike)]))
        lengths = np.diff(breaks) - 1
        at = int(lengths.argmax())
        layers = int(lengths[at]) // period + 1
        covered = best.layers * best.period if best else 0
        if layers >= _FEWEST and layers * period > covered:
            best = Run(int(breaks[at]) + 1, period, layers)
    return best


def _periods(looks: Ints, free: Bools) -> list[int]:
    """The most frequent distances from a step to the next one that looks alike, ascending."""
    import numpy as np

    places = np.flatnonzero(free)
    by_look = places[np.argsort(looks[places], kind="stable")]
    same = looks[by_look[1:]] == looks[by_look[:-1]]
    counts = Counter((by_look[1:] - by_look[:-1])[same].tolist())
    return sorted(period for period, _ in counts.most_common(_PERIODS))


def _related(problem: Problem, runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs that share buffers with an earlier one, and the layers that this gives their turns."""
    related: list[Run] = []
    users: dict[int, int] = {}
    for run in runs:
        pairs = Counter[tuple[int, int]]()
        for s in range(run.start, run.end):
            for b in problem.steps[s].touches:
                if b in users:
                    pairs[(s - run.start) // run.period, users[b]] += 1
        placed = _place(run, pairs) if related else run
        if placed is None:
            continue
        related.append(placed)
        for s in range(run.start, run.end):
            for b in problem.steps[s].touches:
                users.setdefault(b, placed.layer((s - run.start) // run.period))
    return tuple(related)


def _place(run: Run, pairs: Counter[tuple[int, int]]) -> Run | None:
    """``run`` with the layers of its turns, from how often each turn uses what each layer has made."""
    ways: list[tuple[int, Run]] = []
    for mirrored in (False, True):
        bases = Counter[int]()
        for (turn, layer), count in pairs.items():
            bases[layer + turn if mirrored else layer - turn] += count
        if bases:
            base, votes = bases.most_common(1)[0]
            ways.append((votes, Run(run.start, run.period, run.layers, base, mirrored)))
    return max(ways, key=lambda way: way[0])[1] if ways else None
