"""Quantised PyTorch graphs in integers: what is lowered, what stays, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mplan
from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.affine import Affine
from mplan.ir.graph import Graph
from mplan.ir.parser import parse
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.lower_quantized import LowerQuantized
from mplan.passes.lower_quantized.goal import Goal
from tests.c_support import LAYOUT
from tests.qdq_nets import Calls, lowered, outputs_of, quantized

IMAGE = (2, 6, 9, 7)
ROWS = (5, 3, 12)


def per_tensor(dtype: str, least: int, most: int, kind: str = "per_tensor.default") -> str:
    """A graph that quantises and dequantises its input and multiplies the result."""
    args = f"scale=0.1, zero_point=3, quant_min={least}, quant_max={most}, dtype=dtype({dtype})"
    library = "quantized_decomposed"
    return f"""graph @net(%x: f32[2,3]) {{
      %q: {dtype}[2,3] = {library}.quantize_{kind}(input=%x, {args}) loc("net.py":7)
      %d: f32[2,3] = {library}.dequantize_{kind}(input=%q, {args})
      %y: f32[2,3] = aten.exp.default(self=%d) loc("net.py":8)
      %z: f32[2,3] = aten.cumsum.default(self=%y, dim=0) loc("net.py":9)
      return %z
    }}"""


def lower(text: str, constants: dict[str, torch.Tensor] | None = None) -> tuple[Graph, Context]:
    ctx = Context(LAYOUT, constants=constants or {})
    graph = LowerQuantized().run(parse(text), ctx)
    verify(graph, deep=True)
    return graph, ctx


def test_what_has_no_integer_form_stays_float_and_is_named() -> None:
    graph, ctx = lower(per_tensor("i8", -128, 127))
    kinds = [op.kind for op in graph.ops]
    expected = ["mplan.quantize", "mplan.dequantize", "aten.exp.default", "aten.cumsum.default"]
    assert kinds == expected
    assert [note.partition(":")[2].strip()[:26] for note in ctx.notes] == [
        "aten.exp.default at net.py",
        "aten.cumsum.default at net",
    ]


def test_other_widths_are_refused_with_their_places() -> None:
    with pytest.raises(UnsupportedError, match="int16, not 8 bits") as caught:
        lower(per_tensor("i16", -32768, 32767))
    assert caught.value.code == "MP314"
    assert caught.value.where is not None and caught.value.where.line == 7


def test_calibration_needs_data() -> None:
    with pytest.raises(UserError) as caught:
        mplan.quantize(nn.ReLU().eval(), [])
    assert caught.value.code == "MP315"
    with pytest.raises(UserError, match="training mode"):
        mplan.quantize(nn.ReLU(), torch.ones(2, 3))
    lone = mplan.quantize(nn.ReLU().eval(), torch.ones(2, 3))
    assert lone.module()(torch.ones(2, 3)).shape == (2, 3)


FLOATS: dict[str, Any] = {
    "after_a_permutation": lambda f, x: f(torch.cumsum(x.permute(0, 2, 3, 1)[:, 2:], 1)),
    "between_layers": lambda f, x: f(torch.cumsum(f(x.permute(0, 2, 3, 1)), 1)),
    "split_in_two": lambda f, x: torch.add(*torch.cumsum(x, 2).transpose(1, 3).chunk(2, 1)),
    "at_the_end": lambda f, x: torch.cumsum(f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_between_integers_compute_the_same(name: str) -> None:
    torch.manual_seed(1)
    model = Calls(FLOATS[name], nn.Linear(6, 6))
    if name == "split_in_two":
        model = Calls(lambda x: FLOATS[name](None, x))
    captured, inputs = quantized(model, [(2, 6, 4, 8)])
    graph, constants, notes = lowered(captured)
    assert any("cumsum" in note for note in notes)
    (simulated,) = outputs_of(captured.graph, captured.constants, inputs)
    (ours,) = outputs_of(graph, constants, inputs)
    assert ours.shape == simulated.shape
    assert (ours - simulated).abs().max() <= 0.02 * simulated.abs().max()


def sandwich(body: str, shapes: str, result: str, scale: float = 0.25) -> str:
    """A graph whose input %x is dequantised to %d; ``body`` makes %y of it, which is quantised."""
    into = "quantized_decomposed.quantize_per_tensor.default"
    out_of = "quantized_decomposed.dequantize_per_tensor.default"
    bits = "quant_min=-128, quant_max=127, dtype=dtype(i8)"
    return f"""graph @net({shapes}) {{
      %d: f32[2,3,4] = {out_of}(input=%x, scale=0.125, zero_point=5, {bits})
      {body.strip()}
      %z: i8[{result}] = {into}(input=%y, scale={scale}, zero_point=-4, {bits})
      return %z
    }}"""


PER_TENSOR = "scale=0.01, zero_point=0, quant_min=-127, quant_max=127, dtype=dtype(i8)"
X = "%x: i8[2,3,4]"
WEIGHT = "param %w: i8[4,4]"
DQ = f"%v: f32[4,4] = quantized_decomposed.dequantize_per_tensor.default(input=%w, {PER_TENSOR})"
FLAT = "%f: f32[6,4] view(%d) = aten.view.default(self=%d, size=[6, 4])"
CHANNELS = "quant_min=-127, quant_max=127, dtype=dtype(i8)"
BODIES: dict[str, tuple[str, str, str, str]] = {
    "weights_by_t": (
        f"""{DQ}
        %t: f32[4,4]<1,4> view(%v) = aten.t.default(self=%v)
        {FLAT}
        %y: f32[6,4] = aten.mm.default(self=%f, mat2=%t)""",
        f"{X}, {WEIGHT}",
        "6,4",
        "mplan.qlinear",
    ),
    "weights_by_transpose": (
        f"""{DQ}
        %t: f32[4,4]<1,4> view(%v) = aten.transpose.int(self=%v, dim0=-1, dim1=0)
        {FLAT}
        %y: f32[6,4] = aten.addmm.default(self=%b, mat1=%f, mat2=%t)""",
        f"{X}, {WEIGHT}, param %b: f32[4]",
        "6,4",
        "mplan.qlinear",
    ),
    "products_with_factors": (
        f"""{DQ}
        {FLAT}
        %y: f32[6,4] = aten.addmm.default(self=%b, mat1=%f, mat2=%v, beta=2)""",
        f"{X}, {WEIGHT}, param %b: f32[4]",
        "6,4",
        "aten.addmm.default: its operands have factors",
    ),
    "a_bias_per_row": (
        f"""{DQ}
        {FLAT}
        %y: f32[6,4] = aten.addmm.default(self=%b, mat1=%f, mat2=%v)""",
        f"{X}, {WEIGHT}, param %b: f32[6,1]",
        "6,4",
        "its bias is no constant per output",
    ),
    "scales_of_the_inputs": (
        f"""%v: f32[4,4] = quantized_decomposed.dequantize_per_channel.default(input=%w, scales=%s,
          zero_points=%o, axis=0, {CHANNELS})
        {FLAT}
        %y: f32[6,4] = aten.mm.default(self=%f, mat2=%v)""",
        f"{X}, {WEIGHT}, param %s: f32[4], param %o: i64[4]",
        "6,4",
        "scaled along dimension 0, not 1",
    ),
    "limits_by_default": (
        "%y: f32[2,3,4] = aten.hardtanh.default(self=%d)",
        X,
        "2,3,4",
        "mplan.requantize",
    ),
    "a_sum_with_a_number": (
        "%y: f32[2,3,4] = aten.add.Tensor(self=%d, other=0.3)",
        X,
        "2,3,4",
        "mplan.qtable",
    ),
    "a_factor_that_is_a_constant": (
        "%y: f32[2,3,4] = aten.div.Tensor(self=%d, other=%c)",
        f"{X}, const %c: f32[]",
        "2,3,4",
        "mplan.requantize",
    ),
    "a_copy": (
        "%y: f32[2,3,4] = aten._to_copy.default(self=%d, dtype=dtype(f32))",
        X,
        "2,3,4",
        "mplan.requantize",
    ),
    "a_clamp_of_a_pad": (
        """%s: f32[2,3,4] = aten.mul.Tensor(self=%d, other=%d)
        %p: f32[2,3,6] = aten.constant_pad_nd.default(self=%s, pad=[1, 1], value=0.0)
        %y: f32[2,3,6] = aten.clamp.default(self=%p, min=0.5, max=4.0)""",
        X,
        "2,3,6",
        "mplan.requantize",
    ),
    "two_readings_of_the_same_integers": (
        f"""%v: f32[2,3,4] = quantized_decomposed.dequantize_per_tensor.default(input=%x, {PER_TENSOR})
        %y: f32[2,3,4] = aten.add.Tensor(self=%d, other=%v)""",
        X,
        "2,3,4",
        "mplan.qadd",
    ),
    "a_mean_of_all": ("%y: f32[] = aten.mean.default(self=%d)", X, "", "mplan.qmean"),
}


@pytest.mark.parametrize("name", BODIES)
def test_forms_of_ops(name: str) -> None:
    body, shapes, result, expected = BODIES[name]
    graph = parse(sandwich(body, shapes, result))
    verify(graph, deep=True)
    torch.manual_seed(2)
    constants: dict[str, torch.Tensor] = {}
    for item in graph.inputs:
        sizes, kind = item.value.type.shape, item.value.type.dtype.value  # type: ignore[union-attr]
        if item.role != "input":
            made = torch.rand(sizes) if kind == "f32" else torch.randint(-90, 90, sizes)
            made = torch.zeros(sizes, dtype=torch.int64) if kind == "i64" else made
            constants[item.value.name] = made.to(torch.int8) if kind == "i8" else made
    ctx = Context(LAYOUT, constants=constants)
    changed = LowerQuantized().run(graph, ctx)
    verify(changed, deep=True)
    kinds = [op.kind for op in changed.ops]
    if expected.startswith("mplan."):
        assert expected in kinds and not ctx.notes
    else:
        assert any(expected in note for note in ctx.notes)
    x = torch.randint(-128, 128, (2, 3, 4), dtype=torch.int8)
    (ours,) = outputs_of(changed, ctx.constants, [x])
    (theirs,) = outputs_of(graph, constants, [x])
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_integers_between_quantize_and_dequantize_are_moved() -> None:
    body = f"""%r: f32[2,3,4] = aten.relu.default(self=%d)
      %q: i8[2,3,4] = quantized_decomposed.quantize_per_tensor.default(input=%r, {PER_TENSOR})
      %v: i8[2,12] view(%q) = aten.view.default(self=%q, size=[2, 12])
      %e: f32[2,12] = quantized_decomposed.dequantize_per_tensor.default(input=%v, {PER_TENSOR})
      %y: f32[2,12] = aten.sigmoid.default(self=%e)"""
    graph, ctx = lower(sandwich(body, X, "2,12", 1 / 256))
    assert [op.kind for op in graph.ops] == ["mplan.requantize", "aten.view.default", "mplan.qtable"]
    assert not ctx.notes


def test_weights_get_coarser_where_a_bias_would_not_fit() -> None:
    """The second channel's bias is 2**35 of its products."""
    body = f"""%v: f32[2,4] = quantized_decomposed.dequantize_per_channel.default(input=%w, scales=%s,
        zero_points=%o, axis=0, {CHANNELS})
      %y: f32[2,3,2] = aten.linear.default(input=%d, weight=%v, bias=%b)"""
    shapes = f"{X}, param %w: i8[2,4], param %s: f32[2], param %o: i64[2], param %b: f32[2]"
    constants = {
        "w": torch.tensor([[100, -127, 3, 50], [127, 127, -127, 64]], dtype=torch.int8),
        "s": torch.tensor([0.01, 2.0**-32]),
        "o": torch.zeros(2, dtype=torch.int64),
        "b": torch.tensor([0.5, 2.0]),
    }
    text = sandwich(body, shapes, "2,3,2")
    graph, ctx = lower(text, constants)
    biases = next(t for name, t in ctx.constants.items() if "bias" in name)
    assert biases.abs().max() == 1 << 30
    x = torch.randint(-128, 128, (2, 3, 4), dtype=torch.int8)
    (ours,) = outputs_of(graph, ctx.constants, [x])
    (theirs,) = outputs_of(parse(text), constants, [x])
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_a_clamp_behind_a_clamp_is_one_clamp() -> None:
    """Also where the ranges do not meet: everything then becomes the second one's near end."""
    bounds = [None, -2.0, 0.0, 1.0, 3.0]
    pairs = [(a, b) for a in bounds for b in bounds if a is None or b is None or a <= b]
    numbers = torch.linspace(-4, 4, 33)
    for first in pairs:
        for second in pairs:
            goal = Goal(Affine(0.1, 0), *second).within(*first)
            wanted = numbers
            for low, high in (first, second):
                if (low, high) != (None, None):
                    wanted = wanted.clamp(low, high)
            if (goal.low, goal.high) != (None, None):
                assert torch.equal(numbers.clamp(goal.low, goal.high), wanted)
                assert goal.low is None or goal.high is None or goal.low <= goal.high
            else:
                assert torch.equal(numbers, wanted)
