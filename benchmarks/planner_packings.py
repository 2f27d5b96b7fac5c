"""Packing problems with a solution by construction: a full rectangle cut into pieces.

They resemble MiniMalloc's "challenging" instances: times and sizes count in 1,024ths, sizes and
lifetimes spread over three orders of magnitude, and at many times every byte is taken. Some pieces are
then left out or made smaller, which hides the cuts.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mplan.ir.plan import Buffer, Problem, Region

#: Cells of the full rectangle in either direction, and the bytes (and positions) of one.
CELLS = 1024
UNIT = 1024


@dataclass(frozen=True, slots=True)
class Kind:
    """``count`` pieces at last; cuts leave at least ``least`` cells of time and of bytes.

    ``even`` from 0 to 1 keeps cuts near the middle. The fraction ``dropped`` of the pieces is left out,
    first those that are gone at all of the ``busy`` times; the fraction ``shrunk`` is made smaller.
    """

    count: int
    least: tuple[int, int] = (1, 1)
    even: float = 0.0
    dropped: float = 0.0
    busy: int = 0
    shrunk: float = 0.0


#: Named after the instances that they resemble most; the last two are fuller than those.
KINDS = {
    "A": Kind(154, even=0.2, dropped=0.06, busy=3),
    "C": Kind(203, even=0.1, dropped=0.03, busy=30),
    "E": Kind(215, even=0.3, dropped=0.12, busy=3),
    "G": Kind(308, least=(18, 30), even=0.8, dropped=0.3, busy=3),
    "I": Kind(374, even=0.1, dropped=0.2, busy=1),
    "J": Kind(409, even=0.3, dropped=0.1, shrunk=0.3),
    "full": Kind(454),
    "dense_E": Kind(215, even=0.3, dropped=0.06, busy=3),
    "dense_I": Kind(374, even=0.1, dropped=0.08, busy=1),
}


def packing(name: str, seed: int) -> Problem:
    """An instance of a kind, with the capacity in which it fits."""
    kind, rng = KINDS[name], random.Random(f"{name}{seed}")
    pieces = list(_cut(kind, round(kind.count / (1 - kind.dropped)), rng))
    rng.shuffle(pieces)
    busy = [rng.randrange(CELLS) for _ in range(kind.busy)]
    pieces.sort(key=lambda piece: not any(piece[0] <= t < piece[1] for t in busy))
    buffers = []
    for start, end, size in pieces[: kind.count]:
        if rng.random() < kind.shrunk:
            start = rng.randint(start, start + (end - start - 1) // 4)
            size = rng.randint(size - (size - 1) // 4, size)
        lifetime = (start * UNIT, end * UNIT)
        buffers.append(Buffer(f"b{len(buffers)}", size * UNIT, ("arena",), lifetime=lifetime))
    region = Region("arena", CELLS * UNIT)
    return Problem(f"packing_{name}_{seed}", (region,), tuple(buffers))


def _cut(kind: Kind, count: int, rng: random.Random) -> Iterator[tuple[int, int, int]]:
    """``count`` pieces (start, end, size) of the full rectangle, the largest cut first."""
    heap = [(-float(CELLS * CELLS), 0, 0, CELLS, CELLS)]
    done: list[tuple[int, int, int]] = []
    while heap and len(heap) + len(done) < count:
        _, _, start, end, size = heapq.heappop(heap)
        width = end - start
        sides = [
            s
            for s, room, low in ((0, width, kind.least[0]), (1, size, kind.least[1]))
            if room >= 2 * low
        ]
        if not sides:
            done.append((start, end, size))
            continue
        across = rng.choice(sides)
        room, low = (size, kind.least[1]) if across else (width, kind.least[0])
        margin = max(low, int(room * kind.even / 2))
        at = rng.randint(min(margin, room // 2), max(room - margin, room // 2))
        parts = (
            ((start, end, at), (start, end, size - at))
            if across
            else ((start, start + at, size), (start + at, end, size))
        )
        for s, e, z in parts:
            weight = (e - s) * z * rng.uniform(0.2, 1.0)
            heapq.heappush(heap, (-weight, rng.randrange(2**30), s, e, z))
    yield from done
    yield from ((s, e, z) for _, _, s, e, z in heap)


def packings(seeds: int) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """``seeds`` instances of every kind."""
    for name in KINDS:
        for seed in range(seeds):
            yield f"{name}{seed}", partial(packing, name, seed)
