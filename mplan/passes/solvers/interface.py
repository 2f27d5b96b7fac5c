"""The anytime interface of the solvers, their registry and their one vocabulary.

A solver is a function ``run(instance, search, deadline, seed) -> None``: it improves ``search`` (best
answer and bound so far) until it has a proof, has nothing more to try, or the deadline expires.
Whatever stops it, ``search`` holds a valid answer. The registry declares what each solver can do;
reading it imports neither the solvers nor OR-tools.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import lcm
from typing import Any, Generic, Literal, TypeVar

from mplan.diagnostics import UserError
from mplan.ir.check import check_problem
from mplan.ir.plan import Certificate, Problem
from mplan.passes.solvers.interrupt import stopped

Answer = TypeVar("Answer")
Decision = Literal["schedule", "allocate"]
Run = Callable[[Any, Any, "Deadline", int], None]

#: Sums of buffer sizes must stay exact in 64-bit solvers, with room for sums of sums.
MAX_TOTAL_BYTES = 2**60


class Deadline:
    """A point on the monotonic clock, ``limit_s`` seconds from its creation (infinity: never).

    Ctrl-C inside ``graceful`` brings it forward to now.
    """

    __slots__ = ("_end",)

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + max(limit_s, 0.0)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return 0.0 if stopped() else max(self._end - time.monotonic(), 0.0)

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return stopped() or time.monotonic() >= self._end

    def within(self, limit_s: float) -> Deadline:
        """The earlier of this deadline and one ``limit_s`` seconds from now."""
        return Deadline(min(limit_s, self.remaining()))

    def at_least(self, limit_s: float) -> Deadline:
        """The later of this deadline and one ``limit_s`` seconds from now."""
        return Deadline(max(limit_s, self.remaining()))

    @classmethod
    def before_last(cls, seconds: float, limit_s: float) -> Deadline:
        """A deadline that leaves the last ``seconds`` of a limit, at most half of it, unused."""
        return cls(limit_s - min(seconds, limit_s / 2))

    def share(self, fraction: float) -> Deadline:
        """A deadline after ``fraction`` of the remaining time."""
        remaining = self.remaining()
        return Deadline(remaining * fraction if math.isfinite(remaining) else remaining)


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven lower bound: ``kind`` and ``witness`` as in ``Certificate``."""

    bytes: int
    kind: str
    witness: tuple[int, ...] = ()


class Search(Generic[Answer]):
    """The best answer and the best bound so far, both in bytes.

    ``goal`` is a value that the answer must not exceed to be of use; None asks for the least.
    """

    def __init__(
        self, answer: Answer, value: int, solver: str, bound: Bound, goal: int | None = None
    ) -> None:
        self.answer = answer
        self.value = value
        self.solver = solver
        self.bound = bound
        self.goal = goal

    @property
    def closed(self) -> bool:
        """Whether the answer is proven optimal."""
        return self.bound.bytes >= self.value

    @property
    def met(self) -> bool:
        """Whether the answer meets the goal."""
        return self.goal is None or self.value <= self.goal

    @property
    def hopeless(self) -> bool:
        """Whether it is proven that no answer meets the goal."""
        return self.goal is not None and self.bound.bytes > self.goal

    def offer(self, answer: Answer, value: int, solver: str) -> bool:
        """Take ``answer`` if it is strictly better; whether it was."""
        if value >= self.value:
            return False
        self.answer, self.value, self.solver = answer, value, solver
        return True

    def raise_bound(self, bound: Bound) -> None:
        """Take ``bound`` if it is strictly higher."""
        if bound.bytes > self.bound.bytes:
            self.bound = bound

    def certificate(self, subject: str, seed: int, seconds: float) -> Certificate:
        """The certificate of the present answer."""
        return Certificate(
            subject=subject,
            value_bytes=self.value,
            lower_bound_bytes=self.bound.bytes,
            bound_kind=self.bound.kind,
            status="optimal" if self.closed else "feasible",
            solver=self.solver,
            seed=seed,
            seconds=round(seconds, 6),
            witness=self.bound.witness,
        )


@dataclass(frozen=True, slots=True)
class Solver:
    """A row of the registry.

    ``entry`` is ``module:function``; ``proves`` says whether it can raise the bound to the optimum;
    ``parts`` are the solvers that a composite one runs in turn until the answer is proven.
    """

    decision: Decision
    name: str
    summary: str
    entry: str = ""
    proves: bool = False
    parts: tuple[str, ...] = ()

    def load(self) -> Run:
        """The function behind ``entry``; imports its module."""
        module, _, function = self.entry.partition(":")
        run: Run = getattr(import_module(module), function)
        return run


