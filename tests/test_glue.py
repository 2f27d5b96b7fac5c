"""Boxes glued together: what packs the few packs them all, and full packings are found so."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from mplan.passes.allocate import canonical
from mplan.passes.allocate.canonical import decide
from mplan.passes.allocate.glue import glue
from mplan.passes.allocate.greedy import order_by, pack
from mplan.passes.allocate.grid import grid_of
from mplan.passes.allocate.instance import Box, Instance
from mplan.passes.solvers.interface import Bound, Deadline, Search
from tests.problems import least_height
from tests.test_allocate_canonical import CAPACITY, NEVER, assert_fits, boxes, instance_of, tiny

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from planner_packings import KINDS, packing


def test_the_cuts_of_a_rectangle_are_undone() -> None:
    instance = boxes((0, 4, 3), (4, 9, 8), (0, 2, 5), (2, 4, 5))
    glued = glue(instance)
    assert [(b.start, b.end, b.size) for b in glued.instance.boxes] == [(0, 9, 8)]
    assert_fits(instance, glued.expand((0,)), 8)


@pytest.mark.parametrize("block", range(4))
def test_what_packs_the_few_packs_all(block: int) -> None:
    fewer = 0
    for seed in range(100 * block, 100 * block + 100):
        problem = tiny(seed)
        if least_height(problem) is None:
            continue
        instance = instance_of(problem)
        glued = glue(instance, random.Random(seed) if seed % 2 else None)
        small = glued.instance
        offsets = pack(small, order_by(small, lambda b: (-b.size,)), best_fit=False)
        assert_fits(instance, glued.expand(offsets), small.height(offsets))
        fewer += len(small.boxes) < len(instance.boxes)
    assert fewer >= 20


def test_alignment_and_fixed_offsets_are_kept() -> None:
    instance = boxes((0, 1, 100, 64), (0, 1, 64, 64), (0, 1, 5), (1, 2, 200, 64))
    glued = glue(instance)
    assert [(b.start, b.end, b.size, b.alignment) for b in glued.instance.boxes] == [
        (0, 1, 5, 1),
        (1, 2, 200, 64),
        (0, 1, 164, 64),
    ]
    assert glued.expand((200, 0, 0)) == (64, 0, 200, 0)
    fixed = Instance((Box(0, 0, 1, 4, fixed=4), Box(1, 0, 1, 4), Box(2, 1, 2, 4, fixed=8)))
    assert glue(fixed).instance == fixed


def test_chance_leads_to_other_pairs_and_a_seed_to_the_same() -> None:
    instance = instance_of(packing("E", 0))
    first, again, other = (glue(instance, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("kind", ["A", "C", "E", "dense_E"])
def test_few_of_the_pieces_of_a_rectangle_are_left(kind: str) -> None:
    for seed in range(5):
        assert len(glue(instance_of(packing(kind, seed))).made_of) < KINDS[kind].count / 3


@pytest.mark.parametrize("seed", [1, 3])
def test_a_guess_finds_what_the_search_does_not_in_the_same_round(seed: int) -> None:
    instance = instance_of(packing("dense_E", seed))
    assert decide(grid_of(instance), CAPACITY, NEVER)[0] == "unknown"
    glued = glue(instance)
    verdict, offsets = decide(grid_of(glued.instance), CAPACITY, NEVER)
    assert verdict == "found"
    assert_fits(instance, glued.expand(offsets), CAPACITY)


def test_a_wrong_guess_proves_nothing() -> None:
    # The two of one lifetime lie below and above the fixed one, and not on each other.
    instance = Instance((Box(0, 0, 4, 4, fixed=2), Box(1, 1, 3, 2), Box(2, 1, 3, 2)))
    glued = glue(instance)
    assert len(glued.made_of) == 2
    assert decide(grid_of(glued.instance), 8, NEVER)[0] == "infeasible"
    search = Search((0, 0, 0), 100, "none", Bound(0, "live"), goal=8)
    canonical.run(instance, search, NEVER, 0)
    assert search.value == 8 and search.bound.bytes <= 8
    assert_fits(instance, search.answer, 8)


def test_boxes_that_do_not_match_are_not_glued() -> None:
    instance = boxes(*((t, t + 3, 5 + t) for t in range(12)))
    grid = grid_of(instance)
    assert canonical._guesses(grid, NEVER, 0, 0) == canonical._guesses(grid, NEVER, 0, 3) == ()
    alike = grid_of(boxes(*((t, t + 1, 5) for t in range(12))))
    assert len(canonical._guesses(alike, NEVER, 0, 0)) == 1
    assert len(canonical._guesses(alike, NEVER, 0, 3)) == canonical._GUESSES
    assert canonical._guesses(alike, Deadline(0), 0, 3) == ()
