"""The one way in which every room renders its jinja2 templates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def render(folder: Path, template: str, view: Mapping[str, object], *, escape: bool = False) -> str:
    """The text of ``template`` in ``folder`` for the finished values of ``view``.

    Undefined names are errors and block tags stand on lines of their own. ``escape`` makes what is
    filled in safe inside HTML and SVG.
    """
    return _environment(folder, escape).get_template(template).render(view)


@cache
def _environment(folder: Path, escape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
