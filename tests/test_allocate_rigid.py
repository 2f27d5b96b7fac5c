"""Gaps inside lifetimes and adjacent buffers: placements agree with brute force and check."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.diagnostics import UserError
from mplan.ir.check import check
from mplan.ir.csv_format import parse_csv, print_csv
from mplan.ir.dag_format import parse_dag
from mplan.ir.plan import Buffer, Extent, Plan, Problem, Region
from mplan.passes.allocate import Allocated, OverBudget, allocate, chains
from mplan.passes.planner import solve
from tests.problems import least_rigid_height, rigid


def checked(problem: Problem, **options: object) -> Allocated:
    """What ``allocate`` finds, which must pass the checker."""
    result = allocate(problem, (), **options)  # type: ignore[arg-type]
    peaks = ((problem.regions[0].name, result.height_bytes),)
    plan = Plan(problem.digest, (), result.placements, (), peaks, (result.certificate,))
    assert check(problem, plan) == ()
    return result


def agrees(problem: Problem, solver: str = "exact") -> None:
    """The solver's height is the least, and a contradiction is one."""
    least = least_rigid_height(problem)
    if least is None:
        with pytest.raises(UserError) as caught:
            allocate(problem, (), solver=solver)
        assert caught.value.code == "MP223"
        return
    result = checked(problem, solver=solver, limit_s=30)
    certificate = result.certificate
    assert certificate.lower_bound_bytes <= least <= result.height_bytes
    if solver == "exact":
        assert (result.height_bytes, certificate.status) == (least, "optimal")


@given(rigid())
@settings(max_examples=150, deadline=None)
def test_exact_agrees_with_brute_force(problem: Problem) -> None:
    agrees(problem)


@given(rigid(), st.sampled_from(("none", "greedy", "hill")))
@settings(max_examples=60, deadline=None)
def test_every_solver_gives_valid_offsets_and_honest_figures(problem: Problem, solver: str) -> None:
    least = least_rigid_height(problem)
    if least is None:
        return
    result = checked(problem, solver=solver, limit_s=0.05)
    assert result.certificate.lower_bound_bytes <= least <= result.height_bytes


def problem_of(*buffers: Buffer, alignment: int = 1, adjacent: tuple[int, ...] = ()) -> Problem:
    return Problem("p", (Region("r", None, alignment),), buffers, adjacent=(adjacent,) * bool(adjacent))


def box(name: str, size: int, start: int, end: int, *gaps: Extent, align: int = 1) -> Buffer:
    return Buffer(name, size, ("r",), align, lifetime=(start, end), gaps=gaps)


def test_another_buffer_lies_in_a_gap() -> None:
    long = box("long", 8, 0, 9, Extent(2, 4), Extent(5, 6, 0, 3))
    result = checked(problem_of(long, box("a", 8, 2, 4), box("b", 5, 5, 6)))
    assert result.height_bytes == 8 == result.certificate.lower_bound_bytes
    assert [p.offset for p in result.placements] == [0, 0, 3]


def test_what_is_concatenated_lies_in_one_piece() -> None:
    # x and y live long before z does, and w must not stand between them.
    parts = (box("x", 4, 0, 9), box("w", 6, 0, 3), box("y", 4, 2, 9), box("z", 4, 5, 9))
    result = checked(problem_of(*parts, adjacent=(0, 2, 3)))
    x, _, y, z = (p.offset for p in result.placements)
    assert (y, z) == (x + 4, x + 8) and result.height_bytes == 14
    apart = checked(problem_of(*parts))
    assert apart.height_bytes == 14 and apart.certificate.status == "optimal"


def test_the_alignment_of_the_region_holds_for_the_first_of_a_group() -> None:
    parts = (box("x", 6, 0, 2), box("y", 5, 0, 2), box("z", 3, 0, 2))
    group = problem_of(*parts, alignment=16, adjacent=(1, 0, 2))
    assert [p.offset for p in checked(group).placements] == [5, 0, 11]
    own = (parts[0], replace(parts[1], alignment=4), parts[2])
    shifted = checked(problem_of(*own, alignment=2, adjacent=(0, 1, 2)))
    assert [p.offset for p in shifted.placements] == [2, 8, 13]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"alignment": 4}, "no address suits the alignment of y"),
        ({"offset": 0}, {"offset": 7}, "do not follow from one another"),
        ({"offset": 2}, {}, "fixed at 2, alignment 4"),
        ({}, {"offset": 3}, "fixed at -3, alignment 4"),
    ],
)
def test_contradictions_in_a_group_are_named(
    first: dict[str, int], second: dict[str, int], message: str
) -> None:
    x, y = replace(box("x", 6, 0, 2), **first), replace(box("y", 5, 0, 2), **second)
    with pytest.raises(UserError) as caught:
        allocate(problem_of(x, y, alignment=4, adjacent=(0, 1)), ())
    assert caught.value.code == "MP223" and message in caught.value.message
    assert "x, y" in caught.value.message


