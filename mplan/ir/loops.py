"""The geometry of loops: tiles, windows and the types that a loop's body sees and yields.

A body is a self-contained graph: it declares the symbols of the axes that it uses (``axis_symbols``)
like any other, and those of the surrounding graph that occur in its types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from mplan.ir.graph import Axis, Carry, Concat, Loop, Slice, Window
from mplan.ir.types import Dim, Symbol, TensorType, Type


def axis_symbols(axis: Axis) -> tuple[Symbol, Symbol]:
    """The symbols that the body knows for ``axis``: first position and length of its tile."""
    starts = range(0, axis.extent, axis.step)
    shortest = axis.extent - starts[-1]
    return (
        Symbol(axis.name, 0, starts[-1]),
        Symbol(f"{axis.name}_len", shortest, min(axis.step, axis.extent)),
    )


def tiles(loop: Loop) -> Iterator[dict[str, int]]:
    """The values of the axes' symbols, tile by tile, in the order of execution."""
    ranges = [[(o, min(a.step, a.extent - o)) for o in range(0, a.extent, a.step)] for a in loop.axes]
    for combination in product(*ranges):
        yield _tile(loop.axes, combination)


def tile_shapes(loop: Loop) -> Iterator[tuple[dict[str, int], int]]:
    """One tile of each distinct shape (full and ragged ones) with the number of such tiles."""
    choices = []
    for a in loop.axes:
        full, rest = divmod(a.extent, a.step)
        found = [((0, a.step), full)] if full else []
        choices.append(found + ([((full * a.step, rest), 1)] if rest else []))
    for combination in product(*choices):
        count = 1
        for _, times in combination:
            count *= times
        yield _tile(loop.axes, tuple(tile for tile, _ in combination)), count


def _tile(axes: tuple[Axis, ...], combination: tuple[tuple[int, int], ...]) -> dict[str, int]:
    tile: dict[str, int] = {}
    for axis, (start, length) in zip(axes, combination, strict=True):
        tile[axis.name] = start
        tile[f"{axis.name}_len"] = length
    return tile


def slice_bounds(cut: Slice, tile: Mapping[str, int]) -> tuple[int, int]:
    """The half-open range of positions that ``cut`` selects in ``tile``; it may leave the tensor."""
    start, length = tile[cut.axis], tile[f"{cut.axis}_len"]
    first = start * cut.scale + cut.offset
    return first, first + (length - 1) * cut.scale + cut.extent


def window_type(window: Window, type_: TensorType, tile: Mapping[str, int]) -> TensorType:
    """The type of what the body sees of an operand of ``type_`` in ``tile`` (contiguous)."""
    shape: list[Dim] = list(type_.shape)
    for cut in window.slices:
        first, end = slice_bounds(cut, tile)
        shape[cut.dim] = end - first
    return TensorType(type_.dtype, tuple(shape))


def result_types(
    loop: Loop, operands: tuple[Type, ...], symbols: Mapping[str, int]
) -> tuple[Type | None, ...]:
    """The types of the loop's results, given those of its operands (windows, then initial states).

    ``symbols`` are the values of the surrounding graph's symbols that the body uses.
    """
    states = iter(operands[len(loop.windows) :])
    extents = {a.name: a.extent for a in loop.axes}
    found: list[Type | None] = []
    tile = {**symbols, **next(tiles(loop))}
    table = loop.body.value_table
    for result, out in zip(loop.results, loop.body.output_names, strict=True):
        if isinstance(result, Carry):
            found.append(next(states))
            continue
        type_ = table[out].type
        assert isinstance(type_, TensorType) and isinstance(result, Concat)
        shape: list[Dim] = list(type_.bound(tile).shape)
        for dim, axis in zip(result.dims, result.axes, strict=True):
            shape[dim] = extents[axis]
        found.append(TensorType(type_.dtype, tuple(shape)))
    return tuple(found)
