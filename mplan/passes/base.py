"""Passes: frozen dataclasses whose fields are their options, and the text form of a pipeline.

A pass maps a graph to a graph and returns the same object when there is nothing to do. What it
decides beyond the graph (the plan, certificates) goes into the run's ``Context``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mplan.ir.geometry import Spatial
from mplan.ir.graph import Graph, Op
from mplan.ir.plan import Certificate, Plan
from mplan.ir.storage import Layout, Lowered


@dataclass(frozen=True, slots=True)
class Streamed:
    """What the pass ``stream`` made, and the proof that comes with it.

    ``input`` says how the user's inputs arrive: ``whole``, by ``rows`` (``scans`` times over) or from
    ``flash``. ``arena_bytes`` is what the arena needs for this way, and if asked for others, within the
    same work (None: it cannot be done). ``certificate`` bounds the live bytes within ``limit_macs``.
    With a ``budget`` (else 0) ``macs`` are the fewest within so many bytes, and the plan does not carry
    the certificate: the bytes are not what is least. ``layered_bytes`` live at most where the same
    graph runs op by op.
    """

    input: str
    scans: int
    streams: int
    macs: int
    mac_factor: float
    limit_macs: int
    budget: int
    arena_bytes: Mapping[str, int | None]
    layered_bytes: int
    certificate: Certificate


@dataclass
class Context:
    """One run of a pipeline: where the graph will live, the deadline, and what passes found.

    ``constants`` maps the names of param, buffer and const inputs to tensors; passes that fold
    constants replace the mapping. ``lowered`` and ``plan`` are set by the planning passes.
    ``schedule`` leaves the captured graph with its certificate, the certificate for the new order,
    the captured order's peak, and the seconds it took; ``stream`` what it made. ``emits`` says of an op
    and its rule of geometry whether code is generated for it inside of a stream. ``pairs`` says that
    the target multiplies pairs of 16-bit numbers and has no vectors, ``vectors`` that it has some.
    """

    layout: Layout
    limit_s: float = 10.0
    seed: int = 0
    solver: str = "auto"
    constants: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool = False
    vectors: bool = False
    lowered: Lowered | None = None
    plan: Plan | None = None
    baseline_peak_bytes: int | None = None
    schedule_certificate: Certificate | None = None
    notes: list[str] = field(default_factory=list)
    captured: Graph | None = None
    captured_certificate: Certificate | None = None
    spent_s: float = 0.0
    streamed: Streamed | None = None
    emits: Callable[[Op, Spatial], bool] = lambda op, rule: True


@dataclass(frozen=True, slots=True)
class Pass:
    """A transformation of the graph. Subclasses are registered by ``name`` and implement ``run``."""

    name: ClassVar[str] = ""

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The transformed graph, or ``graph`` itself when there is nothing to do."""
        raise TypeError(f"{type(self).__name__} does not implement run")
