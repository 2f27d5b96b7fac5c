"""The axes of an attention: batch dimensions as the model has them, queries, keys, depth, width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mplan.passes.fuse_attention.layout import Group, Layout, Space
from mplan.passes.fuse_attention.operands import atoms
from mplan.passes.fuse_attention.region import Operand


@dataclass(frozen=True, slots=True)
class Axes:
    """The dimensions that query ``[*batch, rows, depth]``, key and value are brought to.

    ``grouped``: the last batch dimension has two atoms, the heads of key and value and the queries'
    heads for each of them.
    """

    batch: tuple[Group, ...]
    rows: Group
    keys: Group
    depth: Group
    width: Group
    grouped: bool

    def targets(self, ends: Sequence[Layout]) -> tuple[Layout, Layout, Layout]:
        """The layouts to bring query, key and value to, whose earliest stages have layouts ``ends``."""
        lasts = ((self.rows, self.depth), (self.keys, self.depth), (self.keys, self.width))
        q, k, v = ((*self.present(end), *last) for end, last in zip(ends, lasts, strict=True))
        return q, k, v

    def mask_target(self, end: Layout) -> Layout:
        """The layout of a mask; batch dimensions that it lacks at the front are left out."""
        known = atoms(end)
        full = (*self.present(end), *(g if known.issuperset(g) else () for g in (self.rows, self.keys)))
        lead = 0
        while lead < len(self.batch) and not full[lead]:
            lead += 1
        return full[lead:]

    def present(self, end: Layout) -> Layout:
        """The batch dimensions of a tensor with the atoms of ``end``; () where it is broadcast."""
        known = atoms(end)
        return tuple(tuple(a for a in group if a in known) for group in self.batch)

    @property
    def result(self) -> Layout:
        """The layout of the attention's result."""
        return (*self.batch, self.rows, self.width)


def find_axes(
    space: Space,
    path: Iterable[Operand],
    ends: Sequence[Layout],
    masks: Sequence[Layout],
    keys: Group,
    depth: Group,
    width: Group,
) -> Axes:
    """Tell batch from query axes.

    ``path`` are the score-shaped values with their layouts: the most detailed one shows the batch as
    the model thinks of it. Query axes are those that neither key nor value has.
    """
    query, key, value = (atoms(space.resolved(end)) for end in ends)
    template = max((space.resolved(p.layout) for p in path), key=_detail)
    keys = space.resolve(keys)
    own = query - key - value - set(space.resolve(depth))
    shown = [atoms(space.resolved(mask)) for mask in masks]
    rows = _rows(template, own, shown)
    batch = _batch(template, frozenset((*rows, *keys)), unit_dims=(not rows) + (not keys))
    operands = (query, key, value, *shown)
    pieces: list[Group] = []
    for group in batch:
        pieces += [group] if _together(group, operands) else [(a,) for a in group]
    grouped = _is_grouped(batch[-1:], operands)
    if grouped:
        pieces = [*pieces[:-2], batch[-1]]
    return Axes(tuple(pieces), rows, keys, space.resolve(depth), space.resolve(width), grouped)


def _detail(layout: Layout) -> tuple[int, int]:
    """More dimensions, and four where some have size 1: what attention kernels expect."""
    rank = len(layout)
    return sum(map(bool, layout)), rank if rank <= 4 else -rank


def _rows(template: Layout, own: frozenset[int], masks: Sequence[frozenset[int]]) -> Group:
    """The query axis: in the last dimension that has axes of the query alone."""
    for group in reversed(template):
        rows = tuple(a for a in group if a in own)
        partly = [m for m in masks if m & set(rows) and not m.issuperset(rows)]
        if rows:
            return tuple(a for a in rows if all(a in m for m in partly))
    return ()


def _batch(template: Layout, taken: frozenset[int], unit_dims: int) -> list[Group]:
    """The dimensions of ``template`` without the atoms ``taken`` and ``unit_dims`` ones of size 1."""
    batch = []
    for group in template:
        rest = tuple(a for a in group if a not in taken)
        if rest or not group:
            batch.append(rest)
    for _ in range(unit_dims):
        last = next((i for i in reversed(range(len(batch))) if not batch[i]), None)
        if last is not None:
            del batch[last]
    return batch


def _together(group: Group, operands: Iterable[frozenset[int]]) -> bool:
    """Whether every operand has all atoms of the dimension or none."""
    return all(known.issuperset(group) or known.isdisjoint(group) for known in operands)


def _is_grouped(last: Sequence[Group], operands: Sequence[frozenset[int]]) -> bool:
    """Whether the last batch dimension is heads of key and value times queries per head."""
    if not last or len(last[0]) != 2:
        return False
    heads, each = last[0]
    query, key, value, *masks = operands
    shared = all(heads in known and each not in known for known in (key, value))
    return shared and {heads, each} <= query and all(_together(last[0], [m]) for m in masks)
