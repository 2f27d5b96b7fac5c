"""Compile what the searches for orders and addresses run, ahead of their first use."""

from __future__ import annotations

import math

from mplan.ir.plan import Buffer, Problem, Region, Step
from mplan.passes.allocate import ejection, skyline
from mplan.passes.allocate.board import Board
from mplan.passes.allocate.columns import columns_of
from mplan.passes.allocate.grid import grid_of
from mplan.passes.allocate.instance import Box, Instance
from mplan.passes.allocate.reduction import Part
from mplan.passes.schedule.downsets import decide
from mplan.passes.schedule.instance import from_problem
from mplan.passes.solvers.interface import Deadline


def prepare() -> None:
    """Load the compiled functions, or compile them, so that no plan has to wait for it."""
    instance = Instance((Box(0, 0, 1, 1),))
    columns = columns_of(instance)
    skyline.place_many(columns, columns.rank(("size",)))
    ejection.Packing(columns, (1,), 0).lower(1, Deadline(math.inf))
    board = Board(grid_of(instance), (0,), Part((0,), 0))
    board.search("FEWEST", False, board.order("size", None), 1, Deadline(math.inf))
    buffers = tuple(Buffer(name, 1, ("arena",)) for name in "ab")
    steps = (Step("a", (), (0,)), Step("b", (), (1,)), Step("c", (0, 1), (), (0, 1)))
    problem = Problem("three", (Region("arena"),), buffers, steps)
    decide(from_problem(problem, "arena"), 2, 10, Deadline(math.inf), compiled=True)
