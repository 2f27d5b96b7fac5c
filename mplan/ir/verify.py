"""The verifier: every rule of the IR, all violations at once.

``verify(graph)`` checks what the graph itself says and needs no torch: names, definitions before
uses, symbols, aliases, reads of overwritten bytes, loops, and the arguments of mplan's own ops.
``deep=True`` also holds every torch operator against its schema and its shape rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mplan.diagnostics import CheckError, UserError, Where
from mplan.ir.graph import Arg, Graph, Input, Loop, Op, Value, refs
from mplan.ir.loops import tile_shapes
from mplan.ir.specialize import specialize
from mplan.ir.types import ScalarType, Sym, TensorType
from mplan.ir.verify_loop import loop_faults
from mplan.ir.verify_ops import call_faults, type_faults


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken rule: its code, a message that names the op or value, the user's place."""

    code: str
    message: str
    where: Where | None = None


def verify(graph: Graph, deep: bool = False) -> None:
    """CheckError with the first broken rule of ``graph`` (MP102–MP105, MP107); notes hold the rest.

    With ``deep``, arguments, shapes and element types of torch operators are checked as well (for
    ops whose sizes are all integers), which imports torch.
    """
    found = faults(graph, deep)
    if not found:
        return
    first, *rest = found
    more = f" (and {len(rest)} more)" if rest else ""
    raise CheckError(
        first.code,
        f"graph {graph.name}: {first.message}{more}",
        first.where,
        help="if a pass of mplan made this graph, that pass has a bug" if graph.ops else "",
        notes=tuple((f"{f.code}: {f.message}", f.where) for f in rest),
    )


def faults(graph: Graph, deep: bool = False) -> tuple[Fault, ...]:
    """All broken rules of ``graph``, in its order."""
    return _Verifier(graph, deep).run()


