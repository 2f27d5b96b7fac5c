"""Execution of streams: position by position, in the very rings, as emitted code would do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mplan.ir.geometry import Access, Span, Spatial, Tile
from mplan.ir.graph import Graph, Loop, Op, Ref
from mplan.ir.ops import bound_args
from mplan.ir.rings import SUM_BYTES, capacities, lines_of
from mplan.ir.storage import storages
from mplan.ir.streaming import Flow, Line, Node, Read, Stage, Walk, dims_of, flow_of
from mplan.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor


def ring_memory(loop: Loop) -> tuple[Tensor, ...]:
    """Fresh bytes for the rings of a stream, in their order."""
    import torch

    return tuple(torch.empty(c.size_bytes, dtype=torch.uint8) for c in capacities(loop).values())


def run_stream(
    loop: Loop,
    operands: Sequence[Any],
    results: Sequence[Tensor],
    rings: Sequence[Tensor],
    symbols: Mapping[str, int],
) -> None:
    """Execute a stream: write the tensors ``results``, using the bytes ``rings`` and no others.

    Scratch memory of kernels, which may follow the rings, stays unused.
    ``results`` may lie over operands that they replace.
    """
    _Execution(loop, operands, results, rings, symbols).run()


class _Cell:
    """Where a storage of the body lies: a whole tensor, or a ring of positions."""

    def __init__(self, tensor: Tensor, dims: tuple[int, int]):
        self.tensor, self.dims = tensor, dims


class _Execution:
    def __init__(
        self,
        loop: Loop,
        operands: Sequence[Any],
        results: Sequence[Tensor],
        rings: Sequence[Tensor],
        symbols: Mapping[str, int],
    ):
        assert loop.stream is not None
        self.loop, self.symbols = loop, symbols
        self.body: Graph = loop.body
        self.flow: Flow = flow_of(loop)
        self.root = storages(self.body).root
        names = [item.value.name for item in self.body.inputs]
        self.whole: dict[str, Any] = dict(zip(names, operands, strict=True))
        self.results = {
            self.root[name]: tensor
            for name, tensor in zip(self.body.output_names, results, strict=True)
        }
        self.dims = dims_of(self.flow.nodes)
        ringed = [ring.value for ring in loop.stream.rings]
        self.rings = dict(zip(ringed, rings[: len(ringed)], strict=True))
        self.cells = {name: self._ring(name) for name in self.rings}
        self.down: Line
        self.across: Line

    def _ring(self, name: str) -> _Cell:
        """The ring as a tensor of the positions it holds, with all dimensions but rows and columns."""
        from mplan.ir.execution import overlay

        capacity = capacities(self.loop)[name]
        type_ = self.body.value_table[name].type
        assert isinstance(type_, TensorType)
        rest = _rest(type_, self.dims[name])
        shaped = TensorType(type_.dtype, (capacity.held, *rest))
        bytes_ = self.rings[name]
        offset = int(bytes_.storage_offset()) * bytes_.element_size()
        return _Cell(overlay(bytes_, shaped, offset), self.dims[name])

    def run(self) -> None:
        for down, across in lines_of(self.loop, self.flow):
            self.down, self.across = down, across
            stages = self.flow.stages
            widths = [across.length(s) for s in stages]
            assert self.loop.stream is not None
            if self.loop.stream.unit == "row":
                lengths = [down.length(s) if w else 0 for s, w in zip(stages, widths, strict=True)]
                Walk(self.flow, lengths, self._rows, self._run_row).all()
            else:
                lengths = [down.length(s) * w for s, w in zip(stages, widths, strict=True)]
                Walk(self.flow, lengths, self._pixels, self._run_pixel).all()

    def _rows(self, index: int, read: Read) -> list[int]:
        return [end for _, end in self.down.needs(self.flow.stages[index], read)]

    def _pixels(self, index: int, read: Read) -> list[int]:
        """How many steps of the source, in the order of rows, each step needs."""
        stage, stride = self.flow.stages[index], self.across.stride
        width = -(-self.across.width(read.source) // stride)
        columns = [-(-end // stride) for _, end in self.across.needs(stage, read)]
        rows = self._rows(index, read)
        return [(row - 1) * width + column if row else 0 for row in rows for column in columns]

    def _run_row(self, index: int, step: int) -> None:
        stage = self.flow.stages[index]
        row = self.down.place(stage, step)
        first, end = self.across.steps(stage)
        if len(stage.nodes) == 1:
            self._run_stage(stage, ((row, row + 1), (first, end)))
        else:
            for col in range(first, end):
                self._run_stage(stage, ((row, row + 1), (col, col + 1)))

    def _run_pixel(self, index: int, step: int) -> None:
        stage = self.flow.stages[index]
        down, along = divmod(step, self.across.length(stage))
        row, col = self.down.place(stage, down), self.across.place(stage, along)
        count = self.across.made(stage, along + 1) - self.across.made(stage, along)
        self._run_stage(stage, ((row, row + 1), (col, col + count)))

    def _run_stage(self, stage: Stage, tile: Tile) -> None:
        for number in stage.nodes:
            node = self.flow.nodes[number]
            if not node.ops:
                self._write(node.out, tile, _cut(self.whole[node.out], self.dims[node.out], tile))
            elif node.reduces:
                self._reduce(node, tile)
            else:
                for op, rule in zip(node.ops, node.rules, strict=True):
                    self._write(node.out, tile, self._compute(op, rule, tile))

    def _compute(self, op: Op, rule: Spatial, tile: Tile) -> Tensor:
        """The tile of the result of ``op``."""
        env: dict[str, Any] = {n: self.whole.get(n) for n in op.operands}
        starts = {}
        for access in rule.accesses:
            spans = tuple(reach.span(*span) for reach, span in zip(access.reach, tile, strict=True))
            env[access.operand] = self._read(access, (spans[0], spans[1]))
            key = next((k for k, a in op.args if a == Ref(access.operand)), "")
            starts[key] = (spans[0][0], spans[1][0])
        found: Tensor = rule.compute(bound_args(op, env, self.symbols), tile, starts)
        return found

    def _reduce(self, node: Node, tile: Tile) -> None:
        """Add a tile to the sums, which lie in the ring; the last one makes the result."""
        import torch

        op, rule = node.ops[0], node.rules[0]
        part = self._compute(op, rule, tile)
        wide = torch.promote_types(
            part.dtype, torch.float32 if part.is_floating_point() else torch.int32
        )
        ring = self.rings[node.out]
        sums = ring[: part.numel() * max(SUM_BYTES, wide.itemsize)].view(wide).view(part.shape)
        spans = (self.down.steps(self._stage(node)), self.across.steps(self._stage(node)))
        up, back = self.down.up, self.across.up
        if _is_first(tile, spans, up, back):
            sums.zero_()
        sums += part
        if _is_first(tile, spans, not up, not back):
            assert rule.finish is not None
            self._finish(node, rule.finish(sums.clone()))

    def _stage(self, node: Node) -> Stage:
        return self.flow.stages[self.flow.maker[node.out]]

    def _finish(self, node: Node, value: Tensor) -> None:
        table = self.body.value_table
        type_ = table[node.out].type
        assert isinstance(type_, TensorType)
        whole = value.reshape([n for n in type_.shape if isinstance(n, int)])
        if node.out in self.results:
            self.results[node.out].copy_(whole)
        else:
            cell = self.cells[node.out]
            cell.tensor[0].copy_(whole.reshape(cell.tensor.shape[1:]))

    def _read(self, access: Access, spans: Tile) -> Tensor:
        """The positions that ``spans`` covers; those outside of the tensor are ``access.fill``."""
        import torch

        name = self.root[access.operand]
        dims = self.dims[name]
        size = self.flow.sizes[name]
        inside = tuple((max(s[0], 0), min(s[1], n)) for s, n in zip(spans, size, strict=True))
        part = self._positions(name, (inside[0], inside[1])) if _holds(inside) else None
        if part is not None and inside == spans:
            return part
        type_ = self.body.value_table[access.operand].type
        assert isinstance(type_, TensorType)
        shape = [n for n in type_.shape if isinstance(n, int)]
        for dim, span in zip(dims, spans, strict=True):
            shape[dim] = span[1] - span[0]
        dtype = getattr(torch, type_.dtype.torch_name)
        filled = torch.full(shape, access.fill, dtype=dtype)
        if part is not None:
            place = filled
            for dim, span, kept in zip(dims, spans, inside, strict=True):
                place = place.narrow(dim, kept[0] - span[0], kept[1] - kept[0])
            place.copy_(part)
        return filled

    def _positions(self, name: str, tile: Tile) -> Tensor:
        """A copy of positions that lie inside of the tensor."""
        cell = self.cells.get(name)
        if cell is None:
            whole = self.results[name] if name in self.results else self.whole[name]
            return _cut(whole, self.dims[name], tile).clone()
        rows, cols = tile[0][1] - tile[0][0], tile[1][1] - tile[1][0]
        found = cell.tensor.index_select(0, self._slots(name, cell, tile))
        found = found.view(rows, cols, *found.shape[1:])
        return found.movedim((0, 1), cell.dims) if found.dim() > max(cell.dims) else found[0, 0]

    def _write(self, name: str, tile: Tile, part: Tensor) -> None:
        cell = self.cells.get(name)
        if cell is None:
            _cut(self.results[name], self.dims[name], tile).copy_(part)
            return
        moved = part.movedim(cell.dims, (0, 1))
        moved = moved.reshape(-1, *moved.shape[2:])
        cell.tensor.index_copy_(0, self._slots(name, cell, tile), moved)

    def _slots(self, name: str, cell: _Cell, tile: Tile) -> Tensor:
        """Where in its ring each position of ``tile`` lies."""
        import torch

        rows = self._along(self.down, name, tile[0])
        cols = self._along(self.across, name, tile[1])
        width = self.across.width(name)
        linear = torch.tensor(rows)[:, None] * width + torch.tensor(cols)
        return linear.reshape(-1) % int(cell.tensor.shape[0])

    def _along(self, line: Line, name: str, span: Span) -> list[int]:
        first, end = line.part[name]
        return [end - 1 - p if line.up else p - first for p in range(*span)]


def _rest(type_: TensorType, dims: tuple[int, int]) -> tuple[int, ...]:
    sizes = [n for n in type_.shape if isinstance(n, int)]
    return tuple(n for d, n in enumerate(sizes) if d not in dims or len(sizes) <= max(dims))


def _cut(whole: Tensor, dims: tuple[int, int], tile: Tile) -> Tensor:
    for dim, (first, end) in zip(dims, tile, strict=True):
        whole = whole.narrow(dim, first, end - first)
    return whole


def _holds(spans: tuple[Span, ...]) -> bool:
    return all(first < end for first, end in spans)


def _is_first(tile: Tile, spans: Tile, up: bool, back: bool) -> bool:
    """Whether ``tile`` holds the corner of ``spans`` at which a walk begins."""
    (row, col) = (
        span[1] - 1 if reverse else span[0] for span, reverse in zip(spans, (up, back), strict=True)
    )
    return tile[0][0] <= row < tile[0][1] and tile[1][0] <= col < tile[1][1]
