"""What a quantisation in the old graph asks of the op that computes its operand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mplan.ir.affine import Affine, clamp_int8
from mplan.ir.graph import Arg


class Unlowered(Exception):
    """An op that has no integer form here; ``reason`` says why. It stays float."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Goal:
    """Results as int8 with ``affine``, real ones in ``[low, high]``, integers in ``[least, most]``."""

    affine: Affine
    low: float | None = None
    high: float | None = None
    least: int = -128
    most: int = 127

    def within(self, low: float | None, high: float | None) -> Goal:
        """The goal of a value that is clamped to ``[low, high]`` before it meets this one."""
        return replace(
            self,
            low=self.low if low is None else self._kept(low),
            high=self.high if high is None else self._kept(high),
        )

    def _kept(self, number: float) -> float:
        """A bound of an earlier clamp as this one leaves it: ranges that do not meet become a point."""
        above = number if self.low is None else max(number, self.low)
        return above if self.high is None else min(above, self.high)

    def divided(self, factor: float) -> Goal:
        """The goal of a value that meets this one after a multiplication by ``factor > 0``."""
        low, high = (None if n is None else n / factor for n in (self.low, self.high))
        scaled = replace(self.affine, scale=self.affine.scale / factor)
        return replace(self, affine=scaled, low=low, high=high)

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest integer of results."""
        clamps = self.affine.clamp_args(self.low, self.high)
        low, high = clamps.get("clamp_min", -128), clamps.get("clamp_max", 127)
        return max(low, self.least), min(high, self.most)

    def integer(self, real: float) -> int:
        """The integer of a real number."""
        low, high = self.range
        return max(low, min(high, clamp_int8(self.affine.quantize(real))))

    def clamp(self) -> dict[str, Arg]:
        """The arguments ``clamp_min`` and ``clamp_max``, without those of int8."""
        low, high = self.range
        given: dict[str, Arg] = {}
        if low != -128:
            given["clamp_min"] = low
        if high != 127:
            given["clamp_max"] = high
        return given

    def output(self) -> dict[str, Arg]:
        """Zero point and clamp of the result."""
        return {"output_zero_point": self.affine.zero_point, **self.clamp()}
