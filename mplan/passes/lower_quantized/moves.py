"""Ops that move integers as they are: they commute with quantisation."""

from __future__ import annotations

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
    """The operand itself, if it keeps its elements."""
    stored, shape = get(low.source(op, "self")), low.shape(name)
    added = len(shape) - len(stored.shape)
    if (1,) * added + stored.shape != shape:
        raise Unlowered("it repeats elements")
    return low.reshaped(stored, shape)


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
    args: dict[str, Arg] = {"self": Ref(stored.name), "repeats": tuple(counts[d] for d in stored.order)}
    result = low.builder.emit(op.kind, args, name, op.loc)
    return replace(stored, name=result, shape=low.shape(name))


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
    args: dict[str, Arg] = {
        "self": Ref(stored.name),
        "dim": stored.order.index(dim),
        "index": low.builder.constant(f"{name}_index", index % stored.shape[dim]),
    }
    result = low.builder.emit("aten.index_select.default", args, name, op.loc)
    return replace(stored, name=result, shape=low.shape(name))


@move("aten.maximum.default", "aten.minimum.default")
def extreme(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The larger or the smaller one of two values of one scale."""
    shape = low.shape(name)
    a, b = (get(low.source(op, key)) for key in ("self", "other"))
    if a.affine != b.affine:
        raise Unlowered("its operands have different scales")
    if not a.shape == b.shape == shape:
        raise Unlowered("its operands have different shapes")
    args: dict[str, Arg] = {"self": Ref(a.name), "other": Ref(low.arranged(b, a.order).name)}
    result = low.builder.emit(op.kind, args, name, op.loc)
    least, most = min(a.least, b.least), max(a.most, b.most)
    return Stored(result, shape, a.order, a.affine, least, most)


@move("aten.constant_pad_nd.default")
def pad(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """A constant around the value, or less of it."""
    stored, widths, value = get(low.source(op, "self")), integers(op, "pad"), op.arg("value", 0)
    if not isinstance(value, (int, float)):
        raise Unlowered("its value is not constant")
    goal = Goal(stored.affine)
    fill = goal.integer(value)
    if value != 0 and value != (fill - stored.affine.zero_point) * stored.affine.scale:
        raise Unlowered(f"its value {value} is none of its operand's numbers")
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


@move("aten.max_pool2d.default", "aten.max_pool2d_with_indices.default")
def max_pool(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """A maximum is the same for integers."""
    if name != op.values[0].name:
        raise Unlowered("its indices are used")
    if any(d != 1 for d in integers(op, "dilation")):
        raise Unlowered("a pool with dilation")
    x = image(low, get(low.source(op, "self")))
    kernel = integers(op, "kernel_size", 2)
    stride, padding = integers(op, "stride", 2) or kernel, integers(op, "padding", 2) or (0, 0)
    args = windows(x, kernel, stride, padding, low.shape(name))
    result = low.builder.emit("mplan.qmax_pool2d", args, name, op.loc)
    return Stored(result, low.shape(name), NHWC, x.affine, x.least, x.most)


def windows(x: Stored, kernel: Sizes, stride: Sizes, padding: Sizes, shape: Sizes) -> dict[str, Arg]:
    """The arguments of a pool of the image ``x`` with results of ``shape``.

    Where partial windows count (``ceil_mode``), there is more padding at the end.
    """
    sides: list[int] = []
    for d, before in enumerate(padding):
        reach = (shape[2 + d] - 1) * stride[d] + kernel[d]
        sides += [before, max(before, reach - x.shape[2 + d] - before)]
    return {
        "input": Ref(x.name),
        "kernel_size": kernel,
        "stride": stride,
        "padding": tuple(sides),
    }


@move("aten.amax.default")
def largest(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """The maximum of a whole image: of its columns, then of what they yield."""
    x = get(low.source(op, "self"))
    if len(x.shape) != 4 or {d % 4 for d in integers(op, "dim")} != {2, 3}:
        raise Unlowered("maxima of anything but whole images have no integer form")
    x, shape = image(low, x), x.shape
    for kernel in ((shape[2], 1), (1, shape[3])):
        shape = (*shape[:2], shape[2] // kernel[0], shape[3] // kernel[1])
        args = windows(x, kernel, kernel, (0, 0), shape)
        result = low.builder.emit("mplan.qmax_pool2d", args, name, op.loc)
        x = replace(x, name=result, shape=shape)
    return low.reshaped(x, low.shape(name))


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


_NEAREST = ("aten.upsample_nearest2d", "aten.upsample_nearest1d")


@move(*(f"{kind}.{overload}" for kind in _NEAREST for overload in ("vec", "default")))
def resize(low: Lowering, op: Op, name: str, get: Get) -> Stored:
    """Pixels from the nearest ones; a line is an image of one row."""
    import torch

    x, shape = get(low.source(op, "self" if op.arg("self") is not None else "input")), low.shape(name)
    if len(shape) == 3:
        x, shape = low.reshaped(x, (*x.shape[:2], 1, x.shape[2])), (*shape[:2], 1, shape[2])
    x, size = image(low, x), shape[2:]
    for length, wanted in zip(x.shape[2:], size, strict=True):
        line = torch.arange(length, dtype=torch.float32).reshape(1, 1, length)
        theirs = torch.nn.functional.interpolate(line, size=wanted).flatten().tolist()
        if nearest_indices(length, wanted, False, False) != [int(n) for n in theirs]:
            raise Unlowered(f"it picks other pixels than an enlargement from {length} to {wanted}")
    args: dict[str, Arg] = {
        "input": Ref(x.name),
        "size": size,
        "align_corners": False,
        "half_pixel_centers": False,
    }
    result = low.builder.emit("mplan.resize_nearest2d", args, name, op.loc)
    return low.reshaped(Stored(result, shape, NHWC, x.affine, x.least, x.most), low.shape(name))
