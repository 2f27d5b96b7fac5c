"""Free memory makes convolutions faster: windows of several pixels are laid out as columns in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.columns import PIXELS, columns_bytes
from mplan.ir.graph import Graph, Loop, Op, Scratch, Value
from mplan.ir.rings import distance, lines_of, ring_needs, scratch_of
from mplan.ir.storage import Layout, storages
from mplan.ir.streaming import flow_of
from mplan.ir.table import levels
from mplan.ir.types import Type
from mplan.passes.allocate_buffers import AllocateBuffers
from mplan.passes.base import Context, Pass
from mplan.passes.schedule_ops import ScheduleOps

#: How often less is given than seemed to be free, as addresses may need more than live bytes.
_ROUNDS = 4
#: The share of the time limit that there is for it even if the plan took all of it.
_LEAST_SHARE = 0.05
#: Bytes; columns consist of words.
_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class TilePixels(Pass):
    """Let layers work on several pixels at a time where there is room for what that needs.

    In streams by rows, stages of several ops pass that many pixels on together, and streams by pixels
    make that many in a step; on targets that multiply pairs of 16-bit numbers, layers get scratch
    memory for columns (``mplan.ir.columns``).
    Room is what the plan leaves free while an op runs, below the arena's height or below ``budget``
    bytes if that is more: the arena grows no further. Of several memories it is what is free in one of
    them, and all together grow no further. Acts on targets that multiply several numbers at once. Runs
    after ``allocate`` and plans anew.
    """

    name: ClassVar[str] = "tile_pixels"

    budget: int = 0

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with scratch memory and its plan; ``graph`` itself if nothing fits."""
        if ctx.plan is None or ctx.lowered is None:
            raise UserError("MP421", "tile_pixels has no plan", help="name it after allocate")
        if not (ctx.pairs or ctx.vectors):
            return graph
        arena = ctx.layout.arena.name
        limit = max(ctx.plan.peak_bytes(arena), self.budget)
        free, less = _free_bytes(ctx, limit), 0
        limit_s = max(ctx.limit_s - ctx.spent_s, _LEAST_SHARE * ctx.limit_s) / _ROUNDS
        for _ in range(_ROUNDS):
            tiled = tiled_graph(graph, [size - less for size in free], columns=ctx.pairs)
            if tiled == graph:
                break
            layout = _limited(ctx.layout, limit)
            inner = replace(ctx, notes=[], captured=None, limit_s=limit_s, spent_s=0.0, layout=layout)
            try:
                for pass_ in (ScheduleOps(), AllocateBuffers()):
                    tiled = pass_.run(tiled, inner)
            except InfeasibleError:
                less += PIXELS * _ALIGNMENT
                continue
            assert inner.plan is not None
            height = inner.plan.peak_bytes(arena)
            if height <= limit:
                ctx.lowered, ctx.plan = inner.lowered, inner.plan
                return tiled
            less += height - limit
        return graph


def _limited(layout: Layout, limit: int) -> Layout:
    """``layout`` whose several memories, if it has some, take at most so many bytes together."""
    if not layout.memories:
        return layout
    arena = replace(layout.arena, capacity_bytes=limit)
    return replace(
        layout, arena=arena, inputs=arena if layout.inputs == layout.arena else layout.inputs
    )


def _free_bytes(ctx: Context, limit: int) -> list[int]:
    """The bytes that are free while each op runs, in the order of the graph; of several memories, which
    may grow up to ``limit`` together, those of the one with most."""
    layout, plan = ctx.layout, ctx.plan
    assert plan is not None
    spare = limit - plan.peak_bytes(layout.arena.name)
    found = []
    for region in layout.memories or (layout.arena,):
        room = plan.peak_bytes(region.name) + spare
        if region.capacity_bytes is not None:
            room = min(room, region.capacity_bytes)
        found.append([room - used for used in _live_bytes(ctx, region.name)])
    return [max(sizes) for sizes in zip(*found, strict=True)]


