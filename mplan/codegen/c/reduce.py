"""Reductions: rows are folded by shared kernels into a variable of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mplan.codegen.c.pointwise import copy
from mplan.codegen.c.render import function
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Code, Function, Tensor, argument, each, rows
from mplan.codegen.c.text import CTYPES, literal
from mplan.ir.types import DType


@dataclass(frozen=True, slots=True)
class Fold:
    """``s = combine(s, a)`` over all elements ``a``, from ``start``; ``extra`` are more parameters.

    Elements are ``converted`` to the type of ``s`` first, or used as they are stored.
    """

    name: str
    combine: str
    start: str
    extra: str = ""
    needs: tuple[Function, ...] = ()
    converted: bool = True

    def over(self, variable: str, x: Tensor, dtype: DType, *args: str) -> Code:
        """Declare ``variable`` and fold all of ``x`` into it."""
        head = Code((f"{CTYPES[dtype]} {variable} = {self.start};",))

        def body(row: Tensor) -> Code:
            made = self._function(x.dtype, dtype)
            given = [row.pointer, str(row.strides[0]), str(row.shape[0]), variable, *args]
            return Code((f"{variable} = {made.name}({', '.join(given)});",), (made,))

        return head + rows([x], body)

    def _function(self, stored: DType, dtype: DType) -> Function:
        ctype = CTYPES[dtype]
        types = stored.value if stored is dtype else f"{stored.value}_{dtype.value}"
        return function(
            f"fold_{self.name}_{types}",
            "fold",
            self.needs,
            accumulator=ctype,
            ctype=CTYPES[stored],
            element=ctype if self.converted else CTYPES[stored],
            cast="" if stored is dtype or not self.converted else f"({ctype})",
            extra=self.extra,
            combine=self.combine,
        )


SUM = Fold("sum", "s + a", "0")
SQUARES = Fold("squares", "s + a * a", "0")
DEVIATIONS = Fold("deviations", "s + (a - mean) * (a - mean)", "0", ", float mean")


def reduced(
    y: Tensor, x: Tensor, dims: tuple[int, ...], body: Callable[[Tensor, Tensor], Code]
) -> Code:
    """Loops over the dimensions of ``x`` that stay; ``body`` gets a result and what it depends on.

    ``y`` has no reduced dimensions, or has them with size 1.
    """
    kept = [d for d in range(x.rank) if d not in dims]
    if y.rank == x.rank:
        y = y.permute([*kept, *dims])
        for _ in dims:
            y = y.select(y.rank - 1)
    ordered = x.permute([*kept, *dims])
    return each([y, ordered], 0, lambda *parts: body(*parts).block())


def _fold(site: Site, fold: Fold, finish: str = "s", dtype: DType | None = None) -> Code:
    x, y = site.tensor("self"), site.result
    dims = site.dims("dim", x.rank) if site.op.arg("dim") is not None else tuple(range(x.rank))
    dtype = dtype or y.dtype
    cast = "" if dtype is y.dtype else f"({y.ctype})"

    def body(target: Tensor, part: Tensor) -> Code:
        value = finish.format(n=part.numel)
        value = f"{cast}({value})" if cast else value
        return fold.over("s", part, dtype) + Code((f"{target.element} = {value};",))

    return reduced(y, x, dims, body)


@kernel("aten.sum.dim_IntList", "aten.sum.default")
def sum_(site: Site) -> Code:
    """Sums; integers and truth values add up as int64."""
    return _fold(site, SUM)


@kernel("aten.mean.dim", "aten.mean.default")
def mean(site: Site) -> Code:
    """Means of floats."""
    site.require_float(site.tensor("self"))
    return _fold(site, SUM, "s / {n}.0f")


@kernel("aten.prod.dim_int", "aten.prod.default")
def prod(site: Site) -> Code:
    """Products."""
    return _fold(site, Fold("prod", "s * a", "1"))


@kernel("aten.amax.default", "aten.max.default")
def amax(site: Site) -> Code:
    """Largest elements."""
    return _extreme(site, "larger", ">", low=True)


@kernel("aten.amin.default", "aten.min.default")
def amin(site: Site) -> Code:
    """Smallest elements."""
    return _extreme(site, "smaller", "<", low=False)


def _extreme(site: Site, name: str, sign: str, low: bool) -> Code:
    floats = site.result.dtype.is_float
    if floats:
        start, text = literal(-float("inf") if low else float("inf"), DType.F32), f"{name}(s, a)"
        return _fold(site, Fold(name, text, start, needs=(function(name),)))
    start = "INT64_MIN" if low else "INT64_MAX"
    return _fold(site, Fold(name, f"a {sign} s ? a : s", start), dtype=DType.I64)


@kernel("aten.any.dim", "aten.any.dims", "aten.any.default")
def any_(site: Site) -> Code:
    """Whether an element is not zero."""
    return _fold(site, Fold("any", "s || a != 0", "0", converted=False), dtype=DType.I32)


@kernel("aten.all.dim", "aten.all.dims", "aten.all.default")
def all_(site: Site) -> Code:
    """Whether no element is zero."""
    return _fold(site, Fold("all", "s && a != 0", "1", converted=False), dtype=DType.I32)


@kernel("aten.linalg_vector_norm.default")
def vector_norm(site: Site) -> Code:
    """Euclidean norms."""
    site.require(site.number("ord") == 2, f"of order {site.arg('ord')}")
    site.require_float(site.tensor("self"))
    return _fold(site, SQUARES, "sqrtf(s)")


def moments(x: Tensor) -> Code:
    """Declare ``mean`` and ``spread``, the sum of squared deviations, of all elements of ``x``."""
    average = Code((f"mean /= {x.numel}.0f;",))
    return SUM.over("mean", x, DType.F32) + average + DEVIATIONS.over("spread", x, DType.F32, "mean")


@kernel(
    "aten.var.correction",
    "aten.std.correction",
    "aten.var_mean.correction",
    "aten.var.dim",
    "aten.std.dim",
)
def variance(site: Site) -> Code:
    """Variances or standard deviations in two passes, with the means if they are read."""
    x = site.tensor("self")
    site.require_float(x)
    dims = site.dims("dim", x.rank)
    correction = float(site.number("unbiased") if ".dim" in site.op.kind else _correction(site))
    spread, *rest = site.results()
    means = rest[0] if rest else None

    def write(text: str) -> Callable[[Tensor, Tensor], Code]:
        return lambda y, part: moments(part) + Code((f"{y.element} = {text};",))

    count = 1
    for d in dims:
        count *= x.shape[d]
    text = f"spread / {literal(max(count - correction, 0.0), DType.F32)}"
    text = f"sqrtf({text})" if ".std." in site.op.kind else text
    code = reduced(spread, x, dims, write(text)) if spread else Code()
    return code + (reduced(means, x, dims, write("mean")) if means else Code())


def _correction(site: Site) -> int | float:
    given = site.optional_number("correction")
    return 1 if given is None else given


@kernel("aten.argmax.default", "aten.argmin.default")
def argmax(site: Site) -> Code:
    """Places of the extremes along a dimension, or in the whole tensor."""
    x, y = site.tensor("self"), site.result
    if site.op.arg("dim") is None:
        site.require(x.is_contiguous, "of a whole strided tensor")
        flat = Tensor(x.array, x.dtype, (x.numel,), (1,), x.offset_bytes)
        while y.rank:
            y = y.select(0)
        return _places(flat, 0, None, y, ".argmax." in site.op.kind)
    return _places(x, site.dim("dim", x.rank), None, y, ".argmax." in site.op.kind)


@kernel("aten.max.dim", "aten.min.dim")
def extremes(site: Site) -> Code:
    """The extremes along a dimension and their places."""
    x = site.tensor("self")
    values, places = site.results()
    return _places(x, site.dim("dim", x.rank), values, places, ".max." in site.op.kind)


def _places(x: Tensor, dim: int, values: Tensor | None, places: Tensor | None, largest: bool) -> Code:
    sign, word = (">", "largest") if largest else ("<", "smallest")
    made = function(
        f"place_of_{word}_{x.dtype.value}",
        "argument",
        word=word,
        sign=sign,
        ctype=x.ctype,
        floats=x.dtype.is_float,
    )
    outs = [t and (t.select(dim) if t.rank == x.rank else t) for t in (values, places)]
    row = x.permute([*(d for d in range(x.rank) if d != dim), dim])

    def body(part: Tensor, value: Tensor | None, place: Tensor | None) -> Code:
        args = ", ".join(argument(a) for a in (part, part.strides[0], part.shape[0]))
        lines = [f"const int32_t best = {made.name}({args});"]
        if value:
            lines.append(f"{value.element} = {part.moved('best', part.strides[0]).element};")
        if place:
            lines.append(f"{place.element} = best;")
        return Code(tuple(lines), (made,)).block()

    return each([row, *outs], 1, body)


@kernel("aten.cumsum.default")
def cumsum(site: Site) -> Code:
    """Running sums along a dimension."""
    x, y = site.tensor("self"), site.result
    if not x.rank:
        return copy(y, x)
    dim = site.dim("dim", x.rank)
    order = [*(d for d in range(x.rank) if d != dim), dim]
    made = function(
        f"cumsum_{x.dtype.value}_{y.dtype.value}",
        "cumsum",
        ctype=x.ctype,
        result=y.ctype,
        cast="" if x.dtype is y.dtype else f"({y.ctype})",
    )

    def body(target: Tensor, part: Tensor) -> Code:
        args = (part, part.strides[0], target, target.strides[0], part.shape[0])
        return Code((f"{made.name}({', '.join(argument(a) for a in args)});",), (made,))

    return each([y.permute(order), x.permute(order)], 1, body)
