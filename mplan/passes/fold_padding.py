"""Constant padding in front of a quantised convolution becomes the convolution's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.ir.graph import Arg, Graph, Op, Ref
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import rename_uses

_PAD = "aten.constant_pad_nd.default"
_CONVOLUTIONS = ("mplan.qconv2d", "mplan.qdepthwise_conv2d")


@dataclass(frozen=True, slots=True)
class FoldPadding(Pass):
    """Let convolutions read an image whose padding exists nowhere.

    A pad folds into a convolution (``mplan.qconv2d``, ``mplan.qdepthwise_conv2d``) if it surrounds
    rows and columns by what the convolution's own padding reads as; pads by nothing vanish. A pad that
    other ops read stays for them.
    """

    name: ClassVar[str] = "fold_padding"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph without the pads that fold; ``graph`` itself when there are none."""
        pads = {op.result.name: op for op in graph.ops if op.kind == _PAD}
        nothing = {n: _source(op) for n, op in pads.items() if not any(_widths(op))}
        names = {n: _through(n, nothing) for n in nothing if n not in graph.output_names}
        ops = [_folded(rename_uses(op, names), pads, names) for op in graph.ops]
        used = {name for op in ops for name in op.operands} | set(graph.output_names)
        kept = tuple(op for op in ops if op.kind != _PAD or op.result.name in used)
        return graph if kept == graph.ops else replace(graph, ops=kept)


def _through(name: str, nothing: dict[str, str]) -> str:
    """The value that ``name`` equals, behind all pads by nothing."""
    while name in nothing:
        name = nothing[name]
    return name


def _folded(op: Op, pads: dict[str, Op], names: dict[str, str]) -> Op:
    """``op`` as a convolution over the image inside the pad before it, if it is one."""
    if op.kind not in _CONVOLUTIONS:
        return op
    pad = pads.get(_operand(op, "input"))
    if pad is None or pad.arg("value", 0) != op.arg("padding_value", op.arg("input_zero_point")):
        return op
    channels, columns, rows, *rest = (*_pairs(pad), (0, 0), (0, 0), (0, 0))
    if any(channels) or any(n for pair in rest for n in pair) or min(*rows, *columns) < 0:
        return op
    own = op.arg("padding")
    assert isinstance(own, tuple)
    added = tuple(a + b for a, b in zip(own, (*rows, *columns), strict=True) if isinstance(a, int))
    source = names.get(_source(pad), _source(pad))
    changed: dict[str, Arg] = {"input": Ref(source), "padding": added}
    return replace(op, args=tuple((key, changed.get(key, arg)) for key, arg in op.args))


def _pairs(pad: Op) -> list[tuple[int, int]]:
    """(before, after) per dimension, the last one first."""
    widths = _widths(pad)
    return list(zip(widths[::2], widths[1::2], strict=True))


def _widths(pad: Op) -> tuple[int, ...]:
    given = pad.arg("pad")
    assert isinstance(given, tuple)
    # a symbolic width never counts as one that folds
    return tuple(n if isinstance(n, int) else -1 for n in given)


def _source(pad: Op) -> str:
    return _operand(pad, "self")


def _operand(op: Op, name: str) -> str:
    found = op.arg(name)
    assert isinstance(found, Ref)
    return found.name