def test_fixed_buffers_may_share_bytes_across_a_gap() -> None:
    long = replace(box("long", 8, 0, 9, Extent(2, 4)), offset=0)
    guest = replace(box("guest", 4, 2, 4), offset=4)
    assert checked(problem_of(long, guest)).height_bytes == 8
    with pytest.raises(UserError) as caught:
        allocate(problem_of(long, replace(guest, lifetime=(2, 5))), ())
    assert "guest and long" in caught.value.message and "[4, 8)" in caught.value.message


def test_buffers_that_never_hold_anything_keep_their_place_in_a_group() -> None:
    parts = (box("x", 6, 0, 2), box("never", 5, 1, 1), box("z", 3, 0, 2), box("w", 3, 3, 3))
    result = checked(problem_of(*parts, adjacent=(0, 1, 2)))
    assert [p.offset for p in result.placements] == [0, 6, 11, 0]
    idle = checked(problem_of(*parts, adjacent=(1, 3)))
    assert [p.offset for p in idle.placements][1::2] == [0, 5]


def test_residues_of_alignments() -> None:
    buffers = (box("a", 3, 0, 1, align=4), box("b", 5, 0, 1, align=7), box("c", 1, 0, 1, align=5))
    (chain,) = chains.chains_of(problem_of(*buffers, adjacent=(0, 1, 2)), "r")
    assert chain.alignment == 140 and chain.fixed is None
    starts = [b for b in range(140) if b % 4 == 0 and (b + 3) % 7 == 0 and (b + 8) % 5 == 0]
    assert [place for _, place in chain.places] == [starts[0], starts[0] + 3, starts[0] + 8]


def test_a_hint_is_a_start() -> None:
    text = "id,lower,upper,size,hint\na,0,2,4,4\nb,0,3,4,0\nc,2,4,4,4\nd,3,5,4,0\n"
    problem = parse_csv(text)
    plan = solve(problem, solver="none")
    assert [p.offset for p in plan.placements] == [4, 0, 4, 0]
    assert "hint" in print_csv(problem, plan).splitlines()[0]


def test_adjacent_tensors_of_a_dag_are_planned() -> None:
    nodes = '[{"name": "a", "op": "", "ins": [], "outs": [0]}, {"name": "b", "op": "", "ins": [], '
    nodes += '"outs": [1]}, {"name": "c", "op": "cat", "ins": [1, 0], "outs": [2]}]'
    tensors = '[{"size": 8, "prod": 0, "cons": [2]}, {"size": 6, "prod": 1, "cons": [2]}, '
    tensors += '{"size": 4, "prod": 2, "cons": [], "kind": "output"}]'
    text = f'{{"name": "cat", "nodes": {nodes}, "tensors": {tensors}, "adjacent": [[1, 0]]}}'
    plan = solve(parse_dag(text))
    offset = {p.buffer: p.offset for p in plan.placements}
    assert offset[0] == offset[1] + 6 and plan.status == "optimal"


# ---- more constraints, more time ----


def constrained(problem: Problem, rng: random.Random) -> list[Problem]:
    """The problem with one constraint more, of each kind.

    A group frees those behind its first from the region's alignment, and the size of one decides where
    the next begins: neither is a constraint only.
    """
    buffers = problem.buffers
    at = rng.randrange(len(buffers))
    b = buffers[at]
    extra = replace(rng.choice(buffers), name="extra", offset=None)

    def instead(**changes: object) -> Problem:
        return replace(problem, buffers=(*buffers[:at], replace(b, **changes), *buffers[at + 1 :]))

    found = [
        instead(gaps=()),
        instead(alignment=b.alignment * 2),
        replace(problem, buffers=(*buffers, extra)),
    ]
    if not any(at in group[:-1] for group in problem.adjacent):
        found.append(instead(size_bytes=b.size_bytes + 1))
    if b.offset is None:
        found.append(instead(offset=b.alignment * 2 * rng.randrange(4)))
    free = [i for i in range(len(buffers)) if not any(i in group for group in problem.adjacent)]
    if len(free) > 1:
        pair = tuple(rng.sample(free, 2))
        if buffers[pair[0]].size_bytes % problem.regions[0].alignment == 0:
            found.append(replace(problem, adjacent=(*problem.adjacent, pair)))
    return found


@given(rigid(max_buffers=4).filter(lambda p: p.buffers), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_another_constraint_never_lowers_the_optimum(problem: Problem, seed: int) -> None:
    try:
        least = checked(problem, solver="exact", limit_s=30).height_bytes
    except UserError:
        return
    for harder in constrained(problem, random.Random(seed)):
        try:
            result = checked(harder, solver="exact", limit_s=30)
        except UserError as error:
            assert error.code == "MP223"
            continue
        assert result.certificate.status == "optimal" and result.height_bytes >= least
    with pytest.raises(OverBudget) as caught:
        allocate(problem, (), capacity_bytes=least - 1, limit_s=30)
    assert caught.value.proven
    assert allocate(problem, (), capacity_bytes=least, limit_s=30).height_bytes == least
