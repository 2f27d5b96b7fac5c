"""Layers that promise small sums: what the constants must be like, and what a broken promise does."""

from __future__ import annotations

import pytest
import torch

from mplan.diagnostics import MplanError
from mplan.ir.graph import Graph
from mplan.ir.interp import run
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout
from mplan.passes.base import Context
from mplan.passes.bound_sums import BoundSums

ROW = "%x: i8[1,2], param %w: i8[2,2], const %b: i32[2], const %m: i32[1], const %s: i8[1]"
LINEAR = f"""graph @row({ROW}) {{
  %y: i8[1,2] = mplan.qlinear(input=%x, weight=%w, bias=%b, multiplier=%m, shift=%s, OPTIONS)
  return %y
}}"""
PLAIN = "input_zero_point=0, output_zero_point=3"
WEIGHT = torch.tensor([[-127, 3], [1, 1]], dtype=torch.int8)
LARGEST = 2**30 - 1 - 128 * 130  # the largest bias of the first row


def constants(bias: int = LARGEST, shift: int = -1) -> dict[str, torch.Tensor]:
    return {
        "w": WEIGHT,
        "b": torch.tensor([bias, 0], dtype=torch.int32),
        "m": torch.tensor([2**31 - 1], dtype=torch.int32),
        "s": torch.tensor([shift], dtype=torch.int8),
    }


def bounded(graph: Graph, values: dict[str, torch.Tensor]) -> tuple[Graph, Context]:
    ctx = Context(Layout(Region("arena")), constants=values)
    return BoundSums().run(graph, ctx), ctx


@pytest.mark.parametrize(
    "values",
    [{}, {"bias": -LARGEST}, {"shift": -30}, {"shift": -31}, {"shift": 0}, {"bias": 999, "shift": 9}],
)
def test_small_sums_are_marked_and_factors_become_one_per_channel(values: dict[str, int]) -> None:
    graph, given = parse(LINEAR.replace("OPTIONS", PLAIN)), constants(**values)
    marked, ctx = bounded(graph, given)
    (op,) = marked.ops
    assert op.arg("bounded") is True and op.arg("below_half") is (values.get("shift", -1) < 0)
    assert {i.value.name for i in marked.inputs} == {"x", "w", "b", *ctx.constants}
    assert [ctx.constants[op.arg(k).name].numel() for k in ("multiplier", "shift")] == [2, 2]  # type: ignore[union-attr]
    assert bounded(marked, dict(ctx.constants))[0] is marked
    for x in ([[-128, 127]], [[127, -128]]):
        image = {"x": torch.tensor(x, dtype=torch.int8)}
        (before,), (after,) = run(graph, {**given, **image}), run(marked, {**ctx.constants, **image})
        assert torch.equal(before, after)


def test_channels_with_one_result_get_a_small_factor() -> None:
    weight = torch.tensor([[0, 0], [5, 2], [5, 2], [0, 0]], dtype=torch.int8)
    given = {
        "w": weight,
        "b": torch.tensor([-77, 40, 40, 12345], dtype=torch.int32),
        "m": torch.tensor([3 << 29, 0, 3 << 29, 3 << 29], dtype=torch.int32),
        "s": torch.tensor([0, 0, -31, 9], dtype=torch.int8),
    }
    text = (
        LINEAR.replace("OPTIONS", PLAIN)
        .replace("i8[2,2]", "i8[4,2]")
        .replace("i8[1,2] = ", "i8[1,4] = ")
    )
    graph = parse(
        text.replace("i32[2]", "i32[4]").replace("i32[1]", "i32[4]").replace("%s: i8[1]", "%s: i8[4]")
    )
    marked, ctx = bounded(graph, given)
    assert marked.ops[0].arg("bounded") is True
    for x in ([[-128, 127]], [[127, 127]], [[0, 0]]):
        image = {"x": torch.tensor(x, dtype=torch.int8)}
        (before,), (after,) = run(graph, {**given, **image}), run(marked, {**ctx.constants, **image})
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"bias": LARGEST + 1}, PLAIN),
        ({"bias": -LARGEST - 1}, PLAIN),
        ({"shift": 1}, PLAIN),
        ({}, f'{PLAIN}, rounding="single"'),
        ({}, PLAIN.replace("=0", "=1")),
    ],
)
def test_other_layers_stay(values: dict[str, int], options: str) -> None:
    graph = parse(LINEAR.replace("OPTIONS", options))
    assert bounded(graph, constants(**values))[0] is graph


@pytest.mark.parametrize("values", [{"bias": 2**30}, {"shift": 1}, {"shift": -31}])
def test_a_broken_promise_is_an_error(values: dict[str, int]) -> None:
    graph = parse(LINEAR.replace("OPTIONS", f"{PLAIN}, bounded=true"))
    x = torch.tensor([[0, 0]], dtype=torch.int8)
    with pytest.raises(MplanError) as caught:
        run(graph, {"x": x, **constants(**values)})
    assert caught.value.code == "MP107" and "bounded" in str(caught.value)
