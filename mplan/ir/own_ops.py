"""mplan's own rows of the op table: attention, copy between regions, loop."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UserError
from mplan.ir.graph import Op
from mplan.ir.loops import result_types, tile_shapes
from mplan.ir.ops import BoundArg, OpDef, Param, loop_of
from mplan.ir.types import TensorType, Type, contiguous_strides

if TYPE_CHECKING:
    from torch import Tensor


def attention_type(
    query: TensorType,
    key: TensorType,
    value: TensorType,
    attn_mask: TensorType | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> TensorType:
    """The type of ``mplan.attention``: query ``[*, L, E]``, key ``[*, S, E]``, value ``[*, S, Ev]``.

    Batch dimensions broadcast; the mask broadcasts to ``[*, L, S]``. With ``enable_gqa`` the last
    batch dimension (heads) of key and value may divide the query's. UserError MP107 if sizes differ.
    """
    q, k, v = (_sizes(t) for t in (query, key, value))
    if min(len(q), len(k), len(v)) < 2:
        raise UserError("MP107", "mplan.attention needs at least two dimensions per operand")
    if q[-1] != k[-1] or k[-2] != v[-2]:
        sizes = f"query {list(q)}, key {list(k)}, value {list(v)}"
        raise UserError("MP107", f"mplan.attention cannot take {sizes}: E or S differ")
    if query.dtype != key.dtype or query.dtype != value.dtype or not query.dtype.is_float:
        raise UserError("MP107", "mplan.attention needs query, key and value of one float type")
    batch = _broadcast(q[:-2], _heads(k, q, enable_gqa), _heads(v, q, enable_gqa))
    scores = (*batch, q[-2], k[-2])
    if attn_mask is not None and _broadcast(scores, _sizes(attn_mask)) != scores:
        mask = list(_sizes(attn_mask))
        raise UserError("MP107", f"the mask {mask} of mplan.attention does not fit {list(scores)}")
    return TensorType(query.dtype, (*batch, q[-2], v[-1]))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention, computed in float64 and rounded once.

    As ``torch.nn.functional.scaled_dot_product_attention``: a boolean mask is true where a key takes
    part, another one is added to the scores; ``is_causal`` hides key ``j`` from query ``i < j`` (and
    combines with a mask); a query without any key yields 0.
    """
    import torch

    q, k, v = (t.to(torch.float64) for t in (query, key, value))
    if enable_gqa:
        k, v = (t.repeat_interleave(q.size(-3) // t.size(-3), -3) for t in (k, v))
    scores = (q * (q.size(-1) ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if is_causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~visible, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(torch.float64)
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return (weights @ v).to(query.dtype)


def _sizes(type_: TensorType) -> tuple[int, ...]:
    sizes = tuple(n for n in type_.shape if isinstance(n, int))
    if len(sizes) != len(type_.shape):
        raise UserError("MP105", f"the shape {type_.shape} is symbolic; bind or bound it first")
    return sizes


def _heads(of: tuple[int, ...], query: tuple[int, ...], grouped: bool) -> tuple[int, ...]:
    """The batch dimensions of key or value after the groups are spread over the query's heads."""
    batch = of[:-2]
    if not grouped:
        return batch
    if len(of) < 3 or len(query) < 3 or not batch[-1] or query[-3] % batch[-1]:
        raise UserError("MP107", f"heads cannot be grouped: query {list(query)}, key/value {list(of)}")
    return (*batch[:-1], query[-3])


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(s) for s in shapes)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        wide = {n for n in sizes if n != 1} or {1}
        if len(wide) > 1:
            raise UserError("MP107", f"the shapes {[list(s) for s in shapes]} do not broadcast")
        result.append(wide.pop())
    return tuple(result)


def _infer_attention(args: Mapping[str, BoundArg]) -> tuple[Type | None, ...]:
    return (attention_type(**args),)


def _attention_macs(op: Op, types: Mapping[str, Type]) -> int:
    from mplan.ir.ops import bound_args

    args = bound_args(op, types)
    q, k, v = (_sizes(args[name]) for name in ("query", "key", "value"))
    out = _sizes(attention_type(**args))
    return prod(out[:-2]) * q[-2] * k[-2] * (q[-1] + v[-1])


def _copy(self: Tensor) -> Tensor:
    return self.clone()


def _infer_copy(args: Mapping[str, BoundArg]) -> tuple[Type | None, ...]:
    """A copy keeps the layout of a dense tensor; any other becomes contiguous (as ``clone`` does)."""
    type_ = args["self"]
    assert isinstance(type_, TensorType)
    return (type_ if _is_dense(type_) else TensorType(type_.dtype, type_.shape),)


def _is_dense(type_: TensorType) -> bool:
    """Whether the elements fill their bytes without gaps or overlaps, in some order of dimensions."""
    if type_.is_contiguous:
        return True
    by_stride = sorted(zip(type_.element_strides, _sizes(type_), strict=True), reverse=True)
    kept = [(stride, size) for stride, size in by_stride if size != 1]
    dense = contiguous_strides(tuple(size for _, size in kept))
    return tuple(stride for stride, _ in kept) == dense


def _zero(op: Op, types: Mapping[str, Type]) -> int:
    return 0


def _infer_loop(args: Mapping[str, BoundArg]) -> tuple[Type | None, ...]:
    return result_types(loop_of(args), args["operands"], args["symbols"])


def _run_loop(**args: BoundArg) -> Any:
    from mplan.ir.interp import run_loop

    return run_loop(loop_of(args), args["operands"], args["symbols"])


def _loop_macs(op: Op, types: Mapping[str, Type]) -> int:
    """Those of the body's ops, summed over all tiles."""
    from mplan.ir.ops import macs
    from mplan.ir.rings import stream_work
    from mplan.ir.specialize import specialize

    assert op.loop is not None
    if op.loop.stream:
        return stream_work(op.loop, macs)
    total = 0
    for tile, times in tile_shapes(op.loop):
        body = specialize(op.loop.body, tile)
        inner = {v.name: v.type for v in body.values}
        total += times * sum(macs(o, inner) for o in body.ops)
    return total


_ATTENTION_PARAMS = (
    Param("query", "Tensor"),
    Param("key", "Tensor"),
    Param("value", "Tensor"),
    Param("attn_mask", "Tensor?", required=False),
    Param("is_causal", "bool", required=False, default=False),
    Param("scale", "float?", required=False),
    Param("enable_gqa", "bool", required=False, default=False),
)

ROWS: dict[str, OpDef] = {
    row.kind: row
    for row in (
        OpDef(
            "mplan.attention",
            _ATTENTION_PARAMS,
            ("Tensor",),
            _infer_attention,
            attention,
            _attention_macs,
        ),
        OpDef("mplan.copy", (Param("self", "Tensor"),), ("Tensor",), _infer_copy, _copy, _zero),
        OpDef("mplan.loop", (), ("Tensor[]",), _infer_loop, _run_loop, _loop_macs),
    )
}
