"""Kernels of the quantised ops: plain C, integers only, the bytes of the reference.

All layers of a kind share one function, whose sizes and integers come in a constant struct.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mplan.codegen.c.images import image_of
from mplan.codegen.c.quantized_window import dense as dense_layer
from mplan.codegen.c.quantized_window import high_mul_small, is_full, rescale, result_range, store
from mplan.codegen.c.render import function
from mplan.codegen.c.rows import LARGEST, Row
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Code, Function, Tensor, each, invoke, rows
from mplan.codegen.c.text import literal
from mplan.ir import fixed_point
from mplan.ir.quantized_reference import nearest_indices
from mplan.ir.types import DType, contiguous_strides


def _sizes_t() -> Function:
    return function("q8_sizes_t")


def _pointwise_t() -> Function:
    return function("q8_pointwise_t")


def _require_dense(site: Site, *tensors: Tensor) -> None:
    for tensor in tensors:
        site.require(tensor.is_contiguous, "of a strided tensor")


def _sizes(x: Tensor, y: Tensor) -> dict[str, int]:
    names = ("in_h", "in_w", "in_c", "out_h", "out_w", "out_c")
    return dict(zip(names, (*x.shape[1:], *y.shape[1:]), strict=True))


@kernel("mplan.qlinear")
def linear(site: Site) -> Code:
    """A fully connected layer: its rows are the pixels of an image one row high."""
    x, y = site.tensor("input"), site.result
    _require_dense(site, x, y)
    depth = x.shape[-1]
    count = x.numel // depth
    site.require(count <= LARGEST, f"with more than {LARGEST:,} rows")
    sizes = (1, count, depth)
    image = replace(x, shape=sizes, strides=contiguous_strides(sizes))
    made = dense_layer(Row(site, {"input": "&image"}, y.pointer, "0", "0", str(count)))
    return (image_of(image) + made).block()


@kernel("mplan.qmatmul")
def matmul(site: Site) -> Code:
    """A product of matrices, for each of the batch."""
    a, b, y = site.tensor("input"), site.tensor("other"), site.result
    a, b = (t.expand((*y.shape[:-2], *t.shape[-2:])) for t in (a, b))
    struct = function("q8_matmul_t")
    made = function("qmatmul", needs=(struct, rescale(), store()))

    def body(target: Tensor, left: Tensor, right: Tensor) -> Code:
        fields = {
            "rows": target.shape[0],
            "columns": target.shape[1],
            "depth": left.shape[1],
            **dict(zip(("a_row", "a_column"), left.strides, strict=True)),
            **dict(zip(("b_row", "b_column"), right.strides, strict=True)),
            **dict(zip(("y_row", "y_column"), target.strides, strict=True)),
            **_integers(site, a_zero="input_zero_point", b_zero="other_zero_point"),
        }
        return invoke_with(made, struct, fields, left, right, target)

    return each([y, a, b], 2, body)


def _integers(site: Site, **fields: str) -> dict[str, int]:
    """Integer arguments as fields of a struct, with those of the result."""
    return {
        **{field: site.integer(name) for field, name in fields.items()},
        "multiplier": site.integer("multiplier"),
        "shift": site.integer("shift"),
        **result_range(site, site.integer("output_zero_point")),
    }


@kernel("mplan.qadd", "mplan.qsub")
def summed(site: Site) -> Code:
    """A sum or a difference."""
    name = site.op.kind.removeprefix("mplan.")
    operator = "+" if name == "qadd" else "-"
    made = function(name, "qsum", (_pointwise_t(), rescale(), store()), operator=operator)
    first, second = _operands(site)
    parts = ("zero_point", "multiplier", "shift")
    names = {"a": first, "b": second}
    given = {f"{k}_{p.split('_')[0]}": f"{n}_{p}" for k, n in names.items() for p in parts}
    fields = _integers(site, **given)
    shifts = [site.integer(f"{n}_shift") for n in (first, second)]
    if max(*shifts, 1 + site.integer("shift")) > 0 or site.integer("shift") < -30:
        return _binary(site, made, fields)
    half, full = _halves(site, first), is_full(site)
    flags = f"{'_half' if half else ''}{'_full' if full else ''}"
    head = (_pointwise_t(), high_mul_small(), *(() if full else (store(),)))
    view = {"operator": operator, "half": half, "full": full}
    dense = function(f"{name}_dense{flags}", "qsum_dense", head, **view)
    return _binary(site, made, fields, dense, (first, second))


def _operands(site: Site) -> tuple[str, str]:
    """The operands of a sum; one whose factor is a half comes first where the order does not matter."""
    swapped = site.op.kind == "mplan.qadd" and not _halves(site, "input") and _halves(site, "other")
    return ("other", "input") if swapped else ("input", "other")


def _halves(site: Site, name: str) -> bool:
    """Whether the factor of operand ``name`` is a half: where it has the larger scale of both."""
    return (site.integer(f"{name}_multiplier"), site.integer(f"{name}_shift")) == (1 << 30, 0)


@kernel("mplan.qmul")
def multiplied(site: Site) -> Code:
    """A product, element by element."""
    made = function("qmul", needs=(_pointwise_t(), rescale(), store()))
    return _binary(site, made, _integers(site, a_zero="input_zero_point", b_zero="other_zero_point"))


@kernel("mplan.qprelu")
def sloped(site: Site) -> Code:
    """A PReLU: slopes are as qmul's second operand."""
    made = function("qprelu", needs=(_pointwise_t(), rescale(), store()))
    names = {"a_zero": "input_zero_point", "b_zero": "other_zero_point"}
    factors = {"a_multiplier": "input_multiplier", "a_shift": "input_shift"}
    return _binary(site, made, _integers(site, **names, **factors))