@dataclass
class _Verifier:
    graph: Graph
    deep: bool
    found: list[Fault] = field(default_factory=list)
    defined: dict[str, Value] = field(default_factory=dict)

    def run(self) -> tuple[Fault, ...]:
        self._symbols()
        for item in self.graph.inputs:
            self._input(item)
        for op in self.graph.ops:
            self._op(op)
        for name in self.graph.output_names:
            if name not in self.defined:
                self.add("MP104", f"the output %{name} is not defined")
        for arg in self.graph.outputs:
            self._sizes(arg, "an output")
        if not self.found:
            self._memory()
        return tuple(self.found)

    def add(self, code: str, message: str, op: Op | None = None) -> None:
        self.found.append(Fault(code, message, op.loc.where() if op and op.loc else None))

    def _symbols(self) -> None:
        names = [s.name for s in self.graph.symbols]
        for s in self.graph.symbols:
            if not s.name.isidentifier() or not s.name.isascii() or s.name in ("max", "min"):
                self.add("MP105", f"{s.name!r} cannot be the name of a symbol")
            if s.low > s.high or s.low < 0:
                self.add("MP105", f"the symbol {s.name} has the range [{s.low}, {s.high}]")
        for name in sorted({n for n in names if names.count(n) > 1}):
            self.add("MP105", f"the symbol {name} is declared twice")

    def _input(self, item: Input) -> None:
        value = item.value
        self._value(value, f"input %{value.name}")
        if item.role == "symbol" and value.type != ScalarType("int"):
            self.add("MP104", f"input %{value.name} is a symbol but not an int")
        if value.alias and value.alias.kind == "inplace":
            self.add("MP104", f"input %{value.name} cannot overwrite another value")
        self._define(value)

    def _define(self, value: Value, op: Op | None = None) -> None:
        if value.name in self.defined:
            self.add("MP104", f"the name %{value.name} is defined twice", op)
        self.defined[value.name] = value

    def _op(self, op: Op) -> None:
        label = describe(op)
        before = len(self.found)
        for name in dict.fromkeys(op.operands):
            if name not in self.defined:
                self.add("MP104", f"{label} uses %{name}, which is not defined before it", op)
        for _, arg in op.args:
            self._sizes(arg, label, op)
        for value in op.values:
            self._value(value, f"result %{value.name} of {op.kind}", op)
        self._phases(op, label)
        if len(self.found) == before:
            self._contents(op, label)
        for value in op.values:
            self._define(value, op)

    def _phases(self, op: Op, label: str) -> None:
        for s in op.scratch:
            if s.size_bytes < 0 or s.alignment < 1 or not 0 <= s.start < s.end:
                scratch = f"{s.size_bytes} B of scratch in phases [{s.start}, {s.end})"
                self.add("MP104", f"{label} has {scratch}", op)
        if op.births and (len(op.births) != len(op.results) or min(op.births) < 0):
            self.add("MP104", f"{label} has the births {op.births} of {len(op.results)} results", op)

    def _contents(self, op: Op, label: str) -> None:
        """What only makes sense once operands, sizes and aliases of ``op`` are known to be sound."""
        types = {name: self.defined[name].type for name in op.operands}
        wrong = list(call_faults(op, types, self.deep))
        if op.loop and not wrong:
            wrong = [("MP104", message) for message in loop_faults(op, op.loop, types, self.graph)]
        elif self.deep and not wrong:
            wrong = list(type_faults(op, types))
        for code, message in wrong:
            self.add(code, f"{label}: {message}", op)
        if op.loop and not wrong:
            inner = _body_faults(op.loop, self.deep)
            self.found += [Fault(f.code, f"{label}, body: {f.message}", f.where) for f in inner]

    def _value(self, value: Value, label: str, op: Op | None = None) -> None:
        type_, alias = value.type, value.alias
        if isinstance(type_, TensorType):
            self._sizes((*type_.shape, *(type_.strides or ())), label, op, least=0)
            if type_.strides is not None and len(type_.strides) != len(type_.shape):
                rank = f"{len(type_.shape)} dimensions and {len(type_.strides)} strides"
                self.add("MP104", f"{label} has {rank}", op)
        elif type_.name not in ("int", "float", "bool"):
            self.add("MP104", f"{label} has the unknown type {type_.name!r}", op)
        if alias is None:
            return
        self._sizes(alias.offset_bytes, label, op)
        base = self.defined.get(alias.of)
        if base is None:
            self.add("MP104", f"{label} aliases %{alias.of}, which is not defined before it", op)
        elif isinstance(base.type, ScalarType) or isinstance(type_, ScalarType):
            self.add("MP104", f"{label} aliases %{alias.of}, but numbers have no bytes to share", op)

    def _sizes(self, arg: Arg, label: str, op: Op | None = None, least: int | None = None) -> None:
        """Every size in ``arg`` must have a value at the upper bound of its (declared) symbols."""
        for size in _leaves(arg):
            if isinstance(size, Sym):
                try:
                    size.upper(self.graph.symbol_table)
                except (UserError, RecursionError) as e:
                    reason = e.message if isinstance(e, UserError) else "it nests too deeply"
                    self.add("MP105", f"{label}, size {{{size}}}: {reason}", op)
            elif least is not None and isinstance(size, int) and size < least:
                self.add("MP104", f"{label} has the size or stride {size}", op)

    def _memory(self) -> None:
        """Aliases must stay inside the bytes that they share, and reads see no overwritten bytes."""
        upper = _extents(self.graph, {s.name: s.high for s in self.graph.symbols})
        lower = _extents(self.graph, {s.name: s.low for s in self.graph.symbols})
        beyond = (*_alias_faults(self.graph, upper), *_alias_faults(self.graph, lower))
        self.found += [*dict.fromkeys(beyond), *_stale_faults(self.graph, upper)]


def _body_faults(loop: Loop, deep: bool) -> Iterator[Fault]:
    """Faults of the body as it stands; if none and ``deep``, those of its tiles of each shape."""
    found = faults(loop.body)
    yield from found
    if deep and not found:
        tiles = (tile for tile, _ in tile_shapes(loop))
        each = (f for tile in tiles for f in faults(specialize(loop.body, tile), deep=True))
        yield from dict.fromkeys(each)


def describe(op: Op) -> str:
    """How messages name an op: its first result and its kind."""
    return f"%{op.result.name} = {op.kind}" if op.values else op.kind


def _leaves(arg: Arg) -> Iterator[Arg]:
    if isinstance(arg, tuple):
        for item in arg:
            yield from _leaves(item)
    else:
        yield arg


