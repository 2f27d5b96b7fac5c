"""Verification of streams: rings that hold what is still read, results that follow dying operands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mplan.ir.graph import Concat, Graph, Loop, Op, Stream, Value
from mplan.ir.rings import distance, ring_needs, scratch_of
from mplan.ir.storage import storages
from mplan.ir.streaming import Node, dims_of, nodes_of
from mplan.ir.types import TensorType, Type


def stream_faults(
    op: Op, loop: Loop, stream: Stream, types: Mapping[str, Type], graph: Graph
) -> Iterator[str]:
    """Everything that is wrong with a stream whose axes, windows and interface are sound."""
    found = [*_types(op, loop, types), *_body(loop), *_tiling(loop)]
    yield from found
    if found:
        return
    wrong = list(_rings(op, loop, stream))
    yield from wrong
    if not wrong:
        yield from _aliases(op, loop, stream, types, graph)


def _types(op: Op, loop: Loop, types: Mapping[str, Type]) -> Iterator[str]:
    """The body has the types of the operands and results, in layouts of its own."""
    for window, item in zip(loop.windows, loop.body.inputs, strict=True):
        if window.slices:
            yield f"the window of %{window.operand} has slices; a stream sees whole operands"
        elif not _alike(types[window.operand], item.value.type):
            yield f"the body's input %{item.value.name} has another type than %{window.operand}"
    table = loop.body.value_table
    for value, out in zip(op.values, loop.body.output_names, strict=True):
        if not _alike(value.type, table[out].type):
            yield f"the result %{value.name} has another type than %{out} in the body"


def _alike(a: Type, b: Type) -> bool:
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        return a.is_static and b.is_static and (a.dtype, a.shape) == (b.dtype, b.shape)
    return a == b


def _body(loop: Loop) -> Iterator[str]:
    """Every op of the body has a rule of geometry, and all agree on what rows and columns are."""
    body = loop.body
    if body.symbols or any(not isinstance(r, Concat) for r in loop.results):
        yield "a stream has no symbols and no carried states"
    nodes = nodes_of(body)
    dims: dict[str, tuple[int, int]] = {}
    for node in nodes:
        if not node.rules:
            kinds = ", ".join(dict.fromkeys(o.kind for o in node.ops))
            yield f"{kinds} has no rows that could be streamed"
        for name in (node.out, *(read.source for read in node.reads)):
            for rule in node.rules:
                if dims.setdefault(name, rule.dims) != rule.dims:
                    yield f"rows and columns of %{name} are those of different dimensions"
    assert loop.stream is not None
    several = loop.stream.pixels > 1 and (loop.stream.unit == "row" or loop.stream.up)
    if loop.stream.pixels < 1 or several:
        yield "only a stream by pixels that goes down makes several of them in a step"
    if any(op.is_view for op in body.ops):
        yield "the body of a stream has no views"
    if any(len(op.scratch) > 1 or op.phases > 1 for op in body.ops):
        yield "an op of a stream has one phase, with at most one piece of scratch"
    root = storages(body).root
    made = {node.out for node in nodes}
    outs = [root[name] for name in body.output_names]
    if len(set(outs)) != len(outs) or not set(outs) <= made:
        yield "the results of a stream are different storages that it makes"
    for node in nodes:
        for other in nodes:
            if other is not node and len(node.ops) > 1 and _reads_inside(other, node):
                yield f"%{node.out} is read before it is complete"


def _reads_inside(other: Node, node: Node) -> bool:
    """Whether ``other`` reads a value of ``node`` that ``node`` itself overwrites."""
    inner = {op.result.name for op in node.ops[:-1]}
    return any(name in inner for op in other.ops for name in op.operands)


def _tiling(loop: Loop) -> Iterator[str]:
    if loop.axes and len(loop.results) != 1:
        yield "a stream of several tiles has one result"
    root = storages(loop.body).root
    rules = {node.out: node.rules for node in nodes_of(loop.body)}
    for result, out in zip(loop.results, loop.body.output_names, strict=True):
        rule = rules.get(root[out], ())
        if isinstance(result, Concat) and rule:
            for dim in result.dims:
                if dim not in rule[0].dims or rule[0].reduces:
                    yield f"dimension {dim} of %{out} cannot be tiled"


def _rings(op: Op, loop: Loop, stream: Stream) -> Iterator[str]:
    """Each storage of the body that is not a result has a ring that is large enough."""
    names = [ring.value for ring in stream.rings]
    needs = {ring.value: ring for ring in ring_needs(loop)}
    if len(set(names)) != len(names) or not set(names) <= needs.keys():
        yield "a ring belongs to a storage that the stream makes or reads by rows"
        return
    for name, need in needs.items():
        have = next((ring for ring in stream.rings if ring.value == name), None)
        if have is None:
            yield f"%{name} has no ring"
        elif (have.rows, have.pixels) < (need.rows, need.pixels):
            wanted = f"{need.rows} rows and {need.pixels} pixels"
            yield f"the ring of %{name} holds {have.rows} rows and {have.pixels} pixels, not {wanted}"
    sizes, wanted_sizes = ([s.size_bytes for s in found] for found in (op.scratch, scratch_of(loop)))
    if sizes != wanted_sizes:
        yield f"it has the scratch {sizes} for rings and kernels that need {wanted_sizes} B"


def _aliases(
    op: Op, loop: Loop, stream: Stream, types: Mapping[str, Type], graph: Graph
) -> Iterator[str]:
    """A result in the memory of an operand must keep its distance from what is still read."""
    root = storages(graph).root
    for value, out in zip(op.values, loop.body.output_names, strict=True):
        if value.alias is None:
            continue
        sharing = [
            (window.operand, item.value.name)
            for window, item in zip(loop.windows, loop.body.inputs, strict=True)
            if root[window.operand] == root[value.name]
        ]
        operands = [inner for name, inner in sharing if name == value.alias.of]
        if len(sharing) != 1 or not operands or not isinstance(value.alias.offset_bytes, int):
            yield f"the result %{value.name} does not replace one operand"
            continue
        needed = distance(loop, operands[0], storages(loop.body).root[out])
        kept = _distance(
            stream, value, types[value.alias.of], dims_of(nodes_of(loop.body))[operands[0]]
        )
        if needed is None or kept is None or kept < needed:
            yield f"the result %{value.name} follows %{value.alias.of} at {kept} B, it needs {needed} B"


def _distance(stream: Stream, value: Value, operand: Type, dims: tuple[int, int]) -> int | None:
    """How far ``value`` lies from the operand in whose memory it is; None if not both lie by rows."""
    type_, alias = value.type, value.alias
    if not isinstance(type_, TensorType) or not isinstance(operand, TensorType) or alias is None:
        return None
    if not (
        lies_by_rows(type_, dims)
        and lies_by_rows(operand, dims)
        and isinstance(alias.offset_bytes, int)
    ):
        return None
    if stream.up:
        return alias.offset_bytes + type_.nbytes - operand.nbytes
    return -alias.offset_bytes


def lies_by_rows(type_: TensorType, dims: tuple[int, int]) -> bool:
    """Whether the pixels of one image with rows and columns ``dims`` follow each other, each with all
    its channels."""
    if len(type_.shape) != 4 or type_.shape[0] != 1 or not type_.is_static:
        return False
    pairs = zip(type_.element_strides, pixel_strides(type_, dims), strict=True)
    return all(n == 1 or a == b for n, (a, b) in zip(type_.shape, pairs, strict=True))


def pixel_strides(type_: TensorType, dims: tuple[int, int]) -> tuple[int, ...]:
    """The strides of a static image ``[1, …]`` that lies by rows of pixels."""
    sizes = [n for n in type_.shape if isinstance(n, int)]
    (channel,) = {1, 2, 3} - set(dims)
    strides = [0] * 4
    strides[channel], strides[dims[1]] = 1, sizes[channel]
    strides[dims[0]] = sizes[channel] * sizes[dims[1]]
    strides[0] = strides[dims[0]] * sizes[dims[0]]
    return tuple(strides)
