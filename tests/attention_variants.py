"""Attention as people write it: variants that must be recognised.

Each variant is a function of the tensors that ``INPUTS`` names; sizes are all different and odd, so
that a mix-up of axes cannot go unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

B, H, L, S, E, V = 2, 6, 5, 7, 8, 9
G = 3  # queries per head of key and value
INF = float("inf")
LOW = torch.finfo(torch.float32).min

Inputs = tuple[Tensor, ...]
VARIANTS: dict[str, tuple[Callable[..., Any], Callable[[], Inputs]]] = {}


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def qkv(length: int = L, keys: int = S) -> Inputs:
    return rand(B, H, length, E), rand(B, H, keys, E), rand(B, H, keys, V)


def square() -> Inputs:
    return qkv(S, S)


def with_padding() -> Inputs:
    keep = torch.ones(B, S, dtype=torch.bool)
    keep[0, 4:] = False
    keep[1, 1] = False
    return (*qkv(), keep)


def variant(inputs: Callable[[], Inputs] = qkv) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        VARIANTS[function.__name__] = (function, inputs)
        return function

    return add


# --- where the scale stands ---------------------------------------------------------------------


@variant()
def scale_divides_scores(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(E), dim=-1) @ v


@variant()
def scale_multiplies_scores(q, k, v):
    return F.softmax((q @ k.mT) * E**-0.5, dim=-1) @ v


@variant()
def scale_on_query(q, k, v):
    return ((q * 0.3) @ k.transpose(2, 3)).softmax(3) @ v


@variant()
def scale_on_key(q, k, v):
    return (q @ (k / 2.5).transpose(2, 3)).softmax(-1) @ v


@variant()
def scale_on_both_and_scores(q, k, v):
    root = E**-0.25
    return ((q * root) @ (k.transpose(-1, -2) * root) * 0.7 / 1.3).softmax(-1) @ v


@variant()
def scale_is_a_tensor(q, k, v):
    scores = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], E**0.5)
    return torch.matmul(scores.softmax(-1), v)


@variant()
def no_scale(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


@variant()
def negative_scale(q, k, v):
    return torch.softmax(-(q @ k.transpose(-2, -1)) * 0.5, -1) @ v


@variant(lambda: (*qkv(), rand(H, 1, 1)))
def temperature_per_head(q, k, v, t):
    return torch.softmax(q @ k.transpose(-2, -1) * t.exp(), -1) @ v


@variant(lambda: (*qkv(), rand(B, 1, L, 1)))
def temperature_per_query(q, k, v, t):
    return torch.softmax(q @ k.transpose(-2, -1) / (t.abs() + 1), -1) @ v


# --- how the products are written ---------------------------------------------------------------


@variant()
def einsum_twice(q, k, v):
    weights = torch.einsum("bhld,bhsd->bhls", q, k).mul(0.4).softmax(-1)
    return torch.einsum("bhls,bhsd->bhld", weights, v)


@variant(lambda: (rand(B, L, H, E), rand(B, S, H, E), rand(B, S, H, V)))
def einsum_heads_after_length(q, k, v):
    scores = torch.einsum("blhd,bshd->bhls", q, k) / math.sqrt(E)
    return torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v)


@variant(lambda: (rand(B, L, H, E), rand(B, S, H, E), rand(B, S, H, V)))
def einsum_keys_before_queries(q, k, v):
    scores = torch.einsum("bshd,blhd->bhsl", k, q)
    return torch.einsum("bhsl,bshd->blhd", scores.softmax(2), v)


@variant(lambda: tuple(t.flatten(0, 1) for t in qkv()))
def bmm(q, k, v):
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.2, dim=2), v)


@variant(lambda: (*(t.flatten(0, 1) for t in qkv()), rand(B * H, 1, S)))
def baddbmm_with_alibi(q, k, v, alibi):
    scores = torch.baddbmm(alibi, q, k.transpose(1, 2), beta=0.9, alpha=0.35)
    return torch.bmm(scores.softmax(-1), v)


@variant(lambda: (*qkv(), rand(B, H, L, S)))
def flattened_around_a_bias(q, k, v, bias):
    scores = torch.bmm(q.reshape(B * H, L, E), k.reshape(B * H, S, E).transpose(1, 2))
    scores = (scores.view(B, H, L, S) + bias).view(B * H, L, S)
    return torch.bmm(scores.softmax(-1), v.reshape(B * H, S, V)).view(B, H, L, V)


@variant(lambda: tuple(t[0, 0] for t in qkv()))
def without_batch(q, k, v):
    return torch.mm(torch.softmax(torch.mm(q, k.t()) * 0.5, 1), v)


@variant(lambda: tuple(t[0] for t in qkv()))
def one_batch_dimension(q, k, v):
    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(1, 2)), -1), v)


@variant(lambda: (rand(2, 1, 3, L, E), rand(1, 4, 3, S, E), rand(2, 4, 1, S, V)))
def three_batch_dimensions_that_broadcast(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / 3, -1) @ v


@variant()
def transposed_throughout(q, k, v):
    scores = k @ q.transpose(-1, -2) * 0.5  # [B, H, S, L]
    weights = torch.softmax(scores, dim=-2)
    return (v.transpose(-1, -2) @ weights).transpose(-1, -2)


@variant(lambda: (rand(B, L, H * E), rand(B, S, H * E), rand(B, S, H * E)))
def heads_split_and_merged(q, k, v):
    def split(t):
        return t.view(B, -1, H, E).transpose(1, 2)

    weights = torch.softmax(split(q) @ split(k).transpose(-2, -1) / math.sqrt(E), -1)
    return (weights @ split(v)).transpose(1, 2).reshape(B, L, H * E)


@variant(lambda: (rand(B, S, 3 * H * E),))
def packed_projection(x):
    q, k, v = x.view(B, S, 3, H, E).permute(2, 0, 3, 1, 4).unbind(0)
    return ((q * E**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


@variant(lambda: (rand(B, L, E), rand(B, S, E), rand(B, S, V)))
def cross_attention_with_one_query_row(q, k, v):
    one = q[:, :1]
    return torch.softmax(one @ k.transpose(1, 2), -1) @ v


@variant(lambda: (rand(H, E), rand(B, S, H, E), rand(B, S, H, V)))
def learned_queries(q, k, v):
    scores = torch.einsum("hd,bshd->bhs", q, k)
    return torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v)


@variant(lambda: (rand(B, E, 3, 4), rand(B, E, 3, 4), rand(B, V, 3, 4)))
def image_positions(q, k, v):
    q, k, v = (t.flatten(2) for t in (q, k, v))
    weights = torch.softmax(q.transpose(1, 2) @ k * 0.1, -1)
    return (v @ weights.transpose(1, 2)).view(B, V, 3, 4)


# --- grouped heads ------------------------------------------------------------------------------


def grouped() -> Inputs:
    return rand(B, H, L, E), rand(B, H // G, S, E), rand(B, H // G, S, V)


@variant(grouped)
def grouped_by_repeat_interleave(q, k, v):
    k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
    return torch.softmax(q @ k.transpose(2, 3) / math.sqrt(E), -1) @ v


@variant(grouped)
def grouped_by_expand(q, k, v):
    def spread(t):
        b, h, s, d = t.shape
        return t[:, :, None, :, :].expand(b, h, G, s, d).reshape(b, h * G, s, d)

    return torch.softmax(q @ spread(k).transpose(2, 3) / math.sqrt(E), -1) @ spread(v)


@variant(grouped)
def queries_of_a_head_as_an_axis(q, k, v):
    q = q.view(B, H // G, G, L, E)
    weights = torch.einsum("bhgld,bhsd->bhgls", q, k).softmax(-1)
    return torch.einsum("bhgls,bhsd->bhgld", weights, v).reshape(B, H, L, V)


@variant(grouped)
def heads_tiled_in_turn(q, k, v):
    k, v = k.repeat(1, G, 1, 1), v.repeat(1, G, 1, 1)
    return torch.softmax(q @ k.transpose(2, 3), -1) @ v


@variant(lambda: (rand(B, H, L, E), rand(B, S, E), rand(B, S, V)))
def one_head_of_keys(q, k, v):
    weights = torch.softmax(q @ k[:, None].transpose(-1, -2) * 0.3, -1)
    return weights @ v[:, None].expand(B, H, S, V)


# --- masks --------------------------------------------------------------------------------------


@variant(square)
def causal_tril_masked_fill(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    keep = torch.tril(torch.ones(S, S, dtype=torch.bool))
    return scores.masked_fill(~keep, -INF).softmax(-1) @ v


@variant(square)
def causal_triu_additive(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    return (scores + torch.full((S, S), -INF).triu(1)).softmax(-1) @ v


@variant(square)
def causal_where_lowest(q, k, v):
    scores = q @ k.transpose(-2, -1) * 0.4
    keep = torch.arange(S)[:, None] >= torch.arange(S)[None, :]
    return torch.where(keep, scores, LOW).softmax(-1) @ v


@variant(square)
def causal_tril_equals_zero(q, k, v):
    scores = q @ k.transpose(-2, -1) * 0.4
    mask = torch.tril(torch.ones(S, S)).view(1, 1, S, S)
    return scores.masked_fill(mask[:, :, :S, :S] == 0, -1e9).softmax(-1) @ v


@variant(square)
def causal_before_the_scale(q, k, v):
    scores = (q @ k.transpose(-2, -1)).masked_fill(torch.ones(S, S).triu(1).bool(), -INF)
    return (scores / math.sqrt(E)).softmax(-1) @ v


@variant(lambda: (*square(), with_padding()[3]))
def causal_and_padding(q, k, v, keep):
    scores = q @ k.transpose(-2, -1) * 0.4
    visible = torch.ones(S, S, dtype=torch.bool).tril() & keep[:, None, None, :]
    return torch.where(visible, scores, -INF).softmax(-1) @ v


@variant(square)
def causal_window_of_keys(q, k, v):
    rows, cols = torch.arange(S)[:, None], torch.arange(S)[None, :]
    near = (rows >= cols) & (rows - cols < 3)
    return (q @ k.transpose(-2, -1)).masked_fill(~near, -INF).softmax(-1) @ v


@variant(square)
def soft_window_of_keys(q, k, v):
    far = (torch.arange(S)[:, None] - torch.arange(S)[None, :]).abs() > 2
    return torch.where(far, LOW, q @ k.transpose(-2, -1)).softmax(-1) @ v


@variant(with_padding)
def padding_masked_fill(q, k, v, keep):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    return scores.masked_fill(keep.logical_not()[:, None, None, :], -INF).softmax(-1) @ v


@variant(with_padding)
def padding_additive_lowest(q, k, v, keep):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    return (scores + (1.0 - keep[:, None, None, :].float()) * LOW).softmax(-1) @ v


@variant(with_padding)
def padding_where_finite(q, k, v, keep):
    scores = q @ k.transpose(-2, -1)
    return torch.where(keep[:, None, None, :], scores, -1e9).softmax(-1) @ v


def blind_queries() -> Inputs:
    keep = torch.rand(B, 1, L, S) > 0.5
    keep[0, :, 2] = False
    return (*qkv(), keep)


@variant(blind_queries)
def finite_mask_with_blind_queries(q, k, v, keep):
    return (q @ k.transpose(-2, -1)).masked_fill(~keep, LOW).softmax(-1) @ v


def left_padded() -> Inputs:
    keep = torch.ones(B, S, dtype=torch.bool)
    keep[1, :3] = False
    return (*square(), keep)


@variant(left_padded)
def soft_triangle_and_padding_with_blind_queries(q, k, v, keep):
    triangle = torch.ones(S, S, dtype=torch.bool).tril()
    visible = triangle & keep[:, None, None, :]
    return torch.where(visible, q @ k.transpose(-2, -1), LOW).softmax(-1) @ v


@variant(left_padded)
def soft_triangle_then_padding_with_blind_queries(q, k, v, keep):
    scores = (q @ k.transpose(-2, -1)).masked_fill(torch.ones(S, S).triu(1) > 0, LOW)
    return (scores + torch.where(keep, 0.0, LOW)[:, None, None, :]).softmax(-1) @ v


@variant(lambda: (*square(), rand(H, S, S)))
def soft_triangle_with_bias_that_might_hide_keys(q, k, v, bias):
    scores = (q @ k.transpose(-2, -1)) + bias
    return scores.masked_fill(torch.ones(S, S).triu(1) > 0, -1e9).softmax(-1) @ v


@variant(lambda: (*qkv(), rand(1, H, L, S)))
def relative_position_bias(q, k, v, bias):
    return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v


@variant(lambda: (*square(), rand(B, S, S, 4), rand(4, H)))
def bias_from_a_linear_layer(q, k, v, pairs, w):
    bias = torch.einsum("bijc,ch->bhij", pairs, w)
    return (bias + q @ k.transpose(-2, -1) / math.sqrt(E)).softmax(-1) @ v


@variant(lambda: (*square(), rand(B, S, S, 4), rand(4, H)))
def scores_and_bias_from_a_linear_layer(q, k, v, pairs, w):
    return (q @ k.transpose(-2, -1) + (pairs @ w).permute(0, 3, 1, 2)).softmax(-1) @ v


@variant(lambda: (*with_padding(), rand(H, L, S)))
def bias_then_mask(q, k, v, keep, bias):
    scores = bias * 0.5 - -(q @ k.transpose(-2, -1))
    return scores.masked_fill(~keep[:, None, None], -INF).softmax(-1) @ v


@variant(lambda: (rand(B * 4, H, S, E), rand(B * 4, H, S, E), rand(B * 4, H, S, V), rand(4, S, S)))
def shifted_windows(q, k, v, mask):
    scores = q @ k.transpose(-2, -1)
    scores = scores.view(B, 4, H, S, S) + mask.unsqueeze(1).unsqueeze(0)
    return scores.view(B * 4, H, S, S).softmax(-1) @ v


# --- the softmax --------------------------------------------------------------------------------


@variant()
def softmax_in_pieces(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@variant()
def softmax_with_max_values(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    e = (scores - scores.max(dim=-1, keepdim=True).values).exp()
    return torch.matmul(e / e.sum(-1)[..., None], v)


@variant()
def softmax_by_logsumexp(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(E)
    return torch.exp(scores - scores.logsumexp(-1, keepdim=True)) @ v


@variant()
def softmax_by_log_softmax(q, k, v):
    return F.log_softmax(q @ k.transpose(-2, -1), -1).exp() @ v


@variant()
def stabilised_by_hand(q, k, v):
    scores = q @ k.transpose(-2, -1)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    return scores.softmax(-1) @ v


@variant()
def dropout_switched_off(q, k, v):
    weights = F.dropout(torch.softmax(q @ k.transpose(-2, -1), -1), 0.1, training=False)
    return weights @ v


@variant(lambda: tuple(t.bfloat16() for t in qkv()))
def softmax_in_float32(q, k, v):
    scores = q @ k.transpose(-2, -1) * E**-0.5
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@variant(lambda: tuple(t.bfloat16() for t in qkv()))
def scores_in_float32(q, k, v):
    scores = q.float() @ k.float().transpose(-2, -1) * E**-0.5
    return scores.softmax(-1).to(v.dtype) @ v


@variant(lambda: tuple(t.half() for t in qkv()))
def all_in_float32(q, k, v):
    weights = torch.softmax(q.float() @ k.float().transpose(-2, -1), -1)
    return (weights @ v.float()).half()


@variant()
def fused_already(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=0.3)
