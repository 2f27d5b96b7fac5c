"""The jinja2 environment of the templates, and C functions made from them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mplan.codegen.c.tensors import Function

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> Environment:
    """Strict about undefined names, without escaping, block tags on lines of their own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mplan.codegen.c", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **view: object) -> str:
    """The text of ``template`` for finished values."""
    return environment().get_template(template).render(**view)


def function(
    name: str, template: str = "", needs: tuple[Function, ...] = (), **view: object
) -> Function:
    """The C function ``name`` from ``templates/functions/<template or name>.c.j2``."""
    text = render(f"functions/{template or name}.c.j2", name=name, **view)
    return Function(name, text.strip("\n"), needs)
