"""Build systems around emitted C: the files that turn the sources into a library and a self-test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from mplan.codegen.project.cmake import cmake_files
from mplan.diagnostics import UserError
from mplan.targets.model import Target

Emitter = Callable[[str, Target, Mapping[str, object]], dict[str, str | bytes]]

#: Kind of project → what writes its files.
PROJECTS: dict[str, Emitter] = {"cmake": cmake_files}


def emit_project(
    kind: str, name: str, target: Target, files: Mapping[str, object]
) -> dict[str, str | bytes]:
    """The files of a ``kind`` of project around the emitted C ``files`` of the network ``name``.

    They lie in the same folder as the sources. UserError MP505 for an unknown kind.
    """
    if kind not in PROJECTS:
        close = get_close_matches(kind, PROJECTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(PROJECTS))}"
        raise UserError("MP505", f"there is no project of kind {kind!r}", help=hint)
    return PROJECTS[kind](name, target, files)
