"""Transposed convolutions in integers: their phases and reference functions.

A pixel of the input adds its products with the whole kernel to results that begin ``stride`` apart.
Seen from a result, position ``o`` reads, by the taps ``k`` for which ``o + padding - k * dilation`` is
a multiple of the stride, the pixel at that multiple. Which taps these are is its *phase*, the rest of
``o + padding`` by the stride. So the results of one phase are a convolution with stride 1 and some of
the taps, and nothing is filled with zeros (Dumoulin and Visin 2016, "A guide to convolution arithmetic
for deep learning", chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplan.ir.quantized_reference import padded, requantized

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of one dimension: the taps of the pixels that it reads, in the order of the pixels.

    Where ``q`` is ``o + padding`` divided by the stride, rounded down, the first one is ``q - before``.
    """

    taps: tuple[int, ...]
    before: int


def phases(kernel: int, stride: int, dilation: int) -> tuple[Phase, ...]:
    """The phases of one dimension; one in which no pixel is read has no taps."""
    found = []
    for rest in range(stride):
        taps = [k for k in reversed(range(kernel)) if (rest - k * dilation) % stride == 0]
        before = (taps[0] * dilation - rest) // stride if taps else 0
        found.append(Phase(tuple(taps), before))
    return tuple(found)


def result_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """How many results ``size`` pixels yield without ``before`` and ``after`` of them."""
    return (size - 1) * stride + (kernel - 1) * dilation + 1 - before - after


def phase_sums(taps: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """``[kernel_h, kernel_w, O]`` summed over the taps of each phase: ``[stride_h, stride_w, O]``."""
    import torch

    rows, columns = (
        [list(phase.taps) for phase in phases(taps.shape[d], stride[d], dilation[d])] for d in range(2)
    )
    return torch.stack([torch.stack([taps[r][:, c].sum((0, 1)) for c in columns]) for r in rows])


def qconv_transpose2d(
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
    """A transposed convolution, in groups if the weights are shallower than the input."""
    import torch

    out_channels, kernel_h, kernel_w, depth = weight.shape
    groups = input.shape[3] // depth
    w = weight.to(torch.int32).reshape(groups, out_channels // groups, kernel_h, kernel_w, depth)

    def products(x: Tensor, row: int, column: int) -> Tensor:
        parts = [x[..., g * depth : (g + 1) * depth] for g in range(groups)]
        return torch.cat([part @ w[g, :, row, column].T for g, part in enumerate(parts)], -1)

    x = _Image(input, (kernel_h, kernel_w), stride, padding, dilation)
    sums = x.sums(products, out_channels, input_zero_point, padding_value)
    added, clamp = x.by_phase(bias), (clamp_min, clamp_max)
    return requantized(sums, added, multiplier, shift, output_zero_point, clamp, bounded=bounded)


def qdepthwise_conv_transpose2d(
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
    """A transposed convolution of each channel by itself; a channel may yield several."""
    import torch

    _, kernel_h, kernel_w, out_channels = weight.shape
    w, times = weight.to(torch.int32), out_channels // input.shape[3]

    def products(x: Tensor, row: int, column: int) -> Tensor:
        return x.repeat_interleave(times, -1) * w[0, row, column]

    x = _Image(input, (kernel_h, kernel_w), stride, padding, dilation)
    sums = x.sums(products, out_channels, input_zero_point, padding_value)
    added, clamp = x.by_phase(bias), (clamp_min, clamp_max)
    return requantized(sums, added, multiplier, shift, output_zero_point, clamp, bounded=bounded)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image ``[N, H, W, C]`` under a transposed convolution."""

    pixels: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    def sums(
        self,
        products: Callable[[Tensor, int, int], Tensor],
        channels: int,
        zero_point: int,
        padding_value: int | None,
    ) -> Tensor:
        """The sums of ``products(pixels, row, column)``, which are those with one tap.

        Pixels beside the image that some result reads take part as ``padding_value``.
        """
        import torch

        (top, bottom), (left, right) = (self._beside(d) for d in range(2))
        x = padded(self.pixels, (top, bottom, left, right), zero_point, padding_value)
        ahead = top * self.stride[0] + self.padding[0], left * self.stride[1] + self.padding[2]
        rows, columns = (
            ahead[d] + self._size(d) + x.shape[1 + d] * self.stride[d] + self._reach(d)
            for d in range(2)
        )
        whole = torch.zeros(x.shape[0], rows, columns, channels, dtype=torch.int32)
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                at = row * self.dilation[0], column * self.dilation[1]
                down, across = (
                    slice(first, first + n * step, step)
                    for first, n, step in zip(at, x.shape[1:3], self.stride, strict=True)
                )
                whole[:, down, across] += products(x, row, column)
        whole = whole[:, ahead[0] : ahead[0] + self._size(0)]
        return whole[:, :, ahead[1] : ahead[1] + self._size(1)]

    def by_phase(self, bias: Tensor | None) -> Tensor | None:
        """A bias per phase as one per pixel of the result."""
        import torch

        if bias is None or bias.dim() == 1:
            return bias
        places = (torch.arange(self._size(d)) + self.padding[2 * d] for d in range(2))
        rows, columns = (place % step for place, step in zip(places, self.stride, strict=True))
        return bias[rows][:, columns]

    def _reach(self, d: int) -> int:
        return (self.kernel[d] - 1) * self.dilation[d]

    def _size(self, d: int) -> int:
        edges = self.padding[2 * d], self.padding[2 * d + 1]
        shape: Sequence[int] = self.pixels.shape
        return result_size(shape[1 + d], self.kernel[d], self.stride[d], self.dilation[d], *edges)

    def _beside(self, d: int) -> tuple[int, int]:
        """How many pixels before and behind the image the first and the last results reach."""
        first = -((self._reach(d) - self.padding[2 * d]) // self.stride[d])
        last = (self._size(d) - 1 + self.padding[2 * d]) // self.stride[d]
        return max(-first, 0), max(last - (self.pixels.shape[1 + d] - 1), 0)
