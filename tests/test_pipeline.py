"""Pipelines as text, options, instruments, and replay digests: a refactor changes no plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import run_cli

from mplan.diagnostics import UserError
from mplan.ir.check import check
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout, problem_of
from mplan.ir.verify import verify
from mplan.options import Options, parse_bytes
from mplan.passes.allocate_buffers import AllocateBuffers
from mplan.passes.base import Context
from mplan.passes.registry import PASSES, parse_pipeline, print_pipeline
from mplan.passes.schedule_ops import ScheduleOps
from mplan.pipeline import PIPELINES, plan_graph

GRAPHS = Path(__file__).parent / "data" / "replay"
DIGESTS = GRAPHS / "digests.json"


@pytest.mark.parametrize("text", [*PIPELINES.values(), "schedule{solver=exact,limit_s=2.5},allocate"])
def test_pipelines_read_back(text: str) -> None:
    passes = parse_pipeline(text)
    assert print_pipeline(passes) == text
    assert parse_pipeline(print_pipeline(passes)) == passes


def test_every_registered_pass_has_its_own_name() -> None:
    for name in PASSES:
        (made,) = parse_pipeline(name)
        assert made.name == name


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("canonicalise", "MP420", "canonicalize"),
        ("allocate{slover=exact}", "MP421", "solver"),
        ("allocate{limit_s=soon}", "MP421", "float"),
        ("allocate{limit_s=1", "MP421", "closed"),
        ("allocate}", "MP421", "column"),
    ],
)
def test_bad_pipelines_say_what_is_accepted(text: str, code: str, part: str) -> None:
    with pytest.raises(UserError) as info:
        parse_pipeline(text)
    assert info.value.code == code
    assert part in info.value.message + info.value.help


@pytest.mark.parametrize(
    ("text", "count"),
    [(65536, 65536), ("64KiB", 65536), ("64 K", 65536), ("1.5MB", 1_500_000), ("2GiB", 1 << 31)],
)
def test_bytes_are_read_in_both_systems(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "many", "-1", "1e3", "5 parsecs"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "given", [{"limit": 0}, {"limit": "soon"}, {"seed": "x"}, {"solver": "magic"}, {"dump": 3}]
)
def test_bad_options_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Options.parse(given)


def test_batches_in_memory_are_sent_to_quantize() -> None:
    with pytest.raises(
        UserError, match=r"calibrate is a list, not the path of an \.npz file"
    ) as caught:
        Options.parse({"quantize": "int8", "calibrate": [[0.5] * 1_000] * 100})
    assert "mplan.quantize(" in caught.value.help


def digests(path: Path) -> dict[str, str | int]:
    """The planned figures and digest of a graph; every solver here is deterministic."""
    options = Options(target="stm32h743", solver="greedy")
    planned = plan_graph(parse(path.read_text(), str(path)), {}, options)
    return {"digest": planned.plan.digest, "sram": planned.plan.peak_bytes(planned.target.arena)}


def test_replay_gives_the_same_plans(request: pytest.FixtureRequest) -> None:
    found = {p.stem: digests(p) for p in sorted(GRAPHS.glob("*.mpir"))}
    assert len(found) >= 6
    if request.config.getoption("--update-golden"):
        DIGESTS.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(DIGESTS.read_text()), "if meant, run pytest --update-golden"


def test_a_dump_says_which_pass_made_it(tmp_path: Path) -> None:
    graph = next(iter(sorted(GRAPHS.glob("*.mpir"))))
    done = run_cli("plan", graph, "-t", "stm32h743", "--dump", tmp_path / "dump")
    assert done.code == 0, done.err
    dumps = sorted((tmp_path / "dump").glob("*.mpir"))
    assert [p.name[3:-5] for p in dumps] == [p.name for p in parse_pipeline(PIPELINES["mcu"])]
    assert dumps[0].read_text().startswith("// after canonicalize (")
    parse(dumps[-1].read_text())


def test_unused_results_take_no_memory_where_kernels_are_ours() -> None:
    graph = parse(
        "graph @g(%x: f32[1,1,4,4]) {\n"
        "  %y: f32[1,1,2,2], %i: i64[1,1,2,2] = aten.max_pool2d_with_indices.default("
        "self=%x, kernel_size=[2, 2], stride=[2, 2])\n  return %y\n}"
    )
    on_mcu = plan_graph(graph, {}, Options(target="stm32f746"))
    assert on_mcu.plan.peak_bytes("sram") == 16 * 4 + 4 * 4
    kept = parse(str(graph).replace("return %y", "return %y, %i"))
    assert plan_graph(kept, {}, Options(target="stm32f746")).plan.peak_bytes("sram") >= 112


POORLY_PACKED = """
graph @g(%x0: f32[7,1], %x1: f32[3,1]) {
  %m0: f32[2,1] = aten.new_zeros.default(self=%x1, size=[2,1])
  %m1: f32[1,9] = aten.new_zeros.default(self=%x1, size=[1,9])
  %m2: f32[7,1] = aten.new_zeros.default(self=%x0, size=[7,1])
  %m3: f32[5,5] = aten.new_zeros.default(self=%x0, size=[5,5])
  %m4: f32[9,2] = aten.new_zeros.default(self=%m2, size=[9,2])
  %m5: f32[9,9] = aten.new_zeros.default(self=%m2, size=[9,9])
  %m6: f32[7,5] = aten.new_zeros.default(self=%m4, size=[7,5])
  %m7: f32[1,5] = aten.new_zeros.default(self=%m6, size=[1,5])
  %m8: f32[1,2] = aten.mm.default(self=%m1, mat2=%m4)
  return %m0, %m3, %m5, %m7, %m8
}
"""


def test_a_graph_is_reordered_where_its_arena_gets_lower() -> None:
    ctx = Context(Layout(Region("arena")), limit_s=20)
    graph = ScheduleOps().run(parse(POORLY_PACKED), ctx)
    graph = AllocateBuffers(solver="none").run(graph, ctx)
    assert ctx.plan is not None and ctx.plan.peak_bytes("arena") == 584
    better = AllocateBuffers()._rearranged(graph, ctx)
    verify(better)
    assert ctx.lowered is not None and ctx.plan.peak_bytes("arena") == 460
    assert ctx.plan.status == "optimal" and check(ctx.lowered.problem, ctx.plan) == ()
    assert ctx.lowered.problem.digest == problem_of(better, ctx.layout).problem.digest
    assert sorted(op.result.name for op in better.ops) == sorted(op.result.name for op in graph.ops)
    assert AllocateBuffers()._rearranged(better, ctx) is better