def _live_bytes(ctx: Context, region: str) -> list[int]:
    """The most bytes that live in ``region`` while each op runs, in the order of the graph."""
    import numpy as np

    lowered, plan = ctx.lowered, ctx.plan
    assert lowered is not None and plan is not None
    size = lowered.problem.table.size
    mine = [(p.start, p.end, size[p.buffer]) for p in plan.placements if p.region == region]
    times, live = levels(*np.array(mine, np.int64).reshape(-1, 3).T)
    found: dict[int, int] = {}
    for position, step in enumerate(plan.order):
        op, at = lowered.op_of[step], int(np.searchsorted(times, position, side="right")) - 1
        found[op] = max(found.get(op, 0), int(live[at]))
    return [found[op] for op in sorted(found)]


def tiled_graph(graph: Graph, room: Sequence[int], *, columns: bool) -> Graph:
    """``graph`` in which each op works on as many pixels as there is ``room`` for.

    Layers get ``columns``, or streams only wider rings.
    """
    types = {name: value.type for name, value in graph.value_table.items()}
    ops = (_tiled(op, types, free, columns) for op, free in zip(graph.ops, room, strict=True))
    return replace(graph, ops=tuple(ops))


def _tiled(op: Op, types: Mapping[str, Type], room: int, columns: bool) -> Op:
    """``op``, or the ops of a stream, on several pixels at a time within ``room`` bytes."""
    if op.loop is None:
        wanted = columns_bytes(op, types) if columns and not op.scratch else 0
        return replace(op, scratch=(_columns(wanted),)) if 0 < wanted <= room else op
    if op.loop.stream is None or (op.loop.stream.unit == "pixel" and op.loop.stream.up):
        return op
    body = {name: value.type for name, value in op.loop.body.value_table.items()}
    sizes = {*_column_sizes(op.loop, body), 0} if columns else {0}
    held = sum(s.size_bytes for s in op.scratch)
    for most in sorted(sizes, reverse=True):
        loop = _tiled_stream(op.loop, body, most)
        scratch = scratch_of(loop)
        results, further = _following(op, loop)
        if loop != op.loop and sum(s.size_bytes for s in scratch) - held + further <= room:
            return replace(op, loop=loop, scratch=scratch, results=results)
    return op


def _following(op: Op, loop: Loop) -> tuple[tuple[Value | None, ...], int]:
    """The results of ``op`` as those of ``loop``, and how many bytes further before the operand that it
    replaces the last one begins."""
    last, root = op.values[-1], storages(loop.body).root
    assert loop.stream is not None
    if last.alias is None or loop.stream.unit == "row":
        return op.results, 0
    operand = next(
        item.value.name
        for window, item in zip(loop.windows, loop.body.inputs, strict=True)
        if window.operand == last.alias.of
    )
    gap, before = distance(loop, operand, root[loop.body.output_names[-1]]), last.alias.offset_bytes
    assert gap is not None and isinstance(before, int)
    offset = min(-gap, before)
    moved = replace(last, alias=replace(last.alias, offset_bytes=offset))
    return tuple(moved if v == last else v for v in op.results), before - offset


def _tiled_stream(loop: Loop, types: Mapping[str, Type], most: int) -> Loop:
    """The stream with columns of at most so many bytes, and rings for all pixels that are passed on."""
    stream = loop.stream
    assert stream is not None
    if stream.unit == "pixel":
        stream = replace(stream, pixels=PIXELS)
        stream = replace(stream, rings=ring_needs(replace(loop, stream=stream)))
    else:
        inside = flow_of(loop).passed_on()
        rings = (replace(r, pixels=PIXELS) if r.value in inside else r for r in stream.rings)
        stream = replace(stream, rings=tuple(rings))
    ops = (
        replace(op, scratch=(_columns(size),)) if 0 < size <= most else op
        for op, size in zip(loop.body.ops, _column_sizes(loop, types), strict=True)
    )
    body = replace(loop.body, ops=tuple(ops))
    return replace(loop, body=body, stream=stream)


def _column_sizes(loop: Loop, types: Mapping[str, Type]) -> list[int]:
    """The bytes of the columns of each op of a stream; none where all strips are too narrow."""
    flow = flow_of(loop)
    lines = lines_of(loop, flow)
    rows = {
        op.result.name: max(across.extent(stage) for _, across in lines)
        for stage in flow.stages
        for number in stage.nodes
        for op in flow.nodes[number].ops
    }
    return [columns_bytes(op, types, rows.get(op.result.name, 0)) for op in loop.body.ops]


def _columns(size: int) -> Scratch:
    return Scratch(size, alignment=_ALIGNMENT)
