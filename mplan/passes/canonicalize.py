"""Removal of ops that do nothing: identities, copies without need, repeated views, dead ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.ir.graph import Arg, Graph, Op, Ref, substitute
from mplan.ir.ops import lookup
from mplan.ir.storage import storages
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import Owners, rename_uses

#: Ops whose result equals the named argument when type and number permit.
_COPIES = {
    "aten.clone.default": "self",
    "aten._to_copy.default": "self",
    "aten.copy.default": "src",
    "aten.lift_fresh_copy.default": "self",
    "aten.contiguous.default": "self",
}
#: Ops whose result equals ``self`` when the named argument is the given number.
_NEUTRAL: dict[str, tuple[str, float]] = {
    "aten.mul.Scalar": ("other", 1),
    "aten.mul.Tensor": ("other", 1),
    "aten.div.Scalar": ("other", 1),
    "aten.div.Tensor": ("other", 1),
    "aten.pow.Tensor_Scalar": ("exponent", 1),
}


@dataclass(frozen=True, slots=True)
class Canonicalize(Pass):
    """Remove what changes no number.

    Identities (``detach``, views that keep the type) and copies of values that nobody overwrites
    give way to their operand, equal views to the first of them, and ops whose results nobody needs
    go. Results that the caller gets keep memory of their own where they had it. Ops that draw random
    numbers stay, so that seeded runs agree with eager execution.
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph without them; ``graph`` itself when there are none."""
        while True:
            smaller = _without_dead_ops(_without_identities(graph))
            if smaller is graph:
                return graph
            graph = smaller


def _without_identities(graph: Graph) -> Graph:
    """Replace the results of no-ops and of repeated views by earlier values."""
    sharing = _Sharing.of(graph)
    types = {v.name: v.type for v in graph.values}
    names: dict[str, str] = {}
    views: dict[object, Op] = {}
    kept = []
    for old in graph.ops:
        op = rename_uses(old, names)
        source = _identity(op)
        if source is not None and types[source] == op.result.type and sharing.permits(op, source):
            names[op.result.name] = source
            sharing.merge(op.result.name, source)
            continue
        twin = views.setdefault(_view_key(op), op) if op.is_view and op.loop is None else op
        if twin is not op and [v.type for v in twin.values] == [v.type for v in op.values]:
            names |= {v.name: t.name for v, t in zip(op.values, twin.values, strict=True)}
            continue
        kept.append(op)
    if not names:
        return graph
    return replace(graph, ops=tuple(kept), outputs=tuple(substitute(o, names) for o in graph.outputs))


def _view_key(op: Op) -> object:
    """Equal for views of the same kind and arguments; ``True`` and ``1`` differ."""
    return op.kind, repr(op.args)


def _identity(op: Op) -> str | None:
    """The value that the only result of ``op`` equals, if it is clear from the call."""
    if len(op.results) != 1 or op.loop is not None or not op.values:
        return None
    alias = op.result.alias
    if alias is not None:
        return alias.of if alias.kind == "view" and alias.offset_bytes == 0 and _same_base(op) else None
    if op.kind in _COPIES:
        return _name(op.arg(_COPIES[op.kind]))
    if op.kind in _NEUTRAL:
        key, number = _NEUTRAL[op.kind]
        given = op.arg(key)
        same = isinstance(given, (int, float)) and not isinstance(given, bool) and given == number
        return _name(op.arg("self")) if same else None
    return None


def _same_base(op: Op) -> bool:
    return op.result.alias is not None and op.result.alias.of in op.operands


def _name(arg: Arg) -> str | None:
    return arg.name if isinstance(arg, Ref) else None


@dataclass(slots=True)
class _Sharing:
    """Which storages are the caller's, are returned, or get overwritten; grows as values merge."""

    owners: Owners
    nbytes: Mapping[str, int]
    foreign: set[str]
    returned: set[str]
    overwritten: set[str]

    @classmethod
    def of(cls, graph: Graph) -> _Sharing:
        found = storages(graph)
        root = found.root
        return cls(
            Owners.from_storages(found),
            found.nbytes,
            {root[i.value.name] for i in graph.inputs},
            {root[name] for name in graph.output_names},
            {root[v.name] for v in graph.values if v.alias and v.alias.kind == "inplace"},
        )

    def permits(self, op: Op, source: str) -> bool:
        """Whether the result of ``op`` may be the same bytes as ``source``.

        A copy of a part stays, since it lets the rest of the storage go.
        """
        mine, theirs = self.owners.root(op.result.name), self.owners.root(source)
        if mine == theirs:
            return True
        if {mine, theirs} & self.overwritten or self.nbytes[mine] != self.nbytes[theirs]:
            return False
        return mine not in self.returned or theirs not in (self.foreign | self.returned)

    def merge(self, name: str, source: str) -> None:
        """The storage of ``name`` becomes that of ``source``."""
        mine, theirs = self.owners.merge(name, source)
        if mine in self.returned:
            self.returned.add(theirs)


def _without_dead_ops(graph: Graph) -> Graph:
    """Drop ops without effect whose results neither a later op nor the caller uses."""
    needed = set(graph.output_names)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if _has_effect(op) or any(v.name in needed for v in op.values):
            needed.update(op.operands)
            needed.update(v.alias.of for v in op.values if v.alias)
            kept.append(op)
    if len(kept) == len(graph.ops):
        return graph
    return replace(graph, ops=tuple(reversed(kept)))


def _has_effect(op: Op) -> bool:
    """Whether ``op`` does more than compute its results."""
    if not op.values or any(v.alias and v.alias.kind == "inplace" for v in op.values):
        return True
    row = lookup(op.kind)
    return row.random or any(p.written for p in row.params)
