"""The view of an attention kernel that the template lays out: arguments, loads and statements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mplan.codegen.triton.spec import Attention, power_of_two
from mplan.codegen.triton.statements import Piece, Writer, form_of
from mplan.ir.graph import Arg, Carry, Graph, Input, Loop, Op, Ref, Value, tensor_type
from mplan.ir.types import DType, TensorType
from mplan.passes.tile_attention import tile

#: Stand for sequences of any length, which the kernel takes as arguments.
_ROWS, _KEYS = 1 << 13, 1 << 12
_PARTS = {"query": "query", "key": "key", "value": "value", "attn_mask": "mask"}


@dataclass(frozen=True, slots=True)
class OperandView:
    """A tensor argument: its pointer, its strides, and where the program's part of it starts."""

    name: str
    pointer: str
    strides: tuple[str, ...]
    offset: str


@dataclass(frozen=True, slots=True)
class LoadView:
    """A tile in memory: the variable, its address, the lanes that exist (empty: all of them)."""

    name: str
    address: str
    lanes: str
    other: str = "0.0"


@dataclass(frozen=True, slots=True)
class StepView:
    """One tile of keys: loads, then statements."""

    loads: tuple[LoadView, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KernelView:
    """Everything that the template needs; all texts are finished Triton code.

    ``index`` are the batch dimensions' indices, from the last to the first, with their expressions.
    ``full`` handles tiles of keys that every query of the tile sees completely, ``ragged`` the rest;
    ``advance`` moves on to the next tile of keys.
    """

    operands: tuple[OperandView, ...]
    sizes: tuple[str, ...]
    index: tuple[tuple[str, str], ...]
    block_depth: int
    block_width: int
    loads: tuple[LoadView, ...]
    prologue: tuple[str, ...]
    full: StepView
    ragged: StepView
    advance: tuple[str, ...]
    epilogue: tuple[str, ...]
    result: str
    store: LoadView


def tiled_graph(attention: Attention, block_q: int, block_k: int) -> Graph:
    """A graph with the loop that the kernel of ``attention`` executes."""
    types = {"query": attention.query, "key": attention.key, "value": attention.value}
    if attention.mask is not None:
        types["attn_mask"] = attention.mask
    values = {part: Value(part, type_) for part, type_ in types.items()}
    shape = (*attention.batch, attention.rows, attention.width)
    result = Value("out", TensorType(attention.dtype, shape))
    args: tuple[tuple[str, Arg], ...] = (
        *((part, Ref(part)) for part in types),
        ("is_causal", attention.is_causal),
        ("scale", attention.factor),
        ("enable_gqa", attention.grouped),
    )
    ops = tile(Op("mplan.attention", args, (result,)), values, block_q, block_k)
    inputs = tuple(Input(value) for value in values.values())
    return Graph("attention", inputs, tuple(ops), (Ref("out"),))


def kernel_view(attention: Attention) -> KernelView:
    """The kernel of ``attention``: the loop of ``TileAttention``, statement by statement."""
    return _Builder(attention).view()


class _Builder:
    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.outer = _loop(tiled_graph(_representative(attention), 128, 64).ops)
        self.inner = _loop(self.outer.body.ops)
        rank = attention.kernel_rank
        self.axes = tuple(f"b{i}" for i in range(rank))
        self.parts = [part for part in _PARTS if part != "attn_mask" or attention.mask]

    def view(self) -> KernelView:
        moving = {w.operand for w in self.inner.windows if w.slices}
        once = [part for part in self.parts if part not in moving]
        each = [part for part in self.parts if part in moving]
        ops = self.outer.body.ops
        inner = next(i for i, op in enumerate(ops) if op.loop)
        states = {v.name: _piece(v) for v in ops[inner].values}
        inits = {
            r.init: n for n, r in zip(states, self.inner.results, strict=True) if isinstance(r, Carry)
        }
        start = self._writer({part: self._loaded(part) for part in once}, names=inits)
        start.write(ops[:inner])
        end = self._writer(states)
        end.write(ops[inner + 1 :])
        (out,) = self.outer.body.output_names
        known = {**start.pieces, **states, **{part: self._loaded(part) for part in each}}
        return KernelView(
            operands=tuple(self._operand(part) for part in (*self.parts, "out")),
            sizes=tuple(f"size_{axis}" for axis in self.axes[1:]),
            index=tuple(self._index()),
            block_depth=self.attention.block_depth,
            block_width=self.attention.block_width,
            loads=tuple(self._load(part) for part in once),
            prologue=tuple(start.lines),
            full=self._step(each, known, ragged=False),
            ragged=self._step(each, known, ragged=True),
            advance=tuple(self._advance(part) for part in each),
            epilogue=tuple(end.lines),
            result=end.pieces[out].text,
            store=self._load("out"),
        )

    def _writer(
        self,
        pieces: Mapping[str, Piece],
        *,
        ragged: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> Writer:
        precision = "ieee" if self.attention.dtype is DType.F32 else ""
        return Writer(pieces, ragged=ragged, precision=precision, names=names)

    def _loaded(self, part: str) -> Piece:
        """The tile of an operand; lanes beyond the last key hold zeros."""
        piece = _piece(self.inner.body.value_table[part])
        moves = piece.form in ("tile", "row")
        return replace(piece, text=_PARTS[part], padding=0.0 if moves else None)

    def _step(self, parts: Iterable[str], known: Mapping[str, Piece], *, ragged: bool) -> StepView:
        body = self.inner.body
        writer = self._writer(known, ragged=ragged)
        writer.write(body.ops)
        states = [i.value.name for i in body.inputs[len(self.inner.windows) :]]
        pairs = zip(states, body.output_names, strict=True)
        update = [f"{state} = {writer.pieces[new].text}" for state, new in pairs]
        loads = tuple(self._load(part, ragged) for part in parts)
        return StepView(loads, (*writer.lines, *update))

    # --- addresses ------------------------------------------------------------------------------

    def _operand(self, part: str) -> OperandView:
        name = _PARTS.get(part, part)
        strides = tuple(f"{name}_{axis}" for axis in (*self.axes, "row", "col"))
        terms = [f"{axis} * {name}_{axis}" for axis in self.axes]
        if part in ("query", "out") or (part == "attn_mask" and self.attention.mask_rows):
            terms.append(f"start.to(tl.int64) * {name}_row")
        return OperandView(name, f"{name}_ptr", strides, " + ".join(terms))

    def _index(self) -> Iterator[tuple[str, str]]:
        """The program's place in the batch: the last dimension runs fastest."""
        rest = "batch"
        for axis in reversed(self.axes[1:]):
            yield axis, f"{rest} % size_{axis}"
            rest = f"{rest} // size_{axis}"
        if self.axes:
            yield self.axes[0], rest

    def _advance(self, part: str) -> str:
        name = _PARTS[part]
        return f"{name}_ptr += BLOCK_K * {name}_{'col' if part == 'attn_mask' else 'row'}"

    def _load(self, part: str, ragged: bool = False) -> LoadView:
        """The tile of an operand; in a ragged tile, keys at or beyond ``limit`` do not exist."""
        attention, name = self.attention, _PARTS.get(part, part)
        rows = _Lanes("lane_q", f"{name}_row", "rows", "query_len")
        keys = _Lanes("lane_k", f"{name}_row", "columns", "limit" if ragged else "")
        depth = _Lanes("depth", f"{name}_col", "depth", _bound(attention.depth))
        width = _Lanes("width", f"{name}_col", "width", _bound(attention.width))
        if part == "attn_mask":
            across = replace(keys, stride=f"{name}_col")
            axes = ((rows,) if attention.mask_rows else ()) + ((across,) if attention.mask_keys else ())
            boolean = attention.mask is not None and attention.mask.dtype is DType.BOOL
            return _load_view(name, axes, "0" if boolean else "0.0")
        axes_of = {"query": (rows, depth), "key": (keys, depth), "value": (keys, width)}
        return _load_view(name, axes_of.get(part, (rows, width)), "0.0")


@dataclass(frozen=True, slots=True)
class _Lanes:
    """The lanes of a dimension of a tile, their stride; those exist whose ``position < bound``."""

    lanes: str
    stride: str
    position: str
    bound: str


def _load_view(name: str, axes: Sequence[_Lanes], other: str) -> LoadView:
    """Two-dimensional tiles have their lanes along rows and columns, others along one axis."""
    marks = ("[:, None]", "[None, :]") if len(axes) == 2 else ("",) * len(axes)
    marked = list(zip(axes, marks, strict=True))
    terms = [f"{axis.lanes}{mark} * {axis.stride}" for axis, mark in marked]
    exist = [f"({axis.position}{mark} < {axis.bound})" for axis, mark in marked if axis.bound]
    return LoadView(name, " + ".join([f"{name}_ptr", *terms]), " & ".join(exist), other)


def _bound(size: int) -> str:
    """The condition that a block of ``size`` elements needs; empty if it is full."""
    return "" if power_of_two(size) == size else str(size)


def _piece(value: Value) -> Piece:
    return Piece(value.name, form_of(tensor_type(value)))


def _loop(ops: Sequence[Op]) -> Loop:
    return next(op.loop for op in ops if op.loop)


def _representative(attention: Attention) -> Attention:
    """``attention`` with long sequences and full blocks, so that no axis looks like a broadcast."""
    query, key, value = (
        TensorType(attention.dtype, (*type_.shape[:-2], *last))
        for type_, last in (
            (attention.query, (_ROWS, attention.block_depth)),
            (attention.key, (_KEYS, attention.block_depth)),
            (attention.value, (_KEYS, attention.block_width)),
        )
    )
    mask = attention.mask
    if mask is not None:
        last = (_ROWS if attention.mask_rows else 1, _KEYS if attention.mask_keys else 1)
        mask = TensorType(mask.dtype, (*mask.shape[:-2], *last))
    scale = attention.factor
    return replace(attention, query=query, key=key, value=value, mask=mask, scale=scale)
