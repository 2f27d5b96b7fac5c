"""Triton's interfaces that are not public, pinned in one place and covered by tests (3.6 to 3.9)."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mplan.diagnostics import ToolError
from mplan.targets.model import Target


@dataclass
class Traffic:
    """Bytes that interpreted kernels have loaded and stored, lane by lane."""

    loaded_bytes: int = 0
    stored_bytes: int = 0

    @property
    def moved_bytes(self) -> int:
        """Loads and stores together."""
        return self.loaded_bytes + self.stored_bytes


def triton_module() -> Any:
    """The package; ToolError MP522 if it is not installed."""
    try:
        import triton
    except ImportError as e:
        raise ToolError("MP522", "Triton is not installed", help="pip install 'mplan[gpu]'") from e
    return triton


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Count the bytes that kernels move while they run in Triton's interpreter.

    Only lanes whose mask is set count. The process must run with ``TRITON_INTERPRET=1``.
    """
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    traffic = Traffic()
    load, store = Builder.create_masked_load, Builder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        traffic.loaded_bytes += _lanes(mask) * _itemsize(pointers)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        traffic.stored_bytes += _lanes(mask) * _itemsize(pointers)
        return store(self, pointers, values, mask, *rest)

    Builder.create_masked_load, Builder.create_masked_store = counted_load, counted_store
    try:
        yield traffic
    finally:
        Builder.create_masked_load, Builder.create_masked_store = load, store


def _lanes(mask: Any) -> int:
    return int(mask.data.sum())


def _itemsize(pointers: Any) -> int:
    return max(int(pointers.get_element_ty().primitive_bitwidth) // 8, 1)


def load_module(path: Path, name: str) -> ModuleType:
    """Import the Python file ``path`` as ``name`` (Triton reads kernels' sources from their files)."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def gpu_target(target: Target) -> Any:
    """Triton's description of ``target``; ToolError MP522 if Triton has no backend for it."""
    triton_module()
    from triton.backends.compiler import GPUTarget

    arch, threads = target.isa.arch, target.isa.warp_threads
    if match := re.fullmatch(r"sm_(\d+)a?", arch):
        return GPUTarget("cuda", int(match[1]), threads or 32)
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, threads or 64)
    raise ToolError(
        "MP522", f"Triton cannot compile for {target.name} (architecture {arch or 'unknown'})"
    )


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, int],
    aligned: Callable[[str], bool],
    target: Target,
    options: Mapping[str, int],
) -> Any:
    """Compile a ``triton.jit`` function without a GPU.

    ``signature`` gives the type of every parameter (``constexpr`` for those in ``constants``);
    ``aligned`` says which are known to be multiples of 16. ToolError MP522 if compilation fails.
    """
    triton = triton_module()
    from triton.compiler import ASTSource

    if not hasattr(kernel, "arg_names") or not hasattr(kernel, "cache_key"):
        raise ToolError(
            "MP522", "kernels cannot be compiled in Triton's interpreter", help="unset TRITON_INTERPRET"
        )
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if aligned(name)
    }
    source = ASTSource(kernel, dict(signature), dict(constants), attributes)
    try:
        return triton.compile(source, target=gpu_target(target), options=dict(options))
    except ToolError:
        raise
    except Exception as e:  # whatever the compiler's passes raise
        reason = str(e).strip().split("\n")[0] or type(e).__name__
        raise ToolError("MP522", f"Triton failed for {target.name}: {reason}") from e


def cuda_resources(cubin: bytes) -> Mapping[str, int]:
    """Registers, stack and local memory per thread of the kernel in ``cubin``, by cuobjdump's names."""
    from tempfile import TemporaryDirectory

    from triton import knobs

    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as e:
            raise ToolError("MP522", f"Triton's cuobjdump failed: {e}") from e
    found = re.findall(r"\b(REG|STACK|LOCAL):(\d+)", output)
    return {name: int(number) for name, number in found}


def amd_resources(assembly: str) -> Mapping[str, int]:
    """Vector registers, their spills, and private memory of the kernel in ``assembly``."""
    names = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    return {
        name: int(n) for name in names for n in re.findall(rf"^\s+\.{name}:\s+(\d+)", assembly, re.M)
    }
