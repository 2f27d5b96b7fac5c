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
from itertools import pairwise

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

    Positions count along the walk, from 0 at the first one of the part; ``up`` walks backwards. A step
    makes up to ``stride`` positions; several only where the walk goes forwards.
    """

    def __init__(self, flow: Flow, dim: int, tile: Span | None, up: bool, stride: int = 1):
        self.flow, self.dim, self.up, self.stride = flow, dim, up, stride
        self.part: dict[str, Span] = {}
        self._needs: dict[tuple[str, Read], list[Span]] = {}
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
        """The positions of ``stage``: those of its nodes, which are the same."""
        return self.span(self.flow.nodes[stage.nodes[-1]])

    def extent(self, stage: Stage) -> int:
        """How many positions ``stage`` makes."""
        first, end = self.steps(stage)
        return end - first

    def length(self, stage: Stage) -> int:
        """How many steps ``stage`` has."""
        return -(-self.extent(stage) // self.stride)

    def made(self, stage: Stage, steps: int) -> int:
        """How many positions ``stage`` has made after so many steps."""
        return min(steps * self.stride, self.extent(stage))

    def width(self, name: str) -> int:
        """How many positions of a storage the tile needs."""
        first, end = self.part.get(name, (0, 0))
        return end - first

    def place(self, stage: Stage, step: int) -> int:
        """The first position in the tensor of a step."""
        first, end = self.steps(stage)
        return end - 1 - step if self.up else first + step * self.stride

    def needs(self, stage: Stage, read: Read) -> list[Span]:
        """The positions of the storage's part that each step reads; empty at an end of it if none."""
        key = (stage.out, read)
        if key not in self._needs:
            low, high = self.part.get(read.source, (0, 0))
            reach = read.reach[self.dim]
            start, end = self.steps(stage)
            starts = range(start, end, self.stride)
            spans = [reach.span(at, min(at + self.stride, end)) for at in starts]
            found = [(min(max(a, low), high) - low, min(max(b, low), high) - low) for a, b in spans]
            size = high - low
            self._needs[key] = [(size - b, size - a) for a, b in reversed(found)] if self.up else found
        return self._needs[key]


class Walk:
    """Runs stages: ``need(stage, read)`` says how many steps of a source each step of a stage needs.

    ``lengths`` are the stages' steps, ``run(stage, step)`` does the work. ``done`` counts the steps
    that have run; ``stack`` holds the stages that run or wait for what they read, and how many steps
    each is to do, and ``depth`` where in it each stage stands, -1 if nowhere.
    """

    def __init__(
        self,
        flow: Flow,
        lengths: Sequence[int],
        need: Callable[[int, Read], Sequence[int]],
        run: Callable[[int, int], None],
    ):
        self.flow, self.lengths, self.run = flow, lengths, run
        self.done = [0] * len(flow.stages)
        self.depth = [-1] * len(flow.stages)
        self.stack: list[tuple[int, int]] = []
        self.sources: list[list[tuple[int, list[int]]]] = [
            [
                (source, self._steps(source, need(index, read)))
                for read in stage.reads
                if (source := flow.maker.get(read.source)) is not None
            ]
            for index, stage in enumerate(flow.stages)
        ]

    def _steps(self, source: int, needed: Sequence[int]) -> list[int]:
        """``needed`` within the steps of the source; one that reduces has a result after its last."""
        length = self.lengths[source]
        if self.flow.stages[source].reduces:
            return [length if n else 0 for n in needed]
        return [min(n, length) for n in needed]

    def all(self) -> None:
        """Run all that the results need."""
        for index in self.flow.drivers:
            self.pull(index, self.lengths[index])

    def pull(self, index: int, steps: int) -> None:
        """Run the stage until it has done ``steps``."""
        done, sources = self.done, self.sources[index]
        self.depth[index] = len(self.stack)
        self.stack.append((index, steps))
        for step in range(done[index], steps):
            for source, needed in sources:
                if needed[step] > done[source]:
                    self.pull(source, needed[step])
            self.run(index, step)
            done[index] = step + 1
        self.stack.pop()
        self.depth[index] = -1


