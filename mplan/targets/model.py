"""What mplan knows about a piece of hardware: its memories, its instruction set, its tools.

A target is data. The planner reads the memories (as ``ir.plan.Region``), code generation the ISA
features, the emulator the toolchain, the cost model the costs. Nothing here depends on a vendor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mplan.diagnostics import UserError
from mplan.ir.plan import Region

Family = Literal["cpu", "gpu", "mcu"]
MemoryKind = Literal["sram", "flash", "dram", "hbm", "shared", "host"]
Fpu = Literal["none", "sp", "dp"]


@dataclass(frozen=True, slots=True)
class Memory:
    """One memory: a span of addresses, or a pool without addresses where ``base`` is None.

    ``size_bytes`` None means "as much as the machine has". ``alignment`` (a power of two, bytes)
    holds for every buffer placed here. ``bandwidth_bytes_per_s`` is what the compute units see.
    ``addressable`` False means that operators cannot touch data here, only copies go in and out.
    ``kind`` "flash" is read-only at run time, "shared" exists once per compute unit.
    """

    name: str
    kind: MemoryKind
    size_bytes: int | None = None
    base: int | None = None
    alignment: int = 1
    bandwidth_bytes_per_s: float | None = None
    addressable: bool = True

    def region(self) -> Region:
        """The planner's view of this memory."""
        rate = self.bandwidth_bytes_per_s
        cost = round(1e12 / rate) if rate else 0
        return Region(self.name, self.size_bytes, self.alignment, self.kind, self.addressable, cost)


@dataclass(frozen=True, slots=True)
class Isa:
    """Instruction-set features. ``units`` counts SMs, compute units or cores.

    ``core`` names a CPU core ("cortex-m7"), ``arch`` an architecture as compilers spell it
    ("armv7e-m", "sm_90", "gfx942"). ``fpu`` is the widest float in hardware; ``dsp`` the 16-bit
    SIMD of Armv7E-M, ``mve`` Helium. ``warp_threads`` is the width of a warp or wavefront.
    """

    core: str = ""
    arch: str = ""
    fpu: Fpu = "none"
    dsp: bool = False
    mve: bool = False
    warp_threads: int | None = None
    units: int | None = None


@dataclass(frozen=True, slots=True)
class Toolchain:
    """How to build for a microcontroller and which emulators can run the result.

    ``board`` names the target whose QEMU machine (``qemu_machine``) has the same core. ``vectors`` is
    the memory from which the core boots; empty means the memory of the weights. ``stack_bytes`` is
    reserved by the linker.
    """

    zig_target: str = ""
    zig_mcpu: str = ""
    gcc_flags: tuple[str, ...] = ()
    unicorn_model: str = ""
    board: str = ""
    qemu_machine: str = ""
    vectors: str = ""
    stack_bytes: int = 4096


@dataclass(frozen=True, slots=True)
class Costs:
    """Peak rates per second and other figures of the cost model; None where nothing is known.

    ``flops_f32`` is the vector rate, ``flops_f16`` the dense matrix rate of f16 and bf16,
    ``ops_int8`` the dense int8 rate (a multiply-accumulate counts two). ``launch_s`` is the time to
    start a kernel, ``instructions_per_mac_int8`` what a tuned int8 convolution spends.
    """

    clock_hz: float | None = None
    flops_f32: float | None = None
    flops_f16: float | None = None
    ops_int8: float | None = None
    launch_s: float | None = None
    instructions_per_mac_int8: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A machine. ``arena`` names the memory of the activations, ``weights`` that of the constants."""

    name: str
    family: Family
    memories: tuple[Memory, ...]
    arena: str
    weights: str
    description: str = ""
    isa: Isa = Isa()
    toolchain: Toolchain | None = None
    costs: Costs = Costs()

    def memory(self, name: str) -> Memory:
        """The memory called ``name``; UserError MP407 if there is none."""
        for memory in self.memories:
            if memory.name == name:
                return memory
        have = ", ".join(m.name for m in self.memories)
        raise UserError("MP407", f"target {self.name} has no memory {name!r}", help=f"it has {have}")

    @property
    def arena_memory(self) -> Memory:
        """The memory that holds activations."""
        return self.memory(self.arena)

    @property
    def weights_memory(self) -> Memory:
        """The memory that holds constants."""
        return self.memory(self.weights)

    @property
    def shared_bytes(self) -> int | None:
        """The most on-chip shared memory a thread block can have; None if there is no such memory."""
        return next((m.size_bytes for m in self.memories if m.kind == "shared"), None)

    def regions(self) -> tuple[Region, ...]:
        """The planner's view of all memories, in file order."""
        return tuple(m.region() for m in self.memories)
