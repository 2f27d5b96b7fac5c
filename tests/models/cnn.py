"""Convolutional networks: full depth, narrow channels."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(cin: int, cout: int, k: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Basic(nn.Module):
    """Two 3x3 convolutions with a residual connection (He et al. 2016)."""

    expansion = 1

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(cin, width, 3, stride)
        self.second = conv_bn(width, width, 3)
        self.short = conv_bn(cin, width, 1, stride) if stride != 1 or cin != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x), inplace=True)
        y = self.second(y)
        y += self.short(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual connection."""

    expansion = 4

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.first = conv_bn(cin, width, 1)
        self.second = conv_bn(width, width, 3, stride)
        self.third = conv_bn(width, out, 1)
        self.short = conv_bn(cin, out, 1, stride) if stride != 1 or cin != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x), inplace=True)
        y = F.relu(self.second(y), inplace=True)
        return F.relu(self.third(y) + self.short(x))


class ResNet(nn.Module):
    def __init__(
        self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], width: int
    ) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 7, 2)
        layers: list[nn.Module] = []
        cin = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                layers.append(block(cin, width << stage, stride))
                cin = (width << stage) * block.expansion
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(cin, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = self.layers(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet18(width: int = 8) -> ResNet:
    return ResNet(Basic, (2, 2, 2, 2), width)


def resnet50(width: int = 8) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), width)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018); with ``squeeze``, EfficientNet's MBConv."""

    def __init__(
        self, cin: int, cout: int, stride: int, expand: int, k: int = 3, squeeze: bool = False
    ) -> None:
        super().__init__()
        hidden = cin * expand
        self.act = F.silu if squeeze else F.relu6
        self.expand = conv_bn(cin, hidden, 1) if expand != 1 else None
        self.depthwise = conv_bn(hidden, hidden, k, stride, groups=hidden)
        self.squeeze = SqueezeExcite(hidden, max(1, cin // 4)) if squeeze else None
        self.project = conv_bn(hidden, cout, 1)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.act(self.expand(x))
        y = self.act(self.depthwise(y))
        y = self.project(y if self.squeeze is None else self.squeeze(y))
        return x + y if self.residual else y


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, reduced, 1)
        self.up = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        s = F.silu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.up(s))


class MobileNet(nn.Module):
    """A stem, rows of (expand, channels, repeats, stride, kernel) blocks, a head."""

    def __init__(self, rows: tuple[tuple[int, ...], ...], stem: int, head: int, squeeze: bool) -> None:
        super().__init__()
        self.act = F.silu if squeeze else F.relu6
        self.stem = conv_bn(3, stem, 3, 2)
        blocks = []
        cin = stem
        for expand, cout, repeats, stride, k in rows:
            for i in range(repeats):
                blocks.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand, k, squeeze))
                cin = cout
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(cin, head, 1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(head, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.stem(x)))
        x = self.act(self.last(x)).mean((2, 3))
        return self.classifier(self.dropout(x))


def mobilenet_v2() -> MobileNet:
    """Width multiplier 0.25."""
    rows = (
        (1, 4, 1, 1, 3),
        (6, 6, 2, 2, 3),
        (6, 8, 3, 2, 3),
        (6, 16, 4, 2, 3),
        (6, 24, 3, 1, 3),
        (6, 40, 3, 2, 3),
        (6, 80, 1, 1, 3),
    )
    return MobileNet(rows, 8, 128, squeeze=False)


def efficientnet_b0() -> MobileNet:
    """A quarter of the published width."""
    rows = (
        (1, 4, 1, 1, 3),
        (6, 6, 2, 2, 3),
        (6, 10, 2, 2, 5),
        (6, 20, 3, 2, 3),
        (6, 28, 3, 1, 5),
        (6, 48, 4, 2, 5),
        (6, 80, 1, 1, 3),
    )
    return MobileNet(rows, 8, 128, squeeze=True)


class DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """Every layer of a block reads all before it (Huang et al. 2017)."""

    def __init__(self, growth: int = 4, depths: tuple[int, ...] = (6, 12, 24, 16)) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = conv_bn(3, channels, 7, 2)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for depth in depths:
            layers = [DenseLayer(channels + i * growth, growth) for i in range(depth)]
            self.blocks.append(nn.ModuleList(layers))
            channels += depth * growth
            self.transitions.append(nn.Conv2d(channels, channels // 2, 1, bias=False))
            channels //= 2
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        for i, (block, transition) in enumerate(zip(self.blocks, self.transitions, strict=True)):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = transition(torch.cat(features, 1))
            x = F.avg_pool2d(x, 2) if i + 1 < len(self.blocks) else x
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, bias=False)
        self.pointwise = conv_bn(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(F.relu(x)))


class NasCell(nn.Module):
    """The normal cell of NASNet-A (Zoph et al. 2018): ten branches over two earlier results."""

    def __init__(self, before: int, cin: int, channels: int) -> None:
        super().__init__()
        self.fit_before = conv_bn(before, channels, 1)
        self.fit = conv_bn(cin, channels, 1)
        self.ops = nn.ModuleList(Separable(channels, k) for k in (3, 5, 5, 3, 3))

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        p, h = self.fit_before(F.relu(before)), self.fit(F.relu(x))
        pool = F.avg_pool2d(p, 3, 1, 1)
        states = [
            self.ops[0](h) + h,
            self.ops[1](p) + self.ops[2](h),
            F.avg_pool2d(h, 3, 1, 1) + p,
            pool + pool,
            self.ops[3](p) + self.ops[4](p),
        ]
        return torch.cat([p, *states], 1)


class NasNet(nn.Module):
    def __init__(self, cells: int = 4, channels: int = 6) -> None:
        super().__init__()
        self.stem = conv_bn(3, channels, 3)
        widths = [channels, channels]
        self.cells = nn.ModuleList()
        for _ in range(cells):
            self.cells.append(NasCell(widths[-2], widths[-1], channels))
            widths.append(6 * channels)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        before = x = self.stem(x)
        for cell in self.cells:
            before, x = x, cell(before, x)
        return self.head(F.relu(x).mean((2, 3)))


class Inception(nn.Module):
    """Parallel branches put together along the channels (Szegedy et al. 2015)."""

    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.one = conv_bn(cin, width, 1)
        self.three = nn.Sequential(conv_bn(cin, width, 1), nn.ReLU(), conv_bn(width, 2 * width, 3))
        self.five = nn.Sequential(conv_bn(cin, width, 1), nn.ReLU(), conv_bn(width, width, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(cin, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.three(x), self.five(x), self.pool(x)]
        return F.relu(torch.cat(branches, 1))


class GoogLeNet(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.first = Inception(8, width)
        self.second = Inception(5 * width, width)
        self.head = nn.Linear(5 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(F.relu(self.stem(x))), 2)
        return self.head(self.second(x).amax((2, 3)))


class Attention2d(nn.Module):
    """Self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k * c**-0.5, -1)
        y = (v @ weights.transpose(1, 2)).reshape(b, c, h, w)
        return x + self.out(y)


class UNet(nn.Module):
    """Encoder and decoder with skip connections, attention at the bottom (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        sizes = [width << i for i in range(depth + 1)]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(2, b), nn.SiLU())
            for a, b in itertools.pairwise(sizes)
        )
        self.middle = Attention2d(sizes[-1])
        self.lift = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(sizes))
        self.up = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a in sizes[:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = [x]
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.middle(skips.pop())
        for lift, up in zip(reversed(self.lift), reversed(self.up), strict=True):
            x = F.silu(up(torch.cat([lift(x), skips.pop()], 1)))
        return self.head(x)


class KeywordSpotting(nn.Module):
    """DS-CNN for 49x10 MFCC frames (Zhang et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, (10, 4), 2, (5, 1)), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList(InvertedResidual(width, width, 1, 1) for _ in range(4))
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(F.avg_pool2d(x, x.shape[2:]).flatten(1))


class ConvNext(nn.Module):
    """Depthwise 7x7, channels-last layer norm, scaled residual (Liu et al. 2022)."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.gammas = nn.ParameterList(nn.Parameter(torch.full((width,), 0.1)) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm, mlp, gamma in zip(
            self.depthwise, self.norms, self.mlps, self.gammas, strict=True
        ):
            y = gamma * mlp(norm(conv(x).permute(0, 2, 3, 1)))
            x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class SuperResolution(nn.Module):
    """Sub-pixel convolution (Shi et al. 2016): large output from a small map."""

    def __init__(self, width: int = 8, factor: int = 2) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2),
            nn.Tanh(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(width, factor**2, 3, padding=1),
        )
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(x, scale_factor=float(self.factor), mode="bilinear", align_corners=False)
        return up + F.pixel_shuffle(self.convs(x), self.factor)
