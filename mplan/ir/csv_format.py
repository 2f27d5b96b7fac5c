"""The CSV format of MiniMalloc: ``id,lower,upper,size`` and optional columns, lifetimes half-open.

A header is required; its columns may stand in any order. An ``offset`` that is given fixes the
buffer's address, a ``hint`` is one to try first (-1: none). ``gaps`` are separated by blanks: during
``3-5`` the buffer holds nothing, during ``3-5@0:8`` only its first eight bytes. The older names of the
columns are read, too: ``buffer`` or ``buffer_id``, ``begin`` or ``start``, and ``end``, with which the
last position of every interval belongs to it. See https://github.com/google/minimalloc.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mplan.diagnostics import UserError, Where
from mplan.ir.plan import Buffer, Extent, Placement, Plan, Problem, Region

REQUIRED = ("id", "lower", "upper", "size")
OPTIONAL = ("alignment", "hint", "gaps", "offset")

_OLDER = {"buffer": "id", "buffer_id": "id", "begin": "lower", "start": "lower", "end": "upper"}
_HELP = "the format is id,lower,upper,size and maybe alignment, hint, gaps, offset; no quotes"
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
    inclusive = int(header[columns["upper"]].text == "end")
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
        buffers.append(_buffer(row, where.name, inclusive))
    return Problem(_stem(file), (where,), tuple(buffers))


def print_csv(problem: Problem, plan: Plan, region: str | None = None) -> str:
    """The placements of ``plan`` in ``region`` (default: the first) as CSV with offsets.

    A buffer that is placed several times has a line for each, its id followed by ``@start``.
    UserError MP234 if a name cannot stand in a cell.
    """
    name = region or problem.regions[0].name
    placements = [p for p in plan.placements if p.region == name]
    buffers = [problem.buffers[p.buffer] for p in placements]
    used = {
        "alignment": any(b.alignment > 1 for b in buffers),
        "hint": any(b.hint is not None for b in buffers),
        "gaps": any(b.gaps for b in buffers),
        "offset": True,
    }
    columns = [*REQUIRED, *(name for name in OPTIONAL if used[name])]
    pieces = Counter(p.buffer for p in placements)
    rows = [",".join(columns)]
    for p, b in zip(placements, buffers, strict=True):
        id = b.name if pieces[p.buffer] == 1 else f"{b.name}@{p.start}"
        if id != id.strip() or not id or re.search(r'[,"\x00-\x1f\x7f\x85\u2028\u2029]', id):
            help = "rename the buffer, or write plan.json instead"
            raise UserError("MP234", f"the name {b.name!r} cannot stand in a CSV cell", help=help)
        cells = _cells(b, p) | {"id": id}
        rows.append(",".join(cells[name] for name in columns))
    return "\n".join(rows) + "\n"


def _cells(buffer: Buffer, placement: Placement) -> dict[str, str]:
    """The cell of every column but the id."""
    gaps = (
        f"{g.start}-{g.end}" + (f"@{g.low}:{g.high}" if g.low < g.high else "") for g in buffer.gaps
    )
    return {
        "lower": str(placement.start),
        "upper": str(placement.end),
        "size": str(buffer.size_bytes),
        "alignment": str(buffer.alignment),
        "hint": str(-1 if buffer.hint is None else buffer.hint),
        "gaps": " ".join(gaps),
        "offset": str(placement.offset),
    }


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
        name = _OLDER.get(cell.text, cell.text)
        if name not in (*REQUIRED, *OPTIONAL):
            known = ", ".join((*REQUIRED, *OPTIONAL))
            raise UserError("MP230", f"unknown column {cell.text!r}; known: {known}", cell.where, _HELP)
        if name in columns:
            raise UserError("MP230", f"the column {name} stands twice", cell.where, _HELP)
        columns[name] = i
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        message = f"the header lacks {', '.join(missing)}"
        raise UserError("MP230", message, header[-1].where, _HELP)
    return columns


def _buffer(row: dict[str, _Cell], region: str, inclusive: int) -> Buffer:
    lower, upper = _number(row["lower"]), _number(row["upper"]) + inclusive
    if upper < lower:
        message = f"the lifetime [{lower}, {upper}) ends before it starts"
        raise UserError("MP230", message, row["upper"].where, "upper is exclusive and at least lower")
    alignment = _number(row["alignment"]) if _given(row, "alignment") else 1
    if alignment < 1:
        raise UserError("MP230", "the alignment is 0", row["alignment"].where, "1 means unaligned")
    if not row["id"].text:
        raise UserError("MP230", "the id is empty", row["id"].where, "give every buffer its own id")
    hinted = _given(row, "hint") and row["hint"].text != "-1"
    buffer = Buffer(
        name=row["id"].text,
        size_bytes=_number(row["size"]),
        regions=(region,),
        alignment=alignment,
        lifetime=(lower, upper),
        offset=_number(row["offset"]) if _given(row, "offset") else None,
        hint=_number(row["hint"]) if hinted else None,
    )
    gaps = _gaps(row["gaps"], buffer, inclusive) if _given(row, "gaps") else ()
    return replace(buffer, gaps=gaps)


def _gaps(cell: _Cell, buffer: Buffer, inclusive: int) -> tuple[Extent, ...]:
    """The gaps of ``buffer`` in order of time; they must lie within its lifetime and apart."""
    found: list[Extent] = []
    for text in cell.text.split():
        match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})(?:@([0-9]{1,18}):([0-9]{1,18}))?", text)
        if match is None:
            message = f"expected a gap such as 3-5 or 3-5@0:8, found {text[:40]!r}"
            raise UserError("MP230", message, cell.where, _HELP)
        start, end, low, high = (int(part or 0) for part in match.groups())
        found.append(Extent(start, end + inclusive, low, high))
    found.sort(key=lambda g: g.start)
    at, last = buffer.lifetime or (0, 0)
    for gap in found:
        if not (at <= gap.start < gap.end <= last and gap.low <= gap.high <= buffer.size_bytes):
            message = f"the gap [{gap.start}, {gap.end}) of bytes [{gap.low}, {gap.high}) is not within"
            message = f"{message} the buffer, or overlaps another"
            raise UserError("MP230", message, cell.where, _HELP)
        at = gap.end
    return tuple(found)


def _given(row: dict[str, _Cell], column: str) -> bool:
    return column in row and row[column].text != ""


def _number(cell: _Cell) -> int:
    if not re.fullmatch(r"[0-9]+", cell.text) or len(cell.text) > _MAX_DIGITS:
        message = f"expected a whole number of at most {_MAX_DIGITS} digits, found {cell.text[:40]!r}"
        raise UserError("MP230", message, cell.where, _HELP)
    return int(cell.text)


def _stem(file: str) -> str:
    return re.split(r"[\\/]", file)[-1].removesuffix(".csv")
