"""Capture of FX graphs: those that AOTAutograd hands to a backend, and Dynamo's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mplan.capture.aot import Described, leaf_positions, results_of, trace
from mplan.capture.captured import Captured
from mplan.capture.fx import GraphReader, Source, without_unused_constants, written_nodes
from mplan.capture.source import whole_stacks
from mplan.capture.symbols import SymbolReader

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def capture_fx(
    module: GraphModule,
    example_inputs: Sequence[Any] = (),
    *,
    name: str = "graph",
    sources: Sequence[Source] | None = None,
    unbounded: int | None = None,
) -> Captured:
    """The graph of an FX module whose placeholders take ``example_inputs`` in order.

    ATen graphs that carry fake tensors (AOTAutograd's) are read as they are; others (Dynamo's, or
    graphs that overwrite intermediate results) are traced once more into functional ops. The result
    of an op that overwrites an input is in place; a traced graph has ``mutations`` instead.
    ``sources`` says what each placeholder is (default: all are the caller's inputs). Sizes without an
    upper bound take ``unbounded``; with None they are UserError MP304. Errors otherwise as in
    ``capture``.
    """
    sizes = SymbolReader(unbounded=unbounded)
    holders = [n for n in module.graph.nodes if n.op == "placeholder"]
    given = sources or [Source(name=n.name) for n in holders]
    if not _is_readable(module):
        return _capture_traced(module, tuple(example_inputs), name, sizes, given)
    table = {n.name: source for n, source in zip(holders, given, strict=True)}
    reader = GraphReader(name, sizes, table)
    graph = reader.read(module)
    position = {n.name: i for i, n in enumerate(holders)}
    leaves = tuple(position[n] for n in reader.user_inputs)
    return Captured(
        graph,
        reader.constants,
        example_inputs=tuple(example_inputs[i] for i in leaves) if example_inputs else (),
        input_leaves=leaves,
        num_user_outputs=len(graph.outputs),
    )


def _capture_traced(
    module: GraphModule,
    example_inputs: tuple[Any, ...],
    name: str,
    sizes: SymbolReader,
    given: Sequence[Source],
) -> Captured:
    """Capture after one more trace, which leaves functional ATen ops."""
    import torch

    with torch.no_grad(), whole_stacks():
        traced = trace(module, _fakes(module, example_inputs))
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = Described(tensors, tuple(source.name for source in given))
    leaf_of = leaf_positions(traced)
    table = names.sources(traced) | {
        node: replace(given[i], value=given[i].name.replace(".", "_")) for node, i in leaf_of.items()
    }
    reader = GraphReader(name, sizes, table)
    graph = reader.read(traced)
    found = results_of(traced, graph, names)
    user = len(found.plain)
    mutations = {user + i: reader.named[source] for i, source in enumerate(found.mutated)}
    graph = replace(graph, outputs=(*found.plain, *found.mutated.values()))
    leaves = tuple(leaf_of[n] for n in reader.user_inputs)
    return Captured(
        without_unused_constants(graph, set(mutations.values())),
        reader.constants,
        example_inputs=tuple(example_inputs[i] for i in leaves),
        input_leaves=leaves,
        num_user_outputs=user,
        mutations=mutations,
    )


def _fakes(module: GraphModule, example_inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Fake tensors for the placeholders: their own, else made from the example inputs."""
    import torch
    from torch._guards import detect_fake_mode
    from torch._subclasses import FakeTensorMode

    holders = [n for n in module.graph.nodes if n.op == "placeholder"]
    known = [n.meta.get("val", n.meta.get("example_value")) for n in holders]
    inputs = [
        given if fake is None else fake for fake, given in zip(known, example_inputs, strict=True)
    ]
    mode = detect_fake_mode(inputs) or FakeTensorMode()
    return tuple(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs)


def _is_readable(module: GraphModule) -> bool:
    """Whether every node is an operator with fake results and none but inputs are overwritten."""
    import operator

    import torch

    last_read: dict[Node, int] = {}
    for index, node in enumerate(module.graph.nodes):
        for argument in node.all_input_nodes:
            last_read[argument] = index
    for index, node in enumerate(module.graph.nodes):
        if node.op in ("call_module", "call_method"):
            return False
        if node.op == "placeholder" and node.users and "val" not in node.meta:
            return False
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if "val" not in node.meta:
            return False
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        for overwritten in written_nodes(node):
            if overwritten.op != "placeholder" or last_read[overwritten] > index:
                return False
    return True
