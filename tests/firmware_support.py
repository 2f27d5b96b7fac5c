"""Programs for emulated Cortex-M parts, and how the tests build and run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from mplan.codes import CODES
from mplan.diagnostics import MplanError
from mplan.runtime.emulator import RunResult, run_firmware
from mplan.runtime.firmware import Firmware, build_firmware
from mplan.targets import load_target

Build = Callable[..., Firmware]

NETWORK = """
#include <math.h>
#include <string.h>
#include "mplan_host.h"

unsigned char net_arena[4096];
const float bias[4] = {0.5f, -0.25f, 2.0f, 1.0f};
static int runs = 40;

__attribute__((noinline)) void net_run(const float *input, float *output) {
    float *hidden = (float *)(net_arena + 96);
    memcpy(net_arena, input, 4 * sizeof(float));
    for (int i = 0; i < 4; i++) {
        hidden[i] = tanhf(((const float *)net_arena)[i]) + bias[i];
    }
    for (int i = 0; i < 4; i++) {
        output[i] = expf(hidden[i]) * sqrtf(hidden[i] * hidden[i]);
    }
}

int main(void) {
    float input[4], output[4];
    while (mplan_host_read(input, sizeof input) == sizeof input) {
        mplan_host_mark(1);
        net_run(input, output);
        mplan_host_mark(2);
        mplan_host_write(output, sizeof output);
        runs++;
    }
    mplan_host_print("done\\n");
    return runs;
}
"""

FAULTS = """
#include <stdint.h>
#include "mplan_host.h"
__attribute__((noinline)) int culprit(volatile uint32_t *at) { ACTION; }
int main(void) { return culprit((uint32_t *)ADDRESS) + 1; }
"""


TOUCH = """
#include "mplan_host.h"
volatile unsigned char net_arena[2000], untouched[16];
volatile unsigned int word = 1;
int main(void) {
    for (int i = 0; i < 100; i++) net_arena[i] = 0;
    net_arena[1000] = 0;
    word = 2;
    return untouched[0];
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a source text for a target; equal requests are built once."""
    built: dict[object, Firmware] = {}

    def build(
        source: str,
        target: str = "stm32f746",
        toolchain: str = "zig",
        defines: Mapping[str, str] | None = None,
        **options: object,
    ) -> Firmware:
        defines = defines or {}
        key = (source, target, toolchain, *sorted(defines.items()), *sorted(options.items()))
        if key not in built:
            folder = tmp_path_factory.mktemp("firmware")
            (folder / "program.c").write_text(source)
            built[key] = build_firmware(
                [folder / "program.c"],
                [],
                load_target(target),
                folder / "out",
                toolchain=toolchain,
                defines=defines,
                **options,
            )
        return built[key]

    return build


def run(firmware: Firmware, target: str = "stm32f746", **options: object) -> RunResult:
    return run_firmware(firmware, load_target(target), **options)


def inference_counts(result: RunResult) -> list[int]:
    return [interval.instructions for interval in result.between(1, 2)]


def fails(code: str, call: Callable[[], object]) -> MplanError:
    with pytest.raises(MplanError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    assert code in CODES
    return caught.value


def inputs(rows: int) -> np.ndarray:
    return np.linspace(-3, 3, 4 * rows, dtype=np.float32).reshape(rows, 4)


def expected(x: np.ndarray) -> np.ndarray:
    hidden = np.tanh(x.astype(np.float64)) + np.array([0.5, -0.25, 2.0, 1.0])
    return np.exp(hidden) * np.abs(hidden)
