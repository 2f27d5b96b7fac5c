"""Tensors as C sees them, and loops over them.

A ``Tensor`` is an address with shape and strides. ``each`` writes the loops over leading dimensions
with the sizes and strides of the step as literals, merged as far as they lie densely in all
operands; what remains inside is one call of a shared row or plane kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from mplan.codegen.c.text import CTYPES, call
from mplan.ir.types import DType, contiguous_strides


@dataclass(frozen=True, slots=True)
class Function:
    """A static C function (or type): its name, its text and what must stand before it."""

    name: str
    text: str
    needs: tuple[Function, ...] = ()


@dataclass(frozen=True, slots=True)
class Code:
    """Statements and the functions that they call."""

    lines: tuple[str, ...] = ()
    functions: tuple[Function, ...] = ()

    def __add__(self, other: Code) -> Code:
        """First this, then ``other``."""
        return Code(self.lines + other.lines, self.functions + other.functions)

    def block(self, head: str = "") -> Code:
        """These statements inside ``head { … }``; the braces of a single block are not doubled."""
        if self.lines[:1] == ("{",) and "}" not in self.lines[:-1]:
            return Code((f"{head} {{".lstrip(), *self.lines[1:]), self.functions)
        inner = (f"    {line}" if line else "" for line in self.lines)
        return Code((f"{head} {{".lstrip(), *inner, "}"), self.functions)


def invoke(function: Function, *args: object) -> Code:
    """A call of ``function``; tensors are passed as pointers, an absent one as NULL."""
    return Code(tuple(call(function.name, [argument(a) for a in args])), (function,))


def argument(arg: object) -> str:
    """The text of an argument: a tensor's pointer, ``0`` for None, anything else as it prints."""
    if arg is None:
        return "0"
    return arg.pointer if isinstance(arg, Tensor) else str(arg)


@dataclass(frozen=True, slots=True)
class Array:
    """Where a tensor's bytes are: an array of its own, or ``macro(type, byte offset)``.

    ``is_pointer`` says that the name is a variable: the address is no constant.
    """

    name: str
    is_macro: bool = False
    is_pointer: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided tensor whose first element lies ``offset_bytes`` into an array.

    Strides are in elements and may be 0 (broadcast) or negative (reversed). ``index`` are terms that
    loops around have added to the address.
    """

    array: Array
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset_bytes: int = 0
    index: tuple[str, ...] = ()

    @classmethod
    def dense(cls, name: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        """A row-major tensor that fills the C array ``name``."""
        return cls(Array(name), dtype, shape, contiguous_strides(shape))

    @property
    def ctype(self) -> str:
        """The C type of an element."""
        return CTYPES[self.dtype]

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def pointer(self) -> str:
        """The address of the first element, of type ``ctype *``."""
        if self.array.is_macro:
            terms = [f"{self.array.name}({self.ctype}, {self.offset_bytes})"]
        else:
            elements = self.offset_bytes // self.dtype.itemsize
            terms = [self.array.name, *([str(elements)] if elements else [])]
        return " + ".join([*terms, *self.index])

    @property
    def element(self) -> str:
        """The first element as an lvalue."""
        simple = not self.index and (self.array.is_macro or not self.offset_bytes)
        return f"*{self.pointer}" if simple else f"*({self.pointer})"

    @property
    def is_contiguous(self) -> bool:
        """Whether elements lie densely in row-major order."""
        dense = contiguous_strides(self.shape)
        pairs = zip(self.shape, self.strides, dense, strict=True)
        return self.numel == 0 or all(n == 1 or s == d for n, s, d in pairs)

    def same_bytes(self, other: Tensor) -> bool:
        """Whether the elements of both lie at the same addresses in the same order."""
        here = (self.array, self.offset_bytes, self.index, self.dtype, self.shape, self.strides)
        there = (other.array, other.offset_bytes, other.index, other.dtype, other.shape)
        return here == (*there, other.strides)

    def expand(self, shape: Sequence[int]) -> Tensor:
        """This tensor broadcast to ``shape``."""
        lead = len(shape) - self.rank
        strides = [0] * lead
        for size, target, stride in zip(self.shape, shape[lead:], self.strides, strict=True):
            strides.append(stride if size == target else 0)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def permute(self, dims: Sequence[int]) -> Tensor:
        """The dimensions in the order ``dims``."""
        shape = tuple(self.shape[d] for d in dims)
        return replace(self, shape=shape, strides=tuple(self.strides[d] for d in dims))

    def narrow(self, dim: int, start: int, length: int, step: int = 1) -> Tensor:
        """Positions ``start, start + step, …`` (``length`` of them) of dimension ``dim``."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset_bytes + start * strides[dim] * self.dtype.itemsize
        shape[dim], strides[dim] = length, strides[dim] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset_bytes=offset)

    def select(self, dim: int, term: str | int = 0) -> Tensor:
        """Position ``term`` (a number or a C variable) of dimension ``dim``, which is dropped."""
        if isinstance(term, int):
            moved = self.narrow(dim, term, 1)
        else:
            moved = self.moved(term, self.strides[dim])
        keep = [d for d in range(self.rank) if d != dim]
        return moved.permute(keep)

    def moved(self, variable: str, stride: int) -> Tensor:
        """The address advanced by ``variable * stride`` elements."""
        if stride == 0:
            return self
        factor = "" if stride == 1 else f"{stride} * "
        return replace(self, index=(*self.index, f"{factor}{variable}"))

    def merge(self, dim: int) -> Tensor | None:
        """Dimensions ``dim`` and ``dim + 1`` as one, or None where they do not lie densely."""
        outer, inner = self.strides[dim : dim + 2]
        rows, columns = self.shape[dim : dim + 2]
        if rows != 1 and columns != 1 and outer != inner * columns:
            return None
        stride = outer if columns == 1 else inner
        shape = (*self.shape[:dim], rows * columns, *self.shape[dim + 2 :])
        strides = (*self.strides[:dim], stride, *self.strides[dim + 2 :])
        return replace(self, shape=shape, strides=strides)

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Tensor:
        """Dimension ``dim`` split into ``sizes``, whose product is its size."""
        shape, strides = list(self.shape), list(self.strides)
        inner = [step * strides[dim] for step in contiguous_strides(tuple(sizes))]
        shape[dim : dim + 1], strides[dim : dim + 1] = sizes, inner
        return replace(self, shape=tuple(shape), strides=tuple(strides))


