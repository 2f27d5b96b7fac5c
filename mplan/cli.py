"""The command line. It and the files beside it (``cli_…``) are the only place that prints or exits.

Data goes to stdout (``--json``: one object with ``schema_version``), text for people to stderr.
Exit codes: 0 ok, 1 our bug, 2 usage, 3 unsupported model, 4 over budget, 5 check, diff or verification
failed, 6 missing tool.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mplan import cli_console as console
from mplan.cli_options import (
    Arrival,
    Budget,
    Calibrate,
    Dump,
    Html,
    Io,
    Json,
    Limit,
    MacFactor,
    Memories,
    Quantize,
    Scans,
    Seed,
    Solver,
    Target,
    int8_of,
    options_of,
)
from mplan.cli_plans import check, diff, explain, viz
from mplan.diagnostics import CheckError, InternalError, MplanError, UserError, render

if TYPE_CHECKING:
    from mplan.frontier import Frontier
    from mplan.ir.plan import PlanFile
    from mplan.options import Options

app = typer.Typer(
    name="mplan",
    help="Plan the memory of a PyTorch model, prove the plan, compile it and show it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the ``mplan`` command: every error becomes text and an exit code."""
    try:
        app()
    except MplanError as error:
        _fail(error)
    except KeyboardInterrupt:
        console.err.print("interrupted")
        raise SystemExit(130) from None
    except Exception as error:
        _fail(_bug(error))


def _bug(error: Exception) -> MplanError:
    """An unexpected exception as an internal error with the innermost place in mplan."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "mplan" in Path(f.filename).parts] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    hint = "this is a bug in mplan; please report it with the model and the command"
    return InternalError("MP999", f"{type(error).__name__} at {place}: {error}", help=hint)


def _fail(error: MplanError) -> None:
    if "--json" in sys.argv:
        document = {"code": error.code, "message": error.message, "help": error.help}
        place = {"where": str(error.where) if error.where else None}
        notes = [{"message": m, "where": str(w) if w else None} for m, w in error.notes]
        console.emit({"error": {**document, **place, "notes": notes}})
    console.err.print(render(error), markup=False, soft_wrap=True)
    raise SystemExit(int(error.exit_code))


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="model.py[:fn], .pt2, .tflite, .mpir, .csv or DAG .json")
    ],
    target: Target = "cpu",
    budget: Annotated[
        str | None, typer.Option("--budget", "--capacity", help="Bytes for the arena: 65536, 64KiB.")
    ] = None,
    memories: Memories = "",
    minimise: Annotated[
        bool, typer.Option("--minimise", help="Find the smallest capacity, with a proof or a gap.")
    ] = False,
    solver: Solver = "auto",
    limit: Limit = 10.0,
    seed: Seed = 0,
    quantize: Quantize = "",
    calibrate: Calibrate = None,
    io: Io = "",
    max_mac_factor: MacFactor = None,
    arrival: Arrival = None,
    scans: Scans = 1,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Show what streams need in bytes for more and more work.")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan (.json, .csv).")] = None,
    html: Html = None,
    svg: Annotated[Path | None, typer.Option(help="Also write a picture as SVG to this file.")] = None,
    dump: Dump = "",
    as_json: Json = False,
) -> None:
    """Plan the memory of a model, a graph, a DAG or a MiniMalloc CSV."""
    from mplan import compiler
    from mplan.report import render as show

    more = {**int8_of(quantize, calibrate, io), "max_mac_factor": max_mac_factor, "input": arrival}
    more |= {"scans": scans, "memories": memories or None}
    options = options_of(target, budget, solver, limit, seed, dump, minimise, **more)
    if pareto:
        if output or minimise:
            message = "--pareto shows many plans; it writes none and minimises nothing"
            raise UserError("MP423", message, help="leave out -o and --minimise, or --pareto")
        _pareto(model, options, html, svg, as_json)
        return
    with console.progress(f"planning {model}"):
        result = compiler.plan(model, options=options)
    smallest = compiler.smallest(result.file) if minimise else None
    if output:
        _write_plan(output, result.file)
    _draw(result.file, html, svg)
    if as_json:
        console.emit(
            {**result.report.to_json(), **({"smallest": smallest.to_json()} if smallest else {})}
        )
    else:
        show(result.report, console.err)
        if smallest:
            console.err.print(str(smallest), markup=False)


@app.command("compile")
def compile_(
    model: Annotated[str, typer.Argument(help="model.py[:fn], .pt2 or .tflite")],
    target: Target = "stm32f746",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the C project.")] = Path(
        "build"
    ),
    name: Annotated[str, typer.Option(help="Prefix of files and symbols; default: the model's.")] = "",
    project: Annotated[
        str, typer.Option(help="Build system: cmake, zephyr, arduino, platformio.")
    ] = "",
    budget: Budget = None,
    memories: Memories = "",
    solver: Solver = "auto",
    limit: Limit = 10.0,
    seed: Seed = 0,
    quantize: Quantize = "",
    calibrate: Calibrate = None,
    io: Io = "",
    max_mac_factor: MacFactor = None,
    arrival: Arrival = None,
    scans: Scans = 1,
    html: Html = None,
    dump: Dump = "",
    build: Annotated[
        bool, typer.Option(help="Build the image for the part, and say what RAM and flash it takes.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Compile a model to C for a microcontroller."""
    from mplan.compiler import compile_model
    from mplan.report import render as show
    from mplan.runtime import footprint

    more = {**int8_of(quantize, calibrate, io), "max_mac_factor": max_mac_factor, "input": arrival}
    more |= {"scans": scans, "memories": memories or None}
    options = options_of(target, budget, solver, limit, seed, dump, **more)
    with console.progress(f"compiling {model}"):
        compiled = compile_model(model, out=output, name=name, project=project, options=options)
    _draw(compiled.result.file, html, None)
    image = None
    if build and footprint.is_measurable(output):
        with console.progress(f"building {output}"):
            image = footprint.measure(output)
    if as_json:
        files = {"folder": str(output), "files": list(compiled.files)}
        console.emit({**compiled.report.to_json(), **files, "image": image and image.to_json()})
    else:
        show(compiled.report, console.err)
        if image:
            footprint.render(image, console.err)
        console.err.print(f"wrote {len(compiled.files)} files to {output}")


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="A folder that `mplan compile` wrote.")],
    emulator: Annotated[Literal["unicorn", "qemu"], typer.Option(help="Who runs it.")] = "unicorn",
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds before the emulator is stopped.")
    ] = 300.0,
    as_json: Json = False,
) -> None:
    """Build compiled C for its part and run it in an emulator, beside PyTorch's outputs."""
    from mplan.runtime.device import run_bundle
    from mplan.runtime.run_report import render as render_run

    with console.progress(f"running {folder} in {emulator}"):
        outcome = run_bundle(folder, emulator=emulator, timeout_s=timeout)
    if as_json:
        console.emit(outcome.to_json())
    else:
        render_run(outcome, console.err)
    if not outcome.outputs_match:
        limit = f"{outcome.max_abs_err:.3g}"
        raise CheckError("MP530", f"the emulator's outputs differ from PyTorch's by {limit}")


