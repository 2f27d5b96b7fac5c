"""Close the gap between height and bound: CP-SAT on the packing model."""

from __future__ import annotations

from mplan.passes.allocate import packing
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers.interface import Deadline, Search


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Improve ``search`` until it is closed or time is up."""
    packing.run(instance, search, deadline, seed)
