"""The text form of graphs (``.mpir``): deterministic, complete, and read back by ``parser``.

::

    graph @net(%x: f32[1,3,8,8] "image", param %w: f32[4,3,3,3] "conv.weight") {
      %y: f32[1,4,6,6] = aten.convolution.default(input=%x, weight=%w, …) loc("net.py":7 in "conv")
      %z: f32[1,144] view(%y) = aten.view.default(self=%y, size=[1, -1])
      return %z
    }
"""

from __future__ import annotations

import json
import math
import re

from mplan.ir.graph import (
    Alias,
    Arg,
    Carry,
    Concat,
    Graph,
    Input,
    Loc,
    Loop,
    Op,
    Ref,
    Ring,
    Scratch,
    Slice,
    Value,
)
from mplan.ir.types import Dim, DType, ScalarType, Sym, Type

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def print_graph(graph: Graph, indent: str = "") -> str:
    """The text of ``graph``; ``parse(print_graph(g)) == g``."""
    inputs = ", ".join(_input(i) for i in graph.inputs)
    symbols = ", ".join(f"{_name(s.name)} in [{s.low}, {s.high}]" for s in graph.symbols)
    head = f"graph @{_name(graph.name)}({inputs})" + (f" symbols({symbols})" if symbols else "")
    body = [f"{indent}  {print_op(op, indent + '  ')}" for op in graph.ops]
    body.append(f"{indent}  return {', '.join(print_arg(a) for a in graph.outputs)}".rstrip())
    return "\n".join([head + " {", *body, indent + "}"])


def print_op(op: Op, indent: str = "") -> str:
    """One op, without a newline at the end (a loop has its body's lines inside)."""
    results = ", ".join("_" if v is None else _value(v) for v in op.results)
    args = ", ".join(f"{_name(name)}={print_arg(arg)}" for name, arg in op.args)
    text = f"{_kind(op.kind)}({args})"
    if results:
        text = f"{results} = {text}"
    if op.scratch:
        text += f" scratch({', '.join(_scratch(s) for s in op.scratch)})"
    if op.births:
        text += f" births({', '.join(str(b) for b in op.births)})"
    if op.loop:
        text += " " + _loop(op.loop, indent)
    return text + (f" {_loc(op.loc)}" if op.loc else "")


def print_arg(arg: Arg) -> str:
    """An argument: ``%ref``, number, ``true``, ``none``, ``"text"``, ``dtype(f32)``, ``{s0*2}``."""
    if isinstance(arg, Ref):
        return _ref(arg.name)
    if isinstance(arg, tuple):
        return "[" + ", ".join(print_arg(a) for a in arg) + "]"
    if isinstance(arg, DType):
        return f"dtype({arg.value})"
    if isinstance(arg, Sym):
        return "{" + arg.text + "}"
    if isinstance(arg, str):
        return json.dumps(arg)
    if arg is None or isinstance(arg, bool):
        return str(arg).lower()
    if isinstance(arg, float):
        return _float(arg)
    return str(arg)


def print_type(type_: Type) -> str:
    """``f32[1,{s0},8]``, strided ``f32[4,8]<1,4>``, or ``int`` for a scalar."""
    if isinstance(type_, ScalarType):
        return type_.name
    text = f"{type_.dtype.value}[{_dims(type_.shape)}]"
    return text if type_.strides is None else f"{text}<{_dims(type_.strides)}>"


def _float(number: float) -> str:
    if math.isnan(number):
        return "nan"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return repr(number)


def _dims(dims: tuple[Dim, ...]) -> str:
    return ",".join(print_arg(d) for d in dims)


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _kind(kind: str) -> str:
    """A bare kind has a dot, so that it cannot be taken for ``return`` or ``_``."""
    return _name(kind) if "." in kind else json.dumps(kind)


def _ref(name: str) -> str:
    return "%" + _name(name)


def _value(value: Value) -> str:
    alias = f" {_alias(value.alias)}" if value.alias else ""
    return f"{_ref(value.name)}: {print_type(value.type)}{alias}"


def _alias(alias: Alias) -> str:
    offset = f" + {print_arg(alias.offset_bytes)}" if alias.offset_bytes != 0 else ""
    return f"{alias.kind}({_ref(alias.of)}{offset})"


def _input(item: Input) -> str:
    role = "" if item.role == "input" else f"{item.role} "
    source = f" {json.dumps(item.source)}" if item.source else ""
    return f"{role}{_value(item.value)}{source}" + (" donated" if item.donated else "")


def _scratch(scratch: Scratch) -> str:
    phases = "" if (scratch.start, scratch.end) == (0, 1) else f" in {scratch.start} to {scratch.end}"
    aligned = f" align {scratch.alignment}" if scratch.alignment != 1 else ""
    return f"{scratch.size_bytes}{aligned}{phases}"


def _loc(loc: Loc) -> str:
    parts = []
    if loc.file or loc.line:
        parts.append(f"{json.dumps(loc.file)}:{loc.line}")
    if loc.module:
        parts.append(f"in {json.dumps(loc.module)}")
    return f"loc({' '.join(parts)})"


def _loop(loop: Loop, indent: str) -> str:
    inner = indent + "  "
    lines = [f"axis {_name(a.name)} = {a.extent} by {a.step}" for a in loop.axes]
    for window in loop.windows:
        slices = "; ".join(_slice(s) for s in window.slices)
        lines.append(f"in {_ref(window.operand)}" + (f" [{slices}]" if slices else ""))
    for result in loop.results:
        lines.append(_loop_result(result))
    if loop.stream:
        together = f" by {loop.stream.pixels}" if loop.stream.pixels > 1 else ""
        lines.append(f"stream {loop.stream.unit}{together}" + (" up" if loop.stream.up else ""))
        lines += [_ring(ring) for ring in loop.stream.rings]
    lines.append("body " + print_graph(loop.body, inner))
    return "loop {\n" + "".join(f"{inner}{line}\n" for line in lines) + indent + "}"


def _ring(ring: Ring) -> str:
    pixels = f" and {ring.pixels}" if ring.pixels else ""
    return f"ring {_ref(ring.value)} {ring.rows}{pixels}"


def _slice(s: Slice) -> str:
    text = f"{s.dim} by {_name(s.axis)}"
    for word, number, default in (
        ("scale", s.scale, 1),
        ("offset", s.offset, 0),
        ("extent", s.extent, 1),
    ):
        if number != default:
            text += f" {word} {number}"
    return text


def _loop_result(result: Concat | Carry) -> str:
    if isinstance(result, Carry):
        return f"out carry {_ref(result.init)}"
    pairs = zip(result.dims, result.axes, strict=True)
    return "out concat [" + "; ".join(f"{dim} by {_name(axis)}" for dim, axis in pairs) + "]"
