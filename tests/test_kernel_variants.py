"""int8 kernels of any geometry: plain C on 64 and 32 bits, DSP and Helium instructions, equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mplan.ir.graph import Graph
from mplan.ir.interp import run
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.passes.tile_pixels import tiled_graph
from mplan.pipeline import run_passes
from mplan.runtime.emulator import EmulatorName, run_firmware
from mplan.runtime.firmware import build_firmware
from mplan.targets import load_target
from tests.c_support import LAYOUT, emitted, run_program, write
from tests.quantized_nets import ONE, QuantizedNet

#: Layers with sums that are proven small, also by pairs; with folded zero points only; as they come.
BOUNDED = "fold_zero_points,bound_sums"
PASSES = (BOUNDED, f"{BOUNDED},pair_weights", "fold_zero_points", "canonicalize")
#: The range of shifts of a layer's channels: negative, some positive (for small weights), so low that
#: nothing is left, one for all.
SHIFTS = ((-13, -7), (-5, 3), (-31, -29), (-9,))


class Layers(QuantizedNet):
    """Layers that all read the same image."""

    def window(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        channels: int,
        kind: str,
        shifts: tuple[int, ...],
        full: bool,
        bias: int,
    ) -> str:
        """A convolution or a pool; what does not fit into the padded image is made smaller."""
        c, size = self.channels, (self.height, self.width)
        if kind in ("max", "avg"):  # a window has a pixel of the image
            kernel = (min(kernel[0], size[0]), min(kernel[1], size[1]))
            padding = tuple(min(p, kernel[i // 2] - 1) for i, p in enumerate(padding))  # type: ignore[assignment]
        room = [n + sum(padding[2 * d : 2 * d + 2]) for d, n in enumerate(size)]
        kernel = (min(kernel[0], room[0]), min(kernel[1], room[1]))
        fits = all((k - 1) * d < n for k, d, n in zip(kernel, dilation, room, strict=True))
        dilation = dilation if fits and kind in ("deep", "wide") else (1, 1)
        sizes = [(room[d] - (kernel[d] - 1) * dilation[d] - 1) // stride[d] + 1 for d in (0, 1)]
        place = [f"stride={list(stride)}", f"padding={list(padding)}"]
        limits = f"clamp_min={self.number(-128, 0)}", f"clamp_max={self.number(1, 127)}"
        clamp = () if full else limits
        if kind in ("max", "avg"):
            args = ["input=%x", f"kernel_size={list(kernel)}", *place, *clamp]
            return self.op(f"mplan.q{kind}_pool2d", (1, *sizes, c), *args)
        out, operands = self._weights(kernel, channels, kind, shifts, bias)
        args = [*operands, *place, f"dilation={list(dilation)}"]
        args += self._zeros()
        name = "mplan.qdepthwise_conv2d" if kind == "wide" else "mplan.qconv2d"
        return self.op(name, (1, *sizes, out), *args, *clamp)

    def enlarged(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
        dilation: tuple[int, int],
        channels: int,
        kind: str,
        shifts: tuple[int, ...],
        full: bool,
        bias: int,
    ) -> str:
        """A transposed convolution, with a row and a column more at the end than the kernel reaches."""
        whole = [
            (n - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 2
            for d, n in enumerate((self.height, self.width))
        ]
        fits = all(sum(padding[2 * d : 2 * d + 2]) < n for d, n in enumerate(whole))
        top, bottom, left, right = padding if fits else (0, 0, 0, 0)
        sizes = (whole[0] - top - bottom, whole[1] - left - right)
        place = [f"stride={list(stride)}", f"padding=[{top}, {bottom - 1}, {left}, {right - 1}]"]
        limits = f"clamp_min={self.number(-128, 0)}", f"clamp_max={self.number(1, 127)}"
        out, operands = self._weights(kernel, channels, kind, shifts, bias)
        args = [*operands, *place, f"dilation={list(dilation)}"]
        args += [*self._zeros(), *(() if full else limits)]
        name = f"mplan.q{'depthwise_' if kind == 'wide' else ''}conv_transpose2d"
        return self.op(name, (1, *sizes, out), *args)

    def _weights(
        self,
        kernel: tuple[int, int],
        channels: int,
        kind: str,
        shifts: tuple[int, ...],
        bias: int,
    ) -> tuple[int, list[str]]:
        """The channels of a result and the operands that make them, each of one channel if wide."""
        c = self.channels
        out = channels if kind == "deep" else channels * c if channels * c <= 80 else c
        shape = (1, *kernel, out) if kind == "wide" else (out, *kernel, c)
        return out, self._operands(shape, out, shifts, bias)

    def _zeros(self) -> list[str]:
        numbers = {"input": self.number(-128, 128), "output": self.number(-99, 99)}
        return [f"{name}_zero_point={number}" for name, number in numbers.items()]

    def _operands(
        self, shape: tuple[int, ...], out: int, shifts: tuple[int, ...], bias: int
    ) -> list[str]:
        count = 1 if len(shifts) == 1 else out
        reach = 2 if shifts[-1] > 0 else 127
        weight = self.integers(-reach - (bias > 2**29), reach + 1, *shape).to(torch.int8)
        if out > 2:
            weight.view(-1)[0 :: 7 if shape[0] == 1 else shape[0]] = 0
        factors = self.integers(ONE, 2 * ONE - 1, count).to(torch.int32)
        factors[::2] = ONE  # a power of two: sums meet ties
        places = self.integers(shifts[0], shifts[-1] + 1, count).to(torch.int8)
        given = {"weight": weight, "multiplier": factors, "shift": places}
        if bias:
            biases = self.integers(-bias, bias, out).to(torch.int32)
            given = {"weight": weight, "bias": biases, "multiplier": factors, "shift": places}
        return ["input=%x", *(f"{name}={self.constant(name[0], t)}" for name, t in given.items())]

    def linear(self, channels: int, shifts: tuple[int, ...], bias: int) -> str:
        """A fully connected layer over the channels of all pixels."""
        args = self._operands((channels, self.channels), channels, shifts, bias)
        return self.op("mplan.qlinear", (*self.shapes["x"][:3], channels), *args, *self._zeros())

    def sums(self, shifts: tuple[int, int, int]) -> list[str]:
        """The image added to itself and subtracted from itself, as other numbers."""
        zeros = [self.number(-128, 128) for _ in range(3)]
        a, b, y = (self.number(ONE, 2 * ONE - 1) for _ in range(3))
        a, b = (
            (ONE if shifts[0] == 0 else a),
            (ONE if shifts[1] == 0 else b),
        )  # half, as of the larger scale
        clamp = () if shifts[2] % 2 else (f"clamp_min={self.number(-128, 0)}, clamp_max=99",)
        args = [f"input=%x, other=%x, input_zero_point={zeros[0]}, input_multiplier={a}"]
        args += [f"input_shift={shifts[0]}, other_zero_point={zeros[1]}, other_multiplier={b}"]
        args += [f"other_shift={shifts[1]}, multiplier={y}, shift={shifts[2]}"]
        args += [f"output_zero_point={zeros[2]}"]
        both = ("qadd", "qsub")
        return [self.op(f"mplan.{kind}", self.shapes["x"], *args, *clamp) for kind in both]


SMALL = st.integers(1, 3)
FACTORS = {
    "shifts": st.sampled_from(SHIFTS),
    "full": st.booleans(),
    "bias": st.sampled_from([3000, 0, 500, 2**30]),
}
WINDOW = st.fixed_dictionaries(
    {
        "kernel": st.tuples(st.integers(1, 7), st.integers(1, 7)) | st.just((1, 1)),
        "stride": st.tuples(SMALL, SMALL),
        "padding": st.tuples(*[st.integers(0, 3)] * 4) | st.just((0, 0, 0, 0)),
        "dilation": st.tuples(SMALL, SMALL),
        "channels": st.integers(1, 40) | st.sampled_from([8, 12, 16, 32]),
        "kind": st.sampled_from(["deep", "deep", "wide", "wide", "max", "avg"]),
        **FACTORS,
    }
)
ENLARGED = st.fixed_dictionaries(
    {
        "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "stride": st.tuples(SMALL, SMALL),
        "padding": st.tuples(*[st.integers(0, 3)] * 4),
        "dilation": st.tuples(SMALL, SMALL) | st.just((1, 1)),
        "channels": st.integers(1, 20) | st.sampled_from([8, 16]),
        "kind": st.sampled_from(["deep", "wide"]),
        **FACTORS,
    }
)
NET = st.fixed_dictionaries(
    {
        "size": st.tuples(
            st.integers(1, 9), st.integers(1, 33), st.integers(1, 40) | st.sampled_from([8, 16, 24])
        ),
        "windows": st.lists(WINDOW, min_size=6, max_size=6),
        "enlarged": st.lists(ENLARGED, min_size=3, max_size=3),
        "sums": st.tuples(*[st.sampled_from([0, -1, -6])] * 2, st.integers(-20, -15)),
        "seed": st.integers(0, 999),
        "passes": st.sampled_from((*PASSES[:2] * 2, *PASSES)),
        "columns": st.booleans(),
    }
)


Case: TypeAlias = tuple[dict[str, str], torch.Tensor, list[torch.Tensor]]


def case(drawn: dict[str, Any]) -> Case:
    """The C files of a drawn network, an image, and what the reference makes of it."""
    net = Layers(*drawn["size"], seed=drawn["seed"])
    outputs = [net.window(**window) for window in drawn["windows"]]
    outputs += [net.enlarged(**window) for window in drawn["enlarged"]]
    first = drawn["windows"][0]
    outputs.append(net.linear(first["channels"], first["shifts"], first["bias"]))
    outputs += net.sums(drawn["sums"])
    graph, image = net.graph(*outputs), net.image()
    wanted = list(run(graph, {**net.constants, "x": image}))
    changed, constants = passed(graph, net.constants, drawn["passes"])
    if drawn["columns"]:
        changed = tiled_graph(changed, [1 << 30] * len(changed.ops), columns=True)
    return emitted(changed, constants), image, wanted


def passed(
    graph: Graph, constants: dict[str, torch.Tensor], passes: str
) -> tuple[Graph, dict[str, torch.Tensor]]:
    ctx = Context(LAYOUT, constants=dict(constants), pairs=True)
    return run_passes(graph, parse_pipeline(passes), ctx), dict(ctx.constants)


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        limits = settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=quiet,
            phases=[Phase.generate],  # every example is compiled: too slow to shrink
        )
        return limits(given(NET)(test))

    return decorate


def same(ours: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for number, (a, b) in enumerate(zip(ours, wanted, strict=True)):
        assert torch.equal(a, b), f"output {number}: {int((a != b).sum())} of {a.numel()} differ"


@fuzz(10)
def test_on_the_host(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]) -> None:
    files, image, wanted = case(drawn)
    same(run_program(tmp_path_factory.mktemp("host"), files, [image], wanted), wanted)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="zig has no 32-bit libraries")
@fuzz(4)
def test_on_a_host_of_32_bits(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]) -> None:
    files, image, wanted = case(drawn)
    folder = tmp_path_factory.mktemp("host32")
    same(run_program(folder, files, [image], wanted, "-m32"), wanted)


MAIN = """#include "mplan_host.h"
#include "net.h"
int main(void) {
    if (mplan_host_read(net_input(0), MPLAN_NET_INPUT_0_BYTES) != MPLAN_NET_INPUT_0_BYTES) return 1;
    if (net_invoke()) return 2;
    for (int i = 0; i < OUTPUTS; ++i) {
        static const unsigned sizes[] = {SIZES};
        if (mplan_host_write(net_output(i), sizes[i]) != sizes[i]) return 3;
    }
    return 0;
}
"""


def on_device(folder: Path, target: str, toolchain: Any, emulator: EmulatorName, given: Case) -> None:
    """Build C files for a board, run them in an emulator, compare the outputs."""
    files, image, wanted = given
    main = MAIN.replace("OUTPUTS", str(len(wanted)))
    main = main.replace("SIZES", ", ".join(str(t.numel()) for t in wanted))
    part = load_target(target)
    sources = write(folder, {**files, "main.c": main})
    options: Any = {"toolchain": toolchain, "layout": "board"}
    firmware = build_firmware(sources, [folder], part, folder / "out", **options)
    found = run_firmware(firmware, part, emulator=emulator, inputs=image.numpy().tobytes())
    assert found.exit_code == 0
    data, ours = torch.frombuffer(bytearray(found.output), dtype=torch.int8), []
    for tensor in wanted:
        ours.append(data[: tensor.numel()].reshape(tensor.shape))
        data = data[tensor.numel() :]
    same(ours, wanted)


@fuzz(3)
def test_dsp_instructions_of_clang(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]
) -> None:
    on_device(tmp_path_factory.mktemp("dsp"), "mps2-an500", "zig", "unicorn", case(drawn))


@fuzz(4)
def test_dsp_instructions_of_gcc(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]
) -> None:
    on_device(tmp_path_factory.mktemp("dsp"), "mps2-an386", "gcc", "qemu", case(drawn))


@fuzz(8)
def test_helium(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]) -> None:
    on_device(tmp_path_factory.mktemp("mve"), "mps3-an547", "gcc", "qemu", case(drawn))


@fuzz(3)
def test_helium_of_clang(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any]) -> None:
    on_device(tmp_path_factory.mktemp("mve"), "mps3-an547", "zig", "qemu", case(drawn))
