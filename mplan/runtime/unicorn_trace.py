"""Memories and counters of a unicorn run, kept by native code (``cortex_m/trace.c``).

A call into Python per block and per store would cost more than the emulation itself, so the hooks
are C, compiled by zig once per process.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import InternalError, ToolError, UnsupportedError
from mplan.runtime.emulator import Touched
from mplan.runtime.firmware import HOST_STATE, Firmware
from mplan.runtime.toolchain import SUPPORT, zig_command
from mplan.targets.model import Memory

if TYPE_CHECKING:
    import numpy

    Written = Mapping[str, numpy.typing.NDArray[numpy.bool_]]

_PAGE_BYTES = 1024
_MAX_MEMORIES = 16
_IN_MAIN = 2
_JUNK = b"\xdb"  # RAM holds anything at reset; zeros would hide a read of uninitialised data


class _Memory(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("bytes", ctypes.c_void_p),
        ("touched", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
    )


class _Trace(ctypes.Structure):
    _fields_ = (
        ("instructions", ctypes.c_uint64),
        ("phase", ctypes.c_uint64),
        ("main", ctypes.c_uint64),
        ("uncounted_start", ctypes.c_uint64),
        ("uncounted_end", ctypes.c_uint64),
        ("write_register", ctypes.c_void_p),
        ("epsr", ctypes.c_uint64),
        ("memories", ctypes.c_uint64),
        ("memory", _Memory * _MAX_MEMORIES),
    )


@functools.cache
def _library() -> tuple[ctypes.CDLL, Any]:
    """The hooks as a library, and the folder that goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="mplan-trace-")
    path = Path(folder.name) / "trace.so"
    command = [*zig_command(), "-O2", "-shared", "-fPIC", "-nostdlib", "-fno-sanitize=all"]
    command += [str(SUPPORT / "trace.c"), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(
            "MP410",
            "zig cannot compile the emulator's hooks for this machine",
            help="reinstall it: pip install --force-reinstall ziglang",
            notes=((done.stderr.strip(), None),),
        )
    return ctypes.CDLL(str(path)), folder


class Trace:
    """The memories of ``firmware``, mapped into the unicorn engine ``uc``, and what happens to them.

    Raises UnsupportedError MP411 for memories that unicorn cannot map.
    """

    def __init__(self, uc: Any, firmware: Firmware) -> None:
        if len(firmware.memories) > _MAX_MEMORIES:
            raise UnsupportedError(
                "MP411",
                f"unicorn runs map at most {_MAX_MEMORIES} memories, not {len(firmware.memories)}",
            )
        self._uc, self._firmware = uc, firmware
        self._unicorn: Any = import_module("unicorn")
        self._pages: list[mmap.mmap] = []
        symbols = firmware.symbols
        self._trace = _Trace(
            phase=1,
            main=symbols["main"].address,
            uncounted_start=symbols["mplan_mark_start"].address,
            uncounted_end=symbols["mplan_mark_end"].address,
        )
        self._touched = {m.name: self._map(m) for m in firmware.memories}

    @property
    def instructions(self) -> int:
        """Instructions executed so far, those of ``mplan_host_mark`` excepted."""
        return int(self._trace.instructions)

    def hook(self, stores: bool) -> None:
        """Start to count instructions and, if asked, to note ``stores``."""
        library, _ = _library()
        bindings: Any = import_module("unicorn.unicorn_py3.unicorn")
        self._trace.epsr = import_module("unicorn.arm_const").UC_ARM_REG_EPSR
        self._trace.write_register = ctypes.cast(bindings.uclib.uc_reg_write, ctypes.c_void_p).value
        self._attach(bindings.uclib, self._unicorn.UC_HOOK_BLOCK, library.mplan_on_block)
        if stores:
            self._attach(bindings.uclib, self._unicorn.UC_HOOK_MEM_WRITE, library.mplan_on_write)

    def note(self, address: int, size: int) -> None:
        """Note bytes that the host wrote for the program, as if the program had."""
        memory = self._firmware.memory_of(address)
        if memory is not None:
            start = address - (memory.base or 0)
            self._touched[memory.name][start : start + size] = bytes([self._trace.phase]) * size

    def written(self) -> Written:
        """For each byte of each memory whether the program wrote it since main began."""
        import numpy

        written = {
            name: numpy.frombuffer(pages, dtype=numpy.uint8) == _IN_MAIN
            for name, pages in self._touched.items()
        }
        state = self._firmware.symbols[HOST_STATE]
        if memory := self._firmware.memory_of(state.address):
            start = state.address - (memory.base or 0)
            written[memory.name][start : start + state.size] = False
        return written

    def per_object(self, written: Written) -> dict[str, Touched]:
        """What was written of each object in RAM, from the result of ``written``."""
        import numpy

        result = {}
        for name, symbol in self._firmware.symbols.items():
            memory = self._firmware.memory_of(symbol.address)
            if symbol.kind != "object" or name == HOST_STATE or not memory or memory.kind == "flash":
                continue
            start = symbol.address - (memory.base or 0)
            offsets = numpy.flatnonzero(written[memory.name][start : start + symbol.size])
            high = int(offsets[-1]) + 1 if offsets.size else 0
            result[name] = Touched(int(offsets.size), high)
        return result

    def _map(self, memory: Memory) -> mmap.mmap:
        base, size, flash = memory.base or 0, memory.size_bytes or 0, memory.kind == "flash"
        if size % _PAGE_BYTES or base % _PAGE_BYTES:
            raise UnsupportedError(
                "MP411",
                f"unicorn cannot map {memory.name} ({size:,} B at {base:#x}): "
                f"its pages have {_PAGE_BYTES} B",
            )
        pages, address = self._buffer(size)
        if not flash:
            pages[:] = _JUNK * size
        unicorn = self._unicorn
        rights = unicorn.UC_PROT_READ | (unicorn.UC_PROT_EXEC if flash else unicorn.UC_PROT_WRITE)
        self._uc.mem_map_ptr(base, size, rights, address)
        touched, touched_at = self._buffer(size)
        counts_at = self._buffer(4 * size)[1] if flash else None
        self._trace.memory[self._trace.memories] = _Memory(base, size, address, touched_at, counts_at)
        self._trace.memories += 1
        return touched

    def _buffer(self, size: int) -> tuple[mmap.mmap, int]:
        """Zeroed pages that cost memory only where used, and their address."""
        pages = mmap.mmap(-1, size)
        self._pages.append(pages)
        return pages, ctypes.addressof(ctypes.c_char.from_buffer(pages))

    def _attach(self, uclib: Any, kind: int, function: Any) -> None:
        """Attach a C function; the binding's own hook_add takes Python functions only."""
        handle = ctypes.c_size_t()
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        pointer = ctypes.cast(function, ctypes.c_void_p)
        trace = ctypes.cast(ctypes.byref(self._trace), ctypes.c_void_p)
        status = uclib.uc_hook_add(
            self._uc._uch, ctypes.byref(handle), kind, pointer, trace, *everywhere
        )
        if status:
            raise InternalError("MP545", f"unicorn refuses a hook (status {status})")
