"""Row kernels of the quantised ops that move a window over an image: convolutions and pools.

A kernel gets the pixels under the window as an array of pointers, in which those beside the image
lead to constant padding (as the indirection buffer of Dukhan 2019, "The Indirect Convolution
Algorithm"), so that rings, padding, strides and dilation are no cases of its own.
"""

from __future__ import annotations

from mplan.codegen.c.render import function
from mplan.codegen.c.rows import Row, image_type, row_kernel
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Site
from mplan.codegen.c.tensors import Code, Function, Tensor, argument

#: Output channels that a kernel computes at a time: they share loads, addresses and loops.
_LANES = 4


def rescale() -> Function:
    """The C function that multiplies by a factor in ``double`` rounding."""
    return function("rescale", needs=(function("rounding_shift"),))


def store() -> Function:
    """The C function that clamps a result."""
    return function("store_q8")


@row_kernel("mplan.qconv2d", "mplan.qdepthwise_conv2d")
def convolution(row: Row) -> Code:
    """Pixels of a row of a convolution."""
    site = row.site
    x, w, y = site.tensor("input"), site.tensor("weight"), site.result
    site.require(w.is_contiguous, "with strided weights")
    depthwise = site.op.kind == "mplan.qdepthwise_conv2d"
    channels, out_channels = x.shape[3], y.shape[3]
    depth = 1 if depthwise else w.shape[3]
    share = out_channels * depth // channels
    stride, padding, dilation = (site.integers(n) for n in ("stride", "padding", "dilation"))
    zero = site.integer("input_zero_point")
    value = site.optional_number("padding_value")
    outside = _padding(zero if value is None else int(value), channels)
    fields = {
        **_window(w.shape[1:3], stride, padding, dilation),
        "outside": outside.name,
        "weight": argument(w),
        **_factors(site),
        "out_c": out_channels,
        "depth": depth,
        "share": share,
        "x_zero": zero,
        **result_range(site, site.integer("output_zero_point")),
    }
    blocked = share == 1 and out_channels >= _LANES if depthwise else share >= _LANES
    made = _by_window(site, w.shape[1:3], _LANES if blocked else 1, rescale(), store())
    return Code((), (outside,)) + _invoke(row, made, fields)


@row_kernel("mplan.qavg_pool2d", "mplan.qmax_pool2d")
def pool(row: Row) -> Code:
    """Pixels of a row of a pool; padding is the least number in a maximum, 0 in a mean."""
    site = row.site
    channels = site.tensor("input").shape[3]
    largest = site.op.kind == "mplan.qmax_pool2d"
    size, stride, padding = (site.integers(n) for n in ("kernel_size", "stride", "padding"))
    outside = _padding(-128 if largest else 0, channels)
    fields = {
        **_window(size, stride, padding, (1, 1)),
        "outside": outside.name,
        "out_c": channels,
        **result_range(site, 0),
    }
    made = _by_window(site, size, 1, store())
    return Code((), (outside,)) + _invoke(row, made, fields)


def _conv_t() -> Function:
    return function("q8_conv_t", needs=(function("window_t"),))


def _by_window(site: Site, size: tuple[int, ...], lanes: int, *needs: Function) -> Function:
    """The kernel of ``site`` for windows of ``size`` that computes ``lanes`` channels at a time."""
    kind, taps = site.op.kind.removeprefix("mplan."), size[0] * size[1]
    head = (function("end_tap"), function("first_tap"), image_type(), function("window_t"))
    needs = (_conv_t(), function("window_taps", needs=head), *needs)
    return function(f"{kind}_{taps}_{lanes}", kind, needs, taps=taps, lanes=range(lanes))


def _invoke(row: Row, made: Function, fields: dict[str, int | str]) -> Code:
    image = row.images["input"]
    return invoke_with(made, _conv_t(), fields, image, row.target, row.row, row.column, row.count)


def _window(
    size: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]
) -> dict[str, int | str]:
    pairs = {"kernel": size, "stride": stride, "pad": padding[::2], "dilation": dilation}
    return {
        f"window.{name}_{axis}": number
        for name, numbers in pairs.items()
        for axis, number in zip("hw", numbers, strict=True)
    }


def _padding(zero: int, channels: int) -> Function:
    """A constant pixel of ``zero``, shared by images of up to as many channels."""
    size = max(16, 1 << (channels - 1).bit_length())
    sign = "minus_" if zero < 0 else ""
    return function(f"padding_{sign}{abs(zero)}_{size}", "padding", size=size, zero=zero)


def _factors(site: Site) -> dict[str, int | str]:
    """Bias and factors, and how far apart those of neighbouring channels lie."""
    names = ("bias", "multiplier", "shift")
    given = {name: argument(t) for name in names if (t := _constant(site, name))}
    return {**given, "factor_step": int(site.tensor("multiplier").numel > 1)}


def _constant(site: Site, name: str) -> Tensor | None:
    found = site.maybe(name)
    site.require(found is None or found.is_contiguous, f"with a strided {name}")
    return found


def result_range(site: Site, zero: int) -> dict[str, int]:
    """The output's zero point and the range before it is added."""
    low, high = site.integer("clamp_min"), site.integer("clamp_max")
    return {"y_zero": zero, "low": low - zero, "high": high - zero}
