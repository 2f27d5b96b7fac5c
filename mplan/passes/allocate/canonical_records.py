"""The records of the search that ``canonical`` describes, all of integers, and its arrays of them."""

from __future__ import annotations

from typing import Any, NamedTuple


def _record(*names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names]


#: A box lives in the sections ``[low, high)`` and lies at a multiple of ``alignment`` not above
#: ``last``; boxes that are equal have the same ``twin``. While it is not placed its ``offset`` is -1,
#: and it lies at ``least`` or higher, over the placed boxes, which end at ``ground``. ``seen`` is the
#: last node that saved it.
BOX = _record("low", "high", "size", "alignment", "last", "twin", "least", "ground", "offset", "seen")
#: A section's boxes are ``members[first:]`` up to the next section's ``first``, those that begin here
#: ``starts[opening:]`` likewise; a box must end at ``ceiling``. ``count`` boxes are the lowest that can
#: still be placed here, at ``floor``; ``rest`` units are still to place. ``crossing`` unplaced boxes
#: live in the section before, too. ``failures`` counts; ``seen`` is the last node that saved it.
SECTION = _record(
    *("first", "opening", "ceiling", "floor", "count", "rest", "crossing", "failures", "seen")
)
#: A decision at ``level`` of ``section``: ``choices[first:end]``, of which ``next`` comes next, in the
#: component ``[left, right)`` of sections, whose unplaced boxes have the signature ``key``, ``check``;
#: what follows from it lies above ``mark`` in the trail.
FRAME = _record("section", "level", "mark", "first", "end", "next", "left", "right", "key", "check")
#: What a change replaced, to be undone: of ``kind`` at ``index``.
CHANGE = _record("kind", "index", "first", "second")
#: The heights of stack and trail, the nodes and elementary steps so far, and what to do next.
CLOCK = _record("depth", "trail", "nodes", "work", "descend")


class State(NamedTuple):
    """Arrays of the records above (``sections`` has one more at the end), and of box numbers.

    Boxes are numbered in order of preference. ``choices`` holds the alternatives of all frames, a box
    or -1 for none; ``dirty`` the sections whose floor must be found again; ``clock`` has one record.
    ``nogoods`` holds signatures of components that have no packing; their number is a power of two.
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
    nogoods: Any
