"""The planner's front doors: CSV and DAG files on the command line, and Python without torch."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import textwrap
import time
from itertools import combinations
from pathlib import Path

import pytest

import mplan
from mplan.compiler import Smallest, smallest
from mplan.diagnostics import UserError
from mplan.options import Options
from tests.cli_runner import run_cli

DATA = Path(__file__).parent / "data"
HOLES = "id,lower,upper,size,alignment\na,0,2,1,2\nb,0,2,2,2\nc,1,2,1,2\n"
DIAMOND = {
    "name": "diamond",
    "nodes": [
        {"name": "split", "op": "split", "ins": [0], "outs": [1, 2]},
        {"name": "widen", "op": "mul", "ins": [1], "outs": [3]},
        {"name": "narrow", "op": "sum", "ins": [2], "outs": [4]},
        {"name": "reduce", "op": "sum", "ins": [3], "outs": [5]},
        {"name": "join", "op": "add", "ins": [4, 5], "outs": [6]},
    ],
    "tensors": [
        {"size": 8, "prod": -1, "cons": [0], "kind": "input"},
        {"size": 8, "prod": 0, "cons": [1], "kind": "act"},
        {"size": 40, "prod": 0, "cons": [2], "kind": "act"},
        {"size": 80, "prod": 1, "cons": [3], "kind": "act"},
        {"size": 4, "prod": 2, "cons": [4], "kind": "act"},
        {"size": 4, "prod": 3, "cons": [4], "kind": "act"},
        {"size": 4, "prod": 4, "cons": [], "kind": "output"},
    ],
}


@pytest.fixture
def dag(tmp_path: Path) -> Path:
    path = tmp_path / "dag.json"
    path.write_text(json.dumps(DIAMOND))
    return path


def live_together(nodes: list[dict], tensors: list[dict], order: list[int]) -> list[set[int]]:
    """The tensors in memory at each position, from the format's definition."""
    place = {node: p for p, node in enumerate(order)}
    found: list[set[int]] = [set() for _ in order]
    for i, t in enumerate(tensors):
        lasting = t["kind"] in ("output", "inout")
        if t["prod"] < 0 and not t["cons"] and not lasting:
            continue
        first = 0 if t["prod"] < 0 else place[t["prod"]]
        last = len(order) - 1 if lasting else max([first, *(place[c] for c in t["cons"])])
        for p in range(first, last + 1):
            found[p].add(i)
    return found


def disjoint(offsets: dict[str, int], tensors: list[dict], together: list[set[int]]) -> bool:
    def apart(a: int, b: int) -> bool:
        low, high = sorted((a, b), key=lambda i: offsets[str(i)])
        ends = offsets[str(low)] + tensors[low]["size"]
        return ends <= offsets[str(high)] or 0 in (tensors[low]["size"], tensors[high]["size"])

    return all(apart(a, b) for held in together for a, b in combinations(sorted(held), 2))


@pytest.mark.parametrize("name", ["", "mobilenet_v2", "ind_vgg16_tr_1"])
def test_the_plan_of_a_dag_is_an_order_of_nodes_and_an_offset_per_tensor(
    dag: Path, tmp_path: Path, name: str
) -> None:
    source = DATA / "graphs" / f"{name}.json" if name else dag
    graph = json.loads(source.read_text())
    done = run_cli("plan", source, "-o", tmp_path / "plan.json", "--json")
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "plan.json").read_text())
    nodes, tensors = graph["nodes"], graph["tensors"]
    place = {node: p for p, node in enumerate(plan["order"])}
    assert sorted(plan["order"]) == list(range(len(nodes)))
    for i, node in enumerate(nodes):
        assert all(place[tensors[t]["prod"]] < place[i] for t in node["ins"] if tensors[t]["prod"] >= 0)
    assert list(plan["offsets"]) == [str(i) for i in range(len(tensors))]
    together = live_together(nodes, tensors, plan["order"])
    assert disjoint(plan["offsets"], tensors, together)
    peak = max(sum(tensors[i]["size"] for i in held) for held in together)
    assert done.json["schedule"]["peak_live_bytes"] == peak
    used = set().union(*together)
    height = max(plan["offsets"][str(i)] + tensors[i]["size"] for i in used)
    assert done.json["regions"]["arena"]["peak_bytes"] == height
    assert run_cli("check", tmp_path / "plan.json").code == 0


def test_the_order_of_a_dag_saves_what_the_captured_one_wastes(dag: Path) -> None:
    done = run_cli("plan", dag, "--minimise", "--json")
    assert done.json["schedule"]["baseline_peak_bytes"] == 8 + 40 + 80
    assert done.json["smallest"] == {
        "region": "arena",
        "capacity_bytes": 92,  # narrow first; then 8 + 80 + 4
        "lower_bound_bytes": 92,
        "proven": True,
    }


def test_a_dag_that_exceeds_its_capacity_ends_with_4(dag: Path, tmp_path: Path) -> None:
    done = run_cli("plan", dag, "--capacity", 91, "-o", tmp_path / "plan.json")
    assert done.code == 4 and "92 B" in done.err and "91 B" in done.err
    assert not (tmp_path / "plan.json").exists()
    assert run_cli("plan", dag, "--capacity", 92).code == 0


