"""Emitted C as a whole: networks, memory, the API, the text, errors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from syrupy.assertion import SnapshotAssertion

from mplan.capture import capture
from mplan.codegen.c.emit import emit_c
from mplan.codes import CODES
from mplan.diagnostics import MplanError
from mplan.ir.graph import Graph, Scratch
from mplan.ir.parser import parse
from mplan.ir.plan import Placement, Region, Transfer
from mplan.ir.storage import Layout
from mplan.runtime.emulator import run_firmware
from mplan.runtime.firmware import build_firmware
from mplan.targets.load import load_target
from tests.c_nets import NETS, net
from tests.c_support import (
    GUARD_BYTES,
    LAYOUT,
    SRAM,
    STRICT,
    assert_close,
    build,
    compile_c,
    emitted,
    first_fit,
    host_compiler,
    prepared,
    write,
)
from tests.zoo import build as zoo_model

pytestmark = pytest.mark.slow

TINY = """graph @tiny(%x: f32[1,2,4,4] "image", param %w: f32[3,2,3,3] "conv.weight", param %b: f32[3] "conv.bias") {
  %y: f32[1,3,4,4] = aten.convolution.default(input=%x, weight=%w, bias=%b, stride=[1, 1], padding=[1, 1], dilation=[1, 1], transposed=false, output_padding=[0, 0], groups=1) loc("net.py":7 in "conv")
  %z: f32[1,3,4,4] inplace(%y) = aten.relu.default(self=%y) loc("net.py":8)
  %m: f32[1,3] = aten.mean.dim(self=%z, dim=[2, 3]) loc("net.py":9)
  return %m
}
"""  # noqa: E501


def golden_of(inputs: Any, outputs: Any) -> dict[str, np.ndarray]:
    """Golden data as the bundle passes it."""
    named = [*((f"input{i}", t) for i, t in enumerate(inputs))]
    named += [(f"output{i}", t) for i, t in enumerate(outputs)]
    return {name: np.ascontiguousarray(t.detach().numpy()) for name, t in named}


def tiny_constants() -> dict[str, torch.Tensor]:
    numbers = torch.arange(54, dtype=torch.float32).reshape(3, 2, 3, 3)
    return {"w": (numbers - 27) / 16, "b": torch.tensor([0.1, -0.2, 1e-30])}


def fails(code: str, call: Callable[[], object]) -> MplanError:
    with pytest.raises(MplanError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    assert code in CODES
    return caught.value


@pytest.mark.parametrize("planned", [False, True], ids=["captured", "after passes"])
@pytest.mark.parametrize("name", NETS)
def test_network_equals_pytorch(tmp_path: Path, name: str, planned: bool) -> None:
    model, inputs, outputs = net(name)
    captured = capture(model, inputs, decompose=True)
    graph, constants = captured.graph, captured.constants
    if planned:
        graph, constants = prepared(graph, constants)
    files = emitted(graph, constants, golden=golden_of(inputs, outputs))
    network = build(tmp_path, files, "-fsanitize=undefined")
    assert_close(network.run(inputs, outputs), outputs)
    assert network.status == 0
    assert network.guards_intact
    network.library.net_selftest.restype = ctypes.c_float
    assert 0 <= network.library.net_selftest() < 1e-5


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "keyword_spotting", "mixer", "gru", "vit", "gpt2", "swin"]
)
def test_zoo_model_equals_pytorch(tmp_path: Path, name: str) -> None:
    model, inputs = zoo_model(name)
    captured = capture(model.eval(), inputs, decompose=True)
    graph, constants = prepared(captured.graph, captured.constants)
    from mplan.ir.interp import run

    supply = iter(captured.example_inputs)
    env = {i.value.name: captured.constants.get(i.value.name) for i in captured.graph.inputs}
    env = {k: next(supply) if v is None else v for k, v in env.items()}
    outputs = run(captured.graph, env)
    network = build(tmp_path, emitted(graph, constants))
    assert_close(network.run(captured.example_inputs, outputs), outputs)
    assert network.guards_intact


def test_every_byte_of_the_plan_is_in_use_and_none_beyond(tmp_path: Path) -> None:
    model, inputs, outputs = net("residual")
    captured = capture(model, inputs, decompose=True)
    network = build(tmp_path, emitted(captured.graph, captured.constants))
    network.run(inputs, outputs)
    assert (network.arena[-4:] != 0xA5).any()
    assert network.guards_intact
    network.memory[GUARD_BYTES - 1] ^= 1
    assert not network.guards_intact


def test_poison_in_the_arena_does_not_matter(tmp_path: Path) -> None:
    model, inputs, outputs = net("dense")
    captured = capture(model, inputs, decompose=True)
    network = build(tmp_path, emitted(captured.graph, captured.constants))
    first = network.run(inputs, outputs)
    network.arena[:] = 0xFF  # NaN
    assert_close(network.run(inputs, outputs), first, rtol=0)


def test_zero_copy_calls(tmp_path: Path) -> None:
    model, inputs, outputs = net("perceptron")
    captured = capture(model, inputs, decompose=True)
    library = build(tmp_path, emitted(captured.graph, captured.constants)).library
    data = inputs[0].numpy().tobytes()
    ctypes.memmove(library.net_input(0), data, len(data))
    assert library.net_input(1) is None and library.net_output(-1) is None
    assert library.net_invoke() == 0
    for i, expected in enumerate(outputs):
        size = expected.numel() * expected.element_size()
        found = bytearray(ctypes.string_at(library.net_output(i), size))
        actual = torch.frombuffer(found, dtype=expected.dtype).reshape(expected.shape)
        assert_close([actual], [expected])


def test_run_reports_bad_indices_and_null_pointers(tmp_path: Path) -> None:
    model, inputs, outputs = net("perceptron")
    captured = capture(model, inputs, decompose=True)
    network = build(tmp_path, emitted(captured.graph, captured.constants), "-fsanitize=undefined")
    network.run([inputs[0] + 11], outputs)
    assert network.status == 1 and network.guards_intact
    network.run(inputs, outputs)
    assert network.status == 0
    assert network.library.net_run(None, None, None) == 2


def test_selftest_notices_a_wrong_weight(tmp_path: Path) -> None:
    model, inputs, outputs = net("residual")
    captured = capture(model, inputs, decompose=True)
    wrong = {k: v + 0.01 if k.endswith("head_bias") else v for k, v in captured.constants.items()}
    assert wrong.keys() == captured.constants.keys() and any("head_bias" in k for k in wrong)
    golden = golden_of(inputs, [outputs[0] * torch.linspace(0.9, 1.1, 5)])
    for number, (constants, data) in enumerate(((captured.constants, golden), (wrong, golden))):
        files = emitted(captured.graph, constants, golden=data)
        library = build(tmp_path / str(number), files).library
        library.net_selftest.restype = ctypes.c_float
        tolerance = float(files["net.h"].split("_SELFTEST_TOLERANCE ")[-1].split("f")[0])
        assert library.net_selftest() > 100 * tolerance
    broken = {**golden, "output0": golden["output0"] * np.float32(np.nan)}
    library = build(tmp_path / "nan", emitted(captured.graph, wrong, golden=broken)).library
    library.net_selftest.restype = ctypes.c_float
    assert library.net_selftest() == float("inf")


def test_views_and_constants_can_be_returned(tmp_path: Path) -> None:
    class Views(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x * 2
            return y.transpose(0, 1), self.table.t(), y[1:, ::2], x

    x = torch.randn(3, 4)
    captured = capture(Views(), (x,), decompose=True)
    expected = Views()(x)
    files = emitted(captured.graph, captured.constants, golden=golden_of([x], expected))
    network = build(tmp_path, files)
    assert_close(network.run([x], expected), expected, rtol=0)
    assert "these outputs are not: OUTPUT_0, OUTPUT_1, OUTPUT_2" in files["net.h"]
    network.library.net_selftest.restype = ctypes.c_float
    assert network.library.net_selftest() == 0


def two_memories(graph: Graph) -> tuple[Any, Any]:
    """A plan in which the input rests in ``bulk`` between its first and its last use."""
    layout = Layout(SRAM, inputs=SRAM)
    lowered, plan = first_fit(graph, layout)
    bulk = Region("bulk", addressable=False)
    problem = replace(lowered.problem, regions=(*lowered.problem.regions, bulk))
    lowered = replace(lowered, problem=problem)
    x = lowered.buffer_of["x"]
    end = next(p.end for p in plan.placements if p.buffer == x)
    home = next(p for p in plan.placements if p.buffer == x)
    placements = [p for p in plan.placements if p.buffer != x]
    placements += [
        replace(home, end=1),
        Placement(x, "bulk", 16, 1, end - 1),
        replace(home, offset=2048, start=end - 1),
    ]
    transfers = (Transfer(1, x, "sram", "bulk"), Transfer(end - 1, x, "bulk", "sram"))
    peaks = (("sram", 2048 + 64), ("bulk", 16 + 64))
    return lowered, replace(
        plan, problem=problem.digest, placements=tuple(placements), transfers=transfers, peaks=peaks
    )


def test_buffers_move_between_memories_as_planned(tmp_path: Path) -> None:
    from mplan.ir.check import check

    graph = parse(
        """graph @moves(%x: f32[16]) {
      %a: f32[16] = aten.exp.default(self=%x)
      %b: f32[16] = aten.neg.default(self=%a)
      %c: f32[16] = aten.abs.default(self=%b)
      %d: f32[16] = aten.add.Tensor(self=%c, other=%x)
      return %d
    }"""
    )
    lowered, plan = two_memories(graph)
    assert check(lowered.problem, plan) == ()
    files = {k: str(v) for k, v in emit_c(graph, lowered, plan, {}, name="net").items()}
    assert "memcpy(BULK(unsigned char, 16), ARENA(unsigned char, 0), 64);" in files["net.c"]
    assert "memcpy(ARENA(unsigned char, 2048), BULK(unsigned char, 16), 64);" in files["net.c"]
    x = torch.randn(16)
    network = build(tmp_path, files)
    assert_close(network.run([x], [x]), [x.exp() + x])


def test_text_of_a_tiny_network(snapshot: SnapshotAssertion) -> None:
    x = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4)
    expected = torch.full((1, 3), 0.5)
    files = emitted(parse(TINY), tiny_constants(), "tiny", golden=golden_of([x], [expected]))
    assert files == snapshot


def test_text_is_deterministic() -> None:
    texts = []
    for _ in range(2):
        model, inputs, outputs = net("transformer")
        captured = capture(model, inputs, decompose=True)
        texts.append(emitted(captured.graph, captured.constants, golden=golden_of(inputs, outputs)))
    assert texts[0] == texts[1]


def test_weights_are_bit_exact(tmp_path: Path) -> None:
    bits = torch.randint(0, 2**32, (3000,), generator=torch.Generator().manual_seed(1))
    weights = torch.from_numpy(bits.numpy().astype(np.uint32).view(np.float32))
    weights = torch.cat([weights, torch.tensor([0.0, -0.0, 1e-45, 3.4028235e38, float("inf")])])
    graph = parse(
        """graph @weights(const %w: f32[3005] "a.b", const %i: i64[3] "class") {
      %v: f32[3005,1] view(%w) = aten.unsqueeze.default(self=%w, dim=1)
      return %v, %i
    }"""
    )
    numbers = torch.tensor([-(2**63), 2**63 - 1, -1])
    network = build(tmp_path, emitted(graph, {"w": weights, "i": numbers}))
    found, whole = network.run([], [weights[:, None], numbers])
    found = found[:, 0]
    same = found.view(torch.int32) == weights.view(torch.int32)
    assert (same | (found.isnan() & weights.isnan())).all()
    assert torch.equal(whole, numbers)


@pytest.mark.parametrize("machine", ["host", "cortex_m4", "cortex_m0plus"])
def test_clang_accepts_the_code(tmp_path: Path, machine: str) -> None:
    zig = [sys.executable, "-m", "ziglang", "cc"]
    model, inputs, outputs = net("transformer")
    captured = capture(model, inputs, decompose=True)
    sources = write(
        tmp_path, emitted(captured.graph, captured.constants, golden=golden_of(inputs, outputs))
    )
    flags: tuple[str, ...] = ()
    if machine != "host":
        abi = "eabihf" if machine == "cortex_m4" else "eabi"
        libc = Path(__file__).parents[1] / "mplan" / "runtime" / "cortex_m" / "freestanding"
        flags = ("-target", f"thumb-freestanding-{abi}", f"-mcpu={machine}", f"-I{libc}")
    for source in sources:
        compile_c(zig, [source], *STRICT, *flags, "-O1", "-c", "-o", str(tmp_path / "out.o"))


def test_arm_gcc_accepts_the_code(tmp_path: Path) -> None:
    model, inputs, outputs = net("residual")
    captured = capture(model, inputs, decompose=True)
    files = emitted(captured.graph, captured.constants, golden=golden_of(inputs, outputs))
    flags = load_target("stm32f746").toolchain
    assert flags is not None
    for source in write(tmp_path, files):
        output = ("-c", "-o", str(tmp_path / "out.o"))
        compile_c(["arm-none-eabi-gcc"], [source], *STRICT, *flags.gcc_flags, "-O2", *output)


@pytest.mark.parametrize(
    ("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")], ids=["unicorn", "qemu"]
)
def test_firmware_equals_pytorch(tmp_path: Path, toolchain: Any, emulator: Any) -> None:
    model, inputs, outputs = net("residual")
    captured = capture(model, inputs, decompose=True)
    graph, constants = prepared(captured.graph, captured.constants)
    files = emitted(graph, constants)
    size = inputs[0].numel() * 4
    main = f"""
        #include "mplan_host.h"
        #include "net.h"
        int main(void) {{
            if (mplan_host_read(net_input(0), {size}) != {size}) return 1;
            if (net_invoke() != 0) return 2;
            mplan_host_write(net_output(0), MPLAN_NET_OUTPUT_0_BYTES);
            return 0;
        }}"""
    sources = write(tmp_path, {**files, "main.c": main})
    target = load_target("stm32f746")
    firmware = build_firmware(sources, [tmp_path], target, tmp_path / "image", toolchain=toolchain)
    result = run_firmware(firmware, target, emulator=emulator, inputs=inputs[0].numpy().tobytes())
    assert result.exit_code == 0
    actual = torch.frombuffer(bytearray(result.output), dtype=torch.float32).reshape(outputs[0].shape)
    assert_close([actual], outputs)
    arena_bytes = int(files["net.h"].split("_ARENA_BYTES ")[1].split()[0])
    assert firmware.symbols["net_arena"].size == arena_bytes
    if emulator == "unicorn":
        assert result.touched["net_arena"].high_water_bytes == arena_bytes


def emit_tiny(**changes: Any) -> Mapping[str, str | bytes]:
    graph = changes.pop("graph", parse(TINY))
    lowered, plan = first_fit(graph, changes.pop("layout", LAYOUT))
    options = {"plan": plan, "constants": tiny_constants(), "name": "net", **changes}
    return emit_c(graph, lowered, options.pop("plan"), options.pop("constants"), **options)


def test_all_missing_kernels_are_named_at_once() -> None:
    text = TINY.replace("aten.relu.default", "aten.relu.default").replace(
        '%m: f32[1,3] = aten.mean.dim(self=%z, dim=[2, 3]) loc("net.py":9)',
        '%s: f32[1,3,4,4] = aten.special_bessel_j0.default(self=%z) loc("net.py":9)\n'
        '  %i: i64[48,4] = aten.nonzero.default(self=%z) loc("net.py":10)\n'
        '  %p: f32[1,3,4] = aten.cummax.default(self=%z, dim=2) loc("net.py":11)\n'
        '  %m: f32[1,3] = aten.linalg_vector_norm.default(self=%z, ord=3, dim=[2, 3]) loc("net.py":12)',
    )
    error = fails("MP501", lambda: emit_tiny(graph=parse(text)))
    assert error.message == "4 of 6 ops cannot be emitted as C"
    assert [(text.split()[0], where.line) for text, where in error.notes if where] == [
        ("aten.special_bessel_j0.default", 9),
        ("aten.nonzero.default", 10),
        ("aten.cummax.default", 11),
        ("aten.linalg_vector_norm.default", 12),
    ]


def test_a_weight_cannot_be_overwritten() -> None:
    graph = parse(
        """graph @g(param %w: f32[4] "w") {
      %y: f32[4] inplace(%w) = aten.relu.default(self=%w)
      return %y
    }"""
    )
    constants = {"w": torch.ones(4)}
    error = fails("MP501", lambda: emit_tiny(graph=graph, constants=constants))
    assert "overwrites a weight" in error.notes[0][0]


def test_types_that_c_cannot_hold() -> None:
    text = "graph @g(%x: f32[2,{n}]) symbols(n in [1, 8]) {\n  return %x\n}"
    error = fails("MP502", lambda: emit_tiny(graph=parse(text)))
    assert "no fixed shape" in error.message
    error = fails("MP502", lambda: emit_tiny(graph=parse("graph @g(%x: f16[2]) {\n  return %x\n}")))
    assert "float16" in error.message


@pytest.mark.parametrize("name", ["my-net", "", "1net", "int", "net.c", "ünet"])
def test_names_that_are_no_identifiers(name: str) -> None:
    fails("MP503", lambda: emit_tiny(name=name))


def test_parts_that_do_not_belong_together() -> None:
    other = first_fit(parse(TINY.replace("4,4]", "6,6]")))[1]
    fails("MP504", lambda: emit_tiny(plan=other))
    fails("MP504", lambda: emit_tiny(constants={"w": tiny_constants()["w"]}))
    fails("MP504", lambda: emit_tiny(constants={**tiny_constants(), "b": torch.ones(3).double()}))
    fails("MP504", lambda: emit_tiny(layout=Layout(SRAM, weights=SRAM, inputs=SRAM)))
    fails("MP504", lambda: emit_tiny(golden={"input0": np.zeros((1, 2, 4, 4), np.float32)}))
    wrong = {"input0": np.zeros((2, 4, 4), np.float32), "output0": np.zeros((1, 3), np.float32)}
    fails("MP504", lambda: emit_tiny(golden=wrong))


def test_sections_can_be_chosen(tmp_path: Path) -> None:
    sources = write(tmp_path, {k: str(v) for k, v in emit_tiny().items()})
    sections = ('-DMPLAN_ARENA_SECTION=".fast"', '-DMPLAN_WEIGHTS_SECTION=".slow"')
    for source in sources:
        output = source.with_suffix(".s")
        compile_c(host_compiler(), [source], *STRICT, *sections, "-S", "-o", str(output))
    assert ".fast" in (tmp_path / "net.s").read_text()
    assert ".slow" in (tmp_path / "net_weights.s").read_text()


def test_a_stale_header_is_noticed(tmp_path: Path) -> None:
    files = {k: str(v) for k, v in emit_tiny().items()}
    files["net.h"] = files["net.h"].replace("ARENA_BYTES 320", "ARENA_BYTES 316")
    source = next(s for s in write(tmp_path, files) if s.name == "net.c")
    with pytest.raises(AssertionError, match="header_belongs_to_source"):
        compile_c(host_compiler(), [source], *STRICT, "-c", "-o", str(tmp_path / "net.o"))


def test_ops_in_phases_run_once(tmp_path: Path) -> None:
    graph = parse(TINY)
    first = replace(graph.ops[0], scratch=(Scratch(64, 0, 1),), births=(1,))
    graph = replace(graph, ops=(first, *graph.ops[1:]))
    files = emitted(graph, tiny_constants())
    assert files["net.c"].count("aten.convolution.default") == 1
    x = torch.randn(1, 2, 4, 4)
    constants = tiny_constants()
    expected = F.conv2d(x, constants["w"], constants["b"], padding=1).relu().mean((2, 3))
    network = build(tmp_path, files)
    assert_close(network.run([x], [expected]), [expected])


def test_a_network_that_returns_its_input_is_refused() -> None:
    graph = parse("graph @net(%x: f32[4]) {\n  return %x\n}")
    with pytest.raises(MplanError, match="the network net computes nothing") as caught:
        emitted(graph, {})
    assert caught.value.code == "MP501"
