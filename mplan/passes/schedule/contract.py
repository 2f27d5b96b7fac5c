"""Contract steps whose place in an optimal order is known.

A step that ends no block frees nothing in any state, so it may wait until just before the first step
that needs it: moved there, no position of the order holds more. It is merged into its users. The same
holds backwards for a step that begins no block: it may run right after the last step it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from mplan.passes.schedule.instance import Instance, Rows

#: Beyond this many steps the bit masks of reachability take too much memory.
_MAX_STEPS = 20_000


class Contraction:
    """A smaller instance with the same optimum, and the way back to orders of the given one."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._layers: list[tuple[_Layer, bool]] = []
        idle = 0
        backward = False
        while idle < 2 and instance.count <= _MAX_STEPS:
            layer = _Layer(self.instance.reversed() if backward else self.instance)
            idle = 0 if layer.count < self.instance.count else idle + 1
            if not idle:
                small = layer.contracted()
                self.instance = small.reversed() if backward else small
                self._layers.append((layer, backward))
            backward = not backward

    def project(self, order: Sequence[int]) -> tuple[int, ...]:
        """The order of the small instance that a valid order of the given one implies."""
        steps = tuple(order)
        for layer, backward in self._layers:
            if backward:
                steps = _mirror(layer.project(_mirror(steps, layer.instance.count)), layer.count)
            else:
                steps = layer.project(steps)
        return steps

    def expand(self, order: Sequence[int]) -> tuple[int, ...]:
        """The order of the given instance; its peak is not above that of ``order``."""
        steps = tuple(order)
        for layer, backward in reversed(self._layers):
            if backward:
                steps = _mirror(layer.expand(_mirror(steps, layer.count)), layer.instance.count)
            else:
                steps = layer.expand(steps)
        return steps

    def origin(self, step: int) -> int | None:
        """The given instance's step behind ``step``; None if it only marks an end of the order."""
        for layer, backward in reversed(self._layers):
            local = layer.count - 1 - step if backward else step
            if local >= len(layer.kept):
                return None
            step = layer.kept[local]
            step = layer.instance.count - 1 - step if backward else step
        return step


def _mirror(order: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple(count - 1 - s for s in reversed(order))


class _Layer:
    """One contraction in one direction: ``lazy`` steps are pulled in by the ``kept`` ones.

    If lazy steps remain that nothing needs, a last step (number ``len(kept)``) pulls them in.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.lazy = {s for s in range(instance.count) if not instance.finishes[s]}
        self.kept = [s for s in range(instance.count) if s not in self.lazy]
        self._users = self._reach_users()
        unused = any(not self._users[s] for s in self.lazy)
        self.count = len(self.kept) + unused

    def _reach_users(self) -> list[int]:
        """Per lazy step, the mask of kept steps that it reaches through lazy ones."""
        users = [0] * self.instance.count
        for s in reversed(range(self.instance.count)):
            if s in self.lazy:
                for t in self.instance.succs[s]:
                    users[s] |= users[t] if t in self.lazy else 1 << t
        return users

    def contracted(self) -> Instance:
        """The instance of the kept steps."""
        instance = self.instance
        number = {s: i for i, s in enumerate(self.kept)}
        last = len(self.kept)
        below = _descendants(instance)
        rows = Rows(instance.base)
        firsts: dict[int, list[int]] = {}
        for s in self.lazy:
            firsts[s] = [number[t] for t in _minimal(self._users[s], below)] or [last]
        for size, starts, ends in zip(instance.sizes, instance.starts, instance.ends, strict=True):
            begin = {t for s in starts for t in firsts.get(s, [number.get(s, last)])}
            rows.add(size, begin, [number[s] for s in ends])
        preds = [[number[p] for p in needed] for needed in self._needs()]
        if self.count > last:
            preds.append([i for i, s in enumerate(self.kept) if not self._is_needed(s)])
        return rows.instance(preds)

    def _is_needed(self, step: int) -> bool:
        return any(t not in self.lazy or self._users[t] for t in self.instance.succs[step])

    def _needs(self) -> list[list[int]]:
        """Per kept step, the maximal kept steps that it reaches backwards through lazy ones."""
        instance = self.instance
        above: list[int] = []
        needs: list[int] = []
        for s in range(instance.count):
            mask = needed = 0
            for p in instance.preds[s]:
                mask |= above[p] | 1 << p
                needed |= needs[p] if p in self.lazy else 1 << p
            above.append(mask)
            needs.append(needed)
        return [_maximal(needs[s], above) for s in self.kept]

    def project(self, order: Sequence[int]) -> tuple[int, ...]:
        """``order`` without its lazy steps."""
        number = {s: i for i, s in enumerate(self.kept)}
        steps = [number[s] for s in order if s in number]
        return (*steps, *range(len(self.kept), self.count))

    def expand(self, order: Sequence[int]) -> tuple[int, ...]:
        """``order`` with each lazy step just before the first step that needs it."""
        result: list[int] = []
        done = [False] * self.instance.count
        for i in order:
            if i < len(self.kept):
                self._emit(self.kept[i], done, result)
            else:
                for s in sorted(self.lazy):
                    self._emit(s, done, result)
        return tuple(result)

    def _emit(self, step: int, done: list[bool], result: list[int]) -> None:
        stack = [step]
        while stack:
            s = stack[-1]
            missing = [p for p in self.instance.preds[s] if not done[p]]
            if missing and not done[s]:
                stack.extend(missing)
                continue
            stack.pop()
            if not done[s]:
                done[s] = True
                result.append(s)


def _descendants(instance: Instance) -> list[int]:
    below = [0] * instance.count
    for s in reversed(range(instance.count)):
        for t in instance.succs[s]:
            below[s] |= below[t] | 1 << t
    return below


def _minimal(mask: int, below: Sequence[int]) -> list[int]:
    """The steps of ``mask`` that descend from no other; steps are numbered in a valid order."""
    found = []
    while mask:
        s = (mask & -mask).bit_length() - 1
        found.append(s)
        mask &= ~(below[s] | 1 << s)
    return found


def _maximal(mask: int, above: Sequence[int]) -> list[int]:
    found = []
    while mask:
        s = mask.bit_length() - 1
        found.append(s)
        mask &= ~(above[s] | 1 << s)
    return found
