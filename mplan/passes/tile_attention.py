"""Attention as partial execution: ``mplan.attention`` becomes a loop over tiles of queries and keys.

The outer loop runs over tiles of queries and concatenates their results. Inside, a loop over tiles of
keys carries a running maximum, a running sum and an accumulator: the online softmax (Milakov and
Gimelshein 2018, section 3) in the order of FlashAttention (Dao et al. 2022, algorithm 1). Scores
exist for one pair of tiles at a time. GPU kernels are generated from the same loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mplan.ir.graph import (
    Alias,
    Arg,
    Axis,
    Carry,
    Concat,
    Graph,
    Input,
    Loc,
    Loop,
    Op,
    Ref,
    Slice,
    Value,
    Window,
    tensor_type,
)
from mplan.ir.loops import axis_symbols
from mplan.ir.types import Dim, DType, Sym, TensorType
from mplan.passes.base import Context, Pass

#: Exponentials are taken to base 2, which hardware has: exp(x) = 2 ** (x * log2(e)).
LOG2_E = math.log2(math.e)
MINUS_INFINITY = float("-inf")
_PARTS = ("query", "key", "value", "attn_mask")

Types = Mapping[str, TensorType]


@dataclass(frozen=True, slots=True)
class TileAttention(Pass):
    """Lower every ``mplan.attention`` of static sizes to a loop over ``block_q`` x ``block_k`` tiles.

    Blocks that are larger than the sequence are cut to it. Attention with sizes that are known only
    at run time, or with different numbers of heads in key and value, stays, with a note.
    """

    name: ClassVar[str] = "tile_attention"
    block_q: int = 128
    block_k: int = 64

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with its attention tiled; the same object if it has none."""
        values = graph.value_table
        ops: list[Op] = []
        for op in graph.ops:
            obstacle = why_not(op, values) if op.kind == "mplan.attention" else ""
            if obstacle:
                ctx.notes.append(
                    f"attention not tiled: {obstacle}" + (f" ({op.loc})" if op.loc else "")
                )
            tiled = op.kind == "mplan.attention" and not obstacle
            ops += tile(op, values, self.block_q, self.block_k) if tiled else [op]
        return graph if tuple(ops) == graph.ops else replace(graph, ops=tuple(ops))


def operand_types(op: Op, values: Mapping[str, Value]) -> dict[str, TensorType]:
    """The types of ``query``, ``key``, ``value`` and, if there is one, ``attn_mask``."""
    named = ((part, op.arg(part)) for part in _PARTS)
    return {part: tensor_type(values[arg.name]) for part, arg in named if isinstance(arg, Ref)}


def why_not(op: Op, values: Mapping[str, Value]) -> str:
    """Why ``tile`` cannot take ``op``; empty if it can."""
    types = operand_types(op, values)
    if not all(t.is_static for t in types.values()):
        return "its sizes are known only at run time"
    if op.arg("enable_gqa") and types["key"].shape[-3] != types["value"].shape[-3]:
        return "key and value have different numbers of heads"
    return ""


