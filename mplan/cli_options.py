"""The options that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mplan.options import Options

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Target = Annotated[str, typer.Option("--target", "-t", help="A target's name or a TOML file.")]
Budget = Annotated[str | None, typer.Option(help="Bytes for activations: 65536, 64KiB, 2GiB.")]
Solver = Annotated[str, typer.Option(help="auto, greedy, exact or none (captured order).")]
Limit = Annotated[float, typer.Option(help="Seconds for the solvers.")]
Seed = Annotated[int, typer.Option(help="Seed of the solvers.")]
Dump = Annotated[str, typer.Option(help="Folder that receives the graph after every pass.")]
Quantize = Annotated[str, typer.Option(help="Quantise the model first: int8.")]
Calibrate = Annotated[
    Path | None,
    typer.Option(help="Calibration data (.npz); default: get_calibration() of the model file."),
]
Io = Annotated[
    str,
    typer.Option("--io", help="What the caller of a quantised network passes: float, int8, int8-nhwc."),
]
MacFactor = Annotated[
    float | None, typer.Option(help="Stream, with at most so many times the model's MACs (from 1).")
]
Arrival = Annotated[
    Literal["whole", "rows", "flash"] | None,
    typer.Option("--input", help="Stream; the image lies in the arena, arrives by rows, or in flash."),
]
Scans = Annotated[
    int,
    typer.Option(
        help="With --input rows: how often the rows may come, once for each strip of columns."
    ),
]
Memories = Annotated[
    str, typer.Option(help="What holds activations in place of the arena: dtcm=64KiB,sram.")
]
Html = Annotated[Path | None, typer.Option(help="Also write the picture of the plan to this file.")]


def options_of(
    target: str,
    budget: str | None,
    solver: str,
    limit: float,
    seed: int,
    dump: str,
    minimise: bool = False,
    **more: Any,
) -> Options:
    """What was given on the command line, and by name ``more``. UserError MP423 for a bad value."""
    from mplan.options import Options

    given = {"target": target, "budget": budget, "minimise": minimise, "solver": solver}
    return Options.parse({**given, "limit": limit, "seed": seed, "dump": dump or None, **more})


def int8_of(quantize: str, calibrate: Path | None, io: str) -> dict[str, Any]:
    """The options of quantised networks, those that are given."""
    return {"quantize": quantize or None, "calibrate": str(calibrate or "") or None, "io": io or None}
