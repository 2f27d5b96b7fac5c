"""Layer norm in integers: close to the real one, and the C kernel has the bytes of the reference."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.diagnostics import UserError
from mplan.ir.interp import run
from mplan.ir.parser import parse
from mplan.ir.quantized_norm import (
    EPSILON_LIMIT,
    norm_epsilon,
    norm_integers,
    qlayer_norm,
    reciprocal_root,
)
from mplan.ir.verify import faults
from tests.c_support import emitted, run_program


@given(st.integers(1, 1 << 57))
def test_reciprocal_roots_have_thirty_bits(radicand: int) -> None:
    scale, places = reciprocal_root(radicand)
    assert 0 < scale < 1 << 31
    assert scale / 2.0**places == pytest.approx(1 / math.sqrt(radicand), rel=2.0**-29)


def constants(weight: torch.Tensor, bias: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    multiplier, shift, biases = norm_integers(weight.tolist(), bias.tolist(), scale)
    return {
        "m": torch.tensor(multiplier, dtype=torch.int32),
        "s": torch.tensor(shift, dtype=torch.int8),
        "b": torch.tensor(biases, dtype=torch.int32),
    }


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 9) | st.integers(1, 600),
    scale=st.sampled_from([1e-4, 0.01, 0.3, 20.0]),
    kind=st.sampled_from(["random", "narrow", "equal", "peak"]),
    seed=st.integers(0, 99),
)
def test_it_is_the_nearest_integer_to_the_real_norm(
    length: int, scale: float, kind: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (3, length), generator=generator, dtype=torch.int8)
    x = {"random": x, "narrow": x // 64, "equal": torch.full_like(x, seed), "peak": x.clone()}[kind]
    if kind == "peak":
        x[:, 1:] = -128
    weight = torch.randn(length, generator=generator)
    bias = torch.randn(length, generator=generator)
    out = 0.03
    made = constants(weight, bias, out)
    epsilon = norm_epsilon(1e-5, length, scale)
    ours = qlayer_norm(x, made["m"], made["s"], epsilon, -7, bias=made["b"])
    real = torch.nn.functional.layer_norm(
        x.double() * scale, (length,), weight.double(), bias.double(), 1e-5
    )
    exact = (real / out - 7).clamp(-128, 127)
    assert (ours - exact).abs().max() < 0.57  # epsilon is at least 1


@pytest.mark.parametrize("wide", [True, False])
def test_the_c_kernel_has_the_bytes_of_the_reference(wide: bool, tmp_path: Path) -> None:
    shape = (4, 3, 96) if wide else (2, 5, 7)
    type_ = ",".join(map(str, shape))
    text = f"""graph @net(%x: i8[{type_}], const %m: i32[{shape[-1]}], const %s: i8[{shape[-1]}],
      const %b: i32[{shape[-1]}], const %m1: i32[1], const %s1: i8[1]) {{
      %y: i8[{type_}] = mplan.qlayer_norm(input=%x, bias=%b, multiplier=%m, shift=%s, epsilon=90,
        output_zero_point=11, clamp_min=-90)
      %z: i8[{type_}] = mplan.qlayer_norm(input=%y, multiplier=%m1, shift=%s1,
        epsilon={EPSILON_LIMIT if wide else 1}, output_zero_point=-3)
      return %y, %z
    }}"""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    x[0, 0], x[1, 1] = 127, -128
    made = constants(torch.randn(shape[-1], generator=generator) * 2, torch.randn(shape[-1]), 0.02)
    one = norm_integers([-1.5], [0.0], 0.05)
    made |= {
        "m1": torch.tensor(one[0], dtype=torch.int32),
        "s1": torch.tensor(one[1], dtype=torch.int8),
    }
    outputs = run(parse(text), {"x": x, **made})
    for ours, theirs in zip(
        run_program(tmp_path, emitted(parse(text), made), [x], outputs), outputs, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_weights_far_above_the_scale_are_refused() -> None:
    with pytest.raises(UserError, match="too large"):
        norm_integers([1.0, 20.0], [0.0, 0.0], 0.01)


@pytest.mark.parametrize(("epsilon", "length"), [(0, 4), (2 * EPSILON_LIMIT, 4), (1, 1 << 17)])
def test_what_the_arithmetic_cannot_hold_is_refused(epsilon: int, length: int) -> None:
    text = f"""graph @net(%x: i8[2,{length}], const %m: i32[1], const %s: i8[1]) {{
      %y: i8[2,{length}] = mplan.qlayer_norm(input=%x, multiplier=%m, shift=%s, epsilon={epsilon},
        output_zero_point=0)
      return %y
    }}"""
    assert [f.code for f in faults(parse(text), deep=True)] == ["MP107"]
