"""The search over downsets for millions of states: a compiled kernel expands them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mplan.passes.schedule.downsets import Decision, Downsets
from mplan.passes.solvers.compiled import ready
from mplan.passes.solvers.interface import Deadline

#: States expanded between looks at the clock.
_SLICE = 5_000
#: The bytes that all states may take, at first and at most.
_FIRST_BYTES = 8 << 20
_MAX_BYTES = 768 << 20


def available(deadline: Deadline) -> bool:
    """Whether the kernel is loaded, or can be loaded or compiled in time."""
    return ready("mplan.passes.schedule.downsets_kernel:search", deadline)


def _kernel() -> Any:
    """The compiled search; imports Numba."""
    from mplan.passes.schedule import downsets_kernel

    return downsets_kernel


class CompiledDecision(Decision):
    """A ``Decision`` whose states lie in arrays."""

    def __init__(self, space: Downsets, budget: int, states: int, deadline: Deadline) -> None:
        super().__init__(space, budget, states, deadline)
        self._graph = _graph_arrays(space)
        self._words = -(-space.instance.count // 64)
        self._state_bytes = 16 * self._words + 44
        room = max(1 << 10, _FIRST_BYTES // self._state_bytes)
        self._board = self._empty(1 << room.bit_length())

    def run(self) -> bool:
        """As ``Decision.run``."""
        kernel = _kernel()
        self.restart(())
        while self.root != self.space.full:
            if self.states <= 0 or self.deadline.expired:
                return False
            answer = self._search(kernel)
            if answer == kernel.EXHAUSTED:
                return True
            if answer == kernel.REACHED:
                self.commit(self._path(int(self._board.clock[kernel.STATE])))
            elif answer == kernel.FULL and not self._grow():
                return False
        return False

    def _search(self, kernel: Any) -> int:
        clock = self._board.clock
        before = int(clock[kernel.EXPANDED])
        states = min(self.states, _SLICE)
        answer = kernel.search(self._graph, self._board, self.budget, self.level, self.grain, states)
        self.states -= int(clock[kernel.EXPANDED]) - before
        if clock[kernel.OVER] >= 0:
            over = int(clock[kernel.OVER])
            self.next_bytes = min(over, self.next_bytes or over)
        return int(answer)

    def restart(self, path: Sequence[int]) -> None:
        """As ``Decision.restart``."""
        super().restart(path)
        kernel, board = _kernel(), self._board
        ready = sum(1 << s for s in self.ready())
        board.done[0], board.ready[0] = self._set(self.root), self._set(ready)
        board.live[0], board.depth[0], board.hash[0] = self.level, 0, 0
        board.parent[0], board.step[0], board.heap[0] = 0, -1, 0
        board.table.fill(-1)
        board.clock[kernel.STORED], board.clock[kernel.HEAPED] = 1, 1
        kernel.rehash(board)

    def _set(self, mask: int) -> Any:
        import numpy as np

        return np.frombuffer(mask.to_bytes(8 * self._words, "little"), np.int64)

    def _path(self, state: int) -> list[int]:
        """The steps on the way from the root to ``state``."""
        board = self._board
        legs: list[list[int]] = []
        while state:
            parent, step = int(board.parent[state]), int(board.step[state])
            legs.append([step] if step >= 0 else self._safe_moves(parent, state))
            state = parent
        return [s for leg in reversed(legs) for s in leg]

    def _safe_moves(self, start: int, end: int) -> list[int]:
        """The safe moves from one state to another, in the kernel's order."""
        space, board = self.space, self._board
        state, target = (int.from_bytes(board.done[i].tobytes(), "little") for i in (start, end))
        live = int(board.live[start])
        left = [s for s in range(space.instance.count) if (target & ~state) >> s & 1]
        path: list[int] = []
        while left:
            ready = (space.move(s, state) for s in left if space.preds[s] & ~state == 0)
            allocates, step, frees = min(
                (a, s, f) for s, a, f in ready if a <= f and live + a <= self.budget
            )
            live += allocates - frees
            state |= 1 << step
            left.remove(step)
            path.append(step)
        return path

    def _empty(self, room: int) -> Any:
        """Arrays for ``room`` states."""
        import numpy as np

        return _kernel().Board(
            done=np.zeros((room, self._words), np.int64),
            ready=np.zeros((room, self._words), np.int64),
            live=np.zeros(room, np.int64),
            depth=np.zeros(room, np.int32),
            hash=np.zeros(room, np.int64),
            parent=np.zeros(room, np.int32),
            step=np.zeros(room, np.int32),
            table=np.full(2 * room, -1, np.int32),
            heap=np.zeros(room, np.int32),
            clock=np.array([0, 0, 0, 0, -1]),
        )

    def _grow(self) -> bool:
        """Make room for four times as many states; False if they would take too many bytes."""
        old = self._board
        room = 4 * len(old.live)
        if room * self._state_bytes > _MAX_BYTES:
            return False
        board = self._empty(room)
        for name in ("done", "ready", "live", "depth", "hash", "parent", "step", "heap", "clock"):
            array = getattr(old, name)
            getattr(board, name)[: len(array)] = array
        _kernel().rehash(board)
        self._board = board
        return True


def _graph_arrays(space: Downsets) -> Any:
    import numpy as np

    instance = space.instance
    lists: dict[str, Any] = {}
    for name in ("starts", "ends", "begins", "finishes", "preds", "succs"):
        rows = getattr(instance, name)
        lists[name] = np.array([i for row in rows for i in row], np.int64)
        lists[f"{name}_at"] = np.array([0, *accumulate(len(row) for row in rows)], np.int64)
    rng = random.Random(instance.count)
    label = np.array([rng.getrandbits(62) for _ in range(instance.count)], np.int64)
    return _kernel().Graph(sizes=np.array(instance.sizes, np.int64), label=label, **lists)
