"""Plans, builds and runs emitted C on the host, for the tests of the C code generator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mplan.codegen.c.emit import emit_c
from mplan.ir.check import check
from mplan.ir.graph import Graph
from mplan.ir.plan import Placement, Plan, Problem, Region
from mplan.ir.storage import Layout, Lowered, problem_of
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.pipeline import run_passes

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wdouble-promotion")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SRAM = Region("sram", alignment=4)
FLASH = Region("flash", alignment=4)
LAYOUT = Layout(SRAM, weights=FLASH, inputs=SRAM)
GUARD_BYTES = 64
_GUARD = 0xA5


def host_compiler() -> list[str]:
    """gcc, or the C compiler that comes with ziglang."""
    gcc = shutil.which("gcc")
    return [gcc] if gcc else [sys.executable, "-m", "ziglang", "cc"]


def first_fit(graph: Graph, layout: Layout = LAYOUT) -> tuple[Lowered, Plan]:
    """A valid plan in the captured order: big buffers first, each at the lowest free offset."""
    lowered = problem_of(graph, layout)
    problem = lowered.problem
    order = tuple(range(len(problem.steps)))
    spans = problem.lifetimes(order)
    placed: list[Placement] = []
    for i in sorted(range(len(spans)), key=lambda i: (-problem.buffers[i].size_bytes, i)):
        region = problem.buffers[i].regions[0]
        rivals = [p for p in placed if p.region == region and _meet(spans[i], (p.start, p.end))]
        placed.append(Placement(i, region, _lowest(problem, i, rivals), *spans[i]))
    heights = dict.fromkeys((r.name for r in problem.regions), 0)
    for p in placed:
        if p.end > p.start:
            top = p.offset + problem.buffers[p.buffer].size_bytes
            heights[p.region] = max(heights[p.region], top)
    plan = Plan(problem.digest, order, tuple(placed), peaks=tuple(heights.items()))
    assert check(problem, plan) == ()
    return lowered, plan


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _lowest(problem: Problem, index: int, rivals: Sequence[Placement]) -> int:
    buffer = problem.buffers[index]
    unit = max(buffer.alignment, problem.region(buffer.regions[0]).alignment)
    offset = 0
    for rival in sorted(rivals, key=lambda p: p.offset):
        if offset + buffer.size_bytes <= rival.offset:
            break
        past = rival.offset + problem.buffers[rival.buffer].size_bytes
        offset = max(offset, -(-past // unit) * unit)
    return offset


def emitted(
    graph: Graph, constants: Mapping[str, Any], name: str = "net", **options: Any
) -> dict[str, str]:
    """The C files of ``graph`` under a plan of its own."""
    lowered, plan = first_fit(graph)
    files = emit_c(graph, lowered, plan, constants, name=name, **options)
    return {path: str(text) for path, text in files.items()}


def prepared(graph: Graph, constants: Mapping[str, Any]) -> tuple[Graph, Mapping[str, Any]]:
    """What the passes for microcontrollers make of a captured graph, and its constants."""
    ctx = Context(LAYOUT, constants=constants)
    passes = parse_pipeline("canonicalize,fold_batch_norm,fuse_attention,inplace")
    return run_passes(graph, passes, ctx), ctx.constants


def write(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write the files; returns the C sources."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files if name.endswith(".c")]


def compile_c(command: Sequence[str], sources: Sequence[Path], *options: str) -> None:
    """Run a compiler; its messages become the failure."""
    done = subprocess.run([*command, *options, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]


def assert_close(
    actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], rtol: float = 1e-4
) -> None:
    """Floats agree within ``rtol`` (and 1e-5), everything else exactly."""
    for ours, theirs in zip(actual, expected, strict=True):
        theirs = theirs.detach().contiguous()
        tolerance = (
            {"rtol": rtol, "atol": 1e-5} if theirs.is_floating_point() else {"rtol": 0, "atol": 0}
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def run_program(
    folder: Path,
    files: Mapping[str, str],
    inputs: Sequence[torch.Tensor],
    like: Sequence[torch.Tensor],
    *options: str,
) -> list[torch.Tensor]:
    """Run the network ``net`` as a program of its own under the address and UB sanitizers."""
    sizes = [t.numel() * t.element_size() for t in (*inputs, *like)]
    sources = write(folder, {**files, "main.c": _program(len(inputs), sizes)})
    program = folder / "program"
    compile_c(host_compiler(), sources, *STRICT, "-O0", *SANITIZE, *options, "-o", str(program), "-lm")
    data = b"".join(t.detach().contiguous().view(-1).numpy().tobytes() for t in inputs)
    done = subprocess.run([str(program)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    outputs, at = [], 0
    for tensor, size in zip(like, sizes[len(inputs) :], strict=True):
        part = torch.frombuffer(bytearray(done.stdout[at : at + size]), dtype=tensor.dtype)
        outputs.append(part.reshape(tensor.shape))
        at += size
    assert at == len(done.stdout)
    return outputs


def _program(inputs: int, sizes: Sequence[int]) -> str:
    """A main that reads the inputs from standard input and writes the outputs to standard output."""
    lines = [f"void *p{i} = malloc({size});" for i, size in enumerate(sizes)]
    for i, size in enumerate(sizes[:inputs]):
        lines.append(f"if (fread(p{i}, 1, {size}, stdin) != {size}) return 3;")
    lines.append(f"if (net_run({', '.join(f'p{i}' for i in range(len(sizes)))}) != 0) return 4;")
    for i, size in enumerate(sizes[inputs:], inputs):
        lines.append(f"if (fwrite(p{i}, 1, {size}, stdout) != {size}) return 5;")
    lines += [f"free(p{i});" for i in range(len(sizes))]
    body = "\n    ".join(lines)
    head = '#include <stdio.h>\n#include <stdlib.h>\n\n#include "net.h"\n'
    return f"{head}\nint main(void) {{\n    {body}\n    return 0;\n}}\n"


@dataclass
class Network:
    """An emitted network ``net`` as a shared library; its arena has guard bytes around it."""

    library: ctypes.CDLL
    memory: np.ndarray
    status: int = 0

    def run(self, inputs: Sequence[torch.Tensor], like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs in the shapes and types of ``like``, through ``net_run``."""
        given = [t.detach().contiguous() for t in inputs]
        taken = [torch.empty(t.shape, dtype=t.dtype) for t in like]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*given, *taken)]
        self.status = self.library.net_run(*pointers)
        return taken

    @property
    def guards_intact(self) -> bool:
        """Whether nobody has written just below or above the arena."""
        edges = (self.memory[:GUARD_BYTES], self.memory[-GUARD_BYTES:])
        return all(bool((edge == _GUARD).all()) for edge in edges)

    @property
    def arena(self) -> np.ndarray:
        """The bytes of the arena."""
        return self.memory[GUARD_BYTES:-GUARD_BYTES]


def build(folder: Path, files: Mapping[str, str], *options: str) -> Network:
    """Compile and load; the arena is the application's own, filled with the guard byte."""
    size = int(files["net.h"].split("_ARENA_BYTES ")[1].split()[0])
    total = size + 2 * GUARD_BYTES
    guard = (
        f"__attribute__((aligned(16))) unsigned char guarded[{total}];\n"
        f'__asm__(".globl own_arena\\nown_arena = guarded + {GUARD_BYTES}");\n'
    )
    sources = write(folder, {**files, "guard.c": guard})
    library = folder / "net.so"
    flags = ["-shared", "-fPIC", "-O1", "-DMPLAN_ARENA=own_arena", "-o", str(library), *options]
    compile_c(host_compiler(), sources, *STRICT, *flags, "-lm")
    loaded = ctypes.CDLL(str(library))
    for name in ("net_input", "net_output"):
        getattr(loaded, name).restype = ctypes.c_void_p
    memory = np.ctypeslib.as_array((ctypes.c_ubyte * total).in_dll(loaded, "guarded"))
    memory[:] = _GUARD
    return Network(loaded, memory)
