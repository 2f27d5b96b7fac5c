"""Reader of problems in files: MiniMalloc's CSV and DAG instances."""

from __future__ import annotations

from pathlib import Path

from mplan.files import read_text
from mplan.ir.csv_format import parse_csv
from mplan.ir.dag_format import parse_dag
from mplan.ir.plan import Problem, Region

#: Endings of the files that hold a problem.
SUFFIXES = (".csv", ".json")


def load_problem(path: str | Path, capacity_bytes: int | None = None) -> Problem:
    """The problem in ``path``: ``.csv`` is MiniMalloc's format, anything else a DAG instance.

    Its one region ``arena`` has ``capacity_bytes``; None means unlimited. UserError MP490 if the file
    cannot be read, MP230 (CSV) or MP231 (DAG) if it is malformed.
    """
    region = Region("arena", capacity_bytes)
    parse = parse_csv if Path(path).suffix == ".csv" else parse_dag
    return parse(read_text(path), region, str(path))
