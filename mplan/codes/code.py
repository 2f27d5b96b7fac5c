"""A row of the table of error codes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table: a short title and the long text that ``mplan explain`` prints."""

    title: str
    text: str
