"""The constructive placements in turn: skylines, then gaps."""

from __future__ import annotations

from mplan.passes.allocate import greedy, skyline
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers.interface import Deadline, Search


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Offer the placements of both kinds until one is proven or time is up."""
    skyline.run(instance, search, deadline, seed)
    greedy.run(instance, search, deadline, seed)
