"""Zero points in biases: where sums could overflow, and under paddings of several origins."""

from __future__ import annotations

import pytest
import torch

from mplan.ir.graph import Graph
from mplan.ir.interp import run
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline

FACTORS = "multiplier=%m, shift=%s, output_zero_point=0, input_zero_point"
ROW = "graph @row(%x: i8[1,2], param %w: i8[2,2], const %b: i32[2], const %m: i32[1], const %s: i8[1])"
LINEAR = f"""{ROW} {{
  %y: i8[1,2] = mplan.qlinear(input=%x, weight=%w, bias=%b, {FACTORS}=ZERO)
  return %y
}}"""
IMAGE = "graph @image(%x: i8[1,3,4,2], param %w: i8[1,3,3,2], const %m: i32[1], const %s: i8[1])"
WINDOW = "stride=[1, 1], padding=[1, 1, 1, 1], dilation=[1, 1]"
PADDED = f"""{IMAGE} {{
  %p: i8[1,5,6,2] = aten.constant_pad_nd.default(self=%x, pad=[0, 0, 1, 1, 1, 1], value=-7)
  %y: i8[1,5,6,2] = mplan.qdepthwise_conv2d(input=%p, weight=%w, {WINDOW}, {FACTORS}=-7)
  return %y
}}"""
FACTOR = {
    "m": torch.tensor([2**30 + 12345], dtype=torch.int32),
    "s": torch.tensor([-3], dtype=torch.int8),
}


def folded(graph: Graph, pipeline: str, constants: dict[str, torch.Tensor]) -> tuple[Graph, Context]:
    ctx = Context(Layout(Region("arena")), constants=constants)
    for pass_ in parse_pipeline(pipeline):
        graph = pass_.run(graph, ctx)
    return graph, ctx


@pytest.mark.parametrize("zero", [-128, 127])
@pytest.mark.parametrize("room", [-1, 0])
def test_a_sum_that_could_overflow_is_left_alone(zero: int, room: int) -> None:
    weight = torch.tensor([[-127, 3], [1, 1]], dtype=torch.int8)
    moved = -zero * int(weight[0].sum())
    largest = 2**31 - 1 - 128 * 130 - room  # the largest bias after folding, and one more
    sign = 1 if moved > 0 else -1
    bias = torch.tensor([sign * largest - moved, 0], dtype=torch.int32)
    graph = parse(LINEAR.replace("ZERO", str(zero)))
    result, ctx = folded(graph, "fold_zero_points", {"w": weight, "b": bias, **FACTOR})
    assert (result is graph) == (room < 0)
    for x in ([[-128, 127]], [[127, -128]]):
        given = {"x": torch.tensor(x, dtype=torch.int8)}
        (before,) = run(graph, {**given, "w": weight, "b": bias, **FACTOR})
        (after,) = run(result, {**given, **ctx.constants})
        assert torch.equal(before, after)


@pytest.mark.parametrize("order", ["fold_padding,fold_zero_points", "fold_zero_points,fold_padding"])
def test_padding_folds_before_and_after(order: str) -> None:
    weight = torch.arange(-9, 9, dtype=torch.int8).reshape(1, 3, 3, 2)
    graph = parse(PADDED)
    result, ctx = folded(graph, order, {"w": weight, **FACTOR})
    (op,) = result.ops
    assert (op.arg("input_zero_point"), op.arg("padding_value")) == (0, -7)
    assert op.arg("padding") == (2, 2, 2, 2)
    x = torch.randint(-128, 128, (1, 3, 4, 2)).to(torch.int8)
    (before,), (after,) = (
        run(graph, {"x": x, "w": weight, **FACTOR}),
        run(result, {"x": x, **ctx.constants}),
    )
    assert torch.equal(before, after)
