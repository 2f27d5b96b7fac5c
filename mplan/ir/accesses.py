"""How many bytes a planned graph reads and writes of each of its buffers, each as often as it is.

The model is simple: an op writes its results once. It reads an operand once, except that a window reads
each position as often as windows hold it, and that every multiply-accumulate reads one element of each
factor. Where windows are laid out as columns it is those that multiply-accumulates read, and windows
are read once. What kernels keep in registers is not considered. In a stream, what is computed again
counts again, and bytes lie in rings. Other scratch memory is written and read once; so do callers with
inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import prod

from mplan.ir.columns import ITEM_BYTES, columns_bytes
from mplan.ir.geometry import Access, geometry, grid
from mplan.ir.graph import Graph, Loop, Op
from mplan.ir.ops import macs
from mplan.ir.rings import lines_of
from mplan.ir.specialize import upper_bound
from mplan.ir.storage import Lowered, storages
from mplan.ir.streaming import flow_of
from mplan.ir.types import TensorType, Type

#: Stands for the columns beside the names of storages.
_COLUMNS = ""


def accessed_bytes(graph: Graph, lowered: Lowered) -> tuple[int, ...]:
    """Bytes read and written of each buffer of ``lowered``, the problem of ``graph``.

    Those of a storage that is several adjacent buffers are with its first one.
    """
    bound = upper_bound(graph)
    types = {v.name: v.type for v in bound.values}
    root, buffer_of = lowered.storages.root, lowered.buffer_of
    found = [Fraction(0)] * len(lowered.problem.buffers)
    for index, op in enumerate(bound.ops):
        if op.is_view:
            continue
        scratch = lowered.scratch_of[index]
        if op.loop and op.loop.stream:
            named, inside = _in_stream(op)
        else:
            named = {n: Fraction(size) for n, size in _of_op(op, types).items()}
            columns = _of_columns(op, types)
            inside = [Fraction(columns or 2 * s.size_bytes) for s in op.scratch]
        for name, size in named.items():
            if root[name] in buffer_of:
                found[buffer_of[root[name]]] += size
        for buffer, size in zip(scratch, inside, strict=True):
            found[buffer] += size
    for i, b in enumerate(lowered.problem.buffers):
        if b.kind != "weight":
            found[i] += b.size_bytes * (b.live_in + b.live_out)
    return tuple(map(int, found))


def _of_op(op: Op, types: Mapping[str, Type]) -> dict[str, int]:
    """Bytes of operands that ``op`` reads, and of results that it writes."""
    found = {v.name: _nbytes(types[v.name]) for v in op.values}
    products = 0 if op.loop or _of_columns(op, types) else macs(op, types)
    rule = geometry(op, types)
    accesses = {a.operand: a for a in rule.accesses} if rule and not rule.reduces else {}
    for name in dict.fromkeys(op.operands):
        type_ = types[name]
        if not isinstance(type_, TensorType):
            continue
        read = _nbytes(type_)
        if products and len(type_.shape) > 1:
            read = products * type_.dtype.itemsize
        elif rule and name in accesses:
            read = _windows(accesses[name], type_, rule.dims, types[op.result.name])
        found[name] = found.get(name, 0) + read
    return found


def _of_columns(op: Op, types: Mapping[str, Type]) -> int:
    """Bytes read and written of the columns of ``op``: each number as often as it is multiplied, and
    once per window before that; 0 if it has none."""
    if not op.scratch or not columns_bytes(op, types):
        return 0
    result = types[op.result.name]
    assert isinstance(result, TensorType)
    products, channels = macs(op, types), result.shape[-1]
    assert isinstance(channels, int)
    return ITEM_BYTES * (products + products // max(channels, 1))


def _windows(access: Access, operand: TensorType, dims: tuple[int, int], result: Type) -> int:
    """Bytes of ``operand`` that the positions of ``result`` read, those outside of it left out."""
    assert isinstance(result, TensorType)
    size, steps = grid(operand, dims), grid(result, dims)
    reads = []
    for reach, there, count in zip(access.reach, size, steps, strict=True):
        spans = (reach.span(at, at + 1) for at in range(count))
        reads.append(sum(max(min(end, there) - max(first, 0), 0) for first, end in spans))
    return operand.nbytes // max(prod(size), 1) * prod(reads)


def _in_stream(op: Op) -> tuple[dict[str, Fraction], list[Fraction]]:
    """What a stream reads and writes of its operands and results, and of its scratch memory."""
    loop = op.loop
    assert loop is not None and loop.stream is not None
    inside = dict(_of_body(loop))
    root = storages(loop.body).root
    rings = [inside.pop(r.value, Fraction(0)) for r in loop.stream.rings]
    rings += [inside.pop(_COLUMNS, Fraction(0))] * (len(op.scratch) - len(rings))
    outside: dict[str, Fraction] = {}
    outputs = zip(op.values, loop.body.output_names, strict=True)
    windows = zip(loop.windows, loop.body.inputs, strict=True)
    pairs = [*((v.name, root[n]) for v, n in outputs), *((w.operand, i.value.name) for w, i in windows)]
    for name, inner in pairs:
        outside[name] = outside.get(name, Fraction(0)) + inside.pop(inner, Fraction(0))
    return outside, rings


def _of_body(loop: Loop) -> Iterator[tuple[str, Fraction]]:
    """Bytes accessed of each storage of a stream's body, and of the columns that its ops share."""
    flow, lines = flow_of(loop), lines_of(loop, flow_of(loop))
    types = {v.name: v.type for v in loop.body.values}
    root = storages(loop.body).root
    found: dict[str, Fraction] = {}
    for node in flow.nodes:
        area = sum(
            prod(end - first for first, end in (line.span(node) for line in pair)) for pair in lines
        )
        share = Fraction(area, prod(node.steps))
        pairs = [(name, size) for o in node.ops for name, size in _of_op(o, types).items()]
        for name, size in pairs or [(node.out, _nbytes(types[node.out]))]:
            found[root[name]] = found.get(root[name], Fraction(0)) + size * share
        inner = sum(_of_columns(o, types) for o in node.ops)
        found[_COLUMNS] = found.get(_COLUMNS, Fraction(0)) + inner * share
    yield from found.items()


def _nbytes(type_: Type) -> int:
    return type_.nbytes if isinstance(type_, TensorType) else 0
