"""In-place results: an elementwise op writes over an operand that nobody reads afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from mplan.ir.graph import Alias, Graph, Op, Value
from mplan.ir.ops import lookup
from mplan.ir.storage import storages
from mplan.ir.types import TensorType
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import Owners


@dataclass(frozen=True, slots=True)
class Inplace(Pass):
    """Let results of pointwise ops share the bytes of an operand that dies in the op.

    The op keeps its kind; only the alias of its result says that the bytes are the operand's. The
    operand must have the result's shape, strides and element size and be its whole storage, so that
    each element is overwritten by the one computed from it. The caller's inputs (unless donated) and
    returned values stay. By default all other readers of the operand must be needed to compute the
    op anyway, so that no order of the ops is lost; ``conditional`` also takes operands whose last
    reader the op is only in the present order.
    """

    conditional: bool = False
    name: ClassVar[str] = "inplace"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with in-place aliases; ``graph`` itself when there are none to add."""
        state = _State.of(graph)
        ops = []
        for index, op in enumerate(graph.ops):
            name = self._operand(op, index, state)
            if name is not None:
                op = _overwriting(op, name)
                state.merge(op.result.name, name)
            ops.append(op)
        if all(new is old for new, old in zip(ops, graph.ops, strict=True)):
            return graph
        return replace(graph, ops=tuple(ops))

    def _operand(self, op: Op, index: int, state: _State) -> str | None:
        """The operand whose bytes the result of ``op`` may take over."""
        if len(op.results) != 1 or not op.values or op.result.alias or op.loop or op.scratch:
            return None
        fitting = [name for name in dict.fromkeys(op.operands) if state.fits(op, name)]
        if not fitting or not lookup(op.kind).pointwise:
            return None
        for name in fitting:
            if state.dies(name, index) and (self.conditional or state.is_bound(name, index)):
                return name
        return None


def _overwriting(op: Op, name: str) -> Op:
    return replace(op, results=(replace(op.result, alias=Alias(name, "inplace")),))


@dataclass(slots=True)
class _State:
    """Storages and who uses them.

    ``readers[root]`` are the ops that use a value of the storage, in order; ``kept`` are the storages
    of the caller. ``before[i]`` is a bit set of the ops that op i needs, directly or not.
    """

    values: dict[str, Value]
    owners: Owners
    nbytes: Mapping[str, int]
    kept: set[str]
    readers: dict[str, list[int]] = field(default_factory=dict)
    before: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph) -> _State:
        found = storages(graph)
        root = found.root
        kept = {root[name] for name in graph.output_names}
        kept |= {root[i.value.name] for i in graph.inputs if not (i.donated and i.role == "input")}
        state = cls(graph.value_table, Owners.from_storages(found), found.nbytes, kept)
        maker: dict[str, int] = {}
        writers: dict[str, int] = {}
        for index, op in enumerate(graph.ops):
            needed = 0
            for name in op.operands:
                needed |= state._closure(maker.get(name)) | state._closure(writers.get(root[name]))
            for storage in {root[name] for name in op.operands}:
                state.readers.setdefault(storage, []).append(index)
            state.before.append(needed)
            for value in op.values:
                maker[value.name] = index
                if value.alias and value.alias.kind == "inplace":
                    writers[root[value.name]] = index
        return state

    def _closure(self, index: int | None) -> int:
        return 0 if index is None else self.before[index] | (1 << index)

    def fits(self, op: Op, name: str) -> bool:
        """Whether operand and result occupy the same bytes, element by element.

        Other operands in the storage of ``name`` must lie at exactly the same place.
        """
        type_, result = self.values[name].type, op.result.type
        owner = self.owners.root(name)
        if owner in self.kept or not _same_layout(type_, result):
            return False
        if self.nbytes[owner] != self.nbytes[self.owners.root(op.result.name)]:
            return False
        return all(
            _same_layout(self.values[other].type, result)
            for other in op.operands
            if self.owners.root(other) == owner
        )

    def dies(self, name: str, index: int) -> bool:
        """Whether no op after ``index`` reads the bytes of ``name``."""
        return self.readers[self.owners.root(name)][-1] == index

    def is_bound(self, name: str, index: int) -> bool:
        """Whether op ``index`` needs every other op that reads the bytes of ``name``."""
        others = _bits(i for i in self.readers[self.owners.root(name)] if i != index)
        return others & ~self.before[index] == 0

    def merge(self, result: str, name: str) -> None:
        """``result`` and its views now lie in the storage of ``name``."""
        mine, theirs = self.owners.merge(result, name)
        self.readers[theirs] = [*self.readers[theirs], *self.readers.pop(mine, [])]
        if mine in self.kept:
            self.kept.add(theirs)


def _bits(indices: Iterable[int]) -> int:
    bits = 0
    for index in indices:
        bits |= 1 << index
    return bits


def _same_layout(operand: object, result: object) -> bool:
    """Equal shape and strides, and elements of equal size."""
    if not isinstance(operand, TensorType) or not isinstance(result, TensorType):
        return False
    same = (operand.shape, operand.strides) == (result.shape, result.strides)
    return same and operand.dtype.itemsize == result.dtype.itemsize
