"""Items placed one by one, the densest first, in the cheapest region that has a gap for them.

What fills a region to the brim at every moment often has no addresses. This way there always are some
where the last region has room for what the others leave.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mplan.ir.plan import Problem
from mplan.passes.allocate.greedy import pack_within
from mplan.passes.allocate.instance import Instance, from_problem
from mplan.passes.memories.program import Program
from mplan.passes.solvers.interface import Deadline

#: Seconds that packing a region may take even if the deadline has passed.
_GRACE_S = 0.1
#: A region per item, and offsets by buffer.
Way = tuple[tuple[str, ...], dict[int, int]]


def densest_packed(program: Program, order: Sequence[int], deadline: Deadline) -> list[Way]:
    """What the ways of ``program`` lead to if each item finds a gap, the cheapest first.

    Once the deadline has passed and a tenth of a second more, what is left goes to regions without a
    limit.
    """
    limited = {
        name: (from_problem(_all_in(program, name), order, name), capacity)
        for name in program.room
        if (capacity := program.problem.region(name).capacity_bytes) is not None
    }
    found: list[Way] = []
    least = 1 if program.total is None else 1 + len(program.room)
    for turn, (ranked, names) in enumerate(program.ways):
        if turn >= least and deadline.expired:
            break
        way = _pack(program, limited, ranked, names, deadline)
        found += [way] if way else []
    return sorted(found, key=lambda way: program.cost(way[0]))


def _all_in(program: Program, name: str) -> Problem:
    """The problem with every item in the region called ``name`` that may lie there."""
    return program.narrowed([name if name in i.regions else i.regions[0] for i in program.items])


def _pack(
    program: Program,
    limited: Mapping[str, tuple[Instance, int]],
    ranked: Sequence[int],
    names: Collection[str],
    deadline: Deadline,
) -> Way | None:
    items, hints = program.items, dict[int, int]()
    item_of = {item.buffers[0]: n for n, item in enumerate(items)}
    found = {n: item.regions[0] for n, item in enumerate(items) if not item.extents}
    for name in sorted(names, key=program.costs.__getitem__):
        left = {n for n in ranked if n not in found and name in items[n].regions}
        if name not in limited:
            found |= dict.fromkeys(left, name)
            continue
        instance, room = limited[name]
        number = {item_of[box.buffer]: i for i, box in enumerate(instance.boxes)}
        turns = [number[n] for n in ranked if n in left]
        offsets = pack_within(instance, turns, room, deadline.at_least(_GRACE_S))
        for box, offset in zip(instance.boxes, offsets, strict=True):
            if offset is not None:
                found[item_of[box.buffer]] = name
                hints[box.buffer] = offset
    if len(found) < len(items):
        return None
    return tuple(found[n] for n in range(len(items))), hints
