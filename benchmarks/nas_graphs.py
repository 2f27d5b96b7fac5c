"""Irregular networks as planning problems: cells found by architecture search, and random wirings.

Each step is an operator as a mobile inference engine runs it (batch norm folded into convolutions);
each buffer is the activation that it makes, of 4 bytes per element. Weights are not planned. The
graphs serve tests and benchmarks of the scheduler; nothing here needs torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mplan.ir.plan import Buffer, Problem, Region, Step

_ELEMENT_BYTES = 4


class Tensor(NamedTuple):
    """A buffer by its number, with the channels and the (square) size of its image."""

    buffer: int
    channels: int
    size: int


class Net:
    """A problem under construction: every call of ``op`` adds a step with one result."""

    def __init__(self, name: str, channels: int, size: int) -> None:
        self.name = name
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self._producer: dict[int, int] = {}
        self.image = self._tensor("image", channels, size, live_in=True)

    def _tensor(self, name: str, channels: int, size: int, live_in: bool = False) -> Tensor:
        size_bytes = channels * size * size * _ELEMENT_BYTES
        self.buffers.append(Buffer(name, size_bytes, ("arena",), live_in=live_in))
        return Tensor(len(self.buffers) - 1, channels, size)

    def op(self, kind: str, inputs: Sequence[Tensor], channels: int = 0, stride: int = 1) -> Tensor:
        """A step that reads ``inputs``; channels (default) and size are those of the first."""
        first = inputs[0]
        result = self._tensor(
            f"{kind}{len(self.steps)}", channels or first.channels, -(-first.size // stride)
        )
        reads = tuple(sorted({t.buffer for t in inputs}))
        after = tuple(sorted({self._producer[i] for i in reads if i in self._producer}))
        self._producer[result.buffer] = len(self.steps)
        self.steps.append(Step(self.buffers[result.buffer].name, reads, (result.buffer,), after, kind))
        return result

    def separable(self, x: Tensor, channels: int, stride: int = 1) -> Tensor:
        """ReLU, depthwise and pointwise convolution."""
        depthwise = self.op("depthwise", [self.op("relu", [x])], stride=stride)
        return self.op("pointwise", [depthwise], channels)

    def problem(self) -> Problem:
        """The problem; what no step reads lives to the end."""
        read = {b for step in self.steps for b in step.reads}
        buffers = tuple(
            Buffer(b.name, b.size_bytes, b.regions, live_in=b.live_in, live_out=i not in read)
            for i, b in enumerate(self.buffers)
        )
        return Problem(self.name, (Region("arena"),), buffers, tuple(self.steps))


class Edge(NamedTuple):
    """An operator of a cell and the state that it reads: 0 and 1 are the two cells before."""

    op: str
    state: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Every two edges are added up to a new state (2, 3, …); those of ``concat`` are the result."""

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]


def _cell(text: str, *concat: int) -> Cell:
    edges = (word.rpartition(".") for word in text.split())
    return Cell(tuple(Edge(op, int(state)) for op, _, state in edges), concat)


#: Normal and reduction cell of each family, as the papers' figures show them: NASNet-A (Zoph et al.,
#: CVPR 2018), AmoebaNet-A (Real et al., AAAI 2019), PNASNet-5 (Liu et al., ECCV 2018) and DARTS' second
#: order cells (Liu et al., ICLR 2019).
CELLS: Mapping[str, tuple[Cell, Cell]] = {
    "nasnet": (
        _cell("sep.1 sep.0 sep.0 sep.0 pool.1 skip.0 pool.0 pool.0 sep.1 skip.1", 2, 3, 4, 5, 6),
        _cell("sep.1 sep.0 pool.1 sep.0 pool.1 sep.0 skip.3 pool.2 sep.2 pool.1", 4, 5, 6),
    ),
    "amoebanet": (
        _cell("pool.0 pool.1 sep.0 sep.2 sep.0 pool.3 sep.1 skip.1 skip.0 pool.1", 4, 5, 6),
        _cell("pool.0 sep.1 pool.0 sep.2 sep.0 pool.1 pool.0 pool.1 flat.0 sep.5", 3, 4, 6),
    ),
    "pnasnet": (
        _cell("sep.0 pool.0 sep.1 pool.1 sep.1 sep.1 sep.4 pool.1 sep.0 skip.1", 2, 3, 4, 5, 6),
        _cell("sep.0 pool.0 sep.1 pool.1 sep.1 sep.1 sep.4 pool.1 sep.0 skip.1", 2, 3, 4, 5, 6),
    ),
    "darts": (
        _cell("sep.0 sep.1 sep.0 sep.1 sep.1 skip.0 skip.0 dil.2", 2, 3, 4, 5),
        _cell("pool.0 pool.1 skip.2 pool.1 pool.0 skip.2 skip.2 pool.1", 2, 3, 4, 5),
    ),
}


def cell_network(family: str, cells: int = 6, channels: int = 16, size: int = 32) -> Problem:
    """A stack of ``cells`` cells of a family in ``CELLS``, every third one a reduction."""
    normal, reduction = CELLS[family]
    net = Net(f"{family}_{cells}", 3, size)
    before = x = net.op("conv", [net.image], 3 * channels)
    for i in range(cells):
        reduce = i % 3 == 2
        channels *= 2 if reduce else 1
        before, x = x, _add_cell(net, reduction if reduce else normal, before, x, channels, reduce)
    net.op("classify", [net.op("mean", [x], stride=x.size)], 10)
    return net.problem()


