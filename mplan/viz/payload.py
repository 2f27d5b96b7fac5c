"""The data that the HTML page carries: one JSON object per plan, columns instead of rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mplan.ir.plan import Certificate
from mplan.timeline import RegionUse, Timeline, verdict
from mplan.units import clean, seconds


def payload(timeline: Timeline) -> dict[str, Any]:
    """The plan of ``timeline`` as the page's script reads it; steps stand in the plan's order."""
    plan = timeline.file.plan
    return {
        "horizon": timeline.file.problem.horizon,
        "steps": _steps(timeline),
        "capturedSteps": [step.name for step in timeline.file.problem.steps],
        "buffers": _buffers(timeline),
        "boxes": _boxes(timeline),
        "regions": [_region(timeline, use) for use in timeline.regions],
        "transfers": [
            {**asdict(t), "source": clean(t.source), "target": clean(t.target)} for t in plan.transfers
        ],
    }


def _steps(timeline: Timeline) -> dict[str, list[str]]:
    steps = [timeline.file.problem.steps[i] for i in timeline.file.plan.order]
    return {
        "name": [s.name for s in steps],
        "kind": [s.kind for s in steps],
        "where": [s.where for s in steps],
    }


def _buffers(timeline: Timeline) -> dict[str, list[Any]]:
    buffers = timeline.file.problem.buffers
    producers = [use.producer for use in timeline.uses]
    return {
        "name": [b.name for b in buffers],
        "size": [b.size_bytes for b in buffers],
        "kind": [b.kind for b in buffers],
        "shape": [b.shape for b in buffers],
        "dtype": [b.dtype for b in buffers],
        "where": [b.where for b in buffers],
        "live_in": [int(b.live_in) for b in buffers],
        "live_out": [int(b.live_out) for b in buffers],
        "fixed": [int(b.lifetime is not None) for b in buffers],
        "producer": [-1 if p is None else p for p in producers],
        "touched": [use.touched for use in timeline.uses],
    }


def _boxes(timeline: Timeline) -> dict[str, list[int]]:
    placements = timeline.file.plan.placements
    number = {region.name: i for i, region in enumerate(timeline.file.problem.regions)}
    return {
        "buffer": [p.buffer for p in placements],
        "region": [number[p.region] for p in placements],
        "offset": [p.offset for p in placements],
        "start": [p.start for p in placements],
        "end": [p.end for p in placements],
    }


def _region(timeline: Timeline, use: RegionUse) -> dict[str, Any]:
    name = use.region.name
    certificates = [timeline.certificate(d, name) for d in ("schedule", "allocate")]
    return {
        "name": clean(name),
        "capacity": use.region.capacity_bytes,
        "height": use.height_bytes,
        "live": use.live_bytes,
        "peak": use.peak_position,
        "verdict": verdict(c for c in certificates if c)[1],
        "schedule": _certificate(certificates[0]),
        "allocate": _certificate(certificates[1]),
    }


def _certificate(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {**asdict(certificate), "gap": certificate.gap, "took": seconds(certificate.seconds)}
