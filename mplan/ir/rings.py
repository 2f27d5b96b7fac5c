"""The memory of a stream: its rings, and how closely a result may follow the operand that it replaces.

Both derive from the order of the stream (``mplan.ir.streaming``); the verifier holds the rings and
aliases of a graph against them, and the pass that makes streams takes them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf, prod

from mplan.ir.geometry import Span
from mplan.ir.graph import Concat, Graph, Loop, Op, Ring, Scratch
from mplan.ir.loops import tiles
from mplan.ir.storage import storages
from mplan.ir.streaming import Flow, Line, Simulation, flow_of
from mplan.ir.types import TensorType, Type

#: Sums of a reduction are kept in elements of at least this size.
SUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Capacity:
    """A ring in numbers: the positions of a full ``row`` of it, after how many ``positions`` it begins
    anew, and how many of them are ``held``: rows end before their last positions where those of a step
    lie in one piece, so the last row may end before the ring does."""

    row: int
    positions: int
    held: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Arriving:
    """An input that arrives by rows: how many they are, and in how many ``scans`` of the image, from
    the first row to the last, they come: one for each strip of columns."""

    rows: int
    scans: int


def position_bytes(type_: TensorType, size: tuple[int, int]) -> int:
    """The bytes at one row and column of a tensor with ``size`` rows and columns."""
    return prod(n for n in type_.shape if isinstance(n, int)) * type_.dtype.itemsize // prod(size)


def tile_spans(loop: Loop, flow: Flow, tile: Mapping[str, int]) -> tuple[Span | None, Span | None]:
    """The rows and columns of the results in ``tile``; None stands for all of them."""
    spans: dict[int, Span] = {}
    root = storages(loop.body).root
    rules = {n.out: n.rules for n in flow.nodes}
    for result, out in zip(loop.results, loop.body.output_names, strict=True):
        if isinstance(result, Concat):
            for dim, axis in zip(result.dims, result.axes, strict=True):
                which = rules[root[out]][0].dims.index(dim)
                spans[which] = (tile[axis], tile[axis] + tile[f"{axis}_len"])
    return spans.get(0), spans.get(1)


def lines_of(loop: Loop, flow: Flow) -> list[tuple[Line, Line]]:
    """Rows and columns of every tile, in order; the columns of a stream by rows always ascend."""
    assert loop.stream is not None
    found = []
    for tile in tiles(loop):
        rows, cols = tile_spans(loop, flow, tile)
        back = loop.stream.up and loop.stream.unit == "pixel"
        across = Line(flow, 1, cols, back, loop.stream.pixels)
        found.append((Line(flow, 0, rows, loop.stream.up), across))
    return found


def ring_needs(loop: Loop) -> tuple[Ring, ...]:
    """The least rings that the stream works with, in the order of their values in the body."""
    assert loop.stream is not None
    flow = flow_of(loop)
    pixelwise = loop.stream.unit == "pixel"
    rows: dict[str, tuple[int, bool]] = {}
    pixels: dict[str, tuple[int, bool]] = {}
    distinct = {
        (*(tuple(sorted(line.part.items())) for line in pair),): pair for pair in lines_of(loop, flow)
    }
    for down, across in distinct.values():
        for name, count in Simulation(down, pixelwise).stay.items():
            rows[name] = max(rows.get(name, count), count)
        if pixelwise:
            for name, count in Simulation(across, False).stay.items():
                pixels[name] = max(pixels.get(name, count), count)
    inside, together = flow.passed_on(), loop.stream.pixels
    found = []
    for node in flow.nodes:
        name = node.out
        if name in inside or node.reduces:
            found.append(Ring(name, 0, 1 if node.reduces else together))
        elif name not in flow.results:
            whole, part = rows.get(name, (0, True))
            columns = sum(pixels.get(name, (0, True)))
            more = columns if part else 0
            found.append(Ring(name, whole, more) if pixelwise else Ring(name, whole + part))
    return tuple(found)


def row_inputs(graph: Graph) -> dict[str, Arriving]:
    """The operands of streams that have a ring, and how their rows are read."""
    found: dict[str, Arriving] = {}
    for loop in (op.loop for op in graph.ops):
        if loop is None or loop.stream is None:
            continue
        ringed = {ring.value for ring in loop.stream.rings}
        sizes = flow_of(loop).sizes
        for window, item in zip(loop.windows, loop.body.inputs, strict=True):
            if item.value.name in ringed:
                scans = sum(1 for _ in tiles(loop))
                found[window.operand] = Arriving(sizes[item.value.name][0], scans)
    return found


def capacities(loop: Loop) -> dict[str, Capacity]:
    """The sizes of the stream's rings, by value; the pixels of a step lie in one piece in them."""
    assert loop.stream is not None
    flow = flow_of(loop)
    lines = lines_of(loop, flow)
    types = loop.body.value_table
    sums = {n.out for n in flow.nodes if n.reduces}
    single = flow.passed_on().keys() | sums
    found = {}
    for ring in loop.stream.rings:
        type_ = types[ring.value].type
        assert isinstance(type_, TensorType)
        size = flow.sizes[ring.value]
        width = max(across.width(ring.value) for _, across in lines)
        row = _up(width, loop.stream.pixels)
        each = position_bytes(type_, size)
        if ring.value in sums:
            each = each // type_.dtype.itemsize * max(type_.dtype.itemsize, SUM_BYTES)
        if ring.value in single:
            positions, held = ring.pixels, max(min(ring.pixels, width), 1)
        else:
            positions = ring.rows * row + _up(ring.pixels + row - width, loop.stream.pixels)
            held = max(_held(*pair, ring.value, row, positions) for pair in lines)
        found[ring.value] = Capacity(row, positions, held, held * each)
    return found


