"""A budget for several memories together: no way within it costs less, and what it leaves is used."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import run_cli
from torch import nn

import mplan
from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.accesses import accessed_bytes
from mplan.ir.check import check
from mplan.ir.columns import PIXELS
from mplan.ir.graph import Graph, Scratch
from mplan.ir.interp import run
from mplan.ir.plan import Buffer, Problem, Region
from mplan.ir.plan_json import load_plan, parse_plan, print_plan
from mplan.ir.storage import Layout, problem_of
from mplan.options import Options
from mplan.passes.planner import solve
from mplan.passes.tile_pixels import tiled_graph
from mplan.pipeline import PIPELINES, Planned, layout_of, plan_graph
from mplan.report import Report
from mplan.runtime.device import run_bundle
from mplan.targets import load_target
from tests.quantized_nets import QuantizedNet
from tests.test_memories import chain, packs, shared

FAST = "fold_zero_points,bound_sums,pair_weights"
PLANNED = f"{FAST},inplace,schedule,allocate"
ENDLESS = 1 << 30


def lowest(problem: Problem, way: tuple[str, ...], region: Region) -> int | None:
    """The least height of ``region`` at which addresses exist; None if it has no room."""
    heights = range((region.capacity_bytes or 0) + 1)
    return next((h for h in heights if packs(problem, way, replace(region, capacity_bytes=h))), None)


@cache
def least_cost(seed: int, total: int) -> int | None:
    """The least cost over all ways to choose regions whose heights together stay within ``total``."""
    problem = shared(seed)
    costs = {r.name: r.cost for r in problem.regions}
    ways = product(*(b.regions for b in problem.buffers))
    sound = (w for w in ways if all(len({w[i] for i in g}) == 1 for g in problem.adjacent))
    priced = sorted(
        (sum(b.accessed_bytes * costs[r] for b, r in zip(problem.buffers, way, strict=True)), way)
        for way in sound
    )
    for cost, way in priced:
        heights = [lowest(problem, way, region) for region in problem.regions]
        if None not in heights and sum(h for h in heights if h is not None) <= total:
            return cost
    return None


#: In most of these a total of 36 B, which is what the regions have, leaves a way that costs less.
SEEDS = (3, 11, 16, 19, 22, 33, 38)
CASES = [(seed, total) for seed in SEEDS for total in (16, 20, 28)]


@pytest.mark.parametrize(("seed", "total"), CASES)
def test_no_way_within_the_total_costs_less(seed: int, total: int) -> None:
    problem, least = replace(shared(seed), total_bytes=total), least_cost(seed, total)
    if least is None:
        with pytest.raises(InfeasibleError) as caught:
            solve(problem, limit_s=10)
        assert caught.value.code in ("MP221", "MP228")
        return
    plan = solve(problem, limit_s=10)
    found = plan.certificate("assign:fast+slow")
    assert not check(problem, plan) and found is not None
    assert plan.peak_bytes("fast+slow") <= total
    assert (found.value_bytes, found.lower_bound_bytes, found.status) == (least, least, "optimal")


def test_the_totals_matter() -> None:
    """Some leave no way, and some only one that costs more."""
    found = [(least_cost(seed, total), least_cost(seed, 36)) for seed, total in CASES]
    assert all(free is not None for _, free in found)
    assert sum(least is None for least, _ in found) >= 5
    assert sum(least is not None and least != free for least, free in found) >= 4


@pytest.mark.parametrize(("seed", "total"), CASES[::2])
def test_greedy_stays_within_the_total(seed: int, total: int) -> None:
    problem, least = replace(shared(seed), total_bytes=total), least_cost(seed, total)
    try:
        plan = solve(problem, solver="greedy", limit_s=5)
    except InfeasibleError as error:
        assert least is None or "not proven impossible" in (error.help or "")
        return
    found = plan.certificate("assign:fast+slow")
    assert found is not None and least is not None
    assert found.lower_bound_bytes <= least <= found.value_bytes
    assert not check(problem, plan)


def test_more_than_the_total_is_found() -> None:
    problem, plan = chain()
    used = plan.peak_bytes("slow+fast")
    for total, wrong in ((used, False), (used - 1, True)):
        limited = replace(problem, total_bytes=total)
        found = check(limited, replace(plan, problem=limited.digest))
        assert [v.reason for v in found] == ["capacity"] * wrong
        assert all(f"take {used:,} B, together they have {total:,} B" in v.message for v in found)
    assert len({replace(problem, total_bytes=n).digest for n in (None, used, used - 1)}) == 3
    assert limited.unlimited().total_bytes is None


def test_a_total_that_makes_no_sense() -> None:
    problem, plan = chain()
    unknown = tuple(replace(r, cost=0) for r in problem.regions)
    for bad in (replace(problem, total_bytes=-1), replace(problem, regions=unknown, total_bytes=99)):
        assert {v.reason for v in check(bad, plan)} == {"problem"}
        with pytest.raises(UserError):
            solve(bad)


def test_without_room_together_the_error_has_the_numbers() -> None:
    problem, _ = chain()
    with pytest.raises(InfeasibleError) as caught:
        solve(replace(problem, total_bytes=63), limit_s=5)
    error = caught.value
    assert error.code == "MP228" and "63 B together: 64 B live at step 0" in error.message
    assert "no way exists" in (error.help or "")


def test_a_budget_is_that_of_all_memories() -> None:
    target = load_target("stm32h743")
    two = layout_of(target, 50_000, memories="dtcm=32KiB,sram")
    assert two.total_bytes == two.arena.capacity_bytes == 50_000
    assert {m.name: m.capacity_bytes for m in two.memories} == {"sram": 524_288, "dtcm": 32_768}
    assert layout_of(target, memories="dtcm=32KiB,sram").total_bytes is None
    assert layout_of(target, 1 << 30, memories="dtcm=32KiB,sram").total_bytes is None
    assert layout_of(target, 9_000, memories="dtcm").arena.capacity_bytes == 9_000
    assert layout_of(target, 9_000).total_bytes is None


def narrow(net: QuantizedNet) -> Graph:
    """A wide image between narrow ones, so that the ends have room that the middle has not."""
    x = net.conv("x", 8)
    y = net.conv(net.conv(x, 64), 64, (3, 3), padding=(1, 1, 1, 1), groups=64)
    return net.graph(net.conv(net.conv(net.conv(y, 8), 16, (3, 3), (2, 2), (1, 1, 1, 1)), 24))


def planned(graph: Graph, net: QuantizedNet, passes: str, **given: Any) -> Planned:
    options = Options.parse({"target": "stm32h743", "pipeline": passes, "limit": 5, **given})
    return plan_graph(graph, dict(net.constants), options)


def columns(graph: Graph) -> int:
    """The bytes of scratch memory of the layers, also of those in streams."""
    bodies = [op.loop.body.ops if op.loop else (op,) for op in graph.ops]
    return sum(s.size_bytes for ops in bodies for op in ops for s in op.scratch)


@pytest.mark.parametrize("stream", ["", "stream{pixels=false,input=rows},"])
def test_columns_use_what_memories_and_budget_leave(stream: str) -> None:
    net = QuantizedNet(12, 14, 8)
    graph, image = narrow(net), net.image()
    (wanted,) = run(graph, {**net.constants, "x": image})
    passes = PLANNED.replace("inplace", f"{stream}inplace")
    memories = "dtcm=1KiB,sram" if stream else "dtcm=11KiB,sram=12KiB"
    plain = planned(graph, net, passes, memories=memories)
    used = plain.plan.peak_bytes("sram+dtcm")
    assert plain.plan.peak_bytes("dtcm") and plain.plan.peak_bytes("sram") and not columns(plain.graph)
    found = []
    for budget in (None, used + 200, used + 1000, used + 4000):
        tiled = planned(graph, net, f"{passes},tile_pixels", memories=memories, budget=budget)
        assert not check(tiled.lowered.problem, tiled.plan)
        assert tiled.plan.peak_bytes("sram+dtcm") <= (budget or used)
        found.append(columns(tiled.graph))
        (ours,) = run(tiled.graph, {**tiled.constants, "x": image})
        assert torch.equal(ours, wanted)
    # op by op, the layer of the peak has no columns, and the others have room for theirs
    assert found == sorted(found) and found[0] and (found[0] < found[-1]) == bool(stream)


def test_one_memory_alone_is_found_within_a_tight_budget() -> None:
    """Shared out between two, the buffers leave gaps; in the slower one alone they fit."""
    net = QuantizedNet(12, 14, 8)
    passes = PLANNED.replace("inplace", "stream{pixels=false,input=rows},inplace")
    graph = narrow(net)
    alone = planned(graph, net, passes).plan.peak_bytes("sram")
    for solver in ("auto", "greedy"):
        given: dict[str, Any] = {"budget": alone, "memories": "dtcm=512,sram", "solver": solver}
        tight = planned(graph, net, passes, **given)
        assert tight.plan.peak_bytes("sram+dtcm") <= alone
    with pytest.raises(InfeasibleError):
        planned(graph, net, passes, budget=alone // 2, memories="dtcm=512,sram")


@pytest.mark.parametrize("budget", [None, 22 << 10])
@pytest.mark.parametrize("memories", ["dtcm=9KiB,sram=9KiB", "dtcm=8KiB,sram=14KiB"])
def test_streams_are_made_where_layers_cannot_be_shared_out(budget: int | None, memories: str) -> None:
    """All layers fit into both memories together, or streams of larger pieces, but not into each."""
    net = QuantizedNet(12, 14, 8)
    graph = narrow(net)
    with pytest.raises(InfeasibleError):
        planned(graph, net, PLANNED, memories=memories, budget=budget)
    passes = PLANNED.replace("inplace", "stream{pixels=false,when=needed},inplace")
    found = planned(graph, net, passes, memories=memories, budget=budget)
    assert found.streamed is not None and found.streamed.mac_factor == 1.0
    assert not check(found.lowered.problem, found.plan)


def test_numbers_in_columns_are_those_that_are_multiplied() -> None:
    net = QuantizedNet(5, 6, 8)
    graph = planned(net.graph(net.conv("x", 16, (3, 3))), net, PLANNED).graph
    tiled = tiled_graph(graph, [ENDLESS], columns=True)
    sram = Region("sram")
    found = []
    for each in (graph, tiled):
        lowered = problem_of(each, Layout(sram, Region("flash"), sram))
        accessed = accessed_bytes(each, lowered)
        found.append({b.name: n for b, n in zip(lowered.problem.buffers, accessed, strict=True)})
    positions, window = 3 * 4, 3 * 3 * 8
    assert found[0]["x"] == 5 * 6 * 8 + positions * window * 16
    assert found[1]["x"] == 5 * 6 * 8 + positions * window
    assert found[1]["v0.scratch0"] == 2 * (positions * window * 16 + positions * window)
    assert tiled.ops[0].scratch == (Scratch(2 * PIXELS * window, alignment=4),)


MODEL = """
import torch
from torch import nn
from torch import nn


