"""Reference functions of the quantised ops: exact in integers, written for torch tensors.

Accumulators are 32-bit integers. Every function yields what TFLite's reference kernels do, to the
byte; see ``quantized_ops`` for the parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING

from mplan.diagnostics import UserError
from mplan.ir.fixed_point import (
    exp_of_negative,
    high_mul,
    reciprocal_of_one_plus,
    rescale,
    rounding_shift,
)

if TYPE_CHECKING:
    from torch import Tensor

#: A ``bounded`` layer's sums are below this in absolute value, its shifts not below that.
BOUNDED_SUM, LEAST_SHIFT = 1 << 30, -30
#: Sums get this many fractional bits before their operands are scaled alike.
ADD_LEFT_SHIFT = 20


def qconv2d(
    input: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    input_zero_point: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
    bias: Tensor | None = None,
    padding_value: int | None = None,
    bounded: bool = False,
    below_half: bool = False,
) -> Tensor:
    """A convolution, in groups if the weights are shallower than the input."""
    import torch

    x = padded(input, padding, input_zero_point, padding_value)
    groups = x.shape[3] // weight.shape[3]
    out_channels, kernel_h, kernel_w, depth = weight.shape
    w = weight.to(torch.int32).reshape(groups, out_channels // groups, kernel_h, kernel_w, depth)
    parts = []
    for g in range(groups):
        mine = taps(x[..., g * depth : (g + 1) * depth], weight, stride, dilation)
        parts.append(_total(tap @ w[g, :, row, column].T for row, column, tap in mine))
    clamp = clamp_min, clamp_max
    whole = torch.cat(parts, -1)
    return requantized(whole, bias, multiplier, shift, output_zero_point, clamp, bounded=bounded)


def qdepthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    input_zero_point: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
    bias: Tensor | None = None,
    padding_value: int | None = None,
    bounded: bool = False,
    below_half: bool = False,
    weight_order: str = "plain",
) -> Tensor:
    """A convolution of each channel by itself; a channel may yield several."""
    import torch

    x = padded(input, padding, input_zero_point, padding_value)
    weight = unpaired(weight) if weight_order == "pairs" else weight
    w = weight.to(torch.int32)
    times = weight.shape[3] // x.shape[3]
    if times > 1:
        x = x.repeat_interleave(times, -1)
    sums = _total(tap * w[0, row, column] for row, column, tap in taps(x, weight, stride, dilation))
    clamp = clamp_min, clamp_max
    return requantized(sums, bias, multiplier, shift, output_zero_point, clamp, bounded=bounded)


def paired(weight: Tensor) -> Tensor:
    """Depthwise weights by fours of channels, and there by pairs of taps; the shape stays.

    Four channels of taps t and u lie as t0 t1 u0 u1 t2 t3 u2 u3; an odd last tap comes last.
    """
    import torch

    taps, blocks = weight.shape[1] * weight.shape[2], weight.shape[3] // 4
    whole = weight.reshape(taps, blocks, 4).transpose(0, 1)
    even = whole[:, : taps // 2 * 2].reshape(blocks, taps // 2, 2, 2, 2)
    parts = even.transpose(2, 3).reshape(blocks, -1), whole[:, taps // 2 * 2 :].reshape(blocks, -1)
    return torch.cat(parts, 1).reshape(weight.shape)


def unpaired(weight: Tensor) -> Tensor:
    """The weights that ``paired`` has reordered."""
    import torch

    places = torch.arange(weight.numel()).reshape(weight.shape)
    plain = torch.empty_like(weight).reshape(-1)
    plain[paired(places).reshape(-1)] = weight.reshape(-1)
    return plain.reshape(weight.shape)


def _total(terms: Iterator[Tensor]) -> Tensor:
    return reduce(operator.add, terms)


def padded(
    input: Tensor, padding: tuple[int, ...], zero_point: int, value: int | None = None
) -> Tensor:
    """``input - zero_point`` as int32, with ``value - zero_point`` around rows and columns."""
    import torch

    top, bottom, left, right = padding
    centered = input.to(torch.int32) - zero_point
    outside = 0 if value is None else value - zero_point
    return torch.nn.functional.pad(centered, (0, 0, left, right, top, bottom), value=outside)


def taps(
    x: Tensor, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]
) -> Iterator[tuple[int, int, Tensor]]:
    """For each place of the kernel, the padded pixels that it meets, one per output pixel."""
    _, kernel_h, kernel_w, _ = weight.shape
    rows = (x.shape[1] - (kernel_h - 1) * dilation[0] - 1) // stride[0] + 1
    columns = (x.shape[2] - (kernel_w - 1) * dilation[1] - 1) // stride[1] + 1
    for row in range(kernel_h):
        for column in range(kernel_w):
            first = row * dilation[0], column * dilation[1]
            met_rows = slice(first[0], first[0] + (rows - 1) * stride[0] + 1, stride[0])
            met_columns = slice(first[1], first[1] + (columns - 1) * stride[1] + 1, stride[1])
            yield row, column, x[:, met_rows, met_columns]


def qlinear(
    input: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    input_zero_point: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
    rounding: str = "double",
    bias: Tensor | None = None,
    bounded: bool = False,
    below_half: bool = False,
) -> Tensor:
    """A fully connected layer over the last dimension."""
    import torch

    sums = (input.to(torch.int32) - input_zero_point) @ weight.to(torch.int32).T
    clamp = clamp_min, clamp_max
    return requantized(
        sums, bias, multiplier, shift, output_zero_point, clamp, rounding, bounded=bounded
    )


def qmatmul(
    input: Tensor,
    other: Tensor,
    input_zero_point: int,
    other_zero_point: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """A product of matrices, batch by batch."""
    import torch

    sums = (input.to(torch.int32) - input_zero_point) @ (other.to(torch.int32) - other_zero_point)
    return requantized(sums, None, multiplier, shift, output_zero_point, (clamp_min, clamp_max))


def requantized(
    sums: Tensor,
    bias: Tensor | None,
    multiplier: Tensor | int,
    shift: Tensor | int,
    zero_point: int,
    clamp: tuple[int, int],
    rounding: str = "double",
    *,
    bounded: bool = False,
) -> Tensor:
    """The bytes of 32-bit sums: scaled, moved to the zero point, clamped.

    UserError MP107 if the sums of a ``bounded`` layer are not.
    """
    import torch

    acc = sums if bias is None else sums + bias
    if bounded:
        _check_bounds(acc, torch.as_tensor(shift))
    scaled = rescale(acc, multiplier, shift, rounding)
    return (scaled + zero_point).clamp(*clamp).to(torch.int8)


def _check_bounds(acc: Tensor, shift: Tensor) -> None:
    small = bool(((acc.long() << shift.long().clamp(min=0)).abs() < BOUNDED_SUM).all())
    if not small or int(shift.min()) < LEAST_SHIFT:
        raise UserError("MP107", "a layer that is called bounded has larger sums or other shifts")


def qadd(
    input: Tensor,
    other: Tensor,
    input_zero_point: int,
    input_multiplier: int,
    input_shift: int,
    other_zero_point: int,
    other_multiplier: int,
    other_shift: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """A sum: both operands get 20 more bits and a common scale, then the sum gets the output's."""
    a = _scaled(input, input_zero_point, input_multiplier, input_shift)
    b = _scaled(other, other_zero_point, other_multiplier, other_shift)
    clamp = clamp_min, clamp_max
    return requantized(a + b, None, multiplier, shift, output_zero_point, clamp)


