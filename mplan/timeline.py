"""What a plan implies over time: live bytes at each position, the peak, and who holds it.

Reports and pictures draw from these facts; nothing here decides anything. Positions are those of the
plan's order (``0 ≤ position < horizon``); lifetimes are half-open.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from mplan.ir.plan import Certificate, Placement, PlanFile, Region, Step
from mplan.units import percent


@dataclass(frozen=True, slots=True)
class Use:
    """When a buffer is needed: the positions that touch it, sorted, and the first that writes it."""

    touched: tuple[int, ...] = ()
    producer: int | None = None


@dataclass(frozen=True, slots=True)
class RegionUse:
    """A region over time: its height, and ``live_bytes[p]`` of buffers that lie in it at ``p``."""

    region: Region
    height_bytes: int
    live_bytes: tuple[int, ...]

    @property
    def peak_position(self) -> int:
        """The first position with the most live bytes; 0 if nothing ever lies there."""
        return self.live_bytes.index(max(self.live_bytes)) if self.live_bytes else 0

    @property
    def peak_live_bytes(self) -> int:
        """The most bytes that are live at once."""
        return max(self.live_bytes, default=0)

    def columns(self, count: int) -> tuple[int, ...]:
        """The curve in ``count`` columns: each shows the most live bytes of the positions it covers."""
        horizon = len(self.live_bytes)
        edges = [i * horizon // count for i in range(count + 1)] if horizon else []
        return tuple(max(self.live_bytes[a : max(b, a + 1)]) for a, b in pairwise(edges))


@dataclass(frozen=True, slots=True)
class Timeline:
    """The facts of one plan file: ``uses`` by buffer index, ``regions`` in the problem's order."""

    file: PlanFile
    uses: tuple[Use, ...]
    regions: tuple[RegionUse, ...]

    @classmethod
    def of(cls, file: PlanFile) -> Timeline:
        """Replay ``file``: O(placements + steps) time."""
        regions = tuple(
            RegionUse(region, file.plan.peak_bytes(region.name), _live_bytes(file, region.name))
            for region in file.problem.regions
        )
        return cls(file, _uses(file), regions)

    @property
    def occupied(self) -> tuple[RegionUse, ...]:
        """The regions in which anything lies; all of them if the plan holds nothing."""
        return tuple(r for r in self.regions if r.height_bytes) or self.regions

    @property
    def primary(self) -> RegionUse | None:
        """The region that the schedule was made for, or else the first addressable one in use."""
        for use in self.occupied:
            if self.certificate("schedule", use.region.name):
                return use
        addressable = [use for use in self.occupied if use.region.addressable]
        return next(iter((*addressable, *self.occupied)), None)

    def certificate(self, decision: str, region: str) -> Certificate | None:
        """The certificate of ``schedule`` or ``allocate`` for ``region``, if the plan carries one."""
        return self.file.plan.certificate(f"{decision}:{region}")

    def step(self, position: int) -> Step | None:
        """The step at ``position``; None in a problem of fixed lifetimes."""
        order = self.file.plan.order
        return self.file.problem.steps[order[position]] if 0 <= position < len(order) else None

    def held(self, region: str, position: int) -> tuple[Placement, ...]:
        """What lies in ``region`` at ``position``, largest first; empty buffers are left out."""
        buffers = self.file.problem.buffers
        there = [
            p
            for p in self.file.plan.placements
            if p.region == region and p.start <= position < p.end and buffers[p.buffer].size_bytes
        ]
        return tuple(sorted(there, key=lambda p: (-buffers[p.buffer].size_bytes, p.offset)))

    def source(self, buffer: int) -> str:
        """The source line of a buffer: its own, or that of the step that produces it."""
        producer = self.uses[buffer].producer
        step = self.step(producer) if producer is not None else None
        return self.file.problem.buffers[buffer].where or (step.where if step else "")

    def why_alive(self, buffer: int, position: int) -> str:
        """Why ``buffer`` must exist at ``position``: its next use, or what outlives the run."""
        b, touched = self.file.problem.buffers[buffer], self.uses[buffer].touched
        later = bisect.bisect_left(touched, position)
        if later < len(touched):
            if touched[later] == position:
                return "used by this step"
            return f"needed by {self._named(touched[later])}"
        if b.live_out:
            return "a result of the model"
        return "its lifetime is given" if b.lifetime else "held before the first step"

    def keeper(self, buffer: int) -> str:
        """Who ends the lifetime of ``buffer``: the last step that touches it, or the model's result."""
        b, touched = self.file.problem.buffers[buffer], self.uses[buffer].touched
        if b.live_out:
            return "a result of the model"
        if touched:
            return self._named(touched[-1])
        return "its lifetime is given" if b.lifetime else "no step touches it"

    def _named(self, position: int) -> str:
        step = self.step(position)
        return f"{step.name} at step {position}" if step else f"step {position}"


def verdict(certificates: Iterable[Certificate]) -> tuple[str, str]:
    """The weakest status among ``certificates`` and the words for it; ``none`` without any."""
    found = tuple(certificates)
    if not found:
        return "none", "no proof"
    gap = max(c.gap for c in found)
    states = {c.status for c in found}
    if "infeasible" in states:
        return "infeasible", "infeasible"
    return (
        ("feasible", f"feasible, gap {percent(gap)}")
        if "feasible" in states
        else ("optimal", "optimal")
    )


def _live_bytes(file: PlanFile, region: str) -> tuple[int, ...]:
    horizon = file.problem.horizon
    delta = [0] * (horizon + 1)
    for p in file.plan.placements:
        if p.region == region and p.start < min(p.end, horizon):
            for x in file.problem.buffers[p.buffer].held(p.start, min(p.end, horizon)):
                delta[x.start] += x.high - x.low
                delta[x.end] -= x.high - x.low
    return tuple(accumulate(delta[:horizon]))


def _uses(file: PlanFile) -> tuple[Use, ...]:
    touched: dict[int, list[int]] = defaultdict(list)
    producer: dict[int, int] = {}
    for position, index in enumerate(file.plan.order):
        step = file.problem.steps[index]
        for buffer in step.touches:
            touched[buffer].append(position)
        for buffer in step.writes:
            producer.setdefault(buffer, position)
    count = len(file.problem.buffers)
    return tuple(Use(tuple(touched[i]), producer.get(i)) for i in range(count))