def tile(op: Op, values: Mapping[str, Value], block_q: int, block_k: int) -> list[Op]:
    """``mplan.attention`` as views and one loop, for an op that ``why_not`` has nothing against.

    With grouped heads, the query's heads become two dimensions, and key and value broadcast along the
    second. The last op yields the value that ``op`` yields.
    """
    outer = _Ops(dict(values), op.loc)
    names = {p: arg.name for p in _PARTS if isinstance(arg := op.arg(p), Ref)}
    if op.arg("enable_gqa"):
        groups = tensor_type(values[names["key"]]).shape[-3]
        names = {part: _spread(outer, part, name, groups) for part, name in names.items()}
    types = {part: tensor_type(outer.values[name]) for part, name in names.items()}
    scale = op.arg("scale")
    given = scale if isinstance(scale, (int, float)) else _int(types["query"].shape[-1]) ** -0.5
    loop = _Flash(types, bool(op.arg("is_causal")), float(given)).over_queries(block_q, block_k)
    loop = replace(loop, windows=tuple(replace(w, operand=names[w.operand]) for w in loop.windows))
    batch = broadcast(*(types[part].shape[:-2] for part in ("query", "key", "value")))
    rows, width = types["query"].shape[-2], types["value"].shape[-1]
    found = TensorType(types["query"].dtype, (*batch, rows, width))
    whole = tensor_type(op.result)
    if found.shape == whole.shape:
        outer.ops.append(Op("mplan.loop", (), (op.result,), op.loc, loop=loop))
    else:
        grouped = Value(outer.fresh(f"{op.result.name}_groups"), found)
        outer.ops.append(Op("mplan.loop", (), (grouped,), op.loc, loop=loop))
        args: tuple[tuple[str, Arg], ...] = (("self", Ref(grouped.name)), ("size", whole.shape))
        merged = replace(op.result, alias=Alias(grouped.name))
        outer.ops.append(Op("aten.view.default", args, (merged,), op.loc))
    return outer.ops


def _spread(ops: _Ops, part: str, name: str, groups: Dim) -> str:
    """A view whose heads are ``groups`` times the heads of each group (1 where they broadcast)."""
    type_ = tensor_type(ops.values[name])
    if len(type_.shape) < 3:
        return name
    heads = _int(type_.shape[-3])
    groups = _int(groups) if heads != 1 else 1
    each = heads // groups
    if part in ("key", "value"):
        groups, each = heads, 1
    strides = type_.element_strides
    shape = (*type_.shape[:-3], groups, each, *type_.shape[-2:])
    split = (*strides[:-3], strides[-3] * each, *strides[-3:])
    found = TensorType(type_.dtype, shape, None if type_.strides is None else split)
    args: dict[str, Arg] = {"self": Ref(name), "size": shape}
    return ops.add("aten.view.default", f"{name}_groups", found, args, view_of=name)


