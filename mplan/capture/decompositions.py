"""Ops without an integer form, before quantisation, in ops that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def taken_apart(table: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Decompositions by op; those that return ``NotImplemented`` leave it whole.

    ``table`` has decompositions of transposed convolutions.
    """
    import torch

    aten = torch.ops.aten
    transposed = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
    return {
        **{op: partial(_transposed, table[op]) for op in transposed},
        aten.scaled_dot_product_attention.default: _attention,
        aten.glu.default: _gated,
        aten._log_softmax.default: _log_softmax,
        aten.logsumexp.default: _log_sum,
        aten.log_sigmoid_forward.default: _log_sigmoid,
        aten.lerp.Scalar: _between,
        aten.lerp.Tensor: _between,
        aten.addcmul.default: _product_added,
        aten.max.dim: _largest,
        aten._pad_circular.default: _padded_around,
        aten.upsample_linear1d.default: _line_resized,
        aten._adaptive_avg_pool2d.default: _adaptive_means,
    }


def _transposed(decomposed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A transposed convolution stays whole, so that a batch norm folds into it.

    Those in groups are ``decomposed``: torchao would scale the wrong dimension of their weights.
    """
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    return NotImplemented if groups == 1 else decomposed(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention in ops that have integer forms; with a mask it has none and stays whole."""
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        return NotImplemented
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * factor
    return scores.softmax(-1) @ value


def _gated(x: Tensor, dim: int = -1) -> Tensor:
    """A gated linear unit in ops that have integer forms."""
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """The logarithm of a softmax."""
    less = x - x.amax(dim, keepdim=True)
    return less - less.exp().sum(dim, keepdim=True).log()


def _log_sum(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
    """The logarithm of a sum of exponentials."""
    largest = x.amax(dim, keepdim=True)
    result = largest + (x - largest).exp().sum(dim, keepdim=True).log()
    return result if keepdim else result.squeeze(dim)


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of a sigmoid, and nothing in the place of what a GPU keeps for its gradient."""
    import torch

    return -torch.nn.functional.softplus(-x), x.new_zeros(0)


def _between(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Numbers between two."""
    return start + (end - start) * weight


def _product_added(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    """A sum with a product."""
    return x + (a * b if value == 1 else a * b * value)


def _largest(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Maxima along a dimension and their places."""
    return x.amax(dim, keepdim), x.argmax(dim, keepdim)


def _padded_around(x: Tensor, pad: Sequence[int]) -> Tensor:
    """Each dimension continued by its other end; ``pad`` has (before, after), the last one first."""
    import torch

    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = x.dim() - 1 - i
        length = x.shape[dim]
        ends = [x.narrow(dim, length - before, before), x, x.narrow(dim, 0, after)]
        x = torch.cat([part for part in ends if part.shape[dim]], dim)
    return x


def _line_resized(
    x: Tensor, output_size: Sequence[int], align_corners: bool, scales: float | None = None
) -> Tensor:
    """A line is an image of one row."""
    import torch

    sized = [1, *output_size], align_corners, None
    scaled = None, align_corners, [1.0, scales]
    resize = torch.ops.aten.upsample_bilinear2d.vec
    resized: Tensor = resize(x.unsqueeze(-2), *(scaled if scales else sized))
    return resized.squeeze(-2)


def _adaptive_means(x: Tensor, output_size: Sequence[int]) -> Any:
    """Means of windows that overlap are two linear layers, whose weights int8 holds exactly."""
    import torch

    pairs = list(zip(x.shape[-2:], output_size, strict=True))
    if all(length % count == 0 for length, count in pairs):
        return NotImplemented
    for dim, (length, count) in zip((-2, -1), pairs, strict=True):
        first, place = torch.arange(count)[:, None] * length, torch.arange(length)
        inside = (place >= first // count) & (place < (first + length + count - 1) // count)
        shares = inside / inside.sum(1, keepdim=True)
        x = torch.nn.functional.linear(x.transpose(dim, -1), shares).transpose(dim, -1)
    return x
