"""Emulation with unicorn: the part's memories and no others, every instruction and store seen."""

from __future__ import annotations

import importlib.util
import struct
from importlib import import_module
from typing import Any

from mplan.diagnostics import CheckError, MplanError, UnsupportedError
from mplan.runtime.elf import load_images
from mplan.runtime.emulator import RunResult
from mplan.runtime.firmware import Firmware
from mplan.runtime.semihosting import MARKS, OUTPUT, Host, records_of
from mplan.runtime.toolchain import missing_tool, tools_of
from mplan.runtime.unicorn_trace import Machine
from mplan.targets.model import Target

MODELS = ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33")
_SYSTEM_CONTROL = (0xE000E000, 0x1000)
_CODE_BUFFER_BYTES = 1 << 25  # unicorn reserves 1 GiB of addresses per engine, freed late
_NEVER = 0xFFFFFFFE
_BREAKPOINT = 7
_SEMIHOSTING = b"\xab\xbe"  # bkpt 0xAB
_EXCEPTIONS = {  # target/arm/cpu.h of QEMU, from which unicorn stems
    1: "undefined instruction",
    2: "supervisor call",
    3: "prefetch abort",
    4: "data abort",
    17: "coprocessor or FPU not present",
    18: "invalid state (branch to an even address)",
    19: "stack limit",
    22: "unaligned access",
    23: "division by zero",
}


def run(
    firmware: Firmware, target: Target, timeout_s: float, inputs: bytes, trace_memory: bool
) -> RunResult:
    """Run ``firmware`` in unicorn; ``emulator.run_firmware`` has the contract."""
    return _Run(firmware, target, inputs, trace_memory).result(timeout_s)


class _Run:
    """One run of one processor."""

    def __init__(self, firmware: Firmware, target: Target, inputs: bytes, trace_memory: bool) -> None:
        model = tools_of(target).unicorn_model
        if model not in MODELS:
            raise UnsupportedError(
                "MP411",
                f"unicorn has no model of {target.isa.core or target.name}",
                help="use the emulator qemu",
            )
        if importlib.util.find_spec("unicorn") is None:
            raise missing_tool("unicorn", "pip install unicorn")
        self.firmware, self.target, self.trace_memory = firmware, target, trace_memory
        self.unicorn: Any = import_module("unicorn")
        self.arm: Any = import_module("unicorn.arm_const")
        self.error: MplanError | None = None
        self.uc = self._processor(model)
        self.machine = Machine(self.uc, firmware)
        self.host = Host(inputs, self._read, self._write)
        self._load()

    def _processor(self, model: str) -> Any:
        unicorn = self.unicorn
        uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        uc.ctl_set_cpu_model(getattr(self.arm, f"UC_CPU_ARM_{model.upper().replace('-', '_')}"))
        uc.ctl_set_tcg_buffer_size(_CODE_BUFFER_BYTES)
        uc.mem_map(*_SYSTEM_CONTROL)
        uc.hook_add(unicorn.UC_HOOK_INTR, self._exception)
        uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._fault)
        return uc

    def _load(self) -> None:
        for address, data in load_images(self.firmware.elf):
            self._write(address, data)
        vectors = next(m for m in self.firmware.memories if m.name == self.firmware.vectors)
        stack, self.entry = struct.unpack("<II", self._read(vectors.base or 0, 8))
        self.uc.reg_write(self.arm.UC_ARM_REG_SP, stack)
        self.machine.hook(stores=self.trace_memory)

    def _read(self, address: int, size: int) -> bytes:
        try:
            return bytes(self.uc.mem_read(address, size))
        except self.unicorn.UcError as error:
            raise self._bad_request("read", address, size) from error

    def _write(self, address: int, data: bytes) -> None:
        try:
            self.uc.mem_write(address, data)
        except self.unicorn.UcError as error:
            raise self._bad_request("write", address, len(data)) from error

    def _bad_request(self, verb: str, address: int, size: int) -> CheckError:
        text = f"the program asked the host to {verb} {size:,} B at {address:#010x}"
        return CheckError("MP543", f"{text}, outside of its memories", help=self._spans())

    def _exception(self, uc: Any, number: int, _data: object) -> None:
        pc = uc.reg_read(self.arm.UC_ARM_REG_PC) & ~1
        if number != _BREAKPOINT or self._read(pc, 2) != _SEMIHOSTING:
            name = _EXCEPTIONS.get(number, f"exception {number}")
            self._stop("MP545", f"{name}; pc {self.firmware.place(pc)}")
            return
        operation, argument = (uc.reg_read(r) for r in (self.arm.UC_ARM_REG_R0, self.arm.UC_ARM_REG_R1))
        try:
            uc.reg_write(self.arm.UC_ARM_REG_R0, self.host.call(operation, argument))
            uc.reg_write(self.arm.UC_ARM_REG_PC, pc + 2 | 1)
        except MplanError as error:
            self.error = error
        if self.error or self.host.exit_code is not None:
            uc.emu_stop()

    def _fault(self, uc: Any, access: int, address: int, size: int, _value: int, _: object) -> bool:
        verbs = {
            self.unicorn.UC_MEM_READ_UNMAPPED: "read",
            self.unicorn.UC_MEM_FETCH_UNMAPPED: "executed",
            self.unicorn.UC_MEM_FETCH_PROT: "executed",
        }
        memory = self.firmware.memory_of(address)
        place = f"in {memory.name}" if memory else "outside of all memories"
        pc = self.firmware.place(uc.reg_read(self.arm.UC_ARM_REG_PC) & ~1)
        verb = verbs.get(access, "wrote")
        self._stop("MP543", f"the program {verb} {size} B at {address:#010x}, {place}; pc {pc}")
        return False

    def _stop(self, code: str, message: str) -> None:
        self.error = CheckError(code, message, help=self._spans())
        self.uc.emu_stop()

    def _spans(self) -> str:
        spans = (
            f"{m.name} {m.base or 0:#010x}..{(m.base or 0) + (m.size_bytes or 0):#010x}"
            for m in self.firmware.memories
        )
        return f"{self.target.name} has {', '.join(spans)}"

    def result(self, timeout_s: float) -> RunResult:
        """Run to the end and report; errors are those of ``emulator.run_firmware``."""
        try:
            self.uc.emu_start(self.entry | 1, _NEVER, timeout=max(1, int(timeout_s * 1e6)))
        except self.unicorn.UcError as error:
            if self.error is None:
                pc = self.uc.reg_read(self.arm.UC_ARM_REG_PC) & ~1
                self._stop("MP545", f"{error}; pc {self.firmware.place(pc)}")
        if self.error is not None:
            raise self.error
        if self.host.exit_code is None:
            raise CheckError("MP544", f"the program did not exit in {timeout_s} s (unicorn)")
        return self._report(self.host.exit_code)

    def _report(self, exit_code: int) -> RunResult:
        records = records_of(bytes(self.host.files.get(MARKS, b"")))
        notes = self.machine.trace.notes(records, memory=self.trace_memory, loads=False)
        return RunResult(
            exit_code=exit_code,
            stdout=self.host.console.decode(errors="replace"),
            output=bytes(self.host.files.get(OUTPUT, b"")),
            instructions=notes.instructions,
            marks=notes.marks,
            functions=notes.functions,
            stack_bytes=self.firmware.stack_bytes - records[-1].values[0],
            sram_touched_bytes=notes.sram_touched_bytes,
            accessed=notes.accessed,
            touched=notes.touched,
            flash_bytes=self.firmware.flash_bytes,
            ram_static_bytes=self.firmware.static_ram_bytes,
            emulator="unicorn",
        )
