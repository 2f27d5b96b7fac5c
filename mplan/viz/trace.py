"""Plans in the formats of two viewers: Chrome's trace events and PyTorch's memory snapshots."""

from __future__ import annotations

import pickle
import re
from typing import Any

from mplan.ir.plan import Placement, PlanFile
from mplan.timeline import RegionUse, Timeline, verdict

#: A step has no duration in a plan; in a trace it lasts a millisecond.
_STEP_US = 1000
#: Regions get address spaces of their own, one tebibyte apart.
_ADDRESS_SPACE = 1 << 40


def chrome_trace(file: PlanFile) -> dict[str, Any]:
    """The plan as a trace-event JSON object (chrome://tracing, Perfetto).

    The process ``steps`` has a slice per step; each region is a process with a counter ``live bytes``
    and an async slice per buffer. One position of the order is shown as one millisecond. Format:
    "Trace Event Format", Google, sections on complete, counter, async and metadata events.
    """
    timeline = Timeline.of(file)
    events = [_named(1, "steps"), *_slices(timeline)]
    for pid, use in enumerate(timeline.occupied, start=2):
        events += [_named(pid, use.region.name), *_counters(use, pid), *_lifetimes(timeline, use, pid)]
    about = {
        "model": file.model,
        "target": file.target,
        "producer": file.producer,
        "plan_digest": file.plan.digest,
        "status": verdict(file.plan.certificates)[1],
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _named(pid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}


def _slices(timeline: Timeline) -> list[dict[str, Any]]:
    steps = timeline.file.problem.steps
    return [
        {
            "ph": "X",
            "name": steps[index].name,
            "cat": steps[index].kind or "step",
            "pid": 1,
            "tid": 0,
            "ts": position * _STEP_US,
            "dur": _STEP_US,
            "args": {"position": position, "where": steps[index].where},
        }
        for position, index in enumerate(timeline.file.plan.order)
    ]


def _counters(use: RegionUse, pid: int) -> list[dict[str, Any]]:
    levels = [*enumerate(use.live_bytes), (len(use.live_bytes), 0)]
    return [
        {"ph": "C", "name": "live bytes", "pid": pid, "ts": at * _STEP_US, "args": {"bytes": level}}
        for at, level in levels
    ]


def _lifetimes(timeline: Timeline, use: RegionUse, pid: int) -> list[dict[str, Any]]:
    events = []
    for number, p in _placed(timeline, use):
        b = timeline.file.problem.buffers[p.buffer]
        common = {"name": b.name, "cat": b.kind, "id": number, "pid": pid, "tid": 0}
        facts = {
            "bytes": b.size_bytes,
            "offset": p.offset,
            "shape": b.shape,
            "dtype": b.dtype,
            "where": timeline.source(p.buffer),
            "kept alive by": timeline.keeper(p.buffer),
        }
        events.append({"ph": "b", "ts": p.start * _STEP_US, **common, "args": facts})
        events.append({"ph": "e", "ts": p.end * _STEP_US, **common})
    return events


def _placed(timeline: Timeline, use: RegionUse) -> list[tuple[int, Placement]]:
    """The placements of a region that hold bytes, each with its number in the plan."""
    buffers = timeline.file.problem.buffers
    return [
        (i, p)
        for i, p in enumerate(timeline.file.plan.placements)
        if p.region == use.region.name and p.start < p.end and buffers[p.buffer].size_bytes
    ]


def memory_snapshot(file: PlanFile) -> bytes:
    """The plan as a pickled PyTorch memory snapshot, for pytorch.org/memory_viz.

    Each region is a device with one segment as large as the region is high; each placement is an
    allocation with the step that makes it as its stack frame. The fields are those that
    ``torch.cuda.memory._snapshot`` gives and ``torch/cuda/_memory_viz.py`` reads.
    """
    timeline = Timeline.of(file)
    regions = timeline.occupied
    snapshot = {
        "segments": [_segment(timeline, use, device) for device, use in enumerate(regions)],
        "device_traces": [_events(timeline, use, device) for device, use in enumerate(regions)],
    }
    return pickle.dumps(snapshot, protocol=4)


def _base(device: int) -> int:
    return (device + 1) * _ADDRESS_SPACE


def _events(timeline: Timeline, use: RegionUse, device: int) -> list[dict[str, Any]]:
    # The viewer needs the category "unknown" in every trace that has categories at all.
    height, base = use.height_bytes, _base(device)
    opening = _event("segment_alloc", base, height, 0, _frames(use.region.name, ""), "unknown")
    dated = []
    for _, p in _placed(timeline, use):
        b = timeline.file.problem.buffers[p.buffer]
        frames = _buffer_frames(timeline, p.buffer)
        start = _event("alloc", base + p.offset, b.size_bytes, p.start, frames, b.kind)
        dated.append((p.start, 1, start))
        if not _outlives(timeline, p):
            for action in ("free_requested", "free_completed"):
                end = _event(action, base + p.offset, b.size_bytes, p.end, frames, b.kind)
                dated.append((p.end, 0, end))
    dated.sort(key=lambda entry: entry[:2])
    return [opening, *(event for _, _, event in dated)]


def _event(
    action: str, addr: int, size: int, step: int, frames: list[dict[str, Any]], category: str
) -> dict[str, Any]:
    return {
        "action": action,
        "addr": addr,
        "size": size,
        "stream": 0,
        "time_us": step * _STEP_US,
        "frames": frames,
        "category": category,
    }


def _segment(timeline: Timeline, use: RegionUse, device: int) -> dict[str, Any]:
    """The state after the last step: results still allocated, the rest free."""
    blocks, at, active = [], 0, 0
    buffers = timeline.file.problem.buffers
    left = [p for _, p in _placed(timeline, use) if _outlives(timeline, p)]
    for p in sorted(left, key=lambda p: p.offset):
        size = buffers[p.buffer].size_bytes
        blocks += [_gap(p.offset - at)] if p.offset > at else []
        frames = _buffer_frames(timeline, p.buffer)
        blocks.append(
            {"size": size, "requested_size": size, "state": "active_allocated", "frames": frames}
        )
        at, active = p.offset + size, active + size
    blocks += [_gap(use.height_bytes - at)] if use.height_bytes > at else []
    return {
        "device": device,
        "address": _base(device),
        "total_size": use.height_bytes,
        "allocated_size": active,
        "active_size": active,
        "requested_size": active,
        "stream": 0,
        "segment_type": "large",
        "frames": _frames(use.region.name, ""),
        "blocks": blocks,
    }


def _gap(size: int) -> dict[str, Any]:
    return {"size": size, "requested_size": 0, "state": "inactive", "frames": []}


def _outlives(timeline: Timeline, p: Placement) -> bool:
    return timeline.file.problem.buffers[p.buffer].live_out and p.end == timeline.file.problem.horizon


def _buffer_frames(timeline: Timeline, buffer: int) -> list[dict[str, Any]]:
    """The buffer itself, then the step that writes it first, as a stack of frames."""
    b, producer = timeline.file.problem.buffers[buffer], timeline.uses[buffer].producer
    about = " ".join(part for part in (b.name, b.shape, b.dtype) if part)
    step = timeline.step(producer) if producer is not None else None
    frames = _frames(about, timeline.source(buffer))
    return frames + (_frames(f"step {producer}: {step.name}", step.where) if step else [])


def _frames(name: str, where: str) -> list[dict[str, Any]]:
    place = re.fullmatch(r"(?P<file>.+?):(?P<line>\d+)(:\d+)?", where)
    filename, line = (place["file"], int(place["line"])) if place else (where, 0)
    return [{"filename": filename, "line": line, "name": name}]
