"""Small networks that are quantised in tests, and how their integers are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import mplan
from mplan.capture import Captured, capture_exported
from mplan.ir.graph import Graph, tensor_type
from mplan.ir.interp import run
from mplan.ir.types import DType
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.lower_quantized import LowerQuantized
from tests.c_support import LAYOUT


class Calls(nn.Module):
    """A function of tensors, with modules of its own, as a network."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*self.parts, *args)


def quantized(
    model: nn.Module, shapes: Sequence[Sequence[int]], seed: int = 0
) -> tuple[Captured, tuple[torch.Tensor, ...]]:
    """The q/dq graph of a network calibrated with random data, and inputs for it."""
    torch.manual_seed(seed)
    batches = [tuple(torch.randn(*shape) for shape in shapes) for _ in range(4)]
    program = mplan.quantize(model.eval(), batches)
    return capture_exported(program, decompose=True), batches[0]


def lowered(captured: Captured) -> tuple[Graph, dict[str, Any], list[str]]:
    """The graph in integers, verified, with its constants and notes."""
    ctx = Context(LAYOUT, constants=captured.constants)
    graph = LowerQuantized().run(captured.graph, ctx)
    verify(graph, deep=True)
    return graph, dict(ctx.constants), ctx.notes


def outputs_of(graph: Graph, constants: Any, inputs: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """What the interpreter computes."""
    names = [i.value.name for i in graph.inputs if i.role == "input"]
    return run(graph, {**constants, **dict(zip(names, inputs, strict=True))})


def floats_in(graph: Graph) -> set[str]:
    """The kinds of ops that compute with anything but integers of 8 bits."""
    others = (op for op in graph.ops if not op.kind.startswith("mplan."))
    return {op.kind for op in others if any(tensor_type(v).dtype is not DType.I8 for v in op.values)}


def steps_between(graph: Graph, ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """The largest distance of two results of the last dequantisation of ``graph``, in its steps."""
    (last,) = (op for op in graph.ops if op.result.name == graph.output_names[0])
    scale = last.arg("scale")
    assert last.kind == "mplan.dequantize" and isinstance(scale, float)
    assert ours.shape == theirs.shape
    return int(((ours - theirs) / scale).abs().max().round())
