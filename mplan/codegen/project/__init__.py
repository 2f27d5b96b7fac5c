"""Build systems around emitted C: the files that turn the sources into a library and a self-test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from mplan.codegen.project.arduino import arduino_files
from mplan.codegen.project.cmake import cmake_files
from mplan.codegen.project.platformio import platformio_files
from mplan.codegen.project.sources import Files
from mplan.codegen.project.zephyr import zephyr_files
from mplan.diagnostics import UserError
from mplan.targets.model import Target

Emitter = Callable[[str, Target, Mapping[str, "str | bytes"]], Files]

#: Kind of project → what lays out its files.
PROJECTS: dict[str, Emitter] = {
    "arduino": arduino_files,
    "cmake": cmake_files,
    "platformio": platformio_files,
    "zephyr": zephyr_files,
}


def emit_project(kind: str, name: str, target: Target, files: Mapping[str, str | bytes]) -> Files:
    """All files of a ``kind`` of project, the emitted C ``files`` of the network ``name`` included.

    The emitted files keep their names and lie where the build system wants them. UserError MP505 for
    an unknown kind.
    """
    if kind not in PROJECTS:
        close = get_close_matches(kind, PROJECTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(PROJECTS))}"
        raise UserError("MP505", f"there is no project of kind {kind!r}", help=hint)
    return PROJECTS[kind](name, target, files)
