"""What others do with the same problem: TFLM, an online allocator, Inductor's orders, CP-SAT alone.

Each function answers a ``Problem`` in the way of one peer. Orders are valued by ``live_peak`` and
placements by their height, as our own are.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

from mplan.ir.plan import Buffer, Problem
from mplan.passes.allocate.greedy import order_by, pack
from mplan.passes.allocate.instance import Instance, from_problem
from mplan.passes.live import live_peak
from mplan.passes.schedule import arena

Order = tuple[int, ...]

#: CP-SAT models beyond these sizes take longer to build than the limit.
_MAX_STEPS = 4_000
_MAX_BOXES = 20_000
_STACK_BYTES = 512 << 20


def captured_order(problem: Problem) -> Order:
    """The steps as they were captured."""
    return tuple(range(len(problem.steps)))


def instance_of(problem: Problem, order: Sequence[int]) -> Instance:
    """The rectangles of the arena when the steps run in ``order``."""
    return from_problem(problem, order, arena(problem))


# ---- addresses at the captured order ----


def greedy_by_size(problem: Problem) -> int:
    """The height after TFLM: the largest buffer first, each in the lowest gap that holds it.

    TensorFlow Lite for Microcontrollers, ``GreedyMemoryPlanner``.
    """
    instance = instance_of(problem, captured_order(problem))
    order = order_by(instance, lambda b: (-b.size, b.buffer))
    return instance.height(pack(instance, order, best_fit=False))


def best_fit(problem: Problem) -> int:
    """The height of an allocator that sees one request after another and takes the tightest hole.

    Boxes placed in the order of birth meet only those that are live at that moment.
    """
    instance = instance_of(problem, captured_order(problem))
    order = order_by(instance, lambda b: (b.start, b.buffer))
    return instance.height(pack(instance, order, best_fit=True))


# ---- Inductor's orders ----


@dataclass(eq=False)
class _BufferInfo:
    """What ``torch._inductor.memory`` asks of a buffer's ``mpi_buffer``."""

    size_alloc: int
    size_free: int
    succ_nodes: Any
    succ_nodes_for_ordering: Any = None


@dataclass(eq=False)
class _Buffer:
    """A ``SchedulerBuffer`` or ``FreeableInputBuffer`` as far as the sorts look."""

    name: str
    mpi_buffer: _BufferInfo

    def get_name(self) -> str:
        return self.name


@dataclass(eq=False)
class _NodeInfo:
    """What ``torch._inductor.memory`` asks of a node's ``mpi_node``."""

    index: int
    size: int
    pred_buffers: Any
    pred_nodes: Any
    succ_nodes: Any


@dataclass(frozen=True)
class _Dependency:
    name: str


@dataclass(eq=False)
class _Node:
    """A ``BaseSchedulerNode`` as far as the sorts look; it makes one name, which others depend on."""

    name: str
    mpi_node: _NodeInfo
    outputs: list[_Buffer] = field(default_factory=list)
    unmet_dependencies: tuple[_Dependency, ...] = ()

    def get_name(self) -> str:
        return self.name

    def get_outputs(self) -> list[_Buffer]:
        return self.outputs

    def get_buffer_names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class _Nodes:
    """The arguments of Inductor's sorts."""

    nodes: list[_Node]
    inputs: dict[str, _Buffer]
    buffers: dict[str, _Buffer]
    outputs: Any


def inductor_orders(problem: Problem) -> dict[str, Order]:
    """The orders among which Inductor's ``reorder_for_peak_memory`` chooses, by method.

    The nodes carry the problem's own buffers and precedence: an op that writes into a buffer that
    exists allocates nothing, and bytes that are live throughout are left out, as Inductor does.
    """
    from torch._inductor import memory
    from torch.utils._ordered_set import OrderedSet

    def sort(name: str, given: _Nodes) -> Order:
        method: Callable[..., list[Any]] = getattr(memory, f"topological_sort_{name}")
        rest = (given.inputs, given.buffers, given.outputs) if name == "lpmf" else ()
        return tuple(n.mpi_node.index for n in method(given.nodes, *rest))

    methods = ("lpmf", "bfs", "dfs")
    orders = {m: _deep(lambda m=m: sort(m, _nodes(problem, OrderedSet))) for m in methods}
    return {"captured": captured_order(problem), **orders}


def inductor_order(problem: Problem) -> tuple[str, Order, int]:
    """Inductor's choice: the method, its order and its peak."""
    region = arena(problem)
    peaks = {m: (live_peak(problem, o, region)[0], o) for m, o in inductor_orders(problem).items()}
    best = min(peaks, key=lambda m: peaks[m][0])
    return best, peaks[best][1], peaks[best][0]


def _nodes(problem: Problem, ordered_set: Any) -> _Nodes:
    region = arena(problem)
    nodes = [
        _Node(f"op{i}", _NodeInfo(i, 0, ordered_set(), ordered_set(), ordered_set()))
        for i in range(len(problem.steps))
    ]
    for node, step in zip(nodes, problem.steps, strict=True):
        node.unmet_dependencies = tuple(_Dependency(f"op{p}") for p in step.after)
        for p in step.after:
            node.mpi_node.pred_nodes.add(nodes[p])
            nodes[p].mpi_node.succ_nodes.add(node)
    users: list[list[_Node]] = [[] for _ in problem.buffers]
    for node, step in zip(nodes, problem.steps, strict=True):
        for b in sorted(step.touches):
            users[b].append(node)
    given = _Nodes(nodes, {}, {}, ordered_set())
    for i, b in enumerate(problem.buffers):
        if b.regions[0] != region or (b.live_in and b.live_out) or not users[i]:
            continue
        later = ordered_set(users[i] if b.live_in else users[i][1:])
        made = _Buffer(f"b{i}", _BufferInfo(b.size_bytes, b.size_bytes, later, later))
        for user in later:
            user.mpi_node.pred_buffers.add(made)
        if b.live_in:
            given.inputs[made.name] = made
        else:
            given.buffers[made.name] = made
            users[i][0].outputs.append(made)
            users[i][0].mpi_node.size += b.size_bytes
        if b.live_out:
            given.outputs.add(made.name)
    return given


