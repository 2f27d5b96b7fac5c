"""The plan in plain text: live bytes as bars, the tensors at the peak, the proofs."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size

from mplan.ir.plan import PlanFile
from mplan.timeline import RegionUse, Timeline, verdict
from mplan.units import clean, human_bytes, percent, seconds

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_AXIS = 11
_ROWS = 8
_HOLDERS = 12


def render_text(file: PlanFile, width: int = 80) -> str:
    """A picture of ``file`` that is at most ``width`` columns wide (at least 48), without colour."""
    width = max(width, 48)
    timeline = Timeline.of(file)
    lines = list(_title(timeline, width))
    for use in timeline.occupied:
        lines += ["", *_region(timeline, use, width)]
    lines += ["", *_certificates(timeline)]
    return "\n".join(_fit(line, width).rstrip() for line in lines) + "\n"


def _title(timeline: Timeline, width: int) -> Iterator[str]:
    file = timeline.file
    name = clean(file.model or file.problem.name or "plan")
    where = f"{name} on {clean(file.target)}" if file.target else name
    words = verdict(file.plan.certificates)[1]
    yield f"{_fit(where, width - cell_len(words) - 2)}  {words}"
    by = f"  by {clean(file.producer)}" if file.producer else ""
    yield f"plan {file.plan.digest[:12]}  problem {file.problem.digest[:12]}{by}"


def _region(timeline: Timeline, use: RegionUse, width: int) -> Iterator[str]:
    capacity = use.region.capacity_bytes
    limit = f" of {human_bytes(capacity)}" if capacity is not None else ""
    height = f"height {human_bytes(use.height_bytes)}{limit}"
    yield f"{clean(use.region.name)}: {height}, live peak {human_bytes(use.peak_live_bytes)}"
    yield from _bars(use, width - _AXIS - 1)
    yield from _holders(timeline, use, width)


def _bars(use: RegionUse, width: int) -> Iterator[str]:
    """Bars of live bytes over steps; the height of the picture is the height of the arena."""
    top = max(use.height_bytes, use.peak_live_bytes, 1)
    columns = use.columns(width)
    for row in reversed(range(_ROWS)):
        eighths = [min(8, max(0, -(-n * _ROWS * 8 // top) - 8 * row)) for n in columns]
        label = human_bytes(top) if row == _ROWS - 1 else ""
        yield f"{label:>{_AXIS - 1}} ┤" + "".join(_EIGHTHS[n] for n in eighths)
    last = len(use.live_bytes) - 1
    peak = use.peak_position * width // max(len(use.live_bytes), 1)
    yield f"{'0 B':>{_AXIS - 1}} └" + "─" * peak + "┴" + "─" * (width - peak - 1)
    note = f"peak at step {use.peak_position}"
    start = min(max(peak - len(note) // 2, 2), max(width - len(note) - len(str(last)) - 1, 2))
    axis = ("0".ljust(start) + note).ljust(width - len(str(last))) + str(last)
    yield " " * (_AXIS + 1) + axis


def _holders(timeline: Timeline, use: RegionUse, width: int) -> Iterator[str]:
    position, buffers = use.peak_position, timeline.file.problem.buffers
    step = timeline.step(position)
    place = clean(f" ({step.where})" if step and step.where else "")
    yield f"  held at step {position}{f', {clean(step.name)}' if step else ''}{place}:"
    held = timeline.held(use.region.name, position)
    room = width - 22
    name_room = room * 2 // 5
    for placement in held[:_HOLDERS]:
        b = buffers[placement.buffer]
        share = percent(b.size_bytes / max(use.peak_live_bytes, 1))
        name = set_cell_size(_fit(clean(b.name), name_room), name_room)
        why = clean(timeline.why_alive(placement.buffer, position))
        yield f"  {human_bytes(b.size_bytes):>8} {share:>7}  {name}  {why}"
    rest = sum(buffers[p.buffer].size_bytes for p in held[_HOLDERS:])
    if rest:
        yield f"  {human_bytes(rest):>8}          in {len(held) - _HOLDERS} more"


def _certificates(timeline: Timeline) -> Iterator[str]:
    certificates = timeline.file.plan.certificates
    yield "proof" if certificates else "proof: none; the plan carries no certificate"
    for c in certificates:
        bound = f"at least {human_bytes(c.lower_bound_bytes)} ({clean(c.bound_kind)})"
        state = c.status if c.status != "feasible" else f"feasible, gap {percent(c.gap)}"
        yield f"  {clean(c.subject)}: {human_bytes(c.value_bytes)}, {bound}"
        yield f"    {state}; solver {clean(c.solver)}, seed {c.seed}, {seconds(c.seconds)}"


def _fit(text: str, width: int) -> str:
    """``text`` cut to ``width`` columns; an ellipsis marks the cut."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"
