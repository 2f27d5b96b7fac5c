"""C of streams: the bytes of the interpreter, in the same rings, with images that arrive by rows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mplan.codegen.bundle import load_manifest
from mplan.codegen.c.emit import emit_c
from mplan.compiler import compile_model
from mplan.diagnostics import UnsupportedError
from mplan.ir.graph import Graph
from mplan.ir.interp import run
from mplan.ir.parser import parse
from mplan.ir.plan import Plan
from mplan.ir.storage import Layout, Lowered
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.passes.stream.build import Choice
from mplan.passes.tile_pixels import tiled_graph
from mplan.pipeline import PIPELINES as PIPELINES_BY_FAMILY
from mplan.pipeline import run_passes
from mplan.runtime.device import run_bundle
from tests.c_support import (
    FLASH,
    LAYOUT,
    SANITIZE,
    SRAM,
    STRICT,
    compile_c,
    first_fit,
    host_compiler,
    run_program,
    write,
)
from tests.quantized_nets import QuantizedNet, mobile, plain, residual
from tests.test_streams import CHOICES, streamed

pytestmark = pytest.mark.slow

NETS: dict[str, tuple[Callable[[QuantizedNet], Graph], int, int, int]]
NETS = {"mobile": (mobile, 21, 18, 3), "plain": (plain, 11, 13, 2), "residual": (residual, 9, 8, 4)}
ARRIVING = Layout(SRAM, weights=FLASH)


def files_of(graph: Graph, net: QuantizedNet, layout: Layout) -> dict[str, str]:
    lowered, plan = first_fit(graph, layout)
    return texts(graph, lowered, plan, net)


def texts(graph: Graph, lowered: Lowered, plan: Plan, net: QuantizedNet) -> dict[str, str]:
    files = emit_c(graph, lowered, plan, net.constants, name="net")
    return {name: str(text) for name, text in files.items()}


BODIES = [(n, c) for n in NETS for c in CHOICES if not (n == "mobile" and c.width)]  # a mean is whole


@pytest.mark.parametrize(("name", "choice"), BODIES, ids=str)
def test_a_stream_has_the_bytes_of_its_body(name: str, choice: Choice, tmp_path: Path) -> None:
    make, *sizes = NETS[name]
    net = QuantizedNet(*sizes)
    graph, image = make(net), net.image()
    wanted = run(graph, {**net.constants, "x": image})
    found = streamed(graph, choice, False)
    ours = run_program(tmp_path, files_of(found, net, LAYOUT), [image], wanted)
    assert torch.equal(ours[0], wanted[0])


PUSHING = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"

/* Each row lies in memory of its own, which is gone when the next one comes. The first rows are of an
 * image that is given up, in the second scan if there are several. */
int main(void) {{
    const int rows = MPLAN_NET_INPUT_0_ROWS, all = rows * MPLAN_NET_INPUT_0_SCANS;
    const int gone = (all > rows ? rows : 0) + (rows + 2) / 3;
    const size_t size = MPLAN_NET_INPUT_0_BYTES / MPLAN_NET_INPUT_0_ROWS;
    int8_t *image = malloc(MPLAN_NET_INPUT_0_BYTES);
    if (fread(image, 1, MPLAN_NET_INPUT_0_BYTES, stdin) != MPLAN_NET_INPUT_0_BYTES) return 3;
    if (net_input(0) || net_push_row(0) != 2) return 6;
    for (int n = all > 1 ? -gone : 0; n < all; ++n) {{
        int8_t *row = malloc(size);
        memcpy(row, image + (size_t)((n < 0 ? n + gone : n) % rows) * size, size);
        const int status = net_push_row(row);
        free(row);
        if (n == -1) net_drop_rows();
        if (status != (n == all - 1 ? 0 : 3)) return 4;
    }}
    free(image);
    return fwrite(net_output(0), 1, {size}, stdout) == {size} ? 0 : 5;
}}
"""


