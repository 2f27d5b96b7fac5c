"""What a plan achieves and where its peak comes from, for people and for programs.

``Report`` is the result of planning: rich table, plain text or JSON. ``explain`` says who holds the
memory at the peak and why. Bytes are bytes, durations seconds, ``None`` means "does not apply".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mplan.ir.plan import PlanFile
from mplan.timeline import RegionUse, Timeline
from mplan.units import clean, exact_bytes, human_bytes, percent
from mplan.units import seconds as duration

if TYPE_CHECKING:
    from rich.console import Console

    from mplan.passes.base import Streamed

SCHEMA_VERSION = 1
PHASES = ("capture", "plan", "codegen")


@dataclass(frozen=True, slots=True)
class RegionReport:
    """A region: the height of its arena, what its buffers need at this order, and what there is."""

    name: str
    peak_bytes: int
    lower_bound_bytes: int | None
    capacity_bytes: int | None


@dataclass(frozen=True, slots=True)
class ScheduleReport:
    """Most live bytes in ``region``: planned, proven lower bound over orders, and captured order."""

    region: str | None = None
    peak_live_bytes: int | None = None
    lower_bound_bytes: int | None = None
    baseline_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StreamReport:
    """How the image arrives (``whole`` in the arena, by ``rows``, in ``flash``) at ``streams`` streams;
    rows do so ``scans`` times over.

    ``arena_bytes`` says what the arena needs if it arrives otherwise, within the same work (None: that
    cannot be); ``layered_bytes`` live at most where the ops run one by one. No cut of the ops into
    streams has fewer live bytes than ``lower_bound_bytes`` (None: not known) within ``limit_macs``;
    with a ``budget_bytes`` none within that has less work.
    """

    input: str
    scans: int
    streams: int
    arena_bytes: Mapping[str, int | None]
    limit_macs: int
    mac_factor: float
    layered_bytes: int
    lower_bound_bytes: int | None
    budget_bytes: int | None

    @classmethod
    def of(cls, made: Streamed, file: PlanFile) -> StreamReport:
        """What ``made`` and the plan's certificate say."""
        region = made.certificate.subject.partition(":")[2]
        held = made.certificate if made.budget else file.plan.certificate(made.certificate.subject)
        return cls(
            input=made.input,
            scans=made.scans,
            streams=made.streams,
            arena_bytes={**made.arena_bytes, made.input: file.plan.peak_bytes(region)},
            limit_macs=made.limit_macs,
            mac_factor=made.mac_factor,
            layered_bytes=made.layered_bytes,
            lower_bound_bytes=held.lower_bound_bytes if held else None,
            budget_bytes=made.budget or None,
        )

    def lines(self) -> Iterator[str]:
        """How the image arrives and what that needs; what is proven."""
        words = {"whole": "lies in the arena", "rows": "arrives by rows", "flash": "is read from flash"}
        needs = (
            f"if it {words[way]} {'impossible' if size is None else exact_bytes(size)}"
            for way, size in self.arena_bytes.items()
            if way != self.input
        )
        mine = exact_bytes(self.arena_bytes[self.input] or 0)
        times = f" in {self.scans} scans" if self.scans > 1 else ""
        yield f"image: {', '.join([f'{words[self.input]}{times}, arena {mine}', *needs])}"
        layered = f"op by op {exact_bytes(self.layered_bytes)} would live at once"
        yield f"streams: {self.streams}, {layered}, {self._proof()}"

    def _proof(self) -> str:
        proven = []
        if self.budget_bytes is not None:
            proven.append(f"fewer MACs within {exact_bytes(self.budget_bytes)}")
        if self.lower_bound_bytes is not None:
            least = exact_bytes(self.lower_bound_bytes)
            proven.append(f"less than {least} live within {self.limit_macs:,} MAC")
        what = "no cut of the ops into such streams has "
        return what + " or ".join(proven) if proven else "not proven"