def qsub(
    input: Tensor,
    other: Tensor,
    input_zero_point: int,
    input_multiplier: int,
    input_shift: int,
    other_zero_point: int,
    other_multiplier: int,
    other_shift: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """A difference, see ``qadd``."""
    a = _scaled(input, input_zero_point, input_multiplier, input_shift)
    b = _scaled(other, other_zero_point, other_multiplier, other_shift)
    clamp = clamp_min, clamp_max
    return requantized(a - b, None, multiplier, shift, output_zero_point, clamp)


def _scaled(x: Tensor, zero_point: int, multiplier: int, shift: int) -> Tensor:
    import torch

    return rescale((x.to(torch.int64) - zero_point) << ADD_LEFT_SHIFT, multiplier, shift)


def qmul(
    input: Tensor,
    other: Tensor,
    input_zero_point: int,
    other_zero_point: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """A product, element by element."""
    import torch

    product = (input.to(torch.int32) - input_zero_point) * (other.to(torch.int32) - other_zero_point)
    return requantized(product, None, multiplier, shift, output_zero_point, (clamp_min, clamp_max))


def qprelu(
    input: Tensor,
    other: Tensor,
    input_zero_point: int,
    input_multiplier: int,
    input_shift: int,
    other_zero_point: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """A PReLU: numbers at least 0 by their own factor, others times the slope ``other``."""
    import torch

    x = input.to(torch.int32) - input_zero_point
    clamp = clamp_min, clamp_max
    above = requantized(x, None, input_multiplier, input_shift, output_zero_point, clamp)
    product = x * (other.to(torch.int32) - other_zero_point)
    below = requantized(product, None, multiplier, shift, output_zero_point, clamp)
    return torch.where(x < 0, below, above)


def qavg_pool2d(
    input: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """The mean of the pixels inside the image, to nearest with ties away from zero."""
    import torch

    sums = _windows(input, kernel_size, stride, padding, 0).sum(-1)
    ones = torch.ones((1, *input.shape[1:3], 1), dtype=torch.int8)
    counts = _windows(ones, kernel_size, stride, padding, 0).sum(-1)
    means = torch.where(sums > 0, sums + counts // 2, sums - counts // 2)
    means = torch.div(means, counts, rounding_mode="trunc")
    return means.clamp(clamp_min, clamp_max).to(torch.int8)


def qmax_pool2d(
    input: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """The largest of the pixels inside the image."""
    import torch

    largest = _windows(input, kernel_size, stride, padding, -128).amax(-1)
    return largest.clamp(clamp_min, clamp_max).to(torch.int8)


def _windows(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, ...], fill: int
) -> Tensor:
    """``[N, H', W', C, kernel_h * kernel_w]`` as int64, ``fill`` outside of the image."""
    import torch

    top, bottom, left, right = padding
    wide = torch.nn.functional.pad(x, (0, 0, left, right, top, bottom), value=fill)
    cut = wide.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return cut.reshape(*cut.shape[:4], -1).to(torch.int64)


def qmean(
    input: Tensor,
    dim: tuple[int, ...],
    keepdim: bool,
    input_zero_point: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
) -> Tensor:
    """A mean; the number of elements is part of the multiplier."""
    import torch

    sums = (input.to(torch.int32) - input_zero_point).sum(list(dim), keepdim=keepdim)
    return requantized(sums, None, multiplier, shift, output_zero_point, (-128, 127))


def resize_nearest2d(
    input: Tensor, size: tuple[int, int], align_corners: bool, half_pixel_centers: bool
) -> Tensor:
    """An image of another size, each pixel from the nearest one."""
    for dim, wanted in ((1, size[0]), (2, size[1])):
        picked = nearest_indices(input.shape[dim], wanted, align_corners, half_pixel_centers)
        input = input[(slice(None),) * dim + (picked,)]
    return input


def nearest_indices(length: int, wanted: int, align_corners: bool, half_pixel: bool) -> list[int]:
    """For each of ``wanted`` positions the nearest of ``length``, in float32 as TFLite does."""
    import numpy as np

    aligned = align_corners and wanted > 1
    scale = np.float32(
        (length - 1) / np.float32(wanted - 1) if aligned else length / np.float32(wanted)
    )
    offset = np.float32(0.5 if half_pixel else 0.0)
    places = (np.arange(wanted, dtype=np.float32) + offset) * scale
    found = np.floor(places + np.float32(0.5)) if align_corners else np.floor(places)
    return [int(i) for i in np.clip(found, 0, length - 1)]


def qsoftmax(input: Tensor, multiplier: int, shift: int, diff_min: int) -> Tensor:
    """A softmax over the last dimension with scale 1/256 and zero point -128.

    Differences to the maximum are scaled to Q5.26; those below ``diff_min`` count as nothing.
    Exponentials are summed in Q12.19; their sum's reciprocal is found by Newton's method.
    """
    import torch

    x = input.to(torch.int64)
    differences = x - x.amax(-1, keepdim=True)
    kept = differences >= diff_min
    powers = exp_of_negative(rescale(differences.clamp(min=diff_min), multiplier, shift))
    total = torch.where(kept, rounding_shift(powers, 12), 0).sum(-1, keepdim=True)
    bits = torch.frexp(total.to(torch.float64)).exponent.to(torch.int64)
    scale = reciprocal_of_one_plus((total << (32 - bits)) - (1 << 31))
    shares = rounding_shift(high_mul(powers, scale), bits + 3)
    return torch.where(kept, shares - 128, -128).clamp(-128, 127).to(torch.int8)


def qtable(input: Tensor, table: Tensor) -> Tensor:
    """``table[x + 128]``: any function of one number."""
    import torch

    return table[input.to(torch.int64) + 128]


def requantize(
    input: Tensor,
    input_zero_point: int,
    multiplier: int,
    shift: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
) -> Tensor:
    """The same numbers with another scale and zero point."""
    import torch

    centered = input.to(torch.int32) - input_zero_point
    return requantized(centered, None, multiplier, shift, output_zero_point, (clamp_min, clamp_max))


def quantize(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """``input / scale`` to the nearest integer, ties away from zero, plus the zero point.

    NaN yields the least integer.
    """
    import torch

    ratio = input / torch.tensor(scale, dtype=torch.float32)
    ratio = ratio.nan_to_num(nan=-1024.0).clamp(-1024.0, 1024.0)
    whole = ratio.trunc() + ((ratio - ratio.trunc()) * 2).trunc()
    return (whole + zero_point).clamp(-128, 127).to(torch.int8)


def dequantize(input: Tensor, scale: float, zero_point: int) -> Tensor:
    """``(input - zero_point) * scale`` as float32."""
    import torch

    return (input.to(torch.int32) - zero_point) * torch.tensor(scale, dtype=torch.float32)
