"""Local search over placement orders: move the boxes at the top to an earlier place and pack again."""

from __future__ import annotations

import random

from mplan.passes.allocate.greedy import Offsets, pack
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers.interface import Deadline, Search


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Climb from the best packing until it is proven or time is up; equal heights are accepted."""
    rng = random.Random(seed)
    offsets = search.answer
    order = sorted(range(len(offsets)), key=offsets.__getitem__)
    height = search.value
    while not search.closed and not deadline.expired:
        trial = _neighbour(instance, order, offsets, height, rng)
        packed = pack(instance, trial, best_fit=False)
        found = instance.height(packed)
        if found <= height:
            order, offsets, height = trial, packed, found
            search.offer(packed, found, "hill")


def _neighbour(
    instance: Instance, order: list[int], offsets: Offsets, height: int, rng: random.Random
) -> list[int]:
    """A box that ends at the height, or one under it, goes to a random earlier place."""
    boxes = instance.boxes
    top = rng.choice([i for i in order if offsets[i] + boxes[i].size == height])
    if rng.random() < 0.5:
        under = [
            i for i in order if boxes[i].start < boxes[top].end and boxes[i].end > boxes[top].start
        ]
        top = rng.choice(under)
    place = order.index(top)
    trial = [i for i in order if i != top]
    trial.insert(rng.randrange(place + 1), top)
    return trial
