"""The packing problem as a constraint model: rectangles that do not overlap, for CP-SAT.

Time is fixed, so every maximal set of boxes that are live together is a no-overlap constraint on
their address intervals; a two-dimensional one and a cumulative one add propagation. The search places
the lowest offset first, long-lived boxes before short ones.
"""

from __future__ import annotations

from itertools import accumulate
from math import gcd
from typing import Any

from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.instance import Instance
from mplan.passes.solvers import cpsat
from mplan.passes.solvers.interface import Bound, Deadline, Search

#: Larger models take longer to build than to give up on.
_MAX_TERMS = 60_000


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Try the bound as the height, then minimise; offers what is found and raises the bound.

    The bound must not be below the live bytes, the size of a box or the end of a fixed one.
    """
    if any(terms > _MAX_TERMS for terms in accumulate(map(len, instance.cliques()))):
        return
    for minimise, share in ((False, 0.6), (True, 1.0)):
        if search.closed or search.hopeless or deadline.expired:
            return
        most = search.value - 1 if search.goal is None else min(search.value - 1, search.goal)
        low, high = search.bound.bytes, most if minimise else search.bound.bytes
        unit = unit_of(instance)
        above = (high // unit + 1) * unit
        if minimise and -(-low // unit) * unit > high:
            search.raise_bound(Bound(min(above, search.value), "exhaustive"))
            return
        model = _Model(instance, low, high, minimise)
        result = cpsat.solve(model.model, model.offsets, deadline.share(share), seed)
        if result.values:
            offsets = tuple(v * unit for v in result.values)
            search.offer(offsets, instance.height(offsets), "cpsat")
        if result.status == "infeasible":
            search.raise_bound(Bound(min(above, search.value), "exhaustive"))
        elif result.status == "optimal":
            search.raise_bound(Bound(search.value, "exhaustive"))


class _Model:
    """Offsets in units of ``unit`` bytes; the height is between ``low`` and ``high`` bytes."""

    def __init__(self, instance: Instance, low: int, high: int, minimise: bool) -> None:
        self.instance = instance
        self.unit = unit_of(instance)
        cp: Any = cpsat.cp_model()
        self.model = cp.CpModel()
        top = high // self.unit
        self.offsets = [self._offset(i, top) for i in range(len(instance.boxes))]
        sizes = [b.size // self.unit for b in instance.boxes]
        self._no_overlap(top)
        order = sorted(
            range(len(sizes)),
            key=lambda i: (instance.boxes[i].start - instance.boxes[i].end, -sizes[i]),
        )
        self.model.add_decision_strategy(
            [self.offsets[i] for i in order], cp.CHOOSE_LOWEST_MIN, cp.SELECT_MIN_VALUE
        )
        if minimise:
            height = self.model.new_int_var(-(-low // self.unit), top, "height")
            for o, size in zip(self.offsets, sizes, strict=True):
                self.model.add(height >= o + size)
            self.model.minimize(height)

    def _offset(self, i: int, top: int) -> Any:
        box = self.instance.boxes[i]
        if box.fixed is not None:
            return self.model.new_constant(box.fixed // self.unit)
        last = top - box.size // self.unit
        step = max(box.alignment // self.unit, 1)
        if step == 1:
            return self.model.new_int_var(0, last, "")
        multiple = self.model.new_int_var(0, last // step, "")
        offset = self.model.new_int_var(0, last, "")
        self.model.add(offset == multiple * step)
        return offset

    def _no_overlap(self, top: int) -> None:
        extents = self.instance.extents
        sizes = [(x.high - x.low) // self.unit for _, x in extents]
        rows = [
            self.model.new_fixed_size_interval_var(self.offsets[i] + x.low // self.unit, size, "")
            for (i, x), size in zip(extents, sizes, strict=True)
        ]
        columns = [
            self.model.new_fixed_size_interval_var(x.start, x.end - x.start, "") for _, x in extents
        ]
        self.model.add_no_overlap_2d(columns, rows)
        self.model.add_cumulative(columns, sizes, top)
        for clique in self.instance.cliques():
            self.model.add_no_overlap([rows[i] for i in clique])


def unit_of(instance: Instance) -> int:
    """A unit in whose multiples some best packing lies.

    Left-justified offsets are sums of sizes and fixed offsets, unless an alignment cuts in.
    """
    numbers = [n for b in instance.boxes for n in (b.size, b.fixed or 0)]
    numbers += [n for _, x in instance.extents for n in (x.low, x.high)]
    unit = gcd(*numbers)
    alignments = {b.alignment for b in instance.boxes}
    if any(unit % a for a in alignments):
        unit = gcd(unit, *alignments)
    return unit or 1
