"""Nested minimum cuts: bend an order, at its peak, through the cheapest downset for the peak's step.

Take the step that runs at the peak. Of all downsets after which it may run, the minimum cut holds the
fewest bytes: run that downset first, then the step, then the rest, keep the relative order inside, and
repeat inside the parts. Since live bytes are submodular, later cuts nest between earlier ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from mplan.passes.schedule.bounds import closure
from mplan.passes.schedule.course import Course
from mplan.passes.schedule.greedy import Order, portfolio
from mplan.passes.schedule.instance import Instance
from mplan.passes.solvers.interface import Bound, Deadline, Search

#: The part of the remaining time that cuts may take.
_SHARE = 0.4
#: Larger graphs are not refined as a whole, but in windows around their peaks, of these widths in turn.
MAX_STEPS = 4_000
WIDTHS = (500, 2_000, 8_000)
#: Of so many of their steps the closures are tried as bounds.
_PEAKS = 20


def run(instance: Instance, search: Search[Order], deadline: Deadline, seed: int) -> None:
    """Refine the best order and those of the greedy portfolio; bound by the closures of peak steps.

    Takes no more than a part of the time: on large graphs windows gain more.
    """
    deadline = deadline.share(_SHARE)
    if instance.count > MAX_STEPS:
        return _bend(instance, search, deadline)
    for order in _starts(instance, search.answer, search.value):
        for largest in (False, True):
            if search.closed or deadline.expired:
                return
            refined = refine(instance, order, search, deadline, largest)
            search.offer(refined, instance.peak(refined), "cuts")
    tighten(instance, search, deadline)


def _starts(instance: Instance, order: Order, limit_bytes: int) -> Iterator[Order]:
    yield order
    seen = {order}
    for other in portfolio(instance, limit_bytes):
        if other not in seen:
            seen.add(other)
            yield other


def _bend(instance: Instance, search: Search[Order], deadline: Deadline) -> None:
    """Refine the best order in windows around its peak until none yields."""
    course = Course(instance, search.answer)
    while not deadline.expired and max(course.profile) > search.bound.bytes:
        position = course.profile.index(max(course.profile))
        if not any(bend(course, position, width, deadline) for width in WIDTHS):
            break
    search.offer(course.order, max(course.profile), "cuts")
    tighten(instance, search, deadline, _PEAKS)


def bend(
    course: Course, position: int, width: int, deadline: Deadline, *, thorough: bool = False
) -> bool:
    """Whether nested cuts lower the peak of the window of ``width`` steps around ``position``.

    They refine the order that it has and, if ``thorough``, those of the greedy portfolio.
    """
    low, high = course.around(position, min(width, len(course.steps)))
    local = course.window(low, high)
    order = tuple(range(local.count))
    peak = local.peak(order)
    best = Search(order, peak, "none", Bound(local.base, "boundary"))
    for start in _starts(local, order, peak) if thorough else (order,):
        for largest in (False, True):
            if deadline.expired or (best.value < peak and not thorough):
                break
            refined = refine(local, start, best, deadline, largest)
            best.offer(refined, local.peak(refined), "cuts")
    if best.value < peak:
        course.replace(low, [course.steps[low + s] for s in best.answer])
    return best.value < peak


def tighten(
    instance: Instance, search: Search[Order], deadline: Deadline, most: int | None = None
) -> None:
    """Raise the bound by the closures of the steps at which the best order exceeds it, worst first, of
    no more than ``most`` steps."""
    profile = instance.profile(search.answer)
    for live, step in sorted(zip(profile, search.answer, strict=True), reverse=True)[:most]:
        if live <= search.bound.bytes or search.closed or deadline.expired:
            return
        search.raise_bound(Bound(closure(instance, step)[0], "closure", (step,)))


def refine(
    instance: Instance, order: Order, search: Search[Order], deadline: Deadline, largest: bool
) -> Order:
    """The order bent through nested cuts until no cut lowers its peak, or time is up.

    ``largest`` chooses among equal cuts. The closure of the whole graph's peak step raises the
    bound of ``search``.
    """
    parts = _Parts(instance, order)
    while not deadline.expired:
        part = parts.worst()
        if part is None:
            break
        local, peak = part.instance, part.peak
        step = local.profile(range(local.count)).index(peak)
        value, chosen = closure(local, step, largest)
        if local is parts.root:
            search.raise_bound(Bound(value, "closure", (order[step],)))
        if value >= peak:
            break
        parts.split(part, chosen, step)
    return parts.order()


class _Part:
    """An interval of the order: its steps and the instance of them alone, in that order."""

    def __init__(self, steps: Sequence[int], instance: Instance) -> None:
        self.steps = steps
        self.instance = instance
        self.peak = instance.peak(range(instance.count))
        self.children: tuple[_Part, ...] = ()


class _Parts:
    """The tree of intervals; the leaves from left to right are the order."""

    def __init__(self, instance: Instance, order: Order) -> None:
        self._top = _Part(order, instance.restrict(order, [False] * instance.count))
        self.root = self._top.instance
        self._heap = [(-self._top.peak, 0, self._top)]
        self._count = 1

    def worst(self) -> _Part | None:
        """The leaf with the highest peak, taken out of the heap."""
        return heapq.heappop(self._heap)[2] if self._heap else None

    def split(self, part: _Part, chosen: Sequence[int], step: int) -> None:
        """Replace ``part`` by the local steps ``chosen``, then ``step``, then the others."""
        local = part.instance
        first = set(chosen)
        rest = [s for s in range(local.count) if s not in first and s != step]
        done = [False] * local.count
        children = []
        for steps in (chosen, [step], rest):
            if steps:
                names = [part.steps[s] for s in steps]
                children.append(_Part(names, local.restrict(steps, done)))
            for s in steps:
                done[s] = True
        part.children = tuple(children)
        for child in children:
            heapq.heappush(self._heap, (-child.peak, self._count, child))
            self._count += 1

    def order(self) -> Order:
        """The steps of the leaves from left to right."""
        steps: list[int] = []
        stack = [self._top]
        while stack:
            part = stack.pop()
            if part.children:
                stack.extend(reversed(part.children))
            else:
                steps.extend(part.steps)
        return tuple(steps)
