"""The shape of the package: who may import whom, what starts fast, how long files get."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mplan"
#: Packages that a light command must not load (typer itself may load pydantic).
HEAVY = ("torch", "triton", "ortools", "unicorn", "numpy", "numba", "jinja2")
MAX_LINES = 500

#: The rooms of the package from the ground up: a room imports only rooms of earlier lines.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"diagnostics", "codes", "units", "version"}),
    frozenset({"files", "templates"}),
    frozenset({"ir"}),
    frozenset({"targets"}),
    frozenset({"passes"}),
    frozenset({"codegen"}),
    frozenset({"runtime"}),
    frozenset({"options"}),
    frozenset({"pipeline"}),
    frozenset({"capture", "timeline", "frontier"}),
    frozenset({"report", "compare", "viz"}),
    frozenset({"compiler"}),
    frozenset({"advice", "doctor", "cli_console", "cli_options"}),
    frozenset({"cli_plans"}),
    frozenset({"backend", "cli"}),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package but its public door, with its dotted name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if dotted != "mplan":
            yield dotted, path


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """All imports of a file, those inside functions included: line and module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            parent = node.module or ""
            names = (f"mplan.{a.name}" for a in node.names) if parent == "mplan" else (parent,)
            yield from ((node.lineno, name) for name in names)


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Imports of mplan's own modules; the version number is free for all."""
    for line, name in imported(path):
        if name.split(".")[0] == "mplan" and name != "mplan.__version__":
            yield line, name


def room_of(dotted: str) -> str:
    return dotted.split(".")[1]


def test_every_room_has_its_layer():
    rooms = {room_of(dotted) for dotted, _ in modules()}
    assert rooms == set(RANK)


def test_imports_point_downwards():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for dotted, path in modules()
        for line, name in own_imports(path)
        if room_of(name) != room_of(dotted) and RANK[room_of(name)] >= RANK[room_of(dotted)]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_checker_shares_no_code_with_what_it_checks():
    names = {name for _, name in own_imports(PACKAGE / "ir" / "check.py")}
    assert names == {"mplan.ir.plan", "mplan.ir.closure", "mplan.ir.replay"}
    for part in ("closure", "replay"):
        assert {name for _, name in own_imports(PACKAGE / "ir" / f"{part}.py")} == {"mplan.ir.plan"}
        users = {
            path.name
            for path in PACKAGE.rglob("*.py")
            if f"mplan.ir.{part}" in {name for _, name in own_imports(path)}
        }
        assert users == {"check.py"}


def test_the_problem_and_the_plan_stand_alone():
    assert {name for _, name in own_imports(PACKAGE / "ir" / "plan.py")} == {
        "mplan.ir.problem_columns",
        "mplan.ir.table",
    }
    assert {name for _, name in own_imports(PACKAGE / "ir" / "table.py")} == {
        "mplan.ir.problem_columns",
        "mplan.ir.plan",
    }


def test_only_the_command_line_prints_or_exits():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for dotted, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if not dotted.startswith("mplan.cli")
        and called_name(node) in ("print", "exit", "quit", "SystemExit")
    ]
    assert not wrong, "\n".join(wrong)


def called_name(node: ast.AST) -> str:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return node.func.id if is_call else ""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


COMMANDS = {
    "import": "import mplan, sys",
    "help": "import sys; sys.argv = ['mplan', '--help']",
    "targets": "import sys; sys.argv = ['mplan', 'targets']",
    "explain": "import sys; sys.argv = ['mplan', 'explain', 'MP205']",
}
MAIN = (
    "\nfrom mplan.cli import main\ntry:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
)


def program(name: str) -> str:
    return COMMANDS[name] + ("" if name == "import" else MAIN)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_light_command_loads_nothing_heavy(name):
    done = run(f"{program(name)}\nprint('loaded', *sorted(set(sys.modules) & {set(HEAVY)}))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


#: A program of typer, rich and pydantic that does nothing: what none of ours can do without.
EMPTY = """
import typer, pydantic
from rich.console import Console

class Model(pydantic.BaseModel):
    number: int

app = typer.Typer()

@app.command()
def command(number: int = 1): Console().print(Model(number=number).number)

app([])
"""


def start_seconds(text: str) -> float:
    """Processor time of a fresh process, the least of five runs; the machine may be busy."""
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(text)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        best = min(best, used)
    return best


@pytest.mark.parametrize("name", COMMANDS)
def test_a_light_command_starts_at_once(name):
    assert start_seconds(program(name)) < 2 * start_seconds(EMPTY)


def sources() -> Iterator[Path]:
    for folder in ("mplan", "tests", "benchmarks", "examples", "tools"):
        for suffix in ("py", "c", "h", "j2", "js", "css", "sh", "toml"):
            found = (ROOT / folder).rglob(f"*.{suffix}")
            yield from (p for p in found if not {"golden", "data"} & set(p.parts))


def test_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in sources() if (n := line_count(p)) > MAX_LINES}
    assert not long


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
