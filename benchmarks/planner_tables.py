"""The tables of the planner's benchmark, from its rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import median
from typing import Any

Figures = Mapping[str, Any]

HEAD = (
    *("instance", "steps", "buffers", "bound, B", "order", "arena", "status", "CPU s", "captured"),
    *("Inductor", "CP-SAT", "its CPU s", "TFLM", "best fit", "lost to"),
)
SUMMARY = (
    *("set", "instances", "orders proven", "arenas proven", "mean gap", "largest gap", "captured"),
    *("Inductor", "CP-SAT", "TFLM", "best fit", "rows lost", "median CPU s", "longest CPU s"),
)
PEERS = {"inductor": "Inductor", "cpsat": "CP-SAT", "tflm": "TFLM", "best_fit": "best fit"}


def base(row: Figures) -> int:
    """What the ratios of a row refer to: our lower bound, or the capacity that was to be kept."""
    bound: int = row["capacity_bytes"] or row["ours"].get("bound_bytes") or row["captured_peak_bytes"]
    return bound


def arena_base(row: Figures) -> int:
    """What the ratios of arenas refer to: a bound that knows of alignment, or the capacity."""
    bound: int = row["capacity_bytes"] or row["ours"].get("arena_bound_bytes") or base(row)
    return bound


def lost_to(row: Figures) -> list[str]:
    """The peers with a lower peak or arena than ours; where a capacity is kept, the faster ones."""
    return [label for name, label in PEERS.items() if _loses(row, row.get(name))]


def _loses(row: Figures, peer: Figures | None) -> bool:
    if peer is None:
        return False
    ours, limit = row["ours"], row["capacity_bytes"]
    if limit is not None:
        value = peer.get("arena_bytes")
        fits = value is not None and value <= limit
        return fits and (not ours["fits"] or peer["cpu_s"] < ours["cpu_s"])
    keys = ("peak_bytes", "arena_bytes")
    return any(peer.get(k) is not None and peer[k] < ours[k] for k in keys)


def line(name: str, row: Figures) -> tuple[str, ...]:
    """One row as text; bytes as ratios to the bound."""
    ours, units = row["ours"], {"peak_bytes": base(row), "arena_bytes": arena_base(row)}

    def of(peer: str, *keys: str) -> str:
        figures = row.get(peer) or {}
        found = (
            f"{figures[k] / units[k]:.3f}" for k in keys if units[k] and figures.get(k) is not None
        )
        return next(found, "")

    status = ours["status"]
    if row["capacity_bytes"] is not None:
        status = "fits" if ours["fits"] else "not found"
    elif status == "feasible":
        status = f"gap {gap(row):.2%}"
    solver = row.get("cpsat")
    return (
        *(name, f"{row['steps']:,}", f"{row['buffers']:,}", f"{base(row):,}"),
        *(of("ours", "peak_bytes"), of("ours", "arena_bytes"), status, f"{ours['cpu_s']:.2f}"),
        f"{row['captured_peak_bytes'] / base(row):.3f}" if row["steps"] and base(row) else "",
        of("inductor", "peak_bytes"),
        *(of("cpsat", "peak_bytes", "arena_bytes") or ("none" if solver else ""),),
        *(f"{solver['cpu_s']:.1f}" if solver else "",),
        *(of("tflm", "arena_bytes"), of("best_fit", "arena_bytes"), ", ".join(lost_to(row))),
    )


def gap(row: Figures) -> float:
    """Arena over its bound, minus one; where only a capacity was to be kept, over that, if at all."""
    arena, capacity = row["ours"]["arena_bytes"], row["capacity_bytes"]
    if capacity is not None:
        return max(0.0, arena / capacity - 1)
    return arena / arena_base(row) - 1 if base(row) else 0.0


def summary(name: str, rows: Sequence[Figures]) -> tuple[str, ...]:
    """One set on one line; peers as geometric means of their bytes over ours."""
    solved = [r for r in rows if r["ours"]["status"] == "optimal" or _kept(r)]
    times = [r["ours"]["cpu_s"] for r in rows]
    ordered = [r["ours"]["order_status"] == "optimal" for r in rows if r["steps"]]
    return (
        *(name, str(len(rows)), f"{sum(ordered)} of {len(ordered)}" if ordered else ""),
        *(f"{len(solved)} of {len(rows)}", f"{_mean(map(gap, rows)):.2%}"),
        *(f"{max(map(gap, rows)):.2%}", _captured(rows)),
        *(_over_ours(rows, peer) for peer in PEERS),
        *(str(sum(bool(lost_to(r)) for r in rows)), f"{median(times):.2f}", f"{max(times):.1f}"),
    )


def _kept(row: Figures) -> bool:
    """Whether a capacity was asked for and kept: the decision is proven by its answer."""
    return row["capacity_bytes"] is not None and row["ours"]["fits"]


def _captured(rows: Sequence[Figures]) -> str:
    pairs = [(r["captured_peak_bytes"], r["ours"]["peak_bytes"]) for r in rows if r["steps"]]
    return _geometric(a / b for a, b in pairs if b)


def _over_ours(rows: Sequence[Figures], peer: str) -> str:
    ratios = []
    for row in rows:
        figures = row.get(peer) or {}
        for key in ("peak_bytes", "arena_bytes"):
            if figures.get(key) is not None and row["ours"].get(key):
                ratios.append(figures[key] / row["ours"][key])
    return _geometric(ratios)


def _mean(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return sum(found) / len(found)


def _geometric(numbers: Iterable[float]) -> str:
    found = [log(n) for n in numbers]
    return f"{exp(sum(found) / len(found)):.3f}" if found else ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def by_set(rows: Sequence[Figures]) -> dict[str, list[Figures]]:
    """The rows of each set, in order."""
    found: dict[str, list[Figures]] = {}
    for row in rows:
        found.setdefault(row["set"], []).append(row)
    return found


def limits(rows: Sequence[Figures]) -> str:
    """The limits that the solvers had, in words."""
    words = []
    for system, label in (("ours", "ours"), ("cpsat", "CP-SAT")):
        found = sorted({r[system]["limit_s"] for r in rows if r.get(system)})
        if found:
            words.append(f"{label} {' or '.join(f'{s:g}' for s in found)} s")
    return f"limits: {', '.join(words)}" if words else ""


def summary_table(rows: Sequence[Figures], columns: Sequence[str] = SUMMARY) -> str:
    """A line per set with some of the columns of ``SUMMARY``."""
    lines = [summary(name, group) for name, group in by_set(rows).items()]
    kept = [SUMMARY.index(column) for column in columns]
    return markdown(columns, ([line[i] for i in kept] for line in lines))


def full_tables(rows: Sequence[Figures]) -> str:
    """A table per set."""
    parts = []
    for name, group in by_set(rows).items():
        parts.append(f"## {name}\n\n{markdown(HEAD, (line(r['name'], r) for r in group))}")
    return "\n\n".join(parts)
