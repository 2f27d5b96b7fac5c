"""A PlatformIO library with an example that runs the self-test on this machine.

Fields: PlatformIO documentation, "library.json" and "platformio.ini".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mplan import templates
from mplan.codegen.project.sources import Files, Sources, moved
from mplan.targets.model import Target

_TEMPLATES = Path(__file__).parent / "templates" / "platformio"
_EXAMPLE = "examples/selftest"
_EXAMPLE_FILES = ("platformio.ini", "src/main.c")


def platformio_files(name: str, target: Target, files: Mapping[str, str | bytes]) -> Files:
    """``library.json``, the sources in ``src``, and an example for the platform ``native``."""
    sources = Sources.of(name, files)
    made = {"library.json": json.dumps(_manifest(name, target, sources), indent=2) + "\n"}
    if sources.selftest:
        view = {"name": name, "upper": name.upper()}
        for file in _EXAMPLE_FILES:
            template = f"{Path(file).name}.j2"
            made[f"{_EXAMPLE}/{file}"] = templates.render(_TEMPLATES, template, view)
    return {**moved(files, "src"), **made}


def _manifest(name: str, target: Target, sources: Sources) -> dict[str, object]:
    manifest: dict[str, object] = {
        "name": f"mplan_{name}",
        "version": "1.0.0",
        "description": f"The neural network {name}, compiled by mplan for "
        f"{target.description or target.name}: C99 in a memory arena that was planned to the byte.",
        "keywords": ["neural network", "machine learning", "mplan"],
        "authors": [{"name": "mplan"}],
        "frameworks": "*",
        "platforms": "*",
        "headers": f"{name}.h",
        "build": {"srcDir": "src", "flags": ["-fno-strict-aliasing", "-fno-math-errno"]},
    }
    if sources.selftest:
        example = {"name": "selftest", "base": _EXAMPLE, "files": list(_EXAMPLE_FILES)}
        manifest["examples"] = [example]
    return manifest
