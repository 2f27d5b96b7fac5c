"""Streams compute what their bodies compute, in rings that could not be smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from mplan.diagnostics import CheckError
from mplan.ir.graph import Graph, Op, Ring, Scratch, Stream
from mplan.ir.interp import run
from mplan.ir.ops import graph_macs
from mplan.ir.parser import parse
from mplan.ir.rings import ring_needs
from mplan.ir.streaming import nodes_of
from mplan.ir.verify import verify
from mplan.passes.stream.attach import attach
from mplan.passes.stream.build import Choice, stream_op
from tests.stream_nets import NETS, graph_of

CHOICES = [
    Choice("row"),
    Choice("row", up=True),
    Choice("row", width=3),
    Choice("pixel"),
    Choice("pixel", up=True),
    Choice("pixel", width=4),
]


def streamed(graph: Graph, choice: Choice, pushed: bool) -> Graph:
    """``graph`` with all its ops in one stream."""
    nodes = nodes_of(graph)
    users = [i.value.name for i in graph.inputs if i.role == "input"] if pushed else []
    results = [graph.value_table[name] for name in graph.output_names]
    results = [replace(value, alias=None) for value in results]
    op = stream_op(nodes, results, graph.value_table, choice, users)
    found = replace(graph, ops=(op,))
    verify(found, deep=True)
    return found


def stream_of(graph: Graph) -> tuple[Op, Stream]:
    (op,) = graph.ops
    assert op.loop is not None and op.loop.stream is not None
    return op, op.loop.stream


def with_rings(graph: Graph, rings: tuple[Ring, ...]) -> Graph:
    op, stream = stream_of(graph)
    assert op.loop is not None
    return replace(
        graph, ops=(replace(op, loop=replace(op.loop, stream=replace(stream, rings=rings))),)
    )


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("name", ["gated", "keywords", "autoencoder", "unet"])
def test_a_stream_equals_its_body(name: str, choice: Choice) -> None:
    module, shape = NETS[name]
    graph, values = graph_of(module(), shape)
    graph = attach(graph)
    wanted = run(graph, values)
    assert float(wanted[0].abs().max()) > 0
    found = streamed(graph, choice, pushed=not choice.width)
    assert parse(str(found)) == found
    assert same(run(found, values), wanted)


def test_a_stream_of_several_results_equals_its_body() -> None:
    module, shape = NETS["pyramid"]
    graph, values = graph_of(module(), shape)
    wanted = run(graph, values)
    for choice in (Choice("row"), Choice("row", up=True), Choice("pixel")):
        assert same(run(streamed(graph, choice, True), values), wanted)


def test_rings_of_a_residual_block() -> None:
    """Rings of k rows; k // 2 + 1 rows wait for the sum; one pixel passes from op to op."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wide = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 1)
            self.depth, self.thin = nn.Conv2d(8, 8, 5, 1, 2, groups=8), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x)
            z: torch.Tensor = y + self.thin(torch.relu(self.depth(torch.relu(self.wide(y)))))
            return z

    graph, _ = graph_of(Block(), (1, 3, 40, 40))
    names = [node.out for node in nodes_of(attach(graph))]
    _, rows = stream_of(streamed(attach(graph), Choice("row"), True))
    assert rows.rings == (Ring("x", 3), Ring(names[0], 3), Ring(names[1], 5), Ring(names[2], 0, 1))
    _, pixels = stream_of(streamed(attach(graph), Choice("pixel"), True))
    wanted = (Ring("x", 2, 3), Ring(names[0], 2, 3), Ring(names[1], 4, 5), Ring(names[2], 0, 1))
    assert pixels.rings == wanted


@pytest.mark.parametrize("unit", ["row", "pixel"])
def test_smaller_rings_are_rejected_and_would_be_wrong(unit: Any) -> None:
    module, shape = NETS["keywords"]
    graph, values = graph_of(module(), shape)
    graph = attach(graph)
    wanted = run(graph, values)
    found = streamed(graph, Choice(unit), True)
    op, stream = stream_of(found)
    assert op.loop is not None
    for number, ring in enumerate(stream.rings):
        less = (
            replace(ring, rows=ring.rows - 1)
            if not ring.pixels
            else replace(ring, pixels=ring.pixels - 1)
        )
        if not less.rows and not less.pixels:
            continue
        rings = (*stream.rings[:number], less, *stream.rings[number + 1 :])
        short = with_rings(found, rings)
        with pytest.raises(CheckError, match="ring"):
            verify(short)
        assert not same(run(short, values), wanted), ring