Body = Callable[..., Code]
_VARIABLE = re.compile(r"\bi(\d+)\b")


def merged(tensors: Sequence[Tensor | None], lead: int) -> list[Tensor | None]:
    """The tensors with their first ``lead`` dimensions, equal in all, merged where all are dense."""
    present = [t for t in tensors if t is not None]
    groups: list[list[int]] = []
    for d in range(lead):
        if _first(tensors).shape[d] == 1:
            continue
        if groups and all(t.strides[groups[-1][-1]] == t.strides[d] * t.shape[d] for t in present):
            groups[-1].append(d)
        else:
            groups.append([d])
    return [t and _grouped(t, groups, lead) for t in tensors]


def _grouped(tensor: Tensor, groups: list[list[int]], lead: int) -> Tensor:
    shape = [prod(tensor.shape[d] for d in group) for group in groups]
    strides = [tensor.strides[group[-1]] for group in groups]
    shape += tensor.shape[lead:]
    strides += tensor.strides[lead:]
    return replace(tensor, shape=tuple(shape), strides=tuple(strides))


def each(tensors: Sequence[Tensor | None], keep: int, body: Body) -> Code:
    """Loops over all but the last ``keep`` dimensions of the first tensor.

    All tensors start with these dimensions; ``body`` gets what is left of them. A loop's variable is
    ``i`` with a number that no tensor's address has yet.
    """
    views = merged(tensors, _first(tensors).rank - keep)
    extents = _first(views).shape[: _first(views).rank - keep]
    depth = 1 + max((int(n) for t in views if t for n in _VARIABLE.findall(t.pointer)), default=-1)
    names = [f"i{depth + d}" for d in range(len(extents))]
    for name in names:
        views = [t and t.select(0, name) for t in views]
    code = body(*views)
    for name, extent in zip(reversed(names), reversed(extents), strict=True):
        code = code.block(f"for (int32_t {name} = 0; {name} < {extent}; ++{name})")
    return code


def _first(tensors: Sequence[Tensor | None]) -> Tensor:
    return next(t for t in tensors if t is not None)


def rows(tensors: Sequence[Tensor], body: Body, sort: bool = True) -> Code:
    """Loops over all dimensions of tensors of equal shape but one; ``body`` gets the rows.

    With ``sort`` the first tensor's strides decide which dimension runs fastest.
    """
    order = list(range(tensors[0].rank))
    if sort:
        order.sort(key=lambda d: -abs(tensors[0].strides[d]))
    dense = [t for t in merged([t.permute(order) for t in tensors], len(order)) if t is not None]
    if not dense[0].shape:
        dense = [replace(t, shape=(1,), strides=(1,)) for t in dense]
    return each(dense, 1, body)
