"""Elementwise kernels: one C function per expression and access pattern, run row by row.

An expression reads its operands as the variables ``a``, ``b``, …. Each element is read before the
one at its place is written, so a result may lie exactly on an operand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mplan.codegen.c.render import function
from mplan.codegen.c.table import Number, Site
from mplan.codegen.c.tensors import Code, Function, Tensor, invoke, rows
from mplan.codegen.c.text import CTYPES, literal
from mplan.ir.types import DType

#: A tensor, a constant, or the C expression of a variable of the step.
Source: TypeAlias = Tensor | Number | str
_ORDER = (DType.BOOL, DType.U8, DType.I8, DType.I16, DType.I32, DType.I64, DType.F32)
#: Types that C does not widen in arithmetic.
_WIDE = (DType.F32, DType.I64, DType.I32)


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand and the type to which its elements are converted before they are used."""

    source: Source
    dtype: DType


def pointwise(
    name: str,
    text: str,
    result: Tensor,
    operands: Mapping[str, Operand],
    yields: DType,
    needs: tuple[Function, ...] = (),
) -> Code:
    """``result = text`` for all elements; tensors are broadcast to the result.

    ``text`` is a C expression of type ``yields`` over the keys of ``operands``; ``name`` is unique to
    it.
    """
    tensors = {k: o.source for k, o in operands.items() if isinstance(o.source, Tensor)}
    wide = [t.expand(result.shape) for t in tensors.values()]

    def body(y: Tensor, *parts: Tensor) -> Code:
        found = dict(zip(tensors, parts, strict=True))
        return _row(name, text, y, operands, found, yields, needs)

    return rows([result, *wide], body)


def _row(
    name: str,
    text: str,
    y: Tensor,
    operands: Mapping[str, Operand],
    parts: Mapping[str, Tensor],
    yields: DType,
    needs: tuple[Function, ...],
) -> Code:
    n = y.shape[0]
    modes = {"y": _mode(y), **{key: _mode(t) for key, t in parts.items()}}
    parameters, args = [f"{y.ctype} *y"], [y.pointer]
    before: list[str] = []
    loads: list[str] = []
    if modes["y"] == "s":
        parameters.append("int32_t y_step")
        args.append(str(y.strides[0]))
    for key, operand in operands.items():
        ctype = CTYPES[operand.dtype]
        if key not in parts:
            parameters.append(f"{ctype} {key}")
            args.append(_constant(operand))
            continue
        part = parts[key]
        parameters.append(f"const {part.ctype} *{key}_")
        args.append(part.pointer)
        cast = "" if part.dtype is operand.dtype else f"({ctype})"
        element = {"b": f"*{key}_", "v": f"{key}_[i]", "s": f"{key}_[i * {key}_step]"}[modes[key]]
        (before if modes[key] == "b" else loads).append(f"const {ctype} {key} = {cast}{element};")
        if modes[key] == "s":
            parameters.append(f"int32_t {key}_step")
            args.append(str(part.strides[0]))
    place = "y[i * y_step]" if modes["y"] == "s" else "y[i]"
    store = f"{place} = {_converted(text, yields, y.dtype)};"
    full = "_".join([name, *_signature(y, operands, parts, modes)])
    view = {"before": before, "loads": loads, "store": store}
    made = function(full, "pointwise", needs, parameters=[*parameters, "int32_t n"], **view)
    return invoke(made, *args, n)


def _mode(row: Tensor) -> str:
    """How a row is walked: as a vector, as one broadcast element, or with a stride."""
    if row.shape[0] == 1 or row.strides[0] == 1:
        return "v"
    return "s" if row.strides[0] else "b"


def _signature(
    y: Tensor, operands: Mapping[str, Operand], parts: Mapping[str, Tensor], modes: Mapping[str, str]
) -> list[str]:
    """What tells functions of one expression apart: types, conversions, access patterns."""
    words = [y.dtype.value]
    for key, operand in operands.items():
        stored = parts[key].dtype.value if key in parts else operand.dtype.value
        used = operand.dtype.value
        words.append(stored if stored == used else f"{stored}to{used}")
    letters = "".join([modes["y"], *(modes.get(key, "k") for key in operands)])
    types = words[:1] if len(set(words)) == 1 else words
    return [*types, *([letters] if set(letters) != {"v"} else [])]


def _constant(operand: Operand) -> str:
    assert not isinstance(operand.source, Tensor)
    if isinstance(operand.source, str):
        return operand.source
    return literal(operand.source, operand.dtype)


def _converted(text: str, given: DType, wanted: DType) -> str:
    if given is wanted and wanted in _WIDE:
        return text
    if wanted is DType.BOOL and given is not DType.BOOL:
        return f"(uint8_t)(({text}) != 0)"
    simple = text.isidentifier()
    return f"({CTYPES[wanted]})" + (text if simple else f"({text})")


def copy(result: Tensor, source: Tensor) -> Code:
    """``result = source``, converted and broadcast; nothing where both are the same bytes."""
    source = source.expand(result.shape)
    if result.same_bytes(source) or not result.numel:
        return Code()
    if result.dtype is not source.dtype:
        return pointwise("copy", "a", result, {"a": Operand(source, source.dtype)}, source.dtype)

    def body(y: Tensor, a: Tensor) -> Code:
        if _mode(y) == _mode(a) == "v" and y.shape[0] > 1:
            return Code((f"memcpy({y.pointer}, {a.pointer}, {y.numel * y.dtype.itemsize});",))
        return _row("copy", "a", y, {"a": Operand(a, a.dtype)}, {"a": a}, a.dtype, ())

    return rows([result, source], body)


def fill(result: Tensor, value: Number) -> Code:
    """``result = value`` for all elements."""
    return pointwise("fill", "a", result, {"a": Operand(value, result.dtype)}, result.dtype)


def promote(sources: Sequence[Source]) -> DType:
    """The type in which torch computes with ``sources``.

    Tensors with dimensions decide; one without, or a number, counts only if it is of a higher kind
    (bool, integer, float). See torch.result_type.
    """
    tensors = [s for s in sources if isinstance(s, Tensor)]
    groups = (
        [t.dtype for t in tensors if t.rank],
        [t.dtype for t in tensors if not t.rank],
        [_number_type(s) for s in sources if not isinstance(s, Tensor | str)],
    )
    found = None
    for group in groups:
        best = max(group, key=_ORDER.index, default=None)
        if best and {*group} >= {DType.U8, DType.I8}:
            best = max(best, DType.I16, key=_ORDER.index)
        if best and (found is None or _kind(best) > _kind(found)):
            found = best
    return found or DType.F32


def _number_type(number: Number) -> DType:
    if isinstance(number, bool):
        return DType.BOOL
    return DType.I64 if isinstance(number, int) else DType.F32


def _kind(dtype: DType) -> int:
    return 2 if dtype.is_float else int(dtype is not DType.BOOL)


def source(site: Site, name: str) -> Source:
    """The argument ``name``: a tensor or a number."""
    value = site.arg(name)
    return value if isinstance(value, int | float) else site.tensor(name)
