"""The command line as people use it: data on stdout, coded errors, exit codes, whole files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cli_runner import Outcome, run_cli

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn(self.conv(x))))
        return torch.softmax(self.fc(x.mean((2, 3))), dim=-1)

def get_model():
    torch.manual_seed(0)
    return Net().eval()

def get_inputs():
    return (torch.rand(1, 1, 8, 8),)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture
def plan_json(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    assert run_cli("plan", model, "-t", "stm32f746", "-o", path).code == 0
    return path


def failed(outcome: Outcome, code: int, *texts: str) -> None:
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    for text in texts:
        assert text in outcome.err, outcome.err


def test_plan_json_has_the_documented_fields(model: Path) -> None:
    done = run_cli("plan", model, "-t", "stm32f746", "--json")
    assert done.code == 0, done.err
    d = done.json
    assert d["schema_version"] == 1
    assert d["status"] == "optimal"
    assert d["gap"] == 0
    sram = d["regions"]["sram"]
    assert sram["peak_bytes"] >= sram["lower_bound_bytes"] > 0
    assert sram["capacity_bytes"] == 320 * 1024
    schedule = d["schedule"]
    assert schedule["lower_bound_bytes"] <= schedule["peak_live_bytes"]
    assert schedule["peak_live_bytes"] <= schedule["baseline_peak_bytes"]
    assert d["macs"] == 8 * 9 * 64 + 8 * 10
    assert d["mac_factor"] == 1.0
    weights = (8 * 9 + 8 + 8 * 10 + 10) * 4
    assert weights <= d["flash_bytes"] <= weights + 64
    assert set(d["seconds"]) == {"capture", "plan", "codegen"}
    assert len(d["digest"]) == 64


def test_check_accepts_the_plan_and_rejects_a_changed_one(plan_json: Path) -> None:
    assert run_cli("check", plan_json).code == 0
    document = json.loads(plan_json.read_text())
    document["plan"]["placements"][0]["offset"] += 4
    plan_json.write_text(json.dumps(document))
    done = run_cli("check", plan_json, "--json")
    assert done.code == 5
    assert not done.json["ok"]
    assert "seal" in {v["reason"] for v in done.json["violations"]}


def test_compile_then_run_matches_pytorch(model: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    done = run_cli("compile", model, "-t", "stm32f746", "-o", build, "--json")
    assert done.code == 0, done.err
    assert done.json["regions"]["sram"]["peak_bytes"] > 0
    ran = run_cli("run", build, "--json")
    assert ran.code == 0, ran.err
    r = ran.json
    assert r["outputs_match"] is True
    assert r["max_abs_err"] < 1e-5
    assert r["arena_touched_bytes"] == done.json["regions"]["sram"]["peak_bytes"]
    assert r["instructions"] > done.json["macs"]
    assert r["stack_bytes"] > 0
    assert r["emulator"] == "unicorn"
    witness = run_cli("run", build, "--emulator", "qemu", "--json")
    assert witness.code == 0, witness.err
    assert witness.json["outputs_match"] is True
    assert witness.json["emulator"] == "qemu"


def test_a_second_compilation_replaces_the_first(model: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        done = run_cli("compile", model, "-o", tmp_path / "out", "--name", name, "--project", "cmake")
        assert done.code == 0, done.err
    assert (tmp_path / "out" / "second.c").exists()
    assert not list((tmp_path / "out").glob("first*"))


def test_explain_names_the_holder_and_prices_advice(model: Path) -> None:
    done = run_cli("explain", model, "-t", "stm32f746", "--json")
    assert done.code == 0, done.err
    text = json.dumps(done.json)
    assert "model.py" in text
    assert any("resolution" in a["text"] for a in done.json["advice"])
    assert all(a["peak_bytes"] < done.json["peak_bytes"] for a in done.json["advice"])


def test_explain_prints_the_long_text_of_a_code() -> None:
    done = run_cli("explain", "mp205")
    assert done.code == 0
    assert done.out.startswith("MP205: ")


@pytest.mark.parametrize("form", ["html", "svg", "text", "snapshot", "trace"])
def test_viz_writes_every_format(plan_json: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"picture.{form}"
    done = run_cli("viz", plan_json, "--format", form, "-o", path)
    assert done.code == 0, done.err
    assert path.stat().st_size > 500


def test_diff_tells_equal_from_changed(model: Path, plan_json: Path, tmp_path: Path) -> None:
    assert run_cli("diff", plan_json, plan_json).code == 0
    other = tmp_path / "other.json"
    assert run_cli("plan", model, "-t", "cpu", "-o", other).code == 0
    assert run_cli("diff", plan_json, other, "--json").code == 5


def test_opt_prints_a_graph_that_opt_reads(tmp_path: Path) -> None:
    path = tmp_path / "in.mpir"
    path.write_text(
        textwrap.dedent("""
        graph @g(%x: f32[4,4]) {
          %a: f32[4,4] = aten.relu.default(self=%x)
          %unused: f32[4,4] = aten.sigmoid.default(self=%x)
          %b: f32[4,4] = aten.tanh.default(self=%a)
          return %b
        }
        """)
    )
    once = run_cli("opt", path, "-p", "canonicalize,inplace")
    assert once.code == 0, once.err
    assert "sigmoid" not in once.out
    assert "inplace(%a)" in once.out
    path.write_text(once.out)
    assert run_cli("opt", path, "-p", "canonicalize,inplace").out == once.out


def test_plan_of_a_csv_writes_offsets_and_tells_infeasible(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,lower,upper,size\na,0,2,6\nb,1,3,4\nc,2,4,6\n")
    result = tmp_path / "out.csv"
    done = run_cli("plan", source, "--capacity", "10", "-o", result, "--json")
    assert done.code == 0, done.err
    assert result.read_text().splitlines()[0] == "id,lower,upper,size,offset"
    failed(run_cli("plan", source, "--capacity", "9"), 4, "9 B", "10 B")
    assert done.json["regions"]["arena"]["peak_bytes"] == 10


def test_plan_of_a_graph_in_text_form(tmp_path: Path) -> None:
    path = tmp_path / "g.mpir"
    path.write_text(
        "graph @g(%x: f32[8]) {\n  %a: f32[8] = aten.exp.default(self=%x)\n"
        "  %b: f32[8] = aten.add.Tensor(self=%a, other=%x)\n  return %b\n}\n"
    )
    done = run_cli("plan", path, "--json")
    assert done.code == 0, done.err
    assert done.json["regions"]["dram"]["peak_bytes"] == 32


def test_targets_and_doctor() -> None:
    names = {t["name"] for t in run_cli("targets", "--json").json["targets"]}
    assert {"cpu", "h200", "stm32f746", "mps3-an547", "generic-scratchpad"} <= names
    found = {f["name"]: f["found"] for f in run_cli("doctor", "--prepare", "--json").json["findings"]}
    assert found["torch"]
    assert found["unicorn"]


@pytest.mark.parametrize(
    ("args", "code", "texts"),
    [
        (("plan", "absent.py"), 2, ("MP306", "absent.py")),
        (("plan", "absent.csv"), 2, ("MP490", "absent.csv")),
        (("check", "absent.json"), 2, ("MP490",)),
        (("plan", "absent.py", "-t", "stm32f747"), 2, ("stm32f746",)),
        (("plan", "x.csv", "--budget", "12 parsecs"), 2, ("MP423", "64KiB")),
        (("plan", "x.csv", "--solver", "magic"), 2, ("MP423", "greedy")),
        (("plan", "absent.py", "--calibrate", "data.npz"), 2, ("MP423", "--quantize int8")),
        (("explain", "absent.py"), 2, ("MP306",)),
        (("run", "absent"), 2, ("MP425",)),
        (("nonsense",), 2, ()),
        (("plan", "."), 2, ("MP310", "folder")),
        (("plan", "junk.pt2"), 2, ("MP310", "exported program")),
        (("plan", "junk.mpir"), 2, ("MP101", "junk.mpir:1:1")),
        (("plan", "junk.csv"), 2, ("junk.csv",)),
        (("plan", "junk.json"), 2, ("junk.json",)),
        (("check", "junk.json"), 2, ("junk.json",)),
        (("diff", "junk.json", "junk.json"), 2, ("junk.json",)),
        (("viz", "junk.json"), 2, ("junk.json",)),
        (("explain", "MP9999"), 2, ("MP429",)),
        (("run", ".", "--timeout", "-1"), 2, ()),
        (("opt", "junk.mpir", "-p", "nothing"), 2, ()),
        (("plan", "good.mpir", "--dump", "/proc/dump"), 2, ("MP491",)),
    ],
)
def test_bad_calls_have_a_code_and_help(
    args: tuple[str, ...],
    code: int,
    texts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("junk.pt2", "junk.mpir", "junk.csv", "junk.json"):
        (tmp_path / name).write_text("?!")
    (tmp_path / "good.mpir").write_text("graph @g(%x: f32[4]) {\n  return %x\n}\n")
    failed(run_cli(*args), code, *texts)


def test_a_model_that_raises_shows_the_users_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import torch\n\ndef get_model():\n    return undefined_thing\n")
    failed(run_cli("plan", path), 2, "MP307", "bad.py:4", "return undefined_thing", "^")


def test_all_unsupported_ops_are_listed_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        textwrap.dedent("""
        import torch
        class Net(torch.nn.Module):
            def forward(self, x):
                y = torch.fft.rfft(x).real
                return torch.linalg.svdvals(y)
        def get_model(): return Net().eval()
        def get_inputs(): return (torch.rand(8, 8),)
        """)
    )
    done = run_cli("compile", path, "-t", "stm32f746", "-o", tmp_path / "out")
    failed(done, 3, "fft", "svd", "odd.py:5", "odd.py:6")
    assert not (tmp_path / "out").exists()


def test_a_budget_too_small_names_needed_and_available_bytes(model: Path, tmp_path: Path) -> None:
    done = run_cli("plan", model, "-t", "stm32f746", "--budget", "1KiB", "-o", tmp_path / "p.json")
    failed(done, 4, "1,024 B", "model.py")
    assert not (tmp_path / "p.json").exists()


def test_errors_are_json_too_when_asked(tmp_path: Path) -> None:
    done = run_cli("plan", tmp_path / "absent.py", "--json")
    assert done.code == 2
    assert done.json["error"]["code"] == "MP306"


def test_a_full_disk_leaves_no_file(plan_json: Path) -> None:
    done = run_cli("viz", plan_json, "-o", "/dev/full/plan.html")
    assert done.code == 2
    done = run_cli("viz", plan_json, "-o", "/proc/plan.html")
    failed(done, 2, "MP491", "/proc/plan.html")


def test_the_command_starts_fast_and_without_torch() -> None:
    code = "import sys; sys.argv=['mplan','--help']\ntry:\n import mplan.cli; mplan.cli.main()\n"
    code += "except SystemExit: pass\nassert not {'torch','triton','ortools'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compile" in done.stdout


def test_no_color_is_respected(model: Path) -> None:
    env = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mplan.cli", "targets"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout
