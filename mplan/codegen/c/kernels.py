"""All kernels: importing this module enters every family into the table."""

from __future__ import annotations

from mplan.codegen.c import (  # noqa: F401
    attention,
    conv,
    elementwise,
    images,
    index,
    matrix,
    move,
    normalize,
    pool,
    quantized,
    quantized_norm,
    quantized_window,
    reduce,
    rows_move,
    stream,
)
from mplan.codegen.c.stream import has_rows
from mplan.codegen.c.table import TABLE

__all__ = ["TABLE", "has_rows", "supported"]


def supported() -> tuple[str, ...]:
    """The op kinds that have a kernel, sorted. Views need none and are not listed."""
    return tuple(sorted(TABLE))
