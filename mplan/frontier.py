"""What a network needs for how much work: the frontier of bytes and multiply-accumulates.

Every point is a plan of streams (see ``mplan.passes.stream``); fewer bytes cost recomputation, up to
strips of single columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import InfeasibleError
from mplan.ir.graph import Graph
from mplan.options import Options
from mplan.pipeline import PIPELINES, asked, context_of, run_passes
from mplan.targets.load import load_target
from mplan.units import clean, exact_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from mplan.passes.stream.space import Space


@dataclass(frozen=True, slots=True)
class Point:
    """A plan whose image arrives as ``input`` says.

    No cut of the ops into streams has fewer than ``live_bytes`` live within ``macs``, which are
    ``mac_factor`` times those of the model; ``arena_bytes`` is the height of the arena at a quick
    placement. Of its ``streams`` so many go by ``strips`` of columns.
    """

    input: str
    arena_bytes: int
    live_bytes: int
    macs: int
    mac_factor: float
    streams: int
    strips: int


@dataclass(frozen=True, slots=True)
class Frontier:
    """The points of which none is better in both arena and work, per way of arrival, cheapest first.

    ``layered_bytes`` live at most where the ops run one by one, the image in the arena.
    """

    model: str
    target: str
    capacity_bytes: int | None
    macs: int
    layered_bytes: int
    points: tuple[Point, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The ways of arrival for which there are points."""
        return tuple(dict.fromkeys(p.input for p in self.points))

    def of(self, way: str) -> tuple[Point, ...]:
        """The points of one way of arrival."""
        return tuple(p for p in self.points if p.input == way)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this class."""
        return {**asdict(self), "points": [asdict(p) for p in self.points]}


def explore(graph: Graph, constants: Mapping[str, Any], options: Options) -> Frontier:
    """The frontier of ``graph`` on the target of ``options``.

    For every way in which the image may arrive, or that of ``options.input`` alone. InfeasibleError
    MP235 if nothing can be streamed, UserError MP421 if the pipeline has no streams.
    """
    from mplan.passes.registry import parse_pipeline
    from mplan.passes.stream import StreamRows, live_bytes
    from mplan.passes.stream.space import ARRIVALS

    target = load_target(options.target)
    passes = asked(parse_pipeline(options.pipeline or PIPELINES[target.family]), options, wanted=True)
    stream = next(p for p in passes if isinstance(p, StreamRows))
    ctx = context_of(target, constants, options)
    graph = run_passes(graph, passes[: passes.index(stream)], ctx)
    layered = live_bytes(graph, ctx)
    points: list[Point] = []
    macs = 0
    for way in (options.input,) if options.input else ARRIVALS:
        try:
            space = replace(stream, input=way).space(graph, ctx)
        except InfeasibleError:
            continue
        if space is not None:
            macs = space.macs
            points += _points(space)
    if not points:
        raise InfeasibleError("MP235", f"graph {graph.name} has no ops that rows could stream through")
    limit = ctx.layout.arena.capacity_bytes
    return Frontier(graph.name, target.name, limit, macs, layered, tuple(points))


def _points(space: Space) -> Iterator[Point]:
    """The points whose arena, as placed, is lower than that of all cheaper ones."""
    least: int | None = None
    for schedule in space.frontier:
        arena = space.build(schedule).height_bytes
        if least is not None and arena >= least:
            continue
        least = arena
        macs = schedule.macs
        yield Point(
            space.arrival,
            arena,
            schedule.peak_bytes,
            macs,
            space.factor(macs),
            schedule.streams,
            schedule.strips,
        )


#: How an image arrives, in words.
WORDS = {"whole": "in the arena", "rows": "by rows", "flash": "from flash"}


def render(frontier: Frontier, console: Console) -> None:
    """Print ``frontier`` as a table."""
    from rich.table import Table
    from rich.text import Text

    where = f"{frontier.model} on {frontier.target}" if frontier.target else frontier.model
    console.print(Text(clean(where), style="bold"))
    facts = f"op by op {exact_bytes(frontier.layered_bytes)} live at once, {frontier.macs:,} MAC"
    console.print(Text(facts))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("image", "arena", "live", "MACs", "streams", "in strips"):
        table.add_column(column, justify="left" if column == "image" else "right")
    for p in frontier.points:
        cells = (exact_bytes(p.arena_bytes), exact_bytes(p.live_bytes), f"{p.mac_factor:.3f} ×")
        table.add_row(WORDS[p.input], *cells, str(p.streams), str(p.strips))
    console.print(table)
