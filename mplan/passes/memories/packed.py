"""Items placed one by one, the densest first, in the cheapest region that has a gap for them.

What fills a region to the brim at every moment often has no addresses. This way there always are some
where the last region has room for what the others leave.
"""

from __future__ import annotations

from collections.abc import Sequence

from mplan.passes.allocate.greedy import pack_within
from mplan.passes.allocate.instance import from_problem
from mplan.passes.memories.program import Program
from mplan.passes.solvers.interface import Deadline

#: Seconds that packing a region may take even if the deadline has passed.
_GRACE_S = 0.1
#: A region per item, and offsets by buffer.
Way = tuple[tuple[str, ...], dict[int, int]]


def densest_packed(program: Program, order: Sequence[int], deadline: Deadline) -> Way | None:
    """The cheapest of the ways that the orders of ``program`` lead to; None if some item finds no gap.

    Once the deadline has passed and a tenth of a second more, what is left goes to regions without a
    limit.
    """
    best: Way | None = None
    for ranked in program.orders:
        if best is not None and deadline.expired:
            break
        way = _pack(program, order, ranked, deadline)
        if way and (best is None or program.cost(way[0]) < program.cost(best[0])):
            best = way
    return best


def _pack(
    program: Program, order: Sequence[int], ranked: Sequence[int], deadline: Deadline
) -> Way | None:
    items, hints = program.items, dict[int, int]()
    item_of = {item.buffers[0]: n for n, item in enumerate(items)}
    found = {n: item.regions[0] for n, item in enumerate(items) if not item.extents}
    for name in sorted(program.room, key=program.costs.__getitem__):
        left = {n for n in ranked if n not in found and name in items[n].regions}
        if program.problem.region(name).capacity_bytes is None:
            found |= dict.fromkeys(left, name)
            continue
        tried = [name if n in left else found.get(n, item.regions[0]) for n, item in enumerate(items)]
        instance = from_problem(program.narrowed(tried), order, name)
        number = {item_of[box.buffer]: i for i, box in enumerate(instance.boxes)}
        turns = [number[n] for n in ranked if n in left]
        packing = Deadline(max(deadline.remaining(), _GRACE_S))
        offsets = pack_within(instance, turns, program.room[name], packing)
        for box, offset in zip(instance.boxes, offsets, strict=True):
            if offset is not None:
                found[item_of[box.buffer]] = name
                hints[box.buffer] = offset
    if len(found) < len(items):
        return None
    return tuple(found[n] for n in range(len(items))), hints
