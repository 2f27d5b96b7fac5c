"""Columns of several pixels in free memory: where there is room, the same results, no larger arena."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mplan
from mplan.diagnostics import UserError
from mplan.ir.columns import PIXELS, columns_bytes
from mplan.ir.graph import Graph, Scratch
from mplan.ir.interp import run
from mplan.ir.parser import parse
from mplan.ir.rings import capacities, lines_of, scratch_of
from mplan.ir.storage import Layout
from mplan.ir.streaming import flow_of
from mplan.ir.verify import verify
from mplan.options import Options
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.passes.stream.build import Choice
from mplan.passes.tile_pixels import tiled_graph
from mplan.pipeline import asked, context_of, layout_of, run_passes
from mplan.runtime.device import run_bundle
from mplan.runtime.emulator import EmulatorName
from mplan.targets import load_target
from tests.c_support import FLASH, LAYOUT, SRAM, emitted, run_program
from tests.quantized_nets import QuantizedNet
from tests.test_kernel_variants import SHIFTS, Layers, on_device
from tests.test_streams import CHOICES, streamed

FAST = "fold_zero_points,bound_sums,pair_weights"
PLANNED = f"{FAST},{{}}inplace,schedule,allocate"
ENDLESS = 1 << 30


def passed(
    graph: Graph, net: QuantizedNet, text: str, layout: Layout = LAYOUT
) -> tuple[Graph, Context]:
    ctx = Context(layout, constants=dict(net.constants), pairs=True)
    return run_passes(graph, parse_pipeline(text), ctx), ctx


def height(ctx: Context) -> int:
    assert ctx.plan is not None
    return ctx.plan.peak_bytes(ctx.layout.arena.name)


def columns(graph: Graph) -> list[int]:
    """The bytes of scratch memory of the layers, also of those in streams."""
    bodies = [op.loop.body.ops if op.loop else (op,) for op in graph.ops]
    return [s.size_bytes for ops in bodies for op in ops for s in op.scratch]


def deep(net: QuantizedNet) -> Graph:
    """A wide image between narrow ones, so that the ends have room that the middle has not."""
    x = net.conv("x", 8)
    y = net.conv(net.conv(x, 64), 64, (3, 3), padding=(1, 1, 1, 1), groups=64)
    return net.graph(net.conv(net.conv(net.conv(y, 8), 16, (3, 3), (2, 2), (1, 1, 1, 1)), 24))


STREAMS = ("stream{pixels=false},", "stream{pixels=false,input=rows},", "stream{rows=false},")


@pytest.mark.parametrize("stream", ["", *STREAMS[:2]])
def test_the_arena_does_not_grow(stream: str) -> None:
    net = QuantizedNet(12, 14, 8)
    graph = deep(net)
    layout = Layout(SRAM, weights=FLASH) if "input" in stream else LAYOUT
    before, plain = passed(graph, net, PLANNED.format(stream), layout)
    after, ctx = passed(graph, net, f"{PLANNED.format(stream)},tile_pixels", layout)
    assert columns(after) and not columns(before)
    assert height(ctx) == height(plain)
    image = net.image()
    (wanted,) = run(graph, {**net.constants, "x": image})
    (ours,) = run(after, {**ctx.constants, "x": image})
    assert torch.equal(ours, wanted)
    verify(after, deep=True)
    assert str(parse(str(after))) == str(after)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_budget_is_room(stream: str) -> None:
    net = QuantizedNet(12, 14, 8)
    graph, image = deep(net), net.image()
    layout = Layout(SRAM, weights=FLASH) if "input" in stream else LAYOUT
    (wanted,) = run(graph, {**net.constants, "x": image})
    text = f"{PLANNED.format(stream)},tile_pixels"
    least, plain = passed(graph, net, text, layout)
    found = []
    for more in (0, 200, 1000, 4000):
        budget = height(plain) + more
        after, ctx = passed(graph, net, f"{text}{{budget={budget}}}", layout)
        assert height(plain) <= height(ctx) <= budget
        found.append(sum(columns(after)))
        assert torch.equal(run(after, {**ctx.constants, "x": image})[0], wanted)
        verify(after, deep=True)
        assert str(parse(str(after))) == str(after)
    together = {op.loop.stream.pixels for op in after.ops if op.loop and op.loop.stream}
    assert (max(together) == PIXELS) == ("rows=false" in stream)
    assert found[0] == sum(columns(least)) and found == sorted(found) and found[0] < found[-1]
    every = [columns_bytes(op, types(graph)) for op in graph_with_marks(graph, net).ops]
    assert found[-1] == sum(every) > 0


def types(graph: Graph) -> dict[str, object]:
    return {name: value.type for name, value in graph.value_table.items()}


def graph_with_marks(graph: Graph, net: QuantizedNet) -> Graph:
    return passed(graph, net, FAST)[0]


def test_the_budget_of_the_options_is_that_of_the_pass() -> None:
    passes = asked(parse_pipeline("allocate,tile_pixels"), Options(budget=5000))
    assert passes == parse_pipeline("allocate,tile_pixels{budget=5000}")


def test_what_has_no_columns() -> None:
    net = QuantizedNet(4, 5, 12)
    x = net.conv("x", 8, groups=2)
    y = net.conv(net.conv("x", 8), 16)
    z = net.conv(net.conv(x, 16), 16, groups=16)
    graph = graph_with_marks(net.graph(y, z), net)
    found = {op.result.name: columns_bytes(op, types(graph)) for op in graph.ops}
    # groups and a depthwise layer have none; 12 channels are filled up to 16
    assert list(found.values()) == [0, 2 * PIXELS * 16, 2 * PIXELS * 8, 2 * PIXELS * 8, 0]
    few = QuantizedNet(4, 5, 3)
    rest = graph_with_marks(few.graph(few.conv("x", 8), few.conv("x", 8, (1, 2))), few)
    # a round of three numbers would leave the weights
    assert [columns_bytes(op, types(rest)) for op in rest.ops] == [0, 2 * PIXELS * 8]
    unmarked = net.graph(y, z)
    assert not any(columns_bytes(op, types(unmarked)) for op in unmarked.ops)
    large = QuantizedNet(4, 4, 68)
    other = graph_with_marks(large.graph(large.conv("x", 8)), large)
    assert columns_bytes(other.ops[0], types(other)) == 0
    tiny = QuantizedNet(1, 3, 8)
    one = graph_with_marks(tiny.graph(tiny.conv("x", 8)), tiny)
    assert columns_bytes(one.ops[0], types(one)) == 0


def test_rows_of_fewer_pixels_have_no_columns(tmp_path: Path) -> None:
    """Of a kernel that makes rows of three pixels no four are laid out; alone they are one long row."""
    net = QuantizedNet(9, 3, 8)
    layers = net.conv("x", 8, (3, 3), padding=(1, 1, 1, 1)), net.conv("x", 8)
    narrow = graph_with_marks(net.graph(*layers), net)
    assert [columns_bytes(op, types(narrow)) for op in narrow.ops] == [0, 2 * PIXELS * 8]
    wide = QuantizedNet(9, 6, 8)
    x = wide.conv("x", 16)
    y = wide.conv(wide.conv(x, 16, (3, 3), padding=(1, 1, 1, 1), groups=16), 8)
    strips = streamed(graph_with_marks(wide.graph(y), wide), Choice("pixel", width=2), False)
    (op,) = tiled_graph(strips, [ENDLESS], columns=True).ops
    assert op.loop is not None  # the first layer makes a halo of two pixels beside the strip of two
    assert [bool(o.scratch) for o in op.loop.body.ops] == [True, False, False]

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)).eval()
    given: dict[str, Any] = {"target": "stm32h743", "quantize": "int8", "io": "int8-nhwc"}
    image = torch.randn(1, 8, 9, 3)
    mplan.compile(module, (image,), out=tmp_path, name="net", budget="20kB", **given)
    ran = run_bundle(tmp_path)
    assert ran.outputs_match and ran.arena_touched_bytes == ran.arena_bytes


@pytest.mark.parametrize("target", ["mps3-an547", "rp2040"])
def test_targets_that_do_not_multiply_pairs(target: str) -> None:
    """Columns are of no use to vectors, which still make several pixels at once; others stay."""
    net = QuantizedNet(12, 14, 8)
    ctx = context_of(load_target(target), net.constants, Options(target=target))
    text = f"{PLANNED.format('stream{pixels=false},')},tile_pixels{{budget=30000}}"
    found = run_passes(deep(net), parse_pipeline(text), ctx)
    assert not columns(found)
    rings = [r.pixels for op in found.ops if op.loop and op.loop.stream for r in op.loop.stream.rings]
    assert max(rings) == (PIXELS if target == "mps3-an547" else 1)


def test_it_needs_a_plan() -> None:
    net = QuantizedNet(4, 4, 8)
    with pytest.raises(UserError) as error:
        passed(net.graph(net.conv("x", 8)), net, "tile_pixels")
    assert error.value.code == "MP421" and "after allocate" in (error.value.help or "")


def test_scratch_in_streams_is_verified() -> None:
    net = QuantizedNet(9, 10, 8)
    graph, _ = passed(net.graph(net.conv(net.conv("x", 16), 8)), net, FAST)
    wide = tiled_graph(streamed(graph, Choice("row"), False), [ENDLESS], columns=True)
    verify(wide, deep=True)
    (op,) = wide.ops
    assert op.loop is not None and op.scratch == scratch_of(op.loop)
    assert op.scratch[-1].size_bytes == max(columns(wide))
    with pytest.raises(Exception, match="for rings and kernels that need"):
        verify(replace(wide, ops=(replace(op, scratch=op.scratch[:-1]),)))
    body = op.loop.body
    twice = tuple(replace(o, scratch=(Scratch(4), Scratch(4))) for o in body.ops)
    with pytest.raises(Exception, match="one piece of scratch"):
        verify(replace(wide, ops=(replace(op, loop=replace(op.loop, body=replace(body, ops=twice))),)))


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.unit == "row" or not c.up], ids=str)
@pytest.mark.parametrize("target", ["mps2-an386", "mps3-an547"])
def test_streams_on_a_microcontroller(choice: Choice, target: str, tmp_path: Path) -> None:
    net = QuantizedNet(13, 22, 8, seed=4)
    graph = blocks(net, mean=not choice.width)
    image = net.image()
    wanted = run(graph, {**net.constants, "x": image})
    dsp = target == "mps2-an386"
    marked, ctx = passed(graph, net, FAST if dsp else FAST.replace(",pair_weights", ""))
    wide = tiled_graph(streamed(marked, choice, False), [ENDLESS], columns=dsp)
    assert bool(columns(wide)) == dsp
    again = run(wide, {**ctx.constants, "x": image})
    assert torch.equal(again[0], wanted[0])
    files = emitted(wide, ctx.constants)
    if dsp:
        assert torch.equal(run_program(tmp_path / "host", files, [image], wanted)[0], wanted[0])
    on_device(tmp_path, target, "gcc", "qemu", (files, image, list(wanted)))


@pytest.mark.parametrize("width", [8, 12, 16])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_strips_read_across_the_ends_of_rings(kernel: int, width: int, tmp_path: Path) -> None:
    """A sum reads pixels behind the halo of the layer beside it, which begin amidst a step."""
    net = QuantizedNet(13, 2 * width, 8, seed=4)
    x = net.conv("x", 16, (3, 3), padding=(1, 1, 1, 1))
    y = net.conv(net.conv(x, 24), 24, (kernel, kernel), padding=(kernel // 2,) * 4, groups=24)
    graph, image = net.graph(net.conv(net.add(x, net.conv(y, 16)), 12)), net.image()
    wanted = run(graph, {**net.constants, "x": image})
    marked, ctx = passed(graph, net, FAST)
    wide = tiled_graph(streamed(marked, Choice("pixel", width=width), False), [ENDLESS], columns=True)
    ours = run_program(tmp_path, emitted(wide, ctx.constants), [image], wanted)
    assert torch.equal(ours[0], wanted[0])


@pytest.mark.parametrize("kernel,stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("width", [3, 6, 9, 10, 11, 12, 17])
def test_rings_end_where_their_last_pixel_does(width: int, kernel: int, stride: int) -> None:
    """Rows of a ring begin at multiples of the pixels of a step; behind the last one it ends."""
    net, edge = QuantizedNet(11, width, 8), (kernel // 2,) * 4
    x = net.conv(net.conv("x", 16), 16, (kernel, kernel), (stride, stride), edge, groups=16)
    graph, _ = passed(net.graph(net.conv(x, 8)), net, FAST)
    (op,) = tiled_graph(streamed(graph, Choice("pixel"), False), [ENDLESS], columns=True).ops
    assert op.loop is not None and op.loop.stream is not None and op.loop.stream.pixels == PIXELS
    ((down, across),) = lines_of(op.loop, flow_of(op.loop))
    inside = flow_of(op.loop).passed_on()
    found = capacities(op.loop)
    assert len(found) > len(inside) > 0
    for name, ring in found.items():
        rows, step = (1, 0) if name in inside else (down.width(name), ring.row)
        assert step % PIXELS == 0
        places = {
            (y * step + x) % ring.positions for y in range(rows) for x in range(across.width(name))
        }
        assert ring.held == max(places) + 1
        assert ring.size_bytes == ring.held * 16
        assert name not in inside or ring.held == min(PIXELS, width if stride == 1 else -(-width // 2))


def blocks(net: QuantizedNet, mean: bool) -> Graph:
    """Columns in stages of one layer, behind a depthwise one, before a sum and before a mean."""
    x = net.conv("x", 16, (3, 3), (2, 2), (1, 1, 1, 1))
    y = net.conv(net.conv(x, 24), 24, (5, 5), padding=(2, 2, 2, 2), groups=24)
    y = net.conv(net.add(x, net.conv(y, 16)), 12)
    return net.graph(net.mean(y) if mean else y)


@pytest.mark.parametrize("channels", [3, 12, 24])
@pytest.mark.parametrize(("toolchain", "emulator"), [("gcc", "qemu"), ("zig", "unicorn")])
def test_every_form_of_columns(
    channels: int, toolchain: str, emulator: EmulatorName, tmp_path: Path
) -> None:
    """Windows that are gathered or not, inside the image or not; a rest of pixels; both clamps."""
    net = Layers(5, 11, channels, seed=channels)
    windows = [((1, 1), 0, 1), ((1, 1), 1, 2), ((3, 3), 1, 1), ((2, 3), 0, 2)]
    outputs = [
        net.window(kernel, (step, step), (pad,) * 4, (1, 1), out, "deep", SHIFTS[0], full, 3000)
        for (kernel, pad, step), out, full in zip(
            windows, (5, 8, 12, 16), (True, False, True, False), strict=True
        )
    ]
    graph, image = net.graph(*outputs), net.image()
    wanted = list(run(graph, {**net.constants, "x": image}))
    marked, ctx = passed(graph, net, FAST)
    tiled = tiled_graph(marked, [ENDLESS] * len(marked.ops), columns=True)
    assert len(columns(tiled)) >= 2
    case = emitted(tiled, ctx.constants), image, wanted
    on_device(tmp_path, "mps2-an500", toolchain, emulator, case)


@pytest.mark.parametrize(("toolchain", "emulator"), [("gcc", "qemu"), ("zig", "unicorn")])
def test_layers_of_few_channels_side_by_side(
    toolchain: str, emulator: EmulatorName, tmp_path: Path
) -> None:
    """Kernels that differ in the clamp or the gathered numbers only; registers suffice for all."""
    net = QuantizedNet(3, 7, 8)
    x = net.conv("x", 12)
    outputs = [net.conv(y, 2, padding=(pad,) * 4) for y in ("x", x, net.conv(x, 20)) for pad in (0, 1)]
    net.lines.append(net.lines[1].replace("%v1:", "%all:").split(", clamp_min")[0] + ")")
    graph, image = net.graph(*outputs, "all"), net.image()
    wanted = list(run(graph, {**net.constants, "x": image}))
    marked, ctx = passed(graph, net, FAST)
    tiled = tiled_graph(marked, [ENDLESS] * len(marked.ops), columns=True)
    assert len(columns(tiled)) == len(tiled.ops)
    case = emitted(tiled, ctx.constants), image, wanted
    on_device(tmp_path, "mps2-an500", toolchain, emulator, case)


def test_registers_suffice_for_what_clang_inlines(tmp_path: Path) -> None:
    """All kernels of a stream become one function, in which clang keeps most registers busy."""
    net = QuantizedNet(7, 21, 8)
    x = net.conv(net.conv("x", 16), 16, (2, 2), (1, 2), (2, 1, 2, 1), groups=16)
    graph = net.graph(net.mean(net.conv(net.conv(net.conv(x, 8), 2), 5)))
    image = net.image()
    wanted = list(run(graph, {**net.constants, "x": image}))
    marked, ctx = passed(graph, net, FAST)
    wide = tiled_graph(streamed(marked, Choice("row"), False), [ENDLESS], columns=True)
    case = emitted(wide, ctx.constants), image, wanted
    on_device(tmp_path, "mps2-an500", "zig", "unicorn", case)


def test_weights_lie_at_words(tmp_path: Path) -> None:
    """Pairs of words are loaded from them, which traps anywhere else."""
    part = tmp_path / "part.toml"
    part.write_text('inherits = "stm32f746"\n[memory.flash]\nalignment = 1\n')
    flash = layout_of(load_target(part)).weights
    assert flash is not None and flash.alignment == 4


def test_scratch_that_is_too_small_or_of_no_use_stays_unused() -> None:
    net = QuantizedNet(4, 8, 16)
    marked, ctx = passed(net.graph(net.conv("x", 8)), net, FAST)
    enough = columns_bytes(marked.ops[0], types(marked))
    for graph, size in ((marked, enough), (marked, enough - 4), (net.graph("v0"), enough)):
        (op,) = graph.ops
        with_scratch = replace(graph, ops=(replace(op, scratch=(Scratch(size, alignment=4),)),))
        used = "_columns(" in emitted(with_scratch, {**net.constants, **ctx.constants})["net.c"]
        assert used == (graph is marked and size == enough)
