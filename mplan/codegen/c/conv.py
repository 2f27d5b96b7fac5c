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


@dataclass(frozen=True, slots=True)
class Geometry:
    """What of a convolution is constant in its kernel."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int

    @property
    def tag(self) -> str:
        """A suffix for names: ``3x3s2p1`` is a 3×3 kernel with stride 2 and padding 1."""
        pairs = (
            ("s", self.stride_h, self.stride_w, 1),
            ("p", self.pad_h, self.pad_w, 0),
            ("d", self.dilation_h, self.dilation_w, 1),
        )
        found = [
            f"{key}{h}" if h == w else f"{key}{h}x{w}"
            for key, h, w, usual in pairs
            if (h, w) != (usual, usual)
        ]
        return f"{self.kernel_h}x{self.kernel_w}{''.join(found)}"

    @property
    def is_pointwise(self) -> bool:
        """Whether an output depends on the input at its place only."""
        return self.tag == "1x1"

    def inner(self, in_w: int, out_w: int) -> tuple[int, int]:
        """The columns of the output whose taps all lie inside the input."""
        reach = (self.kernel_w - 1) * self.dilation_w
        start = min(-(-self.pad_w // self.stride_w), out_w)
        end = min((in_w - 1 - reach + self.pad_w) // self.stride_w + 1, out_w)
        return start, max(start, end)


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
    kernel_h, kernel_w = w.shape[2:]
    geometry = Geometry(kernel_h, kernel_w, *lists["stride"], *lists["padding"], *lists["dilation"])
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


def _direct(groups: _Groups, geometry: Geometry) -> Code:
    x, y = groups.x.merge(3), groups.y.merge(3)
    if x and y and geometry.is_pointwise:
        matrix = groups.w.select(5).select(4)
        column = groups.bias and groups.bias.unflatten(2, (y.shape[2], 1))
        return product(matrix, x, y, column)
    return groups.each(partial(_blocked, geometry=geometry))


def _blocked(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Code:
    start, end = geometry.inner(x.shape[2], y.shape[2])
    dense = _is_dense(y, x, w)
    fields = {**_fields(y, x, w, dense), "inner_start": start, "inner_end": end}
    made = _kernel(y.shape[0], x.shape[0], end - start, geometry, dense)
    return invoke_with(made, function("conv2d_t"), fields, x, w, bias, y)


def _is_dense(y: Tensor, x: Tensor, w: Tensor) -> bool:
    """Whether columns are adjacent and the weights of an output channel lie densely."""
    return x.strides[2] == y.strides[2] == 1 and w.select(0).is_contiguous


def _kernel(channels: int, depth: int, inner: int, geometry: Geometry, dense: bool) -> Function:
    """The kernel for ``channels`` outputs, ``depth`` inputs and rows of ``inner`` columns."""
    lanes = min(channels, 2)
    pixels = next(n for n in (4, 2, 1) if n <= max(inner, 1))
    tag = geometry.tag + ("" if dense else "_strided")
    view = {"g": geometry, "dense": dense}
    edge = function(f"conv2d_edge_{tag}", "conv2d_edge", (function("conv2d_t"),), deep=True, **view)
    return function(
        f"{'conv2d' if depth > 1 else 'depthwise2d'}_{lanes}x{pixels}_{tag}",
        "conv2d",
        (edge,),
        edge=edge.name,
        deep=depth > 1,
        lanes=range(lanes),
        pixels=range(pixels),
        taps=range(geometry.kernel_w),
        unrolled=dense and geometry.dilation_w == 1 and geometry.kernel_w <= _UNROLLED_TAPS,
        **view,
    )


def _transposed(groups: _Groups, geometry: Geometry) -> Code:
    def body(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None) -> Code:
        dense = _is_dense(y, x, w)
        tag = geometry.tag + ("" if dense else "_strided")
        struct, view = function("conv2d_t"), {"g": geometry, "dense": dense}
        made = function(f"conv_transpose2d_{tag}", "conv_transpose2d", (struct,), deep=True, **view)
        return invoke_with(made, struct, _fields(y, x, w, dense), x, w, bias, y)

    return groups.each(body)


def _fields(y: Tensor, x: Tensor, w: Tensor, dense: bool) -> dict[str, int]:
    sizes = {
        **dict(zip(("in_channels", "in_h", "in_w"), x.shape, strict=True)),
        **dict(zip(("out_channels", "out_h", "out_w"), y.shape, strict=True)),
        **{"x_channel": x.strides[0], "x_row": x.strides[1]},
        **{"y_channel": y.strides[0], "y_row": y.strides[1], "w_out": w.strides[0]},
    }
    if dense:  # the kernel knows the others
        return sizes
    return {
        **sizes,
        **{"x_column": x.strides[2], "y_column": y.strides[2]},
        **dict(zip(("w_in", "w_row", "w_column"), w.strides[1:], strict=True)),
    }
