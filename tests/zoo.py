"""The model zoo of the tests: name → module with example arguments, and captures of both kinds.

``captured(name)`` and ``captured_training(name)`` capture once per process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from models import cnn, hub, sequence
from torch import Tensor, nn

from mplan.capture import Captured, capture, capture_training


@dataclass(frozen=True)
class Entry:
    """How to make a model; ``loss`` (of its output) marks those whose training step is captured."""

    make: Callable[[], tuple[nn.Module, tuple[Any, ...]]]
    loss: Callable[[Any], Tensor] | None = None


def classify(logits: Tensor) -> Tensor:
    """Cross entropy against class 1 at every position."""
    flat = logits.flatten(0, -2)
    return F.cross_entropy(flat, torch.ones(flat.shape[0], dtype=torch.int64))


def squares(out: Any) -> Tensor:
    """The mean of squares over all outputs."""
    parts = out if isinstance(out, tuple) else (out,)
    return sum((part.square().mean() for part in parts), torch.zeros(()))


def _image(make: Callable[[], nn.Module], size: int = 32, channels: int = 3, batch: int = 2) -> Any:
    return lambda: (make().eval(), (torch.randn(batch, channels, size, size),))


def _vector(make: Callable[[], nn.Module], *shape: int) -> Any:
    return lambda: (make().eval(), (torch.randn(*shape),))


def _text(make: Callable[[], nn.Module]) -> Any:
    return lambda: (make().eval(), (torch.randint(0, 64, (2, 12)),))


ZOO: dict[str, Entry] = {
    "resnet18": Entry(_image(cnn.resnet18), classify),
    "resnet50": Entry(_image(cnn.resnet50), classify),
    "mobilenet_v2": Entry(_image(cnn.mobilenet_v2)),
    "efficientnet_b0": Entry(_image(cnn.efficientnet_b0)),
    "densenet121": Entry(_image(cnn.DenseNet)),
    "nasnet": Entry(_image(cnn.NasNet, 16), classify),
    "googlenet": Entry(_image(cnn.GoogLeNet)),
    "unet": Entry(_image(cnn.UNet, 16), squares),
    "convnext": Entry(_image(cnn.ConvNext)),
    "super_resolution": Entry(_image(cnn.SuperResolution, 12, 1)),
    "keyword_spotting": Entry(_vector(cnn.KeywordSpotting, 1, 1, 49, 10)),
    "vit": Entry(_image(sequence.VisionTransformer), classify),
    "vit_fused": Entry(_image(lambda: sequence.VisionTransformer(fused=True))),
    "mixer": Entry(_image(sequence.Mixer)),
    "gru": Entry(_vector(sequence.GatedRnn, 2, 6, 8), squares),
    "wavenet": Entry(_vector(sequence.WaveNet, 1, 1, 32)),
    "evoformer": Entry(
        lambda: (sequence.Evoformer().eval(), (torch.randn(1, 4, 8, 16), torch.randn(1, 8, 8, 16))),
        squares,
    ),
    "gpt": Entry(_text(sequence.Gpt), classify),
    "experts": Entry(_vector(sequence.MixtureOfExperts, 2, 8, 16), squares),
    "autoencoder": Entry(_vector(sequence.Autoencoder, 4, 64), squares),
    **{name: Entry(make) for name, make in hub.HUB.items()},
    "gpt2": Entry(hub.gpt2, classify),
    "llama": Entry(hub.HUB["llama"], classify),
    "bert": Entry(hub.HUB["bert"], classify),
}
TRAINABLE = tuple(name for name, entry in ZOO.items() if entry.loss)


@cache
def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module in evaluation mode and its arguments; the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[name].make()


def build_training(name: str) -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Tensor]]:
    """A module of its own in training mode, its arguments, and the loss."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, args = ZOO[name].make()
    loss = ZOO[name].loss
    assert loss is not None
    return module.train(), args, loss


@cache
def captured(name: str) -> Captured:
    """The inference graph of a model."""
    return capture(*build(name))


@cache
def captured_training(name: str) -> Captured:
    """The graph of a training step."""
    return capture_training(*build_training(name))
