"""Pictures of plans: an offline HTML page, SVG, text, and the formats of two memory viewers.

Every function takes a ``PlanFile`` and returns the finished document; nothing is written or printed.
"""

from __future__ import annotations

from mplan.viz.html import render_html
from mplan.viz.svg import render_svg
from mplan.viz.text import render_text
from mplan.viz.trace import chrome_trace, memory_snapshot

__all__ = ["chrome_trace", "memory_snapshot", "render_html", "render_svg", "render_text"]
