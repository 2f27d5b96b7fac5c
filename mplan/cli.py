"""The command line: the only place that prints or exits.

Data goes to stdout (``--json``: one object with ``schema_version``), text for people to stderr.
Exit codes: 0 ok, 1 our bug, 2 usage, 3 unsupported model, 4 over budget, 5 check, diff or verification
failed, 6 missing tool.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

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
)
from mplan.diagnostics import CheckError, ExitCode, InternalError, MplanError, UserError, render

if TYPE_CHECKING:
    from mplan.frontier import Frontier
    from mplan.ir.plan import PlanFile
    from mplan.options import Options

SCHEMA_VERSION = 1

app = typer.Typer(
    name="mplan",
    help="Plan the memory of a PyTorch model, prove the plan, compile it and show it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def main() -> None:
    """Entry point of the ``mplan`` command: every error becomes text and an exit code."""
    try:
        app()
    except MplanError as error:
        _fail(error)
    except KeyboardInterrupt:
        err.print("interrupted")
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
        _emit({"error": {**document, **place, "notes": notes}})
    err.print(render(error), markup=False, soft_wrap=True)
    raise SystemExit(int(error.exit_code))


def _emit(document: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """A spinner on a terminal, silence elsewhere."""
    if not err.is_terminal:
        yield
        return
    with err.status(text):
        yield


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

    more = {**_int8(quantize, calibrate, io), "max_mac_factor": max_mac_factor, "input": arrival}
    more |= {"scans": scans, "memories": memories or None}
    options = _options(target, budget, solver, limit, seed, dump, minimise, **more)
    if pareto:
        if output or minimise:
            message = "--pareto shows many plans; it writes none and minimises nothing"
            raise UserError("MP423", message, help="leave out -o and --minimise, or --pareto")
        _pareto(model, options, html, svg, as_json)
        return
    with _progress(f"planning {model}"):
        result = compiler.plan(model, options=options)
    smallest = compiler.smallest(result.file) if minimise else None
    if output:
        _write_plan(output, result.file)
    _draw(result.file, html, svg)
    if as_json:
        _emit({**result.report.to_json(), **({"smallest": smallest.to_json()} if smallest else {})})
    else:
        show(result.report, err)
        if smallest:
            err.print(str(smallest), markup=False)


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

    more = {**_int8(quantize, calibrate, io), "max_mac_factor": max_mac_factor, "input": arrival}
    more |= {"scans": scans, "memories": memories or None}
    options = _options(target, budget, solver, limit, seed, dump, **more)
    with _progress(f"compiling {model}"):
        compiled = compile_model(model, out=output, name=name, project=project, options=options)
    _draw(compiled.result.file, html, None)
    image = None
    if build and footprint.is_measurable(output):
        with _progress(f"building {output}"):
            image = footprint.measure(output)
    if as_json:
        files = {"folder": str(output), "files": list(compiled.files)}
        _emit({**compiled.report.to_json(), **files, "image": image and image.to_json()})
    else:
        show(compiled.report, err)
        if image:
            footprint.render(image, err)
        err.print(f"wrote {len(compiled.files)} files to {output}")


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

    with _progress(f"running {folder} in {emulator}"):
        outcome = run_bundle(folder, emulator=emulator, timeout_s=timeout)
    if as_json:
        _emit(outcome.to_json())
    else:
        render_run(outcome, err)
    if not outcome.outputs_match:
        limit = f"{outcome.max_abs_err:.3g}"
        raise CheckError("MP530", f"the emulator's outputs differ from PyTorch's by {limit}")


@app.command()
def check(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.JSON")], as_json: Json = False
) -> None:
    """Replay a plan independently of the solvers and name everything that is wrong with it."""
    from mplan.ir.check import check_file
    from mplan.ir.plan_json import load_plan

    document, file = load_plan(plan_file)
    violations = check_file(document, file)
    rows = [{"code": v.code, "reason": v.reason, "message": v.message} for v in violations]
    if as_json:
        _emit({"ok": not violations, "violations": rows, "digest": file.plan.digest})
    if violations:
        notes = tuple((f"{v.code} {v.reason}: {v.message}", None) for v in violations)
        count = len(violations)
        error = CheckError("MP200", f"{plan_file} breaks {count} condition(s)", notes=notes)
        if not as_json:
            raise error
        raise SystemExit(int(ExitCode.CHECK_FAILED))
    if not as_json:
        err.print(f"ok: {len(file.problem.buffers)} buffers, {len(file.problem.steps)} steps, ", end="")
        err.print(f"{file.plan.status}, gap {file.plan.gap:.2%}")


@app.command()
def explain(
    subject: Annotated[str, typer.Argument(help="A model, a plan.json, or an error code (MP205).")],
    target: Target = "cpu",
    budget: Budget = None,
    solver: Solver = "auto",
    limit: Limit = 10.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say where the peak is, who holds it, and what would lower it (each advice was re-planned)."""
    from mplan.codes import CODES

    if subject.upper() in CODES:
        code = CODES[subject.upper()]
        if as_json:
            _emit({"code": subject.upper(), "title": code.title, "text": code.text})
        else:
            out.print(f"{subject.upper()}: {code.title}\n\n{code.text}", markup=False)
        return
    if re.fullmatch(r"MP\d+", subject.upper()):
        hint = f"codes go from {min(CODES)} to {max(CODES)}; docs/errors.md lists them"
        raise UserError("MP429", f"there is no error code {subject.upper()}", help=hint)
    from mplan.report import explain as explain_plan
    from mplan.report import render_explanation

    explanation = explain_plan(*_explained(subject, _options(target, budget, solver, limit, seed, "")))
    if as_json:
        _emit(explanation.to_json())
    else:
        render_explanation(explanation, err)


