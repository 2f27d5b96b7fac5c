"""The ``torch.compile`` backend: ``torch.compile(model, backend="mplan", options={"budget": "2GiB"})``.

Dynamo's graphs go through AOTAutograd without decompositions, so the kernels are eager's own; each
resulting graph (inference, forward, backward) is planned and runs in its arena. Sizes that Dynamo
keeps symbolic are planned for their upper bound; where the user gave none, for the largest size seen
so far, and planned anew when a larger one comes.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.graph import Graph
from mplan.ir.types import Symbol
from mplan.options import Options
from mplan.pipeline import Planned, plan_graph
from mplan.runtime.program import Fallback, Program
from mplan.targets.load import load_target

if TYPE_CHECKING:
    from mplan.capture import Captured

log = logging.getLogger(__name__)

#: Upper bounds from here on mean that nobody bounded the size.
_UNBOUNDED = 1 << 40
_COMPILED: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What became of one graph: its plan, the ops outside the arena, unforeseen requests so far."""

    name: str
    role: str
    peak_bytes: int
    lower_bound_bytes: int
    status: str
    fallbacks: tuple[Fallback, ...]
    misses: int
    calls: int
    digest: str
    notes: tuple[str, ...]


@dataclass(eq=False)
class CompiledGraph:
    """One graph of AOTAutograd, planned and callable with a list of inputs that it empties."""

    captured: Captured
    role: str
    options: Options
    program: Program | None = None
    planned: Planned | None = None
    highs: dict[str, int] = field(default_factory=dict)
    _boxed_call: bool = True

    def __post_init__(self) -> None:
        self.prepare({})
        _COMPILED.add(self)

    def prepare(self, values: Mapping[str, int]) -> Program:
        """The program for sizes up to ``values``; planned anew if they exceed the present plan."""
        grown = {k: v for k, v in values.items() if v > self.highs.get(k, v)}
        if self.program is None or grown:
            from torch.utils._python_dispatch import _disable_current_modes

            graph = self._bounded(grown)
            with _disable_current_modes():  # passes compute with constants, which must not be fake
                self.planned = plan_graph(graph, self.captured.constants, self.options)
            planned = self.planned
            self.program = Program(planned.graph, planned.lowered, planned.plan, planned.target)
            _publish(self)
        return self.program

    def _bounded(self, grown: Mapping[str, int]) -> Graph:
        """The graph with an upper bound for every symbol: its own, or twice what was exceeded."""
        graph = self.captured.graph
        seen = _symbol_values(graph, self.captured.example_inputs)
        symbols = []
        for s in graph.symbols:
            if s.high >= _UNBOUNDED:
                asked = 2 * grown[s.name] if s.name in grown else self.highs.get(s.name)
                self.highs[s.name] = asked or max(seen.get(s.name, 0), s.low, 1)
                s = Symbol(s.name, s.low, self.highs[s.name])
            symbols.append(s)
        return replace(graph, symbols=tuple(symbols))

    def __call__(self, args: list[Any]) -> list[Any]:
        """Run the graph once."""
        own = [args[i] for i in self.captured.input_leaves]
        args.clear()
        values = _symbol_values(self.captured.graph, own) if self.highs else {}
        program = self.prepare(values)
        constants = self.captured.constants
        if not constants:
            return program(own)
        supply = iter(own)
        inputs = (i.value.name for i in program.graph.inputs)
        return program([constants[n] if n in constants else next(supply) for n in inputs])

    def report(self) -> GraphReport:
        """What became of this graph."""
        assert self.program is not None and self.planned is not None
        plan = self.planned.plan
        bounds = [c.lower_bound_bytes for c in plan.certificates]
        return GraphReport(
            self.captured.graph.name,
            self.role,
            self.program.arena_bytes,
            max(bounds, default=0),
            plan.status,
            self.program.fallbacks,
            self.program.misses,
            self.program.calls,
            plan.digest,
            self.planned.notes,
        )


