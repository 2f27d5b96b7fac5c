"""A CMake project: a static library and a self-test, for the host or for a Cortex-M."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mplan import templates
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


def cmake_files(name: str, target: Target, files: Mapping[str, object]) -> dict[str, str | bytes]:
    """``CMakeLists.txt`` and, where ``target`` says how to build for it, what bare metal needs.

    The project builds for the host by default. With the toolchain file it builds an image for the
    part's memories, which ``ctest`` runs in QEMU if QEMU has the board.
    """
    tools = target.toolchain
    spans = _spans(target)
    cross = tools is not None and bool(tools.gcc_flags) and bool(spans)
    sources = sorted(f for f in files if f.endswith(".c") and not f.endswith("_selftest.c"))
    view = {
        "name": name,
        "target": target.name,
        "description": target.description,
        "sources": sources,
        "selftest": f"{name}_selftest.c" if f"{name}_selftest.c" in files else "",
        "cross": cross,
    }
    found: dict[str, str | bytes] = {"CMakeLists.txt": _render("CMakeLists.txt.j2", **view)}
    if view["selftest"]:
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