class _Flash:
    """Builds the two nested loops for operands of the given static types."""

    def __init__(self, types: Types, is_causal: bool, scale: float) -> None:
        self.types = types
        self.is_causal = is_causal
        self.scale = scale
        self.dtype = types["query"].dtype
        self.wide = DType.F64 if self.dtype is DType.F64 else DType.F32
        self.mask = types.get("attn_mask")
        self.batch = broadcast(*(types[part].shape[:-2] for part in ("query", "key", "value")))
        self.additive = self.mask is not None and self.mask.dtype is not DType.BOOL
        self.scaled_first = self.additive or scale <= 0

    def over_queries(self, block_q: int, block_k: int) -> Loop:
        """The loop over tiles of queries; its windows name the operands by their part."""
        axis = _axis("q", self.types["query"].shape[-2], block_q)
        windows = {
            part: _window(part, type_, "q" if part in ("query", "attn_mask") else "", -2)
            for part, type_ in self.types.items()
        }
        inputs = {p: _seen(t, windows[p], axis) for p, t in self.types.items()}
        body = _Ops({}, None, inputs)
        rows = Sym(f"{axis.name}_len")
        lead = (*self.batch, rows)
        if self.is_causal:
            body.positions("rows", axis)
            column = TensorType(DType.I64, (rows, 1))
            args: dict[str, Arg] = {"self": Ref("rows"), "dim": -1}
            body.add("aten.unsqueeze.default", "row", column, args, view_of="rows")
        for name, width, start in (
            ("top0", 1, MINUS_INFINITY),
            ("total0", 1, 0.0),
            ("sums0", self.types["value"].shape[-1], 0.0),
        ):
            shape = (*lead, width)
            fill: dict[str, Arg] = {"size": shape, "fill_value": start, "dtype": self.wide}
            body.add("aten.full.default", name, TensorType(self.wide, shape), fill)
        self._inner(body, axis, block_k)
        total = "total"
        if self.mask is not None:
            blind = body.compare("aten.eq.Scalar", "blind", "total", 0.0)
            total = body.where("divisor", blind, 1.0, "total")
        out = body.binary("aten.div.Tensor", "ratio", "sums", total)
        out = body.cast(out, self.dtype, "out")
        result = Concat((len(self.batch),), (axis.name,))
        graph = Graph("queries", body.inputs(), tuple(body.ops), (Ref(out),), axis_symbols(axis))
        return Loop((axis,), tuple(windows.values()), (result,), graph)

    def _inner(self, body: _Ops, rows: Axis, block_k: int) -> None:
        """Add the loop over tiles of keys, whose results are ``top``, ``total`` and ``sums``."""
        axis = _axis("k", self.types["key"].shape[-2], block_k)
        sliced = {"query": None, "key": -2, "value": -2, "attn_mask": -1}
        windows = {
            part: _window(part, tensor_type(body.values[part]), "k" if dim else "", dim or 0)
            for part, dim in sliced.items()
            if part in body.values
        }
        if self.is_causal:
            windows["row"] = Window("row")
        inputs = {p: _seen(tensor_type(body.values[p]), w, axis) for p, w in windows.items()}
        states = {n: tensor_type(body.values[f"{n}0"]) for n in ("top", "total", "sums")}
        inner = _Ops({}, None, {**inputs, **states})
        self._update(inner, axis)
        outputs = tuple(Ref(f"{name}_next") for name in states)
        symbols = (*axis_symbols(rows), *axis_symbols(axis))
        graph = Graph("keys", inner.inputs(), tuple(inner.ops), outputs, symbols)
        carries = tuple(Carry(f"{name}0") for name in states)
        loop = Loop((axis,), tuple(windows.values()), carries, graph)
        results = tuple(Value(name, type_) for name, type_ in states.items())
        body.values.update({v.name: v for v in results})
        body.ops.append(Op("mplan.loop", (), results, None, loop=loop))

    def _update(self, body: _Ops, axis: Axis) -> None:
        """One tile of keys: scores, then new maximum, sum and accumulator."""
        scores = self._scores(body, axis)
        log2 = LOG2_E if self.scaled_first else self.scale * LOG2_E
        reduce: dict[str, Arg] = {"self": Ref(scores), "dim": (-1,), "keepdim": True}
        peak = body.reduction("aten.amax.default", "peak", scores, reduce)
        if not self.additive:
            peak = body.binary("aten.mul.Tensor", "peak_log2", peak, log2)
        top = body.binary("aten.maximum.default", "top_next", "top", peak)
        if self.mask is not None:
            unseen = body.compare("aten.eq.Scalar", "unseen", top, MINUS_INFINITY)
            top = body.where("reference", unseen, 0.0, top)
        weights = self._power(body, "weights", scores, top, log2)
        decay = self._power(body, "decay", "top", top, log2)
        reduce = {"self": Ref(weights), "dim": (-1,), "keepdim": True}
        mass = body.reduction("aten.sum.dim_IntList", "mass", weights, reduce)
        kept = body.binary("aten.mul.Tensor", "total_kept", "total", decay)
        body.binary("aten.add.Tensor", "total_next", kept, mass)
        kept = body.binary("aten.mul.Tensor", "sums_kept", "sums", decay)
        narrow = body.cast(weights, self.dtype, "weights_narrow")
        added = body.matmul(
            "added",
            body.cast(narrow, self.wide, "weights_wide"),
            body.cast("value", self.wide, "value_wide"),
        )
        body.binary("aten.add.Tensor", "sums_next", kept, added)

    def _scores(self, body: _Ops, axis: Axis) -> str:
        """The (masked) scores of one tile."""
        query = body.cast("query", self.wide, "query_wide")
        key = body.transpose(body.cast("key", self.wide, "key_wide"), "key_transposed")
        scores = body.matmul("products", query, key)
        if self.scaled_first:
            scores = body.binary("aten.mul.Tensor", "scaled", scores, self.scale)
        if self.additive:
            mask = body.cast("attn_mask", self.wide, "mask_wide")
            scores = body.binary("aten.add.Tensor", "biased", scores, mask)
        elif self.mask is not None:
            scores = body.where("shown", "attn_mask", scores, MINUS_INFINITY)
        if self.is_causal:
            body.positions("column", axis)
            visible = body.compare("aten.ge.Tensor", "visible", "row", "column")
            scores = body.where("past", visible, scores, MINUS_INFINITY)
        return scores

    def _power(self, body: _Ops, name: str, scores: str, top: str, log2: float) -> str:
        """``2 ** (scores - top)``, the scores being multiplied by ``log2`` first.

        With additive masks the difference is taken before: a mask of the lowest number must not
        overflow. The running maximum is multiplied already where scores are.
        """
        if self.additive:
            below = body.binary("aten.sub.Tensor", f"{name}_below", scores, top)
            shifted = body.binary("aten.mul.Tensor", f"{name}_log2", below, log2)
        elif scores == "top":
            shifted = body.binary("aten.sub.Tensor", f"{name}_below", scores, top)
        else:
            logs = body.binary("aten.mul.Tensor", f"{name}_log2", scores, log2)
            shifted = body.binary("aten.sub.Tensor", f"{name}_below", logs, top)
        type_ = tensor_type(body.values[shifted])
        return body.add("aten.exp2.default", name, type_, {"self": Ref(shifted)})


