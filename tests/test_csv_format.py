"""MiniMalloc's CSV: read, written, and malformed in every way that a user can cause."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplan.diagnostics import MplanError, UserError
from mplan.ir.csv_format import parse_csv, print_csv
from mplan.ir.dag_format import load_dag, parse_dag
from mplan.ir.plan import Buffer, Extent, Placement, Plan, Problem, Region
from mplan.passes.planner import solve
from tests.problems import rectangles

DATA = Path(__file__).parent / "data"


def test_columns_in_any_order_blank_lines_spaces_and_a_bom() -> None:
    text = "\ufeffsize, id ,upper,lower,offset,alignment\r\n4,a,3,0,,8\r\n\r\n 6 , b, 9,3, 16 ,\r\n"
    problem = parse_csv(text, file="dir/x.csv")
    assert problem.name == "x" and problem.regions == (Region("arena"),)
    assert problem.buffers == (
        Buffer("a", 4, ("arena",), 8, lifetime=(0, 3)),
        Buffer("b", 6, ("arena",), 1, lifetime=(3, 9), offset=16),
    )


def test_gaps_and_hints_are_read_and_written() -> None:
    text = "id,lower,upper,size,hint,gaps\na,0,9,8,-1,6-7@2:4 1-3\nb,2,4,1,16,\n"
    problem = parse_csv(text)
    assert [b.gaps for b in problem.buffers] == [(Extent(1, 3), Extent(6, 7, 2, 4)), ()]
    assert [b.hint for b in problem.buffers] == [None, 16]
    plan = Plan("", (), (Placement(0, "arena", 4, 0, 9), Placement(1, "arena", 0, 2, 4)))
    rows = "a,0,9,8,-1,1-3 6-7@2:4,4\nb,2,4,1,16,,0\n"
    assert print_csv(problem, plan) == "id,lower,upper,size,hint,gaps,offset\n" + rows
    again = parse_csv(print_csv(problem, plan)).buffers
    assert [(b.gaps, b.hint) for b in again] == [(b.gaps, b.hint) for b in problem.buffers]


def test_the_older_names_of_columns_mean_closed_intervals() -> None:
    problem = parse_csv("buffer_id,start,end,size,gaps\na,0,8,8,1-2 6-6@2:4\n")
    assert problem.buffers[0].lifetime == (0, 9)
    assert problem.buffers[0].gaps == (Extent(1, 3), Extent(6, 7, 2, 4))
    assert parse_csv("buffer,begin,upper,size\na,0,8,8\n").buffers[0].lifetime == (0, 8)


def test_the_region_may_be_given() -> None:
    problem = parse_csv("id,lower,upper,size\n", Region("sram", 64, 16))
    assert problem.regions == (Region("sram", 64, 16),) and problem.buffers == ()


@pytest.mark.parametrize("name", ["A", "C", "E", "G", "I", "J"])
def test_minimalloc_instances_are_read_as_they_stand(name: str) -> None:
    path = DATA / "minimalloc" / f"{name}.1048576.csv"
    problem = parse_csv(path.read_text(), file=str(path))
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert [
        (b.name, str(b.lifetime[0]), str(b.lifetime[1]), str(b.size_bytes)) for b in problem.buffers
    ] == [tuple(row) for row in rows]


@given(rectangles(fixed=False))
@settings(max_examples=60, deadline=None)
def test_a_written_plan_reads_back_as_its_own_only_solution(problem: Problem) -> None:
    plan = solve(problem, solver="greedy", limit_s=1)
    again = parse_csv(print_csv(problem, plan), problem.regions[0], "boxes")
    assert [(b.name, b.size_bytes, b.alignment, b.lifetime) for b in again.buffers] == [
        (b.name, b.size_bytes, b.alignment, b.lifetime) for b in problem.buffers
    ]
    offsets = {p.buffer: p.offset for p in plan.placements}
    assert [b.offset for b in again.buffers] == [offsets[i] for i in range(len(offsets))]
    pinned = solve(again, solver="greedy", limit_s=1)
    assert pinned.peak_bytes("arena") == plan.peak_bytes("arena")
    assert {p.buffer: p.offset for p in pinned.placements} == offsets


def test_placements_in_several_pieces_get_a_line_each() -> None:
    buffers = (Buffer("a", 4, ("sram",)), Buffer("b", 2, ("sram",)))
    problem = Problem("p", (Region("sram"), Region("dram")), buffers)
    pieces = (
        Placement(0, "sram", 0, 0, 2),
        Placement(0, "dram", 0, 2, 5),
        Placement(0, "sram", 8, 5, 6),
        Placement(1, "sram", 4, 1, 3),
    )
    plan = Plan("", (), pieces)
    assert (
        print_csv(problem, plan) == "id,lower,upper,size,offset\na@0,0,2,4,0\na@5,5,6,4,8\nb,1,3,2,4\n"
    )
    assert print_csv(problem, plan, "dram") == "id,lower,upper,size,offset\na,2,5,4,0\n"


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb", " a", "", "a\u2028b"])
def test_names_that_cannot_be_written_are_refused(name: str) -> None:
    problem = Problem("p", (Region("r"),), (Buffer(name, 1, ("r",), lifetime=(0, 1)),))
    with pytest.raises(UserError) as caught:
        print_csv(problem, Plan("", (), (Placement(0, "r", 0, 0, 1),)))
    assert caught.value.code == "MP234"


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ("", "f.csv:1:1", "no header"),
        ("id,lower,upper\n", "f.csv:1:10", "lacks size"),
        ("id,lower,upper,size,colour\n", "f.csv:1:21", "unknown column 'colour'"),
        ("id,lower,upper,size,size\n", "f.csv:1:21", "size stands twice"),
        ("id,lower,upper,size\na,0,3\n", "f.csv:2:5", "3 cells, the header 4"),
        ("id,lower,upper,size\n\na,0,3,4,5\n", "f.csv:3:9", "5 cells, the header 4"),
        ("id,lower,upper,size\na,0,x,4\n", "f.csv:2:5", "found 'x'"),
        ("id,lower,upper,size\na,0, -3,4\n", "f.csv:2:6", "found '-3'"),
        ("id,lower,upper,size\na,0,3,1.5\n", "f.csv:2:7", "found '1.5'"),
        ("id,lower,upper,size\na,0,3,\n", "f.csv:2:7", "found ''"),
        ("id,lower,upper,size\na,0,3,\u0664\n", "f.csv:2:7", "whole number"),
        ("id,lower,upper,size\na,0,3,1234567890123456789\n", "f.csv:2:7", "18 digits"),
        ("id,lower,upper,size\na,5,3,4\n", "f.csv:2:5", "[5, 3) ends before it starts"),
        ("id,lower,upper,size\na,0,3,4\na,1,2,3\n", "f.csv:3:1", "'a' stands on line 2 already"),
        ("id,lower,upper,size\n,0,3,4\n", "f.csv:2:1", "the id is empty"),
        ('id,lower,upper,size\n"a",0,3,4\n', "f.csv:2:1", "quotes"),
        ("id,lower,upper,size,alignment\na,0,3,4,0\n", "f.csv:2:9", "alignment is 0"),
        ("id,lower,upper,size,hint\na,0,3,4,-2\n", "f.csv:2:9", "found '-2'"),
        ("id,start,lower,upper,size\n", "f.csv:1:10", "lower stands twice"),
        ("id,lower,upper,size,gaps\na,0,3,4,1\n", "f.csv:2:9", "3-5@0:8, found '1'"),
        ("id,lower,upper,size,gaps\na,0,3,4,1-4\n", "f.csv:2:9", "gap [1, 4) of bytes [0, 0)"),
        ("id,lower,upper,size,gaps\na,0,9,4,1-4 3-5\n", "f.csv:2:9", "gap [3, 5)"),
        ("id,lower,upper,size,gaps\na,0,9,4,1-4@2:5\n", "f.csv:2:9", "bytes [2, 5)"),
    ],
)
def test_malformed_input_is_named_with_line_and_column(text: str, place: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_csv(text, file="f.csv")
    assert caught.value.code == "MP230" and str(caught.value.where) == place
    assert part in caught.value.message and caught.value.help


@given(st.one_of(st.text(), st.text(alphabet='id,lowerupsz0123456789-\n\r "\ufeff')))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_problem_or_a_coded_error(text: str) -> None:
    for source in (text, "id,lower,upper,size,offset\n" + text):
        try:
            assert isinstance(parse_csv(source), Problem)
        except MplanError as error:
            assert error.code == "MP230"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not JSON"),
        ("[]", "expected an object"),
        ('{"name": "x"}', "$.nodes: missing"),
        ('{"name": "x", "nodes": [], "tensors": [], "edges": []}', "$.edges: unknown key"),
        ('{"name": "x", "nodes": [{"name": "a", "op": "", "ins": [0], "outs": []}]}', "no tensor 0"),
        (
            '{"name": "x", "nodes": [{"name": "a", "op": "", "ins": [], "outs": [0]}],'
            ' "tensors": [{"size": 4, "prod": -1, "cons": []}]}',
            "made by node -1",
        ),
        (
            '{"name": "x", "nodes": [{"name": "a", "op": "", "ins": [0], "outs": [0]}],'
            ' "tensors": [{"size": 4, "prod": 0, "cons": [0]}]}',
            "made later",
        ),
        ('{"name": "x", "nodes": [], "tensors": [{"size": -4, "prod": -1, "cons": []}]}', "-4 bytes"),
        ('{"name": "x", "nodes": [], "tensors": [{"size": 4, "prod": 2, "cons": []}]}', "no node 2"),
        ('{"name": "x", "nodes": [], "tensors": [{"size": 4, "prod": -1, "cons": [1]}]}', "cons"),
        (
            '{"name": "x", "nodes": [{"name": "a", "op": "", "ins": [], "outs": []}],'
            ' "tensors": [{"size": 4, "prod": 0, "cons": []}]}',
            "does not make it",
        ),
        ('{"name": "x", "nodes": [], "tensors": [], "adjacent": [[0]]}', "tensor 0 does not exist"),
        (
            '{"name": "x", "nodes": [], "tensors": [{"size": 4, "prod": -1, "cons": []}],'
            ' "adjacent": [[0], [0]]}',
            "$.adjacent[1][0]: tensor 0 stands in a group already",
        ),
    ],
)
def test_malformed_dags_are_named_with_a_json_path(text: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_dag(text, file="g.json")
    assert caught.value.code == "MP231" and part in caught.value.message


def test_a_dag_becomes_a_problem() -> None:
    problem = parse_dag(
        '{"name": "x", "meta": {}, "nodes": [{"name": "a", "op": "mm", "ins": [0], "outs": [1]},'
        ' {"name": "b", "op": "add", "ins": [1, 2], "outs": [3]}], "tensors": ['
        '{"size": 4, "prod": -1, "cons": [0], "kind": "input"}, {"size": 5, "prod": 0, "cons": [1]},'
        '{"size": 6, "prod": -1, "cons": [1], "kind": "inout"}, {"size": 7, "prod": 1, "cons": [],'
        ' "kind": "output"}, {"size": 8, "prod": -1, "cons": [], "kind": "input"}],'
        ' "adjacent": [[0, 2]]}'
    )
    assert problem.adjacent == ((0, 2),)
    assert problem.lifetimes((0, 1)) == ((0, 1), (0, 2), (0, 2), (1, 2), (0, 0))
    assert [s.after for s in problem.steps] == [(), (0,)]
    graph = load_dag(DATA / "graphs" / "mobilenet_v2.json")
    assert len(graph.steps) == 65 and len(graph.buffers) == 170


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_dag_or_a_coded_error(text: str) -> None:
    with pytest.raises(MplanError) as caught:
        parse_dag(text)
    assert caught.value.code == "MP231"
