"""The order of a stream: which rows and pixels are made when, and how many of each value must stay.

A *node* makes one storage of the body: an op and those that rewrite its result in place, position by
position. A *stage* is a node together with the nodes whose pixels only it takes, one by one. A stage
runs its steps in the order of rows; before each step the stages that it reads run as far as the step
needs (``Walk``). What this order needs of rows and of columns is found separately (``Line``): in the
order of pixels the last positions that stay are so many rows and so many pixels more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mplan.ir.geometry import SAME, Reach, Span, Spatial, geometry, grid
from mplan.ir.graph import Graph, Loop, Op
from mplan.ir.storage import storages
from mplan.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Read:
    """A node reads the storage of ``source`` this far along rows and along columns."""

    source: str
    reach: tuple[Reach, Reach]


@dataclass(frozen=True, slots=True)
class Node:
    """What makes the storage ``out``; ``rules`` has one rule per op, none if an op has none.

    ``steps`` are the rows and columns that it walks over: those of its result (``grid``), or those of
    its operand if it ``reduces``.
    """

    out: str
    ops: tuple[Op, ...]
    rules: tuple[Spatial, ...]
    grid: tuple[int, int]
    steps: tuple[int, int]
    reads: tuple[Read, ...] = ()

    @property
    def reduces(self) -> bool:
        """Whether its result exists only after its last step."""
        return any(rule.reduces for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Stage:
    """Nodes (by number) that run together; all but the last pass their pixels on inside."""

    nodes: tuple[int, ...]
    out: str
    reads: tuple[Read, ...]
    reduces: bool


def nodes_of(graph: Graph) -> tuple[Node, ...]:
    """The nodes of ``graph`` in its order; ops that are views make none."""
    root = storages(graph).root
    types = {v.name: v.type for v in graph.values}
    nodes: dict[str, Node] = {}
    for op in graph.ops:
        if op.is_view:
            continue
        out = root[op.result.name] if op.values else f"{op.kind}#{len(nodes)}"
        rule = geometry(op, types) if op.values else None
        reads = _reads(op, rule, root)
        if out in nodes:
            nodes[out] = _attached(nodes[out], op, rule, reads)
            continue
        size = _size(types.get(out), rule)
        steps = size
        if rule and rule.reduces:
            steps = _size(types[rule.accesses[0].operand], rule)
        nodes[out] = Node(out, (op,), (rule,) if rule else (), size, steps, reads)
    return tuple(nodes.values())


def dims_of(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """Which dimensions of each storage are its rows and columns."""
    found = {r.source: rule.dims for n in nodes for rule in n.rules for r in n.reads}
    return found | {n.out: n.rules[0].dims for n in nodes if n.rules}


def _reads(op: Op, rule: Spatial | None, root: Mapping[str, str]) -> tuple[Read, ...]:
    if rule is None:
        return tuple(Read(root[name], (SAME, SAME)) for name in dict.fromkeys(op.operands))
    return tuple(Read(root[a.operand], a.reach) for a in rule.accesses)


def _size(type_: object, rule: Spatial | None) -> tuple[int, int]:
    return grid(type_, rule.dims) if rule and isinstance(type_, TensorType) else (1, 1)


def _attached(node: Node, op: Op, rule: Spatial | None, reads: tuple[Read, ...]) -> Node:
    """``node`` with an op that overwrites its storage, if both do so position by position."""
    own = [r for r in reads if r.source == node.out]
    plain = rule and node.rules and not rule.reduces and not node.reduces
    rules = (*node.rules, rule) if plain and own and all(r.reach == (SAME, SAME) for r in own) else ()
    others = tuple(r for r in reads if r.source != node.out)
    return replace(
        node,
        ops=(*node.ops, op),
        rules=tuple(r for r in rules if r is not None),
        reads=(*node.reads, *others),
    )


def stages_of(nodes: Sequence[Node], kept: frozenset[str]) -> tuple[Stage, ...]:
    """The stages of ``nodes`` in order; no pixels of the storages ``kept`` are passed on inside."""
    readers: dict[str, list[tuple[int, Read]]] = {}
    for number, node in enumerate(nodes):
        for read in node.reads:
            readers.setdefault(read.source, []).append((number, read))
    into: dict[int, int] = {}
    for number, node in enumerate(nodes):
        users = readers.get(node.out, [])
        if len(users) == 1 and node.out not in kept and not node.reduces:
            user, read = users[0]
            if read.reach == (SAME, SAME) and nodes[user].steps == node.grid:
                into[number] = user
    members: dict[int, list[int]] = {}
    for number in range(len(nodes)):
        last = number
        while last in into:
            last = into[last]
        members.setdefault(last, []).append(number)
    return tuple(_stage(nodes, members[last]) for last in sorted(members))


def _stage(nodes: Sequence[Node], members: list[int]) -> Stage:
    inside = {nodes[n].out for n in members}
    reads = (r for n in members for r in nodes[n].reads if r.source not in inside)
    last = nodes[members[-1]]
    return Stage(tuple(members), last.out, tuple(dict.fromkeys(reads)), last.reduces)


class Flow:
    """The nodes and stages of a graph whose results are the storages ``results``."""

    def __init__(
        self, nodes: Sequence[Node], results: Sequence[str], sizes: Mapping[str, tuple[int, int]]
    ):
        self.nodes = tuple(nodes)
        self.results = tuple(results)
        self.sizes = {**sizes, **{n.out: n.grid for n in nodes}}
        self.stages = stages_of(nodes, frozenset(results))
        self.maker = {s.out: i for i, s in enumerate(self.stages)}
        self.readers: dict[str, list[tuple[int, Read]]] = {}
        for index, stage in enumerate(self.stages):
            for read in stage.reads:
                self.readers.setdefault(read.source, []).append((index, read))
        ends = sorted((self.maker[r] for r in self.results), reverse=True)
        #: The stages that are run to their ends, one after the other; the last one drives.
        self.drivers = ends[:1] + ends[1:][::-1]

    def passed_on(self) -> dict[str, int]:
        """The storages of which one pixel exists at a time, with the stage inside of which they do."""
        pairs = ((n, index) for index, stage in enumerate(self.stages) for n in stage.nodes[:-1])
        return {self.nodes[n].out: index for n, index in pairs}


def flow_of(loop: Loop) -> Flow:
    """The flow of a stream; inputs that have a ring are made by nodes without ops."""
    assert loop.stream is not None
    body = loop.body
    nodes = nodes_of(body)
    dims = dims_of(nodes)
    sizes = {
        i.value.name: grid(i.value.type, dims[i.value.name])
        for i in body.inputs
        if i.value.name in dims and isinstance(i.value.type, TensorType)
    }
    ringed = {ring.value for ring in loop.stream.rings}
    loads = [Node(name, (), (), size, size) for name, size in sizes.items() if name in ringed]
    root = storages(body).root
    results = tuple(dict.fromkeys(root[name] for name in body.output_names))
    return Flow([*loads, *nodes], results, sizes)


class Line:
    """One dimension (0 rows, 1 columns) of a tile: the part of each storage that the tile needs.

    Positions count along the walk, from 0 at the first one of the part; ``up`` walks backwards.
    """

    def __init__(self, flow: Flow, dim: int, tile: Span | None, up: bool):
        self.flow, self.dim, self.up = flow, dim, up
        self.part: dict[str, Span] = {}
        for name in flow.results:
            self.part[name] = tile or (0, flow.sizes[name][dim])
        for node in reversed(flow.nodes):
            steps = self.span(node)
            if steps[0] < steps[1]:
                for read in node.reads:
                    self._need(read, steps)

    def span(self, node: Node) -> Span:
        """The steps of ``node``, as positions of the tensor."""
        part = self.part.get(node.out, (0, 0))
        return (0, node.steps[self.dim]) if node.reduces and part[0] < part[1] else part

    def _need(self, read: Read, steps: Span) -> None:
        size = self.flow.sizes.get(read.source)
        if size is None:
            return
        first, end = read.reach[self.dim].span(*steps)
        span = (max(first, 0), min(end, size[self.dim]))
        if span[0] < span[1]:
            old = self.part.get(read.source, span)
            self.part[read.source] = (min(old[0], span[0]), max(old[1], span[1]))

    def steps(self, stage: Stage) -> Span:
        """The steps of ``stage``: those of its nodes, which are the same."""
        return self.span(self.flow.nodes[stage.nodes[-1]])

    def length(self, stage: Stage) -> int:
        """How many steps ``stage`` has."""
        first, end = self.steps(stage)
        return end - first

    def width(self, name: str) -> int:
        """How many positions of a storage the tile needs."""
        first, end = self.part.get(name, (0, 0))
        return end - first

    def place(self, stage: Stage, step: int) -> int:
        """The position in the tensor of a step."""
        first, end = self.steps(stage)
        return end - 1 - step if self.up else first + step

    def needed(self, stage: Stage, read: Read, step: int) -> Span:
        """The positions of the storage's part that a step reads; empty at its start or end if none."""
        low, high = self.part.get(read.source, (0, 0))
        at = self.place(stage, step)
        first, end = (min(max(n, low), high) for n in read.reach[self.dim].span(at, at + 1))
        return (high - end, high - first) if self.up else (first - low, end - low)


