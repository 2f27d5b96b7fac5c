"""What it costs to run an interval of a chain as one stream: bytes and multiply-accumulates.

The order of a stream is that of its last unit: what it needs of rows and columns holds for every
interval that ends there, so that one simulation per end serves all beginnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import prod

from mplan.ir.geometry import grid
from mplan.ir.rings import SUM_BYTES, Following, position_bytes
from mplan.ir.streaming import Flow, Line, Node, Simulation
from mplan.ir.types import TensorType
from mplan.passes.stream.build import Choice
from mplan.passes.stream.chain import Chain


@dataclass(frozen=True, slots=True)
class Option:
    """A way to run an interval: the bytes that live meanwhile, and its multiply-accumulates.

    ``choice`` is None for a unit that is no stream. The result may lie in the memory of ``replaced``,
    if that is not empty; ``apart_bytes`` live meanwhile if it lies elsewhere. A stream goes from node
    to node in ``steps``, each of which costs some instructions.
    """

    peak_bytes: int
    macs: int
    choice: Choice | None = None
    replaced: str = ""
    apart_bytes: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be chosen: streams by row, by pixel, and up to so many strips of columns.

    Rows that arrive do so in up to so many ``scans`` of the image, each of which makes a strip.
    """

    rows: bool = True
    pixels: bool = True
    strips: int = 64
    scans: int = 1


def options(chain: Chain, limits: Limits) -> dict[tuple[int, int], list[Option]]:
    """The ways to run units ``[first, end)``, for every such interval that can run."""
    found: dict[tuple[int, int], list[Option]] = {}
    for end in range(1, len(chain.units) + 1):
        if chain.starved(end - 1):
            continue
        if chain.units[end - 1].node is not None:
            for first, ways in _Ending(chain, end, limits).intervals():
                found[first, end] = ways
        if chain.plain(end - 1):
            plain = Option(chain.alone(end - 1), chain.units[end - 1].macs)
            found[end - 1, end] = [plain, *found.get((end - 1, end), [])]
    return found


class _Walks:
    """What the rows of a flow need, those of a walk by pixels, and the columns of that."""

    def __init__(self, flow: Flow, up: bool):
        self.down, self.across = Line(flow, 0, None, up), Line(flow, 1, None, up)

    @cached_property
    def rows(self) -> Simulation:
        return Simulation(self.down, False)

    @cached_property
    def inner(self) -> Simulation:
        return Simulation(self.down, True)

    @cached_property
    def columns(self) -> Simulation:
        return Simulation(self.across, False)


