"""Whole .tflite models: every tensor as LiteRT computes it, plans, and errors that name everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_models import Builder, agreement, interpreted, read, reference

from mplan import compiler
from mplan.capture import Captured, capture_loaded, load_model
from mplan.capture.boundary import with_integer_io
from mplan.capture.tflite import read_tflite
from mplan.capture.tflite.model import parse_model
from mplan.diagnostics import MplanError, UnsupportedError, UserError
from mplan.ir.interp import run, run_in_arena
from mplan.ir.ops import graph_macs
from mplan.ir.parser import parse
from mplan.ir.verify import verify

MODELS = Path(__file__).parent / "data" / "mcunet"
IN3, VWW1 = MODELS / "mcunet-in3.tflite", MODELS / "mcunet-vww1.tflite"


@pytest.mark.parametrize(("path", "macs"), [(IN3, 81_785_520), (VWW1, 11_578_816)])
def test_every_tensor_of_trained_models(path: Path, macs: int):
    captured = read_tflite(path)
    assert graph_macs(captured.graph) == macs
    inputs = [x.numpy() for x in captured.example_inputs]
    expected, computed = reference(path, inputs), interpreted(captured, inputs)
    for name, value in computed.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_text_form_keeps_the_graph():
    graph = read_tflite(VWW1).graph
    assert parse(str(graph)) == graph


def test_a_path_is_a_model():
    assert capture_loaded(load_model(str(VWW1))).graph.name == "mcunet_vww1"


def test_conversions_at_the_boundary_can_be_left_to_the_caller():
    whole = read_tflite(VWW1)
    (captured, args, kwargs) = load_model(f"{VWW1}:int8")
    assert isinstance(captured, Captured) and not args and not kwargs
    verify(captured.graph)
    kinds = {op.kind for op in captured.graph.ops}
    assert not kinds & {"mplan.quantize", "mplan.dequantize"}
    (image,) = captured.example_inputs
    assert image.dtype == torch.int8
    inside = interpreted(whole, [x.numpy() for x in whole.example_inputs])
    np.testing.assert_array_equal(image.numpy(), inside["input.9_te_transform"])
    names = [i.value.name for i in captured.graph.inputs if i.role == "input"]
    (got,) = run(captured.graph, {**captured.constants, names[0]: image})
    np.testing.assert_array_equal(got.numpy(), inside["Xq.1"])


def test_conversions_that_others_need_stay():
    b = Builder()
    x = b.input((1, 4), "float32", name="x")
    y, z = b.tensor((1, 4), scale=0.1, name="y"), b.tensor((1, 4), scale=0.2, name="z")
    back = b.tensor((1, 4), "float32", name="back")
    again = b.tensor((1, 4), scale=0.2, name="again")
    b.op("QUANTIZE", [x], [y], "QuantizeOptions")
    b.op("QUANTIZE", [x], [z], "QuantizeOptions")
    b.op("DEQUANTIZE", [y], [back], "DequantizeOptions", 2)
    b.op("QUANTIZE", [back], [again], "QuantizeOptions")
    captured = read(b.finish(back, z, again))
    changed = with_integer_io(captured)
    verify(changed.graph)
    assert [i.value.name for i in changed.graph.inputs] == ["x"]
    assert [op.result.name for op in changed.graph.ops] == ["y", "z", "back", "again"]
    assert changed.graph.output_names == ("y", "z", "again")
    same = read(small().finish(1))
    assert with_integer_io(same) is same


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_the_rounding_of_linear_layers_is_a_choice(rounding: str):
    captured = read_tflite(VWW1, linear_rounding=rounding)
    (linear,) = (op for op in captured.graph.ops if op.kind == "mplan.qlinear")
    assert linear.arg("rounding") == rounding


def small() -> Builder:
    b = Builder()
    x = b.input((1, 4, 4, 3), scale=0.1, name="image")
    y = b.tensor((1, 4, 4, 3), scale=0.1, name="out")
    b.op("RELU", [x], [y])
    return b


def test_all_that_cannot_be_read_is_named_at_once():
    b = Builder()
    x = b.input((1, 4, 4, 3), scale=0.1)
    first = b.tensor((1, 4, 4, 3), scale=0.1, name="first/exp")
    second = b.tensor((1, 4, 4, 3), scale=0.1, name="second/relu")
    third = b.tensor((1, 4, 4, 3), scale=[0.1, 0.2, 0.3], axis=3, name="third/tanh")
    b.op("EXP", [x], [first])
    b.op("RELU", [first], [second])
    b.op("TANH", [second], [third])
    with pytest.raises(UnsupportedError) as caught:
        read(b.finish(third))
    assert caught.value.code == "MP302"
    assert caught.value.where is not None and caught.value.where.file == "model.tflite"
    notes = [text for text, _ in caught.value.notes]
    assert [note.partition(":")[0] for note in notes] == ["EXP -> 'first/exp'", "TANH -> 'third/tanh'"]
    assert "3 scales" in notes[1]


def test_a_hard_swish_that_the_kernel_refuses_is_refused():
    b = Builder()
    x, y = b.input((1, 4), scale=1.0), b.tensor((1, 4), scale=0.005)
    b.op("HARD_SWISH", [x], [y])
    with pytest.raises(UnsupportedError) as caught:
        read(b.finish(y))
    assert "1/128" in caught.value.notes[0][0]


def test_a_factor_of_more_than_31_bits_is_refused():
    b = Builder()
    x, y = b.input((1, 4), scale=1e20), b.tensor((1, 4), scale=1e-3)
    b.op("FULLY_CONNECTED", [x, b.const(np.ones((4, 4)), "int8", scale=1.0)], [y])
    with pytest.raises(UnsupportedError) as caught:
        read(b.finish(y))
    assert "not below 2**31" in caught.value.notes[0][0]


@pytest.mark.parametrize("offset", [False, True])
def test_slices_whose_end_counts_from_their_begin_are_refused(offset: bool):
    b = Builder()
    x, y = b.input((6,), scale=0.1), b.tensor((2,), scale=0.1)
    bounds = [b.const([n]) for n in (2, 4, 1)]
    b.op("STRIDED_SLICE", [x, *bounds], [y], "StridedSliceOptions", 2, offset=offset)
    if not offset:
        assert agreement(b.finish(y), [np.arange(6, dtype=np.int8)])
        return
    with pytest.raises(UnsupportedError) as caught:
        read(b.finish(y))
    assert "an end that counts from the begin" in caught.value.notes[0][0]


def test_float_models_are_refused():
    b = Builder()
    x, y = b.input((1, 4), "float32"), b.tensor((1, 4), "float32")
    b.op("RELU", [x], [y])
    with pytest.raises(UnsupportedError, match="1 of 1"):
        read(b.finish(y))


def test_a_wrong_shape_in_the_file_is_found():
    b = Builder()
    x, y = b.input((1, 4), scale=0.1), b.tensor((2, 2), scale=0.1)
    b.op("RELU", [x], [y])
    with pytest.raises(UnsupportedError) as caught:
        read(b.finish(y))
    assert "the file states int8[2, 2]" in caught.value.notes[0][0]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"no model")
    with pytest.raises(UserError) as caught:
        load_model(str(path))
    assert caught.value.code == "MP313"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_raise_only_our_errors(data):
    content = bytearray(small().finish(1))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        try:
            parse_model(damaged, "damaged.tflite")
            read(damaged)
        except MplanError as e:
            assert e.code in ("MP302", "MP313")


#: Peak of the arena layer by layer, with padding inside the convolutions: the largest sum of a layer's
#: input and output (and of a shortcut around it).
PEAKS = [(VWW1, 96_000), (IN3, 2 * 44 * 44 * 80 + 44 * 44 * 16)]


@pytest.mark.parametrize(("path", "peak"), PEAKS)
def test_plans_are_as_large_as_their_largest_layer_and_hold(path: Path, peak: int):
    captured = read_tflite(path)
    result = compiler.plan(captured, target="stm32h743", limit=20)
    planned = result.planned
    assert planned is not None
    assert planned.plan.peak_bytes(planned.target.arena) == peak
    assert not any(op.kind == "aten.constant_pad_nd.default" for op in planned.graph.ops)
    supply = iter(captured.example_inputs)
    inputs = {
        i.value.name: next(supply) if i.role == "input" else planned.constants[i.value.name]
        for i in planned.graph.inputs
    }
    known = {i.value.name for i in captured.graph.inputs}  # passes have made further constants
    given = {name: tensor for name, tensor in inputs.items() if name in known}
    expected = run(captured.graph, {**captured.constants, **given})
    got = run_in_arena(planned.graph, planned.lowered, planned.plan, inputs)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)
