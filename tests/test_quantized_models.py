"""From training to the emulator in int8: digits, a network with squeeze-excite, a transformer block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mplan
from examples.digits import DigitsNet, load_digits, train
from mplan.capture import Captured
from mplan.ir.interp import run
from mplan.runtime.device import DeviceRun, run_bundle

pytestmark = pytest.mark.slow

HELD, EMULATED = 400, 24
#: How many of 100 images more the int8 network may get wrong than the float one.
MARGIN = 2.0


class Excited(nn.Module):
    """A depthwise block with squeeze-excite and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze, self.excite = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.hardswish(self.norm(self.depthwise(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


class ExcitedNet(nn.Module):
    """Digits by such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU6())
        self.first, self.second = Excited(16), Excited(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.first(self.stem(x)), 2)
        return self.head(self.second(x).mean((2, 3)))


def emulated(compiled: mplan.Compiled, images: torch.Tensor) -> tuple[DeviceRun, Captured]:
    """One run of the compiled network on quantised images."""
    captured = compiled.result.captured
    assert captured is not None
    return run_bundle(compiled.folder, inputs=[(x.numpy(),) for x in images.split(1)]), captured


def entered(captured: Captured, images: torch.Tensor) -> torch.Tensor:
    """Images as the network's caller quantises them."""
    door = captured.affines["input0"]
    return (torch.round(images / door.scale) + door.zero_point).clamp(-128, 127).to(torch.int8)


def referenced(captured: Captured, images: torch.Tensor) -> torch.Tensor:
    """What the integer reference yields, image by image."""
    (name,) = (i.value.name for i in captured.graph.inputs if i.role == "input")
    rows = [run(captured.graph, {**captured.constants, name: x})[0] for x in images.split(1)]
    return torch.cat(rows)


@pytest.mark.parametrize(("network", "epochs"), [(DigitsNet, 4), (ExcitedNet, 12)])
def test_digits_in_int8_are_as_good_and_equal_in_the_emulator(
    network: Any, epochs: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    images, labels, held, truth = load_digits(HELD)
    model = network()
    train(model, images, labels, epochs)
    program = mplan.quantize(model, [images[:128]], (images[:1],))
    compiled = mplan.compile(program, target="stm32f746", io="int8", out=tmp_path / "net")
    captured = compiled.result.captured
    assert captured is not None and not compiled.report.warnings
    quantised = entered(captured, held)
    scores = referenced(captured, quantised)
    with torch.no_grad():
        expected = float((model(held).argmax(1) == truth).float().mean()) * 100
    found = float((scores.argmax(1) == truth).float().mean()) * 100
    assert expected >= 90 and found >= expected - MARGIN
    outcome, _ = emulated(compiled, quantised[:EMULATED])
    ours = np.concatenate([outputs[0] for outputs in outcome.outputs])
    np.testing.assert_array_equal(ours, scores[:EMULATED].numpy())
    assert outcome.arena_touched_bytes == compiled.result.file.plan.peak_bytes("sram")


class Block(nn.Module):
    """A transformer's encoder layer: attention and a feed-forward part, each behind a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.place = nn.Parameter(torch.randn(1, 16, 32) * 0.3)
        self.blocks = nn.Sequential(Block(32), Block(32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def test_a_vision_transformer_is_integers_throughout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Patches().eval()
    images = torch.randn(64, 3, 16, 16)
    program = mplan.quantize(model, [images], (images[:1],))
    out = tmp_path / "net"
    compiled = mplan.compile(program, target="stm32f746", io="int8-nhwc", out=out, limit=3)
    captured = compiled.result.captured
    assert captured is not None and not compiled.report.warnings
    kinds = {op.kind for op in captured.graph.ops}
    assert {"mplan.qlayer_norm", "mplan.qmatmul", "mplan.qsoftmax", "mplan.qtable"} <= kinds
    quantised = entered(captured, images[:8]).permute(0, 2, 3, 1).contiguous()
    scores = referenced(captured, quantised)
    outcome, _ = emulated(compiled, quantised)
    ours = np.concatenate([outputs[0] for outputs in outcome.outputs])
    np.testing.assert_array_equal(ours, scores.numpy())
    door = captured.affines["output0"]
    real = (scores.float() - door.zero_point) * door.scale
    with torch.no_grad():
        expected = model(images[:8])
    noise = float((real - expected).pow(2).mean() / expected.pow(2).mean())
    assert noise < 0.02
