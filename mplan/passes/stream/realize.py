"""From a schedule of segments to a graph of streams, whose results take over dying operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from mplan.ir.graph import Alias, Graph, Op, Value, tensor_type
from mplan.ir.rings import distance
from mplan.ir.storage import storages
from mplan.ir.types import TensorType
from mplan.ir.verify_stream import pixel_strides
from mplan.passes.stream.build import stream_op
from mplan.passes.stream.chain import Chain
from mplan.passes.stream.search import Schedule, Segment

#: How many ways to lay out the segments so far are followed up.
BEAM = 24


def realize(chain: Chain, schedule: Schedule, known: dict[Segment, Ways]) -> Iterator[Graph]:
    """Graphs that run ``schedule``, those that seem to need the least memory first.

    ``known`` keeps the ops of segments, which other schedules of the same chain share.

    Where a result may take over the memory of an operand it lies before it, behind it (an upward
    stream) or elsewhere. Bytes of common memory live from their first use to their last, so that these
    choices depend on each other: beam searches make them segment by segment. One prefers common
    memories that extend little, the other few of them: either may be easier to place.
    """
    building = _Building(chain, schedule.segments, known)
    found = [*building.search(_extent), *building.search(_moves)]
    seen: list[tuple[Op, ...]] = []
    for draft in sorted(found, key=lambda draft: draft.need(len(schedule.segments))):
        if draft.ops not in seen:
            seen.append(draft.ops)
            yield replace(chain.graph, ops=draft.ops)


@dataclass(frozen=True, slots=True)
class _Spot:
    """The bytes of common memory in which a value lies, from segment ``born`` to segment ``died``."""

    begin: int
    end: int
    born: int
    died: int


@dataclass(frozen=True, slots=True)
class Move:
    """A stream whose last result, the storage ``out`` of ``made_bytes``, begins ``offset`` bytes behind
    the operand of ``moved_bytes`` that it replaces; ``ring_bytes`` are those of its rings."""

    op: Op
    out: str
    offset: int
    moved_bytes: int
    made_bytes: int
    ring_bytes: int


@dataclass(frozen=True, slots=True)
class Ways:
    """The ops of a segment with its result elsewhere, and the streams that go down and up through the
    memory of what it may replace."""

    apart: tuple[Op, ...]
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class _Draft:
    """Segments that are laid out: ``levels`` are the live bytes of each, ``spots`` those of every value
    in common memory, by the name of its storage; ``memory`` says in which memory a storage lies."""

    ops: tuple[Op, ...]
    levels: tuple[int, ...]
    memory: Mapping[str, str] = field(default_factory=dict)
    spots: Mapping[str, Mapping[str, _Spot]] = field(default_factory=dict)
    moves: int = 0

    def need(self, index: int) -> int:
        """What the arena needs up to segment ``index``: the most live bytes, but no less than a common
        memory extends, whose bytes keep their distances."""
        return max(0, *self.levels[: index + 1], *self.extents())

    def extents(self) -> list[int]:
        """The bytes between the first and the last of each common memory."""
        return [
            max(spot.end for spot in spots.values()) - min(spot.begin for spot in spots.values())
            for spots in self.spots.values()
        ]


def _extent(draft: _Draft) -> tuple[int, int]:
    return sum(draft.extents()), draft.moves


def _moves(draft: _Draft) -> tuple[int, int]:
    return draft.moves, sum(draft.extents())


class _Building:
    def __init__(self, chain: Chain, segments: Sequence[Segment], known: dict[Segment, Ways]):
        self.chain, self.segments, self.known = chain, segments, known
        self.segment_of = [
            i for i, segment in enumerate(segments) for _ in range(segment.first, segment.end)
        ]
        self.values = chain.graph.value_table

    def search(self, taste: Callable[[_Draft], tuple[int, int]]) -> list[_Draft]:
        """The best layouts by what they need, and by ``taste`` where they need the same."""
        drafts = [self.start()]
        for index in range(len(self.segments)):
            segment = self.segments[index]
            if segment not in self.known:
                self.known[segment] = self._ways(segment)
            grown = [draft for old in drafts for draft in self.grown(old, index)]
            drafts = sorted(grown, key=lambda draft: (draft.need(index), taste(draft)))[:BEAM]
        return drafts

    def start(self) -> _Draft:
        """Nothing is laid out, and every storage lies alone."""
        options = (segment.option for segment in self.segments)
        return _Draft((), tuple(o.apart_bytes if o.choice else o.peak_bytes for o in options))

    def grown(self, draft: _Draft, index: int) -> Iterator[_Draft]:
        """``draft`` with segment ``index``, in every way to lay out its result."""
        ways = self.known[self.segments[index]]
        yield replace(draft, ops=(*draft.ops, *ways.apart))
        for move in ways.moves:
            yield self._moved(draft, index, move, move.ring_bytes - ways.moves[0].ring_bytes)

    def _ways(self, segment: Segment) -> Ways:
        units = self.chain.units[segment.first : segment.end]
        choice = segment.option.choice
        nodes = [unit.node for unit in units if unit.node is not None]
        if choice is None or len(nodes) != len(units):
            return Ways(tuple(op for unit in units for op in unit.ops))
        _, _, made = self.chain.around(segment.first, segment.end)
        order = [node for node in nodes if node.out in made]
        results = [self._result(node.ops[-1].result, node.out) for node in order]
        down = stream_op(nodes, results, self.values, choice, self.chain.pushed)
        if not segment.option.replaced:
            return Ways((down,))
        builds = [down]
        if not self._reads_pushed(down):
            turned = replace(choice, up=True)
            builds.append(stream_op(nodes, results, self.values, turned, self.chain.pushed))
        return Ways((down,), tuple(self._move(op, segment.option.replaced) for op in builds))

    def _move(self, op: Op, storage: str) -> Move:
        """``op`` with its last result in the memory of ``storage``."""
        assert op.loop is not None and op.loop.stream is not None
        result, operand = op.values[-1], self._name(storage)
        out = storages(op.loop.body).root[op.loop.body.output_names[-1]]
        gap = distance(op.loop, operand, out)
        assert gap is not None
        moved, made = (tensor_type(v).nbytes for v in (self.values[operand], result))
        offset = max(gap, 0) + moved - made if op.loop.stream.up else -max(gap, 0)
        taken = replace(result, alias=Alias(operand, "inplace", offset))
        placed = replace(op, results=(*op.results[:-1], taken))
        rings = sum(scratch.size_bytes for scratch in op.scratch)
        return Move(placed, out, offset, moved, made, rings)

    def _reads_pushed(self, op: Op) -> bool:
        """Whether rows arrive for ``op``: the first ones first."""
        return any(name in self.chain.pushed for name in op.operands)

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

    def _moved(self, draft: _Draft, index: int, move: Move, more_bytes: int) -> _Draft:
        """``draft`` with ``move``; ``more_bytes`` are those of its rings beyond what was stated."""
        storage = self.segments[index].option.replaced
        memory = draft.memory.get(storage, storage)
        before = draft.spots.get(memory) or {storage: self._spot(storage, 0, move.moved_bytes)}
        begin = before[storage].begin + move.offset
        after = {**before, move.out: self._spot(move.out, begin, begin + move.made_bytes)}
        levels = list(draft.levels)
        levels[index] += more_bytes
        for spots, sign in ((before.values(), -1), (after.values(), 1)):
            for i, saved in enumerate(self._saved(tuple(spots))):
                levels[i] -= sign * saved
        return replace(
            draft,
            ops=(*draft.ops, move.op),
            levels=tuple(levels),
            memory={**draft.memory, move.out: memory},
            spots={**draft.spots, memory: after},
            moves=draft.moves + 1,
        )

    def _spot(self, storage: str, begin: int, end: int) -> _Spot:
        born, last = self.chain.born[storage], self.chain.last[storage]
        count = len(self.segments)
        return _Spot(
            begin,
            end,
            self.segment_of[born] if born >= 0 else 0,
            self.segment_of[last] if last < len(self.segment_of) else count - 1,
        )

    def _saved(self, spots: Sequence[_Spot]) -> list[int]:
        """For each segment the bytes of the values in one memory less those that are live there."""
        change = [0] * (len(self.segments) + 1)
        for spot in spots:
            change[spot.born] += spot.end - spot.begin
            change[spot.died + 1] -= spot.end - spot.begin
        for low, high in pairwise(sorted({edge for spot in spots for edge in (spot.begin, spot.end)})):
            users = [spot for spot in spots if spot.begin <= low and high <= spot.end]
            if users:
                change[min(spot.born for spot in users)] -= high - low
                change[max(spot.died for spot in users) + 1] += high - low
        return list(accumulate(change))[:-1]


def _by_rows(type_: TensorType, dims: tuple[int, int]) -> TensorType:
    """An image whose pixels follow each other, each with all its channels."""
    strided = TensorType(type_.dtype, type_.shape, pixel_strides(type_, dims))
    return TensorType(type_.dtype, type_.shape) if strided.is_contiguous else strided