def _deep(run: Callable[[], Order]) -> Order:
    """``run`` on a stack that is deep enough for Inductor's recursion."""
    found: list[Order | BaseException] = []

    def work() -> None:
        try:
            found.append(run())
        except BaseException as error:
            found.append(error)

    before = sys.getrecursionlimit(), threading.stack_size(_STACK_BYTES)
    sys.setrecursionlimit(1_000_000)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(before[0])
        threading.stack_size(before[1])
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


# ---- CP-SAT alone ----


@dataclass(frozen=True)
class Answer:
    """The best value that CP-SAT found (None: nothing) and its bound, in bytes."""

    value: int | None
    bound: int


def cpsat(problem: Problem, limit_s: float, workers: int = 2) -> Answer | None:
    """What CP-SAT finds alone: the least peak over orders; without steps, the least height or, where
    there is a capacity, one that keeps it.

    None if the model is too large to be built within the limit.
    """
    if problem.steps:
        return _cpsat_order(problem, limit_s, workers) if len(problem.steps) <= _MAX_STEPS else None
    instance = instance_of(problem, ())
    if len(instance.boxes) > _MAX_BOXES:
        return None
    return _cpsat_offsets(instance, problem.region(arena(problem)).capacity_bytes, limit_s, workers)


def _cpsat_order(problem: Problem, limit_s: float, workers: int) -> Answer:
    """A position per step, an interval per buffer, a cumulative constraint; starts as captured."""
    from ortools.sat.python import cp_model

    region, count = arena(problem), len(problem.steps)
    model = cp_model.CpModel()
    at = [model.new_int_var(0, count - 1, "") for _ in problem.steps]
    model.add_no_overlap([model.new_fixed_size_interval_var(p, 1, "") for p in at])
    users: list[list[Any]] = [[] for _ in problem.buffers]
    for i, step in enumerate(problem.steps):
        model.add_hint(at[i], i)
        for p in step.after:
            model.add(at[p] < at[i])
        for b in step.touches:
            users[b].append(at[i])
    rows, sizes = [], []
    for b, (buffer, span) in enumerate(
        zip(problem.buffers, problem.lifetimes(range(count)), strict=True)
    ):
        if buffer.regions[0] == region and buffer.size_bytes and span[0] < span[1]:
            rows.append(_lifetime(model, buffer, span, users[b], count))
            sizes.append(buffer.size_bytes)
    unit = gcd(*sizes) or 1
    most = live_peak(problem, range(count), region)[0] // unit
    top = model.new_int_var(0, most, "peak")
    model.add_hint(top, most)
    model.add_cumulative(rows, [s // unit for s in sizes], top)
    return _minimise(model, top, unit, limit_s, workers)


def _lifetime(
    model: Any, buffer: Buffer, span: tuple[int, int], users: Sequence[Any], count: int
) -> Any:
    """The interval that covers all ``users``; ``span`` is the one in captured order."""
    first = 0 if buffer.live_in else model.new_int_var(0, count - 1, "")
    last = count if buffer.live_out else model.new_int_var(1, count, "")
    length = model.new_int_var(1, count, "")
    model.add_hint(length, span[1] - span[0])
    if not buffer.live_in:
        model.add_hint(first, span[0])
        model.add_min_equality(first, users)
    if not buffer.live_out:
        model.add_hint(last, span[1])
        if users:
            model.add_max_equality(last, [u + 1 for u in users])
    return model.new_interval_var(first, length, last, "")


def _cpsat_offsets(instance: Instance, capacity: int | None, limit_s: float, workers: int) -> Answer:
    """Rectangles that do not overlap and a cumulative constraint; starts at greedy by size."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    boxes = instance.boxes
    start = pack(instance, order_by(instance, lambda b: (-b.size, b.buffer)), best_fit=False)
    unit = (
        gcd(*(n for b in boxes for n in (b.size, b.alignment * (b.alignment > 1), b.fixed or 0))) or 1
    )
    sizes = [b.size // unit for b in boxes]
    most = (instance.height(start) if capacity is None else capacity) // unit
    top = model.new_int_var(0, most, "height")
    columns = [model.new_fixed_size_interval_var(b.start, b.end - b.start, "") for b in boxes]
    rows = []
    for b, size, at in zip(boxes, sizes, start, strict=True):
        step = max(b.alignment // unit, 1)
        multiple = model.new_int_var(0, (most - size) // step, "")
        model.add_hint(multiple, at // unit // step)
        if b.fixed is not None:
            model.add(multiple * step == b.fixed // unit)
        model.add(multiple * step + size <= top)
        rows.append(model.new_fixed_size_interval_var(multiple * step, size, ""))
    model.add_no_overlap_2d(columns, rows)
    model.add_cumulative(columns, sizes, top)
    if capacity is None:
        return _minimise(model, top, unit, limit_s, workers)
    return _solve(model, top, unit, limit_s, workers)


def _minimise(model: Any, top: Any, unit: int, limit_s: float, workers: int) -> Answer:
    model.minimize(top)
    return _solve(model, top, unit, limit_s, workers)


def _solve(model: Any, top: Any, unit: int, limit_s: float, workers: int) -> Answer:
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = workers
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    bound = max(round(solver.best_objective_bound), 0)
    return Answer(solver.value(top) * unit if found else None, bound * unit)