def _add_cell(net: Net, cell: Cell, before: Tensor, x: Tensor, channels: int, reduce: bool) -> Tensor:
    states = [_align(net, before, channels, x.size), _align(net, x, channels, x.size)]
    for left, right in zip(cell.edges[::2], cell.edges[1::2], strict=True):
        ends = [
            _OPS[edge.op](net, states[edge.state], 2 if reduce and edge.state < 2 else 1)
            for edge in (left, right)
        ]
        states.append(net.op("add", ends))
    parts = [states[i] for i in cell.concat]
    return net.op("concat", parts, sum(part.channels for part in parts))


def _align(net: Net, x: Tensor, channels: int, size: int) -> Tensor:
    """``x`` with these channels, halved where the cell before it was a reduction."""
    if x.size > size:
        return _halve(net, x, channels)
    return net.op("pointwise", [net.op("relu", [x])], channels)


def _halve(net: Net, x: Tensor, channels: int) -> Tensor:
    """Factorised reduction: two strided convolutions of the same input, concatenated."""
    relu = net.op("relu", [x])
    halves = [net.op("pointwise", [relu], channels // 2, 2) for _ in range(2)]
    return net.op("concat", halves, channels)


def _separable_twice(net: Net, x: Tensor, stride: int) -> Tensor:
    return net.separable(net.separable(x, x.channels, stride), x.channels)


def _flat(net: Net, x: Tensor, stride: int) -> Tensor:
    """A convolution of 1x7 and one of 7x1."""
    return net.op("conv", [net.op("conv", [net.op("relu", [x])], stride=stride)])


_OPS: Mapping[str, Callable[[Net, Tensor, int], Tensor]] = {
    "sep": _separable_twice,
    "dil": lambda net, x, stride: net.separable(x, x.channels, stride),
    "flat": _flat,
    "pool": lambda net, x, stride: net.op("pool", [x], stride=stride),
    "skip": lambda net, x, stride: x if stride == 1 else _halve(net, x, x.channels),
}

#: Edges of an undirected graph on ``range(count)``, each as (lower, higher).
_Wiring = Callable[[random.Random, int], set[tuple[int, int]]]


def _watts_strogatz(rng: random.Random, count: int) -> set[tuple[int, int]]:
    """A ring of 4 neighbours; each edge is rewired with probability 0.75."""
    edges = set()
    for i in range(count):
        for step in (1, 2):
            j = (i + step) % count
            if rng.random() < 0.75:
                j = rng.choice([k for k in range(count) if k != i and _edge(i, k) not in edges])
            edges.add(_edge(i, j))
    return edges


def _erdos_renyi(rng: random.Random, count: int) -> set[tuple[int, int]]:
    """Each pair is connected with probability 0.2."""
    return {(i, j) for j in range(count) for i in range(j) if rng.random() < 0.2}


def _barabasi_albert(rng: random.Random, count: int) -> set[tuple[int, int]]:
    """Each node is connected to 5 before it, chosen by their degree."""
    edges = {(i, 5) for i in range(5)}
    ends = [end for edge in edges for end in edge]
    for j in range(6, count):
        chosen: set[int] = set()
        while len(chosen) < 5:
            chosen.add(rng.choice(ends))
        edges |= {(i, j) for i in chosen}
        ends += [*chosen, *[j] * 5]
    return edges


def _edge(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


WIRINGS: Mapping[str, _Wiring] = {
    "ws": _watts_strogatz,
    "er": _erdos_renyi,
    "ba": _barabasi_albert,
}


def wired_network(
    wiring: str, seed: int = 0, nodes: int = 32, channels: int = 16, size: int = 32
) -> Problem:
    """Three stages of ``nodes`` randomly wired nodes each (Xie et al., ICCV 2019).

    A node adds up its inputs and applies ReLU and a separable convolution. ``wiring`` is a key of
    ``WIRINGS``.
    """
    rng = random.Random(f"{wiring} {seed}")
    net = Net(f"randwire_{wiring}_{seed}", 3, size)
    x = net.op("conv", [net.image], channels)
    for _ in range(3):
        x = _add_stage(net, x, sorted(WIRINGS[wiring](rng, nodes)), nodes, channels)
        channels *= 2
    net.op("classify", [net.op("mean", [x], stride=x.size)], 10)
    return net.problem()


def _add_stage(
    net: Net, x: Tensor, edges: Sequence[tuple[int, int]], nodes: int, channels: int
) -> Tensor:
    results: list[Tensor] = []
    for j in range(nodes):
        inputs = [results[i] for i, end in edges if end == j]
        total = net.op("add", inputs) if len(inputs) > 1 else (inputs or [x])[0]
        results.append(net.separable(total, channels, 1 if inputs else 2))
    ends = {i for i, _ in edges}
    return net.op("add", [t for i, t in enumerate(results) if i not in ends])


def instances() -> dict[str, Problem]:
    """One network of each family of cells, for CIFAR and ImageNet, and of each wiring."""
    problems = [cell_network(family) for family in CELLS]
    problems += [cell_network(family, 4, 32, 112) for family in CELLS]
    named = {f"{p.name}_{'cifar' if i < len(CELLS) else 'imagenet'}": p for i, p in enumerate(problems)}
    wired = [wired_network(wiring, seed) for wiring in WIRINGS for seed in range(2)]
    return named | {p.name: p for p in wired}
