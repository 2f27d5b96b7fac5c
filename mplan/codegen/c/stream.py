"""C for streams: a table of stages that one small function walks, and a switch with their kernels.

The order is that of ``mplan.ir.streaming``, position by position; the rings are the op's scratch. A
stream keeps where it stands in a struct, so that one whose input arrives by rows can wait for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mplan.codegen.c.memory import Memory, static_type, user_inputs
from mplan.codegen.c.render import function
from mplan.codegen.c.rows import LARGEST, ROWS, Row, image_type, pixel, pixel_offset
from mplan.codegen.c.stream_steps import Local, Pixels, accumulated, pointwise
from mplan.codegen.c.table import TABLE, Site, kernel
from mplan.codegen.c.tensors import Code, Function, Tensor
from mplan.codegen.c.text import CTYPES, call, identifier
from mplan.diagnostics import UnsupportedError
from mplan.ir.geometry import ONLY, SAME, Access, Spatial
from mplan.ir.graph import Graph, Loop, Op, Ref, tensor_type
from mplan.ir.plan import Plan
from mplan.ir.rings import Capacity, capacities, lines_of, position_bytes
from mplan.ir.storage import Lowered, storages
from mplan.ir.streaming import Flow, Line, Node, Read, Stage, dims_of, flow_of
from mplan.ir.types import TensorType
from mplan.ir.verify_stream import lies_by_rows


@dataclass(frozen=True, slots=True)
class Image:
    """An ``image_t`` as the template shows it, with the name of the storage."""

    name: str
    data: str
    outside: bool
    height: int
    width: int
    bytes: int
    origin: int = 0
    positions: int = 0
    step_y: int = 0
    step_x: int = 0


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage as the template shows it; its reads are ``[first, end)`` in the table."""

    number: int
    what: str
    first: int
    end: int
    reduces: bool


@dataclass(frozen=True, slots=True)
class Case:
    """The statements of a stage's step."""

    number: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArrivingRows:
    """The input that arrives row by row: its number, element type and size, and its struct.

    All ``count`` rows come once in each of the ``scans``.
    """

    index: int
    ctype: str
    state: str
    count: int
    row_elements: int
    scans: int


