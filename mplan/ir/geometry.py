"""Which positions of its operands an operator needs for a position of its result.

One rule per family of operators says, for the two spatial dimensions (rows and columns), how far each
operand is read (``Reach``), what positions outside read as, and how a tile of the result is computed
from tiles of the operands. Partial execution derives from these rules: ring buffers, halos, the order
of rows. The rules name the spatial dimensions, so that other layouts only bring other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mplan.ir.graph import Arg, Op, Ref, refs
from mplan.ir.ops import BoundArg, lookup
from mplan.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

#: A half-open range of positions of one dimension, and one of each of the two dimensions.
Span: TypeAlias = tuple[int, int]
Tile: TypeAlias = tuple[Span, Span]


@dataclass(frozen=True, slots=True)
class Reach:
    """Position ``o`` needs the positions ``(o * scale + low) // div`` to ``(o * scale + high) // div``.

    A convolution has its stride as ``scale``, minus its padding as ``low`` and the reach of its
    kernel beyond that as ``high``; ``div`` is the factor of an op that enlarges.
    """

    scale: int = 1
    low: int = 0
    high: int = 0
    div: int = 1

    def span(self, first: int, end: int) -> Span:
        """The positions that ``[first, end)`` needs; they may lie outside of the operand."""
        return (
            (first * self.scale + self.low) // self.div,
            ((end - 1) * self.scale + self.high) // self.div + 1,
        )


SAME = Reach()
#: A size-1 dimension that broadcasts.
ONLY = Reach(scale=0)


@dataclass(frozen=True, slots=True)
class Access:
    """An operand that is read along the two spatial dimensions; positions outside read as ``fill``."""

    operand: str
    reach: tuple[Reach, Reach] = (SAME, SAME)
    fill: float = 0.0


#: Arguments with tiles in the place of the accessed operands, the tile of the result, and the first
#: row and column of each accessed operand's tile: to the tile of the result.
Compute: TypeAlias = Callable[[Mapping[str, BoundArg], Tile, Mapping[str, tuple[int, int]]], Any]


@dataclass(frozen=True, slots=True)
class Spatial:
    """How an op works along rows and columns, dimensions ``dims`` of its accessed operands.

    Other operands (weights) are read whole. An op that ``reduces`` sums up all positions of its only
    accessed operand, in any order: ``compute`` gives the sum of a tile as float or integer tensor of
    the shape without the spatial dimensions, ``finish`` the result from the sum of all.
    """

    dims: tuple[int, int]
    accesses: tuple[Access, ...]
    compute: Compute
    reduces: bool = False
    finish: Callable[[Tensor], Tensor] | None = None


Types: TypeAlias = Mapping[str, Type]
Rule: TypeAlias = Callable[[Op, Types], Spatial | None]

NCHW, NHWC = (2, 3), (1, 2)

#: Up to here the nearest pixel is ``o // factor``; torch multiplies by the reciprocal in single
#: precision, in which 41 * (1 / 41) is less than 1.
LARGEST_FACTOR = 40


def geometry(op: Op, types: Types) -> Spatial | None:
    """The rule of ``op`` for operands and results of static ``types``; None where there is none."""
    results = [types[v.name] for v in op.values]
    shapes = [t for t in results if isinstance(t, TensorType) and t.is_static]
    if op.loop or len(results) != 1 or len(shapes) != 1 or op.is_view:
        return None
    from mplan.ir.geometry_int8 import RULES as INT8

    rule = RULES.get(op.kind) or INT8.get(op.kind)
    if rule is not None:
        return rule(op, types)
    plainly = op.kind.startswith("aten.") and lookup(op.kind).pointwise
    return pointwise(op, types, NCHW, partial(plain, op.kind)) if plainly else None


def grid(type_: TensorType, dims: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a tensor; one of each if it has lost its spatial dimensions."""
    sizes = [n for n in type_.shape if isinstance(n, int)]
    return (sizes[dims[0]], sizes[dims[1]]) if len(sizes) > max(dims) else (1, 1)


