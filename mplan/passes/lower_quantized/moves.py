"""Ops that move integers as they are: they commute with quantisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mplan.ir.bilinear import PLACE_BITS, within
from mplan.ir.graph import Arg, Op, Ref, refs, tensor_type
from mplan.ir.ops import bind_arg, lookup
from mplan.ir.quantized_reference import nearest_indices
from mplan.passes.lower_quantized.goal import Goal, Unlowered
from mplan.passes.lower_quantized.layout import NHWC, Sizes, Stored, plain
from mplan.passes.lower_quantized.lowering import Get, Lowering, move, permutation


def integers(op: Op, name: str, count: int = 0) -> Sizes:
    """A list argument of integers; a single one stands for ``count``, an absent one is empty."""
    given = op.arg(name)
    items = given if isinstance(given, tuple) else () if given is None else (given,)
    found = tuple(n for n in items if isinstance(n, int))
    if len(found) != len(items):
        raise Unlowered(f"its {name} is not constant")
    return found * count if len(found) == 1 and count else found


def number(op: Op, name: str, default: int = 0) -> int:
    """An integer argument."""
    given = op.arg(name, default)
    if not isinstance(given, int):
        raise Unlowered(f"its {name} is not constant")
    return given


@move(
    "aten.clone.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
    "aten.lift_fresh_copy.default",
)
def same(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The operand itself."""
    return get(low.source(op, "self"))


