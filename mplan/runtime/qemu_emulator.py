"""Emulation with QEMU: a second witness, on a board with the part's core.

A plugin of our own (``tracing/qemu_plugin.c``) counts instructions and notes loads and stores inside
of QEMU. Memory is the board's: the linker keeps the image within the part's sizes, but only an access
outside of the board's memories faults. The plugin reports stores to what the image does not own, and
a stack overflow is also found by its watermark.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from pathlib import Path

from mplan.diagnostics import CheckError, ToolError, UnsupportedError
from mplan.runtime.emulator import RunResult
from mplan.runtime.firmware import Firmware
from mplan.runtime.semihosting import FAULT, INPUT, MARKS, OUTPUT, records_of
from mplan.runtime.toolchain import find_tool, tools_of
from mplan.runtime.trace import Trace, build
from mplan.targets.load import load_target
from mplan.targets.model import Target, Toolchain

_CONSOLE, _TRACE = "mplan.console", "mplan.trace"
_MEMORY_FAULTS = 0x000082FF  # CFSR: memory management and bus faults, IACCVIOL to BFARVALID
_BFAR_VALID, _MMFAR_VALID = 1 << 15, 1 << 7
# Since which release of QEMU which version of the plugin API is spoken; each release also takes some
# earlier ones. What we use of it is the same in all.
_PLUGIN_APIS = (((9, 1), 3), ((9, 0), 2), ((0, 0), 1))


def run(
    firmware: Firmware, target: Target, timeout_s: float, inputs: bytes, trace_memory: bool
) -> RunResult:
    """Run ``firmware`` in QEMU; ``emulator.run_firmware`` has the contract."""
    machine = _machine(firmware, target)
    program = find_tool("qemu-system-arm", "apt install qemu-system-arm")
    with tempfile.TemporaryDirectory(prefix="mplan-qemu-") as name:
        folder = Path(name)
        (folder / INPUT).write_bytes(inputs)
        trace = Trace(firmware, folder / _TRACE)
        command = [program, *_arguments(firmware, machine), "-plugin", _plugin(program, trace_memory)]
        done = _execute(command, folder, timeout_s)
        _check(firmware, folder, done)
        return _report(trace, folder, done.returncode, trace_memory)


def _machine(firmware: Firmware, target: Target) -> Toolchain:
    """The tools of the target's board; UnsupportedError MP411 if the image is not laid out for it."""
    if not tools_of(target).board:
        raise UnsupportedError("MP411", f"target {target.name} names no QEMU board")
    board = load_target(tools_of(target).board)
    tools = board.toolchain
    if tools is None or not tools.qemu_machine:
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
        *("-kernel", str(firmware.elf.resolve())),
    ]


def _plugin(program: str, trace_memory: bool) -> str:
    """The plugin for this QEMU, with its arguments."""
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    api = f"-DMPLAN_PLUGIN_API={plugin_api(shown)}"
    library = build("qemu_plugin.c", api, "-Wl,--allow-shlib-undefined")
    return f"{library},trace={_TRACE},memory={'on' if trace_memory else 'off'}"


def plugin_api(shown: str) -> int:
    """The version of the plugin API for a QEMU that shows this text for ``--version``."""
    found = re.search(r"version (\d+)\.(\d+)", shown)
    release = tuple(map(int, found.groups())) if found else (0, 0)
    return next(api for first, api in _PLUGIN_APIS if release >= first)


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
        if "plugin" in done.stderr:
            message = "this qemu-system-arm does not load plugins"
            raise ToolError("MP410", message, help="install one that does, or use unicorn", notes=notes)
        raise CheckError("MP545", f"qemu stopped with status {done.returncode}", notes=notes)


def _fault(firmware: Firmware, record: bytes) -> CheckError:
    frame, pc, cfsr, hfsr, mmfar, bfar = struct.unpack("<6I", record)
    where = firmware.place(pc & ~1)
    status = f"CFSR {cfsr:#x}, HFSR {hfsr:#x}, stack pointer {frame:#010x}"
    if not cfsr & _MEMORY_FAULTS:
        return CheckError("MP545", f"processor fault at pc {where}; {status}")
    valid = bfar if cfsr & _BFAR_VALID else mmfar if cfsr & _MMFAR_VALID else None
    address = "an unknown address" if valid is None else f"{valid:#010x}"
    return CheckError("MP543", f"the program accessed {address}; pc {where}; {status}")


def _report(trace: Trace, folder: Path, exit_code: int, trace_memory: bool) -> RunResult:
    firmware = trace.firmware
    records = records_of((folder / MARKS).read_bytes())
    unused_stack_bytes = records[-1].values[0]
    if unused_stack_bytes == 0:
        raise CheckError(
            "MP543",
            f"the stack of {firmware.stack_bytes:,} B overflowed: its last word was written",
            help="build it with a larger stack_bytes",
        )
    notes = trace.notes(records, memory=trace_memory, loads=trace_memory)
    output = folder / OUTPUT
    return RunResult(
        exit_code=exit_code,
        stdout=(folder / _CONSOLE).read_text(encoding="utf-8", errors="replace"),
        output=output.read_bytes() if output.exists() else b"",
        instructions=notes.instructions,
        marks=notes.marks,
        functions=notes.functions,
        stack_bytes=firmware.stack_bytes - unused_stack_bytes,
        sram_touched_bytes=notes.sram_touched_bytes,
        accessed=notes.accessed,
        touched=notes.touched,
        flash_bytes=firmware.flash_bytes,
        ram_static_bytes=firmware.static_ram_bytes,
        emulator="qemu",
    )