class _Ops:
    """A list of ops under construction, with the types of the values so far."""

    def __init__(self, values: dict[str, Value], loc: Loc | None, inputs: Types | None = None) -> None:
        self.given = dict(inputs or {})
        self.values = values | {name: Value(name, t) for name, t in self.given.items()}
        self.ops: list[Op] = []
        self.loc = loc

    def inputs(self) -> tuple[Input, ...]:
        """The values that the body receives, in order."""
        return tuple(Input(self.values[name]) for name in self.given)

    def fresh(self, hint: str) -> str:
        """A name that no value has."""
        name, count = hint, 0
        while name in self.values:
            count += 1
            name = f"{hint}_{count}"
        return name

    def add(
        self, kind: str, hint: str, type_: TensorType, args: Mapping[str, Arg], view_of: str = ""
    ) -> str:
        """Append an op with one result; returns its name."""
        value = Value(self.fresh(hint), type_, Alias(view_of) if view_of else None)
        self.values[value.name] = value
        self.ops.append(Op(kind, tuple(args.items()), (value,), self.loc))
        return value.name

    def type(self, name: str) -> TensorType:
        """The type of a tensor value."""
        return tensor_type(self.values[name])

    def cast(self, name: str, dtype: DType, hint: str) -> str:
        """``name`` in ``dtype``; itself if it has that type."""
        type_ = self.type(name)
        if type_.dtype is dtype:
            return name
        args: dict[str, Arg] = {"self": Ref(name), "dtype": dtype}
        return self.add("aten._to_copy.default", hint, TensorType(dtype, type_.shape), args)

    def binary(self, kind: str, hint: str, first: str, second: str | float) -> str:
        """A pointwise op of a tensor and a tensor or number."""
        other: Arg = Ref(second) if isinstance(second, str) else second
        shapes = [self.type(n).shape for n in (first, second) if isinstance(n, str)]
        found = TensorType(self.type(first).dtype, broadcast(*shapes))
        return self.add(kind, hint, found, {"self": Ref(first), "other": other})

    def compare(self, kind: str, hint: str, first: str, second: str | float) -> str:
        """A pointwise comparison."""
        name = self.binary(kind, hint, first, second)
        found = TensorType(DType.BOOL, self.type(name).shape)
        self.values[name] = replace(self.values[name], type=found)
        self.ops[-1] = replace(self.ops[-1], results=(self.values[name],))
        return name

    def where(self, hint: str, condition: str, first: str | float, second: str | float) -> str:
        """``condition ? first : second``, one of them a tensor and the other a number."""
        tensor = first if isinstance(first, str) else second
        assert isinstance(tensor, str) and isinstance(first, str) != isinstance(second, str)
        kind = "aten.where.ScalarOther" if tensor is first else "aten.where.ScalarSelf"
        shape = broadcast(self.type(condition).shape, self.type(tensor).shape)
        args: dict[str, Arg] = {"condition": Ref(condition)}
        args["self"] = Ref(first) if isinstance(first, str) else first
        args["other"] = Ref(second) if isinstance(second, str) else second
        return self.add(kind, hint, TensorType(self.type(tensor).dtype, shape), args)

    def reduction(self, kind: str, hint: str, name: str, args: Mapping[str, Arg]) -> str:
        """A reduction of the last dimension to size 1."""
        type_ = self.type(name)
        return self.add(kind, hint, TensorType(type_.dtype, (*type_.shape[:-1], 1)), args)

    def transpose(self, name: str, hint: str) -> str:
        """The last two dimensions exchanged (a view)."""
        type_ = self.type(name)
        shape = (*type_.shape[:-2], type_.shape[-1], type_.shape[-2])
        width, lead = type_.shape[-1], type_.shape[:-2]
        outer = [_product((*lead[i + 1 :], *type_.shape[-2:])) for i in range(len(lead))]
        found = TensorType(type_.dtype, shape, (*outer, 1, width))
        args: dict[str, Arg] = {"self": Ref(name), "dim0": -2, "dim1": -1}
        return self.add("aten.transpose.int", hint, found, args, view_of=name)

    def matmul(self, hint: str, first: str, second: str) -> str:
        """The product of two stacks of matrices."""
        a, b = self.type(first), self.type(second)
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        args: dict[str, Arg] = {"self": Ref(first), "other": Ref(second)}
        return self.add("aten.matmul.default", hint, TensorType(a.dtype, shape), args)

    def positions(self, hint: str, axis: Axis) -> str:
        """The positions of the tile of ``axis``."""
        first, length = (Sym(symbol.name) for symbol in axis_symbols(axis))
        args: dict[str, Arg] = {"start": first, "end": Sym(f"{first} + {length}")}
        return self.add("aten.arange.start", hint, TensorType(DType.I64, (length,)), args)


