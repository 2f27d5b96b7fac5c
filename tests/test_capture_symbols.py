"""Size expressions: the text of a SymPy expression has its value."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import sympy
from hypothesis import given, settings
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, ModularIndexing

from mplan.capture.symbols import text
from mplan.diagnostics import UnsupportedError
from mplan.ir.types import Sym

NAMES = ("s0", "s1", "s77")
SYMBOLS = [sympy.Symbol(name, positive=True, integer=True) for name in NAMES]


def _grown(inner: st.SearchStrategy[sympy.Expr]) -> st.SearchStrategy[sympy.Expr]:
    positive = st.integers(1, 9).map(sympy.Integer)
    return st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, n: a**n, st.sampled_from(SYMBOLS), st.integers(2, 3)),
        st.builds(FloorDiv, inner, positive),
        st.builds(Mod, st.sampled_from(SYMBOLS), positive),
        st.builds(ModularIndexing, st.sampled_from(SYMBOLS), positive, positive),
        st.builds(Max, inner, inner),
        st.builds(Min, inner, inner),
    )


ATOMS = st.one_of(st.sampled_from(SYMBOLS), st.integers(-9, 99).map(sympy.Integer))


@given(st.recursive(ATOMS, _grown, max_leaves=8), st.tuples(*[st.integers(1, 40)] * 3))
@settings(max_examples=1000, deadline=None)
def test_text_has_the_value_of_the_expression(expr: sympy.Expr, values: tuple[int, ...]) -> None:
    expected = expr.subs(dict(zip(SYMBOLS, values, strict=True)))
    assert Sym(text(expr)).evaluate(dict(zip(NAMES, values, strict=True))) == int(expected)


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (SYMBOLS[0] * 4 + 1, "s0 * 4 + 1"),
        (SYMBOLS[0] - 2 * SYMBOLS[1], "s0 - s1 * 2"),
        (1 - Mod(SYMBOLS[0], 2), "1 - s0 % 2"),
        (-Mod(SYMBOLS[0], 2) - Mod(SYMBOLS[1], 3), "-(s0 % 2) - s1 % 3"),
        (-SYMBOLS[0], "s0 * (-1)"),
        (FloorDiv(SYMBOLS[0] - 1, 2) + 1, "(s0 - 1) // 2 + 1"),
        (CleanDiv(SYMBOLS[0], SYMBOLS[1]), "s0 // s1"),
        (Max(SYMBOLS[0] - 1, 1) * SYMBOLS[1], "max(s0 - 1, 1) * s1"),
    ],
)
def test_texts(expr: sympy.Expr, expected: str) -> None:
    assert text(expr) == expected


@pytest.mark.parametrize("expr", [SYMBOLS[0] / 2, sympy.sqrt(SYMBOLS[0]), sympy.Float(1.5)])
def test_other_expressions_are_refused(expr: sympy.Expr) -> None:
    with pytest.raises(UnsupportedError) as caught:
        text(expr)
    assert caught.value.code == "MP305"
