"""Scales and zero points of int8 tensors, and the integers of the quantised ops that follow from them.

All of it happens once, when a model is read or lowered. Products of scales are float64 unless a
function says otherwise: those that round to float32 do what TFLite does, so that the integers of a
``.tflite`` file are TFLite's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mplan.ir.fixed_point import quantize_multiplier


@dataclass(frozen=True, slots=True)
class Affine:
    """Real numbers as ``scale * (q - zero_point)``; scales are float32 values."""

    scale: float
    zero_point: int

    def quantize(self, real: float) -> int:
        """The integer of ``real``, not clamped."""
        return round_away(float32(real) / float32(self.scale)) + self.zero_point

    def clamp_args(self, low: float | None, high: float | None) -> dict[str, int]:
        """``clamp_min`` and ``clamp_max`` for results in ``[low, high]``, where int8 is no limit."""
        found = {}
        if low is not None:
            found["clamp_min"] = clamp_int8(self.quantize(low))
        if high is not None:
            found["clamp_max"] = clamp_int8(self.quantize(high))
        return {k: v for k, v in found.items() if v != {"clamp_min": -128, "clamp_max": 127}[k]}


def round_away(number: float) -> int:
    """To nearest, ties away from zero, as C's ``round``."""
    whole = math.floor(abs(number))
    return int(math.copysign(whole + (abs(number) - whole >= 0.5), number))


def float32(number: float) -> Any:
    """``number`` as numpy's float32."""
    import numpy as np

    return np.float32(number)


def clamp_int8(number: int) -> int:
    """``number`` within [-128, 127]."""
    return max(-128, min(127, number))


def float32_factor(*scales: float) -> float:
    """The product of ``scales`` but the last, divided by the last, each step rounded to float32."""
    product = float32(scales[0])
    for scale in scales[1:-1]:
        product = product * float32(scale)
    return float(product / float32(scales[-1]))


def matmul_factor(a: float, b: float, out: float) -> float:
    """``a * b / out``, the product rounded to float32."""
    return float(float32(a) * float32(b)) / out


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