@dataclass(frozen=True, slots=True)
class MemoriesReport:
    """``accessed_bytes`` are read and written in each of several memories, by the model of
    ``ir/accesses``; ``gap`` is how much longer that takes than the proven least at the plan's order.
    Together they are ``peak_bytes`` high, and may be as high as ``budget_bytes`` if there is one."""

    accessed_bytes: Mapping[str, int]
    gap: float
    peak_bytes: int
    budget_bytes: int | None

    @classmethod
    def of(cls, file: PlanFile) -> MemoriesReport | None:
        """What the plan's certificate says; None if no buffer could choose."""
        problem, plan = file.problem, file.plan
        found = next((c for c in plan.certificates if c.subject.startswith("assign:")), None)
        if found is None:
            return None
        names = found.subject.partition(":")[2]
        accessed = dict.fromkeys(names.split("+"), 0)
        for p in plan.placements:
            if p.region in accessed:
                accessed[p.region] += problem.buffers[p.buffer].accessed_bytes
        return cls(accessed, found.gap, plan.peak_bytes(names), problem.total_bytes)

    def line(self) -> str:
        """The share of each memory in what is read and written, and what is proven."""
        total = sum(self.accessed_bytes.values())
        shares = ", ".join(
            f"{percent(size / total if total else 0.0)} in {name}"
            for name, size in self.accessed_bytes.items()
        )
        least = f"at most {percent(self.gap)} slower than the fastest choice"
        proof = least if self.gap else "no choice at this order is faster"
        budget = "" if self.budget_bytes is None else f" of {exact_bytes(self.budget_bytes)}"
        room = f"{exact_bytes(self.peak_bytes)}{budget} together"
        return f"memories: {room}; {exact_bytes(total)} read and written, {shares}; {proof}"


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one plan; ``Report.of`` makes it.

    ``gap`` is the largest of the certificates (``value / bound - 1``), None without certificates.
    ``mac_factor`` is the work of the plan over the work of the model. ``seconds`` are by phase.
    """

    model: str
    target: str
    digest: str
    status: str
    gap: float | None
    regions: tuple[RegionReport, ...]
    schedule: ScheduleReport
    flash_bytes: int | None = None
    macs: int | None = None
    mac_factor: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    fallback_ops: tuple[str, ...] = ()
    stream: StreamReport | None = None
    memories: MemoriesReport | None = None

    @classmethod
    def of(
        cls,
        file: PlanFile,
        *,
        baseline_peak_bytes: int | None = None,
        flash_bytes: int | None = None,
        macs: int | None = None,
        mac_factor: float | None = None,
        seconds: Mapping[str, float] | None = None,
        warnings: Sequence[str] = (),
        fallback_ops: Sequence[str] = (),
        streamed: Streamed | None = None,
    ) -> Report:
        """The report of ``file``; what the plan itself does not know is passed in."""
        timeline = Timeline.of(file)
        return cls(
            model=file.model or file.problem.name,
            target=file.target,
            digest=file.plan.digest,
            status=file.plan.status,
            gap=file.plan.gap if file.plan.certificates else None,
            regions=tuple(_region(timeline, use) for use in timeline.regions),
            schedule=_schedule(timeline, baseline_peak_bytes),
            flash_bytes=flash_bytes,
            macs=macs,
            mac_factor=mac_factor,
            seconds=dict(seconds or {}),
            warnings=tuple(warnings),
            fallback_ops=tuple(fallback_ops),
            stream=StreamReport.of(streamed, file) if streamed else None,
            memories=MemoriesReport.of(file),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; fields that do not apply are null."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "target": self.target,
            "status": self.status,
            "gap": self.gap,
            "regions": {
                r.name: {
                    "peak_bytes": r.peak_bytes,
                    "lower_bound_bytes": r.lower_bound_bytes,
                    "capacity_bytes": r.capacity_bytes,
                }
                for r in self.regions
            },
            "schedule": {
                "peak_live_bytes": self.schedule.peak_live_bytes,
                "lower_bound_bytes": self.schedule.lower_bound_bytes,
                "baseline_peak_bytes": self.schedule.baseline_peak_bytes,
            },
            "flash_bytes": self.flash_bytes,
            "macs": self.macs,
            "mac_factor": self.mac_factor,
            "seconds": {phase: self.seconds.get(phase) for phase in PHASES},
            "digest": self.digest,
            "warnings": list(self.warnings),
            "fallback_ops": list(self.fallback_ops),
            "stream": asdict(self.stream) if self.stream else None,
            "memories": asdict(self.memories) if self.memories else None,
        }

    def to_text(self) -> str:
        """The report as plain lines, without colour or tables."""
        lines = [self.headline()]
        for r in self.occupied:
            lines.append(f"{r.name}: {', '.join(cell for cell in _region_cells(r) if cell)}")
        return "\n".join(clean(line) for line in (*lines, *self.facts(), *self.remarks())) + "\n"

    @property
    def occupied(self) -> tuple[RegionReport, ...]:
        """The regions that hold anything; all of them if none does."""
        return tuple(r for r in self.regions if r.peak_bytes) or self.regions

    def headline(self) -> str:
        """Model, target and what is proven, on one line."""
        where = f"{self.model} on {self.target}" if self.target else self.model
        if self.gap is None:
            return f"{where}: {self.status}, no proof"
        return f"{where}: {self.status}" + (f", gap {percent(self.gap)}" if self.gap else "")

    def facts(self) -> Iterator[str]:
        """One line each for the order, the work, the time and the digest, as far as they are known."""
        s = self.schedule
        if s.peak_live_bytes is not None:
            yield f"order: {_schedule_words(s)}"
        if self.memories:
            yield self.memories.line()
        work = [
            f"{exact_bytes(self.flash_bytes)} of flash" if self.flash_bytes is not None else "",
            f"{self.macs:,} MAC" if self.macs is not None else "",
            f"{self.mac_factor:.3g} × the model's MACs" if self.mac_factor is not None else "",
        ]
        if any(work):
            yield f"work: {', '.join(w for w in work if w)}"
        if self.stream:
            yield from self.stream.lines()
        spent = [f"{p} {duration(self.seconds[p])}" for p in PHASES if self.seconds.get(p)]
        if spent:
            yield f"time: {', '.join(spent)}"
        yield f"digest: {self.digest[:16]}"

    def remarks(self) -> Iterator[str]:
        """Warnings, and the ops that fall back to PyTorch."""
        for warning in self.warnings:
            yield f"warning: {warning}"
        if self.fallback_ops:
            yield f"left to PyTorch: {', '.join(self.fallback_ops)}"


@dataclass(frozen=True, slots=True)
class Holder:
    """A buffer that lies in memory at the peak: its bytes, their share, and why it must be there."""

    name: str
    size_bytes: int
    share: float
    kind: str
    shape: str
    dtype: str
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the peak of ``region`` is and who holds it, largest first.

    ``peak_live_bytes`` are live at ``position``; ``peak_bytes`` is the height of the arena.
    ``sources`` are the user's source lines by bytes held at the peak. ``advice`` are (text, peak
    bytes after it), each tried by planning again. ``refused`` says why there is no plan within the
    budget, if so; this one then has no limit.
    """

    model: str
    region: str
    peak_live_bytes: int
    peak_bytes: int
    capacity_bytes: int | None
    position: int
    step: str
    step_kind: str
    where: str
    holders: tuple[Holder, ...]
    sources: tuple[tuple[str, int], ...]
    advice: tuple[tuple[str, int], ...] = ()
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this class."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "sources": [{"where": where, "bytes": size} for where, size in self.sources],
            "advice": [{"text": text, "peak_bytes": peak} for text, peak in self.advice],
            "refused": self.refused or None,
        }

    def headline(self) -> str:
        """The peak, its step and its source line."""
        limit = f" of {human_bytes(self.capacity_bytes)}" if self.capacity_bytes is not None else ""
        place = f"{self.step} ({self.where})" if self.step and self.where else self.step
        live = f"{self.region}: {human_bytes(self.peak_live_bytes)}{limit} live at step {self.position}"
        return f"{live}, {place}" if place else live


