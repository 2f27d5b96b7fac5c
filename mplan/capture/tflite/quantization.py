"""How TFLite derives integers from scales beyond ``mplan.ir.affine``: activation ranges, tables.

All of it happens once, when a model is read; precision and rounding are TFLite's, so that the integers
are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mplan.ir.affine import Affine, clamp_int8, float32, float32_factor
from mplan.ir.fixed_point import quantize_multiplier

_INT8 = range(-128, 128)

#: The real range of each activation that can be fused; None is without a limit.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "NONE": (None, None),
    "RELU": (0.0, None),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU6": (0.0, 6.0),
}


def clamp_range(activation: str, output: Affine) -> dict[str, int]:
    """The arguments ``clamp_min`` and ``clamp_max`` of a fused activation, without those of int8."""
    return output.clamp_args(*RANGES[activation])


def table_of(function: Callable[[float], float], source: Affine, out: Affine) -> tuple[int, ...]:
    """A function of real numbers for all 256 inputs, evaluated in float32."""
    reals = (float(float32(source.scale) * (q - source.zero_point)) for q in _INT8)
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
    hires = float32(source.scale) * float32(1 / 128)
    output = quantize_multiplier(float(hires / float32(out.scale)))
    relu = quantize_multiplier(float(hires / float32(3 / 32768)))
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
