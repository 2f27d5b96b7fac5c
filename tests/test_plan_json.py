"""plan.json: what is written reads back, and nothing else is read; files are written whole or not."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.diagnostics import MplanError, UserError
from mplan.files import read_text, write_atomic
from mplan.ir.plan import PlanFile, Problem
from mplan.ir.plan_json import load_plan, parse_plan, print_plan, save_plan
from mplan.passes.planner import solve
from tests.corruptions import plan_files
from tests.problems import graphs

FILES = list(plan_files())
FILE = FILES[-1]
DOCUMENT = FILE.to_json()


@pytest.mark.parametrize("file", FILES, ids=[f.problem.name for f in FILES])
def test_what_is_written_reads_back(file: PlanFile, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(path, file)
    document, again = load_plan(path)
    assert again == file and document == file.to_json()
    assert print_plan(again) == path.read_text()


@given(graphs(), st.text(max_size=5), st.text(max_size=5))
@settings(max_examples=50, deadline=None)
def test_any_names_read_back(problem: Problem, producer: str, model: str) -> None:
    file = PlanFile(problem, solve(problem, solver="none"), producer, model)
    assert parse_plan(print_plan(file))[1] == file


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place of a document with what stands there, objects and arrays included."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    if isinstance(value, list):
        for i, item in enumerate(value[:2]):
            yield from leaves(item, (*path, i))


def changed(path: tuple[Any, ...], value: Any) -> str:
    document = copy.deepcopy(DOCUMENT)
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return json.dumps(document)


def shown(path: tuple[Any, ...]) -> str:
    return "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


@pytest.mark.parametrize("wrong", [{"a": 1}, [[[]]], True, 1.5, 2**70, None, "text"], ids=repr)
def test_a_wrong_type_anywhere_is_an_error_that_names_the_place(wrong: Any) -> None:
    tried = 0
    for path, value in leaves(DOCUMENT):
        if path == ("schema_version",) or _fits(path, value, wrong):
            continue
        with pytest.raises(UserError) as caught:
            parse_plan(changed(path, wrong), "f.json")
        assert caught.value.code == "MP232" and str(caught.value.where) == "f.json"
        assert shown(path) in caught.value.message
        tried += 1
    assert tried > 40


def _fits(path: tuple[Any, ...], value: Any, wrong: Any) -> bool:
    """Whether ``wrong`` has the type that belongs at ``path``."""
    key = path[-1]
    if wrong is None:
        return key in ("capacity_bytes", "total_bytes", "lifetime", "offset", "hint")
    if wrong == "text":
        named = key == "status" or (key == "kind" and "buffers" in path)
        return isinstance(value, str) and not named
    if wrong == 1.5:
        return isinstance(value, float)
    return wrong is True and isinstance(value, bool)


def test_unknown_missing_and_double_keys() -> None:
    for path, value in leaves(DOCUMENT):
        if isinstance(value, dict):
            with pytest.raises(UserError, match=r"new: unknown key; known: .*"):
                parse_plan(changed(path, {**value, "new": 1}))
            first = next(iter(value))
            rest = {k: v for k, v in value.items() if k != first}
            with pytest.raises(UserError, match=rf"\.{first}: missing"):
                parse_plan(changed(path, rest))
    with pytest.raises(UserError, match=r"\$\.extra: unknown key"):
        parse_plan(json.dumps({**DOCUMENT, "extra": 1}))
    with pytest.raises(UserError, match=r"\$\.content_digest"):
        parse_plan(json.dumps({k: v for k, v in DOCUMENT.items() if k != "content_digest"}))
    text = json.dumps(DOCUMENT).replace('"producer":', '"model": "x", "producer":', 1)
    with pytest.raises(UserError, match="'model' stands twice"):
        parse_plan(text)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0, []])
def test_only_this_version_of_the_format_is_read(version: Any) -> None:
    with pytest.raises(UserError) as caught:
        parse_plan(changed(("schema_version",), version))
    assert caught.value.code == "MP233"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "null",
        '"plan"',
        "{}x",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema_version": NaN}',
        '{"schema_version": Infinity}',
        '{"schema_version": ' + "9" * 5000 + "}",
    ],
    ids=range(11),
)
def test_no_json_object_is_a_coded_error(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_plan(text)
    assert caught.value.code == "MP232"


def test_numbers_must_be_finite() -> None:
    text = changed(("plan", "certificates", 0, "seconds"), 0).replace(
        '"seconds": 0', '"seconds": 1e999', 1
    )
    with pytest.raises(UserError, match=r"seconds: the number is not finite"):
        parse_plan(text)


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_coded_error(text: str) -> None:
    with pytest.raises(MplanError) as caught:
        parse_plan(text)
    assert caught.value.code in ("MP232", "MP233")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([path for path, _ in leaves(DOCUMENT)]), JSON)
@settings(max_examples=200, deadline=None)
def test_any_value_anywhere_is_read_or_a_coded_error(path: tuple[Any, ...], value: Any) -> None:
    try:
        assert isinstance(parse_plan(changed(path, value))[1], PlanFile)
    except MplanError as error:
        assert error.code in ("MP232", "MP233")


# ---- files ----


def test_a_missing_or_binary_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary", ".", "null\0byte"):
        with pytest.raises(UserError) as caught:
            read_text(tmp_path / name if name != "." else tmp_path)
        assert caught.value.code == "MP490"


@pytest.mark.parametrize("content", ["text é\n", b"\x00\xff", ""])
def test_a_write_replaces_the_file(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "out.bin"
    path.write_text("old")
    path.chmod(0o640)
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_a_new_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "plan.json"
    path.write_text("old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, "fdopen", lambda fd, mode: _Full(fd))
    with pytest.raises(UserError) as caught:
        save_plan(path, FILE)
    assert caught.value.code == "MP491" and "No space left" in caught.value.message
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


class _Full:
    """A file on a full disk."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def write(self, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_does_not_exist_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "no" / "x", tmp_path / "file" / "x", tmp_path, Path("/proc/x")):
        with pytest.raises(UserError) as caught:
            write_atomic(path, "x")
        assert caught.value.code == "MP491"


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", "data")
    assert list(tmp_path.iterdir()) == []
