"""Commands on plans: check, explain, viz and diff."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mplan import cli_console as console
from mplan.cli_options import Budget, Json, Limit, Seed, Solver, Target, options_of
from mplan.diagnostics import CheckError, ExitCode, UserError

if TYPE_CHECKING:
    from mplan.ir.plan import PlanFile
    from mplan.options import Options


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
        console.emit({"ok": not violations, "violations": rows, "digest": file.plan.digest})
    if violations:
        notes = tuple((f"{v.code} {v.reason}: {v.message}", None) for v in violations)
        count = len(violations)
        error = CheckError("MP200", f"{plan_file} breaks {count} condition(s)", notes=notes)
        if not as_json:
            raise error
        raise SystemExit(int(ExitCode.CHECK_FAILED))
    if not as_json:
        console.err.print(
            f"ok: {len(file.problem.buffers)} buffers, {len(file.problem.steps)} steps, ", end=""
        )
        console.err.print(f"{file.plan.status}, gap {file.plan.gap:.2%}")


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
            console.emit({"code": subject.upper(), "title": code.title, "text": code.text})
        else:
            console.out.print(f"{subject.upper()}: {code.title}\n\n{code.text}", markup=False)
        return
    if re.fullmatch(r"MP\d+", subject.upper()):
        hint = f"codes go from {min(CODES)} to {max(CODES)}; docs/errors.md lists them"
        raise UserError("MP429", f"there is no error code {subject.upper()}", help=hint)
    from mplan.report import explain as explain_plan
    from mplan.report import render_explanation

    explanation = explain_plan(
        *_explained(subject, options_of(target, budget, solver, limit, seed, ""))
    )
    if as_json:
        console.emit(explanation.to_json())
    else:
        render_explanation(explanation, console.err)


def _explained(subject: str, options: Options) -> tuple[PlanFile, tuple[tuple[str, int], ...], str]:
    """A plan, what would lower its peak, and why there is none within the budget, if so."""
    if subject.endswith(".json"):
        from mplan.ir.plan_json import load_plan

        return load_plan(Path(subject))[1], (), ""
    from mplan.advice import advised

    with console.progress(f"planning {subject} and its alternatives"):
        found = advised(subject, options)
    return found.result.file, tuple((a.text, a.peak_bytes) for a in found.advice), found.refused


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
    console.err.print(f"wrote {path}")


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
        console.emit(comparison.to_json())
    else:
        render_comparison(comparison, console.err)
    if not comparison.equal:
        raise SystemExit(int(ExitCode.CHECK_FAILED))
