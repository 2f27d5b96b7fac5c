"""Convolutions that compute several pixels at a time, from their windows laid out as columns.

The numbers under each window become one column of 16-bit numbers, and columns stand side by side
(im2col; Lai et al. 2018, "CMSIS-NN", section 3.1): one load of a weight serves several pixels. The
columns need scratch memory, so it is the plan that says where they are used: an op whose ``scratch``
is as large as ``columns_bytes`` may use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from mplan.ir.geometry import SAME, geometry
from mplan.ir.graph import Op, Ref
from mplan.ir.types import TensorType, Type

#: Bytes of a number in a column.
ITEM_BYTES = 2
#: Pixels, of one row of the result, whose windows are laid out together.
PIXELS = 4
#: What a kernel multiplies in a round: columns are filled up with zeros to a multiple of it.
ROUND = 8
#: Numbers of a window that are copied into one run on the stack rather than multiplied pixel by pixel.
GATHERED = 64
#: Fewer numbers are not filled up: a round from the last but one row of weights would leave them.
LEAST = ROUND // 2
_LAYERS = ("mplan.qconv2d", "mplan.qlinear")


def filled(numbers: int) -> int:
    """The length of a column of so many numbers, with the zeros behind them."""
    return numbers + -numbers % ROUND


def columns_bytes(op: Op, types: Mapping[str, Type], row: int | None = None) -> int:
    """The bytes of ``PIXELS`` columns; 0 if ``op`` is no layer with a kernel that uses them.

    That is a ``bounded`` one with factors below a half, in one group, with at least so many pixels in
    a ``row``: by default one of the whole result, as its kernel sees it.
    """
    weight, source = op.arg("weight"), op.arg("input")
    if op.kind not in _LAYERS or not isinstance(weight, Ref) or not isinstance(source, Ref):
        return 0
    shape, x = types[weight.name], types[source.name]
    if not isinstance(shape, TensorType) or not isinstance(x, TensorType) or not x.is_static:
        return 0
    sizes = [n for n in shape.shape[1:] if isinstance(n, int)]
    fast = op.arg("bounded", False) and op.arg("below_half", False)
    size = prod(sizes)
    whole = sizes[-1] == x.shape[-1] and (sizes[-1] % ROUND == 0 or LEAST <= size <= GATHERED)
    enough = (_row(op, types) if row is None else row) >= PIXELS
    return ITEM_BYTES * PIXELS * filled(size) if fast and whole and enough else 0


def _row(op: Op, types: Mapping[str, Type]) -> int:
    """How many pixels the kernel of a whole layer makes in a row.

    Where each pixel is made of the same one of the input, those of all rows of an image are one row.
    """
    result, rule = types[op.result.name], geometry(op, types)
    assert isinstance(result, TensorType)
    shape = [n for n in result.shape[:-1] if isinstance(n, int)]
    if op.kind != "mplan.qconv2d":
        return prod(shape)
    alike = rule is not None and all(a.reach == (SAME, SAME) for a in rule.accesses)
    return prod(shape[1:]) if alike else shape[-1]
