"""Memories and hooks of a unicorn run, kept by native code (``tracing/unicorn_hooks.c``)."""

from __future__ import annotations

import ctypes
import mmap
from importlib import import_module
from typing import Any

from mplan.diagnostics import InternalError, UnsupportedError
from mplan.runtime.firmware import Firmware
from mplan.runtime.trace import MAX_MEMORIES, Trace, build
from mplan.targets.model import Memory

_PAGE_BYTES = 1024
_JUNK = b"\xdb"  # RAM holds anything at reset; zeros would hide a read of uninitialised data


class _Hooks(ctypes.Structure):
    _fields_ = (
        ("trace", ctypes.c_void_p),
        ("write_register", ctypes.c_void_p),
        ("epsr", ctypes.c_uint64),
        ("block", ctypes.c_uint64),
        ("bytes", ctypes.c_void_p * MAX_MEMORIES),
        ("sizes", ctypes.c_void_p * MAX_MEMORIES),
    )


class Machine:
    """The memories of ``firmware``, mapped into the unicorn engine ``uc``, and what happens to them.

    Raises UnsupportedError MP411 for memories that unicorn cannot map.
    """

    def __init__(self, uc: Any, firmware: Firmware) -> None:
        self._uc = uc
        self._unicorn: Any = import_module("unicorn")
        self.trace = Trace(firmware)
        self._pages: list[mmap.mmap] = []
        self._hooks = _Hooks(trace=self.trace.address)
        for number, memory in enumerate(firmware.memories):
            self._hooks.bytes[number] = self._map(memory)
            self._hooks.sizes[number] = self._buffer(4 * self.trace.code_bytes(memory))[1]

    def hook(self, stores: bool) -> None:
        """Start to note what runs and, if asked, the ``stores``."""
        library = ctypes.CDLL(str(build("unicorn_hooks.c")))
        bindings: Any = import_module("unicorn.unicorn_py3.unicorn")
        self._hooks.epsr = import_module("unicorn.arm_const").UC_ARM_REG_EPSR
        self._hooks.write_register = ctypes.cast(bindings.uclib.uc_reg_write, ctypes.c_void_p).value
        self._attach(bindings.uclib, self._unicorn.UC_HOOK_BLOCK, library.mplan_on_block)
        if stores:
            self._attach(bindings.uclib, self._unicorn.UC_HOOK_MEM_WRITE, library.mplan_on_write)

    def _map(self, memory: Memory) -> int:
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
        return address

    def _buffer(self, size: int) -> tuple[mmap.mmap, int]:
        """Zeroed pages that cost memory only where used, and their address."""
        pages = mmap.mmap(-1, max(size, 1))
        self._pages.append(pages)
        return pages, ctypes.addressof(ctypes.c_char.from_buffer(pages))

    def _attach(self, uclib: Any, kind: int, function: Any) -> None:
        """Attach a C function; the binding's own hook_add takes Python functions only."""
        handle = ctypes.c_size_t()
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        pointer = ctypes.cast(function, ctypes.c_void_p)
        hooks = ctypes.cast(ctypes.byref(self._hooks), ctypes.c_void_p)
        status = uclib.uc_hook_add(
            self._uc._uch, ctypes.byref(handle), kind, pointer, hooks, *everywhere
        )
        if status:
            raise InternalError("MP545", f"unicorn refuses a hook (status {status})")
