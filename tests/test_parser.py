"""The text form: everything that prints parses back, everything else is a coded error."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from strategies import any_graph, runnable_graph

from mplan.diagnostics import MplanError, UserError
from mplan.ir.graph import Graph, Loc, Op, Ref
from mplan.ir.parser import parse
from mplan.ir.scanner import MAX_DEPTH, MAX_DIGITS, MAX_EXPRESSION
from mplan.ir.types import DType, Sym

CORPUS = sorted((Path(__file__).parent / "data" / "ir").glob("*.mpir"))

VALID = """graph @net(%x: f32[1,{s0}] "image", param %w: f32[4,8]) symbols(s0 in [1, 8]) {
  %y: f32[4,2] view(%w + 16), _ = aten.f.default(self=%x, size=[1, -1], p=0.5, q="a") scratch(64)
  %z: f32[1,4] = mplan.loop() loop {
    axis h = 4 by 2
    in %x [1 by h scale 2 offset -1 extent 3]
    out concat [1 by h]
    body graph @tile(%a: f32[1,5]) {
      return %a
    }
  } loc("net.py":7 in "conv")
  return %y, none, dtype(f32)
}
"""


@given(any_graph())
@settings(max_examples=300, deadline=None)
def test_round_trip_of_any_graph(graph: Graph) -> None:
    text = str(graph)
    again = parse(text)
    assert again == graph
    assert str(again) == text


@given(runnable_graph())
@settings(max_examples=40, deadline=None)
def test_round_trip_of_runnable_graphs(graph: Graph) -> None:
    assert parse(str(graph)) == graph


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_corpus_is_canonical(path: Path) -> None:
    """The files hold exactly what the printer writes, after a header of comments."""
    text = path.read_text(encoding="utf-8")
    body = "".join(line for line in text.splitlines(True) if not line.startswith("//"))
    assert f"{parse(text, str(path))}\n" == body


def test_the_corpus_exists() -> None:
    assert len(CORPUS) >= 8


def test_literals_keep_their_types() -> None:
    graph = parse('graph @g() { return 1, 1.0, true, -0.0, 1e3, -inf, none, dtype(bool), {a}, "1" }')
    kinds = [type(arg) for arg in graph.outputs]
    assert kinds == [int, float, bool, float, float, float, type(None), DType, Sym, str]
    assert str(graph.outputs[3]) == "-0.0"


def test_comments_and_layout_do_not_count() -> None:
    spread = VALID.replace(",", " ,\n // a comment\n ").replace("%x:", "%x :")
    assert parse("// header\n" + spread + "// end") == parse(VALID)


def test_places_are_read() -> None:
    op = parse('graph @g() { a.b() loc("f.py":3 in "m") a.c() loc(in "m") a.d() loc() return }').ops
    assert [o.loc for o in op] == [Loc("f.py", 3, "m"), Loc(module="m"), Loc()]


def test_names_that_need_quotes() -> None:
    graph = Graph("return", (), (Op("return", (), ()),), (Ref("a b"), Ref('"'), Ref("\n\ud800")))
    assert parse(str(graph)) == graph


# --- errors ---------------------------------------------------------------------------------------

ERRORS = [
    # text, line, column, part of the message
    ("", 1, 1, "expected 'graph'"),
    ("graph g", 1, 7, "expected '@'"),
    ("graph @g(%x f32[1])", 1, 13, "expected ':'"),
    ("graph @g(%x: f33[1])", 1, 14, "expected an element type"),
    ("graph @g(%x: f32)", 1, 17, "expected the shape"),
    ("graph @g(%x: long)", 1, 14, "expected a type"),
    ("graph @g(%x: f32[1, a])", 1, 21, "expected a size"),
    ("graph @g(%x: f32[1 2])", 1, 20, "expected ',' or ']'"),
    ("graph @g(%x: f32[1.5])", 1, 18, "expected a size"),
    ("graph @g(%x: f32[1,2]<1>)", 1, 25, "expected 2 strides"),
    ("graph @g(%x: f32[{s0 ** 2}])", 1, 18, "is not a size expression"),
    ("graph @g(%x: f32[{s0; 2}])", 1, 18, "expected a size expression"),
    ("graph @g(weight %x: int)", 1, 10, "expected an input"),
    ("graph @g() symbols(s0 [1, 2])", 1, 23, "expected 'in'"),
    ("graph @g() {\n  %y: int\n  return\n}", 3, 3, "expected '='"),
    ("graph @g() {\n  %y: int = a.b(%x)\n}", 2, 17, "expected an argument's name"),
    ("graph @g() {\n  a.b(x=)\n}", 2, 9, "expected an argument"),
    ("graph @g() {\n  a.b(x=maybe)\n}", 2, 9, "expected an argument"),
    ("graph @g() {\n  a.b(x=dtype(f3))\n}", 2, 15, "expected an element type"),
    ("graph @g() {\n  a.b(x=[1, 2)\n}", 2, 14, "expected ',' or ']'"),
    ('graph @g() {\n  a.b(x="open)\n}', 2, 9, "in double quotes"),
    ('graph @g() {\n  a.b(x="\\q")\n}', 2, 9, "JSON's escapes"),
    ("graph @g() {\n  a.b() loc(7)\n}", 2, 13, "expected ')'"),
    ("graph @g() {\n  a.b() scratch(x)\n}", 2, 17, "expected the bytes of scratch memory"),
    ("graph @g() {\n  a.b() loop { axis h 4 }\n}", 2, 23, "expected '='"),
    ("graph @g() {\n  a.b() loop { in %x [0 h] }\n}", 2, 25, "expected 'by'"),
    ("graph @g() {\n  a.b() loop { out sum }\n}", 2, 20, "expected 'concat'"),
    ("graph @g() {\n  a.b() loop { return }\n}", 2, 16, "expected 'body'"),
    ("graph @g() {\n", 2, 1, "expected an op or 'return'"),
    ("graph @g() {\n return %x }\n}", 3, 1, "expected the end of the text"),
    ("graph @g() {\n // é\n return é }", 3, 9, "found 'é'"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), ERRORS)
def test_errors_say_where_and_what(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, "net.mpir")
    error = caught.value
    assert error.code == "MP101"
    assert message in error.message
    assert error.where and (error.where.file, error.where.line, error.where.column) == (
        "net.mpir",
        line,
        column,
    )
    assert error.help


LIMITS = [
    "graph @g() { return " + "[" * (MAX_DEPTH + 1),
    "graph @g() { return " + "1" * (MAX_DIGITS + 1),
    "graph @g(%x: f32[{" + "s" * (MAX_EXPRESSION + 1) + "}])",
    "graph @g() { a.b() loop { body " * (MAX_DEPTH + 1),
]


@pytest.mark.parametrize("text", LIMITS)
def test_text_beyond_the_limits(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert caught.value.code == "MP106"


def test_what_is_within_the_limits_is_read() -> None:
    depth = MAX_DEPTH - 1
    nested = parse("graph @g() { return " + "[" * depth + "]" * depth + "}")
    assert str(nested).count("[") == depth


HOSTILE = [
    "graph @g() { return " + "[" * 100_000,
    "graph @g(%x: f32[{" + "(" * 900 + "}])",
    "graph @g(%x: f32[{" + "-" * 900 + "1}])",
    "graph @g(%x: f32[{" + "9" * 900 + "}])",
    "\x00" * 10,
    "graph @\ud800",
    '"' * 1000,
    "graph @g() {" + "%" * 1000,
    "graph @g() { return 1e999999 }",
    "\N{ARABIC-INDIC DIGIT ONE}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    _only_mplan_errors(text)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_arbitrary_text(text: str) -> None:
    _only_mplan_errors(text)


@given(st.lists(st.sampled_from(VALID.split() + list('@%{}[]()<>,;=+"/')), max_size=60))
@settings(max_examples=300, deadline=None)
def test_arbitrary_tokens(tokens: list[str]) -> None:
    _only_mplan_errors("graph @g() { " + " ".join(tokens))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_text(data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 6)))
        text = text[:start] + data.draw(st.text(max_size=4)) + text[end:]
    _only_mplan_errors(text)


def _only_mplan_errors(text: str) -> None:
    """Either the text is a graph, then it prints and parses back, or the error is ours."""
    try:
        graph = parse(text)
    except MplanError as error:
        assert error.code in ("MP101", "MP106")
        assert error.where is not None
        return
    assert parse(str(graph)) == graph
