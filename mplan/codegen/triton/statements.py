"""From the ops of a tiled loop's body to Triton statements, one line per op.

A body value is a stack of matrices; a program has one matrix of the stack, so the leading dimensions
disappear. What is left is a *tile*, a *column* (one number per row), a *row*, or a *scalar*; columns
and rows are one-dimensional in Triton and get their second axis where they meet a tile.

Tiles of keys may reach beyond the last key. ``Piece.padding`` is what a value holds there, as far as
it is known; reductions over the keys insist on their neutral element and mask if they have to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mplan.diagnostics import InternalError
from mplan.ir.graph import Arg, Op, Ref, tensor_type
from mplan.ir.types import DType, TensorType

Form = Literal["tile", "column", "row", "scalar"]
MINUS_INFINITY = float("-inf")
_TYPE_NAMES = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A value in the kernel: an expression, its form, and what it holds beyond the last key.

    ``widened`` marks a half-precision expression that stands for its float32 value: matrix units take
    it as it is. ``known`` is the value of a condition that is the same everywhere.
    """

    text: str
    form: Form
    padding: float | None = None
    widened: bool = False
    known: bool | None = None


class Writer:
    """Writes the statements of one body.

    ``pieces`` are the values that the body receives, by name; ``names`` renames results. With
    ``ragged``, the tile of keys may reach beyond the last key or past a query's own position; without,
    every query sees every key of the tile. ``precision`` is that of products of float32.
    """

    def __init__(
        self,
        pieces: Mapping[str, Piece],
        *,
        ragged: bool,
        precision: str = "",
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.pieces = dict(pieces)
        self.names = dict(names or {})
        self.ragged = ragged
        self.precision = precision
        self.lines: list[str] = []

    def write(self, ops: Sequence[Op]) -> None:
        """Append the statements of ``ops``."""
        for op in ops:
            handler = _HANDLERS.get(op.kind)
            if handler is None:
                raise InternalError("MP599", f"there is no Triton statement for {op.kind}")
            self.pieces[op.result.name] = handler(self, op)

    def piece(self, arg: Arg) -> Piece:
        """The piece that an argument stands for."""
        if isinstance(arg, Ref):
            return self.pieces[arg.name]
        if isinstance(arg, (int, float)):
            return Piece(number(arg), "scalar", float(arg))
        raise InternalError("MP599", f"{arg!r} is no operand of a Triton statement")

    def assign(self, op: Op, text: str, form: Form, padding: float | None = None) -> Piece:
        """Append ``name = text``."""
        name = self.names.get(op.result.name, op.result.name)
        self.lines.append(f"{name} = {text}")
        return Piece(name, form, padding)

    def padded(self, name: str, neutral: float) -> Piece:
        """The piece ``name`` with ``neutral`` beyond the last key."""
        piece = self.pieces[name]
        if not self.ragged or piece.padding == neutral:
            return piece
        filled = number(neutral)
        self.lines.append(f"{piece.text} = tl.where(columns[None, :] < limit, {piece.text}, {filled})")
        self.pieces[name] = replace(piece, padding=neutral)
        return self.pieces[name]


def number(value: float) -> str:
    """A number as Python source."""
    return f'float("{value}")' if value in (MINUS_INFINITY, -MINUS_INFINITY) else repr(float(value))


def spread(piece: Piece, form: Form) -> str:
    """The text of a piece where it meets others and the result has ``form``."""
    text = wide(piece)
    if form == "tile" and piece.form == "column":
        return f"{text}[:, None]"
    if form == "tile" and piece.form == "row":
        return f"{text}[None, :]"
    return text


def wide(piece: Piece) -> str:
    """The text of a piece outside of a matrix product, in float32."""
    return f"{piece.text}.to(tl.float32)" if piece.widened else piece.text


def met(*forms: Form) -> Form:
    """The form of a pointwise op of pieces of these forms."""
    distinct = set(forms) - {"scalar"}
    if not distinct:
        return "scalar"
    return distinct.pop() if len(distinct) == 1 else "tile"


def form_of(type_: TensorType) -> Form:
    """The form of a value of the loop's body."""
    *_, rows, columns = (1, 1, *type_.shape)
    if rows != 1 and columns != 1:
        return "tile"
    return "scalar" if rows == columns else "column" if columns == 1 else "row"


# --- ops ------------------------------------------------------------------------------------------


def _binary(symbol: str, padding: Callable[[float, float], float]) -> Callable[[Writer, Op], Piece]:
    def write(writer: Writer, op: Op) -> Piece:
        a, b = writer.piece(op.arg("self")), writer.piece(op.arg("other"))
        form = met(a.form, b.form)
        first, second = spread(a, form), spread(b, form)
        infix = len(symbol) <= 2
        text = f"{first} {symbol} {second}" if infix else f"{symbol}({first}, {second})"
        hidden = symbol == "-" and a.padding == MINUS_INFINITY and b.form == "column"
        return writer.assign(op, text, form, MINUS_INFINITY if hidden else _combined(a, b, padding))

    return write


def _combined(a: Piece, b: Piece, padding: Callable[[float, float], float]) -> float | None:
    """What the result holds beyond the last key, if that is known."""
    if a.padding is None or b.padding is None:
        return None
    found = padding(a.padding, b.padding)
    return found if found == found else None


def _compare(writer: Writer, op: Op) -> Piece:
    a, b = writer.piece(op.arg("self")), writer.piece(op.arg("other"))
    form = met(a.form, b.form)
    positions = a.text == "rows" and b.text == "columns"
    if positions and not writer.ragged:
        return Piece("True", form, known=True)
    symbol = {"ge": ">=", "eq": "=="}[op.kind.split(".")[1]]
    return writer.assign(op, f"{spread(a, form)} {symbol} {spread(b, form)}", form)


def _where(writer: Writer, op: Op) -> Piece:
    condition = writer.piece(op.arg("condition"))
    a, b = writer.piece(op.arg("self")), writer.piece(op.arg("other"))
    if condition.known:
        return a
    form = met(condition.form, a.form, b.form)
    texts = ", ".join(spread(p, form) for p in (condition, a, b))
    same = a.padding if a.padding == b.padding else None
    return writer.assign(op, f"tl.where({texts})", form, same)


def _cast(writer: Writer, op: Op) -> Piece:
    piece, dtype = writer.piece(op.arg("self")), op.arg("dtype")
    assert isinstance(dtype, DType)
    if dtype is DType.F32 and piece.form == "tile":
        return replace(piece, widened=True)
    return writer.assign(op, f"{wide(piece)}.to(tl.{_TYPE_NAMES[dtype]})", piece.form, piece.padding)


def _transpose(writer: Writer, op: Op) -> Piece:
    piece = writer.piece(op.arg("self"))
    return replace(piece, text=f"tl.trans({piece.text})")


def _matmul(writer: Writer, op: Op) -> Piece:
    left, right = op.arg("self"), op.arg("other")
    a, b = writer.piece(left), writer.piece(right)
    if writer.ragged and not a.padding == b.padding == 0.0:
        raise InternalError("MP599", f"{op.result.name} sums over keys that do not exist")
    precision = f', input_precision="{writer.precision}"' if writer.precision else ""
    if a.widened != b.widened:
        a, b = replace(a, text=wide(a)), replace(b, text=wide(b))
    return writer.assign(op, f"tl.dot({a.text}, {b.text}{precision})", "tile", 0.0)


def _reduce(function: str, neutral: float) -> Callable[[Writer, Op], Piece]:
    def write(writer: Writer, op: Op) -> Piece:
        source = op.arg("self")
        assert isinstance(source, Ref)
        piece = writer.padded(source.name, neutral)
        return writer.assign(op, f"{function}({piece.text}, 1)", "column")

    return write


def _exp2(writer: Writer, op: Op) -> Piece:
    piece = writer.piece(op.arg("self"))
    padding = 0.0 if piece.padding == MINUS_INFINITY else None
    return writer.assign(op, f"tl.exp2({wide(piece)})", piece.form, padding)


def _positions(writer: Writer, op: Op) -> Piece:
    """Positions of the tile, which the kernel has at hand under these names."""
    return Piece(*(("rows", "column") if op.result.name == "rows" else ("columns", "row")))


def _same(writer: Writer, op: Op) -> Piece:
    return writer.piece(op.arg("self"))


def _full(writer: Writer, op: Op) -> Piece:
    start, type_ = op.arg("fill_value"), tensor_type(op.result)
    assert isinstance(start, float)
    form = form_of(type_)
    shape = f"[BLOCK_Q, {type_.shape[-1]}]" if form == "tile" else "[BLOCK_Q]"
    return writer.assign(op, f"tl.full({shape}, {number(start)}, tl.float32)", form)


_HANDLERS: dict[str, Callable[[Writer, Op], Piece]] = {
    "aten.add.Tensor": _binary("+", lambda a, b: a + b),
    "aten.sub.Tensor": _binary("-", lambda a, b: a - b),
    "aten.mul.Tensor": _binary("*", lambda a, b: a * b),
    "aten.div.Tensor": _binary("/", lambda a, b: float("nan")),
    "aten.maximum.default": _binary("tl.maximum", max),
    "aten.ge.Tensor": _compare,
    "aten.eq.Scalar": _compare,
    "aten.where.ScalarOther": _where,
    "aten.where.ScalarSelf": _where,
    "aten._to_copy.default": _cast,
    "aten.transpose.int": _transpose,
    "aten.matmul.default": _matmul,
    "aten.amax.default": _reduce("tl.max", MINUS_INFINITY),
    "aten.sum.dim_IntList": _reduce("tl.sum", 0.0),
    "aten.exp2.default": _exp2,
    "aten.arange.start": _positions,
    "aten.unsqueeze.default": _same,
    "aten.full.default": _full,
}
