"""int8 networks of many kinds run as streams, bit for bit inside the memory of their plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplan.codegen.c.emit import emit_c
from mplan.ir.bilinear import reach_of, tflite_places
from mplan.ir.geometry import geometry
from mplan.ir.graph import Graph
from mplan.ir.interp import run, run_in_arena
from mplan.ir.ops import graph_macs
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout
from mplan.ir.verify import verify
from mplan.passes.allocate_buffers import AllocateBuffers
from mplan.passes.base import Context
from mplan.passes.stream import StreamRows
from mplan.passes.stream.costs import Limits
from mplan.passes.stream.orders import orders
from mplan.passes.stream.search import Schedule, Segment
from mplan.passes.stream.space import Space
from mplan.pipeline import emitted
from tests.c_support import LAYOUT, run_program
from tests.quantized_nets import ONE, QuantizedNet

ARENA, FLASH = Region("sram"), Region("flash")
SAME = (1, 1, 1, 1)


class Net(QuantizedNet):
    """More ops than trained convolutions need."""

    def resize(self, x: str, factor: int, half_pixel: bool = False) -> str:
        _, h, w, c = self.shapes[x]
        size = [h * factor, w * factor]
        how = f"align_corners=false, half_pixel_centers={str(half_pixel).lower()}"
        return self.op("mplan.resize_nearest2d", (1, *size, c), f"input=%{x}, size={size}, {how}")

    def bilinear(self, x: str, height: int, width: int, corners: bool = False) -> str:
        _, h, w, c = self.shapes[x]
        rows, columns = (
            list(tflite_places(n, size, corners, not corners)) for n, size in ((h, height), (w, width))
        )
        given = f"input=%{x}, rows={rows}, columns={columns}"
        return self.op("mplan.resize_bilinear2d", (1, height, width, c), given)

    def cat(self, *names: str) -> str:
        shape = self.shapes[names[0]]
        channels = sum(self.shapes[n][3] for n in names)
        given = ", ".join(f"%{n}" for n in names)
        return self.op("aten.cat.default", (*shape[:3], channels), f"tensors=[{given}], dim=3")

    def pad(self, x: str, top: int, bottom: int, left: int, right: int) -> str:
        _, h, w, c = self.shapes[x]
        shape = (1, h + top + bottom, w + left + right, c)
        pad = [0, 0, left, right, top, bottom]
        return self.op("aten.constant_pad_nd.default", shape, f"self=%{x}, pad={pad}, value=7")

    def linear(self, x: str, features: int) -> str:
        shape = self.shapes[x]
        weight = self.integers(-127, 128, features, shape[-1]).to(torch.int8)
        factors = self.integers(ONE, 2 * ONE - 1, features).to(torch.int32)
        shifts = torch.full((features,), -7, dtype=torch.int8)
        args = (
            f"input=%{x}, weight={self.constant('w', weight)}",
            f"multiplier={self.constant('m', factors)}, shift={self.constant('s', shifts)}",
            "input_zero_point=3, output_zero_point=-5",
        )
        return self.op("mplan.qlinear", (*shape[:-1], features), *args)

    def softmax(self, x: str) -> str:
        rest = f"multiplier={ONE}, shift=23, diff_min=-250"
        return self.op("mplan.qsoftmax", self.shapes[x], f"input=%{x}, {rest}")

    def matmul(self, a: str, b: str) -> str:
        shape = (*self.shapes[a][:-1], self.shapes[b][-1])
        zeros = "input_zero_point=1, other_zero_point=-2"
        factor = f"multiplier={ONE}, shift=-7, output_zero_point=0"
        return self.op("mplan.qmatmul", shape, f"input=%{a}, other=%{b}, {zeros}, {factor}")

    def turned(self, x: str) -> str:
        """A matrix as its transposed one."""
        _, rows, columns = self.shapes[x]
        args = f"self=%{x}, dims=[0, 2, 1]"
        return self.op("aten.permute_copy.default", (1, columns, rows), args)

    def view(self, x: str, shape: tuple[int, ...]) -> str:
        name = self.op("aten.view.default", shape, f"self=%{x}, size={list(shape)}")
        self.lines[-1] = self.lines[-1].replace(" = ", f" view(%{x}) = ")
        return name


def detector(net: Net) -> Graph:
    """A feature pyramid with a head of shared shape on every level."""
    a = net.conv("x", 8, (3, 3), (2, 2), SAME)
    b = net.conv(a, 12, (3, 3), (2, 2), SAME)
    c = net.conv(b, 16, (3, 3), (2, 2), SAME)
    p3 = net.conv(c, 6)
    p2 = net.add(net.conv(b, 6), net.resize(p3, 2))
    p1 = net.add(net.conv(a, 6), net.resize(p2, 2, half_pixel=True))
    return net.graph(*(net.conv(p, 5, (3, 3), padding=SAME) for p in (p1, p2, p3)))


def keywords(net: Net) -> Graph:
    """A DS-CNN: an uneven first kernel, depthwise and pointwise convolutions, a mean."""
    x = net.conv("x", 12, (10, 4), (2, 2), (4, 5, 1, 1))
    for _ in range(3):
        x = net.conv(net.conv(x, 12, (3, 3), padding=SAME, groups=12), 12)
    return net.graph(net.mean(x))


def autoencoder(net: Net) -> Graph:
    """Convolutions down, enlargement and convolutions up."""
    x = net.conv(net.conv("x", 8, (3, 3), (2, 2), SAME), 12, (4, 4), (2, 2), SAME)
    x = net.conv(net.resize(x, 2), 8, (3, 3), padding=SAME)
    return net.graph(net.conv(net.resize(x, 2), 2, (3, 3), padding=SAME))


def decoder(net: Net) -> Graph:
    """A U-Net: transposed convolutions up, a skip connection, channels by themselves at last."""
    a = net.conv("x", 8, (3, 3), (2, 2), SAME)
    b = net.conv(a, 12, (3, 3), (2, 2), SAME)
    up = net.transposed(b, 8, (2, 2))
    x = net.conv(net.cat(up, a), 8, (3, 3), padding=SAME)
    x = net.transposed(x, 6, (3, 3), padding=(1, 0, 1, 0))
    return net.graph(net.transposed(x, 6, (4, 5), (3, 2), (1, 1, 2, 1), groups=6))


def segments(net: Net) -> Graph:
    """A coarse map that is resized by odd factors, to the size of the image at last."""
    a = net.conv("x", 8, (3, 3), (2, 2), SAME)
    x = net.bilinear(net.conv(a, 6, (3, 3), (2, 2), SAME), *net.shapes[a][1:3])
    x = net.conv(net.cat(x, a), 6, (3, 3), padding=SAME)
    x = net.bilinear(net.bilinear(x, 11, 5), 14, 7, corners=True)
    return net.graph(net.bilinear(net.conv(x, 3), *net.shapes["x"][1:3]))


def branches(net: Net) -> Graph:
    """Branches of pools, padding and convolutions, joined by their channels."""
    a = net.conv("x", 6, (3, 3), padding=SAME)
    b = net.pool(net.pad(a, 1, 0, 2, 1), "max", 3, 1)
    c = net.pool(a, "avg", 3, 1, 1)
    b = net.pad(b, 1, 0, 0, 0)
    b = net.conv(b, 6, (1, 2))
    x = net.cat(a, c, net.conv(b, 3, (1, 1), padding=(0, 0, 0, 0)))
    return net.graph(net.conv(x, 4, (2, 2), (2, 2)))


def segmenter(net: Net) -> Graph:
    """Classes of every pixel: a linear layer and a softmax over channels."""
    x = net.conv(net.conv("x", 8, (3, 3), (2, 2), SAME), 8, (3, 3), padding=SAME)
    return net.graph(net.softmax(net.linear(net.table(x), 5)))


def excited(net: Net) -> Graph:
    """Squeeze and excitation twice."""
    x = net.conv("x", 8, (3, 3), (2, 2), SAME)
    for _ in range(2):
        gate = net.table(net.conv(net.conv(net.mean(x), 4), 8))
        x = net.add(x, net.conv(net.mul(x, gate), 8, (3, 3), padding=SAME))
    return net.graph(net.mean(x))


def transformer(net: Net) -> Graph:
    """A convolution into patches, then attention between them, which has no rows."""
    x = net.conv("x", 8, (4, 4), (4, 4))
    _, h, w, c = net.shapes[x]
    tokens = net.view(x, (1, h * w, c))
    keys = net.turned(net.linear(tokens, 8))
    weights = net.softmax(net.matmul(net.linear(tokens, 8), keys))
    return net.graph(net.linear(net.matmul(weights, tokens), 4))


NETS: dict[str, tuple[Callable[[Net], Graph], tuple[int, int, int]]] = {
    "detector": (detector, (16, 24, 3)),
    "keywords": (keywords, (25, 10, 1)),
    "autoencoder": (autoencoder, (20, 12, 2)),
    "decoder": (decoder, (12, 16, 2)),
    "segments": (segments, (13, 16, 2)),
    "branches": (branches, (12, 10, 3)),
    "segmenter": (segmenter, (14, 18, 3)),
    "excited": (excited, (14, 12, 3)),
    "transformer": (transformer, (16, 16, 3)),
}
CONVOLUTIONAL = [name for name in NETS if name != "transformer"]
PASSES = [
    StreamRows(pixels=False, strips=0, input="rows"),
    StreamRows(input="flash"),
    StreamRows(input="whole", max_mac_factor=1.4),
    StreamRows(input="flash", rows=False, max_mac_factor=9),
]


@pytest.mark.parametrize("pass_", PASSES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_networks_stream_bit_for_bit(name: str, pass_: StreamRows) -> None:
    build, size = NETS[name]
    net = Net(*size)
    graph, values = build(net), {"x": net.image()}
    verify(graph)
    values |= net.constants
    ctx = Context(Layout(ARENA, FLASH, ARENA), constants=net.constants)
    found = pass_.run(graph, ctx)
    verify(found)
    assert parse(str(found)) == found
    assert graph_macs(found) <= graph_macs(graph) * max(pass_.max_mac_factor, 1)
    AllocateBuffers().run(found, ctx)
    assert ctx.plan is not None and ctx.lowered is not None and ctx.streamed is not None
    certificate = ctx.streamed.certificate
    assert certificate.lower_bound_bytes <= certificate.value_bytes <= ctx.streamed.layered_bytes
    out = run_in_arena(found, ctx.lowered, ctx.plan, values)
    for mine, wanted in zip(out, run(graph, values), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("name", ["detector", "branches"])
def test_networks_that_branch_run_in_their_best_order(name: str) -> None:
    """No worse than any order that is tried, each of them valid and with the same results."""
    build, size = NETS[name]
    net = Net(*size)
    graph = build(net)
    values = {**net.constants, "x": net.image()}
    layout = Layout(ARENA, FLASH)
    tried = list(orders(graph, layout))
    assert len(tried) > 1 and tried[0] is graph
    least = []
    for other in tried:
        verify(other)
        assert all(map(torch.equal, run(other, values), run(graph, values)))
        least.append(Space(other, "rows", Limits(), layout).least_peak(graph_macs(graph)))
    ctx = Context(layout)
    StreamRows(input="rows").run(graph, ctx)
    assert ctx.streamed is not None
    assert ctx.streamed.certificate.lower_bound_bytes == min(s.peak_bytes for s in least if s)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_op_of_a_convolutional_network_has_rows(name: str) -> None:
    build, size = NETS[name]
    graph = build(Net(*size))
    types = {v.name: v.type for v in graph.values}
    assert [op.kind for op in graph.ops if geometry(op, types) is None] == []


def test_enlargement_by_no_whole_factor_has_no_rows() -> None:
    net = Net(4, 6, 2)
    graph = net.graph(net.resize("x", 2))
    text = str(graph).replace("size=[8, 12]", "size=[8, 9]").replace("i8[1,8,12,2]", "i8[1,8,9,2]")
    for found, has in ((graph, True), (parse(text), False)):
        types = {v.name: v.type for v in found.values}
        assert (geometry(found.ops[0], types) is not None) == has


@given(
    st.integers(1, 40),
    st.integers(1, 90),
    st.sampled_from([(False, False), (False, True), (True, False)]),
)
def test_the_reach_of_a_resize_is_what_it_reads(
    length: int, wanted: int, how: tuple[bool, bool]
) -> None:
    """All pixels of each place, and of places that lie evenly at most one more on each side."""
    places = tflite_places(length, wanted, *how)
    reach = reach_of(places, length)
    for o, place in enumerate(places):
        first, end = reach.span(o, o + 1)
        pixels = place // 1024, -(-place // 1024) + 1
        assert first <= pixels[0] and pixels[1] <= end
        assert pixels[0] - first <= 1 and end - pixels[1] <= 1


def test_ops_without_code_stay_out_of_streams() -> None:
    """An enlargement for which no C by rows exists ends a stream, and is planned as it is."""
    net = Net(20, 12, 2)
    graph = autoencoder(net)

    def emits(op: object, rule: object) -> bool:
        return getattr(op, "kind", "") != "mplan.resize_nearest2d"

    ctx = replace(Context(Layout(ARENA, FLASH, ARENA)), emits=emits)
    found = StreamRows(input="rows").run(graph, ctx)
    assert sum(op.kind == "mplan.resize_nearest2d" for op in found.ops) == 2
    assert any(op.loop for op in found.ops) and not ctx.notes
    verify(found)


def test_code_is_generated_for_convolutions_and_what_reads_their_pixels() -> None:
    net = Net(14, 12, 3)
    graph = excited(net)
    types = {v.name: v.type for v in graph.values}
    rules = [(op, geometry(op, types)) for op in graph.ops]
    assert all(rule is not None and emitted(op, rule) for op, rule in rules)


def test_several_images_at_once_are_not_streamed() -> None:
    """No C is generated for streams of them, so those that do not fit are refused as they are."""
    pool = "mplan.qmax_pool2d(input=%x, kernel_size=[3, 3], stride=[1, 1], padding=[1, 1, 1, 1])"
    for count, streams in ((1, True), (2, False)):
        images = f"i8[{count},6,6,4]"
        graph = parse(f"graph @g(%x: {images}) {{\n  %y: {images} = {pool}\n  return %y\n}}")
        (op,) = graph.ops
        rule = geometry(op, {v.name: v.type for v in graph.values})
        assert rule is not None and emitted(op, rule) == streams


def joined(pass_: StreamRows, graph: Graph, ctx: Context) -> Graph:
    """``graph`` in streams that are as long as they can be."""
    space = pass_.space(graph, ctx)
    assert space is not None
    segments: list[Segment] = []
    first = 0
    while first < space.units:
        ways = {end: o for (start, end), o in space.table.items() if start == first}
        end = max(ways)
        option = next((o for o in ways[end] if o.choice), ways[end][0])
        segments.append(Segment(first, end, option))
        first = end
    return space.build(Schedule(tuple(segments), 0, space.macs)).graph


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["cut", "one"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_c_of_these_networks_has_the_same_bytes(name: str, whole: bool, tmp_path: Path) -> None:
    """With the cuts of the pass, and all ops in as few streams as there can be."""
    build, size = NETS[name]
    net = Net(*size)
    graph, image = build(net), net.image()
    wanted = run(graph, {**net.constants, "x": image})
    ctx = Context(LAYOUT, constants=net.constants, emits=emitted)
    pass_ = StreamRows(max_mac_factor=1.3)
    found = joined(pass_, graph, ctx) if whole else pass_.run(graph, ctx)
    assert any(op.loop for op in found.ops) and not ctx.notes
    alone = {op.kind for op in found.ops}
    assert not whole or not alone & {"mplan.resize_nearest2d", "aten.constant_pad_nd.default"}
    AllocateBuffers().run(found, ctx)
    assert ctx.lowered is not None and ctx.plan is not None
    files = emit_c(found, ctx.lowered, ctx.plan, net.constants, name="net")
    ours = run_program(tmp_path, {n: str(t) for n, t in files.items()}, [image], wanted)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert torch.equal(mine, theirs)