def check_pushed(
    folder: Path, files: dict[str, str], image: torch.Tensor, wanted: torch.Tensor
) -> None:
    main = PUSHING.format(size=wanted.numel())
    sources = write(folder, {**files, "main.c": main})
    program = folder / "program"
    compile_c(host_compiler(), sources, *STRICT, "-O0", *SANITIZE, "-o", str(program), "-lm")
    done = subprocess.run([str(program)], input=image.numpy().tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stdout == wanted.numpy().tobytes()


ARRIVALS = [Choice("row"), Choice("pixel"), Choice("row", False, 1), Choice("pixel", False, 1)]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("choice", ARRIVALS, ids=str)
def test_rows_arrive_one_by_one(name: str, choice: Choice, tmp_path: Path) -> None:
    """In strips of columns all of them arrive again for each strip."""
    make, *sizes = NETS[name]
    if name == "mobile":  # a mean is whole
        choice = replace(choice, width=0)
    net = QuantizedNet(*sizes)
    graph, image = make(net), net.image()
    (wanted,) = run(graph, {**net.constants, "x": image})
    files = files_of(streamed(graph, choice, True), net, ARRIVING)
    scans = re.search(r"INPUT_0_SCANS (\d+)", files["net.h"])
    assert scans and (int(scans[1]) > 1) == (choice.width > 0)
    ours = run_program(tmp_path / "whole", files, [image], [wanted])
    assert torch.equal(ours[0], wanted)
    check_pushed(tmp_path / "rows", files, image, wanted)


VWW1 = Path(__file__).parent / "data" / "mcunet" / "mcunet-vww1.tflite"
PIPELINE = "canonicalize,fold_padding,drop_unused,{},inplace,schedule,allocate"
PIPELINES = [
    "stream{input=rows}",
    "stream{rows=false}",
    "stream{pixels=false}",
    "stream{max_mac_factor=1.3}",
]


@pytest.mark.parametrize("name", ["mobile", "residual"])
@pytest.mark.parametrize("stream", PIPELINES)
def test_planned_streams(name: str, stream: str, tmp_path: Path) -> None:
    """Whole networks: streams behind each other, whose results replace their operands."""
    make, *sizes = NETS[name]
    net = QuantizedNet(*sizes, seed=1)
    graph, image = make(net), net.image()
    wanted = run(graph, {**net.constants, "x": image})
    ctx = Context(LAYOUT, constants=net.constants)
    passes = parse_pipeline(f"{stream},inplace,schedule{{solver=none}},allocate{{solver=greedy}}")
    found = run_passes(graph, passes, ctx)
    assert any(op.loop for op in found.ops)
    assert ctx.lowered is not None and ctx.plan is not None
    files = texts(found, ctx.lowered, ctx.plan, net)
    assert torch.equal(run_program(tmp_path, files, [image], wanted)[0], wanted[0])


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels=st.integers(1, 40),
    depthwise=st.booleans(),
    size=st.tuples(st.integers(1, 12), st.integers(1, 33)),
    choice=st.sampled_from(CHOICES),
    tiled=st.booleans(),
    pushed=st.booleans(),
)
def test_any_window(tmp_path_factory: pytest.TempPathFactory, **given: object) -> None:
    check_window(tmp_path_factory.mktemp("window"), **given)  # type: ignore[arg-type]


def check_window(
    folder: Path,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    channels: int,
    depthwise: bool,
    size: tuple[int, int],
    choice: Choice,
    tiled: bool,
    pushed: bool,
) -> None:
    """A window of any geometry between two convolutions, in a stream and layer by layer."""
    net = QuantizedNet(*size, 3)
    x = net.conv("x", channels, (3, 3), padding=(1, 1, 1, 1))
    y = net.conv(x, channels, kernel, stride, padding, dilation, channels if depthwise else 1)
    assume(min(net.shapes[y][1:3]) > 0)
    z = net.conv(y, 3, (2, 2), padding=(1, 0, 0, 1))
    graph, image = net.graph(z), net.image()
    (wanted,) = run(graph, {**net.constants, "x": image})
    pushed = pushed and not choice.up
    stream = streamed(graph, choice, pushed)
    if tiled:
        stream = tiled_graph(stream, [1 << 30], columns=True)
        verify(stream, deep=True)
    layered = files_of(graph, net, LAYOUT)
    assert torch.equal(run_program(folder / "layers", layered, [image], [wanted])[0], wanted)
    files = files_of(stream, net, ARRIVING if pushed else LAYOUT)
    if pushed:
        check_pushed(folder / "rows", files, image, wanted)
    else:
        assert torch.equal(run_program(folder / "stream", files, [image], [wanted])[0], wanted)


def test_what_has_no_kernel_by_rows_is_refused() -> None:
    net = QuantizedNet(8, 8, 2)
    text = "graph @net(%x: f32[1,2,8,8], const %w: f32[3,2,3,3]) {\n  %y: f32[1,3,6,6] = "
    text += "aten.convolution.default(input=%x, weight=%w, bias=none, stride=[1, 1], padding=[0, 0], "
    text += "dilation=[1, 1], transposed=false, output_padding=[0, 0], groups=1)\n  return %y\n}"
    graph = streamed(parse(text), Choice("row"), False)
    net.constants = {"w": torch.zeros(3, 2, 3, 3)}
    assert "aten.convolution.default has no kernel by rows" in refusal(graph, net, LAYOUT)