class Walk:
    """Runs stages: ``need(stage, read, step)`` says how many steps of a source a step needs.

    ``lengths`` are the stages' steps, ``run(stage, step)`` does the work. ``done`` counts the steps
    that have run; ``stack`` holds the stages that run or wait for what they read, and how many steps
    each is to do.
    """

    def __init__(
        self,
        flow: Flow,
        lengths: Sequence[int],
        need: Callable[[int, Read, int], int],
        run: Callable[[int, int], None],
    ):
        self.flow, self.lengths, self.need, self.run = flow, lengths, need, run
        self.done = [0] * len(flow.stages)
        self.stack: list[tuple[int, int]] = []

    def all(self) -> None:
        """Run all that the results need."""
        for index in self.flow.drivers:
            self.pull(index, self.lengths[index])

    def pull(self, index: int, steps: int) -> None:
        """Run the stage until it has done ``steps``."""
        self.stack.append((index, steps))
        for step in range(self.done[index], steps):
            for read in self.flow.stages[index].reads:
                source = self.flow.maker.get(read.source)
                if source is not None:
                    needed = min(self.need(index, read, step), self.lengths[source])
                    if needed and self.flow.stages[source].reduces:
                        needed = self.lengths[source]
                    if needed > self.done[source]:
                        self.pull(source, needed)
            self.run(index, step)
            self.done[index] = step + 1
        self.stack.pop()


