"""Random planning problems for property tests, and brute force that shares nothing with the solvers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations

from hypothesis import strategies as st

from mplan.ir.plan import Buffer, Extent, Problem, Region, Step

REGIONS = (Region("arena", None, 1), Region("flash", None, 4))


@st.composite
def graphs(draw: st.DrawFn, max_steps: int = 6, max_buffers: int = 8) -> Problem:
    """Steps that read and write buffers: readers follow the last writer, writers all earlier users.

    Some accesses are left unordered, some edges are extra; some buffers are inputs, outputs, both, of
    size 0, in another region, or never touched.
    """
    count = draw(st.integers(0, max_steps))
    buffers = tuple(
        Buffer(
            f"b{i}",
            draw(st.integers(0, 9)),
            (draw(st.sampled_from(("arena", "arena", "arena", "flash"))),),
            draw(st.sampled_from((1, 1, 1, 2, 4))),
            live_in=draw(st.integers(0, 3)) == 0,
            live_out=draw(st.integers(0, 3)) == 0,
        )
        for i in range(draw(st.integers(1, max_buffers)))
    )
    subsets = st.sets(st.integers(0, len(buffers) - 1), max_size=3)
    steps: list[Step] = []
    for i in range(count):
        reads, writes = draw(subsets), draw(subsets)
        after = set()
        for j, earlier in enumerate(steps):
            conflict = (reads & set(earlier.writes)) | (writes & earlier.touches)
            if (conflict and draw(st.integers(0, 4))) or (
                not conflict and draw(st.integers(0, 9)) == 0
            ):
                after.add(j)
        steps.append(Step(f"s{i}", tuple(sorted(reads)), tuple(sorted(writes)), tuple(sorted(after))))
    return Problem("random", REGIONS, buffers, tuple(steps))


@st.composite
def rectangles(draw: st.DrawFn, max_buffers: int = 6, fixed: bool = False) -> Problem:
    """Buffers of fixed lifetime, alignment and, with ``fixed``, here and there a fixed offset."""
    region = Region("arena", None, draw(st.sampled_from((1, 1, 2))))
    buffers = []
    for i in range(draw(st.integers(0, max_buffers))):
        start = draw(st.integers(0, 7))
        alignment = draw(st.sampled_from((1, 1, 2, 3, 4)))
        at = None
        if fixed and draw(st.integers(0, 4)) == 0:
            at = draw(st.integers(0, 3)) * 12
        buffers.append(
            Buffer(
                f"b{i}",
                draw(st.integers(0, 6)),
                ("arena",),
                alignment,
                lifetime=(start, start + draw(st.integers(0, 6))),
                offset=at,
            )
        )
    return Problem("boxes", (region,), tuple(buffers))


@st.composite
def rigid(draw: st.DrawFn, max_buffers: int = 5) -> Problem:
    """Buffers of fixed lifetime, some with gaps or windows in them, some in adjacent groups."""
    buffers = []
    for i in range(draw(st.integers(0, max_buffers))):
        start, length = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        size = draw(st.integers(0, 5))
        gaps: list[Extent] = []
        at = start
        while at < start + length and draw(st.integers(0, 2)) == 0:
            begin = draw(st.integers(at, start + length - 1))
            end = draw(st.integers(begin + 1, start + length))
            low = draw(st.integers(0, size))
            gaps.append(Extent(begin, end, low, draw(st.integers(low, size))))
            at = end
        alignment = draw(st.sampled_from((1, 1, 2, 3)))
        at_offset = draw(st.integers(0, 6)) * alignment if draw(st.integers(0, 6)) == 0 else None
        lifetime = (start, start + length)
        buffer = Buffer(f"b{i}", size, ("arena",), alignment, lifetime=lifetime, offset=at_offset)
        buffers.append(replace(buffer, gaps=tuple(gaps)))
    indices = draw(st.permutations(range(len(buffers))))
    cuts = sorted(draw(st.sets(st.integers(0, len(buffers)), max_size=3)))
    groups = tuple(tuple(indices[a:b]) for a, b in pairwise(cuts) if b - a > 1)
    region = Region("arena", None, draw(st.sampled_from((1, 1, 2))))
    return Problem("rigid", (region,), tuple(buffers), adjacent=groups)


def live_bytes(problem: Problem, order: tuple[int, ...], region: str) -> list[int]:
    """Live bytes at each position, from the definition."""
    levels = [0] * len(order)
    uses: dict[int, list[int]] = {}
    for p, s in enumerate(order):
        for i in problem.steps[s].touches:
            uses.setdefault(i, []).append(p)
    for i, b in enumerate(problem.buffers):
        if b.regions[0] != region:
            continue
        if i in uses:
            first = 0 if b.live_in else uses[i][0]
            last = len(order) - 1 if b.live_out else uses[i][-1]
        elif b.live_out:
            first, last = 0, len(order) - 1
        else:
            first, last = 0, 0 if b.live_in else -1
        for p in range(len(order))[first : last + 1]:
            levels[p] += b.size_bytes
    return levels


def is_valid(problem: Problem, order: tuple[int, ...]) -> bool:
    """Whether ``order`` is a permutation of the steps that respects precedence."""
    place = {s: p for p, s in enumerate(order)}
    return sorted(order) == list(range(len(problem.steps))) and all(
        place[a] < place[i] for i, s in enumerate(problem.steps) for a in s.after
    )


def random_order(after: Sequence[Sequence[int]], rng: random.Random) -> tuple[int, ...]:
    """A random order of steps that follow those in ``after``."""
    order: list[int] = []
    left = set(range(len(after)))
    while left:
        order.append(rng.choice(sorted(s for s in left if not left & set(after[s]))))
        left.remove(order[-1])
    return tuple(order)


def least_peak(problem: Problem, region: str) -> int:
    """The least peak over all valid orders."""
    orders = permutations(range(len(problem.steps)))
    peaks = (max(live_bytes(problem, o, region), default=0) for o in orders if is_valid(problem, o))
    return min(peaks)


def least_height(problem: Problem) -> int | None:
    """The least height over all placements; None if the fixed offsets contradict each other.

    Placed in the order of their offsets in a best placement, each at the lowest address that is free,
    boxes end nowhere higher; so some permutation shows the least height.
    """
    boxes = [
        b for b in problem.buffers if b.size_bytes and b.lifetime and b.lifetime[0] < b.lifetime[1]
    ]
    fixed = [(b, b.offset) for b in boxes if b.offset is not None]
    align = problem.regions[0].alignment
    if any(at % b.alignment or at % align or _hits(b, at, fixed) for b, at in fixed):
        return None
    best = None
    for order in permutations(b for b in boxes if b.offset is None):
        placed = list(fixed)
        for b in order:
            at = 0
            while at % b.alignment or at % align or _hits(b, at, placed):
                at += 1
            placed.append((b, at))
        top = max((at + b.size_bytes for b, at in placed), default=0)
        best = top if best is None else min(best, top)
    return best


def least_rigid_height(problem: Problem) -> int | None:
    """``least_height`` with gaps and adjacent groups, by trying all addresses under every height."""
    grouped = {i for group in problem.adjacent for i in group}
    chains = [*problem.adjacent, *((i,) for i in range(len(problem.buffers)) if i not in grouped)]
    most = max((b.offset or 0 for b in problem.buffers), default=0)
    most += sum(b.size_bytes + 12 for b in problem.buffers)
    options = [[_cells(problem, chain, base) for base in range(most)] for chain in chains]
    places = [list({found: 0 for found in bases if found is not None}) for bases in options]
    places.sort(key=len)
    heights = range(most + 1)
    return next((h for h in heights if _fits(places, h, 0)), None) if _fits(places, most, 0) else None


def _fits(places: list[list[tuple[int, int]]], height: int, taken: int) -> bool:
    """Whether every chain has a place up to ``height`` that leaves out the cells ``taken``."""
    if not places:
        return True
    for cells, top in places[0]:
        if top <= height and not cells & taken and _fits(places[1:], height, taken | cells):
            return True
    return False


def _cells(problem: Problem, chain: tuple[int, ...], base: int) -> tuple[int, int] | None:
    """The cells (time and address, a bit each) of a chain at ``base``, and its top; None if it may
    not lie there."""
    cells, top, at = 0, 0, base
    if at % problem.regions[0].alignment:
        return None
    for i in chain:
        b = problem.buffers[i]
        if at % b.alignment or b.offset not in (None, at):
            return None
        for time in range(*b.lifetime):
            gap = next((g for g in b.gaps if g.start <= time < g.end), None)
            low, high = (0, b.size_bytes) if gap is None else (gap.low, gap.high)
            cells |= ((1 << high) - (1 << low)) << (at + 256 * time)
            top = max(top, at + b.size_bytes) if low < high else top
        at += b.size_bytes
    return cells, top


def _hits(b: Buffer, at: int, placed: list[tuple[Buffer, int]]) -> bool:
    for other, low in placed:
        if other is b:
            continue
        in_time = b.lifetime[0] < other.lifetime[1] and other.lifetime[0] < b.lifetime[1]
        if in_time and at < low + other.size_bytes and low < at + b.size_bytes:
            return True
    return False
