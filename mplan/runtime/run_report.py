"""What ``mplan run`` prints: where the instructions went, and what memory was used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mplan.runtime.device import DeviceRun
from mplan.units import clean, exact_bytes, percent

if TYPE_CHECKING:
    from rich.console import Console


def render(run: DeviceRun, console: Console) -> None:
    """Print the steps with their instructions, then the figures of the whole run."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("step", "instructions", "share"):
        table.add_column(name, justify="right")
    for name in ("op", "result", "source"):
        table.add_column(name, overflow="fold")
    for step in run.steps:
        share = percent(step.instructions / run.instructions)
        label = str(step.position) if step.stage < 0 else f"{step.position}.{step.stage}"
        cells = (label, f"{step.instructions:,}", share, step.kind, step.name, step.where)
        table.add_row(*(Text(clean(cell)) for cell in cells))
    if run.steps:
        console.print(table)
    for line in facts(run):
        console.print(Text(clean(line)))


def facts(run: DeviceRun) -> tuple[str, ...]:
    """The figures of the run, one line each."""
    bound = exact_bytes(run.stack_bound_bytes) if run.stack_bound_bytes is not None else "unknown"
    touched = exact_bytes(run.arena_touched_bytes) if run.arena_touched_bytes is not None else "unknown"
    samples = f"{len(run.outputs):,} inference{'s' if len(run.outputs) != 1 else ''}"
    lines = [
        f"{run.instructions:,} instructions, the most of {samples} in {run.emulator}",
        f"arena {exact_bytes(run.arena_bytes)}, written {touched}",
        f"stack {exact_bytes(run.stack_bytes)}, at most {bound}: {' > '.join(run.stack_chain)}",
        f"flash {exact_bytes(run.flash_bytes)}, static RAM {exact_bytes(run.ram_static_bytes)}",
    ]
    if len(used := {n: a for n, a in run.memories.items() if a.written_bytes}) > 1:
        each = (
            f"{exact_bytes(a.written_bytes)} of {n}"
            + (f" (read {exact_bytes(a.read_bytes)})" if a.read_bytes is not None else "")
            for n, a in used.items()
        )
        lines.append(f"written {', '.join(each)}")
    if run.max_abs_err is not None:
        verdict = "match" if run.outputs_match else "differ from"
        lines.append(f"outputs {verdict} PyTorch's, largest error {run.max_abs_err:.3g}")
    return tuple(lines)
