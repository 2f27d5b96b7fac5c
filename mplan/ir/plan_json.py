"""``plan.json``: reading and writing plan files.

Reading is strict: a key that is unknown, missing or of the wrong type is an error that names its
place. Whether the content makes sense is not asked here; that is ``ir/check``'s work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mplan.diagnostics import UserError, Where
from mplan.files import read_text, write_atomic
from mplan.ir.decode import DecodeError, decode, parse_object
from mplan.ir.plan import SCHEMA_VERSION, UNSEALED, PlanFile

_SEALS = ("problem_digest", "plan_digest", "content_digest")


def load_plan(path: str | Path) -> tuple[dict[str, Any], PlanFile]:
    """The JSON object in the file ``path`` and the plan file it holds.

    UserError MP490 if it cannot be read, MP232 if it is no plan file, MP233 if it was written in
    another version of the format.
    """
    return parse_plan(read_text(path), str(path))


def parse_plan(text: str, file: str = "<plan>") -> tuple[dict[str, Any], PlanFile]:
    """``load_plan`` of a text; ``file`` is named in errors."""
    try:
        document = parse_object(text)
        _check_version(document, file)
        outside = ("schema_version", *UNSEALED)
        body = {key: value for key, value in document.items() if key not in outside}
        for seal in _SEALS:
            decode(str, document.get(seal), f"$.{seal}")
        file_ = decode(PlanFile, body, "$")
        decode(tuple[int, ...], document.get("order"), "$.order")
        _check_offsets(document.get("offsets"), len(file_.problem.buffers))
        return document, file_
    except DecodeError as error:
        help = "write the file with `mplan plan -o plan.json`; do not edit it by hand"
        raise UserError("MP232", f"not a plan file: {error}", Where(file), help) from error


def _check_offsets(offsets: Any, buffers: int) -> None:
    """DecodeError if ``offsets`` does not map the index of every buffer to an integer."""
    if not isinstance(offsets, dict):
        raise DecodeError("$.offsets", "expected an object")
    known = [str(i) for i in range(buffers)]
    for key in offsets.keys() - set(known):
        raise DecodeError(f"$.offsets.{key}", f"unknown key; known: 0 to {buffers - 1}")
    for key in known:
        if key not in offsets:
            raise DecodeError(f"$.offsets.{key}", "missing")
        decode(int, offsets[key], f"$.offsets.{key}")


def _check_version(document: dict[str, Any], file: str) -> None:
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        found = "no schema_version" if version is None else f"schema_version {str(version)[:20]}"
        message = f"the file has {found}, this mplan reads {SCHEMA_VERSION}"
        raise UserError("MP233", message, Where(file), "plan again with this version of mplan")


def print_plan(file: PlanFile) -> str:
    """The text of a plan file: one line per buffer, step, placement; equal plans give equal text."""
    return _print(file.to_json(), 0) + "\n"


def save_plan(path: str | Path, file: PlanFile) -> None:
    """Write ``file`` to ``path`` whole or not at all; UserError MP491 if that fails."""
    write_atomic(path, print_plan(file))


def _print(value: Any, depth: int) -> str:
    """JSON with the outer objects and arrays of objects spread over lines."""
    indent = "  " * (depth + 1)
    if isinstance(value, dict) and depth < 2:
        rows = [f"{indent}{json.dumps(key)}: {_print(item, depth + 1)}" for key, item in value.items()]
        return _lines("{", rows, "}", depth)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _lines("[", [indent + json.dumps(item) for item in value], "]", depth)
    return json.dumps(value)


def _lines(start: str, rows: list[str], end: str, depth: int) -> str:
    return f"{start}\n" + ",\n".join(rows) + f"\n{'  ' * depth}{end}"
