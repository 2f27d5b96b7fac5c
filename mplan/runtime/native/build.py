"""Build the heap's C sources once per machine, and find the libc10 that PyTorch has loaded."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mplan.diagnostics import ToolError

FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-fexceptions", "-pthread")
MACHINES = ("x86_64", "aarch64")


def compilers() -> list[tuple[str, ...]]:
    """The C compilers to try, in order: the system's, then the one of our dependency ziglang."""
    found = [(path,) for path in map(shutil.which, ("cc", "gcc", "clang")) if path]
    return [*found, (sys.executable, "-m", "ziglang", "cc")]


def sources() -> list[Path]:
    """The C files, in a fixed order."""
    return sorted(Path(__file__).parent.glob("*.[ch]"))


def compile_to(target: Path, compiler: tuple[str, ...]) -> str:
    """Compile the sources into the shared object ``target``; the compiler's errors, or ''."""
    files = [str(path) for path in sources() if path.suffix == ".c"]
    command = [*compiler, *FLAGS, *files, "-o", str(target), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else ""


def library() -> Path:
    """The shared object, built now or found in the cache of this user.

    Raises ToolError MP560 on a platform without the known C++ ABI, MP561 if no compiler works.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise ToolError(
            "MP560",
            f"the planned CPU heap runs on Linux ({', '.join(MACHINES)}), "
            f"not on {sys.platform} {platform.machine()}",
        )
    target = _cache() / f"heap-{_key()}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = _build(Path(folder) / target.name)
            built.replace(target)
    return target


def _build(target: Path) -> Path:
    notes = []
    for compiler in compilers():
        errors = compile_to(target, compiler)
        if not errors:
            return target
        notes.append((f"{' '.join(compiler)}: {errors.splitlines()[0]}", None))
    raise ToolError(
        "MP561",
        f"none of {len(notes)} C compilers builds the CPU heap",
        help="install a C compiler, or `pip install ziglang`",
        notes=tuple(notes),
    )


def _key() -> str:
    import torch

    digest = hashlib.sha256("\0".join((*FLAGS, torch.__version__)).encode())
    digest.update(f"{platform.machine()} {platform.libc_ver()}".encode())
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        (home / "mplan").mkdir(parents=True, exist_ok=True)
        if os.access(home / "mplan", os.W_OK):
            return home / "mplan"
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="mplan-"))


def libc10() -> int:
    """The handle of the libc10 that this process has loaded with PyTorch; MP562 if there is none."""
    import ctypes

    import torch

    path = Path(torch.__file__).parent / "lib" / "libc10.so"
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)._handle
    except OSError as error:
        raise unknown_allocator(f"{path} is not loaded") from error


def unknown_allocator(why: str) -> ToolError:
    """The error for a PyTorch whose allocator we cannot stand in front of."""
    import torch

    return ToolError(
        "MP562",
        f"the CPU allocator of torch {torch.__version__} is not known: {why}",
        help="without the planned heap, models run with PyTorch's own allocation",
    )
