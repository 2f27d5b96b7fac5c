"""The checker's own proof of a schedule's bound: a flow, which no cut of the same network undercuts.

It is part of ``check`` and, like it, shares no code with the passes that claim the bound. OR-tools
finds the flow; that it is one is verified here (a certifying algorithm: McConnell, Mehlhorn, Näher and
Schweitzer, 2011).
"""

from __future__ import annotations

from typing import Any

from mplan.ir.plan import Problem

_SOURCE, _SINK = 0, 1
#: The bytes of all buffers together up to which a flow is counted in 64 bits.
_MOST_BYTES = 2**60


def closure(problem: Problem, index: int, home: Any) -> int:
    """The least bytes of the buffers that ``home`` marks live while step ``index`` runs, over all
    valid orders; a lower bound on them where a ``live_in`` buffer is never touched. 0 if there are more
    bytes than a flow can count.

    Whichever steps have run before it, they are a downset that holds its ancestors. A buffer costs
    its size if it has begun and is still needed, so the least is a minimum cut between the steps
    before (source) and after (sink), in which buffers are hyperedges.
    """
    import numpy as np

    columns = problem.columns
    total = int(columns.size.sum())
    if total > _MOST_BYTES:
        return 0
    early, late = _ancestors(problem, index), _descendants(problem, index)
    free = ~(early | late)
    touched = np.concatenate([columns.reads.flat, columns.writes.flat]).astype(np.int64)
    touching = np.concatenate([columns.reads.owner, columns.writes.owner])

    def reached(steps: Any) -> Any:
        """The buffers that one of ``steps`` touches."""
        found = np.zeros(len(home), np.bool_)
        found[touched[steps[touching]]] = True
        return found

    used, any_step = reached(free), reached(free | early | late)
    begun = columns.live_in | reached(early) | (columns.live_out & ~any_step)
    needed = columns.live_out | reached(late)
    undecided = home & used & ~(begun & needed)
    # Steps are nodes, and so are the two ends of each buffer: what begins it and what needs it.
    node = np.cumsum(free) + _SINK
    number = np.cumsum(undecided) + int(free.sum()) + _SINK
    entry = np.where(begun, _SOURCE, number)
    exit_ = np.where(needed, _SINK, number + int(undecided.sum()))
    after, follower = columns.after.flat.astype(np.int64), columns.after.owner
    inside = free[after] & free[follower]
    mine = undecided[touched] & free[touching]
    buffer, user = touched[mine], node[touching[mine]]
    begins, needs = ~begun[buffer], ~needed[buffer]
    tails = (node[follower[inside]], user[begins], exit_[buffer[needs]], entry[undecided])
    heads = (node[after[inside]], entry[buffer[begins]], user[needs], exit_[undecided])
    room = np.full(sum(map(len, heads)), total + 1)
    room[len(room) - int(undecided.sum()) :] = columns.size[undecided]
    flow = _flow(np.concatenate(tails), np.concatenate(heads), room)
    return int(columns.size[home & begun & needed].sum()) + flow


def _flow(tails: Any, heads: Any, room: Any) -> int:
    """The most that flows from the source to the sink through arcs with ``room``; 0 if what OR-tools
    answers is no flow."""
    import numpy as np
    from ortools.graph.python import max_flow

    solver = max_flow.SimpleMaxFlow()
    arcs = solver.add_arcs_with_capacity(tails.astype(np.int32), heads.astype(np.int32), room)
    solver.solve(_SOURCE, _SINK)
    flow = solver.flows(arcs)
    gain = np.zeros(int(max(tails.max(initial=_SINK), heads.max(initial=_SINK))) + 1, np.int64)
    np.add.at(gain, heads, flow)
    np.subtract.at(gain, tails, flow)
    valid = (flow >= 0).all() and (flow <= room).all() and not gain[_SINK + 1 :].any()
    return int(gain[_SINK]) if valid else 0


def _ancestors(problem: Problem, index: int) -> Any:
    """Whether each step is one that ``index`` follows, or itself; steps stand in a valid order."""
    import numpy as np

    seen = [False] * len(problem.steps)
    seen[index] = True
    for s in range(index, -1, -1):
        if seen[s]:
            for before in problem.steps[s].after:
                seen[before] = True
    return np.array(seen, np.bool_)


def _descendants(problem: Problem, index: int) -> Any:
    """Whether each step follows ``index``, or is itself; steps stand in a valid order."""
    import numpy as np

    seen = {index}
    for s in range(index + 1, len(problem.steps)):
        if not seen.isdisjoint(problem.steps[s].after):
            seen.add(s)
    found = np.zeros(len(problem.steps), np.bool_)
    found[list(seen)] = True
    return found
