"""Small steps that rewriting passes share: renaming uses, merging storages, dropping constants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mplan.ir.graph import Carry, Graph, Input, Loop, Op, Value, substitute
from mplan.ir.storage import Storages


@dataclass(frozen=True, slots=True)
class Owners:
    """Which value owns the bytes of each, while a pass lets storages become one."""

    _of: dict[str, str]

    @classmethod
    def from_storages(cls, found: Storages) -> Owners:
        """The owners before any merge."""
        return cls({name: owner for name, owner in found.root.items() if name != owner})

    def root(self, name: str) -> str:
        """The value that owns the bytes of ``name``."""
        while name in self._of:
            name = self._of[name]
        return name

    def merge(self, name: str, source: str) -> tuple[str, str]:
        """The storage of ``name`` becomes that of ``source``: their owners until now, in this order."""
        mine, theirs = self.root(name), self.root(source)
        if mine != theirs:
            self._of[mine] = theirs
        return mine, theirs


def rename_uses(op: Op, names: Mapping[str, str]) -> Op:
    """``op`` with every use of a key of ``names`` (aliases included) replaced; same if none."""
    aliased = (v.alias.of for v in op.values if v.alias)
    if not any(name in names for name in (*op.operands, *aliased)):
        return op
    return replace(
        op,
        args=tuple((key, substitute(arg, names)) for key, arg in op.args),
        results=tuple(v and _rename_alias(v, names) for v in op.results),
        loop=op.loop and _rename_loop(op.loop, names),
    )


def _rename_alias(value: Value, names: Mapping[str, str]) -> Value:
    if value.alias is None or value.alias.of not in names:
        return value
    return replace(value, alias=replace(value.alias, of=names[value.alias.of]))


def _rename_loop(loop: Loop, names: Mapping[str, str]) -> Loop:
    windows = (replace(w, operand=names.get(w.operand, w.operand)) for w in loop.windows)
    results = (
        replace(r, init=names.get(r.init, r.init)) if isinstance(r, Carry) else r for r in loop.results
    )
    return replace(loop, windows=tuple(windows), results=tuple(results))


def without_unused_constants(graph: Graph, among: Collection[str]) -> Graph:
    """``graph`` without the inputs called ``among`` that nothing uses; the same if all are used."""
    used = {name for op in graph.ops for name in op.operands} | set(graph.output_names)
    kept = tuple(i for i in graph.inputs if i.value.name in used or i.value.name not in among)
    return graph if len(kept) == len(graph.inputs) else replace(graph, inputs=kept)


def new_constant(base: str, tensor: Any, taken: Collection[str]) -> Input:
    """A constant input for ``tensor``, named after ``base`` and unlike all names in ``taken``."""
    from mplan.ir.aten_ops import type_of

    name = f"{base}_folded"
    while name in taken:
        name += "_"
    type_ = type_of(tensor)
    assert type_ is not None
    return Input(Value(name, type_), "const")
