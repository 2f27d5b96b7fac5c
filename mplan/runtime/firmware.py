"""Bare-metal images: C sources linked for the exact memories of a microcontroller, and measured.

The linker script has the part's real sizes, so an image that does not fit is refused, and the sizes
reported are those of the ELF file's sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from mplan import templates
from mplan.diagnostics import InfeasibleError, UnsupportedError
from mplan.runtime import elf
from mplan.runtime.elf import Symbol, symbol_sizes
from mplan.runtime.toolchain import (
    SUPPORT,
    Compiler,
    ToolchainName,
    compiler,
    link_error,
    tools_of,
)
from mplan.targets.load import load_target
from mplan.targets.model import Memory, Target

__all__ = ["Firmware", "Layout", "Symbol", "build_firmware", "symbol_sizes"]

Layout = Literal["part", "board"]

STACK_PAINT = 0xA5A5A5A5
_VECTORS_BYTES = 1024
# Costs no instruction: notes the address in a section that is not loaded. The compiler moves no
# access to memory across it.
_STEP = (
    '__asm__ volatile("1:\\n\\t.pushsection '
    + elf.STEPS
    + ', \\"\\", %%progbits\\n\\t.word 1b, %c0\\n\\t.popsection" :: "i"(position) : "memory");'
)
# Stages of a stream are counted like steps, under numbers above those of all steps.
_STAGE = f"MPLAN_STEP((position) + {elf.STAGES} * ((stage) + 1))"
_UNBOUNDED_BYTES = 1 << 28  # per memory, when an image that does not fit is measured
_HOST = ".mplan_host"  # the state of mplan_host.h


@dataclass(frozen=True, slots=True)
class Firmware:
    """A linked image.

    ``flash_bytes`` is code, constants and the initial values of data; ``static_ram_bytes`` is data
    and bss without the stack. ``used_bytes`` says for each memory what the image takes of it,
    stack included. ``memories`` are those it is linked for, at the addresses it is linked for.
    ``stack_reports`` are the compiler's files on stack frames.
    """

    elf: Path
    flash_bytes: int
    static_ram_bytes: int
    stack_bytes: int
    symbols: Mapping[str, Symbol]
    used_bytes: Mapping[str, int]
    memories: tuple[Memory, ...]
    vectors: str
    stack_reports: tuple[Path, ...] = ()

    @property
    def host_span(self) -> tuple[int, int]:
        """Where the state of ``mplan_host.h`` lies, which is not the program's: start and end."""
        host = [s for s in elf.sections(self.elf) if s.name == _HOST]
        return (host[0].address, host[0].address + host[0].size) if host else (0, 0)

    def memory_of(self, address: int) -> Memory | None:
        """The memory that holds ``address``."""
        return next((m for m in self.memories if _holds(m, address)), None)

    def place(self, address: int) -> str:
        """``address`` in hexadecimal and, if a function holds it, ``(name+offset)``."""
        for name, symbol in self.symbols.items():
            offset = address - symbol.address
            if symbol.kind == "function" and 0 <= offset < max(symbol.size, 1):
                return f"{address:#010x} ({name}+{offset:#x})"
        return f"{address:#010x}"


@dataclass(frozen=True, slots=True)
class _Span:
    """A memory as the linker script's template shows it."""

    name: str
    access: str
    base: str
    size: str
    loaded: bool


def build_firmware(
    sources: Sequence[Path],
    include_dirs: Sequence[Path],
    target: Target,
    out_dir: Path,
    *,
    toolchain: ToolchainName = "zig",
    defines: Mapping[str, str] = MappingProxyType({}),
    layout: Layout | None = None,
    stack_bytes: int | None = None,
) -> Firmware:
    """Compile and link C sources (with a ``main``) for ``target``; files go to ``out_dir``.

    The sources can include ``mplan_host.h``. Data lies in the target's arena memory, constants in
    its weights memory; a section ``.mplan.NAME`` lies in memory NAME, uninitialised if that is RAM.
    ``layout`` "part" uses the part's addresses, "board" those of the QEMU board with the same core,
    with the part's sizes; by default zig builds for the part and gcc for the board.

    Raises InfeasibleError MP540 if the image does not fit, CheckError MP541 and MP542 for errors of
    compiler and linker, ToolError MP410 for a missing tool, UnsupportedError MP411 if the target
    does not say how to build for it.
    """
    tools = compiler(toolchain, target)
    memories, vectors = _layout(target, layout or ("part" if toolchain == "zig" else "board"))
    out_dir.mkdir(parents=True, exist_ok=True)
    stack = tools_of(target).stack_bytes if stack_bytes is None else stack_bytes
    firmware = Firmware(
        elf=out_dir / f"{target.name}.elf",
        flash_bytes=0,
        static_ram_bytes=0,
        stack_bytes=(stack + 7) // 8 * 8,
        symbols={},
        used_bytes={},
        memories=memories,
        vectors=vectors,
    )
    objects = _compile(tools, sources, include_dirs, out_dir, defines)
    output = _link(tools, firmware, target, objects)
    if output:
        raise _why(tools, firmware, target, objects, output)
    reports = (path.with_suffix(".su") for path in objects)
    return replace(_measured(firmware), stack_reports=tuple(p for p in reports if p.is_file()))


def _holds(memory: Memory, address: int) -> bool:
    return memory.base is not None and 0 <= address - memory.base < (memory.size_bytes or 0)


