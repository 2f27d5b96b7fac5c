"""Buffers shared out between the memories of a part: no way costs less, and the bytes lie there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
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
from mplan.ir.parser import parse
from mplan.ir.plan import Buffer, Certificate, Plan, Problem, Region, Step
from mplan.ir.storage import Layout, problem_of
from mplan.options import Options
from mplan.passes.planner import place, solve
from mplan.pipeline import plan_graph
from mplan.runtime.device import build_bundle, run_bundle
from mplan.runtime.footprint import measure
from tests.stream_nets import NETS, graph_of

FAST, SLOW = Region("fast", 16, 1, cost=2), Region("slow", 20, 2, cost=5)


def shared(seed: int) -> Problem:
    """A few buffers of fixed lifetime; some must lie side by side, some may lie in one region only."""
    rng = random.Random(seed)
    both = ("fast", "slow")
    buffers = [
        Buffer(
            f"b{i}",
            rng.randint(1, 13),
            both if rng.random() < 0.8 else (rng.choice(both),),
            lifetime=(start := rng.randint(0, 5), start + rng.randint(1, 4)),
            accessed_bytes=rng.choice((0, 3, 10, 50)),
        )
        for i in range(rng.randint(2, 7))
    ]
    adjacent: tuple[tuple[int, ...], ...] = ()
    if rng.random() < 0.5:
        adjacent = ((0, 1),)
        buffers[:2] = [replace(b, regions=both, size_bytes=b.size_bytes // 2) for b in buffers[:2]]
    return Problem("shared", (FAST, SLOW), tuple(buffers), (), adjacent)


def packs(problem: Problem, chosen: tuple[str, ...], region: Region) -> bool:
    """Whether addresses exist in ``region``: all of them are tried, group by group."""
    heads = {g[0]: g for g in problem.adjacent}
    inside = {i for g in problem.adjacent for i in g[1:]}
    groups = [heads.get(i, (i,)) for i in range(len(problem.buffers)) if i not in inside]
    mine = [g for g in groups if chosen[g[0]] == region.name]
    placed: list[tuple[int, int, int, int]] = []

    def boxes(group: tuple[int, ...], base: int) -> Iterator[tuple[int, int, int, int]]:
        for i in group:
            b = problem.buffers[i]
            assert b.lifetime is not None
            yield (base, base + b.size_bytes, *b.lifetime)
            base += b.size_bytes

    def free(box: tuple[int, int, int, int]) -> bool:
        low, high, start, end = box
        return all(high <= a or b <= low or end <= s or e <= start for a, b, s, e in placed)

    def fill(at: int) -> bool:
        if at == len(mine):
            return True
        for base in range(0, (region.capacity_bytes or 0) + 1, region.alignment):
            new = [x for x in boxes(mine[at], base) if x[0] < x[1]]
            if all(x[1] <= (region.capacity_bytes or 0) and free(x) for x in new):
                placed.extend(new)
                if fill(at + 1):
                    return True
                del placed[len(placed) - len(new) :]
            if not new:
                break
        return False

    return fill(0)


def least_cost(problem: Problem) -> int | None:
    """The least cost over all ways to choose regions, each tried; None if none has addresses."""
    costs = {r.name: r.cost for r in problem.regions}
    ways = product(*(b.regions for b in problem.buffers))
    sound = (w for w in ways if all(len({w[i] for i in g}) == 1 for g in problem.adjacent))
    priced = sorted(
        (sum(b.accessed_bytes * costs[r] for b, r in zip(problem.buffers, way, strict=True)), way)
        for way in sound
    )
    fits = (cost for cost, way in priced if all(packs(problem, way, r) for r in problem.regions))
    return next(fits, None)


#: In some of the later ones the bytes would fit, but not with any addresses.
SEEDS = (*range(40), 100, 225, 227, 250, 251, 256, 301, 320, 365, 436, 638)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_way_to_share_costs_less(seed: int) -> None:
    problem = shared(seed)
    least = least_cost(problem)
    if least is None:
        with pytest.raises(InfeasibleError) as caught:
            solve(problem, limit_s=10)
        assert caught.value.code in ("MP221", "MP228")
        return
    plan = solve(problem, limit_s=10)
    assert not check(problem, plan)
    found = plan.certificate("assign:fast+slow")
    if all(len(b.regions) == 1 for b in problem.buffers):
        assert found is None
        return
    assert found is not None
    assert (found.value_bytes, found.lower_bound_bytes, found.status) == (least, least, "optimal")


def test_the_random_problems_are_of_every_kind() -> None:
    """Some have no answer, some an answer in which something must leave the fast region."""
    found = [(shared(seed), least_cost(shared(seed))) for seed in SEEDS]
    floors = [sum(b.accessed_bytes * 2 for b in p.buffers if "fast" in b.regions) for p, _ in found]
    assert sum(least is None for _, least in found) >= 3
    assert (
        sum(least is not None and least > f for (_, least), f in zip(found, floors, strict=True)) >= 10
    )


@pytest.mark.parametrize("seed", SEEDS[::5])
def test_greedy_says_what_it_does_not_know(seed: int) -> None:
    problem, least = shared(seed), least_cost(shared(seed))
    if least is None:
        return
    try:
        plan = solve(problem, solver="greedy", limit_s=5)
    except InfeasibleError as error:
        assert "not proven impossible" in error.help or error.code != "MP228"
        return
    found = plan.certificate("assign:fast+slow")
    assert found is not None and found.lower_bound_bytes <= least <= found.value_bytes
    assert not check(problem, plan)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_proof_ends_where_room_is_made_smaller(pieces: int) -> None:
    """Five buffers of 3 B would fit into 16 B; at multiples of 4 there is room for four of twelve.

    The program knows that of buffers, but not of adjacent ones.
    """
    regions = (Region("fast", 16, 4, cost=2), Region("slow", 64, 4, cost=5))
    sizes = [3] if pieces == 1 else [2, 1]
    buffers = tuple(
        Buffer(f"b{i}.{n}", size, ("fast", "slow"), lifetime=(0, 2), accessed_bytes=10)
        for i in range(12)
        for n, size in enumerate(sizes)
    )
    pairs = tuple((2 * i, 2 * i + 1) for i in range(12)) if pieces == 2 else ()
    problem = Problem("odd", regions, buffers, (), pairs)
    plan = solve(problem, limit_s=10)
    found = plan.certificate("assign:fast+slow")
    assert not check(problem, plan) and found is not None
    assert found.value_bytes == (4 * 10 * 2 + 8 * 10 * 5) * pieces
    least = found.value_bytes if pieces == 1 else (5 * 10 * 2 + 7 * 10 * 5) * pieces
    assert found.lower_bound_bytes == least
    assert plan.status == found.status == ("optimal" if pieces == 1 else "feasible")


def chain() -> tuple[Problem, Plan]:
    """Three buffers in a row; the one in the middle is used most."""
    regions = (Region("slow", 64, 4, cost=4), Region("fast", 32, 4, cost=1))
    sizes, uses = (32, 32, 8), (40, 400, 10)
    buffers = tuple(
        Buffer(f"b{i}", size, ("fast", "slow"), live_in=i == 0, live_out=i == 2, accessed_bytes=n)
        for i, (size, n) in enumerate(zip(sizes, uses, strict=True))
    )
    steps = (Step("first", (0,), (1,)), Step("second", (1,), (2,), (0,)))
    problem = Problem("chain", regions, buffers, steps)
    return problem, solve(problem, limit_s=5)


def test_the_hottest_buffer_is_in_the_fast_region() -> None:
    _, plan = chain()
    assert {p.buffer: p.region for p in plan.placements} == {0: "slow", 1: "fast", 2: "slow"}
    ordered, assigned = (plan.certificate(f"{d}:slow+fast") for d in ("schedule", "assign"))
    assert ordered is not None and (ordered.value_bytes, ordered.lower_bound_bytes) == (64, 64)
    assert assigned is not None and assigned.value_bytes == 4 * 40 + 400 + 4 * 10
    assert plan.status == "optimal" and plan.peak_bytes("slow+fast") == 64


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value_bytes": 599}, "states"),
        ({"lower_bound_bytes": 601}, "exceeds"),
        ({"lower_bound_bytes": 599}, "status"),
        ({"bound_kind": "fastest"}, "witness shows 450 B"),
        ({"bound_kind": "live", "witness": (0,)}, "says nothing"),
        ({"subject": "assign:slow+none"}, "names no region"),
        ({"subject": "assign:slow+slow"}, "names no region"),
        ({"subject": "allocate:slow+fast"}, "names no region"),
    ],
)
def test_a_false_claim_is_found(change: dict[str, Any], reason: str) -> None:
    problem, plan = chain()
    assert not check(problem, plan)
    others = tuple(c for c in plan.certificates if not c.subject.startswith("assign:"))
    (mine,) = (c for c in plan.certificates if c.subject.startswith("assign:"))
    forged = replace(plan, certificates=(*others, replace(mine, **change)))
    assert any(v.reason == "bound" and reason in v.message for v in check(problem, forged))


def test_a_fast_bound_says_nothing_of_orders() -> None:
    problem, plan = chain()
    forged = Certificate("schedule:slow+fast", 64, 64, "fastest", "optimal", "none")
    found = check(problem, replace(plan, certificates=(forged,)))
    assert [v.reason for v in found] == ["bound"]


def test_costs_and_accesses_are_part_of_a_problem() -> None:
    problem, _ = chain()
    dearer = replace(problem, regions=(replace(problem.regions[0], cost=5), problem.regions[1]))
    hotter = tuple(replace(b, accessed_bytes=b.accessed_bytes + 1) for b in problem.buffers)
    assert len({p.digest for p in (problem, dearer, replace(problem, buffers=hotter))}) == 3
    bad = replace(problem, buffers=(replace(problem.buffers[0], accessed_bytes=-1), *hotter[1:]))
    assert mplan.check(bad, solve(problem))[0].reason == "problem"


def test_without_room_the_error_has_the_numbers() -> None:
    problem, _ = chain()
    small = replace(problem, regions=tuple(replace(r, capacity_bytes=28) for r in problem.regions))
    with pytest.raises(InfeasibleError) as caught:
        solve(small, limit_s=5)
    error = caught.value
    assert error.code == "MP228" and int(error.exit_code) == 4
    assert "slow (28 B) and fast (28 B): 64 B live at step 0 (first)" in error.message
    assert "the largest piece is b0 of 32 B" in error.message and "no way exists" in error.help


CONV = """
graph @net(%x: f32[1,2,4,4] "x", param %w: f32[3,2,3,3] "w") {
  %c: f32[1,3,4,4] = aten.convolution.default(input=%x, weight=%w, bias=none, stride=[1, 1], \
padding=[1, 1], dilation=[1, 1], transposed=false, output_padding=[0, 0], groups=1)
  %p: f32[1,3,2,2] = aten.max_pool2d.default(self=%c, kernel_size=[3, 3], stride=[2, 2], \
padding=[1, 1])
  return %p
}
"""


def test_accesses_are_counted() -> None:
    graph = parse(CONV, "net")
    sram = Region("sram")
    lowered = problem_of(graph, Layout(sram, Region("flash"), sram))
    found = accessed_bytes(graph, lowered)
    by_name = {b.name: n for b, n in zip(lowered.problem.buffers, found, strict=True)}
    macs = 3 * 4 * 4 * 2 * 3 * 3
    windows = 3 * (2 + 3) * (2 + 3)  # of three positions, of which the first is outside of the image
    assert by_name["x"] == 2 * 16 * 4 + macs * 4
    assert by_name["c"] == 3 * 16 * 4 + windows * 4
    assert by_name["p"] == 2 * 3 * 4 * 4


def accessed(graph: Any, passes: str, target: str = "stm32h743", memories: str = "dtcm,sram") -> Any:
    options = Options(target=target, pipeline=passes, memories=memories, limit=5)
    return plan_graph(graph, {}, options)


@pytest.mark.parametrize("name", ["mobile", "keywords", "autoencoder"])
def test_streams_access_what_their_ops_do(name: str) -> None:
    """Without work done twice the bytes are the same, though they lie in rings."""
    make, shape = NETS[name]
    graph, _ = graph_of(make(), shape)
    layered = accessed(graph, "schedule,allocate")
    streamed = accessed(graph, "stream{when=always,max_mac_factor=1.0,input=whole},schedule,allocate")
    assert any(op.loop and op.loop.stream for op in streamed.graph.ops)
    assert streamed.streamed.mac_factor == 1.0
    total = [
        sum(b.accessed_bytes for b in p.lowered.problem.buffers if b.kind != "weight")
        for p in (layered, streamed)
    ]
    assert total[0] == total[1] > 0


def test_the_hottest_ring_lies_in_the_fast_memory() -> None:
    make, shape = NETS["mobile"]
    graph, _ = graph_of(make(), shape)
    passes = "stream{when=always,max_mac_factor=1.0,input=whole},schedule,allocate"
    planned = accessed(graph, passes, memories="dtcm=1KiB,sram")
    buffers = planned.lowered.problem.buffers
    rings = {p.buffer: p.region for p in planned.plan.placements if buffers[p.buffer].kind == "scratch"}
    assert set(rings.values()) == {"dtcm", "sram"}
    heat = {i: buffers[i].accessed_bytes / buffers[i].size_bytes for i in rings}
    assert rings[max(rings, key=heat.__getitem__)] == "dtcm"
    assert rings[min(rings, key=heat.__getitem__)] == "sram"
    certificate = planned.plan.certificate("assign:sram+dtcm")
    everything = sum(b.accessed_bytes for b in buffers if b.kind != "weight") * 521
    assert certificate.value_bytes < everything


MODEL = """
import torch
from torch import nn


