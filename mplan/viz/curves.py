"""The frontier of bytes and work as a drawing: one stair per way in which the image arrives."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from math import log

from mplan.frontier import WORDS, Frontier, Point
from mplan.templates import render
from mplan.units import clean, exact_bytes, human_bytes
from mplan.viz.html import TEMPLATES

_WIDTH, _HEIGHT = 960, 520
_LEFT, _RIGHT, _TOP, _FLOOR = 74, 936, 84, 462
#: Marks of the axis of work, as many as fit between once and the most.
_FACTORS = (1, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)


@dataclass(frozen=True, slots=True)
class Dot:
    """A point in pixels, with its tooltip and, if there is room, its label."""

    x: float
    y: float
    title: str
    label: str


@dataclass(frozen=True, slots=True)
class Stair:
    """The points of one way of arrival: the path below which no plan was found."""

    style: str
    name: str
    least: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


def render_curves(frontier: Frontier) -> str:
    """``frontier`` as one SVG document: bytes of the arena to the right, work (logarithmic) upwards."""
    scale = _Scale(frontier)
    limit = frontier.capacity_bytes
    name = clean(frontier.model)
    view = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "floor": _FLOOR,
        "title": f"{name} on {clean(frontier.target)}" if frontier.target else name,
        "words": f"op by op {exact_bytes(frontier.layered_bytes)} live, {frontier.macs:,} MAC",
        "columns": scale.columns(),
        "rows": scale.rows(),
        "limit": Tick(scale.x(limit), human_bytes(limit)) if limit and limit <= scale.most else None,
        "stairs": tuple(_stair(frontier.of(way), scale) for way in frontier.inputs),
    }
    return render(TEMPLATES, "frontier.svg.j2", view, escape=True)


def render_curves_page(frontier: Frontier) -> str:
    """The drawing above a table of its points, as one HTML file that needs nothing else."""
    from markupsafe import Markup

    style = "\n" + (TEMPLATES / "frontier.css").read_text("utf-8")
    drawing = render_curves(frontier)
    inner = drawing[drawing.index("<style>") + 7 : drawing.index("</style>")]
    rows = [
        (
            WORDS[p.input],
            exact_bytes(p.arena_bytes),
            exact_bytes(p.live_bytes),
            f"{p.macs:,}",
            f"{p.mac_factor:.3f}",
            str(p.streams),
            str(p.strips),
        )
        for p in frontier.points
    ]
    view = {
        "title": f"{clean(frontier.model)} · memory against work",
        "policy": f"default-src 'none'; style-src {_hash(style)} {_hash(inner)}",
        "style": Markup(style),
        "drawing": Markup(drawing),
        "rows": rows,
    }
    return render(TEMPLATES, "frontier.html.j2", view, escape=True)


class _Scale:
    """Bytes from 0 to a little more than the most, factors from 1."""

    def __init__(self, frontier: Frontier):
        self.most = 1.06 * max(p.arena_bytes for p in frontier.points)
        self.factor = max(1.1, 1.06 * max(p.mac_factor for p in frontier.points))

    def x(self, size: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * size / self.most, 2)

    def y(self, factor: float) -> float:
        return round(_FLOOR - (_FLOOR - _TOP) * log(max(factor, 1.0)) / log(self.factor), 2)

    def columns(self) -> tuple[Tick, ...]:
        step = 1024
        while self.most / step > 10:
            step *= 2
        return tuple(Tick(self.x(n), human_bytes(n)) for n in range(0, int(self.most) + 1, step))

    def rows(self) -> tuple[Tick, ...]:
        found: list[Tick] = []
        for factor in (f for f in _FACTORS if f <= self.factor):
            if not found or found[-1].at - self.y(factor) >= 24:
                found.append(Tick(self.y(factor), f"{factor:g} ×"))
        return tuple(found)


def _stair(points: tuple[Point, ...], scale: _Scale) -> Stair:
    first, last = points[0], min(points, key=lambda p: p.arena_bytes)
    path = [f"M{_RIGHT} {scale.y(first.mac_factor)}"]
    for p in points:
        path.append(f"V{scale.y(p.mac_factor)}H{scale.x(p.arena_bytes)}")
    path.append(f"V{_TOP}")
    dots: list[Dot] = []
    labelled: list[tuple[float, float]] = []
    for p in points:
        x, y = scale.x(p.arena_bytes), scale.y(p.mac_factor)
        free = all(abs(x - a) > 64 or abs(y - b) > 16 for a, b in labelled)
        labelled += [(x, y)] if free else []
        strips = f", {p.strips} in strips" if p.strips else ""
        title = (
            f"{exact_bytes(p.arena_bytes)} at {p.mac_factor:.3f} × the MACs: "
            f"{p.streams} streams{strips}"
        )
        dots.append(Dot(x, y, title, human_bytes(p.arena_bytes) if free else ""))
    return Stair(
        first.input,
        f"image {WORDS[first.input]}",
        human_bytes(last.arena_bytes),
        "".join(path),
        tuple(dots),
    )


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
