"""The errors of mplan: one tree, one table of codes, one way to show them.

Every error that a user can cause carries a code of the table ``CODES``, a message with the numbers,
the place in the user's source where one is known, and a line that says what to do. ``render`` turns
it into text with the source line and a caret; ``mplan explain CODE`` prints the long text.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of the command line, one per kind of outcome."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    UNSUPPORTED = 3
    OVER_BUDGET = 4
    CHECK_FAILED = 5
    MISSING_TOOL = 6


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file: 1-based ``line`` and ``column``; 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """``file:line:column`` without the unknown parts."""
        parts = [self.file, *(str(n) for n in (self.line, self.column) if n)]
        return ":".join(parts)


class MplanError(Exception):
    """An error with a code, a message, a place and a way out.

    ``code`` is a key of ``CODES``; ``notes`` are further findings of the same kind (all unsupported
    ops of a model, say), each with its own place.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(
        self,
        code: str,
        message: str,
        where: Where | None = None,
        help: str = "",
        notes: tuple[tuple[str, Where | None], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.help = help
        self.notes = notes

    def __str__(self) -> str:
        """One line: code, message and place."""
        place = f" ({self.where})" if self.where else ""
        return f"{self.code}: {self.message}{place}"


class UserError(MplanError):
    """The input or the call is wrong."""

    exit_code = ExitCode.USAGE


class UnsupportedError(MplanError):
    """The input is valid, but mplan cannot handle a part of it."""

    exit_code = ExitCode.UNSUPPORTED


class InfeasibleError(MplanError):
    """No plan fits the budget, or none was found before the deadline."""

    exit_code = ExitCode.OVER_BUDGET


class CheckError(MplanError):
    """A plan, a graph or a comparison failed verification."""

    exit_code = ExitCode.CHECK_FAILED


class ToolError(MplanError):
    """A tool or package that the request needs is missing or failed."""

    exit_code = ExitCode.MISSING_TOOL


class InternalError(MplanError):
    """A bug in mplan."""

    exit_code = ExitCode.INTERNAL


def render(error: MplanError) -> str:
    """Show ``error`` as text: the code, the user's source line with a caret, the notes, the help."""
    lines = [f"error[{error.code}]: {error.message}"]
    lines += _excerpt(error.where)
    for text, where in error.notes:
        lines.append(f"  note: {text}" + (f" ({where})" if where else ""))
    if error.help:
        lines.append(f"  help: {error.help}")
    return "\n".join(lines)


def _excerpt(where: Where | None) -> list[str]:
    if where is None:
        return []
    lines = [f"  --> {where}"]
    source = linecache.getline(where.file, where.line).rstrip("\n") if where.line else ""
    if source.strip():
        gutter = f"{where.line} | "
        indent = where.column - 1 if where.column else len(source) - len(source.lstrip())
        lines += [f"  {gutter}{source}", "  " + " " * (len(gutter) + indent) + "^"]
    return lines
