"""From a schedule of segments to a graph of streams, whose results take over dying operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mplan.ir.graph import Alias, Graph, Op, Value, tensor_type
from mplan.ir.rings import distance
from mplan.ir.storage import storages
from mplan.ir.types import TensorType
from mplan.ir.verify_stream import pixel_strides
from mplan.passes.stream.build import stream_op
from mplan.passes.stream.chain import Chain
from mplan.passes.stream.search import Schedule, Segment


def realize(chain: Chain, schedule: Schedule, least_bytes: int) -> Graph:
    """The graph that runs ``schedule``.

    A result takes over the memory of an operand where the schedule says so and the segment would
    otherwise need more than ``least_bytes``. Of the two directions it goes the one that widens the
    common memory less: a result that follows downwards lies before its operand, one that follows
    upwards behind it.
    """
    building = _Building(chain)
    for segment in schedule.segments:
        building.add(segment, least_bytes)
    return replace(chain.graph, ops=tuple(building.ops))


@dataclass(slots=True)
class _Building:
    """``span`` says where in common memory a value lies: its start, and the extent of that memory."""

    chain: Chain
    ops: list[Op] = field(default_factory=list)
    span: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, segment: Segment, least_bytes: int) -> None:
        units = self.chain.units[segment.first : segment.end]
        choice = segment.option.choice
        nodes = [unit.node for unit in units if unit.node is not None]
        if choice is None or len(nodes) != len(units):
            self.ops += [op for unit in units for op in unit.ops]
            return
        _, _, made = self.chain.around(segment.first, segment.end)
        order = [node for node in nodes if node.out in made]
        results = [self._result(node.ops[-1].result, node.out) for node in order]
        build = stream_op(nodes, results, self._values(), choice, self.chain.pushed)
        replaced = segment.option.replaced
        if not replaced or segment.option.apart_bytes <= least_bytes:
            self.ops.append(build)
            return
        found = [
            build,
            stream_op(nodes, results, self._values(), replace(choice, up=True), self.chain.pushed),
        ]
        self.ops.append(self._taking_over(found, self._name(replaced)))

    def _values(self) -> dict[str, Value]:
        return self.chain.graph.value_table

    def _name(self, storage: str) -> str:
        """The value in which a storage leaves its maker."""
        born = self.chain.born.get(storage, -1)
        return self.chain.units[born].ops[-1].result.name if born >= 0 else storage

    def _result(self, value: Value, storage: str) -> Value:
        """The result of a stream: fresh bytes, by rows of pixels where only streams see them."""
        type_ = tensor_type(value)
        if self.chain.by_rows(storage):
            type_ = _by_rows(type_, self.chain.dims[storage])
        return Value(value.name, type_)

    def _taking_over(self, builds: Sequence[Op], operand: str) -> Op:
        """The better of two directions, its last result in the memory of ``operand``."""
        options = [self._placed(op, operand) for op in builds]
        _, op, span = min(options, key=lambda found: found[0])
        self.span[op.values[-1].name] = span
        return op

    def _placed(self, op: Op, operand: str) -> tuple[int, Op, tuple[int, int, int]]:
        result = op.values[-1]
        assert op.loop is not None and op.loop.stream is not None
        root = storages(op.loop.body).root[op.loop.body.output_names[-1]]
        gap = distance(op.loop, operand, root)
        assert gap is not None
        moved, made = self._bytes(operand), tensor_type(result).nbytes
        offset = max(gap, 0) + moved - made if op.loop.stream.up else -max(gap, 0)
        start, low, high = self.span.get(operand, (0, 0, moved))
        begin = start + offset
        span = (begin, min(low, begin), max(high, begin + made))
        taken = replace(result, alias=Alias(operand, "inplace", offset))
        return span[2] - span[1], replace(op, results=(*op.results[:-1], taken)), span

    def _bytes(self, name: str) -> int:
        return tensor_type(self._values()[name]).nbytes


def _by_rows(type_: TensorType, dims: tuple[int, int]) -> TensorType:
    """An image whose pixels follow each other, each with all its channels."""
    strided = TensorType(type_.dtype, type_.shape, pixel_strides(type_, dims))
    return TensorType(type_.dtype, type_.shape) if strided.is_contiguous else strided