def _axis(name: str, extent: Dim, block: int) -> Axis:
    size = _int(extent)
    return Axis(name, size, min(block, size))


def _window(part: str, type_: TensorType, axis: str, dim: int) -> Window:
    """The window of an operand that ``axis`` slices along ``dim``; masks may broadcast there."""
    broadcasts = part == "attn_mask" and (len(type_.shape) < -dim or type_.shape[dim] == 1)
    if not axis or broadcasts:
        return Window(part)
    return Window(part, (Slice(dim % len(type_.shape), axis),))


def _seen(type_: TensorType, window: Window, axis: Axis) -> TensorType:
    """The type of a window, with the length of the tile as a symbol."""
    shape = list(type_.shape)
    for cut in window.slices:
        shape[cut.dim] = Sym(f"{axis.name}_len")
    return TensorType(type_.dtype, tuple(shape))


def broadcast(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape that shapes with sizes 1 or the same broadcast to."""
    rank = max(len(shape) for shape in shapes)
    columns = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in columns)


def _product(dims: Sequence[Dim]) -> Dim:
    number = math.prod(n for n in dims if isinstance(n, int))
    symbols = [n.text for n in dims if isinstance(n, Sym)]
    return Sym(" * ".join([*symbols, str(number)])) if symbols else number


def _int(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
