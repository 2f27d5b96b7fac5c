"""What a recogniser yields: regions that are attention, and candidates that are not, with reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mplan.ir.graph import Graph, Loc, Op
from mplan.ir.types import DType
from mplan.passes.fuse_attention.layout import Layout, Space

if TYPE_CHECKING:
    from mplan.passes.fuse_attention.axes import Axes


@dataclass(frozen=True, slots=True)
class Operand:
    """A value of the graph and the layout of its dimensions in the atoms of the region."""

    value: str
    layout: Layout


@dataclass(frozen=True, slots=True)
class Bias:
    """A tensor that is added to the scores, times ``factor``."""

    operand: Operand
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Keep:
    """A boolean mask: scores stay where it is true (``negated``: where it is false).

    Elsewhere they become ``fill``: minus infinity, or a number so low that its weight is zero unless
    all keys of a query are masked.
    """

    operand: Operand
    negated: bool
    fill: float


@dataclass(frozen=True, slots=True)
class Factor:
    """A tensor that multiplies (``inverse``: divides) all scores of a query alike."""

    operand: Operand
    inverse: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """One attention: ``result = softmax(scale · factors · query·keyᵀ + biases, where keep) · value``.

    ``op`` computes ``result``, which the region replaces. ``dtype`` is the element type to compute in.
    ``interior`` are the values that the region makes superfluous: nothing outside uses them.
    """

    op: Op
    result: Operand
    query: Operand
    key: Operand
    value: Operand
    dtype: DType
    space: Space
    axes: Axes
    scale: float
    is_causal: bool
    biases: tuple[Bias, ...]
    keeps: tuple[Keep, ...]
    factors: tuple[Factor, ...]
    interior: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A product with a softmax that was not recognised, why, and where the obstacle stands."""

    op: Op
    reason: str
    loc: Loc | None

    def __str__(self) -> str:
        """One line for ``Context.notes``."""
        place = str(self.loc or self.op.loc or "")
        return f"attention not fused: {self.reason}" + (f" ({place})" if place else "")


Finding: TypeAlias = Region | Rejected

#: ``recogniser(graph, constants)``: the regions of the graph, disjoint, in schedule order.
Recogniser: TypeAlias = Callable[[Graph, Mapping[str, Any]], tuple[Finding, ...]]


class Mismatch(Exception):
    """The graph is not attention here: the reason, and the op that is the obstacle."""

    def __init__(self, reason: str, op: Op | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.op = op
