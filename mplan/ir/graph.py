"""The graph: frozen SSA in schedule order, with explicit aliases.

The order of ``Graph.ops`` *is* the schedule. Arguments refer to values by name (``Ref``), results
carry type and alias, so a rewrite never leaves a stale copy of a type behind. Views and in-place
results name the value whose bytes they share; lifetimes follow from that without an alias analysis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mplan.diagnostics import Where
from mplan.ir.types import Dim, DType, ScalarType, Sym, Symbol, TensorType, Type

Role = Literal["input", "param", "buffer", "const", "symbol"]


@dataclass(frozen=True, slots=True)
class Loc:
    """Where an op comes from: the user's file and line, and the path of the module in the model."""

    file: str = ""
    line: int = 0
    module: str = ""

    def where(self) -> Where | None:
        """The place for an error message."""
        return Where(self.file, self.line) if self.file else None

    def __str__(self) -> str:
        """``file:line (module)`` without the unknown parts."""
        place = f"{self.file}:{self.line}" if self.file else ""
        return f"{place} ({self.module})".strip() if self.module else place


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of the value called ``name``."""

    name: str


Arg: TypeAlias = "Ref | int | float | bool | str | DType | Sym | tuple[Arg, ...] | None"


@dataclass(frozen=True, slots=True)
class Alias:
    """A result shares the bytes of ``of``, ``offset_bytes`` after its first element.

    A ``view`` shows them; an ``inplace`` result has overwritten them, so no later op may read ``of``
    or another view of the same bytes that is older than this result. The result of a stream may begin
    before its operand (``offset_bytes`` below 0) or end after it: its rows follow those that die.
    """

    of: str
    kind: Literal["view", "inplace"] = "view"
    offset_bytes: Dim = 0


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value. Names are unique in a graph."""

    name: str
    type: Type
    alias: Alias | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """A graph input: its role and the name under which the user knows it (``layer1.weight``).

    ``donated`` inputs may be freed or overwritten after their last use.
    """

    value: Value
    role: Role = "input"
    source: str = ""
    donated: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An iteration axis of a loop: ``extent`` positions, ``step`` at a time.

    The body knows the first position of its tile as the symbol ``name`` and the tile's length as
    ``name_len`` (less than ``step`` in the last tile when ``step`` does not divide ``extent``).
    """

    name: str
    extent: int
    step: int


@dataclass(frozen=True, slots=True)
class Slice:
    """How a tile of an axis selects positions of dimension ``dim`` of an operand.

    The tile ``[o, o + n)`` selects ``[o * scale + offset, (o + n - 1) * scale + offset + extent)``;
    the defaults select the tile itself. A convolution has its stride as ``scale``, minus its padding
    as ``offset`` and the reach of its kernel as ``extent``; positions outside read as zero.
    """

    dim: int
    axis: str
    scale: int = 1
    offset: int = 0
    extent: int = 1


@dataclass(frozen=True, slots=True)
class Window:
    """What the body sees of an operand: its slices along some dimensions; none means all of it."""

    operand: str
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True)
class Concat:
    """A result of the loop is put together from the tiles: dimension ``dims[i]`` along ``axes[i]``."""

    dims: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Carry:
    """A result is a running state: it starts as the value ``init``; the body maps old to new.

    The body must compute a reduction that does not depend on the tiling, such as a running maximum.
    """

    init: str


@dataclass(frozen=True, slots=True)
class Ring:
    """The last positions of a value of a stream: ``rows`` of a tile's rows and ``pixels`` more.

    A position is what the value has at one row and column. The ring of an input of the body says that
    its rows arrive one by one and only these stay; without one they are read where the operand lies.
    """

    value: str
    rows: int
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """Execution of a tile position by position, in the order of rows (``up``: the last row first).

    A step makes one ``unit`` of a result, or up to so many ``pixels`` of a row, and before it what that
    needs and does not exist yet. Each storage of the body that is not a result lies in its ring;
    ``Op.scratch`` holds the rings in order. Values that only their own position is made from are passed
    on, the pixels of a step together.
    """

    unit: Literal["row", "pixel"]
    rings: tuple[Ring, ...]
    up: bool = False
    pixels: int = 1


@dataclass(frozen=True, slots=True)
class Loop:
    """Partial execution of ``body`` over tiles, axes nested in order (the last runs fastest).

    The body's inputs are the windows in order, then the carried states in order of the results. Its
    outputs are the results: a tile for ``Concat``, the next state for ``Carry``.

    With a ``stream`` the body is written for whole tensors, and of it a tile executes what its
    results need (``mplan.ir.geometry`` says what that is): windows have no slices, results are
    concatenated along all axes. A stream without axes has one tile.
    """

    axes: tuple[Axis, ...]
    windows: tuple[Window, ...]
    results: tuple[Concat | Carry, ...]
    body: Graph
    stream: Stream | None = None


@dataclass(frozen=True, slots=True)
class Scratch:
    """Bytes that an op needs only while it runs: during its phases ``[start, end)``."""

    size_bytes: int
    start: int = 0
    end: int = 1
    alignment: int = 1


@dataclass(frozen=True, slots=True)
class Op:
    """An operator: ``kind`` names a row of the op table, ``args`` follow its schema by name.

    A result is None where the schema has one that this call does not compute. An op that frees
    scratch before it claims more memory runs in *phases*; ``births`` says for each result in which
    phase its bytes are claimed (empty: all in phase 0), so later results may lie where scratch was.
    """

    kind: str
    args: tuple[tuple[str, Arg], ...]
    results: tuple[Value | None, ...]
    loc: Loc | None = None
    scratch: tuple[Scratch, ...] = ()
    births: tuple[int, ...] = ()
    loop: Loop | None = None

    def arg(self, name: str, default: Arg = None) -> Arg:
        """The argument called ``name``, or ``default``."""
        for key, value in self.args:
            if key == name:
                return value
        return default

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of all values that the op uses, in order, with repetitions."""
        found = [ref.name for _, arg in self.args for ref in refs(arg)]
        if self.loop:
            found += [w.operand for w in self.loop.windows]
            found += [r.init for r in self.loop.results if isinstance(r, Carry)]
        return tuple(found)

    @property
    def values(self) -> tuple[Value, ...]:
        """The results that exist."""
        return tuple(v for v in self.results if v is not None)

    @property
    def phases(self) -> int:
        """How many phases the op has; at least one."""
        return max([1, *(s.end for s in self.scratch), *(b + 1 for b in self.births)])

    def birth(self, number: int) -> int:
        """The phase in which the bytes of result ``number`` are claimed."""
        return self.births[number] if self.births else 0

    @property
    def result(self) -> Value:
        """The only (or first) result."""
        return self.values[0]

    @property
    def is_view(self) -> bool:
        """Whether the op moves no bytes: all its results are views."""
        return bool(self.values) and all(v.alias and v.alias.kind == "view" for v in self.values)


