"""The op table: one row per op kind, from which verifier, interpreter and cost model derive.

A row of a torch operator (``aten.add.Tensor``, or any other registered namespace) is derived from
torch's own schema when it is first asked for; mplan's own rows stand in ``own_ops`` and
``quantized_ops`` and need no torch until they run. A pass that brings its own op adds a row with
``register``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeAlias

from mplan.diagnostics import UserError
from mplan.ir.graph import Arg, Graph, Loop, Op, Ref
from mplan.ir.specialize import upper_bound
from mplan.ir.types import Sym, Type

#: An argument whose refs are replaced: by types for a shape rule, by tensors for an execution.
BoundArg: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter: ``type`` in the notation of torch schemas (``Tensor?``, ``int[]``, ``Scalar``).

    ``default`` counts only if the parameter is not ``required``; ``written`` ones are mutated.
    """

    name: str
    type: str
    required: bool = True
    default: Arg = None
    written: bool = False


@dataclass(frozen=True, slots=True)
class OpDef:
    """A row of the table.

    ``returns`` are the schema's result types; a ``Tensor[]`` stands for any number of results.
    ``pointwise`` ops compute each element of the result from the elements at its place, ``is_view``
    ones share the bytes of an operand. ``infer`` is the shape rule: it maps the arguments (types in
    the place of tensors, sizes as integers) to the types of the results, strides included, and raises
    UserError MP107 for arguments that the op rejects, UnsupportedError MP107 where the shape depends
    on data. ``reference`` computes with torch; ``macs(op, types)`` counts multiply-accumulates,
    given the static types of all operands and results by value name.
    """

    kind: str
    params: tuple[Param, ...]
    returns: tuple[str, ...]
    infer: Callable[[Mapping[str, BoundArg]], tuple[Type | None, ...]]
    reference: Callable[..., Any]
    macs: Callable[[Op, Mapping[str, Type]], int]
    pointwise: bool = False
    is_view: bool = False
    random: bool = False

    def param(self, name: str) -> Param | None:
        """The parameter called ``name``."""
        return next((p for p in self.params if p.name == name), None)


_REGISTERED: dict[str, OpDef] = {}


def register(row: OpDef) -> OpDef:
    """Add a row to the table; ValueError if its kind has another one."""
    if _REGISTERED.setdefault(row.kind, row) is not row:
        raise ValueError(f"the op {row.kind} is registered twice")
    lookup.cache_clear()
    return row


@cache
def lookup(kind: str) -> OpDef:
    """The row of ``kind``; UserError MP102 if neither mplan nor torch knows it."""
    own = _own_rows()
    if kind in own:
        return own[kind]
    if kind.startswith("mplan."):
        raise UserError("MP102", f"there is no op {kind!r}", help=_suggest(kind, list(own)))
    from mplan.ir.aten_ops import derive

    return derive(kind)


def own_kinds() -> tuple[str, ...]:
    """The kinds of mplan's own rows, registered ones included, sorted."""
    return tuple(sorted(_own_rows()))


def _own_rows() -> dict[str, OpDef]:
    from mplan.ir import own_ops, quantized_ops

    return {**own_ops.ROWS, **quantized_ops.ROWS, **_REGISTERED}


def bound_args(
    op: Op, env: Mapping[str, Any], symbols: Mapping[str, int] | None = None
) -> dict[str, BoundArg]:
    """The arguments of ``op`` with refs looked up in ``env`` and sizes evaluated.

    A loop has the arguments ``loop``, ``operands`` (in the order of ``Op.operands``) and ``symbols``.
    UserError MP105 if a symbol has no value.
    """
    if op.loop:
        return {
            "loop": op.loop,
            "operands": tuple(env[n] for n in op.operands),
            "symbols": symbols or {},
        }
    return {name: bind_arg(arg, env, symbols or {}) for name, arg in op.args}


def bind_arg(arg: Arg, env: Mapping[str, Any], symbols: Mapping[str, int]) -> BoundArg:
    """One argument with refs looked up in ``env`` and sizes evaluated."""
    if isinstance(arg, Ref):
        return env[arg.name]
    if isinstance(arg, Sym):
        return arg.evaluate(symbols)
    if isinstance(arg, tuple):
        return tuple(bind_arg(item, env, symbols) for item in arg)
    return arg


def infer(
    op: Op, types: Mapping[str, Type], symbols: Mapping[str, int] | None = None
) -> tuple[Type | None, ...]:
    """The types of the results of ``op`` for operands of (static) ``types``, by value name."""
    return lookup(op.kind).infer(bound_args(op, types, symbols))


def macs(op: Op, types: Mapping[str, Type]) -> int:
    """Multiply-accumulates of the contractions that ``op`` computes."""
    return lookup(op.kind).macs(op, types)


def graph_macs(graph: Graph) -> int:
    """Multiply-accumulates of one run of ``graph``, at the upper bound of every size."""
    bound = upper_bound(graph)
    types = {v.name: v.type for v in bound.values}
    return sum(macs(op, types) for op in bound.ops)


def _suggest(kind: str, known: list[str]) -> str:
    names = {name.removeprefix("mplan."): name for name in known}
    close = get_close_matches(kind.removeprefix("mplan."), names, n=1)
    return (
        f"did you mean {names[close[0]]}?" if close else f"mplan's own ops: {', '.join(sorted(known))}"
    )


def loop_of(args: Mapping[str, BoundArg]) -> Loop:
    """The loop among the arguments that ``bound_args`` makes for ``mplan.loop``."""
    loop = args["loop"]
    assert isinstance(loop, Loop)
    return loop