class Simulation:
    """What a walk along one dimension needs: how many positions of each storage stay (``stay``).

    They are so many whole ones and, if the flag is set, a part of one more. Only the rows of a walk
    by pixels (``inside``) know the difference. There a row stays whole if the next row of results
    reads it again, or if it is complete before its reader begins; and a stage that does not wait may
    be amidst its last row.

    ``fronts[result]`` tells for each step of a result, and each ``watched`` storage and stage that
    reads it, the first position that is still read, and whether all of that position is.
    """

    def __init__(self, line: Line, inside: bool, watched: Sequence[str] = ()):
        self.line, self.inside = line, inside
        self.flow = line.flow
        self.stay: dict[str, tuple[int, bool]] = {}
        self.watched = tuple(watched)
        self.inner = self.flow.passed_on()
        self.fronts: dict[str, list[dict[tuple[str, int], tuple[int, bool]]]] = {}
        lengths = [line.length(s) for s in self.flow.stages]
        self.walk = Walk(self.flow, lengths, self._need, self._run)
        self.walk.all()

    def _need(self, index: int, read: Read, step: int) -> int:
        return self.line.needed(self.flow.stages[index], read, step)[1]

    def _front(self, index: int, read: Read) -> tuple[int, bool]:
        """The first position of ``read.source`` that the stage will read, and if it will twice."""
        step, length = self.walk.done[index], self.walk.lengths[index]
        if self.inside and self._depth(index) is None:
            step = max(step - 1, 0)
        if step >= length:
            return self.line.width(read.source), False
        stage = self.flow.stages[index]
        first = self.line.needed(stage, read, step)[0]
        more = self.inside and step + 1 < length
        return first, more and self.line.needed(stage, read, step + 1)[0] == first

    def _depth(self, index: int) -> int | None:
        """Where the stage is in the stack; None if it neither runs nor waits."""
        found = (d for d, (stage, _) in enumerate(self.walk.stack) if stage == index)
        return next(found, None)

    def _completes(self, reader: int) -> bool:
        """Whether the row that is being made will be complete while ``reader`` still waits."""
        depth = self._depth(reader)
        waiting = self.walk.stack[0 if depth is None else depth + 1 :]
        return any(self.walk.done[stage] + 1 < steps for stage, steps in waiting)

    def _watchers(self, name: str) -> list[tuple[int, Read]]:
        """Who reads a storage, also if it is passed on (the stream might begin behind it)."""
        inside = self.inner.get(name)
        return (
            self.flow.readers.get(name, []) if inside is None else [(inside, Read(name, (SAME, SAME)))]
        )

    def _run(self, index: int, step: int) -> None:
        stage = self.flow.stages[index]
        if not stage.reduces:
            users = self.flow.readers.get(stage.out, ())
            for user, read in users:
                first, again = self._front(user, read)
                full = again or (self.inside and self._completes(user))
                needed = (step - first + full, not full)
                self.stay[stage.out] = max(self.stay.get(stage.out, (0, True)), needed)
        if self.watched and stage.out in self.flow.results:
            found: dict[tuple[str, int], tuple[int, bool]] = {}
            for name in self.watched:
                for i, read in self._watchers(name):
                    first, again = self._front(i, read)
                    old, twice = found.get((name, i), (first, again))
                    found[name, i] = (min(old, first), twice or again)
            self.fronts.setdefault(stage.out, []).append(found)
