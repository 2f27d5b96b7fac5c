"""Find attention in a graph by data flow: softmax(query · keyᵀ) · value in any spelling.

The search starts at a product one of whose operands comes from a softmax, walks back to the scores
and on to the product of queries and keys, and tracks through all views which axis is which. Nothing
is matched by its text; what cannot be explained as attention is rejected with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mplan.ir.graph import Graph, Op
from mplan.ir.types import DType
from mplan.passes.fuse_attention.axes import Axes, find_axes
from mplan.passes.fuse_attention.contraction import Contraction, Side, contraction_of, side_layout
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Group, Layout, Space
from mplan.passes.fuse_attention.masks import settle
from mplan.passes.fuse_attention.operands import Stage, atoms, choose, stages
from mplan.passes.fuse_attention.region import Finding, Mismatch, Operand, Region, Rejected
from mplan.passes.fuse_attention.scores import Scores, ScoreWalk
from mplan.passes.fuse_attention.weights import WeightWalk, leads_to_softmax


def recognise(graph: Graph, constants: Mapping[str, Any]) -> tuple[Finding, ...]:
    """All attention in ``graph``, and the candidates that are none with the reason.

    ``constants`` maps buffers and constants to tensors; masks that depend on nothing else are looked
    at, so that a causal one is known as such. Regions come in schedule order.
    """
    facts = Facts(graph, constants)
    return tuple(finding for op in graph.ops for finding in _examine(facts, op))


def _examine(facts: Facts, op: Op) -> Iterator[Finding]:
    product = contraction_of(facts, op)
    if product is None:
        return
    for weights, values in product.sides:
        if leads_to_softmax(facts, weights.value):
            try:
                yield _Match(facts, product, weights, values).region()
            except Mismatch as e:
                yield Rejected(op, e.reason, e.op.loc if e.op else op.loc)
            return


class _Match:
    """One candidate: the product of ``weights`` and ``values``."""

    def __init__(self, facts: Facts, product: Contraction, weights: Side, values: Side) -> None:
        self.facts = facts
        self.product = product
        self.space = Space(facts.graph.symbol_table)
        groups: dict[int, Group] = {}
        out = Side(product.op.result.name, product.out)
        self.out = Operand(out.value, side_layout(self.space, groups, out, facts))
        self.weights = Operand(weights.value, side_layout(self.space, groups, weights, facts))
        self.values = Operand(values.value, side_layout(self.space, groups, values, facts))
        self.keys = tuple(a for n in weights.labels if n in product.summed for a in groups[n or 0])
        self.width = _width(product, weights, values, groups)

    def region(self) -> Region:
        """The region; Mismatch says why there is none."""
        if self.product.addend is not None or self.product.alpha != 1.0:
            raise Mismatch("the product with the values is scaled or added to", self.product.op)
        walk = WeightWalk(self.facts, self.space, self.keys)
        start = walk.scores(self.weights.value, self.weights.layout)
        scores = ScoreWalk(self.facts, self.space, self.keys).walk(start.value, start.layout)
        query, key, depth = self._factors(scores)
        path = (self.weights, start, *scores.path)
        interior = frozenset((*walk.path, *(p.value for p in scores.path)))
        self._require_private(interior)
        return self._build(scores, query, key, depth, path, interior)

    def _factors(self, scores: Scores) -> tuple[Operand, Operand, Group]:
        """Query and key of the product that yields the scores, and what they are contracted over."""
        product = scores.product
        keys = frozenset(self.space.resolve(self.keys))
        for left, right in product.sides:
            groups = dict(zip(product.out, self.space.resolved(scores.layout), strict=True))
            query = Operand(left.value, side_layout(self.space, groups, left, self.facts))
            key = Operand(right.value, side_layout(self.space, groups, right, self.facts))
            if not product.summed <= left.known & right.known:
                raise Mismatch("the scores sum over an axis of one operand alone", product.op)
            if keys <= atoms(key.layout) and keys.isdisjoint(atoms(query.layout)):
                depth = (a for n in left.labels if n in product.summed for a in groups[n or 0])
                return query, key, tuple(depth)
        raise Mismatch("the scores are not a product of queries and keys", product.op)

    def _require_private(self, interior: frozenset[str]) -> None:
        outside = self.facts.use_outside(interior, self.product.op)
        if outside is not None:
            name, op = outside
            how = f"also used by {op.kind}" if op else "returned by the model"
            raise Mismatch(f"the scores or weights %{name} are {how}", op)

    def _build(
        self,
        scores: Scores,
        query: Operand,
        key: Operand,
        depth: Group,
        path: Iterable[Operand],
        interior: frozenset[str],
    ) -> Region:
        facts, space = self.facts, self.space
        element = facts.type(self.values.value).dtype
        chains = (
            stages(facts, space, query, scaled=True, narrow=element),
            stages(facts, space, key, scaled=True, narrow=element),
            stages(facts, space, self.values),
        )
        ends = [chain[-1].operand.layout for chain in chains]
        biases = tuple(replace(b, operand=self._earliest(b.operand)) for b in scores.biases)
        keeps = tuple(replace(k, operand=self._earliest(k.operand)) for k in scores.keeps)
        shown = [b.operand.layout for b in biases] + [m.operand.layout for m in keeps]
        axes = find_axes(space, path, ends, shown, self.keys, depth, self.width)
        self._require_covered(axes, ends)
        settled = settle(facts, space, axes.rows, axes.keys, biases, keeps)
        dtype = _element_type(chains)
        q, k, v = (
            choose(facts, space, chain, target, dtype)
            for chain, target in zip(chains, axes.targets(ends), strict=True)
        )
        return Region(
            op=self.product.op,
            result=Operand(self.out.value, space.resolved(self.out.layout)),
            query=q.operand,
            key=k.operand,
            value=v.operand,
            dtype=dtype,
            space=space,
            axes=axes,
            scale=scores.scale * q.scale * k.scale,
            is_causal=settled.is_causal,
            biases=settled.biases,
            keeps=settled.keeps,
            factors=scores.factors,
            interior=interior,
        )

    def _earliest(self, operand: Operand) -> Operand:
        """What ``operand`` shows: the tensor behind its views, before it was broadcast."""
        return stages(self.facts, self.space, operand)[-1].operand

    def _require_covered(self, axes: Axes, ends: list[Layout]) -> None:
        """Every axis of the result must come from query, key or value."""
        space = self.space
        result = atoms(space.resolved(self.out.layout))
        if result != atoms((*axes.batch, axes.rows, axes.width)):
            raise Mismatch("the result has an axis that the scores lack", self.product.op)
        if not atoms(axes.batch) <= frozenset().union(*(atoms(space.resolved(e)) for e in ends)):
            raise Mismatch("an axis of the batch belongs to the mask alone", self.product.op)


def _width(product: Contraction, weights: Side, values: Side, groups: dict[int, Group]) -> Group:
    """The axis of the values that is left in the result."""
    free = [n for n in values.labels if n is not None and n not in weights.known]
    if any(n in product.summed for n in free) or not product.summed <= values.known:
        raise Mismatch("the product with the values sums over an axis of one operand", product.op)
    if len(free) > 1:
        raise Mismatch("the values have batch axes that the weights lack", product.op)
    return groups[free[0]] if free else ()


def _element_type(chains: tuple[tuple[Stage, ...], ...]) -> DType:
    """The values' type if query and key come in it too, else the widest of the three."""
    element = chains[2][0].dtype
    if all(any(stage.dtype == element for stage in chain) for chain in chains):
        return element
    return max((chain[0].dtype for chain in chains), key=lambda t: t.itemsize)
