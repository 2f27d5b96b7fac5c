"""The search that ``canonical`` describes, compiled by Numba: records of integers and no objects.

Import this module inside functions: it imports Numba. All state lives in arrays, so that ``search``
can stop after any amount of work and go on later. Sizes and offsets are in units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

from mplan.passes.allocate.canonical_records import State
from mplan.passes.solvers.compiled import entry

Function = TypeVar("Function", bound=Callable[..., Any])

#: What ``search`` answers: out of work, found, no packing exists, or the arrays are too short.
PAUSED, FOUND, INFEASIBLE, FULL = 0, 1, 2, 3
#: How the section to branch on is chosen: fewest boxes, least slack, or least product of the two.
FEWEST, TIGHTEST, BOTH = 0, 1, 2

_WALL = 2**62
_BOX, _SECTION, _PLACED = 0, 1, 2


def _inner(function: Function) -> Function:
    """Compile together with the function that calls it."""
    compiled: Function = cast(Any, njit)(no_cpython_wrapper=True, error_model="numpy")(function)
    return compiled


@_inner
def _up(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


@_inner
def _note(t: State, kind: int, index: int, first: int, second: int) -> None:
    """Write a change to the trail."""
    clock = t.clock[0]
    change = t.trail[clock.trail]
    change.kind, change.index = kind, index
    change.first, change.second = first, second
    clock.trail += 1


@_inner
def _touch(t: State, s: int, dirty: int) -> int:
    """Note what a section is like before its first change at this node, and that it is dirty; returns
    the number of dirty sections."""
    section = t.sections[s]
    if section.seen == t.clock[0].nodes:
        return dirty
    section.seen = t.clock[0].nodes
    _note(t, _SECTION, s, section.floor, section.count)
    t.dirty[dirty] = s
    return dirty + 1


@_inner
def _undo(t: State, mark: int) -> None:
    """Take back what the trail holds above ``mark``."""
    for at in range(t.clock[0].trail - 1, mark - 1, -1):
        change = t.trail[at]
        if change.kind == _SECTION:
            section = t.sections[change.index]
            section.floor, section.count = change.first, change.second
        elif change.kind == _BOX:
            t.boxes[change.index].least, t.boxes[change.index].ground = change.first, change.second
        else:
            box = t.boxes[change.index]
            box.offset = -1
            for s in range(box.low, box.high):
                t.sections[s].rest += box.size
                t.sections[s].crossing += s > box.low
    t.clock[0].trail = mark


@_inner
def _keep(t: State, b: int) -> None:
    """Note where a box could lie before its first change at this node."""
    box = t.boxes[b]
    if box.seen != t.clock[0].nodes:
        box.seen = t.clock[0].nodes
        _note(t, _BOX, b, box.least, box.ground)


@_inner
def _raise(t: State, b: int, least: int, dirty: int) -> int:
    """Raise the least offset of ``b``; the number of dirty sections, -1 if it has no place left."""
    box = t.boxes[b]
    new = _up(least, box.alignment)
    if new > box.last:
        return -1
    _keep(t, b)
    box.least = new
    for s in range(box.low, box.high):
        dirty = _touch(t, s, dirty)
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
    _note(t, _PLACED, b, 0, 0)
    box.offset = offset
    end = offset + box.size
    dirty = 0
    for s in range(box.low, box.high):
        dirty = _touch(t, s, dirty)
        t.sections[s].rest -= box.size
        t.sections[s].crossing -= s > box.low
    for k in range(_neighbours(t, b)):
        c = _neighbour(t, b, k)
        if t.boxes[c].offset < 0 and t.boxes[c].ground < end:
            _keep(t, c)
            t.boxes[c].ground = end
            if t.boxes[c].least < end:
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
def _wastes(t: State, s: int, lowest: int) -> bool:
    """Whether the boxes of a section end too high even if each lies as low as this section allows.

    Those that could lie at its floor are ``lowest`` units high together.

    They are taken by their least offsets, as in Jackson's schedule of one machine: where all those
    that could lie below an address do not reach it, there is a gap that nothing fills.
    """
    section, after = t.sections[s], t.sections[s + 1]
    ground, end = section.floor, section.floor + lowest
    while ground + section.rest <= section.ceiling:
        below, following = 0, _WALL
        for at in range(section.first, after.first):
            box = t.boxes[t.members[at]]
            if box.offset < 0 and box.least <= end:
                below += box.size
            elif box.offset < 0:
                following = min(following, box.least)
        t.clock[0].work += after.first - section.first
        if ground + below > end:
            end = ground + below
        elif following == _WALL:
            return False
        else:
            ground, end = ground + following - end, following
    return True


@_inner
def _settle(t: State, dirty: int) -> int:
    """Find the floors of the dirty sections; the first section that overflows, or -1."""
    for k in range(dirty):
        s = t.dirty[k]
        section, after = t.sections[s], t.sections[s + 1]
        floor, count, highest, lowest = _WALL, 0, 0, 0
        for at in range(section.first, after.first):
            box = t.boxes[t.members[at]]
            if box.offset < 0:
                highest = max(highest, box.least)
                if box.least < floor:
                    floor, count, lowest = box.least, 0, 0
                if box.least == floor:
                    count += 1
                    lowest += box.size
        section.floor, section.count = floor, count
        t.clock[0].work += after.first - section.first
        if count and floor + section.rest > section.ceiling:
            return int(s)
        if count and highest + section.rest - lowest > section.ceiling and _wastes(t, s, lowest):
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
def _descend(t: State, rule: int, fitting: bool) -> bool:
    """Push a decision in the innermost component that is not done; False if all boxes are placed.

    It has no alternatives if the component is known to have no packing.
    """
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
    _sign(t, frame)
    if not _failed(t, frame):
        _choose(t, frame)
        if fitting:
            _sort(t, frame)
    t.clock[0].depth += 1
    return True


@_inner
def _mixed(x: int) -> int:
    """Mix all bits of an integer: the last step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@_inner
