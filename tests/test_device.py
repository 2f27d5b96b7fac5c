"""Compiled folders in the emulator: outputs of any layout, and what a bad folder or input says."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import mplan
from mplan.diagnostics import MplanError
from mplan.runtime.device import _largest_error, run_bundle
from mplan.runtime.run_report import render


class Layouts(nn.Module):
    """Three outputs: transposed, a slice in the middle of another tensor, and a fresh one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.conv(x)
        return y.transpose(1, 2), y[:, 1:3], torch.softmax(y, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("layouts")
    mplan.compile(Layouts().eval(), (torch.randn(1, 1, 8, 8),), target="stm32f746", out=path)
    return path


def test_outputs_of_any_layout_come_back(folder: Path) -> None:
    run = run_bundle(folder)
    assert run.outputs_match
    assert [o.shape for o in run.outputs[0]] == [(1, 6, 4, 6), (1, 2, 6, 6), (1, 4, 6, 6)]
    assert run.arena_touched_bytes == run.arena_bytes


def test_two_compilers_and_two_emulators_agree(folder: Path) -> None:
    samples = [(np.random.default_rng(i).normal(size=(1, 1, 8, 8)),) for i in range(3)]
    first = run_bundle(folder, inputs=samples)
    second = run_bundle(folder, inputs=samples, emulator="qemu")
    assert len(first.outputs) == 3
    for mine, theirs in zip(first.outputs, second.outputs, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert run_bundle(folder, inputs=samples).instructions == first.instructions


@pytest.mark.parametrize("target", ["mps2-an386", "mps2-an500", "mps3-an547"])
def test_every_step_is_priced(folder: Path, target: str, tmp_path: Path) -> None:
    mplan.compile(Layouts().eval(), (torch.randn(1, 1, 8, 8),), target=target, out=tmp_path)
    run = run_bundle(tmp_path, emulator="qemu", toolchain="zig")
    kinds = {step.kind for step in run.steps}
    assert {"aten.convolution.default", "aten._softmax.default"} <= kinds
    assert all(step.instructions > 0 and "test_device.py" in step.where for step in run.steps)
    by_step = sum(step.instructions for step in run.steps)
    assert by_step < run.instructions <= by_step + 60
    assert run.instructions < sum(run.functions.values())
    assert run.stack_bound_bytes is not None and run.stack_bytes <= run.stack_bound_bytes
    written = [memory.written_bytes for memory in run.memories.values()]
    assert sum(written) == run.sram_touched_bytes >= run.arena_bytes == run.arena_touched_bytes
    if target != "mps3-an547":  # unicorn has no Cortex-M55
        other = run_bundle(tmp_path)
        assert (other.steps, other.functions, other.stack_bytes) == (
            run.steps,
            run.functions,
            run.stack_bytes,
        )
    document = json.loads(json.dumps(run.to_json()))
    assert document["steps"][0]["instructions"] == run.steps[0].instructions
    assert set(document["memories"]["sram"]) == {"written_bytes", "read_bytes"}


def test_the_report_has_every_step_and_figure(folder: Path) -> None:
    run = run_bundle(folder)
    console = Console(width=200, record=True, file=io.StringIO())
    render(run, console)
    text = console.export_text()
    for step in run.steps:
        assert re.search(rf"{step.position} +{step.instructions:,} .*{step.kind} +{step.name} ", text)
    assert f"{run.instructions:,} instructions, the most of 1 inference in unicorn" in text
    assert f"at most {run.stack_bound_bytes:,} B: Reset_Handler > main" in text
    assert "outputs match PyTorch's" in text


def test_a_changed_weight_is_noticed(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (weights,) = tmp_path.glob("*_weights.c")
    text, count = re.subn(r"(\{\s*)(-?\d)", r"\g<1>9.0f + \2", weights.read_text(), count=1)
    assert count == 1
    weights.write_text(text)
    run = run_bundle(tmp_path)
    assert run.outputs_match is False
    assert run.max_abs_err is not None and run.max_abs_err > 1


@pytest.mark.parametrize(
    ("inputs", "part"),
    [([()], "0 inputs given"), ([(np.zeros((1, 1, 8, 9)),)], "shape"), ([(np.zeros(3),)] * 2, "shape")],
)
def test_inputs_that_do_not_fit_are_refused(folder: Path, inputs: object, part: str) -> None:
    with pytest.raises(MplanError, match=part) as info:
        run_bundle(folder, inputs=inputs)  # type: ignore[arg-type]
    assert info.value.code == "MP426"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": 3}', json.dumps({"inputs": 1})])
def test_a_damaged_manifest_is_an_error_with_a_code(tmp_path: Path, content: str) -> None:
    (tmp_path / "mplan.json").write_text(content)
    with pytest.raises(MplanError) as info:
        run_bundle(tmp_path)
    assert info.value.code == "MP425"


def test_int8_outputs_match_at_the_least_number() -> None:
    """The absolute value of -128 has no place in 8 bits."""
    wanted = np.array([-128, 127, 0], dtype=np.int8)
    assert _largest_error([wanted], [wanted]) == (0.0, True)
    assert _largest_error([wanted], [np.array([-127, 127, 0], dtype=np.int8)]) == (1.0, False)
