"""Kernels by rows: an op on images makes some pixels of one row, wherever its operands' pixels lie.

Streams and whole tensors use the same kernels: a whole image is a ring that never wraps. A row kernel
reads its image operands through ``image_t`` structs and writes pixels that follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mplan.codegen.c.render import function
from mplan.codegen.c.table import Site
from mplan.codegen.c.tensors import Code, Function
from mplan.ir.columns import PIXELS, columns_bytes
from mplan.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Row:
    """Pixels ``column`` to ``column + count`` of a row of an op's result; all are C expressions.

    ``images`` maps the name of each argument that is read by rows to a ``const image_t *``. ``target``
    is where the first pixel goes, as a pointer to elements; ``site`` has the constant operands and the
    arguments.
    """

    site: Site
    images: Mapping[str, str]
    target: str
    row: str
    column: str
    count: str

    def columns(self) -> str | None:
        """The scratch memory in which windows are laid out as columns, if the op has enough of it."""
        op, scratch = self.site.op, self.site.scratch() if self.count != "1" else ()
        if not scratch:
            return None
        tensors = {n: self.site.memory.tensor(n, self.site.position) for n in op.operands}
        tensors[op.result.name] = self.site.result
        types = {n: TensorType(t.dtype, t.shape) for n, t in tensors.items()}
        needed = columns_bytes(op, types, PIXELS)
        place = f"{scratch[0].array.name}(int32_t, {scratch[0].offset_bytes})"
        return place if 0 < needed <= scratch[0].numel else None


#: Sizes of images, steps from pixel to pixel, windows and what stages need are 16 bits wide in C.
LARGEST = 2**15 - 1

RowEmitter: TypeAlias = Callable[[Row], Code]

#: Op kind → the function that writes the code for some pixels of a row.
ROWS: dict[str, RowEmitter] = {}


def row_kernel(*kinds: str) -> Callable[[RowEmitter], RowEmitter]:
    """Enter the decorated emitter into ``ROWS`` for each of ``kinds``."""

    def enter(emitter: RowEmitter) -> RowEmitter:
        for kind in kinds:
            if kind in ROWS:
                raise ValueError(f"{kind} has two row kernels")
            ROWS[kind] = emitter
        return emitter

    return enter


def image_type() -> Function:
    """The C type ``image_t``."""
    return function("image_t")


def pixel_offset() -> Function:
    """The C function that tells how many bytes of an image lie before a pixel."""
    return function("pixel_offset", needs=(image_type(),))


def pixel() -> Function:
    """The C function that gives the address of a pixel of an image."""
    return function("pixel", needs=(pixel_offset(),))
