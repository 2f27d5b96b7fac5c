"""The memory-planning problem, the plan that answers it, and the plan's certificates.

A ``Problem`` says what must be decided: buffers (bytes with a half-open lifetime), steps (operators
that touch buffers, in captured order) with their precedence, and regions (memories). A ``Plan``
decides it: an order of the steps and, for each buffer, a region and an offset over an interval of
steps. Times are positions in the *plan's* order, so ``[start, end)`` of a buffer touched first at
position 2 and last at position 4 is ``[2, 5)``.

A problem without steps (the MiniMalloc CSV format) has fixed lifetimes instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from mplan.ir.problem_columns import Columns
    from mplan.ir.table import Table

SCHEMA_VERSION = 1

#: Keys of a plan file that follow from the others.
UNSEALED = ("order", "offsets", "problem_digest", "plan_digest", "content_digest")

#: Types whose values JSON has as they are.
_LEAVES = frozenset((int, str, bool, float, type(None)))

Status = Literal["optimal", "feasible", "infeasible"]
BufferKind = Literal["input", "weight", "intermediate", "output", "scratch"]


@dataclass(frozen=True, slots=True)
class Region:
    """A memory. ``capacity_bytes`` None means unlimited; ``alignment`` holds for every buffer in it.

    Steps can touch buffers only in an ``addressable`` region; others (host memory, external flash)
    hold spilled copies. ``cost`` is the time to read or write a byte there, in picoseconds; 0 if it is
    not known.
    """

    name: str
    capacity_bytes: int | None = None
    alignment: int = 1
    kind: str = "dram"
    addressable: bool = True
    cost: int = 0


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes ``[low, high)`` of a buffer during ``[start, end)``; none if ``low`` is ``high``."""

    start: int
    end: int
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes that must be placed.

    ``regions`` are the regions in which it may be touched, best first. ``live_in`` buffers hold data
    before the first step, ``live_out`` ones must survive the last. ``lifetime`` fixes the half-open
    interval (problems without steps); in its ``gaps``, in order of time, the buffer holds less than
    all its bytes. ``offset`` fixes the address, ``hint`` is one to try first. ``accessed_bytes`` are
    the bytes that are read and written of it, each as often as it is; they count where it may lie in
    several regions. ``hint``, ``shape``, ``dtype`` and ``where`` stay out of the digest.
    """

    name: str
    size_bytes: int
    regions: tuple[str, ...]
    alignment: int = 1
    kind: BufferKind = "intermediate"
    live_in: bool = False
    live_out: bool = False
    lifetime: tuple[int, int] | None = None
    offset: int | None = None
    shape: str = ""
    dtype: str = ""
    where: str = ""
    gaps: tuple[Extent, ...] = ()
    hint: int | None = None
    accessed_bytes: int = 0

    def held(self, start: int, end: int) -> Iterator[Extent]:
        """What it holds while it is placed during ``[start, end)``, in order of time."""
        for gap in self.gaps:
            if start < gap.start and self.size_bytes:
                yield Extent(start, gap.start, 0, self.size_bytes)
            if gap.low < gap.high:
                yield gap
            start = gap.end
        if start < end and self.size_bytes:
            yield Extent(start, end, 0, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Step:
    """An operator: the buffers it reads and writes (indices) and the steps it must follow.

    ``after`` is complete: data flow as well as the order that mutation imposes.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    after: tuple[int, ...] = ()
    kind: str = ""
    where: str = ""

    @property
    def touches(self) -> frozenset[int]:
        """The buffers that must be addressable while the step runs."""
        return frozenset(self.reads) | frozenset(self.writes)


