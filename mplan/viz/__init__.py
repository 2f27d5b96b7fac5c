"""Pictures of plans: an offline HTML page, SVG, text, and the formats of two memory viewers.

Every function takes a ``PlanFile`` (or a ``Frontier``) and returns the finished document; nothing is
written or printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mplan.diagnostics import UserError
from mplan.frontier import Frontier
from mplan.ir.plan import PlanFile
from mplan.viz.curves import render_curves, render_curves_page
from mplan.viz.html import render_html
from mplan.viz.svg import render_svg
from mplan.viz.text import render_text
from mplan.viz.trace import chrome_trace, memory_snapshot

__all__ = [
    "chrome_trace",
    "draw",
    "memory_snapshot",
    "render_curves",
    "render_curves_page",
    "render_html",
    "render_svg",
    "render_text",
]

#: The ending of a file in each format.
ENDINGS = {
    "html": ".html",
    "svg": ".svg",
    "text": ".txt",
    "snapshot": ".pickle",
    "trace": ".trace.json",
}


def format_of(path: Path) -> str:
    """The format that the ending of ``path`` stands for."""
    return next((form for form, ending in ENDINGS.items() if ending == path.suffix), "trace")


def draw(subject: PlanFile | Frontier, form: str, before: PlanFile | None = None) -> str | bytes:
    """``subject`` in a format of ``ENDINGS``; UserError MP424 for another one.

    ``before`` is a plan to compare with, in HTML. Of a frontier there are HTML and SVG.
    """
    makers: dict[str, Callable[[], str | bytes]]
    if isinstance(subject, Frontier):
        frontier = subject
        makers = {
            "html": lambda: render_curves_page(frontier),
            "svg": lambda: render_curves(frontier),
        }
    else:
        file = subject
        makers = {
            "html": lambda: render_html(file, before),
            "svg": lambda: render_svg(file),
            "text": lambda: render_text(file),
            "snapshot": lambda: memory_snapshot(file),
            "trace": lambda: json.dumps(chrome_trace(file)),
        }
    if form not in makers:
        raise UserError("MP424", f"unknown format {form!r}", help=f"formats: {', '.join(makers)}")
    return makers[form]()