def _explained(subject: str, options: Options) -> tuple[PlanFile, tuple[tuple[str, int], ...], str]:
    """A plan, what would lower its peak, and why there is none within the budget, if so."""
    if subject.endswith(".json"):
        from mplan.ir.plan_json import load_plan

        return load_plan(Path(subject))[1], (), ""
    from mplan.advice import advised

    with _progress(f"planning {subject} and its alternatives"):
        found = advised(subject, options)
    return found.result.file, tuple((a.text, a.peak_bytes) for a in found.advice), found.refused


@app.command()
def viz(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.JSON")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: by format.")] = None,
    other: Annotated[Path | None, typer.Option(help="A second plan, to compare with.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="html, svg, text, snapshot (memory_viz), trace (Chrome).")
    ] = "",
) -> None:
    """Draw a plan: one offline HTML file, or SVG, text, PyTorch memory_viz, Chrome trace."""
    from mplan.files import write_atomic
    from mplan.ir.plan_json import load_plan
    from mplan.viz import ENDINGS, draw, format_of

    chosen = form or (format_of(output) if output else "html")
    before = load_plan(other)[1] if other else None
    made = draw(load_plan(plan_file)[1], chosen, before)
    if chosen == "text" and output is None:
        print(made)
        return
    path = output or plan_file.with_suffix(ENDINGS[chosen])
    write_atomic(path, made)
    err.print(f"wrote {path}")


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="A.JSON")],
    after: Annotated[Path, typer.Argument(metavar="B.JSON")],
    as_json: Json = False,
) -> None:
    """Compare two plans; exit code 5 if they differ."""
    from mplan.compare import compare, render_comparison
    from mplan.ir.plan_json import load_plan

    comparison = compare(load_plan(before)[1], load_plan(after)[1])
    if as_json:
        _emit(comparison.to_json())
    else:
        render_comparison(comparison, err)
    if not comparison.equal:
        raise SystemExit(int(ExitCode.CHECK_FAILED))


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
        _emit({"targets": [asdict(t) for t in known]})
        return
    table = Table("target", "family", "core", "memories", box=None)
    for t in known:
        sizes = ", ".join(
            f"{m.name} {human_bytes(m.size_bytes) if m.size_bytes else '∞'}" for m in t.memories
        )
        table.add_row(t.name, t.family, t.isa.core or t.isa.arch, sizes)
    out.print(table)


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

        with _progress("compiling the searches"):
            compile_searches()
    findings = examine()
    if as_json:
        _emit({"findings": [asdict(f) for f in findings]})
        return
    for f in findings:
        mark = "ok     " if f.found else "missing"
        out.print(f"{mark} {f.name:<22} {f.version:<14} {f.purpose}", markup=False)
        if not f.found:
            out.print(f"        {f.remedy}", markup=False)


def _options(
    target: str,
    budget: str | None,
    solver: str,
    limit: float,
    seed: int,
    dump: str,
    minimise: bool = False,
    **more: Any,
) -> Options:
    from mplan.options import Options

    given = {"target": target, "budget": budget, "minimise": minimise, "solver": solver}
    return Options.parse({**given, "limit": limit, "seed": seed, "dump": dump or None, **more})


def _int8(quantize: str, calibrate: Path | None, io: str) -> dict[str, Any]:
    """The options of quantised networks, those that are given."""
    return {"quantize": quantize or None, "calibrate": str(calibrate or "") or None, "io": io or None}


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

    with _progress(f"exploring {model}"):
        frontier = compiler.pareto(model, options=options)
    _draw(frontier, html, svg)
    if as_json:
        _emit(frontier.to_json())
    else:
        show(frontier, err)


if __name__ == "__main__":
    main()
