"""C sources and functions from the templates of this package."""

from __future__ import annotations

from pathlib import Path

from mplan import templates
from mplan.codegen.c.tensors import Function

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **view: object) -> str:
    """The text of ``template`` for finished values."""
    return templates.render(_TEMPLATES, template, view)


def function(
    name: str, template: str = "", needs: tuple[Function, ...] = (), **view: object
) -> Function:
    """The C function ``name`` from ``templates/functions/<template or name>.c.j2``."""
    text = render(f"functions/{template or name}.c.j2", name=name, **view)
    return Function(name, text.strip("\n"), needs)