def shape_of(types: Types, arg: Arg) -> tuple[int, ...]:
    """The sizes of a tensor argument; empty for anything else."""
    type_ = types[arg.name] if isinstance(arg, Ref) else None
    return tuple(n for n in type_.shape if isinstance(n, int)) if isinstance(type_, TensorType) else ()


def _pair(arg: Arg, default: int) -> tuple[int, int]:
    """A list of one or two integers, or one, or none, as torch's operators take it."""
    numbers = arg if isinstance(arg, tuple) else () if arg is None else (arg,)
    found = [n for n in numbers if isinstance(n, int)] or [default]
    return found[0], found[-1]


def _image(types: Types, arg: Arg) -> bool:
    return isinstance(arg, Ref) and len(shape_of(types, arg)) == 4


def channels_last(types: Types, arg: Arg) -> bool:
    """Whether an image has its channels last: those of one-byte elements do."""
    type_ = types[arg.name] if isinstance(arg, Ref) else None
    return isinstance(type_, TensorType) and type_.dtype is DType.I8


def _call(kind: str, args: Mapping[str, BoundArg]) -> Tensor:
    """The reference, of which only the first result counts."""
    found = lookup(kind).reference(**args)
    result: Tensor = found[0] if isinstance(found, (tuple, list)) else found
    return result


def _only(
    op: Op,
    operand: str,
    reach: tuple[Reach, Reach],
    run: Compute,
    fill: float = 0.0,
    dims: tuple[int, int] = NCHW,
) -> Spatial | None:
    """The rule of an op that reads one operand by rows; None if it also reads it as another."""
    name = op.arg(operand)
    assert isinstance(name, Ref)
    if op.operands.count(name.name) > 1:
        return None
    return Spatial(dims, (Access(name.name, reach, fill),), run)


def _taps(stride: int, padding: int, dilation: int, kernel: int) -> Reach:
    return Reach(stride, -padding, (kernel - 1) * dilation - padding)


def enlarging(kernel: int, stride: int, padding: int, dilation: int) -> Reach:
    """What a transposed convolution reads in one dimension: at least one pixel."""
    extent = (kernel - 1) * dilation + 1
    return Reach(1, padding - max(extent, stride) + stride, padding, stride)


def _convolution(op: Op, types: Types) -> Spatial | None:
    if not _image(types, op.arg("input")) or isinstance(op.arg("padding"), str):
        return None
    kernel = shape_of(types, op.arg("weight"))[2:]
    stride, padding = _pair(op.arg("stride"), 1), _pair(op.arg("padding"), 0)
    dilation = _pair(op.arg("dilation"), 1)
    if op.arg("transposed") is True:
        rows, cols = (
            enlarging(*sizes) for sizes in zip(kernel, stride, padding, dilation, strict=True)
        )
        run: Compute = partial(_run_transposed, op.kind, stride, padding)
    else:
        rows, cols = (_taps(*sizes) for sizes in zip(stride, padding, dilation, kernel, strict=True))
        run = partial(unpadded, op.kind, {"padding": (0, 0)})
    return _only(op, "input", (rows, cols), run)


