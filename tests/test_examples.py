"""The examples run as a newcomer would run them, and say the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_digits_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "digits.py", "--out", tmp_path, "--epochs", "3"]
    env = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {
        cells[0].strip(): [c.strip() for c in cells[1:]]
        for line in done.stdout.splitlines()
        if len(cells := line.strip("│ ").split("│")) == 3
    }
    ours, emulated = (float(c.rstrip("%")) for c in rows["accuracy on 64 digits"])
    assert ours == emulated >= 80
    assert rows["same class as PyTorch"][1] == "64 of 64"
    planned, measured = rows["SRAM: arena"]
    assert planned == measured
    assert (tmp_path / "plan.html").stat().st_size > 10_000
    plan = json.loads((tmp_path / "digits" / "plan.json").read_text())
    assert f"{dict(plan['plan']['peaks'])['sram']:,} B" == planned
    digest = re.search(r"digest (\w+)", done.stdout)
    assert digest and plan["plan_digest"].startswith(digest[1])
