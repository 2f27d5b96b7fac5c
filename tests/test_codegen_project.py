"""The CMake project: built and tested on the host, and for a Cortex-M in QEMU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mplan.capture import capture
from mplan.codegen.project import emit_project
from mplan.codes import CODES
from mplan.diagnostics import UserError
from mplan.targets.load import load_target
from tests.c_nets import net
from tests.c_support import emitted
from tests.project_support import built, project, put, sh


@pytest.mark.parametrize("tool", ["cmake", "ctest", "make"])
def test_the_build_tools_are_installed(tool: str) -> None:
    assert shutil.which(tool), f"{tool} is needed to test mplan: apt install cmake make"


@pytest.mark.parametrize("shift", [0.0, 0.5], ids=["right", "wrong"])
def test_project_on_the_host(tmp_path: Path, shift: float) -> None:
    folder = project(tmp_path, "stm32f746", shift)
    built(folder)
    assert (folder / "build" / "libnet.a").is_file()
    done = sh(folder, "ctest", "--test-dir", "build", "--verbose")
    assert (done.returncode == 0) == (shift == 0), done.stdout
    assert ("net: passed" in done.stdout) == (shift == 0)


@pytest.mark.parametrize("target", ["mps2-an386", "mps2-an500", "mps3-an547"])
@pytest.mark.parametrize("shift", [0.0, 0.5], ids=["right", "wrong"])
def test_project_in_qemu(tmp_path: Path, target: str, shift: float) -> None:
    folder = project(tmp_path, target, shift)
    built(folder, "--toolchain", "arm-none-eabi.cmake")
    done = sh(folder, "ctest", "--test-dir", "build", "--verbose")
    assert (done.returncode == 0) == (shift == 0), done.stdout
    assert "1 tests failed out of 1" in done.stdout or shift == 0


@pytest.mark.parametrize("target", ["stm32f412", "stm32h743", "rp2040"])
def test_project_links_for_parts_without_a_board(tmp_path: Path, target: str) -> None:
    folder = project(tmp_path, target)
    built(folder, "--toolchain", "arm-none-eabi.cmake")
    assert (folder / "build" / "net_selftest.elf").is_file()
    assert "No tests were found" in sh(folder, "ctest", "--test-dir", "build").stderr


def test_project_without_golden_data_is_a_library(tmp_path: Path) -> None:
    model, inputs, _ = net("dense")
    captured = capture(model, inputs, decompose=True)
    files = emitted(captured.graph, captured.constants)
    made = emit_project("cmake", "net", load_target("cpu"), files)
    assert set(made) == {*files, "CMakeLists.txt"}
    built(put(tmp_path, made))
    assert (tmp_path / "build" / "libnet.a").is_file()


def test_unknown_kind_of_project() -> None:
    with pytest.raises(UserError) as caught:
        emit_project("cmaek", "net", load_target("stm32f746"), {})
    assert caught.value.code == "MP505" and caught.value.code in CODES
    assert caught.value.help == "did you mean cmake?"
