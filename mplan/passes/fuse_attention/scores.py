"""From the scores back to the product of queries and keys: scale, masks, biases, views, casts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mplan.ir.graph import Arg, Op, Ref
from mplan.passes.fuse_attention.contraction import Contraction, contraction_of
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Layout, Space
from mplan.passes.fuse_attention.region import Bias, Factor, Keep, Mismatch, Operand
from mplan.passes.fuse_attention.views import base_name, broadcast, is_cast, source, through_view

#: A score at or below this has no weight beside any other; masks with finite numbers use such ones.
MASKED = -1e4
#: Scores are never this low: limiting them from below changes nothing.
_FLOOR = -1e30
#: Ops between a product of queries and keys and its softmax.
_LONGEST = 100


@dataclass(frozen=True, slots=True)
class Scores:
    """``scale * product``, then what was done to it; ``path`` are the values on the way."""

    product: Contraction
    layout: Layout
    scale: float
    biases: tuple[Bias, ...] = ()
    keeps: tuple[Keep, ...] = ()
    factors: tuple[Factor, ...] = ()
    path: tuple[Operand, ...] = ()


class ScoreWalk:
    """Walks from the operand of the softmax to the product it came from."""

    def __init__(self, facts: Facts, space: Space, keys: Group) -> None:
        self.facts = facts
        self.space = space
        self.keys = keys
        self._failed: dict[str, Mismatch] = {}
        self._depth = 0

    def walk(self, name: str, layout: Layout, scale: float = 1.0) -> Scores:
        """The scores ``name``, which count ``scale`` times; Mismatch if they are not of this form."""
        if name in self._failed:
            raise self._failed[name]
        self._depth += 1
        try:
            if self._depth > _LONGEST:
                raise Mismatch("the way from the scores to a product is too long")
            found = self._walk(name, self.space.resolved(layout), scale)
        except Mismatch as e:
            self._failed[name] = e
            raise
        finally:
            self._depth -= 1
        return replace(found, path=(Operand(name, layout), *found.path))

    def _walk(self, name: str, layout: Layout, scale: float) -> Scores:
        op = self.facts.producers.get(name)
        if op is None:
            raise Mismatch("the scores are not a product of queries and keys")
        product = contraction_of(self.facts, op)
        if product is not None:
            return self._product(product, layout, scale)
        if is_cast(op):
            if not self.facts.type(source(op)).dtype.is_float:
                raise Mismatch("the scores come from integers", op)
            return self.walk(source(op), layout, scale)
        before = through_view(self.space, self.facts, op, layout)
        if before is not None:
            return self.walk(source(op), before, scale)
        handler = _HANDLERS.get(base_name(op))
        if handler is None:
            raise Mismatch(_obstacle(op), op)
        return handler(self, op, layout, scale)

    def _product(self, product: Contraction, layout: Layout, scale: float) -> Scores:
        if not self.has_keys(layout):
            raise Mismatch("the scores are not a product of queries and keys", product.op)
        biases: tuple[Bias, ...] = ()
        if product.addend is not None:
            biases = self.bias(product.op, product.addend, layout, scale * product.beta)
        return Scores(product, layout, scale * product.alpha, biases)

    def has_keys(self, layout: Layout) -> bool:
        """Whether a tensor of ``layout`` varies along all keys."""
        atoms = {a for group in self.space.resolved(layout) for a in group}
        return atoms.issuperset(self.space.resolve(self.keys))

    def no_keys(self, layout: Layout) -> bool:
        """Whether a tensor of ``layout`` is the same for all keys."""
        atoms = {a for group in self.space.resolved(layout) for a in group}
        return atoms.isdisjoint(self.space.resolve(self.keys))

    def operand(self, op: Op, name: str, layout: Layout) -> Operand:
        """An operand of the pointwise ``op``, whose result has ``layout``."""
        shapes = self.facts.shape(name), self.facts.shape(op.result.name)
        return Operand(name, broadcast(self.space, layout, *shapes))

    def bias(self, op: Op, name: str, layout: Layout, factor: float) -> tuple[Bias, ...]:
        """A tensor added to the scores; one that is the same for all keys cancels in the softmax."""
        operand = self.operand(op, name, layout)
        return () if self.no_keys(operand.layout) else (Bias(operand, factor),)

    def either(self, op: Op, layout: Layout) -> Iterator[tuple[str, Arg, bool]]:
        """Which argument of a binary op could be the scores, the other one, whether it is second."""
        first, second = op.arg("self"), op.arg("other")
        for mine, other, swapped in ((first, second, False), (second, first, True)):
            if isinstance(mine, Ref) and self.has_keys(self.operand(op, mine.name, layout).layout):
                yield mine.name, other, swapped

    # --- pointwise ops --------------------------------------------------------------------------

    def add(self, op: Op, layout: Layout, scale: float) -> Scores:
        """``scores + bias``, ``bias + scores``, ``scores - bias``, ``bias - scores``."""
        alpha = self.facts.number(op.arg("alpha", 1))
        if alpha is None:
            raise Mismatch(_obstacle(op), op)
        name = base_name(op)
        signs = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[name]
        failure: Mismatch | None = None
        found: list[Scores] = []
        for mine, other, swapped in self.either(op, layout):
            own, others = reversed(signs) if swapped else signs
            at = self.operand(op, mine, layout).layout
            try:
                scores = self.walk(mine, at, scale * own)
            except Mismatch as e:
                failure = failure or e
                continue
            if isinstance(other, Ref):
                biases = self.bias(op, other.name, layout, scale * others)
                scores = replace(scores, biases=(*scores.biases, *biases))
            found.append(scores)
        if not found:
            raise failure or Mismatch("the scores are not a product of queries and keys", op)
        return max(found, key=self._has_rows)

    def _has_rows(self, scores: Scores) -> bool:
        """Whether the queries have an axis of their own, as opposed to weights of a linear layer.

        When the sum of two products enters a softmax, this tells attention from its bias.
        """
        groups = dict(zip(scores.product.out, self.space.resolved(scores.layout), strict=True))
        keys = set(self.space.resolve(self.keys))
        for query, key in scores.product.sides:
            of_query, of_key = (
                {a for label in side.known for a in groups.get(label, ())} for side in (query, key)
            )
            if keys <= of_key and not keys & of_query:
                return bool(of_query - of_key) and bool(of_query & of_key or not of_key - keys)
        return False

    def multiply(self, op: Op, layout: Layout, scale: float) -> Scores:
        """``scores * number``, ``scores / number``, or by a tensor that is the same for all keys."""
        inverse = base_name(op) == "div"
        if op.arg("rounding_mode") is not None:
            raise Mismatch("the scores are rounded", op)
        failure: Mismatch | None = None
        for mine, other, swapped in self.either(op, layout):
            at = self.operand(op, mine, layout).layout
            number = self.facts.number(other)
            if inverse and (swapped or number == 0.0):
                continue
            factor = 1.0 if number is None else 1.0 / number if inverse else number
            try:
                found = self.walk(mine, at, scale * factor)
            except Mismatch as e:
                failure = failure or e
                continue
            if number is not None or not isinstance(other, Ref):
                return found
            return self._factored(op, found, self.operand(op, other.name, layout), inverse)
        raise failure or Mismatch("the scores are not a product of queries and keys", op)

    def _factored(self, op: Op, found: Scores, other: Operand, inverse: bool) -> Scores:
        if not self.no_keys(other.layout):
            raise Mismatch("the scores are multiplied by a tensor that differs between keys", op)
        if found.biases or found.keeps:
            raise Mismatch("masked scores are multiplied by a tensor", op)
        return replace(found, factors=(*found.factors, Factor(other, inverse)))

    def negate(self, op: Op, layout: Layout, scale: float) -> Scores:
        """``-scores``."""
        return self.walk(source(op), layout, -scale)

    def limit(self, op: Op, layout: Layout, scale: float) -> Scores:
        """``maximum(scores, very low)``, a guard against minus infinity."""
        low = op.arg("min") if base_name(op) in ("clamp", "clamp_min") else op.arg("other")
        floor = self.facts.number(low)
        if floor is None or floor > _FLOOR or op.arg("max") is not None:
            raise Mismatch("the scores are clamped", op)
        return self.walk(source(op), self.operand(op, source(op), layout).layout, scale)

    def masked_fill(self, op: Op, layout: Layout, scale: float) -> Scores:
        """``scores.masked_fill(mask, low)``."""
        mask, fill = op.arg("mask"), self.facts.number(op.arg("value"))
        assert isinstance(mask, Ref)
        return self._masked(op, layout, scale, source(op), mask.name, fill, negated=True)

    def where(self, op: Op, layout: Layout, scale: float) -> Scores:
        """``where(mask, scores, low)`` or ``where(mask, low, scores)``."""
        mask = op.arg("condition")
        assert isinstance(mask, Ref)
        failure: Mismatch | None = None
        for mine, other, swapped in self.either(op, layout):
            fill = self.facts.number(other)
            try:
                return self._masked(op, layout, scale, mine, mask.name, fill, negated=swapped)
            except Mismatch as e:
                failure = failure or e
        raise failure or Mismatch(_obstacle(op), op)

    def _masked(
        self,
        op: Op,
        layout: Layout,
        scale: float,
        scores: str,
        mask: str,
        fill: float | None,
        negated: bool,
    ) -> Scores:
        found = self.walk(scores, self.operand(op, scores, layout).layout, scale)
        if fill is None:
            raise Mismatch("masked scores take values that are not known", op)
        if not fill * scale <= MASKED:
            raise Mismatch(f"masked scores become {fill * scale:g}, which still has weight", op)
        keep = Keep(self.operand(op, mask, layout), negated, fill * scale)
        return replace(found, keeps=(*found.keeps, keep))


_HANDLERS = {
    "add": ScoreWalk.add,
    "sub": ScoreWalk.add,
    "rsub": ScoreWalk.add,
    "mul": ScoreWalk.multiply,
    "div": ScoreWalk.multiply,
    "neg": ScoreWalk.negate,
    "maximum": ScoreWalk.limit,
    "clamp_min": ScoreWalk.limit,
    "clamp": ScoreWalk.limit,
    "masked_fill": ScoreWalk.masked_fill,
    "where": ScoreWalk.where,
}


def _obstacle(op: Op) -> str:
    soft_cap = " (a soft cap)" if base_name(op) == "tanh" else ""
    return f"{op.kind}{soft_cap} stands between the scores and the softmax"
