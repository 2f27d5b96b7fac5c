"""What `mplan explain` advises on microcontrollers: each price is that of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_runner import Outcome, run_cli

from mplan.compiler import plan
from mplan.diagnostics import InfeasibleError
from tests.quantized_nets import QuantizedNet
from tests.test_memories_total import narrow

MODEL = """
import torch
from torch import nn


def get_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()


def get_inputs():
    return torch.randn(1, 3, 24, 24)
"""

STRIDES = """
import torch
from torch import nn


def get_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.ReLU6(),
        nn.Conv2d(16, 8, 1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()


def get_inputs():
    return torch.randn(1, 3, 32, 32)
"""


def advice(done: Outcome) -> dict[str, int]:
    assert done.code == 0, done.err
    return {a["text"].partition(" (")[2].rstrip(")"): a["peak_bytes"] for a in done.json["advice"]}


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("advice") / "net.mpir"
    path.write_text(f"{narrow(QuantizedNet(24, 24, 8))}\n")
    return path


def test_streams_are_advised_with_the_bytes_of_their_plans(int8: Path) -> None:
    done = run_cli("explain", int8, "-t", "stm32f746", "--json")
    found = advice(done)
    assert {"--input rows", "--input flash", "--input whole"} <= found.keys()
    for way in ("rows", "flash", "whole"):
        planned = plan(int8, target="stm32f746", input=way).file.plan
        assert found[f"--input {way}"] == planned.peak_bytes("sram") < done.json["peak_bytes"]
    assert len(set(found.values())) == len(found)
    assert not done.json["refused"]


def test_what_does_not_fit_is_explained_all_the_same(int8: Path) -> None:
    least = plan(int8, target="stm32f746", input="flash").file.plan.peak_bytes("sram")
    assert run_cli("plan", int8, "-t", "stm32f746", "--budget", "512").code == 4
    done = run_cli("explain", int8, "-t", "stm32f746", "--budget", "512", "--json")
    assert min(advice(done).values()) == least
    assert "MP235" in done.json["refused"] and done.json["peak_bytes"] > 512
    shown = run_cli("explain", int8, "-t", "stm32f746", "--budget", "512").err
    assert "does not fit: MP235" in shown and "stream rows of the image" in shown


def test_float_models_become_integers_first(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    done = run_cli("explain", tmp_path / "net.py", "-t", "stm32f746", "--json")
    found, asked = advice(done), "--quantize int8 --io int8-nhwc"
    assert done.json["peak_bytes"] >= 2 * found[asked] > found[f"{asked} --input rows"] > 0
    planned = plan(
        tmp_path / "net.py", target="stm32f746", quantize="int8", io="int8-nhwc", input="rows"
    )
    assert planned.file.plan.peak_bytes("sram") == found[f"{asked} --input rows"]


@pytest.mark.parametrize(("budget", "scans"), [(724, 2), (633, 4)])
def test_rows_that_arrive_several_times_meet_a_budget(budget: int, scans: int, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(STRIDES)
    kind = ("-t", "stm32f746", "--budget", budget, "--json")
    done = run_cli("explain", tmp_path / "net.py", *kind)
    found, asked = advice(done), "--quantize int8 --io int8-nhwc"
    several = f"{asked} --budget {budget} --input rows --scans {scans}"
    assert found[several] <= budget < found[f"{asked} --input rows"]
    given: dict[str, Any] = {"target": "stm32f746", "quantize": "int8", "io": "int8-nhwc"}
    given |= {"budget": budget, "input": "rows"}
    made = plan(tmp_path / "net.py", scans=scans, **given)
    assert made.file.plan.peak_bytes("sram") == found[several]
    assert made.planned is not None and made.planned.streamed is not None
    (text,) = (a["text"] for a in done.json["advice"] if "--scans" in a["text"])
    factor = f"{made.planned.streamed.mac_factor:.3f}"
    assert f"arrive {scans} times, at {factor} times the multiply-accumulates" in text
    with pytest.raises(InfeasibleError):
        plan(tmp_path / "net.py", **given)


def test_rows_arrive_once_where_that_is_enough(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(STRIDES)
    kind = ("-t", "stm32f746", "--budget", 1000, "--json")
    done = run_cli("explain", tmp_path / "net.py", *kind)
    assert done.json["refused"] and min(advice(done).values()) <= 1000
    assert not any("--scans" in text for text in advice(done))


def test_no_streams_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    done = run_cli("explain", tmp_path / "net.py", "-t", "cpu", "--json")
    assert not any("--input" in text or "--quantize" in text for text in advice(done))
