"""The interpreter: it executes any graph with torch on the CPU, op by op.

``run`` is eager execution by reference functions. ``run_in_arena`` executes the same graph inside
the memory that a plan lays out, with dead bytes poisoned, so that a wrong plan gives wrong results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mplan.ir.arena import run_in_arena
from mplan.ir.execution import (
    bind_symbols,
    call,
    check_value,
    first_byte,
    laid_out,
    named_inputs,
    overlay,
    shares_storage,
    torch_dtype,
)
from mplan.ir.graph import Alias, Carry, Concat, Graph, Loop, Value, Window, tensor_type
from mplan.ir.loops import slice_bounds, tiles
from mplan.ir.ops import bind_arg, bound_args
from mplan.ir.storage import storages
from mplan.ir.stream_run import ring_memory, run_stream
from mplan.ir.types import TensorType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["run", "run_in_arena", "run_loop"]


def run(
    graph: Graph,
    inputs: Mapping[str, Any] | Sequence[Any],
    symbols: Mapping[str, int] | None = None,
) -> tuple[Any, ...]:
    """The outputs of ``graph`` for ``inputs``, by value name or in the order of the graph's inputs.

    Symbols take their values from the shapes of the inputs unless ``symbols`` has them. Inputs that
    the graph overwrites are copied first. UserError MP108 if the inputs do not fit, MP109 with the
    op's place if an op fails.
    """
    import torch

    values = named_inputs(graph, inputs)
    with torch.no_grad():
        return execute(graph, values, bind_symbols(graph, values, symbols))


def execute(graph: Graph, values: Mapping[str, Any], symbols: Mapping[str, int]) -> tuple[Any, ...]:
    """As ``run``, for inputs by name and known values of all symbols."""
    overwritten = _overwritten(graph)
    env: dict[str, Any] = {}
    for item in graph.inputs:
        name, type_ = item.value.name, item.value.type
        check_value(f"input %{name}", values[name], type_, symbols)
        env[name] = values[name]
        if isinstance(type_, TensorType):
            own = laid_out(values[name].detach(), type_.bound(symbols))
            env[name] = own.clone() if name in overwritten else own
    dying = _last_uses(graph)
    for index, op in enumerate(graph.ops):
        results = call(op, bound_args(op, env, symbols), symbols)
        operands = [env[name] for name in op.operands]
        for value, result in zip(op.results, results, strict=True):
            if value is not None:
                alias = None if op.loop else value.alias
                env[value.name] = _settle(value, alias, result, operands, env, symbols)
        for name in dying.get(index, ()):
            del env[name]
    return tuple(bind_arg(arg, env, symbols) for arg in graph.outputs)


def _overwritten(graph: Graph) -> set[str]:
    """The values that own bytes which an in-place result overwrites."""
    root = storages(graph).root
    aliases = (v.alias for op in graph.ops for v in op.values)
    return {root[alias.of] for alias in aliases if alias and alias.kind == "inplace"}


def _last_uses(graph: Graph) -> dict[int, list[str]]:
    """Per op, the values that nothing needs after it."""
    last = {}
    for index, op in enumerate(graph.ops):
        bases = [v.alias.of for v in op.values if v.alias]
        for name in (*op.operands, *bases, *(v.name for v in op.values)):
            last[name] = index
    table: dict[int, list[str]] = {}
    for name in last.keys() - set(graph.output_names):
        table.setdefault(last[name], []).append(name)
    return table


def _settle(
    value: Value,
    alias: Alias | None,
    result: Any,
    operands: Iterable[Any],
    env: Mapping[str, Any],
    symbols: Mapping[str, int],
) -> Any:
    """``result`` as ``value`` states it: in its layout, and in fresh bytes or those of ``alias``.

    A loop's result always gets fresh bytes here: its alias may lie outside of its operand.
    """
    if not isinstance(value.type, TensorType):
        return result
    type_ = value.type.bound(symbols)
    if alias is None:
        own = result.clone() if shares_storage(result, operands) else result
        return laid_out(own, type_)
    base = env[alias.of]
    place = overlay(base, type_, first_byte(base) + bind_arg(alias.offset_bytes, env, symbols))
    if alias.kind == "inplace":
        place.copy_(result.clone() if shares_storage(result, [base]) else result)
    elif shares_storage(result, [base]):
        return result
    return place


def run_loop(loop: Loop, operands: tuple[Any, ...], symbols: Mapping[str, int]) -> tuple[Any, ...]:
    """The results of ``loop``, tile by tile; ``operands`` are those of ``Op.operands``, in order.

    Positions of a window outside of its operand read as zero. A stream works in fresh rings.
    """
    if loop.stream:
        return _fresh_stream(loop, operands, symbols)
    seen, states = operands[: len(loop.windows)], list(operands[len(loop.windows) :])
    names = [item.value.name for item in loop.body.inputs]
    whole: list[Any] = [None] * len(loop.results)
    for tile in tiles(loop):
        known = {**symbols, **tile}
        parts = [_window(t, w, tile) for t, w in zip(seen, loop.windows, strict=True)]
        inner = {s.name: known[s.name] for s in loop.body.symbols}
        outputs = execute(loop.body, dict(zip(names, [*parts, *states], strict=True)), inner)
        states = []
        for i, (result, out) in enumerate(zip(loop.results, outputs, strict=True)):
            if isinstance(result, Carry):
                states.append(out)
                whole[i] = out
            else:
                whole[i] = _put(whole[i], out, loop, result, tile)
    return tuple(whole)


def _fresh_stream(loop: Loop, operands: tuple[Any, ...], symbols: Mapping[str, int]) -> tuple[Any, ...]:
    import torch

    table = loop.body.value_table
    types = (tensor_type(table[name]) for name in loop.body.output_names)
    results = [
        torch.empty([n for n in t.shape if isinstance(n, int)], dtype=torch_dtype(t)) for t in types
    ]
    run_stream(loop, operands, results, ring_memory(loop), symbols)
    return tuple(results)


def _window(tensor: Any, window: Window, tile: Mapping[str, int]) -> Any:
    for cut in window.slices:
        first, end = slice_bounds(cut, tile)
        tensor = _narrow(tensor, cut.dim, first, end)
    return tensor


def _narrow(tensor: Tensor, dim: int, first: int, end: int) -> Tensor:
    """Positions ``[first, end)`` of a dimension, zero outside of the tensor."""
    low, high = max(first, 0), min(end, tensor.shape[dim])
    inside = tensor.narrow(dim, low, max(high - low, 0)) if low < high else None
    if inside is not None and (low, high) == (first, end):
        return inside
    shape = list(tensor.shape)
    shape[dim] = end - first
    padded = tensor.new_zeros(shape)
    if inside is not None:
        padded.narrow(dim, low - first, high - low).copy_(inside)
    return padded


def _put(
    whole: Tensor | None, part: Tensor, loop: Loop, result: Concat, tile: Mapping[str, int]
) -> Tensor:
    """``whole`` (made on first use) with ``part`` at the place of ``tile``."""
    extents = {a.name: a.extent for a in loop.axes}
    pairs = list(zip(result.dims, result.axes, strict=True))
    if whole is None:
        shape = list(part.shape)
        for dim, axis in pairs:
            shape[dim] = extents[axis]
        whole = part.new_empty(shape)
    place = whole
    for dim, axis in pairs:
        place = place.narrow(dim, tile[axis], tile[f"{axis}_len"])
    place.copy_(part)
    return whole
