"""Ops that move data or make constants: cat, pad, slices, repeat, flip, fill, arange."""

from __future__ import annotations

from mplan.codegen.c.pointwise import copy, fill
from mplan.codegen.c.render import function
from mplan.codegen.c.table import Number, Site, kernel
from mplan.codegen.c.tensors import Code, Tensor, invoke
from mplan.codegen.c.text import CTYPES, literal
from mplan.ir.types import DType


@kernel("aten.cat.default")
def cat(site: Site) -> Code:
    """The operands one after the other."""
    refs, y = site.arg("tensors"), site.result
    dim = site.dim("dim", y.rank)
    code, at = Code(), 0
    for ref in refs if isinstance(refs, tuple) else ():
        x = site.place(ref)
        if x is None or x.shape == (0,):  # PyTorch ignores an empty vector whatever its rank
            continue
        code += copy(y.narrow(dim, at, x.shape[dim]), x)
        at += x.shape[dim]
    return code


@kernel("aten.stack.default")
def stack(site: Site) -> Code:
    """The operands along a new dimension."""
    refs, y = site.arg("tensors"), site.result
    dim = site.dim("dim", y.rank)
    code = Code()
    for place, ref in enumerate(refs if isinstance(refs, tuple) else ()):
        x = site.place(ref)
        assert x is not None
        code += copy(y.select(dim, place), x)
    return code


@kernel("aten.constant_pad_nd.default")
def pad(site: Site) -> Code:
    """A border around the operand, or a part of it where a width is negative."""
    x, y = site.tensor("self"), site.result
    widths = site.integers("pad")
    inner, source = y, x
    for pair in range(len(widths) // 2):
        dim = x.rank - 1 - pair
        before, after = widths[2 * pair : 2 * pair + 2]
        length = x.shape[dim] + min(before, 0) + min(after, 0)
        source = source.narrow(dim, max(-before, 0), length)
        inner = inner.narrow(dim, max(before, 0), length)
    return fill(y, site.number("value")) + copy(inner, source)


@kernel("aten.slice_scatter.default")
def slice_scatter(site: Site) -> Code:
    """The operand with ``src`` written over a slice."""
    x, y = site.tensor("self"), site.result
    dim = site.dim("dim", y.rank)
    size, step = y.shape[dim], site.integer("step")
    start = 0 if site.arg("start") is None else site.integer("start")
    start = min(max(start + size if start < 0 else start, 0), size)
    src = site.tensor("src")
    return copy(y, x) + copy(y.narrow(dim, start, src.shape[dim], step), src)


@kernel("aten.select_scatter.default")
def select_scatter(site: Site) -> Code:
    """The operand with ``src`` written over one position of a dimension."""
    y = site.result
    dim = site.dim("dim", y.rank)
    place = site.integer("index") % y.shape[dim]
    return copy(y, site.tensor("self")) + copy(y.select(dim, place), site.tensor("src"))


@kernel("aten.repeat.default")
def repeat(site: Site) -> Code:
    """Copies of the operand along every dimension."""
    x, y = site.tensor("self"), site.result
    times = site.integers("repeats")
    x = x.expand((1,) * (len(times) - x.rank) + x.shape)
    shape = tuple(n for pair in zip(times, x.shape, strict=True) for n in pair)
    tiled = y
    for dim in reversed(range(y.rank)):
        tiled = tiled.unflatten(dim, (times[dim], x.shape[dim]))
    for dim in range(x.rank):
        x = x.unflatten(2 * dim, (1, x.shape[2 * dim]))
    return copy(tiled, x.expand(shape))


@kernel("aten.flip.default")
def flip(site: Site) -> Code:
    """The operand with the order of some dimensions reversed."""
    x = site.tensor("self")
    for dim in site.integers("dims"):
        size = x.shape[dim % x.rank]
        x = x.narrow(dim % x.rank, size - 1, size, -1)
    return copy(site.result, x)


@kernel("aten.full.default", "aten.full_like.default")
def full(site: Site) -> Code:
    """One number everywhere."""
    return fill(site.result, site.number("fill_value"))


@kernel("aten.fill.Scalar")
def filled(site: Site) -> Code:
    """One number in the shape of the operand."""
    return fill(site.result, site.number("value"))


@kernel("aten.scalar_tensor.default")
def scalar_tensor(site: Site) -> Code:
    """A number as a tensor."""
    return fill(site.result, site.number("s"))


@kernel("aten.zeros.default", "aten.zeros_like.default")
def zeros(site: Site) -> Code:
    """Zeros."""
    return fill(site.result, 0)


@kernel("aten.ones.default", "aten.ones_like.default")
def ones(site: Site) -> Code:
    """Ones."""
    return fill(site.result, 1)


@kernel("aten.empty.memory_format", "aten.empty_like.default")
def empty(site: Site) -> Code:
    """Nothing to do: the contents are undefined."""
    return Code()


@kernel("aten.arange.start_step", "aten.arange.start", "aten.arange.default")
def arange(site: Site) -> Code:
    """An arithmetic sequence."""
    y = site.result
    start: Number = site.number("start") if ".start" in site.op.kind else 0
    step: Number = site.number("step") if "_step" in site.op.kind else 1
    site.require(y.dtype in (DType.F32, DType.I64, DType.I32), f"of {y.dtype.torch_name}")
    return _sequence(y, start, step)


def _sequence(y: Tensor, start: Number, step: Number) -> Code:
    ctype = CTYPES[y.dtype]
    cast = "" if y.dtype is DType.I32 else f"({ctype})"
    made = function(f"arange_{y.dtype.value}", "arange", ctype=ctype, value=f"start + {cast}i * step")
    first, by = literal(start, y.dtype), literal(step, y.dtype)
    return invoke(made, y, y.strides[0], first, by, y.shape[0])
