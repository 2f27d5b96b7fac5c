"""The table of error codes: MP1xx IR, MP2xx plan, MP3xx capture, MP4xx target, config and tools,
MP5xx codegen and execution. ``mplan explain CODE`` prints an entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """A row of the table: a short title and the long text that ``mplan explain`` prints."""

    title: str
    text: str


CODES: dict[str, Code] = {}
