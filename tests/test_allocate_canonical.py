"""The branch and bound for addresses: right for every height, in time, the same for a seed."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mplan.diagnostics import InfeasibleError
from mplan.ir.check import check
from mplan.ir.csv_format import parse_csv
from mplan.ir.dag_format import load_dag
from mplan.ir.plan import Buffer, Plan, Problem, Region
from mplan.passes.allocate import Allocated, allocate, canonical
from mplan.passes.allocate.board import Board
from mplan.passes.allocate.canonical import decide
from mplan.passes.allocate.greedy import Offsets, order_by, pack
from mplan.passes.allocate.grid import grid_of
from mplan.passes.allocate.instance import Box, Instance, from_problem
from mplan.passes.allocate.reduction import Part, reduce
from mplan.passes.solvers.interface import Bound, Deadline, Search
from tests.problems import least_height

DATA = Path(__file__).parent / "data"
CAPACITY = 1_048_576
NEVER = Deadline(math.inf)


def csv(name: str, capacity: int | None = None) -> Problem:
    path = DATA / "minimalloc" / f"{name}.{CAPACITY}.csv"
    return parse_csv(path.read_text(), Region("arena", capacity), str(path))


def instance_of(problem: Problem) -> Instance:
    return from_problem(problem, range(len(problem.steps)), "arena")


def start(instance: Instance, goal: int | None = None) -> Search[Offsets]:
    """A search that knows the first fit and the live bytes."""
    live, position = instance.live()
    first = pack(instance, order_by(instance, lambda b: (b.start,)), best_fit=False)
    return Search(first, instance.height(first), "first-fit", Bound(live, "live", (position,)), goal)


def assert_fits(instance: Instance, offsets: Offsets, height: int) -> None:
    """No overlap, every alignment and fixed offset kept, nothing above ``height``: by definition."""
    boxes = list(zip(instance.boxes, offsets, strict=True))
    for b, at in boxes:
        assert at % b.alignment == 0 and 0 <= at <= height - b.size and b.fixed in (None, at)
        for c, low in boxes:
            if c is not b and b.start < c.end and c.start < b.end:
                assert at + b.size <= low or low + c.size <= at


def assert_checks(problem: Problem, result: Allocated) -> None:
    peaks = (("arena", result.height_bytes),)
    order = tuple(range(len(problem.steps)))
    certificates = (result.certificate,)
    plan = Plan(problem.digest, order, result.placements, peaks=peaks, certificates=certificates)
    assert check(problem, plan) == ()


def tiny(seed: int, most: int = 7) -> Problem:
    """A few buffers, some alike: unaligned, of one alignment, of several, or with fixed offsets."""
    rng = random.Random(seed)
    kind, common = rng.choice(("plain", "common", "mixed", "fixed")), rng.choice((2, 3, 4))
    buffers: list[Buffer] = []
    for i in range(rng.randint(1, most)):
        begin = rng.randint(0, 5)
        size, lifetime = rng.randint(1, 9), (begin, begin + rng.randint(1, 4))
        if buffers and rng.random() < 0.25:
            size, lifetime = buffers[-1].size_bytes, buffers[-1].lifetime or lifetime
        own = {"plain": 1, "common": common, "mixed": rng.choice((1, 2, 3, 4)), "fixed": 2}[kind]
        at = 4 * rng.randint(0, 4) if kind == "fixed" and rng.random() < 0.3 else None
        buffers.append(Buffer(f"b{i}", size, ("arena",), own, lifetime=lifetime, offset=at))
    return Problem(f"tiny{seed}", (Region("arena"),), tuple(buffers))


# ---- what is found and what is proven ----


@pytest.mark.parametrize("block", range(5))
def test_every_height_is_decided_as_by_brute_force(block: int) -> None:
    proofs = 0
    for seed in range(60 * block, 60 * block + 60):
        problem = tiny(seed)
        instance, least = instance_of(problem), least_height(problem)
        if least is None:
            continue
        grid = grid_of(instance)
        assert grid.below(least) == least == grid.above(least - 1)
        for height in (least - 2, least - 1, least, least + 1):
            verdict, offsets = decide(grid, height, NEVER, seed)
            assert verdict == ("found" if height >= least else "infeasible"), (seed, height)
            if offsets:
                assert_fits(instance, offsets, height)
            proofs += verdict == "infeasible"
    assert proofs >= 90


@pytest.mark.parametrize("rule", ["FEWEST", "TIGHTEST", "BOTH"])
@pytest.mark.parametrize("fitting", [False, True])
@pytest.mark.parametrize("preference", ["size", "area", "lifetime", "load"])
def test_the_search_is_right_without_reductions(rule: str, fitting: bool, preference: str) -> None:
    for seed in range(1000, 1040):
        problem = tiny(seed, most=6)
        instance, least = instance_of(problem), least_height(problem)
        if least is None:
            continue
        grid = grid_of(instance)
        for height in (least - 1, least):
            board = Board(grid, grid.last(height), Part(tuple(range(len(instance.boxes))), 0))
            order = board.order(preference, random.Random(seed))
            verdict = board.search(rule, fitting, order, 10**9, NEVER)
            assert verdict == ("found" if height == least else "infeasible"), (seed, height)
            if verdict == "found":
                found = [board.offsets[i] * grid.unit for i in range(len(instance.boxes))]
                assert_fits(instance, tuple(found), height)


def test_plans_of_tiny_problems_are_optimal_and_check() -> None:
    for seed in range(2000, 2200):
        problem = tiny(seed, most=6)
        least = least_height(problem)
        if least is None:
            continue
        result = allocate(problem, (), solver="exact", limit_s=60)
        assert_checks(problem, result)
        assert (result.height_bytes, result.certificate.status) == (least, "optimal"), seed


@pytest.mark.parametrize("name", "ACEGIJ")
def test_the_minimalloc_instances_fit_their_capacity(name: str) -> None:
    problem = csv(name, CAPACITY)
    result = allocate(problem, (), limit_s=30)
    assert_checks(problem, result)
    assert result.certificate.solver == "canonical" or name in "CG"
    assert result.certificate.status == ("optimal" if name != "J" else "feasible")


@pytest.mark.parametrize("name", ["ind_vgg16_tr_1", "ind_vit_tr_1"])
def test_training_graphs_are_packed_to_the_live_bytes(name: str) -> None:
    problem = load_dag(DATA / "graphs" / f"{name}.json")
    instance = instance_of(problem)
    search = start(instance)
    canonical.run(instance, search, Deadline(60), 0)
    assert search.value == instance.live()[0] and search.bound.kind == "live"
    assert_fits(instance, search.answer, search.value)


def test_an_exhausted_search_raises_the_bound() -> None:
    raised = 0
    for seed in range(2000, 2100):
        problem = tiny(seed)
        instance, least = instance_of(problem), least_height(problem)
        if least is None or any(b.fixed is not None for b in instance.boxes):
            continue
        search = start(instance)
        canonical.run(instance, search, NEVER, 0)
        assert search.closed and search.bound.bytes == least
        raised += search.bound.kind == "exhaustive" and least > instance.padded()[0]
    assert raised >= 5


# ---- reductions ----


def boxes(*rows: tuple[int, ...]) -> Instance:
    """Boxes of (start, end, size[, alignment])."""
    return Instance(tuple(Box(i, *row) for i, row in enumerate(rows)))


def test_boxes_that_always_find_room_are_set_aside_and_come_back() -> None:
    instance = boxes((0, 4, 10), (0, 2, 10), (2, 4, 9), (5, 6, 3), (1, 3, 1))
    grid = grid_of(instance)
    reduction = reduce(grid, grid.last(21))
    assert 3 in reduction.aside and all(3 not in p.boxes for p in reduction.parts)
    verdict, offsets = decide(grid, 21, NEVER)
    assert verdict == "found"
    assert_fits(instance, offsets, 21)


def test_the_longest_box_lies_at_the_bottom_and_the_rest_falls_apart() -> None:
    instance = boxes((0, 9, 5), (0, 4, 7), (1, 4, 6), (5, 9, 7), (6, 9, 6))
    reduction = reduce(grid_of(instance), grid_of(instance).last(18))
    assert reduction.offsets[0] == 0
    assert {p.base for p in reduction.parts} <= {5, 12}
    assert decide(grid_of(instance), 17, NEVER)[0] == "infeasible"


def test_only_the_box_on_top_keeps_what_rounding_adds() -> None:
    instance = boxes((0, 1, 60, 64), (0, 1, 100, 64))
    grid = grid_of(instance)
    assert (grid.unit, grid.sizes) == (64, (1, 2))
    assert [grid.below(h) for h in (163, 164, 187, 188)] == [124, 164, 164, 188]
    assert decide(grid, 163, NEVER)[0] == "infeasible"
    assert decide(grid, 164, NEVER) == ("found", (0, 64))
    wide = boxes((0, 2, 60, 64), (0, 1, 100, 64), (1, 2, 64, 64))
    assert decide(grid_of(wide), 164, NEVER)[0] == "found"


def test_a_box_may_rest_on_one_that_rests_on_another() -> None:
    # The second box lies on the fixed one at 0 and carries the first, which the fixed one never meets.
    ground, lid = Box(2, 3, 4, 1, fixed=0), Box(3, 3, 6, 1, fixed=8)
    instance = Instance((Box(0, 1, 3, 6), Box(1, 2, 4, 5), ground, lid))
    grid = grid_of(instance)
    board = Board(grid, grid.last(12), Part((0, 1, 2, 3), 0))
    for rule in ("FEWEST", "TIGHTEST", "BOTH"):
        assert board.search(rule, False, board.order("size", None), 10**6, NEVER) == "found"
        assert [board.offsets[i] for i in range(4)] == [6, 1, 0, 8]


#: Eight boxes that miss the height of 40 by their alignment, which takes 16,031 steps to prove.
STUCK = (
    *((1, 4, 2), (3, 5, 5, 4), (0, 2, 9, 4), (0, 2, 8), (0, 3, 7, 4), (1, 2, 8), (0, 2, 6)),
    (2, 4, 2, 4),
)


def verdict(instance: Instance, height: int, work: int) -> str:
    """What the search alone says after ``work`` steps."""
    grid = grid_of(instance)
    board = Board(grid, grid.last(height), Part(tuple(range(len(instance.boxes))), 0))
    return board.search("FEWEST", False, board.order("size", None), work, NEVER)


def test_a_failure_is_not_blamed_on_other_components() -> None:
    # Twelve pairs elsewhere in time, of which each fits in many ways.
    loose = [row for t in range(100, 220, 10) for row in ((t, t + 2, 13), (t + 1, t + 3, 10))]
    assert verdict(boxes(*STUCK, *loose), 40, 25_000) == "infeasible"


def test_what_failed_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(boxes(*STUCK), 40, 25_000) == "infeasible"
    monkeypatch.setattr("mplan.passes.allocate.board._NOGOODS", 1)
    assert verdict(boxes(*STUCK), 40, 25_000) == "unknown"
    assert verdict(boxes(*STUCK), 40, 100_000) == "infeasible"


def test_a_gap_that_nothing_fills_counts_as_full() -> None:
    # In the middle live 90 units; all but ten, of the smallest boxes, lie above a wall of 25 or of 30,
    # so a height of 104 is too little by one. To see it from the floors alone takes 3,160 steps.
    walls = (Box(0, 0, 1, 25, fixed=0), Box(1, 2, 3, 30, fixed=0))
    left = [Box(2 + k, 0, 2, 6 + k) for k in range(5)]
    right = [Box(7 + k, 1, 3, 6 + k) for k in range(5)]
    small = [Box(12 + k, 1, 2, 1 + k) for k in range(4)]
    instance = Instance((*walls, *left, *right, *small))
    assert verdict(instance, 104, 1_000) == "infeasible"
    assert verdict(instance, 105, 2_000) == "found"


# ---- time, chance and what is missing ----


def test_a_goal_is_met_first_and_lower_packings_get_a_fifth_of_the_time() -> None:
    allocate(csv("C"), (), limit_s=60)
    started = time.monotonic()
    result = allocate(csv("J"), (), limit_s=20, capacity_bytes=CAPACITY)
    assert result.height_bytes <= CAPACITY and result.certificate.status == "feasible"
    assert time.monotonic() - started < 12


def test_what_is_tried_while_the_goal_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def unknown(_: object, height: int, *__: object) -> tuple[str, Offsets]:
        tried.append(height)
        return "unknown", ()

    monkeypatch.setattr(canonical, "decide", unknown)
    monkeypatch.setattr(canonical, "_guesses", lambda *_: ())
    instance = instance_of(csv("J"))
    search = start(instance, goal=CAPACITY + 1)
    canonical.run(instance, search, Deadline(0.2), 0)
    middle = (CAPACITY + search.value) // 2 // 1024 * 1024
    assert tried[:6] == [CAPACITY, middle, *[CAPACITY] * 4] and tried[6] == middle
    tried.clear()
    search.goal = None
    canonical.run(instance, search, Deadline(0.2), 0)
    assert tried[0] == search.bound.bytes < tried[1] < tried[2] < search.value
    assert tried[1] - tried[0] >= search.value - tried[1] >= search.value - tried[2]


def test_a_goal_below_the_optimum_is_refuted() -> None:
    instance = boxes((0, 2, 1, 2), (0, 2, 2, 2), (1, 2, 1, 2), (0, 1, 1, 2))
    search = start(instance, goal=4)
    canonical.run(instance, search, NEVER, 0)
    assert search.hopeless and not search.met and search.bound.bytes == 5
    problem = csv("C", 1_039_359)
    with pytest.raises(InfeasibleError) as caught:
        allocate(problem, ())
    assert caught.value.code == "MP221"


@pytest.mark.parametrize("limit_s", [0.5, 3.0])
def test_the_deadline_is_kept(limit_s: float) -> None:
    instance = instance_of(csv("J"))
    canonical.run(instance, start(instance), Deadline(0.1), 0)
    search = start(instance)
    started = time.process_time()
    canonical.run(instance, search, Deadline(limit_s), 0)
    assert time.process_time() - started < 1.1 * limit_s + 0.1
    assert not search.closed
    assert_fits(instance, search.answer, search.value)


def test_more_time_never_hurts_and_the_answer_is_near_the_bound() -> None:
    instance = instance_of(csv("J"))
    search = start(instance)
    before = search.value
    canonical.run(instance, search, Deadline(3), 0)
    assert search.value < 1.08 * search.bound.bytes < before


def test_restarts_follow_the_sequence_of_luby() -> None:
    terms = [canonical.luby(turn) for turn in range(1, 16)]
    assert terms == [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]


def test_a_seed_decides_the_course() -> None:
    grid = grid_of(instance_of(csv("A")))
    first, again, other = (decide(grid, CAPACITY, NEVER, seed, number=3) for seed in (7, 7, 8))
    assert first[0] == other[0] == "found" and first == again != other
    digests = {allocate(csv("E"), (), limit_s=60, seed=3).placements for _ in range(2)}
    assert len(digests) == 1


def test_what_is_too_large_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical, "_MAX_TERMS", 5)
    instance = instance_of(csv("A"))
    search = start(instance)
    started = time.monotonic()
    canonical.run(instance, search, Deadline(60), 0)
    assert search.solver == "first-fit" and time.monotonic() - started < 10


def test_without_numba_cp_sat_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mplan.passes.allocate.canonical_kernel", raising=False)
    monkeypatch.delattr("mplan.passes.allocate.canonical_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not canonical.available(Deadline(60))
    problem = tiny(2003)
    result = allocate(problem, (), solver="exact", limit_s=60)
    assert result.height_bytes == least_height(problem)
    assert_checks(problem, result)


def python(code: str, cache: Path) -> None:
    """Run ``code`` with the search at hand in a process of its own and Numba's cache in ``cache``."""
    names = (
        "import sys, time; from mplan.passes.allocate import allocate, canonical; "
        "from mplan.passes.solvers.interface import Deadline; "
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", names + code], check=True, timeout=120, env=environment)


@pytest.mark.slow
def test_little_time_is_not_spent_on_loading_or_compiling(tmp_path: Path) -> None:
    python(
        "assert not canonical.available(Deadline(0.5)); assert 'numba' not in sys.modules; "
        "assert not canonical.available(Deadline(5)); assert canonical.available(Deadline(60)); "
        "from mplan.passes.prepare import prepare; prepare(); "
        "assert canonical.available(Deadline(0.5))",
        tmp_path,
    )
    python(
        "assert not canonical.available(Deadline(0.5)); assert canonical.available(Deadline(5)); "
        "from mplan.passes.prepare import prepare; prepare(); "
        "from mplan.passes.allocate.canonical_kernel import search; "
        "assert not search.stats.cache_misses",
        tmp_path,
    )


def test_a_short_limit_is_kept_without_compiled_code(tmp_path: Path) -> None:
    path = DATA / "minimalloc" / f"J.{CAPACITY}.csv"
    python(
        "import ortools.sat.python.cp_model, numpy; from pathlib import Path; "
        "from mplan.ir.csv_format import parse_csv; "
        f"problem = parse_csv(Path({str(path)!r}).read_text()); "
        "started = time.process_time(); allocate(problem, (), limit_s=2.0); "
        "assert time.process_time() - started < 2.2 + 0.5",
        tmp_path,
    )


# ---- more time, and Ctrl-C ----


@pytest.mark.parametrize("name", ["A", "C", "J"])
def test_more_time_never_gives_a_worse_height(name: str) -> None:
    problem = csv(name)
    heights = [allocate(problem, (), limit_s=limit).height_bytes for limit in (0.0, 5.0)]
    assert heights[1] < heights[0]


def test_ctrl_c_returns_the_best_so_far() -> None:
    problem = csv("J")
    allocate(problem, (), limit_s=2)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        result = allocate(problem, (), limit_s=120)
    finally:
        timer.cancel()
    assert time.monotonic() - started < 60
    assert result.certificate.status == "feasible"
    assert_checks(problem, result)
