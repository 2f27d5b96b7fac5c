"""Quantisation from the front doors: calibration data, options, and what the caller passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mplan
from mplan.capture.calibration import as_call, read_calibration, slices
from mplan.compiler import capture_for
from mplan.diagnostics import UserError
from mplan.options import Options
from tests.cli_runner import run_cli
from tests.qdq_nets import Calls

MODEL = """
import torch
from torch import nn


def get_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def get_inputs():
    return torch.linspace(-1, 1, 128).reshape(1, 2, 8, 8)
"""
OWN = """

def get_calibration():
    return [torch.linspace(-2, 2, 1280).reshape(10, 2, 8, 8)]
"""


def scale_of_input(folder: Path) -> float:
    manifest = json.loads((folder / "mplan.json").read_text())
    (port,) = manifest["inputs"]
    assert port["dtype"] == "i8"
    return float(port["scale"])


@pytest.mark.parametrize(
    ("own", "data", "scale"), [(False, False, 2 / 255), (True, False, 4 / 255), (True, True, 6 / 255)]
)
def test_calibration_data_come_from_the_best_place(
    own: bool, data: bool, scale: float, tmp_path: Path
) -> None:
    model, out = tmp_path / "net.py", tmp_path / "out"
    model.write_text(MODEL + (OWN if own else ""))
    options = []
    if data:
        np.savez(tmp_path / "data.npz", np.linspace(-3, 3, 1280).reshape(10, 2, 8, 8))
        options = ["--calibrate", tmp_path / "data.npz"]
    done = run_cli("compile", model, "--quantize", "int8", *options, "-o", out)
    assert done.code == 0, done.err
    assert ("example inputs alone" in done.err) == (not own and not data)
    assert scale_of_input(out) == pytest.approx(scale, rel=1e-3)
    header = next(out.glob("*.h")).read_text() + "".join(p.read_text() for p in out.glob("*.h"))
    assert "_INPUT_0_SCALE 0.0" in header and "_OUTPUT_0_ZERO_POINT (" in header
    if data:
        found = run_cli("run", out, "--json").json
        assert found["outputs_match"] and found["max_abs_err"] == 0


def test_plans_on_other_targets_simulate() -> None:
    program = mplan.quantize(nn.Linear(8, 4).eval(), [torch.randn(16, 8)], (torch.zeros(1, 8),))
    kinds = {op.kind for op in capture_for(program, None, None, Options()).graph.ops}
    assert "quantized_decomposed.quantize_per_tensor.default" in kinds
    assert mplan.plan(program, target="cpu").file.plan.status == "optimal"


def test_what_stays_float_is_said() -> None:
    x = torch.randn(1, 4, 6, 6)
    plain = mplan.plan(nn.Conv2d(4, 3, 3).eval(), (x,), target="stm32f746", io="int8")
    assert ["io=int8" in note and "stays float" in note for note in plain.report.warnings] == [True]
    spread = Calls(lambda x: x.var((2, 3))).eval()
    found = mplan.plan(spread, (x,), target="stm32f746", quantize="int8")
    assert any("nothing in the model has an integer form" in note for note in found.report.warnings)
    program = mplan.quantize(nn.Conv2d(4, 3, 3).eval(), [x])
    whole = mplan.plan(program, target="stm32f746", io="int8")
    assert not whole.report.warnings


def test_what_a_network_is_given() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 6, 6)
    program = mplan.quantize(nn.Conv2d(3, 4, 3).eval(), [images], (images[:1],))
    doors = {"float": ("f32", (1, 3, 6, 6)), "int8": ("i8", (1, 3, 6, 6))}
    doors["int8-nhwc"] = ("i8", (1, 6, 6, 3))
    for io, (dtype, shape) in doors.items():
        captured = capture_for(program, None, None, Options(target="stm32f746", io=io))
        (entry,) = (i.value.type for i in captured.graph.inputs if i.role == "input")
        assert (entry.dtype.value, entry.shape) == (dtype, shape)  # type: ignore[union-attr]
        (example,) = captured.example_inputs
        assert tuple(example.shape) == shape
        assert set(captured.affines) == (set() if io == "float" else {"input0", "output0"})
    kinds = [op.kind for op in captured.graph.ops]
    assert kinds == ["mplan.qconv2d", "aten.permute.default", "aten.clone.default"]


def test_images_that_others_read_keep_their_layout() -> None:
    function = Calls(lambda f, x: (f(x), torch.flatten(x, 1)), nn.Conv2d(3, 4, 3))
    image = torch.randn(1, 3, 6, 6)
    program = mplan.quantize(function.eval(), [image])
    captured = capture_for(program, None, None, Options(target="stm32f746", io="int8-nhwc"))
    (entry,) = (i.value.type for i in captured.graph.inputs if i.role == "input")
    assert entry.shape == (1, 3, 6, 6)  # type: ignore[union-attr]


def test_batches_are_cut_to_the_size_of_the_example() -> None:
    batches: list[Any] = [torch.arange(5), (torch.arange(4),), {"x": torch.arange(2)}]
    found = [args or tuple(kwargs.values()) for args, kwargs in slices(batches, as_call(torch.ones(2)))]
    assert [t.tolist() for (t,) in found] == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]
    pair = ((torch.ones(4),), {"mask": torch.ones(3)})
    calls = list(slices([pair], as_call(torch.ones(2))))
    assert [(a[0].numel(), k["mask"].numel()) for a, k in calls] == [(2, 3), (2, 3)]


def test_arrays_belong_to_arguments(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, b=np.ones((4, 3)), a=np.zeros((4, 2)))
    example = {"a": torch.ones(1, 2), "b": torch.ones(1, 3)}
    _, kwargs = read_calibration(path, ((), example))
    assert {k: tuple(t.shape) for k, t in kwargs.items()} == {"a": (4, 2), "b": (4, 3)}
    assert kwargs["a"].dtype == torch.float32
    args, _ = read_calibration(path, (tuple(example.values()), {}))
    assert [tuple(t.shape) for t in args] == [(4, 3), (4, 2)]
    with pytest.raises(UserError, match="2 arrays for 1") as caught:
        read_calibration(path, ((torch.ones(1),), {}))
    assert caught.value.code == "MP315"
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match="is no calibration data"):
        read_calibration(path, ((torch.ones(1),), {}))


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="does not fit"):
        mplan.quantize(nn.Linear(8, 4).eval(), [torch.randn(4, 8), torch.randn(4, 7)])


def test_what_is_captured_already_cannot_be_quantised() -> None:
    captured = capture_for(nn.ReLU(), (torch.ones(2),), None, Options())
    with pytest.raises(UserError, match="captured already"):
        mplan.plan(captured, quantize="int8")
    with pytest.raises(UserError, match="unknown quantize"):
        Options.parse({"quantize": "int4"})


def test_attention_with_a_mask_stays_float() -> None:
    def masked(f: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        return f(y)  # type: ignore[no-any-return]

    rows = torch.randn(1, 2, 6, 8)
    program = mplan.quantize(Calls(masked, nn.Linear(8, 4)).eval(), [rows])
    result = mplan.plan(program, target="stm32f746")
    assert any("softmax" in note for note in result.report.warnings)
    assert result.captured is not None
    kinds = [op.kind for op in result.captured.graph.ops]
    assert kinds.count("mplan.qlinear") == 1 and kinds.count("mplan.quantize") == 1


def test_an_image_of_one_channel_is_nhwc_without_a_copy() -> None:
    """Its bytes are the same in both layouts, so that its rows can arrive one by one."""
    program = mplan.quantize(nn.Conv2d(1, 4, 3).eval(), [torch.randn(1, 1, 9, 7)])
    captured = capture_for(program, None, None, Options(target="stm32f746", io="int8-nhwc"))
    (image,) = (i.value for i in captured.graph.inputs if i.role == "input")
    assert image.type.shape == (1, 9, 7, 1) and image.alias is None
    assert captured.example_inputs[0].shape == (1, 9, 7, 1)
    plan = mplan.plan(captured, target="stm32f746", input="rows", io="int8-nhwc")
    assert plan.planned and image.name not in plan.planned.lowered.buffer_of
