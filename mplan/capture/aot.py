"""Tracing through AOTAutograd: functional ATen graphs whose inputs and outputs are described."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mplan.capture.fx import Source
from mplan.ir.graph import Arg, Graph

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node
    from torch.nn import Module


def trace(
    module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> GraphModule:
    """The ATen graph of a call with fake arguments, free of mutation.

    Where gradients are enabled and needed it holds the backward pass too. ``meta['desc']`` of
    placeholders and of the output node says what they are.
    """
    from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
    from torch._guards import detect_fake_mode

    with ExitStack() as stack:
        mode = detect_fake_mode([*args, *(kwargs or {}).values()])
        if mode is not None:
            stack.enter_context(mode)
        traced = aot_export_joint_with_descriptors(stack, module, args, dict(kwargs or {}))
        return traced.graph_module


@dataclass(frozen=True, slots=True)
class Described:
    """Names for the inputs of a traced graph, from what AOTAutograd says about them.

    ``tensors`` are parameters and buffers by path, ``arguments`` the names of the call's leaves. A
    tensor with several paths goes by the first. ``prefix`` is taken off all paths.
    """

    tensors: Mapping[str, Any]
    arguments: tuple[str, ...]
    prefix: str = ""

    def name(self, about: Any) -> str:
        """The user's name of an input: a path, or an argument's name."""
        from torch._functorch._aot_autograd.descriptors import PlainAOTInput

        if isinstance(about, PlainAOTInput):
            return self.arguments[about.idx]
        path = str(getattr(about, "target", ""))
        tensor = self.tensors.get(path)
        first = next((p for p, other in self.tensors.items() if other is tensor), path)
        return first.removeprefix(self.prefix)

    def source(self, node: Node) -> Source:
        """What a placeholder is; the gradient of a loss is the constant 1."""
        import torch
        from torch._functorch._aot_autograd import descriptors as d

        about = node.meta["desc"]
        name = self.name(about)
        identifier = name.replace(".", "_")
        if isinstance(about, d.TangentAOTInput):
            return Source("const", "", torch.ones((), dtype=node.meta["val"].dtype), "grad_loss")
        if isinstance(about, d.ParamAOTInput):
            return Source("param", name, self.tensors[about.target], f"p_{identifier}")
        if isinstance(about, d.BufferAOTInput):
            return Source("buffer", name, self.tensors[about.target], f"b_{identifier}")
        return Source("input", name, value=identifier)

    def sources(self, traced: GraphModule) -> dict[str, Source]:
        """What each placeholder is, by the name of its node."""
        nodes = [n for n in traced.graph.nodes if n.op == "placeholder"]
        return {n.name: self.source(n) for n in nodes}


@dataclass(slots=True)
class Results:
    """The outputs of a traced graph by what they are; gradients and mutations by input name."""

    plain: list[Arg] = field(default_factory=list)
    gradients: dict[str, Arg] = field(default_factory=dict)
    mutated: dict[str, Arg] = field(default_factory=dict)


def results_of(traced: GraphModule, graph: Graph, names: Described) -> Results:
    """The outputs of ``graph``, which was read from ``traced``."""
    from torch._functorch._aot_autograd import descriptors as d

    found = Results()
    about = traced.graph.output_node().meta["desc"]
    for output, described in zip(graph.outputs, about, strict=True):
        if isinstance(described, d.PlainAOTOutput):
            found.plain.append(output)
        elif isinstance(described, d.GradAOTOutput) and output is not None:
            found.gradients[names.name(described.grad_of)] = output
        elif isinstance(described, d.InputMutationAOTOutput):
            found.mutated[names.name(described.mutated_input)] = output
    return found


def leaf_positions(traced: GraphModule) -> dict[str, int]:
    """Which leaf of the call's arguments each placeholder takes."""
    from torch._functorch._aot_autograd.descriptors import PlainAOTInput

    holders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    return {n.name: n.meta["desc"].idx for n in holders if isinstance(n.meta["desc"], PlainAOTInput)}
