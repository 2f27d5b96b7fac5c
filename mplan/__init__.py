"""mplan: a memory planner and kernel generator for PyTorch.

    import mplan

    result = mplan.plan(model, (example_input,), target="stm32f746")   # a proof-carrying plan
    mplan.compile(model, (example_input,), target="stm32f746", out="build")
    program = mplan.quantize(model, calibration_batches)               # int8, for mplan.compile
    torch.compile(model, backend="mplan", options={"budget": "2GiB"})

The planner alone, without torch:

    problem = mplan.load_problem("dag.json")       # or Problem(name, regions, buffers, steps)
    ordered = mplan.schedule(problem)              # an order, its peak, a bound
    placed = mplan.allocate(problem, ordered.order)    # offsets at that order, their height, a bound
    plan = mplan.solve(problem)                    # both together, checked

Importing this package does not import torch; names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mplan.version import __version__

if TYPE_CHECKING:
    from mplan.capture.pt2e import quantize
    from mplan.compiler import Compiled, Result, pareto, plan
    from mplan.compiler import compile_model as compile
    from mplan.diagnostics import MplanError
    from mplan.ir.check import check
    from mplan.ir.plan import Buffer, Certificate, Plan, PlanFile, Problem, Region, Step
    from mplan.ir.plan_json import load_plan as load
    from mplan.ir.plan_json import save_plan as save
    from mplan.ir.problem_file import load_problem
    from mplan.options import Options
    from mplan.passes.planner import order_steps as schedule
    from mplan.passes.planner import place_buffers as allocate
    from mplan.passes.planner import solve
    from mplan.targets.load import load_target
    from mplan.targets.model import Target

__all__ = [
    "Buffer",
    "Certificate",
    "Compiled",
    "MplanError",
    "Options",
    "Plan",
    "PlanFile",
    "Problem",
    "Region",
    "Result",
    "Step",
    "Target",
    "__version__",
    "allocate",
    "check",
    "compile",
    "load",
    "load_problem",
    "load_target",
    "pareto",
    "plan",
    "quantize",
    "save",
    "schedule",
    "solve",
]

_HOMES = {
    "Buffer": "mplan.ir.plan",
    "Certificate": "mplan.ir.plan",
    "Compiled": "mplan.compiler",
    "MplanError": "mplan.diagnostics",
    "Options": "mplan.options",
    "Plan": "mplan.ir.plan",
    "PlanFile": "mplan.ir.plan",
    "Problem": "mplan.ir.plan",
    "Region": "mplan.ir.plan",
    "Result": "mplan.compiler",
    "Step": "mplan.ir.plan",
    "Target": "mplan.targets.model",
    "allocate": "mplan.passes.planner:place_buffers",
    "check": "mplan.ir.check",
    "compile": "mplan.compiler:compile_model",
    "load": "mplan.ir.plan_json:load_plan",
    "load_problem": "mplan.ir.problem_file",
    "load_target": "mplan.targets.load",
    "pareto": "mplan.compiler",
    "plan": "mplan.compiler",
    "quantize": "mplan.capture.pt2e",
    "save": "mplan.ir.plan_json:save_plan",
    "schedule": "mplan.passes.planner:order_steps",
    "solve": "mplan.passes.planner",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mplan' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
