"""Row kernels of int8 ops that move pixels: resizing and padding."""

from __future__ import annotations

from mplan.codegen.c.render import function
from mplan.codegen.c.rows import Row, pixel, row_kernel
from mplan.codegen.c.tensors import Code, invoke
from mplan.ir.bilinear import PLACE_BITS
from mplan.ir.types import DType


@row_kernel("mplan.resize_nearest2d")
def enlarged(row: Row) -> Code:
    """Every pixel several times; only whole factors have a geometry by rows."""
    x, y = row.site.tensor("input"), row.site.result
    factors = (max(y.shape[d] // x.shape[d], 1) for d in (1, 2))
    made = function("enlarged_row", needs=(pixel(),))
    where = (row.images["input"], row.target, row.row, row.column, row.count)
    return invoke(made, *where, *factors, y.shape[3])


@row_kernel("mplan.resize_bilinear2d")
def interpolated(row: Row) -> Code:
    """Pixels between the four around their places."""
    lines = []
    for name in ("rows", "columns"):
        places = row.site.integers(name)
        text = ", ".join(map(str, places))
        lines.append(f"static const int32_t from_{name}[{len(places)}] = {{{text}}};")
    half = 1 << (2 * PLACE_BITS - 1)
    made = function("bilinear_row", needs=(pixel(),), bits=PLACE_BITS, half=half)
    where = (row.images["input"], row.target, row.row, row.column, row.count)
    call = invoke(made, *where, "from_rows", "from_columns", row.site.result.shape[3])
    return (Code(tuple(lines)) + call).block()


@row_kernel("aten.constant_pad_nd.default")
def padded(row: Row) -> Code:
    """Pixels of an int8 image, channels last, with others around it."""
    site = row.site
    y = site.result
    site.require(y.dtype is DType.I8 and y.rank == 4, "by rows of anything but an int8 image")
    pad = (*site.integers("pad"), 0, 0, 0, 0)
    given = site.arg("value")
    value = int(given) if isinstance(given, (int, float)) else 0
    made = function("padded_row", needs=(pixel(),))
    where = (row.images["self"], row.target, row.row, row.column, row.count)
    return invoke(made, *where, pad[4], pad[2], value, y.shape[3])
