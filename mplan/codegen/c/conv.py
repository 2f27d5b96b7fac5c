"""Convolutions in one and two dimensions, direct, without scratch memory.

A 1×1 convolution without padding is a matrix product. Any other computes blocks of output channels
by columns, with the taps of a row unrolled where the input's columns are adjacent; outputs near an
edge check their taps one by one. Groups and images are loops around the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mplan.codegen.c.matrix import product
from mplan.codegen.c.render import function
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Body, Code, Function, Tensor, each

#: Widest kernel whose taps are unrolled.
_UNROLLED_TAPS = 7


@kernel("aten.convolution.default", "aten.conv1d.default", "aten.conv2d.default")
def convolution(site: Site) -> Code:
    """A convolution with groups, or a transposed one."""
    x, w, bias, y = site.tensor("input"), site.tensor("weight"), site.maybe("bias"), site.result
    site.require_float(x, w, bias)
    spatial = w.rank - 2
    site.require(spatial in (1, 2), f"in {spatial} dimensions")
    site.require(bias is None or bias.is_contiguous, "with a strided bias")
    lists = {name: site.integers(name, spatial) for name in ("stride", "padding", "dilation")}
    if x.rank == spatial + 1:
        x, y = (t.unflatten(0, (1, t.shape[0])) for t in (x, y))
    if spatial == 1:
        x, w, y = (t.unflatten(2, (1, t.shape[2])) for t in (x, w, y))
        ahead = {"stride": 1, "padding": 0, "dilation": 1}
        lists = {name: (ahead[name], *values) for name, values in lists.items()}
    geometry = {
        **dict(zip(("stride_h", "stride_w"), lists["stride"], strict=True)),
        **dict(zip(("pad_h", "pad_w"), lists["padding"], strict=True)),
        **dict(zip(("dilation_h", "dilation_w"), lists["dilation"], strict=True)),
    }
    groups = site.integer("groups")
    if site.arg("transposed"):
        return _transposed(_Groups.of(x, w, bias, y, groups, transposed=True), geometry)
    return _direct(_Groups.of(x, w, bias, y, groups), geometry)


@dataclass(frozen=True, slots=True)
class _Groups:
    """The operands by image and group: ``x[N,G,I,H,W]``, ``w[N,G,O,I,h,w]``, ``y[N,G,O,H,W]``."""

    y: Tensor
    x: Tensor
    w: Tensor
    bias: Tensor | None

    @classmethod
    def of(
        cls, x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, groups: int, transposed: bool = False
    ) -> _Groups:
        x, y = (t.unflatten(1, (groups, t.shape[1] // groups)) for t in (x, y))
        w = w.unflatten(0, (groups, w.shape[0] // groups))
        if transposed:
            w = w.permute((0, 2, 1, 3, 4))
        bias = bias and bias.unflatten(0, y.shape[1:3]).expand(y.shape[:3])
        return cls(y, x, w.expand((x.shape[0], *w.shape)), bias)

    def each(self, body: Body) -> Code:
        """Loops over images and groups around ``body(y, x, w, bias)``."""
        return each([self.y, self.x, self.w, self.bias], 3, body)


def _direct(groups: _Groups, geometry: dict[str, int]) -> Code:
    x, y = groups.x.merge(3), groups.y.merge(3)
    simple = {"stride_h": 1, "stride_w": 1, "pad_h": 0, "pad_w": 0}
    if x and y and groups.w.shape[4:] == (1, 1) and geometry.items() >= simple.items():
        matrix = groups.w.select(5).select(4)
        column = groups.bias and groups.bias.unflatten(2, (y.shape[2], 1))
        return product(matrix, x, y, column)
    return groups.each(partial(_blocked, geometry=geometry))


def _blocked(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, geometry: dict[str, int]) -> Code:
    kernel_w, stride = w.shape[3], geometry["stride_w"]
    start, end = _inner(x.shape[2], y.shape[2], kernel_w, geometry)
    fields = {**_fields(y, x, w), **geometry, "inner_start": start, "inner_end": end}
    adjacent = x.strides[2] == 1 == w.strides[3] and geometry["dilation_w"] == 1
    taps = kernel_w if adjacent and kernel_w <= _UNROLLED_TAPS else 0
    struct = function("conv2d_t")
    made = _kernel(min(y.shape[0], 2), end - start, taps, stride, struct)
    return invoke_with(made, struct, fields, x, w, bias, y)


def _inner(in_w: int, out_w: int, kernel_w: int, geometry: dict[str, int]) -> tuple[int, int]:
    """The columns of the output whose taps all lie inside the input."""
    stride, pad = geometry["stride_w"], geometry["pad_w"]
    reach = (kernel_w - 1) * geometry["dilation_w"]
    start = min(-(-pad // stride), out_w)
    end = min((in_w - 1 - reach + pad) // stride + 1, out_w)
    return start, max(start, end)


def _kernel(lanes: int, inner: int, taps: int, step: int, struct: Function) -> Function:
    pixels = next(n for n in (4, 2, 1) if n <= max(inner, 1))
    shape = f"k{taps}s{step}" if taps else "any"
    return function(
        f"conv2d_{lanes}x{pixels}_{shape}",
        "conv2d",
        (function("conv2d_pixel", needs=(struct,)),),
        lanes=range(lanes),
        pixels=range(pixels),
        taps=range(taps),
        step=step,
    )


def _transposed(groups: _Groups, geometry: dict[str, int]) -> Code:
    def body(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None) -> Code:
        struct = function("conv2d_t")
        made = function("conv_transpose2d", needs=(struct,))
        return invoke_with(made, struct, {**_fields(y, x, w), **geometry}, x, w, bias, y)

    return groups.each(body)


def _fields(y: Tensor, x: Tensor, w: Tensor) -> dict[str, int]:
    return {
        **dict(zip(("in_channels", "in_h", "in_w"), x.shape, strict=True)),
        **dict(zip(("out_channels", "out_h", "out_w"), y.shape, strict=True)),
        **dict(zip(("kernel_h", "kernel_w"), w.shape[2:], strict=True)),
        **dict(zip(("x_channel", "x_row", "x_column"), x.strides, strict=True)),
        **dict(zip(("y_channel", "y_row", "y_column"), y.strides, strict=True)),
        **dict(zip(("w_out", "w_in", "w_row", "w_column"), w.strides, strict=True)),
    }