def _binary(
    site: Site,
    made: Function,
    fields: dict[str, int],
    dense: Function | None = None,
    operands: tuple[str, str] = ("input", "other"),
) -> Code:
    """``made`` along rows of two operands, or ``dense`` where all steps are 1."""
    y = site.result
    a, b = (site.tensor(name).expand(y.shape) for name in operands)

    def body(target: Tensor, left: Tensor, right: Tensor) -> Code:
        if dense and all(t.strides[0] == 1 for t in (left, right, target)):
            return invoke_with(dense, _pointwise_t(), fields, left, right, target, target.shape[0])
        pairs = [part for t in (left, right, target) for part in (t, t.strides[0])]
        return invoke_with(made, _pointwise_t(), fields, *pairs, target.shape[0])

    return rows([y, a, b], body)


def _unary(site: Site, made: Function, *args: object) -> Code:
    """``made(x, x_step, y, y_step, n, args…)`` row by row."""

    def body(target: Tensor, source: Tensor) -> Code:
        steps = (source, source.strides[0], target, target.strides[0], target.shape[0])
        return invoke(made, *steps, *args)

    return rows([site.result, site.tensor("input")], body)


@kernel("mplan.requantize")
def requantize(site: Site) -> Code:
    """Another scale and zero point."""
    made = function("requantize", needs=(_pointwise_t(), rescale(), store()))
    fields = _integers(site, a_zero="input_zero_point")

    def body(target: Tensor, source: Tensor) -> Code:
        steps = (source, source.strides[0], target, target.strides[0], target.shape[0])
        return invoke_with(made, _pointwise_t(), fields, *steps)

    return rows([site.result, site.tensor("input")], body)


@kernel("mplan.qtable")
def table(site: Site) -> Code:
    """A function by its table."""
    return _unary(site, function("qtable"), site.tensor("table"))


@kernel("mplan.quantize", "mplan.dequantize")
def converted(site: Site) -> Code:
    """Between float32 and int8."""
    name = site.op.kind.removeprefix("mplan.")
    made = function(name, needs=(store(),) if name == "quantize" else ())
    scale = literal(float(site.number("scale")), DType.F32)
    return _unary(site, made, scale, site.integer("zero_point"))


