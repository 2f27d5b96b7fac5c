"""The two things that people ask for: plan a model, and compile it. The command line calls these.

``plan`` takes an ``nn.Module`` (with example inputs), a path (``model.py:fn``, ``.pt2``, ``.tflite``,
``.mpir``, ``.csv``) or a captured graph; ``compile_model`` goes on to write the C project of a
microcontroller.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UnsupportedError, UserError
from mplan.files import read_text
from mplan.ir.graph import Graph, tensor_type
from mplan.ir.ops import graph_macs
from mplan.ir.plan import PlanFile, Problem
from mplan.ir.problem_file import SUFFIXES, load_problem
from mplan.options import Options
from mplan.pipeline import PRODUCER, Instrument, Planned, plan_graph
from mplan.report import Report

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mplan.capture import Captured
    from mplan.frontier import Frontier
    from mplan.targets.model import Target

#: The ending of files that hold a graph in text form.
GRAPH_SUFFIX = ".mpir"


@dataclass(frozen=True, slots=True)
class Result:
    """A plan file with its report; ``planned`` and ``captured`` are absent for bare problems."""

    file: PlanFile
    report: Report
    planned: Planned | None = None
    captured: Captured | None = None


def plan(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Options | None = None,
    instruments: Sequence[Instrument] = (),
    **given: Any,
) -> Result:
    """Plan the memory of ``model``.

    ``model`` is an ``nn.Module`` (``args`` are its example inputs), a ``Captured`` graph, or a path.
    ``given`` are options by name (``target="stm32f746"``, ``budget="64KiB"``). Raises MplanError.
    """
    options = options or Options.parse(given)
    if isinstance(model, (str, Path)) and Path(model).suffix in SUFFIXES:
        return plan_problem(load_problem(Path(model), options.budget), options, str(model))
    if written := _written(model):
        planned = plan_graph(written, {}, options, instruments=instruments)
        return _finish(planned, written, str(model), 0.0)
    started = time.monotonic()
    captured = capture_for(model, args, kwargs, options)
    capture_s = time.monotonic() - started
    planned = plan_graph(captured.graph, captured.constants, options, instruments=instruments)
    name = str(model) if isinstance(model, (str, Path)) else captured.graph.name
    finished = _finish(planned, captured.graph, name, capture_s, captured.notes)
    return replace(finished, captured=captured)


def pareto(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Options | None = None,
    **given: Any,
) -> Frontier:
    """The bytes that ``model`` needs on a microcontroller for more and more work; arguments as ``plan``
    takes them. Raises MplanError."""
    from mplan.frontier import explore

    options = options or Options.parse(given)
    if written := _written(model):
        return explore(written, {}, options)
    captured = capture_for(model, args, kwargs, options)
    return explore(captured.graph, captured.constants, options)


def _written(model: Any) -> Graph | None:
    """The graph that a file holds in text form, if ``model`` is the path of one."""
    if not isinstance(model, (str, Path)) or Path(model).suffix != GRAPH_SUFFIX:
        return None
    from mplan.ir.parser import parse

    return parse(read_text(Path(model)), str(model))


def plan_problem(problem: Problem, options: Options, name: str = "") -> Result:
    """Plan a bare problem (a MiniMalloc CSV or a DAG), without a model.

    With ``options.minimise`` the capacities of its regions do not count.
    """
    from mplan.passes.planner import baseline, solve

    if options.memories:
        message = "memories are for the graphs of models; a problem has its own regions"
        raise UserError("MP423", message, help="leave out memories")
    started = time.monotonic()
    problem = problem.unlimited() if options.minimise else problem
    solved = solve(problem, solver=options.solver, limit_s=options.limit, seed=options.seed)
    seconds = {"capture": 0.0, "plan": time.monotonic() - started, "codegen": 0.0}
    file = PlanFile(problem, solved, PRODUCER, name)
    report = Report.of(file, baseline_peak_bytes=baseline(problem), seconds=seconds)
    return Result(file, report)


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smallest capacity of ``region`` that was found, and a lower bound for every plan."""

    region: str
    capacity_bytes: int
    lower_bound_bytes: int

    @property
    def proven(self) -> bool:
        """Whether no smaller capacity is enough."""
        return self.capacity_bytes <= self.lower_bound_bytes

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this class, and whether it is proven."""
        return {**asdict(self), "proven": self.proven}

    def __str__(self) -> str:
        """One line with the proof or the gap."""
        found = f"smallest capacity of {self.region}: {self.capacity_bytes:,} B"
        if self.proven:
            return f"{found}, proven"
        gap = self.capacity_bytes / self.lower_bound_bytes - 1 if self.lower_bound_bytes else 1.0
        return f"{found}; at least {self.lower_bound_bytes:,} B (gap {gap:.2%})"


def smallest(file: PlanFile) -> Smallest:
    """What the plan of ``file`` says about the capacity of its arena.

    The bound on addresses holds at the plan's order alone: with steps to order, it is the bound on live
    bytes over all orders that counts.
    """
    plan, problem = file.plan, file.problem
    ordered = next((c for c in plan.certificates if c.subject.startswith("schedule:")), None)
    region = ordered.subject.partition(":")[2] if ordered else problem.regions[0].name
    bound = ordered or plan.certificate(f"allocate:{region}")
    return Smallest(region, plan.peak_bytes(region), bound.lower_bound_bytes if bound else 0)


def capture_for(
    model: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: Options
) -> Captured:
    """``model`` as a graph; microcontrollers get core-ATen decompositions, quantised ones integers."""
    import torch

    from mplan import capture
    from mplan.targets.load import load_target

    target = load_target(options.target)
    spec = str(model) if isinstance(model, (str, Path)) else ""
    if spec:
        model, args, kwargs = capture.load_model(spec)
    name, notes = "model", list[str]()
    if isinstance(model, torch.nn.Module):
        name = type(model).__name__
        if args is None:
            raise UserError("MP428", "example inputs are missing", help="pass args=(tensor, …)")
    if options.quantize:
        model = quantized_for(model, args, kwargs, options, spec, notes)
    if isinstance(model, torch.export.ExportedProgram):
        captured = capture.capture_exported(model, target.family == "mcu", name=name)
    elif isinstance(model, capture.Captured):
        captured = model
    else:
        decompose = target.family == "mcu"
        captured = capture.capture(model, tuple(args or ()), dict(kwargs or {}), decompose=decompose)
    captured = replace(captured, notes=(*notes, *captured.notes))
    return _in_integers(captured, target, options) if target.family == "mcu" else captured


def quantized_for(
    model: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: Options,
    spec: str,
    notes: list[str],
) -> ExportedProgram:
    """``model`` quantised with the data that ``options`` name, else its own.

    ``spec`` is the path that the model was loaded from, empty for others.
    """
    from mplan.capture import Captured, load_calibration, quantize
    from mplan.capture.calibration import read_calibration

    if isinstance(model, Captured):
        raise UserError("MP315", "the model is captured already; it cannot be quantised again")
    if args is None and not kwargs:
        args, kwargs = model.example_inputs or ((), {})
    example = tuple(args or ()), dict(kwargs or {})
    if options.calibrate:
        batches: Any = [read_calibration(options.calibrate, example)]
    elif spec and (own := load_calibration(spec)) is not None:
        batches = own
    else:
        batches = [example]
        notes.append("calibrated with the example inputs alone: pass data, or define get_calibration()")
    return quantize(model, batches, *example)


def _in_integers(captured: Captured, target: Target, options: Options) -> Captured:
    """A quantised graph in integers, with the boundary that ``options`` ask for."""
    from mplan.capture.boundary import with_channels_last, with_integer_io
    from mplan.passes.base import Context
    from mplan.passes.lower_quantized import LowerQuantized
    from mplan.pipeline import layout_of

    ctx = Context(layout_of(target), constants=captured.constants)
    graph = LowerQuantized().run(captured.graph, ctx)
    if options.quantize and graph is captured.graph:
        ctx.notes.append("nothing in the model has an integer form: it stays float")
    notes = (*captured.notes, *ctx.notes)
    captured = replace(captured, graph=graph, constants=ctx.constants, notes=notes)
    io = options.io or ("int8" if options.quantize else "float")
    if io == "float":
        return captured
    captured = with_integer_io(captured)
    users = (i.value for i in captured.graph.inputs if i.role == "input")
    floats = [value.name for value in users if tensor_type(value).dtype.is_float]
    if options.io and floats:
        note = f"io={io}: %{', %'.join(floats)} stays float, as nothing quantises it first"
        captured = replace(captured, notes=(*captured.notes, note))
    return with_channels_last(captured) if io == "int8-nhwc" else captured


def _finish(
    planned: Planned, captured: Graph, name: str, capture_s: float, notes: tuple[str, ...] = ()
) -> Result:
    file = planned.file(name)
    macs, before = graph_macs(planned.graph), graph_macs(captured)
    report = Report.of(
        file,
        baseline_peak_bytes=planned.baseline_peak_bytes,
        macs=macs,
        mac_factor=macs / before if before else 1.0,
        seconds={"capture": capture_s, "plan": planned.seconds, "codegen": 0.0},
        flash_bytes=_weights_bytes(planned),
        warnings=(*notes, *planned.notes),
        streamed=planned.streamed,
    )
    return Result(file, report, planned)


def _weights_bytes(planned: Planned) -> int | None:
    if planned.target.family != "mcu":
        return None
    return planned.plan.peak_bytes(planned.target.weights)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A model compiled to C in ``folder``: its plan, report and the files that were written."""

    result: Result
    folder: Path
    files: tuple[str, ...]
    report: Report


