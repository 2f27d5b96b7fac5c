"""The int8 networks of the microcontroller benchmark, as graphs that take and return int8.

Those that are published as .tflite files keep their trained weights. The others are the published
architectures with random weights (He et al. 2015, so that activations keep their range), quantised with
random images: memory, work and code do not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import mplan
from mplan.capture import Captured
from mplan.capture.tflite import read_tflite
from mplan.compiler import capture_for
from mplan.options import Options

#: Images that fix the ranges of activations.
CALIBRATION = 4


@dataclass(frozen=True)
class Architecture:
    """A float network, built when asked for, and the width of its square images."""

    build: Callable[[], nn.Module]
    width: int


def _mcunet(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from tests.mcunet import network

        return network(name)

    return build


def _mobilenet(width: float) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from tests.mcunet import mobilenet_v2

        return mobilenet_v2(width)

    return build


TRAINED = ("mcunet-in3", "mcunet-vww1")
ARCHITECTURES = {
    "mbv2-0.35": Architecture(_mcunet("mbv2-w0.35-r144_imagenet"), 144),
    "proxyless-w0.3": Architecture(_mcunet("proxyless-w0.3-r176_imagenet"), 176),
    "mcunet-320kb": Architecture(_mcunet("mcunet-320kb-1mb_imagenet"), 176),
    "mbv2-1.0": Architecture(_mobilenet(1.0), 224),
}
NAMES = (*TRAINED, *ARCHITECTURES)


def int8_network(name: str, seed: int = 0) -> Captured:
    """The network ``name`` of ``NAMES`` in integers, images NHWC; equal for equal seeds."""
    if name in TRAINED:
        from tests.mcunet import FOLDER

        captured = read_tflite(FOLDER / f"{name}.tflite")
    else:
        found = ARCHITECTURES[name]
        program = quantized(found.build(), found.width, seed)
        captured = capture_for(program, None, None, _OPTIONS)
    return capture_for(captured, None, None, _OPTIONS)


_OPTIONS = Options(target="stm32h743", io="int8-nhwc")


def images(captured: Captured) -> list[torch.Tensor]:
    """Images for an int8 network whose pixels lie last: noise, which says little once it is averaged,
    and surfaces from smooth to rough, whose features differ from place to place."""
    (shape,) = [i.value.type.shape for i in captured.graph.inputs if i.role == "input"]
    _, height, width, channels = shape
    generator = torch.Generator().manual_seed(7)
    found = [torch.randint(-128, 128, shape, generator=generator).to(torch.int8)]
    for cells in (3, 8, 20):
        rough = torch.randn(1, channels, cells, cells, generator=generator)
        smooth = nn.functional.interpolate(rough, (height, width), mode="bicubic")
        found.append((smooth * 60).round().clamp(-128, 127).to(torch.int8).permute(0, 2, 3, 1))
    return [image.contiguous() for image in found]


def quantized(model: nn.Module, width: int, seed: int) -> torch.export.ExportedProgram:
    """``model`` with random weights, quantised for images ``[1, 3, width, width]``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
                if part.bias is not None:
                    part.bias.normal_(0.0, 0.1, generator=generator)
    images = [torch.randn(1, 3, width, width, generator=generator) for _ in range(CALIBRATION)]
    return mplan.quantize(model.eval(), images)
