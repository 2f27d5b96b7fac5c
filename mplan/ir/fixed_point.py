"""Integer arithmetic of quantised networks: real factors as Q31 multipliers with a power of two.

A real factor is ``multiplier * 2**(shift - 31)`` with ``multiplier`` in [2**30, 2**31) (0 for 0).
``rescale`` multiplies accumulators by such factors in one of two roundings:

- ``double``: a rounding doubling high multiplication, then a rounding shift; both to nearest, the
  multiplication with ties upwards, the shift with ties away from zero. It is what TFLite's reference
  kernels and CMSIS-NN do (gemmlowp's ``SaturatingRoundingDoublingHighMul``, ``RoundingDivideByPOT``).
- ``single``: the exact product rounded once to nearest, ties away from zero, and saturated, as
  LiteRT's fully connected layers do.

Tensors are torch's; a reference must be exact, so everything is computed in 64-bit integers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mplan.diagnostics import UserError

if TYPE_CHECKING:
    from torch import Tensor

#: The roundings of ``rescale``.
ROUNDINGS = ("double", "single")
#: Shifts of 32-bit numbers are at most this, either way.
MAX_SHIFT = 31
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Multiplier and shift in [-31, 31] of a factor ``real >= 0``; factors below 2**-32 become 0.

    UserError MP107 for factors that need a larger shift. (Jacob et al. 2018, section 2.2; rounded as
    TFLite does.)
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift > MAX_SHIFT:
        raise UserError("MP107", f"the factor {real:g} is not below 2**{MAX_SHIFT}")
    return (0, 0) if shift < -MAX_SHIFT else (multiplier, shift)


def rescale(
    acc: Tensor, multiplier: Tensor | int, shift: Tensor | int, rounding: str = "double"
) -> Tensor:
    """``acc * multiplier * 2**(shift - 31)`` as int64; multiplier and shift broadcast along the end."""
    import torch

    acc, factor, exponent = (torch.as_tensor(t).to(torch.int64) for t in (acc, multiplier, shift))
    if rounding == "single":
        return rounding_shift(acc * factor, 31 - exponent).clamp(_INT32_MIN, _INT32_MAX)
    wide = wrap_int32(acc << exponent.clamp(min=0))
    return rounding_shift(high_mul(wide, factor), (-exponent).clamp(min=0))


def high_mul(a: Tensor, b: Tensor | int) -> Tensor:
    """``a * b / 2**31`` of 32-bit numbers to nearest, ties upwards; -2**31 squared saturates."""
    import torch

    product = torch.as_tensor(a, dtype=torch.int64) * b
    # the nudge and the division that truncates together round to nearest with ties upwards
    return ((product + (1 << 30)) >> 31).clamp(max=_INT32_MAX)


def rounding_shift(x: Tensor, exponent: Tensor | int) -> Tensor:
    """``x / 2**exponent`` to nearest, ties away from zero."""
    import torch

    one = torch.ones((), dtype=torch.int64)
    places = torch.as_tensor(exponent, dtype=torch.int64)
    half = (one << places) >> 1
    return torch.where(x < 0, -((half - x) >> places), (x + half) >> places)


def saturating_shift(x: Tensor, exponent: int) -> Tensor:
    """``x * 2**exponent`` within 32 bits."""
    return (x << exponent).clamp(_INT32_MIN, _INT32_MAX)


def wrap_int32(x: Tensor) -> Tensor:
    """``x`` modulo 2**32 as a signed number."""
    return ((x + 2**31) & (2**32 - 1)) - 2**31


def exp_of_negative(x: Tensor) -> Tensor:
    """``exp(x)`` for ``x <= 0`` in Q5.26; the result is in Q0.31.

    The argument splits into a multiple of 1/4, whose factors are a product of constants, and a rest
    in [-1/4, 0), where a Taylor polynomial around -1/8 is exact enough (as in gemmlowp).
    """
    import torch

    quarter = 1 << 24
    rest = (x & (quarter - 1)) - quarter
    result = _exp_of_rest(rest << 5)
    steps = rest - x
    for bit, factor in enumerate(EXP_FACTORS):
        taken = (steps & (quarter << bit)) != 0
        result = torch.where(taken, high_mul(result, factor), result)
    return torch.where(x == 0, torch.full_like(result, _INT32_MAX), result)


#: exp(-2**k) for k = -2 … 4 in Q0.31.
EXP_FACTORS = tuple(math.floor(math.exp(-(2.0**k)) * 2**31 + 0.5) for k in range(-2, 5))
#: exp(-1/8) and 1/3 in Q0.31.
EXP_OF_MINUS_EIGHTH = math.floor(math.exp(-0.125) * 2**31 + 0.5)
THIRD = math.floor(2**31 / 3 + 0.5)


def _exp_of_rest(a: Tensor) -> Tensor:
    """``exp(a)`` for ``a`` in [-1/4, 0), both in Q0.31."""
    x = a + (1 << 28)
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    higher = high_mul(rounding_shift(x4, 2) + x3, THIRD) + x2
    factor = x + rounding_shift(higher, 1)
    return EXP_OF_MINUS_EIGHTH + high_mul(factor, EXP_OF_MINUS_EIGHTH)


def reciprocal_of_one_plus(x: Tensor) -> Tensor:
    """``1 / (1 + x)`` for ``x`` in [0, 1), both in Q0.31: three Newton steps (as in gemmlowp)."""
    half = (x + _INT32_MAX + 1) >> 1
    estimate = RECIPROCAL_START + high_mul(half, RECIPROCAL_SLOPE)
    for _ in range(3):
        error = (1 << 29) - high_mul(half, estimate)
        estimate = estimate + saturating_shift(high_mul(estimate, error), 2)
    return saturating_shift(estimate, 1)


#: The linear estimate ``48/17 - 32/17 * d`` of 1 / d for d in [1/2, 1), in Q2.29.
RECIPROCAL_START = math.floor(48 / 17 * 2**29 + 0.5)
RECIPROCAL_SLOPE = -math.floor(32 / 17 * 2**29 + 0.5)
