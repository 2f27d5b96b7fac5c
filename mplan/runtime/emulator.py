"""Run an image on an emulated Cortex-M and report what it did, to the instruction and to the byte.

Two emulators that share no code with each other can run the same image: unicorn, inside this
process, with exactly the part's memories mapped; and QEMU, as a command, on a board with the part's
core. Programs talk to the host through ``mplan_host.h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mplan.runtime.firmware import Firmware
from mplan.targets.model import Target

EmulatorName = Literal["unicorn", "qemu"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A call of ``mplan_host_mark(id)`` and the instructions executed before it."""

    id: int
    instructions: int


@dataclass(frozen=True, slots=True)
class Touched:
    """What main and its callees wrote of one object: how many bytes, and the end of the last one.

    ``high_water_bytes`` is 1 + the highest offset written, so it is the part of an arena in use.
    """

    bytes: int
    high_water_bytes: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a program did.

    ``output`` is what it gave ``mplan_host_write``, ``stdout`` what it printed. ``instructions``
    counts from reset to exit, calls of ``mplan_host_mark`` excepted; it and the marks are exact up
    to ``instruction_resolution`` (1 in unicorn, a tick of the board's timer in QEMU).
    ``stack_bytes`` is the depth of the deepest word written. ``sram_touched_bytes`` counts the
    distinct bytes of RAM written from the first instruction of main on, by the program or by the
    host for it, ``touched`` the same for each object; both need memory tracing, which QEMU does not
    offer: None and empty there.
    """

    exit_code: int
    stdout: str
    output: bytes
    instructions: int
    instruction_resolution: int
    marks: tuple[Mark, ...]
    stack_bytes: int
    sram_touched_bytes: int | None
    touched: Mapping[str, Touched]
    flash_bytes: int
    ram_static_bytes: int
    emulator: EmulatorName

    def between(self, first: int, second: int) -> tuple[int, ...]:
        """The instructions from each mark ``first`` to the next mark ``second``."""
        counts, start = [], None
        for mark in self.marks:
            if mark.id == first:
                start = mark.instructions
            elif mark.id == second and start is not None:
                counts.append(mark.instructions - start)
                start = None
        return tuple(counts)


def run_firmware(
    firmware: Firmware,
    target: Target,
    *,
    emulator: EmulatorName = "unicorn",
    timeout_s: float = 120,
    inputs: bytes = b"",
    trace_memory: bool = True,
) -> RunResult:
    """Run ``firmware`` until it exits; ``inputs`` is what ``mplan_host_read`` will read.

    ``trace_memory`` makes unicorn note every store (about 0.2 µs each). An exit code other than 0 is
    no error. Raises CheckError MP543 for an access outside of the part's memories, MP544 after
    ``timeout_s`` seconds, MP545 for other processor exceptions; ToolError MP410 if the emulator is
    not installed; UnsupportedError MP411 if it has no model of the target's core or memories.
    """
    if emulator == "unicorn":
        from mplan.runtime import unicorn_emulator

        return unicorn_emulator.run(firmware, target, timeout_s, inputs, trace_memory)
    from mplan.runtime import qemu_emulator

    return qemu_emulator.run(firmware, target, timeout_s, inputs)
