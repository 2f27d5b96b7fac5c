"""Emitted C of int8 networks: the bytes of the reference, on the host and on a Cortex-M."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runner import run_cli
from tflite_models import Builder, agreement, read

from mplan.capture import Captured
from mplan.capture.tflite import read_tflite
from mplan.codegen.c.kernels import supported
from mplan.ir.affine import softmax_factors
from mplan.ir.interp import run
from mplan.ir.ops import own_kinds
from mplan.ir.parser import parse
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.pipeline import run_passes
from tests.c_support import LAYOUT, build, emitted, run_program

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parent / "data" / "mcunet"
CLEANING = "canonicalize,fold_padding,fold_zero_points,bound_sums,inplace"


def cleaned(captured: Captured) -> tuple[Any, Any]:
    ctx = Context(LAYOUT, constants=captured.constants)
    return run_passes(captured.graph, parse_pipeline(CLEANING), ctx), ctx.constants


def expected(captured: Captured, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    names = [i.value.name for i in captured.graph.inputs if i.role == "input"]
    return run(captured.graph, {**captured.constants, **dict(zip(names, inputs, strict=True))})


def same_bytes(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"output {number}: {int((a != b).sum())} of {a.numel()} differ"


class Net:
    """A model of many branches from one image; each op's result is an output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = Builder()
        self.x = self.b.input((2, 9, 7, 6), scale=0.05, zero_point=-11)
        self.rows = self.b.input((5, 24), scale=0.04, zero_point=9)
        self.outputs: list[int] = []

    def add(
        self, name: str, inputs: list[int], shape: Sequence[int], *options: Any, **rest: Any
    ) -> int:
        scale, zero = rest.pop("scale", float(self.rng.uniform(0.02, 0.2))), rest.pop("zero", None)
        zero = int(self.rng.integers(-128, 128)) if zero is None else zero
        y = self.b.tensor(shape, scale=scale, zero_point=zero)
        self.b.op(name, inputs, [y], *options, **rest)
        self.outputs.append(y)
        return y

    def numbers(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def weights(self, *shape: int, axis: int = 0, per_channel: bool = True) -> list[int]:
        count = shape[axis] if per_channel else 1
        scales = [float(s) for s in self.rng.uniform(0.002, 0.02, count)]
        w = self.b.const(self.numbers(*shape), "int8", scale=scales, axis=axis)
        bias = self.rng.integers(-999, 999, shape[axis])
        return [w, self.b.const(bias, scale=[0.05 * s for s in scales])]

    def finish(self) -> tuple[bytes, list[np.ndarray]]:
        return self.b.finish(*self.outputs), [self.numbers(2, 9, 7, 6), self.numbers(5, 24)]


def contractions(net: Net) -> None:
    x, conv = net.x, {"strideH": 1, "strideW": 1, "padding": 0}
    net.add("CONV_2D", [x, *net.weights(5, 3, 4, 6)], (2, 9, 7, 5), "Conv2DOptions", 3, **conv)
    net.add(
        "CONV_2D",
        [x, *net.weights(8, 1, 1, 6, per_channel=False)],
        (2, 9, 7, 8),
        "Conv2DOptions",
        3,
        fusedActivationFunction=3,
        **conv,
    )
    net.add(
        "CONV_2D",
        [x, *net.weights(4, 2, 3, 3)],
        (2, 5, 4, 4),
        "Conv2DOptions",
        3,
        strideH=2,
        strideW=2,
        padding=0,
    )
    net.add(
        "CONV_2D",
        [x, *net.weights(3, 2, 2, 6)],
        (2, 3, 3, 3),
        "Conv2DOptions",
        3,
        strideH=2,
        strideW=1,
        padding=1,
        dilationHFactor=3,
        dilationWFactor=4,
    )
    depthwise = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
    for kernel, step, times in ((3, 1, 1), (7, 2, 1), (5, 3, 2)):
        size = -(-9 // step), -(-7 // step)
        w = net.weights(1, kernel, kernel - 1, 6 * times, axis=3)
        net.add(
            depthwise[0],
            [x, *w],
            (2, *size, 6 * times),
            depthwise[1],
            3,
            depthMultiplier=times,
            strideH=step,
            strideW=step,
            padding=0,
        )
    for out, kernel, step in ((8, 4, 2), (3, 2, 3)):
        size = (net.b.const([2, 9 * step, 7 * step, out]), (2, 9 * step, 7 * step, out))
        w = net.weights(out, kernel, kernel + 1, 6)
        given = [size[0], w[0], x, w[1]]
        steps = {"strideH": step, "strideW": step, "padding": 0}
        net.add("TRANSPOSE_CONV", given, size[1], "TransposeConvOptions", 3, **steps)
    net.add(
        "FULLY_CONNECTED",
        [net.rows, *net.weights(7, 24, per_channel=False)],
        (5, 7),
        "FullyConnectedOptions",
        4,
    )
    net.add(
        "BATCH_MATMUL",
        [net.rows, net.rows],
        (5, 5),
        "BatchMatMulOptions",
        2,
        adjX=False,
        adjY=True,
        scale=0.6,
    )


def elementwise(net: Net) -> None:
    x = net.x
    for name in ("ADD", "SUB", "MUL"):
        options = f"{name.capitalize()}Options", 2
        net.add(
            name,
            [x, net.outputs[-1] if net.outputs else x],
            (2, 9, 7, 6),
            *options,
            fusedActivationFunction=1,
        )
        small = net.b.const(net.numbers(6), "int8", scale=0.03, zero_point=4)
        net.add(name, [small, x], (2, 9, 7, 6), *options)
    net.add("RELU6", [x], (2, 9, 7, 6))
    slopes = net.b.const(net.numbers(1, 1, 6), "int8", scale=0.01, zero_point=-5)
    net.add("PRELU", [x, slopes], (2, 9, 7, 6))
    net.add("QUANTIZE", [x], (2, 9, 7, 6), "QuantizeOptions")
    net.add("LOGISTIC", [x], (2, 9, 7, 6), scale=1 / 256, zero=-128)
    net.add("HARD_SWISH", [x], (2, 9, 7, 6))
    net.add("GELU", [x], (2, 9, 7, 6), "GeluOptions")
    real = net.b.tensor((2, 9, 7, 6), "float32")
    net.b.op("DEQUANTIZE", [x], [real], "DequantizeOptions", 2)
    net.add("QUANTIZE", [real], (2, 9, 7, 6), "QuantizeOptions", scale=0.1)
    net.outputs.append(real)


def windows(net: Net) -> None:
    x, same = net.x, {"scale": 0.05, "zero": -11}
    for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        net.add(
            name,
            [x],
            (2, 5, 4, 6),
            "Pool2DOptions",
            2,
            filterHeight=3,
            filterWidth=4,
            strideH=2,
            strideW=2,
            padding=0,
            **same,
        )
    net.add("MEAN", [x, net.b.const([1, 2])], (2, 6), "ReducerOptions", 2)
    net.add("MEAN", [x, net.b.const([1, 2])], (2, 1, 1, 6), "ReducerOptions", 2, keepDims=True)
    net.add("MEAN", [x, net.b.const([3])], (2, 9, 7), "ReducerOptions", 2)
    net.add("MEAN", [x, net.b.const([0, 1, 3])], (7,), "ReducerOptions", 2)
    net.add("SOFTMAX", [net.rows], (5, 24), "SoftmaxOptions", 2, beta=1.0, scale=1 / 256, zero=-128)
    net.add("SOFTMAX", [x], (2, 9, 7, 6), "SoftmaxOptions", 2, beta=0.3, scale=1 / 256, zero=-128)
    for mode in ({"alignCorners": True}, {"halfPixelCenters": True}):
        net.add(
            "RESIZE_BILINEAR",
            [x, net.b.const([13, 4])],
            (2, 13, 4, 6),
            "ResizeBilinearOptions",
            2,
            **mode,
            **same,
        )
        net.add(
            "RESIZE_NEAREST_NEIGHBOR",
            [x, net.b.const([13, 4])],
            (2, 13, 4, 6),
            "ResizeNearestNeighborOptions",
            2,
            **mode,
            **same,
        )


def moves(net: Net) -> None:
    x, same = net.x, {"scale": 0.05, "zero": -11}
    net.add(
        "PAD", [x, net.b.const([[0, 0], [1, 2], [0, 3], [1, 0]])], (2, 12, 10, 7), "PadOptions", **same
    )
    padded = net.outputs.pop()
    cut = net.add(
        "TRANSPOSE", [padded, net.b.const([0, 3, 1, 2])], (2, 7, 12, 10), "TransposeOptions", **same
    )
    net.add(
        "SLICE",
        [cut, net.b.const([0, 2, 1, 3]), net.b.const([2, 3, -1, 4])],
        (2, 3, 11, 4),
        "SliceOptions",
        2,
        **same,
    )
    net.add("CONCATENATION", [cut, cut], (2, 7, 24, 10), "ConcatenationOptions", axis=2, **same)
    net.add("RESHAPE", [x, net.b.const([42, 18])], (42, 18), "ReshapeOptions", **same)


def random_windows(net: Net) -> None:
    """Kernels 1 to 7, strides 1 to 3, dilations, both paddings, channels 1 to 40, in one program."""
    rng = net.rng
    for number in range(24):
        kernel, step, spread = rng.integers(1, 8, 2), rng.integers(1, 4, 2), rng.integers(1, 4, 2)
        size = np.array((9, 7))
        valid = bool(rng.integers(2)) and all((kernel - 1) * spread < size)
        out = (size - (kernel - 1) * spread - 1) // step + 1 if valid else -(-size // step)
        shared = {"padding": int(valid), "fusedActivationFunction": int(rng.choice([0, 1, 3]))}
        shared |= {"strideH": int(step[0]), "strideW": int(step[1])}
        shared |= {"dilationHFactor": int(spread[0]), "dilationWFactor": int(spread[1])}
        taps, image = [int(k) for k in kernel], [2, *(int(n) for n in out)]
        if number % 2:
            times = int(rng.integers(1, 4))
            w = net.weights(1, *taps, 6 * times, axis=3)
            name, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
            net.add(name, [net.x, *w], (*image, 6 * times), options, 3, depthMultiplier=times, **shared)
        else:
            channels, groups = int(rng.integers(1, 41)), int(rng.choice([1, 2, 3]))
            w = net.weights(channels * groups, *taps, 6 // groups)
            shape = (*image, channels * groups)
            net.add("CONV_2D", [net.x, *w], shape, "Conv2DOptions", 3, **shared)


@pytest.mark.parametrize("branches", [contractions, elementwise, windows, moves, random_windows])
def test_every_kernel_has_the_bytes_of_the_reference(branches: Any, tmp_path: Path) -> None:
    net = Net(0)
    branches(net)
    model, inputs = net.finish()
    assert agreement(model, inputs)
    captured = read(model)
    given = [torch.from_numpy(x) for x in inputs]
    outputs = expected(captured, given)
    files = emitted(*cleaned(captured))
    same_bytes(run_program(tmp_path, files, given, outputs), outputs)


def run_text(
    folder: Path, text: str, inputs: Sequence[torch.Tensor], **constants: torch.Tensor
) -> list[torch.Tensor]:
    """What the program of a graph yields, which is what the reference does."""
    graph = parse(text)
    given = dict(zip((i.value.name for i in graph.inputs if i.role == "input"), inputs, strict=True))
    outputs = run(graph, {**constants, **given})
    ours = run_program(folder, emitted(graph, constants), inputs, outputs)
    same_bytes(ours, outputs)
    return ours


@pytest.mark.parametrize("classes", [511, 512, 600, 1000, 4095])
def test_a_softmax_of_many_classes(classes: int, tmp_path: Path) -> None:
    multiplier, shift, lowest = softmax_factors(1.0, 0.1)
    factors = f"multiplier={multiplier}, shift={shift}, diff_min={lowest}"
    text = f"""graph @net(%x: i8[3,{classes}]) {{
      %y: i8[3,{classes}] = mplan.qsoftmax(input=%x, {factors})
      return %y
    }}"""
    x = torch.stack(
        [torch.zeros(classes), torch.arange(classes) % 3, torch.arange(classes) % 256 - 128]
    )
    (y,) = run_text(tmp_path, text, [x.to(torch.int8)])
    exact = torch.softmax(0.1 * x, -1) * 256 - 128
    assert (y - exact).abs().max() < 0.51


@pytest.mark.parametrize("shift", [-31, 17, 31])
def test_a_factor_beyond_all_results_saturates(shift: int, tmp_path: Path) -> None:
    zero_points = "input_zero_point=0, output_zero_point=0"
    factor = f'multiplier=%m, shift=%s, {zero_points}, rounding="single"'
    text = f"""graph @net(%x: i8[2,3], const %w: i8[2,3], const %m: i32[1], const %s: i8[1]) {{
      %y: i8[2,2] = mplan.qlinear(input=%x, weight=%w, {factor})
      return %y
    }}"""
    x = torch.tensor([[127, 127, 127], [-128, 100, 1]], dtype=torch.int8)
    weight = torch.tensor([[127, 127, 127], [-127, -127, -100]], dtype=torch.int8)
    m, s = torch.tensor([2**31 - 1], dtype=torch.int32), torch.tensor([shift], dtype=torch.int8)
    (y,) = run_text(tmp_path, text, [x], w=weight, m=m, s=s)
    assert y.tolist() == ([[0, 0], [0, 0]] if shift < 0 else [[127, -128], [-128, 127]])


def test_numbers_without_an_integer_are_quantised_alike(tmp_path: Path) -> None:
    text = """graph @net(%x: f32[6]) {
      %y: i8[6] = mplan.quantize(input=%x, scale=0.5, zero_point=100)
      return %y
    }"""
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, -0.25])
    (y,) = run_text(tmp_path, text, [x])
    assert y.tolist() == [-128, 127, -128, 127, -128, 99]


def test_every_quantised_op_has_a_kernel() -> None:
    from mplan.ir.quantized_ops import ROWS

    assert set(ROWS) <= set(own_kinds())
    assert set(ROWS) <= set(supported())


@pytest.mark.parametrize("name", ["mcunet-vww1", "mcunet-in3"])
def test_trained_models(name: str, tmp_path: Path) -> None:
    captured = read_tflite(MODELS / f"{name}.tflite")
    outputs = expected(captured, captured.example_inputs)
    network = build(tmp_path, emitted(*cleaned(captured)), "-O2")
    same_bytes(network.run(captured.example_inputs, outputs), outputs)
    assert network.status == 0 and network.guards_intact


def test_a_trained_model_on_an_emulated_microcontroller(tmp_path: Path) -> None:
    model, folder = MODELS / "mcunet-vww1.tflite", tmp_path / "out"
    compiled = run_cli("compile", model, "--target", "stm32f746", "-o", folder)
    assert compiled.code == 0, compiled.err
    found = run_cli("run", folder, "--json").json
    assert found["arena_bytes"] == found["arena_touched_bytes"] == 96_000
    assert found["outputs_match"] and found["max_abs_err"] == 0
