"""From a graph to a planning problem: storages, their sizes, and who must run before whom.

A *storage* is the set of values that share bytes through aliases. It becomes one buffer of the
problem; each op becomes a step. Views move no bytes, so they touch nothing and cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from mplan.ir.graph import Graph, Input, Op, Value
from mplan.ir.plan import Buffer, BufferKind, Problem, Region, Step
from mplan.ir.printer import print_type
from mplan.ir.types import ScalarType, Symbol, TensorType, upper


@dataclass(frozen=True, slots=True)
class Layout:
    """Which memories a graph may use.

    Activations go to ``arena``. Weights go to ``weights`` if that is a region, else they are the
    caller's and not planned; the same holds for ``inputs`` and the user's inputs, those ``apart``
    excepted, which are in any case. With ``memories`` the arena stands for all of them together, and
    each buffer in it is given one in the end (``share``); its capacity then holds for their sum.
    """

    arena: Region
    weights: Region | None = None
    inputs: Region | None = None
    memories: tuple[Region, ...] = ()
    apart: frozenset[str] = frozenset()

    @property
    def regions(self) -> tuple[Region, ...]:
        """The distinct regions, the arena first."""
        found = [self.arena, *(r for r in (self.weights, self.inputs) if r)]
        return tuple(dict.fromkeys(found))

    @property
    def total_bytes(self) -> int | None:
        """What the memories may take together, where that is less than they have."""
        limit, sizes = self.arena.capacity_bytes, [m.capacity_bytes for m in self.memories]
        known = [n for n in sizes if n is not None]
        enough = limit is None or (len(known) == len(sizes) and sum(known) <= limit)
        return None if enough or not sizes else limit


@dataclass(frozen=True, slots=True)
class Storages:
    """``root[name]`` is the value that owns the bytes of value ``name``; ``nbytes[root]`` how many.

    ``lead[root]`` of them lie before its first byte: streams may begin results before their operands.
    """

    root: Mapping[str, str]
    nbytes: Mapping[str, int]
    lead: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A problem and the way back to the graph.

    ``buffer_of[root value]`` and ``scratch_of[op index]`` name buffers, the latter in the order of
    ``Op.scratch``; ``op_of[step]`` is the index of the op whose phase the step is. Storages that are
    not planned (the caller's inputs and weights) are absent.

    A storage in which streams follow their operands is several buffers, one behind the other, that
    live as long as a value lies in them. ``pieces[value]`` then tells the buffer in which a value
    begins, and the bytes of the storage before that buffer; ``buffer_of`` has the first one.
    """

    problem: Problem
    buffer_of: Mapping[str, int]
    scratch_of: Mapping[int, tuple[int, ...]]
    op_of: tuple[int, ...]
    storages: Storages
    pieces: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def storages(graph: Graph) -> Storages:
    """The storages of ``graph``, sized for the upper bound of every symbol."""
    table = graph.symbol_table
    root: dict[str, str] = {}
    end: dict[str, int] = {}
    start: dict[str, int] = {}
    lead: dict[str, int] = {}
    for value in graph.values:
        alias = value.alias
        root[value.name] = root[alias.of] if alias else value.name
        offset = start[alias.of] + upper(alias.offset_bytes, table) if alias else 0
        start[value.name] = offset
        owner = root[value.name]
        end[owner] = max(end.get(owner, 0), offset + _nbytes(value, table))
        lead[owner] = max(lead.get(owner, 0), -offset)
    return Storages(root, {owner: end[owner] + lead[owner] for owner in end}, lead)


def _nbytes(value: Value, table: Mapping[str, Symbol]) -> int:
    return value.type.bounded(table).nbytes if isinstance(value.type, TensorType) else 0


def problem_of(graph: Graph, layout: Layout) -> Lowered:
    """The planning problem of ``graph`` on ``layout``; steps stand in the graph's order.

    Each phase of an op is a step; those of one op follow each other.

    A storage that a returned value lies in is ``live_out``. A user input that is planned is
    ``live_in`` and may be overwritten after its last use.
    """
    return _Lowering(graph, layout).run()


