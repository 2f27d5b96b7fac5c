"""Integers at the boundary of a quantised model, instead of conversions inside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mplan.capture.captured import Captured
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
    )


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
