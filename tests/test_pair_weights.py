"""Depthwise weights by pairs of pixels: the order, the same results, and what stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mplan.diagnostics import MplanError
from mplan.ir.graph import Graph
from mplan.ir.interp import run
from mplan.ir.quantized_reference import paired, unpaired
from mplan.ir.verify import verify
from mplan.options import Options
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.pipeline import context_of
from mplan.targets import load_target
from tests.c_support import LAYOUT
from tests.quantized_nets import QuantizedNet


def test_the_order() -> None:
    plain = torch.arange(3 * 8).reshape(1, 3, 1, 8)
    first, second = paired(plain).reshape(2, 12).tolist()
    assert first == [0, 1, 8, 9, 2, 3, 10, 11, 16, 17, 18, 19]
    assert second == [n + 4 for n in first]


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 3, 3, 12), (1, 2, 4, 8), (1, 7, 7, 40)])
def test_reordering_can_be_undone(shape: tuple[int, ...]) -> None:
    weight = torch.randint(-127, 128, shape).to(torch.int8)
    assert paired(weight).shape == weight.shape
    assert torch.equal(unpaired(paired(weight)), weight)


def network(channels: int, out: int) -> tuple[QuantizedNet, Graph]:
    net = QuantizedNet(5, 6, channels)
    return net, net.graph(net.conv("x", out, (3, 2), padding=(1, 1, 0, 1), groups=channels))


def transformed(net: QuantizedNet, graph: Graph, passes: str, pairs: bool) -> tuple[Graph, Context]:
    ctx = Context(LAYOUT, constants=dict(net.constants), pairs=pairs)
    for pass_ in parse_pipeline(passes):
        graph = pass_.run(graph, ctx)
        assert pass_.run(graph, ctx) is graph
    return graph, ctx


ALL = "fold_zero_points,bound_sums,pair_weights"


def test_a_network_computes_the_same() -> None:
    net, graph = network(12, 12)
    changed, ctx = transformed(net, graph, ALL, True)
    verify(changed, deep=True)
    (op,) = changed.ops
    assert op.arg("weight_order") == "pairs"
    image = net.image()
    (before,) = run(graph, {**net.constants, "x": image})
    (after,) = run(changed, {**ctx.constants, "x": image})
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("channels", "out", "passes", "pairs"),
    [(12, 12, ALL, False), (10, 10, ALL, True), (4, 8, ALL, True), (12, 12, "pair_weights", True)],
)
def test_other_weights_stay(channels: int, out: int, passes: str, pairs: bool) -> None:
    net, graph = network(channels, out)
    changed, _ = transformed(net, graph, passes, pairs)
    assert changed.ops[0].arg("weight_order", "plain") == "plain"


@pytest.mark.parametrize(("channels", "order"), [(10, "pairs"), (12, "triples")])
def test_orders_that_do_not_exist(channels: int, order: str) -> None:
    _, graph = network(channels, channels)
    op = replace(graph.ops[0], args=(*graph.ops[0].args, ("weight_order", order)))
    with pytest.raises(MplanError) as caught:
        verify(replace(graph, ops=(op,)), deep=True)
    assert caught.value.code in ("MP104", "MP107") and order in str(caught.value)


@pytest.mark.parametrize(
    ("target", "pairs"), [("stm32f746", True), ("mps3-an547", False), ("rp2040", False)]
)
def test_the_target_decides(target: str, pairs: bool) -> None:
    assert context_of(load_target(target), {}, Options(target=target)).pairs is pairs
