"""The strides that eager execution gives, where PyTorch's tracing says otherwise.

A traced view of a tensor with dimensions of size 1 can carry other strides for them than the real
one, and kernels choose their memory format by strides, so one such view can change the layout of all
that follows. Sizes and element types are not affected.
"""

from __future__ import annotations

from dataclasses import replace

from mplan.diagnostics import MplanError
from mplan.ir.graph import Graph, Op, Value
from mplan.ir.ops import infer
from mplan.ir.types import TensorType, Type


def true_strides(graph: Graph) -> Graph:
    """``graph`` with the strides of views, and of what is computed from them, as eager gives them.

    Only graphs of fixed sizes are changed.
    """
    types: dict[str, Type] = {v.name: v.type for v in graph.values}
    if not all(t.is_static for t in types.values() if isinstance(t, TensorType)):
        return graph
    changed: set[str] = set()
    ops = []
    for op in graph.ops:
        if op.is_view or not changed.isdisjoint(op.operands):
            op = _retyped(op, types)
        changed |= {v.name for v in op.values if v.type != types[v.name]}
        types |= {v.name: v.type for v in op.values}
        ops.append(op)
    return replace(graph, ops=tuple(ops)) if changed else graph


def _retyped(op: Op, types: dict[str, Type]) -> Op:
    try:
        found = infer(op, types)
    except MplanError:
        return op
    if len(found) != len(op.results):
        return op
    pairs = zip(op.results, found, strict=True)
    return replace(op, results=tuple(v and _restrided(v, type_) for v, type_ in pairs))


def _restrided(value: Value, type_: Type | None) -> Value:
    """``value`` with the strides of ``type_`` if they differ in nothing else."""
    own = value.type
    if not isinstance(own, TensorType) or not isinstance(type_, TensorType):
        return value
    same = (own.shape, own.dtype) == (type_.shape, type_.dtype)
    return replace(value, type=type_) if same else value
