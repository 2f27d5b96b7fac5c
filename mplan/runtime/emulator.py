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
    """A call of ``mplan_host_mark(id)`` and the instructions executed before it.

    ``steps`` are those among them that belong to each step of the plan, by its position.
    """

    id: int
    instructions: int
    steps: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Touched:
    """What main and its callees wrote of one object: how many bytes, and the end of the last one.

    ``high_water_bytes`` is 1 + the highest offset written, so it is the part of an arena in use.
    """

    bytes: int
    high_water_bytes: int


@dataclass(frozen=True, slots=True)
class Accessed:
    """Distinct bytes of a memory that main and its callees wrote and read; None: loads unseen."""

    written_bytes: int
    read_bytes: int | None


@dataclass(frozen=True, slots=True)
class Interval:
    """Instructions executed between two marks, in all and by position of the plan's steps."""

    instructions: int
    steps: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a program did.

    ``output`` is what it gave ``mplan_host_write``, ``stdout`` what it printed. ``instructions``
    counts from reset to exit, calls of ``mplan_host_mark`` excepted; it, the marks and ``functions``
    (each function's own, without its callees') are exact. ``stack_bytes`` is the depth of the deepest
    word written. ``sram_touched_bytes`` counts the distinct bytes of RAM written from the first
    instruction of main on, by the program or by the host for it, ``accessed`` the same for each
    memory and ``touched`` for each object; without memory tracing they are None and empty.
    """

    exit_code: int
    stdout: str
    output: bytes
    instructions: int
    marks: tuple[Mark, ...]
    functions: Mapping[str, int]
    stack_bytes: int
    sram_touched_bytes: int | None
    accessed: Mapping[str, Accessed]
    touched: Mapping[str, Touched]
    flash_bytes: int
    ram_static_bytes: int
    emulator: EmulatorName

    def between(self, first: int, second: int) -> tuple[Interval, ...]:
        """What was executed from each mark ``first`` to the next mark ``second``."""
        found, start = [], None
        for mark in self.marks:
            if mark.id == first:
                start = mark
            elif mark.id == second and start is not None:
                steps = {p: n - start.steps[p] for p, n in mark.steps.items()}
                found.append(Interval(mark.instructions - start.instructions, steps))
                start = None
        return tuple(found)


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

    ``trace_memory`` notes every store and, in QEMU, every load. An exit code other than 0 is no error.
    Raises CheckError MP543 for an access outside of the part's memories, MP544 after ``timeout_s``
    seconds, MP545 for other processor exceptions, MP548 for a store to memory of the part that
    belongs to nothing in the image; ToolError MP410 if the emulator is not installed;
    UnsupportedError MP411 if it has no model of the target's core or memories.
    """
    if emulator == "unicorn":
        from mplan.runtime import unicorn_emulator

        return unicorn_emulator.run(firmware, target, timeout_s, inputs, trace_memory)
    from mplan.runtime import qemu_emulator

    return qemu_emulator.run(firmware, target, timeout_s, inputs, trace_memory)
