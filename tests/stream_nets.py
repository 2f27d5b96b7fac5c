"""Small networks for partial execution, with whole-numbered weights: every order of sums is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mplan.capture import capture
from mplan.ir.graph import Graph
from mplan.ir.plan import Region
from mplan.ir.storage import Layout
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.pipeline import run_passes

CLEAN = "canonicalize,fold_batch_norm,drop_unused"


class Mobile(nn.Module):
    """Inverted residual blocks, one of them with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand = nn.Conv2d(8, 24, 1)
        self.depth = nn.Conv2d(24, 24, 5, 1, 2, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Conv2d(24, 8, 1)
        self.down = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.depth(F.relu6(self.expand(x))))
        gate = F.relu6(self.excite(F.relu6(self.squeeze(y.sum((2, 3), keepdim=True).clamp(-9, 9)))))
        x = x + self.project(y * gate)
        y: torch.Tensor = self.head(F.relu6(self.down(x)).amax((2, 3)))
        return y


class Gated(nn.Module):
    """Squeeze and excitation inside of one stream: the mean of 4 x 4 pixels is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.gate, self.last = (
            nn.Conv2d(4, 6, 3, 1, 1),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 3, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.wide(x))
        found: torch.Tensor = self.last(y * F.hardtanh(self.gate(y.mean((2, 3), keepdim=True)), 0, 4))
        return found


class Pyramid(nn.Module):
    """A feature pyramid with three heads: a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.Conv2d(12, 16, 3, 2, 1),
        )
        self.l1, self.l2, self.l3 = nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1), nn.Conv2d(16, 6, 1)
        self.head = nn.Conv2d(6, 5, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = F.relu6(self.c1(x))
        b = F.relu6(self.c2(a))
        c = F.relu6(self.c3(b))
        p3 = self.l3(c)
        p2 = self.l2(b) + F.interpolate(p3, scale_factor=2.0)
        p1 = self.l1(a) + F.interpolate(p2, scale_factor=2.0)
        return self.head(p1), self.head(p2), self.head(p3)


class Keywords(nn.Module):
    """DS-CNN for spectrograms: depthwise separable convolutions of an uneven first kernel."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 12, (10, 4), (2, 2), (5, 1)), nn.ReLU6()]
        for _ in range(3):
            layers += [
                nn.Conv2d(12, 12, 3, 1, 1, groups=12),
                nn.ReLU6(),
                nn.Conv2d(12, 12, 1),
                nn.ReLU6(),
            ]
        self.layers = nn.Sequential(*layers, nn.AvgPool2d(2, 2), nn.Conv2d(12, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 8, 3, 2, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 12, 4, 2, 1),
            nn.ReLU6(),
            nn.ConvTranspose2d(12, 8, 4, 2, 1),
            nn.ReLU6(),
            nn.ConvTranspose2d(8, 2, 3, 2, 1, output_padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


class UNet(nn.Module):
    """Skips across a bottleneck, joined by concatenation; dilation and uneven padding inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 10, 3, 1, 2, dilation=2)
        self.c, self.d = nn.Conv2d(16, 6, 3, 1, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu6(self.a(F.pad(x, (1, 0, 0, 1), value=2.0)))
        b = F.relu6(self.b(F.max_pool2d(a, 3, 2, 1)))
        c = torch.cat([F.interpolate(b, scale_factor=2.0)[:, :, :, :], a], 1)
        y: torch.Tensor = self.d(torch.cat([F.relu6(self.c(c)), a], 1))
        return y


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobile": (Mobile, (1, 3, 22, 18)),
    "gated": (Gated, (1, 4, 4, 4)),
    "pyramid": (Pyramid, (1, 3, 16, 8)),
    "keywords": (Keywords, (1, 1, 15, 8)),
    "autoencoder": (Autoencoder, (1, 2, 12, 20)),
    "unet": (UNet, (1, 3, 7, 9)),
}


def whole_numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Small whole numbers as floats."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).float()


def graph_of(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[Graph, dict[str, Any]]:
    """The clean graph of ``module`` with whole-numbered weights, and values for all its inputs."""
    weights = {
        k: whole_numbers(tuple(v.shape), i) for i, (k, v) in enumerate(module.state_dict().items())
    }
    module.load_state_dict(weights)
    captured = capture(module.eval(), tuple(torch.zeros(s) for s in shapes))
    ctx = Context(Layout(Region("arena")), constants=captured.constants)
    graph = run_passes(captured.graph, parse_pipeline(CLEAN), ctx)
    users = [i.value.name for i in graph.inputs if i.role == "input"]
    values = {name: whole_numbers(s, 99) for name, s in zip(users, shapes, strict=True)}
    return graph, {**{k: v.detach() for k, v in ctx.constants.items()}, **values}
