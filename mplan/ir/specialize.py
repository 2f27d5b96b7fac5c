"""Specialisation: a graph with some of its symbols replaced by numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mplan.ir.graph import Arg, Graph, Loop, Op, Value
from mplan.ir.types import Dim, Sym, TensorType, Type


def specialize(graph: Graph, symbols: Mapping[str, int]) -> Graph:
    """``graph`` with ``symbols`` bound: sizes and arguments that need no others become integers.

    Bodies of loops keep the symbols of their axes. Returns ``graph`` itself if nothing is bound.
    """
    if not symbols:
        return graph
    return replace(
        graph,
        inputs=tuple(replace(i, value=_value(i.value, symbols)) for i in graph.inputs),
        ops=tuple(specialize_op(op, symbols) for op in graph.ops),
        outputs=tuple(_arg(a, symbols) for a in graph.outputs),
        symbols=tuple(s for s in graph.symbols if s.name not in symbols),
    )


def upper_bound(graph: Graph) -> Graph:
    """``graph`` at the upper bound of all its symbols: the sizes that plans are made for."""
    return specialize(graph, {s.name: s.high for s in graph.symbols})


def specialize_op(op: Op, symbols: Mapping[str, int]) -> Op:
    """``op`` with ``symbols`` bound."""
    return replace(
        op,
        args=tuple((name, _arg(arg, symbols)) for name, arg in op.args),
        results=tuple(None if v is None else _value(v, symbols) for v in op.results),
        loop=_loop(op.loop, symbols) if op.loop else None,
    )


def _loop(loop: Loop, symbols: Mapping[str, int]) -> Loop:
    own = {name for a in loop.axes for name in (a.name, f"{a.name}_len")}
    outer = {name: n for name, n in symbols.items() if name not in own}
    return replace(loop, body=specialize(loop.body, outer))


def _value(value: Value, symbols: Mapping[str, int]) -> Value:
    alias = value.alias
    if alias:
        alias = replace(alias, offset_bytes=_dim(alias.offset_bytes, symbols))
    return replace(value, type=_type(value.type, symbols), alias=alias)


def _type(type_: Type, symbols: Mapping[str, int]) -> Type:
    if not isinstance(type_, TensorType) or type_.is_static:
        return type_
    strides = type_.strides and tuple(_dim(d, symbols) for d in type_.strides)
    return replace(type_, shape=tuple(_dim(d, symbols) for d in type_.shape), strides=strides)


def _dim(dim: Dim, symbols: Mapping[str, int]) -> Dim:
    return dim.evaluate(symbols) if isinstance(dim, Sym) and _known(dim, symbols) else dim


def _arg(arg: Arg, symbols: Mapping[str, int]) -> Arg:
    if isinstance(arg, Sym):
        return _dim(arg, symbols)
    if isinstance(arg, tuple):
        return tuple(_arg(item, symbols) for item in arg)
    return arg


def _known(dim: Sym, symbols: Mapping[str, int]) -> bool:
    return dim.symbols <= symbols.keys()
