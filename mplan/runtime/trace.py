"""What is noted of an emulated run: instructions per step and function, bytes accessed, stray stores.

The notes are taken by C code inside of the emulator (``tracing/trace.h``), in one piece of memory
that is laid out and read here: shared with unicorn's hooks, a file for QEMU's plugin.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import CheckError, ToolError, UnsupportedError
from mplan.runtime import elf
from mplan.runtime.emulator import Accessed, Mark, Touched
from mplan.runtime.firmware import Firmware
from mplan.runtime.semihosting import LAST_MARK, READ_MARK, Record
from mplan.runtime.toolchain import zig_command
from mplan.targets.model import Memory

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.typing.NDArray[np.uint8]

SOURCES = Path(__file__).parent / "tracing"
MAX_MEMORIES = 16
_MAX_MARKS = 1 << 16
_WRITTEN, _READ, _OWNED = 1, 2, 4


class _Memory(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("base", "size", "accessed_at", "code_bytes", "executed_at", "step_at")
    )


class _Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64))


class _Header(ctypes.Structure):
    _fields_ = (
        ("instructions", ctypes.c_uint64),
        ("in_main", ctypes.c_uint64),
        ("main", ctypes.c_uint64),
        ("uncounted", _Span),
        ("mark_entries", ctypes.c_uint64 * 2),
        ("step", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("counters_at", ctypes.c_uint64),
        ("marks", ctypes.c_uint64),
        ("mark_capacity", ctypes.c_uint64),
        ("marks_at", ctypes.c_uint64),
        ("strays", ctypes.c_uint64),
        ("stray_pc", ctypes.c_uint64),
        ("stray_address", ctypes.c_uint64),
        ("stray_size", ctypes.c_uint64),
        ("memories", ctypes.c_uint64),
        ("memory", _Memory * MAX_MEMORIES),
    )


@dataclass(frozen=True, slots=True)
class Notes:
    """What a finished run left in its trace; the fields are those of ``emulator.RunResult``."""

    instructions: int
    marks: tuple[Mark, ...]
    functions: dict[str, int]
    sram_touched_bytes: int | None
    accessed: dict[str, Accessed]
    touched: dict[str, Touched]


class Trace:
    """The memory in which a run of ``firmware`` is noted: that of a new file at ``path``, or anonymous.

    Raises UnsupportedError MP411 for an image with more memories than can be traced.
    """

    def __init__(self, firmware: Firmware, path: Path | None = None) -> None:
        if len(firmware.memories) > MAX_MEMORIES:
            raise UnsupportedError(
                "MP411",
                f"emulated parts have at most {MAX_MEMORIES} memories, not {len(firmware.memories)}",
            )
        self.firmware = firmware
        self.steps = elf.steps(firmware.elf)
        self.positions = sorted({position for _, position in self.steps})
        header = self._layout()
        self._map = _mapped(self._size, path)
        self._map[: ctypes.sizeof(header)] = bytes(header)
        self._header = _Header.from_buffer(self._map)
        self._place_steps()
        self._place_owned()

    @property
    def address(self) -> int:
        """Where this process has the trace."""
        return ctypes.addressof(self._header)

    def code_bytes(self, memory: Memory) -> int:
        """How much of ``memory`` can hold code."""
        return self.firmware.used_bytes[memory.name] if memory.kind == "flash" else 0

    def notes(self, records: Sequence[Record], *, memory: bool, loads: bool) -> Notes:
        """What the run left, given the program's ``records``.

        ``memory`` says whether stores were noted, ``loads`` whether loads were too. CheckError MP548
        if the program wrote to memory that belongs to nothing in the image.
        """
        self._check()
        for record in records:
            if record.kind == READ_MARK:
                self._note_read(*record.values)
        self._forget_host()
        marks = self._marks([r.kind for r in records if r.kind != READ_MARK])
        accessed = self._accessed(loads) if memory else {}
        return Notes(
            instructions=marks[-1].instructions,
            marks=tuple(m for m in marks if m.id != LAST_MARK),
            functions=self._functions(),
            sram_touched_bytes=sum(a.written_bytes for a in accessed.values()) if memory else None,
            accessed=accessed,
            touched=self._touched() if memory else {},
        )

    def _layout(self) -> _Header:
        """A header for an image, and the size of the whole trace."""
        symbols = self.firmware.symbols
        uncounted = _Span(symbols["mplan_mark_start"].address, symbols["mplan_mark_end"].address)
        header = _Header(main=symbols["main"].address, uncounted=uncounted)
        header.mark_entries[:] = [symbols[n].address for n in ("mplan_host_mark", "mplan_host_exit")]
        self._size = ctypes.sizeof(header)
        header.steps = 1 + len(self.positions)
        header.counters_at = self._reserve(8 * header.steps)
        header.mark_capacity = _MAX_MARKS
        header.marks_at = self._reserve(8 * _MAX_MARKS * (1 + header.steps))
        header.memories = len(self.firmware.memories)
        header.memory[: header.memories] = [self._place(m) for m in self.firmware.memories]
        return header

    def _place(self, memory: Memory) -> _Memory:
        code = self.code_bytes(memory)
        return _Memory(
            base=memory.base or 0,
            size=memory.size_bytes or 0,
            accessed_at=self._reserve(memory.size_bytes or 0),
            code_bytes=code,
            executed_at=self._reserve(4 * code),
            step_at=self._reserve(code),
        )

    def _reserve(self, size: int) -> int:
        start, self._size = self._size, self._size + (size + 15) // 16 * 16
        return start

    def _place_steps(self) -> None:
        counter = {position: 1 + i for i, position in enumerate(self.positions)}
        for address, position in self.steps:
            memory = self.firmware.memory_of(address)
            if memory is not None:
                code = self._array(memory, "step_at", "uint16", self.code_bytes(memory) // 2)
                code[(address - (memory.base or 0)) // 2] = counter[position]

    def _place_owned(self) -> None:
        """Note which bytes of RAM belong to an object, or to a section without any, as the stack's."""
        objects = elf.objects(self.firmware.elf)
        for section in elf.sections(self.firmware.elf):
            span = section.address, section.address + section.size
            memory = self.firmware.memory_of(section.address)
            if memory is not None and memory.kind != "flash":
                bits, base = self._access_bits(memory), memory.base or 0
                inside = [s for s in objects if span[0] <= s[0] < span[1]]
                for start, end in inside or [span]:
                    bits[start - base : end - base] |= _OWNED

    def _array(self, memory: Memory, field: str, dtype: str, count: int) -> Any:
        import numpy as np

        offset = getattr(self._header.memory[self.firmware.memories.index(memory)], field)
        return np.frombuffer(self._map, dtype, count, offset)

    def _access_bits(self, memory: Memory) -> Bytes:
        bits: Bytes = self._array(memory, "accessed_at", "uint8", memory.size_bytes or 0)
        return bits

    def _check(self) -> None:
        header = self._header
        if header.marks > header.mark_capacity:
            message = f"the program called mplan_host_mark {header.marks:,} times"
            raise UnsupportedError("MP411", f"{message}; {header.mark_capacity:,} are traced")
        if header.strays:
            place = self.firmware.place(header.stray_pc)
            raise CheckError(
                "MP548",
                f"the program wrote {header.stray_size} B at {header.stray_address:#010x}, which is in "
                f"no variable, arena or stack; pc {place}",
                help=f"{header.strays:,} such stores in all; a kernel of mplan that does this is a bug",
            )

    def _note_read(self, address: int, size: int) -> None:
        """Note bytes that the host wrote for the program, as if the program had."""
        memory = self.firmware.memory_of(address)
        if memory is not None:
            start = address - (memory.base or 0)
            self._access_bits(memory)[start : start + size] |= _WRITTEN

    def _forget_host(self) -> None:
        """Drop what was noted of the state of ``mplan_host.h``, which is not the program's."""
        start, end = self.firmware.host_span
        memory = self.firmware.memory_of(start)
        if memory is not None:
            base = memory.base or 0
            self._access_bits(memory)[start - base : end - base] = 0

    def _marks(self, ids: Sequence[int]) -> tuple[Mark, ...]:
        import numpy as np

        header = self._header
        width = 1 + int(header.steps)
        table = np.frombuffer(self._map, np.uint64, len(ids) * width, header.marks_at)
        rows = table.reshape(-1, width).tolist()
        return tuple(
            Mark(id_, row[0], dict(zip(self.positions, row[2:], strict=True)))
            for id_, row in zip(ids, rows, strict=True)
        )

    def _functions(self) -> dict[str, int]:
        """The instructions of each function itself, most first."""
        import numpy as np

        counts: dict[str, int] = {}
        functions = elf.functions(self.firmware.elf)
        for memory in self.firmware.memories:
            executed = self._array(memory, "executed_at", "uint64", self.code_bytes(memory) // 2)
            for start in np.flatnonzero(executed).tolist():
                name = elf.holder(functions, (memory.base or 0) + 2 * start)
                counts[name] = counts.get(name, 0) + int(executed[start])
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _accessed(self, loads: bool) -> dict[str, Accessed]:
        found = {}
        for memory in self.firmware.memories:
            bits = self._access_bits(memory)
            read = int((bits & _READ > 0).sum()) if loads else None
            found[memory.name] = Accessed(int((bits & _WRITTEN > 0).sum()), read)
        return found

    def _touched(self) -> dict[str, Touched]:
        """What was written of each object in RAM."""
        import numpy as np

        result = {}
        start, end = self.firmware.host_span
        for name, symbol in self.firmware.symbols.items():
            memory = self.firmware.memory_of(symbol.address)
            if symbol.kind != "object" or not memory or memory.kind == "flash":
                continue
            if start <= symbol.address < end:
                continue
            offset = symbol.address - (memory.base or 0)
            bits = self._access_bits(memory)[offset : offset + symbol.size]
            offsets = np.flatnonzero(bits & _WRITTEN)
            result[name] = Touched(int(offsets.size), int(offsets[-1]) + 1 if offsets.size else 0)
        return result


@functools.cache
def build(source: str, *flags: str) -> Path:
    """``tracing/source`` as a shared library for this machine; it goes when the process ends.

    ToolError MP410 if zig is missing or fails.
    """
    path = Path(_folder().name) / f"{Path(source).stem}.so"
    command = [*zig_command(), "-O2", "-shared", "-fPIC", "-fno-sanitize=all"]
    command += [*flags, str(SOURCES / source), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(
            "MP410",
            f"zig cannot compile {source} for this machine",
            help="reinstall it: pip install --force-reinstall ziglang",
            notes=((done.stderr.strip(), None),),
        )
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mplan-trace-")


def _mapped(size: int, path: Path | None) -> mmap.mmap:
    """Zeroed memory that costs pages only where it is used."""
    if path is None:
        return mmap.mmap(-1, size)
    with path.open("wb+") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)
