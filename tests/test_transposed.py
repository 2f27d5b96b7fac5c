"""Transposed convolutions in integers: torch's sums, rounded as documented, in streams and in C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import mplan
from mplan.capture import capture_exported
from mplan.diagnostics import UnsupportedError
from mplan.ir.geometry import grid
from mplan.ir.graph import Graph
from mplan.ir.interp import run
from mplan.ir.ops import graph_macs
from mplan.ir.parser import parse
from mplan.ir.verify import faults, verify
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.passes.stream.build import Choice
from mplan.pipeline import run_passes
from tests.c_support import LAYOUT, emitted, run_program
from tests.qdq_nets import floats_in, lowered, outputs_of, quantized
from tests.quantized_nets import QuantizedNet
from tests.test_quantized_models import emulated, entered, referenced
from tests.test_streams import CHOICES, streamed

PASSES = ("canonicalize", "fold_zero_points", "fold_zero_points,bound_sums")
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
CASE = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 6), st.integers(1, 7)),
        "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "stride": PAIR,
        "before": st.tuples(st.integers(0, 4), st.integers(0, 4)),
        "more": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": PAIR,
        "depth": st.integers(1, 9) | st.just(8),
        "share": st.integers(1, 6),
        "groups": st.sampled_from([1, 1, 2]),
        "depthwise": st.booleans(),
        "seed": st.integers(0, 999),
    }
)


@dataclass(frozen=True)
class Case:
    """A drawn layer as torch describes it."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    more: tuple[int, int]
    dilation: tuple[int, int]
    depth: int
    share: int
    groups: int
    depthwise: bool
    seed: int

    @property
    def channels(self) -> int:
        """Those of the image."""
        return self.depth * (1 if self.depthwise else self.groups)

    def layer(self, net: QuantizedNet, x: str) -> str:
        """The layer; what torch refuses is drawn again."""
        for d in range(2):
            extent = (self.size[d] - 1) * self.stride[d] + (self.kernel[d] - 1) * self.dilation[d] + 1
            assume(self.more[d] < max(self.stride[d], self.dilation[d]))
            assume(extent + self.more[d] > 2 * self.before[d])
        padding = tuple(n for p, m in zip(self.before, self.more, strict=True) for n in (p, p - m))
        groups = self.channels if self.depthwise else self.groups
        out = groups * (self.share % 3 + 1 if self.depthwise else self.share)
        place: Any = (self.kernel, self.stride, padding, self.dilation)
        return net.transposed(x, out, *place, groups=groups)

    def net(self) -> tuple[QuantizedNet, Graph]:
        """The layer alone."""
        net = QuantizedNet(*self.size, self.channels, seed=self.seed)
        return net, net.graph(self.layer(net, "x"))

    def between(self) -> tuple[QuantizedNet, Graph]:
        """The layer between two convolutions."""
        net = QuantizedNet(*self.size, 3, seed=self.seed)
        x = net.conv("x", self.channels, (3, 3), padding=(1, 1, 1, 1))
        y = self.layer(net, x)
        return net, net.graph(net.conv(y, 3, (2, 2), padding=(1, 0, 0, 1)))

    def sums(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """What torch computes for the integers ``x`` in float64, which is exact."""
        channels, out = x.shape[3], bias.numel()
        if self.depthwise or channels == 1:
            weight = weight.permute(3, 1, 2, 0)
        depth = weight.shape[3]
        groups = channels // depth
        kernels = weight.reshape(groups, out // groups, *self.kernel, depth)
        kernels = kernels.permute(0, 4, 1, 2, 3).reshape(channels, out // groups, *self.kernel)
        found = F.conv_transpose2d(
            x.permute(0, 3, 1, 2).double(),
            kernels.double(),
            bias.double(),
            stride=self.stride,
            padding=self.before,
            output_padding=self.more,
            groups=groups,
            dilation=self.dilation,
        )
        return found.permute(0, 2, 3, 1).to(torch.int64)


def rounded(sums: torch.Tensor, multiplier: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """``double`` rounding in int64: halves upwards at 31 bits, away from zero at the shift."""
    high = (sums * multiplier.long() + (1 << 30)) >> 31
    places = -shift.long()
    half = (1 << places) >> 1
    return torch.where(high < 0, -((half - high) >> places), (high + half) >> places)


def arguments(graph: Graph, net: QuantizedNet) -> dict[str, Any]:
    args = dict(graph.ops[-1].args)
    return {k: net.constants.get(getattr(v, "name", ""), v) for k, v in args.items()}


def passed(graph: Graph, net: QuantizedNet, passes: str) -> tuple[Graph, Mapping[str, Any]]:
    ctx = Context(LAYOUT, constants=dict(net.constants), pairs=True)
    found = run_passes(graph, parse_pipeline(passes), ctx)
    verify(found, deep=True)
    return found, ctx.constants


@settings(max_examples=60, deadline=None)
@given(CASE)
def test_the_reference_is_torch_in_integers(drawn: dict[str, Any]) -> None:
    case = Case(**drawn)
    net, graph = case.net()
    image = net.image()
    verify(graph, deep=True)
    assert parse(str(graph)) == graph
    args = arguments(graph, net)
    sums = case.sums(image.int() - args["input_zero_point"], args["weight"], args["bias"])
    wanted = rounded(sums, args["multiplier"], args["shift"]) + args["output_zero_point"]
    wanted = wanted.clamp(args["clamp_min"], 127).to(torch.int8)
    for passes in PASSES:
        found, constants = passed(graph, net, passes)
        (ours,) = run(found, {**constants, "x": image})
        assert ours.shape == wanted.shape and torch.equal(ours, wanted), passes


@settings(max_examples=30, deadline=None)
@given(CASE)
def test_work_is_what_results_read(drawn: dict[str, Any]) -> None:
    """Ones everywhere, also beside the image: each result is the number of its products."""
    case = Case(**{**drawn, "depth": 1, "share": 1, "groups": 1, "depthwise": False})
    _, graph = case.net()
    height, width = grid(graph.ops[0].result.type, (1, 2))
    beside = [k * d + m for k, d, m in zip(case.kernel, case.dilation, case.more, strict=True)]
    sizes = [n + 2 * b for n, b in zip(case.size, beside, strict=True)]
    counts = F.conv_transpose2d(
        torch.ones(1, 1, *sizes),
        torch.ones(1, 1, *case.kernel),
        stride=case.stride,
        dilation=case.dilation,
    )[0, 0]
    top, left = (b * s + p for b, s, p in zip(beside, case.stride, case.before, strict=True))
    part = counts[top : top + height, left : left + width]
    assert part.shape == (height, width)
    assert graph_macs(graph) == int(part.sum())


@settings(max_examples=60, deadline=None)
@given(
    drawn=CASE, choice=st.sampled_from(CHOICES), pushed=st.booleans(), passes=st.sampled_from(PASSES)
)
def test_streams_have_the_bytes_of_their_bodies(
    drawn: dict[str, Any], choice: Choice, pushed: bool, passes: str
) -> None:
    net, graph = Case(**drawn).between()
    image = net.image()
    wanted = run(graph, {**net.constants, "x": image})
    found, constants = passed(graph, net, passes)
    stream = streamed(found, choice, pushed and not choice.width)
    assert torch.equal(run(stream, {**constants, "x": image})[0], wanted[0])


@pytest.mark.slow
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.generate],
)
@given(drawn=CASE, choice=st.sampled_from(CHOICES), passes=st.sampled_from(PASSES))
def test_c_has_the_bytes_of_the_reference(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any], choice: Choice, passes: str
) -> None:
    """Layer by layer, and as a stream; on devices: ``test_kernel_variants``."""
    net, graph = Case(**drawn).between()
    image = net.image()
    wanted = run(graph, {**net.constants, "x": image})
    found, constants = passed(graph, net, passes)
    for form in (found, streamed(found, choice, False)):
        ours = run_program(tmp_path_factory.mktemp("c"), emitted(form, constants), [image], wanted)
        assert torch.equal(ours[0], wanted[0])


CONV = (
    "mplan.qconv_transpose2d(input=%x, weight=%w, bias=%b, multiplier=%m, shift=%s, stride=[2, 1], "
    "padding=[1, 0, 0, -2], dilation=[1, 1], input_zero_point=0, output_zero_point=0)"
)
HEAD = (
    "graph @g(%x: i8[1,5,5,4], param %w: i8[6,3,3,4], param %v: i8[1,3,3,8], param %b: i32[6], "
    "param %p: i32[2,1,6], const %m: i32[6], const %s: i8[6])"
)


@pytest.mark.parametrize("bias", ["bias=%b, ", "bias=%p, ", ""])
def test_a_bias_is_one_per_channel_or_phase(bias: str) -> None:
    call = CONV.replace("bias=%b, ", bias)
    verify(parse(f"{HEAD} {{\n  %y: i8[1,10,9,6] = {call}\n  return %y\n}}\n"), deep=True)


REJECTED = [
    (CONV.replace("bias=%b", "bias=%m").replace("multiplier=%m", "multiplier=%p"), "must have 1 or 6"),
    (CONV.replace("stride=[2, 1]", "stride=[1, 2]").replace("%b", "%p"), "bias must have 6 entries"),
    (CONV.replace("padding=[1, 0, 0, -2]", "padding=[-1, 0, 0, 0]"), "must not be negative"),
    (CONV.replace("padding=[1, 0, 0, -2]", "padding=[9, 9, 0, 0]"), "leaves no results"),
    (CONV.replace("dilation=[1, 1]", "dilation=[0, 1]"), "must be positive"),
    (CONV.replace("dilation=[1, 1]", "dilation=[1]"), "2 entries"),
    (CONV.replace("weight=%w", "weight=%v"), "do not fit 4 channels in groups"),
    (CONV.replace("qconv", "qdepthwise_conv"), "do not fit 4 channels"),
]


@pytest.mark.parametrize(("call", "message"), REJECTED)
def test_wrong_calls_are_rejected(call: str, message: str) -> None:
    graph = parse(f"{HEAD} {{\n  %y: i8[1] = {call}\n  return %y\n}}\n")
    assert any(message in f.message for f in faults(graph, deep=True))


def test_reaches_beyond_16_bits_are_refused() -> None:
    net = QuantizedNet(1, 4, 2)
    place: Any = ((3, 1), (1, 1), (20_000, 20_000, 0, 0), (20_000, 1))
    graph = net.graph(net.transposed("x", 2, *place))
    with pytest.raises(UnsupportedError) as caught:
        emitted(graph, net.constants)
    assert "reaches more than 32,767 pixels" in caught.value.notes[0][0]


class Autoencoder(nn.Module):
    """Convolutions down to a narrow image and transposed ones up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(part.weight, mode="fan_in")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


@pytest.mark.slow
def test_an_autoencoder_is_integers_throughout(tmp_path: Path) -> None:
    """Equal to the integer reference on each sample in the emulator, as rows that stream, too."""
    torch.manual_seed(0)
    images = torch.randn(32, 1, 16, 16)
    model = Autoencoder()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    model.eval()
    program = mplan.quantize(model, [images], (images[:1],))
    for name, options in (("layers", {}), ("rows", {"input": "rows", "budget": 3000})):
        out = tmp_path / name
        compiled = mplan.compile(
            program, target="stm32f746", io="int8-nhwc", out=out, limit=3, **options
        )
        captured = compiled.result.captured
        assert captured is not None and not compiled.report.warnings
        kinds = [op.kind for op in captured.graph.ops]
        assert kinds.count("mplan.qconv_transpose2d") == 2
        assert not floats_in(captured.graph) and "mplan.dequantize" not in kinds
        quantised = entered(captured, images[:6]).permute(0, 2, 3, 1).contiguous()
        scores = referenced(captured, quantised)
        outcome, _ = emulated(compiled, quantised)
        ours = np.concatenate([outputs[0] for outputs in outcome.outputs])
        np.testing.assert_array_equal(ours, scores.numpy())
        streams = any(op.loop for op in compiled.result.planned.graph.ops)
        assert streams == (name == "rows")
        door = captured.affines["output0"]
        real = (scores.float() - door.zero_point) * door.scale
        with torch.no_grad():
            expected = model(images[:6])
        assert real.shape == expected.shape
        assert float((real - expected).pow(2).mean() / expected.var()) < 0.02


AXES: dict[str, tuple[int, int, int, int | None, str]] = {
    "per_output": (4, 6, 1, 1, ""),
    "per_tensor": (4, 6, 1, None, ""),
    "per_input": (4, 6, 1, 0, "scaled along dimension 0, not 1"),
    "per_output_of_a_group": (4, 6, 2, 1, ""),
    "per_input_of_groups": (4, 6, 2, 0, "scaled along dimension 0, not 1"),
    "depthwise": (4, 4, 4, 0, ""),
    "depthwise_two_per_channel": (4, 8, 4, 0, ""),
}


@pytest.mark.parametrize("name", AXES)
def test_weights_of_other_quantizers_are_scaled_per_output(name: str) -> None:
    inputs, outputs, groups, axis, reason = AXES[name]
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (inputs, outputs // groups, 3, 3), dtype=torch.int8)
    scales = torch.rand(1 if axis is None else weight.shape[axis]) * 0.02 + 0.001
    library = torch.ops.quantized_decomposed

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", weight)
            self.register_buffer("scales", scales)
            self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))
            self.register_buffer("bias", torch.randn(outputs))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = library.quantize_per_tensor(x, 0.03, 5, -128, 127, torch.int8)
            x = library.dequantize_per_tensor(x, 0.03, 5, -128, 127, torch.int8)
            limits = (-127, 127, torch.int8)
            if axis is None:
                w = library.dequantize_per_tensor(self.weight, float(scales), 0, *limits)
            else:
                w = library.dequantize_per_channel(self.weight, self.scales, self.zeros, axis, *limits)
            y = F.relu6(F.conv_transpose2d(x, w, self.bias, 2, 1, 1, groups))
            y = library.quantize_per_tensor(y, 0.025, -128, -128, 127, torch.int8)
            return library.dequantize_per_tensor(y, 0.025, -128, -128, 127, torch.int8)

    x = torch.randn(1, inputs, 5, 6)
    for decompose in (True, False):
        captured = capture_exported(torch.export.export(Net().eval(), (x,)), decompose=decompose)
        graph, constants, notes = lowered(captured)
        assert bool(notes) == bool(reason) and all(reason in note for note in notes[:1])
        (simulated,) = outputs_of(captured.graph, captured.constants, (x,))
        (ours,) = outputs_of(graph, constants, (x,))
        assert float((ours - simulated).abs().max()) <= 0.025 * 1.001
        assert reason or any(
            "conv_transpose2d" in op.kind for op in graph.ops if op.kind[:5] == "mplan"
        )


def test_a_batch_norm_behind_groups_is_not_folded_into_the_wrong_dimension() -> None:
    """torchao folds into transposed convolutions of one group alone; behind others it is a layer."""
    torch.manual_seed(0)
    for groups, layers in ((1, 1), (2, 2), (4, 2)):
        norm = nn.BatchNorm2d(4)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        model = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2, groups=groups), norm)
        captured, inputs = quantized(model, [(1, 4, 5, 6)])
        graph, constants, notes = lowered(captured)
        assert not notes and sum("conv" in op.kind for op in graph.ops) == layers
        (ours,) = outputs_of(graph, constants, inputs)
        with torch.no_grad():
            expected = model(*inputs)
        assert float((ours - expected).pow(2).mean() / expected.var()) < 0.01