@kernel("mplan.qmean")
def mean(site: Site) -> Code:
    """A mean over up to three dimensions, element by element of the result."""
    x, y = site.tensor("input"), site.result
    reduced = site.dims("dim", x.rank)
    site.require(len(reduced) <= 3, f"over {len(reduced)} dimensions")
    kept = [d for d in range(x.rank) if d not in reduced]
    if y.rank == x.rank:
        y = y.permute(kept)
    source = x.permute([*kept, *reduced])
    target = Tensor(y.array, y.dtype, source.shape, (*y.strides, *(0 for _ in reduced)), y.offset_bytes)
    struct = function("q8_mean_t")
    made = function("qmean", needs=(struct, rescale(), store()))

    def body(element: Tensor, part: Tensor) -> Code:
        pad = 3 - part.rank
        sizes, strides = (1,) * pad + part.shape, (0,) * pad + part.strides
        fields = {
            **dict(zip(("n0", "n1", "n2"), sizes, strict=True)),
            **dict(zip(("s0", "s1", "s2"), strides, strict=True)),
            "x_zero": site.integer("input_zero_point"),
            "multiplier": site.integer("multiplier"),
            "shift": site.integer("shift"),
            "y_zero": site.integer("output_zero_point"),
        }
        return invoke_with(made, struct, fields, part, element)

    return each([target, source], len(reduced), body)


@kernel("mplan.qsoftmax")
def softmax(site: Site) -> Code:
    """A softmax over the last dimension."""
    made = function("qsoftmax", needs=(rescale(), store(), *_exponential()))
    factors = (site.integer(name) for name in ("multiplier", "shift", "diff_min"))

    def body(target: Tensor, source: Tensor, *, integers: tuple[int, ...]) -> Code:
        steps = (source, source.strides[0], target, target.strides[0], target.shape[0])
        return invoke(made, *steps, *integers)

    return each([site.result, site.tensor("input")], 1, partial(body, integers=tuple(factors)))


def _exponential() -> tuple[Function, ...]:
    """Exponentials and reciprocals in fixed point."""
    multiply, saturate = function("high_mul", small=False), function("saturating_shift")
    exponential = function(
        "exp_of_negative",
        needs=(multiply, function("rounding_shift")),
        factors=fixed_point.EXP_FACTORS,
        eighth=fixed_point.EXP_OF_MINUS_EIGHTH,
        third=fixed_point.THIRD,
    )
    reciprocal = function(
        "reciprocal_of_one_plus",
        needs=(multiply, saturate),
        start=fixed_point.RECIPROCAL_START,
        slope=fixed_point.RECIPROCAL_SLOPE,
    )
    return exponential, reciprocal


@kernel("mplan.resize_nearest2d")
def resize(site: Site) -> Code:
    """Pixels from the nearest ones, by their indices."""
    x, y = site.tensor("input"), site.result
    _require_dense(site, x, y)
    site.require(max(x.shape[1:3]) <= LARGEST, f"with more than {LARGEST:,} rows or columns")
    mode = bool(site.arg("align_corners")), bool(site.arg("half_pixel_centers"))
    lines = []
    for name, d in (("from_rows", 1), ("from_columns", 2)):
        picked = ", ".join(map(str, nearest_indices(x.shape[d], y.shape[d], *mode)))
        lines.append(f"static const int16_t {name}[{y.shape[d]}] = {{{picked}}};")
    made = function("resize_nearest2d", needs=(_sizes_t(),))

    def body(target: Tensor, image: Tensor) -> Code:
        indices = ("from_rows", "from_columns")
        return invoke_with(made, _sizes_t(), _sizes(x, y), image, *indices, target)

    return (Code(tuple(lines)) + each([y, x], 3, body)).block()
