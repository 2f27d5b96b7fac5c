"""The checker accepts valid plans and names what is wrong with every other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from mplan.codes import CODES
from mplan.ir.check import REASONS, Violation, check, check_file
from mplan.ir.closure import closure as replayed_closure
from mplan.ir.plan import (
    UNSEALED,
    Buffer,
    Certificate,
    Extent,
    Placement,
    Plan,
    PlanFile,
    Problem,
    Region,
    Step,
    Transfer,
    summary,
)
from mplan.ir.plan_json import parse_plan, print_plan
from mplan.passes.planner import solve
from mplan.passes.schedule.bounds import closure
from mplan.passes.schedule.instance import from_problem
from tests.corruptions import corruptions, plan_files
from tests.problems import graphs, rectangles

FILES = list(plan_files())


def read(document: dict[str, Any]) -> PlanFile:
    """The plan file in a document, without its seals."""
    from mplan.ir.decode import decode

    outside = ("schema_version", *UNSEALED)
    return decode(PlanFile, {k: v for k, v in document.items() if k not in outside}, "$")


def test_there_are_twenty_valid_plans_of_all_kinds() -> None:
    assert len(FILES) == 20
    assert [check_file(f.to_json(), f) for f in FILES] == [()] * 20
    assert sum(bool(f.plan.transfers) for f in FILES) == 6
    kinds = {c.bound_kind for f in FILES for c in f.plan.certificates}
    assert kinds >= {"live", "working_set"}


@pytest.mark.parametrize("file", FILES, ids=[f.problem.name for f in FILES])
def test_every_single_field_corruption_is_rejected_with_its_reason(file: PlanFile) -> None:
    document = file.to_json()
    seen: Counter[str] = Counter()
    for corruption in corruptions(file):
        broken = corruption.apply(document, reseal=False)
        found = {v.reason for v in check_file(broken, read(broken))}
        assert "seal" in found, corruption
        # With every digest made to fit, the reason itself must show.
        resealed = corruption.apply(document, reseal=True)
        content = read(resealed)
        resealed["problem_digest"] = content.problem.digest
        resealed["plan_digest"] = content.plan.digest
        resealed |= summary(content.plan)
        found = {v.reason for v in check_file(resealed, content)}
        if corruption.reasons:
            assert found & corruption.reasons, (corruption, found)
        else:
            assert not found, (corruption, found)
        seen.update(found & corruption.reasons)
    assert {"digest", "reference", "lifetime", "alignment", "height", "bound", "problem"} <= set(seen)


def test_all_reasons_have_codes_with_a_text() -> None:
    assert set(REASONS.values()) <= set(CODES)
    assert Violation("overlap", "").code == "MP205"


# ---- single conditions ----

SRAM = Region("sram", 64, 4)
DRAM = Region("dram", None, 4, addressable=False)
FLASH = Region("flash")


def chain(**plan: Any) -> tuple[Problem, Plan]:
    """x → f → y → g → z, with z an output; a plan that is valid unless changed."""
    problem = Problem(
        "chain",
        (SRAM, DRAM, FLASH),
        (
            Buffer("x", 16, ("sram",), 4, live_in=True),
            Buffer("y", 16, ("sram",), 4),
            Buffer("z", 16, ("sram",), 4, live_out=True),
        ),
        (Step("f", (0,), (1,)), Step("g", (1,), (2,), (0,)), Step("h", (0, 2), (2,), (1,))),
    )
    valid = Plan(
        problem.digest,
        (0, 1, 2),
        (Placement(0, "sram", 0, 0, 3), Placement(1, "sram", 16, 0, 2), Placement(2, "sram", 32, 1, 3)),
        peaks=(("sram", 48), ("dram", 0), ("flash", 0)),
    )
    return problem, replace(valid, **plan)


def reasons(problem: Problem, plan: Plan) -> set[str]:
    return {v.reason for v in check(problem, plan)}


def test_the_chain_is_valid() -> None:
    assert check(*chain()) == ()


def test_overlap_names_both_buffers_and_the_bytes() -> None:
    placements = (
        Placement(0, "sram", 0, 0, 3),
        Placement(1, "sram", 8, 0, 2),
        Placement(2, "sram", 32, 1, 3),
    )
    (violation,) = check(*chain(placements=placements))
    assert violation.reason == "overlap"
    assert violation.message == "x and y share bytes [8, 16) of sram at 0"


def test_touching_in_time_or_space_is_no_overlap() -> None:
    problem = Problem(
        "t",
        (Region("r"),),
        (
            Buffer("a", 4, ("r",), lifetime=(0, 2)),
            Buffer("b", 4, ("r",), lifetime=(2, 4)),
            Buffer("c", 4, ("r",), lifetime=(0, 4)),
            Buffer("empty", 9, ("r",), lifetime=(1, 1)),
            Buffer("zero", 0, ("r",), lifetime=(0, 4)),
        ),
    )
    offsets = (0, 0, 4, 2, 2)
    spots = zip(problem.buffers, offsets, strict=True)
    placements = tuple(Placement(i, "r", o, *b.lifetime) for i, (b, o) in enumerate(spots))
    assert check(problem, Plan(problem.digest, (), placements, peaks=(("r", 8),))) == ()


def test_capacity_counts_only_buffers_that_live() -> None:
    problem = Problem("t", (Region("r", 8),), (Buffer("big", 9, ("r",), lifetime=(1, 1)),))
    plan = Plan(problem.digest, (), (Placement(0, "r", 0, 1, 1),))
    assert check(problem, plan) == ()
    problem = replace(problem, buffers=(replace(problem.buffers[0], lifetime=(1, 2)),))
    plan = replace(plan, problem=problem.digest, placements=(Placement(0, "r", 0, 1, 2),))
    assert reasons(problem, plan) == {"capacity", "height"}


def test_fixed_offsets_must_be_kept() -> None:
    problem = Problem("t", (Region("r"),), (Buffer("a", 4, ("r",), lifetime=(0, 1), offset=8),))
    plan = Plan(problem.digest, (), (Placement(0, "r", 4, 0, 1),), peaks=(("r", 8),))
    assert reasons(problem, plan) == {"fixed_offset"}


def test_a_buffer_may_not_lie_in_another_addressable_region() -> None:
    problem, plan = chain()
    moved = (replace(plan.placements[0], region="flash"), *plan.placements[1:])
    assert reasons(problem, replace(plan, placements=moved)) == {
        "region",
        "use_after_eviction",
        "height",
    }


def test_padded_bounds_are_replayed() -> None:
    buffers = tuple(
        Buffer(f"b{i}", size, ("r",), 4, lifetime=(0, 2)) for i, size in enumerate((5, 6, 8))
    )
    problem = Problem("t", (Region("r", None, 2),), buffers)
    placements = (
        Placement(0, "r", 16, 0, 2),
        Placement(1, "r", 8, 0, 2),
        Placement(2, "r", 0, 0, 2),
    )
    for low, valid in ((21, True), (19, False), (24, False), (20, False)):
        certificate = bound("allocate:r", 21, low, "padded", 0)
        plan = Plan(problem.digest, (), placements, peaks=(("r", 21),), certificates=(certificate,))
        assert reasons(problem, plan) == (set() if valid else {"bound"})


def spilled(**plan: Any) -> tuple[Problem, Plan]:
    """The chain with x away in dram during g."""
    problem, valid = chain()
    moved = (
        Placement(0, "sram", 0, 0, 1),
        Placement(0, "dram", 0, 1, 2),
        Placement(0, "sram", 0, 2, 3),
        *valid.placements[1:],
    )
    copies = (Transfer(1, 0, "sram", "dram"), Transfer(2, 0, "dram", "sram"))
    peaks = (("sram", 48), ("dram", 16), ("flash", 0))
    return problem, replace(replace(valid, placements=moved, transfers=copies, peaks=peaks), **plan)


def test_spills_need_their_copies() -> None:
    problem, plan = spilled()
    assert check(problem, plan) == ()
    for k in range(2):
        one = replace(plan, transfers=(plan.transfers[k],))
        assert reasons(problem, one) == {"missing_copy"}


def test_a_stale_copy_must_not_come_back() -> None:
    problem, plan = spilled()
    stays = (
        Placement(0, "sram", 0, 0, 2),
        Placement(0, "dram", 0, 1, 2),
        Placement(0, "sram", 0, 2, 3),
        *plan.placements[3:],
    )
    plan = replace(plan, placements=stays)
    assert check(problem, plan) == ()
    writes = replace(problem.steps[1], writes=(0, 2))
    problem = replace(problem, steps=(problem.steps[0], writes, problem.steps[2]))
    assert reasons(problem, replace(plan, problem=problem.digest)) == {"stale_copy"}


def test_a_use_while_away_is_found() -> None:
    problem, plan = spilled()
    reads = replace(problem.steps[1], reads=(0, 1))
    problem = replace(problem, steps=(problem.steps[0], reads, problem.steps[2]))
    assert reasons(problem, replace(plan, problem=problem.digest)) == {"use_after_eviction"}


def bound(subject: str, value: int, low: int, kind: str, *witness: int) -> Certificate:
    status = "optimal" if value == low else "feasible"
    return Certificate(subject, value, low, kind, status, "hand", witness=witness)


@pytest.mark.parametrize(
    ("certificate", "valid"),
    [
        (bound("schedule:sram", 48, 48, "closure", 1), True),
        (bound("schedule:sram", 48, 32, "closure", 0), True),
        (bound("schedule:sram", 48, 33, "closure", 0), False),
        (bound("schedule:sram", 48, 32, "working_set", 1), True),
        (bound("schedule:sram", 48, 48, "working_set", 1), False),
        (bound("schedule:sram", 48, 16, "boundary"), True),
        (bound("schedule:sram", 48, 16, "boundary", 0), False),
        (bound("schedule:sram", 48, 48, "live", 1), False),
        (bound("schedule:sram", 48, 48, "exhaustive"), True),
        (bound("allocate:sram", 48, 48, "live", 1), True),
        (bound("allocate:sram", 48, 32, "live", 0), True),
        (bound("allocate:sram", 48, 48, "live", 0), False),
        (bound("allocate:sram", 48, 48, "live", 3), False),
        (bound("allocate:sram", 48, 48, "live"), False),
        (bound("allocate:sram", 48, 0, "fixed"), True),
        (bound("allocate:sram", 48, 48, "padded", 1), True),
        (bound("allocate:sram", 48, 48, "padded", 0), False),
        (bound("schedule:sram", 48, 48, "padded", 1), False),
        (bound("schedule:sram", 48, 0, "fixed"), False),
        (bound("allocate:flash", 0, 0, "live", 2), True),
        (bound("place:sram", 48, 48, "live", 1), False),
    ],
)
def test_bounds_are_replayed(certificate: Certificate, valid: bool) -> None:
    found = reasons(*chain(certificates=(certificate,)))
    assert found == (set() if valid else {"bound"})


def test_bounds_over_orders_do_not_hold_for_plans_that_move_buffers() -> None:
    for kind, witness in (("closure", (1,)), ("boundary", ())):
        certificate = bound("schedule:sram", 32, 32 if kind == "closure" else 16, kind, *witness)
        assert reasons(*spilled(certificates=(certificate,))) == {"bound"}
    assert check(*spilled(certificates=(bound("schedule:sram", 32, 32, "working_set", 1),))) == ()


@given(graphs())
@settings(max_examples=80, deadline=None)
def test_the_two_minimum_cuts_agree(problem: Problem) -> None:
    instance = from_problem(problem, "arena")
    home = np.array([b.regions[0] == "arena" for b in problem.buffers], np.bool_)
    for step in range(instance.count):
        assert replayed_closure(problem, step, home) == closure(instance, step)[0]


@pytest.mark.parametrize("answer", [[9, 9], [-1, -1], [3, 4]])
def test_what_is_no_flow_proves_nothing(answer: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two buffers need not be live while the third step runs, so only a wrong flow shows more."""
    from ortools.graph.python import max_flow

    class Wrong(max_flow.SimpleMaxFlow):  # type: ignore[misc]
        def flows(self, arcs: Any) -> Any:
            return np.resize(answer, len(arcs))

    regions = ("r",)
    buffers = [Buffer(name, 4, regions, live_in=name == "a") for name in "ab"]
    buffers.append(Buffer("c", 2, regions, live_in=True, live_out=True))
    steps = (Step("first", (0,), (1,)), Step("second", (1,), (), (0,)), Step("third", (2,), ()))
    problem = Problem("t", (Region("r"),), tuple(buffers), steps)
    home = np.ones(3, np.bool_)
    shown = replayed_closure(problem, 2, home)
    monkeypatch.setattr(max_flow, "SimpleMaxFlow", Wrong)
    assert shown == replayed_closure(problem, 2, home) == 2


