"""Verification of loops: axes, windows, results, and the types that the body sees and yields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mplan.diagnostics import UserError
from mplan.ir.graph import Carry, Concat, Graph, Loop, Op, Ref, Window
from mplan.ir.loops import axis_symbols, tile_shapes, window_type
from mplan.ir.printer import print_type
from mplan.ir.types import Symbol, TensorType, Type
from mplan.ir.verify_stream import stream_faults


def loop_faults(op: Op, loop: Loop, types: Mapping[str, Type], graph: Graph) -> Iterator[str]:
    """Everything that is wrong with ``loop``, whose operands have ``types``, but its body's inside."""
    structural = (*_axes(loop), *_windows(loop, types), *_results(op, loop), *_interface(loop))
    yield from structural
    if not structural and loop.stream:
        yield from stream_faults(op, loop, loop.stream, types, graph)
    elif not structural:
        yield from _symbols(loop, graph)
        yield from _types(op, loop, types, graph)


def _axes(loop: Loop) -> Iterator[str]:
    if not loop.axes and not loop.stream:
        yield "the loop has no axis"
    for axis in loop.axes:
        if not axis.name.isidentifier() or not axis.name.isascii() or axis.name in ("max", "min"):
            yield f"{axis.name!r} cannot be the name of an axis"
        if not 1 <= axis.step <= axis.extent:
            yield f"axis {axis.name} has the step {axis.step} and the extent {axis.extent}"
    names = Counter(n for a in loop.axes for n in (a.name, f"{a.name}_len"))
    yield from (f"the axis symbol {name} has two meanings" for name, n in names.items() if n > 1)


def _windows(loop: Loop, types: Mapping[str, Type]) -> Iterator[str]:
    axes = {a.name for a in loop.axes}
    for window in loop.windows:
        type_ = types[window.operand]
        if not isinstance(type_, TensorType):
            if window.slices:
                yield f"the number %{window.operand} cannot be sliced"
            continue
        dims = [s.dim for s in window.slices]
        if len(set(dims)) != len(dims):
            yield f"the window of %{window.operand} slices a dimension twice"
        for s in window.slices:
            if not 0 <= s.dim < len(type_.shape):
                yield f"the window of %{window.operand} slices dimension {s.dim}"
            if s.axis not in axes:
                yield f"the window of %{window.operand} names the axis {s.axis!r}"
            if s.scale < 1 or s.extent < 1:
                numbers = f"scale {s.scale} and extent {s.extent}"
                yield f"the window of %{window.operand} has {numbers}"


def _results(op: Op, loop: Loop) -> Iterator[str]:
    if any(v is None for v in op.results) or len(op.results) != len(loop.results):
        yield f"it has {len(op.values)} results for {len(loop.results)} results of the loop"
    axes = sorted(a.name for a in loop.axes)
    for result in loop.results:
        if isinstance(result, Carry):
            continue
        if len(result.dims) != len(result.axes) or len(set(result.dims)) != len(result.dims):
            yield f"a result is concatenated along dimensions {result.dims} by axes {result.axes}"
        elif sorted(result.axes) != axes:
            yield f"a result is concatenated along {result.axes}, the loop runs over {axes}"


def _interface(loop: Loop) -> Iterator[str]:
    carried = sum(isinstance(r, Carry) for r in loop.results)
    inputs, outputs = len(loop.body.inputs), len(loop.body.outputs)
    if inputs != len(loop.windows) + carried:
        wanted = f"{len(loop.windows)} windows and {carried} carried states"
        yield f"the body has {inputs} inputs for {wanted}"
    if outputs != len(loop.results):
        yield f"the body has {outputs} outputs for {len(loop.results)} results"
    defined = loop.body.value_table
    for arg in loop.body.outputs:
        if not isinstance(arg, Ref) or arg.name not in defined:
            yield "an output of the body is not one of its values"


def _symbols(loop: Loop, graph: Graph) -> Iterator[str]:
    """The body may use the symbols of the axes and of ``graph``, with ranges that hold for all."""
    known: dict[str, Symbol] = {**graph.symbol_table}
    for axis in loop.axes:
        known.update({s.name: s for s in axis_symbols(axis)})
    for symbol in loop.body.symbols:
        actual = known.get(symbol.name)
        if actual is None:
            yield f"the body's symbol {symbol.name} is neither of an axis nor of the graph"
        elif symbol.low > actual.low or symbol.high < actual.high:
            stated = f"the range [{symbol.low}, {symbol.high}]"
            real = f"it takes the values [{actual.low}, {actual.high}]"
            yield f"the body's symbol {symbol.name} has {stated}, but {real}"


def _types(op: Op, loop: Loop, types: Mapping[str, Type], graph: Graph) -> Iterator[str]:
    """Compare types in one tile of each shape, the graph's own symbols at their upper bounds."""
    upper = {s.name: s.high for s in graph.symbols}
    seen = set()
    for tile, _ in tile_shapes(loop):
        try:
            found = list(_tile_types(op, loop, types, {**upper, **tile}))
        except (UserError, RecursionError) as e:
            found = [f"the sizes of the body have no value: {e}"]
        for message in found:
            if message not in seen:
                seen.add(message)
                yield message


def _tile_types(
    op: Op, loop: Loop, types: Mapping[str, Type], symbols: Mapping[str, int]
) -> Iterator[str]:
    inputs = [i.value for i in loop.body.inputs]
    table = loop.body.value_table
    for window, value in zip(loop.windows, inputs, strict=False):
        wanted = _window(window, types[window.operand], symbols)
        yield from _differ(f"the window of %{window.operand}", wanted, value.type, symbols)
    states = iter(inputs[len(loop.windows) :])
    for value, result, out in zip(op.values, loop.results, loop.body.output_names, strict=True):
        label = f"the result %{value.name}"
        if isinstance(result, Carry):
            yield from _differ(
                f"{label} and its initial state", value.type, types[result.init], symbols
            )
            yield from _differ(f"{label} and the body's input", value.type, next(states).type, symbols)
            yield from _differ(f"{label} and the body's output", value.type, table[out].type, symbols)
        else:
            yield from _concat(label, loop, result, value.type, table[out].type, symbols)


def _window(window: Window, type_: Type, symbols: Mapping[str, int]) -> Type:
    return (
        window_type(window, type_.bound(symbols), symbols) if isinstance(type_, TensorType) else type_
    )


def _concat(
    label: str, loop: Loop, result: Concat, whole: Type, part: Type, symbols: Mapping[str, int]
) -> Iterator[str]:
    if not isinstance(whole, TensorType) or not isinstance(part, TensorType):
        yield f"{label} is not a tensor"
        return
    bound = whole.bound(symbols)
    if any(not 0 <= d < len(bound.shape) for d in result.dims):
        yield f"{label} has {len(bound.shape)} dimensions, it is concatenated along {result.dims}"
        return
    tile = list(bound.shape)
    for dim, name in zip(result.dims, result.axes, strict=True):
        extent = next(a.extent for a in loop.axes if a.name == name)
        if bound.shape[dim] != extent:
            yield f"{label} has the size {bound.shape[dim]} along axis {name} of extent {extent}"
        tile[dim] = symbols[f"{name}_len"]
    yield from _differ(f"{label}'s tile", TensorType(bound.dtype, tuple(tile)), part, symbols)


def _differ(label: str, a: Type, b: Type, symbols: Mapping[str, int]) -> Iterator[str]:
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        first, second = a.bound(symbols), b.bound(symbols)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            yield f"{label}: {print_type(first)} against {print_type(second)} in the body"
    elif a != b:
        yield f"{label}: {print_type(a)} against {print_type(b)} in the body"
