"""The boxes of an instance in whole units, and which heights a packing can have at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from mplan.passes.allocate.instance import Box, Instance


@dataclass(frozen=True)
class Grid:
    """Sizes, alignments and offsets in units of ``unit`` bytes; some best packing is made of those.

    Every size is rounded up to the greatest common divisor of the alignments. That changes only where
    the boxes on top end, since the room up to the next multiple can hold no other box; and what one
    of them saves there is not lost, for ``last`` counts with its true size.
    """

    instance: Instance
    unit: int
    sizes: tuple[int, ...]
    alignments: tuple[int, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of the instance, in bytes."""
        return self.instance.boxes

    def last(self, height: int) -> tuple[int, ...]:
        """The highest offset of each box that must end at ``height`` bytes or lower; -1: none."""
        return tuple(
            max((height - b.size) // self.unit // alignment * alignment, -1)
            if b.fixed is None
            else (b.fixed // self.unit if b.fixed + b.size <= height else -1)
            for b, alignment in zip(self.boxes, self.alignments, strict=True)
        )

    def least(self, base: int) -> tuple[int, ...]:
        """The lowest offset of each box at or above ``base`` units, or the fixed one."""
        return tuple(
            -(-base // alignment) * alignment if b.fixed is None else b.fixed // self.unit
            for b, alignment in zip(self.boxes, self.alignments, strict=True)
        )

    def above(self, height: int) -> int:
        """The least height over ``height`` that a packing can have: some box ends there."""
        return min(height + self.unit - (height - r) % self.unit for r in self._residues)

    def below(self, height: int) -> int:
        """The greatest height up to ``height`` that a packing can have."""
        return max(height - (height - r) % self.unit for r in self._residues)

    @cached_property
    def _residues(self) -> frozenset[int]:
        return frozenset(b.size % self.unit for b in self.boxes)


def grid_of(instance: Instance) -> Grid:
    """The coarsest grid of an instance, which must not be empty."""
    boxes = instance.boxes
    step = gcd(*(b.alignment for b in boxes))
    sizes = [-(-b.size // step) * step for b in boxes]
    unit = gcd(*sizes, *(b.fixed or 0 for b in boxes))
    if any(unit % b.alignment for b in boxes):
        unit = gcd(unit, *(b.alignment for b in boxes))
    return Grid(
        instance,
        unit,
        tuple(size // unit for size in sizes),
        tuple(max(b.alignment // unit, 1) for b in boxes),
    )
