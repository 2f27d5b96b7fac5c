"""Quantised layers in integers, each next to what quantize and dequantize simulate, and in C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.c_support import emitted, run_program
from tests.qdq_nets import Calls, floats_in, lowered, outputs_of, quantized, steps_between

IMAGE = (2, 6, 9, 7)
ROWS = (5, 3, 12)


def conv(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.Conv2d(6, *args, **kwargs)


def squeeze(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3), keepdim=True)


class PReLU(nn.PReLU):
    """With a slope for each channel, the first one negative."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.data = torch.linspace(-0.3, 0.9, channels)


class Quotient(nn.Module):
    """By a buffer with a number for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("deviation", torch.linspace(0.3, 2.5, channels).reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.deviation


def written_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.tanh(0.79788 * (x + 0.044715 * x**3)))


def gated_twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    gate = x.sigmoid()
    return gate * y + (1 - gate)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
#: Those that become several ops, each rounded.
SEVERAL = {
    *("group_norm", "glu", "gate_of_two", "normalised_image", "instance_norm_with_factors"),
    *(
        "adaptive_pool_uneven",
        "between_two",
        "product_added",
        "log_softmax",
        "log_softmax_over_channels",
        "log_sum",
    ),
}
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
    "norm_of_features_alone": (nn.BatchNorm1d(12), (5, 12)),
    "norm_of_lines_alone": (nn.BatchNorm1d(6), (2, 6, 11)),
    "group_norm": (nn.GroupNorm(3, 6), IMAGE),
    "group_norm_of_lines": (nn.GroupNorm(2, 6, affine=False), (2, 6, 11)),
    "instance_norm": (nn.InstanceNorm2d(6), IMAGE),
    "instance_norm_of_lines": (nn.InstanceNorm1d(6), (2, 6, 11)),
    "conv_transposed": (nn.ConvTranspose2d(6, 5, 3, 2, 1, output_padding=1), IMAGE),
    "conv_transposed_uneven": (
        nn.ConvTranspose2d(6, 4, (4, 1), (3, 2), (2, 0), (0, 1), dilation=(2, 1), bias=False),
        IMAGE,
    ),
    "conv_transposed_grouped": (nn.ConvTranspose2d(6, 9, 2, 2, groups=3), IMAGE),
    "conv_transposed_depthwise": (nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=6), IMAGE),
    "conv_transposed_two_per_channel": (nn.ConvTranspose2d(6, 12, 3, groups=6), IMAGE),
    "conv_transposed_bn_relu6": (
        nn.Sequential(nn.ConvTranspose2d(6, 5, 2, 2), nn.BatchNorm2d(5), nn.ReLU6()),
        IMAGE,
    ),
    "conv_transposed_1d": (nn.ConvTranspose1d(6, 4, 3, 2, 1, 1), (2, 6, 11)),
    "conv_transposed_of_one_channel": (nn.ConvTranspose2d(1, 4, 2, 2), (2, 1, 5, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (2, 6, 11)),
    "linear": (nn.Linear(12, 7), (5, 12)),
    "linear_rows": (nn.Sequential(nn.Linear(12, 7, bias=False), nn.ReLU()), ROWS),
    "linear_over_channels": (Calls(lambda f, x: f(x.permute(0, 2, 3, 1)), nn.Linear(6, 3)), IMAGE),
    "matmul": (Calls(lambda x, y: x @ y.transpose(-2, -1)), ROWS, ROWS),
    "matmul_scaled": (Calls(lambda x, y: (x @ y) * 0.3), (2, 3, 4), (2, 4, 5)),
    "matmul_of_images": (Calls(lambda x, y: x @ y), (2, 3, 4, 5), (2, 3, 5, 2)),
    "bmm": (Calls(torch.bmm), (2, 3, 4), (2, 4, 5)),
    "mm": (Calls(torch.mm), (3, 4), (4, 5)),
    "add": (Calls(lambda x, y: x + y), IMAGE, IMAGE),
    "add_relu": (Calls(lambda x, y: F.relu(x + y)), IMAGE, IMAGE),
    "sub_channels": (Calls(lambda x, y: x - y), IMAGE, (6, 1, 1)),
    "add_a_part": (Calls(lambda x, y: torch.add(x, y, alpha=0.3)), IMAGE, IMAGE),
    "sub_a_part": (Calls(lambda x, y: torch.sub(x, y, alpha=-2)), IMAGE, IMAGE),
    "between_two": (Calls(lambda x, y: torch.lerp(x, y, 0.3)), IMAGE, IMAGE),
    "product_added": (Calls(lambda x, y, z: torch.addcmul(x, y, z, value=0.5)), ROWS, ROWS, ROWS),
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
    "max_pool_partial": (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 6, 8, 10)),
    "max_pool_partial_inside": (nn.MaxPool2d((2, 5), 3, ceil_mode=True), IMAGE),
    "avg_pool_partial": (nn.AvgPool2d(2, ceil_mode=True), IMAGE),
    "avg_pool_partial_padded": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (2, 6, 8, 10)),
    "avg_pool_partial_without_padding": (
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
        (2, 6, 8, 10),
    ),
    "largest_of_images": (Calls(lambda x: x.amax((2, 3))), (3, 7, 9, 7)),
    "largest_of_images_kept": (Calls(lambda x: x.amax((-1, 2), keepdim=True)), (3, 7, 9, 7)),
    "max_pool_dilated": (nn.MaxPool2d((3, 2), 2, padding=1, dilation=(2, 3)), IMAGE),
    "max_pool_dilated_lines": (nn.MaxPool1d(3, 1, dilation=2), (2, 6, 11)),
    "adaptive_max_pool": (nn.AdaptiveMaxPool2d((3, 1)), IMAGE),
    "adaptive_max_pool_uneven": (nn.AdaptiveMaxPool2d((4, 3)), IMAGE),
    "adaptive_max_pool_of_lines": (nn.AdaptiveMaxPool1d(1), (2, 6, 11)),
    "adaptive_pool_uneven": (nn.AdaptiveAvgPool2d((4, 3)), IMAGE),
    "largest_of_rows": (Calls(lambda x: x.amax(-1)), ROWS),
    "largest_in_the_middle": (Calls(lambda x: x.max(1)[0]), ROWS),
    "largest_of_channels": (Calls(lambda x: x.amax((1, 2), keepdim=True)), IMAGE),
    "cat": (Calls(lambda x, y: torch.cat([x, y], 1)), IMAGE, (2, 3, 9, 7)),
    "pad": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    "pad_reflected": (nn.ReflectionPad2d((1, 2, 0, 3)), IMAGE),
    "pad_reflected_lines": (nn.ReflectionPad1d(4), (2, 6, 11)),
    "pad_repeated": (nn.ReplicationPad2d((1, 2, 0, 3)), IMAGE),
    "pad_with_a_number": (nn.ConstantPad2d(1, 0.7), IMAGE),
    "pad_around": (nn.CircularPad2d((1, 2, 0, 3)), IMAGE),
    "expand": (Calls(lambda x: x.expand(4, -1, 3, -1)), (5, 1, 12)),
    "repeat_each": (Calls(lambda x: x.repeat_interleave(2, 1)), IMAGE),
    "stack": (Calls(lambda x, y: torch.stack([x, y], 1)), IMAGE, IMAGE),
    "flip": (Calls(lambda x: x.flip(1, -1)), IMAGE),
    "roll": (Calls(lambda x: x.roll((2, -1), (2, 1))), IMAGE),
    "repeat": (Calls(lambda x: x.repeat(2, 1, 3, 1)), IMAGE),
    "repeat_rows": (Calls(lambda x: x.repeat(2, 1, 1, 1)), ROWS),
    "choice": (Calls(lambda x: x.index_select(1, torch.tensor([4, 0, 0, 5]))), IMAGE),
    "maximum": (Calls(torch.maximum), IMAGE, IMAGE),
    "maximum_by_channel": (Calls(torch.maximum), IMAGE, (6, 1, 1)),
    "minimum_with_a_constant": (Calls(lambda x: torch.minimum(x, torch.linspace(-1, 1, 12))), ROWS),
    "minimum_of_orders": (Calls(lambda x, y: torch.minimum(x, y.transpose(1, 2))), ROWS, (5, 12, 3)),
    "slice": (Calls(lambda x: x[:, 1:5, ::2, 3]), IMAGE),
    "split": (Calls(lambda x: torch.add(*x.chunk(2, 1))), IMAGE),
    "unbind": (Calls(lambda x: torch.mul(*x.unbind(0))), IMAGE),
    "channel_shuffle": (nn.ChannelShuffle(3), IMAGE),
    "pixel_shuffle": (nn.PixelShuffle(2), (1, 8, 3, 5)),
    "tokens": (Calls(lambda x: x.flatten(2).transpose(1, 2)), IMAGE),
    "reshape_mixed": (Calls(lambda x: x.reshape(2, 27, 14)), IMAGE),
    "upsample": (nn.Upsample(scale_factor=2), IMAGE),
    "upsample_line": (nn.Upsample(scale_factor=3), (2, 6, 11)),
    "upsample_by_a_third": (nn.Upsample(scale_factor=1.3), IMAGE),
    "upsample_exact": (nn.Upsample(scale_factor=2, mode="nearest-exact"), IMAGE),
    "upsample_line_exact": (nn.Upsample(size=7, mode="nearest-exact"), (2, 6, 11)),
    "upsample_uneven": (nn.Upsample(size=(13, 4)), IMAGE),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "linear_line": (nn.Upsample(scale_factor=2, mode="linear"), (2, 6, 11)),
    "linear_line_of_a_size": (nn.Upsample(size=7, mode="linear"), (2, 6, 11)),
    "bilinear_by_a_third": (nn.Upsample(scale_factor=1.3, mode="bilinear"), IMAGE),
    "bilinear_smaller": (nn.Upsample(size=(4, 15), mode="bilinear"), IMAGE),
    "bilinear_corners": (nn.Upsample(size=(40, 5), mode="bilinear", align_corners=True), IMAGE),
    "softmax": (nn.Softmax(-1), ROWS),
    "softmax_over_channels": (nn.Softmax(1), IMAGE),
    "log_softmax": (nn.LogSoftmax(-1), ROWS),
    "log_softmax_over_channels": (nn.LogSoftmax(1), IMAGE),
    "log_sum": (Calls(lambda x: x.logsumexp(1)), (5, 7, 12)),
    "log_sigmoid": (nn.LogSigmoid(), IMAGE),
    "sigmoid": (nn.Sigmoid(), IMAGE),
    "tanh": (nn.Tanh(), IMAGE),
    "hardswish": (nn.Hardswish(), IMAGE),
    "hardsigmoid": (nn.Hardsigmoid(), IMAGE),
    "silu": (nn.SiLU(), IMAGE),
    "glu": (nn.GLU(1), IMAGE),
    "quotient": (Quotient(6), IMAGE),
    "gelu": (nn.GELU(), ROWS),
    "gelu_tanh": (nn.GELU("tanh"), ROWS),
    "leaky_relu": (nn.LeakyReLU(0.1), IMAGE),
    "prelu": (nn.PReLU(), IMAGE),
    "prelu_per_channel": (PReLU(6), IMAGE),
    "prelu_of_rows": (PReLU(3), ROWS),
    "prelu_of_features": (PReLU(12), (5, 12)),
    "elu": (nn.ELU(), IMAGE),
    "relu_alone": (nn.ReLU(), IMAGE),
    "less_its_transpose": (Calls(lambda x: x - x.transpose(1, 2)), (2, 6, 6)),
    "written_out": (Calls(lambda x: x * F.relu6(x + 3) / 6), IMAGE),
    "choice_of_two": (Calls(lambda x: torch.where(x > 0.2, x * 2, 0.1 * x)), IMAGE),
    "softsign": (nn.Softsign(), IMAGE),
    "softshrink": (nn.Softshrink(), IMAGE),
    "gate_of_two": (Calls(gated_twice), IMAGE, IMAGE),
    "normalised_image": (
        Calls(
            lambda x: (
                (x - torch.linspace(-1, 1, 6)[:, None, None]) / torch.linspace(1, 2, 6)[:, None, None]
            )
        ),
        IMAGE,
    ),
    "instance_norm_with_factors": (nn.InstanceNorm2d(6, affine=True), IMAGE),
    "instance_norm_of_known_statistics": (
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        IMAGE,
    ),
    "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 4, 3)), IMAGE),
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
        if isinstance(part, NORMS) and part.weight is not None:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    captured, inputs = quantized(model, shapes)
    graph, constants, notes = lowered(captured)
    assert not notes and not floats_in(graph)
    (simulated,) = outputs_of(captured.graph, captured.constants, inputs)
    (ours,) = outputs_of(graph, constants, inputs)
    steps = steps_between(graph, ours, simulated)
    assert steps <= (3 if name in SEVERAL else 1)
    assert ours.unique().numel() > 8
    with torch.no_grad():
        exact = model(*inputs)
    assert (ours - exact).pow(2).mean() < 1e-3 * exact.var()


@pytest.mark.parametrize(
    "name",
    [
        *("pad_reflected", "pad_repeated", "flip", "roll", "repeat", "choice", "upsample_line"),
        *("maximum", "minimum_of_orders", "group_norm", "instance_norm_of_lines", "glu", "quotient"),
        *("max_pool_dilated", "max_pool_dilated_lines", "adaptive_max_pool_uneven", "largest_of_rows"),
        *("largest_of_channels", "pad_around", "expand", "maximum_by_channel", "upsample_by_a_third"),
        *("adaptive_pool_uneven", "upsample_exact", "linear_line", "log_softmax", "sub_a_part"),
        *("choice_of_two", "instance_norm_with_factors", "normalised_image"),
        *("norm_of_features_alone", "norm_of_lines_alone", "bmm"),
    ],
)
def test_c_has_the_bytes_of_the_reference(name: str, tmp_path: Path) -> None:
    model, *shapes = OPS[name]
    captured, inputs = quantized(model, shapes)
    graph, constants, _ = lowered(captured)
    outputs = outputs_of(graph, constants, inputs)
    (ours,) = run_program(tmp_path, emitted(graph, constants), inputs, outputs)
    assert torch.equal(ours, outputs[0])


@pytest.mark.parametrize("function", [written_gelu, F.hardswish, F.softsign])
def test_a_function_in_many_ops_is_one_table(function: Any) -> None:
    captured, _ = quantized(Calls(lambda f, x: function(f(x)), nn.Linear(12, 5)), [(5, 12)])
    graph, *_ = lowered(captured)
    kinds = [op.kind for op in graph.ops]
    assert kinds == ["mplan.quantize", "mplan.qlinear", "mplan.qtable", "mplan.dequantize"]
