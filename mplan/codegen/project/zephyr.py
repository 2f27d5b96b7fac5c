"""A Zephyr module with the network as a library, and a sample that runs its self-test.

Layout and keys: Zephyr documentation, "Modules (External projects)" and "Kconfig".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mplan import templates
from mplan.codegen.project.sources import Files, Sources, moved
from mplan.targets.model import Target

_TEMPLATES = Path(__file__).parent / "templates" / "zephyr"
_SAMPLE = "samples/selftest"


def zephyr_files(name: str, target: Target, files: Mapping[str, str | bytes]) -> Files:
    """The sources in ``src``, and ``zephyr/module.yml`` with what it refers to.

    CONFIG_MPLAN_NAME turns the library on; its other options place the arena and the weights.
    """
    sources = Sources.of(name, files)
    view = {
        "name": name,
        "upper": name.upper(),
        "target": target.name,
        "description": target.description or target.name,
        "sources": sources.compiled,
        "selftest": sources.selftest,
    }
    parts = {f"zephyr/{file}": file for file in ("module.yml", "CMakeLists.txt", "Kconfig")}
    if sources.selftest:
        parts |= {
            f"{_SAMPLE}/CMakeLists.txt": "sample.cmake",
            f"{_SAMPLE}/prj.conf": "prj.conf",
            f"{_SAMPLE}/sample.yaml": "sample.yaml",
            f"{_SAMPLE}/src/main.c": "main.c",
        }
    made = {path: templates.render(_TEMPLATES, f"{part}.j2", view) for path, part in parts.items()}
    return {**moved(files, "src"), **made}
