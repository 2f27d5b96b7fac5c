"""What the masks of a region amount to: nothing, a causal mask, or tensors to hand over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mplan.ir.graph import Ref
from mplan.ir.types import DType
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Space
from mplan.passes.fuse_attention.operands import View, atoms, rearrange
from mplan.passes.fuse_attention.region import Bias, Keep, Operand
from mplan.passes.fuse_attention.scores import MASKED
from mplan.passes.fuse_attention.views import base_name, broadcast, source, through_view

if TYPE_CHECKING:
    from torch import Tensor

MINUS_INFINITY = float("-inf")
_AND = ("logical_and", "bitwise_and", "__and__")
_OR = ("logical_or", "bitwise_or", "__or__")


@dataclass(frozen=True, slots=True)
class Masks:
    """What is left after masks known at compile time were looked at."""

    is_causal: bool
    biases: tuple[Bias, ...]
    keeps: tuple[Keep, ...]


def settle(
    facts: Facts,
    space: Space,
    rows: Group,
    keys: Group,
    biases: Iterable[Bias],
    keeps: Iterable[Keep],
) -> Masks:
    """Recognise constant masks: those that hide nothing are dropped, causal ones become a flag."""
    look = _Look(facts, space, space.resolve(rows), space.resolve(keys))
    left_biases, left_keeps, causal = [], [], False
    for bias in biases:
        verdict = look.at_bias(bias)
        causal |= verdict == "causal"
        left_biases += [bias] if verdict == "other" else []
    for keep in (k for mask in keeps for k in _conjuncts(facts, space, mask)):
        verdict = look.at_keep(keep)
        causal |= verdict == "causal"
        certain = replace(keep, fill=MINUS_INFINITY) if verdict == "no blind row" else keep
        left_keeps += [certain] if verdict in ("other", "no blind row") else []
    return Masks(causal, tuple(left_biases), tuple(left_keeps))


def _conjuncts(facts: Facts, space: Space, keep: Keep) -> Iterator[Keep]:
    """``a and b`` keeps what both keep; behind views and negations too."""
    op = facts.producers.get(keep.operand.value)
    layout = space.resolved(keep.operand.layout)
    if op is None:
        yield keep
        return
    name = base_name(op)
    boolean = all(facts.type(n).dtype is DType.BOOL for n in op.operands)
    before = through_view(space, facts, op, layout)
    parts = _OR if keep.negated else _AND
    inner: list[Keep] = []
    if boolean and name in ("logical_not", "bitwise_not"):
        inner = [replace(keep, operand=Operand(source(op), layout), negated=not keep.negated)]
    elif boolean and name in parts:
        for arg in (op.arg("self"), op.arg("other")):
            if isinstance(arg, Ref):
                shapes = facts.shape(arg.name), facts.shape(op.result.name)
                inner.append(
                    replace(keep, operand=Operand(arg.name, broadcast(space, layout, *shapes)))
                )
    elif boolean and before is not None:
        inner = [replace(keep, operand=Operand(source(op), before))]
    if not inner:
        yield keep
    for found in inner:
        yield from _conjuncts(facts, space, found)


class _Look:
    """Looks at the values of constant masks as matrices of queries by keys."""

    def __init__(self, facts: Facts, space: Space, rows: Group, keys: Group) -> None:
        self.facts = facts
        self.space = space
        self.rows = rows
        self.keys = keys

    def at_keep(self, keep: Keep) -> str:
        """``none`` hidden, ``causal``, ``no blind row`` or ``other``."""
        matrix = self._matrix(keep.operand)
        if matrix is None:
            return "other"
        return self._verdict(~matrix if keep.negated else matrix)

    def at_bias(self, bias: Bias) -> str:
        """The same for an additive mask; ``other`` if it is more than a mask."""
        matrix = self._matrix(bias.operand)
        if matrix is None:
            return "other"
        matrix = matrix * bias.factor
        shown = matrix == 0
        if not bool((shown | (matrix <= MASKED)).all()):
            return "other"
        verdict = self._verdict(shown)
        return "other" if verdict == "no blind row" else verdict

    def _verdict(self, shown: Tensor) -> str:
        import torch

        if bool(shown.all()):
            return "none"
        if torch.equal(shown, torch.ones_like(shown).tril()):
            return "causal"
        return "no blind row" if bool(shown.any(-1).all()) else "other"

    def _matrix(self, operand: Operand) -> Tensor | None:
        """The mask as ``[rows, keys]``, if it is constant and the same for the whole batch."""
        layout = self.space.resolved(operand.layout)
        sizes = self.space.shape((self.rows, self.keys))
        tensor = self.facts.constant(operand.value)
        if tensor is None or not atoms(layout) <= {*self.rows, *self.keys}:
            return None
        present = atoms(layout)
        pieces = tuple((a,) if a in present else () for a in (*self.rows, *self.keys))
        for step in rearrange(layout, pieces):
            if isinstance(step, View):
                tensor = tensor.reshape([_int(n) for n in self.space.shape(step.layout)])
            else:
                tensor = tensor.permute(step.order)
        full = [_int(self.space.size((a,))) for a in (*self.rows, *self.keys)]
        return tensor.expand(full).reshape([_int(n) for n in sizes])


def _int(dim: object) -> int:
    assert isinstance(dim, int)
    return dim
