"""The tables of the documentation that derive from the code.

    python tools/tables.py            # rewrite the marked blocks of README.md and docs/*.md
    python tools/tables.py --check    # exit status 1 if one of them is stale

A block stands between ``<!-- begin NAME -->`` and ``<!-- end -->``; NAME is a key of ``TABLES``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Every Markdown file that a reader meets."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def refreshed(text: str) -> str:
    """``text`` with the content of every block as the code has it now."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]().strip()}\n{m[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the documents, or with ``--check`` name those that are stale."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(argv).check
    stale = 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        fresh = refreshed(text)
        if text == fresh:
            continue
        stale += 1
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(fresh, encoding="utf-8")
    return int(check and stale > 0)


# ---- Markdown ----


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(c) for c in line) + " |" for line in lines)


def cell(content: object) -> str:
    """``content`` on one line, safe inside a table."""
    return " ".join(str(content).split()).replace("|", "\\|")


def code(content: object) -> str:
    """``content`` in backticks; empty stays empty."""
    return f"`{content}`" if str(content) else ""


def codes(items: Iterable[object]) -> str:
    """``items`` in backticks, separated by commas."""
    return ", ".join(code(i) for i in items)


def markup(docstring: str) -> str:
    """A docstring's paragraphs as Markdown: ``x`` becomes `x`."""
    return re.sub(r"``([^`]*)``", r"`\1`", docstring)


def first_line(obj: Any) -> str:
    """The first paragraph of a docstring."""
    return markup((obj.__doc__ or "").strip().partition("\n\n")[0])


def field_rows(cls: Any, prefix: str = "") -> list[list[str]]:
    """Key, type and default of each field of a dataclass."""
    hints = get_type_hints(cls)
    return [
        [
            code(prefix + f.name),
            code(type_text(hints[f.name])),
            "" if f.default is MISSING else code(repr(f.default)),
        ]
        for f in fields(cls)
    ]


def type_text(hint: Any) -> str:
    """A type as a reader writes it; a Literal as its values."""
    if get_origin(hint) is Literal:
        return " | ".join(repr(v) for v in get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint)


# ---- errors and exit codes ----


def error_codes() -> str:
    """A section for each code."""
    from mplan.codes import CODES

    return "\n\n".join(f"### {name}: {c.title}\n\n{c.text}" for name, c in CODES.items())


def exit_codes() -> str:
    """Exit status, its name, and the errors that end with it."""
    from mplan.diagnostics import ExitCode, MplanError

    classes: dict[int, list[str]] = defaultdict(list)
    for cls in MplanError.__subclasses__():
        classes[cls.exit_code].append(f"`{cls.__name__}`: {first_line(cls)}")
    rows = [[int(c), code(c.name), "<br>".join(classes[c])] for c in ExitCode]
    return table(("status", "name", "raised as"), rows)


def check_reasons() -> str:
    """The conditions that the checker knows."""
    from mplan.codes import CODES
    from mplan.ir.check import REASONS

    rows = [[code(name), c, CODES[c].title] for name, c in REASONS.items()]
    return table(("reason", "code", "meaning"), rows)


# ---- the IR ----


def grammar() -> str:
    """The grammar of the text form, as the parser states it."""
    from mplan.ir import parser

    doc = parser.__doc__ or ""
    lines = doc[doc.index("    graph ") :].rstrip().splitlines()
    return "\n".join(["```text", *(line.removeprefix("    ") for line in lines), "```"])


def element_types() -> str:
    """Element types with their names in torch and in C."""
    from mplan.codegen.c.text import CTYPES
    from mplan.ir.types import DType

    rows = [[code(t.value), code(t.torch_name), t.itemsize, code(CTYPES.get(t, ""))] for t in DType]
    return table(("type", "torch", "bytes", "in C"), rows)


def own_ops() -> str:
    """mplan's own ops; all others are torch's."""
    from mplan.ir.ops import lookup, own_kinds

    rows = []
    for kind in own_kinds():
        row = lookup(kind)
        params = ", ".join(
            f"{p.type} {p.name}" + ("" if p.required else f"={p.default}") for p in row.params
        )
        rows.append([code(kind), code(params), code(", ".join(row.returns))])
    return table(("kind", "parameters", "results"), rows)


# ---- passes, solvers, options ----


def passes() -> str:
    """The registered passes with their options."""
    from mplan.passes.registry import PASSES

    rows = []
    for name, entry in PASSES.items():
        module, _, attribute = entry.partition(":")
        cls = getattr(import_module(module), attribute)
        options = codes(f"{f.name}={f.default}" for f in fields(cls))
        rows.append([code(name), options, first_line(cls)])
    return table(("pass", "options", "what it does"), rows)


