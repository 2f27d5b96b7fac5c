"""Networks of the MCUNet project, built from the JSON descriptions that it publishes (MIT license)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

FOLDER = Path(__file__).parent / "data" / "mcunet"


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; added to its input where ``residual`` says so."""

    def __init__(self, layer: dict[str, Any], residual: bool):
        super().__init__()
        wide = layer["mid_channels"] or round(layer["in_channels"] * layer["expand_ratio"])
        kernel, stride = layer["kernel_size"], layer["stride"]
        parts: list[nn.Module] = []
        if layer["expand_ratio"] != 1:
            parts += [nn.Conv2d(layer["in_channels"], wide, 1), nn.ReLU6()]
        parts += [nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide), nn.ReLU6()]
        parts += [nn.Conv2d(wide, layer["out_channels"], 1)]
        self.layers = nn.Sequential(*parts)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


class Net(nn.Module):
    """A network of such blocks."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        first = config["first_conv"]
        layers: list[nn.Module] = [
            nn.Conv2d(first["in_channels"], first["out_channels"], first["kernel_size"], 2, 1),
            nn.ReLU6(),
        ]
        for block in config["blocks"]:
            layer = block["mobile_inverted_conv"]
            if layer is not None and layer["name"] != "ZeroLayer":
                layers.append(Block(layer, block["shortcut"] is not None))
        last = config.get("feature_mix_layer")
        if last:
            layers += [nn.Conv2d(last["in_channels"], last["out_channels"], 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        end = config["classifier"]
        self.classifier = nn.Linear(end["in_features"], end["out_features"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.features(x).mean((2, 3))
        return self.classifier(y)


def network(name: str) -> Net:
    """The network that ``data/mcunet/<name>.json`` describes."""
    return Net(json.loads((FOLDER / f"{name}.json").read_text())).eval()


def mobilenet_v2(width: float = 1.0, classes: int = 1000) -> Net:
    """MobileNetV2 (Sandler et al. 2018, table 2)."""
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    table += [(6, 160, 3, 2), (6, 320, 1, 1)]
    channels = _divisible(32 * width)
    first = {"in_channels": 3, "out_channels": channels, "kernel_size": 3}
    blocks = []
    for expand, out, repeats, stride in table:
        for repeat in range(repeats):
            layer = {
                "name": "MBInvertedConvLayer",
                "in_channels": channels,
                "out_channels": _divisible(out * width),
                "kernel_size": 3,
                "stride": 1 if repeat else stride,
                "expand_ratio": expand,
                "mid_channels": None,
            }
            channels = _divisible(out * width)
            blocks.append({"mobile_inverted_conv": layer, "shortcut": {} if repeat else None})
    last = {"in_channels": channels, "out_channels": max(1280, _divisible(1280 * width))}
    end = {"in_features": last["out_channels"], "out_features": classes}
    config = {"first_conv": first, "blocks": blocks, "feature_mix_layer": last, "classifier": end}
    return Net(config).eval()


def _divisible(number: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    found = max(8, int(number + 4) // 8 * 8)
    return found + 8 if found < 0.9 * number else found