@pytest.mark.parametrize("factor", [3.0, 3.3])
def test_enlarging_by_a_fraction_has_no_rule(factor: float) -> None:
    """From 3 to 9 pixels: a third per pixel, or a fraction of which torch takes the floor."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(torch.relu(x), scale_factor=factor)

    graph, values = graph_of(Net(), (1, 2, 3, 3))
    wanted = run(graph, values)
    assert wanted[0].shape == (1, 2, 9, 9)
    rules = [node.rules for node in nodes_of(graph)]
    assert all(rules) == (factor == 3.0)
    if all(rules):
        assert same(run(streamed(graph, Choice("row"), False), values), wanted)


def test_factors_whose_reciprocal_is_too_small_have_no_rule() -> None:
    text = """graph @wide(%x: f32[1,1,2,2]) {{
      %y: f32[1,1,{n},{n}] = aten.upsample_nearest2d.default(self=%x, output_size=[{n}, {n}])
      return %y
    }}"""
    image = torch.arange(4.0).reshape(1, 1, 2, 2)
    for factor in range(1, 42):
        graph = parse(text.format(n=2 * factor))
        plain = image.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        assert torch.equal(run(graph, {"x": image})[0], plain) == bool(nodes_of(graph)[0].rules)


def test_an_image_that_is_its_own_kernel_has_no_rule() -> None:
    text = """graph @own(%x: f32[1,1,4,4]) {
      %y: f32[1,1,3,3] = aten.conv2d.default(input=%x, weight=%x, padding=[1, 1])
      return %y
    }"""
    assert not nodes_of(parse(text))[0].rules


@pytest.mark.parametrize("choice", [Choice("row"), Choice("row", up=True), Choice("pixel", up=True)])
def test_only_a_stream_by_pixels_that_goes_down_makes_several(choice: Choice) -> None:
    module, shape = NETS["gated"]
    graph, _ = graph_of(module(), shape)
    found = streamed(attach(graph), choice, False)
    op, stream = stream_of(found)
    assert op.loop is not None
    loop = replace(op.loop, stream=replace(stream, pixels=4))
    with pytest.raises(CheckError, match="only a stream by pixels that goes down"):
        verify(replace(found, ops=(replace(op, loop=loop),)))


def test_a_ring_for_a_weight_is_rejected() -> None:
    module, shape = NETS["gated"]
    graph, _ = graph_of(module(), shape)
    found = streamed(attach(graph), Choice("row"), True)
    _, stream = stream_of(found)
    weight = next(i.value.name for i in graph.inputs if i.role != "input")
    with pytest.raises(CheckError, match="a ring belongs to"):
        verify(with_rings(found, (*stream.rings, Ring(weight, 3))))


def test_scratch_of_ops_inside_is_part_of_the_streams() -> None:
    module, shape = NETS["gated"]
    graph, _ = graph_of(module(), shape)
    found = streamed(attach(graph), Choice("row"), True)
    op, _ = stream_of(found)
    assert op.loop is not None
    first, *others = op.loop.body.ops
    body = replace(op.loop.body, ops=(replace(first, scratch=(Scratch(5000),)), *others))
    bad = replace(found, ops=(replace(op, loop=replace(op.loop, body=body)),))
    with pytest.raises(CheckError, match="for rings and kernels that need"):
        verify(bad)


def test_strips_cost_their_halos_and_only_them() -> None:
    module, shape = NETS["autoencoder"]
    graph, _ = graph_of(module(), shape)
    whole = streamed(graph, Choice("row"), False)
    assert graph_macs(whole) == graph_macs(graph)
    halves = streamed(graph, Choice("row", width=10), False)
    quarters = streamed(graph, Choice("row", width=5), False)
    assert graph_macs(graph) < graph_macs(halves) < graph_macs(quarters)


def layer(kind: str, c: int, k: int, s: int, p: int, d: int) -> nn.Module:
    reach = (k - 1) * d + 1
    return {
        "conv": nn.Conv2d(c, 5, k, s, p, d),
        "depthwise": nn.Conv2d(c, c, k, s, p, d, groups=c),
        "transposed": nn.ConvTranspose2d(c, 3, k, s, min(p, reach - 1), dilation=d),
        "max": nn.MaxPool2d(k, s, min(p, k // 2), d, ceil_mode=bool(p % 2)),
        "avg": nn.AvgPool2d(k, s, min(p, k // 2), ceil_mode=bool(d % 2), count_include_pad=bool(s % 2)),
    }[kind]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["conv", "depthwise", "transposed", "max", "avg"]),
    k=st.integers(1, 7),
    s=st.integers(1, 3),
    p=st.integers(0, 4),
    d=st.integers(1, 2),
    c=st.sampled_from([1, 2, 7, 40]),
    size=st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 5, 9, 33])),
    choice=st.sampled_from(CHOICES),
    pushed=st.booleans(),
)
def test_any_window(
    kind: str, k: int, s: int, p: int, d: int, c: int, size: Any, choice: Choice, pushed: bool
) -> None:
    """A window operator between two convolutions, of any geometry."""
    net = nn.Sequential(nn.Conv2d(2, c, 3, 1, 1), layer(kind, c, k, s, p, d), nn.LazyConv2d(2, 2, 1, 1))
    try:
        net(torch.zeros(1, 2, *size))
    except RuntimeError:
        assume(False)
    graph, values = graph_of(net, (1, 2, *size))
    wanted = run(graph, values)
    found = streamed(attach(graph), choice, pushed)
    op, stream = stream_of(found)
    assert op.loop is not None and ring_needs(op.loop) == stream.rings
    out = run(found, values)
    assert out[0].shape == wanted[0].shape
    # a maximum over padding alone is minus infinity, from which the next layer makes NaN
    assert torch.allclose(out[0], wanted[0], rtol=1e-6, atol=1e-5, equal_nan=True)
