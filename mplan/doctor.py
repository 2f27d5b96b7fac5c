"""Which tools and packages are present, and what mplan uses each for."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One tool or package: found or not, its version, its purpose, how to get it."""

    name: str
    found: bool
    version: str
    purpose: str
    remedy: str


_PACKAGES = {
    "torch": ("capture, CPU and GPU execution", "pip install 'torch>=2.11,<2.14'"),
    "numba": ("compiles the searches for orders and addresses", "pip install numba"),
    "ortools": ("exact solvers", "pip install ortools"),
    "ziglang": ("compiles C for the emulator", "pip install ziglang"),
    "unicorn": ("runs Cortex-M code", "pip install unicorn"),
    "triton": ("GPU kernels", "pip install 'mplan[gpu]'"),
}
_TOOLS = {
    "cc": ("a C compiler for the host; ziglang is used where there is none", "apt install gcc"),
    "arm-none-eabi-gcc": ("second compiler for Cortex-M", "apt install gcc-arm-none-eabi"),
    "qemu-system-arm": ("second emulator for Cortex-M", "apt install qemu-system-arm"),
    "cmake": ("builds emitted CMake projects", "apt install cmake"),
    "chromium": ("tests of the HTML pictures", "apt install chromium"),
}


def examine() -> tuple[Finding, ...]:
    """Look for every package and tool; nothing is imported."""
    packages = [_package(name, *about) for name, about in _PACKAGES.items()]
    return (*packages, *(_tool(name, *about) for name, about in _TOOLS.items()))


def _package(name: str, purpose: str, remedy: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name), purpose, remedy)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "", purpose, remedy)


def _tool(name: str, purpose: str, remedy: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, path is not None, _version(path) if path else "", purpose, remedy)


def _version(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    words = done.stdout.split("\n", 1)[0].split()
    return next((w for w in reversed(words) if w[:1].isdigit()), "")
