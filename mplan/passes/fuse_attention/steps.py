"""Masks of sizes that are not known: values as functions of the position, for causal masks.

Constant masks of known sizes are simply looked at. For others, arithmetic on positions (``arange``),
comparisons and triangles are followed symbolically. Three kinds of values are understood: a number
everywhere, an affine function of the indices, and one number up to a line and another beyond it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from mplan.ir.graph import Arg, Op, Ref
from mplan.ir.types import DType
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.views import base_name, permutation, source


@dataclass(frozen=True, slots=True)
class Affine:
    """``constant + sum(slopes[i] * index i)``; ``slopes`` has one entry per dimension."""

    slopes: tuple[int, ...]
    constant: int


@dataclass(frozen=True, slots=True)
class Uniform:
    """The same number everywhere."""

    value: float


@dataclass(frozen=True, slots=True)
class Halves:
    """``inside`` where ``line <= 0``, else ``outside``."""

    line: Affine
    inside: float
    outside: float


Shape: TypeAlias = Affine | Uniform | Halves

_RESHAPES = ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "alias", "clone")
_CASTS = ("_to_copy", "to", "lift_fresh_copy", "detach")
_LOGIC = frozenset(("bitwise_and", "bitwise_or", "__and__", "__or__"))
_LINES = {"le": (1, 0), "lt": (1, 1), "ge": (-1, 0), "gt": (-1, 1)}
_NUMBERS: dict[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "rsub": lambda a, b: b - a,
    "mul": operator.mul,
    "eq": operator.eq,
    "ne": operator.ne,
    "le": operator.le,
    "lt": operator.lt,
    "ge": operator.ge,
    "gt": operator.gt,
    "logical_and": lambda a, b: bool(a) and bool(b),
    "bitwise_and": lambda a, b: bool(a) and bool(b),
    "__and__": lambda a, b: bool(a) and bool(b),
    "logical_or": lambda a, b: bool(a) or bool(b),
    "bitwise_or": lambda a, b: bool(a) or bool(b),
    "__or__": lambda a, b: bool(a) or bool(b),
}


def shape_of(facts: Facts, name: str) -> Shape | None:
    """The value ``name`` as a function of its indices; None if it is nothing of these."""
    found = _shape_of(facts, name)
    if found is None or isinstance(found, Uniform):
        return found
    line = found if isinstance(found, Affine) else found.line
    only_zero = [n == 1 for n in facts.shape(name)]
    slopes = tuple(0 if zero else s for s, zero in zip(line.slopes, only_zero, strict=True))
    flat = replace(line, slopes=slopes)
    return flat if isinstance(found, Affine) else replace(found, line=flat)


def _shape_of(facts: Facts, name: str) -> Shape | None:
    op = facts.producers.get(name)
    number = facts.number(Ref(name))
    if number is not None:
        return Uniform(number)
    if op is None:
        return None
    base = base_name(op)
    if base == "arange":
        return _positions(facts, op)
    boolean = facts.type(name).dtype is DType.BOOL
    if base in _CASTS:
        found = shape_of(facts, source(op))
        return _mapped(found, bool) if boolean else found
    if base in _RESHAPES:
        return _moved(facts, op, _kept_dims(facts, op))
    if base in ("permute", "transpose", "t"):
        return _moved(facts, op, permutation(op, len(facts.shape(name))))
    if base in ("tril", "triu"):
        return _triangle(facts, op)
    if base in ("logical_not", "bitwise_not") and boolean:
        return _mapped(shape_of(facts, source(op)), lambda value: not value)
    if base in ("where", "masked_fill"):
        return _chosen(facts, op)
    if base in _LOGIC and not boolean:
        return None
    return _combined(facts, op) if base in _NUMBERS else None


def _positions(facts: Facts, op: Op) -> Shape | None:
    start, step = op.arg("start", 0), op.arg("step", 1)
    return Affine((step,), start) if isinstance(start, int) and isinstance(step, int) else None


def _kept_dims(facts: Facts, op: Op) -> tuple[int | None, ...] | None:
    """For each dimension of the result the one of the operand, None for one that it made up.

    Only dimensions of size 1 may come and go, and be broadcast.
    """
    before, after = facts.shape(source(op)), facts.shape(op.result.name)
    if base_name(op) == "expand":
        lead = len(after) - len(before)
        return tuple(i - lead if i >= lead else None for i in range(len(after)))
    real = [i for i, n in enumerate(before) if n != 1]
    if [before[i] for i in real] != [n for n in after if n != 1]:
        return None
    rest = iter(real)
    return tuple(None if n == 1 else next(rest) for n in after)


def _moved(facts: Facts, op: Op, dims: tuple[int | None, ...] | None) -> Shape | None:
    found = shape_of(facts, source(op))
    if found is None or dims is None or isinstance(found, Uniform):
        return found
    line = found if isinstance(found, Affine) else found.line
    moved = Affine(tuple(0 if d is None else line.slopes[d] for d in dims), line.constant)
    return moved if isinstance(found, Affine) else replace(found, line=moved)


def _triangle(facts: Facts, op: Op) -> Shape | None:
    """``tril`` keeps what is at most ``diagonal`` right of the diagonal, ``triu`` at least."""
    found, diagonal = shape_of(facts, source(op)), op.arg("diagonal", 0)
    rank = len(facts.shape(op.result.name))
    if not isinstance(found, Uniform) or not isinstance(diagonal, int):
        return None
    right = Affine((0,) * (rank - 2) + (-1, 1), 0)
    if base_name(op) == "tril":
        return Halves(replace(right, constant=-diagonal), found.value, 0.0)
    return Halves(replace(right, constant=1 - diagonal), 0.0, found.value)


def _mapped(found: Shape | None, function: Callable[[float], float]) -> Shape | None:
    if isinstance(found, Uniform):
        return Uniform(float(function(found.value)))
    if isinstance(found, Halves):
        return Halves(found.line, float(function(found.inside)), float(function(found.outside)))
    return None


def _chosen(facts: Facts, op: Op) -> Shape | None:
    """``where`` and ``masked_fill``, if condition and choices change along the same line."""
    rank = len(facts.shape(op.result.name))
    if base_name(op) == "where":
        names: tuple[Arg, ...] = (op.arg("condition"), op.arg("self"), op.arg("other"))
    else:
        names = (op.arg("mask"), op.arg("value"), op.arg("self"))
    condition, first, second = (_aligned(facts, arg, rank) for arg in names)
    return _pointwise((condition, first, second), lambda values: values[1] if values[0] else values[2])


def _combined(facts: Facts, op: Op) -> Shape | None:
    """A binary op on two shapes or a shape and a number."""
    rank, base = len(facts.shape(op.result.name)), base_name(op)
    a, b = (_aligned(facts, op.arg(name), rank) for name in ("self", "other"))
    if op.arg("alpha", 1) != 1 or a is None or b is None:
        return None
    if isinstance(a, Affine) or isinstance(b, Affine):
        return _on_positions(base, _line(a, rank), _line(b, rank))
    function = _NUMBERS[base]
    return _pointwise((a, b), lambda values: float(function(values[0], values[1])))


def _on_positions(base: str, a: Affine | None, b: Affine | None) -> Shape | None:
    if a is None or b is None:
        return None
    if base in ("add", "sub"):
        return _sum(a, b, 1 if base == "add" else -1)
    if base == "rsub":
        return _sum(b, a, -1)
    if base not in _LINES:
        return None
    sign, strict = _LINES[base]
    difference = _sum(a, b, -1) if sign == 1 else _sum(b, a, -1)
    line = replace(difference, constant=difference.constant + strict)
    if line.constant <= 0 and max(line.slopes, default=0) <= 0:
        return Uniform(1.0)  # indices are not negative
    return Halves(line, 1.0, 0.0)


def _sum(a: Affine, b: Affine, sign: int) -> Affine:
    slopes = tuple(x + sign * y for x, y in zip(a.slopes, b.slopes, strict=True))
    return Affine(slopes, a.constant + sign * b.constant)


def _line(found: Shape, rank: int) -> Affine | None:
    if isinstance(found, Uniform) and found.value == int(found.value):
        return Affine((0,) * rank, int(found.value))
    return found if isinstance(found, Affine) else None


def _aligned(facts: Facts, arg: Arg, rank: int) -> Shape | None:
    """An operand of a pointwise op whose result has ``rank`` dimensions."""
    number = facts.number(arg)
    if number is not None:
        return Uniform(number)
    found = shape_of(facts, arg.name) if isinstance(arg, Ref) else None
    if found is None or isinstance(found, Uniform):
        return found
    line = found if isinstance(found, Affine) else found.line
    wider = replace(line, slopes=(0,) * (rank - len(line.slopes)) + line.slopes)
    return wider if isinstance(found, Affine) else replace(found, line=wider)


def _pointwise(
    found: tuple[Shape | None, ...], function: Callable[[list[float]], float]
) -> Shape | None:
    """A function of numbers that are uniform or change along one and the same line."""
    halves = [f for f in found if isinstance(f, Halves)]
    if any(f is None or isinstance(f, Affine) for f in found) or len({h.line for h in halves}) > 1:
        return None
    ends = []
    for inside in (True, False):
        values = [
            (f.inside if inside else f.outside) if isinstance(f, Halves) else f.value
            for f in found
            if isinstance(f, (Halves, Uniform))
        ]
        ends.append(float(function(values)))
    return Halves(halves[0].line, ends[0], ends[1]) if halves else Uniform(ends[0])
