"""The graphs of ``tests/data/ir``: their inputs, and what they compute in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plan_factory import first_fit
from strategies import random_inputs
from torch import Tensor

from mplan.ir.graph import Graph
from mplan.ir.parser import parse
from mplan.ir.plan import Plan, Problem, Region
from mplan.ir.storage import Layout

DATA = Path(__file__).parent / "data" / "ir"
CORPUS = sorted(p.stem for p in DATA.glob("*.mpir"))
SRAM, FLASH, HOST = (
    Region("sram", None, 16),
    Region("flash", None, 16),
    Region("host", None, 1, addressable=False),
)
LAYOUTS = {"activations": Layout(SRAM), "everything": Layout(SRAM, FLASH, SRAM)}


def place(problem: Problem, order: tuple[int, ...] | None = None) -> Plan:
    """A valid plan without certificates."""
    return replace(first_fit(problem, order), certificates=())


def load(name: str) -> Graph:
    path = DATA / f"{name}.mpir"
    return parse(path.read_text(encoding="utf-8"), str(path))


def inputs_of(name: str) -> dict[str, Any]:
    """Random inputs for a graph of the corpus."""
    if name == "symbolic":
        return {"n": 3, "x": torch.randn(3, 10, 8), "w": torch.randn(8, 8)}
    if name == "phases":
        return {"x": torch.randn(4, 8), "scale": 1.5}
    inputs = random_inputs(load(name))
    if name == "conv_block":
        inputs["var"] = inputs["var"].abs() + 0.5
    if name == "cache":
        inputs["at"] = torch.tensor([2])
    return inputs


# --- what the graphs of the corpus compute, in plain PyTorch ---------------------------------------


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Any, ...]:
    return (F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2).softmax(-1),)


def conv_block(
    image: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor
) -> tuple[Any, ...]:
    y = F.batch_norm(F.conv2d(image, w, stride=2, padding=1), mean, var, gamma, beta)
    return (F.max_pool2d(F.relu(y), 2),)


def views(x: Tensor) -> tuple[Any, ...]:
    s = x[3:6]
    return s + x[1], s.T.reshape(-1), torch.cat([s[:, 6:], s[:, 3:6], s[:, :3]], 1), s.T


def cache(k: Tensor, old: Tensor, at: Tensor) -> tuple[Any, ...]:
    new = old.clone()
    new[int(at)] = k[0]
    return new[:4].mean(0), new * 0.5


def symbolic(n: int, x: Tensor, w: Tensor) -> tuple[Any, ...]:
    y = (x @ w).transpose(0, 1)
    half = y.shape[0] // 2
    return y[half:] * max(n, half), n * half


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Any, ...]:
    return (F.scaled_dot_product_attention(q, k, v, mask, scale=0.25, enable_gqa=True),)


def conv_tiles(x: Tensor, w: Tensor, b: Tensor) -> tuple[Any, ...]:
    return (F.conv2d(x, w, b, stride=2, padding=1),)


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    return (F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=0.5)[0],)


def chunked_mlp(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Any, ...]:
    return (F.linear(F.gelu(F.linear(x, w1)), w2),)


def matmul_tiles(a: Tensor, b: Tensor) -> tuple[Any, ...]:
    return (a @ b,)


def phases(x: Tensor, scale: float) -> tuple[Any, ...]:
    y = x * scale
    return y + 2 * y.sum().item(), y.sum().item(), True, "done"


EAGER: dict[str, Callable[..., tuple[Any, ...]]] = {
    f.__name__: f
    for f in (
        mlp,
        conv_block,
        views,
        cache,
        symbolic,
        attention,
        conv_tiles,
        flash,
        chunked_mlp,
        matmul_tiles,
        phases,
    )
}


def assert_close(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, Tensor):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)
        else:
            assert a == (pytest.approx(e, rel=1e-5) if isinstance(e, float) else e)


def assert_equal(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Bit by bit."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e) if isinstance(e, Tensor) else a == e
