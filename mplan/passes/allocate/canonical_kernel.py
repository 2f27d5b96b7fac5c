"""The search that ``canonical`` describes, compiled by Numba: records of integers and no objects.

Import this module inside functions: it imports Numba. All state lives in arrays, so that ``search``
can stop after any amount of work and go on later. Sizes and offsets are in units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from numba import njit

from mplan.passes.solvers.compiled import entry

Function = TypeVar("Function", bound=Callable[..., Any])

#: What ``search`` answers: out of work, found, no packing exists, or the arrays are too short.
PAUSED, FOUND, INFEASIBLE, FULL = 0, 1, 2, 3
#: How the section to branch on is chosen: fewest boxes, least slack, or least product of the two.
FEWEST, TIGHTEST, BOTH = 0, 1, 2


def _record(*names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names]


#: A box lives in the sections ``[low, high)`` and lies at a multiple of ``alignment`` not above
#: ``last``; boxes that are equal have the same ``twin``. While it is not placed its ``offset`` is -1,
#: and it lies at ``least`` or higher. ``seen`` is the last node that saved it.
BOX = _record("low", "high", "size", "alignment", "last", "twin", "least", "offset", "seen")
#: A section's boxes are ``members[first:]`` up to the next section's ``first``, those that begin here
#: ``starts[opening:]`` likewise; a box must end at ``ceiling``. ``count`` boxes are the lowest that can
#: still be placed here, at ``floor``; ``rest`` units are still to place. The highest box placed ends at
#: ``top``; ``crossing`` unplaced boxes live in the section before, too. ``failures`` counts.
SECTION = _record(
    *("first", "opening", "ceiling", "floor", "count", "rest", "top", "crossing", "failures", "seen")
)
#: A decision at ``level`` of ``section``: ``choices[first:end]``, of which ``next`` comes next, in the
#: component ``[left, right)`` of sections; what follows from it lies above ``mark`` in the trail.
FRAME = _record("section", "level", "mark", "first", "end", "next", "left", "right")
#: What a change replaced, to be undone: of ``kind`` at ``index``.
CHANGE = _record("kind", "index", "first", "second", "third")
#: The heights of stack and trail, the nodes and elementary steps so far, and what to do next.
CLOCK = _record("depth", "trail", "nodes", "work", "descend")

_WALL = 2**62
_BOX, _SECTION, _PLACED = 0, 1, 2


class State(NamedTuple):
    """Arrays of the records above (``sections`` has one more at the end), and of box numbers.

    Boxes are numbered in order of preference. ``choices`` holds the alternatives of all frames, a box
    or -1 for none; ``dirty`` the sections whose floor must be found again; ``clock`` has one record.
    """

    boxes: Any
    sections: Any
    members: Any
    starts: Any
    frames: Any
    choices: Any
    trail: Any
    dirty: Any
    clock: Any


def _inner(function: Function) -> Function:
    """Compile together with the function that calls it."""
    compiled: Function = cast(Any, njit)(no_cpython_wrapper=True, error_model="numpy")(function)
    return compiled


@_inner
def _up(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


@_inner
def _note(t: State, kind: int, index: int, first: int, second: int, third: int) -> None:
    """Write a change to the trail."""
    clock = t.clock[0]
    change = t.trail[clock.trail]
    change.kind, change.index = kind, index
    change.first, change.second, change.third = first, second, third
    clock.trail += 1


@_inner
def _save(t: State, s: int) -> None:
    """Note what a section is like before its first change at this node."""
    section = t.sections[s]
    if section.seen != t.clock[0].nodes:
        section.seen = t.clock[0].nodes
        _note(t, _SECTION, s, section.floor, section.count, section.top)


@_inner
def _undo(t: State, mark: int) -> None:
    """Take back what the trail holds above ``mark``."""
    for at in range(t.clock[0].trail - 1, mark - 1, -1):
        change = t.trail[at]
        if change.kind == _SECTION:
            section = t.sections[change.index]
            section.floor, section.count, section.top = change.first, change.second, change.third
        elif change.kind == _BOX:
            t.boxes[change.index].least = change.first
        else:
            box = t.boxes[change.index]
            box.offset = -1
            for s in range(box.low, box.high):
                t.sections[s].rest += box.size
                t.sections[s].crossing += s > box.low
    t.clock[0].trail = mark


@_inner
def _raise(t: State, b: int, least: int, dirty: int) -> int:
    """Raise the least offset of ``b``; the number of dirty sections, -1 if it has no place left."""
    box = t.boxes[b]
    old, new = box.least, _up(least, box.alignment)
    if new > box.last:
        return -1
    if box.seen != t.clock[0].nodes:
        box.seen = t.clock[0].nodes
        _note(t, _BOX, b, old, 0, 0)
    box.least = new
    for s in range(box.low, box.high):
        section = t.sections[s]
        if section.floor == old and section.count:
            _save(t, s)
            section.count -= 1
            if section.count == 0:
                t.dirty[dirty] = s
                dirty += 1
    t.clock[0].work += box.high - box.low
    return dirty


@_inner
def _neighbours(t: State, b: int) -> int:
    """How many boxes live at some time when ``b`` does (itself included)."""
    low, high = t.sections[t.boxes[b].low], t.sections[t.boxes[b].high]
    after = t.sections[t.boxes[b].low + 1]
    count = after.first - low.first + high.opening - after.opening
    t.clock[0].work += count
    return int(count)


@_inner
def _neighbour(t: State, b: int, k: int) -> int:
    """The ``k``-th of them: those that live when ``b`` begins, then those that begin later."""
    low, after = t.sections[t.boxes[b].low], t.sections[t.boxes[b].low + 1]
    k += low.first
    return int(t.members[k] if k < after.first else t.starts[k - after.first + after.opening])


@_inner
def _place(t: State, b: int, offset: int) -> int:
    """Place ``b``; the number of dirty sections, -1 if a box has no place left."""
    box = t.boxes[b]
    _note(t, _PLACED, b, 0, 0, 0)
    box.offset = offset
    end = offset + box.size
    dirty = 0
    for s in range(box.low, box.high):
        _save(t, s)
        section = t.sections[s]
        section.rest -= box.size
        section.crossing -= s > box.low
        section.top, section.count = end, 0
        t.dirty[dirty] = s
        dirty += 1
    for k in range(_neighbours(t, b)):
        c = _neighbour(t, b, k)
        if t.boxes[c].offset < 0 and t.boxes[c].least < end:
            dirty = _raise(t, c, end, dirty)
            if dirty < 0:
                return -1
    return dirty


@_inner
def _in_group(box: Any, s: int, level: int) -> bool:
    """Whether a box could be placed at ``level`` of section ``s``."""
    return bool(box.offset < 0 and box.least == level and box.low <= s and s < box.high)


@_inner
def _support(t: State, b: int, s: int, level: int) -> int:
    """The least end of an unplaced box outside the group that could come to lie under ``b``."""
    least = _WALL
    for k in range(_neighbours(t, b)):
        box = t.boxes[_neighbour(t, b, k)]
        if box.offset < 0 and box.least + box.size < least and not _in_group(box, s, level):
            least = box.least + box.size
    return least


@_inner
def _leave(t: State, s: int, level: int, room: int) -> int:
    """Let no box lie at ``level`` of section ``s``; returns what ``_place`` does.

    The boxes that could, the group, then lie each on an unplaced box: on one outside the group or on
    one of their own that does. ``room`` is the free end of ``choices``.
    """
    count, lowest, smallest = 0, _WALL, _WALL
    for k in range(t.sections[s].first, t.sections[s + 1].first):
        b = t.members[k]
        if _in_group(t.boxes[b], s, level):
            support = _support(t, b, s, level)
            t.choices[room + 2 * count], t.choices[room + 2 * count + 1] = b, support
            lowest, smallest = min(lowest, support), min(smallest, t.boxes[b].size)
            count += 1
    if lowest == _WALL:
        return -1
    dirty = 0
    for k in range(room, room + 2 * count, 2):
        dirty = _raise(t, t.choices[k], min(t.choices[k + 1], lowest + smallest), dirty)
        if dirty < 0:
            return -1
    return dirty


@_inner
def _settle(t: State, dirty: int) -> int:
    """Find the floors of the dirty sections; the first section that overflows, or -1."""
    for k in range(dirty):
        s = t.dirty[k]
        section, after = t.sections[s], t.sections[s + 1]
        floor, count = _WALL, 0
        for at in range(section.first, after.first):
            box = t.boxes[t.members[at]]
            if box.offset < 0 and box.least <= floor:
                count = count + 1 if box.least == floor else 1
                floor = box.least
        section.floor, section.count = floor, count
        t.clock[0].work += after.first - section.first
        if count and floor + section.rest > section.ceiling:
            return int(s)
    return -1


@_inner
def _score(section: Any, rule: int) -> float:
    """How good it is to branch on a section; less is better, and forced moves come first."""
    slack = section.ceiling - section.floor - section.rest
    options = section.count + (slack > 0)
    if options == 1:
        return -1.0
    if rule == FEWEST:
        return float(options / (1.0 + section.failures))
    if rule == TIGHTEST:
        return float((slack + 1.0) / (1.0 + section.failures))
    return float(options * (slack + 1.0) / (1.0 + section.failures))


@_inner
def _pick(t: State, left: int, right: int, rule: int) -> int:
    """The section of ``[left, right)`` to branch on, one in a valley; -1 if all are done."""
    best, best_score = -1, 1.0e300
    start = left
    while start < right:
        floor = t.sections[start].floor
        end = start + 1
        while end < right and t.sections[end].floor == floor:
            end += 1
        low = (start == left or t.sections[start - 1].floor > floor) and floor < _WALL
        if low and (end == right or t.sections[end].floor > floor):
            for s in range(start, end):
                score = _score(t.sections[s], rule)
                if score < best_score:
                    best, best_score = s, score
        start = end
    t.clock[0].work += right - left
    return best


@_inner
def _descend(t: State, rule: int) -> bool:
    """Push a decision in the innermost component that is not done; False if all boxes are placed."""
    depth, count = t.clock[0].depth, len(t.sections) - 1
    best, inner = -1, depth
    while best < 0 and inner > 0:
        inner -= 1
        best = _pick(t, t.frames[inner].left, t.frames[inner].right, rule)
    if best < 0:
        best = _pick(t, 0, count, rule)
    if best < 0:
        return False
    left, right = best, best + 1
    while t.sections[left].crossing:
        left -= 1
    while t.sections[right].crossing:
        right += 1
    frame = t.frames[depth]
    frame.section, frame.level, frame.mark = best, t.sections[best].floor, t.clock[0].trail
    frame.left, frame.right = left, right
    frame.first = t.frames[depth - 1].end if depth else 0
    frame.next = frame.end = frame.first
    _choose(t, frame)
    t.clock[0].depth += 1
    return True


@_inner
def _choose(t: State, frame: Any) -> None:
    """Write the alternatives of a decision: the boxes of the group but for twins, and none of them."""
    twin = -1
    for at in range(t.sections[frame.section].first, t.sections[frame.section + 1].first):
        b = t.members[at]
        if _in_group(t.boxes[b], frame.section, frame.level) and t.boxes[b].twin != twin:
            twin = t.boxes[b].twin
            t.choices[frame.end] = b
            frame.end += 1
    t.choices[frame.end] = -1
    frame.end += 1


@_inner
def _rests(t: State, b: int, level: int) -> bool:
    """Whether box ``b`` at ``level`` lies on a placed box or the ground, or cannot lie higher."""
    box = t.boxes[b]
    top = 0
    for s in range(box.low, box.high):
        top = max(top, t.sections[s].top)
    return bool(level == box.last or _up(top, box.alignment) == level)


@_inner
def _try(t: State, frame: Any) -> bool:
    """Make the next choice of a decision; False if it leads nowhere."""
    b = t.choices[frame.next]
    frame.next += 1
    t.clock[0].nodes += 1
    t.clock[0].work += 1
    if b < 0:
        dirty = _leave(t, frame.section, frame.level, frame.end)
    elif _rests(t, b, frame.level):
        dirty = _place(t, b, frame.level)
    else:
        return False
    failed = frame.section if dirty < 0 else _settle(t, dirty)
    if failed >= 0:
        t.sections[failed].failures += 1
    return bool(failed < 0)


@_inner
def _retreat(t: State) -> bool:
    """Drop a decision without alternatives, and with it those about other components that were made
    since the last one about its own; False if there is none."""
    depth = t.clock[0].depth - 1
    left, right = t.frames[depth].left, t.frames[depth].right
    while depth and (t.frames[depth - 1].right <= left or t.frames[depth - 1].left >= right):
        depth -= 1
    t.clock[0].depth = depth
    return bool(depth > 0)


@_inner
def _full(t: State) -> bool:
    """Whether an array could overflow at the next step."""
    depth, boxes = t.clock[0].depth, len(t.boxes)
    used = t.frames[depth - 1].end if depth else 0
    return bool(
        depth + 1 >= len(t.frames)
        or used + 3 * boxes + 1 > len(t.choices)
        or t.clock[0].trail + boxes + len(t.sections) + 1 > len(t.trail)
    )


@_inner
def _begin(t: State) -> bool:
    """Find the first floors; False if a box has no place, or a section overflows, from the start."""
    t.clock[0].nodes, t.clock[0].descend = 1, 1
    for box in t.boxes:
        if box.least > box.last:
            return False
    for s in range(len(t.sections) - 1):
        t.dirty[s] = s
    return bool(_settle(t, len(t.sections) - 1) < 0)


@entry
def search(t: State, rule: int, work: int) -> int:
    """Go on for about ``work`` elementary steps; returns one of the four answers above."""
    clock = t.clock[0]
    if clock.nodes == 0 and not _begin(t):
        return INFEASIBLE
    stop = clock.work + work
    while clock.work < stop:
        if _full(t):
            return FULL
        if clock.descend:
            if not _descend(t, rule):
                return FOUND
            clock.descend = 0
            continue
        frame = t.frames[clock.depth - 1]
        _undo(t, frame.mark)
        if frame.next < frame.end:
            clock.descend = _try(t, frame)
        elif not _retreat(t):
            return INFEASIBLE
    return PAUSED