def get_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1),
        nn.Flatten(), nn.Linear(576, 10),
    )


def get_inputs():
    torch.manual_seed(1)
    return torch.randn(1, 1, 16, 16)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memories")
    (path / "net.py").write_text(MODEL)
    memories = ("--memories", "dtcm=7KiB,sram=7KiB")
    options = ("-t", "stm32h743", *memories, "--no-build", "--project", "cmake", "--json")
    done = run_cli("compile", path / "net.py", "--name", "net", "-o", path / "out", *options)
    assert done.code == 0, done.err
    peaks = {name: r["peak_bytes"] for name, r in done.json["regions"].items()}
    assert peaks["sram"] + peaks["dtcm"] >= 4 * 8 * (14 * 14 + 12 * 12) > 7 << 10
    assert set(done.json["memories"]["accessed_bytes"]) == {"sram", "dtcm"}
    return path / "out"


def test_a_plan_in_two_memories_passes_the_check(folder: Path) -> None:
    assert run_cli("check", folder / "plan.json").code == 0
    drawn = run_cli("viz", folder / "plan.json", "--format", "text").out
    assert "sram" in drawn and "dtcm" in drawn


@pytest.mark.parametrize("emulator", ["unicorn", "qemu"])
def test_each_memory_holds_what_the_plan_says(folder: Path, emulator: str) -> None:
    from mplan.ir.plan_json import load_plan

    plan = load_plan(folder / "plan.json")[1].plan
    run = run_bundle(folder, emulator=emulator)  # type: ignore[arg-type]
    assert run.outputs_match
    assert run.memories["dtcm"].written_bytes == plan.peak_bytes("dtcm")
    assert run.memories["sram"].written_bytes >= plan.peak_bytes("sram")
    assert run.arena_touched_bytes == run.arena_bytes == plan.peak_bytes("sram+dtcm")
    if emulator == "qemu":  # unicorn does not see loads
        read = run.memories["dtcm"].read_bytes
        assert read is not None and 0 < read <= plan.peak_bytes("dtcm")


