"""How TFLite derives integers from scales: multipliers, activation ranges, tables of activations.

All of it happens once, when a model is read; precision and rounding are TFLite's, so that the integers
are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mplan.ir.fixed_point import quantize_multiplier

_INT8 = range(-128, 128)


@dataclass(frozen=True, slots=True)
class Affine:
    """Real numbers as ``scale * (q - zero_point)``; scales are float32 values."""

    scale: float
    zero_point: int

    def quantize(self, real: float) -> int:
        """The integer of ``real``, not clamped."""
        return round_away(_float32(real) / _float32(self.scale)) + self.zero_point


def round_away(number: float) -> int:
    """To nearest, ties away from zero, as C's ``round``."""
    whole = math.floor(abs(number))
    return int(math.copysign(whole + (abs(number) - whole >= 0.5), number))


def _float32(number: float) -> Any:
    import numpy as np

    return np.float32(number)


def clamp_int8(number: int) -> int:
    """``number`` within [-128, 127]."""
    return max(-128, min(127, number))


#: The real range of each activation that can be fused; None is without a limit.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "NONE": (None, None),
    "RELU": (0.0, None),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU6": (0.0, 6.0),
}


def clamp_range(activation: str, output: Affine) -> dict[str, int]:
    """The arguments ``clamp_min`` and ``clamp_max`` of a fused activation, without those of int8."""
    low, high = RANGES[activation]
    found = {
        "clamp_min": -128 if low is None else max(-128, output.quantize(low)),
        "clamp_max": 127 if high is None else min(127, output.quantize(high)),
    }
    return {k: v for k, v in found.items() if v != {"clamp_min": -128, "clamp_max": 127}[k]}


def float32_factor(*scales: float) -> float:
    """The product of ``scales`` but the last, divided by the last, each step rounded to float32."""
    product = _float32(scales[0])
    for scale in scales[1:-1]:
        product = product * _float32(scale)
    return float(product / _float32(scales[-1]))


def matmul_factor(a: float, b: float, out: float) -> float:
    """``a * b / out``, the product rounded to float32."""
    return float(_float32(a) * _float32(b)) / out


def sum_factors(a: Affine, b: Affine, out: Affine, left_shift: int) -> tuple[tuple[int, int], ...]:
    """Multiplier and shift of both operands and of the result of a sum."""
    common = 2.0 * max(a.scale, b.scale)
    return (
        quantize_multiplier(a.scale / common),
        quantize_multiplier(b.scale / common),
        quantize_multiplier(common / ((1 << left_shift) * out.scale)),
    )


def mean_factor(factor: float, count: int) -> tuple[int, int]:
    """Multiplier and shift of ``factor / count``, the division in integers."""
    multiplier, shift = quantize_multiplier(factor)
    places = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << places) // count, shift - places


def softmax_factors(beta: float, scale: float) -> tuple[int, int, int]:
    """Multiplier and shift from inputs' differences to Q5.26, and the lowest one that counts."""
    real = min(beta * scale * (1 << 26), (1 << 31) - 1.0)
    multiplier, shift = quantize_multiplier(real)
    lowest = -math.floor(31 * (1 << 26) / (1 << shift)) if shift >= 0 else -(1 << 31)
    return multiplier, shift, lowest


def table_of(function: Callable[[float], float], source: Affine, out: Affine) -> tuple[int, ...]:
    """A function of real numbers for all 256 inputs, evaluated in float32."""
    reals = (float(_float32(source.scale) * (q - source.zero_point)) for q in _INT8)
    return tuple(clamp_int8(out.quantize(function(x))) for x in reals)


def logistic(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0


def tanh(x: float) -> float:
    """The hyperbolic tangent."""
    return math.tanh(x)


def gelu(x: float) -> float:
    """x times the normal distribution function of x."""
    return 0.5 * x * (1.0 + math.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: float) -> float:
    """The approximation of ``gelu`` by a hyperbolic tangent."""
    return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def leaky_relu_table(source: Affine, out: Affine, alpha: float) -> tuple[int, ...]:
    """A leaky ReLU: one factor above zero, another below."""
    above = quantize_multiplier(float32_factor(source.scale, out.scale))
    below = quantize_multiplier(float32_factor(source.scale, alpha, out.scale))
    return tuple(
        clamp_int8(
            _scaled(q - source.zero_point, *(above if q >= source.zero_point else below))
            + out.zero_point
        )
        for q in _INT8
    )


def _scaled(number: int, multiplier: int, shift: int) -> int:
    import torch

    from mplan.ir.fixed_point import rescale

    return int(rescale(torch.tensor(number), multiplier, shift))


def hard_swish_table(source: Affine, out: Affine) -> tuple[int, ...]:
    """``x * relu6(x + 3) / 6`` with 16-bit multiplications, as TFLite's kernel rounds them."""
    hires = _float32(source.scale) * _float32(1 / 128)
    output = quantize_multiplier(float(hires / _float32(out.scale)))
    relu = quantize_multiplier(float(hires / _float32(3 / 32768)))
    return tuple(
        clamp_int8(_hard_swish(q - source.zero_point, output, relu) + out.zero_point) for q in _INT8
    )


def _hard_swish(x: int, output: tuple[int, int], relu: tuple[int, int]) -> int:
    wide = x << 7
    value = _high_mul16(wide, _to_int16(output[0]))
    gate, shift = wide, relu[1]
    if shift > 0:
        gate = _clamp_int16(gate << (shift - 1))
    gate = _high_mul16(gate, _to_int16(relu[0]))
    if shift > 0:
        gate = _clamp_int16(gate << 1)
    if shift < 0:
        gate = _shift_away(gate, -shift)
    gate = (gate + (1 << 15)) >> 1
    product = abs(gate * value) >> 15
    return _shift_away(product if value >= 0 else -product, -output[1])


def _to_int16(multiplier: int) -> int:
    """A Q31 multiplier as Q15."""
    return min((multiplier + (1 << 15)) >> 16, 32767)


def _clamp_int16(number: int) -> int:
    return max(-32768, min(32767, number))


def _high_mul16(a: int, b: int) -> int:
    """``a * b / 2**15`` to nearest, ties upwards; -2**15 squared saturates."""
    return min((a * b + (1 << 14)) >> 15, 32767)


def _shift_away(number: int, places: int) -> int:
    """``number / 2**places`` to nearest, ties away from zero."""
    half = (1 << places) >> 1
    return (number + half) >> places if number >= 0 else -((half - number) >> places)
