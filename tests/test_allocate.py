"""Allocations pass the checker, proven heights are least, and failures carry their numbers."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.diagnostics import InfeasibleError, ToolError, UserError
from mplan.ir.check import check
from mplan.ir.csv_format import parse_csv
from mplan.ir.dag_format import load_dag
from mplan.ir.plan import Buffer, Plan, Problem, Region, Step
from mplan.passes.allocate import OverBudget, allocate, canonical, packing
from mplan.passes.allocate.columns import columns_of
from mplan.passes.allocate.instance import from_problem
from mplan.passes.live import live_peak
from mplan.passes.planner import baseline, place, solve
from mplan.passes.solvers import cpsat
from mplan.passes.solvers.interface import SOLVERS, Bound, Deadline, Search
from tests.problems import graphs, least_height, live_bytes, rectangles

DATA = Path(__file__).parent / "data"
NAMES = [s.name for s in SOLVERS if s.decision == "allocate"]


def csv(name: str, capacity: int | None = None) -> Problem:
    path = DATA / "minimalloc" / f"{name}.1048576.csv"
    return parse_csv(path.read_text(), Region("arena", capacity), str(path))


def checked(problem: Problem, **options: object) -> Plan:
    """The plan of ``allocate`` alone, which must pass the checker."""
    result = allocate(problem, (), **options)  # type: ignore[arg-type]
    plan = Plan(
        problem.digest,
        (),
        result.placements,
        peaks=((problem.regions[0].name, result.height_bytes),),
        certificates=(result.certificate,),
    )
    assert check(problem, plan) == ()
    return plan


@given(rectangles(), st.sampled_from(NAMES), st.sampled_from((0.0, 0.1)))
@settings(max_examples=120, deadline=None)
def test_every_solver_gives_valid_offsets_and_honest_figures(
    problem: Problem, solver: str, limit_s: float
) -> None:
    plan = checked(problem, solver=solver, limit_s=limit_s)
    (certificate,) = plan.certificates
    least = least_height(problem)
    assert certificate.lower_bound_bytes <= least <= certificate.value_bytes
    assert (certificate.status == "optimal") == (certificate.gap == 0)


@given(rectangles(max_buffers=5, fixed=True))
@settings(max_examples=60, deadline=None)
def test_exact_agrees_with_brute_force(problem: Problem) -> None:
    least = least_height(problem)
    if least is None:
        with pytest.raises(UserError) as caught:
            allocate(problem, ())
        assert caught.value.code == "MP223"
        return
    (certificate,) = checked(problem, solver="exact", limit_s=30).certificates
    assert certificate.value_bytes == least and certificate.status == "optimal"


@given(rectangles())
@settings(max_examples=200, deadline=None)
def test_branch_and_bound_alone_agrees_with_brute_force(problem: Problem) -> None:
    instance = from_problem(problem, (), "arena")
    if not instance.boxes:
        return
    tall = tuple(0 for _ in instance.boxes)
    search = Search(tall, 1000, "start", Bound(instance.live()[0], "live", (0,)))
    canonical.run(instance, search, Deadline(30), 0)
    assert search.value == search.bound.bytes == least_height(problem)
    assert instance.height(search.answer) == search.value


@pytest.mark.parametrize("name", ["A", "C", "E", "G", "I", "J"])
def test_the_challenging_instances_fit_their_capacity(name: str) -> None:
    text = (DATA / "minimalloc" / f"{name}.1048576.csv").read_text()
    problem = parse_csv(text, region=Region("arena", 1048576))
    started = time.monotonic()
    plan = place(problem, (), limit_s=30)
    assert check(problem, plan) == ()
    assert plan.peak_bytes("arena") <= 1048576
    assert time.monotonic() - started < 60


@given(rectangles(fixed=True))
@settings(max_examples=25, deadline=None)
def test_cp_sat_alone_agrees_with_brute_force(problem: Problem) -> None:
    instance = from_problem(problem, (), "arena")
    least = least_height(problem)
    if least is None or not instance.boxes:
        return
    tall = tuple(0 for _ in instance.boxes)
    ends = [b.fixed + b.size for b in instance.boxes if b.fixed is not None]
    low = max([instance.live()[0], *ends])
    search = Search(tall, 1000, "start", Bound(low, "live", (0,)))
    packing.run(instance, search, Deadline(30), 0)
    assert search.value == search.bound.bytes == least


@given(rectangles())
@settings(max_examples=60, deadline=None)
def test_padding_is_a_bound(problem: Problem) -> None:
    instance = from_problem(problem, (), "arena")
    padded, position = instance.padded()
    assert instance.live()[0] <= padded <= least_height(problem)
    common = math.gcd(*(b.alignment for b in instance.boxes)) or 1
    at = [[b.size for b in instance.boxes if b.start <= t < b.end] for t in range(problem.horizon)]
    sums = [sum(a) + sum(-s % common for s in a) - max(-s % common for s in a) for a in at if a]
    assert padded == max(sums, default=0)
    if padded:
        sizes = at[position]
        assert padded == sum(sizes) + sum(-s % common for s in sizes) - max(-s % common for s in sizes)


@given(rectangles())
@settings(max_examples=60, deadline=None)
def test_cliques_and_load(problem: Problem) -> None:
    instance = from_problem(problem, (), "arena")
    at = [
        {i for i, b in enumerate(instance.boxes) if b.start <= t < b.end}
        for t in range(problem.horizon)
    ]
    maximal = {frozenset(a) for a in at if a and not any(a < b for b in at)}
    assert {frozenset(c) for c in instance.cliques()} == maximal
    sums = [sum(instance.boxes[i].size for i in a) for a in at]
    assert instance.live()[0] == max(sums, default=0)
    for b, load in zip(instance.boxes, columns_of(instance).load.tolist(), strict=True):
        assert load == max(sums[b.start : b.end])


@given(graphs(max_steps=7, max_buffers=10), st.sampled_from(("auto", "greedy", "none")))
@settings(max_examples=60, deadline=None)
def test_solved_graphs_are_never_above_the_captured_order(problem: Problem, solver: str) -> None:
    captured = place(problem, range(len(problem.steps)), solver="greedy", limit_s=1)
    plan = solve(problem, solver=solver, limit_s=1)
    region = plan.certificates[0].subject.partition(":")[2]
    if solver != "none":
        assert plan.peak_bytes(region) <= captured.peak_bytes(region)
    assert check(problem, plan) == ()
    assert (
        baseline(problem)
        == max(live_bytes(problem, tuple(range(len(problem.steps))), region), default=0)
        or not problem.steps
    )


@pytest.mark.parametrize("name", ["C", "G"])
def test_minimalloc_instances_are_packed_to_their_bound(name: str) -> None:
    (certificate,) = checked(csv(name, 1_048_576), limit_s=60).certificates
    assert certificate.status == "optimal" and certificate.bound_kind == "live"


@pytest.mark.parametrize("name", ["A", "E", "I", "J"])
def test_without_proof_the_gap_is_stated(name: str) -> None:
    (certificate,) = checked(csv(name), solver="greedy").certificates
    assert certificate.status == "feasible" and 0 < certificate.gap < 0.3


def test_local_search_improves_on_greedy() -> None:
    greedy, hill = (allocate(csv("C"), (), solver=s, limit_s=2, seed=1) for s in ("greedy", "hill"))
    assert hill.height_bytes < greedy.height_bytes


@pytest.mark.parametrize("name", ["hm_darts_cifar_6", "mobilenet_v2", "train_resnet18_b32"])
def test_network_graphs_are_packed_to_their_bound_at_once(name: str) -> None:
    problem = load_dag(DATA / "graphs" / f"{name}.json")
    result = allocate(problem, range(len(problem.steps)), solver="greedy", limit_s=20)
    assert result.certificate.status == "optimal" and result.certificate.seconds < 5


def test_a_known_optimum_end_to_end() -> None:
    plan = solve(load_dag(DATA / "graphs" / "hm_darts_cifar_6.json"), limit_s=60)
    assert plan.status == "optimal" and plan.peak_bytes("arena") == 1_622_016


def test_the_same_seed_gives_the_same_plan() -> None:
    problem = load_dag(DATA / "graphs" / "ind_vgg16_tr_1.json")
    first, second = (solve(problem, solver="greedy", limit_s=60, seed=7) for _ in range(2))
    assert first.digest == second.digest


# ---- capacity ----

TIGHT = Problem(
    "tight",
    (Region("dtcm", 49_152, 16),),
    (
        Buffer("conv", 40_960, ("dtcm",), where="net.py:7"),
        Buffer("relu", 20_480, ("dtcm",)),
        Buffer("out", 16, ("dtcm",), live_out=True),
    ),
    (
        Step("conv2d", (), (0,)),
        Step("relu", (0,), (1,), (0,)),
        Step("mean", (1,), (2,), (1,)),
    ),
)


def test_a_region_that_is_too_small_is_named_with_its_peak() -> None:
    with pytest.raises(InfeasibleError) as caught:
        solve(TIGHT, limit_s=2)
    error = caught.value
    assert isinstance(error, OverBudget)
    assert error.code == "MP221" and error.proven
    assert (error.region, error.needs_bytes, error.capacity_bytes) == ("dtcm", 61_440, 49_152)
    assert error.message == (
        "region dtcm needs at least 61,440 B and has 49,152 B; the peak of 61,440 B is at step 1 "
        "(relu), held by conv (40,960 B), relu (20,480 B)"
    )
    assert error.help == "no order of the steps needs less than 61,440 B: use less memory"
    assert error.notes == (("conv: net.py:7", None),)
    assert solve(replace(TIGHT, regions=(Region("dtcm", 61_440, 16),))).status == "optimal"


def test_a_capacity_may_be_given() -> None:
    assert allocate(TIGHT, (0, 1, 2), capacity_bytes=61_440).height_bytes == 61_440
    with pytest.raises(OverBudget):
        allocate(TIGHT, (0, 1, 2), capacity_bytes=61_439)


def test_not_found_in_time_is_not_proven() -> None:
    with pytest.raises(OverBudget) as caught:
        allocate(csv("E", 1_048_576), (), limit_s=0)
    assert caught.value.code == "MP222" and not caught.value.proven
    assert "best placement found needs" in caught.value.message
    assert caught.value.needs_bytes > 1_048_576


def test_exhaustion_proves_what_the_live_bound_cannot() -> None:
    # Three live bytes at most, but no packing of height 3: alignment leaves a hole.
    buffers = (
        Buffer("a", 1, ("r",), 2, lifetime=(0, 2)),
        Buffer("b", 2, ("r",), 2, lifetime=(0, 2)),
    )
    problem = Problem(
        "holes", (Region("r", 3),), (*buffers, Buffer("c", 1, ("r",), 2, lifetime=(1, 2)))
    )
    with pytest.raises(OverBudget) as caught:
        allocate(problem, ())
    assert caught.value.code == "MP221" and caught.value.needs_bytes >= 4


def test_another_order_saves_a_plan_that_does_not_fit_the_best_one() -> None:
    problem = load_dag(DATA / "graphs" / "hm_darts_cifar_6.json")
    region = Region("arena", 1_700_000)
    plan = solve(replace(problem, regions=(region,)), limit_s=60)
    assert plan.peak_bytes("arena") <= 1_700_000 < live_peak(problem, range(798), "arena")[0]


def test_weights_in_flash_are_packed_exactly() -> None:
    weights = tuple(
        Buffer(f"w{i}", 100 + i, ("flash",), 4, "weight", live_in=True, live_out=True)
        for i in range(40)
    )
    regions = (Region("sram"), Region("flash", None, 4))
    problem = Problem("net", regions, (*weights, Buffer("t", 8, ("sram",))), (Step("s", (0,), (40,)),))
    plan = solve(problem, limit_s=5)
    assert plan.peak_bytes("flash") == sum(-(-b.size_bytes // 4) * 4 for b in weights) - 3
    assert plan.certificate("allocate:flash").bound_kind == "padded" and plan.status == "optimal"
    assert plan.peak_bytes("sram") == 8


# ---- solvers ----


def test_unknown_solver() -> None:
    with pytest.raises(UserError) as caught:
        allocate(TIGHT, (0, 1, 2), solver="exactt")
    assert caught.value.code == "MP220" and "did you mean 'exact'" in caught.value.help
    with pytest.raises(UserError):
        solve(TIGHT, solver="magic")
    roomy = replace(TIGHT, regions=(Region("dtcm"),))
    for name in sorted({s.name for s in SOLVERS}):
        assert check(roomy, solve(roomy, solver=name, limit_s=1)) == ()


def test_a_missing_ortools_is_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(ToolError) as caught:
        cpsat.cp_model()
    assert caught.value.code == "MP225"


def test_ctrl_c_stops_cp_sat_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = from_problem(csv("J"), (), "arena")
    search = Search(tuple(0 for _ in instance.boxes), 10**7, "start", Bound(989_184, "live", (0,)))
    solver = cpsat.cp_model().CpSolver
    solve = solver.solve

    def solve_and_interrupt(*args: object) -> object:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        return solve(*args)

    monkeypatch.setattr(solver, "solve", solve_and_interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        packing.run(instance, search, Deadline(120), 0)
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
