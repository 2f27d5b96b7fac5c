"""What mplan reads from ELF files: sections with their addresses, symbols, bytes to load."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_KINDS: dict[str, Literal["function", "object", "label"]] = {
    "STT_FUNC": "function",
    "STT_OBJECT": "object",
    "STT_NOTYPE": "label",
}
STEPS = ".mplan_steps"
#: Stage s of the step at position p is marked as the position ``p + STAGES * (s + 1)``.
STAGES = 1 << 16
_SHF_ALLOC = 2


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function, object or label: its address (without the Thumb bit) and size in bytes."""

    address: int
    size: int
    kind: Literal["function", "object", "label"]


@dataclass(frozen=True, slots=True)
class Section:
    """A section that takes memory; ``image`` is where its bytes are loaded, None if it has none."""

    name: str
    address: int
    size: int
    image: int | None


def symbol_sizes(elf: Path) -> dict[str, int]:
    """The size in bytes of each function and object of an ELF file, by name."""
    return {name: s.size for name, s in symbols(elf).items() if s.kind != "label"}


def functions(elf: Path) -> list[tuple[int, int, str]]:
    """Start, end and name of every function of an ELF file, by address."""
    with _opened(elf) as file:
        found = [
            (entry["st_value"] & ~1, entry["st_size"], entry.name)
            for entry in _symbol_table(file)
            if entry["st_info"]["type"] == "STT_FUNC"
        ]
    largest = {start: (start, start + size, name) for start, size, name in sorted(found)}
    return sorted(largest.values())


def objects(elf: Path) -> list[tuple[int, int]]:
    """Start and end of every object of an ELF file, those of the same name included."""
    with _opened(elf) as file:
        found = [e.entry for e in _symbol_table(file) if e["st_info"]["type"] == "STT_OBJECT"]
    return [(e["st_value"], e["st_value"] + e["st_size"]) for e in found if e["st_size"]]


def function_code(elf: Path) -> list[tuple[tuple[int, int, str], list[tuple[int, bytes]]]]:
    """Every function of an Arm ELF file with its code: the parts that hold instructions, no data.

    Mapping symbols tell them apart ("ELF for the Arm Architecture", AAELF32, section 5.5.5).
    """
    with _opened(elf) as file:
        marks = [
            (entry["st_value"], entry.name[1])
            for entry in _symbol_table(file)
            if entry.name[:2] in ("$t", "$d", "$a") and entry.name[2:3] in ("", ".")
        ]
        images = [(s["p_vaddr"], s.data()) for s in file.iter_segments("PT_LOAD") if s["p_filesz"]]
    marks = sorted(set(marks))
    return [(function, _code(function[0], function[1], marks, images)) for function in functions(elf)]


def _code(
    start: int, end: int, marks: list[tuple[int, str]], images: list[tuple[int, bytes]]
) -> list[tuple[int, bytes]]:
    """The parts of [start, end) in Thumb code."""
    base, data = next((i for i in images if i[0] <= start < i[0] + len(i[1])), (start, b""))
    first = bisect_right(marks, (start, "~"))
    inside = [mark for mark in marks[first:] if mark[0] < end]
    kind = marks[first - 1][1] if first else "t"
    parts = []
    for at, following in zip((start, *(m[0] for m in inside)), (*inside, (end, "")), strict=True):
        if kind == "t" and following[0] > at:
            parts.append((at, data[at - base : following[0] - base]))
        kind = following[1]
    return parts


def holder(functions: list[tuple[int, int, str]], address: int) -> str:
    """The name of the function that holds ``address``; "?" if none does."""
    index = bisect_right(functions, address, key=lambda f: f[0]) - 1
    return functions[index][2] if index >= 0 and address < functions[index][1] else "?"


def steps(elf: Path) -> tuple[tuple[int, int], ...]:
    """The addresses at which steps of a plan begin (``MPLAN_STEP``), each with its position."""
    with _opened(elf) as file:
        section = file.get_section_by_name(STEPS)
        return tuple(struct.iter_unpack("<II", section.data())) if section else ()


def symbols(elf: Path) -> dict[str, Symbol]:
    """The named symbols of an ELF file; of those with the same name, the largest."""
    found: dict[str, Symbol] = {}
    with _opened(elf) as file:
        for entry in _symbol_table(file):
            kind = _KINDS.get(entry["st_info"]["type"])
            known = found.get(entry.name)
            if kind is None or not entry.name or (known and known.size >= entry["st_size"]):
                continue
            address = entry["st_value"] & ~1 if kind == "function" else entry["st_value"]
            found[entry.name] = Symbol(address, entry["st_size"], kind)
    return found


def sections(elf: Path) -> tuple[Section, ...]:
    """The non-empty sections of an ELF file that take memory, in file order."""
    with _opened(elf) as file:
        segments = list(file.iter_segments("PT_LOAD"))
        return tuple(
            Section(s.name, s["sh_addr"], s["sh_size"], _image(s, segments))
            for s in file.iter_sections()
            if s["sh_flags"] & _SHF_ALLOC and s["sh_size"]
        )


def load_images(elf: Path) -> tuple[tuple[int, bytes], ...]:
    """The bytes to load before a program starts, each with its physical address."""
    with _opened(elf) as file:
        return tuple((s["p_paddr"], s.data()) for s in file.iter_segments("PT_LOAD") if s["p_filesz"])


@contextmanager
def _opened(elf: Path) -> Iterator[Any]:
    from elftools.elf.elffile import ELFFile

    with elf.open("rb") as file:
        yield ELFFile(file)


def _symbol_table(file: Any) -> Iterator[Any]:
    table = file.get_section_by_name(".symtab")
    return iter(table.iter_symbols() if table else ())


def _image(section: Any, segments: list[Any]) -> int | None:
    if section["sh_type"] == "SHT_NOBITS":
        return None
    for segment in segments:
        offset = section["sh_addr"] - segment["p_vaddr"]
        if 0 <= offset < segment["p_filesz"]:
            return int(segment["p_paddr"] + offset)
    return None
