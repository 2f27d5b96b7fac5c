"""What differs between two plans: peaks, order, buffers, copies and proofs.

Steps and buffers are matched by name (the n-th of a name with the n-th). A step counts as moved only
if it is not part of a longest common order, so one inserted step does not move all that follow.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mplan.ir.plan import Certificate, PlanFile
from mplan.timeline import RegionUse, Timeline
from mplan.units import clean, exact_bytes, percent

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
_SHOWN = 20

Change = Literal["added", "removed", "resized", "moved"]


@dataclass(frozen=True, slots=True)
class RegionChange:
    """A region's height, live peak and capacity before and after; None where it does not exist."""

    name: str
    peak_bytes_before: int | None
    peak_bytes_after: int | None
    live_bytes_before: int | None
    live_bytes_after: int | None
    capacity_bytes_before: int | None
    capacity_bytes_after: int | None

    @property
    def equal(self) -> bool:
        """Nothing about the region differs."""
        return (
            self.peak_bytes_before == self.peak_bytes_after
            and self.live_bytes_before == self.live_bytes_after
            and self.capacity_bytes_before == self.capacity_bytes_after
        )


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step that was added, removed or moved; positions in the order before and after."""

    name: str
    change: Change
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class BufferChange:
    """A buffer that was added, removed, resized (bytes) or moved (``region+offset`` of each stay)."""

    name: str
    change: Change
    before: str | int | None
    after: str | int | None


@dataclass(frozen=True, slots=True)
class CertificateChange:
    """What was and is known about one decision; running times do not count."""

    subject: str
    before: Certificate | None
    after: Certificate | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences between two plans; ``regions`` lists every region, the others only changes.

    ``transfers_before`` and ``transfers_after`` count the copies between regions.
    """

    digest_before: str
    digest_after: str
    regions: tuple[RegionChange, ...]
    steps: tuple[StepChange, ...]
    buffers: tuple[BufferChange, ...]
    certificates: tuple[CertificateChange, ...]
    transfers_before: int
    transfers_after: int
    same_problem: bool

    @property
    def equal(self) -> bool:
        """The plans answer the same problem in the same way, with the same proofs."""
        named = any((self.steps, self.buffers, self.certificates))
        same = self.same_problem and self.digest_before == self.digest_after
        return same and not named and all(r.equal for r in self.regions)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields of this class and ``equal``."""
        return {"schema_version": SCHEMA_VERSION, "equal": self.equal, **asdict(self)}

    def to_text(self) -> str:
        """One line per difference; long lists end with a count."""
        if self.equal:
            return f"the plans are equal ({self.digest_before[:16]})\n"
        lines = [f"plan {self.digest_before[:16]} → {self.digest_after[:16]}"]
        lines += [] if self.same_problem else ["they answer different problems"]
        lines += [_region_line(r) for r in self.regions]
        lines += _shown([_step_line(s) for s in self.steps], "steps")
        lines += _shown([_buffer_line(b) for b in self.buffers], "buffers")
        lines += [_certificate_line(c) for c in self.certificates]
        if self.transfers_before != self.transfers_after:
            lines.append(f"copies between regions: {self.transfers_before} → {self.transfers_after}")
        return "\n".join(clean(line) for line in lines) + "\n"


def compare(a: PlanFile, b: PlanFile) -> Comparison:
    """The differences from ``a`` (before) to ``b`` (after); O(n log n) in steps and buffers."""
    return Comparison(
        digest_before=a.plan.digest,
        digest_after=b.plan.digest,
        regions=tuple(_regions(Timeline.of(a), Timeline.of(b))),
        steps=tuple(_steps(a, b)),
        buffers=tuple(_buffers(a, b)),
        certificates=tuple(_certificates(a, b)),
        transfers_before=len(a.plan.transfers),
        transfers_after=len(b.plan.transfers),
        same_problem=a.problem.digest == b.problem.digest,
    )


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print the differences; peaks that fell are green, those that rose red."""
    from rich.text import Text

    shrunk = {_region_line(r): _trend(r) for r in comparison.regions}
    for line in comparison.to_text().splitlines():
        console.print(Text(line, style=shrunk.get(line, "")))


def _trend(r: RegionChange) -> str:
    change = (r.peak_bytes_after or 0) - (r.peak_bytes_before or 0)
    return "green" if change < 0 else "red" if change > 0 else ""


def _regions(a: Timeline, b: Timeline) -> Iterator[RegionChange]:
    before = {use.region.name: use for use in a.regions}
    after = {use.region.name: use for use in b.regions}
    for name in dict.fromkeys((*before, *after)):
        yield RegionChange(name, *_pairs(before.get(name), after.get(name)))


def _pairs(a: RegionUse | None, b: RegionUse | None) -> tuple[int | None, ...]:
    return (
        a.height_bytes if a else None,
        b.height_bytes if b else None,
        a.peak_live_bytes if a else None,
        b.peak_live_bytes if b else None,
        a.region.capacity_bytes if a else None,
        b.region.capacity_bytes if b else None,
    )


