"""A scanner for the text form of graphs: tokens on demand, errors with line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mplan.diagnostics import UserError, Where

#: Nested lists and loops beyond this are refused, so that no text can exhaust the stack.
MAX_DEPTH = 64
MAX_DIGITS = 100
MAX_EXPRESSION = 1000
HELP = "`mplan explain MP101` shows the form of a graph"

_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*)*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_FLOAT = re.compile(r"-?(?:[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|inf\b)")
_INT = re.compile(r"-?[0-9]+")
_EXPRESSION = re.compile(r"\{([A-Za-z0-9_+\-*/%(), ]*)\}")
_FOUND = re.compile(r"[A-Za-z0-9_.]+|[^\n]")


class Scanner:
    """A position in a text. Methods called like a token consume it or raise UserError MP101."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.depth = 0
        self.position = 0
        self._skip()

    def _skip(self) -> None:
        found = _SPACE.match(self.text, self.position)
        assert found
        self.position = found.end()

    def where(self, position: int | None = None) -> Where:
        """The place of ``position`` (default: the next token)."""
        at = self.position if position is None else position
        line_start = self.text.rfind("\n", 0, at) + 1
        return Where(self.file, self.text.count("\n", 0, at) + 1, at - line_start + 1)

    def fail(self, expected: str, help: str = "", position: int | None = None) -> UserError:
        """The error that says what was expected and what stands there instead."""
        at = self.position if position is None else position
        found = _FOUND.match(self.text, at)
        there = repr(found.group()) if found else "the end of the text"
        return UserError("MP101", f"expected {expected}, found {there}", self.where(at), help or HELP)

    def limit(self, message: str, position: int | None = None) -> UserError:
        """The error for text beyond the reader's limits."""
        return UserError("MP106", message, self.where(position), "mplan does not write such text")

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.position)
        if found:
            self.position = found.end()
            self._skip()
        return found

    def at(self, mark: str) -> bool:
        """Whether the next character is one of ``mark``."""
        return self.text[self.position : self.position + 1] in tuple(mark)

    def at_word(self, *words: str) -> bool:
        """Whether the next token is one of ``words``."""
        found = _WORD.match(self.text, self.position)
        return bool(found) and found.group() in words  # type: ignore[union-attr]

    def accept(self, mark: str) -> bool:
        """Consume the character ``mark`` if it is next."""
        if not self.at(mark):
            return False
        self.position += 1
        self._skip()
        return True

    def expect(self, mark: str, help: str = "") -> None:
        """Consume the character ``mark``."""
        if not self.accept(mark):
            raise self.fail(repr(mark), help)

    def accept_word(self, word: str) -> bool:
        """Consume ``word`` if it is the next token."""
        return self.at_word(word) and self._match(_WORD) is not None

    def expect_word(self, word: str, help: str = "") -> None:
        """Consume ``word``."""
        if not self.accept_word(word):
            raise self.fail(f"'{word}'", help)

    def word(self, expected: str, help: str = "") -> str:
        """A bare name."""
        found = self._match(_WORD)
        if not found:
            raise self.fail(expected, help)
        return found.group()

    def name(self, expected: str, help: str = "") -> str:
        """A name, bare or quoted."""
        return self.string(expected) if self.at('"') else self.word(expected, help)

    def string(self, expected: str) -> str:
        """A quoted string with JSON's escapes."""
        start = self.position
        found = self._match(_STRING)
        if not found:
            raise self.fail(f'{expected} in double quotes "…"')
        try:
            return str(json.loads(found.group(), strict=False))
        except ValueError:
            raise self.fail("a string with JSON's escapes", position=start) from None

    def integer(self, expected: str, help: str = "") -> int:
        """A decimal integer."""
        start = self.position
        if _FLOAT.match(self.text, start):
            raise self.fail(expected, help)
        found = self._match(_INT)
        if not found:
            raise self.fail(expected, help)
        if len(found.group()) > MAX_DIGITS:
            raise self.limit(f"a number has {len(found.group()):,} digits", start)
        return int(found.group())

    def number(self) -> int | float:
        """An integer, or a float (with a point, an exponent, or ``inf``)."""
        found = self._match(_FLOAT)
        return float(found.group()) if found else self.integer("a number")

    def expression(self) -> tuple[str, int]:
        """The text between braces of a size expression, and its position."""
        start = self.position
        found = self._match(_EXPRESSION)
        if not found:
            expected = "a size expression such as {s0 * 2}"
            raise self.fail(expected, "names, integers, + - * // %, max and min between braces")
        if len(found.group(1)) > MAX_EXPRESSION:
            raise self.limit(f"a size expression has {len(found.group(1)):,} characters", start)
        return found.group(1), start

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Go one level deeper, within ``MAX_DEPTH``."""
        if self.depth == MAX_DEPTH:
            raise self.limit(f"the text nests deeper than {MAX_DEPTH} levels")
        self.depth += 1
        yield
        self.depth -= 1

    def finish(self) -> None:
        """Check that nothing follows."""
        if self.position < len(self.text):
            raise self.fail("the end of the text")
