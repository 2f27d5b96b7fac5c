"""Types of the IR: element types, symbolic dimensions, tensor types.

Sizes are integers or ``Sym``: integer expressions over the graph's symbols, each of which has a
range. A plan is made for the upper bound of every size, which also holds for all smaller ones.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import prod
from typing import TypeAlias

from mplan.diagnostics import UserError


class DType(Enum):
    """Element types; the value is the name in the text form, ``torch_name`` PyTorch's."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"
    C64 = "c64"
    C128 = "c128"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _ITEMSIZE[self]

    @property
    def torch_name(self) -> str:
        """The attribute of the torch module: ``float32`` for ``f32``."""
        return _TORCH_NAMES[self]

    @property
    def numpy_name(self) -> str:
        """The attribute of the numpy module (which has no bfloat16)."""
        return "bool_" if self is DType.BOOL else self.torch_name

    @property
    def is_float(self) -> bool:
        """Whether elements are real floating-point numbers."""
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16)

    @classmethod
    def of_torch(cls, name: str) -> DType:
        """The type of a torch name such as ``float32`` or ``torch.float32``; KeyError if unknown."""
        return _BY_TORCH_NAME[name.removeprefix("torch.")]


_TORCH_NAMES = {
    DType.F64: "float64",
    DType.F32: "float32",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.BOOL: "bool",
    DType.C64: "complex64",
    DType.C128: "complex128",
}
_BY_TORCH_NAME = {name: dtype for dtype, name in _TORCH_NAMES.items()}
_ITEMSIZE = {
    dtype: 1 if name == "bool" else int(name.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8
    for dtype, name in _TORCH_NAMES.items()
}

Interval = tuple[int, int]
_FUNCTIONS: dict[str, Callable[..., int]] = {"max": max, "min": min}
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size that is known only when the program runs, with its inclusive range."""

    name: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Sym:
    """An integer expression over symbols: names, integers, ``+ - * // %``, ``max`` and ``min``."""

    text: str

    def __str__(self) -> str:
        """The expression."""
        return self.text

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the symbols that occur."""
        names = {n.id for n in ast.walk(_parse(self.text)) if isinstance(n, ast.Name)}
        return frozenset(names - set(_FUNCTIONS))

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The value for given symbols; UserError MP105 if one is missing."""
        return _evaluate(_parse(self.text), values)

    def upper(self, symbols: Mapping[str, Symbol]) -> int:
        """An upper bound over the ranges of ``symbols``, by interval arithmetic."""
        ranges = {name: (s.low, s.high) for name, s in symbols.items()}
        return _interval(_parse(self.text), ranges)[1]


Dim: TypeAlias = int | Sym


@lru_cache(maxsize=4096)
def _parse(text: str) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
        for node in ast.walk(tree):
            _require_known(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise UserError("MP105", f"{text!r} is not a size expression: {e}") from None
    return tree


def _require_known(node: ast.AST) -> None:
    if isinstance(node, ast.Constant) and type(node.value) is not int:
        raise ValueError(f"{node.value!r} is not an integer")
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if not known or node.keywords or not node.args:
            raise ValueError("only max(…) and min(…) can be called")
    allowed = (ast.BinOp, ast.UnaryOp, ast.USub, ast.Call, ast.Name, ast.Load, ast.Constant)
    if not isinstance(node, (*allowed, *_OPERATORS)):
        raise ValueError(f"{type(node).__name__} is not allowed")


def _evaluate(node: ast.expr, values: Mapping[str, int]) -> int:
    low, high = _interval(node, {name: (value, value) for name, value in values.items()})
    assert low == high
    return low


def _interval(node: ast.expr, ranges: Mapping[str, Interval]) -> Interval:
    if isinstance(node, ast.Constant):
        value = node.value
        assert isinstance(value, int)
        return value, value
    if isinstance(node, ast.Name):
        if node.id not in ranges:
            raise UserError("MP105", f"the symbol {node.id!r} has no value or range")
        return ranges[node.id]
    if isinstance(node, ast.UnaryOp):
        low, high = _interval(node.operand, ranges)
        return -high, -low
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        pairs = [_interval(a, ranges) for a in node.args]
        pick = _FUNCTIONS[node.func.id]
        return pick(p[0] for p in pairs), pick(p[1] for p in pairs)
    assert isinstance(node, ast.BinOp)
    return _combine(node, _interval(node.left, ranges), _interval(node.right, ranges))


def _combine(node: ast.BinOp, left: Interval, right: Interval) -> Interval:
    kind = type(node.op)
    if kind in (ast.FloorDiv, ast.Mod):
        if right[0] <= 0 <= right[1]:
            raise UserError("MP105", f"{ast.unparse(node)} may divide by zero")
        if kind is ast.Mod and (left[0] != left[1] or right[0] != right[1]):
            return (0, right[1] - 1) if right[0] > 0 else (right[0] + 1, 0)
    if kind is ast.Sub:
        return left[0] - right[1], left[1] - right[0]
    ends = [_OPERATORS[kind](a, b) for a in left for b in right]
    return min(ends), max(ends)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A strided tensor. ``strides`` (in elements) None means contiguous, last dimension fastest."""

    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...] | None = None

    @property
    def is_static(self) -> bool:
        """Whether every size and stride is an integer."""
        return all(isinstance(d, int) for d in (*self.shape, *(self.strides or ())))

    def bounded(self, symbols: Mapping[str, Symbol]) -> TensorType:
        """The static type of the largest tensor of this type."""
        if self.is_static:
            return self
        strides = self.strides and tuple(upper(d, symbols) for d in self.strides)
        return TensorType(self.dtype, tuple(upper(d, symbols) for d in self.shape), strides)

    def bound(self, values: Mapping[str, int]) -> TensorType:
        """The static type for given symbol values."""
        if self.is_static:
            return self
        strides = self.strides and tuple(concrete(d, values) for d in self.strides)
        return TensorType(self.dtype, tuple(concrete(d, values) for d in self.shape), strides)

    @property
    def numel(self) -> int:
        """Elements of a static tensor."""
        return prod(_static(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element of a static tensor."""
        shape = _static(self.shape)
        if 0 in shape:
            return 0
        spans = ((n - 1) * s for n, s in zip(shape, self.element_strides, strict=True))
        return (1 + sum(spans)) * self.dtype.itemsize

    @property
    def element_strides(self) -> tuple[int, ...]:
        """Strides in elements of a static tensor, contiguous ones included."""
        if self.strides is not None:
            return _static(self.strides)
        return contiguous_strides(_static(self.shape))

    @property
    def is_contiguous(self) -> bool:
        """Whether elements lie densely in row-major order (static types)."""
        if self.strides is None:
            return True
        dense = contiguous_strides(_static(self.shape))
        pairs = zip(_static(self.shape), self.element_strides, dense, strict=True)
        return 0 in self.shape or all(n == 1 or s == d for n, s, d in pairs)


@dataclass(frozen=True, slots=True)
class ScalarType:
    """A Python number that an op yields or the caller passes: ``int``, ``float`` or ``bool``."""

    name: str


Type: TypeAlias = TensorType | ScalarType


def bounded(type_: Type, symbols: Mapping[str, Symbol]) -> Type:
    """``type_`` at the upper bound of every symbol; scalars stay as they are."""
    return type_.bounded(symbols) if isinstance(type_, TensorType) else type_


def upper(dim: Dim, symbols: Mapping[str, Symbol]) -> int:
    """The largest value of ``dim`` over the ranges of ``symbols``."""
    return dim if isinstance(dim, int) else dim.upper(symbols)


def concrete(dim: Dim, values: Mapping[str, int]) -> int:
    """The value of ``dim`` for given symbols."""
    return dim if isinstance(dim, int) else dim.evaluate(values)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements, as PyTorch gives them (size-0 dimensions count as 1)."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _static(dims: tuple[Dim, ...]) -> tuple[int, ...]:
    for d in dims:
        if not isinstance(d, int):
            raise UserError("MP105", f"the size {d} is symbolic; bind or bound it first")
    return dims  # type: ignore[return-value]