@dataclass(frozen=True, slots=True)
class Graph:
    """A program: ``outputs`` are refs, or constants where the user's model returns one."""

    name: str
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Arg, ...]
    symbols: tuple[Symbol, ...] = ()

    def __str__(self) -> str:
        """The text form, which ``mplan.ir.parser.parse`` reads back."""
        from mplan.ir.printer import print_graph

        return print_graph(self)

    @property
    def symbol_table(self) -> dict[str, Symbol]:
        """The symbols by name."""
        return {s.name: s for s in self.symbols}

    @property
    def values(self) -> Iterator[Value]:
        """All values: inputs, then results in schedule order."""
        yield from (i.value for i in self.inputs)
        for op in self.ops:
            yield from op.values

    @property
    def value_table(self) -> dict[str, Value]:
        """The values by name."""
        return {v.name: v for v in self.values}

    @property
    def producers(self) -> dict[str, Op]:
        """The op that yields each result."""
        return {v.name: op for op in self.ops for v in op.values}

    @property
    def users(self) -> dict[str, list[Op]]:
        """The ops that use each value, in schedule order; values without users are absent."""
        table: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.operands):
                table.setdefault(name, []).append(op)
        return table

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of all values that are returned, with repetitions."""
        return tuple(ref.name for ref in refs(self.outputs))


def refs(arg: Arg) -> Iterator[Ref]:
    """All refs inside an argument, in order."""
    if isinstance(arg, Ref):
        yield arg
    elif isinstance(arg, tuple):
        for item in arg:
            yield from refs(item)


def substitute(arg: Arg, names: Mapping[str, str]) -> Arg:
    """``arg`` with every ref to a key of ``names`` replaced."""
    if isinstance(arg, Ref):
        return Ref(names.get(arg.name, arg.name))
    if isinstance(arg, tuple):
        return tuple(substitute(item, names) for item in arg)
    return arg


def tensor_type(value: Value) -> TensorType:
    """The tensor type of ``value``; TypeError for a scalar."""
    if isinstance(value.type, ScalarType):
        raise TypeError(f"%{value.name} is a scalar")
    return value.type
