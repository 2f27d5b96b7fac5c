"""Pointwise ops join the op whose result they take, so that both make one storage pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

from mplan.ir.geometry import SAME, geometry
from mplan.ir.graph import Alias, Graph, Op, Value
from mplan.ir.ops import lookup
from mplan.ir.storage import storages


def attach(graph: Graph) -> Graph:
    """``graph`` with every pointwise op in place of its latest operand and right behind its maker.

    The operand must have no other reader, come from an op with rows, and not be returned.
    """
    root = storages(graph).root
    types = {v.name: v.type for v in graph.values}
    readers: dict[str, int] = {}
    for op in graph.ops:
        for name in dict.fromkeys(op.operands):
            readers[name] = readers.get(name, 0) + 1
    for name in graph.output_names:
        readers[name] = readers.get(name, 0) + 1
    place: dict[str, int] = {}
    groups: list[list[Op]] = []
    for op in graph.ops:
        made = _latest(op, place)
        rule = geometry(op, types) if made and lookup(op.kind).pointwise else None
        head = groups[place[made]][0] if made else None
        if rule and head and made and op.result.alias is None and readers[made] == 1:
            first = geometry(head, types)
            reach = next((a.reach for a in rule.accesses if a.operand == made), None)
            fits = types[made] == op.result.type and root[made] == made
            if (
                first
                and first.dims == rule.dims
                and not first.reduces
                and reach == (SAME, SAME)
                and fits
            ):
                place[op.result.name] = place[made]
                groups[place[made]].append(replace(op, results=_onto(op, made)))
                continue
        place.update({v.name: len(groups) for v in op.values})
        groups.append([op])
    ops = tuple(op for group in groups for op in group)
    return graph if ops == graph.ops else replace(graph, ops=ops)


def _latest(op: Op, place: dict[str, int]) -> str | None:
    """The operand that is made last; None if none is made by an op, or two are made together."""
    made = [name for name in dict.fromkeys(op.operands) if name in place]
    found = max(made, key=lambda name: place[name], default=None)
    twins = [name for name in made if found and place[name] == place[found]]
    return found if len(twins) == 1 else None


def _onto(op: Op, name: str) -> tuple[Value | None, ...]:
    return tuple(v and replace(v, alias=Alias(name, "inplace")) for v in op.results)
