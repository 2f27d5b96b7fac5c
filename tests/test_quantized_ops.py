"""The quantised rows of the op table: what they accept; fixed-point arithmetic by its definition."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplan.diagnostics import UserError
from mplan.ir.fixed_point import (
    exp_of_negative,
    high_mul,
    quantize_multiplier,
    reciprocal_of_one_plus,
    rescale,
    rounding_shift,
)
from mplan.ir.parser import parse
from mplan.ir.verify import faults

ACC = st.integers(-(2**27), 2**27)


def upwards(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))


def away(number: Fraction) -> int:
    return int(math.copysign(math.floor(abs(number) + Fraction(1, 2)), number))


@given(ACC, st.integers(2**30, 2**31 - 1), st.integers(-31, 3))
def test_double_rounding_is_two_roundings(acc: int, multiplier: int, shift: int) -> None:
    high = upwards(Fraction(acc * 2 ** max(shift, 0) * multiplier, 2**31))
    expected = away(Fraction(high, 2 ** max(-shift, 0)))
    assert int(rescale(torch.tensor(acc), multiplier, shift)) == expected


@given(ACC, st.integers(2**30, 2**31 - 1), st.integers(-31, 31))
def test_single_rounding_is_one(acc: int, multiplier: int, shift: int) -> None:
    exact = away(Fraction(acc * multiplier, 1) / Fraction(2) ** (31 - shift))
    expected = max(-(2**31), min(2**31 - 1, exact))
    assert int(rescale(torch.tensor(acc), multiplier, shift, "single")) == expected


@given(st.floats(1e-9, 1e6))
def test_multipliers_are_the_nearest_of_31_bits(real: float) -> None:
    multiplier, shift = quantize_multiplier(real)
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier) * Fraction(2) ** (shift - 31) / Fraction(real) - 1) <= Fraction(
        1, 2**31
    )


def test_factors_that_are_too_small_vanish() -> None:
    assert quantize_multiplier(0.0) == quantize_multiplier(2.0**-40) == (0, 0)


def test_factors_that_are_too_large_are_refused() -> None:
    assert quantize_multiplier(2.0**31 * (1 - 2.0**-31)) == (2**31 - 1, 31)
    with pytest.raises(UserError, match=r"2\*\*31") as caught:
        quantize_multiplier(2.0**31)
    assert caught.value.code == "MP107"


def test_ties() -> None:
    halves = torch.tensor([-3, -1, 1, 3])
    assert rounding_shift(halves, 1).tolist() == [-2, -1, 1, 2]
    assert high_mul(halves, 2**30).tolist() == [-1, 0, 1, 2]


def test_exponentials_and_reciprocals_are_close() -> None:
    x = -torch.linspace(0, 31 * 2**26, 5000).to(torch.int64)
    exact = torch.exp(x.double() / 2**26) * 2**31
    assert (exp_of_negative(x) - exact).abs().max() < 2**31 * 3e-7
    y = torch.linspace(0, 2**31 - 1, 5000, dtype=torch.float64).to(torch.int64)
    exact = 2.0**31 / (1 + y.double() / 2**31)
    assert (reciprocal_of_one_plus(y) - exact).abs().max() < 2**31 * 1e-8


CONV = (
    "mplan.qconv2d(input=%x, weight=%w, bias=%b, multiplier=%m, shift=%s, stride=[1, 1], "
    "padding=[0, 0, 0, 0], dilation=[1, 1], input_zero_point=0, output_zero_point=0)"
)
POOL = "mplan.qavg_pool2d(input=%x, kernel_size=[2, 2], stride=[1, 1], padding=[0, 0, 0, 0])"
LINEAR = (
    "mplan.qlinear(input=%x, weight=%v, multiplier=%m, shift=%s, input_zero_point=0, "
    "output_zero_point=0)"
)
SOFTMAX = "mplan.qsoftmax(input=%x, multiplier=1073741824, shift=20, diff_min=-1984)"
HEAD = (
    "graph @g(%x: i8[1,5,5,4], %l: i8[2,4096], %e: i8[2,0], %n: i8[], %f: f32[1,5,5,4], "
    "param %w: i8[6,3,3,4], param %b: i32[6], "
    "const %m: i32[6], const %s: i8[6], const %o: i32[2], const %t: i8[256], param %v: i8[6,4])"
)
ACCEPTED = [
    (CONV, "i8[1,3,3,6]"),
    (CONV.replace("bias=%b, ", ""), "i8[1,3,3,6]"),
    (CONV.replace("padding=[0, 0, 0, 0]", "padding=[1, 0, 2, 1]"), "i8[1,4,6,6]"),
    (CONV.replace("stride=[1, 1]", "stride=[2, 1]"), "i8[1,2,3,6]"),
    (POOL, "i8[1,4,4,4]"),
    (LINEAR, "i8[1,5,5,6]"),
    (SOFTMAX, "i8[1,5,5,4]"),
    ("mplan.qtable(input=%x, table=%t)", "i8[1,5,5,4]"),
    ("mplan.resize_bilinear2d(input=%x, rows=[0, 512, 4096], columns=[1])", "i8[1,3,1,4]"),
    ("mplan.quantize(input=%f, scale=0.5, zero_point=3)", "i8[1,5,5,4]"),
    ("mplan.dequantize(input=%x, scale=0.5, zero_point=3)", "f32[1,5,5,4]"),
]
REJECTED = [
    (CONV.replace("multiplier=%m", "multiplier=%o"), "multiplier must have 1 or 6 entries"),
    (CONV.replace("shift=%s", "shift=%t"), "shift must have 1 or 6 entries"),
    (CONV.replace("bias=%b", "bias=%o"), "bias must have 6 entries"),
    (CONV.replace("input=%x", "input=%f"), "input must be a tensor of i8"),
    (CONV.replace("dilation=[1, 1]", "dilation=[3, 1]"), "exceeds the padded image"),
    (CONV.replace("stride=[1, 1]", "stride=[0, 1]"), "must be positive"),
    (CONV.replace("padding=[0, 0, 0, 0]", "padding=[0, 0]"), "padding 4"),
    (CONV.replace("qconv2d", "qdepthwise_conv2d"), "do not fit 4 channels"),
    (CONV.replace("weight=%w", "weight=%v"), "weight must be [N, H, W, C]"),
    (POOL.replace("padding=[0, 0, 0, 0]", "padding=[2, 0, 0, 0]"), "without a pixel"),
    (LINEAR.replace("weight=%v", "weight=%w"), "do not fit an input"),
    (LINEAR[:-1] + ', rounding="up")', "rounding is one of double, single"),
    (SOFTMAX.replace("%x", "%l"), "must be from 1 to 4,095"),
    (SOFTMAX.replace("%x", "%e"), "must be from 1 to 4,095"),
    (SOFTMAX.replace("%x", "%n"), "must be from 1 to 4,095"),
    (
        "mplan.resize_bilinear2d(input=%x, rows=[0, 4097], columns=[1])",
        "rows must be places inside of the 5",
    ),
    (
        "mplan.resize_bilinear2d(input=%x, rows=[0], columns=[])",
        "columns must be places inside of the 5",
    ),
    ("mplan.qtable(input=%x, table=%s)", "table must have 256 entries"),
    ("mplan.quantize(input=%x, scale=0.5, zero_point=3)", "input must be a tensor of f32"),
]


@pytest.mark.parametrize(("call", "type_"), ACCEPTED)
def test_calls_have_the_type_of_the_rule(call: str, type_: str) -> None:
    graph = parse(f"{HEAD} {{\n  %y: {type_} = {call}\n  return %y\n}}\n")
    assert [f.message for f in faults(graph, deep=True)] == []


@pytest.mark.parametrize(("call", "message"), REJECTED)
def test_wrong_calls_are_rejected(call: str, message: str) -> None:
    graph = parse(f"{HEAD} {{\n  %y: i8[1] = {call}\n  return %y\n}}\n")
    assert any(message in f.message for f in faults(graph, deep=True))
