"""TFLite's operators that move and resize: equal to LiteRT's reference kernels."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tflite_models import Builder, agreement

from tests.test_tflite_ops import MANY, SEED, SMALL, ZERO, numbers


@MANY
@given(SMALL, SMALL, SMALL, SMALL, st.sampled_from([(False, False), (False, True), (True, False)]))
def test_resize_nearest(height, width, new_height, new_width, mode):
    b = Builder()
    x = b.input((1, height, width, 3), scale=0.1)
    y = b.tensor((1, new_height, new_width, 3), scale=0.1)
    b.op(
        "RESIZE_NEAREST_NEIGHBOR",
        [x, b.const([new_height, new_width])],
        [y],
        "ResizeNearestNeighborOptions",
        2,
        alignCorners=mode[0],
        halfPixelCenters=mode[1],
    )
    assert agreement(b.finish(y), [numbers(1)(1, height, width, 3)])


@MANY
@given(
    SMALL,
    SMALL,
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(False, False), (False, True), (True, False)]),
    ZERO,
    SEED,
)
def test_resize_bilinear(height, width, new_height, new_width, mode, zero_point, seed):
    b = Builder()
    x = b.input((2, height, width, 3), scale=0.1, zero_point=zero_point)
    y = b.tensor((2, new_height, new_width, 3), scale=0.1, zero_point=zero_point)
    b.op(
        "RESIZE_BILINEAR",
        [x, b.const([new_height, new_width])],
        [y],
        "ResizeBilinearOptions",
        2,
        alignCorners=mode[0],
        halfPixelCenters=mode[1],
    )
    assert agreement(b.finish(y), [numbers(seed)(2, height, width, 3)])


def chain(b: Builder, name: str, inputs: list[int], shape: list[int], options: str = "", **rest: Any):
    y = b.tensor(shape, scale=0.1, zero_point=7)
    b.op(name, inputs, [y], options, **rest)
    return y


def test_moves():
    b = Builder()
    x = b.input((2, 4, 6, 3), scale=0.1, zero_point=7)
    padded = chain(b, "PAD", [x, b.const([[0, 0], [1, 2], [0, 3], [1, 0]])], [2, 7, 9, 4], "PadOptions")
    fill = b.const([5], "int8", scale=0.1, zero_point=7)
    wide = chain(
        b,
        "PADV2",
        [x, b.const([[0, 1], [0, 0], [0, 0], [0, 0]]), fill],
        [3, 4, 6, 3],
        "PadV2Options",
        version=2,
    )
    turned = chain(b, "TRANSPOSE", [padded, b.const([3, 0, 2, 1])], [4, 2, 9, 7], "TransposeOptions")
    cut = chain(
        b,
        "SLICE",
        [turned, b.const([1, 0, 2, 0]), b.const([2, -1, 5, 7])],
        [2, 2, 5, 7],
        "SliceOptions",
        version=2,
    )
    strided = chain(
        b,
        "STRIDED_SLICE",
        [cut, b.const([0, 1, 4, -6]), b.const([2, 2, 9, 7]), b.const([1, 1, 2, 3])],
        [2, 3, 2],
        "StridedSliceOptions",
        version=2,
        shrinkAxisMask=2,
        beginMask=4,
    )
    flat = chain(b, "RESHAPE", [strided, b.const([1, 12])], [1, 12], "ReshapeOptions")
    more = chain(b, "EXPAND_DIMS", [flat, b.const([0])], [1, 1, 12], "ExpandDimsOptions")
    less = chain(b, "SQUEEZE", [more], [12], "SqueezeOptions", squeezeDims=[0, 1])
    parts = [b.tensor((2, 4, 2, 3), scale=0.1, zero_point=7) for _ in range(3)]
    b.op("SPLIT", [b.const([2]), x], parts, "SplitOptions", numSplits=3)
    joined = chain(
        b, "CONCATENATION", [parts[2], x, parts[0]], [2, 4, 10, 3], "ConcatenationOptions", axis=-2
    )
    stacked = chain(
        b, "PACK", [parts[0], parts[1]], [2, 4, 2, 2, 3], "PackOptions", axis=2, valuesCount=2
    )
    assert agreement(b.finish(less, joined, stacked, wide), [numbers(0)(2, 4, 6, 3)])
