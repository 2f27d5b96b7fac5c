"""Capture of a training step: loss and gradients as one graph, forward and backward together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mplan.capture.aot import Described, leaf_positions, results_of, trace
from mplan.capture.captured import Captured
from mplan.capture.export import assemble, explain, export, known_ranges
from mplan.capture.fx import GraphReader
from mplan.capture.symbols import SymbolReader
from mplan.diagnostics import UserError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.nn import Module

_PREFIX = "module."


def capture_training(
    module: Module,
    args: tuple[Any, ...],
    loss: Callable[[Any], Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Captured:
    """One training step: ``loss(module(*args, **kwargs))`` and its gradients.

    The outputs are the loss, then the gradient of each parameter that gets one, then new values of
    mutated buffers; ``Captured.unflatten`` gives ``(loss, {parameter name: gradient})``. Ops of the
    backward pass carry the place of the forward op that they belong to. Errors as in ``capture``;
    UserError MP309 if the loss is no scalar or no parameter gets a gradient.
    """
    import torch

    step = _step(module, loss)
    named = dict(kwargs or {})
    with torch.enable_grad():
        program = export(step, args, named, dynamic_shapes)
        _require_scalar(program)
        try:
            joint = _joint_graph(program)
        except Exception as e:
            raise explain(e, step, args, named) from e
    return _read(joint, program, type(module).__name__)


def _step(module: Module, loss: Callable[[Any], Any]) -> Module:
    import torch

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

    def forward(*args: Any, **kwargs: Any) -> Any:
        return loss(module(*args, **kwargs))

    step = Step().train(module.training)
    step.forward = functools.wraps(module.forward)(forward)
    return step


def _require_scalar(program: ExportedProgram) -> None:
    results = program.graph.output_node().args[0]
    assert isinstance(results, tuple)
    loss = results[-1] if len(program.graph_signature.user_outputs) == 1 else None
    shape = getattr(getattr(loss, "meta", {}).get("val"), "shape", None)
    if shape != ():
        found = "several values" if shape is None else f"a tensor of shape {tuple(shape)}"
        raise UserError("MP309", f"the loss must be one scalar tensor, not {found}")


def _joint_graph(program: ExportedProgram) -> torch.fx.GraphModule:
    """Forward and backward as one graph."""
    from torch.utils._pytree import tree_unflatten

    user = set(program.graph_signature.user_inputs)
    holders = [n for n in program.graph.nodes if n.op == "placeholder"]
    fakes = [n.meta["val"] for n in holders if n.name in user]
    args, kwargs = tree_unflatten(fakes, program.call_spec.in_spec)
    return trace(program.module(check_guards=False), args, kwargs)


def _read(joint: torch.fx.GraphModule, program: ExportedProgram, name: str) -> Captured:
    """The outputs in order: loss, gradients, mutated buffers."""
    from torch.utils._pytree import tree_structure

    inputs = tuple(str(name) for name in program.graph_signature.user_inputs)
    names = Described({**program.state_dict, **program.constants}, inputs, _PREFIX)
    reader = GraphReader(name, SymbolReader(known_ranges(program)), names.sources(joint), _PREFIX)
    graph = reader.read(joint)
    found = results_of(joint, graph, names)
    if not found.gradients:
        raise UserError("MP309", "the loss does not depend on any parameter that requires a gradient")
    user = 1 + len(found.gradients)
    outputs = (*found.plain, *found.gradients.values(), *found.mutated.values())
    return assemble(
        reader,
        replace(graph, outputs=outputs),
        leaf_of=leaf_positions(joint),
        program=program,
        out_spec=tree_structure((0, dict.fromkeys(found.gradients, 0))),
        num_user_outputs=user,
        mutations={user + i: reader.named[name] for i, name in enumerate(found.mutated)},
        gradients={1 + i: reader.named[name] for i, name in enumerate(found.gradients)},
    )
