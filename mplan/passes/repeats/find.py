"""Where the captured order repeats itself: runs of layers, found from what their steps look like.

Steps are compared by kind and by the sizes and properties of the buffers they touch, so a layer is
found wherever its steps follow each other as those of the layer before did. Backward runs go through
the same layers in reverse; what their steps read tells which way a run goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mplan.ir.table import Table

if TYPE_CHECKING:
    from mplan.ir.table import Bools, Ints

_Int = TypeVar("_Int", int, "Ints")

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

    def layer(self, turn: _Int) -> _Int:
        """The layer of a turn, or of each of an array of turns."""
        return self.base - turn if self.mirrored else self.base + turn

    def turn(self, layer: int) -> int:
        """The turn that works on ``layer``."""
        return self.base - layer if self.mirrored else layer - self.base

    def offset(self, layers: int) -> int:
        """By how many steps the run's step for a layer lies before that for ``layers`` layers on."""
        return (-layers if self.mirrored else layers) * self.period


def find_runs(table: Table, kinds: Sequence[str]) -> tuple[Run, ...]:
    """The runs of the most steps, in order of time, over the same layers; empty if there are none.

    ``kinds`` are those of the steps.
    """
    looks = _looks(table, kinds)
    found: list[Run] = []
    while True:
        run = _longest(looks, found)
        if run is None or (found and abs(run.layers - found[0].layers) > _SPREAD):
            break
        found.append(run)
    return _related(table, sorted(found, key=lambda r: r.start))


def _looks(table: Table, kinds: Sequence[str]) -> Ints:
    """A number for each step; equal numbers for steps that look alike."""
    import numpy as np

    flags = table.live_in + 2 * table.live_out.astype(np.int64) + 4 * table.region
    buffers = _hash(table.size) + _hash(flags)
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    looks = _hash(np.array([numbers[kind] for kind in kinds], np.int64))
    for side, rows in enumerate((table.reads, table.writes)):
        np.add.at(looks, rows.owner, _hash(buffers[rows.flat] + 2 * rows.place + side))
    return looks


def _hash(numbers: Ints) -> Ints:
    """``numbers`` spread over 64 bits: the last step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    import numpy as np

    x = numbers.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    spread: Ints = (x ^ (x >> np.uint64(31))).view(np.int64)
    return spread


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


def _related(table: Table, runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs that share buffers with an earlier one, and the layers that this gives their turns."""
    import numpy as np

    related: list[Run] = []
    buffers = np.repeat(np.arange(len(table.size)), table.users.lengths)
    layer = np.zeros(len(table.size), np.int64)
    known = np.zeros(len(table.size), np.bool_)
    for run in runs:
        inside = (run.start <= table.users.flat) & (table.users.flat < run.end)
        touched, turns = buffers[inside], (table.users.flat[inside] - run.start) // run.period
        shared = known[touched]
        placed = _place(run, turns[shared], layer[touched[shared]]) if related else run
        if placed is None:
            continue
        related.append(placed)
        layer[touched[~shared][::-1]] = placed.layer(turns[~shared])[::-1]
        known[touched] = True
    return tuple(related)


def _place(run: Run, turns: Ints, layers: Ints) -> Run | None:
    """``run`` with the layers of its turns; ``turns`` use what other runs have made for ``layers``."""
    import numpy as np

    ways: list[tuple[int, Run]] = []
    for mirrored in (False, True) if len(turns) else ():
        bases, votes = np.unique(layers + turns if mirrored else layers - turns, return_counts=True)
        best = int(votes.argmax())
        way = Run(run.start, run.period, run.layers, int(bases[best]), mirrored)
        ways.append((int(votes[best]), way))
    return max(ways, key=lambda way: way[0])[1] if ways else None
