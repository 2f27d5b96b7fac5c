"""Layer norm in integers: its reference function and the integers that stand for its parameters.

With ``n`` numbers ``x`` in a row, ``s`` their sum and ``t`` the sum of their squares, the normalised
numbers are ``(n*x - s) / sqrt(n*t - s*s + epsilon)``: mean and variance need no division, scale and
zero point of the input cancel. The radicand is kept in units of 2**-10: ``epsilon`` is the real op's
times ``(n / input scale)**2 * 2**10``, at least 1, so that a row of equal numbers yields 0.

1. The radicand is shifted left by an even number of bits to lie in [2**60, 2**62); its integer square
   root (rounded down) has 31 bits, and ``2**61 // root`` (at most 2**31 - 1) is the reciprocal.
2. Numerator times reciprocal, shifted with rounding, is the normalised number in Q15.16.
3. It is rescaled (``double`` rounding) by ``multiplier`` and ``shift``, the factor ``weight / output
   scale * 2**-4`` with its sign, to Q19.12; ``bias`` in Q19.12 is added.
4. A rounding shift by 12 bits leaves the integer, to which the output's zero point is added.

Integer square roots for layer norm are from I-BERT (Kim et al. 2021, section 3.6); as the root here is
exact, every way to compute it yields the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mplan.diagnostics import UserError
from mplan.ir.fixed_point import quantize_multiplier, rescale, rounding_shift

if TYPE_CHECKING:
    from torch import Tensor

#: Rows are at most this long: a normalised number is below the root of it.
LENGTH_LIMIT = 1 << 16
#: Fractional bits of the radicand, an even number.
RADICAND_BITS = 10
#: Epsilon is at most this.
EPSILON_LIMIT = 1 << 56
#: Weights in units of the output's scale are below this, so that a sum with a bias fits 32 bits.
FACTOR_LIMIT = 1 << 10
#: Larger biases saturate every result.
BIAS_LIMIT = 1 << 29
#: Fractional bits of normalised numbers, and of what bias is added to.
NORMAL_BITS, SUM_BITS = 16, 12


def qlayer_norm(
    input: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    epsilon: int,
    output_zero_point: int,
    clamp_min: int = -128,
    clamp_max: int = 127,
    bias: Tensor | None = None,
) -> Tensor:
    """A layer norm over the last dimension."""
    import torch

    x = input.to(torch.int64)
    total = x.sum(-1, keepdim=True)
    spread = x.shape[-1] * (x * x).sum(-1, keepdim=True) - total * total
    radicand = (spread << RADICAND_BITS) + epsilon
    found = [reciprocal_root(int(n)) for n in radicand.reshape(-1)]
    scale, places = (torch.tensor(part).reshape(radicand.shape) for part in zip(*found, strict=True))
    normal = rounding_shift(
        (x.shape[-1] * x - total) * scale, places - RADICAND_BITS // 2 - NORMAL_BITS
    )
    scaled = rescale(normal, multiplier, shift)
    result = rounding_shift(scaled if bias is None else scaled + bias, SUM_BITS)
    return (result + output_zero_point).clamp(clamp_min, clamp_max).to(torch.int8)


def reciprocal_root(radicand: int) -> tuple[int, int]:
    """``1 / sqrt(radicand)`` as an integer and the places to shift it right."""
    half = (62 - radicand.bit_length()) // 2
    root = math.isqrt(radicand << 2 * half)
    return min((1 << 61) // root, (1 << 31) - 1), 61 - half


def norm_integers(
    weight: Sequence[float], bias: Sequence[float], scale: float
) -> tuple[list[int], list[int], list[int]]:
    """Multipliers, shifts and biases for an output of this scale.

    UserError MP107 if a weight is 2**10 times the scale or more: sums might not fit 32 bits.
    """
    largest = max(map(abs, weight)) / scale
    if not largest < FACTOR_LIMIT:
        raise UserError("MP107", f"the weight {largest:g} in units of the output's scale is too large")
    places = NORMAL_BITS - SUM_BITS
    factors = [quantize_multiplier(abs(w) / (scale * (1 << places))) for w in weight]
    signed = [m if w >= 0 else -m for w, (m, _) in zip(weight, factors, strict=True)]
    biases = [max(-BIAS_LIMIT, min(BIAS_LIMIT, b / scale * (1 << SUM_BITS))) for b in bias]
    return signed, [s for _, s in factors], [round(b) for b in biases]


def norm_epsilon(epsilon: float, length: int, scale: float) -> int:
    """The integer epsilon of rows of ``length`` with the input's scale."""
    exact = epsilon * (length / scale) ** 2 * (1 << RADICAND_BITS)
    return round(min(max(1, exact), EPSILON_LIMIT))
