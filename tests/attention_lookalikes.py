"""Look-alikes of attention, which must not be fused: function, inputs, and a part of the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tests.attention_variants import B, E, H, Inputs, L, S, V, qkv, rand, square, with_padding

OTHERS: dict[str, tuple[Callable[..., Any], Callable[[], Inputs], str]] = {}


def other(
    reason: str, inputs: Callable[[], Inputs] = qkv
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        OTHERS[function.__name__] = (function, inputs, reason)
        return function

    return add


@other("another axis", square)
def softmax_over_queries(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), dim=-2) @ v


@other("another axis", square)
def softmax_over_heads(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), dim=1) @ v


@other("part of the keys", lambda: (rand(B, H, L, E), rand(B, H, 8, E), rand(B, H, 8, V)))
def softmax_over_groups_of_keys(q, k, v):
    scores = (q @ k.transpose(-2, -1)).view(B, H, L, 2, 4)
    return scores.softmax(-1).view(B, H, L, 8) @ v


@other("returned by the model")
def weights_returned(q, k, v):
    weights = torch.softmax(q @ k.transpose(-2, -1), -1)
    return weights @ v, weights


@other("also used by")
def scores_used_elsewhere(q, k, v):
    scores = q @ k.transpose(-2, -1)
    return scores.softmax(-1) @ v, scores.square().mean()


@other("dropout is active")
def dropout_active(q, k, v):
    return F.dropout(torch.softmax(q @ k.transpose(-2, -1), -1), 0.5, training=True) @ v


@other("soft cap")
def soft_cap(q, k, v):
    return torch.softmax(torch.tanh(q @ k.transpose(-2, -1) / 30) * 30, -1) @ v


@other("still has weight", with_padding)
def mask_with_a_mild_number(q, k, v, keep):
    return (q @ k.transpose(-2, -1)).masked_fill(keep[:, None, None], -2.0).softmax(-1) @ v


@other("differs between keys", lambda: (*qkv(), rand(S)))
def scores_weighted_by_key(q, k, v, w):
    return torch.softmax(q @ k.transpose(-2, -1) * w, -1) @ v


@other("masked after the softmax", with_padding)
def weights_masked_after_softmax(q, k, v, keep):
    weights = torch.softmax(q @ k.transpose(-2, -1), -1)
    return torch.where(keep[:, None, None], weights, 0.0) @ v


@other("divisor is not the sum", square)
def divided_by_another_sum(q, k, v):
    e = torch.exp(q @ k.transpose(-2, -1))
    return (e / e.sum(-2, keepdim=True)) @ v


@other("not a product of queries and keys", lambda: (rand(B, H, L, S), rand(B, H, S, V)))
def softmax_of_an_input(scores, v):
    return scores.softmax(-1) @ v


@other("aten.slice.Tensor stands between", lambda: (*qkv(), rand(B, H, L, 1)))
def attention_sink(q, k, v, sink):
    scores = torch.cat([q @ k.transpose(-2, -1), sink], -1)
    return scores.softmax(-1)[..., :-1] @ v
