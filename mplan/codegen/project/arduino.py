"""An Arduino library with a sketch that runs the self-test.

Layout and fields: Arduino CLI documentation, "Library specification" (format 1.5, revision 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mplan import templates
from mplan.codegen.project.sources import Files, Sources, moved
from mplan.targets.model import Target

_TEMPLATES = Path(__file__).parent / "templates" / "arduino"
_NAME_LENGTH = 63
# A library cannot choose compiler flags, and the arena holds values of several types in turn.
_PRAGMA = """#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-strict-aliasing")
#endif

"""


def arduino_files(name: str, target: Target, files: Mapping[str, str | bytes]) -> Files:
    """``library.properties``, the sources in ``src``, and the example sketch ``SelfTest``."""
    sources = Sources.of(name, files)
    view = {
        "name": name,
        "upper": name.upper(),
        "library": f"mplan_{name}"[:_NAME_LENGTH],
        "description": target.description or target.name,
    }
    made = {"library.properties": templates.render(_TEMPLATES, "library.properties.j2", view)}
    if sources.selftest:
        sketch = templates.render(_TEMPLATES, "SelfTest.ino.j2", view)
        made["examples/SelfTest/SelfTest.ino"] = sketch
    placed = {
        file: _with_pragma(text) if file in sources.code else text for file, text in files.items()
    }
    return {**moved(placed, "src"), **made}


def _with_pragma(text: str | bytes) -> str:
    return _PRAGMA + (text if isinstance(text, str) else text.decode())