def pipelines() -> str:
    """The pipeline of each family of targets."""
    from mplan.pipeline import PIPELINES

    return table(("family", "pipeline"), [[f, code(p)] for f, p in PIPELINES.items()])


def solvers() -> str:
    """The registry of solvers."""
    from mplan.passes.solvers.interface import SOLVERS

    rows = [
        [s.decision, code(s.name), s.summary, codes(s.parts), "yes" if s.proves else "no"]
        for s in SOLVERS
    ]
    return table(("decision", "solver", "how", "runs in turn", "can prove the optimum"), rows)


def options() -> str:
    """The options of a plan."""
    from mplan.options import Options

    return table(("option", "type", "default"), field_rows(Options))


# ---- figures ----


def planner_results() -> str:
    """A line per set of the planner's benchmark, from the figures that it keeps."""
    return _planner_table()


def planner_proofs() -> str:
    """The same in short."""
    return _planner_table(
        *("set", "instances", "orders proven", "arenas proven", "mean gap"),
        *("Inductor", "CP-SAT", "TFLM", "rows lost"),
    )


def _planner_table(*columns: str) -> str:
    folder = ROOT / "benchmarks"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    from planner_tables import SUMMARY, summary_table

    rows = json.loads((folder / "results" / "planner.json").read_text(encoding="utf-8"))["rows"]
    return summary_table([row for row in rows if "ours" in row], columns or SUMMARY)


# ---- targets ----


def targets() -> str:
    """The targets that are built in."""
    from mplan.targets.load import list_targets, load_target
    from mplan.units import human_bytes

    rows = []
    for name in list_targets():
        t = load_target(name)
        memories = ", ".join(
            f"{code(m.name)} {human_bytes(m.size_bytes) if m.size_bytes else 'unlimited'}"
            for m in t.memories
        )
        rows.append([code(name), t.family, t.description, memories, code(t.arena), code(t.weights)])
    head = ("target", "family", "what it is", "memories", "arena", "weights")
    return table(head, rows)


def target_keys() -> str:
    """Every key that a target's file can have."""
    from mplan.targets.model import Costs, Isa, Memory, Target, Toolchain

    top = [r for r in field_rows(Target) if r[0] not in codes(TARGET_PARTS).split(", ")]
    parts = [("memory.NAME.", Memory), ("isa.", Isa), ("toolchain.", Toolchain), ("costs.", Costs)]
    rows = [*top, ["`inherits`", "`str`", ""]]
    for prefix, cls in parts:
        rows += [r for r in field_rows(cls, prefix) if r[0] != "`memory.NAME.name`"]
    return table(("key", "type", "default"), rows)


#: Fields of ``Target`` that are tables of their own in a file, or no keys at all.
TARGET_PARTS = ("name", "memories", "isa", "toolchain", "costs")


# ---- the command line ----


def commands() -> str:
    """A section for each command: what it does, how it is called, its options."""
    import typer

    from mplan.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    own = [p for p in command.params if p.name != "help"]
    arguments = [p for p in own if not p.opts[0].startswith("-")]
    usage = " ".join([f"mplan {name}", *(_metavar(p) for p in arguments)])
    rows = [[code(_metavar(p)), p.help or "", ""] for p in arguments]
    for p in own:
        if p not in arguments:
            rows.append([codes(sorted(p.opts, key=len)), p.help or "", _default(p)])
    about = markup((command.help or "").strip())
    listing = table(("argument", "meaning", "default"), rows) if rows else ""
    return f"### mplan {name}\n\n{about}\n\n```text\n{usage} [options]\n```\n\n{listing}".rstrip()


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _default(param: Any) -> str:
    if param.required:
        return "required"
    hidden = param.default is None or param.default is False
    return "" if hidden else code(param.default)


# ---- generated code ----


def c_coverage() -> str:
    """The kinds that the C backend has kernels for, grouped by operator."""
    from mplan.codegen.c.emit import TABLE

    groups: dict[str, list[str]] = defaultdict(list)
    for kind in sorted(TABLE):
        namespace, _, rest = kind.partition(".")
        name, _, overload = rest.partition(".")
        groups[f"{namespace}.{name}"].append(overload)
    rows = [[code(name), codes(o for o in found if o)] for name, found in groups.items()]
    return f"{len(TABLE)} kinds.\n\n" + table(("operator", "overloads"), rows)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        error_codes,
        exit_codes,
        check_reasons,
        grammar,
        element_types,
        own_ops,
        passes,
        pipelines,
        solvers,
        options,
        planner_results,
        planner_proofs,
        targets,
        target_keys,
        commands,
        c_coverage,
    )
}

if __name__ == "__main__":
    sys.exit(main())