@dataclass(frozen=True, slots=True)
class _Extent:
    """The half-open byte range of a value in the storage of ``root``; ``fixed`` without symbols."""

    root: str
    start: int
    end: int
    fixed: bool


def _extents(graph: Graph, symbols: Mapping[str, int]) -> dict[str, _Extent]:
    table: dict[str, _Extent] = {}
    for value in graph.values:
        if not isinstance(value.type, TensorType):
            continue
        root, start, fixed = value.name, 0, value.type.is_static
        if value.alias:
            base, offset = table[value.alias.of], value.alias.offset_bytes
            root = base.root
            start = base.start + (offset.evaluate(symbols) if isinstance(offset, Sym) else offset)
            fixed = fixed and base.fixed and isinstance(offset, int)
        end = start + value.type.bound(symbols).nbytes
        table[value.name] = _Extent(root, start, end, fixed)
    return table


def _alias_faults(graph: Graph, extents: Mapping[str, _Extent]) -> Iterator[Fault]:
    owned = {name: (e.start, e.end) for name, e in extents.items() if e.root == name}
    for op in graph.ops:
        for value in op.values if op.loop and op.loop.stream else ():
            here = extents[value.name]
            start, end = owned[here.root]
            owned[here.root] = (min(start, here.start), max(end, here.end))
    for value in (i.value for i in graph.inputs):
        yield from _alias_fault(value, None, extents, owned)
    for op in graph.ops:
        shared = {extents[name].root for name in op.operands if name in extents}
        for value in op.values:
            yield from _alias_fault(value, op, extents, owned)
            if value.alias and extents[value.name].root not in shared:
                where = op.loc.where() if op.loc else None
                message = f"{describe(op)} aliases %{value.alias.of} without using it"
                yield Fault("MP104", message, where)


def _alias_fault(
    value: Value,
    op: Op | None,
    extents: Mapping[str, _Extent],
    owned: Mapping[str, tuple[int, int]],
) -> Iterator[Fault]:
    """``owned`` are the bytes of each storage, which results of streams may widen."""
    if value.alias is None or not isinstance(value.type, TensorType):
        return
    here = extents[value.name]
    first, end = owned[here.root]
    where = op.loc.where() if op and op.loc else None
    label = describe(op) if op else f"input %{value.name}"
    if here.end > here.start and (here.start < first or here.end > end):
        bytes_ = f"bytes [{here.start:,}, {here.end:,})"
        message = f"{label} shares {bytes_} of %{here.root}, which has {end - first:,} B"
        yield Fault("MP104", message, where)
    if here.start % value.type.dtype.itemsize:
        message = f"{label} starts {here.start:,} B into %{here.root}"
        yield Fault("MP104", f"{message}, not a multiple of its item size", where)


def _stale_faults(graph: Graph, extents: Mapping[str, _Extent]) -> Iterator[Fault]:
    """Reads of values whose bytes an in-place result has overwritten since."""
    older: dict[str, list[str]] = {}
    stale: dict[str, str] = {}
    for value in (i.value for i in graph.inputs):
        if value.name in extents:
            older.setdefault(extents[value.name].root, []).append(value.name)
    for op in graph.ops:
        for name in dict.fromkeys((*op.operands, *(v.alias.of for v in op.values if v.alias))):
            if name in stale:
                where = op.loc.where() if op.loc else None
                message = f"{describe(op)} reads %{name}, whose bytes %{stale[name]} has overwritten"
                yield Fault("MP104", message, where)
        for value in op.values:
            if value.name not in extents:
                continue
            here = extents[value.name]
            names = older.setdefault(here.root, [])
            if value.alias and value.alias.kind == "inplace":
                for name in names:
                    if _overlap(extents[name], here):
                        stale.setdefault(name, value.name)
            names.append(value.name)
    for name in dict.fromkeys(ref.name for ref in refs(graph.outputs)):
        if name in stale:
            yield Fault("MP104", f"the output %{name} has been overwritten by %{stale[name]}")


def _overlap(a: _Extent, b: _Extent) -> bool:
    """Whether two values of one storage may share bytes; with symbolic sizes they may always."""
    return not (a.fixed and b.fixed) or (a.start < b.end and b.start < a.end)
