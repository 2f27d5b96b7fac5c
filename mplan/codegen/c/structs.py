"""Calls of kernels whose sizes and strides come in a constant struct."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap

from mplan.codegen.c.tensors import Code, Function, invoke
from mplan.codegen.c.text import WIDTH


def invoke_with(
    function: Function, struct: Function, fields: Mapping[str, int | str], *args: object
) -> Code:
    """``{ static const struct p = {fields}; function(args, &p); }`` without the fields that are 0."""
    return (constant(struct, "p", fields) + invoke(function, *args, "&p")).block()


def constant(
    struct: Function, name: str, fields: Mapping[str, int | str], storage: str = "static const"
) -> Code:
    """``static const struct name = {fields};`` without the fields that are 0."""
    given = ", ".join(
        f".{key} = {value}".replace(" ", "\0") for key, value in fields.items() if value != 0
    )
    text = f"{storage} {struct.name} {name} = {{{given or '0'}}};"
    lines = wrap(
        text, WIDTH - 12, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return Code(tuple(line.replace("\0", " ") for line in lines), (struct,))
