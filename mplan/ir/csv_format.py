"""The CSV format of MiniMalloc: ``id,lower,upper,size[,alignment][,offset]``, lifetimes half-open.

A header is required; its columns may stand in any order. An ``offset`` that is given fixes the
buffer's address. See https://github.com/google/minimalloc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mplan.diagnostics import UserError, Where
from mplan.ir.plan import Buffer, Plan, Problem, Region

REQUIRED = ("id", "lower", "upper", "size")
OPTIONAL = ("alignment", "offset")

_HELP = "the format is id,lower,upper,size[,alignment][,offset], one buffer per line, no quotes"
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class _Cell:
    """The text of a cell and where it starts."""

    text: str
    where: Where


def parse_csv(text: str, region: Region | None = None, file: str = "<csv>") -> Problem:
    """The problem in ``text``: a buffer per line, all in ``region`` (default: an unlimited ``arena``).

    ``file`` names the source in errors. UserError MP230 with line and column if it is malformed.
    """
    lines = _lines(text, file)
    header = next(lines, None)
    if header is None:
        raise UserError("MP230", "the file has no header", Where(file, 1, 1), _HELP)
    columns = _columns(header)
    where = region or Region("arena")
    buffers: list[Buffer] = []
    seen: dict[str, Where] = {}
    for cells in lines:
        if len(cells) != len(header):
            message = f"the line has {len(cells)} cells, the header {len(header)}"
            raise UserError("MP230", message, cells[-1].where, _HELP)
        row = {name: cells[i] for name, i in columns.items()}
        name = row["id"]
        if name.text in seen:
            message = f"the id {name.text!r} stands on line {seen[name.text].line} already"
            raise UserError("MP230", message, name.where, "give every buffer its own id")
        seen[name.text] = name.where
        buffers.append(_buffer(row, where.name))
    return Problem(_stem(file), (where,), tuple(buffers))


def print_csv(problem: Problem, plan: Plan, region: str | None = None) -> str:
    """The placements of ``plan`` in ``region`` (default: the first) as CSV with offsets.

    A buffer that is placed several times has a line for each, its id followed by ``@start``.
    UserError MP234 if a name cannot stand in a cell.
    """
    name = region or problem.regions[0].name
    placements = [p for p in plan.placements if p.region == name]
    aligned = any(problem.buffers[p.buffer].alignment > 1 for p in placements)
    times: dict[int, int] = {}
    for p in placements:
        times[p.buffer] = times.get(p.buffer, 0) + 1
    rows = [",".join((*REQUIRED, *(("alignment",) if aligned else ()), "offset"))]
    for p in placements:
        b = problem.buffers[p.buffer]
        id = b.name if times[p.buffer] == 1 else f"{b.name}@{p.start}"
        if id != id.strip() or not id or re.search(r'[,"\x00-\x1f\x7f\x85\u2028\u2029]', id):
            help = "rename the buffer, or write plan.json instead"
            raise UserError("MP234", f"the name {b.name!r} cannot stand in a CSV cell", help=help)
        alignment = (str(b.alignment),) if aligned else ()
        rows.append(
            ",".join((id, str(p.start), str(p.end), str(b.size_bytes), *alignment, str(p.offset)))
        )
    return "\n".join(rows) + "\n"


def _lines(text: str, file: str) -> Iterator[list[_Cell]]:
    """The cells of every line that is not blank."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        cells, column = [], 1
        for part in line.rstrip("\r").split(","):
            if '"' in part:
                where = Where(file, number, column + part.index('"'))
                raise UserError("MP230", "quotes are not part of the format", where, _HELP)
            lead = len(part) - len(part.lstrip())
            cells.append(_Cell(part.strip(), Where(file, number, column + lead)))
            column += len(part) + 1
        yield cells


def _columns(header: list[_Cell]) -> dict[str, int]:
    columns: dict[str, int] = {}
    for i, cell in enumerate(header):
        if cell.text not in (*REQUIRED, *OPTIONAL):
            known = ", ".join((*REQUIRED, *OPTIONAL))
            raise UserError("MP230", f"unknown column {cell.text!r}; known: {known}", cell.where, _HELP)
        if cell.text in columns:
            raise UserError("MP230", f"the column {cell.text} stands twice", cell.where, _HELP)
        columns[cell.text] = i
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        message = f"the header lacks {', '.join(missing)}"
        raise UserError("MP230", message, header[-1].where, _HELP)
    return columns


def _buffer(row: dict[str, _Cell], region: str) -> Buffer:
    lower, upper = _number(row["lower"]), _number(row["upper"])
    if upper < lower:
        message = f"the lifetime [{lower}, {upper}) ends before it starts"
        raise UserError("MP230", message, row["upper"].where, "upper is exclusive and at least lower")
    alignment = _number(row["alignment"]) if _given(row, "alignment") else 1
    if alignment < 1:
        raise UserError("MP230", "the alignment is 0", row["alignment"].where, "1 means unaligned")
    if not row["id"].text:
        raise UserError("MP230", "the id is empty", row["id"].where, "give every buffer its own id")
    return Buffer(
        name=row["id"].text,
        size_bytes=_number(row["size"]),
        regions=(region,),
        alignment=alignment,
        lifetime=(lower, upper),
        offset=_number(row["offset"]) if _given(row, "offset") else None,
    )


def _given(row: dict[str, _Cell], column: str) -> bool:
    return column in row and row[column].text != ""


def _number(cell: _Cell) -> int:
    if not re.fullmatch(r"[0-9]+", cell.text) or len(cell.text) > _MAX_DIGITS:
        message = f"expected a whole number of at most {_MAX_DIGITS} digits, found {cell.text[:40]!r}"
        raise UserError("MP230", message, cell.where, _HELP)
    return int(cell.text)


def _stem(file: str) -> str:
    return re.split(r"[\\/]", file)[-1].removesuffix(".csv")
