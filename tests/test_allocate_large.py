"""Many boxes: the compiled placement is the same, ten thousands are placed in time, limits are kept."""

from __future__ import annotations

import math
import random
import resource
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from mplan.ir.plan import Buffer, Extent, Problem, Region
from mplan.passes.allocate import allocate, skyline
from mplan.passes.allocate.columns import PRIORITIES, columns_of
from mplan.passes.allocate.greedy import order_by, pack
from mplan.passes.allocate.instance import Box, Instance, from_problem
from mplan.passes.prepare import prepare
from mplan.passes.solvers.interface import Deadline

BUDGET_S = 60.0


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    prepare()


def network(layers: int, seed: int) -> Problem:
    """Joint training of ``layers`` layers: activations wait for the backward pass, weights stay, what
    else a layer needs is gone soon; sizes vary from layer to layer."""
    rng = random.Random(seed)
    horizon = 20 * layers
    spans = []
    for layer in range(layers):
        start, end = 10 * layer, horizon - 10 * layer
        spans.append((0, horizon, 500))
        spans += [(start + k, end - k, rng.randint(50, 900)) for k in range(4)]
        spans += [(t, t + rng.randint(1, 6), rng.randint(50, 2000)) for t in range(start, start + 10)]
        spans += [(t, t + rng.randint(1, 6), rng.randint(50, 2000)) for t in range(end - 10, end)]
    buffers = (
        Buffer(f"b{i}", size, ("r",), lifetime=(start, min(end, horizon)))
        for i, (start, end, size) in enumerate(spans)
    )
    return Problem("network", (Region("r"),), tuple(buffers))


def holed(problem: Problem, seed: int) -> Problem:
    """Some buffers have gaps, some lie adjacent, alignments differ."""
    rng = random.Random(seed)
    buffers = []
    for b in problem.buffers:
        start, end = b.lifetime or (0, 0)
        gaps: tuple[Extent, ...] = ()
        if end - start > 3 and rng.random() < 0.3:
            at = sorted(rng.sample(range(start + 1, end), 2))
            gaps = (Extent(*at, 0, rng.choice((0, b.size_bytes // 2))),)
        alignment = rng.choice((1, 2, 4))
        buffers.append(
            Buffer(b.name, b.size_bytes * 4, ("r",), alignment, lifetime=b.lifetime, gaps=gaps)
        )
    chosen = rng.sample(range(len(buffers)), 20)
    return Problem("holed", problem.regions, tuple(buffers), adjacent=tuple(pairwise(chosen))[::2])


@pytest.mark.parametrize("seed", range(3))
def test_the_compiled_skyline_is_the_same(seed: int) -> None:
    plain = network(12, seed)
    for problem in (plain, holed(plain, seed)):
        instance = from_problem(problem, (), "r")
        columns = columns_of(instance)
        for priority in PRIORITIES:
            rank = columns.rank(priority)
            few = skyline.place_few(columns, rank, Deadline(math.inf))
            assert few == skyline.place_many(columns, rank)


@pytest.mark.slow
def test_fifty_thousand_boxes_are_placed_in_a_minute_and_little_memory() -> None:
    problem = network(2000, 0)
    assert len(problem.buffers) == 50_000
    started = time.process_time()
    result = allocate(problem, (), limit_s=BUDGET_S / 2)
    assert time.process_time() - started < BUDGET_S
    assert result.certificate.gap <= 0.01
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20


@pytest.mark.parametrize("solver", ["greedy", "exact", "hill"])
def test_the_limit_is_kept_with_many_boxes(solver: str) -> None:
    problem = network(400, 1)
    allocate(problem, (), limit_s=0)
    started = time.process_time()
    allocate(problem, (), limit_s=0)
    least = time.process_time() - started
    started = time.monotonic()
    allocate(problem, (), limit_s=least + 3.0, solver=solver)
    assert time.monotonic() - started < 1.1 * (least + 3.0) + 1.0


def by_gaps(boxes: Sequence[Box], order: Sequence[int], best_fit: bool) -> list[int]:
    """Offsets of boxes placed in turn between those that meet them, from the definition."""
    offsets: dict[int, int] = {}
    for i in order:
        box = boxes[i]
        met = [j for j in offsets if boxes[j].start < box.end and boxes[j].end > box.start]
        low, found = 0, []
        for j in sorted(met, key=offsets.__getitem__):
            low += -low % box.alignment
            found.append((offsets[j] - box.size - low, low))
            low = max(low, offsets[j] + boxes[j].size)
        fits = [(room if best_fit else 0, at) for room, at in found if room >= 0]
        offsets[i] = min(fits, default=(0, low + -low % box.alignment))[1]
    return [offsets[i] for i in range(len(boxes))]


@pytest.mark.parametrize("best_fit", [False, True])
def test_boxes_in_order_of_birth_take_the_same_gaps(best_fit: bool) -> None:
    rng = random.Random(5)
    for _ in range(300):
        spans = [(at, at + rng.randint(1, 12)) for at in rng.choices(range(20), k=rng.randint(1, 25))]
        boxes = [
            Box(i, *span, rng.randint(1, 30), rng.choice((1, 1, 3, 4, 8)))
            for i, span in enumerate(spans)
        ]
        order = sorted(range(len(boxes)), key=lambda i: (boxes[i].start, rng.random()))
        packed = pack(Instance(tuple(boxes)), order, best_fit)
        assert list(packed) == by_gaps(boxes, order, best_fit)
        shuffled = rng.sample(order, len(order))
        assert list(pack(Instance(tuple(boxes)), shuffled, best_fit)) == by_gaps(
            boxes, shuffled, best_fit
        )


@pytest.mark.parametrize("by", [lambda b: (b.size,), lambda b: (b.start,)])
def test_packing_stops_at_the_deadline(by: Callable[[Box], tuple[int, ...]]) -> None:
    instance = from_problem(network(40, 2), (), "r")
    assert isinstance(instance, Instance)
    with pytest.raises(TimeoutError):
        pack(instance, order_by(instance, by), best_fit=True, deadline=Deadline(0))


def test_a_skyline_stops_at_the_deadline() -> None:
    columns = columns_of(from_problem(network(12, 0), (), "r"))
    with pytest.raises(TimeoutError):
        skyline.place_few(columns, columns.rank(PRIORITIES[0]), Deadline(0))