def compile_model(
    model: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    name: str = "",
    project: str = "",
    options: Options | None = None,
    instruments: Sequence[Instrument] = (),
    **given: Any,
) -> Compiled:
    """Plan ``model`` for a microcontroller and write its C code to the folder ``out``.

    ``project`` adds a build system (``cmake``, ``zephyr``, ``arduino``, ``platformio``). The folder
    also receives ``plan.json`` and ``golden.safetensors`` (example inputs with PyTorch's outputs),
    which ``mplan run`` uses. All files are written only after everything has succeeded.
    """
    from mplan.codegen.bundle import identifier, write_files
    from mplan.targets.load import load_target

    options = options or Options.parse(given)
    if load_target(options.target).family != "mcu":
        raise UnsupportedError(
            "MP427",
            f"compile writes C for microcontrollers; {options.target} is not one",
            help='use torch.compile(model, backend="mplan") on a CPU or GPU, or see `mplan targets`',
        )
    result = plan(model, args, kwargs, options=options, instruments=instruments)
    started = time.monotonic()
    folder = Path(out)
    files = write_files(folder, _bundle(result, identifier(name or result.file.problem.name), project))
    report = replace(
        result.report,
        seconds={**dict(result.report.seconds), "codegen": time.monotonic() - started},
    )
    return Compiled(result, folder, files, report)


