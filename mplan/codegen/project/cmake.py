"""A CMake project: a static library and a self-test, for the host or for a Cortex-M."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mplan import templates
from mplan.codegen.project.sources import Files, Sources
from mplan.targets.model import Memory, Target, Toolchain

_TEMPLATES = Path(__file__).parent / "templates" / "cmake"

_ACCESS = {"flash": "rx"}


@dataclass(frozen=True, slots=True)
class Span:
    """A memory as the linker script shows it."""

    name: str
    access: str
    base: str
    size_bytes: int


def cmake_files(name: str, target: Target, files: Mapping[str, str | bytes]) -> Files:
    """``files``, ``CMakeLists.txt`` and, where ``target`` says how to build, what bare metal needs.

    The project builds for the host by default. With the toolchain file it builds an image for the
    part's memories, which ``ctest`` runs in QEMU if QEMU has the board.
    """
    tools = target.toolchain
    spans = _spans(target)
    cross = tools is not None and bool(tools.gcc_flags) and bool(spans)
    sources = Sources.of(name, files)
    view = {
        "name": name,
        "target": target.name,
        "description": target.description,
        "sources": sources.code,
        "selftest": sources.selftest,
        "cross": cross,
    }
    found: Files = {**files, "CMakeLists.txt": _render("CMakeLists.txt.j2", **view)}
    if sources.selftest:
        found["selftest_main.c"] = _render("selftest_main.c.j2", **view, upper=name.upper())
    if cross and tools is not None:
        board = {
            "flags": " ".join(tools.gcc_flags),
            "processor": target.isa.core,
            "machine": tools.qemu_machine,
            "spans": spans,
            "vectors": tools.vectors or target.weights,
            "weights": target.weights,
            "arena": target.arena,
            "stack_bytes": _stack(tools),
        }
        found["arm-none-eabi.cmake"] = _render("arm-none-eabi.cmake.j2", **view, **board)
        found["link.ld"] = _render("link.ld.j2", **view, **board)
        found["startup.c"] = _render("startup.c.j2", **view, **board)
    return found


def _spans(target: Target) -> tuple[Span, ...]:
    return tuple(_span(m) for m in target.memories if m.base is not None and m.size_bytes is not None)


def _span(memory: Memory) -> Span:
    access = _ACCESS.get(memory.kind, "rwx")
    return Span(memory.name, access, f"{memory.base:#010x}", memory.size_bytes or 0)


def _stack(tools: Toolchain) -> int:
    return (tools.stack_bytes + 7) // 8 * 8


def _render(template: str, **view: object) -> str:
    return templates.render(_TEMPLATES, template, view)
