"""The host's side of ``mplan_host.h``: files in memory, and the records that programs leave.

Semihosting operations are those of Arm IHI 0074 that ``cortex_m/host.c`` uses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from mplan.diagnostics import CheckError

INPUT, OUTPUT, MARKS, FAULT = "mplan.in", "mplan.out", "mplan.marks", "mplan.fault"
MARK = struct.Struct("<6I")  # id, wraps and value of the timer, the same at the last return, stack
LAST_MARK = 0xFFFFFFFF
TIMER_PERIOD = 1 << 24

SYS_OPEN, SYS_WRITE0, SYS_WRITE, SYS_READ, SYS_EXIT_EXTENDED = 0x01, 0x04, 0x05, 0x06, 0x20
_FAILED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """A mark in timer ticks since the start, ticks inside of earlier marks left out."""

    id: int
    ticks: int
    unused_stack_bytes: int


def mark_records(data: bytes) -> tuple[MarkRecord, ...]:
    """The records of the file of marks, in order; the last has the id LAST_MARK."""
    records, inside, entered = [], 0, 0
    for number, row in enumerate(MARK.iter_unpack(data[: len(data) // MARK.size * MARK.size])):
        mark, wraps, value, back_wraps, back_value, unused = row
        returned = _ticks(back_wraps, back_value)
        inside += returned - entered if number else returned
        entered = _ticks(wraps, value)
        records.append(MarkRecord(mark, entered - inside, unused))
    return tuple(records)


def _ticks(wraps: int, value: int) -> int:
    """SysTick starts at 0, reloads with TIMER_PERIOD - 1 and wraps when it is back at 0."""
    return wraps * TIMER_PERIOD + (TIMER_PERIOD - value) % TIMER_PERIOD


@dataclass(slots=True)
class Host:
    """Serves the requests of one run; ``read`` and ``write`` reach the program's memory.

    ``on_mark`` is called at each record of a mark. ``exit_code`` is None until the program exits.
    """

    inputs: bytes
    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], None]
    on_mark: Callable[[], None]
    console: bytearray = field(default_factory=bytearray)
    files: dict[str, bytearray] = field(default_factory=dict)
    exit_code: int | None = None
    _open: list[str] = field(default_factory=list)
    _position: int = 0

    def call(self, operation: int, argument: int) -> int:
        """Serve one request and return its result; CheckError MP546 for an unknown one."""
        if operation == SYS_WRITE0:
            self.console += self._text(argument)
            return 0
        if operation == SYS_EXIT_EXTENDED:
            self.exit_code = self._words(argument, 2)[1] & 0xFF
            return 0
        handlers = {SYS_OPEN: self._opened, SYS_READ: self._input, SYS_WRITE: self._output}
        if operation not in handlers:
            raise CheckError(
                "MP546",
                f"the program made semihosting request {operation:#x}",
                help="use the functions of mplan_host.h",
            )
        return handlers[operation](*self._words(argument, 3))

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.read(address, 4 * count))

    def _text(self, address: int) -> bytes:
        text = bytearray()
        while (byte := self.read(address + len(text), 1)) != b"\0":
            text += byte
        return bytes(text)

    def _opened(self, name_at: int, mode: int, length: int) -> int:
        name = self.read(name_at, length).decode(errors="replace")
        if name not in (INPUT, OUTPUT, MARKS, FAULT):
            return _FAILED
        self._open.append(name)
        if name != INPUT:
            self.files[name] = bytearray()
        return len(self._open) - 1

    def _input(self, handle: int, address: int, size: int) -> int:
        data = self.inputs[self._position : self._position + size]
        self._position += len(data)
        self.write(address, data)
        return size - len(data)

    def _output(self, handle: int, address: int, size: int) -> int:
        if handle >= len(self._open):
            return size
        name = self._open[handle]
        if name == MARKS:
            self.on_mark()
        self.files[name] += self.read(address, size)
        return 0