def mplan(
    gm: Any,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph.

    ``options``: ``target``, ``budget``, ``minimise``, ``solver``, ``limit``, ``seed``, ``pipeline``,
    ``dump``; unknown keys raise UserError MP422 with a suggestion, those for microcontrollers MP421 or
    MP423. There are no modes.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import default_partition

    if mode not in (None, "default"):
        raise UserError("MP422", f"mplan has no mode {mode!r}", help="use options={…}")
    parsed = Options.parse(options or {})
    if load_target(parsed.target).family == "mcu":
        raise UnsupportedError(
            "MP427",
            f"{parsed.target} is a microcontroller; torch.compile runs on this machine",
            help="compile for it with `mplan compile` or mplan.compile(…)",
        )
    if parsed.quantize or parsed.io:
        message = "torch.compile runs a model as it is; quantize and io are for microcontrollers"
        raise UserError("MP423", message, help="see mplan.quantize(…) and mplan.compile(…)")
    chosen = "target" in (options or {})
    compiler = aot_autograd(
        fw_compiler=_compiler("forward", parsed, chosen),
        bw_compiler=_compiler("backward", parsed, chosen),
        inference_compiler=_compiler("inference", parsed, chosen),
        partition_fn=default_partition,
        keep_inference_input_mutations=True,
    )
    compiled: Callable[..., Any] = compiler(gm, example_inputs)
    return compiled


def reports() -> tuple[GraphReport, ...]:
    """A report for every graph that this process has compiled and still holds."""
    return tuple(sorted((g.report() for g in _COMPILED), key=lambda r: (r.name, r.role)))


def _compiler(
    role: str, options: Options, chosen: bool
) -> Callable[[Any, Sequence[Any]], CompiledGraph]:
    def compile_graph(gm: Any, example_inputs: Sequence[Any]) -> CompiledGraph:
        from mplan.capture import capture_fx

        captured = capture_fx(gm, example_inputs, name=role, unbounded=_UNBOUNDED)
        fitted = options if chosen else _for_device(options, example_inputs)
        return CompiledGraph(captured, role, fitted)

    return compile_graph


def _for_device(options: Options, inputs: Sequence[Any]) -> Options:
    """``options`` with the target that the inputs lie on, if that is a GPU."""
    devices = [x.device for x in inputs if hasattr(x, "device")]
    gpu = next((d for d in devices if d.type == "cuda"), None)
    other = next((d for d in devices if d.type not in ("cpu", "cuda")), None)
    if other is not None:
        help = "run on a CPU or a CUDA or ROCm GPU"
        raise UnsupportedError("MP430", f"mplan has no target for {other.type} devices", help=help)
    if gpu is None:
        return options
    import torch

    memory = torch.cuda.get_device_properties(gpu).total_memory
    budget = memory if options.budget is None else min(memory, options.budget)
    return replace(options, target=_gpu_name(gpu), budget=budget)


def _gpu_name(device: Any) -> str:
    """The GPU target nearest to ``device``."""
    import torch

    if torch.version.hip:
        return "mi300x"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "a100"
    return "h200" if "H200" in torch.cuda.get_device_name(device) else "h100"


def _symbol_values(graph: Graph, inputs: Sequence[Any]) -> dict[str, int]:
    """The symbols' values that the inputs show (SymInts count with their hints)."""
    values: dict[str, int] = {}
    free = [i for i in graph.inputs if i.role in ("input", "symbol")]
    for item, given in zip(free, inputs, strict=True):
        sizes = getattr(item.value.type, "shape", None)
        if sizes is None:
            values.setdefault(item.source, _integer(given))
            continue
        for size, actual in zip(sizes, given.shape, strict=True):
            if not isinstance(size, int) and size.text.isidentifier():
                values.setdefault(size.text, _integer(actual))
    return values


def _integer(size: Any) -> int:
    node = getattr(size, "node", None)
    return int(node.hint if node is not None else size)


def _publish(graph: CompiledGraph) -> None:
    """Put the plan into the log and into TORCH_TRACE."""
    from torch._logging._internal import trace_structured

    report, planned = graph.report(), graph.planned
    assert planned is not None
    log.info("%s: %s B planned, %s", report.name, f"{report.peak_bytes:,}", report.status)
    for fallback in report.fallbacks:
        log.info("outside the arena: %s (%s): %s", fallback.op, fallback.where, fallback.reason)
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"mplan_{report.role}_plan", "encoding": "json"},
        payload_fn=lambda: json.dumps(planned.file(report.name).to_json()),
    )
