"""What the masks of a region amount to: nothing, a causal mask, or tensors to hand over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mplan.ir.graph import Ref
from mplan.ir.types import DType
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Space
from mplan.passes.fuse_attention.operands import View, atoms, rearrange
from mplan.passes.fuse_attention.region import Bias, Keep, Operand
from mplan.passes.fuse_attention.scores import MASKED
from mplan.passes.fuse_attention.steps import Halves, Shape, Uniform, shape_of
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
    """Recognise constant masks: those that hide nothing are dropped, causal ones become a flag.

    A mask that writes a finite number is *soft*: a query whose keys are all masked still attends to
    all of them alike. It may turn into a hard one only if it leaves every query a key and no other
    mask can take that away.
    """
    look = _Look(facts, space, space.resolve(rows), space.resolve(keys))
    split = [part for keep in keeps for part in _conjuncts(facts, space, keep)]
    seen = [look.at_bias(b) for b in biases] + [look.at_keep(k) for k in split]
    seen = [mask for mask in seen if mask.verdict != "nothing hidden"]
    alone = sum(mask.hides for mask in seen) == 1
    left = [mask.hardened if alone and mask.verdict != "unknown" else mask for mask in seen]
    causal = [mask.verdict == "causal" and mask.hard for mask in left]
    rest = [mask.term for mask, flag in zip(left, causal, strict=True) if not flag]
    return Masks(
        any(causal),
        tuple(term for term in rest if isinstance(term, Bias)),
        tuple(term for term in rest if isinstance(term, Keep)),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """A mask and what is known of it.

    ``verdict``: ``nothing hidden``, ``causal``, ``no blind query`` or ``unknown``. ``hides``: it may
    hide keys; ``hard``: those get minus infinity.
    """

    term: Bias | Keep
    verdict: str
    hides: bool
    hard: bool

    @property
    def hardened(self) -> _Seen:
        """The same with minus infinity in the place of a very low number."""
        if isinstance(self.term, Keep):
            return replace(self, term=replace(self.term, fill=MINUS_INFINITY), hard=True)
        return replace(self, hard=True)


def _conjuncts(facts: Facts, space: Space, keep: Keep) -> Iterator[Keep]:
    """A hard ``a and b`` keeps what both keep; behind views and negations too."""
    op = facts.producers.get(keep.operand.value)
    layout = space.resolved(keep.operand.layout)
    if op is None or keep.fill != MINUS_INFINITY:
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

    def at_keep(self, keep: Keep) -> _Seen:
        """What is known of a boolean mask."""
        verdict, _, _ = self._remembered(keep.operand, keep.negated, lambda: self._keep(keep))
        return _Seen(keep, verdict, True, keep.fill == MINUS_INFINITY)

    def at_bias(self, bias: Bias) -> _Seen:
        """What is known of an additive mask, or of a bias that hides nothing."""
        return _Seen(bias, *self._remembered(bias.operand, bias.factor, lambda: self._bias(bias)))

    def _remembered(
        self, operand: Operand, use: float, look: Callable[[], tuple[str, bool, bool]]
    ) -> tuple[str, bool, bool]:
        """Layers share their masks, and looking at one takes time."""
        place = {a: i for i, a in enumerate((*self.rows, *self.keys))}
        layout = self.space.resolved(operand.layout)
        dims = tuple(tuple(place.get(a, -1) for a in group) for group in layout)
        key = (operand.value, use, len(self.rows), dims)
        if key not in self.facts.looks:
            self.facts.looks[key] = look()
        return self.facts.looks[key]

    def _keep(self, keep: Keep) -> tuple[str, bool, bool]:
        matrix = self._matrix(keep.operand)
        if matrix is not None:
            return self._verdict(~matrix if keep.negated else matrix), True, True
        shape = shape_of(self.facts, keep.operand.value)
        return self._line(keep.operand, shape, lambda v: bool(v) != keep.negated), True, True

    def _bias(self, bias: Bias) -> tuple[str, bool, bool]:
        """The verdict, whether it may hide keys, whether those get minus infinity."""
        matrix = self._matrix(bias.operand)
        if matrix is None:
            return self._unknown_bias(bias)
        matrix = matrix * bias.factor
        shown = matrix == 0
        hidden = matrix <= MASKED
        if not bool((shown | hidden).all()):
            return "unknown", bool(hidden.any()), False
        hard = bool((matrix[hidden] == MINUS_INFINITY).all())
        return self._verdict(shown), True, hard

    def _unknown_bias(self, bias: Bias) -> tuple[str, bool, bool]:
        """An additive mask of unknown size, or a bias that may be anything."""
        shape = shape_of(self.facts, bias.operand.value)
        ends: list[float] = []
        if isinstance(shape, Halves):
            ends = [shape.inside, shape.outside]
        elif isinstance(shape, Uniform):
            ends = [shape.value]
        values = [value * bias.factor for value in ends]
        if not values or not all(value == 0 or value <= MASKED for value in values):
            return "unknown", self.facts.depends_on_inputs(bias.operand.value), False
        verdict = self._line(bias.operand, shape, lambda value: value * bias.factor == 0)
        return verdict, True, all(value in (0, MINUS_INFINITY) for value in values)

    def _line(self, operand: Operand, shape: Shape | None, shown: Callable[[float], bool]) -> str:
        """The verdict on a mask that is known as a function of the position."""
        if isinstance(shape, Uniform):
            return "nothing hidden" if shown(shape.value) else "unknown"
        if not isinstance(shape, Halves):
            return "unknown"
        inside, outside = shown(shape.inside), shown(shape.outside)
        if inside and outside:
            return "nothing hidden"
        slopes = dict(zip(self.space.resolved(operand.layout), shape.line.slopes, strict=True))
        along = slopes.pop(self.rows, 0), slopes.pop(self.keys, 0)
        sides = (inside, outside, *along, shape.line.constant)
        causal = sides in ((True, False, -1, 1, 0), (False, True, 1, -1, 1))
        return "causal" if causal and not any(slopes.values()) else "unknown"

    def _verdict(self, shown: Tensor) -> str:
        import torch

        if bool(shown.all()):
            return "nothing hidden"
        if torch.equal(shown, torch.ones_like(shown).tril()):
            return "causal"
        return "no blind query" if bool(shown.any(-1).all()) else "unknown"

    def _matrix(self, operand: Operand) -> Tensor | None:
        """The mask as ``[rows, keys]``, if it is constant and the same for the whole batch."""
        tensor = self.facts.constant(operand.value)
        if tensor is None:
            return None
        layout = self.space.resolved(operand.layout)
        present = atoms(layout)
        inner = (*self.rows, *self.keys)
        batch = tuple(a for group in layout for a in group if a not in inner)
        pieces = ((a,) if a in present else () for a in inner)
        for step in rearrange(layout, (batch, *pieces)):
            if isinstance(step, View):
                tensor = tensor.reshape(self._sizes(step.layout))
            else:
                tensor = tensor.permute(step.order)
        if not bool((tensor == tensor[:1]).all()):
            return None
        full = tensor[0].expand(self._sizes((a,) for a in inner))
        return full.reshape(self._sizes((self.rows, self.keys)))

    def _sizes(self, groups: Iterable[Group]) -> list[int]:
        return [n for n in self.space.shape(tuple(groups)) if isinstance(n, int)]
