"""Backwards through ops that only move data: from the layout of a result to that of its operand."""

from __future__ import annotations

from mplan.ir.graph import Op, Ref
from mplan.ir.types import Dim
from mplan.passes.fuse_attention.facts import Facts
from mplan.passes.fuse_attention.layout import Layout, Space

_RESHAPES = frozenset(
    ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as")
)
_PERMUTATIONS = frozenset(("permute", "transpose", "t", "numpy_T", "mT", "swapaxes", "movedim"))
_COPIES = frozenset(("clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy"))
_BROADCASTS = frozenset(("expand", "expand_as", "broadcast_to"))
_CASTS = frozenset(("_to_copy", "to", "type_as", "convert_element_type"))


def base_name(op: Op) -> str:
    """``softmax`` of ``aten.softmax.int``."""
    return op.kind.split(".")[1]


def source(op: Op) -> str:
    """The first tensor that ``op`` takes."""
    return op.operands[0]


def is_cast(op: Op) -> bool:
    """Whether ``op`` at most changes the element type."""
    return base_name(op) in _CASTS


def through_view(space: Space, facts: Facts, op: Op, layout: Layout) -> Layout | None:
    """The layout of ``source(op)``, given that of the result; None if ``op`` is no plain view.

    Copies count as views: they keep every element where it is.
    """
    name = base_name(op)
    before = facts.shape(source(op)) if op.operands else ()
    if name in _COPIES:
        return layout
    if name in _RESHAPES and op.kind != "aten.view.dtype":
        return space.regroup(layout, before)
    if name in _PERMUTATIONS:
        return _permuted(op, layout)
    if name in _BROADCASTS:
        return _narrowed(space, layout, before, facts.shape(op.result.name))
    if name in ("repeat", "tile", "repeat_interleave"):
        return _repeated(space, op, layout, before)
    if name in ("slice", "narrow") and before == facts.shape(op.result.name):
        return layout
    return None


def _permuted(op: Op, layout: Layout) -> Layout | None:
    order = permutation(op, len(layout))
    if order is None:
        return None
    found: list[tuple[int, ...]] = [()] * len(layout)
    for group, dim in zip(layout, order, strict=True):
        found[dim] = group
    return tuple(found)


def permutation(op: Op, rank: int) -> tuple[int, ...] | None:
    """``order`` such that dimension ``i`` of the result is dimension ``order[i]`` of the operand."""
    name = base_name(op)
    order = list(range(rank))
    if name == "permute":
        dims = _ints(op, "dims")
        return None if dims is None else tuple(d % rank for d in dims)
    if name in ("t", "numpy_T"):
        return tuple(reversed(order))
    if name == "movedim":
        return _moved(op, rank)
    first, second = ("axis0", "axis1") if name == "swapaxes" else ("dim0", "dim1")
    a, b = (-2, -1) if name == "mT" else (op.arg(first), op.arg(second))
    if not isinstance(a, int) or not isinstance(b, int):
        return None
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _moved(op: Op, rank: int) -> tuple[int, ...] | None:
    start, end = _ints(op, "source"), _ints(op, "destination")
    if start is None or end is None:
        return None
    placed = {e % rank: s % rank for s, e in zip(start, end, strict=True)}
    others = iter(d for d in range(rank) if d not in placed.values())
    return tuple(placed[i] if i in placed else next(others) for i in range(rank))


def _ints(op: Op, name: str) -> tuple[int, ...] | None:
    arg = op.arg(name)
    items = arg if isinstance(arg, tuple) else (arg,)
    found = tuple(i for i in items if isinstance(i, int))
    return found if len(found) == len(items) else None


def _narrowed(space: Space, layout: Layout, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Layout:
    """Backwards through a broadcast: dimensions that it made up lose their atoms."""
    lead = len(after) - len(before)
    return tuple(
        layout[lead + i] if space.same(n, after[lead + i]) else () for i, n in enumerate(before)
    )


def _repeated(space: Space, op: Op, layout: Layout, before: tuple[Dim, ...]) -> Layout | None:
    """Backwards through copies of the whole tensor (``repeat``) or of each slice (``_interleave``)."""
    if base_name(op) == "repeat_interleave":
        dim, times = op.arg("dim"), op.arg("repeats")
        if not isinstance(dim, int) or not isinstance(times, int):
            return None
        split = _split_dim(space, layout[dim], before[dim], times)
        position = dim % len(layout)
        return split and (*layout[:position], split[0], *layout[position + 1 :])
    times_each = _ints(op, "repeats" if base_name(op) == "repeat" else "dims")
    if times_each is None or len(times_each) != len(layout) or len(before) != len(layout):
        return None
    found = []
    for group, size, times in zip(layout, before, times_each, strict=True):
        split = _split_dim(space, group, times, size)
        if split is None:
            return None
        found.append(split[1])
    return tuple(found)


def _split_dim(space: Space, group: tuple[int, ...], major: Dim, minor: Dim) -> Layout | None:
    return space.regroup((group,), (major, minor))


def broadcast(space: Space, layout: Layout, of: tuple[Dim, ...], to: tuple[Dim, ...]) -> Layout:
    """The layout of an operand of shape ``of`` in a pointwise op whose result has ``layout``."""
    return _narrowed(space, layout, of, to)


def tensor_arg(op: Op, name: str) -> str | None:
    """The value that argument ``name`` refers to, if it is a tensor."""
    arg = op.arg(name)
    return arg.name if isinstance(arg, Ref) else None
