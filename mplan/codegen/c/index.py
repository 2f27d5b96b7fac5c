"""Ops that follow indices held in tensors: embedding, index, gather, scatter.

An index out of range reads or writes element 0 and makes the run return a nonzero status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mplan.codegen.c.pointwise import copy, fill
from mplan.codegen.c.render import function
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Code, Tensor, each
from mplan.ir.types import DType


@kernel("aten.embedding.default")
def embedding(site: Site) -> Code:
    """Rows of the weight."""
    return _take(site, site.tensor("weight"), {0: site.tensor("indices")}, 0)


@kernel("aten.index_select.default")
def index_select(site: Site) -> Code:
    """Positions of one dimension."""
    x, index = site.tensor("self"), site.tensor("index")
    dim = site.dim("dim", x.rank)
    return _take(site, x, {dim: index.expand(index.shape or (1,))}, dim)


@kernel("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(site: Site) -> Code:
    """Elements at broadcast indices of some dimensions."""
    indices = _indices(site)
    return _take(site, site.tensor("self"), indices, _place_of(indices))


@kernel("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(site: Site) -> Code:
    """The operand with ``values`` written at broadcast indices."""
    site.require(not site.arg("accumulate"), "that accumulates")
    x, y, values = site.tensor("self"), site.result, site.tensor("values")
    indices = _indices(site)
    lead = _broadcast(list(indices.values()))
    rest = tuple(n for d, n in enumerate(x.shape) if d not in indices)
    first = _place_of(indices)
    wide = values.expand((*rest[:first], *lead, *rest[first:]))
    return copy(y, x) + _visit(y, wide, indices, first, write=True)


@kernel("aten.gather.default")
def gather(site: Site) -> Code:
    """An element along a dimension for every index."""
    return _along(site, site.tensor("self"), site.result, write=False)


@kernel("aten.scatter.src", "aten.scatter.value")
def scatter(site: Site) -> Code:
    """The operand with an element written along a dimension for every index."""
    x, y, index = site.tensor("self"), site.result, site.tensor("index")
    if site.op.kind.endswith("value"):
        return copy(y, x) + _along(site, y, None, write=True)
    src = site.tensor("src")
    for dim, size in enumerate(index.shape):
        src = src.narrow(dim, 0, size)
    return copy(y, x) + _along(site, y, src, write=True)


def _indices(site: Site) -> dict[int, Tensor]:
    """The index tensors by dimension."""
    given = site.arg("indices")
    found = {}
    for dim, item in enumerate(given if isinstance(given, tuple) else ()):
        tensor = site.place(item)
        if tensor:
            site.require(tensor.dtype not in (DType.BOOL, DType.U8), "with a mask")
            found[dim] = tensor
    return found


def _place_of(indices: Mapping[int, Tensor]) -> int:
    """Where the indices' dimensions stand in the result: in their place if adjacent, else first."""
    dims = sorted(indices)
    return dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0


def _broadcast(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    rank = max(t.rank for t in tensors)
    shapes = [(1,) * (rank - t.rank) + t.shape for t in tensors]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))


def _take(site: Site, x: Tensor, indices: Mapping[int, Tensor], first: int) -> Code:
    return _visit(x, site.result, indices, first, write=False)


def _visit(x: Tensor, y: Tensor, indices: Mapping[int, Tensor], first: int, write: bool) -> Code:
    """Copy between the elements of ``x`` at ``indices`` and ``y``.

    ``y`` has the indices' broadcast dimensions from ``first`` on, around them those of ``x`` that are
    not indexed.
    """
    lead = _broadcast(list(indices.values()))
    span = range(first, first + len(lead))
    rest = [d for d in range(x.rank) if d not in indices]
    ordered = y.permute([*span, *(d for d in range(y.rank) if d not in span)])
    wide = [t.expand(lead) for t in indices.values()]
    made = function("place")

    def body(part: Tensor, *places: Tensor) -> Code:
        source, lines = x, []
        for dim, place in zip(indices, places, strict=True):
            name = f"at{dim}"
            lines.append(f"const int32_t {name} = place({place.element}, {x.shape[dim]}, &status);")
            source = source.moved(name, x.strides[dim])
        source = source.permute(rest)
        moved = copy(source, part) if write else copy(part, source)
        return (Code(tuple(lines), (made,)) + moved).block()

    return each([ordered, *wide], len(rest), body)


def _along(site: Site, x: Tensor, y: Tensor | None, write: bool) -> Code:
    """Copy between ``x`` at an index along a dimension and ``y``; a number if ``y`` is None."""
    index = site.tensor("index")
    dim = site.dim("dim", x.rank)
    lines = x
    for d, size in enumerate(index.shape):
        lines = lines.narrow(d, 0, size if d != dim else 1)
    lines = lines.expand(index.shape)
    made = function("place")

    def body(place: Tensor, line: Tensor, other: Tensor | None) -> Code:
        text = f"const int32_t at = place({place.element}, {x.shape[dim]}, &status);"
        spot = line.moved("at", x.strides[dim])
        if other is None:
            moved = fill(spot, site.number("value"))
        else:
            moved = copy(spot, other) if write else copy(other, spot)
        return (Code((text,), (made,)) + moved).block()

    return each([index, lines, y], 0, body)
