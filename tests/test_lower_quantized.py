"""Quantised PyTorch graphs in integers: each op next to what quantize and dequantize simulate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mplan
from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.graph import Graph
from mplan.ir.parser import parse
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.lower_quantized import LowerQuantized
from tests.c_support import LAYOUT
from tests.qdq_nets import Calls, floats_in, lowered, outputs_of, quantized, steps_between

IMAGE = (2, 6, 9, 7)
ROWS = (5, 3, 12)


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.Conv2d(6, *args, **kwargs)


def squeeze(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3), keepdim=True)


OPS: dict[str, tuple[Any, ...]] = {
    "conv": (conv(5, 3, padding=1), IMAGE),
    "conv_strided": (conv(8, (3, 4), stride=(2, 3), padding=(1, 2)), IMAGE),
    "conv_dilated": (conv(4, 3, dilation=(2, 1), bias=False), IMAGE),
    "conv_same": (conv(4, 4, padding="same"), IMAGE),
    "conv_grouped": (conv(9, 3, groups=3), IMAGE),
    "depthwise": (conv(6, 3, padding=1, groups=6), IMAGE),
    "depthwise_two_per_channel": (conv(12, 5, padding=2, groups=6), IMAGE),
    "conv_relu6": (nn.Sequential(conv(5, 3), nn.ReLU6()), IMAGE),
    "conv_hardtanh": (nn.Sequential(conv(5, 3), nn.Hardtanh(-0.3, 0.4)), IMAGE),
    "conv_bn_relu": (nn.Sequential(conv(5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()), IMAGE),
    "norm_alone": (nn.Sequential(nn.BatchNorm2d(6), nn.ReLU6()), IMAGE),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 11)),
    "linear": (nn.Linear(12, 7), (5, 12)),
    "linear_rows": (nn.Sequential(nn.Linear(12, 7, bias=False), nn.ReLU()), ROWS),
    "linear_over_channels": (Calls(lambda f, x: f(x.permute(0, 2, 3, 1)), nn.Linear(6, 3)), IMAGE),
    "matmul": (Calls(lambda x, y: x @ y.transpose(-2, -1)), ROWS, ROWS),
    "matmul_scaled": (Calls(lambda x, y: (x @ y) * 0.3), (2, 3, 4), (2, 4, 5)),
    "matmul_of_images": (Calls(lambda x, y: x @ y), (2, 3, 4, 5), (2, 3, 5, 2)),
    "add": (Calls(lambda x, y: x + y), IMAGE, IMAGE),
    "add_relu": (Calls(lambda x, y: F.relu(x + y)), IMAGE, IMAGE),
    "sub_channels": (Calls(lambda x, y: x - y), IMAGE, (6, 1, 1)),
    "mul_broadcast": (Calls(lambda x, y: x * y), IMAGE, (2, 6, 1, 1)),
    "add_constant": (Calls(lambda x: x + torch.linspace(-1, 1, 12)), ROWS),
    "mean": (Calls(lambda x: x.mean((2, 3))), IMAGE),
    "mean_kept": (Calls(squeeze), IMAGE),
    "mean_of_rows": (Calls(lambda x: x.mean(1)), ROWS),
    "sum": (Calls(lambda x: x.sum((1, 3))), IMAGE),
    "avg_pool": (nn.AvgPool2d(3, 2, padding=1), IMAGE),
    "avg_pool_inside": (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), IMAGE),
    "avg_pool_whole": (nn.AvgPool2d((9, 7)), IMAGE),
    "adaptive_pool": (nn.AdaptiveAvgPool2d((3, 7)), IMAGE),
    "global_pool": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "max_pool": (nn.MaxPool2d((3, 2), 2, padding=1), IMAGE),
    "cat": (Calls(lambda x, y: torch.cat([x, y], 1)), IMAGE, (2, 3, 9, 7)),
    "pad": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    "slice": (Calls(lambda x: x[:, 1:5, ::2, 3]), IMAGE),
    "split": (Calls(lambda x: torch.add(*x.chunk(2, 1))), IMAGE),
    "unbind": (Calls(lambda x: torch.mul(*x.unbind(0))), IMAGE),
    "channel_shuffle": (nn.ChannelShuffle(3), IMAGE),
    "pixel_shuffle": (nn.PixelShuffle(2), (1, 8, 3, 5)),
    "tokens": (Calls(lambda x: x.flatten(2).transpose(1, 2)), IMAGE),
    "reshape_mixed": (Calls(lambda x: x.reshape(2, 27, 14)), IMAGE),
    "upsample": (nn.Upsample(scale_factor=2), IMAGE),
    "upsample_uneven": (nn.Upsample(size=(13, 4)), IMAGE),
    "softmax": (nn.Softmax(-1), ROWS),
    "softmax_over_channels": (nn.Softmax(1), IMAGE),
    "sigmoid": (nn.Sigmoid(), IMAGE),
    "tanh": (nn.Tanh(), IMAGE),
    "hardswish": (nn.Hardswish(), IMAGE),
    "hardsigmoid": (nn.Hardsigmoid(), IMAGE),
    "silu": (nn.SiLU(), IMAGE),
    "gelu": (nn.GELU(), ROWS),
    "gelu_tanh": (nn.GELU("tanh"), ROWS),
    "leaky_relu": (nn.LeakyReLU(0.1), IMAGE),
    "elu": (nn.ELU(), IMAGE),
    "relu_alone": (nn.ReLU(), IMAGE),
    "written_out": (Calls(lambda x: x * F.relu6(x + 3) / 6), IMAGE),
    "layer_norm": (nn.LayerNorm(12), ROWS),
    "layer_norm_plain": (nn.LayerNorm((3, 12), elementwise_affine=False), ROWS),
    "layer_norm_of_channels": (
        Calls(lambda f, x: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(6)),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_within_one_step_of_its_simulation(name: str) -> None:
    torch.manual_seed(1)
    model, *shapes = OPS[name]
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)) and part.weight is not None:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    captured, inputs = quantized(model, shapes)
    graph, constants, notes = lowered(captured)
    assert not notes and not floats_in(graph)
    (simulated,) = outputs_of(captured.graph, captured.constants, inputs)
    (ours,) = outputs_of(graph, constants, inputs)
    steps = steps_between(graph, ours, simulated)
    written = name == "written_out"  # three ops, each rounded
    assert steps <= (3 if written else 1)
    assert ours.unique().numel() > 8


def per_tensor(dtype: str, least: int, most: int, kind: str = "per_tensor.default") -> str:
    """A graph that quantises and dequantises its input and multiplies the result."""
    args = f"scale=0.1, zero_point=3, quant_min={least}, quant_max={most}, dtype=dtype({dtype})"
    library = "quantized_decomposed"
    return f"""graph @net(%x: f32[2,3]) {{
      %q: {dtype}[2,3] = {library}.quantize_{kind}(input=%x, {args}) loc("net.py":7)
      %d: f32[2,3] = {library}.dequantize_{kind}(input=%q, {args})
      %y: f32[2,3] = aten.exp.default(self=%d) loc("net.py":8)
      %z: f32[2,3] = aten.cumsum.default(self=%y, dim=0) loc("net.py":9)
      return %z
    }}"""


def lower(text: str, constants: dict[str, torch.Tensor] | None = None) -> tuple[Graph, Context]:
    ctx = Context(LAYOUT, constants=constants or {})
    graph = LowerQuantized().run(parse(text), ctx)
    verify(graph, deep=True)
    return graph, ctx


def test_what_has_no_integer_form_stays_float_and_is_named() -> None:
    graph, ctx = lower(per_tensor("i8", -128, 127))
    kinds = [op.kind for op in graph.ops]
    expected = ["mplan.quantize", "mplan.dequantize", "aten.exp.default", "aten.cumsum.default"]
    assert kinds == expected
    assert [note.partition(":")[2].strip()[:26] for note in ctx.notes] == [
        "aten.exp.default at net.py",
        "aten.cumsum.default at net",
    ]


def test_other_widths_are_refused_with_their_places() -> None:
    with pytest.raises(UnsupportedError, match="int16, not 8 bits") as caught:
        lower(per_tensor("i16", -32768, 32767))
    assert caught.value.code == "MP314"
    assert caught.value.where is not None and caught.value.where.line == 7


def test_calibration_needs_data() -> None:
    with pytest.raises(UserError) as caught:
        mplan.quantize(nn.ReLU(), [])
    assert caught.value.code == "MP315"


FLOATS: dict[str, Any] = {
    "after_a_permutation": lambda f, x: f(torch.cumsum(x.permute(0, 2, 3, 1)[:, 2:], 1)),
    "between_layers": lambda f, x: f(torch.cumsum(f(x.permute(0, 2, 3, 1)), 1)),
    "split_in_two": lambda f, x: torch.add(*torch.cumsum(x, 2).transpose(1, 3).chunk(2, 1)),
    "at_the_end": lambda f, x: torch.cumsum(f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_between_integers_compute_the_same(name: str) -> None:
    torch.manual_seed(1)
    model = Calls(FLOATS[name], nn.Linear(6, 6))
    if name == "split_in_two":
        model = Calls(lambda x: FLOATS[name](None, x))
    captured, inputs = quantized(model, [(2, 6, 4, 8)])
    graph, constants, notes = lowered(captured)
    assert any("cumsum" in note for note in notes)
    (simulated,) = outputs_of(captured.graph, captured.constants, inputs)
    (ours,) = outputs_of(graph, constants, inputs)
    assert ours.shape == simulated.shape
    assert (ours - simulated).abs().max() <= 0.02 * simulated.abs().max()
