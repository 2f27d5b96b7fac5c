"""TFLite operators that compute: random shapes and scales, equal to LiteRT's reference kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tflite_models import Builder, agreement

MANY = settings(max_examples=25, deadline=None)
SMALL = st.integers(1, 9)
SCALE = st.floats(0.003, 0.7)
ZERO = st.integers(-128, 127)
SEED = st.integers(0, 2**31)
Numbers = Callable[..., np.ndarray]


def numbers(seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    return lambda *shape, low=-128, high=127: rng.integers(low, high + 1, shape).astype(np.int8)


@st.composite
def windows(draw: Any) -> dict[str, int]:
    return {
        "kernel_h": draw(st.integers(1, 7)),
        "kernel_w": draw(st.integers(1, 7)),
        "strideH": draw(st.integers(1, 3)),
        "strideW": draw(st.integers(1, 3)),
        "dilationHFactor": draw(st.integers(1, 3)),
        "dilationWFactor": draw(st.integers(1, 3)),
        "padding": draw(st.sampled_from([0, 1])),
        "height": draw(st.integers(1, 20)),
        "width": draw(st.integers(1, 33)),
    }


def extent(window: dict[str, int], axis: str) -> int:
    size, kernel = window["height" if axis == "H" else "width"], window[f"kernel_{axis.lower()}"]
    reach = (kernel - 1) * window.get(f"dilation{axis}Factor", 1) + 1
    step = window[f"stride{axis}"]
    return -(-size // step) if window["padding"] == 0 else (size - reach) // step + 1


def fields(window: dict[str, int]) -> dict[str, int]:
    return {k: v for k, v in window.items() if k.startswith(("stride", "dilation", "padding"))}


def conv_scales(seed: int, channels: int, per_channel: bool) -> list[float]:
    spread = np.random.default_rng(seed).uniform(0.001, 0.02, channels if per_channel else 1)
    return [float(s) for s in spread]


@MANY
@given(
    windows(),
    SMALL,
    st.integers(1, 40),
    st.integers(1, 2),
    SEED,
    ZERO,
    ZERO,
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
def test_convolutions(window, channels, out, groups, seed, zx, zy, per_channel, activation):
    height, width = extent(window, "H"), extent(window, "W")
    assume(min(height, width) >= 1)
    draw, out = numbers(seed), out * groups
    scales = conv_scales(seed, out, per_channel)
    b = Builder()
    x = b.input((1, window["height"], window["width"], channels * groups), scale=0.05, zero_point=zx)
    shape = out, window["kernel_h"], window["kernel_w"], channels
    w = b.const(draw(*shape, low=-127), "int8", scale=scales)
    bias = b.const(draw(out).astype(int) * 9, scale=[0.05 * s for s in scales])
    y = b.tensor((1, height, width, out), scale=0.06, zero_point=zy)
    b.op(
        "CONV_2D",
        [x, w, bias],
        [y],
        "Conv2DOptions",
        3,
        fusedActivationFunction=activation,
        **fields(window),
    )
    assert agreement(b.finish(y), [draw(1, window["height"], window["width"], channels * groups)])


@MANY
@given(windows(), SMALL, st.integers(1, 3), SEED, ZERO, ZERO, st.booleans(), st.booleans())
def test_depthwise_convolutions(window, channels, times, seed, zx, zy, per_channel, biased):
    height, width = extent(window, "H"), extent(window, "W")
    assume(min(height, width) >= 1)
    draw, out = numbers(seed), channels * times
    scales = conv_scales(seed, out, per_channel)
    b = Builder()
    x = b.input((2, window["height"], window["width"], channels), scale=0.05, zero_point=zx)
    shape = 1, window["kernel_h"], window["kernel_w"], out
    w = b.const(draw(*shape, low=-127), "int8", scale=scales, axis=3)
    bias = b.const(draw(out).astype(int) * 9, scale=[0.05 * s for s in scales])
    y = b.tensor((2, height, width, out), scale=0.03, zero_point=zy)
    b.op(
        "DEPTHWISE_CONV_2D",
        [x, w, bias] if biased else [x, w],
        [y],
        "DepthwiseConv2DOptions",
        3,
        depthMultiplier=times,
        **fields(window),
    )
    assert agreement(b.finish(y), [draw(2, window["height"], window["width"], channels)])


@MANY
@given(
    windows(),
    SMALL,
    st.integers(1, 12),
    st.integers(0, 2),
    SEED,
    ZERO,
    ZERO,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
def test_transposed_convolutions(
    window, channels, out, more, seed, zx, zy, per_channel, biased, activation
):
    """SAME as the converter makes it; VALID with rows and columns that are added at the end."""
    draw, scales = numbers(seed), conv_scales(seed, out, per_channel)
    height, width = window["height"] % 9 + 1, window["width"] % 9 + 1
    kernel, step = (
        tuple(window[f"{name}{axis}"] for axis in axes)
        for name, axes in (("kernel_", "hw"), ("stride", "HW"))
    )
    valid = (
        (n - 1) * s + k + min(more, s - 1)
        for n, k, s in zip((height, width), kernel, step, strict=True)
    )
    size = (height * step[0], width * step[1]) if window["padding"] == 0 else tuple(valid)
    b = Builder()
    x = b.input((2, height, width, channels), scale=0.05, zero_point=zx)
    w = b.const(draw(out, *kernel, channels, low=-127), "int8", scale=scales)
    shape = b.const([2, *size, out])
    bias = [b.const(draw(out).astype(int) * 9, scale=[0.05 * s for s in scales])] if biased else []
    y = b.tensor((2, *size, out), scale=0.06, zero_point=zy)
    b.op(
        "TRANSPOSE_CONV",
        [shape, w, x, *bias],
        [y],
        "TransposeConvOptions",
        4,
        strideH=step[0],
        strideW=step[1],
        padding=window["padding"],
        fusedActivationFunction=activation,
    )
    assert agreement(b.finish(y), [draw(2, height, width, channels)])


@MANY
@given(SMALL, st.integers(1, 200), st.integers(1, 40), SEED, ZERO, ZERO, st.booleans(), SCALE)
def test_fully_connected(rows, depth, out, seed, zx, zy, biased, scale):
    draw = numbers(seed)
    b = Builder()
    x = b.input((rows, 1, 1, depth), scale=scale, zero_point=zx)
    w = b.const(draw(out, depth, low=-127), "int8", scale=0.01)
    bias = b.const(draw(out).astype(int) * 50, scale=scale * 0.01)
    y = b.tensor((rows, out), scale=scale * 0.3, zero_point=zy)
    b.op("FULLY_CONNECTED", [x, w, bias if biased else -1], [y], "FullyConnectedOptions", 4)
    assert agreement(b.finish(y), [draw(rows, 1, 1, depth)])


def test_fully_connected_rounds_halves_away_from_zero():
    draw = numbers(0)
    b = Builder()
    x = b.input((200, 8), scale=0.5)
    w = b.const(draw(64, 8, low=-4, high=4), "int8", scale=0.125)
    y = b.tensor((200, 64), scale=0.5)
    b.op("FULLY_CONNECTED", [x, w, -1], [y], "FullyConnectedOptions", 4)
    assert agreement(b.finish(y), [draw(200, 8, low=-4, high=4)])


@MANY
@given(
    st.integers(1, 3),
    SMALL,
    st.integers(1, 60),
    SMALL,
    SEED,
    ZERO,
    ZERO,
    ZERO,
    st.booleans(),
    st.booleans(),
    SCALE,
)
def test_batch_matmul(batch, rows, depth, columns, seed, za, zb, zy, swap_a, swap_b, scale):
    draw = numbers(seed)
    shapes = [(batch, depth, rows) if swap_a else (batch, rows, depth)]
    shapes.append((batch, columns, depth) if swap_b else (batch, depth, columns))
    b = Builder()
    x = b.input(shapes[0], scale=scale, zero_point=za)
    z = b.input(shapes[1], scale=0.02, zero_point=zb)
    y = b.tensor((batch, rows, columns), scale=scale * 0.5, zero_point=zy)
    b.op("BATCH_MATMUL", [x, z], [y], "BatchMatMulOptions", 2, adjX=swap_a, adjY=swap_b)
    assert agreement(b.finish(y), [draw(*shape) for shape in shapes])


@MANY
@given(
    st.sampled_from(["ADD", "SUB", "MUL"]),
    SCALE,
    SCALE,
    SCALE,
    ZERO,
    ZERO,
    ZERO,
    st.sampled_from([0, 1, 3]),
    st.sampled_from([(2, 3, 5), (5,), (3, 1), (1, 1, 1)]),
    SEED,
)
def test_sums_and_products(name, sa, sb, sy, za, zb, zy, activation, shape, seed):
    draw = numbers(seed)
    b = Builder()
    x = b.input((2, 3, 5, 5), scale=sa, zero_point=za)
    z = b.input(shape if len(shape) < 4 else (2, 3, 5, 5), scale=sb, zero_point=zb)
    y = b.tensor((2, 3, 5, 5), scale=sy, zero_point=zy)
    if 5 % b.tensors[z].shape[-1] or (len(shape) > 1 and 5 % shape[-2]):
        z_shape = b.tensors[z].shape = [5]
    else:
        z_shape = b.tensors[z].shape
    options = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[name]
    b.op(name, [x, z], [y], options, 2, fusedActivationFunction=activation)
    assert agreement(b.finish(y), [draw(2, 3, 5, 5), draw(*z_shape)])


@MANY
@given(SCALE, SCALE, SCALE, ZERO, ZERO, ZERO, st.sampled_from([(1, 1, 5), (5,), (3, 5, 1)]), SEED)
def test_prelu(sx, ss, sy, zx, zs, zy, shape, seed):
    draw = numbers(seed)
    b = Builder()
    x = b.input((2, 3, 5, 5), scale=sx, zero_point=zx)
    slope = b.const(draw(*shape), "int8", scale=ss, zero_point=zs)
    y = b.tensor((2, 3, 5, 5), scale=sy, zero_point=zy)
    b.op("PRELU", [x, slope], [y])
    assert agreement(b.finish(y), [draw(2, 3, 5, 5)])


UNARY: dict[str, tuple[str, dict[str, Any], tuple[float, int] | None]] = {
    "LOGISTIC": ("", {}, (1 / 256, -128)),
    "TANH": ("", {}, (1 / 128, 0)),
    "HARD_SWISH": ("", {}, None),
    "GELU": ("GeluOptions", {"approximate": False}, None),
    "LEAKY_RELU": ("LeakyReluOptions", {"alpha": 0.17}, None),
    "RELU": ("", {}, None),
    "RELU6": ("", {}, None),
    "RELU_N1_TO_1": ("", {}, None),
    "QUANTIZE": ("QuantizeOptions", {}, None),
}


@pytest.mark.parametrize("name", UNARY)
@MANY
@given(SCALE, ZERO, SCALE, ZERO)
def test_functions_of_one_number(name, sx, zx, sy, zy):
    options, given_fields, fixed = UNARY[name]
    sy, zy = fixed or (sy, zy)
    assume(name != "HARD_SWISH" or sx / 128 < sy * 0.99)  # LiteRT refuses others
    b = Builder()
    x = b.input((1, 256), scale=sx, zero_point=zx)
    y = b.tensor((1, 256), scale=sy, zero_point=zy)
    b.op(name, [x], [y], options, 1, **given_fields)
    assert agreement(b.finish(y), [np.arange(-128, 128, dtype=np.int8)[None]])


def test_the_approximate_gelu():
    b = Builder()
    x, y = b.input((1, 256), scale=0.04, zero_point=-9), b.tensor((1, 256), scale=0.03)
    b.op("GELU", [x], [y], "GeluOptions", approximate=True)
    assert agreement(b.finish(y), [np.arange(-128, 128, dtype=np.int8)[None]])


@MANY
@given(SCALE, ZERO, SEED)
def test_quantize_and_dequantize(scale, zero_point, seed):
    b = Builder()
    x = b.input((3, 50), "float32")
    y = b.tensor((3, 50), scale=scale, zero_point=zero_point)
    z = b.tensor((3, 50), "float32")
    b.op("QUANTIZE", [x], [y], "QuantizeOptions")
    b.op("DEQUANTIZE", [y], [z], "DequantizeOptions", 2)
    halves = np.random.default_rng(seed).integers(-300, 300, (3, 50)) / 2
    assert agreement(b.finish(z), [(halves * np.float32(scale)).astype(np.float32)])


@MANY
@given(
    st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]),
    windows(),
    SMALL,
    SEED,
    ZERO,
    st.sampled_from([0, 1, 3]),
)
def test_pools(name, window, channels, seed, zero_point, activation):
    window = {k: v for k, v in window.items() if not k.startswith("dilation")}
    height, width = extent(window, "H"), extent(window, "W")
    assume(min(height, width) >= 1)
    b = Builder()
    shape = 1, window["height"], window["width"], channels
    x = b.input(shape, scale=0.03, zero_point=zero_point)
    y = b.tensor((1, height, width, channels), scale=0.03, zero_point=zero_point)
    b.op(
        name,
        [x],
        [y],
        "Pool2DOptions",
        2,
        filterHeight=window["kernel_h"],
        filterWidth=window["kernel_w"],
        fusedActivationFunction=activation,
        **fields(window),
    )
    assert agreement(b.finish(y), [numbers(seed)(*shape)])


@MANY
@given(
    st.sampled_from([[1, 2], [2, 1], [1], [-1], [3, 1], [1, 2, 3]]),
    st.booleans(),
    SCALE,
    ZERO,
    SCALE,
    ZERO,
    SMALL,
    SEED,
)
def test_means(axes, keep, sx, zx, sy, zy, size, seed):
    shape = (2, size, 5, 7)
    reduced = {a % 4 for a in axes}
    left = [1 if d in reduced else n for d, n in enumerate(shape)]
    b = Builder()
    x = b.input(shape, scale=sx, zero_point=zx)
    out = left if keep else [n for d, n in enumerate(left) if d not in reduced]
    y = b.tensor(out, scale=sy, zero_point=zy)
    b.op("MEAN", [x, b.const(axes)], [y], "ReducerOptions", 2, keepDims=keep)
    assert agreement(b.finish(y), [numbers(seed)(*shape)])


@MANY
@given(st.floats(0.001, 1.5), ZERO, st.floats(0.1, 3.0), st.integers(1, 60), SEED)
def test_softmax(scale, zero_point, beta, classes, seed):
    b = Builder()
    x = b.input((20, classes), scale=scale, zero_point=zero_point)
    y = b.tensor((20, classes), scale=1 / 256, zero_point=-128)
    b.op("SOFTMAX", [x], [y], "SoftmaxOptions", 2, beta=beta)
    assert agreement(b.finish(y), [numbers(seed)(20, classes)])


ALL = np.arange(-128, 128, dtype=np.int8)
#: Scales for which factors in float32 and in float64 lead to different bytes.
NEAR_TIES = {
    "RELU": (0.12124448269605637, 0.08791997283697128, "", {}),
    "QUANTIZE": (0.12495671957731247, 0.051569439470767975, "", {}),
    "LEAKY_RELU": (0.35520583391189575, 0.4665389955043793, "LeakyReluOptions", {"alpha": 0.1}),
    "LEAKY_RELU below zero": (
        0.5640870332717896,
        0.0035737191792577505,
        "LeakyReluOptions",
        {"alpha": 0.17},
    ),
}


@pytest.mark.parametrize("case", NEAR_TIES)
def test_factors_have_the_precision_of_tflite(case):
    scale, out, options, given_fields = NEAR_TIES[case]
    b = Builder()
    x, y = b.input((1, 256), scale=scale), b.tensor((1, 256), scale=out)
    b.op(case.partition(" ")[0], [x], [y], options, **given_fields)
    assert agreement(b.finish(y), [ALL[None]])


def test_factors_of_products_have_the_precision_of_tflite():
    b = Builder()
    x, z = b.input((256, 1), scale=0.5661347508430481), b.input((1, 256), scale=0.3621819019317627)
    y = b.tensor((256, 256), scale=0.682630181312561)
    b.op("MUL", [x, z], [y], "MulOptions", 2)
    assert agreement(b.finish(y), [ALL[:, None], ALL[None]])


def test_factors_of_matrices_have_the_precision_of_tflite():
    b = Builder()
    x, z = b.input((256, 1), scale=0.3158160150051117), b.input((1, 1), scale=0.12233639508485794)
    y = b.tensor((256, 1), scale=0.4977494478225708)
    b.op("BATCH_MATMUL", [x, z], [y], "BatchMatMulOptions", 2)
    assert agreement(b.finish(y), [ALL[:, None], np.full((1, 1), 62, np.int8)])


def test_factors_of_convolutions_have_the_precision_of_tflite():
    b = Builder()
    x = b.input((1, 256, 1, 1), scale=0.5759161710739136)
    w = b.const(np.full((1, 1, 1, 1), 32), "int8", scale=0.6869634389877319)
    y = b.tensor((1, 256, 1, 1), scale=3.069155693054199)
    bias = b.const([0], scale=0.5759161710739136 * 0.6869634389877319)
    b.op("CONV_2D", [x, w, bias], [y], "Conv2DOptions", 3, strideH=1, strideW=1)
    assert agreement(b.finish(y), [ALL.reshape(1, 256, 1, 1)])


def test_factors_of_transposed_convolutions_have_the_precision_of_tflite():
    b = Builder()
    x = b.input((1, 256, 1, 1), scale=0.5759161710739136)
    w = b.const(np.full((1, 1, 1, 1), 32), "int8", scale=0.6869634389877319)
    y = b.tensor((1, 256, 1, 1), scale=3.069155693054199)
    given = [b.const([1, 256, 1, 1]), w, x]
    b.op("TRANSPOSE_CONV", given, [y], "TransposeConvOptions", 3, strideH=1, strideW=1)
    assert agreement(b.finish(y), [ALL.reshape(1, 256, 1, 1)])


def test_factors_of_means_have_the_precision_of_tflite():
    sums = np.arange(-1024, 1017)
    x = np.zeros((len(sums), 8), np.int8)
    for column in range(8):
        x[:, column] = np.clip(sums, -128, 127)
        sums = sums - x[:, column]
    b = Builder()
    given_x, y = (
        b.input(x.shape, scale=0.2301235795021057),
        b.tensor((len(x),), scale=0.0009750999161042273),
    )
    b.op("MEAN", [given_x, b.const([1])], [y], "ReducerOptions", 2)
    assert agreement(b.finish(y), [x])
