"""From a captured graph to a checked plan: pipelines are data, a run is instrumented.

``PIPELINES`` names the passes for each family of targets. ``plan_graph`` runs one and returns the
planned graph with its plan; the verifier runs between all passes and the checker at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mplan.diagnostics import UserError
from mplan.files import make_folder, write_atomic
from mplan.ir.geometry import Spatial
from mplan.ir.graph import Graph, Op
from mplan.ir.plan import Plan, PlanFile, Region
from mplan.ir.storage import Layout, Lowered
from mplan.ir.verify import verify
from mplan.options import Options, parse_bytes
from mplan.passes.base import Context, Pass, Streamed
from mplan.passes.memories import together
from mplan.passes.registry import parse_pipeline, print_pass, print_pipeline
from mplan.passes.solvers.interrupt import graceful
from mplan.targets.load import load_target
from mplan.targets.model import Target
from mplan.version import __version__

PIPELINES = {
    "cpu": "canonicalize,fuse_attention,inplace,profile_scratch,schedule,allocate",
    "gpu": "canonicalize,fuse_attention,inplace,schedule,allocate",
    "mcu": (
        "canonicalize,lower_quantized,fold_padding,fold_zero_points,bound_sums,pair_weights,"
        "fold_batch_norm,fuse_attention,drop_unused,stream{when=needed,compare=true},inplace,schedule,"
        "allocate,tile_pixels"
    ),
}
PRODUCER = f"mplan {__version__}"
#: Bytes that kernels load from weights at once.
_WORD = 4


class Instrument(Protocol):
    """Watches a run: called after every pass with its time in seconds."""

    def after(self, pass_: Pass, graph: Graph, seconds: float) -> None:
        """``graph`` is what ``pass_`` returned."""


@dataclass
class Dump:
    """Saves the graph after every pass as ``NN-pass.mpir``, with a header that says who made it."""

    folder: Path
    count: int = 0

    def after(self, pass_: Pass, graph: Graph, seconds: float) -> None:
        """Write one file."""
        header = f"// after {print_pass(pass_)} ({seconds:.3f} s), {PRODUCER}\n"
        path = make_folder(self.folder) / f"{self.count:02d}-{pass_.name}.mpir"
        write_atomic(path, f"{header}{graph}\n")
        self.count += 1


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned graph: ops in schedule order, the problem, the plan, and how it was made.

    ``constants`` maps param, buffer and const inputs to tensors (passes may have folded some).
    ``baseline_peak_bytes`` is the peak of live bytes in the captured order; ``streamed`` what was made
    of ops with rows, if anything.
    """

    graph: Graph
    lowered: Lowered
    plan: Plan
    constants: Mapping[str, Any]
    target: Target
    options: Options
    baseline_peak_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    streamed: Streamed | None = None

    def file(self, model: str = "") -> PlanFile:
        """The plan file of this plan."""
        return PlanFile(self.lowered.problem, self.plan, PRODUCER, model, self.target.name)


def layout_of(
    target: Target, budget: int | None = None, *, unlimited: bool = False, memories: str = ""
) -> Layout:
    """Where a graph lives on ``target``.

    A microcontroller has its weights in flash, at multiples of a word, and the user's inputs in the
    arena; elsewhere both belong to the caller. ``budget`` lowers the arena's capacity; an ``unlimited``
    one has none. ``memories`` (``dtcm=64KiB,sram``) names what takes the place of the target's arena;
    the budget is then that of all of them together.
    """
    named = _memories(target, memories) if memories else ()
    arena = together(named) if len(named) > 1 else (*named, target.arena_memory.region())[0]
    if unlimited:
        arena = replace(arena, capacity_bytes=None)
    elif budget is not None:
        limit = budget if arena.capacity_bytes is None else min(budget, arena.capacity_bytes)
        arena = replace(arena, capacity_bytes=limit)
    if target.family != "mcu":
        return Layout(arena)
    several = named if len(named) > 1 else ()
    flash = target.weights_memory.region()
    flash = replace(flash, alignment=max(flash.alignment, _WORD))
    return Layout(arena, weights=flash, inputs=arena, memories=several)


