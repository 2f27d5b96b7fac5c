"""``mplan.attention``: its reference against PyTorch's attention, and its shape rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mplan.diagnostics import UserError
from mplan.ir.ops import lookup
from mplan.ir.types import DType, Sym, TensorType


def f(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


ATTENTION: list[dict[str, Any]] = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"attn_mask": torch.rand(5, 7) > 0.4},
    {"attn_mask": torch.randn(2, 1, 5, 7)},
    {"enable_gqa": True},
]


@pytest.mark.parametrize("options", ATTENTION, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_attention_is_torchs(options: dict[str, Any], dtype: torch.dtype) -> None:
    heads = 2 if options.get("enable_gqa") else 4
    q, k, v = (t.to(dtype) for t in (f(2, 4, 5, 8), f(2, heads, 7, 8), f(2, heads, 7, 3)))
    mask = options.get("attn_mask")
    exact = {key: value for key, value in options.items() if key != "attn_mask"}
    if mask is not None:
        exact["attn_mask"] = mask if mask.dtype == torch.bool else mask.double()
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **exact)
    result = lookup("mplan.attention").reference(query=q, key=k, value=v, **options)
    assert result.dtype == dtype
    limits = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}
    torch.testing.assert_close(result.double(), expected, rtol=limits[dtype], atol=limits[dtype])


def test_a_query_without_keys_yields_zero() -> None:
    q, k, v = f(3, 4), f(5, 4), f(5, 2)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    out = lookup("mplan.attention").reference(query=q, key=k, value=v, attn_mask=mask)
    assert torch.equal(out[1], torch.zeros(2))
    assert out.isfinite().all() and out[0].abs().sum() > 0


def test_mask_and_causality_combine() -> None:
    q, k, v = f(3, 4), f(3, 4), f(3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1]], dtype=torch.bool)
    out = lookup("mplan.attention").reference(query=q, key=k, value=v, attn_mask=mask, is_causal=True)
    torch.testing.assert_close(out[1], v[0])
    expected = F.scaled_dot_product_attention(
        q[None], k[None], v[None], (mask & mask.new_ones(3, 3).tril())[None]
    )
    torch.testing.assert_close(out, expected[0])


WRONG_ATTENTION = [
    ((2, 5, 8), (2, 7, 8), (2, 7, 8), {"value": TensorType(DType.F16, (2, 7, 8))}, "one float type"),
    ((2, Sym("n"), 8), (2, 7, 8), (2, 7, 8), {}, "symbolic"),
    ((2, 5, 8), (2, 7, 9), (2, 7, 8), {}, "E or S differ"),
    ((2, 5, 8), (2, 7, 8), (2, 6, 8), {}, "E or S differ"),
    ((2, 5, 8), (3, 7, 8), (3, 7, 8), {}, "do not broadcast"),
    ((8,), (7, 8), (7, 8), {}, "two dimensions"),
    ((3, 5, 8), (2, 7, 8), (2, 7, 8), {"enable_gqa": True}, "heads cannot be grouped"),
    ((2, 5, 8), (2, 7, 8), (2, 7, 8), {"attn_mask": TensorType(DType.F32, (5, 6))}, "broadcast"),
    (
        (2, 5, 8),
        (2, 7, 8),
        (2, 7, 8),
        {"attn_mask": TensorType(DType.F32, (3, 2, 5, 7))},
        "does not fit",
    ),
]


@pytest.mark.parametrize(("q", "k", "v", "options", "message"), WRONG_ATTENTION)
def test_wrong_attention(q: Any, k: Any, v: Any, options: dict[str, Any], message: str) -> None:
    types = {n: TensorType(DType.F32, s) for n, s in (("query", q), ("key", k), ("value", v))}
    with pytest.raises(UserError) as caught:
        lookup("mplan.attention").infer({**types, **options})
    assert caught.value.code in ("MP105", "MP107")
    assert message in caught.value.message
