"""Exact packing by branch and bound over canonical solutions, as an anytime search.

The decision "do the boxes fit under this height" follows Moffitt, "MiniMalloc: A Lightweight Memory
Allocator for Hardware-Accelerated Machine Learning" (ASPLOS 2023): time is cut into sections in which
the same boxes are live, every section has a floor under which nothing more will lie, and a section
whose floor and unplaced boxes exceed the height refutes a partial packing, as does one that has gaps
which no box can fill (Jackson's schedule of one machine, where boxes are jobs and their least offsets
release dates; Carlier, "The One-Machine Sequencing Problem", EJOR 1982). Only canonical packings
are visited, those in which no box can sink; equal boxes are not exchanged; parts that no live box
connects are solved apart. Where MiniMalloc places boxes in order of their offsets over all of time,
this search branches on one section at a time, out of any valley of floors (sections whose neighbours
on both sides have higher floors):

- A box that can still lie at the floor of a valley lives within it, so nothing can come under it. One
  of the boxes that could lie at the floor of the section does, or none of them does.
- If none does, each of them lies on an unplaced box, at the end of one at least: its least offset
  rises, and with it the floors.
- Of all sections the one with the fewest alternatives, the least slack or both is chosen, over its
  failures so far: conflicts are met early and remembered (Boussemart et al., "Boosting Systematic
  Search by Weighting Constraints", ECAI 2004).
- What can still be placed depends on the unplaced boxes of a component and their least offsets alone,
  however it came about: those that failed are remembered, since many ways lead to the same floors.
- When a decision has no alternatives left, decisions since then about other components are undone
  with it: they had no part in the failure.

Attempts of bounded work with several orders of preference, some of them after boxes that fill a valley
from wall to wall or to the height of a wall, follow each other, since the time to a packing is
heavy-tailed (Gomes, Selman and Kautz, "Boosting Combinatorial Search Through Randomization", AAAI
1998); the work allowed grows slowly. Boxes glued to fewer ones (``glue``) are tried before all boxes:
where cuts of a rectangle can be undone, that is what finds a packing. Heights are tried from the lower
bound up, by bisection between what failed and the best packing. An exhausted search raises the bound.
Work, not time, decides the course: a seed leads to the same packings, as far as the time suffices.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from mplan.passes.allocate.board import Board, Verdict
from mplan.passes.allocate.glue import Glued, glue
from mplan.passes.allocate.greedy import Offsets
from mplan.passes.allocate.grid import Grid, grid_of
from mplan.passes.allocate.instance import Instance
from mplan.passes.allocate.reduction import reduce
from mplan.passes.solvers import compiled
from mplan.passes.solvers.interface import Bound, Deadline, Search

#: Glued boxes, and these on their grid.
Guess = tuple[Glued, Grid]

#: Rule of the kernel, whether what fits goes first, and order of preference of each attempt, in turn.
PORTFOLIO = (
    ("FEWEST", "size", False),
    ("FEWEST", "area", True),
    ("TIGHTEST", "size", True),
    ("FEWEST", "lifetime", False),
    ("BOTH", "size", True),
    ("FEWEST", "area", False),
    ("FEWEST", "size", True),
    ("BOTH", "lifetime", False),
    ("FEWEST", "lifetime", True),
    ("FEWEST", "load", True),
)
#: Elementary steps of an attempt in the first round, beside those of about two descents, each of which
#: takes about half a step for every box in every section for every box.
_WORK = 1_000_000
_WORK_PER_TERM = 200
#: In one of so many rounds a height above the goal is tried, too.
_EASIER = 4
_KERNEL = "mplan.passes.allocate.canonical_kernel:search"
#: Larger parts take more memory than the answer is worth, and more boxes too long to reduce.
_MAX_TERMS = 4_000_000
_MAX_BOXES = 12_000
#: In each round after the first, boxes are glued in so many ways, of which each gets so many attempts
#: and leaves at most this fraction of the boxes.
_GUESSES = 20
_ATTEMPTS = 4
_WORTHWHILE = 0.9
#: In the first round heights are told apart to this fraction; in each later one to half of it.
_PRECISION = 1 / 256


def available(deadline: Deadline) -> bool:
    """Whether there is Numba, and time to load or compile the search."""
    return compiled.ready(_KERNEL, deadline)


def run(instance: Instance, search: Search[Offsets], deadline: Deadline, seed: int) -> None:
    """Improve ``search`` until it is closed or time is up; needs Numba.

    While the best answer exceeds ``search.goal``, heights between the two are tried; the first answer
    that meets the goal ends the search, and so does a proof that there is none.
    """
    if len(instance.boxes) > _MAX_BOXES:
        return
    met, number = search.met, 0
    grid = grid_of(instance)
    search.raise_bound(Bound(grid.above(search.bound.bytes - 1), "exhaustive"))
    while not (search.closed or search.hopeless or deadline.expired) and search.met == met:
        guesses = _guesses(grid, deadline, seed, number)
        attempt = partial(_attempt, grid, guesses, search, deadline, seed, number)
        verdict = (
            _improve(grid, search, attempt, number) if met else _pursue(grid, search, attempt, number)
        )
        if verdict == "too large":
            return
        number = number + 1


def _pursue(
    grid: Grid, search: Search[Offsets], attempt: Callable[[int], Verdict], number: int
) -> Verdict:
    """Try the goal, and at times the middle between it and the best, which shows what is enough."""
    goal = grid.below(search.goal or 0)
    verdict = attempt(goal)
    if verdict == "unknown" and number % _EASIER == 0:
        attempt(max(grid.below((goal + search.value) // 2), grid.above(goal)))
    return verdict


def _improve(
    grid: Grid, search: Search[Offsets], attempt: Callable[[int], Verdict], number: int
) -> Verdict:
    """Try the bound, then bisect between what failed and the best, down to the round's precision."""
    height, verdict = search.bound.bytes, attempt(search.bound.bytes)
    failed = height - 1
    while verdict != "too large":
        if verdict != "found":
            failed = max(height, search.bound.bytes - 1)
        height = max(grid.below((failed + search.value) // 2), grid.above(failed))
        if height >= search.value or search.value - failed <= search.value * _PRECISION * 0.5**number:
            break
        verdict = attempt(height)
    return verdict


def _guesses(grid: Grid, deadline: Deadline, seed: int, number: int) -> tuple[Guess, ...]:
    """Fewer boxes to try before those of ``grid``: one guess in the first round, later many by chance.

    Where gluing leaves nearly all boxes, there are none.
    """
    guesses: list[Guess] = []
    for k in range(_GUESSES if number else 1):
        glued = glue(grid.instance, random.Random(f"{seed} {number} {k}") if number else None)
        if deadline.expired or len(glued.made_of) > len(grid.boxes) * _WORTHWHILE:
            break
        guesses.append((glued, grid_of(glued.instance)))
    return tuple(guesses)


def _attempt(
    grid: Grid,
    guesses: Sequence[Guess],
    search: Search[Offsets],
    deadline: Deadline,
    seed: int,
    number: int,
    height: int,
) -> Verdict:
    """Decide a height under the best one; keeps what is found and what is proven.

    What is found for a guess is a packing of all boxes; that there is none says nothing.
    """
    if height >= search.value or deadline.expired:
        return "unknown"
    for glued, small in guesses:
        verdict, offsets = decide(small, height, deadline, seed, number, PORTFOLIO[:_ATTEMPTS])
        if verdict == "found":
            whole = glued.expand(offsets)
            search.offer(whole, grid.instance.height(whole), "canonical")
            return verdict
    verdict, offsets = decide(grid, height, deadline, seed, number)
    if verdict == "found":
        search.offer(offsets, grid.instance.height(offsets), "canonical")
    elif verdict == "infeasible":
        search.raise_bound(Bound(grid.above(height), "exhaustive"))
    return verdict


def decide(
    grid: Grid,
    height: int,
    deadline: Deadline,
    seed: int = 0,
    number: int = 0,
    portfolio: Sequence[tuple[str, str, bool]] = PORTFOLIO,
) -> tuple[Verdict, Offsets]:
    """Whether the boxes fit under ``height`` bytes, and where.

    ``portfolio`` holds rows of ``PORTFOLIO``; the work grows with ``number``.
    """
    last = grid.last(height)
    reduction = reduce(grid, last)
    if any(offset > last[i] for i, offset in reduction.offsets.items()):
        return "infeasible", ()
    found: dict[int, int] = {}
    for part in reduction.parts:
        board = Board(grid, last, part)
        verdict = _search(board, deadline, seed, number, portfolio)
        if verdict != "found":
            return verdict, ()
        found.update(board.offsets)
    return "found", reduction.complete(found)


def luby(turn: int) -> int:
    """Term ``turn``, from 1 on, of 1, 1, 2, 1, 1, 2, 4, ...: what restarts should take if nobody knows
    better (Luby, Sinclair and Zuckerman, "Optimal Speedup of Las Vegas Algorithms", 1993)."""
    top = turn.bit_length()
    return 1 << (top - 1) if turn == (1 << top) - 1 else luby(turn - (1 << (top - 1)) + 1)


def _search(
    board: Board,
    deadline: Deadline,
    seed: int,
    number: int,
    portfolio: Sequence[tuple[str, str, bool]],
) -> Verdict:
    """Run ``portfolio`` until an attempt has an answer.

    From the second round on the orders have noise. In longer rounds the first attempt has as much
    work as all others together: to prove that there is nothing takes one long search, to find
    something many short ones.
    """
    if board.terms > _MAX_TERMS:
        return "too large"
    descents = board.terms * (_WORK_PER_TERM + len(board.life))
    term = luby(number + 1)
    for turn, (rule, preference, fitting) in enumerate(portfolio):
        if deadline.expired:
            break
        noise = random.Random(f"{seed} {number} {turn}") if number else None
        work = term * (_WORK + descents) * (len(portfolio) if term > 1 and not turn else 1)
        verdict = board.search(rule, fitting, board.order(preference, noise), work, deadline)
        if verdict != "unknown":
            return verdict
    return "unknown"