def test_a_closure_of_more_bytes_than_a_flow_counts_shows_nothing() -> None:
    huge = Problem(
        "t", (Region("r"),), (Buffer("a", 2**61, ("r",), live_in=True),), (Step("s", (0,), ()),)
    )
    assert replayed_closure(huge, 0, np.ones(1, np.bool_)) == 0


@given(graphs(max_steps=8, max_buffers=10))
@settings(max_examples=60, deadline=None)
def test_solved_graphs_pass(problem: Problem) -> None:
    assert check(problem, solve(problem, limit_s=2)) == ()


@given(rectangles())
@settings(max_examples=60, deadline=None)
def test_solved_rectangles_pass_and_survive_the_file(problem: Problem) -> None:
    file = PlanFile(problem, solve(problem, limit_s=2))
    document, again = parse_plan(print_plan(file))
    assert again == file and check_file(document, again) == ()


def test_lifetimes_beyond_memory_are_no_obstacle() -> None:
    far = 10**17
    problem = Problem("t", (Region("r"),), (Buffer("a", 4, ("r",), lifetime=(far, far + 5)),))
    assert check(problem, solve(problem, limit_s=1)) == ()


@pytest.mark.parametrize("key", ["order", "offsets"])
def test_a_summary_that_differs_from_the_plan_is_rejected(key: str) -> None:
    document = FILES[0].to_json()
    document[key] = {} if key == "offsets" else []
    assert {v.reason for v in check_file(document, FILES[0])} == {"seal"}