def refusal(graph: Graph, net: QuantizedNet, layout: Layout) -> str:
    with pytest.raises(UnsupportedError) as caught:
        files_of(graph, net, layout)
    assert caught.value.code == "MP501"
    ((reason, _),) = caught.value.notes
    return reason


@pytest.mark.parametrize("length", [32767, 32768])
@pytest.mark.parametrize("dimension", [0, 1])
def test_images_are_at_most_16_bits_long(length: int, dimension: int) -> None:
    """Also where every stage has fewer rows than the image that it reads."""
    sizes, kernel = ((length, 1), (64, 1)) if dimension == 0 else ((1, length), (1, 64))
    net = QuantizedNet(*sizes, 2)
    graph = net.graph(net.conv(net.conv("x", 4, kernel, kernel), 4))
    for found in (graph, streamed(graph, Choice("row"), False)):
        if length == 32767:
            assert files_of(found, net, LAYOUT)
        else:
            assert "more than 32,767 rows or columns" in refusal(found, net, LAYOUT)


@pytest.mark.parametrize("number", [32767, 32768])
@pytest.mark.parametrize("field", ["stride", "dilation"])
def test_windows_are_at_most_16_bits_wide(field: str, number: int) -> None:
    net = QuantizedNet(4, 4, 2)
    graph = net.graph(net.conv("x", 4, **{field: (1, number)}))
    for found in (graph, streamed(graph, Choice("row"), False)):
        if number == 32767:
            assert files_of(found, net, LAYOUT)
        else:
            assert f"with a {field} of more than 32,767" in refusal(found, net, LAYOUT)


@pytest.mark.parametrize("reach", [16383, 16384])
def test_stages_reach_at_most_16_bits_far(reach: int) -> None:
    """A stage that needs a row so far behind its own, though its window has room in 16 bits."""
    net = QuantizedNet(3, 3, 2)
    wide: dict[str, Any] = {"dilation": (reach, 1), "padding": (0, 2 * reach, 0, 0)}
    graph = net.graph(net.conv(net.conv("x", 2), 4, (3, 1), **wide))
    assert files_of(graph, net, LAYOUT)
    stream = streamed(graph, Choice("row"), False)
    if reach == 16383:
        assert files_of(stream, net, LAYOUT)
    else:
        assert "reaches more than 32,767 rows or columns" in refusal(stream, net, LAYOUT)


@pytest.mark.parametrize("length", [32767, 32768])
def test_pixels_are_picked_by_16_bits(length: int) -> None:
    net = QuantizedNet(1, length, 1)
    how = "size=[1, 2], align_corners=false, half_pixel_centers=false"
    graph = net.graph(net.op("mplan.resize_nearest2d", (1, 1, 2, 1), "input=%x", how))
    if length == 32767:
        assert f"{{0, {length // 2}}}" in files_of(graph, net, LAYOUT)["net.c"]
    else:
        assert "more than 32,767 rows or columns" in refusal(graph, net, LAYOUT)


def test_rows_arrive_for_one_input() -> None:
    net = QuantizedNet(4, 5, 2)
    result = net.add("x", "x")
    text = net.lines[0].replace("other=%x", "other=%y")
    images = "%x: i8[1,4,5,2], %y: i8[1,4,5,2]"
    graph = parse(f"graph @net({images}) {{\n  {text}\n  return %{result}\n}}")
    found = streamed(graph, Choice("row"), True)
    assert "rows of several inputs" in refusal(found, net, ARRIVING)


@pytest.mark.parametrize("emulator", ["unicorn", "qemu"])
def test_a_trained_model_whose_rows_arrive_on_a_microcontroller(emulator: Any, tmp_path: Path) -> None:
    """The published visual-wake-words model in a sixth of the memory that it needs layer by layer."""
    passes = PIPELINE.format("stream{input=rows,pixels=false}")
    compiled = compile_model(VWW1, out=tmp_path / "out", pipeline=passes, target="stm32f746")
    assert len(compiled.result.planned.graph.ops) > 5
    found = run_bundle(tmp_path / "out", emulator=emulator)
    assert found.outputs_match and found.max_abs_err == 0
    assert found.arena_bytes == found.arena_touched_bytes <= 15_504
    assert found.stack_bound_bytes is not None and found.stack_bytes <= found.stack_bound_bytes < 1024
    stages = [s for s in found.steps if s.stage >= 0]
    assert {s.kind.partition(",")[0] for s in stages} >= {"mplan.qconv2d", "mplan.qdepthwise_conv2d"}
    walks = [s for s in found.steps if s.kind == "mplan.loop"]
    assert {s.position for s in stages} == {s.position for s in walks}
    counted = sum(s.instructions for s in found.steps)
    assert 0 <= found.instructions - counted < 100 * 80  # around the steps: 80 rows that are pushed
    assert sum(s.instructions for s in walks) < 0.005 * counted


