"""Whole images through row kernels: every row of every image of the batch."""

from __future__ import annotations

from dataclasses import replace

from mplan.codegen.c.rows import LARGEST, ROWS, Row, image_type
from mplan.codegen.c.structs import constant
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Code, Tensor, each
from mplan.ir.types import contiguous_strides


@kernel(
    "mplan.qconv2d",
    "mplan.qdepthwise_conv2d",
    "mplan.qconv_transpose2d",
    "mplan.qdepthwise_conv_transpose2d",
    "mplan.resize_bilinear2d",
    "mplan.qmax_pool2d",
    "mplan.qavg_pool2d",
)
def whole(site: Site) -> Code:
    """All rows of an op that reads one image, ``input``."""
    x, y = site.tensor("input"), site.result
    for tensor in (x, y):
        site.require(tensor.is_contiguous, "of a strided tensor")
    if site.op.kind == "mplan.qconv2d" and _pixel_by_pixel(site):
        x, y = (_as_one_row(tensor) for tensor in (x, y))
    for tensor in (x, y):
        site.require(max(tensor.shape[1:3]) <= LARGEST, f"with more than {LARGEST:,} rows or columns")

    def body(target: Tensor, image: Tensor) -> Code:
        height, width, _ = target.shape
        line = target.select(0, "row").pointer
        code = ROWS[site.op.kind](Row(site, {"input": "&image"}, line, "row", "0", str(width)))
        loop = code.block(f"for (int32_t row = 0; row < {height}; ++row)")
        return (image_of(image) + loop).block()

    return each([y, x], 3, body)


def _pixel_by_pixel(site: Site) -> bool:
    """Whether each pixel of a convolution is made of the same pixel of its input."""
    once = (*site.tensor("weight").shape[1:3], *site.integers("stride")) == (1, 1, 1, 1)
    return once and not any(site.integers("padding"))


def _as_one_row(tensor: Tensor) -> Tensor:
    """The pixels of a dense image as one row, if it is not too long for an ``image_t``."""
    n, height, width, channels = tensor.shape
    if height * width > LARGEST:
        return tensor
    shape = (n, 1, height * width, channels)
    return replace(tensor, shape=shape, strides=contiguous_strides(shape))


def image_of(x: Tensor) -> Code:
    """``image``, which says where the pixels of a dense image lie."""
    height, width, _ = x.shape
    fields: dict[str, int | str] = {
        "data": f"(const unsigned char *)({x.pointer})",
        "step_y": width,
        "step_x": 1,
        "height": height,
        "width": width,
        "bytes": x.strides[1] * x.dtype.itemsize,
    }
    return constant(
        image_type(), "image", fields, "const" if x.index or x.array.is_pointer else "static const"
    )
