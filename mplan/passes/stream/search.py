"""The best way to cut a chain into streams: exact by dynamic programming over the cuts.

The bytes of an interval do not depend on the others, so for a limit of bytes the least multiply-
accumulates are a shortest path, and the least limit is found among the intervals' peaks. The optimum
ranges over all cuts of the given order of ops into intervals and over the options of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mplan.passes.stream.costs import Option


@dataclass(frozen=True, slots=True)
class Segment:
    """Units ``[first, end)`` and how they run."""

    first: int
    end: int
    option: Option


@dataclass(frozen=True, slots=True)
class Schedule:
    """Segments that cover a chain; ``peak_bytes`` is that of the largest, no plan of them has less."""

    segments: tuple[Segment, ...]
    peak_bytes: int
    macs: int

    @property
    def streams(self) -> int:
        """How many segments are streams."""
        return sum(s.option.choice is not None for s in self.segments)

    @property
    def strips(self) -> int:
        """How many of these go by strips of columns."""
        return sum(s.option.choice is not None and s.option.choice.width > 0 for s in self.segments)


Table = Mapping[tuple[int, int], Sequence[Option]]


def least_peak(table: Table, units: int, macs: int) -> Schedule | None:
    """The schedule of least peak among those of at most ``macs``; None if there is none."""
    peaks = sorted({o.peak_bytes for ways in table.values() for o in ways})
    low, high = 0, len(peaks)
    best: Schedule | None = None
    while low < high:
        middle = (low + high) // 2
        found = least_work(table, units, peaks[middle])
        if found and found.macs <= macs:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def least_work(table: Table, units: int, peak_bytes: int) -> Schedule | None:
    """The schedule of least multiply-accumulates within ``peak_bytes``, of these the one that goes from
    node to node in the fewest steps, in the fewest segments; None if there is none."""
    best: dict[int, tuple[int, int, int]] = {0: (0, 0, 0)}
    via: dict[int, Segment] = {}
    for first, end in sorted(table, key=lambda cut: (cut[1], cut[0])):
        if first not in best:
            continue
        for option in table[first, end]:
            if option.peak_bytes > peak_bytes:
                continue
            work, steps, cuts = best[first]
            cost = (work + option.macs, steps + option.steps, cuts + 1)
            if end not in best or cost < best[end]:
                best[end] = cost
                via[end] = Segment(first, end, option)
    if units not in best:
        return None
    segments: list[Segment] = []
    while units:
        segments.append(via[units])
        units = via[units].first
    peak = max((s.option.peak_bytes for s in segments), default=0)
    return Schedule(tuple(reversed(segments)), peak, sum(s.option.macs for s in segments))


def frontier(table: Table, units: int) -> list[Schedule]:
    """The schedules of which none is better in both bytes and work, the cheapest first."""
    found: list[Schedule] = []
    limit = max((o.peak_bytes for ways in table.values() for o in ways), default=0)
    while cheapest := least_work(table, units, limit):
        tight = least_peak(table, units, cheapest.macs)
        assert tight is not None
        found.append(tight)
        limit = tight.peak_bytes - 1
    return found
