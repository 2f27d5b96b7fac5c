"""Images built, measured and run on emulated Cortex-M parts, by two compilers and two emulators."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from firmware_support import (
    FAULTS,
    NETWORK,
    TOUCH,
    Build,
    build,
    expected,
    fails,
    inference_counts,
    inputs,
    run,
)

from mplan.diagnostics import ExitCode
from mplan.runtime.emulator import run_firmware
from mplan.runtime.firmware import build_firmware, symbol_sizes
from mplan.targets import Target, load_target

__all__ = ["build"]


@pytest.mark.parametrize("tool", ["arm-none-eabi-gcc", "qemu-system-arm"])
def test_the_second_witness_is_installed(tool: str):
    assert shutil.which(tool), (
        f"{tool} is needed to test mplan: apt install gcc-arm-none-eabi qemu-system-arm"
    )


@pytest.mark.parametrize(
    ("target", "toolchain", "emulator", "layout"),
    [
        ("stm32f746", "zig", "unicorn", "part"),
        ("stm32f746", "zig", "qemu", "board"),
        ("stm32f746", "gcc", "qemu", "board"),
        ("stm32f746", "gcc", "unicorn", "board"),
        ("stm32f412", "zig", "unicorn", "part"),
        ("stm32f412", "gcc", "qemu", "board"),
        ("stm32h743", "zig", "unicorn", "part"),
        ("stm32h743", "gcc", "qemu", "board"),
        ("nrf52840", "zig", "unicorn", "part"),
        ("rp2040", "zig", "unicorn", "part"),
        ("rp2040", "gcc", "qemu", "board"),
        ("mps2-an386", "zig", "qemu", "part"),
        ("mps2-an500", "zig", "unicorn", "part"),
        ("mps3-an547", "zig", "qemu", "part"),
        ("mps3-an547", "gcc", "qemu", "part"),
    ],
)
def test_a_network_runs(build: Build, target: str, toolchain: str, emulator: str, layout: str):
    firmware = build(NETWORK, target, toolchain, layout=layout)
    x = inputs(3)
    result = run(firmware, target, emulator=emulator, inputs=x.tobytes())
    y = np.frombuffer(result.output, np.float32).reshape(3, 4)
    np.testing.assert_allclose(y, expected(x), rtol=1e-6, atol=1e-7)
    assert (result.exit_code, result.stdout, result.emulator) == (43, "done\n", emulator)
    assert [m.id for m in result.marks] == [1, 2] * 3
    counts = inference_counts(result)
    assert min(counts) > 0 and sum(counts) < result.instructions == sum(result.functions.values())
    assert 32 <= result.stack_bytes < 1024
    assert result.flash_bytes == firmware.flash_bytes > 500
    assert result.ram_static_bytes == firmware.static_ram_bytes >= 4096 + 4


def test_many_inputs_go_through_one_image(build: Build):
    x = inputs(64)
    result = run(build(NETWORK), inputs=x.tobytes())
    y = np.frombuffer(result.output, np.float32).reshape(64, 4)
    np.testing.assert_allclose(y, expected(x), rtol=1e-6, atol=1e-7)
    assert len(inference_counts(result)) == 64


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
def test_both_emulators_see_the_same_run(build: Build, toolchain: str):
    firmware = build(NETWORK, toolchain=toolchain, layout="board")
    unicorn, qemu = (run(firmware, emulator=e, inputs=inputs(5).tobytes()) for e in ("unicorn", "qemu"))
    assert unicorn.output == qemu.output
    assert unicorn.stack_bytes == qemu.stack_bytes
    assert unicorn.marks == qemu.marks and unicorn.instructions == qemu.instructions
    assert unicorn.functions == qemu.functions
    assert unicorn.touched == qemu.touched
    assert unicorn.sram_touched_bytes == qemu.sram_touched_bytes


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_runs_repeat_exactly(build: Build, toolchain: str, emulator: str):
    firmware = build(NETWORK, toolchain=toolchain)
    first, second = (run(firmware, emulator=emulator, inputs=inputs(2).tobytes()) for _ in "ab")
    assert first == second


def test_builds_repeat_exactly(tmp_path: Path):
    source = tmp_path / "program.c"
    source.write_text(NETWORK)
    elves = [
        build_firmware([source], [], load_target("stm32f746"), tmp_path / name).elf.read_bytes()
        for name in "ab"
    ]
    assert elves[0] == elves[1]


PREDICATED = """
#include "mplan_host.h"
static int word;
__attribute__((naked)) static int predicated(int *at) {
    __asm__ volatile(
        "movs r1, #0\\n cmp r1, #0\\n itttt eq\\n streq r0, [r0]\\n cmpeq r0, r0\\n"
        "addeq r1, #1\\n beq 1f\\n 1: adds r1, #2\\n adds r1, #4\\n adds r1, #8\\n"
        "mov r0, r1\\n bx lr");
}
int main(void) { return predicated(&word); }
"""


@pytest.mark.parametrize("emulator", ["unicorn", "qemu"])
def test_a_store_in_an_it_block_skips_nothing(build: Build, emulator: str):
    firmware = build(PREDICATED, layout="board")
    assert run(firmware, emulator=emulator).exit_code == 15


STACK = """
#include "mplan_host.h"
__attribute__((noinline)) int deep(void) {
    volatile unsigned char scratch[DEPTH];
    for (int i = 0; i < DEPTH; i++) scratch[i] = 1;
    return scratch[0];
}
int main(void) { return deep() - 1; }
"""


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_stack_use_is_measured(build: Build, toolchain: str, emulator: str):
    depths = [
        run(build(STACK, toolchain=toolchain, defines={"DEPTH": d}), emulator=emulator).stack_bytes
        for d in ("512", "2048")
    ]
    assert depths[1] - depths[0] == 2048 - 512
    assert 512 <= depths[0] <= 512 + 160


def test_ram_is_junk_at_reset_but_zeroed_where_c_says_so(build: Build):
    source = """
    #include "mplan_host.h"
    unsigned char zeroed[8];
    __attribute__((section(".mplan.sram_d2"))) unsigned char raw[8];
    int main(void) { return zeroed[3] == 0 && raw[3] != 0; }
    """
    assert run(build(source, "stm32h743"), "stm32h743").exit_code == 1


def test_sections_choose_a_memory(build: Build):
    source = """
    #include "mplan_host.h"
    __attribute__((section(".mplan.dtcm"))) volatile unsigned char fast[1000];
    volatile unsigned char slow[500];
    int main(void) { fast[999] = 1; slow[10] = 2; return fast[999] + slow[10]; }
    """
    for toolchain, emulator in (("zig", "unicorn"), ("gcc", "qemu")):
        firmware = build(source, "stm32h743", toolchain)
        dtcm, axi = (next(m for m in firmware.memories if m.name == n) for n in ("dtcm", "sram"))
        assert 0 <= firmware.symbols["fast"].address - dtcm.base < dtcm.size_bytes
        assert 0 <= firmware.symbols["slow"].address - axi.base < axi.size_bytes
        assert 1000 <= firmware.used_bytes["dtcm"] < 1008
        assert run(firmware, "stm32h743", emulator=emulator).exit_code == 3


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
def test_sizes_agree_with_binutils(build: Build, toolchain: str):
    firmware = build(NETWORK, toolchain=toolchain)
    text = subprocess.run(
        ["arm-none-eabi-size", "-A", str(firmware.elf)], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in text.splitlines() if line.startswith("."))
    sizes = {row[0]: int(row[1]) for row in rows}
    assert firmware.flash_bytes == sizes[".vectors"] + sizes[".text"] + sizes.get(".data", 0)
    assert firmware.static_ram_bytes == sizes[".bss"] + sizes.get(".data", 0)
    assert symbol_sizes(firmware.elf)["net_arena"] == 4096
    assert 20 < symbol_sizes(firmware.elf)["net_run"] < firmware.flash_bytes


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
def test_an_image_that_does_not_fit_is_refused_with_numbers(build: Build, toolchain: str):
    source = "volatile unsigned char net_arena[400000];\nint main(void) { return net_arena[7]; }\n"
    error = fails("MP540", lambda: build(source, toolchain=toolchain))
    assert error.exit_code == ExitCode.OVER_BUDGET
    assert "of sram, the part has 327,680 B" in error.message
    needed = int(error.message.split("needs ")[1].split(" B")[0].replace(",", ""))
    assert 400_000 + 4096 <= needed < 400_000 + 4096 + 2048
    assert error.notes[0][0] == "net_arena: 400,000 B"


def test_flash_can_overflow_too(build: Build):
    source = (
        "const unsigned char weights[1100000] = {1};\n"
        "int main(void) { return ((const volatile unsigned char *)weights)[7]; }\n"
    )
    error = fails("MP540", lambda: build(source))
    assert "of flash, the part has 1,048,576 B" in error.message
    assert "of sram" not in error.message


def test_the_last_byte_can_be_used(build: Build):
    source = (
        "volatile unsigned char net_arena[SIZE];\n"
        "int main(void) { net_arena[SIZE - 1] = 9; return net_arena[SIZE - 1]; }\n"
    )
    used = build(source, defines={"SIZE": "1024"}).used_bytes["sram"]
    rest = 327_680 - used + 1024
    firmware = build(source, defines={"SIZE": str(rest)})
    assert firmware.used_bytes["sram"] == 327_680
    assert run(firmware).exit_code == 9
    error = fails("MP540", lambda: build(source, defines={"SIZE": str(rest + 8)}))
    assert "327,688 B of sram" in error.message


@pytest.mark.parametrize(
    ("action", "address", "says"),
    [
        ("*at = 7; return 0", 0x20050000, "wrote 4 B at 0x20050000, outside of all memories"),
        ("return (int)*at", 0x20050000, "read 4 B at 0x20050000, outside of all memories"),
        ("*at = 7; return 0", 0x1FFFFFFC, "wrote 4 B at 0x1ffffffc"),
        ("*at = 7; return 0", 0x08000100, "wrote 4 B at 0x08000100, in flash"),
        ("return (int)*at", 0x00000000, "read 4 B at 0x00000000"),
    ],
)
def test_faults_name_the_address_and_the_place(build: Build, action: str, address: int, says: str):
    firmware = build(FAULTS, defines={"ACTION": action, "ADDRESS": f"{address:#x}u"})
    error = fails("MP543", lambda: run(firmware))
    assert error.exit_code == ExitCode.CHECK_FAILED
    assert says in error.message
    culprit = firmware.symbols["culprit"]
    pc = int(error.message.split("; pc ")[1].split()[0], 16)
    assert culprit.address <= pc < culprit.address + culprit.size
    assert "(culprit+" in error.message
    assert "sram 0x20000000..0x20050000" in error.help


def test_qemu_names_them_too(build: Build):
    for toolchain in ("zig", "gcc"):
        firmware = build(
            FAULTS,
            toolchain=toolchain,
            layout="board",
            defines={"ACTION": "*at = 7; return 0", "ADDRESS": "0x30000000u"},
        )
        error = fails("MP543", lambda f=firmware: run(f, emulator="qemu"))
        assert "0x30000000" in error.message and "(culprit+" in error.message


def test_code_does_not_run_from_ram(build: Build):
    source = """
    #include <stdint.h>
    static uint16_t code[2] = {0x4770, 0x4770};
    int main(void) { ((void (*)(void))((uintptr_t)code | 1))(); return code[0]; }
    """
    assert "executed" in fails("MP543", lambda: run(build(source))).message


RECURSE = """
__attribute__((noinline)) int dive(int n) {
    volatile int frame[8] = {n};
    return n ? dive(n - 1) * 3 + frame[n & 7] : 0;
}
volatile int net_arena[1000];
int main(void) { return dive(100000); }
"""


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_a_stack_overflow_faults(build: Build, toolchain: str, emulator: str):
    error = fails("MP543", lambda: run(build(RECURSE, toolchain=toolchain), emulator=emulator))
    assert "(dive+" in error.message if emulator == "unicorn" else "4,096 B" in error.message


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_an_undefined_instruction_is_an_exception(build: Build, toolchain: str, emulator: str):
    source = 'int main(void) { __asm__ volatile("udf #1"); return 0; }'
    error = fails("MP545", lambda: run(build(source, toolchain=toolchain), emulator=emulator))
    assert "(main+" in error.message


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_endless_programs_time_out(build: Build, toolchain: str, emulator: str):
    firmware = build("int main(void) { for (volatile int i = 0;; i++) {} }", toolchain=toolchain)
    error = fails("MP544", lambda: run(firmware, emulator=emulator, timeout_s=0.5))
    assert "0.5 s" in error.message


def test_a_bad_buffer_given_to_the_host_is_a_fault(build: Build):
    source = """
    #include "mplan_host.h"
    int main(void) { return (int)mplan_host_read((void *)0x30000000u, 4); }
    """
    error = fails("MP543", lambda: run(build(source), inputs=b"abcd"))
    assert "0x30000000" in error.message


def test_unknown_host_requests_are_refused(build: Build):
    source = """
    int main(void) {
        register int r0 __asm__("r0") = 0x10;
        __asm__ volatile("bkpt 0xAB" : "+r"(r0));
        return r0;
    }
    """
    assert "0x10" in fails("MP546", lambda: run(build(source))).message


@pytest.mark.parametrize("emulator", ["unicorn", "qemu"])
def test_input_ends_and_output_is_bytes(build: Build, emulator: str):
    source = """
    #include "mplan_host.h"
    static unsigned char data[100];
    int main(void) {
        size_t n = mplan_host_read(data, sizeof data);
        mplan_host_write(data, n);
        mplan_host_write("\\0\\n\\r\\xff", 4);
        mplan_host_exit((int)(256 + n + mplan_host_read(data, 1)));
    }
    """
    result = run(build(source, layout="board"), emulator=emulator, inputs=bytes(range(70)))
    assert result.output == bytes(range(70)) + b"\0\n\r\xff"
    assert result.exit_code == 70


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
def test_errors_of_the_compiler_and_the_linker(build: Build, toolchain: str):
    error = fails("MP541", lambda: build("int main(void) { return nothing; }", toolchain=toolchain))
    assert "nothing" in error.notes[0][0] and "program.c" in error.message
    source = "int absent(void);\nint main(void) { return absent(); }"
    error = fails("MP542", lambda: build(source, toolchain=toolchain))
    assert "absent" in error.notes[0][0]


def test_missing_tools_say_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch):
    firmware = build(NETWORK, toolchain="gcc")
    monkeypatch.setenv("PATH", "")
    error = fails("MP410", lambda: run(firmware, emulator="qemu"))
    assert error.exit_code == ExitCode.MISSING_TOOL and "apt install qemu-system-arm" in error.help
    error = fails("MP410", lambda: build("int main(void) { return 1; }", toolchain="gcc"))
    assert "apt install gcc-arm-none-eabi" in error.help
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = fails("MP410", lambda: build("int main(void) { return 1; }"))
    assert "pip install ziglang" in error.help
    assert "pip install unicorn" in fails("MP410", lambda: run(firmware)).help


def test_what_cannot_run_is_refused(build: Build, tmp_path: Path):
    assert "layout='board'" in fails("MP411", lambda: run(build(NETWORK), emulator="qemu")).help
    firmware = build(NETWORK, "mps3-an547", "gcc")
    error = fails("MP411", lambda: run(firmware, "mps3-an547"))
    assert "cortex-m55" in error.message and "qemu" in error.help
    fails("MP411", lambda: build(NETWORK, "h200"))
    path = tmp_path / "odd.toml"
    path.write_text('inherits = "stm32f746"\n[memory.sram]\nsize_bytes = 20_100\n')
    (tmp_path / "p.c").write_text(TOUCH)
    odd = build_firmware([tmp_path / "p.c"], [], load_target(path), tmp_path / "out")
    assert "20,100 B" in fails("MP411", lambda: run_firmware(odd, load_target(path))).message


def test_a_part_with_little_memory_runs(tmp_path: Path):
    path = tmp_path / "small.toml"
    path.write_text('inherits = "stm32f746"\n[memory.sram]\nsize_bytes = 7_168\n')
    (tmp_path / "p.c").write_text(TOUCH)
    target: Target = load_target(path)
    for toolchain, emulator in (("zig", "unicorn"), ("gcc", "qemu")):
        firmware = build_firmware(
            [tmp_path / "p.c"], [], target, tmp_path / toolchain, toolchain=toolchain
        )
        assert run_firmware(firmware, target, emulator=emulator).exit_code == 0
