"""Small steps that rewriting passes share: renaming uses, merging storages, dropping constants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mplan.ir.graph import Arg, Carry, Graph, Input, Loop, Op, Ref, Value, substitute
from mplan.ir.ops import lookup
from mplan.ir.storage import Storages
from mplan.passes.base import Context


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


@dataclass(slots=True)
class NewConstants:
    """The constants of a graph while a pass replaces some of them."""

    graph: Graph
    values: dict[str, Any]
    _added: list[Input] = field(default_factory=list)
    _old: set[str] = field(default_factory=set)

    def of(self, arg: Arg) -> Any:
        """The tensor that ``arg`` refers to, None if it is not constant."""
        return self.values.get(arg.name) if isinstance(arg, Ref) else None

    def changed(self, op: Op, base: str, tensors: Mapping[str, Any], args: Mapping[str, Arg]) -> Op:
        """``op`` with new constants ``base``_KEY for the arguments ``tensors`` and with ``args``."""
        given = {**dict(op.args), **args}
        for key, tensor in tensors.items():
            old = given.get(key)
            if isinstance(old, Ref):
                self._old.add(old.name)
            taken = {v.name for v in self.graph.values} | set(self.values)
            made = new_constant(f"{base}_{key}", tensor, taken)
            self.values[made.value.name] = tensor
            self._added.append(made)
            given[key] = Ref(made.value.name)
        order = (param.name for param in lookup(op.kind).params)
        return replace(op, args=tuple((name, given[name]) for name in order if name in given))

    def finish(self, ops: tuple[Op, ...], ctx: Context) -> Graph:
        """The graph with ``ops`` and without the constants that nothing uses any more."""
        if ops == self.graph.ops:
            return self.graph
        result = replace(self.graph, inputs=(*self.graph.inputs, *self._added), ops=ops)
        result = without_unused_constants(result, self._old)
        names = {i.value.name for i in result.inputs}
        ctx.constants = {n: t for n, t in self.values.items() if n in names}
        return result
