"""``mplan.attention`` by PyTorch's fused attention, fed so that it takes its fused path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q·Kᵀ·scale + mask)·V for [*, L, E], [*, S, E], [*, S, Ev] → [*, L, Ev], contiguous.

    PyTorch's flash kernel for CPUs wants four dimensions with the last one dense, and silently falls
    back to materialised scores otherwise (aten/src/ATen/native/transformers/sdp_utils_cpp.cpp).
    """
    from torch.nn.functional import scaled_dot_product_attention

    batch = _batch(query, key, value, enable_gqa)
    query, key, value = (_spread(t, batch, enable_gqa) for t in (query, key, value))
    rank = len(batch) + 2
    q, k, v = (_dense(_four(t)) for t in (query, key, value))
    mask = attn_mask if attn_mask is None or rank == 4 else _mask_four(attn_mask, batch)
    if is_causal and mask is not None:
        mask, is_causal = _causal(mask, query.shape[-2], key.shape[-2]), False
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return out.contiguous().view(*batch, query.shape[-2], value.shape[-1])


def _batch(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> tuple[int, ...]:
    """The batch dimensions of the result; the heads are the query's where they are grouped."""
    import torch

    broadcast: Any = torch.broadcast_shapes
    shapes = [query.shape[:-2], *(t.shape[:-3] if grouped else t.shape[:-2] for t in (key, value))]
    if grouped:
        return (*broadcast(query.shape[:-3], *shapes[1:]), query.shape[-3])
    return tuple(broadcast(*shapes))


def _spread(tensor: Tensor, batch: tuple[int, ...], grouped: bool) -> Tensor:
    """The tensor with batch dimensions ``batch`` (grouped heads as they are); views, no copies."""
    kept = 3 if grouped else 2
    return tensor.expand(*batch[: len(batch) + 2 - kept], *tensor.shape[-kept:])


def _four(tensor: Tensor) -> Tensor:
    """The tensor with exactly two batch dimensions in front of the last two."""
    if tensor.dim() < 4:
        return tensor.reshape(*(1,) * (4 - tensor.dim()), *tensor.shape)
    return tensor if tensor.dim() == 4 else tensor.flatten(0, tensor.dim() - 4)


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _mask_four(mask: Tensor, batch: tuple[int, ...]) -> Tensor:
    """A mask aligned at the right of ``[*batch, L, S]`` as four dimensions."""
    if len(batch) < 2:
        return _four(mask)
    full = mask.reshape(*(1,) * (len(batch) + 2 - mask.dim()), *mask.shape)
    return _four(full.expand(*batch[:-1], *full.shape[-3:]))


def _causal(mask: Tensor, queries: int, keys: int) -> Tensor:
    """``mask`` that also hides key j from query i < j: PyTorch takes one or the other."""
    import torch

    seen = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril()
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
