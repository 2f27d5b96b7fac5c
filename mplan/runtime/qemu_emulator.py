"""Emulation with QEMU: a second witness, on a board with the part's core.

Time is counted in instructions (``-icount shift=0``: one per nanosecond) and read from SysTick, so
counts are exact and repeatable up to one tick. Memory is the board's: the linker keeps the image
within the part's sizes, but only an access outside of the board's memories faults, and some of the
board's reserved addresses ignore writes. A stack overflow is therefore found by its watermark.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path

from mplan.diagnostics import CheckError, UnsupportedError
from mplan.runtime.emulator import Mark, RunResult
from mplan.runtime.firmware import Firmware
from mplan.runtime.semihosting import (
    FAULT,
    INPUT,
    LAST_MARK,
    MARKS,
    OUTPUT,
    MarkRecord,
    mark_records,
)
from mplan.runtime.toolchain import find_tool, tools_of
from mplan.targets.load import load_target
from mplan.targets.model import Target, Toolchain

_CONSOLE = "mplan.console"
_MEMORY_FAULTS = 0x000082FF  # CFSR: memory management and bus faults, IACCVIOL to BFARVALID
_BFAR_VALID, _MMFAR_VALID = 1 << 15, 1 << 7


def run(firmware: Firmware, target: Target, timeout_s: float, inputs: bytes) -> RunResult:
    """Run ``firmware`` in QEMU; ``emulator.run_firmware`` has the contract."""
    machine = _machine(firmware, target)
    program = find_tool("qemu-system-arm", "apt install qemu-system-arm")
    with tempfile.TemporaryDirectory(prefix="mplan-qemu-") as name:
        folder = Path(name)
        (folder / INPUT).write_bytes(inputs)
        done = _execute([program, *_arguments(firmware, machine)], folder, timeout_s)
        _check(firmware, folder, done)
        return _report(firmware, folder, machine, done.returncode)


def _machine(firmware: Firmware, target: Target) -> Toolchain:
    """The tools of the target's board; UnsupportedError MP411 if the image is not laid out for it."""
    if not tools_of(target).board:
        raise UnsupportedError("MP411", f"target {target.name} names no QEMU board")
    board = load_target(tools_of(target).board)
    tools = board.toolchain
    if tools is None or not tools.qemu_machine or not tools.qemu_clock_hz:
        raise UnsupportedError("MP411", f"board {board.name} has no QEMU machine")
    for memory in firmware.memories:
        start, size = memory.base or 0, memory.size_bytes or 0
        spans = [(m.base, m.base + (m.size_bytes or 0)) for m in board.memories if m.base is not None]
        if not any(low <= start and start + size <= high for low, high in spans):
            raise UnsupportedError(
                "MP411",
                f"the image is linked for {memory.name} at {start:#010x}, where {board.name} has "
                "no such memory",
                help="build it with layout='board'",
            )
    return tools


def _arguments(firmware: Firmware, machine: Toolchain) -> list[str]:
    return [
        *("-machine", machine.qemu_machine),
        *("-display", "none", "-serial", "none", "-monitor", "none", "-nodefaults"),
        *("-chardev", f"file,id=console,path={_CONSOLE}"),
        *("-semihosting-config", "enable=on,target=native,chardev=console"),
        *("-icount", "shift=0"),
        *("-kernel", str(firmware.elf.resolve())),
    ]


def _execute(command: list[str], folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError("MP544", f"the program did not exit in {timeout_s} s (qemu)") from error


def _check(firmware: Firmware, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    """Raise CheckError if the program faulted or QEMU failed."""
    if (folder / FAULT).exists():
        raise _fault(firmware, (folder / FAULT).read_bytes())
    if done.returncode < 0 or not (folder / MARKS).exists():
        notes = ((done.stderr.strip(), None),) if done.stderr.strip() else ()
        raise CheckError("MP545", f"qemu stopped with status {done.returncode}", notes=notes)


def _fault(firmware: Firmware, record: bytes) -> CheckError:
    frame, pc, cfsr, hfsr, mmfar, bfar = struct.unpack("<6I", record)
    where = f"{pc:#010x}" + (f" ({name})" if (name := firmware.function_at(pc & ~1)) else "")
    status = f"CFSR {cfsr:#x}, HFSR {hfsr:#x}, stack pointer {frame:#010x}"
    if not cfsr & _MEMORY_FAULTS:
        return CheckError("MP545", f"processor fault at pc {where}; {status}")
    valid = bfar if cfsr & _BFAR_VALID else mmfar if cfsr & _MMFAR_VALID else None
    address = "an unknown address" if valid is None else f"{valid:#010x}"
    return CheckError("MP543", f"the program accessed {address}; pc {where}; {status}")


def _report(firmware: Firmware, folder: Path, machine: Toolchain, exit_code: int) -> RunResult:
    records = mark_records((folder / MARKS).read_bytes())
    if records[-1].unused_stack_bytes == 0:
        raise CheckError(
            "MP543",
            f"the stack of {firmware.stack_bytes:,} B overflowed: its last word was written",
            help="build it with a larger stack_bytes",
        )
    per_tick = 1e9 / (machine.qemu_clock_hz or 1)
    output = folder / OUTPUT
    return RunResult(
        exit_code=exit_code,
        stdout=(folder / _CONSOLE).read_text(encoding="utf-8", errors="replace"),
        output=output.read_bytes() if output.exists() else b"",
        instructions=_instructions(records[-1], per_tick),
        instruction_resolution=round(per_tick),
        marks=tuple(Mark(r.id, _instructions(r, per_tick)) for r in records if r.id != LAST_MARK),
        stack_bytes=firmware.stack_bytes - records[-1].unused_stack_bytes,
        sram_touched_bytes=None,
        touched={},
        flash_bytes=firmware.flash_bytes,
        ram_static_bytes=firmware.static_ram_bytes,
        emulator="qemu",
    )


def _instructions(record: MarkRecord, per_tick: float) -> int:
    return round(record.ticks * per_tick)