def test_the_image_has_each_area_in_its_memory(folder: Path, tmp_path: Path) -> None:
    from mplan.codegen.bundle import load_manifest
    from mplan.ir.plan_json import load_plan

    plan = load_plan(folder / "plan.json")[1].plan
    firmware = build_bundle(folder, load_manifest(folder), tmp_path, "zig")
    for symbol, region in (("net_arena", "sram"), ("net_dtcm", "dtcm")):
        memory = firmware.memory_of(firmware.symbols[symbol].address)
        assert memory is not None and memory.name == region
        assert firmware.symbols[symbol].size == plan.peak_bytes(region)
    found = measure(folder)
    assert found.memories["dtcm"] == (plan.peak_bytes("dtcm"), 131_072)
    assert found.memories["sram"][0] >= plan.peak_bytes("sram") + firmware.stack_bytes
    assert ".mplan.dtcm (NOLOAD)" in (folder / "link.ld").read_text()
    assert f"NET_DTCM_BYTES {plan.peak_bytes('dtcm')}" in (folder / "net.h").read_text()


def test_one_memory_takes_the_place_of_the_arena(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval(), (torch.randn(1, 64),)
    mplan.compile(model, example, target="stm32h743", memories="dtcm", out=tmp_path, name="net")
    run = run_bundle(tmp_path)
    assert run.outputs_match and run.memories["dtcm"].written_bytes == run.arena_bytes


def test_what_no_memory_can_hold_is_refused_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(
        "import torch\n\ndef get_model():\n    return torch.nn.Linear(512, 512)\n\n"
        "def get_inputs():\n    return torch.ones(1, 512)\n"
    )
    options = ("-t", "stm32h743", "--memories", "sram=2048,dtcm=2000")
    done = run_cli("plan", tmp_path / "wide.py", *options)
    assert done.code == 4 and "MP228" in done.err
    assert "sram (2,048 B) and dtcm (2,000 B): 4,096 B live" in done.err
    assert run_cli("plan", tmp_path / "wide.py", *options[:3], "sram=2048,dtcm").code == 0


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        ({"memories": "dtcm,cache"}, "MP407", "it has flash, sram, dtcm"),
        ({"memories": "dtcm,flash"}, "MP423", "the RAM of stm32h743: sram, dtcm"),
        ({"memories": "dtcm,dtcm"}, "MP423", "named twice"),
        ({"memories": "dtcm=1MiB,sram"}, "MP423", "dtcm has 131,072 B"),
        ({"memories": "dtcm=lots"}, "MP423", "not a number of bytes"),
        ({"memories": "dtcm,sram", "target": "cpu"}, "MP423", "microcontroller"),
        ({"memories": "dtcm,sram", "budget": "dtcm=1KiB"}, "MP423", "all memories together"),
        ({"memories": "dtcm,sram", "minimise": True}, "MP423", "limits all memories together"),
    ],
)
def test_memories_that_make_no_sense_are_refused(given: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_graph(parse(CONV, "net"), {}, Options.parse({"target": "stm32h743", **given}))
    assert caught.value.code == code
    assert text in f"{caught.value.message} {caught.value.help}"


def test_memories_of_unknown_speed_cannot_be_weighed(tmp_path: Path) -> None:
    part = tmp_path / "part.toml"
    part.write_text('inherits = "stm32h743"\n[memory.psram]\nkind = "dram"\nsize_bytes = 65536\n')
    with pytest.raises(UserError, match="speed of psram"):
        plan_graph(parse(CONV, "net"), {}, Options(target=str(part), memories="psram,sram"))


def test_a_problem_has_regions_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "small.csv").write_text("id,lower,upper,size\na,0,3,4\n")
    done = run_cli("plan", tmp_path / "small.csv", "--memories", "dtcm,sram")
    assert done.code == 2 and "MP423" in done.err


def test_place_shares_out_at_the_order_it_is_given() -> None:
    problem, plan = chain()
    placed = place(problem, plan.order, limit_s=5)
    assert placed.certificate("assign:slow+fast") is not None and not check(problem, placed)