def test_offsets_in_minimallocs_format_keep_the_capacity(tmp_path: Path) -> None:
    source, result = DATA / "minimalloc" / "C.1048576.csv", tmp_path / "out.csv"
    done = run_cli("plan", source, "--capacity", 1048576, "--limit", 60, "-o", result)
    assert done.code == 0, done.err
    given = list(csv.DictReader(source.open()))
    rows = list(csv.DictReader(result.open()))
    assert list(rows[0]) == ["id", "lower", "upper", "size", "offset"]
    assert [{k: r[k] for k in given[0]} for r in rows] == given
    boxes = [tuple(int(r[k]) for k in ("lower", "upper", "offset", "size")) for r in rows]
    assert max(at + size for *_, at, size in boxes) <= 1048576
    for (low, high, at, size), (low2, high2, at2, size2) in combinations(boxes, 2):
        in_time = low < high2 and low2 < high
        assert not in_time or at + size <= at2 or at2 + size2 <= at


def test_the_smallest_capacity_is_printed_with_its_proof(tmp_path: Path) -> None:
    path = tmp_path / "holes.csv"
    path.write_text(HOLES)
    done = run_cli("plan", path, "--minimise", "-o", tmp_path / "plan.json")
    assert done.code == 0 and "smallest capacity of arena: 5 B, proven" in done.err
    assert run_cli("check", tmp_path / "plan.json").code == 0
    assert run_cli("plan", path, "--capacity", 5).code == 0
    assert run_cli("plan", path, "--capacity", 4).code == 4


def test_without_proof_the_smallest_capacity_has_a_gap() -> None:
    source = DATA / "minimalloc" / "E.1048576.csv"
    done = run_cli("plan", source, "--minimise", "--solver", "greedy", "--json")
    found = done.json["smallest"]
    assert not found["proven"] and found["capacity_bytes"] > found["lower_bound_bytes"] == 1048576
    assert str(Smallest("arena", 110, 100)) == (
        "smallest capacity of arena: 110 B; at least 100 B (gap 10.00%)"
    )


def test_the_smallest_capacity_of_a_model_ignores_its_target(tmp_path: Path) -> None:
    path = tmp_path / "wide.mpir"
    path.write_text(
        "graph @g(%x: f32[90000]) {\n  %a: f32[90000] = aten.exp.default(self=%x)\n  return %a\n}\n"
    )
    assert run_cli("plan", path, "-t", "stm32f746").code == 4
    found = run_cli("plan", path, "-t", "stm32f746", "--minimise", "--json").json["smallest"]
    assert found["region"] == "sram" and found["proven"] and found["capacity_bytes"] >= 360_000
    budget = found["capacity_bytes"]
    assert smallest(mplan.plan(path, target="cpu", budget=budget).file).capacity_bytes <= budget


@pytest.mark.parametrize(
    ("given", "text"),
    [({"minimise": True, "budget": 1}, "smallest budget"), ({"minimise": 1}, "True or False")],
)
def test_minimise_takes_no_budget_and_no_number(given: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        Options.parse(given)
    assert caught.value.code == "MP423"


def test_the_limit_is_kept() -> None:
    source = DATA / "minimalloc" / "J.1048576.csv"
    run_cli("plan", source, "--minimise", "--limit", 1)
    done = run_cli("plan", source, "--minimise", "--limit", 2, "--json")
    assert done.code == 0
    assert done.json["seconds"]["plan"] < 4


def test_ctrl_c_writes_the_best_plan_so_far(tmp_path: Path) -> None:
    source, result = DATA / "minimalloc" / "J.1048576.csv", tmp_path / "plan.json"
    command = [sys.executable, "-m", "mplan.cli", "plan", str(source), "--minimise"]
    with subprocess.Popen(
        [*command, "--limit", "300", "-o", str(result)], stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            time.sleep(8)  # until the search runs, on a slow machine too
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 0, err
    assert "smallest capacity of arena: " in err and "gap" in err
    assert run_cli("check", result).code == 0


API = """
import sys
import mplan

built = mplan.Problem(
    "built",
    (mplan.Region("arena"),),
    tuple(mplan.Buffer(f"t{i}", size, ("arena",)) for i, size in enumerate((8, 40, 80, 4))),
    (
        mplan.Step("split", (), (0, 1)),
        mplan.Step("widen", (0,), (2,), (0,)),
        mplan.Step("narrow", (1,), (3,), (0,)),
    ),
)
for problem in (built, mplan.load_problem(sys.argv[1]), mplan.load_problem(sys.argv[2], 1 << 20)):
    ordered = mplan.schedule(problem, limit_s=20)
    placed = mplan.allocate(problem, ordered.order, limit_s=20)
    assert placed.height_bytes >= placed.certificate.lower_bound_bytes
    assert mplan.allocate(problem).height_bytes >= placed.certificate.lower_bound_bytes
    assert not mplan.check(problem, mplan.solve(problem, limit_s=20))
    assert mplan.plan(sys.argv[1]).file.plan.status == "optimal"
assert "torch" not in sys.modules, "torch was loaded"
"""


def test_python_plans_problems_without_torch(dag: Path) -> None:
    tight = str(DATA / "minimalloc" / "C.1048576.csv")
    done = subprocess.run(
        [sys.executable, "-c", API, str(dag), tight], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_package_runs(dag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dag.parent)
    example = (mplan.__doc__ or "").partition("without torch:")[2].partition("Importing")[0]
    found: dict[str, object] = {}
    exec(textwrap.dedent(example.strip("\n")), {"mplan": mplan}, found)
    assert set(found) == {"problem", "ordered", "placed", "plan"}
    plan = found["plan"]
    assert isinstance(plan, mplan.Plan) and plan.peak_bytes("arena") == 92
