"""The plan as a static SVG: per region the address × step map above the live-bytes curve."""

from __future__ import annotations

from dataclasses import dataclass

from mplan.ir.plan import PlanFile
from mplan.templates import render
from mplan.timeline import RegionUse, Timeline, verdict
from mplan.units import clean, human_bytes
from mplan.viz.html import TEMPLATES

_LEFT, _RIGHT, _WIDTH = 84, 16, 960
_MAP, _CURVE = 220, 72
_HEAD, _PANEL = 62, 376
_KINDS = ("input", "intermediate", "output", "weight", "scratch")


@dataclass(frozen=True, slots=True)
class Box:
    """A placement in pixels, with its tooltip and, if there is room, its label."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str
    label: str


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line at a number of bytes."""

    y: float
    text: str
    style: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One region: ``y`` is the top of the panel, all else is relative to it."""

    y: int
    name: str
    summary: str
    boxes: tuple[Box, ...]
    map_levels: tuple[Level, ...]
    ticks: tuple[Level, ...]
    curve: str
    curve_top: Level
    peak_x: float
    peak_text: str
    steps: tuple[tuple[float, str], ...]


def render_svg(file: PlanFile) -> str:
    """``file`` as one SVG document, 960 wide; light or dark after the reader's preference."""
    timeline = Timeline.of(file)
    uses = timeline.occupied
    panels = tuple(_panel(timeline, use, _HEAD + i * _PANEL) for i, use in enumerate(uses))
    name = clean(file.model or file.problem.name or "plan")
    status, words = verdict(file.plan.certificates)
    view = {
        "width": _WIDTH,
        "height": _HEAD + len(panels) * _PANEL,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "map_height": _MAP,
        "curve_floor": _curve_floor(),
        "title": f"{name} on {clean(file.target)}" if file.target else name,
        "status": status,
        "words": words,
        "digest": file.plan.digest[:12],
        "producer": clean(file.producer),
        "legend": _legend(file),
        "panels": panels,
    }
    return render(TEMPLATES, "plan.svg.j2", view, escape=True)


def _legend(file: PlanFile) -> tuple[tuple[float, str], ...]:
    """The kinds of buffer that occur, each with the left edge of its mark, from right to left."""
    at, entries = float(_WIDTH - _RIGHT), []
    for kind in reversed([k for k in _KINDS if any(b.kind == k for b in file.problem.buffers)]):
        at -= 34 + 6.3 * len(kind)
        entries.append((round(at, 1), kind))
    return tuple(entries)


def _curve_floor() -> int:
    return _MAP + 24 + _CURVE


def _panel(timeline: Timeline, use: RegionUse, y: int) -> Panel:
    horizon = max(len(use.live_bytes), 1)
    capacity = use.region.capacity_bytes
    tallest = max(use.height_bytes, use.peak_live_bytes, 1)
    top = max(tallest, capacity if capacity and capacity <= 2 * tallest else 0) * 1.08
    step_px = (_WIDTH - _RIGHT - _LEFT) / horizon
    limit = f" of {human_bytes(capacity)}" if capacity is not None else ""
    peak_x = _LEFT + (use.peak_position + 0.5) * step_px
    return Panel(
        y=y,
        name=clean(use.region.name),
        summary=f"{human_bytes(use.height_bytes)}{limit}",
        boxes=tuple(_boxes(timeline, use, step_px, _MAP / top)),
        map_levels=_levels(timeline, use, top),
        ticks=_ticks(top),
        curve=_curve(use, step_px, _CURVE / top),
        curve_top=Level(_curve_floor() - _CURVE * tallest / top, human_bytes(tallest), ""),
        peak_x=round(peak_x, 2),
        peak_text=f"peak {human_bytes(use.peak_live_bytes)} at step {use.peak_position}",
        steps=_step_labels(horizon, step_px),
    )


def _boxes(timeline: Timeline, use: RegionUse, step_px: float, byte_px: float) -> list[Box]:
    boxes = []
    for p in timeline.file.plan.placements:
        b = timeline.file.problem.buffers[p.buffer]
        if p.region != use.region.name or p.start >= p.end or not b.size_bytes:
            continue
        width, height = (p.end - p.start) * step_px, b.size_bytes * byte_px
        parts = [
            clean(b.name),
            human_bytes(b.size_bytes),
            clean(b.shape),
            clean(timeline.source(p.buffer)),
        ]
        letters = int((width - 8) / 6)
        label = clean(b.name) if height >= 13 and letters >= len(b.name) else ""
        boxes.append(
            Box(
                x=round(_LEFT + p.start * step_px, 2),
                y=round(_MAP - (p.offset + b.size_bytes) * byte_px, 2),
                width=round(max(width, 0.3), 2),
                height=round(max(height, 0.3), 2),
                kind=b.kind,
                title=", ".join(part for part in parts if part),
                label=label,
            )
        )
    return boxes


def _levels(timeline: Timeline, use: RegionUse, top: float) -> tuple[Level, ...]:
    levels, capacity = [], use.region.capacity_bytes
    bound = timeline.certificate("allocate", use.region.name)
    if bound is not None:
        text = f"lower bound {human_bytes(bound.lower_bound_bytes)}"
        levels.append(Level(round(_MAP * (1 - bound.lower_bound_bytes / top), 2), text, "bound"))
    if capacity is not None and capacity <= top:
        text = f"capacity {human_bytes(capacity)}"
        levels.append(Level(round(_MAP * (1 - capacity / top), 2), text, "limit"))
    return tuple(levels)


def _ticks(top: float) -> tuple[Level, ...]:
    step = 1
    while top / step > 6:
        step *= 2
    marks = range(0, int(top) + 1, step)
    return tuple(Level(round(_MAP * (1 - n / top), 2), human_bytes(n), "") for n in marks)


def _curve(use: RegionUse, step_px: float, byte_px: float) -> str:
    """The path of the curve; more than 2,000 positions are drawn as the maxima of 2,000 columns."""
    horizon = len(use.live_bytes)
    levels = use.live_bytes if horizon <= 2000 else use.columns(2000)
    wide = step_px * horizon / max(len(levels), 1)
    floor = _curve_floor()
    points = [f"M{_LEFT} {floor}"]
    for i, level in enumerate(levels):
        points.append(f"V{floor - level * byte_px:.1f}H{_LEFT + (i + 1) * wide:.1f}")
    return "".join([*points, f"V{floor}Z"])


def _step_labels(horizon: int, step_px: float) -> tuple[tuple[float, str], ...]:
    stride = 1
    while stride * step_px < 60:
        stride *= 10 if stride * step_px * 10 <= 60 else 5 if stride * step_px * 5 <= 60 else 2
    positions = range(0, horizon, stride)
    return tuple((round(_LEFT + (p + 0.5) * step_px, 2), str(p)) for p in positions)
