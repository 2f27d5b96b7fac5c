"""An order that is changed window by window, each a small instance of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from mplan.passes.schedule.greedy import Order
from mplan.passes.schedule.instance import Instance, Rows

#: A quarter of a window at each end may be cut off, where the fewest bytes are live.
_MARGIN = 4


class Course:
    """An order that changes window by window, with the bytes live at each of its positions.

    ``first[b]`` and ``last[b]`` are the positions between which block b is live, inclusive.
    """

    def __init__(self, instance: Instance, order: Sequence[int]) -> None:
        self.instance = instance
        self.steps = list(order)
        self.position = [0] * instance.count
        for p, step in enumerate(order):
            self.position[step] = p
        self.profile = instance.profile(order)
        final = instance.count - 1
        self.first = [min((self.position[s] for s in t), default=0) for t in instance.starts]
        self.last = [max((self.position[s] for s in t), default=final) for t in instance.ends]

    @property
    def order(self) -> Order:
        """The steps as they stand now."""
        return tuple(self.steps)

    def around(self, position: int, width: int) -> tuple[int, int]:
        """A half-open interval of at most ``width`` positions around ``position``."""
        count = len(self.steps)
        low = max(0, min(position - width // 2, count - width))
        high = min(count, low + width)
        if low > 0:
            low = min(range(low, min(position, low + width // _MARGIN) + 1), key=self._entry)
        if high < count:
            high = min(range(max(position + 1, high - width // _MARGIN), high + 1), key=self._entry)
        return low, high

    def _entry(self, position: int) -> int:
        """The bytes that stay live from one position to the next."""
        step = self.steps[position]
        starting = (b for b in self.instance.begins[step] if self.first[b] == position)
        return self.profile[position] - sum(self.instance.sizes[b] for b in starting)

    def _touched(self, low: int, high: int) -> list[int]:
        """The blocks that steps of the interval begin or end."""
        instance = self.instance
        found: dict[int, None] = {}
        for step in self.steps[low:high]:
            found |= dict.fromkeys(instance.begins[step])
            found |= dict.fromkeys(instance.finishes[step])
        return list(found)

    def window(self, low: int, high: int) -> Instance:
        """The instance of the steps at ``[low, high)``, numbered as they stand now."""
        instance, place = self.instance, self.position
        touched = self._touched(low, high)
        live = sum(instance.sizes[b] for b in touched if self.first[b] <= low <= self.last[b])
        rows = Rows(self.profile[low] - live)
        for b in touched:
            starts = [place[s] - low for s in instance.starts[b] if low <= place[s] < high]
            ends = [place[s] - low for s in instance.ends[b] if low <= place[s] < high]
            begun = not instance.starts[b] or self.first[b] < low
            pending = not instance.ends[b] or self.last[b] >= high
            if (begun or starts) and (pending or ends):
                rows.add(instance.sizes[b], () if begun else starts, () if pending else ends)
        needs = (instance.preds[s] for s in self.steps[low:high])
        return rows.instance([[place[p] - low for p in n if place[p] >= low] for n in needs])

    def replace(self, low: int, steps: Sequence[int]) -> None:
        """Let ``steps``, a valid order of those that stand from ``low`` on, take their place."""
        instance = self.instance
        high = low + len(steps)
        touched = self._touched(low, high)
        self._count(touched, low, high, -1)
        self.steps[low:high] = steps
        for p, step in enumerate(steps, low):
            self.position[step] = p
        for b in touched:
            if instance.starts[b]:
                self.first[b] = min(self.position[s] for s in instance.starts[b])
            if instance.ends[b]:
                self.last[b] = max(self.position[s] for s in instance.ends[b])
        self._count(touched, low, high, 1)

    def _count(self, blocks: Sequence[int], low: int, high: int, sign: int) -> None:
        """Add the sizes of ``blocks``, ``sign`` times, to the profile of ``[low, high)``."""
        delta = [0] * (high - low + 1)
        for b in blocks:
            start, end = max(self.first[b], low), min(self.last[b] + 1, high)
            if start < end:
                delta[start - low] += sign * self.instance.sizes[b]
                delta[end - low] -= sign * self.instance.sizes[b]
        for p, change in enumerate(accumulate(delta[:-1]), low):
            self.profile[p] += change
