"""Matrix products in one form: operands whose dimensions carry labels, as in Einstein notation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from mplan.ir.graph import Op, Ref
from mplan.ir.types import Dim
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Layout, Space
from mplan.passes.fuse_attention.views import base_name, tensor_arg

#: One label per dimension; None for a dimension of size 1 that is broadcast.
Labels: TypeAlias = tuple[int | None, ...]

_FACTORS = {
    "bmm": ("self", "mat2"),
    "mm": ("self", "mat2"),
    "matmul": ("self", "other"),
    "baddbmm": ("batch1", "batch2"),
    "addmm": ("mat1", "mat2"),
    "linear": ("input", "weight"),
}


@dataclass(frozen=True, slots=True)
class Side:
    """An operand of a product and the labels of its dimensions."""

    value: str
    labels: Labels

    @property
    def known(self) -> frozenset[int]:
        """The labels without broadcast dimensions."""
        return frozenset(label for label in self.labels if label is not None)


@dataclass(frozen=True, slots=True)
class Contraction:
    """``op = alpha * sum(left * right over the labels that are not in out) + beta * addend``."""

    op: Op
    left: Side
    right: Side
    out: tuple[int, ...]
    alpha: float = 1.0
    addend: str | None = None
    beta: float = 0.0

    @property
    def summed(self) -> frozenset[int]:
        """The labels that are summed over."""
        return (self.left.known | self.right.known) - set(self.out)

    @property
    def sides(self) -> Iterator[tuple[Side, Side]]:
        """Both ways to look at it: this operand, the other one."""
        yield self.left, self.right
        yield self.right, self.left


def contraction_of(facts: Facts, op: Op) -> Contraction | None:
    """``op`` as a product of two matrices (or stacks of them); None if it is none."""
    name = base_name(op)
    if name == "einsum":
        return _einsum(facts, op)
    if name not in _FACTORS or len(op.values) != 1:
        return None
    left, right = (tensor_arg(op, arg) for arg in _FACTORS[name])
    if left is None or right is None or (name == "linear" and op.arg("bias") is not None):
        return None
    shapes = facts.shape(left), facts.shape(right)
    if min(len(shape) for shape in shapes) < 2:
        return None
    found = _matmul(op, left, right, facts, transposed=name == "linear")
    if name not in ("baddbmm", "addmm"):
        return found
    alpha, beta = facts.number(op.arg("alpha", 1)), facts.number(op.arg("beta", 1))
    if found is None or alpha is None or beta is None:
        return None
    addend = tensor_arg(op, "self") if beta else None
    return Contraction(op, found.left, found.right, found.out, alpha, addend, beta)


def _matmul(op: Op, left: str, right: str, facts: Facts, transposed: bool) -> Contraction | None:
    out = facts.shape(op.result.name)
    rank = len(out)
    rows, columns, inner = rank - 2, rank - 1, rank

    def labels(name: str, last: tuple[int, int]) -> Labels:
        shape = facts.shape(name)
        batch = shape[:-2]
        lead = rank - 2 - len(batch)
        return (*(_aligned(n, out[lead + i], lead + i) for i, n in enumerate(batch)), *last)

    right_last = (columns, inner) if transposed else (inner, columns)
    sides = Side(left, labels(left, (rows, inner))), Side(right, labels(right, right_last))
    return Contraction(op, *sides, tuple(range(rank)))


def _aligned(size: Dim, out: Dim, label: int) -> int | None:
    return None if size == 1 and out != 1 else label


def _einsum(facts: Facts, op: Op) -> Contraction | None:
    equation, tensors = op.arg("equation"), op.arg("tensors")
    if not isinstance(equation, str) or not isinstance(tensors, tuple) or len(tensors) != 2:
        return None
    names = [t.name for t in tensors if isinstance(t, Ref)]
    terms, arrow, result = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    if len(names) != 2 or len(inputs) != 2 or not arrow:
        return None
    ranks = [len(facts.shape(name)) for name in names]
    spelled = [_spell(term, rank) for term, rank in zip(inputs, ranks, strict=True)]
    out = _spell(result, len(facts.shape(op.result.name)))
    if any(s is None or len(set(s)) != len(s) for s in (*spelled, out)) or out is None:
        return None
    sizes = dict(zip(out, facts.shape(op.result.name), strict=True))
    left, right = (
        Side(name, tuple(_aligned(n, sizes.get(c, n), c) for c, n in zip(s, shape, strict=True)))
        for name, s, shape in zip(
            names, (s for s in spelled if s is not None), map(facts.shape, names), strict=True
        )
    )
    return Contraction(op, left, right, out)


def _spell(term: str, rank: int) -> tuple[int, ...] | None:
    """Labels of a term: letters by code, the dimensions of an ellipsis by negative numbers."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden > 0 and not dots):
        return None
    return (*map(ord, before), *range(-hidden, 0), *map(ord, after))


def side_layout(space: Space, groups: dict[int, Group], side: Side, facts: Facts) -> Layout:
    """The layout of an operand, given the atoms of each label; unknown labels get new atoms."""
    for label, size in zip(side.labels, facts.shape(side.value), strict=True):
        if label is not None and label not in groups:
            groups[label] = space.group(size)
    return tuple(() if label is None else groups[label] for label in side.labels)