def share(lowered: Lowered, layout: Layout, accessed: Sequence[int]) -> Lowered:
    """``lowered`` with the layout's memories in the place of its arena: each of the arena's buffers may
    lie in any, those of least cost first. ``accessed`` are the bytes that each buffer is read and
    written."""
    names = tuple(r.name for r in sorted(layout.memories, key=lambda r: r.cost))
    problem = lowered.problem
    buffers = tuple(
        replace(b, regions=names, accessed_bytes=n) if b.regions == (layout.arena.name,) else b
        for b, n in zip(problem.buffers, accessed, strict=True)
    )
    regions = (*layout.memories, *(r for r in problem.regions if r != layout.arena))
    shared = replace(problem, regions=regions, buffers=buffers, total_bytes=layout.total_bytes)
    return replace(lowered, problem=shared)


@dataclass
class _Lowering:
    graph: Graph
    layout: Layout
    buffers: list[Buffer] = field(default_factory=list)
    buffer_of: dict[str, int] = field(default_factory=dict)
    scratch_of: dict[int, tuple[int, ...]] = field(default_factory=dict)
    op_of: list[int] = field(default_factory=list)
    pieces: dict[str, tuple[int, int]] = field(default_factory=dict)
    touched: dict[str, tuple[int, ...]] = field(default_factory=dict)
    adjacent: list[tuple[int, ...]] = field(default_factory=list)
    followed: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def run(self) -> Lowered:
        graph = self.graph
        found = storages(graph)
        self.followed = _followed(graph, found)
        outputs = {found.root[name] for name in graph.output_names}
        for item in graph.inputs:
            region = self._input_region(item)
            if region is not None and isinstance(item.value.type, TensorType):
                self._add(item.value, found, region, _input_kind(item), outputs, live_in=True)
        for op in graph.ops:
            for value in op.values:
                owned = value.alias is None and not isinstance(value.type, ScalarType)
                if owned:
                    kind: BufferKind = "output" if value.name in outputs else "intermediate"
                    self._add(value, found, self.layout.arena, kind, outputs, op=op)
        steps = self._steps(found)
        buffers, adjacent = tuple(self.buffers), tuple(self.adjacent)
        problem = Problem(graph.name, self.layout.regions, buffers, steps, adjacent)
        return Lowered(problem, self.buffer_of, self.scratch_of, tuple(self.op_of), found, self.pieces)

    def _input_region(self, item: Input) -> Region | None:
        if item.role != "input":
            return self.layout.weights
        return None if item.value.name in self.layout.apart else self.layout.inputs

    def _add(
        self,
        value: Value,
        found: Storages,
        region: Region,
        kind: BufferKind,
        outputs: set[str],
        *,
        op: Op | None = None,
        live_in: bool = False,
    ) -> None:
        shape, _, _ = print_type(value.type).partition("<")
        self.buffer_of[value.name] = len(self.buffers)
        pinned = kind == "weight" or value.name in outputs
        whole = Buffer(
            name=value.name,
            size_bytes=found.nbytes[value.name],
            regions=(region.name,),
            alignment=value.type.dtype.itemsize if isinstance(value.type, TensorType) else 1,
            kind=kind,
            live_in=live_in,
            live_out=pinned,
            shape=shape[shape.index("[") :],
            dtype=shape[: shape.index("[")],
            where=str(op.loc) if op and op.loc else "",
        )
        if value.name in self.followed:
            self._split(whole, self.followed[value.name])
        else:
            self.buffers.append(whole)

    def _split(self, whole: Buffer, ranges: Mapping[str, tuple[int, int]]) -> None:
        """Add a storage as buffers, one behind the other, at whose ends no value is cut."""
        cuts = sorted({cut for span in ranges.values() for cut in span})
        first = len(self.buffers)
        returned = set(self.graph.output_names)
        for number, (start, end) in enumerate(pairwise(cuts)):
            inside = {n for n, span in ranges.items() if span[0] <= start and end <= span[1]}
            piece = replace(
                whole,
                name=f"{whole.name}.{number}",
                size_bytes=end - start,
                live_in=whole.live_in and whole.name in inside,
                live_out=bool(inside & returned),
                shape=f"[{end - start}]",
                dtype="u8",
            )
            self.buffers.append(piece)
        for name, (start, end) in ranges.items():
            begin, stop = cuts.index(start), cuts.index(end)
            self.pieces[name] = (first + begin, start)
            self.touched[name] = tuple(range(first + begin, first + stop))
        self.adjacent.append(tuple(range(first, first + len(cuts) - 1)))

    def _buffers(self, name: str, found: Storages) -> tuple[int, ...]:
        """The buffers in which a value lies; none if it is not planned."""
        if name in self.touched:
            return self.touched[name]
        root = found.root[name]
        return (self.buffer_of[root],) if root in self.buffer_of else ()

    def _steps(self, found: Storages) -> tuple[Step, ...]:
        order = _Precedence(found)
        steps: list[Step] = []
        last_step: list[int] = []
        for index, op in enumerate(self.graph.ops):
            scratch = self._scratch(op, index)
            after = tuple(sorted(last_step[before] for before in order.of(index, op)))
            for phase in range(op.phases):
                steps.append(self._step(op, index, phase, after, scratch, found))
                after = (len(steps) - 1,)
            self.op_of += [index] * op.phases
            last_step.append(len(steps) - 1)
        return tuple(steps)

    def _step(
        self,
        op: Op,
        index: int,
        phase: int,
        after: tuple[int, ...],
        scratch: tuple[int, ...],
        found: Storages,
    ) -> Step:
        used = () if op.is_view else op.operands
        written = [] if op.is_view else _born(op, phase)
        temporaries = zip(scratch, op.scratch, strict=True)
        writes = {buffer for name in written for buffer in self._buffers(name, found)}
        writes |= {buffer for buffer, s in temporaries if s.start <= phase < s.end}
        name = op.values[0].name if op.values else f"{op.kind}#{index}"
        return Step(
            name=name if op.phases == 1 else f"{name}.{phase}",
            reads=tuple(sorted({b for name in used for b in self._buffers(name, found)})),
            writes=tuple(sorted(writes)),
            after=after,
            kind=op.kind,
            where=str(op.loc) if op.loc else "",
        )

    def _scratch(self, op: Op, index: int) -> tuple[int, ...]:
        first = len(self.buffers)
        name = op.values[0].name if op.values else str(index)
        where = str(op.loc) if op.loc else ""
        regions = (self.layout.arena.name,)
        for i, s in enumerate(op.scratch):
            label = f"{name}.scratch{i}"
            self.buffers.append(
                Buffer(label, s.size_bytes, regions, s.alignment, kind="scratch", where=where)
            )
        self.scratch_of[index] = tuple(range(first, len(self.buffers)))
        return self.scratch_of[index]


