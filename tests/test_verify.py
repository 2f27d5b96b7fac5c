"""The verifier: each rule of the IR is broken once, by a graph that is otherwise sound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from strategies import any_graph, runnable_graph

from mplan.diagnostics import CheckError, MplanError, render
from mplan.ir.graph import Graph, Input, Op, Ref, Value
from mplan.ir.parser import parse
from mplan.ir.types import DType, ScalarType, Sym, Symbol, TensorType
from mplan.ir.verify import faults, verify
from mplan.ir.verify_ops import accepts

ROOT = Path(__file__).parents[1]
CORPUS = sorted((ROOT / "tests" / "data" / "ir").glob("*.mpir"))


def read(path: Path) -> Graph:
    return parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_the_corpus_is_sound(path: Path) -> None:
    verify(read(path))
    verify(read(path), deep=True)


@given(runnable_graph())
@settings(max_examples=40, deadline=None)
def test_runnable_graphs_are_sound(graph: Graph) -> None:
    assert faults(graph, deep=True) == ()


@given(any_graph())
@settings(max_examples=200, deadline=None)
def test_any_graph_gets_an_answer(graph: Graph) -> None:
    """Graphs that are nonsense end in faults, never in another exception."""
    for fault in faults(graph):
        assert fault.code in ("MP102", "MP103", "MP104", "MP105", "MP107")
        assert fault.message


def test_no_torch_unless_deep() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mplan.ir.parser import parse; from mplan.ir.verify import verify\n"
        "for path in Path('tests/data/ir').glob('*.mpir'): verify(parse(path.read_text('utf-8')))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- one broken rule at a time ---------------------------------------------------------------------

#: id, body of a graph with inputs x: f32[4,8] and n: int, code, part of the message
BROKEN = [
    (
        "undefined operand",
        "%y: f32[4] = aten.relu.default(self=%z)\n return %y",
        "MP104",
        "%y = aten.relu.default uses %z, which is not defined",
    ),
    (
        "use before definition",
        "%y: f32[4] = aten.relu.default(self=%z)\n %z: f32[4] = aten.relu.default(self=%x)\n return %y",
        "MP104",
        "uses %z, which is not defined before it",
    ),
    (
        "own result as operand",
        "%y: f32[4] = aten.relu.default(self=%y)\n return %y",
        "MP104",
        "uses %y, which is not defined before it",
    ),
    ("undefined output", "return %y", "MP104", "the output %y is not defined"),
    (
        "name defined twice",
        "%x: f32[4,8] = aten.relu.default(self=%x)\n return %x",
        "MP104",
        "the name %x is defined twice",
    ),
    (
        "unknown symbol in a type",
        "%y: f32[{k},8] = aten.relu.default(self=%x)\n return %y",
        "MP105",
        "size {k}: the symbol 'k' has no value or range",
    ),
    (
        "unknown symbol in an argument",
        "%y: f32[32] view(%x) = aten.view.default(self=%x, size=[{k}])\n return %y",
        "MP105",
        "size {k}: the symbol 'k'",
    ),
    ("unknown symbol in an output", "return {k}", "MP105", "an output, size {k}"),
    (
        "division by zero",
        "%y: f32[{4 // s}] = aten.full.default(size=[1], fill_value=0.0)\n return %y",
        "MP105",
        "may divide by zero",
    ),
    (
        "negative size",
        "%y: f32[-1] = aten.relu.default(self=%x)\n return %y",
        "MP104",
        "has the size or stride -1",
    ),
    (
        "alias of nothing",
        "%y: f32[8] view(%z) = aten.select.int(self=%x, dim=0, index=0)\n return %y",
        "MP104",
        "aliases %z, which is not defined before it",
    ),
    (
        "alias of a number",
        "%y: f32[8] view(%n) = aten.select.int(self=%x, dim=0, index=0)\n return %y",
        "MP104",
        "aliases %n, but numbers have no bytes to share",
    ),
    (
        "view beyond the storage",
        "%y: f32[8] view(%x + 100) = aten.select.int(self=%x, dim=0, index=3)\n return %y",
        "MP104",
        "shares bytes [100, 132) of %x, which has 128 B",
    ),
    (
        "view before the storage",
        "%y: f32[8] view(%x + -4) = aten.select.int(self=%x, dim=0, index=0)\n return %y",
        "MP104",
        "shares bytes [-4, 28) of %x",
    ),
    (
        "view of a view beyond the storage",
        "%r: f32[8] view(%x + 96) = aten.select.int(self=%x, dim=0, index=3)\n"
        " %y: f32[4] view(%r + 20) = aten.slice.Tensor(self=%r, dim=0, start=5, end=9)\n return %y",
        "MP104",
        "shares bytes [116, 132) of %x",
    ),
    (
        "view between two elements",
        "%y: f32[8] view(%x + 2) = aten.select.int(self=%x, dim=0, index=0)\n return %y",
        "MP104",
        "starts 2 B into %x, not a multiple of its item size",
    ),
    (
        "alias of a value that the op does not use",
        "%a: f32[4,8] = aten.neg.default(self=%x)\n"
        " %y: f32[4,8] inplace(%x) = aten.relu.default(self=%a)\n return %y",
        "MP104",
        "aliases %x without using it",
    ),
    (
        "stale operand",
        "%a: f32[4,8] inplace(%x) = aten.relu.default(self=%x)\n"
        " %y: f32[4,8] = aten.add.Tensor(self=%a, other=%x)\n return %y",
        "MP104",
        "%y = aten.add.Tensor reads %x, whose bytes %a has overwritten",
    ),
    (
        "stale view",
        "%v: f32[8] view(%x) = aten.select.int(self=%x, dim=0, index=0)\n"
        " %a: f32[4,8] inplace(%x) = aten.relu.default(self=%x)\n"
        " %y: f32[8] = aten.neg.default(self=%v)\n return %y",
        "MP104",
        "reads %v, whose bytes %a has overwritten",
    ),
    (
        "base of an overwritten view",
        "%v: f32[8] view(%x) = aten.select.int(self=%x, dim=0, index=0)\n"
        " %a: f32[8] inplace(%v) = aten.relu.default(self=%v)\n return %x, %a",
        "MP104",
        "the output %x has been overwritten by %a",
    ),
    (
        "scratch of negative size",
        "%y: f32[4,8] = aten.relu.default(self=%x) scratch(-1)\n return %y",
        "MP104",
        "-1 B of scratch in phases [0, 1)",
    ),
    (
        "scratch in no phase",
        "%y: f32[4,8] = aten.relu.default(self=%x) scratch(8 in 2 to 2)\n return %y",
        "MP104",
        "8 B of scratch in phases [2, 2)",
    ),
    (
        "births of other results",
        "%y: f32[4,8] = aten.relu.default(self=%x) births(0, 1)\n return %y",
        "MP104",
        "the births (0, 1) of 1 results",
    ),
    (
        "unknown op of mplan",
        "%y: f32[4,8] = mplan.cpy(self=%x)\n return %y",
        "MP102",
        "there is no op 'mplan.cpy' (did you mean mplan.copy?)",
    ),
    ("no op kind", '%y: f32[4,8] = "relu"(self=%x)\n return %y', "MP102", "is no op kind"),
    (
        "unknown argument",
        "%y: f32[4,8] = mplan.copy(self=%x, to=1)\n return %y",
        "MP103",
        "it has no parameter 'to'; its parameters: self",
    ),
    (
        "missing argument",
        "%y: f32[4,8] = mplan.attention(query=%x, key=%x)\n return %y",
        "MP103",
        "the argument 'value' (Tensor) is missing",
    ),
    (
        "arguments out of order",
        "%y: f32[4,8] = mplan.attention(query=%x, value=%x, key=%x)\n return %y",
        "MP103",
        "do not follow the order of the schema",
    ),
    (
        "argument given twice",
        "%y: f32[4,8] = mplan.copy(self=%x, self=%x)\n return %y",
        "MP103",
        "an argument is given twice",
    ),
    (
        "argument of another type",
        "%y: f32[4,8] = mplan.attention(query=%x, key=%x, value=%x, is_causal=1)\n return %y",
        "MP103",
        "is_causal=1 is not of type bool",
    ),
    (
        "too many results",
        "%y: f32[4,8], %z: f32[4,8] = mplan.copy(self=%x)\n return %y",
        "MP103",
        "it has 2 results, its schema 1",
    ),
    ("loop without a loop", "%y: f32[4,8] = mplan.loop()\n return %y", "MP104", "if and only if"),
]


def graph_of(body: str) -> Graph:
    return parse(f"graph @g(%x: f32[4,8], %n: int) symbols(s in [0, 4]) {{\n {body}\n}}")


@pytest.mark.parametrize(
    ("body", "code", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_broken_rule_is_named(body: str, code: str, message: str) -> None:
    with pytest.raises(CheckError) as caught:
        verify(graph_of(body))
    error = caught.value
    assert error.code == code
    assert message in error.message
    assert error.message.startswith("graph g: ")


#: The same with the rules that need torch's schemas and shape rules.
BROKEN_DEEP = [
    (
        "unknown op",
        "%y: f32[4,8] = aten.rleu.default(self=%x)\n return %y",
        "MP102",
        "aten.rleu.default",
    ),
    (
        "unknown overload",
        "%y: f32[4,8] = aten.add.Tensr(self=%x)\n return %y",
        "MP102",
        "aten.add.Tensor",
    ),
    (
        "unknown argument",
        "%y: f32[4,8] = aten.relu.default(self=%x, y=%x)\n return %y",
        "MP103",
        "no parameter 'y'",
    ),
    (
        "missing argument",
        "%y: f32[4,8] = aten.add.Tensor(self=%x)\n return %y",
        "MP103",
        "'other' (Tensor) is missing",
    ),
    (
        "a list for a number",
        "%y: f32[4,8] = aten.cumsum.default(self=%x, dim=[1])\n return %y",
        "MP103",
        "dim=[1] is not of type int",
    ),
    (
        "a float for a size",
        "%y: f32[32] view(%x) = aten.view.default(self=%x, size=[32.0])\n return %y",
        "MP103",
        "size=[32.0] is not of type int[]",
    ),
    (
        "wrong shape",
        "%y: f32[8,4] = aten.relu.default(self=%x)\n return %y",
        "MP107",
        "%y is stated as f32[8,4], the shape rule gives f32[4,8]",
    ),
    (
        "wrong element type",
        "%y: f32[4,8] = aten.gt.Scalar(self=%x, other=0)\n return %y",
        "MP107",
        "the shape rule gives bool[4,8]",
    ),
    (
        "wrong strides of a view",
        "%y: f32[8,4] view(%x) = aten.t.default(self=%x)\n return %y",
        "MP107",
        "the shape rule gives f32[8,4]<1,8>",
    ),
    (
        "rejected operands",
        "%y: f32[4,4] = aten.mm.default(self=%x, mat2=%x)\n return %y",
        "MP107",
        "is rejected",
    ),
    (
        "wrong number of results",
        "%y: f32[4,4] = aten.split.Tensor(self=%x, split_size=4, dim=1)\n return %y",
        "MP107",
        "it has 1 results, its shape rule gives 2",
    ),
    (
        "a number for a tensor",
        "%y: int = aten.sum.default(self=%x)\n return %y",
        "MP107",
        "stated as int, the shape rule gives f32[]",
    ),
    (
        "attention of other sizes",
        "%y: f32[4,8] = mplan.attention(query=%x, key=%x, value=%x)\n"
        " %z: f32[4,4] = mplan.attention(query=%x, key=%x, value=%y)\n return %z",
        "MP107",
        "the shape rule gives f32[4,8]",
    ),
]


@pytest.mark.parametrize(
    ("body", "code", "message"), [b[1:] for b in BROKEN_DEEP], ids=[b[0] for b in BROKEN_DEEP]
)
def test_a_broken_call_is_named(body: str, code: str, message: str) -> None:
    graph = graph_of(body)
    assert faults(graph) == ()
    found = faults(graph, deep=True)
    assert [f.code for f in found] == [code]
    assert message in found[0].message


# --- what the text form cannot even say -----------------------------------------------------------


def test_types_that_only_exist_in_memory() -> None:
    x = Value("x", TensorType(DType.F32, (4,), (1, 1)))
    y = Value("y", ScalarType("complex"))
    graph = Graph("g", (Input(x), Input(y)), (), (Ref("x"),))
    assert [f.message for f in faults(graph)] == [
        "input %x has 1 dimensions and 2 strides",
        "input %y has the unknown type 'complex'",
    ]


def test_symbols_must_be_declared_once_with_a_name_and_a_range() -> None:
    symbols = (
        Symbol("a b", 1, 2),
        Symbol("max", 1, 2),
        Symbol("n", 3, 2),
        Symbol("m", 1, 2),
        Symbol("m", 1, 2),
    )
    messages = [f.message for f in faults(Graph("g", (), (), (), symbols))]
    assert messages == [
        "'a b' cannot be the name of a symbol",
        "'max' cannot be the name of a symbol",
        "the symbol n has the range [3, 2]",
        "the symbol m is declared twice",
    ]


def test_expressions_too_deep_to_evaluate() -> None:
    deep = Sym("-" * 3000 + "1")
    (fault,) = faults(Graph("g", (), (), (deep,)))
    assert fault.code == "MP105"


def test_a_symbol_input_is_an_int() -> None:
    tensor = Input(Value("n", TensorType(DType.I64, ())), "symbol")
    assert "is a symbol but not an int" in faults(Graph("g", (tensor,), (), ()))[0].message


# --- how it is reported ---------------------------------------------------------------------------


def test_all_violations_come_at_once_with_their_places() -> None:
    text = """%a: f32[4] = aten.relu.default(self=%q) loc("net.py":7)
      %b: f32[4] = mplan.copy(x=%x) loc("net.py":9 in "fc")
      return %c"""
    with pytest.raises(CheckError) as caught:
        verify(graph_of(text))
    error = caught.value
    assert str(error.where) == "net.py:7"
    assert error.message.endswith("(and 3 more)")
    assert [str(where) for _, where in error.notes] == ["net.py:9", "net.py:9", "None"]
    assert error.notes[0][0].startswith("MP103: %b = mplan.copy: it has no parameter 'x'")
    assert "note: MP104: the output %c is not defined" in render(error)


ROWS = """%a: f32[8] view(%x) = aten.select.int(self=%x, dim=0, index=0)
 %b: f32[8] view(%x + 32) = aten.select.int(self=%x, dim=0, index=1)
 %c: f32[8] inplace(%a) = aten.relu.default(self=%a)
 %d: f32[8] = aten.add.Tensor(self=%b, other=%c)
 return %d"""


def test_disjoint_views_stay_readable() -> None:
    """Overwriting one row leaves the others as they are, if their places are known."""
    assert faults(graph_of(ROWS), deep=True) == ()
    symbolic = ROWS.replace("view(%x + 32)", "view(%x + {s * 8})")
    (fault,) = faults(graph_of(symbolic))
    assert fault.message == "%d = aten.add.Tensor reads %b, whose bytes %c has overwritten"


def test_views_must_fit_at_both_ends_of_a_range() -> None:
    low, high = ROWS.replace("+ 32", "+ {s * 8 - 16}"), ROWS.replace("+ 32", "+ {s * 32}")
    assert "shares bytes [-16, 16) of %x" in faults(graph_of(low))[0].message
    assert "shares bytes [128, 160) of %x" in faults(graph_of(high))[0].message


ACCEPTED = [
    ("Tensor", Ref("t"), True),
    ("Tensor", Ref("i"), True),
    ("Tensor", 1.5, True),
    ("Tensor", None, False),
    ("Tensor?", None, True),
    ("Tensor[]", (Ref("t"), Ref("t")), True),
    ("Tensor[]", Ref("t"), False),
    ("Tensor?[]", (None, Ref("t")), True),
    ("int", 1, True),
    ("int", True, False),
    ("int", 1.0, False),
    ("int", Sym("n"), True),
    ("int", Ref("i"), True),
    ("int", Ref("t"), False),
    ("int[]", (1, Sym("n")), True),
    ("int[]", 3, True),
    ("int[]?", None, True),
    ("float", 1, True),
    ("float", True, False),
    ("float", Ref("i"), True),
    ("Scalar", True, True),
    ("Scalar", Ref("i"), True),
    ("bool", True, True),
    ("bool", 1, False),
    ("str", "a", True),
    ("str", 1, False),
    ("ScalarType", DType.F32, True),
    ("ScalarType?", "float32", True),
    ("ScalarType", 6, False),
    ("Device?", "cpu", True),
    ("Generator?", None, True),
    ("Generator?", 1, False),
]


@pytest.mark.parametrize(("type_", "arg", "expected"), ACCEPTED)
def test_what_a_parameter_accepts(type_: str, arg: object, expected: bool) -> None:
    types = {"t": TensorType(DType.F32, ()), "i": ScalarType("int")}
    assert accepts(type_, arg, types) is expected  # type: ignore[arg-type]


def test_ops_are_described_by_their_first_result() -> None:
    graph = Graph("g", (), (Op("mplan.copy", (), ()),), ())
    with pytest.raises(MplanError, match=r"mplan\.copy: the argument 'self'"):
        verify(graph)
