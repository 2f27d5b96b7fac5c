"""Integers at the boundary of a quantised model, instead of conversions inside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mplan.capture.captured import Captured
from mplan.ir.affine import Affine
from mplan.ir.graph import Graph, Input, Op, Ref, Value
from mplan.ir.ops import bound_args, lookup


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

    An input in NCHW whose only reader is a copy to NHWC gives way to that copy. ``captured`` itself if
    nothing changes.
    """
    graph, users = captured.graph, captured.graph.users
    copies: dict[str, tuple[Op, Op]] = {}
    for item in graph.inputs:
        chain = [item.value.name]
        ops: list[Op] = []
        for kind in ("aten.permute.default", "aten.clone.default"):
            readers = users.get(chain[-1], [])
            if len(readers) == 1 and readers[0].kind == kind and chain[-1] not in graph.output_names:
                ops.append(readers[0])
                chain.append(readers[0].result.name)
        if item.role == "input" and len(ops) == 2 and ops[0].arg("dims") == (0, 2, 3, 1):
            copies[item.value.name] = ops[0], ops[1]
    if not copies:
        return captured
    gone = {id(op) for pair in copies.values() for op in pair}
    users_ = [i for i in graph.inputs if i.role == "input"]
    examples = zip(users_, captured.example_inputs, strict=True)
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


def _replaced(item: Input, copies: dict[str, tuple[Op, Op]]) -> Input:
    pair = copies.get(item.value.name)
    return item if pair is None else replace(item, value=pair[1].result)


def _entries(graph: Graph) -> list[tuple[str, Op]]:
    """The inputs that one quantisation alone reads, with it."""
    users = graph.users
    found = []
    for item in graph.inputs:
        readers = users.get(item.value.name, [])
        alone = len(readers) == 1 and item.value.name not in graph.output_names
        if item.role == "input" and alone and readers[0].kind == "mplan.quantize":
            found.append((item.value.name, readers[0]))
    return found


def _entered(item: Input, entries: dict[str, Op]) -> Input:
    op = entries.get(item.value.name)
    return item if op is None else replace(item, value=Value(op.result.name, op.result.type))


def _quantised(item: Input, entries: dict[str, Op], example: Any) -> Any:
    op = entries.get(item.value.name)
    if op is None:
        return example
    return lookup(op.kind).reference(**bound_args(op, {item.value.name: example}))
