"""Buffers that must be adjacent as one: what their alignments and fixed offsets demand together.

Most buffers are *loose*: they may lie anywhere by themselves, and hold all their bytes while they live.
The others are chains, of one buffer or of several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from math import gcd, lcm
from typing import TYPE_CHECKING

from mplan.diagnostics import UserError
from mplan.ir.plan import Problem

if TYPE_CHECKING:
    from mplan.ir.table import Bools


@dataclass(frozen=True, slots=True)
class Chain:
    """Buffers of which each lies directly behind the one before, at a multiple of ``alignment`` or at
    ``fixed``; ``places`` holds every buffer with its distance from there."""

    places: tuple[tuple[int, int], ...]
    alignment: int
    fixed: int | None


def loose(problem: Problem, region: str) -> Bools:
    """The buffers whose first choice is ``region`` and that no chain holds."""
    found = problem.table.lies_in(region)
    found[[*problem.columns.offsets, *problem.columns.gaps, *chain(*problem.adjacent)]] = False
    return found


def chains_of(problem: Problem, region: str) -> Iterator[Chain]:
    """The adjacent groups whose first choice is ``region`` and, each alone, the buffers of a fixed
    offset or with gaps.

    UserError MP223 if alignments and fixed offsets of a group contradict each other.
    """
    grouped = set(chain(*problem.adjacent))
    alone = ((i,) for i in sorted({*problem.columns.offsets, *problem.columns.gaps} - grouped))
    own = problem.region(region).alignment
    for group in (*(g for g in problem.adjacent if g), *alone):
        first = problem.buffers[group[0]]
        if first.regions[0] == region and len(group) == 1 and first.offset is None:
            yield Chain(((group[0], 0),), lcm(own, first.alignment), None)
        elif first.regions[0] == region:
            yield _chain(problem, group, own)


def _chain(problem: Problem, group: tuple[int, ...], alignment: int) -> Chain:
    """The start of the group is ``residue`` above a multiple of the alignment of all together."""
    buffers = [problem.buffers[i] for i in group]
    below = list(accumulate((b.size_bytes for b in buffers), initial=0))
    residue = 0
    for b, place in zip(buffers, below, strict=False):
        common = gcd(alignment, b.alignment)
        if (residue + place) % common:
            raise _contradiction(problem, group, f"no address suits the alignment of {b.name}")
        rest = b.alignment // common
        times = -(residue + place) // common * pow(alignment // common, -1, rest) % rest
        residue += times * alignment
        alignment = lcm(alignment, b.alignment)
    starts = {b.offset - p for b, p in zip(buffers, below, strict=False) if b.offset is not None}
    fixed = min(starts, default=residue) - residue
    if len(starts) > 1:
        raise _contradiction(problem, group, "their fixed offsets do not follow from one another")
    if fixed < 0 or fixed % alignment:
        at = min(starts)
        reason = f"fixed at {at}, alignment {alignment}" + f" from {residue} on" * bool(residue)
        raise _contradiction(problem, group, reason)
    places = tuple((i, residue + place) for i, place in zip(group, below, strict=False))
    return Chain(places, alignment, fixed if starts else None)


def _contradiction(problem: Problem, group: tuple[int, ...], reason: str) -> UserError:
    names = ", ".join(problem.buffers[i].name for i in group)
    return UserError("MP223", f"{names}: {reason}", help="change a fixed offset or an alignment")