def explain(file: PlanFile, advice: Sequence[tuple[str, int]] = (), refused: str = "") -> Explanation:
    """Who holds the memory of the main region at the plan's peak, and why.

    The main region is the one that the schedule was made for. ``advice`` are (text, peak bytes
    after it) and are passed through, the best first, and so is ``refused``.
    """
    timeline = Timeline.of(file)
    use = timeline.primary
    if use is None:
        return Explanation(file.model, "", 0, 0, None, 0, "", "", "", (), ())
    position = use.peak_position
    step = timeline.step(position)
    holders = tuple(_holders(timeline, use, position))
    return Explanation(
        model=file.model or file.problem.name,
        region=use.region.name,
        peak_live_bytes=use.peak_live_bytes,
        peak_bytes=use.height_bytes,
        capacity_bytes=use.region.capacity_bytes,
        position=position,
        step=step.name if step else "",
        step_kind=step.kind if step else "",
        where=step.where if step else "",
        holders=holders,
        sources=_by_source(holders),
        advice=tuple(sorted(((text, peak) for text, peak in advice), key=lambda a: a[1])),
        refused=refused,
    )


def render(report: Report, console: Console) -> None:
    """Print ``report`` as a table with its facts and warnings."""
    from rich.table import Table
    from rich.text import Text

    colour = {"optimal": "green", "infeasible": "red"}.get(report.status, "yellow")
    console.print(Text(clean(report.headline()), style=f"bold {colour}"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("region", "peak", "capacity", "lower bound"):
        table.add_column(name, justify="left" if name == "region" else "right")
    for r in report.occupied:
        table.add_row(Text(clean(r.name), style="bold"), *(Text(cell) for cell in _region_cells(r)))
    console.print(table)
    for line in report.facts():
        console.print(Text(clean(line)))
    for line in report.remarks():
        console.print(Text(clean(line), style="yellow"))


def render_explanation(explanation: Explanation, console: Console) -> None:
    """Print where the peak is, its holders, the source lines and the advice."""
    from rich.table import Table
    from rich.text import Text

    if explanation.refused:
        console.print(Text(clean(f"does not fit: {explanation.refused}"), style="yellow"))
    console.print(Text(clean(explanation.headline()), style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("bytes", "share", "buffer", "shape", "source", "why it is alive"):
        table.add_column(name, justify="right" if name in ("bytes", "share") else "left")
    for h in explanation.holders:
        cells = (
            exact_bytes(h.size_bytes),
            percent(h.share),
            h.name,
            f"{h.shape} {h.dtype}",
            h.where,
            h.why,
        )
        table.add_row(*(Text(clean(cell.strip())) for cell in cells))
    console.print(table)
    for title, rows in (
        ("by source line", explanation.sources),
        ("what would help", explanation.advice),
    ):
        if rows:
            console.print(Text(title, style="dim"))
        for text, size in rows:
            saved = f" ({percent(size / explanation.peak_bytes - 1, signed=True)})"
            change = saved if rows is explanation.advice and explanation.peak_bytes else ""
            console.print(Text(clean(f"{exact_bytes(size):>16}{change}  {text}")))


def _region(timeline: Timeline, use: RegionUse) -> RegionReport:
    bound = timeline.certificate("allocate", use.region.name)
    least = bound.lower_bound_bytes if bound else None
    return RegionReport(use.region.name, use.height_bytes, least, use.region.capacity_bytes)


def _schedule(timeline: Timeline, baseline_peak_bytes: int | None) -> ScheduleReport:
    subjects = (c for c in timeline.file.plan.certificates if c.subject.startswith("schedule:"))
    bound, use = next(subjects, None), timeline.primary
    if bound is not None:
        region, value = bound.subject.partition(":")[2], bound.value_bytes
        return ScheduleReport(region, value, bound.lower_bound_bytes, baseline_peak_bytes)
    if use is None:
        return ScheduleReport(baseline_peak_bytes=baseline_peak_bytes)
    return ScheduleReport(use.region.name, use.peak_live_bytes, None, baseline_peak_bytes)


def _region_cells(r: RegionReport) -> tuple[str, str, str]:
    used = f"{percent(r.peak_bytes / r.capacity_bytes)} of " if r.capacity_bytes else ""
    limit = f"{used}{exact_bytes(r.capacity_bytes)}" if r.capacity_bytes is not None else ""
    least = f"at least {exact_bytes(r.lower_bound_bytes)}" if r.lower_bound_bytes is not None else ""
    return exact_bytes(r.peak_bytes), limit, least


def _schedule_words(s: ScheduleReport) -> str:
    words = [f"{exact_bytes(s.peak_live_bytes or 0)} live in {s.region} at the peak"]
    if s.lower_bound_bytes is not None:
        words.append(f"any order needs at least {exact_bytes(s.lower_bound_bytes)}")
    if s.baseline_peak_bytes:
        change = percent((s.peak_live_bytes or 0) / s.baseline_peak_bytes - 1, signed=True)
        words.append(f"without a plan {exact_bytes(s.baseline_peak_bytes)} ({change})")
    return ", ".join(words)


def _holders(timeline: Timeline, use: RegionUse, position: int) -> Iterator[Holder]:
    for placement in timeline.held(use.region.name, position):
        b = timeline.file.problem.buffers[placement.buffer]
        yield Holder(
            name=b.name,
            size_bytes=b.size_bytes,
            share=b.size_bytes / use.peak_live_bytes,
            kind=b.kind,
            shape=b.shape,
            dtype=b.dtype,
            where=timeline.source(placement.buffer),
            why=timeline.why_alive(placement.buffer, position),
        )


def _by_source(holders: tuple[Holder, ...]) -> tuple[tuple[str, int], ...]:
    totals: dict[str, int] = defaultdict(int)
    for holder in holders:
        if holder.where:
            totals[holder.where] += holder.size_bytes
    return tuple(sorted(totals.items(), key=lambda item: (-item[1], item[0])))
