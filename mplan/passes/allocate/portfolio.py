"""The constructive placements in turn: skylines, then gaps."""

from __future__ import annotations

from mplan.passes.allocate import greedy, skyline
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import MANY, Instance
from mplan.passes.solvers.interface import Deadline, Search

#: Of many boxes skylines are lower and found sooner: the share of the time left that gaps have.
_GAPS = 0.1


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Offer the placements of both kinds until one is proven or time is up."""
    skyline.run(instance, search, deadline, seed)
    many = len(instance.boxes) >= MANY and not instance.anchored
    greedy.run(instance, search, deadline.share(_GAPS) if many else deadline, seed)
