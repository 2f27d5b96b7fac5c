"""A graph as a chain of units, between any two of which a stream may end, and the lives of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mplan.ir.geometry import Spatial
from mplan.ir.graph import Graph, Op
from mplan.ir.ops import lookup
from mplan.ir.storage import Storages, storages
from mplan.ir.streaming import Node, dims_of, nodes_of
from mplan.ir.types import TensorType, Type
from mplan.ir.verify_stream import lies_by_rows


@dataclass(frozen=True, slots=True)
class Unit:
    """Ops that stay together and their multiply-accumulates; ``node`` is None if they are no part of
    a stream: they have no rows, or scratch, or no code is generated for them there."""

    ops: tuple[Op, ...]
    node: Node | None
    macs: int


class Chain:
    """The units of a graph in order, with the life of every storage that takes memory.

    A storage is ``born`` at a unit (-1: before the first) and needed up to unit ``last`` (their number:
    it is returned). Of ``pushed`` inputs rows arrive one by one; ``held`` ones lie in memory whole.
    ``emits`` says which ops may be part of a stream.
    """

    def __init__(
        self,
        graph: Graph,
        held: frozenset[str],
        pushed: frozenset[str],
        emits: Callable[[Op, Spatial], bool] = lambda op, rule: True,
    ):
        self.graph, self.held, self.pushed = graph, held, pushed
        self.found: Storages = storages(graph)
        self.types: dict[str, Type] = {v.name: v.type for v in graph.values}
        self.units = tuple(_units(graph, self.found, self.types, emits))
        each = [dims_of([unit.node]) for unit in self.units if unit.node is not None]
        known = {(name, dims) for found in each for name, dims in found.items()}
        names = Counter(name for name, _ in known)
        #: Rows and columns of the storages about which all units agree.
        self.dims = {name: dims for name, dims in known if names[name] == 1}
        self.born: dict[str, int] = dict.fromkeys(held, -1)
        self.last: dict[str, int] = {}
        self.readers: dict[str, set[int]] = {}
        #: Storages that streams read through views, in which rows may be others.
        self.viewed: set[str] = set()
        self._views = {v.name for v in graph.values if v.alias and v.alias.kind == "view"}
        for index, unit in enumerate(self.units):
            for op in unit.ops:
                self._use(op, index)
        for name in graph.output_names:
            self.last[self.found.root[name]] = len(self.units)

    def _use(self, op: Op, index: int) -> None:
        for value in op.values:
            root = self.found.root[value.name]
            self.last[root] = index
            if value.alias is None:
                self.born[root] = index
        for name in op.operands:
            root = self.found.root[name]
            self.last[root] = index
            self.readers.setdefault(root, set()).add(index)
            if name in self._views and self.units[index].node is not None:
                self.viewed.add(root)

    def dims_at(self, unit: int) -> tuple[int, int] | None:
        """Which dimensions are rows and columns to a unit; None if it has none."""
        node = self.units[unit].node
        return node.rules[0].dims if node else None

    def nbytes(self, name: str) -> int:
        """The bytes of a storage."""
        return self.found.nbytes[name]

    def around(self, first: int, end: int) -> tuple[int, list[str], list[str]]:
        """The bytes that live on past units ``[first, end)``, the storages that die there, and those
        that they yield."""
        kept, dying, made = 0, [], []
        for name, born in self.born.items():
            last = self.last.get(name, born)
            if born < first and last >= end:
                kept += self.nbytes(name)
            elif born < first <= last:
                dying.append(name)
            elif first <= born < end and (last >= end or last == born):
                made.append(name)
        return kept, dying, made

    def starved(self, unit: int) -> bool:
        """Whether a unit needs the whole of an input that arrives by rows."""
        node = self.units[unit].node
        by_rows = {r.source for r in node.reads} if node else set()
        roots = (self.found.root[name] for op in self.units[unit].ops for name in op.operands)
        return any(root in self.pushed and root not in by_rows for root in roots)

    def plain(self, unit: int) -> bool:
        """Whether a unit may run as it is, outside of streams: it needs no rows that arrive, and its
        result lies as streams expect it."""
        ops, node = self.units[unit].ops, self.units[unit].node
        if node is None:
            return True
        type_ = self.types[node.out]
        assert isinstance(type_, TensorType)
        by_rows = not self.by_rows(node.out) or lies_by_rows(type_, self.dims[node.out])
        return by_rows and not any(self.found.root[n] in self.pushed for o in ops for n in o.operands)

    def alone(self, unit: int) -> int:
        """The most bytes that live while a unit runs that is no part of a stream.

        A pointwise op may write over an operand that dies, as the pass ``inplace`` will have it.
        """
        kept, dying, made = self.around(unit, unit + 1)
        op = self.units[unit].ops[-1]
        if len(self.units[unit].ops) == 1 and lookup(op.kind).pointwise and not op.scratch:
            sizes = [self.nbytes(n) for n in dying if n not in self.held]
            kept -= sum(self.nbytes(n) for n in made[:1] if self.nbytes(n) in sizes)
        claimed = (
            sum(self.nbytes(n) for n in made if n not in _unborn(op, phase)) + _scratch(op, phase)
            for op in self.units[unit].ops
            for phase in range(op.phases)
        )
        return kept + sum(self.nbytes(n) for n in dying) + max(claimed)

    def by_rows(self, name: str) -> bool:
        """Whether a storage may lie by rows of pixels: nothing but streams sees where it lies."""
        type_ = self.types[name]
        if not isinstance(type_, TensorType) or len(type_.shape) != 4 or type_.shape[0] != 1:
            return False
        if name not in self.dims:
            return False
        if lies_by_rows(type_, self.dims[name]):
            return True
        seen = self.last.get(name, -1) < len(self.units) and self.born.get(name, -1) >= 0
        users = [self.born.get(name, -1), *self.readers.get(name, ())]
        return seen and all(self.units[u].node is not None for u in users)


def _units(
    graph: Graph, found: Storages, types: Mapping[str, Type], emits: Callable[[Op, Spatial], bool]
) -> Iterator[Unit]:
    nodes = {node.out: node for node in nodes_of(graph)}
    done: set[str] = set()
    for op in graph.ops:
        root = found.root[op.result.name] if op.values else ""
        node = None if op.is_view else nodes.get(root)
        if node is None:
            yield Unit((op,), None, _macs((op,), types))
        elif root not in done:
            done.add(root)
            streamable = node.rules and not any(o.scratch for o in node.ops)
            streamable = streamable and all(map(emits, node.ops, node.rules))
            yield Unit(node.ops, node if streamable else None, _macs(node.ops, types))


def _unborn(op: Op, phase: int) -> set[str]:
    return {v.name for n, v in enumerate(op.results) if v and op.birth(n) > phase}


def _scratch(op: Op, phase: int) -> int:
    return sum(s.size_bytes for s in op.scratch if s.start <= phase < s.end)


def _macs(ops: tuple[Op, ...], types: Mapping[str, Type]) -> int:
    return sum(lookup(op.kind).macs(op, types) for op in ops)