_SCHEDULE = "mplan.passes.schedule"
_ALLOCATE = "mplan.passes.allocate"

SOLVERS = (
    Solver("schedule", "none", "keep the captured order"),
    Solver(
        "schedule",
        "greedy",
        "memory-aware list scheduling, forward and backward",
        entry=f"{_SCHEDULE}.greedy:run",
    ),
    Solver(
        "schedule",
        "cuts",
        "nested minimum cuts",
        entry=f"{_SCHEDULE}.cuts:run",
        parts=("greedy", "cuts"),
    ),
    Solver(
        "schedule",
        "windows",
        "solve the steps around the peak anew, window by window",
        entry=f"{_SCHEDULE}.windows:run",
        parts=("greedy", "cuts", "windows"),
    ),
    Solver(
        "schedule",
        "exact",
        "search over downsets between bound and best",
        entry=f"{_SCHEDULE}.exact:run",
        proves=True,
        parts=("greedy", "cuts", "windows", "exact"),
    ),
    Solver(
        "schedule",
        "auto",
        "all of them, cheapest first, until proven or out of time",
        proves=True,
        parts=("greedy", "cuts", "windows", "exact"),
    ),
    Solver("allocate", "none", "first fit in order of birth"),
    Solver(
        "allocate",
        "greedy",
        "the lowest place first (skyline), then gaps, over a portfolio of priorities",
        entry=f"{_ALLOCATE}.portfolio:run",
    ),
    Solver(
        "allocate",
        "hill",
        "local search over placement orders",
        entry=f"{_ALLOCATE}.hill:run",
        parts=("greedy", "hill"),
    ),
    Solver(
        "allocate",
        "ejection",
        "the box that ends highest goes lower and ejects others, again and again",
        entry=f"{_ALLOCATE}.ejection:run",
        parts=("greedy", "ejection"),
    ),
    Solver(
        "allocate",
        "exact",
        "ejection if boxes are many, branch and bound over canonical packings, CP-SAT, local search",
        entry=f"{_ALLOCATE}.exact:run",
        proves=True,
        parts=("greedy", "exact"),
    ),
    Solver(
        "allocate",
        "auto",
        "greedy, then exact until proven or out of time",
        proves=True,
        parts=("greedy", "exact"),
    ),
)


def find_solver(decision: Decision, name: str) -> Solver:
    """The solver of ``decision`` called ``name``; UserError MP220 with the accepted names if none."""
    rows = {s.name: s for s in SOLVERS if s.decision == decision}
    if name in rows:
        return rows[name]
    close = difflib.get_close_matches(name, rows, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    help = f"{hint}accepted: {', '.join(rows)}"
    raise UserError("MP220", f"no {decision} solver is called {name!r}", help=help)


def run_solver(
    solver: Solver, instance: Any, search: Search[Any], deadline: Deadline, seed: int
) -> None:
    """Run ``solver`` (its parts in turn) on ``search`` until it is closed or out of time.

    The first part always runs, so that a deadline of 0 still yields more than the start answer.
    """
    by_name = {s.name: s for s in SOLVERS if s.decision == solver.decision}
    parts = [by_name[p] for p in solver.parts] or ([solver] if solver.entry else [])
    for rank, part in enumerate(parts):
        if search.closed or (rank and deadline.expired):
            return
        part.load()(instance, search, deadline, seed)


def guard(problem: Problem) -> None:
    """UserError MP215 if ``problem`` is malformed, MP226 if addresses may exceed the solvers' integers:
    all sizes, each rounded up to the common alignment, above the highest fixed offset."""
    faults = check_problem(problem)
    if faults:
        notes = tuple((v.message, None) for v in faults[1:])
        raise UserError("MP215", f"{problem.name or 'the problem'}: {faults[0].message}", notes=notes)
    columns = problem.columns
    total_bytes = int(columns.size.sum())
    if total_bytes >= MAX_TOTAL_BYTES:
        message = f"the buffers add up to {total_bytes:,} B, the solvers count to {MAX_TOTAL_BYTES:,} B"
        raise UserError("MP226", message, help="give the sizes in a larger unit")
    common = lcm(*set(columns.alignment.tolist()), *(r.alignment for r in problem.regions))
    highest = total_bytes + len(columns.size) * common + max(columns.offsets.values(), default=0)
    if highest >= MAX_TOTAL_BYTES:
        message = "with alignments and fixed offsets the buffers may reach"
        message = f"{message} {highest:,} B, the solvers count to {MAX_TOTAL_BYTES:,} B"
        help = f"the alignments' common multiple is {common:,}: give smaller ones, or smaller offsets"
        raise UserError("MP226", message, help=help)
