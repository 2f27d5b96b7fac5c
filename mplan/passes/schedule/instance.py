"""The scheduling problem of one region, reduced to what an order decides.

A *block* stands for buffers that the same steps begin and end: it is live from the first step of
``starts`` to the last of ``ends``. ``live(D)``, the bytes held when exactly the steps of a downset D
have run, is submodular in D; so are the bytes held during a step. Every solver here rests on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mplan.ir.plan import Problem

#: Beyond this many steps, transitive precedence is not used to shorten ``starts`` and ``ends``.
_MAX_CLOSURE = 20_000

_Ends = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """Steps ``0..n-1`` in a valid order, their precedence, and the blocks that they begin and end.

    Block b has ``sizes[b]`` bytes and is live from the first step of ``starts[b]`` (none: from the
    beginning) to the last step of ``ends[b]`` inclusive (none: for good). ``begins[s]`` and
    ``finishes[s]`` are the blocks that have step s in ``starts`` and in ``ends``. ``base`` bytes are
    live throughout.
    """

    preds: tuple[tuple[int, ...], ...]
    succs: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    starts: tuple[_Ends, ...]
    ends: tuple[_Ends, ...]
    begins: tuple[tuple[int, ...], ...]
    finishes: tuple[tuple[int, ...], ...]
    base: int = 0

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.preds)

    def profile(self, order: Sequence[int]) -> list[int]:
        """The bytes live during each position of ``order``."""
        position = [0] * self.count
        for p, step in enumerate(order):
            position[step] = p
        delta = [0] * (self.count + 1)
        delta[0] = self.base
        for size, starts, ends in zip(self.sizes, self.starts, self.ends, strict=True):
            delta[min([position[s] for s in starts], default=0)] += size
            if ends:
                delta[max([position[s] for s in ends]) + 1] -= size
        return list(accumulate(delta[:-1]))

    def peak(self, order: Sequence[int]) -> int:
        """The largest of ``profile``; ``base`` for no steps."""
        return max(self.profile(order), default=self.base)

    def restrict(self, steps: Sequence[int], done: Sequence[bool]) -> Instance:
        """The instance of ``steps`` alone (renumbered in the given, valid order).

        ``done[s]`` says of each step outside whether it has run before them or runs after them.
        """
        local = {step: i for i, step in enumerate(steps)}
        rows = Rows(self.base)
        for size, starts, ends in zip(self.sizes, self.starts, self.ends, strict=True):
            first = [local[s] for s in starts if s in local]
            last = [local[s] for s in ends if s in local]
            begun = not starts or any(done[s] for s in starts if s not in local)
            pending = not ends or not all(done[s] for s in ends if s not in local)
            if (begun or first) and (pending or last):
                rows.add(size, () if begun else first, () if pending else last)
        preds = [[local[p] for p in self.preds[step] if p in local] for step in steps]
        return rows.instance(preds)

    def reversed(self) -> Instance:
        """The instance that runs backwards: step s becomes ``count - 1 - s``, live bytes are equal."""
        last = self.count - 1
        rows = Rows(self.base)
        for size, starts, ends in zip(self.sizes, self.starts, self.ends, strict=True):
            rows.add(size, [last - s for s in ends], [last - s for s in starts])
        return rows.instance([[last - s for s in succs] for succs in reversed(self.succs)])


class Rows:
    """Blocks under construction: those that begin and end alike become one."""

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self._sizes: dict[tuple[_Ends, _Ends], int] = {}

    def add(self, size: int, starts: Iterable[int], ends: Iterable[int]) -> None:
        """Add a block; one without ``starts`` and ``ends`` counts as ``base``."""
        key = (tuple(sorted(starts)), tuple(sorted(ends)))
        if key == ((), ()):
            self.base += size
        elif size:
            self._sizes[key] = self._sizes.get(key, 0) + size

    def instance(self, preds: Sequence[Sequence[int]]) -> Instance:
        """The instance of these blocks and the steps with the predecessors ``preds``."""
        succs: list[list[int]] = [[] for _ in preds]
        begins: list[list[int]] = [[] for _ in preds]
        finishes: list[list[int]] = [[] for _ in preds]
        for step, before in enumerate(preds):
            for p in before:
                succs[p].append(step)
        for b, (starts, ends) in enumerate(self._sizes):
            for s in starts:
                begins[s].append(b)
            for s in ends:
                finishes[s].append(b)
        return Instance(
            preds=tuple(tuple(p) for p in preds),
            succs=tuple(tuple(s) for s in succs),
            sizes=tuple(self._sizes.values()),
            starts=tuple(starts for starts, _ in self._sizes),
            ends=tuple(ends for _, ends in self._sizes),
            begins=tuple(tuple(b) for b in begins),
            finishes=tuple(tuple(b) for b in finishes),
            base=self.base,
        )


def from_problem(problem: Problem, region: str) -> Instance:
    """The instance of the buffers whose first choice is ``region``.

    A live-in buffer that no step touches is live at position 0 of any order and left out.
    """
    users: list[list[int]] = [[] for _ in problem.buffers]
    for index, step in enumerate(problem.steps):
        for i in step.touches:
            users[i].append(index)
    preds = [sorted(set(step.after)) for step in problem.steps]
    before = _ancestors(preds)
    rows = Rows()
    for b, touch in zip(problem.buffers, users, strict=True):
        if b.regions[0] != region:
            continue
        if b.live_out and (b.live_in or not touch):
            rows.base += b.size_bytes
        elif touch:
            starts = [] if b.live_in else _minimal(touch, before)
            rows.add(b.size_bytes, starts, [] if b.live_out else _maximal(touch, before))
    return rows.instance(preds)


def _ancestors(preds: Sequence[Sequence[int]]) -> list[int]:
    """For each step the bit mask of its ancestors (of its predecessors, if there are too many)."""
    masks: list[int] = []
    for before in preds:
        mask = 0
        for p in before:
            mask |= 1 << p
            if len(preds) <= _MAX_CLOSURE:
                mask |= masks[p]
        masks.append(mask)
    return masks


def _minimal(touch: Sequence[int], before: Sequence[int]) -> list[int]:
    mask = sum(1 << s for s in touch)
    return [s for s in touch if not before[s] & mask]


def _maximal(touch: Sequence[int], before: Sequence[int]) -> list[int]:
    mask = 0
    for s in touch:
        mask |= before[s]
    return [s for s in touch if not mask >> s & 1]