for command in (check, explain, viz, diff):
    app.command()(command)


@app.command()
def opt(
    graph: Annotated[Path, typer.Argument(metavar="IN.MPIR")],
    passes: Annotated[str, typer.Option("-p", "--passes", help='"canonicalize,inplace"')],
    target: Target = "cpu",
    limit: Limit = 10.0,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: stdout.")] = None,
) -> None:
    """Run passes over a graph in text form and print the result."""
    from mplan.files import read_text, write_atomic
    from mplan.ir.parser import parse
    from mplan.passes.base import Context
    from mplan.passes.registry import parse_pipeline
    from mplan.pipeline import layout_of, run_passes
    from mplan.targets.load import load_target

    ctx = Context(layout_of(load_target(target)), limit_s=limit, seed=seed)
    result = run_passes(parse(read_text(graph), str(graph)), parse_pipeline(passes), ctx)
    if output:
        write_atomic(output, f"{result}\n")
    else:
        print(result)


@app.command()
def targets(as_json: Json = False) -> None:
    """List the targets with their memories."""
    from rich.table import Table

    from mplan.targets.load import list_targets, load_target
    from mplan.units import human_bytes

    known = [load_target(name) for name in list_targets()]
    if as_json:
        console.emit({"targets": [asdict(t) for t in known]})
        return
    table = Table("target", "family", "core", "memories", box=None)
    for t in known:
        sizes = ", ".join(
            f"{m.name} {human_bytes(m.size_bytes) if m.size_bytes else '∞'}" for m in t.memories
        )
        table.add_row(t.name, t.family, t.isa.core or t.isa.arch, sizes)
    console.out.print(table)


@app.command()
def doctor(
    as_json: Json = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Compile the planner's searches now, not when first used.")
    ] = False,
) -> None:
    """Say which tools and packages are here, and what each is for."""
    from mplan.doctor import examine

    if prepare:
        from mplan.passes.prepare import prepare as compile_searches

        with console.progress("compiling the searches"):
            compile_searches()
    findings = examine()
    if as_json:
        console.emit({"findings": [asdict(f) for f in findings]})
        return
    for f in findings:
        mark = "ok     " if f.found else "missing"
        console.out.print(f"{mark} {f.name:<22} {f.version:<14} {f.purpose}", markup=False)
        if not f.found:
            console.out.print(f"        {f.remedy}", markup=False)


def _write_plan(path: Path, file: PlanFile) -> None:
    if path.suffix == ".csv":
        from mplan.files import write_atomic
        from mplan.ir.csv_format import print_csv

        write_atomic(path, print_csv(file.problem, file.plan))
        return
    from mplan.ir.plan_json import save_plan

    save_plan(path, file)


def _draw(subject: PlanFile | Frontier, html: Path | None, svg: Path | None) -> None:
    """Write the pictures that were asked for."""
    from mplan.files import write_atomic
    from mplan.viz import draw

    for path, form in ((html, "html"), (svg, "svg")):
        if path:
            write_atomic(path, draw(subject, form))


def _pareto(model: str, options: Options, html: Path | None, svg: Path | None, as_json: bool) -> None:
    """Print and draw the frontier of bytes and work."""
    from mplan import compiler
    from mplan.frontier import render as show

    with console.progress(f"exploring {model}"):
        frontier = compiler.pareto(model, options=options)
    _draw(frontier, html, svg)
    if as_json:
        console.emit(frontier.to_json())
    else:
        show(frontier, console.err)


if __name__ == "__main__":
    main()
