"""The residual network as a project of any kind, and how the tests run build tools on it."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mplan.capture import Captured, capture
from mplan.codegen.project import emit_project
from mplan.targets.load import load_target
from tests.c_nets import net
from tests.c_support import emitted


@functools.cache
def _residual() -> tuple[Captured, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    model, inputs, outputs = net("residual")
    return capture(model, inputs, decompose=True), inputs, outputs


def project(
    folder: Path, target: str, shift: float = 0.0, kind: str = "cmake", name: str = "net"
) -> Path:
    """The project in ``folder``; its golden outputs are moved by ``shift``."""
    captured, inputs, outputs = _residual()
    golden = {"input0": inputs[0].numpy(), "output0": outputs[0].numpy() + np.float32(shift)}
    files = emitted(captured.graph, captured.constants, name=name, golden=golden)
    return put(folder, emit_project(kind, name, load_target(target), files))


def put(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write text files, with their folders."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(text), encoding="utf-8")
    return folder


def sh(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``; compilers treat warnings as errors."""
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "CFLAGS": "-Werror"}, capture_output=True, text=True
    )


def built(folder: Path, *options: str) -> None:
    """Configure and build the CMake project in ``folder``."""
    for command in (("cmake", "-S", ".", "-B", "build", *options), ("cmake", "--build", "build")):
        done = sh(folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