def _memories(target: Target, text: str) -> tuple[Region, ...]:
    """The regions that ``text`` names, the target's arena first if it is among them.

    UserError MP423 for one that cannot hold activations, or with too many bytes, MP407 for an unknown
    one.
    """
    if target.family != "mcu":
        raise UserError("MP423", f"memories are those of a microcontroller; {target.name} is not one")
    found: dict[str, Region] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        memory, region = target.memory(name), target.memory(name).region()
        if name in found or name == target.weights or memory.kind == "flash" or not memory.addressable:
            raise UserError(
                "MP423",
                f"memories={text!r}: {name} is named twice, or cannot hold activations",
                help=f"the RAM of {target.name}: {', '.join(_ram(target))}",
            )
        limit = parse_bytes(size) if size else memory.size_bytes
        if limit is not None and memory.size_bytes is not None and limit > memory.size_bytes:
            raise UserError("MP423", f"memories={text!r}: {name} has {memory.size_bytes:,} B")
        found[name] = replace(region, capacity_bytes=limit)
    unknown = [name for name, region in found.items() if not region.cost]
    if unknown and len(found) > 1:
        hint = f"give memory.{unknown[0]}.bandwidth_bytes_per_s in the file of the target"
        raise UserError("MP423", f"the speed of {', '.join(unknown)} is not known", help=hint)
    return tuple(sorted(found.values(), key=lambda r: (r.name != target.arena, r.cost, r.name)))


def _ram(target: Target) -> list[str]:
    apart = (m for m in target.memories if m.name != target.weights)
    return [m.name for m in apart if m.kind != "flash" and m.addressable]


def plan_graph(
    graph: Graph,
    constants: Mapping[str, Any],
    options: Options,
    *,
    instruments: Sequence[Instrument] = (),
) -> Planned:
    """Run the pipeline of the target's family (or ``options.pipeline``) and check its plan.

    Ctrl-C ends the searches; the best plan so far is returned.
    InfeasibleError when the plan does not fit, UserError for bad options, CheckError when a pass
    breaks the graph.
    """
    started = time.monotonic()
    target = load_target(options.target)
    ctx = context_of(target, constants, options)
    watchers = [*instruments, *([Dump(Path(options.dump))] if options.dump else [])]
    passes = asked(parse_pipeline(options.pipeline or PIPELINES[target.family]), options)
    with graceful():
        graph = run_passes(graph, passes, ctx, watchers)
    if ctx.plan is None or ctx.lowered is None:
        what = f"the pipeline {print_pipeline(passes)!r} makes no plan"
        raise UserError("MP421", what, help="end the pipeline with allocate")
    return Planned(
        graph,
        ctx.lowered,
        ctx.plan,
        ctx.constants,
        target,
        options,
        ctx.baseline_peak_bytes or ctx.plan.peak_bytes(ctx.layout.arena.name),
        time.monotonic() - started,
        tuple(ctx.notes),
        ctx.streamed,
    )


def context_of(target: Target, constants: Mapping[str, Any], options: Options) -> Context:
    """The context of a run on ``target``."""
    return Context(
        layout_of(target, options.budget, unlimited=options.minimise, memories=options.memories),
        limit_s=options.limit,
        seed=options.seed,
        solver=options.solver,
        constants=constants,
        emits=emitted,
        pairs=target.isa.dsp and not target.isa.mve,
        vectors=target.isa.mve,
    )


def asked(passes: Sequence[Pass], options: Options, *, wanted: bool = False) -> tuple[Pass, ...]:
    """``passes`` within the budget of ``options``, and with streams as they want them.

    Streams are made whether they are needed or not if ``options`` or ``wanted`` say so.

    UserError MP421 if streams are wanted and the pipeline has none.
    """
    from mplan.passes.stream import StreamRows
    from mplan.passes.tile_pixels import TilePixels

    wanted = wanted or options.max_mac_factor is not None or bool(options.input)
    if wanted and not any(isinstance(p, StreamRows) for p in passes):
        what = f"there are no streams in the pipeline {print_pipeline(passes)!r}"
        hint = "plan for a microcontroller, or name the pass stream in the pipeline"
        raise UserError("MP421", what, help=hint)

    def ask(pass_: Pass) -> Pass:
        if isinstance(pass_, TilePixels):
            return replace(pass_, budget=options.budget or pass_.budget)
        if not isinstance(pass_, StreamRows):
            return pass_
        return replace(
            pass_,
            when="always" if wanted else pass_.when,
            budget=options.budget or pass_.budget,
            max_mac_factor=options.max_mac_factor or pass_.max_mac_factor,
            input=options.input or pass_.input,
            scans=max(options.scans, pass_.scans),
        )

    return tuple(map(ask, passes))


def emitted(op: Op, rule: Spatial) -> bool:
    """Whether C is generated for ``op`` inside of a stream, where it has the geometry ``rule``."""
    from mplan.codegen.c.kernels import has_rows

    return has_rows(op, rule)


def run_passes(
    graph: Graph, passes: Sequence[Pass], ctx: Context, instruments: Sequence[Instrument] = ()
) -> Graph:
    """Run ``passes`` in order; the graph is verified before the first and after each."""
    verify(graph)
    for pass_ in passes:
        started = time.monotonic()
        changed = pass_.run(graph, ctx)
        if changed is not graph:
            verify(changed)
        graph = changed
        for instrument in instruments:
            instrument.after(pass_, graph, time.monotonic() - started)
    return graph
