"""What streams of published networks need, beside published figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mplan.capture.boundary import with_integer_io
from mplan.capture.tflite import read_tflite
from mplan.ir.graph import Graph, Value
from mplan.ir.ops import graph_macs
from mplan.ir.storage import Layout
from mplan.ir.types import DType, TensorType
from mplan.passes.base import Context
from mplan.passes.registry import parse_pipeline
from mplan.passes.stream import StreamRows
from mplan.pipeline import run_passes
from tests.mcunet import FOLDER, mobilenet_v2, network
from tests.test_stream_pass import ARENA, FLASH, clean, context, planned

pytestmark = pytest.mark.slow

#: Bytes that no plan may exceed: published ones of streams by rows; rows or pixels while rows of the
#: image arrive; a factor of multiply-accumulates and what strips need within it, the image in flash or
#: its rows arriving several times; the image held in memory.
PEAKS: dict[str, tuple[int, int, tuple[float, int], int]] = {
    "mbv2-w0.35-r144_imagenet": (26_704, 22_000, (1.05, 16_000), 67_177),
    "mobilenet_v2": (124_000, 100_000, (1.05, 48_000), 185_993),
    "proxyless-w0.3-r176_imagenet": (48_184, 41_000, (1.26, 20_100), 96_000),
    "mcunet-in3": (59_920, 57_000, (1.3, 47_500), 99_000),
    "mcunet-vww1": (15_504, 13_100, (1.05, 12_424), 22_000),
}


def one_byte(graph: Graph) -> Graph:
    """``graph`` with elements of one byte, as after quantisation."""

    def narrow(value: Value) -> Value:
        if not isinstance(value.type, TensorType):
            return value
        return replace(value, type=replace(value.type, dtype=DType.I8))

    inputs = tuple(replace(i, value=narrow(i.value)) for i in graph.inputs)
    ops = (replace(op, results=tuple(v and narrow(v) for v in op.results)) for op in graph.ops)
    return replace(graph, inputs=inputs, ops=tuple(ops))


def known_network(name: str) -> Graph:
    """A published network, with elements of one byte."""
    if name.startswith("mcunet"):
        captured = with_integer_io(read_tflite(FOLDER / f"{name}.tflite"))
        ctx = Context(Layout(ARENA, FLASH), constants=captured.constants)
        passes = parse_pipeline("canonicalize,fold_padding,drop_unused")
        return run_passes(captured.graph, passes, ctx)
    size = int(name.partition("-r")[2][:3] or 224)
    return one_byte(clean(mobilenet_v2() if name == "mobilenet_v2" else network(name), size))


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_of_known_networks(name: str) -> None:
    rows, pixels, (factor, strips), held = PEAKS[name]
    graph = known_network(name)
    work = graph_macs(graph)

    def height(pass_: StreamRows, image: bool = False) -> int:
        found, height = planned(graph, pass_, context(image))
        assert graph_macs(found) <= work * (pass_.max_mac_factor or 1)
        return height

    assert height(StreamRows(pixels=False, strips=0, input="rows")) <= rows
    assert height(StreamRows(input="rows")) <= pixels
    assert height(StreamRows(max_mac_factor=factor)) <= strips
    assert height(StreamRows(max_mac_factor=factor, input="rows", scans=64)) <= strips
    assert height(StreamRows(), image=True) <= held