def test_a_trained_model_whose_rows_arrive_several_times(tmp_path: Path) -> None:
    """Strips of columns need less memory; the image comes once for each of them."""
    asked = {"input": "rows", "io": "int8-nhwc", "scans": 3, "max_mac_factor": 1.05}
    passes = PIPELINES_BY_FAMILY["mcu"].replace("compare=true", "compare=false")
    compiled = compile_model(VWW1, out=tmp_path / "out", target="stm32f746", pipeline=passes, **asked)
    (port,) = load_manifest(tmp_path / "out").inputs
    assert (port.rows, port.scans) == (80, compiled.report.stream.scans) and 2 <= port.scans <= 3
    found = run_bundle(tmp_path / "out")
    assert found.outputs_match and found.max_abs_err == 0
    assert found.arena_bytes == found.arena_touched_bytes < 12_496  # what one scan needs


@pytest.mark.parametrize("name", NETS)
def test_an_image_is_read_where_it_lies(name: str, tmp_path: Path) -> None:
    """In flash, say: it takes no memory and stays as it is."""
    make, *sizes = NETS[name]
    net = QuantizedNet(*sizes, seed=2)
    graph, image = make(net), net.image()
    (wanted,) = run(graph, {**net.constants, "x": image})
    ctx = Context(LAYOUT, constants=net.constants)
    passes = "stream{input=flash},inplace,schedule{solver=none},allocate{solver=greedy}"
    found = run_passes(graph, parse_pipeline(passes), ctx)
    assert ctx.lowered is not None and ctx.plan is not None and "x" not in ctx.lowered.buffer_of
    files = texts(found, ctx.lowered, ctx.plan, net)
    ours = run_program(tmp_path / "streams", files, [image], [wanted])
    assert torch.equal(ours[0], wanted)
    layers = files_of(graph, net, ARRIVING)  # the same op by op
    assert torch.equal(run_program(tmp_path / "layers", layers, [image], [wanted])[0], wanted)
    assert "net_set_input(int index" in layers["net.h"]


def test_an_image_in_flash_on_a_microcontroller(tmp_path: Path) -> None:
    """Two different samples, each a constant of the image."""
    folder = tmp_path / "out"
    compiled = compile_model(VWW1, out=folder, input="flash", io="int8-nhwc", target="stm32f746")
    graph = compiled.result.planned.graph
    assert [port.outside for port in load_manifest(folder).inputs] == [True]
    generator = torch.Generator().manual_seed(3)
    images = [
        torch.randint(-128, 128, (1, 80, 80, 3), dtype=torch.int8, generator=generator)
        for _ in range(2)
    ]
    name = next(i.value.name for i in graph.inputs if i.role == "input")
    constants = compiled.result.planned.constants
    wanted = [run(graph, {**constants, name: image})[0] for image in images]
    found = run_bundle(folder, inputs=[[image.numpy()] for image in images])
    for ours, theirs in zip(found.outputs, wanted, strict=True):
        assert torch.equal(torch.tensor(ours[0]), theirs)
    assert found.arena_bytes == found.arena_touched_bytes <= 13_100


@pytest.mark.parametrize(("target", "most"), [("stm32f746", 24.0e6), ("mps3-an547", 8.5e6)])
def test_a_trained_model_takes_no_more_instructions_than_peers(
    target: str, most: float, tmp_path: Path
) -> None:
    """TinyEngine takes 34.5 M on a Cortex-M7, CMSIS-NN 11.3 M on a -M55, in five times the memory."""
    passes = PIPELINES_BY_FAMILY["mcu"].replace("compare=true", "compare=false")
    asked = {"input": "rows", "io": "int8-nhwc", "budget": 17_200, "pipeline": passes}
    compile_model(VWW1, out=tmp_path / "out", target=target, **asked)
    found = run_bundle(tmp_path / "out", emulator="qemu")
    assert found.outputs_match and found.max_abs_err == 0
    assert found.arena_bytes == found.arena_touched_bytes <= 17_200
    assert found.instructions <= most