def _born(op: Op, phase: int) -> list[str]:
    """The results that exist in ``phase``."""
    numbered = ((n, v) for n, v in enumerate(op.results) if v is not None)
    return [v.name for n, v in numbered if op.birth(n) <= phase]


def _followed(graph: Graph, found: Storages) -> dict[str, dict[str, tuple[int, int]]]:
    """The storages in which a stream's result follows an operand: the bytes of each value in them."""
    streams = (v for op in graph.ops if op.loop and op.loop.stream for v in op.values)
    ranges: dict[str, dict[str, tuple[int, int]]] = {found.root[v.name]: {} for v in streams if v.alias}
    if not ranges:
        return ranges
    for value in graph.values:
        root = found.root[value.name]
        if root in ranges:
            assert isinstance(value.type, TensorType)
            base = ranges[root][value.alias.of][0] if value.alias else found.lead[root]
            offset = value.alias.offset_bytes if value.alias else 0
            assert isinstance(offset, int)
            ranges[root][value.name] = (base + offset, base + offset + value.type.nbytes)
    return ranges


class _Precedence:
    """The steps that an op must follow: its producers, and per storage the order of its writers."""

    def __init__(self, found: Storages) -> None:
        self.found = found
        self.producer: dict[str, int] = {}
        self.writer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}

    def of(self, index: int, op: Op) -> tuple[int, ...]:
        before = {self.producer[name] for name in op.operands if name in self.producer}
        roots = {self.found.root[name] for name in op.operands}
        before |= {self.writer[root] for root in roots if root in self.writer}
        for value in op.values:
            root = self.found.root[value.name]
            if value.alias and value.alias.kind == "inplace":
                before |= set(self.readers.pop(root, ()))
                before |= {self.writer[root]} if root in self.writer else set()
                self.writer[root] = index
        for root in roots:
            self.readers.setdefault(root, []).append(index)
        for value in op.values:
            self.producer[value.name] = index
        return tuple(sorted(before - {index}))


def _input_kind(item: Input) -> BufferKind:
    return "input" if item.role == "input" else "weight"