def _steps(a: PlanFile, b: PlanFile) -> Iterator[StepChange]:
    before = {key: p for p, key in enumerate(_numbered(a.problem.steps[i].name for i in a.plan.order))}
    after = {key: p for p, key in enumerate(_numbered(b.problem.steps[i].name for i in b.plan.order))}
    common = [key for key in before if key in after]
    kept = {common[i] for i in _longest_rising([after[key] for key in common])}
    for key, position in before.items():
        if key not in after:
            yield StepChange(key[0], "removed", position, None)
        elif key not in kept:
            yield StepChange(key[0], "moved", position, after[key])
    for key, position in after.items():
        if key not in before:
            yield StepChange(key[0], "added", None, position)


def _buffers(a: PlanFile, b: PlanFile) -> Iterator[BufferChange]:
    before, after = _placed(a), _placed(b)
    for key, (size, stays) in before.items():
        if key not in after:
            yield BufferChange(key[0], "removed", size, None)
            continue
        new_size, new_stays = after[key]
        if size != new_size:
            yield BufferChange(key[0], "resized", size, new_size)
        if stays != new_stays:
            yield BufferChange(key[0], "moved", stays, new_stays)
    for key, (size, _) in after.items():
        if key not in before:
            yield BufferChange(key[0], "added", None, size)


def _placed(file: PlanFile) -> dict[tuple[str, int], tuple[int, str]]:
    """Size and stays (``region+offset``, in order of time) of each buffer, by name and occurrence."""
    stays: list[list[str]] = [[] for _ in file.problem.buffers]
    for p in sorted(file.plan.placements, key=lambda p: (p.start, p.end)):
        stays[p.buffer].append(f"{p.region}+{p.offset}")
    keys = _numbered(b.name for b in file.problem.buffers)
    return {
        key: (b.size_bytes, ", ".join(stay))
        for key, b, stay in zip(keys, file.problem.buffers, stays, strict=True)
    }


def _certificates(a: PlanFile, b: PlanFile) -> Iterator[CertificateChange]:
    before = {c.subject: replace(c, seconds=0.0) for c in a.plan.certificates}
    after = {c.subject: replace(c, seconds=0.0) for c in b.plan.certificates}
    for subject in dict.fromkeys((*before, *after)):
        if before.get(subject) != after.get(subject):
            yield CertificateChange(subject, before.get(subject), after.get(subject))


def _numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    """Each name with its occurrence, so that equal names stay apart."""
    seen: Counter[Hashable] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def _longest_rising(values: Sequence[int]) -> list[int]:
    """The indices of a longest rising subsequence of distinct ``values`` (patience sorting)."""
    tails: list[int] = []
    ends: list[int] = []
    previous = [-1] * len(values)
    for i, value in enumerate(values):
        at = bisect.bisect_left(tails, value)
        previous[i] = ends[at - 1] if at else -1
        tails[at : at + 1] = [value]
        ends[at : at + 1] = [i]
    chain, i = [], ends[-1] if ends else -1
    while i >= 0:
        chain.append(i)
        i = previous[i]
    return chain[::-1]


def _region_line(r: RegionChange) -> str:
    if r.peak_bytes_before is None or r.peak_bytes_after is None:
        state, size = (
            ("removed", r.peak_bytes_before)
            if r.peak_bytes_after is None
            else ("added", r.peak_bytes_after)
        )
        return f"{r.name}: region {state}, {exact_bytes(size or 0)}"
    before, after = exact_bytes(r.peak_bytes_before), exact_bytes(r.peak_bytes_after)
    change = (
        percent(r.peak_bytes_after / r.peak_bytes_before - 1, signed=True)
        if r.peak_bytes_before
        else ""
    )
    moved = f"{before} → {after}" + (f" ({change})" if change else "") if before != after else before
    live = f"{exact_bytes(r.live_bytes_before or 0)} → {exact_bytes(r.live_bytes_after or 0)}"
    return f"{r.name}: {moved}, live peak {live}"


def _step_line(s: StepChange) -> str:
    places = {"added": f"at {s.after}", "removed": f"from {s.before}"}
    return f"step {s.name}: {s.change} {places.get(s.change, f'from {s.before} to {s.after}')}"


def _buffer_line(b: BufferChange) -> str:
    before, after = (exact_bytes(v) if isinstance(v, int) else v for v in (b.before, b.after))
    return f"buffer {b.name}: {b.change} " + " → ".join(v for v in (before, after) if v is not None)


def _certificate_line(c: CertificateChange) -> str:
    return f"proof {c.subject}: {_proof(c.before)} → {_proof(c.after)}"


def _proof(c: Certificate | None) -> str:
    if c is None:
        return "none"
    sizes = f"{exact_bytes(c.value_bytes)} ≥ {exact_bytes(c.lower_bound_bytes)}"
    return f"{c.status}, {sizes} ({c.bound_kind}, {c.solver})"


def _shown(lines: list[str], what: str) -> list[str]:
    rest = len(lines) - _SHOWN
    return lines if rest <= 0 else [*lines[:_SHOWN], f"… and {rest} more changes of {what}"]