def pushed_input(graph: Graph, memory: Memory) -> ArrivingRows | None:
    """The input of ``graph`` that arrives by rows, if one does."""
    found = memory.arriving
    for index, item in enumerate(user_inputs(graph)):
        if item.value.name in found:
            type_, rows = static_type(item.value), found[item.value.name]
            elements = type_.nbytes // type_.dtype.itemsize // rows.rows
            ctype = CTYPES[type_.dtype]
            return ArrivingRows(index, ctype, _state(memory), rows.rows, elements, rows.scans)
    return None


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of the stream at a position of a plan: what it makes, with what ops, of which line."""

    position: int
    stage: int
    name: str
    kind: str
    where: str


def planned_stages(graph: Graph, lowered: Lowered, plan: Plan) -> tuple[PlannedStage, ...]:
    """The stages of all streams, in the order of the plan."""
    found = []
    for position, step in enumerate(plan.order):
        loop = graph.ops[lowered.op_of[step]].loop
        if loop is None or loop.stream is None:
            continue
        flow = flow_of(loop)
        for number, stage in enumerate(flow.stages):
            ops = _ops(flow, stage)
            where = str(ops[-1].loc) if ops and ops[-1].loc else ""
            found.append(PlannedStage(position, number, stage.out, _work(ops), where))
    return tuple(found)


def _ops(flow: Flow, stage: Stage) -> list[Op]:
    """The ops of a stage, none where it takes a row of an input."""
    return [op for n in stage.nodes for op in flow.nodes[n].ops]


def _work(ops: Sequence[Op]) -> str:
    """What a stage of ``ops`` does, in words."""
    return ", ".join(op.kind for op in ops) or "a row of the input"


def has_rows(op: Op, rule: Spatial) -> bool:
    """Whether C is generated for ``op`` inside of a stream, where it has the geometry ``rule``.

    Streams take one image at a time.
    """
    shape = tensor_type(op.result).shape
    if len(shape) == 4 and shape[0] != 1:
        return False
    alike = all(reach in (SAME, ONLY) for access in rule.accesses for reach in access.reach)
    summed = op.kind == "mplan.qmean" if rule.reduces else alike and op.kind in TABLE
    return op.kind in ROWS or summed


def _state(memory: Memory) -> str:
    return f"{memory.name}_rows"


@kernel("mplan.loop")
def stream(site: Site) -> Code:
    """A stream, as a function of its own.

    One whose input arrives by rows is called with ``fresh`` and returns 1 while it waits for rows.
    """
    loop = site.op.loop
    if loop is None or loop.stream is None:
        raise UnsupportedError("MP501", "a loop that is no stream")
    assert isinstance(site.memory, Memory)
    return _Stream(site, loop, site.memory).code()


def _pushed_rows(memory: Memory, ctype: str, scans: int) -> Function:
    """The state of an input that arrives by rows."""
    return function(_state(memory), "pushed_rows", ctype=ctype, scans=scans)


class _Stream:
    def __init__(self, site: Site, loop: Loop, memory: Memory) -> None:
        assert loop.stream is not None
        self.site, self.memory = site, memory
        self.up, self.pixelwise = loop.stream.up, loop.stream.unit == "pixel"
        self.pixels = loop.stream.pixels
        self.back = self.up and self.pixelwise
        self.flow = flow_of(loop)
        self.lines = lines_of(loop, self.flow)
        self.root = storages(loop.body).root
        self.types = {v.name: v.type for v in loop.body.values if isinstance(v.type, TensorType)}
        self.dims = dims_of(self.flow.nodes)
        self.name = f"{memory.name}_{identifier(site.op.result.name)}"
        self.inner = self.flow.passed_on()
        self.capacities: dict[str, Capacity] = capacities(loop)
        scratch = memory.scratch(site.op, site.position)
        rings, shared = scratch[: len(self.capacities)], scratch[len(self.capacities) :]
        self.rings = dict(zip(self.capacities, rings, strict=True))
        pairs = zip(loop.windows, loop.body.inputs, strict=True)
        self.operands = {item.value.name: window.operand for window, item in pairs}
        outs = zip(loop.body.output_names, site.op.values, strict=True)
        self.results = {self.root[name]: value.name for name, value in outs}
        sources = [name for name in self.operands if name in self.dims and name not in self.rings]
        self.index = {n: i for i, n in enumerate([*sources, *(n.out for n in self.flow.nodes)])}
        self.local = Local(memory, self.operands, self.types, {}, shared)

    def code(self) -> Code:
        """The call, with the function and its tables."""
        for node in self.flow.nodes:
            for op, rule in zip(node.ops, node.rules, strict=True):
                self._site(op).require(
                    has_rows(op, rule),
                    "has no kernel by rows; streams are emitted for int8 images, one at a time",
                )
        pushes = [n.out for n in self.flow.nodes if self._pushed(n)]
        self.site.require(len(pushes) < 2, "with rows of several inputs that arrive")
        self.site.require(not (pushes and self.up), "from the last row up, of rows that arrive")
        stages = list(enumerate(self.flow.stages))
        codes = [self._case(stage) for _, stage in stages]
        types = function("stream_t")
        walker = function("stream_next", needs=(types,))
        called = [f for code in codes for f in code.functions]
        images = [[self._image(n, *lines) for n in self.index] for lines in self.lines]
        made = function(
            self.name,
            "stream",
            (walker, image_type(), *called),
            stages=[self._stage_view(number, stage) for number, stage in stages],
            reads=[self._read(r) for _, stage in stages for r in self._made(stage)],
            drivers=self.flow.drivers,
            spans=[self._spans(*lines) for lines in self.lines],
            images=images,
            outside=[(i, image.data) for i, image in enumerate(images[0]) if image.outside],
            cases=[Case(number, code.lines) for number, code in enumerate(codes)],
            position=self.site.position,
            pixels=self.pixels if self.pixelwise else 0,
            up=int(self.up),
            pushes=bool(pushes),
        )
        if pushes:
            return Code((f"if ({self.name}(fresh)) {{", "    return 3;", "}"), (made,))
        return Code((f"{self.name}();",), (made,))

    def _pushed(self, node: Node) -> bool:
        return not node.ops and self.memory.pushed(self.operands[node.out])

    def _stage_view(self, number: int, stage: Stage) -> StageView:
        first = sum(len(self._made(before)) for before in self.flow.stages[:number])
        what = f"{stage.out} = {_work(_ops(self.flow, stage))}"
        return StageView(number, what, first, first + len(self._made(stage)), stage.reduces)

    def _made(self, stage: Stage) -> list[Read]:
        """What a stage reads of other stages."""
        return [read for read in stage.reads if read.source in self.flow.maker]

    def _read(self, read: Read) -> tuple[int, ...]:
        rows, cols = read.reach
        edges = (rows.low if self.up else rows.high, cols.low if self.back else cols.high)
        needs = (rows.scale, edges[0], rows.div, cols.scale, edges[1], cols.div)
        reach = f"that reaches more than {LARGEST:,} rows or columns"
        self.site.require(max(map(abs, needs)) <= LARGEST, reach)
        return (self.flow.maker[read.source], *needs)

    def _spans(self, down: Line, across: Line) -> list[tuple[int, ...]]:
        return [(*down.steps(s), *across.steps(s)) for s in self.flow.stages]

    def _image(self, name: str, down: Line, across: Line) -> Image:
        """Where a storage lies in a tile."""
        height, width = self.flow.sizes[name]
        self.site.require(max(height, width) <= LARGEST, f"with more than {LARGEST:,} rows or columns")
        tensor, step = self._place(name), self._step_bytes(name)
        seen = (name, _bytes(tensor), tensor.array.is_pointer, height, width, step)
        if name in self.results or name not in self.rings:
            return Image(*seen, step_y=width, step_x=1)
        if self._held_alone(name):
            return Image(*seen)
        row = self.capacities[name].row
        (low, high), (left, right) = (line.part.get(name, (0, 0)) for line in (down, across))
        if name in self.inner:
            return Image(*seen, -left, self.capacities[name].positions, 0, 1)
        step_y, first_row = (-row, high - 1) if self.up else (row, low)
        step_x, first_column = (-1, right - 1) if self.back else (1, left)
        positions = self.capacities[name].positions
        if not self.pixelwise and row:
            positions -= positions % row  # rows stay in one piece
        origin = -first_row * step_y - first_column * step_x
        return Image(*seen, origin, positions, step_y, step_x)

    def _single(self, name: str) -> bool:
        """Whether of a storage there is one pixel at a time."""
        return name in self.inner or (
            name in self.flow.maker and self.flow.stages[self.flow.maker[name]].reduces
        )

    def _held_alone(self, name: str) -> bool:
        """Whether a ring holds one pixel of the storage, always at the same place."""
        alone = name not in self.results and name in self.rings and self._single(name)
        return alone and self.capacities[name].positions == 1

    def _together(self, stage: Stage) -> int:
        """How many pixels of a row a stage works on together where it does not make whole rows."""
        inside = (self.capacities[self.flow.nodes[n].out].positions for n in stage.nodes[:-1])
        return self.pixels if self.pixelwise else min(inside, default=1)

    def _place(self, name: str) -> Tensor:
        """The whole of a storage, or its ring."""
        if name in self.results:
            return self.memory.tensor(self.results[name], self.site.position)
        if name in self.rings:
            return self.rings[name]
        return self.memory.tensor(self.operands[name], self.site.position)

    def _step_bytes(self, name: str) -> int:
        """The bytes from one pixel of a storage to the next."""
        tensor = self._place(name)
        if name in self.rings and name not in self.results:
            return position_bytes(self.types[name], self.flow.sizes[name])
        rows, cols = self.dims[name]
        if tensor.rank <= max(rows, cols):
            return prod(tensor.shape) * tensor.dtype.itemsize
        rest = [d for d in range(tensor.rank) if d not in (rows, cols) and tensor.shape[d] != 1]
        step = tensor.strides[cols] if tensor.shape[cols] != 1 else tensor.strides[rows]
        sound = all(tensor.strides[d] == 1 for d in rest) and len(rest) <= 1
        if tensor.shape[rows] != 1:
            sound = sound and tensor.strides[rows] == tensor.shape[cols] * step
        self.site.require(sound, f"of %{name}, whose pixels do not follow each other")
        return step * tensor.dtype.itemsize

    def _case(self, stage: Stage) -> Code:
        """What a step of a stage does; several nodes work on some pixels at a time (``_together``).

        In rings of pixels all do, but a stage that waits for no other does all that is wanted of it
        in a row at once.
        """
        first = not any(read.source in self.flow.maker for read in stage.reads)
        many = len(stage.nodes) > 1
        if self.pixelwise:
            many = (first and not self.up) or self.pixels > 1
        column = "walk.column + i" if many else "walk.column"
        together = self._together(stage) if many else 1
        widths = {across.extent(stage) for _, across in self.lines} - {0}
        code = Code()
        if many or self.pixelwise:
            count = str(together)
            if any(width % together for width in widths):
                count, left = "n", "walk.count - i"
                code = Code((f"const int32_t n = {left} < {together} ? {left} : {together};",))
        else:
            count = str(*widths) if len(widths) == 1 else "walk.count"
        for number in stage.nodes:
            code += self._node(self.flow.nodes[number], stage, column, count)
        step = f"i += {together}" if together > 1 else "++i"
        return code.block(f"for (int32_t i = 0; i < walk.count; {step})") if many else code

    def _node(self, node: Node, stage: Stage, column: str, count: str) -> Code:
        if node.reduces:
            return self._sum(node, stage, column, count)
        code = Code((), () if self._held_alone(node.out) else (pixel_offset(),))
        if not node.ops:
            return code + self._load(node, column, count)
        for op, rule in zip(node.ops, node.rules, strict=True):
            if op.kind in ROWS:
                code += self._row(node, op, rule, column, count)
            else:
                code += self._pointwise(node, op, rule, stage, column, count)
        return code

    def _row(self, node: Node, op: Op, rule: Spatial, column: str, count: str) -> Code:
        read = {a.operand: f"m + {self.index[self.root[a.operand]]}" for a in rule.accesses}
        images = {k: read[a.name] for k, a in op.args if isinstance(a, Ref) and a.name in read}
        site = self._site(op)
        return ROWS[op.kind](
            Row(site, images, self._target(node.out, column), "walk.row", column, count)
        )

    def _site(self, op: Op) -> Site:
        return Site(op, self.site.position, self.local, self.site.used)

    def _pointwise(
        self, node: Node, op: Op, rule: Spatial, stage: Stage, column: str, count: str
    ) -> Code:
        site = self._site(op)
        whole = count.isdigit() and all(self._in_one_piece(a, stage) for a in rule.accesses)
        if count != "1" and not whole:  # kernels for tensors have fixed sizes
            each = self._pointwise(node, op, rule, stage, f"{column} + k", "1")
            return each.block(f"for (int32_t k = 0; k < {count}; ++k)")
        length = int(count)
        reads = {a.operand: self._pixels(a, column, length) for a in rule.accesses}
        type_, step = self.types[node.out], self._step_bytes(node.out)
        result = Pixels(self._target(node.out, column), type_, length, step)
        code = pointwise(op, rule, site, self.local, reads, result)
        return Code(code.lines, (pixel(), *code.functions))

    def _in_one_piece(self, access: Access, stage: Stage) -> bool:
        """Whether no step of ``stage`` reads pixels of an operand across the end of their ring.

        In rings of pixels those of a step lie in one piece, counted from the first one of a row. What
        a strip reads may begin before, with a halo that others read.
        """
        name = self.root[access.operand]
        if name not in self.rings or not access.reach[1].scale:
            return True
        ahead = (a.steps(stage)[0] - a.part.get(name, (0, 0))[0] for _, a in self.lines)
        return not any(n % self.pixels for n in ahead)

    def _pixels(self, access: Access, column: str, length: int) -> Pixels:
        """What an op reads of an operand at its own position."""
        name, (rows, cols) = self.root[access.operand], access.reach
        along = length if cols.scale else 1
        type_ = self.types[access.operand]
        at = ("walk.row" if rows.scale else "0", column if cols.scale else "0")
        found = f"pixel(m + {self.index[name]}, {', '.join(at)})"
        address = f"(const {CTYPES[type_.dtype]} *)(const void *){found}"
        return Pixels(address, type_, along, self._step_bytes(name))

    def _target(self, name: str, column: str) -> str:
        """The address of a pixel that a step makes."""
        tensor, ctype = self._place(name), CTYPES[self.types[name].dtype]
        self.site.require(tensor.array.is_macro, f"that overwrites the weight %{name}")
        offset = str(tensor.offset_bytes)
        if not self._held_alone(name):
            offset += f" + pixel_offset(m + {self.index[name]}, walk.row, {column})"
        return f"{tensor.array.name}({ctype}, {offset})"

    def _load(self, node: Node, column: str, count: str) -> Code:
        """Copy pixels of a row of an input into its ring."""
        name, type_ = node.out, self.types[node.out]
        ctype, width = CTYPES[type_.dtype], self.flow.sizes[name][1]
        each = position_bytes(type_, self.flow.sizes[name])
        elements = each // type_.dtype.itemsize
        dense = lies_by_rows(type_, self.dims[name])
        self.site.require(dense, f"of %{name}, whose pixels do not follow each other")
        size = f"{each}u" if count == "1" else f"(size_t)({count}) * {each}u"
        if not self._pushed(node):
            whole = self.memory.tensor(self.operands[name], self.site.position)
            source = f"{whole.pointer} + (walk.row * {width} + {column}) * {elements}"
            return Code(tuple(call("memcpy", [self._target(name, column), source, size])))
        state = _pushed_rows(self.memory, ctype, len(self.lines))
        waits = f"walk.row >= {state.name}.end"
        if len(self.lines) > 1:  # the last scan may have gone on where this strip needed no more of it
            waits = f"tile > {state.name}.scan || {waits}"
        source = (
            f"{state.name}.data + ((walk.row - {state.name}.first) * {width} + {column}) * {elements}"
        )
        return Code(
            (
                f"if ({waits}) {{",
                f"    stream_again(&{self.name}_stream, progress + walk.stage, &walk);",
                "    return 1;",
                "}",
                *call("memcpy", [self._target(name, column), source, size]),
            ),
            (state, function("stream_again", needs=(function("stream_t"),))),
        )

    def _sum(self, node: Node, stage: Stage, column: str, count: str) -> Code:
        """Add pixels to the sums of a mean, whose result the last ones make."""
        (down, across), *_ = self.lines
        (access,) = node.rules[0].accesses
        (low, high), (left, right) = down.steps(stage), across.steps(stage)
        row, col = ("walk.row", column)
        first = (high - 1 if self.up else low, right - 1 if self.back else left)
        last = (low if self.up else high - 1, left if self.back else right - 1)
        whole = len(stage.nodes) == 1 and not self.pixelwise
        begins, ends = f"{row} == {first[0]}", f"{row} == {last[0]}"
        if not whole:
            begins += f" && {col} == {first[1]}"
            ends += (
                f" && {col} + {count} == {last[1] + 1}" if count != "1" else f" && {col} == {last[1]}"
            )
        bits = f"const int32_t ends = ({begins} ? 1 : 0) | ({ends} ? 2 : 0);"
        sums = self.rings[node.out]
        result = f"{_macro(self._place(node.out), CTYPES[self.types[node.out].dtype])}"
        source = self._pixels(access, column, 1)
        code = accumulated(
            self._site(node.ops[0]), source, _macro(sums, "int32_t"), result, count, "ends"
        )
        return (Code((bits,), (pixel(),)) + code).block()


def _bytes(tensor: Tensor) -> str:
    """The address of a tensor as one of bytes."""
    if tensor.array.is_macro:
        return f"{tensor.array.name}(unsigned char, {tensor.offset_bytes})"
    return f"(const unsigned char *)({tensor.pointer})"


def _macro(tensor: Tensor, ctype: str) -> str:
    return f"{tensor.array.name}({ctype}, {tensor.offset_bytes})"