# ---- gaps and adjacent buffers ----

LAYOUT = Problem(
    "layout",
    (Region("r", None, 4),),
    (
        Buffer("a", 6, ("r",), lifetime=(0, 6), gaps=(Extent(1, 3), Extent(3, 5, 2, 4))),
        Buffer("b", 6, ("r",), lifetime=(1, 3)),
        Buffer("c", 3, ("r",), lifetime=(5, 6)),
        Buffer("d", 5, ("r",), lifetime=(4, 7)),
    ),
    adjacent=((2, 3),),
)


def layout(*offsets: int) -> Plan:
    places = tuple(
        Placement(i, "r", at, *b.lifetime)
        for i, (at, b) in enumerate(zip(offsets, LAYOUT.buffers, strict=True))
    )
    top = max(at + b.size_bytes for at, b in zip(offsets, LAYOUT.buffers, strict=True))
    return Plan(LAYOUT.digest, (), places, peaks=(("r", top),))


@pytest.mark.parametrize(
    ("offsets", "reasons"),
    [
        ((0, 0, 8, 11), set()),
        ((0, 4, 8, 11), set()),
        ((4, 0, 0, 3), {"overlap"}),
        ((0, 0, 8, 12), {"adjacent"}),
        ((0, 0, 6, 9), {"alignment"}),
        ((0, 2, 8, 11), {"alignment"}),
        ((8, 0, 0, 3), set()),
        ((8, 0, 4, 7), {"overlap"}),
    ],
)
def test_gaps_give_room_and_adjacent_buffers_stay_together(
    offsets: tuple[int, ...], reasons: set[str]
) -> None:
    assert {v.reason for v in check(LAYOUT, layout(*offsets))} == reasons