@dataclass(frozen=True)
class Problem:
    """Buffers, regions and steps; ``steps`` stand in captured order, a valid topological order.

    The buffers (indices) of each group in ``adjacent`` lie one directly behind the other. A region's
    alignment holds for the first of a group alone, a buffer's own for every one. The regions among
    which buffers can choose, by their costs, take at most ``total_bytes`` together (the sum of their
    heights), if that is not None. What follows from a problem and takes time, ``columns``, ``table``
    and ``digest``, is kept with it.
    """

    name: str
    regions: tuple[Region, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...] = ()
    adjacent: tuple[tuple[int, ...], ...] = ()
    total_bytes: int | None = None

    @property
    def shared(self) -> tuple[str, ...]:
        """The regions among which buffers can choose, in their order."""
        names = {name for regions in self.columns.choices if len(regions) > 1 for name in regions}
        return tuple(r.name for r in self.regions if r.name in names)

    @property
    def horizon(self) -> int:
        """The number of positions: of the steps, or the last end of the fixed lifetimes."""
        if self.steps:
            return len(self.steps)
        return max((b.lifetime[1] for b in self.buffers if b.lifetime), default=0)

    def region(self, name: str) -> Region:
        """The region called ``name``; KeyError if there is none."""
        for region in self.regions:
            if region.name == name:
                return region
        raise KeyError(name)

    def unlimited(self) -> Problem:
        """The same problem in regions without a capacity, alone or together."""
        regions = tuple(replace(r, capacity_bytes=None) for r in self.regions)
        return replace(self, regions=regions, total_bytes=None)

    def lifetimes(self, order: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """The half-open lifetime of each buffer when the steps run in ``order``.

        A buffer that no step touches and that is not ``live_in`` has the empty lifetime (0, 0).
        """
        start, end = self.table.lifetimes(order)
        return tuple(zip(start.tolist(), end.tolist(), strict=True))

    @cached_property
    def table(self) -> Table:
        """Buffers and steps as columns."""
        from mplan.ir.table import Table

        return Table(self)

    @cached_property
    def columns(self) -> Columns:
        """The fields of buffers and steps as arrays."""
        from mplan.ir.problem_columns import Columns

        return Columns(self)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical content; names, shapes and places do not count."""
        return self.columns.digest(self)


@dataclass(frozen=True, slots=True)
class Placement:
    """Buffer ``buffer`` (an index) lies at ``offset`` of ``region`` during ``[start, end)``."""

    buffer: int
    region: str
    offset: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Just before position ``step``, the bytes of ``buffer`` are copied between two regions."""

    step: int
    buffer: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is known about one decision.

    ``subject`` is ``schedule:REGION`` (peak live bytes over orders), ``allocate:REGION`` (height of
    the arena at the plan's order), ``stream:REGION`` (peak live bytes over the cuts of the ops into
    streams) or ``assign:REGION`` (accessed bytes, each times the cost of the region in which it lies,
    over the ways to choose regions at the plan's order). REGION may be several, joined by ``+``, for
    all but ``allocate``. ``bound_kind`` names the argument: ``live`` (buffers live together at the
    position ``witness[0]``), ``padded`` (the same, each but the highest padded to their common
    alignment), ``fixed`` (the end of a buffer of fixed offset), ``working_set`` (bytes that the step
    ``witness[0]`` needs in any order), ``closure`` (the least bytes live while the step
    ``witness[0]`` runs, over all orders: a minimum cut), ``boundary`` (bytes live before the first
    step or after the last), ``fastest`` (each buffer where it costs least), ``cuts`` (a dynamic
    program over all cuts into streams) or ``exhaustive`` (search space exhausted). ``ir/check``
    replays all but the last two.
    """

    subject: str
    value_bytes: int
    lower_bound_bytes: int
    bound_kind: str
    status: Status
    solver: str
    seed: int = 0
    seconds: float = 0.0
    witness: tuple[int, ...] = ()

    @property
    def gap(self) -> float:
        """``value / bound - 1``; 0 means proven optimal."""
        if self.value_bytes == self.lower_bound_bytes:
            return 0.0
        return self.value_bytes / self.lower_bound_bytes - 1 if self.lower_bound_bytes else 1.0


@dataclass(frozen=True)
class Plan:
    """The answer: an order of the steps, placements, transfers, the height of each region.

    ``problem`` is the digest of the problem that it answers. ``order[p]`` is the index of the step
    at position p. ``peaks`` are the bytes of each region that the plan occupies (highest end
    address), by region name.
    """

    problem: str
    order: tuple[int, ...]
    placements: tuple[Placement, ...]
    transfers: tuple[Transfer, ...] = ()
    peaks: tuple[tuple[str, int], ...] = ()
    certificates: tuple[Certificate, ...] = field(default=())

    def peak_bytes(self, region: str) -> int:
        """The height of ``region``, 0 if nothing lies there; of several, joined by ``+``, the sum."""
        peaks = dict(self.peaks)
        return sum(peaks.get(name, 0) for name in region.split("+"))

    def certificate(self, subject: str) -> Certificate | None:
        """The certificate of ``subject``, if the plan carries one."""
        return next((c for c in self.certificates if c.subject == subject), None)

    @property
    def status(self) -> Status:
        """The weakest status among the certificates.

        ``optimal``: no order has fewer live bytes, and no addresses *at this order* end lower.
        """
        states = {c.status for c in self.certificates}
        if "infeasible" in states:
            return "infeasible"
        return "feasible" if "feasible" in states or not states else "optimal"

    @property
    def gap(self) -> float:
        """The largest gap among the certificates."""
        return max((c.gap for c in self.certificates), default=0.0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything in the plan but the solvers' running times; kept with it."""
        timeless = replace(self, certificates=tuple(replace(c, seconds=0.0) for c in self.certificates))
        return _sha256(_plain(timeless))


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What ``plan.json`` holds: a plan beside the problem that it answers, and who made it."""

    problem: Problem
    plan: Plan
    producer: str = ""
    model: str = ""
    target: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``content_digest`` seals every field, running times included.

        ``order`` and ``offsets`` (buffer index → its first offset) say in short what the plan does.
        """
        sealed = {"schema_version": SCHEMA_VERSION, **_plain(self)}
        return {
            **summary(self.plan),
            **sealed,
            "problem_digest": self.problem.digest,
            "plan_digest": self.plan.digest,
            "content_digest": _sha256(sealed),
        }


def summary(plan: Plan) -> dict[str, Any]:
    """The order and the offsets of ``plan`` as they stand at the head of a plan file."""
    first = {str(p.buffer): p.offset for p in sorted(plan.placements, key=lambda p: -p.start)}
    return {"order": list(plan.order), "offsets": dict(sorted(first.items(), key=_by_number))}


def _by_number(item: tuple[str, int]) -> int:
    return int(item[0])


def content_digest(document: dict[str, Any]) -> str:
    """The seal that ``PlanFile.to_json`` would put on ``document`` (a parsed plan file)."""
    return _sha256({key: value for key, value in document.items() if key not in UNSEALED})


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: data classes as objects, tuples as arrays."""
    if isinstance(value, tuple):
        return [item if type(item) in _LEAVES else _plain(item) for item in value]
    if not is_dataclass(value):
        return value
    names, get = _fields_of(value.__class__)
    found = dict(zip(names, get(value), strict=True))
    for name, item in found.items():
        if type(item) not in _LEAVES:
            found[name] = _plain(item)
    return found


@cache
def _fields_of(kind: Hashable) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    """The names of the fields of a data class (of two or more), and a function that reads them all."""
    names = tuple(f.name for f in fields(cast(Any, kind)))
    return names, attrgetter(*names)


def _sha256(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
