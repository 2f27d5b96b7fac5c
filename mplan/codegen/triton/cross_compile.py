"""Compile emitted kernels for GPUs that are not there, and read off what they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mplan.codegen.triton.emit import KERNEL, Emitted
from mplan.codegen.triton.private import (
    amd_resources,
    compile_kernel,
    cuda_resources,
    load_module,
)
from mplan.codegen.triton.spec import Attention, Tiling
from mplan.diagnostics import InfeasibleError
from mplan.ir.types import DType
from mplan.targets.load import load_target
from mplan.targets.model import Target

_POINTERS = {
    DType.F16: "*fp16",
    DType.BF16: "*bf16",
    DType.F32: "*fp32",
    DType.F64: "*fp64",
    DType.BOOL: "*i1",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for one GPU: registers per thread, bytes per thread that spill to memory, shared
    memory per program, and the binary (``cubin`` or ``hsaco``) with its assembly text.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    binary: bytes
    assembly: str


def compile_for(emitted: Emitted, target: Target | str, tiling: Tiling | None = None) -> Compiled:
    """The kernel of ``emitted`` for ``target``, with ``tiling`` (the planned one by default).

    Pointers and strides are taken to be multiples of 16, the last dimensions dense. InfeasibleError
    MP521 if it needs more shared memory than ``target`` has, ToolError MP522 if Triton fails.
    """
    target = load_target(target) if isinstance(target, str) else target
    tiling = tiling or emitted.tilings[0]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{KERNEL}.py"
        path.write_text(emitted.source, encoding="utf-8")
        kernel = getattr(load_module(path, f"mplan_{emitted.digest[:16]}"), KERNEL)
        signature, constants = _signature(kernel.arg_names, emitted.attention, tiling)
        options = {
            "num_warps": tiling.warps,
            "num_stages": tiling.stages,
            "enable_fp_fusion": True,
        }
        found = compile_kernel(kernel, signature, constants, _is_aligned, target, options)
    compiled = _compiled(found)
    limit = target.shared_bytes
    if limit is not None and compiled.shared_bytes > limit:
        needs = f"{compiled.shared_bytes:,} B of shared memory, {target.name} has {limit:,} B"
        raise InfeasibleError("MP521", f"the attention kernel needs {needs}")
    return compiled


def _signature(
    names: list[str], attention: Attention, tiling: Tiling
) -> tuple[dict[str, str], dict[str, int]]:
    constants = {"BLOCK_Q": tiling.block_q, "BLOCK_K": tiling.block_k}
    constants |= {name: 1 for name in names if name.endswith("_col")}
    signature = {}
    for name in names:
        part = name.removesuffix("_ptr")
        mask = attention.mask if part == "mask" else None
        element = mask.dtype if mask else attention.dtype
        plain = _POINTERS[element] if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else plain
    return signature, constants


def _is_aligned(name: str) -> bool:
    """Pointers and strides other than the last."""
    is_stride = name.endswith("_row") or ("_b" in name and not name.startswith("size_"))
    return name.endswith("_ptr") or is_stride


def _compiled(found: Any) -> Compiled:
    if "cubin" in found.asm:
        used = cuda_resources(found.asm["cubin"])
        spills = used.get("STACK", 0) + used.get("LOCAL", 0)
        binary, assembly, registers = found.asm["cubin"], found.asm["ptx"], used["REG"]
    else:
        binary, assembly = found.asm["hsaco"], found.asm["amdgcn"]
        used = amd_resources(assembly)
        registers = used["vgpr_count"]
        spills = max(used["private_segment_fixed_size"], 4 * used["vgpr_spill_count"])
    return Compiled(registers, spills, int(found.metadata.shared), binary, assembly)