def _sign(t: State, frame: Any) -> None:
    """Find the signature of a component: what is left to place there, where, and what would rest.

    Whether it can be completed depends on nothing else. Sums do not depend on the order of the boxes,
    and two of 64 bits are never equal by chance (Zobrist, "A New Hashing Method with Application for
    Game Playing", 1970).
    """
    key, check = 0, 0
    first, end = t.sections[frame.left].opening, t.sections[frame.right].opening
    for at in range(first, end):
        b = t.starts[at]
        box = t.boxes[b]
        if box.offset < 0:
            one = _mixed(_mixed(box.twin) + 2 * box.least + _rests(t, b, box.least))
            key += one
            check += _mixed(one)
    t.clock[0].work += end - first
    frame.key, frame.check = key, check


@_inner
def _failed(t: State, frame: Any) -> bool:
    """Whether a component with this signature is known to have no packing."""
    nogood = t.nogoods[frame.key & (len(t.nogoods) - 1)]
    return bool(nogood[0] == frame.key and nogood[1] == frame.check)


@_inner
def _learn(t: State, frame: Any) -> None:
    """Remember that all alternatives of a decision failed; newer signatures replace older ones."""
    nogood = t.nogoods[frame.key & (len(t.nogoods) - 1)]
    nogood[0], nogood[1] = frame.key, frame.check


@_inner
def _fit(t: State, b: int, level: int) -> int:
    """How well a box would fill its valley: from wall to wall counts 2, each wall of its height 1."""
    box = t.boxes[b]
    end, walls, flush = level + box.size, 0, 0
    for s in (box.low - 1, box.high):
        if 0 <= s < len(t.sections) - 1:
            walls += t.sections[s].floor > level
            flush += t.sections[s].floor == end
        else:
            walls += 1
    return 2 * (walls == 2) + flush


@_inner
def _sort(t: State, frame: Any) -> None:
    """Put the alternatives that fit best first."""
    for at in range(frame.first + 1, frame.end - 1):
        b, to = t.choices[at], at
        fit = _fit(t, b, frame.level)
        while to > frame.first and _fit(t, t.choices[to - 1], frame.level) < fit:
            t.choices[to] = t.choices[to - 1]
            to -= 1
        t.choices[to] = b


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
    return bool(level == box.last or _up(box.ground, box.alignment) == level)


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
    _learn(t, t.frames[depth])
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
def search(t: State, rule: int, fitting: bool, work: int) -> int:
    """Go on for about ``work`` elementary steps; returns one of the four answers above.

    ``fitting`` tries boxes that fill their valley before those preferred.
    """
    clock = t.clock[0]
    if clock.nodes == 0 and not _begin(t):
        return INFEASIBLE
    stop = clock.work + work
    while clock.work < stop:
        if _full(t):
            return FULL
        if clock.descend:
            if not _descend(t, rule, fitting):
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