def _bundle(result: Result, name: str, project: str) -> dict[str, str | bytes]:
    """Every file of the folder, by relative path."""
    import safetensors.numpy

    from mplan.codegen import bundle
    from mplan.codegen.c.emit import emit_c
    from mplan.codegen.c.memory import arriving_rows
    from mplan.codegen.c.stream import planned_stages
    from mplan.codegen.project import emit_project
    from mplan.codegen.project.sources import Sources
    from mplan.ir.plan_json import print_plan
    from mplan.targets.load import target_table

    planned, captured = result.planned, result.captured
    assert planned is not None and captured is not None
    outputs = _golden_outputs(planned, captured)
    golden = bundle.golden_tensors(captured.example_inputs, outputs)
    emitted = emit_c(
        planned.graph,
        planned.lowered,
        planned.plan,
        planned.constants,
        name=name,
        target=planned.target,
        golden=golden,
        affines=captured.affines,
    )
    files = emit_project(project, name, planned.target, emitted) if project else emitted
    code = Sources.of(name, emitted).code
    sources = tuple(sorted(f for f in files if PurePosixPath(f).name in code))
    arriving = arriving_rows(planned.graph, planned.lowered)
    held = planned.lowered.buffer_of.keys()
    inputs, returned = bundle.ports(planned.graph, arriving, held, captured.affines)
    arena = sum(n for name, n in planned.plan.peaks if name != planned.target.weights)
    files[bundle.PLAN] = print_plan(result.file)
    files[bundle.GOLDEN] = safetensors.numpy.save(golden)
    manifest = bundle.Manifest(
        name,
        planned.target.name,
        target_table(planned.options.target),
        sources,
        (*files, bundle.MANIFEST),
        inputs,
        returned,
        planned_stages(planned.graph, planned.lowered, planned.plan),
        arena,
        planned.plan.digest,
    )
    files[bundle.MANIFEST] = bundle.manifest_json(manifest)
    return files


def _golden_outputs(planned: Planned, captured: Captured) -> tuple[Any, ...]:
    """What PyTorch computes for the example inputs, op by op on the captured graph."""
    from mplan.ir.interp import run

    supply = iter(captured.example_inputs)
    inputs = {
        i.value.name: captured.constants[i.value.name]
        if i.value.name in captured.constants
        else next(supply)
        for i in captured.graph.inputs
    }
    return run(captured.graph, inputs)
