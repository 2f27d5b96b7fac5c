"""Problems made from definitions: NAS cells, randomly wired networks, transformers, long graphs.

Sizes are those of float32 tensors; only the structure of the networks is modelled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mplan.ir.plan import Buffer, Problem, Region, Step

ARENA = Region("arena")
FLOAT = 4


@dataclass
class Builder:
    """A problem under construction; values are indices of buffers."""

    name: str
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    producer: dict[int, int] = field(default_factory=dict)

    def input(self, size_bytes: int) -> int:
        """A graph input that may be overwritten after its last use."""
        name = f"in{len(self.buffers)}"
        self.buffers.append(Buffer(name, size_bytes, ("arena",), kind="input", live_in=True))
        return len(self.buffers) - 1

    def op(self, kind: str, reads: Sequence[int], size_bytes: int, *, output: bool = False) -> int:
        """A step that reads and makes one buffer."""
        made = len(self.buffers)
        self.buffers.append(Buffer(f"t{made}", size_bytes, ("arena",), live_out=output))
        after = sorted({self.producer[b] for b in reads if b in self.producer})
        unique = tuple(sorted(set(reads)))
        self.steps.append(Step(f"{kind}{len(self.steps)}", unique, (made,), tuple(after), kind))
        self.producer[made] = len(self.steps) - 1
        return made

    def done(self) -> Problem:
        """The problem."""
        return Problem(self.name, (ARENA,), tuple(self.buffers), tuple(self.steps))


# ---- cells found by architecture search ----


@dataclass(frozen=True)
class Cell:
    """Pairs of (operation, input) whose results are added two by two; which states are concatenated.

    Inputs 0 and 1 are the outputs of the two cells before, 2 is the first sum, and so on.
    """

    pairs: tuple[tuple[str, int], ...]
    concat: tuple[int, ...]


#: Normal and reduction cell. NASNet-A: Zoph et al. 2018, fig. 4; AmoebaNet-A: Real et al. 2019, fig. 2;
#: PNASNet-5: Liu et al. 2018, fig. 1; DARTS (second order): Liu et al. 2019, fig. 4 and 5.
CELLS: dict[str, tuple[Cell, Cell]] = {
    "nasnet": (
        Cell(
            (
                *(("sep5", 1), ("sep3", 0), ("sep5", 0), ("sep3", 0), ("pool", 1)),
                *(("skip", 0), ("pool", 0), ("pool", 0), ("sep3", 1), ("skip", 1)),
            ),
            (0, 2, 3, 4, 5, 6),
        ),
        Cell(
            (
                *(("sep5", 1), ("sep7", 0), ("pool", 1), ("sep7", 0), ("pool", 1)),
                *(("sep5", 0), ("skip", 3), ("pool", 2), ("sep3", 2), ("pool", 1)),
            ),
            (3, 4, 5, 6),
        ),
    ),
    "amoebanet": (
        Cell(
            (
                *(("pool", 0), ("pool", 1), ("sep3", 0), ("sep5", 2), ("sep3", 0)),
                *(("pool", 3), ("sep3", 1), ("skip", 1), ("skip", 0), ("pool", 1)),
            ),
            (4, 5, 6),
        ),
        Cell(
            (
                *(("pool", 0), ("sep3", 1), ("pool", 0), ("sep7", 2), ("sep7", 0)),
                *(("pool", 1), ("pool", 0), ("pool", 1), ("conv", 0), ("sep3", 5)),
            ),
            (3, 4, 6),
        ),
    ),
    "pnasnet": (
        Cell(
            (
                *(("sep5", 0), ("pool", 0), ("sep7", 1), ("pool", 1), ("sep5", 1)),
                *(("sep3", 1), ("sep3", 4), ("pool", 1), ("sep3", 0), ("skip", 1)),
            ),
            (2, 3, 4, 5, 6),
        ),
    )
    * 2,
    "darts": (
        Cell(
            (
                *(("sep3", 0), ("sep3", 1), ("sep3", 0), ("sep3", 1)),
                *(("sep3", 1), ("skip", 0), ("skip", 0), ("dil3", 2)),
            ),
            (2, 3, 4, 5),
        ),
        Cell(
            (
                *(("pool", 0), ("pool", 1), ("skip", 2), ("pool", 1)),
                *(("pool", 0), ("skip", 2), ("skip", 2), ("pool", 1)),
            ),
            (2, 3, 4, 5),
        ),
    ),
}


def cells(kind: str, count: int, side: int = 32, channels: int = 36) -> Problem:
    """``count`` cells of a kind on images of ``side``²; two of them halve the resolution."""
    normal, reduction = CELLS[kind]
    builder = Builder(f"{kind}_{count}")
    stem = builder.op("conv", [builder.input(3 * side * side * FLOAT)], 3 * channels * side**2 * FLOAT)
    before, last = stem, stem
    for i in range(count):
        reduces = i in (count // 3, 2 * count // 3)
        size = channels * side * side * FLOAT
        if reduces:
            channels, side = 2 * channels, side // 2
        before, last = (
            last,
            _cell(
                builder,
                reduction if reduces else normal,
                before,
                last,
                size,
                channels * side**2 * FLOAT,
            ),
        )
    pooled = builder.op("pool", [last], channels * 4 * FLOAT)
    builder.op("linear", [pooled], 10 * FLOAT, output=True)
    return builder.done()


def _cell(builder: Builder, cell: Cell, before: int, last: int, read: int, made: int) -> int:
    """One cell; ``read`` and ``made`` are the bytes of its states before and after its stride."""
    states = [_convolved(builder, value, read) for value in (before, last)]
    for k in range(0, len(cell.pairs), 2):
        halves = [
            _branch(builder, op, states[i], read if i < 2 else made, made)
            for op, i in cell.pairs[k : k + 2]
        ]
        states.append(builder.op("add", halves, made))
    kept = [s if i > 1 or read == made else builder.op("conv", [s], made) for i, s in enumerate(states)]
    return builder.op("concat", [kept[i] for i in cell.concat], made * len(cell.concat))


def _convolved(builder: Builder, value: int, size: int) -> int:
    """ReLU, then a 1×1 convolution to the channels of the cell."""
    active = builder.op("relu", [value], builder.buffers[value].size_bytes)
    return builder.op("conv", [active], size)


def _branch(builder: Builder, op: str, value: int, read: int, made: int) -> int:
    """One operation; separable convolutions are applied twice, the first with the stride."""
    if op == "skip":
        return value if read == made else _convolved(builder, value, made)
    if op == "pool":
        return builder.op("pool", [value], made)
    if op == "conv":
        return _convolved(builder, value, made)
    size = read
    for _ in range(1 if op.startswith("dil") else 2):
        active = builder.op("relu", [value], size)
        wide = builder.op("depthwise", [active], made)
        value, size = builder.op("conv", [wide], made), made
    return value


# ---- randomly wired networks ----


def randomly_wired(
    seed: int, nodes: int = 32, neighbours: int = 4, rewired: float = 0.75, side: int = 32
) -> Problem:
    """Three stages wired as Watts-Strogatz graphs, after Xie et al. 2019, "Randomly Wired Networks".

    A node adds its inputs, then ReLU, depthwise and 1×1 convolution.
    """
    rng = random.Random(seed)
    builder = Builder(f"randwire_{seed}")
    channels = 78
    value = builder.op("conv", [builder.input(3 * side**2 * FLOAT)], channels * side**2 * FLOAT)
    for _ in range(3):
        side, channels = side // 2, channels * 2
        value = _stage(
            builder, value, _watts_strogatz(rng, nodes, neighbours, rewired), channels * side**2
        )
    pooled = builder.op("pool", [value], channels * FLOAT)
    builder.op("linear", [pooled], 10 * FLOAT, output=True)
    return builder.done()


def _watts_strogatz(rng: random.Random, nodes: int, neighbours: int, rewired: float) -> list[set[int]]:
    """For each node of a ring lattice with rewired edges, its neighbours of lower number."""
    edges: set[tuple[int, int]] = set()
    for hop in range(1, neighbours // 2 + 1):
        for i in range(nodes):
            j = (i + hop) % nodes
            if rng.random() < rewired:
                free = [k for k in range(nodes) if k != i and (min(i, k), max(i, k)) not in edges]
                j = rng.choice(free)
            edges.add((min(i, j), max(i, j)))
    return [{a for a, b in edges if b == i} for i in range(nodes)]


def _stage(builder: Builder, value: int, wiring: list[set[int]], numbers: int) -> int:
    """One stage: sources read its input, sinks are averaged."""
    size = numbers * FLOAT
    made: list[int] = []
    for sources in wiring:
        reads = [made[s] for s in sorted(sources)] or [value]
        total = (
            builder.op("add", reads, builder.buffers[reads[0]].size_bytes)
            if len(reads) > 1
            else reads[0]
        )
        active = builder.op("relu", [total], builder.buffers[total].size_bytes)
        made.append(builder.op("conv", [builder.op("depthwise", [active], size)], size))
    used = {s for sources in wiring for s in sources}
    return builder.op("mean", [m for i, m in enumerate(made) if i not in used], size)


# ---- transformers and long graphs ----


def gpt_training(layers: int, tokens: int = 512, width: int = 768, words: int = 50_257) -> Problem:
    """A training step of a GPT: forward, loss, backward; every weight gets a gradient."""
    builder = Builder(f"gpt_{layers}L")
    row = tokens * FLOAT
    x = builder.op("embedding", [builder.input(tokens * 8)], row * width)
    saved: list[tuple[int, ...]] = []
    for _ in range(layers):
        x, kept = _layer(builder, x, tokens, width)
        saved.append(kept)
    normal = builder.op("norm", [x], row * width)
    logits = builder.op("linear", [normal], row * words)
    losses = builder.op("log_softmax", [logits], row * words)
    builder.op("nll", [losses], FLOAT, output=True)
    gradient = builder.op("log_softmax_backward", [losses], row * words)
    builder.op("weight_gradient", [gradient, normal], words * width * FLOAT, output=True)
    gradient = builder.op("linear_backward", [gradient], row * width)
    gradient = builder.op("norm_backward", [gradient, x], row * width)
    for kept in reversed(saved):
        gradient = _layer_backward(builder, gradient, kept, tokens, width)
    builder.op("embedding_backward", [gradient], words * width * FLOAT, output=True)
    return builder.done()


def _layer(
    builder: Builder, x: int, tokens: int, width: int, heads: int = 12
) -> tuple[int, tuple[int, ...]]:
    """Attention and feed-forward; what the backward pass reads."""
    size = tokens * width * FLOAT
    first = builder.op("norm", [x], size)
    qkv = builder.op("linear", [first], 3 * size)
    scores = builder.op("bmm", [qkv], heads * tokens * tokens * FLOAT)
    weights = builder.op("softmax", [scores], heads * tokens * tokens * FLOAT)
    mixed = builder.op("bmm", [weights, qkv], size)
    middle = builder.op("add", [x, builder.op("linear", [mixed], size)], size)
    second = builder.op("norm", [middle], size)
    hidden = builder.op("linear", [second], 4 * size)
    active = builder.op("gelu", [hidden], 4 * size)
    y = builder.op("add", [middle, builder.op("linear", [active], size)], size)
    return y, (x, first, qkv, weights, mixed, middle, second, hidden, active)


def _layer_backward(builder: Builder, g: int, kept: tuple[int, ...], tokens: int, width: int) -> int:
    x, first, qkv, weights, mixed, middle, second, hidden, active = kept
    size, square = tokens * width * FLOAT, width * width * FLOAT
    scores = builder.buffers[weights].size_bytes

    def linear(g: int, read: int, made: int, weight: int) -> int:
        """The gradients of a linear layer: for its weight, and for what it read."""
        builder.op("weight_gradient", [g, read], weight, output=True)
        return builder.op("linear_backward", [g], made)

    d = linear(g, active, 4 * size, 4 * square)
    d = linear(builder.op("gelu_backward", [d, hidden], 4 * size), second, size, 4 * square)
    g = builder.op("add", [g, builder.op("norm_backward", [d, middle], size)], size)
    d = linear(g, mixed, size, square)
    dw = builder.op("bmm", [d, qkv], scores)
    dv = builder.op("bmm", [d, weights], size)
    ds = builder.op("softmax_backward", [dw, weights], scores)
    dq = builder.op("bmm", [ds, qkv], size)
    dk = builder.op("bmm", [ds, qkv], size)
    joined = builder.op("concat", [dq, dk, dv], 3 * size)
    d = linear(joined, first, size, 3 * square)
    return builder.op("add", [g, builder.op("norm_backward", [d, x], size)], size)


def skips(count: int) -> Problem:
    """A chain of ``count`` steps with random skips and side branches."""
    rng = random.Random(count)
    builder = Builder(f"skips_{count}")
    values = [builder.input(64)]
    for i in range(count):
        reads = {max(0, i - rng.randrange(1, 4)), rng.randrange(max(0, i - 50), i + 1)}
        last = i == count - 1
        values.append(builder.op("op", [values[r] for r in reads], rng.randrange(1, 4096), output=last))
    return builder.done()
