"""Window re-optimisation: solve the steps around the peak anew while the others stay where they are.

The window around the highest position is a small instance of its own; the search over downsets either
lowers its peak, or refutes that, or gives up after a number of states. Where a window does not yield,
a wider one is tried, with its ends where few bytes are live, up to a limit. Large neighbourhoods in
the sense of Shaw (CP 1998); what they leave out is fixed, so bounds do not follow from them.
"""

from __future__ import annotations

from mplan.passes.schedule import cuts
from mplan.passes.schedule.course import Course
from mplan.passes.schedule.downsets import decide
from mplan.passes.schedule.greedy import Order
from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Deadline, Search

#: Widths of the windows that are tried in turn, in steps, and the states that an attempt may visit.
_TRIES = (
    *((16, 1_000), (48, 1_000), (144, 1_000), (432, 1_000)),
    *((96, 4_000), (384, 4_000), (1536, 4_000)),
)


def run(instance: Instance, search: Search[Order], deadline: Deadline, seed: int) -> None:
    """Lower the peak of the best order window by window until none yields or time is up."""
    course = Course(instance, search.answer)
    while not search.closed and not deadline.expired:
        if not _lower(course, search.bound.bytes, deadline):
            return
        if max(course.profile) < search.value:
            search.offer(course.order, max(course.profile), "windows")


def _lower(course: Course, bound: int, deadline: Deadline) -> bool:
    """Lower the first highest position; False if no window does."""
    peak = max(course.profile)
    position = course.profile.index(peak)
    seen = set()
    large = len(course.steps) > cuts.MAX_STEPS
    if large and cuts.bend(course, position, cuts.WIDTHS[0], deadline):
        return True
    for width, states in _TRIES:
        if width > len(course.steps):
            continue
        low, high = course.around(position, width)
        if (low, high, states) in seen:
            continue
        seen.add((low, high, states))
        if _solve(course, low, course.window(low, high), peak - 1, states, deadline):
            # A quarter of the way to the bound gains more than the next lower budget, if it can be met.
            _solve(course, low, course.window(low, high), (bound + 3 * peak) // 4, states, deadline)
            return True
    return large and any(
        cuts.bend(course, position, width, deadline, thorough=True) for width in cuts.WIDTHS[:-1]
    )


def _solve(
    course: Course, low: int, local: Instance, budget: int, states: int, deadline: Deadline
) -> bool:
    """Bring ``local``, the window from ``low`` on, under ``budget`` if an order is found that does."""
    order = decide(local, budget, states, deadline).order
    if order is not None:
        course.replace(low, [course.steps[low + s] for s in order])
    return order is not None
