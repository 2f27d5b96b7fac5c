"""The benchmark of the planner: peers do what they are said to do, and losses are shown."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mplan.ir.plan import Buffer, Problem, Region
from mplan.passes.live import live_peak
from tests.problems import is_valid, least_height, least_peak
from tests.test_planner_properties import small_graph

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import planner
import planner_peers as peers
import planner_tables as tables
from planner_rows import measure
from planner_sets import DATA, SETS, folder, read


def boxes(*rows: tuple[int, int, int], capacity: int | None = None) -> Problem:
    """Buffers of (start, end, size)."""
    buffers = tuple(
        Buffer(f"b{i}", size, ("arena",), lifetime=(start, end))
        for i, (start, end, size) in enumerate(rows)
    )
    return Problem("boxes", (Region("arena", capacity),), buffers)


# ---- peers ----


def test_greedy_places_the_largest_first_and_an_allocator_the_earliest() -> None:
    # By size: 6 at 0, 5 at 6, 4 behind it. One after another: 4 at 0, 5 at 4, and 6 into no hole.
    problem = boxes((0, 2, 4), (1, 3, 5), (2, 4, 6))
    assert peers.greedy_by_size(problem) == 11
    assert peers.best_fit(problem) == 15
    # The hole of 3 between 4 and 7 is tighter for 2 than the one of 4 at 0.
    problem = boxes((0, 1, 4), (0, 9, 1), (0, 1, 3), (0, 9, 1), (2, 4, 3), (3, 5, 4))
    assert peers.best_fit(problem) == 9


@pytest.mark.parametrize(
    "name", ["ind_vgg16_tr_1.json", "ind_gpt2_tr_1.json.gz", "ind_nasnetalarge_inf_0.json.gz"]
)
def test_inductors_orders_have_the_peak_that_inductor_reports(name: str) -> None:
    path = DATA / "graphs" / name
    content = path.read_bytes()
    reported = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)["meta"]
    problem = read(path)
    _, order, peak = peers.inductor_order(problem)
    assert is_valid(problem, order)
    assert live_peak(problem, range(len(problem.steps)), "arena")[0] == reported["base"]
    assert peak == reported["new"]


def test_inductors_orders_are_valid_with_mutation_and_outputs() -> None:
    for seed in range(60):
        problem = small_graph(seed)
        for order in peers.inductor_orders(problem).values():
            assert is_valid(problem, order), seed


def test_cp_sat_alone_finds_the_optimum_of_small_problems() -> None:
    for seed in range(12):
        problem = small_graph(seed)
        if not any(b.size_bytes for b in problem.buffers):
            continue
        found = peers.cpsat(problem, 20, workers=1)
        assert found is not None
        least = least_peak(problem, "arena")
        assert (found.value, found.bound) == (least, least), seed
    problem = boxes((0, 3, 4), (2, 5, 3), (4, 7, 4), (0, 1, 3), (6, 7, 3))
    found = peers.cpsat(problem, 20, workers=1)
    assert found == peers.Answer(least_height(problem), 7)


def test_cp_sat_keeps_a_capacity_or_says_nothing() -> None:
    rows = ((0, 3, 4), (2, 5, 3), (4, 7, 4))
    kept = peers.cpsat(boxes(*rows, capacity=7), 20, workers=1)
    assert kept is not None and kept.value == 7
    missed = peers.cpsat(boxes(*rows, capacity=6), 20, workers=1)
    assert missed is not None and missed.value is None


# ---- rows and tables ----


def row(**changes: Any) -> dict[str, Any]:
    ours = {"peak_bytes": 100, "arena_bytes": 110, "bound_bytes": 100, "status": "feasible"}
    ours |= {"fits": True, "cpu_s": 1.0, "order_status": "optimal", **changes.pop("ours", {})}
    figures = {"set": "s", "steps": 3, "buffers": 4, "capacity_bytes": None, "captured_peak_bytes": 120}
    return {**figures, "ours": ours, **changes}


@pytest.mark.parametrize(
    ("figures", "lost"),
    [
        (row(inductor={"peak_bytes": 100, "cpu_s": 0.1}), []),
        (row(inductor={"peak_bytes": 99, "cpu_s": 0.1}), ["Inductor"]),
        (row(cpsat={"peak_bytes": None, "cpu_s": 9}, tflm={"arena_bytes": 109}), ["TFLM"]),
        (row(best_fit={"arena_bytes": 111}, inductor=None), []),
        (row(capacity_bytes=110, cpsat={"arena_bytes": 110, "cpu_s": 0.5}), ["CP-SAT"]),
        (row(capacity_bytes=110, cpsat={"arena_bytes": 110, "cpu_s": 1.5}), []),
        (row(capacity_bytes=110, cpsat={"arena_bytes": None, "cpu_s": 0.5}), []),
        (
            row(capacity_bytes=105, ours={"fits": False}, tflm={"arena_bytes": 105, "cpu_s": 5}),
            ["TFLM"],
        ),
    ],
)
def test_losses_are_named(figures: dict[str, Any], lost: list[str]) -> None:
    assert tables.lost_to(figures) == lost
    cells = dict(zip(tables.HEAD, tables.line("x", figures), strict=True))
    assert cells["lost to"] == ", ".join(lost)
    assert dict(zip(tables.SUMMARY, tables.summary("s", [figures]), strict=True))["rows lost"] == str(
        len(lost)
    )


def test_ratios_refer_to_the_bound() -> None:
    figures = row(inductor={"peak_bytes": 150, "cpu_s": 0.1})
    cells = dict(zip(tables.HEAD, tables.line("x", figures), strict=True))
    assert (cells["order"], cells["arena"], cells["captured"]) == ("1.000", "1.100", "1.200")
    assert (cells["Inductor"], cells["status"]) == ("1.500", "gap 10.00%")
    summed = dict(zip(tables.SUMMARY, tables.summary("s", [figures]), strict=True))
    assert (summed["Inductor"], summed["captured"]) == ("1.500", "1.200")
    assert (summed["orders proven"], summed["arenas proven"]) == ("1 of 1", "0 of 1")
    rounded = row(ours={"arena_bound_bytes": 110})
    assert dict(zip(tables.HEAD, tables.line("x", rounded), strict=True))["arena"] == "1.000"
    assert tables.gap(rounded) == 0


def test_a_capacity_that_cannot_be_kept_is_a_row_too() -> None:
    figures = measure(boxes((0, 2, 4), (1, 3, 4), capacity=7), ("ours", "tflm"), 5)
    assert figures["ours"]["fits"] is False
    cells = dict(zip(tables.HEAD, tables.line("x", figures), strict=True))
    assert cells["status"] == "not found"


def test_a_folder_of_instances_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(DATA / "graphs" / "gpt2.json.gz", given)
    shutil.copy(DATA / "graphs" / "mobilenet_v2.json", given)
    (given / "tiny.9.csv").write_text("id,lower,upper,size\na,0,2,4\nb,1,3,5\n")
    assert [name for name, _ in folder(given)] == ["gpt2", "mobilenet_v2", "tiny"]
    assert dict(folder(given))["tiny"]().regions[0].capacity_bytes == 9
    monkeypatch.setattr(planner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["planner.py", "--folder", str(given), "--write"])
    planner.main()
    printed = capsys.readouterr().out
    assert "| mobilenet_v2 | 65 | 170 | 6,021,120 | 1.000 | 1.000 | optimal |" in printed
    kept = planner.load()
    assert [r["name"] for r in kept["rows"]] == ["gpt2", "mobilenet_v2", "tiny"]
    again = ["planner.py", "--folder", str(given), "--systems", "cpsat", "--only", "tiny", "--write"]
    monkeypatch.setattr(sys, "argv", again)
    planner.main()
    (tiny,) = (r for r in planner.load()["rows"] if r["name"] == "tiny")
    assert tiny["cpsat"]["arena_bytes"] == 9 and tiny["ours"]["arena_bytes"] == 9
    assert "tiny" in (tmp_path / "results" / "planner.md").read_text()


def test_kept_tables_follow_from_the_kept_figures() -> None:
    rows = [r for r in planner.load()["rows"] if "ours" in r]
    text = (planner.RESULTS / "planner.md").read_text(encoding="utf-8")
    assert tables.full_tables(rows) in text
    assert {r["set"] for r in rows} <= set(SETS)
