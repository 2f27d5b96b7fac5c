"""Run OR-tools' CP-SAT under a deadline, deterministically for a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

from mplan.diagnostics import InternalError, ToolError
from mplan.passes.solvers.interface import Deadline

#: Seconds between looks at the deadline, which Ctrl-C may bring forward.
_POLL_S = 0.05

CpStatus = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True, slots=True)
class CpResult:
    """How a model ended: the values of the wanted variables (empty without a solution), and a lower
    bound on the objective (minus infinity if there is none)."""

    status: CpStatus
    values: tuple[int, ...] = ()
    bound: float = -math.inf


def cp_model() -> Any:
    """OR-tools' module ``cp_model``; ToolError MP225 if it cannot be imported."""
    try:
        from ortools.sat.python import cp_model as module
    except ImportError as error:
        raise ToolError("MP225", f"OR-tools cannot be imported: {error}") from error
    return module


def solve(model: Any, wanted: Sequence[Any], deadline: Deadline, seed: int) -> CpResult:
    """Solve ``model`` on one thread; the same seed gives the same search up to the deadline.

    Ctrl-C stops the search early.
    """
    if deadline.expired:
        return CpResult("unknown")
    module = cp_model()
    solver = module.CpSolver()
    parameters = solver.parameters
    limit = deadline.remaining()
    if math.isfinite(limit):
        parameters.max_time_in_seconds = limit
    parameters.random_seed = seed % 2**31
    parameters.num_workers = 1
    parameters.catch_sigint_signal = False
    status = _interruptible(solver, model, deadline)
    if status == module.MODEL_INVALID:
        raise InternalError("MP227", f"CP-SAT rejects the model: {model.validate()}")
    names: dict[Any, CpStatus] = {
        module.OPTIMAL: "optimal",
        module.FEASIBLE: "feasible",
        module.INFEASIBLE: "infeasible",
    }
    name = names.get(status, "unknown")
    values = tuple(solver.value(v) for v in wanted) if name in ("optimal", "feasible") else ()
    return CpResult(name, values, solver.best_objective_bound)


def _interruptible(solver: Any, model: Any, deadline: Deadline) -> Any:
    """The status of ``solver.solve(model)``, run beside this thread so that it can receive Ctrl-C."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(solver.solve, model)
        try:
            while not wait([running], _POLL_S).done:
                if deadline.expired:
                    solver.stop_search()
            return running.result()
        except BaseException:
            solver.stop_search()
            raise
