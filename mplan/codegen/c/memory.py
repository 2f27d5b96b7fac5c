"""Where every value of a planned graph lies: the arrays of the emitted program.

Activations and inputs lie in one byte array per region, at the offsets of the plan. Weights lie in
one constant struct whose members stand at the plan's offsets, too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mplan.codegen.c.tensors import Array, Tensor
from mplan.codegen.c.text import CTYPES, identifier, unique_names
from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.graph import Graph, Input, Op, Value
from mplan.ir.plan import Placement, Plan
from mplan.ir.rings import Arriving, row_inputs
from mplan.ir.storage import Lowered, Storages
from mplan.ir.types import DType, TensorType

#: Bytes; of weights that are not planned.
_WEIGHT_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Member:
    """A weight: a member of the struct, ``offset_bytes`` from its start."""

    value: Value
    name: str
    source: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Area:
    """The array that holds a region: its C symbol, the macro that makes addresses in it, its size.

    ``section`` is where it lies if nothing else is said; empty for where other data does.
    """

    region: str
    symbol: str
    macro: str
    size_bytes: int
    section: str = ""


class Memory:
    """The addresses of a planned graph's values.

    Regions in ``sections`` have a section of their own, the others lie where data does. UserError
    MP504 if the graph and the plan do not belong together, or if weights share a region with
    activations. Inputs that are not planned are read where the caller has them.
    """

    def __init__(
        self,
        graph: Graph,
        lowered: Lowered,
        plan: Plan,
        name: str,
        sections: Collection[str] = (),
    ) -> None:
        if lowered.problem.digest != plan.problem or len({*lowered.op_of}) != len(graph.ops):
            raise UserError("MP504", f"the plan is not one of the graph {graph.name}")
        self.graph = graph
        self.lowered = lowered
        self.plan = plan
        self.name = name
        self._values = graph.value_table
        self._start = _starts(graph, lowered.storages)
        self._placed: dict[int, list[Placement]] = {}
        for placement in sorted(plan.placements, key=lambda p: (p.start, p.end)):
            self._placed.setdefault(placement.buffer, []).append(placement)
        self.members = self._members()
        self._member_of = {m.value.name: m for m in self.members}
        self.arriving = arriving_rows(graph, lowered)
        self._outside = {
            item.value.name: Array(f"{name}_input_{number}_at", is_pointer=True)
            for number, item in enumerate(user_inputs(graph))
            if item.value.name not in lowered.buffer_of.keys() | self.arriving.keys()
        }
        self.areas = self._areas(sections)
        self._macro_of = {a.region: Array(a.macro, is_macro=True) for a in self.areas}

    def tensor(self, name: str, position: int) -> Tensor:
        """The value ``name`` as it lies when the step at ``position`` of the plan runs."""
        value = self._values[name]
        type_ = static_type(value)
        root = self.lowered.storages.root[name]
        offset = self._start[name]
        if root in self._member_of:
            member = self._member_of[root]
            if type_.dtype is not static_type(member.value).dtype:
                raise UnsupportedError(
                    "MP501", f"a view shows the weight {member.source} as another type"
                )
            return self._view(Array(f"{self.name}_weights.{member.name}"), type_, offset)
        if root in self._outside:
            return self._view(self._outside[root], type_, offset)
        buffer, before = self.lowered.pieces.get(name, (self.lowered.buffer_of.get(root, -1), 0))
        place = self._place(root, buffer, position)
        return self._view(self._macro_of[place.region], type_, place.offset + offset - before)

    def scratch(self, op: Op, position: int) -> tuple[Tensor, ...]:
        """The scratch of ``op`` as arrays of bytes."""
        found = []
        for buffer in self.lowered.scratch_of[self.graph.ops.index(op)]:
            place = self._place(op.kind, buffer, position)
            size = self.lowered.problem.buffers[buffer].size_bytes
            found.append(Tensor(self._macro_of[place.region], DType.U8, (size,), (1,), place.offset))
        return tuple(found)

    def pushed(self, name: str) -> bool:
        """Whether ``name`` is a user's input that lies in no memory: its rows arrive one by one."""
        return name in self.arriving

    def weight(self, name: str) -> bool:
        """Whether the bytes of ``name`` are constant."""
        return self.lowered.storages.root[name] in self._member_of

    def moved(self, buffer: int, region: str, position: int, arriving: bool) -> tuple[str, int]:
        """The address (as a byte pointer) and size of a buffer's copy in ``region``.

        It is the copy that starts at ``position`` if ``arriving``, else the one live before it.
        """
        for p in self._placed[buffer]:
            live = p.start == position if arriving else p.start < position <= p.end
            if p.region == region and live:
                size = self.lowered.problem.buffers[buffer].size_bytes
                return f"{self._macro_of[region].name}(unsigned char, {p.offset})", size
        raise UserError("MP504", f"buffer {buffer} is not in {region} at position {position}")

    @property
    def weights_bytes(self) -> int:
        """The size of the weights' struct."""
        return max((m.offset_bytes + m.size_bytes for m in self.members), default=0)

    def _view(self, array: Array, type_: TensorType, offset_bytes: int) -> Tensor:
        if offset_bytes % type_.dtype.itemsize:
            size = type_.dtype.itemsize
            raise UserError(
                "MP504",
                f"a {CTYPES[type_.dtype]} lies at {offset_bytes}; it needs {size}-byte alignment",
            )
        shape = tuple(n for n in type_.shape if isinstance(n, int))
        return Tensor(array, type_.dtype, shape, type_.element_strides, offset_bytes)

    def _place(self, name: str, buffer: int, position: int) -> Placement:
        if buffer not in self._placed:
            raise UserError(
                "MP504",
                f"%{name} is not planned",
                help="plan with Layout(arena, weights=…, inputs=arena)",
            )
        places = self._placed[buffer]
        live = [p for p in places if p.start <= position < p.end]
        return live[0] if live else places[-1]

    def _members(self) -> tuple[Member, ...]:
        """The weights in the order of their planned offsets; unplanned ones follow each other."""
        constant = [i for i in self.graph.inputs if i.role in ("param", "buffer", "const")]
        names = unique_names([i.source or i.value.name for i in constant])
        found, end = [], 0
        for item, name in zip(constant, names, strict=True):
            size = self.lowered.storages.nbytes[item.value.name]
            buffer = self.lowered.buffer_of.get(item.value.name)
            if buffer is not None:
                offset = self._placed[buffer][0].offset
            else:
                offset = -(-end // _WEIGHT_ALIGNMENT) * _WEIGHT_ALIGNMENT
                end = offset + size
            found.append(Member(item.value, name, item.source or item.value.name, offset, size))
        return tuple(sorted(found, key=lambda m: (m.offset_bytes, m.size_bytes)))

    def _areas(self, sections: Collection[str]) -> tuple[Area, ...]:
        weights = {self.lowered.buffer_of.get(m.value.name) for m in self.members}
        heights: dict[str, int] = {}
        constant: set[str] = set()
        for buffer, places in self._placed.items():
            for p in places:
                if buffer in weights:
                    constant.add(p.region)
                    continue
                end = p.offset + self.lowered.problem.buffers[buffer].size_bytes
                heights[p.region] = max(heights.get(p.region, 0), end)
        if constant & set(heights):
            both = ", ".join(sorted(constant & set(heights)))
            raise UserError("MP504", f"weights and activations are both planned into {both}")
        regions = [r.name for r in self.lowered.problem.regions if r.name not in constant]
        used = [r for r in regions if r in heights or r == regions[0]]
        return tuple(self._area(r, r == regions[0], heights.get(r, 0), r in sections) for r in used)

    def _area(self, region: str, first: bool, size_bytes: int, apart: bool) -> Area:
        label = "arena" if first else identifier(region)
        return Area(
            region,
            f"{self.name}_{label}",
            label.upper(),
            size_bytes,
            f".mplan.{region}" if apart else "",
        )


def _starts(graph: Graph, found: Storages) -> dict[str, int]:
    """The distance of every value from the start of its storage, in bytes."""
    starts: dict[str, int] = {}
    for value in graph.values:
        alias = value.alias
        offset = alias.offset_bytes if alias and isinstance(alias.offset_bytes, int) else 0
        starts[value.name] = offset + (starts[alias.of] if alias else found.lead[value.name])
    return starts


def arriving_rows(graph: Graph, lowered: Lowered) -> dict[str, Arriving]:
    """The inputs of ``graph`` that lie in no memory, and how their rows arrive."""
    return {name: rows for name, rows in row_inputs(graph).items() if name not in lowered.buffer_of}


def static_type(value: Value) -> TensorType:
    """The type of a tensor whose sizes are numbers and whose elements C can hold.

    UnsupportedError MP502 for anything else.
    """
    type_ = value.type
    if not isinstance(type_, TensorType) or not type_.is_static:
        raise UnsupportedError(
            "MP502",
            f"%{value.name} has no fixed shape; C code is emitted for static shapes only",
            help="capture the model without dynamic_shapes",
        )
    if type_.dtype not in CTYPES:
        raise UnsupportedError(
            "MP502", f"%{value.name} is {type_.dtype.torch_name}, which C code cannot hold"
        )
    return type_


def user_inputs(graph: Graph) -> tuple[Input, ...]:
    """The inputs that the caller passes. UnsupportedError MP502 if one is a number."""
    for item in graph.inputs:
        if item.role == "symbol":
            raise UnsupportedError("MP502", f"the input %{item.value.name} is a size")
    return tuple(i for i in graph.inputs if i.role == "input")
