"""Maxima of windows: of integers as of the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from mplan.ir.graph import Arg, Op, Ref
from mplan.passes.lower_quantized.goal import Unlowered
from mplan.passes.lower_quantized.layout import NHWC, Sizes, Stored, plain
from mplan.passes.lower_quantized.lowering import Get, Lowering, move
from mplan.passes.lower_quantized.moves import image, integers, picked

_POOLS = ("max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d")


@move(*(f"aten.{kind}.default" for kind in _POOLS))
def max_pool(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """A pool of an image; one whose windows have gaps or overlap unevenly is made of two by lines."""
    if name != op.values[0].name:
        raise Unlowered("its indices are used")
    x, shape = image(low, get(low.source(op, "self"))), low.shape(name)
    if "adaptive" in op.kind or any(d != 1 for d in integers(op, "dilation")):
        for dim in (2, 3):
            x = _line_maxima(low, x, dim, _positions(op, dim - 2, x.shape[dim], shape[dim]), op)
        return x
    kernel = integers(op, "kernel_size", 2)
    stride, padding = integers(op, "stride", 2) or kernel, integers(op, "padding", 2) or (0, 0)
    return _pooled(low, x, windows(x, kernel, stride, padding, shape), shape, op)


def _positions(op: Op, axis: int, length: int, count: int) -> list[Sequence[int]]:
    """The positions, of ``length`` ones, in each of ``count`` windows along an axis of the image."""
    if "adaptive" in op.kind:
        return [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (integers(op, name, 2) for name in names)
    first, step = (padding or (0, 0))[axis], (stride or kernel)[axis]
    taps = [n * dilation[axis] - first for n in range(kernel[axis])]
    return [[i * step + n for n in taps if 0 <= i * step + n < length] for i in range(count)]


def _line_maxima(
    low: Lowering, x: Stored, dim: int, positions: Sequence[Sequence[int]], op: Op
) -> Stored:
    """The maximum of each list of ``positions`` of a dimension, as windows that lie side by side.

    Windows are as long as the longest: the others have their last position several times.
    """
    size = max(map(len, positions))
    places = [window[min(n, len(window) - 1)] for window in positions for n in range(size)]
    x = picked(low, x, dim, places, op)
    shape = (*x.shape[:dim], len(positions), *x.shape[dim + 1 :])
    if size == 1:
        return x
    if x.order == NHWC and dim in (2, 3):
        kernel = (size, 1) if dim == 2 else (1, size)
        return _pooled(low, x, windows(x, kernel, kernel, (0, 0), shape), shape, op)
    place = x.order.index(dim)
    before, after = prod(x.sizes[:place]), prod(x.sizes[place + 1 :])
    lines = low.reshaped(
        replace(x, shape=x.sizes, order=plain(len(shape))), (before, len(places), 1, after)
    )
    lines = replace(lines, shape=(before, after, len(places), 1), order=NHWC)
    wanted = (before, after, len(positions), 1)
    made = _pooled(low, lines, windows(lines, (size, 1), (size, 1), (0, 0), wanted), wanted, op)
    made = replace(made, shape=made.sizes, order=plain(4))
    sizes = tuple(shape[d] for d in x.order)
    return replace(low.reshaped(made, sizes), shape=shape, order=x.order)


def _pooled(low: Lowering, x: Stored, args: dict[str, Arg], shape: Sizes, op: Op) -> Stored:
    result = low.builder.emit("mplan.qmax_pool2d", args, op.values[0].name, op.loc)
    return replace(x, name=result, shape=shape)


def windows(x: Stored, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes) -> dict[str, Arg]:
    """The arguments of a pool of the image ``x`` with results of ``shape``.

    Where partial windows count (``ceil_mode``), there is more padding at the end.
    """
    sides: list[int] = []
    for d, before in enumerate(padding):
        reach = (shape[2 + d] - 1) * stride[d] + kernel[d]
        sides += [before, max(before, reach - x.shape[2 + d] - before)]
    return {
        "input": Ref(x.name),
        "kernel_size": kernel,
        "stride": stride,
        "padding": tuple(sides),
    }


@move("aten.amax.default")
def largest(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The maximum over some dimensions, one after the other."""
    x = get(low.source(op, "self"))
    rank = len(x.shape)
    dims = {d % rank for d in integers(op, "dim")} or set(range(rank))
    if rank == 4 and dims <= {2, 3}:
        x = image(low, x)
    for dim in sorted(dims):
        x = _line_maxima(low, x, dim, [range(x.shape[dim])], op)
    return low.reshaped(x, low.shape(name))
