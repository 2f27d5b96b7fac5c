"""Long problems made from definitions: the training step of a GPT, and a chain with skips.

Sizes are those of float32 tensors; only the structure of the network is modelled.
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
