"""Target files: the facts they state, and one error per way to get them wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mplan.codes import CODES
from mplan.diagnostics import ExitCode, UserError
from mplan.ir.plan import Region
from mplan.targets import Memory, list_targets, load_target

KIB = 1024
GOOD = """
family = "mcu"
arena = "ram"
weights = "rom"

[memory.ram]
kind = "sram"
size_bytes = 4096
base = 0x2000_0000

[memory.rom]
kind = "flash"
size_bytes = 8192
base = 0
"""


def write(folder: Path, text: str, name: str = "part.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fails(path: Path, code: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_target(path)
    assert caught.value.code == code
    assert code in CODES
    assert caught.value.exit_code == ExitCode.USAGE
    return caught.value


def test_the_promised_targets_are_there():
    gpus = {"h200", "h100", "a100", "mi300x"}
    parts = {"stm32f412", "stm32f746", "stm32h743", "rp2040", "nrf52840"}
    boards = {"mps2-an386", "mps2-an500", "mps3-an547"}
    assert {"cpu", "generic-scratchpad"} | gpus | parts | boards <= set(list_targets())


@pytest.mark.parametrize("name", list_targets())
def test_every_target_is_usable(name: str):
    target = load_target(name)
    assert target.name == name and target.description
    assert target.arena_memory.addressable
    assert target.arena_memory.kind != "flash"
    assert [r.name for r in target.regions()] == [m.name for m in target.memories]
    if target.toolchain:
        board = load_target(target.toolchain.board)
        assert board.toolchain and board.toolchain.qemu_machine
        assert all(m.base is not None and m.size_bytes for m in target.memories)
        part_ram, board_ram = (
            sum(m.size_bytes or 0 for m in t.memories if m.kind == "sram") for t in (target, board)
        )
        assert part_ram <= board_ram


@pytest.mark.parametrize(
    ("name", "core", "ram_kib", "ram_base", "flash_kib", "flash_base"),
    [  # from the parts' datasheets
        ("stm32f412", "cortex-m4", 256, 0x20000000, 1024, 0x08000000),
        ("stm32f746", "cortex-m7", 320, 0x20000000, 1024, 0x08000000),
        ("stm32h743", "cortex-m7", 512, 0x24000000, 2048, 0x08000000),
        ("rp2040", "cortex-m0plus", 264, 0x20000000, 2048, 0x10000000),
        ("nrf52840", "cortex-m4", 256, 0x20000000, 1024, 0x00000000),
    ],
)
def test_parts(name, core, ram_kib, ram_base, flash_kib, flash_base):
    part = load_target(name)
    ram, flash = part.arena_memory, part.weights_memory
    assert part.isa.core == core
    assert (ram.size_bytes, ram.base) == (ram_kib * KIB, ram_base)
    assert (flash.size_bytes, flash.base) == (flash_kib * KIB, flash_base)


def test_inheritance_lays_tables_over_the_parents():
    h100, h200 = load_target("h100"), load_target("h200")
    assert h200.memory("hbm").size_bytes == 141 * 10**9
    assert h200.memory("hbm").kind == "hbm"
    assert h200.shared_bytes == h100.shared_bytes == 227 * KIB
    assert h200.costs == h100.costs
    assert h200.description != h100.description


def test_a_file_inherits_from_a_built_in_and_from_a_file(tmp_path: Path):
    write(tmp_path, 'inherits = "stm32f746"\n[memory.sram]\nsize_bytes = 1024\n', "a.toml")
    path = write(tmp_path, 'inherits = "./a.toml"\n[memory.flash]\nsize_bytes = 2048\n', "b.toml")
    target = load_target(path)
    assert target.name == "b"
    assert [m.size_bytes for m in target.memories] == [2048, 1024]
    assert target.isa.core == "cortex-m7"
    assert target == load_target(str(path))


def test_region_is_the_planners_view():
    memory = Memory("axi", "sram", 512, 0x24000000, 8, addressable=False)
    assert memory.region() == Region("axi", 512, 8, "sram", False)


def test_unknown_target_is_answered_with_the_nearest_name():
    with pytest.raises(UserError) as caught:
        load_target("stm32f764")
    assert caught.value.code == "MP401"
    assert "did you mean stm32f746?" in caught.value.help


def test_unknown_key_names_the_line_and_the_nearest_key(tmp_path: Path):
    path = write(tmp_path, GOOD.replace("size_bytes = 8192", "size_byte = 8192"))
    error = fails(path, "MP402")
    assert "'memory.rom.size_byte'" in error.message
    assert "did you mean size_bytes?" in error.help
    assert error.where and error.where.file == str(path)
    assert path.read_text().splitlines()[error.where.line - 1] == "size_byte = 8192"


@pytest.mark.parametrize("table", ["[memories]", "[mem]", "name = 'x'"])
def test_unknown_table(tmp_path: Path, table: str):
    error = fails(write(tmp_path, table + GOOD if "=" in table else GOOD + table), "MP402")
    assert "memory" in error.help


def test_missing_key(tmp_path: Path):
    error = fails(write(tmp_path, GOOD.replace('kind = "flash"\n', "")), "MP403")
    assert error.message == "memory.rom.kind is missing"
    assert error.where and error.where.line == 11


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('family = "mcu"', 'family = "fpga"', "family is 'fpga', but must be one of cpu, gpu, mcu"),
        ("size_bytes = 4096", 'size_bytes = "4K"', "memory.ram.size_bytes is '4K'"),
        ("size_bytes = 4096", "size_bytes = true", "memory.ram.size_bytes is True"),
        ("size_bytes = 4096", "size_bytes = 0", "memory.ram.size_bytes must be positive"),
        ("size_bytes = 4096", "size_bytes = 1\nalignment = 3", "memory.ram.alignment no power"),
        ('arena = "ram"', 'arena = "dtcm"', "arena names no memory: 'dtcm'"),
        ("[memory.ram]", '[memory."my ram"]', "no lower-case identifier"),
        ("base = 0\n", "base = 0x2000_0800\n", "memory.rom.base lies inside ram"),
        ("base = 0\n", "base = 0\n[toolchain]\nvectors = 'x'\n", "toolchain.vectors names no"),
        ("base = 0\n", "base = 0\n[toolchain]\ngcc_flags = [1]\n", "toolchain.gcc_flags is 1"),
        ('arena = "ram"', 'arena = "ram"\nisa = 3', "isa must be a table"),
        ('arena = "ram"', 'arena = "ram"\nmemory.x = 3', "memory.x must be a table"),
        ('arena = "ram"', 'arena = "ram"\ninherits = 3', "inherits must be a string"),
    ],
)
def test_wrong_values(tmp_path: Path, old: str, new: str, says: str):
    assert old in GOOD
    error = fails(write(tmp_path, GOOD.replace(old, new, 1)), "MP404")
    assert says in error.message


def test_bad_toml_names_the_line(tmp_path: Path):
    error = fails(write(tmp_path, 'family = "mcu"\narena = = 1\n'), "MP405")
    assert error.where and error.where.line == 2


def test_missing_file(tmp_path: Path):
    assert "absent.toml" in str(fails(tmp_path / "absent.toml", "MP405"))


def test_circular_inheritance(tmp_path: Path):
    write(tmp_path, 'inherits = "./b.toml"\n', "a.toml")
    path = write(tmp_path, 'inherits = "./a.toml"\n', "b.toml")
    assert "b -> a -> b" in fails(path, "MP406").message


def test_unknown_memory():
    with pytest.raises(UserError) as caught:
        load_target("stm32h743").memory("itcm")
    assert caught.value.code == "MP407"
    assert "dtcm" in caught.value.help


def test_loading_imports_nothing_heavy():
    heavy = {"torch", "numpy", "jinja2", "pydantic", "unicorn", "triton", "ortools"}
    code = "import sys, mplan.targets as t; t.load_target('h200'); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mplan.targets.load" in run.stdout.split()
    assert not heavy & set(run.stdout.split())
