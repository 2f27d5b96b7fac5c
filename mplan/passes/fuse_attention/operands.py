"""Which tensor to hand to the attention: the one with the least work on the way to a product.

A product's operand is often a scaled, transposed, expanded copy of what the model computed. Every
value on the chain of views behind it is a *stage*; the one that needs the fewest rearrangements wins,
and among equals the earliest, so that copies and expanded heads disappear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from mplan.ir.graph import Op
from mplan.ir.types import DType
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Layout, Space
from mplan.passes.fuse_attention.region import Operand
from mplan.passes.fuse_attention.views import base_name, is_cast, source, through_view


@dataclass(frozen=True, slots=True)
class Stage:
    """A value that holds an operand's elements, times ``scale``."""

    operand: Operand
    scale: float
    dtype: DType


@dataclass(frozen=True, slots=True)
class View:
    """A step: reshape to ``layout``."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Permute:
    """A step: dimension ``i`` of the result is dimension ``order[i]``; ``layout`` is the result's."""

    order: tuple[int, ...]
    layout: Layout


Step: TypeAlias = View | Permute


def stages(
    facts: Facts, space: Space, operand: Operand, *, scaled: bool = False, narrow: DType | None = None
) -> tuple[Stage, ...]:
    """The stages behind ``operand``, from itself to the earliest.

    ``scaled`` looks behind multiplications by numbers, ``narrow`` behind exact conversions from that
    type.
    """
    scale = 1.0
    found = [Stage(operand, scale, facts.type(operand.value).dtype)]
    while (op := facts.producers.get(operand.value)) is not None and op.operands:
        before = through_view(space, facts, op, operand.layout)
        number = _multiplier(facts, op) if scaled else None
        if number is not None:
            scale *= number[1]
            operand = Operand(number[0], operand.layout)
        elif before is not None:
            operand = Operand(source(op), before)
        elif narrow is not None and _widens(facts, op, narrow):
            operand = Operand(source(op), operand.layout)
        else:
            break
        found.append(Stage(operand, scale, facts.type(operand.value).dtype))
    return tuple(found)


def _multiplier(facts: Facts, op: Op) -> tuple[str, float] | None:
    """The tensor and the number, if ``op`` multiplies or divides a tensor of its shape by one."""
    if base_name(op) not in ("mul", "div") or op.arg("rounding_mode") is not None:
        return None
    for mine, other in (("self", "other"), ("other", "self")):
        number = facts.number(op.arg(other))
        names = [n for n in op.operands if facts.shape(n) == facts.shape(op.result.name)]
        arg = op.arg(mine)
        same = [n for n in names if getattr(arg, "name", None) == n]
        if number is None or not same or facts.type(same[0]).dtype != facts.type(op.result.name).dtype:
            continue
        if base_name(op) == "mul":
            return same[0], number
        if mine == "self" and number:
            return same[0], 1.0 / number
    return None


def _widens(facts: Facts, op: Op, narrow: DType) -> bool:
    after = facts.type(op.result.name).dtype
    before = facts.type(source(op)).dtype
    return is_cast(op) and before == narrow and after.is_float and after.itemsize > narrow.itemsize


def atoms(layout: Iterable[Group]) -> frozenset[int]:
    """All atoms of a layout."""
    return frozenset(a for group in layout for a in group)


def choose(
    facts: Facts, space: Space, found: Iterable[Stage], target: Layout, dtype: DType | None
) -> Stage:
    """The stage that is easiest to bring into the layout ``target`` (of the earliest one's atoms).

    Stages of another type than ``dtype`` are taken only where there is no other.
    """
    known = [_resolved(space, s) for s in found]
    least = atoms(known[-1].operand.layout)
    usable = [s for s in known if atoms(s.operand.layout) == least]
    fitting = [s for s in usable if dtype is None or s.dtype == dtype] or usable[:1]
    return min(reversed(fitting), key=lambda s: _cost(facts, space, s, target))


def _resolved(space: Space, stage: Stage) -> Stage:
    layout = space.resolved(stage.operand.layout)
    return Stage(Operand(stage.operand.value, layout), stage.scale, stage.dtype)


def _cost(facts: Facts, space: Space, stage: Stage, target: Layout) -> int:
    """Rearrangements, and a penalty if the last axis is not dense (kernels then read slowly)."""
    steps = rearrange(stage.operand.layout, target)
    strides = facts.type(stage.operand.value).strides
    if strides is None or not steps:
        dense = strides is None or not strides or strides[-1] == 1
    else:
        dense = stage.operand.layout[-1][-1:] == target[-1][-1:]
    return len(steps) + 2 * (not dense)


def rearrange(have: Layout, want: Layout) -> tuple[Step, ...]:
    """Steps from one (resolved) layout to another one of the same atoms."""
    if have == want:
        return ()
    if _flat(have) == _flat(want):
        return (View(want),)
    if not _whole_groups(have, want):
        pieces = tuple((atom,) for atom in _flat(have))
        first = () if have == pieces else (View(pieces),)
        return (*first, *rearrange(pieces, want))
    order = tuple(_order(have, want))
    placed = tuple(have[i] for i in order)
    return (Permute(order, placed), *rearrange(placed, want))


def _flat(layout: Layout) -> tuple[int, ...]:
    return tuple(a for group in layout for a in group)


def _whole_groups(have: Layout, want: Layout) -> bool:
    """Whether each wanted dimension is a row of whole dimensions of ``have``."""
    starts = {group[0]: group for group in have if group}
    for group in want:
        position = 0
        while position < len(group):
            piece = starts.get(group[position])
            if piece is None or group[position : position + len(piece)] != piece:
                return False
            position += len(piece)
    return True


def _order(have: Layout, want: Layout) -> Iterator[int]:
    """The dimensions of ``have`` in the order of ``want``; those of size 1 fill its gaps or end it."""
    place = {atom: i for i, group in enumerate(have) for atom in group}
    units = iter([i for i, group in enumerate(have) if not group])
    for group in want:
        dims = dict.fromkeys(place[atom] for atom in group)
        if dims:
            yield from dims
        else:
            unit = next(units, None)
            if unit is not None:
                yield unit
    yield from units