def _held(down: Line, across: Line, name: str, row: int, positions: int) -> int:
    """How far the rows of a tile reach into a ring in which they begin every ``row`` positions."""
    width = across.width(name)
    begins = {i * row % positions for i in range(down.width(name))} if positions else ()
    return max((min(begin + width, positions) for begin in begins), default=0)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def scratch_of(loop: Loop) -> tuple[Scratch, ...]:
    """The scratch memory of a stream: its rings, aligned for their elements, then what its kernels
    need, which they share as they run one by one."""
    sums = {node.out for node in flow_of(loop).nodes if node.reduces}
    table = loop.body.value_table
    found = []
    for name, capacity in capacities(loop).items():
        type_ = table[name].type
        assert isinstance(type_, TensorType)
        item = max(type_.dtype.itemsize, SUM_BYTES if name in sums else 1)
        found.append(Scratch(capacity.size_bytes, alignment=item))
    inner = [s for op in loop.body.ops for s in op.scratch]
    shared = max((s.size_bytes for s in inner), default=0)
    aligned = max((s.alignment for s in inner), default=1)
    return (*found, Scratch(shared, alignment=aligned)) if shared else tuple(found)


def distance(loop: Loop, operand: str, result: str) -> int | None:
    """How many bytes before the operand the result must begin to follow it through the same memory.

    Both lie in rows of pixels; ``operand`` is an input of the body. For a stream that goes ``up`` it
    is how many bytes after the operand's end the result must end. It may be negative. None if the
    stream has several tiles, or keeps what it reads of the operand until the end.
    """
    assert loop.stream is not None
    if loop.axes:
        return None
    flow = flow_of(loop)
    types = loop.body.value_table
    source, target = types[operand].type, types[result].type
    if operand not in flow.sizes or operand in flow.maker or result not in flow.maker:
        return None
    assert isinstance(source, TensorType) and isinstance(target, TensorType)
    moved = position_bytes(source, flow.sizes[operand])
    made = position_bytes(target, flow.sizes[result])
    (down, across), *_ = lines_of(loop, flow)
    pixelwise = loop.stream.unit == "pixel"
    columns = Simulation(across, False) if pixelwise else None
    return Following(Simulation(down, pixelwise), columns, operand, result, (moved, made)).distance()


class Following:
    """How closely a result may follow an operand through the same memory.

    That derives from what a walk needs of rows and, if it goes by pixels, of columns. ``pixel_bytes``
    are those of a pixel of the operand and of the result.
    """

    def __init__(
        self,
        rows: Simulation,
        columns: Simulation | None,
        operand: str,
        result: str,
        pixel_bytes: tuple[int, int],
    ):
        moved, made = pixel_bytes
        sizes = rows.flow.sizes
        read, self.written = sizes[operand][1] * moved, sizes[result][1] * made
        self.rows = _ahead(rows, operand, result, read, self.written)
        self.made = made * columns.line.stride if columns else made
        self.columns = _ahead(columns, operand, result, moved, made) if columns else None

    def distance(self, stages: Container[int] | None = None) -> int:
        """The bytes between both; of the stages that read the operand ``stages`` count, or all."""
        begun, kept = _most(self.rows, stages)
        partly = self.written if self.columns is None else _most(self.columns, stages)[0] + self.made
        return int(max(begun + partly, kept + self.written))


def _ahead(
    walk: Simulation, operand: str, result: str, read: int, written: int
) -> dict[int, tuple[float, float]]:
    """How many bytes the result is ahead of what is read at the start of a step, per reading stage.

    One number where the position that is read is over with the step, one where it is read again.
    """
    first, end = walk.line.part[operand]
    before = walk.flow.sizes[operand][walk.line.dim] - end if walk.line.up else first
    found = {}
    for stage, fronts in walk.fronts(result, operand).items():
        ahead = [
            (step * walk.line.stride * written - (before + position) * read, again)
            for step, (position, again) in enumerate(fronts)
        ]
        found[stage] = (
            max((n for n, again in ahead if not again), default=-inf),
            max((n for n, again in ahead if again), default=-inf),
        )
    return found


def _most(
    ahead: Mapping[int, tuple[float, float]], stages: Container[int] | None
) -> tuple[float, float]:
    counted = [both for stage, both in ahead.items() if stages is None or stage in stages]
    return max(n for n, _ in counted), max(n for _, n in counted)


def stream_work(loop: Loop, cost: Callable[[Op, Mapping[str, Type]], int]) -> int:
    """What a stream costs when each op costs as much per position as it does as a whole."""
    flow = flow_of(loop)
    types = {v.name: v.type for v in loop.body.values}
    costs = [sum(cost(op, types) for op in node.ops) for node in flow.nodes]
    total = Fraction(0)
    for lines in lines_of(loop, flow):
        for node, whole in zip(flow.nodes, costs, strict=True):
            area = prod(end - first for first, end in (line.span(node) for line in lines))
            total += Fraction(whole * area, prod(node.steps))
    return int(total)
