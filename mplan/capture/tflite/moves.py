"""Rules of TFLite's operators that move numbers."""

from __future__ import annotations

from math import prod

from mplan.capture.tflite.model import TfOp, TfTensor
from mplan.capture.tflite.reader import Reader, Unreadable, activation_of, constant_of, integers
from mplan.capture.tflite.table import operand, rule
from mplan.ir.bilinear import tflite_places
from mplan.ir.graph import Arg, Ref


@rule("RESIZE_NEAREST_NEIGHBOR")
def _resize(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    reader.same_affine(x, y)
    reader.emit(
        "mplan.resize_nearest2d",
        {
            "input": reader.ref(x),
            "size": integers(operand(op, 1), "the size"),
            "align_corners": bool(op.options.AlignCorners()),
            "half_pixel_centers": bool(op.options.HalfPixelCenters()),
        },
        y,
    )


@rule("RESIZE_BILINEAR")
def _bilinear(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    reader.same_affine(x, y)
    how = bool(op.options.AlignCorners()), bool(op.options.HalfPixelCenters())
    wanted = integers(operand(op, 1), "the size")
    rows, columns = (
        tflite_places(length, n, *how) for length, n in zip(x.shape[1:3], wanted, strict=True)
    )
    reader.emit(
        "mplan.resize_bilinear2d", {"input": reader.ref(x), "rows": rows, "columns": columns}, y
    )


@rule("PAD", "PADV2")
def _pad(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    fill = reader.same_affine(x, y).zero_point
    if op.name == "PADV2":
        fill = int(constant_of(operand(op, 2), "the value").reshape(-1)[0])
    pairs = constant_of(operand(op, 1), "the padding").reshape(-1, 2)
    pads = tuple(int(n) for pair in reversed(pairs) for n in pair)
    args: dict[str, Arg] = {"self": reader.ref(x), "pad": pads, "value": fill}
    reader.emit("aten.constant_pad_nd.default", args, y)


@rule("CONCATENATION")
def _concatenation(reader: Reader, op: TfOp) -> None:
    parts, (y,) = [operand(op, i) for i in range(len(op.inputs))], op.outputs
    reader.same_affine(y, *parts)
    if activation_of(op) != "NONE":
        raise Unreadable("a fused activation is not supported")
    refs = tuple(reader.ref(t) for t in parts)
    reader.emit("aten.cat.default", {"tensors": refs, "dim": op.options.Axis()}, y)


@rule("PACK")
def _pack(reader: Reader, op: TfOp) -> None:
    parts, (y,) = [operand(op, i) for i in range(len(op.inputs))], op.outputs
    axis = op.options.Axis() % len(y.shape)
    shape = (*y.shape[:axis], 1, *y.shape[axis + 1 :])
    refs = tuple(view(reader, t, shape, y) for t in parts)
    reader.emit("aten.cat.default", {"tensors": refs, "dim": axis}, y)


@rule("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def _reshape(reader: Reader, op: TfOp) -> None:
    (y,) = op.outputs
    view(reader, operand(op, 0), y.shape, y, final=True)


def view(
    reader: Reader, tensor: TfTensor, shape: tuple[int, ...], target: TfTensor, final: bool = False
) -> Ref:
    """The elements of ``tensor``, which lie densely, in another shape."""
    ref = reader.ref(tensor)
    args: dict[str, Arg] = {"self": ref, "size": shape}
    return reader.emit("aten.view.default", args, target, view_of=ref.name, final=final)


@rule("TRANSPOSE")
def _transpose(reader: Reader, op: TfOp) -> None:
    ref, (y,) = reader.ref(operand(op, 0)), op.outputs
    dims = integers(operand(op, 1), "the permutation")
    args: dict[str, Arg] = {"self": ref, "dims": dims}
    view = reader.emit("aten.permute.default", args, y, view_of=ref.name, final=False)
    _dense(reader, view, y)


def _dense(reader: Reader, view: Arg, target: TfTensor) -> None:
    """A copy whose elements lie densely, as all TFLite tensors do."""
    args: dict[str, Arg] = {"self": view, "memory_format": "contiguous_format"}
    reader.emit("aten.clone.default", args, target)


@rule("SLICE")
def _slice(reader: Reader, op: TfOp) -> None:
    x, (y,) = operand(op, 0), op.outputs
    begin = integers(operand(op, 1), "the begin")
    sizes = integers(operand(op, 2), "the size")
    ends = (n if size < 0 else b + size for n, b, size in zip(x.shape, begin, sizes, strict=True))
    _cut(reader, x, tuple((b, e, 1) for b, e in zip(begin, ends, strict=True)), y)


@rule("STRIDED_SLICE")
def _strided_slice(reader: Reader, op: TfOp) -> None:
    x, (y,), options = operand(op, 0), op.outputs, op.options
    if options.EllipsisMask() or options.NewAxisMask():
        raise Unreadable("ellipses and new axes are not supported")
    if options.Offset():
        raise Unreadable("an end that counts from the begin is not supported")
    lists = [integers(operand(op, i), "the range") for i in (1, 2, 3)]
    cuts = []
    for d, (begin, end, step) in enumerate(zip(*lists, strict=True)):
        first, last, _ = slice(
            None if options.BeginMask() >> d & 1 else begin,
            None if options.EndMask() >> d & 1 else end,
        ).indices(x.shape[d])
        if step <= 0:
            raise Unreadable("a step must be positive")
        cuts.append((first, first + 1 if options.ShrinkAxisMask() >> d & 1 else last, step))
    cuts += [(0, n, 1) for n in x.shape[len(cuts) :]]
    _cut(reader, x, tuple(cuts), y)


@rule("SPLIT")
def _split(reader: Reader, op: TfOp) -> None:
    x, parts = operand(op, 1), op.outputs
    axis = integers(operand(op, 0), "the axis")[0] % len(x.shape)
    size = x.shape[axis] // len(parts)
    for i, part in enumerate(parts):
        whole = [(0, n, 1) for n in x.shape]
        whole[axis] = i * size, (i + 1) * size, 1
        _cut(reader, x, tuple(whole), part)


def _cut(reader: Reader, x: TfTensor, cuts: tuple[tuple[int, int, int], ...], target: TfTensor) -> None:
    """``x[first:end:step, …]`` as a dense tensor of the target's shape."""
    ref = reader.ref(x)
    strides = [prod(x.shape[d + 1 :]) for d in range(len(x.shape))]
    for d, (first, end, step) in enumerate(cuts):
        if (first, end, step) == (0, x.shape[d], 1):
            continue
        args: dict[str, Arg] = {"self": ref, "dim": d, "start": first, "end": end, "step": step}
        offset = first * strides[d]
        kind = "aten.slice.Tensor"
        ref = reader.emit(kind, args, target, view_of=ref.name, offset_bytes=offset, final=False)
    shape = tuple(len(range(*cut)) for cut in cuts)
    if shape == target.shape:
        _dense(reader, ref, target)
        return
    args = {"self": ref, "memory_format": "contiguous_format"}
    ref = reader.emit("aten.clone.default", args, target, final=False)
    size: dict[str, Arg] = {"self": ref, "size": target.shape}
    reader.emit("aten.view.default", size, target, view_of=ref.name)
