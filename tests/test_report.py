"""The report, its JSON contract, and the explanation of a peak."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from plan_factory import plan_file, spilled_plan_file
from rich.console import Console

from mplan.ir.plan import Certificate, Plan, PlanFile, Problem, Region
from mplan.report import Report, explain, render, render_explanation
from mplan.timeline import Timeline, verdict
from mplan.units import clean, human_bytes, percent, seconds


def printed(show: Any, subject: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(subject, console)
    return console.file.getvalue()


def full_report(file: PlanFile) -> Report:
    return Report.of(
        file,
        baseline_peak_bytes=200_000,
        flash_bytes=12_960,
        macs=1_234_567,
        mac_factor=1.02,
        seconds={"capture": 1.5, "plan": 0.25},
        warnings=["careful"],
        fallback_ops=["aten.foo"],
    )


def test_json_contract() -> None:
    file = plan_file()
    content = json.loads(json.dumps(full_report(file).to_json()))
    allocate, schedule = (file.plan.certificate(f"{d}:sram") for d in ("allocate", "schedule"))
    assert allocate and schedule
    assert content == {
        "schema_version": 1,
        "model": "tiny-net-0",
        "target": "stm32f746",
        "status": "feasible",
        "gap": max(c.gap for c in file.plan.certificates),
        "regions": {
            "sram": {
                "peak_bytes": allocate.value_bytes,
                "lower_bound_bytes": allocate.lower_bound_bytes,
                "capacity_bytes": 160 << 10,
            },
            "flash": {
                "peak_bytes": file.plan.peak_bytes("flash"),
                "lower_bound_bytes": file.plan.peak_bytes("flash"),
                "capacity_bytes": 1 << 24,
            },
        },
        "schedule": {
            "peak_live_bytes": schedule.value_bytes,
            "lower_bound_bytes": schedule.lower_bound_bytes,
            "baseline_peak_bytes": 200_000,
        },
        "flash_bytes": 12_960,
        "macs": 1_234_567,
        "mac_factor": 1.02,
        "seconds": {"capture": 1.5, "plan": 0.25, "codegen": None},
        "digest": file.plan.digest,
        "warnings": ["careful"],
        "fallback_ops": ["aten.foo"],
        "stream": None,
        "memories": None,
    }


def test_what_does_not_apply_is_null() -> None:
    content = Report.of(spilled_plan_file()).to_json()
    assert content["gap"] is None
    assert content["regions"]["dram"]["capacity_bytes"] is None
    assert content["regions"]["sram"]["lower_bound_bytes"] is None
    assert content["schedule"]["lower_bound_bytes"] is None
    for key in ("flash_bytes", "macs", "mac_factor"):
        assert content[key] is None


def test_text_and_table_tell_the_same() -> None:
    file = plan_file()
    report = full_report(file)
    for shown in (report.to_text(), printed(render, report)):
        for part in ("tiny-net-0 on stm32f746", "gap 11.3 %", f"{file.plan.peak_bytes('sram'):,} B"):
            assert part in shown
        for part in (
            "1,234,567 MAC",
            "warning: careful",
            "left to PyTorch: aten.foo",
            "capture 1.50 s",
        ):
            assert part in shown


def test_markup_in_names_stays_text() -> None:
    file = replace(plan_file(), model="[red]x[/red]\x1b[0m")
    assert "[red]x[/red]" in printed(render, Report.of(file))
    assert "\x1b" not in printed(render, Report.of(file))
    assert "[red]x[/red]" in Report.of(file).to_text()


def test_explanation_accounts_for_every_byte() -> None:
    file = plan_file()
    found = explain(file, [("worse", 90_000), ("better", 40_000)])
    spans = file.problem.lifetimes(file.plan.order)
    live = [
        {
            b.name: b.size_bytes
            for b, (start, end) in zip(file.problem.buffers, spans, strict=True)
            if start <= t < end and b.regions[0] == "sram"
        }
        for t in range(file.problem.horizon)
    ]
    peak = max(range(len(live)), key=lambda t: sum(live[t].values()))
    assert (found.region, found.position) == ("sram", peak)
    assert {h.name: h.size_bytes for h in found.holders} == live[peak]
    assert found.peak_live_bytes == sum(live[peak].values())
    assert found.peak_bytes == file.plan.peak_bytes("sram")
    assert sum(h.share for h in found.holders) == pytest.approx(1)
    assert sum(size for _, size in found.sources) == found.peak_live_bytes
    assert found.step == file.problem.steps[file.plan.order[peak]].name
    assert [text for text, _ in found.advice] == ["better", "worse"]
    assert json.loads(json.dumps(found.to_json()))["advice"][0] == {
        "text": "better",
        "peak_bytes": 40_000,
    }


def test_reasons_name_the_next_reader() -> None:
    file = plan_file()
    position = explain(file).position
    steps = file.problem.steps
    for holder in explain(file).holders:
        index = next(i for i, b in enumerate(file.problem.buffers) if b.name == holder.name)
        next_use = min(
            p for p, i in enumerate(file.plan.order) if index in steps[i].touches and p >= position
        )
        if next_use == position:
            assert holder.why == "used by this step"
        else:
            assert holder.why == f"needed by {steps[next_use].name} at step {next_use}"


def test_explanation_is_printed() -> None:
    shown = printed(render_explanation, explain(plan_file(), [("a smaller budget", 50_176)]))
    assert "live at step 15, gelu.15 (model.py:25)" in shown
    assert "softmax_11" in shown
    assert "(-50.0 %)  a smaller budget" in shown


def test_empty_plans_have_a_report_and_an_explanation() -> None:
    problem = Problem("empty", (), ())
    file = PlanFile(problem, Plan(problem.digest, (), ()))
    assert Report.of(file).to_json()["regions"] == {}
    assert explain(file).holders == ()
    bare = Problem("bare", (Region("arena"),), ())
    file = PlanFile(bare, Plan(bare.digest, (), ()))
    assert explain(file).peak_live_bytes == 0
    assert "arena" in printed(render, Report.of(file))
    assert "arena" in printed(render_explanation, explain(file))


def test_a_buffer_that_waits_elsewhere_counts_where_it_is() -> None:
    uses = {u.region.name: u.live_bytes for u in Timeline.of(spilled_plan_file()).regions}
    assert uses["dram"] == (0, 0, *[1536] * 7, 0, 0)
    assert uses["sram"][5] == 1024 + 512 * (5 % 3) + 1024 + 512 * (6 % 3)


def test_verdict_is_the_weakest() -> None:
    good = Certificate("allocate:a", 10, 10, "live", "optimal", "s")
    fair = Certificate("schedule:a", 11, 10, "live", "feasible", "s")
    assert verdict([good]) == ("optimal", "optimal")
    assert verdict([good, fair]) == ("feasible", "feasible, gap 10.0 %")
    assert verdict([]) == ("none", "no proof")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1024, "1.00 KiB"), (62_914, "61.4 KiB")),
        *(
            (1023 * 1024, "1.00 MiB"),
            (1 << 20, "1.00 MiB"),
            (163_840, "160 KiB"),
            (150 << 30, "150 GiB"),
        ),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_small_ratios_do_not_vanish() -> None:
    assert percent(0.0001) == "<0.1 %"
    assert percent(0) == "0.0 %"
    assert percent(-0.5, signed=True) == "-50.0 %"
    assert seconds(0.012) == "12 ms"
    assert seconds(125) == "2 min 05 s"
    assert clean("a\nb\x00\ud800") == "a b\ufffd\ufffd"