@move("aten._to_copy.default", "aten.dropout.default")
def converted(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The operand itself, if the element type stays."""
    source = low.source(op, "self" if "copy" in op.kind else "input")
    if low.values[source].type != low.values[name].type or op.arg("train", False) is True:
        raise Unlowered("it changes its operand")
    return get(source)


@move("aten.as_strided.default")
def restrided(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The operand itself, if its strides stay: those of dimensions of size 1 do not count."""
    source = low.source(op, "self")
    before, after = tensor_type(low.values[source]), tensor_type(low.values[name])
    pairs = zip(before.element_strides, after.element_strides, low.shape(source), strict=False)
    alias = low.values[name].alias
    same_place = alias is not None and alias.of == source and alias.offset_bytes == 0
    if low.shape(source) != low.shape(name) or not same_place:
        raise Unlowered("it shows other elements")
    if any(old != new for old, new, size in pairs if size != 1):
        raise Unlowered("it shows other elements")
    return get(source)


@move(
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
)
def reshape(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The same elements as another shape."""
    return low.reshaped(get(low.source(op, "self")), low.shape(name))


@move("aten.permute.default", "aten.transpose.int", "aten.t.default")
def permute(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Other names for the dimensions; nothing moves."""
    stored = get(low.source(op, "self"))
    dims = permutation(op, len(stored.shape))
    assert dims is not None
    shape = tuple(stored.shape[d] for d in dims)
    order = tuple(dims.index(d) for d in stored.order)
    return Stored(stored.name, shape, order, stored.affine, stored.least, stored.most)


@move("aten.expand.default")
def expand(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Dimensions of size 1 several times."""
    stored, shape = get(low.source(op, "self")), low.shape(name)
    stored = low.reshaped(stored, (1,) * (len(shape) - len(stored.shape)) + stored.shape)
    return repeated(low, stored, tuple(n // m for n, m in zip(shape, stored.shape, strict=True)), op)


@move("aten.slice.Tensor", "aten.select.int")
def cut(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Some positions of a dimension."""
    stored = get(low.source(op, "self"))
    dim = number(op, "dim") % len(stored.shape)
    length = stored.shape[dim]
    if op.kind == "aten.select.int":
        index = number(op, "index") % length
        return low.reshaped(low.cut(stored, dim, index, index + 1), low.shape(name))
    start = 0 if op.arg("start") is None else number(op, "start")
    end = length if op.arg("end") is None else number(op, "end")
    start, end, step = slice(start, end, number(op, "step", 1)).indices(length)
    return low.cut(stored, dim, start, max(end, start), step)


@move("aten.split_with_sizes.default", "aten.split.Tensor", "aten.chunk.default", "aten.unbind.int")
def split(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """One of several parts of a dimension."""
    stored = get(low.source(op, "self"))
    dim = number(op, "dim") % len(stored.shape)
    start = 0
    for value in op.values:
        shape = low.shape(value.name)
        length = 1 if op.kind == "aten.unbind.int" else shape[dim]
        if value.name == name:
            return low.reshaped(low.cut(stored, dim, start, start + length), shape)
        start += length
    raise Unlowered("it has no such result")


@move("aten.cat.default")
def cat(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Values of one scale behind each other."""
    parts = [get(ref.name) for ref in refs(op.arg("tensors"))]
    if len({part.affine for part in parts}) != 1:
        raise Unlowered("its operands have different scales")
    order = max(parts, key=lambda part: part.order != plain(len(part.order))).order
    dim = order.index(number(op, "dim") % len(order))
    given: tuple[Arg, ...] = tuple(Ref(low.arranged(part, order).name) for part in parts)
    result = low.builder.emit("aten.cat.default", {"tensors": given, "dim": dim}, name, op.loc)
    least, most = min(part.least for part in parts), max(part.most for part in parts)
    return Stored(result, low.shape(name), order, parts[0].affine, least, most)


@move("aten.flip.default")
def flip(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Dimensions backwards."""
    stored = get(low.source(op, "self"))
    dims = tuple(sorted(stored.order.index(d % len(stored.shape)) for d in integers(op, "dims")))
    args: dict[str, Arg] = {"self": Ref(stored.name), "dims": dims}
    return replace(stored, name=low.builder.emit(op.kind, args, name, op.loc))


@move("aten.repeat.default")
def repeat(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The whole several times behind itself, along each dimension."""
    stored, counts = get(low.source(op, "self")), integers(op, "repeats")
    if len(counts) > len(stored.shape):
        stored = low.reshaped(stored, (1,) * (len(counts) - len(stored.shape)) + stored.shape)
    return repeated(low, stored, counts, op)


def repeated(low: Lowering, stored: Stored, counts: Sizes, op: Op) -> Stored:
    """``stored`` so many times along each dimension."""
    if set(counts) <= {1}:
        return stored
    args: dict[str, Arg] = {"self": Ref(stored.name), "repeats": tuple(counts[d] for d in stored.order)}
    result = low.builder.emit("aten.repeat.default", args, op.result.name, op.loc)
    shape = tuple(n * m for n, m in zip(stored.shape, counts, strict=True))
    return replace(stored, name=result, shape=shape)


@move("aten.index_select.default", "aten.index.Tensor", "aten._unsafe_index.Tensor")
def pick(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Positions of one dimension that a constant names, such as those that a pad reflects."""
    import torch

    stored = get(low.source(op, "self"))
    if op.kind == "aten.index_select.default":
        dim, given = number(op, "dim") % len(stored.shape), op.arg("index")
    else:
        listed = op.arg("indices")
        chosen = [(d, i) for d, i in enumerate(listed if isinstance(listed, tuple) else ()) if i]
        if len(chosen) != 1:
            raise Unlowered("it picks along several dimensions at once")
        ((dim, given),) = chosen
    index = low.constant(given)
    if index is None or index.dim() != 1 or index.dtype != torch.int64:
        raise Unlowered("what it picks is no constant list of positions")
    return picked(low, stored, dim, (index % stored.shape[dim]).tolist(), op)


def picked(low: Lowering, stored: Stored, dim: int, positions: Sequence[int], op: Op) -> Stored:
    """``stored`` at ``positions`` of a logical dimension."""
    import torch

    shape = stored.shape
    if list(positions) == list(range(shape[dim])):
        return stored
    args: dict[str, Arg] = {
        "self": Ref(stored.name),
        "dim": stored.order.index(dim),
        "index": low.builder.constant(f"{op.values[0].name}_index", torch.tensor(positions)),
    }
    result = low.builder.emit("aten.index_select.default", args, op.values[0].name, op.loc)
    return replace(stored, name=result, shape=(*shape[:dim], len(positions), *shape[dim + 1 :]))


@move("aten.constant_pad_nd.default")
def pad(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """A constant around the value, or less of it."""
    stored, widths, value = get(low.source(op, "self")), integers(op, "pad"), op.arg("value", 0)
    if not isinstance(value, (int, float)):
        raise Unlowered("its value is not constant")
    goal = Goal(stored.affine)
    fill = goal.integer(value)
    if abs(value - (fill - stored.affine.zero_point) * stored.affine.scale) > stored.affine.scale / 2:
        raise Unlowered(f"its value {value} is outside of its operand's range")
    return padded(low, stored, widths, fill, name, op)


def padded(low: Lowering, stored: Stored, widths: Sizes, fill: int, name: str, op: Op) -> Stored:
    """``stored`` with ``fill`` around it; ``widths`` are (before, after), the last dimension first."""
    rank = len(stored.shape)
    pairs = {rank - 1 - i: widths[2 * i : 2 * i + 2] for i in range(len(widths) // 2)}
    moved = tuple(n for d in reversed(stored.order) for n in pairs.get(d, (0, 0)))
    while moved[-2:] == (0, 0):
        moved = moved[:-2]
    args: dict[str, Arg] = {"self": Ref(stored.name), "pad": moved, "value": fill}
    result = low.builder.emit("aten.constant_pad_nd.default", args, name, op.loc)
    shape = tuple(n + sum(pairs.get(d, (0,))) for d, n in enumerate(stored.shape))
    least, most = min(stored.least, fill), max(stored.most, fill)
    return Stored(result, shape, stored.order, stored.affine, least, most)


def image(low: Lowering, stored: Stored) -> Stored:
    """An image stored NHWC."""
    if len(stored.shape) != 4:
        raise Unlowered(f"its operand has {len(stored.shape)} dimensions, not 4")
    return low.arranged(stored, NHWC)


@move("aten.upsample_bilinear2d.vec", "aten.upsample_bilinear2d.default")
def interpolate(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Pixels between the nearest ones, at the places that the op gives two slopes."""
    import torch

    key = "self" if op.arg("self") is not None else "input"
    x = image(low, get(low.source(op, key)))
    args: dict[str, Arg] = {"input": Ref(x.name)}
    for dim, side in ((2, "rows"), (3, "columns")):
        length = x.shape[dim]
        slope = torch.arange(length, dtype=torch.float64).reshape(-1, *[1] * (3 - dim))
        given = {k: bind_arg(arg, {}, {}) for k, arg in op.args if k != key}
        shown = slope.expand(1, 1, *x.shape[2:])
        found = lookup(op.kind).reference(**{**given, key: shown}).select(5 - dim, 0).flatten()
        places = torch.round(found * (1 << PLACE_BITS)).to(torch.int64).tolist()
        args[side] = within(places, length)
    result = low.builder.emit("mplan.resize_bilinear2d", args, name, op.loc)
    return Stored(result, low.shape(name), NHWC, x.affine, x.least, x.most)


_NEAREST = ("upsample_nearest1d", "upsample_nearest2d")
_EXACT = ("_upsample_nearest_exact1d", "_upsample_nearest_exact2d")


@move(*(f"aten.{kind}.{form}" for kind in _NEAREST + _EXACT for form in ("vec", "default")))
def resize(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Pixels from the nearest ones; a line is an image of one row."""
    key = "self" if op.arg("self") is not None else "input"
    x, shape = get(low.source(op, key)), low.shape(name)
    found = [_shown(low, op, key, x.shape, dim) for dim in range(2, len(shape))]
    if len(shape) == 3:
        x, shape = low.reshaped(x, (*x.shape[:2], 1, x.shape[2])), (*shape[:2], 1, shape[2])
        found.insert(0, [0])
    x, exact = image(low, x), "exact" in op.kind
    pairs = zip(x.shape[2:], shape[2:], strict=True)
    if found != [nearest_indices(length, wanted, False, exact) for length, wanted in pairs]:
        x = picked(low, picked(low, x, 2, found[0], op), 3, found[1], op)
        return low.reshaped(x, low.shape(name))
    args: dict[str, Arg] = {
        "input": Ref(x.name),
        "size": shape[2:],
        "align_corners": False,
        "half_pixel_centers": exact,
    }
    result = low.builder.emit("mplan.resize_nearest2d", args, name, op.loc)
    return low.reshaped(Stored(result, shape, NHWC, x.affine, x.least, x.most), low.shape(name))


def _shown(low: Lowering, op: Op, key: str, shape: Sizes, dim: int) -> list[int]:
    """The positions of ``dim`` that the op ``op`` of an image of ``shape`` reads."""
    import torch

    slope = torch.arange(shape[dim], dtype=torch.float32).reshape(-1, *[1] * (len(shape) - 1 - dim))
    given = {k: bind_arg(arg, {}, {}) for k, arg in op.args if k != key}
    result = lookup(op.kind).reference(**{**given, key: slope.expand(1, 1, *shape[2:])})
    return [int(n) for n in result.movedim(dim, -1).reshape(-1, result.shape[dim])[0]]
