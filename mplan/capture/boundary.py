"""Integers at the boundary of a quantised model, instead of conversions inside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mplan.capture.captured import Captured
from mplan.ir.affine import Affine
from mplan.ir.graph import Graph, Input, Op, Ref, Value
from mplan.ir.ops import bound_args, lookup
from mplan.ir.types import TensorType


def with_integer_io(captured: Captured) -> Captured:
    """The same network, but the caller quantises its inputs and dequantises its outputs.

    An input that only one ``mplan.quantize`` reads gives way to that op's result, an output of
    ``mplan.dequantize`` to its operand. A microcontroller so needs no memory for floats. Example inputs
    are quantised with the network's own parameters. ``captured`` itself if nothing changes.
    """
    graph = captured.graph
    entries = dict(_entries(graph))
    exits = {op.result.name: op for op in graph.ops if op.kind == "mplan.dequantize"}
    read = {name for op in graph.ops for name in op.operands}
    outputs = tuple(
        op.arg("input") if isinstance(a, Ref) and (op := exits.get(a.name)) else a
        for a in graph.outputs
    )
    returned = {a.name for a in outputs if isinstance(a, Ref)}
    dead = {id(op) for op in entries.values()}
    dead |= {id(op) for name, op in exits.items() if name not in read | returned}
    if not dead and outputs == graph.outputs:
        return captured
    users = [i for i in graph.inputs if i.role == "input"]
    examples = zip(users, captured.example_inputs, strict=True)
    return replace(
        captured,
        graph=replace(
            graph,
            inputs=tuple(_entered(i, entries) for i in graph.inputs),
            ops=tuple(op for op in graph.ops if id(op) not in dead),
            outputs=outputs,
        ),
        example_inputs=tuple(_quantised(i, entries, x) for i, x in examples),
        affines={**captured.affines, **_affines(graph, users, entries, exits)},
    )


def _affines(
    graph: Graph, users: list[Input], entries: dict[str, Op], exits: dict[str, Op]
) -> dict[str, Affine]:
    """What the integers stand for that the caller passes and gets instead of floats."""
    found = {f"input{n}": entries.get(i.value.name) for n, i in enumerate(users)}
    names = [a.name if isinstance(a, Ref) else "" for a in graph.outputs]
    found |= {f"output{n}": exits.get(name) for n, name in enumerate(names)}
    affines = {}
    for key, op in found.items():
        if op is not None:
            scale, zero_point = op.arg("scale"), op.arg("zero_point")
            assert isinstance(scale, float) and isinstance(zero_point, int)
            affines[key] = Affine(scale, zero_point)
    return affines


def with_channels_last(captured: Captured) -> Captured:
    """The same network, but the caller passes images NHWC where they are stored so at once.

    An input in NCHW gives way to its copy in NHWC if nothing else reads it; with one channel both are
    the same bytes and the copy is a view. ``captured`` itself if nothing changes.
    """
    graph = captured.graph
    users = [i for i in graph.inputs if i.role == "input"]
    copies = {i.value.name: ops for i in users if (ops := _channels_last(graph, i.value.name))}
    if not copies:
        return captured
    gone = {id(op) for ops in copies.values() for op in ops}
    examples = zip(users, captured.example_inputs, strict=True)
    return replace(
        captured,
        graph=replace(
            graph,
            inputs=tuple(_replaced(i, copies) for i in graph.inputs),
            ops=tuple(op for op in graph.ops if id(op) not in gone),
        ),
        example_inputs=tuple(
            x.permute(0, 2, 3, 1).contiguous() if i.value.name in copies else x for i, x in examples
        ),
    )


def _channels_last(graph: Graph, name: str) -> tuple[Op, ...]:
    """The ops that make an image NHWC, if all that reads it does so through them."""
    type_ = graph.value_table[name].type
    shape = type_.shape if isinstance(type_, TensorType) else ()
    if len(shape) != 4:
        return ()
    last = (shape[0], shape[2], shape[3], shape[1])
    view = _only_reader(graph, name, "aten.view.default")
    if view and shape[1] == 1 and view.arg("size") == last:
        return (view,)
    permuted = _only_reader(graph, name, "aten.permute.default")
    copied = permuted and _only_reader(graph, permuted.result.name, "aten.clone.default")
    if permuted and copied and permuted.arg("dims") == (0, 2, 3, 1):
        return permuted, copied
    return ()


def _only_reader(graph: Graph, name: str, kind: str) -> Op | None:
    """The op that alone reads a value, if it is of ``kind``."""
    readers = graph.users.get(name, [])
    alone = len(readers) == 1 and name not in graph.output_names
    return readers[0] if alone and readers[0].kind == kind else None


def _replaced(item: Input, copies: dict[str, tuple[Op, ...]]) -> Input:
    ops = copies.get(item.value.name)
    return item if ops is None else replace(item, value=replace(ops[-1].result, alias=None))


def _entries(graph: Graph) -> list[tuple[str, Op]]:
    """The inputs that one quantisation alone reads, with it."""
    names = [i.value.name for i in graph.inputs if i.role == "input"]
    return [(n, op) for n in names if (op := _only_reader(graph, n, "mplan.quantize"))]


def _entered(item: Input, entries: dict[str, Op]) -> Input:
    op = entries.get(item.value.name)
    return item if op is None else replace(item, value=Value(op.result.name, op.result.type))


def _quantised(item: Input, entries: dict[str, Op], example: Any) -> Any:
    op = entries.get(item.value.name)
    if op is None:
        return example
    return lookup(op.kind).reference(**bound_args(op, {item.value.name: example}))
