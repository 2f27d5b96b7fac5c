"""What `mplan compile` says about RAM and flash is what the linked image takes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import run_cli
from rich.console import Console

from mplan.runtime.footprint import Footprint, Part, measure, render

MODEL = """
import torch
from torch import nn


def get_model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, {classes}))


def get_inputs():
    return torch.ones(1, 1, 8, 8)
"""


def compiled(folder: Path, classes: int, *options: str) -> tuple[Path, Any]:
    model = folder / "small.py"
    model.write_text(MODEL.format(classes=classes))
    done = run_cli("compile", model, "-o", folder / "out", *options)
    return folder / "out", done


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
def test_the_parts_are_the_image(toolchain: str, tmp_path: Path) -> None:
    folder, _ = compiled(tmp_path, 10, "--no-build")
    found = measure(folder, toolchain)  # type: ignore[arg-type]
    emulator = {"zig": "unicorn", "gcc": "qemu"}[toolchain]
    ran = run_cli("run", folder, "--emulator", emulator, "--json").json
    parts = {p.name.partition(",")[0].partition(":")[0]: p for p in found.parts}
    assert found.total.flash_bytes == ran["flash_bytes"]
    assert found.total.ram_bytes == ran["ram_static_bytes"] + ran["stack_bound_bytes"]
    assert parts["arena"].ram_bytes == ran["arena_bytes"]
    assert parts["weights"].flash_bytes == 4 * (4 * 9 + 4 + 10 * 144 + 10)
    assert parts["stack"].ram_bytes == ran["stack_bound_bytes"]
    assert 200 < parts["network"].flash_bytes < 8192
    assert all(p.ram_bytes >= 0 and p.flash_bytes >= 0 for p in found.parts)


def test_compile_prints_it(tmp_path: Path) -> None:
    folder, done = compiled(tmp_path, 10, "--json")
    assert done.json["image"] == json.loads(json.dumps(measure(folder).to_json()))
    _, done = compiled(tmp_path, 10)
    assert "network: code, tables, state" in done.err and "1,048,576 B" in done.err
    _, done = compiled(tmp_path, 10, "--json", "--no-build")
    assert done.json["image"] is None


def test_the_table_fits_80_columns() -> None:
    parts = (Part("start-up, harness, library", 123_456, 1_234_567), Part("stack, at most", 100_000, 0))
    memories = {"dtcm": (65_536, 65_536), "sram": (157_920, 327_680)}
    text = io.StringIO()
    found = Footprint("zig", parts, Part("stm32f746", 327_680, 2_097_152), True, memories)
    render(found, Console(file=text, width=80))
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert len(rows) == 1 + len(parts) + 3 + len(memories)
    assert ["in", "all", "223,456", "B", "1,234,567", "B"] in rows
    assert ["of", "stm32f746", "327,680", "B", "2,097,152", "B"] in rows
    assert ["share", "68.2", "%", "58.9", "%"] in rows


def test_an_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """The weights alone fit, with the code they do not."""
    classes = (1_048_576 - 160) // (145 * 4)
    _, done = compiled(tmp_path, classes)
    assert done.code == 4
    assert "MP540" in done.err and "of flash, the part has 1,048,576 B" in done.err


def test_a_target_that_names_no_compiler_is_not_built_for(tmp_path: Path) -> None:
    target = tmp_path / "bare.toml"
    target.write_text(
        'family = "mcu"\narena = "sram"\nweights = "flash"\n'
        '[memory.flash]\nkind = "flash"\nsize_bytes = 65536\n'
        '[memory.sram]\nkind = "sram"\nsize_bytes = 65536\n'
    )
    _, done = compiled(tmp_path, 10, "-t", str(target), "--json")
    assert done.code == 0, done.err
    assert done.json["image"] is None


def test_a_target_file_of_the_users_own(tmp_path: Path) -> None:
    """The folder knows the part, also when its file has gone."""
    target = tmp_path / "small.toml"
    target.write_text('inherits = "stm32f746"\n[memory.sram]\nsize_bytes = 16384\n')
    folder, done = compiled(tmp_path, 10, "-t", str(target), "--json")
    assert done.code == 0, done.err
    assert done.json["image"]["capacity"]["ram_bytes"] == 16384
    target.unlink()
    assert run_cli("run", folder, "--json").json["outputs_match"]