class _Ending:
    """All streams whose last unit is ``end - 1``."""

    def __init__(self, chain: Chain, end: int, limits: Limits):
        self.chain, self.end, self.limits = chain, end, limits
        low = end - 1
        dims = chain.dims_at(low)
        while low > 0 and chain.dims_at(low - 1) == dims and not chain.starved(low - 1):
            low -= 1
        self.low = low
        self.nodes: list[Node] = [u.node for u in chain.units[low:end] if u.node is not None]
        self.out = self.nodes[-1].out
        made = (n.out for n in self.nodes)
        results = [n for n in made if n == self.out or chain.last[n] >= end]
        sizes, loads = self._sources()
        self.flow = Flow([*loads, *self.nodes], results, sizes)
        self.single = self.flow.passed_on().keys() | {n.out for n in self.nodes if n.reduces}
        self.walks = {up: _Walks(self.flow, up) for up in (False, True)}
        self.followings: dict[tuple[str, Choice], Following] = {}
        self.strips = {w: self._widths(w) for w in self._strip_widths()}

    def _sources(self) -> tuple[dict[str, tuple[int, int]], list[Node]]:
        """Rows and columns of what is read from outside; pushed inputs are nodes that load it."""
        sizes = {}
        for node in self.nodes:
            for rule in node.rules:
                for read in node.reads:
                    type_ = self.chain.types[read.source]
                    assert isinstance(type_, TensorType)
                    sizes[read.source] = grid(type_, rule.dims)
        pushed = [name for name in sizes if name in self.chain.pushed]
        return sizes, [Node(name, (), (), sizes[name], sizes[name]) for name in pushed]

    def _strip_widths(self) -> list[int]:
        columns = self.nodes[-1].grid[1]
        counts = range(2, min(self.limits.strips, columns) + 1)
        found = [] if self.nodes[-1].reduces else [-(-columns // n) for n in counts]
        return list(dict.fromkeys(found))

    def _widths(self, width: int) -> tuple[dict[str, int], dict[str, int]]:
        """In strips of ``width``: the columns of each storage's widest part, and of all its parts."""
        widest: dict[str, int] = {}
        total: dict[str, int] = {}
        columns = self.nodes[-1].grid[1]
        for start in range(0, columns, width):
            line = Line(self.flow, 1, (start, min(start + width, columns)), False)
            for name, (low, high) in line.part.items():
                widest[name] = max(widest.get(name, 0), high - low)
                total[name] = total.get(name, 0) + high - low
        return widest, total

    def intervals(self) -> Iterator[tuple[int, list[Option]]]:
        """The options of each interval that ends here, the shortest first."""
        rings = dict.fromkeys(self._ways(), 0)
        work = dict.fromkeys([0, *self.strips], Fraction(0))
        for first in range(self.end - 1, self.low - 1, -1):
            node = self.nodes[first - self.low]
            unit = self.chain.units[first]
            for way in rings:
                rings[way] += self._ring(node, way)
            for width in work:
                work[width] += unit.macs * self._share(node, width)
            found = list(self._options(first, rings, work))
            if found:
                yield first, found

    def _ways(self) -> Iterator[Choice]:
        """All ways to walk; only undivided streams go up, to follow an operand."""
        units = (("row", self.limits.rows), ("pixel", self.limits.pixels))
        for unit in (unit for unit, use in units if use):
            pixelwise = unit == "pixel"
            for up, width in ((False, 0), (True, 0), *((False, w) for w in self.strips)):
                yield Choice("pixel" if pixelwise else "row", up, width)

    def _options(
        self, first: int, rings: Mapping[Choice, int], work: Mapping[int, Fraction]
    ) -> Iterator[Option]:
        chain = self.chain
        kept, dying, made = chain.around(first, self.end)
        outside = kept + sum(chain.nbytes(n) for n in (*dying, *made))
        nodes = self.nodes[first - self.low :]
        read = {r.source for n in nodes for r in n.reads}
        loads = [name for name in read if name in chain.pushed]
        if any(min(chain.readers[n]) < first or chain.last[n] >= self.end for n in loads):
            return

        def bytes_of(way: Choice) -> int:
            return outside + rings[way] + sum(self._load(name, way) for name in loads)

        for way in (way for way in rings if not way.up):
            if way.width and made != [self.out]:
                continue
            if loads and self._strips(way) > self.limits.scans:
                continue
            apart, macs = bytes_of(way), int(work[way.width])
            best, replaced = apart, ""
            turns = () if way.width else (way,) if loads else (way, replace(way, up=True))
            for turned in turns:
                saved, name = self._overlap(first, dying, turned)
                best, replaced = min((best, replaced), (bytes_of(turned) - saved, name))
            yield Option(best, macs, way, replaced, apart, self._steps(nodes, way, loads))

    def _steps(self, nodes: list[Node], way: Choice, loads: list[str]) -> int:
        """The rows of all nodes, or their pixels, in all strips."""
        count = 0
        for name in (*(node.out for node in nodes), *loads):
            rows, columns = self.flow.sizes[name]
            if way.width:
                columns = self.strips[way.width][1].get(name, 0)
            count += rows * (columns if way.unit == "pixel" else self._strips(way))
        return count

    def _strips(self, way: Choice) -> int:
        return -(-self.nodes[-1].grid[1] // way.width) if way.width else 1

    def _share(self, node: Node, width: int) -> Fraction:
        """How often the node computes its result, in strips of ``width``."""
        if not width or node.reduces:
            return Fraction(1)
        return Fraction(self.strips[width][1].get(node.out, 0), node.grid[1])

    def _ring(self, node: Node, way: Choice) -> int:
        """The bytes of a node's ring; none for what the interval yields."""
        type_ = self.chain.types[node.out]
        assert isinstance(type_, TensorType)
        pixel = position_bytes(type_, node.grid)
        if node.reduces:
            return pixel // type_.dtype.itemsize * max(type_.dtype.itemsize, SUM_BYTES)
        if node.out in self.flow.results:
            return 0
        if node.out in self.single:
            return pixel
        return self._positions(node.out, way) * pixel

    def _positions(self, name: str, way: Choice) -> int:
        walks = self.walks[way.up]
        row = self.strips[way.width][0].get(name, 0) if way.width else walks.across.width(name)
        if way.unit == "row":
            return sum(walks.rows.stay.get(name, (0, True))) * row
        whole, part = walks.inner.stay.get(name, (0, True))
        columns = sum(walks.columns.stay.get(name, (0, True)))
        return whole * row + (min(columns, row) if part else 0)

    def _load(self, name: str, way: Choice) -> int:
        """The bytes of the ring of a pushed input."""
        type_ = self.chain.types[name]
        assert isinstance(type_, TensorType)
        pixel = position_bytes(type_, self.flow.sizes[name])
        return pixel if name in self.single else self._positions(name, way) * pixel

    def _overlap(self, first: int, dying: list[str], way: Choice) -> tuple[int, str]:
        """The most bytes that the result saves in the memory of a storage that dies, and which."""
        chain, best = self.chain, (0, "")
        if self.nodes[-1].reduces or not chain.by_rows(self.out):
            return best
        out = chain.types[self.out]
        assert isinstance(out, TensorType)
        made = chain.nbytes(self.out)
        begin = len(self.flow.nodes) - (self.end - first)
        stages = [i for i, stage in enumerate(self.flow.stages) if stage.nodes[-1] >= begin]
        for name in dying:
            if name not in self.flow.sizes or name in chain.viewed or not chain.by_rows(name):
                continue
            operand = chain.types[name]
            assert isinstance(operand, TensorType)
            if operand.dtype.itemsize != out.dtype.itemsize:
                continue  # it would lie at a fraction of its elements
            moved = chain.nbytes(name)
            gap = self._following(name, way).distance(stages)
            best = max(best, (moved + made - _span(gap, moved, made), name))
        return best

    def _following(self, name: str, way: Choice) -> Following:
        """How closely the result may follow a storage that is read."""
        key = (name, way)
        if key not in self.followings:
            sizes, walks = self.flow.sizes, self.walks[way.up]
            moved, made = (self.chain.nbytes(n) // prod(sizes[n]) for n in (name, self.out))
            pixelwise = way.unit == "pixel"
            rows, columns = (walks.inner, walks.columns) if pixelwise else (walks.rows, None)
            self.followings[key] = Following(rows, columns, name, self.out, (moved, made))
        return self.followings[key]


def _span(gap: int, moved: int, made: int) -> int:
    """The bytes of both when the result begins ``gap`` bytes before the operand, or with it."""
    return max(max(gap, 0) + moved, made)
