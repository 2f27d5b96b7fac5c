"""The plan as one HTML file that needs nothing else: no network, no fonts, no libraries.

Style, scripts and data are inlined. A content security policy with the hashes of the inlined style
and script forbids everything else, so no name in a plan can become code and no byte can leave.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplan.ir.plan import PlanFile
from mplan.templates import render
from mplan.timeline import RegionUse, Timeline, verdict
from mplan.units import clean, human_bytes, percent
from mplan.viz.payload import payload
from mplan.viz.text import render_text

#: The templates, styles and scripts of the pictures.
TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("model.js", "panel.js", "stage.js", "app.js")


@dataclass(frozen=True, slots=True)
class Card:
    """A region's summary: texts as shown, lengths in percent of the bar."""

    region: str
    kind: str
    status: str
    verdict: str
    height: str
    limit: str
    note: str
    bar: bool
    fill: float
    bound: float | None
    before_fill: float | None
    change: str
    trend: str


@dataclass(frozen=True, slots=True)
class Page:
    """What the template lays out; all texts are finished, ``origins`` are (name, shown, full)."""

    title: str
    model: str
    target: str
    status: str
    headline: str
    status_hint: str
    origins: tuple[tuple[str, str, str], ...]
    cards: tuple[Card, ...]
    two: bool
    text: str
    policy: str
    style: str
    script: str
    data: str


def render_html(file: PlanFile, other: PlanFile | None = None) -> str:
    """One offline page of ``file``; with ``other``, that is *before* and ``file`` *after*.

    The page shows address × step per region, live bytes beneath, the proofs, and what each buffer is
    for. Both plans are drawn to the same scale.
    """
    from markupsafe import Markup

    timelines = tuple(Timeline.of(f) for f in (other, file) if f is not None)
    style = "\n" + (TEMPLATES / "plan.css").read_text("utf-8")
    code = "\n".join((TEMPLATES / name).read_text("utf-8") for name in _SCRIPTS)
    script = f'\n(() => {{\n"use strict";\n{code}}})();\n'
    page = _page(timelines, Markup(style), Markup(script), Markup(_data(timelines)))
    return render(TEMPLATES, "plan.html.j2", {"page": page}, escape=True)


def _page(timelines: tuple[Timeline, ...], style: str, script: str, data: str) -> Page:
    shown = timelines[-1].file
    status, words = verdict(shown.plan.certificates)
    names = dict.fromkeys(clean(t.file.model or t.file.problem.name) for t in timelines)
    model = " → ".join(names) or "plan"
    return Page(
        title=f"{model} · memory plan",
        model=model,
        target=" → ".join(dict.fromkeys(clean(t.file.target) for t in timelines if t.file.target)),
        status=status,
        headline=words,
        status_hint="the weakest of the plan's certificates",
        origins=_origins(timelines),
        cards=tuple(_card(timelines, name) for name in _region_names(timelines)),
        two=len(timelines) > 1,
        text="\n\n".join(render_text(t.file) for t in timelines),
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}",
        style=style,
        script=script,
        data=data,
    )


def _origins(timelines: tuple[Timeline, ...]) -> tuple[tuple[str, str, str], ...]:
    digests = [t.file.plan.digest for t in timelines]
    problems = [t.file.problem.digest for t in timelines]
    producers = tuple(dict.fromkeys(clean(t.file.producer) for t in timelines if t.file.producer))
    rows = [
        ("plan", " → ".join(d[:12] for d in digests), " → ".join(digests)),
        ("problem", " → ".join(d[:12] for d in dict.fromkeys(problems)), " → ".join(problems)),
    ]
    if producers:
        rows.append(("by", " → ".join(producers), " → ".join(producers)))
    return tuple(rows)


def _region_names(timelines: tuple[Timeline, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(use.region.name for t in timelines for use in t.occupied))


def _card(timelines: tuple[Timeline, ...], name: str) -> Card:
    found = [(t, use) for t in timelines for use in t.regions if use.region.name == name]
    timeline, use = found[-1]
    before = found[0][1] if len(timelines) == 2 and len(found) == 2 else None
    bound = timeline.certificate("allocate", name)
    certificates = [timeline.certificate(d, name) for d in ("schedule", "allocate")]
    status, words = verdict(c for c in certificates if c)
    capacity = use.region.capacity_bytes
    heights = [use.height_bytes, before.height_bytes if before else 0]
    scale = max(1, *heights, capacity or 0) / 100
    change, trend = _change(before, use)
    return Card(
        region=clean(name),
        kind=clean(use.region.kind),
        status=status,
        verdict=words.removeprefix("feasible, "),
        height=human_bytes(use.height_bytes),
        limit=f"of {human_bytes(capacity)}" if capacity is not None else "no limit",
        note=_note(use, before, bound.lower_bound_bytes if bound else None),
        bar=capacity is not None or before is not None,
        fill=round(use.height_bytes / scale, 2),
        bound=round(bound.lower_bound_bytes / scale, 2) if bound else None,
        before_fill=round(before.height_bytes / scale, 2) if before else None,
        change=change,
        trend=trend,
    )


def _note(use: RegionUse, before: RegionUse | None, bound: int | None) -> str:
    first = ("before", before.height_bytes) if before else ("live peak", use.peak_live_bytes)
    parts = [f"{first[0]} {human_bytes(first[1])}"]
    if bound is not None:
        parts.append(f"lower bound {human_bytes(bound)}")
    return " · ".join(parts)


def _change(before: RegionUse | None, after: RegionUse) -> tuple[str, str]:
    if before is None or not before.height_bytes:
        return "", ""
    ratio = after.height_bytes / before.height_bytes - 1
    trend = "better" if ratio < 0 else "worse" if ratio > 0 else "same"
    return percent(ratio, signed=True) if ratio else "same", trend


def _data(timelines: tuple[Timeline, ...]) -> str:
    labels = ["Before", "After"] if len(timelines) == 2 else ["Plan"]
    primary = timelines[-1].primary
    content: dict[str, Any] = {
        "labels": labels,
        "region": clean(primary.region.name) if primary else "",
        "plans": [payload(t) for t in timelines],
    }
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
