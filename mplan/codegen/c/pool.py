"""Pooling and resizing: kernels of one plane, looped over images and channels."""

from __future__ import annotations

from collections.abc import Mapping

from mplan.codegen.c.render import function
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Number, Site, kernel
from mplan.codegen.c.tensors import Code, Function, Tensor, each
from mplan.codegen.c.text import literal
from mplan.ir.types import DType


def _planes(
    site: Site, name: str, fields: Mapping[str, int | str], needs: tuple[Function, ...] = ()
) -> Code:
    """Loops over all but the last two dimensions around the plane kernel ``name(x, y, &p)``."""
    x, y = site.tensor("self" if site.op.arg("self") is not None else "input"), site.result
    site.require_float(x)
    struct = function("pool2d_t")

    def body(plane: Tensor, image: Tensor) -> Code:
        made = function(name, needs=needs or (struct,))
        return invoke_with(made, struct, {**_sizes(image, plane), **fields}, image, plane)

    return each([y, x], 2, body)


def _sizes(x: Tensor, y: Tensor) -> dict[str, int | str]:
    return {
        **dict(zip(("in_h", "in_w", "out_h", "out_w"), (*x.shape, *y.shape), strict=True)),
        **dict(zip(("x_row", "x_column", "y_row", "y_column"), (*x.strides, *y.strides), strict=True)),
    }


def _window(site: Site, lists: tuple[str, ...]) -> dict[str, int | str]:
    fields: dict[str, int | str] = {}
    for name in lists:
        values = site.integers(name, 2)
        if name == "stride" and not values:
            values = site.integers("kernel_size", 2)
        short = {"kernel_size": "kernel", "padding": "pad"}.get(name, name)
        fields |= {f"{short}_h": values[0], f"{short}_w": values[1]}
    return fields


@kernel("aten.max_pool2d_with_indices.default", "aten.max_pool2d.default")
def max_pool2d(site: Site) -> Code:
    """Maxima of windows, with their places if those are read."""
    x, (y, *rest) = site.tensor("self"), site.results()
    site.require_float(x)
    index = rest[0] if rest else None
    y = y or site.result
    fields = _window(site, ("kernel_size", "stride", "padding", "dilation"))
    struct = function("pool2d_t")

    def body(plane: Tensor, image: Tensor, places: Tensor | None) -> Code:
        strides = places.strides if places else (0, 0)
        given = {**_sizes(image, plane), **fields, "index_row": strides[0], "index_column": strides[1]}
        made = function("max_pool2d", needs=(struct,))
        return invoke_with(made, struct, given, image, plane, places)

    return each([y, x, index], 2, body)


def _mean() -> tuple[Function, ...]:
    return (function("window_mean", needs=(function("pool2d_t"),)),)


@kernel("aten.avg_pool2d.default")
def avg_pool2d(site: Site) -> Code:
    """Means of windows; padding counts as PyTorch counts it."""
    fields = _window(site, ("kernel_size", "stride", "padding"))
    divisor = site.optional_number("divisor_override")
    fields |= {"divisor": int(divisor or 0), "count_pad": int(bool(site.arg("count_include_pad")))}
    return _planes(site, "avg_pool2d", fields, _mean())


@kernel("aten._adaptive_avg_pool2d.default", "aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(site: Site) -> Code:
    """Means of windows that split the plane evenly."""
    return _planes(site, "adaptive_avg_pool2d", {}, _mean())


@kernel("aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default")
def upsample_nearest2d(site: Site) -> Code:
    """The nearest element above and to the left."""
    return _planes(site, "upsample_nearest2d", _scales(site, aligned=False))


@kernel("aten.upsample_bilinear2d.vec", "aten.upsample_bilinear2d.default")
def upsample_bilinear2d(site: Site) -> Code:
    """Linear interpolation in both directions."""
    aligned = bool(site.arg("align_corners"))
    return _planes(site, "upsample_bilinear2d", {**_scales(site, aligned), "count_pad": int(aligned)})


def _scales(site: Site, aligned: bool) -> dict[str, int | str]:
    """Steps in the input per step in the output; given factors count before the sizes' ratio."""
    x, y = site.tensor("self" if site.op.arg("self") is not None else "input"), site.result
    steps = {}
    for axis, letter in ((-2, "h"), (-1, "w")):
        factor = _factor(site, axis, letter)
        if aligned:
            step = (x.shape[axis] - 1) / (y.shape[axis] - 1) if y.shape[axis] > 1 else 0.0
        else:
            step = 1 / factor if factor else x.shape[axis] / y.shape[axis]
        steps[f"scale_{letter}"] = literal(step, DType.F32)
    return dict(steps)


def _factor(site: Site, axis: int, letter: str) -> Number | None:
    if not site.op.kind.endswith(".vec"):
        return site.optional_number(f"scales_{letter}")
    factors = site.arg("scale_factors")
    if not isinstance(factors, tuple):
        return None
    factor = factors[axis]
    return factor if isinstance(factor, int | float) else None
