"""The bound on the stack: from the compiler's report, from the code, and beside what runs use."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest
from firmware_support import NETWORK, Build, build, inputs, run

from mplan.runtime import elf
from mplan.runtime.firmware import Firmware
from mplan.runtime.stack import compiler_frames, routines, stack_bound
from mplan.runtime.thumb import Jump, decode, jump

__all__ = ["build"]

IMAGES = [
    ("rp2040", "zig"),
    ("rp2040", "gcc"),
    ("mps2-an386", "zig"),
    ("mps2-an386", "gcc"),
    ("mps2-an500", "gcc"),
    ("mps3-an547", "gcc"),
]


@pytest.mark.parametrize(("target", "toolchain"), IMAGES)
def test_no_run_goes_deeper_than_the_bound(build: Build, target: str, toolchain: str):
    firmware = build(NETWORK, target, toolchain, layout="board")
    bound = stack_bound(firmware)
    used = run(firmware, target, emulator="qemu", inputs=inputs(4).tobytes()).stack_bytes
    assert bound.bytes is not None, bound
    assert used <= bound.bytes <= used + 128
    assert bound.chain[:2] == ("Reset_Handler", "main")


@pytest.mark.parametrize(("target", "toolchain"), IMAGES)
def test_the_code_shows_the_frames_that_the_compiler_reports(build: Build, target: str, toolchain: str):
    firmware = build(NETWORK, target, toolchain, layout="board")
    reported = compiler_frames(firmware.stack_reports)
    shown = {r.name: r.frame for r in routines(firmware.elf).values()}
    both = reported.keys() & shown.keys()
    assert {"main", "net_run", "mplan_host_read", "Reset_Handler"} <= both
    assert {n: shown[n] for n in both} == {n: reported[n] for n in both}


def disassembly(firmware: Firmware) -> dict[int, str]:
    """The instructions as binutils reads them, by address."""
    text = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", str(firmware.elf)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = (re.match(r"\s*([0-9a-f]+):\s+(.*)", line) for line in text.splitlines())
    return {int(m[1], 16): m[2].replace("\t", " ") for m in lines if m}


def expected_jump(text: str) -> Jump | None:
    """What an instruction of the disassembly should be taken for."""
    name, _, rest = text.partition(" ")
    if name == "bl":
        return Jump("call", int(rest.split()[0], 16))
    if re.fullmatch(r"b(eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?(\.[nw])?", name):
        return Jump("branch", int(rest.split()[0], 16))
    if name == "blx":
        return Jump("call", None)
    if (name == "bx" and rest != "lr") or (name.startswith("ldr") and rest.startswith("pc, [")):
        return Jump("branch", None) if "[sp]" not in rest else None
    return None


@pytest.mark.parametrize(("target", "toolchain"), IMAGES)
def test_every_jump_is_read_as_binutils_reads_it(build: Build, target: str, toolchain: str):
    firmware = build(NETWORK, target, toolchain, layout="board")
    texts = disassembly(firmware)
    found = 0
    for _, parts in elf.function_code(firmware.elf):
        for address, code in parts:
            for instruction in decode(code, address):
                expected = expected_jump(texts[instruction.address])
                assert jump(instruction) == expected, texts[instruction.address]
                found += expected is not None
    assert found > 50


PUSHES = """
#include "mplan_host.h"
__attribute__((naked)) static void pushes(void) {
    __asm__ volatile(
        "push {r0, r1, r7}\\n push {r4-r9}\\n str r0, [sp, #-8]!\\n strd r0, r1, [sp, #-16]!\\n"
        "vpush {d8-d10}\\n vpush {s1-s3}\\n sub sp, #8\\n sub.w sp, sp, #0x1fc00\\n"
        "subw sp, sp, #0x234\\n add.w sp, sp, #0x1fc00\\n bx lr");
}
int main(void) { pushes(); return 0; }
"""


def test_every_way_to_push_is_counted(build: Build):
    frames = {r.name: r.frame for r in routines(build(PUSHES).elf).values()}
    assert frames["pushes"] == 12 + 24 + 8 + 16 + 24 + 12 + 8 + 0x1FC00 + 0x234


DEEP = """
#include "mplan_host.h"
__attribute__((noinline)) static int leaf(volatile int *x) { return x[0] + x[DEPTH - 1]; }
__attribute__((noinline)) int deep(void) {
    volatile int scratch[DEPTH];
    scratch[0] = scratch[DEPTH - 1] = 1;
    return leaf(scratch) + 1;
}
int main(void) { return deep() - 3; }
"""


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
@pytest.mark.parametrize("depth", [50, 500, 20_000])
def test_the_bound_follows_large_frames(build: Build, toolchain: str, depth: int):
    bound = stack_bound(build(DEEP, toolchain=toolchain, defines={"DEPTH": str(depth)}))
    assert bound.bytes is not None and 4 * depth <= bound.bytes <= 4 * depth + 128
    assert "deep" in bound.chain


UNBOUNDED = {
    "calls itself": """
        __attribute__((noinline)) int culprit(volatile int *n) {
            volatile int frame[8] = {--*n};
            return *n ? culprit(n) * 3 + frame[1] : 0;
        }
        int main(void) { volatile int n = 3; return culprit(&n); }""",
    "calls through a pointer": """
        __attribute__((noinline)) static int one(void) { return 1; }
        int (*volatile target)(void) = one;
        __attribute__((noinline)) int culprit(void) { return target() + 1; }
        int main(void) { return culprit(); }""",
    "has a frame of variable size": """
        __attribute__((noinline)) int culprit(volatile int *n) {
            volatile char frame[*n];
            frame[*n - 1] = 1;
            return frame[*n - 1];
        }
        int main(void) { volatile int n = 30; return culprit(&n); }""",
}


@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
@pytest.mark.parametrize("reason", UNBOUNDED)
def test_what_has_no_bound_is_named(build: Build, toolchain: str, reason: str):
    bound = stack_bound(build(UNBOUNDED[reason], toolchain=toolchain))
    assert (bound.bytes, bound.reason) == (None, reason)
    assert bound.chain[-1] == "culprit" and bound.chain[:2] == ("Reset_Handler", "main")


def test_without_the_report_the_code_alone_bounds(build: Build):
    firmware = build(NETWORK)
    alone = stack_bound(replace(firmware, stack_reports=()))
    assert alone == stack_bound(firmware)
    variable = build(UNBOUNDED["has a frame of variable size"], toolchain="gcc")
    assert stack_bound(replace(variable, stack_reports=())).bytes is None
