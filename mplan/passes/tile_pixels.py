"""Free memory makes convolutions faster: windows of several pixels are laid out as columns in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.columns import PIXELS, columns_bytes
from mplan.ir.graph import Graph, Loop, Op, Scratch
from mplan.ir.rings import scratch_of
from mplan.ir.streaming import flow_of
from mplan.ir.table import levels
from mplan.ir.types import Type
from mplan.passes.allocate_buffers import AllocateBuffers
from mplan.passes.base import Context, Pass
from mplan.passes.schedule_ops import ScheduleOps

#: How often less is given than seemed to be free, as addresses may need more than live bytes.
_ROUNDS = 4
#: Bytes; columns consist of words.
_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class TilePixels(Pass):
    """Give convolutions scratch memory for columns (``mplan.ir.columns``) where there is room.

    Room is what the plan leaves free while an op runs, below the arena's height or below ``budget``
    bytes if that is more: the arena grows no further. In streams by rows, stages of several ops pass
    that many pixels on together. Acts on targets that multiply pairs of 16-bit numbers and whose
    activations lie in one memory. Runs after ``allocate`` and plans anew.
    """

    name: ClassVar[str] = "tile_pixels"

    budget: int = 0

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with scratch memory and its plan; ``graph`` itself if nothing fits."""
        if ctx.plan is None or ctx.lowered is None:
            raise UserError("MP421", "tile_pixels has no plan", help="name it after allocate")
        if not ctx.pairs or ctx.layout.memories:
            return graph
        arena = ctx.layout.arena.name
        limit = room = max(ctx.plan.peak_bytes(arena), self.budget)
        live = _live_bytes(ctx)
        for _ in range(_ROUNDS):
            tiled = with_columns(graph, [room - used for used in live])
            if tiled == graph:
                break
            inner = replace(ctx, notes=[], captured=None, limit_s=ctx.limit_s / _ROUNDS, spent_s=0.0)
            try:
                for pass_ in (ScheduleOps(), AllocateBuffers()):
                    tiled = pass_.run(tiled, inner)
            except InfeasibleError:
                room -= PIXELS * _ALIGNMENT
                continue
            assert inner.plan is not None
            height = inner.plan.peak_bytes(arena)
            if height <= limit:
                ctx.lowered, ctx.plan = inner.lowered, inner.plan
                return tiled
            room -= height - limit
        return graph


def _live_bytes(ctx: Context) -> list[int]:
    """The most bytes that live in the arena while each op runs, in the order of the graph."""
    import numpy as np

    lowered, plan = ctx.lowered, ctx.plan
    assert lowered is not None and plan is not None
    times, live = levels(*lowered.problem.table.extents(plan.order, ctx.layout.arena.name))
    found: dict[int, int] = {}
    for position, step in enumerate(plan.order):
        op, at = lowered.op_of[step], int(np.searchsorted(times, position, side="right")) - 1
        found[op] = max(found.get(op, 0), int(live[at]))
    return [found[op] for op in sorted(found)]


def with_columns(graph: Graph, room: Sequence[int]) -> Graph:
    """``graph`` with as much scratch memory for columns as there is ``room`` for at each op."""
    types = {name: value.type for name, value in graph.value_table.items()}
    ops = (_op_with_columns(op, types, free) for op, free in zip(graph.ops, room, strict=True))
    return replace(graph, ops=tuple(ops))


def _op_with_columns(op: Op, types: Mapping[str, Type], room: int) -> Op:
    """``op``, or the ops of a stream, with columns within ``room`` bytes."""
    if op.loop is None:
        wanted = 0 if op.scratch else columns_bytes(op, types)
        return replace(op, scratch=(_columns(wanted),)) if 0 < wanted <= room else op
    if op.loop.stream is None or op.loop.stream.unit != "row":
        return op
    body = {name: value.type for name, value in op.loop.body.value_table.items()}
    sizes = {columns_bytes(inner, body) for inner in op.loop.body.ops}
    held = sum(s.size_bytes for s in op.scratch)
    for most in sorted(sizes, reverse=True):
        loop = _stream_with_columns(op.loop, body, most)
        scratch = scratch_of(loop)
        if loop != op.loop and sum(s.size_bytes for s in scratch) - held <= room:
            return replace(op, loop=loop, scratch=scratch)
    return op


def _stream_with_columns(loop: Loop, types: Mapping[str, Type], most: int) -> Loop:
    """The stream with columns of at most so many bytes, and rings for the pixels that its stages with
    such layers pass on."""
    flow, stream = flow_of(loop), loop.stream
    assert stream is not None
    ops = {op.result.name: op for op in loop.body.ops}
    wider = set()
    for stage in flow.stages:
        nodes = [flow.nodes[n] for n in stage.nodes]
        sizes = {op.result.name: columns_bytes(op, types) for node in nodes for op in node.ops}
        chosen = {name: size for name, size in sizes.items() if 0 < size <= most}
        for name, size in chosen.items():
            ops[name] = replace(ops[name], scratch=(_columns(size),))
        if chosen:
            wider |= {node.out for node in nodes[:-1]}
    rings = (replace(r, pixels=PIXELS) if r.value in wider else r for r in stream.rings)
    body = replace(loop.body, ops=tuple(ops[op.result.name] for op in loop.body.ops))
    return replace(loop, body=body, stream=replace(stream, rings=tuple(rings)))


def _columns(size: int) -> Scratch:
    return Scratch(size, alignment=_ALIGNMENT)
