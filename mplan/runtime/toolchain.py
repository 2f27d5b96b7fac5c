"""The C compilers for microcontrollers: zig (from PyPI) and arm-none-eabi-gcc, run as commands."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mplan.diagnostics import CheckError, InternalError, MplanError, ToolError, UnsupportedError
from mplan.targets.model import Target, Toolchain

ToolchainName = Literal["zig", "gcc"]

SUPPORT = Path(__file__).parent / "cortex_m"
_CODE = (
    "-O2",
    "-fno-strict-aliasing",  # one arena holds values of several types
    "-g0",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-common",
    "-fomit-frame-pointer",
    "-fno-math-errno",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
)
_COMPILE_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler for one target: ``command`` compiles and links, ``sources`` are its own libc.

    ``usage_flags`` make it write each function's stack frame to a file, whose path replaces "{}".
    """

    name: ToolchainName
    command: tuple[str, ...]
    compile_flags: tuple[str, ...]
    usage_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    libraries: tuple[str, ...]
    sources: tuple[Path, ...]

    def compile(
        self, source: Path, output: Path, includes: Sequence[Path], defines: Mapping[str, str]
    ) -> None:
        """Compile one C file to an object; CheckError MP541 with the compiler's output.

        The stack frames of its functions go to a ``.su`` file beside the object.
        """
        usage = str(output.with_suffix(".su"))
        flags = [*self.compile_flags, *(flag.replace("{}", usage) for flag in self.usage_flags)]
        flags += [f"-I{path}" for path in includes]
        flags += [f"-D{name}={value}" if value else f"-D{name}" for name, value in defines.items()]
        done = _run([*self.command, *flags, "-c", str(source), "-o", str(output)])
        if done.returncode:
            message = f"{self.name} rejected {source.name} (exit status {done.returncode})"
            raise CheckError("MP541", message, notes=_notes(done.stderr))

    def link(self, objects: Sequence[Path], script: Path, output: Path) -> str:
        """Link objects into an ELF file; '' if that worked, else the linker's output."""
        flags = [*self.link_flags, "-T", str(script), *map(str, objects), *self.libraries]
        done = _run([*self.command, *flags, "-o", str(output)])
        return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""


def tools_of(target: Target) -> Toolchain:
    """The target's [toolchain]; UnsupportedError MP411 if it has none."""
    if target.toolchain is None:
        raise UnsupportedError(
            "MP411",
            f"target {target.name} is no microcontroller that can be built for and emulated",
            help="its file has no [toolchain] table",
        )
    return target.toolchain


def compiler(name: ToolchainName, target: Target) -> Compiler:
    """The compiler called ``name``, set up for ``target``.

    Raises ToolError MP410 if it is not installed, UnsupportedError MP411 if the target's file does
    not say how to use it.
    """
    tools = tools_of(target)
    keys = ("zig_target", "zig_mcpu") if name == "zig" else ("gcc_flags",)
    for key in keys:
        if not getattr(tools, key):
            raise UnsupportedError(
                "MP411",
                f"target {target.name} cannot be built for with {name}",
                help=f"its file does not set toolchain.{key}",
            )
    return _zig(tools) if name == "zig" else _gcc(tools)


def zig_command() -> tuple[str, ...]:
    """The command of the zig C compiler; ToolError MP410 if the package is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        raise missing_tool("ziglang", "pip install ziglang")
    return (sys.executable, "-m", "ziglang", "cc")


def find_tool(name: str, install: str) -> str:
    """The path of a program; ToolError MP410 that says how to ``install`` it if there is none."""
    path = shutil.which(name)
    if path is None:
        raise missing_tool(name, install)
    return path


def missing_tool(name: str, install: str) -> ToolError:
    """The error for a tool that is not there."""
    return ToolError("MP410", f"{name} is not installed", help=f"install it: {install}")


def link_error(name: ToolchainName, output: str) -> MplanError:
    """The error for a linker's failure that is not one of size."""
    return CheckError("MP542", f"{name} cannot link the program", notes=_notes(output))


def _zig(tools: Toolchain) -> Compiler:
    machine = ("-target", tools.zig_target, f"-mcpu={tools.zig_mcpu}")
    # A freestanding compiler knows nothing of memcpy and sqrtf; here both are what C says they are.
    code = (*machine, *_CODE, "-fhosted", "-fno-sanitize=all", "-fno-stack-protector")
    libc = SUPPORT / "freestanding"
    return Compiler(
        name="zig",
        command=zig_command(),
        compile_flags=(*code, f"-I{libc}"),
        usage_flags=("-Xclang", "-stack-usage-file", "-Xclang", "{}"),
        link_flags=(*machine, "-O2", "-Wl,--gc-sections,--build-id=none"),
        libraries=(),
        sources=tuple(sorted(libc.glob("*.c"))),
    )


def _gcc(tools: Toolchain) -> Compiler:
    install = "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi"
    return Compiler(
        name="gcc",
        command=(find_tool("arm-none-eabi-gcc", install),),
        compile_flags=(*tools.gcc_flags, *_CODE),
        usage_flags=("-fstack-usage",),
        link_flags=(*tools.gcc_flags, "-nostartfiles", "-Wl,--gc-sections,--build-id=none"),
        libraries=("-lm",),
        sources=(),
    )


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_COMPILE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise InternalError("MP541", f"{command[0]} did not end in {_COMPILE_TIMEOUT_S} s") from error


def _notes(output: str) -> tuple[tuple[str, None], ...]:
    return ((output.strip(), None),) if output.strip() else ()
