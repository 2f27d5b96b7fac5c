"""Verification of one call: its arguments against the row's parameters, its types against the rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.graph import Arg, Op, Ref, Value
from mplan.ir.ops import OpDef, bound_args, lookup, own_kinds
from mplan.ir.printer import print_arg, print_type
from mplan.ir.types import DType, ScalarType, Sym, TensorType, Type

_NAMED = ("Layout", "MemoryFormat", "Device", "str", "ScalarType")


def call_faults(op: Op, types: Mapping[str, Type], deep: bool) -> Iterator[tuple[str, str]]:
    """Code and message of each fault in the call itself; torch's rows only when ``deep``."""
    if (op.loop is not None) != (op.kind == "mplan.loop"):
        yield "MP104", "an op is a loop if and only if its kind is mplan.loop"
    if op.kind.count(".") < 1:
        yield "MP102", f"{op.kind!r} is no op kind (namespace.name.overload)"
        return
    if not deep and op.kind not in own_kinds() and not op.kind.startswith("mplan."):
        return
    try:
        row = lookup(op.kind)
    except UserError as e:
        yield e.code, f"{e.message} ({e.help})"
        return
    yield from ((("MP103"), message) for message in arg_faults(op, row, types))
    if not any(kind.endswith("[]") for kind in row.returns) and len(op.results) != len(row.returns):
        yield "MP103", f"it has {len(op.results)} results, its schema {len(row.returns)}"


def arg_faults(op: Op, row: OpDef, types: Mapping[str, Type]) -> Iterator[str]:
    """Unknown, repeated, misplaced, missing and wrongly typed arguments."""
    order = {p.name: i for i, p in enumerate(row.params)}
    given = [name for name, _ in op.args]
    for name in given:
        if name not in order:
            known = ", ".join(order) or "none"
            yield f"it has no parameter {name!r}; its parameters: {known}"
    positions = [order[name] for name in given if name in order]
    if len(set(given)) != len(given):
        yield "an argument is given twice"
    elif positions != sorted(positions):
        yield f"its arguments do not follow the order of the schema: {', '.join(order)}"
    for param in row.params:
        if param.required and param.name not in given:
            yield f"the argument {param.name!r} ({param.type}) is missing"
    for name, arg in op.args:
        found = row.param(name)
        if found and not accepts(found.type, arg, types):
            yield f"{name}={print_arg(arg)} is not of type {found.type}"


def accepts(type_: str, arg: Arg, types: Mapping[str, Type]) -> bool:
    """Whether ``arg`` can stand for a parameter of the schema type ``type_``.

    ``types`` are the types of the values that it refers to. Torch takes a number for a tensor.
    """
    if type_.endswith("?"):
        return arg is None or accepts(type_[:-1], arg, types)
    if type_.endswith("[]"):
        if isinstance(arg, tuple):
            return all(accepts(type_[:-2], item, types) for item in arg)
        return type_[:-2] in ("int", "float") and accepts(type_[:-2], arg, types)
    if isinstance(arg, Ref):
        return _accepts_value(type_, types[arg.name])
    if type_ in _NAMED:
        return isinstance(arg, str) or (isinstance(arg, DType) and type_ == "ScalarType")
    if type_ == "bool":
        return isinstance(arg, bool)
    if type_ == "int":
        return isinstance(arg, (int, Sym)) and not isinstance(arg, bool)
    if type_ in ("float", "Scalar", "Tensor"):
        number = isinstance(arg, (int, float, Sym))
        return number and (type_ != "float" or not isinstance(arg, bool))
    return arg is None


def _accepts_value(type_: str, value: Type) -> bool:
    if isinstance(value, TensorType):
        return type_ == "Tensor"
    return type_ in (value.name, "Scalar", "Tensor") or (type_, value.name) == ("float", "int")


def type_faults(op: Op, types: Mapping[str, Type]) -> Iterator[tuple[str, str]]:
    """Code and message of each result whose type is not what the shape rule gives (static ops)."""
    if not _is_static(op, types):
        return
    try:
        expected = lookup(op.kind).infer(bound_args(op, types))
    except UnsupportedError:
        return
    except UserError as e:
        yield e.code, e.message
        return
    if len(expected) != len(op.results):
        yield "MP107", f"it has {len(op.results)} results, its shape rule gives {len(expected)}"
        return
    for value, type_ in zip(op.results, expected, strict=True):
        if value is not None and not _agrees(value, type_):
            rule = "nothing" if type_ is None else print_type(type_)
            stated = print_type(value.type)
            yield "MP107", f"%{value.name} is stated as {stated}, the shape rule gives {rule}"


def _is_static(op: Op, types: Mapping[str, Type]) -> bool:
    stated = [*types.values(), *(v.type for v in op.values)]
    static = all(t.is_static for t in stated if isinstance(t, TensorType))
    return static and not any(_has_sym(arg) for _, arg in op.args)


def _has_sym(arg: Arg) -> bool:
    return isinstance(arg, Sym) or (isinstance(arg, tuple) and any(_has_sym(a) for a in arg))


def _agrees(value: Value, type_: Type | None) -> bool:
    """Equal element type and shape; views must also have the rule's strides.

    The layout of other results is the planner's choice.
    """
    stated = value.type
    if isinstance(stated, ScalarType) or not isinstance(type_, TensorType):
        return stated == type_
    if (stated.dtype, stated.shape) != (type_.dtype, type_.shape):
        return False
    if value.alias is None or value.alias.kind == "inplace":
        return True
    pairs = zip(stated.shape, stated.element_strides, type_.element_strides, strict=True)
    return 0 in stated.shape or all(n == 1 or a == b for n, a, b in pairs)
