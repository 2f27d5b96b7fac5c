"""The host's side of ``mplan_host.h``: files in memory, and the records that programs leave.

Semihosting operations are those of Arm IHI 0074 that ``cortex_m/host.c`` uses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from mplan.diagnostics import CheckError

INPUT, OUTPUT, MARKS, FAULT = "mplan.in", "mplan.out", "mplan.marks", "mplan.fault"
RECORD = struct.Struct("<3I")
LAST_MARK, READ_MARK = 0xFFFFFFFF, 0xFFFFFFFE

SYS_OPEN, SYS_WRITE0, SYS_WRITE, SYS_READ, SYS_EXIT_EXTENDED = 0x01, 0x04, 0x05, 0x06, 0x20
_FAILED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Record:
    """What the program says about its run.

    ``kind`` is the id of a mark, LAST_MARK (``values`` begin with the unused bytes of the stack), or
    READ_MARK (``values`` are the address and size of what the host was asked to write).
    """

    kind: int
    values: tuple[int, int]


def records_of(data: bytes) -> tuple[Record, ...]:
    """The records in the file of marks, in order; the last is LAST_MARK if the program has exited."""
    whole = data[: len(data) // RECORD.size * RECORD.size]
    return tuple(Record(kind, (a, b)) for kind, a, b in RECORD.iter_unpack(whole))


@dataclass(slots=True)
class Host:
    """Serves the requests of one run; ``read`` and ``write`` reach the program's memory.

    ``exit_code`` is None until the program exits.
    """

    inputs: bytes
    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], None]
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
        self.files[self._open[handle]] += self.read(address, size)
        return 0