def _layout(target: Target, layout: Layout) -> tuple[tuple[Memory, ...], str]:
    """The memories to link for and the one that the core boots from."""
    memories = tuple(m for m in target.memories if m.base is not None)
    vectors = tools_of(target).vectors or target.weights
    board = tools_of(target).board
    if layout == "part" or board == target.name:
        return memories, vectors
    if not board:
        raise UnsupportedError("MP411", f"target {target.name} names no QEMU board")
    first = sorted(memories, key=lambda m: m.name not in (target.arena, target.weights))
    return _moved(first, load_target(board), vectors)


def _moved(memories: Sequence[Memory], board: Target, vectors: str) -> tuple[tuple[Memory, ...], str]:
    """``memories`` with their sizes, at addresses of ``board``, in the given order."""
    cursor = {m.name: m.base for m in board.memories if m.base is not None}
    boot: tuple[Memory, ...] = ()
    if board.toolchain and board.toolchain.vectors:
        home = board.memory(board.toolchain.vectors)
        boot, vectors = (replace(home, name="vectors", size_bytes=_VECTORS_BYTES),), "vectors"
        cursor[home.name] += _VECTORS_BYTES
    moved = []
    for memory in memories:
        home = _home(memory, board, cursor)
        moved.append(replace(memory, base=cursor[home.name]))
        cursor[home.name] += (memory.size_bytes or 0) + 4095 & ~4095
    return (*boot, *moved), vectors


def _home(memory: Memory, board: Target, cursor: Mapping[str, int]) -> Memory:
    for home in board.memories:
        if home.base is None or (home.kind == "flash") != (memory.kind == "flash"):
            continue
        if cursor[home.name] + (memory.size_bytes or 0) <= home.base + (home.size_bytes or 0):
            return home
    raise UnsupportedError(
        "MP411", f"board {board.name} has no room for {memory.size_bytes:,} B of {memory.name}"
    )


def _compile(
    tools: Compiler,
    sources: Sequence[Path],
    includes: Sequence[Path],
    out_dir: Path,
    defines: Mapping[str, str],
) -> list[Path]:
    support = [*sorted(SUPPORT.glob("*.c")), *tools.sources]
    everything = [*support, *sources]
    includes = [*includes, SUPPORT / "include"]
    marks = {"MPLAN_STEP(position)": _STEP, "MPLAN_STAGE(position, stage)": _STAGE}
    defines = {**marks, **defines, "MPLAN_STACK_PAINT": f"{STACK_PAINT:#x}u"}
    objects = []
    for number, source in enumerate(everything):
        objects.append(out_dir / f"{number:03d}-{source.stem}.o")
        tools.compile(source, objects[-1], includes, defines)
    return objects


def _link(tools: Compiler, firmware: Firmware, target: Target, objects: Sequence[Path]) -> str:
    script = firmware.elf.with_suffix(".ld")
    script.write_text(_script(firmware, target), encoding="utf-8")
    return tools.link(objects, script, firmware.elf)


def _script(firmware: Firmware, target: Target) -> str:
    view = {
        "target": target.name,
        "memories": [_span(m) for m in firmware.memories],
        "vectors": firmware.vectors,
        "arena": target.arena,
        "weights": target.weights,
        "stack_bytes": firmware.stack_bytes,
    }
    return templates.render(SUPPORT, "link.ld.j2", view)


def _span(memory: Memory) -> _Span:
    flash = memory.kind == "flash"
    return _Span(
        name=memory.name,
        access="rx" if flash else "rw",
        base=f"{memory.base:#010x}",
        size=f"{memory.size_bytes:#x}",
        loaded=flash,
    )


def _why(
    tools: Compiler, firmware: Firmware, target: Target, objects: Sequence[Path], output: str
) -> Exception:
    """The error for a failed link: link again without limits to learn what is needed."""
    roomy = replace(
        firmware,
        elf=firmware.elf.with_name("unbounded.elf"),
        memories=tuple(
            replace(m, base=(1 + i) * _UNBOUNDED_BYTES, size_bytes=_UNBOUNDED_BYTES)
            for i, m in enumerate(firmware.memories)
        ),
    )
    if _link(tools, roomy, target, objects):
        return link_error(tools.name, output)
    roomy = _measured(roomy)
    over = [
        f"{roomy.used_bytes[m.name]:,} B of {m.name}, the part has {m.size_bytes:,} B"
        for m in firmware.memories
        if roomy.used_bytes[m.name] > (m.size_bytes or 0)
    ]
    if not over:
        return link_error(tools.name, output)
    largest = sorted(roomy.symbols.items(), key=lambda item: -item[1].size)[:5]
    return InfeasibleError(
        "MP540",
        f"the image does not fit {target.name}: it needs {'; '.join(over)}",
        help="plan with a smaller budget, or choose a larger target",
        notes=tuple((f"{name}: {symbol.size:,} B", None) for name, symbol in largest),
    )


def _measured(firmware: Firmware) -> Firmware:
    """``firmware`` with the sizes of its ELF file's sections."""
    used = dict.fromkeys((m.name for m in firmware.memories), 0)
    flash = ram = 0
    for section in elf.sections(firmware.elf):
        places = {section.address} if section.image is None else {section.address, section.image}
        for place in places:
            memory = firmware.memory_of(place)
            if memory is None or memory.base is None:
                continue
            used[memory.name] = max(used[memory.name], place + section.size - memory.base)
            if memory.kind == "flash":
                flash += section.size
            elif place == section.address and section.name not in (".stack", _HOST):
                ram += section.size
    return replace(
        firmware,
        flash_bytes=flash,
        static_ram_bytes=ram,
        symbols=MappingProxyType(elf.symbols(firmware.elf)),
        used_bytes=MappingProxyType(used),
    )
