"""The documentation is true: its commands run, its tables are the code's, its links lead somewhere.

In README.md, CONTRIBUTING.md and docs/*.md

* a fenced block with a file name after the language (``python net.py``) becomes that file;
* ``console`` blocks run: each line ``$ command`` must exit with 0 (or N after ``# exit N``), and the
  lines below it are its output, in which ``…`` stands for anything;
* other ``python`` blocks run, ``mpir`` blocks are parsed and verified, ``toml`` blocks are targets;
* ``sh`` blocks are what a reader may run and this test does not (``make demo``).

The blocks of a document share one folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import tables  # noqa: E402

DOCUMENTS = tables.documents()
FENCE = re.compile(r"^```([\w+-]*) *([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
CODE = re.compile(r"\bMP\d{3}\b")
RUN_TIMEOUT_S = 240


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file name after it, its text."""

    language: str
    file: str
    text: str


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [Block(m[1], m[2].strip(), m[3]) for m in FENCE.finditer(text)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- what is shown works ----

RUNNABLE = [d for d in DOCUMENTS if any(b.language in ("console", "python") for b in blocks(d))]


@pytest.mark.parametrize("document", RUNNABLE, ids=name_of)
def test_what_a_document_shows_runs(document: Path, tmp_path: Path):
    for block in blocks(document):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            for command, expected, status in commands(block.text):
                require_output(command, expected, status, tmp_path)
        elif block.language == "python":
            done = execute([sys.executable, "-c", block.text], tmp_path)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}"


def commands(text: str) -> Iterator[tuple[str, list[str], int]]:
    """Each command of a console block with its expected output and exit status."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *output = part.rstrip("\n").split("\n")
        status = re.search(r"# exit (\d+)$", command)
        yield command, output, int(status[1]) if status else 0


def execute(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "COLUMNS": "160", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )


def require_output(command: str, expected: list[str], status: int, folder: Path) -> None:
    done = execute(["bash", "-c", command], folder)
    shown = f"$ {command}\n{done.stdout}"
    assert done.returncode == status, shown
    assert not expected or re.fullmatch(pattern(expected), stripped(done.stdout)), shown


def stripped(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.rstrip().splitlines())


def pattern(expected: list[str]) -> str:
    """A line that is ``…`` stands for any lines, ``…`` inside a line for any text of it."""
    parts = []
    for line in expected:
        inside = ".*".join(re.escape(p) for p in line.rstrip().split("…"))
        parts.append(r"(?:[^\n]*\n)*?[^\n]*" if line.strip() == "…" else inside)
    return r"\n".join(parts)


def test_the_pattern_of_an_output_can_fail():
    assert re.fullmatch(pattern(["a …", "…", "d"]), "a 1\nb\nc\nd")
    assert not re.fullmatch(pattern(["a …", "d"]), "a 1\nb\nd")
    assert not re.fullmatch(pattern(["1 B"]), "12 B")


def test_graphs_in_the_documents_are_valid():
    from mplan.ir.parser import parse
    from mplan.ir.verify import verify

    graphs = [(d, b) for d in DOCUMENTS for b in blocks(d) if b.language == "mpir"]
    assert graphs
    for document, block in graphs:
        graph = parse(block.text, name_of(document))
        verify(graph, deep=True)
        assert parse(str(graph)) == graph


def test_targets_in_the_documents_are_valid(tmp_path: Path):
    from mplan.targets.load import load_target

    files = [b for d in DOCUMENTS for b in blocks(d) if b.language == "toml"]
    assert files
    for number, block in enumerate(files):
        path = tmp_path / f"{number}.toml"
        path.write_text(block.text, encoding="utf-8")
        load_target(path)


# ---- what is generated is fresh ----


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_generated_blocks_are_fresh(document: Path):
    text = document.read_text(encoding="utf-8")
    assert tables.refreshed(text) == text, "run python tools/tables.py"


def test_every_table_stands_in_a_document():
    text = "".join(d.read_text(encoding="utf-8") for d in DOCUMENTS)
    shown = {m[2] for m in tables.BLOCK.finditer(text)}
    assert shown == set(tables.TABLES)


def test_the_measured_table_has_the_columns_of_its_benchmark():
    import memory

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = memory.README_BLOCK.search(text)[0].splitlines()[1:-1]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    assert cells[0] == list(memory.HEAD)
    assert [row[0] for row in cells[2:]] == list(memory.MODELS)
    for planned, measured in ((float(row[3]), float(row[4])) for row in cells[2:]):
        assert planned >= 1
        assert measured == planned


# ---- what is referred to exists ----


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(path: Path) -> Iterator[str]:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    yield from (m[1] or m[2] for m in LINK.finditer(prose))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_resolve(document: Path):
    for link in links(document):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.exists(), f"{name_of(document)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(document)}: {link}"


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert {d for d in DOCUMENTS if d.parent.name == "docs"} <= linked


def test_paths_in_the_documents_exist():
    """Paths in backticks such as `ir/check.py` are files or folders of the project."""
    for document in DOCUMENTS:
        prose = FENCE.sub("", document.read_text(encoding="utf-8"))
        prose = tables.BLOCK.sub("", prose)
        for path in re.findall(r"`((?:[\w.-]+/)+[\w.*-]*)`", prose):
            bases = (ROOT, ROOT / "mplan")
            found = any(next(base.glob(path.rstrip("/")), None) for base in bases)
            assert found, f"{name_of(document)}: {path}"


# ---- error codes ----


def used_codes() -> dict[str, set[str]]:
    """The codes in the source, but for their table: code → files."""
    used: dict[str, set[str]] = {}
    for path in (ROOT / "mplan").rglob("*.py"):
        if "codes" not in path.parts:
            for code in re.findall(r"\"(MP\d{3})\"", path.read_text(encoding="utf-8")):
                used.setdefault(code, set()).add(name_of(path))
    return used


def test_every_code_that_is_raised_is_in_the_table():
    from mplan.codes import CODES

    missing = {code: files for code, files in used_codes().items() if code not in CODES}
    assert not missing


def test_every_code_of_the_table_is_raised():
    from mplan.codes import CODES

    assert set(CODES) <= set(used_codes())


def test_codes_are_in_order():
    from mplan.codes import CODES

    assert list(CODES) == sorted(CODES)


def test_codes_in_the_documents_are_in_the_table():
    from mplan.codes import CODES

    for document in DOCUMENTS:
        found = set(CODE.findall(document.read_text(encoding="utf-8")))
        assert found <= set(CODES), f"{name_of(document)}: {found - set(CODES)}"
