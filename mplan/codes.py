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


CODES: dict[str, Code] = {
    "MP401": Code(
        "unknown target",
        "No target of this name is built in. `mplan targets` lists them; a path to a TOML file works "
        "in the place of a name.",
    ),
    "MP402": Code(
        "unknown key in a target file",
        "The key is not part of the description of a target. Keys are checked strictly, because a "
        "misspelt size would otherwise be ignored. The help line lists the keys known in that table.",
    ),
    "MP403": Code(
        "missing key in a target file",
        "A target needs family, arena and weights, and each memory a kind; the named key is in "
        "neither the file nor those it inherits from.",
    ),
    "MP404": Code(
        "wrong value in a target file",
        "The value has the wrong type or range, names a memory that the target does not have, or "
        "places a memory inside another.",
    ),
    "MP405": Code(
        "unreadable target file",
        "The file does not exist, cannot be read, or is not valid TOML.",
    ),
    "MP406": Code(
        "circular inheritance of targets",
        "A target inherits from itself through the files named in the message.",
    ),
    "MP407": Code(
        "no such memory",
        "The target has no memory of this name. The help line lists the memories it has.",
    ),
    "MP410": Code(
        "missing tool",
        "A compiler or an emulator that the request needs is not installed, or not on the PATH. The "
        "help line says how to install it.",
    ),
    "MP411": Code(
        "the target cannot be built for or emulated",
        "The target's file lacks the part of [toolchain] that this compiler or emulator needs, or "
        "the emulator has no model of its core.",
    ),
}
