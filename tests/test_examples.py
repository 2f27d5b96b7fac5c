"""The examples run as a newcomer would run them, and say the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def digits(folder: Path, *options: str) -> tuple[str, dict[str, list[str]]]:
    """What the example prints, and the rows of its table."""
    command = [sys.executable, ROOT / "examples" / "digits.py", "--out", folder, "--epochs", "3"]
    env = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = {
        cells[0].strip(): [c.strip() for c in cells[1:]]
        for line in done.stdout.splitlines()
        if len(cells := line.strip("│ ").split("│")) == 3
    }
    return done.stdout, rows


def test_digits_in_int8(tmp_path: Path) -> None:
    text, rows = digits(tmp_path, "--int8")
    ours, emulated = (float(c.rstrip("%")) for c in rows["accuracy on 64 digits"])
    assert emulated >= ours - 2 and ours >= 80
    assert float(rows["largest difference of a logit"][1]) < 1.0
    planned, measured = rows["SRAM: arena"]
    assert planned == measured == "3,072 B"  # three tensors of [16, 8, 8], a byte per number
    if "second witness" in text:
        assert "logits within 0 of" in text


def test_digits_end_to_end(tmp_path: Path) -> None:
    text, rows = digits(tmp_path)
    ours, emulated = (float(c.rstrip("%")) for c in rows["accuracy on 64 digits"])
    assert ours == emulated >= 80
    assert rows["same class as PyTorch"][1] == "64 of 64"
    planned, measured = rows["SRAM: arena"]
    assert planned == measured
    assert (tmp_path / "plan.html").stat().st_size > 10_000
    plan = json.loads((tmp_path / "digits" / "plan.json").read_text())
    assert f"{dict(plan['plan']['peaks'])['sram']:,} B" == planned
    digest = re.search(r"digest (\w+)", text)
    assert digest and plan["plan_digest"].startswith(digest[1])
