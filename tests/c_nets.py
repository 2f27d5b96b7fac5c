"""Small networks of the kinds that run on microcontrollers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two residual blocks with batch norm, the second with stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.first(x))
        x = F.relu(self.short(x) + self.second(x))
        return F.log_softmax(self.head(x.mean((2, 3))), -1)


class SqueezeExcite(nn.Module):
    """An inverted bottleneck with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(6, 18, 1)
        self.depthwise = nn.Conv2d(18, 18, 5, padding=2, groups=18)
        self.down, self.up = nn.Conv2d(18, 4, 1), nn.Conv2d(4, 18, 1)
        self.project = nn.Conv2d(18, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.relu6(self.expand(x))))
        gate = self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1))))
        return x + self.project(y * F.hardsigmoid(gate))


class Dense(nn.Module):
    """Layers that each see the concatenation of all before, and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = torch.cat([x, F.leaky_relu(layer(x))], 1)
        return F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2)


class Transformer(nn.Module):
    """Patches, one encoder block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.block(x)[:, 0])


class Perceptron(nn.Module):
    """An embedding, two linear layers and an index as output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 6)
        self.layers = nn.Sequential(nn.Linear(24, 17), nn.Tanh(), nn.Linear(17, 9))

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layers(self.table(words).flatten(1))
        return y.softmax(-1), y.argmax(-1)


NETS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "residual": lambda: (Residual(), (torch.randn(1, 3, 13, 11),)),
    "squeeze_excite": lambda: (SqueezeExcite(), (torch.randn(2, 6, 9, 9),)),
    "dense": lambda: (Dense(), (torch.randn(1, 4, 10, 7),)),
    "transformer": lambda: (Transformer(), (torch.randn(2, 1, 12, 16),)),
    "perceptron": lambda: (Perceptron(), (torch.tensor([[1, 11, 0, 7], [3, 3, 9, 2]]),)),
}


def net(name: str) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The network in evaluation mode with used batch statistics, its inputs and outputs."""
    torch.manual_seed(7)
    model, inputs = NETS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    model.eval()
    with torch.no_grad():
        outputs = model(*inputs)
    return model, inputs, outputs if isinstance(outputs, tuple) else (outputs,)