def test_bounds_count_what_is_held_and_fixed_offsets_move_their_group() -> None:
    plan = layout(0, 0, 8, 11)

    def faults(problem: Problem, kind: str, least: int, *witness: int) -> int:
        fact = Certificate("allocate:r", 16, least, kind, "feasible", "s", witness=witness)
        return len(check(problem, replace(plan, problem=problem.digest, certificates=(fact,))))

    for position, held in enumerate((6, 6, 6, 2, 7, 14, 5)):
        assert faults(LAYOUT, "live", held, position) == 0 < faults(LAYOUT, "live", held + 1, position)
    assert faults(LAYOUT, "padded", 14, 5) == 1
    c = replace(LAYOUT.buffers[2], offset=8)
    fixed = replace(LAYOUT, buffers=(*LAYOUT.buffers[:2], c, LAYOUT.buffers[3]))
    tall = Certificate("allocate:r", 16, 16, "fixed", "optimal", "s")
    assert check(fixed, replace(plan, problem=fixed.digest, certificates=(tall,))) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"adjacent": ((2, 3), (3, 1))},
        {"adjacent": ((2, 4),)},
        {"buffers": (replace(LAYOUT.buffers[0], gaps=(Extent(1, 3), Extent(2, 4))),)},
        {"buffers": (replace(LAYOUT.buffers[0], gaps=(Extent(5, 7),)),)},
        {"buffers": (replace(LAYOUT.buffers[0], gaps=(Extent(1, 2, 3, 7),)),)},
        {"buffers": (replace(LAYOUT.buffers[0], lifetime=None),)},
    ],
)
def test_impossible_gaps_and_groups_are_refused(change: dict[str, Any]) -> None:
    problem = replace(LAYOUT, **change)
    (found,) = {v.reason for v in check(problem, layout(0, 0, 8, 11))}
    assert found == "problem"


def test_adjacent_buffers_share_their_regions() -> None:
    elsewhere = replace(LAYOUT.buffers[3], regions=("s",))
    problem = replace(
        LAYOUT, regions=(Region("r"), Region("s")), buffers=(*LAYOUT.buffers[:3], elsewhere)
    )
    assert [v.reason for v in check(problem, layout(0, 0, 8, 11))] == ["problem"]
