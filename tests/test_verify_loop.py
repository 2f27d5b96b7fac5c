"""The verifier on loops: each rule is broken once, by a loop that is otherwise sound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mplan.ir.graph import Concat
from mplan.ir.parser import parse
from mplan.ir.verify import faults, verify

LOOP = """graph @g(%x: f32[4,6], %init: f32[4], %n: int) symbols(s in [1, 4]) {
  %y: f32[4,6], %sum: f32[4] = mplan.loop() loop {
    axis i = 6 by 4
    in %x [1 by i]
    out concat [1 by i]
    out carry %init
    body graph @body(%t: f32[4,{i_len}], %state: f32[4]) symbols(i_len in [2, 4]) {
      %u: f32[4,{i_len}] = aten.relu.default(self=%t)
      %part: f32[4] = aten.sum.dim_IntList(self=%u, dim=[1])
      %next: f32[4] = aten.add.Tensor(self=%state, other=%part)
      return %u, %next
    }
  }
  return %y, %sum
}"""

#: id, text replaced in LOOP, replacement, part of the message
BROKEN_LOOPS = [
    ("no axis", "axis i = 6 by 4\n", "", "the loop has no axis"),
    ("step of zero", "6 by 4", "6 by 0", "axis i has the step 0 and the extent 6"),
    ("step beyond the extent", "6 by 4", "6 by 7", "axis i has the step 7"),
    ("name of an axis", "axis i =", 'axis "a b" =', "'a b' cannot be the name of an axis"),
    ("axis twice", "axis i = 6 by 4", "axis i = 6 by 4 axis i = 6 by 4", "has two meanings"),
    ("window of an unknown axis", "in %x [1 by i]", "in %x [1 by j]", "names the axis 'j'"),
    ("window of no dimension", "in %x [1 by i]", "in %x [2 by i]", "slices dimension 2"),
    ("dimension sliced twice", "in %x [1 by i]", "in %x [1 by i; 1 by i]", "slices a dimension twice"),
    ("scale of zero", "in %x [1 by i]", "in %x [1 by i scale 0]", "has scale 0 and extent 1"),
    ("window of a number", "in %x [1 by i]", "in %n [1 by i]", "the number %n cannot be sliced"),
    ("undefined operand", "in %x", "in %z", "uses %z, which is not defined"),
    ("undefined state", "carry %init", "carry %z", "uses %z, which is not defined"),
    (
        "extent of the result",
        "concat [1 by i]",
        "concat [0 by i]",
        "has the size 4 along axis i of extent 6",
    ),
    ("concat of another axis", "concat [1 by i]", "concat [1 by j]", "the loop runs over ['i']"),
    ("concat along nothing", "concat [1 by i]", "concat []", "concatenated along (), the loop"),
    ("concat of no dimension", "concat [1 by i]", "concat [2 by i]", "has 2 dimensions"),
    (
        "missing input of the body",
        ", %state: f32[4])",
        ")",
        "the body has 1 inputs for 1 windows and 1",
    ),
    ("missing output of the body", "return %u, %next", "return %u", "the body has 1 outputs for 2"),
    ("constant as output of the body", "return %u, %next", "return %u, 1", "is not one of its values"),
    ("undeclared symbol", "symbols(i_len in [2, 4])", "", "the symbol 'i_len' has no value"),
    (
        "foreign symbol",
        "i_len in [2, 4])",
        "i_len in [2, 4], k in [1, 2])",
        "neither of an axis nor of",
    ),
    ("narrow range", "i_len in [2, 4]", "i_len in [4, 4]", "it takes the values [2, 4]"),
    (
        "window of another shape",
        "%t: f32[4,{i_len}]",
        "%t: f32[4,{i_len + 1}]",
        "the window of %x: f32[4,4]",
    ),
    (
        "tile that ignores the last one",
        "%t: f32[4,{i_len}]",
        "%t: f32[4,4]",
        "f32[4,2] against f32[4,4]",
    ),
    ("window of another type", "%t: f32[4,{i_len}]", "%t: i64[4,{i_len}]", "f32[4,4] against i64[4,4]"),
    (
        "state of another shape",
        "%state: f32[4]",
        "%state: f32[3]",
        "and the body's input: f32[4] against",
    ),
    ("next state of another shape", "%next: f32[4]", "%next: f32[3]", "and the body's output: f32[4]"),
    (
        "initial state of another type",
        "%init: f32[4]",
        "%init: f16[4]",
        "and its initial state: f32[4]",
    ),
    (
        "fewer results",
        "%y: f32[4,6], %sum: f32[4] =",
        "%y: f32[4,6] =",
        "1 results for 2 results of the loop",
    ),
    (
        "arguments",
        "mplan.loop()",
        "mplan.loop(self=%x)",
        "it has no parameter 'self'; its parameters: none",
    ),
    ("another kind", "mplan.loop()", "aten.relu.default()", "if and only if its kind is mplan.loop"),
    ("inside the body", "(self=%t)", "(self=%x)", "body: %u = aten.relu.default uses %x"),
]


def test_the_loop_is_sound() -> None:
    verify(parse(LOOP), deep=True)


@pytest.mark.parametrize(
    ("old", "new", "message"), [b[1:] for b in BROKEN_LOOPS], ids=[b[0] for b in BROKEN_LOOPS]
)
def test_a_broken_loop_is_named(old: str, new: str, message: str) -> None:
    assert old in LOOP
    messages = [f.message for f in faults(parse(LOOP.replace(old, new)))]
    assert any(message in m for m in messages), messages


def test_bodies_are_checked_in_depth_tile_by_tile() -> None:
    """The sum fits the full tile only; without ``deep`` nothing says so."""
    wrong = parse(LOOP.replace("aten.relu.default(self=%t)", "aten.add.Tensor(self=%t, other=%state)"))
    assert faults(wrong) == ()
    (fault,) = faults(wrong, deep=True)
    assert fault.code == "MP107"
    assert "is rejected" in fault.message and "f32[4,2]" in fault.message


def test_concat_with_dimensions_that_do_not_match_axes() -> None:
    graph = parse(LOOP)
    (op,) = graph.ops
    assert op.loop
    loop = replace(op.loop, results=(Concat((1, 0), ("i",)), op.loop.results[1]))
    found = faults(replace(graph, ops=(replace(op, loop=loop),)))
    assert "concatenated along dimensions (1, 0) by axes ('i',)" in found[0].message
