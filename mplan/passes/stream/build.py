"""A run of ops becomes one stream: a loop whose body they are, with the least rings it works with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mplan.ir.graph import (
    Axis,
    Concat,
    Graph,
    Input,
    Loop,
    Op,
    Ref,
    Ring,
    Stream,
    Value,
    Window,
)
from mplan.ir.rings import ring_needs, scratch_of
from mplan.ir.streaming import Node


@dataclass(frozen=True, slots=True)
class Choice:
    """How a run of ops is executed: by ``row`` or ``pixel``, upwards, in strips of ``width`` columns.

    ``width`` 0 is one strip.
    """

    unit: Literal["row", "pixel"] = "row"
    up: bool = False
    width: int = 0


def stream_op(
    nodes: Sequence[Node],
    results: Sequence[Value],
    values: Mapping[str, Value],
    choice: Choice,
    pushed: Collection[str] = (),
) -> Op:
    """The stream of ``nodes``, which yields ``results``; the inputs ``pushed`` arrive by rows.

    ``values`` are those of the surrounding graph. The last node that yields a result must be the last
    of ``nodes``.
    """
    ops = tuple(op for node in nodes for op in node.ops)
    made = {v.name for op in ops for v in op.values}
    operands = tuple(dict.fromkeys(n for op in ops for n in op.operands if n not in made))
    body = Graph(
        f"{results[-1].name}_rows",
        tuple(Input(replace(values[name], alias=None)) for name in operands),
        ops,
        tuple(Ref(v.name) for v in results),
    )
    marked = tuple(Ring(name, 1) for name in operands if name in pushed)
    axes, concat = _strips(nodes[-1], choice.width)
    windows = tuple(Window(name) for name in operands)
    stream = Stream(choice.unit, marked, choice.up)
    loop = Loop(axes, windows, (concat,) * len(results), body, stream)
    loop = replace(loop, stream=replace(stream, rings=ring_needs(loop)))
    return Op("mplan.loop", (), tuple(results), nodes[-1].ops[-1].loc, scratch_of(loop), loop=loop)


def _strips(node: Node, width: int) -> tuple[tuple[Axis, ...], Concat]:
    if not width or width >= node.grid[1]:
        return (), Concat((), ())
    return (Axis("w", node.grid[1], width),), Concat((node.rules[0].dims[1],), ("w",))
