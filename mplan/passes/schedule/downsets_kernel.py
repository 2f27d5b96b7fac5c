"""The search of ``downsets`` compiled by Numba, over bit sets in arrays.

Import this module inside functions: it imports Numba. All state lives in arrays, so that ``search``
can stop after any number of states and go on later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from numba import njit

from mplan.passes.solvers.compiled import entry

Function = TypeVar("Function", bound=Callable[..., Any])

#: What ``search`` answers: out of states, a valley or the end was reached, nothing is left to expand,
#: or the arrays are too short.
PAUSED, REACHED, EXHAUSTED, FULL = 0, 1, 2, 3
#: The entries of ``Board.clock``: states stored, entries of the heap, states expanded, the state that
#: was reached, and the least bytes that were over the budget (or -1).
STORED, HEAPED, EXPANDED, STATE, OVER = 0, 1, 2, 3, 4


class Graph(NamedTuple):
    """An instance in arrays: lists one behind the other, list i from ``…_at[i]`` to ``…_at[i + 1]``.

    ``label`` has a random number for each step; those of a set are added up (exclusive or) to its hash.
    """

    sizes: Any
    starts: Any
    starts_at: Any
    ends: Any
    ends_at: Any
    begins: Any
    begins_at: Any
    finishes: Any
    finishes_at: Any
    preds: Any
    preds_at: Any
    succs: Any
    succs_at: Any
    label: Any


class Board(NamedTuple):
    """States by number: the steps that have run and those that are ready (bit sets in words), the
    bytes live, the length of the way, the hash, the state before, and the step that led here (-1: safe
    moves did). ``table`` finds states by their hash; ``heap`` holds those to expand."""

    done: Any
    ready: Any
    live: Any
    depth: Any
    hash: Any
    parent: Any
    step: Any
    table: Any
    heap: Any
    clock: Any


def _inner(function: Function) -> Function:
    """Compile together with the function that calls it."""
    compiled: Function = cast(Any, njit)(no_cpython_wrapper=True, error_model="numpy")(function)
    return compiled


@_inner
def _holds(words: Any, step: int) -> bool:
    return bool(words[step >> 6] >> (step & 63) & 1)


@_inner
def _flip(words: Any, step: int) -> None:
    words[step >> 6] ^= 1 << (step & 63)


@_inner
def _size(words: Any) -> int:
    """How many steps a set holds."""
    total = 0
    for w in range(len(words)):
        word = words[w]
        while word != 0:
            word &= word - 1
            total += 1
    return total


@_inner
def _allocates(graph: Graph, done: Any, step: int) -> int:
    total = 0
    for k in range(graph.begins_at[step], graph.begins_at[step + 1]):
        b = graph.begins[k]
        fresh = True
        for j in range(graph.starts_at[b], graph.starts_at[b + 1]):
            if _holds(done, graph.starts[j]):
                fresh = False
                break
        if fresh:
            total += graph.sizes[b]
    return total


@_inner
def _frees(graph: Graph, done: Any, step: int) -> int:
    total = 0
    for k in range(graph.finishes_at[step], graph.finishes_at[step + 1]):
        b = graph.finishes[k]
        last = True
        for j in range(graph.ends_at[b], graph.ends_at[b + 1]):
            s = graph.ends[j]
            if s != step and not _holds(done, s):
                last = False
                break
        if last:
            total += graph.sizes[b]
    return total


@_inner
def _advance(graph: Graph, done: Any, ready: Any, step: int) -> None:
    """Run ``step``: it is done, and what only waited for it is ready."""
    _flip(done, step)
    _flip(ready, step)
    for k in range(graph.succs_at[step], graph.succs_at[step + 1]):
        s = graph.succs[k]
        free = True
        for j in range(graph.preds_at[s], graph.preds_at[s + 1]):
            if not _holds(done, graph.preds[j]):
                free = False
                break
        if free:
            _flip(ready, s)


@_inner
def _find(board: Board, hash: int, done: Any) -> int:
    """The slot of the table where the set is, or where it belongs."""
    mask = len(board.table) - 1
    slot = hash & mask
    while board.table[slot] >= 0:
        other = board.table[slot]
        if board.hash[other] == hash:
            same = True
            for w in range(len(done)):
                if board.done[other, w] != done[w]:
                    same = False
                    break
            if same:
                break
        slot = (slot + 1) & mask
    return slot


@_inner
def _store(
    board: Board, done: Any, ready: Any, hash: int, live: int, depth: int, parent: int, step: int
) -> int:
    """The number of a new state, or -1 if the set is known."""
    slot = _find(board, hash, done)
    if board.table[slot] >= 0:
        return -1
    number = board.clock[STORED]
    board.clock[STORED] = number + 1
    board.table[slot] = number
    board.done[number, :] = done
    board.ready[number, :] = ready
    board.live[number], board.depth[number], board.hash[number] = live, depth, hash
    board.parent[number], board.step[number] = parent, step
    return int(number)


@_inner
def _before(board: Board, i: int, j: int, level: int, grain: int) -> bool:
    """Whether state i is expanded before j: fewest bytes first, then the deepest, then the oldest."""
    a = max(board.live[i] - level, 0) // grain
    b = max(board.live[j] - level, 0) // grain
    if a != b:
        return bool(a < b)
    if board.depth[i] != board.depth[j]:
        return bool(board.depth[i] > board.depth[j])
    return i < j


@_inner
def _push(board: Board, state: int, level: int, grain: int) -> None:
    heap = board.heap
    at = board.clock[HEAPED]
    board.clock[HEAPED] = at + 1
    while at > 0:
        up = (at - 1) >> 1
        if not _before(board, state, heap[up], level, grain):
            break
        heap[at] = heap[up]
        at = up
    heap[at] = state


@_inner
def _pop(board: Board, level: int, grain: int) -> int:
    heap = board.heap
    top = heap[0]
    count = board.clock[HEAPED] - 1
    board.clock[HEAPED] = count
    last = heap[count]
    at = 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and _before(board, heap[child + 1], heap[child], level, grain):
            child += 1
        if not _before(board, heap[child], last, level, grain):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return int(top)


@_inner
def _safest(graph: Graph, done: Any, ready: Any, room: int) -> tuple[int, int, int]:
    """The safe move that allocates least, with the bytes it allocates and frees; -1 if none."""
    best, least, freed = -1, room + 1, 0
    for w in range(len(ready)):
        word = ready[w]
        s = w << 6
        while word != 0:
            if word & 1:
                allocates = _allocates(graph, done, s)
                if allocates < least:
                    frees = _frees(graph, done, s)
                    if allocates <= frees:
                        best, least, freed = s, allocates, frees
            word = (word >> 1) & 0x7FFFFFFFFFFFFFFF
            s += 1
    return best, least, freed


@_inner
def _branch(graph: Graph, board: Board, state: int, budget: int, level: int, grain: int) -> None:
    done = board.done[state].copy()
    ready = board.ready[state].copy()
    live, depth, hash = board.live[state], board.depth[state], board.hash[state]
    for w in range(len(ready)):
        word = board.ready[state, w]
        s = w << 6
        while word != 0:
            if word & 1:
                needed = live + _allocates(graph, done, s)
                if needed > budget:
                    if board.clock[OVER] < 0 or needed < board.clock[OVER]:
                        board.clock[OVER] = needed
                else:
                    left = needed - _frees(graph, done, s)
                    _advance(graph, done, ready, s)
                    new = _store(board, done, ready, hash ^ graph.label[s], left, depth + 1, state, s)
                    if new >= 0:
                        _push(board, new, level, grain)
                    done[:] = board.done[state]
                    ready[:] = board.ready[state]
            word = (word >> 1) & 0x7FFFFFFFFFFFFFFF
            s += 1


@entry
def search(graph: Graph, board: Board, budget: int, level: int, grain: int, states: int) -> int:
    """Expand up to ``states`` states; see the constants above for the answers.

    State 0 is the root. A state with no more live bytes than ``level``, or with all steps done, is
    reached; ``grain`` is the difference of live bytes that counts.
    """
    done = board.done[0].copy()
    ready = board.ready[0].copy()
    while states > 0:
        if board.clock[HEAPED] == 0:
            return EXHAUSTED
        state = _pop(board, level, grain)
        done[:] = board.done[state]
        ready[:] = board.ready[state]
        live, depth, hash = board.live[state], board.depth[state], board.hash[state]
        step, allocates, frees = _safest(graph, done, ready, budget - live)
        slides = step >= 0
        while step >= 0:
            _advance(graph, done, ready, step)
            live += allocates - frees
            depth += 1
            hash ^= graph.label[step]
            step, allocates, frees = _safest(graph, done, ready, budget - live)
        width = _size(ready)
        if board.clock[STORED] + width + 1 > len(board.live):
            _push(board, state, level, grain)
            return FULL
        states -= 1
        board.clock[EXPANDED] += 1
        if slides:
            state = _store(board, done, ready, hash, live, depth, state, -1)
            if state < 0:
                continue
        if width == 0 or (live <= level and state != 0):
            board.clock[STATE] = state
            return REACHED
        _branch(graph, board, state, budget, level, grain)
    return PAUSED


@entry
def rehash(board: Board) -> None:
    """Fill an empty table with all stored states."""
    for state in range(board.clock[STORED]):
        slot = _find(board, board.hash[state], board.done[state])
        board.table[slot] = state