@dataclass(frozen=True, slots=True)
class Reading:
    """What the stage ``reader`` still reads of a storage before each of its steps, and after the last.

    ``first`` is the first position, ``again`` whether the next step reads all of it again.
    """

    reader: int
    first: list[int]
    again: list[bool]


class Simulation:
    """What a walk along one dimension needs: how many positions of each storage stay (``stay``).

    They are so many whole ones and, if the flag is set, a part of one more. Only the rows of a walk
    by pixels (``inside``) know the difference. There a row stays whole if the next row of results
    reads it again, or if it is complete before its reader begins; and a stage that does not wait may
    be amidst its last row.
    """

    def __init__(self, line: Line, inside: bool):
        self.line, self.inside = line, inside
        self.flow = line.flow
        self.stay: dict[str, tuple[int, bool]] = {}
        #: For each step of a result, at which step every stage is.
        self.progress: dict[str, list[list[int]]] = {name: [] for name in self.flow.results}
        self._known: dict[tuple[int, Read], Reading] = {}
        outs = ("" if stage.reduces else stage.out for stage in self.flow.stages)
        self.readings = [[self._reading(*u) for u in self.flow.readers.get(o, ())] for o in outs]
        lengths = [line.length(s) for s in self.flow.stages]
        self.walk = Walk(self.flow, lengths, self._need, self._run)
        self.walk.all()

    def fronts(self, result: str, name: str) -> dict[int, list[tuple[int, bool]]]:
        """For each stage that reads the storage ``name``, at each step of ``result``: the first
        position that it still reads, and whether it reads all of that twice.

        Also for what is passed on inside of a stage: the stream might begin behind it.
        """
        users = self.flow.readers.get(name, [])
        if (inside := self.flow.passed_on().get(name)) is not None:
            users = [(inside, Read(name, (SAME, SAME)))]
        found: dict[int, list[tuple[int, bool]]] = {}
        for reading in (self._reading(*user) for user in users):
            i = reading.reader
            fronts = [(reading.first[at[i]], reading.again[at[i]]) for at in self.progress[result]]
            if i in found:
                fronts = [(min(a, b), x or y) for (a, x), (b, y) in zip(found[i], fronts, strict=True)]
            found[i] = fronts
        return found

    def _need(self, index: int, read: Read) -> list[int]:
        ends = (end for _, end in self.line.needs(self.flow.stages[index], read))
        return [-(-end // self.line.stride) for end in ends]

    def _reading(self, index: int, read: Read) -> Reading:
        key = (index, read)
        if key not in self._known:
            first = [first for first, _ in self.line.needs(self.flow.stages[index], read)]
            again = [self.inside and a == b for a, b in pairwise(first)]
            first.append(self.line.width(read.source))
            self._known[key] = Reading(index, first, [*again, False, False][: len(first)])
        return self._known[key]

    def _at(self) -> list[int]:
        """The step at which each stage is; one that does not wait may be amidst its last row."""
        if not self.inside:
            return self.walk.done.copy()
        pairs = zip(self.walk.done, self.walk.depth, strict=True)
        return [done - 1 if done and depth < 0 else done for done, depth in pairs]

    def _completes(self, reader: int) -> bool:
        """Whether the row that is being made will be complete while ``reader`` still waits."""
        waiting = self.walk.stack[self.walk.depth[reader] + 1 :]
        return any(self.walk.done[stage] + 1 < steps for stage, steps in waiting)

    def _run(self, index: int, step: int) -> None:
        out, done, depth = self.flow.stages[index].out, self.walk.done, self.walk.depth
        for reading in self.readings[index]:
            user = reading.reader
            at, full = done[user], False
            if self.inside:
                at -= at > 0 and depth[user] < 0
                full = reading.again[at] or self._completes(user)
            last = self.line.made(self.flow.stages[index], step + 1) - 1
            needed = (last - reading.first[at] + full, not full)
            self.stay[out] = max(self.stay.get(out, (0, True)), needed)
        if out in self.progress:
            self.progress[out].append(self._at())
