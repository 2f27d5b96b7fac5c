"""The pass that streams: planned bytes are the bytes used, and few enough."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from mplan.capture import capture
from mplan.capture.boundary import with_integer_io
from mplan.capture.tflite import read_tflite
from mplan.diagnostics import CheckError, InfeasibleError, UserError
from mplan.ir.graph import Graph
from mplan.ir.interp import run, run_in_arena
from mplan.ir.ops import graph_macs
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.rings import Arriving, row_inputs
from mplan.ir.storage import Layout
from mplan.ir.types import TensorType
from mplan.ir.verify import verify
from mplan.passes.allocate_buffers import AllocateBuffers
from mplan.passes.base import Context, Streamed
from mplan.passes.inplace import Inplace
from mplan.passes.registry import parse_pipeline
from mplan.passes.stream import StreamRows
from mplan.passes.stream.search import Schedule
from mplan.pipeline import run_passes
from tests.mcunet import FOLDER
from tests.stream_nets import CLEAN, NETS, graph_of, whole_numbers

ARENA, FLASH = Region("sram"), Region("flash")


def context(held: bool = False) -> Context:
    return Context(Layout(ARENA, FLASH, ARENA if held else None))


def clean(module: nn.Module, size: int) -> Graph:
    """The graph of a network of images that lie by rows of pixels."""
    image = torch.zeros(1, 3, size, size).to(memory_format=torch.channels_last)
    captured = capture(module, (image,))
    ctx = Context(Layout(ARENA), constants=captured.constants)
    return run_passes(captured.graph, parse_pipeline(CLEAN), ctx)


def planned(graph: Graph, pass_: StreamRows, ctx: Context) -> tuple[Graph, int]:
    """The streamed graph and the height of its arena."""
    found = pass_.run(graph, ctx)
    verify(found)
    assert parse(str(found)) == found
    if ctx.streamed:
        certificate = ctx.streamed.certificate
        assert certificate.lower_bound_bytes <= certificate.value_bytes
    AllocateBuffers().run(found, ctx)
    assert ctx.plan is not None
    return found, ctx.plan.peak_bytes("sram")


PASSES = [
    StreamRows(pixels=False, strips=0, input="rows"),
    StreamRows(input="rows"),
    StreamRows(),
    StreamRows(max_mac_factor=1.3),
    StreamRows(max_mac_factor=1.5, input="rows", scans=9),
]


@pytest.mark.parametrize("pass_", PASSES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_streams_run_inside_their_plan(name: str, pass_: StreamRows) -> None:
    """In the arena of the plan, with all dead bytes poisoned, the results are those of the graph."""
    module, shape = NETS[name]
    graph, values = graph_of(module(), shape)
    ctx = context(held=not pass_.input)
    found, _ = planned(graph, pass_, ctx)
    assert any(op.loop for op in found.ops)
    users = {i.value.name for i in graph.inputs if i.role == "input"}
    pushed = [op.loop for op in found.ops if pass_.input == "rows" and users & set(op.operands)]
    assert not any(loop.stream.up for loop in pushed if loop and loop.stream)
    assert ctx.lowered is not None and ctx.plan is not None
    out = run_in_arena(found, ctx.lowered, ctx.plan, values)
    for mine, wanted in zip(out, run(graph, values), strict=True):
        assert torch.equal(mine, wanted)
    assert graph_macs(found) <= graph_macs(graph) * (pass_.max_mac_factor or 1)


class Blocks(nn.Module):
    """Residual blocks so wide inside that their results are best kept whole, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 24, 1),
                nn.ReLU6(),
                nn.Conv2d(24, 24, 3, 1, 1, groups=24),
                nn.ReLU6(),
                nn.Conv2d(24, 4, 1),
            )
            for _ in range(3)
        )
        self.last = nn.Conv2d(4, 2, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        y: torch.Tensor = self.last(x)
        return y


@pytest.mark.parametrize("unit", ["rows", "pixels"])
def test_a_result_that_follows_too_closely_is_rejected_and_wrong(unit: str) -> None:
    graph, values = graph_of(Blocks(), (1, 3, 12, 12))
    wanted = run(graph, values)
    pass_ = StreamRows(rows=unit == "rows", pixels=unit == "pixels", strips=0, input="rows")
    ctx = context()
    found, _ = planned(graph, pass_, ctx)
    assert ctx.lowered is not None and ctx.plan is not None
    assert torch.equal(run_in_arena(found, ctx.lowered, ctx.plan, values)[0], wanted[0])
    moved = [op for op in found.ops if op.values[-1].alias and op.loop]
    assert moved
    for op in moved:
        value = op.values[-1]
        assert value.alias is not None and isinstance(value.alias.offset_bytes, int)
        assert op.loop is not None and op.loop.stream is not None and isinstance(value.type, TensorType)
        step = 4 * 4 * (12 if unit == "rows" else 1)
        closer = value.alias.offset_bytes + (-step if op.loop.stream.up else step)
        alias = replace(value.alias, offset_bytes=closer)
        wrong = replace(op, results=(*op.results[:-1], replace(value, alias=alias)))
        bad = replace(found, ops=tuple(wrong if o is op else o for o in found.ops))
        with pytest.raises(CheckError, match="follows"):
            verify(bad)
        ctx = context()
        AllocateBuffers().run(bad, ctx)
        assert ctx.lowered is not None and ctx.plan is not None
        assert not torch.equal(run_in_arena(bad, ctx.lowered, ctx.plan, values)[0], wanted[0])


def best_schedules(graph: Graph) -> list[Schedule]:
    """The schedules of which none is better in both bytes and work, least bytes first."""
    space = StreamRows().space(graph, context())
    assert space is not None
    return space.frontier[::-1]


def test_the_certificate_states_what_holds() -> None:
    """Bytes are least within the work allowed, work is least within the budget."""
    module, shape = NETS["mobile"]
    graph, _ = graph_of(module(), shape)
    schedules = best_schedules(graph)
    work = graph_macs(graph)
    least = min(s.peak_bytes for s in schedules if s.macs <= work)
    assert least > schedules[0].peak_bytes
    assert _streamed(graph, StreamRows()).certificate.lower_bound_bytes == least
    wide = min(s.peak_bytes for s in schedules if s.macs <= 1.05 * work)
    made = _streamed(graph, StreamRows(max_mac_factor=1.05))
    assert made.certificate.lower_bound_bytes == wide and made.macs <= 1.05 * work
    tight = schedules[0]
    made = _streamed(graph, StreamRows(budget=tight.peak_bytes))
    assert (made.macs, made.budget) == (tight.macs, tight.peak_bytes)
    assert made.certificate.lower_bound_bytes == tight.peak_bytes


def test_streams_that_are_needed() -> None:
    """Graphs that fit, or for which no code would be generated, stay as they are."""
    module, shape = NETS["mobile"]
    graph, _ = graph_of(module(), shape)
    fits = _whole(graph)
    needed = StreamRows(when="needed", budget=fits - 1)
    assert needed.run(graph, context()) is not graph
    assert replace(needed, budget=fits).run(graph, context()) is graph
    assert replace(needed, budget=0).run(graph, context()) is graph
    limited = Context(Layout(replace(ARENA, capacity_bytes=fits - 1), FLASH))
    assert StreamRows(when="needed").run(graph, limited) is not graph
    for when in ("needed", "emitted"):
        ctx = replace(context(), emits=lambda op, rule: not op.kind.startswith("aten.conv"))
        assert StreamRows(when=when, budget=fits - 1).run(graph, ctx) is graph
    assert StreamRows(when="emitted", budget=fits).run(graph, context()) is not graph


def _whole(graph: Graph) -> int:
    ctx = context()
    AllocateBuffers().run(Inplace().run(graph, ctx), ctx)
    assert ctx.plan is not None
    return ctx.plan.peak_bytes("sram")


def test_other_ways_of_arrival_are_compared() -> None:
    """The arena that the report states for another way is the one that a plan for it has."""
    module, shape = NETS["mobile"]
    graph, _ = graph_of(module(), shape)
    ways = ("whole", "rows", "flash")
    heights = {way: planned(graph, StreamRows(input=way), context(True))[1] for way in ways}
    for way in ways:
        ctx = context(True)
        StreamRows(input=way, compare=True).run(graph, ctx)
        assert ctx.streamed is not None and ctx.streamed.arena_bytes == heights
        assert (ctx.layout.inputs is None) == (way != "whole")


class Conditioned(nn.Module):
    """An image, and numbers that scale its channels at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, 2), nn.ReLU())
        self.linear = nn.Linear(7, 5)

    def forward(self, image: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.convs(image).mean((2, 3)) + self.linear(numbers)


def test_inputs_without_rows_lie_in_the_arena_while_rows_of_others_arrive() -> None:
    graph, values = graph_of(Conditioned(), (1, 2, 14, 11), (1, 7))
    image, numbers = (i.value.name for i in graph.inputs if i.role == "input")
    ctx = context(True)
    found, height = planned(graph, StreamRows(input="rows"), ctx)
    assert ctx.lowered is not None and ctx.plan is not None
    assert numbers in ctx.lowered.buffer_of and image not in ctx.lowered.buffer_of
    assert row_inputs(found) == {image: Arriving(14, 1)}
    assert height < planned(graph, StreamRows(input="whole"), context(True))[1]
    out = run_in_arena(found, ctx.lowered, ctx.plan, values)
    assert torch.equal(out[0], run(graph, values)[0])


def test_a_budget_minimises_work() -> None:
    module, shape = NETS["mobile"]
    graph, _ = graph_of(module(), shape)
    frontier = best_schedules(graph)
    assert len(frontier) > 2
    for better, cheaper in pairwise(frontier):
        assert better.peak_bytes < cheaper.peak_bytes and better.macs > cheaper.macs
    for schedule in frontier:
        found = StreamRows(budget=schedule.peak_bytes).run(graph, context())
        assert graph_macs(found) <= schedule.macs + 1
    least, work = frontier[0].peak_bytes, frontier[0].macs
    with pytest.raises(InfeasibleError, match="no streams") as raised:
        StreamRows(budget=least - 1).run(graph, context())
    assert raised.value.code == "MP235" and f"{least:,} B at" in raised.value.help
    with pytest.raises(InfeasibleError, match=f"{least:,} B and") as raised:
        StreamRows(budget=least, max_mac_factor=1.0).run(graph, context())
    one = next(s for s in frontier if s.macs == graph_macs(graph))
    assert f"{one.peak_bytes:,} B at 1.000" in raised.value.help
    assert f"{least:,} B at {work / graph_macs(graph):.3f}" in raised.value.help


def test_within_a_budget_rows_are_walked_rather_than_pixels() -> None:
    """Both do the same work; where bytes are to be least, some streams go by pixels."""
    graph, _ = graph_of(NETS["mobile"][0](), NETS["mobile"][1])
    by_rows = _streamed(graph, StreamRows(pixels=False, strips=0)).certificate.value_bytes

    def units(pass_: StreamRows) -> set[str]:
        loops = [op.loop for op in pass_.run(graph, context()).ops if op.loop and op.loop.stream]
        return {loop.stream.unit for loop in loops if loop.stream}

    assert units(StreamRows(budget=by_rows, strips=0)) == {"row"}
    assert "pixel" in units(StreamRows(strips=0))


def test_the_bound_is_the_least_of_all_cuts() -> None:
    """Every way to cut a small network, tried one by one."""
    module, shape = NETS["keywords"]
    graph, _ = graph_of(module(), shape)
    pass_ = StreamRows(pixels=False, strips=0, input="rows")
    space = pass_.space(graph, context())
    assert space is not None
    table = space.table

    def least(first: int) -> Any:
        if first == space.units:
            return 0
        ends = [end for start, end in table if start == first]
        peaks = (max(min(o.peak_bytes for o in table[first, e]), least(e)) for e in ends)
        return min(peaks, default=float("inf"))

    _, height = planned(graph, pass_, context())
    assert height >= least(0)
    assert _streamed(graph, pass_).certificate.lower_bound_bytes == least(0)


def _streamed(graph: Graph, pass_: StreamRows) -> Streamed:
    ctx = context()
    pass_.run(graph, ctx)
    assert ctx.streamed is not None
    return ctx.streamed


def test_graphs_without_rows_stay() -> None:
    captured = capture(nn.Linear(3, 4), (torch.zeros(2, 3),))
    ctx = context()
    assert StreamRows().run(captured.graph, ctx) is captured.graph
    for wrong in (StreamRows(input="pixels"), StreamRows(when="never")):
        with pytest.raises(UserError, match="is not known"):
            wrong.run(captured.graph, ctx)
    with pytest.raises(InfeasibleError, match="no ops that rows could stream through"):
        StreamRows(input="rows").run(captured.graph, ctx)


@pytest.mark.slow
def test_a_trained_int8_network_streams_bit_for_bit() -> None:
    """The published visual-wake-words model, within published bytes of rows and of pixels."""
    captured = with_integer_io(read_tflite(FOLDER / "mcunet-vww1.tflite"))
    peaks = [
        (StreamRows(pixels=False, strips=0, input="rows"), 15_504),
        (StreamRows(strips=0, input="rows"), 13_024),
    ]
    for pass_, peak in peaks:
        ctx = Context(Layout(ARENA, FLASH), constants=captured.constants)
        cleaned = parse_pipeline("canonicalize,fold_padding,drop_unused")
        graph = run_passes(captured.graph, cleaned, ctx)
        found, height = planned(graph, pass_, ctx)
        assert height <= peak
        if not pass_.pixels:
            image = next(i.value for i in graph.inputs if i.role == "input")
            generator = torch.Generator().manual_seed(1)
            pixels = torch.randint(-128, 128, (1, 80, 80, 3), generator=generator, dtype=torch.int8)
            values = {**ctx.constants, image.name: pixels}
            assert ctx.lowered is not None and ctx.plan is not None
            out = run_in_arena(found, ctx.lowered, ctx.plan, values)
            assert torch.equal(out[0], run(graph, values)[0])


QUANTISED = """graph @float_io(%x: f32[1,16,16,4]) {
  %q: i8[1,16,16,4] = mplan.quantize(input=%x, scale=0.5, zero_point=3)
  %y: i8[1,8,8,4] = mplan.qmax_pool2d(input=%q, kernel_size=[2, 2], stride=[2, 2], \
padding=[0, 0, 0, 0])
  return %y
}"""


def test_a_float_image_is_quantised_row_by_row() -> None:
    graph = parse(QUANTISED)
    ctx = context(held=True)
    found, height = planned(graph, StreamRows(input="rows"), ctx)
    assert height < 2 * 16 * 4 * 4 + 8 * 8 * 4 and ctx.layout.inputs is None
    assert ctx.lowered is not None and ctx.plan is not None
    values = {"x": whole_numbers((1, 16, 16, 4), 1)}
    out = run_in_arena(found, ctx.lowered, ctx.plan, values)
    assert torch.equal(out[0], run(graph, values)[0])


WHOLE = {
    "an op without rows": """graph @sorted(%x: f32[1,4,8,8]) {
      %a: f32[1,4,8,8] = aten._softmax.default(self=%x, dim=1, half_to_float=false)
      %y: f32[1,4,8,8] = aten.relu.default(self=%a)
      return %y
    }""",
    "its own weights": """graph @correlated(%x: f32[1,4,8,8]) {
      %a: f32[1,4,8,8] = aten.relu.default(self=%x)
      %y: f32[1,1,1,1] = aten.conv2d.default(input=%a, weight=%x)
      return %y
    }""",
}
TRACKER = """graph @tracker(%x: f32[1,4,8,8], %seen: f32[2,4,3,3]) {
  %a: f32[1,4,8,8] = aten.relu.default(self=%x)
  %y: f32[1,2,6,6] = aten.conv2d.default(input=%a, weight=%seen)
  return %y
}"""


@pytest.mark.parametrize("reader", WHOLE)
def test_an_input_that_is_read_whole_does_not_arrive_by_rows(reader: str) -> None:
    ctx = context(held=True)
    layout = ctx.layout
    with pytest.raises(InfeasibleError, match="more than the rows that its inputs have"):
        StreamRows(input="rows").run(parse(WHOLE[reader]), ctx)
    assert ctx.layout == layout
    planned(parse(WHOLE[reader]), StreamRows(), ctx)


def test_an_input_that_is_a_weight_lies_in_the_arena() -> None:
    ctx = context(held=True)
    found, height = planned(parse(TRACKER), StreamRows(input="rows"), ctx)
    assert ctx.lowered is not None and "seen" in ctx.lowered.buffer_of
    assert row_inputs(found) == {"x": Arriving(8, 1)}
    assert 4 * (2 * 4 * 9 + 2 * 36) < height < 4 * (2 * 4 * 9 + 2 * 36 + 4 * 64)


def test_scratch_keeps_an_op_out_of_streams() -> None:
    text = """graph @scratched(%x: f32[1,4,8,8]) {
      %a: f32[1,4,8,8] = aten.relu.default(self=%x) scratch(5000)
      %y: f32[1,4,4,4] = aten.max_pool2d.default(self=%a, kernel_size=[2, 2])
      return %y
    }"""
    ctx = context()
    found, height = planned(parse(text), StreamRows(), ctx)
    assert [s.size_bytes for op in found.ops if not op.loop for s in op.scratch] == [5000]
    assert height >= 5000 + 4 * 8 * 8 * 4
    assert ctx.streamed is not None
    assert ctx.streamed.certificate.lower_bound_bytes == 5000 + 4 * 8 * 8 * 4


def test_results_of_other_element_sizes_take_no_memory_over() -> None:
    """Bytes could begin amidst the words of the floats that they follow."""
    ctx = context(held=True)
    found, _ = planned(parse(QUANTISED.replace("4]", "3]")), StreamRows(), ctx)
    assert all(op.loop and not v.alias for op in found.ops for v in op.values)


def test_layouts_are_not_mixed_in_one_stream() -> None:
    """A pointwise op of ATen's has the rows of NCHW, quantised ones those of NHWC: two streams."""
    text = """graph @mixed(%x: i8[1,6,5,4]) {
      %a: i8[1,6,5,4] = mplan.qadd(input=%x, other=%x, input_zero_point=0, \
input_multiplier=1073741824, input_shift=0, other_zero_point=0, other_multiplier=1073741824, \
other_shift=0, multiplier=1073741824, shift=-18, output_zero_point=0)
      %b: i8[1,6,5,4] = aten.relu.default(self=%a)
      %c: i8[1,3,2,4] = mplan.qmax_pool2d(input=%b, kernel_size=[2, 2], stride=[2, 2], \
padding=[0, 0, 0, 0])
      return %c
    }"""
    graph = parse(text)
    ctx = context()
    found, _ = planned(graph, StreamRows(), ctx)
    assert ctx.lowered is not None and ctx.plan is not None
    values = {"x": torch.arange(-60, 60, dtype=torch.int8).reshape(1, 6, 5, 4)}
    out = run_in_arena(found, ctx.lowered, ctx.plan, values)
    assert torch.equal(out[0], run(graph, values)[0])


@pytest.mark.parametrize("held", [False, True])
def test_what_is_read_through_a_view_is_not_followed(held: bool) -> None:
    """The gate of a squeeze-and-excitation block, whose channels become rows and channels again."""
    text = """graph @gated(%x: i8[1,6,5,8], const %t: i8[256]) {
      %m: i8[1,1,1,8] = mplan.qmean(input=%x, dim=[1, 2], keepdim=true, input_zero_point=0, \
multiplier=1073741824, shift=-4, output_zero_point=0)
      %c: i8[1,1,1,8] = mplan.qtable(input=%m, table=%t)
      %v: i8[1,8,1,1] view(%c) = aten.view.default(self=%c, size=[1, 8, 1, 1])
      %s: i8[1,8,1,1] = mplan.qtable(input=%v, table=%t)
      %w: i8[1,1,1,8] view(%s) = aten.view.default(self=%s, size=[1, 1, 1, 8])
      %y: i8[1,6,5,8] = mplan.qmul(input=%x, other=%w, input_zero_point=0, other_zero_point=0, \
multiplier=1073741824, shift=-4, output_zero_point=0)
      return %y
    }"""
    graph, ctx = parse(text), context(held)
    verify(graph)
    x, t = torch.arange(-120, 120, dtype=torch.int8), torch.arange(127, -129, -1, dtype=torch.int8)
    values = {"x": x.reshape(1, 6, 5, 8), "t": t}
    found, _ = planned(graph, StreamRows(), ctx)
    assert ctx.lowered is not None and ctx.plan is not None
    assert torch.equal(*run_in_arena(found, ctx.lowered, ctx.plan, values), *run(graph, values))
