"""Orders and addresses: our plan of each instance beside what others do with the same problem.

    python benchmarks/planner.py                           # all sets but `large`, without CP-SAT
    python benchmarks/planner.py --sets graphs minimalloc --systems ours cpsat --limit 60
    python benchmarks/planner.py --folder ~/instances      # CSV and DAG files of your own
    python benchmarks/planner.py --write                   # also keep the figures in results/

Bytes are ratios to lower bounds, those of arenas to one that knows of alignment, or to the capacity
that is to be kept.
``order`` is the most live bytes at our order, ``arena`` the height of the addresses there; ``captured``
is the order as it came. Beside them stand the order that Inductor's ``reorder_for_peak_memory`` takes
on the same graph; CP-SAT alone (order, or addresses where lifetimes are given) with two workers and the
same limit; and two arenas at the captured order: greedy by size as in TFLM, and an online allocator
with best fit. ``lost to`` names peers with less than ours; where only a capacity is to be kept, peers
that are faster.

The sets ``inference``, ``training`` and ``splits`` need the packages of the tests. With ``--write``,
figures of systems that were not run are kept as long as the problem has not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import planner_tables as tables  # noqa: E402
from planner_rows import SYSTEMS, measure, warm_up  # noqa: E402
from planner_sets import SETS, Item, folder  # noqa: E402

RESULTS = Path(__file__).parent / "results"
DEFAULT_SETS = tuple(name for name in SETS if name != "large")
DEFAULT_SYSTEMS = tuple(name for name in SYSTEMS if name != "cpsat")

INTRODUCTION = """# Planner benchmark

Written by `python benchmarks/planner.py --write`; [the script](../planner.py) says what the columns
are. Bytes are ratios to lower bounds, or to the capacity that was to be kept. Seconds are of processor
time; limits are of the clock, on cores that others used, too.
"""


def instances(names: Sequence[str], folders: Sequence[Path]) -> Iterator[tuple[str, Item]]:
    """Every chosen instance with the name of its set."""
    for name in names:
        yield from ((name, item) for item in SETS[name]())
    for path in folders:
        yield from ((path.name, item) for item in folder(path))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print row by row."""
    if "ours" in args.systems:
        warm_up()
    known = {(r["set"], r["name"]): r for r in load()["rows"]}
    rows = []
    sets = args.sets or ([] if args.folder else DEFAULT_SETS)
    for group, (name, make) in instances(sets, args.folder):
        if args.only and name not in args.only:
            continue
        row = measure(make(), tuple(args.systems), args.limit)
        before = known.get((group, name), {})
        if before.get("problem") == row["problem"]:
            row = {**before, **row}
        row = {"set": group, "name": name, **row}
        rows.append(row)
        shown = tables.line(name, row) if "ours" in row else (name, json.dumps(row))
        print(f"{group}: {' | '.join(shown)}", file=sys.stderr, flush=True)
    return rows


def load() -> dict[str, Any]:
    """The figures that ``--write`` kept."""
    path = RESULTS / "planner.json"
    if not path.exists():
        return {"rows": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Put ``rows`` into the kept figures, and those into the tables."""
    from mplan.version import __version__

    merged = {(r["set"], r["name"]): r for r in (*load()["rows"], *rows)}
    order = list(SETS)
    kept = sorted(
        merged.values(), key=lambda r: order.index(r["set"]) if r["set"] in order else len(order)
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    RESULTS.mkdir(exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in kept)
    head = json.dumps({"version": __version__, "machine": machine})[:-1]
    (RESULTS / "planner.json").write_text(f'{head}, "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    complete = [r for r in kept if "ours" in r]
    made = f"{machine}; {tables.limits(kept)}."
    text = f"{INTRODUCTION}\n{made}\n\n{tables.full_tables(complete)}\n"
    (RESULTS / "planner.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, help=f"default: {', '.join(DEFAULT_SETS)}")
    parser.add_argument("--folder", nargs="+", type=Path, default=[], help="of CSV and DAG files")
    parser.add_argument("--only", nargs="+", help="instances by name")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=DEFAULT_SYSTEMS)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for a plan, and for CP-SAT")
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results/")
    args = parser.parse_args()
    rows = run(args)
    complete = [r for r in rows if "ours" in r]
    if complete:
        print(f"{tables.full_tables(complete)}\n\n{tables.summary_table(complete)}")
    if args.write:
        write(rows)


if __name__ == "__main__":
    main()
