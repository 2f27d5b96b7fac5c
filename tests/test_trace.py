"""What is noted of an emulated run: instructions one by one, by step and function; bytes of memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from firmware_support import FAULTS, NETWORK, TOUCH, Build, build, fails, inference_counts, inputs, run

from mplan.runtime.qemu_emulator import plugin_api
from mplan.runtime.semihosting import LAST_MARK, READ_MARK, RECORD, Record, records_of

__all__ = ["build"]


SLED = """
#include "mplan_host.h"
int main(void) {
    mplan_host_mark(1);
    __asm__ volatile(".rept " COUNT "\\n nop\\n .endr");
    mplan_host_mark(2);
    return 0;
}
"""


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
@pytest.mark.parametrize("count", [1, 100, 1237])
def test_instructions_are_counted_one_by_one(build: Build, toolchain: str, emulator: str, count: int):
    counts = [
        inference_counts(
            run(build(SLED, toolchain=toolchain, defines={"COUNT": f'"{n}"'}), emulator=emulator)
        )[0]
        for n in (0, count)
    ]
    assert counts[1] - counts[0] == count
    assert counts[0] < 5


def test_wide_and_narrow_instructions_count_alike(build: Build):
    source = SLED.replace("nop", "nop.w\\n nop\\n nop.w")
    counts = [inference_counts(run(build(source, defines={"COUNT": f'"{n}"'})))[0] for n in (0, 50)]
    assert counts[1] - counts[0] == 150


def test_records_of_a_program_that_stopped_midway():
    data = RECORD.pack(7, 0, 0) + RECORD.pack(READ_MARK, 0x20000000, 16) + RECORD.pack(LAST_MARK, 8, 0)
    assert records_of(data + b"\0" * 5) == (
        Record(7, (0, 0)),
        Record(READ_MARK, (0x20000000, 16)),
        Record(LAST_MARK, (8, 0)),
    )


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_touched_bytes_are_exact_even_where_zeros_are_written(
    build: Build, toolchain: str, emulator: str
):
    result = run(build(TOUCH, toolchain=toolchain), emulator=emulator)
    touched = {name: (t.bytes, t.high_water_bytes) for name, t in result.touched.items()}
    assert touched == {"net_arena": (101, 1001), "untouched": (0, 0), "word": (4, 4)}
    stack = result.sram_touched_bytes - 105
    assert 0 <= stack <= result.stack_bytes


@pytest.mark.parametrize("emulator", ["unicorn", "qemu"])
def test_tracing_memory_changes_nothing_else(build: Build, emulator: str):
    firmware = build(NETWORK, layout="board")
    traced, plain = (
        run(firmware, emulator=emulator, inputs=inputs(4).tobytes(), trace_memory=flag)
        for flag in (True, False)
    )
    assert plain.touched == {} == plain.accessed and plain.sram_touched_bytes is None
    assert (traced.output, traced.marks, traced.stack_bytes, traced.functions) == (
        plain.output,
        plain.marks,
        plain.stack_bytes,
        plain.functions,
    )


@pytest.mark.parametrize(
    ("target", "toolchain"), [("mps2-an386", "zig"), ("mps2-an500", "gcc"), ("mps3-an547", "gcc")]
)
def test_qemu_sees_the_bytes_that_are_read_and_written(build: Build, target: str, toolchain: str):
    source = """
    #include "mplan_host.h"
    static const unsigned char table[64] = {1, 2, 3};
    volatile unsigned char n, from[192], to[192];
    int main(void) {
        mplan_host_read((void *)&n, 1);
        for (int i = 0; i < n; i += 2) to[i] = from[i];
        for (int i = 0; i < n; i += 4) to[i] = table[i / 4];
        return 0;
    }
    """
    firmware = build(source, target, toolchain)
    flash = firmware.memory_of(firmware.symbols["main"].address)
    seen = []
    for count in (64, 192):
        result = run(firmware, target, emulator="qemu", inputs=bytes([count]))
        assert result.touched["to"].bytes == count // 2 and result.touched["n"].bytes == 1
        seen.append((result.accessed["sram"], result.accessed[flash.name]))
    (ram, code), (more_ram, more_code) = seen
    assert more_ram.written_bytes - ram.written_bytes == 64
    assert more_ram.read_bytes - ram.read_bytes == 64
    assert more_code.read_bytes - code.read_bytes == 32
    assert code.written_bytes == more_code.written_bytes == 0


def test_qemu_sees_vectors_of_helium(build: Build):
    source = """
    #include <arm_mve.h>
    int8_t from[64], to[64];
    int main(void) {
        vstrbq_s8(to + 16, vaddq_s8(vldrbq_s8(from), vldrbq_s8(from + 32)));
        vstrbq_p_s8(to + 40, vldrbq_s8(from), vctp8q(5));
        return 0;
    }
    """
    result = run(build(source, "mps3-an547", "gcc"), "mps3-an547", emulator="qemu")
    assert (result.touched["to"].bytes, result.touched["to"].high_water_bytes) == (21, 45)


STEPS = """
#include "mplan_host.h"
__attribute__((noinline)) static void work(int n) {
    __asm__ volatile("1:\\n nop\\n subs %0, #1\\n bne 1b" : "+l"(n) : : "cc");
}
int main(void) {
    mplan_host_mark(1);
    for (int row = 0; row < 3; row++) {
        MPLAN_STEP(4)
        work(10);
        MPLAN_STEP(7)
        work(50);
        __asm__ volatile(".rept 9\\n nop\\n .endr");
    }
    MPLAN_STEP(2)
    __asm__ volatile(".rept 33\\n nop\\n .endr");
    mplan_host_mark(2);
    work(1000);
    return 0;
}
"""


@pytest.mark.parametrize("target", ["mps2-an386", "stm32f746"])
@pytest.mark.parametrize("toolchain", ["zig", "gcc"])
def test_instructions_belong_to_the_step_that_runs(build: Build, target: str, toolchain: str):
    firmware = build(STEPS, target, toolchain, layout="board")
    results = [run(firmware, target, emulator=e) for e in ("unicorn", "qemu")]
    assert results[0].marks == results[1].marks
    (interval,) = results[0].between(1, 2)
    assert set(interval.steps) == {2, 4, 7}
    assert 33 <= interval.steps[2] <= 33 + 4
    longer = 3 * (3 * (50 - 10) + 9)
    assert longer <= interval.steps[7] - interval.steps[4] <= longer + 3 * 3  # the loop over rows
    assert 0 <= interval.instructions - sum(interval.steps.values()) <= 8
    assert 0 < results[0].functions["work"] - 3 * (1000 + 3 * (10 + 50)) <= 7 * 3


def test_the_steps_of_an_image_with_them_cost_nothing(build: Build):
    plain = build(STEPS, defines={"MPLAN_STEP(position)": ";"})
    marked = build(STEPS)
    assert marked.flash_bytes == plain.flash_bytes
    assert inference_counts(run(marked)) == inference_counts(run(plain))
    assert run(plain).between(1, 2)[0].steps == {}


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_a_store_to_what_nothing_owns_is_an_error(build: Build, toolchain: str, emulator: str):
    firmware = build(
        FAULTS,
        toolchain=toolchain,
        layout="board",
        defines={"ACTION": "*at = 7; return 0", "ADDRESS": "0x20030000u"},
    )
    error = fails("MP548", lambda: run(firmware, emulator=emulator))
    assert "wrote 4 B at 0x20030000" in error.message and "(culprit+" in error.message
    assert run(firmware, emulator=emulator, trace_memory=False).exit_code == 1


GAP = """
#include "mplan_host.h"
static volatile unsigned char odd[13] __attribute__((aligned(8)));
static volatile unsigned char even[8] __attribute__((aligned(8)));
__attribute__((noinline)) void fill(volatile unsigned char *at, int n) {
    for (int i = 0; i < n; i++) at[i] = 1;
}
int main(void) {
    fill(even, sizeof even);
    fill(odd, LENGTH);
    return odd[0] - even[0];
}
"""


@pytest.mark.parametrize(("toolchain", "emulator"), [("zig", "unicorn"), ("gcc", "qemu")])
def test_the_gap_behind_an_object_belongs_to_nothing(build: Build, toolchain: str, emulator: str):
    exact, beyond = (build(GAP, toolchain=toolchain, defines={"LENGTH": n}) for n in ("13", "14"))
    assert run(exact, emulator=emulator).exit_code == 0
    error = fails("MP548", lambda: run(beyond, emulator=emulator))
    assert f"wrote 1 B at {beyond.symbols['odd'].address + 13:#010x}" in error.message
    assert "1 such stores" in error.help


def test_many_variables_are_owned_each(build: Build):
    count = 100
    names = [f"v{i}" for i in range(count)]
    source = "".join(f"volatile char {n} __attribute__((aligned(8)));\n" for n in names)
    source += f"int main(void) {{ {' '.join(f'{n} = 1;' for n in names)} return 0; }}"
    result = run(build(source))
    assert result.exit_code == 0 and [result.touched[n].bytes for n in names] == [1] * count


@pytest.mark.parametrize(
    ("release", "api"),
    [("7.2.22 (Debian)", 1), ("8.2.3", 1), ("9.0.4", 2), ("9.1.0", 3), ("10.2.0", 3)],
)
def test_the_plugin_speaks_the_version_that_qemu_asks_for(release: str, api: int):
    assert plugin_api(f"QEMU emulator version {release}\nCopyright") == api


def test_a_qemu_without_plugins_is_named(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    firmware = build(NETWORK, toolchain="gcc")
    fake = tmp_path / "qemu-system-arm"
    fake.write_text("#!/bin/sh\necho 'qemu-system-arm: -plugin: invalid option' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    error = fails("MP410", lambda: run(firmware, emulator="qemu"))
    assert "does not load plugins" in error.message and "invalid option" in error.notes[0][0]


def test_more_marks_than_the_trace_holds_are_refused(build: Build):
    source = """
    #include "mplan_host.h"
    int main(void) { for (int i = 0; i < 66000; i++) mplan_host_mark(i); return 0; }
    """
    error = fails("MP411", lambda: run(build(source, toolchain="gcc"), emulator="qemu"))
    assert "66,001 times; 65,536 are traced" in error.message