def unpadded(
    kind: str,
    instead: Mapping[str, BoundArg],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    """A window operator whose operand's tile has its padding inside; ``instead`` turns off its own."""
    return _call(kind, {**args, **instead})


def _run_transposed(
    kind: str,
    stride: tuple[int, int],
    padding: tuple[int, int],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    """Whole strides of results, cut to the tile."""
    extra = tuple(s - 1 for s in stride)
    whole = _call(kind, {**args, "padding": (0, 0), "output_padding": extra})
    for d in range(2):
        first, end = tile[d]
        begin = first + padding[d] - starts["input"][d] * stride[d]
        whole = whole.narrow(2 + d, begin, end - first)
    return whole


def _max_pool(op: Op, types: Types) -> Spatial | None:
    if not _image(types, op.arg("self")):
        return None
    kernel = _pair(op.arg("kernel_size"), 1)
    stride = kernel if not op.arg("stride") else _pair(op.arg("stride"), 1)
    padding, dilation = _pair(op.arg("padding"), 0), _pair(op.arg("dilation"), 1)
    rows, cols = (_taps(*sizes) for sizes in zip(stride, padding, dilation, kernel, strict=True))
    run = partial(unpadded, op.kind, {"padding": (0, 0), "ceil_mode": False})
    return _only(op, "self", (rows, cols), run, float("-inf"))


def _avg_pool(op: Op, types: Types) -> Spatial | None:
    if not _image(types, op.arg("self")):
        return None
    kernel = _pair(op.arg("kernel_size"), 1)
    stride = kernel if not op.arg("stride") else _pair(op.arg("stride"), 1)
    padding = _pair(op.arg("padding"), 0)
    rows, cols = (_taps(s, p, 1, k) for s, p, k in zip(stride, padding, kernel, strict=True))
    sizes = shape_of(types, op.arg("self"))[2:]
    run = partial(_run_avg, op, kernel, stride, padding, (sizes[0], sizes[1]))
    return _only(op, "self", (rows, cols), run)


def _run_avg(
    op: Op,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    sizes: tuple[int, int],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    """Sums divided by the number of positions that count, as torch counts them at the borders."""
    import torch

    sums: Tensor = torch.nn.functional.avg_pool2d(args["self"], kernel, stride, divisor_override=1)
    fixed = op.arg("divisor_override")
    if isinstance(fixed, int):
        return sums / fixed
    padded = op.arg("count_include_pad", True) is True
    counts = []
    for d in range(2):
        firsts = [o * stride[d] - padding[d] for o in range(*tile[d])]
        margin = padding[d] if padded else 0
        ends = [min(f + kernel[d], sizes[d] + margin) for f in firsts]
        inside = [e - (f if padded else max(f, 0)) for f, e in zip(firsts, ends, strict=True)]
        counts.append(torch.tensor(inside, dtype=sums.dtype))
    return sums / (counts[0][:, None] * counts[1])


def _pad(op: Op, types: Types) -> Spatial | None:
    """Rows and columns in front: of int8 images, whose channels are last, or of the last dimensions."""
    given = op.arg("pad")
    pad = [n for n in given if isinstance(n, int)] if isinstance(given, tuple) else []
    if not _image(types, op.arg("self")) or len(pad) < 2:
        return None
    pad += [0] * (8 - len(pad))
    last = channels_last(types, op.arg("self"))
    if any(pad[:2] if last else pad[4:6]) or any(pad[6:]):
        return None
    left, top = (pad[2], pad[4]) if last else (pad[0], pad[2])
    value = op.arg("value", 0.0)
    fill = float(value) if isinstance(value, (int, float)) else 0.0
    reach = (Reach(low=-top, high=-top), Reach(low=-left, high=-left))
    dims = NHWC if last else NCHW
    return _only(op, "self", reach, lambda args, tile, starts: args["self"], fill, dims)


def _upsample(op: Op, types: Types) -> Spatial | None:
    name = "input" if isinstance(op.arg("input"), Ref) else "self"
    size = shape_of(types, op.arg(name))[2:]
    out = shape_of(types, Ref(op.result.name))[2:]
    if len(size) != 2 or any(o % n for o, n in zip(out, size, strict=True)):
        return None
    factors = (out[0] // size[0], out[1] // size[1])
    if max(factors) > LARGEST_FACTOR or not set(_scales(op)) <= {(), factors}:
        return None
    rows, cols = (Reach(div=f) for f in factors)
    return _only(op, name, (rows, cols), partial(_run_upsample, name, factors))


def _scales(op: Op) -> Iterator[tuple[Arg, ...]]:
    """The factors that the op was given, which need not be those of its sizes; empty if none were."""
    given = op.arg("scale_factors")
    yield given if isinstance(given, tuple) else ()
    pair = (op.arg("scales_h"), op.arg("scales_w"))
    yield () if pair == (None, None) else pair


def _run_upsample(
    name: str,
    factors: tuple[int, int],
    args: Mapping[str, BoundArg],
    tile: Tile,
    starts: Mapping[str, tuple[int, int]],
) -> Tensor:
    import torch

    part: Tensor = args[name]
    for d in range(2):
        index = torch.tensor([o // factors[d] - starts[name][d] for o in range(*tile[d])])
        part = part.index_select(2 + d, index)
    return part


def _cat(op: Op, types: Types) -> Spatial | None:
    names = [ref.name for ref in refs(op.arg("tensors"))]
    last = channels_last(types, Ref(op.result.name))
    along = (3, -1) if last else (1, -3)
    if op.arg("dim", 0) not in along or not all(_image(types, Ref(n)) for n in names):
        return None
    accesses = tuple(Access(name) for name in dict.fromkeys(names))
    return Spatial(NHWC if last else NCHW, accesses, partial(plain, op.kind))


def plain(
    kind: str, args: Mapping[str, BoundArg], tile: Tile, starts: Mapping[str, tuple[int, int]]
) -> Tensor:
    """An op that computes a tile from the same tiles of its operands."""
    return _call(kind, args)


def pointwise(op: Op, types: Types, dims: tuple[int, int], run: Compute) -> Spatial | None:
    """The rule of a pointwise op on images with rows and columns ``dims``.

    Operands have the result's rows and columns, or one of them, which then broadcasts.
    """
    out = shape_of(types, Ref(op.result.name))
    if len(out) != 4:
        return None
    accesses = []
    for name in dict.fromkeys(op.operands):
        shape = shape_of(types, Ref(name))
        if len(shape) == 4:
            rows, cols = (SAME if shape[d] == out[d] else ONLY for d in dims)
            accesses.append(Access(name, (rows, cols)))
        elif any(len(shape) >= 4 - d and shape[d - 4] != 1 for d in dims):
            return None
    return Spatial(dims, tuple(accesses), run) if accesses else None


def _mean(op: Op, types: Types) -> Spatial | None:
    given = op.arg("dim")
    shape = shape_of(types, op.arg("self"))
    dims = {n % 4 for n in given if isinstance(n, int)} if isinstance(given, tuple) else set()
    if len(shape) != 4 or dims != {2, 3} or op.arg("dtype") is not None:
        return None
    return _average(op, shape)


def _global_pool(op: Op, types: Types) -> Spatial | None:
    shape = shape_of(types, op.arg("self"))
    if len(shape) != 4 or _pair(op.arg("output_size"), 0) != (1, 1):
        return None
    return _average(op, shape)


def _average(op: Op, shape: tuple[int, ...]) -> Spatial:
    access = Access(next(refs(op.arg("self"))).name)
    count = shape[2] * shape[3]
    return Spatial(NCHW, (access,), _run_sum, reduces=True, finish=lambda total: total / count)


def _run_sum(args: Mapping[str, BoundArg], tile: Tile, starts: Mapping[str, tuple[int, int]]) -> Tensor:
    part: Tensor = args["self"]
    return part.sum(NCHW)


#: The rules of torch's operators besides the pointwise ones.
RULES: dict[str, Rule] = {
    "aten.convolution.default": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.max_pool2d_with_indices.default": _max_pool,
    "aten.max_pool2d.default": _max_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.constant_pad_nd.default": _pad,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.upsample_nearest2d.default": _upsample,
    "aten.cat.default": _cat,
    "aten.mean.dim": _mean,
    "aten.adaptive_avg_pool2d.default": _global_pool,
    "aten._adaptive_avg_pool2d.default": _global_pool,
}
