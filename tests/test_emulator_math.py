"""The float functions that emitted C may call on a part without a C library."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np
import pytest
from firmware_support import Build, build, run

__all__ = ["build"]

MATH = """
#include <math.h>
#include "mplan_host.h"
static float buffer[512];
int main(void) {
    size_t n;
    while (mplan_host_read(&n, 4) == 4) {
        mplan_host_read(buffer, 4 * n);
        for (size_t i = 0; i < n; i++) { float x = buffer[i]; buffer[i] = (float)(CALL); }
        mplan_host_write(buffer, 4 * n);
    }
    return 0;
}
"""


@pytest.mark.parametrize(
    ("call", "reference", "low", "high"),
    [
        ("expf(x)", math.exp, -80, 80),
        ("logf(x)", math.log, 1e-6, 100),
        ("tanhf(x)", math.tanh, -10, 10),
        ("erff(x)", math.erf, -4.5, 4.5),
        ("expm1f(x)", math.expm1, -5, 5),
        ("log1pf(x)", math.log1p, -0.95, 5),
        ("sinhf(x)", math.sinh, -88, 88),
        ("coshf(x)", math.cosh, -88, 88),
        ("erfcf(x)", math.erfc, -4, 9),
        ("asinf(x)", math.asin, -1, 1),
        ("acosf(x)", math.acos, -1, 1),
        ("atanf(x)", math.atan, -30, 30),
        ("atan2f(x, 0.7f)", lambda x: math.atan2(x, float(np.float32(0.7))), -5, 5),
        ("atan2f(x, -3.0f)", lambda x: math.atan2(x, -3.0), -5, 5),
        ("asinhf(x)", math.asinh, -1e4, 1e4),
        ("acoshf(x)", math.acosh, 1, 1e4),
        ("atanhf(x)", math.atanh, -0.99, 0.99),
        ("sinf(x)", math.sin, -20, 20),
        ("cosf(x)", math.cos, -20, 20),
        ("sqrtf(x)", math.sqrt, 0, 50),
        ("powf(x, 2.75f)", lambda x: x**2.75, 0.01, 50),
        ("powf(x, -3.0f)", lambda x: x**-3.0, -50, -0.01),
        ("powf(2.5f, x)", lambda x: 2.5**x, -90, 90),
    ],
)
def test_float_functions_are_accurate(build: Build, call: str, reference: Callable, low, high):
    generator = np.random.default_rng(7)
    x = generator.uniform(low, high, 400).astype(np.float32)
    x[:100] = (x[:100] - low) * 0.02 + low if low > 0 else x[:100] * 0.02
    x = np.clip(x, np.float32(low), np.float32(high))
    data = struct.pack("<I", x.size) + x.tobytes()
    y = np.frombuffer(run(build(MATH, defines={"CALL": call}), inputs=data).output, np.float32)
    exact = np.array([reference(float(v)) for v in x])
    ulp = np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert ulp.max() < (4 if "erfcf" in call else 2.5), f"{ulp.max():.2f} ulp at {x[ulp.argmax()]}"


@pytest.mark.parametrize("target", ["stm32f746", "stm32f412", "rp2040"])
def test_rounding_and_special_values(build: Build, target: str):
    nan, inf = math.nan, math.inf
    cases = [
        ("rintf(x)", [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, -0.0), (8388609, 8388609), (-2.6, -3)]),
        ("rintf(x)", [(nan, nan), (inf, inf), (-inf, -inf)]),
        ("lrintf(x)", [(2.5, 2), (3.5, 4), (-2.5, -2)]),
        ("lroundf(x)", [(2.5, 3), (-2.5, -3), (0.49999997, 0)]),
        ("tanhf(x)", [(inf, 1), (-inf, -1), (nan, nan), (-0.0, -0.0)]),
        ("erff(x)", [(inf, 1), (-inf, -1), (nan, nan), (-0.0, -0.0)]),
        ("expm1f(x)", [(inf, inf), (-inf, -1), (nan, nan), (-0.0, -0.0)]),
        ("log1pf(x)", [(-1, -inf), (inf, inf), (-2, nan), (nan, nan), (-0.0, -0.0)]),
        ("erfcf(x)", [(inf, 0), (-inf, 2), (nan, nan), (0, 1)]),
        ("asinf(x)", [(2, nan), (nan, nan), (0, 0)]),
        ("acosf(x)", [(2, nan), (-2, nan), (1, 0)]),
        ("atan2f(x, -1.0f)", [(0, np.float32(math.pi)), (-0.0, np.float32(-math.pi))]),
        ("atan2f(x, 0.0f)", [(0, 0), (-0.0, -0.0), (nan, nan)]),
        ("atan2f(1.0f, x)", [(inf, 0), (0, np.float32(math.pi / 2))]),
        ("acoshf(x)", [(1, 0), (0, nan), (inf, inf)]),
        ("atanhf(x)", [(1, inf), (-1, -inf), (2, nan), (-0.0, -0.0)]),
        ("asinhf(x)", [(inf, inf), (-inf, -inf), (-0.0, -0.0)]),
        ("powf(x, 0.0f)", [(nan, 1), (0, 1), (inf, 1)]),
        ("powf(x, 0.5f)", [(-1, nan), (-inf, inf), (0, 0), (nan, nan)]),
        ("powf(x, 3.0f)", [(-2, -8), (-0.0, -0.0), (-inf, -inf), (10, 1000)]),
        ("powf(x, -2.0f)", [(0, inf), (-2, 0.25), (inf, 0)]),
        ("powf(x, INFINITY)", [(-1, 1), (0.5, 0), (2, inf), (-3, inf)]),
    ]
    calls = "".join(f"k == {i + 1} ? (float)({c}) : " for i, (c, _) in enumerate(cases))
    source = (
        MATH.replace("(float)(CALL)", f"({calls}0.0f)")
        .replace("size_t n;", "size_t n, k = 0;")
        .replace("mplan_host_read(buffer", "k++; mplan_host_read(buffer")
    )
    data = b"".join(
        struct.pack(f"<I{len(rows)}f", len(rows), *(x for x, _ in rows)) for _, rows in cases
    )
    got = struct.iter_unpack("<f", run(build(source, target), target, inputs=data).output)
    for call, rows in cases:
        for x, want in rows:
            value = next(got)[0]
            same = math.isnan(value) if math.isnan(want) else value == want
            assert same and math.copysign(1, value if value == 0 else 1) == math.copysign(
                1, want if want == 0 else 1
            ), f"{call} at {x} is {value}, not {want}"
