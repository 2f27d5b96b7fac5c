"""Kinds of networks that run on microcontrollers: all of each is integers, and close to its floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mplan
from mplan.capture import Captured
from mplan.compiler import capture_for
from mplan.ir.interp import run, run_in_arena
from mplan.options import Options
from tests.cli_runner import run_cli

pytestmark = pytest.mark.slow


def conv_norm(inputs: int, outputs: int, kernel: Any = 3, **rest: Any) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, bias=False, **rest)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Keywords(nn.Module):
    """A DS-CNN for spectrograms (Zhang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(1, 16, (10, 4), stride=2, padding=(5, 1)), nn.Dropout(0.2)]
        for _ in range(3):
            layers += [conv_norm(16, 16, padding=1, groups=16), conv_norm(16, 16, 1)]
        self.layers = nn.Sequential(*layers, nn.Dropout(0.4))
        self.head = nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        y = F.avg_pool2d(y, y.shape[2:])
        return torch.softmax(self.head(y.flatten(1)), -1)


class Autoencoder(nn.Module):
    """Linear layers with batch norm around a narrow one, for sounds of machines."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((128, 48), (48, 48), (48, 8), (8, 48), (48, 48)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(48, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Detector(nn.Module):
    """A feature pyramid: coarse maps are enlarged and added to finer ones (Lin et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 12, 16)
        stages = zip((3, *widths[:2]), widths, strict=True)
        self.stages = nn.ModuleList(conv_norm(a, b, stride=2, padding=1) for a, b in stages)
        self.lateral = nn.ModuleList(nn.Conv2d(n, 12, 1) for n in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in widths)
        self.boxes, self.classes = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels, coarse = [], None
        for i in (2, 1, 0):
            fine = self.lateral[i](maps[i])
            if coarse is not None:
                fine = fine + F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
            coarse = fine
            levels.append(self.smooth[i](fine))
        boxes = [self.boxes(F.relu(y)).flatten(2).permute(0, 2, 1) for y in levels]
        classes = [torch.sigmoid(self.classes(F.relu(y))).flatten(2).permute(0, 2, 1) for y in levels]
        return {"boxes": torch.cat(boxes, 1), "classes": torch.cat(classes, 1)}


class Mixed(nn.Module):
    """A ConvNeXt block, an inverted bottleneck with gates, grouped and shuffled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.norm0, self.norm1 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.wide, self.up, self.down = (
            nn.Conv2d(16, 16, 7, padding=3, groups=16),
            nn.Linear(16, 48),
            nn.Linear(48, 16),
        )
        self.gain = nn.Parameter(torch.rand(16) + 0.5)
        self.gate = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.pre = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm0(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.norm1(self.wide(x).permute(0, 2, 3, 1))
        y = (self.down(F.gelu(self.up(y))) * self.gain).permute(0, 3, 1, 2)
        x = x + y
        x = x * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = F.silu(self.pre(F.channel_shuffle(self.grouped(x), 4)))
        left, right = x.chunk(2, 1)
        return self.head(torch.cat([left + right, left - right], 1).mean((2, 3)))


NETS = {
    "keywords": (Keywords, (1, 49, 10)),
    "autoencoder": (Autoencoder, (128,)),
    "detector": (Detector, (3, 40, 56)),
    "mixed": (Mixed, (3, 24, 32)),
}


def prepared(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with batch norms that have seen data, and data."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build()
    data = torch.randn(48, *shape)
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    with torch.no_grad():
        for _ in range(3):
            model(data)
    return model.eval(), data


def results(captured: Captured, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    (name,) = (i.value.name for i in captured.graph.inputs if i.role == "input")
    return run(captured.graph, {**captured.constants, name: x})


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_integers_and_close_to_its_floats(name: str) -> None:
    model, data = prepared(name)
    program = mplan.quantize(model, [data], (data[:1],))
    options = Options(target="stm32h743", limit=2)
    captured = capture_for(program, None, None, options)
    assert not captured.notes
    kinds = {op.kind for op in captured.graph.ops}
    allowed = {"view", "permute", "clone", "slice", "cat", "constant_pad_nd"}
    assert all(kind.split(".")[1] in allowed for kind in kinds if kind.startswith("aten."))
    with torch.no_grad():
        exact = model(data[:1])
    found = captured.unflatten(results(captured, data[:1]))
    pairs = (
        [(exact, found)] if isinstance(exact, torch.Tensor) else [(exact[k], found[k]) for k in exact]
    )
    for theirs, ours in pairs:
        assert ours.shape == theirs.shape
        noise = (ours - theirs).pow(2).mean() / theirs.var()
        assert noise < 0.03
    planned = mplan.plan(captured, options=options).planned
    assert planned is not None
    known = {**planned.constants, next(i.value.name for i in planned.graph.inputs): data[:1]}
    inputs = {i.value.name: known[i.value.name] for i in planned.graph.inputs}
    arena = run_in_arena(planned.graph, planned.lowered, planned.plan, inputs)
    for theirs, ours in zip(results(captured, data[:1]), arena, strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("name", ["keywords", "mixed"])
def test_a_network_runs_in_the_emulator(name: str, tmp_path: Path) -> None:
    model, data = prepared(name)
    program = mplan.quantize(model, [data[:16]], (data[:1],))
    mplan.compile(program, target="stm32h743", io="int8-nhwc", out=tmp_path, limit=2)
    found = run_cli("run", tmp_path, "--json").json
    assert found["outputs_match"] and found["max_abs_err"] == 0