def get_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 64, 1), nn.ReLU6(),
        nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.ReLU6(), nn.Conv2d(64, 16, 1),
        nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def get_inputs():
    torch.manual_seed(1)
    return torch.randn(1, 3, 24, 24)
"""


@pytest.fixture(scope="module", params=["rows", "whole"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("total")
    (path / "net.py").write_text(MODEL)
    memories = ("--memories", "dtcm=3KiB,sram", "--budget", "6KiB", "--input", request.param)
    kind = ("-t", "stm32h743", "--quantize", "int8", "--io", "int8-nhwc")
    options = (*kind, *memories, "--no-build", "--json")
    done = run_cli("compile", path / "net.py", "--name", "net", "-o", path / "out", *options)
    assert done.code == 0, done.err
    return path / "out"


@pytest.mark.parametrize("emulator", ["unicorn", "qemu"])
def test_each_memory_holds_what_the_plan_says_within_the_budget(folder: Path, emulator: str) -> None:
    file = load_plan(folder / "plan.json")[1]
    plan = file.plan
    assert run_cli("check", folder / "plan.json").code == 0
    assert file.problem.total_bytes == 6 << 10 >= plan.peak_bytes("sram+dtcm")
    assert "_columns(" in (folder / "net.c").read_text()
    run = run_bundle(folder, emulator=emulator)  # type: ignore[arg-type]
    assert run.outputs_match and run.max_abs_err == 0
    assert run.memories["dtcm"].written_bytes == plan.peak_bytes("dtcm") > 0
    assert run.memories["sram"].written_bytes >= plan.peak_bytes("sram") > 0
    assert run.arena_touched_bytes == run.arena_bytes == plan.peak_bytes("sram+dtcm")


def test_a_plan_file_keeps_the_total(folder: Path) -> None:
    _, file = load_plan(folder / "plan.json")
    assert parse_plan(print_plan(file))[1] == file


def test_the_report_says_what_the_memories_take_together(folder: Path) -> None:
    _, file = load_plan(folder / "plan.json")
    report = Report.of(file)
    height = file.plan.peak_bytes("sram+dtcm")
    assert report.memories is not None
    assert (report.memories.peak_bytes, report.memories.budget_bytes) == (height, 6 << 10)
    assert report.to_json()["memories"]["budget_bytes"] == 6 << 10
    assert f"memories: {height:,} B of 6,144 B together; " in report.memories.line()


@pytest.mark.parametrize("way", ["rows", "flash"])
def test_rings_of_several_pixels_are_written_as_high_as_planned(way: str, tmp_path: Path) -> None:
    """Rows of nine pixels, of which a step makes four: the last row ends before its last step would."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU6(), nn.Conv2d(8, 24, 1), nn.ReLU6()]
    layers += [nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.ReLU6(), nn.Conv2d(24, 8, 1)]
    passes = PIPELINES["mcu"].partition("stream{")[0]
    passes += f"stream{{rows=false,max_mac_factor=1.0,input={way}}},inplace,schedule,allocate"
    given: dict[str, Any] = {"pipeline": f"{passes},tile_pixels{{budget=8000}}", "quantize": "int8"}
    given |= {"target": "stm32h743", "memories": "dtcm=700,sram", "io": "int8-nhwc"}
    model, example = nn.Sequential(*layers).eval(), (torch.randn(1, 3, 18, 18),)
    done = mplan.compile(model, example, out=tmp_path, name="net", **given)
    assert done.result.planned is not None
    (loop,) = (op.loop for op in done.result.planned.graph.ops if op.loop)
    assert loop.stream is not None and loop.stream.pixels == PIXELS
    plan, ran = done.result.file.plan, run_bundle(tmp_path)
    assert ran.outputs_match and plan.peak_bytes("dtcm") and plan.peak_bytes("sram")
    assert ran.arena_touched_bytes == plan.peak_bytes("dtcm") + plan.peak_bytes("sram")


@pytest.mark.parametrize("padding", [64, 1])
def test_a_region_without_a_limit_has_room_for_padding(padding: int) -> None:
    """Two buffers at multiples of 64 reach 65 B, far more than their bytes, and may lie together."""
    regions = (Region("fast", cost=1), Region("slow", cost=2), Region("slowest", cost=100))
    places = (("fast", "slow"), ("fast", "slow"), ("slow", "slowest"), ("slow", "slowest"))
    buffers = [
        Buffer(f"b{i}", 1, names, padding, lifetime=(i // 2, i // 2 + 1), accessed_bytes=1)
        for i, names in enumerate(places)
    ]
    problem = Problem("padded", regions, tuple(buffers), total_bytes=100)
    found = solve(problem, limit_s=10).certificate("assign:fast+slow+slowest")
    assert found is not None and (found.status, found.value_bytes) == ("optimal", 6 + (padding > 1))


def test_a_total_without_a_choice_limits_nothing() -> None:
    regions = (Region("fast", cost=1), Region("slow", cost=2))
    problem = Problem("alone", regions, (Buffer("a", 12, ("fast",), lifetime=(0, 1)),), total_bytes=10)
    assert solve(problem, limit_s=1).peak_bytes("fast") == 12
