"""Attention, one head at a time, without a matrix of scores.

The running maximum is the online softmax of Milakov and Gimelshein, "Online normalizer calculation
for softmax" (2018), applied to attention as in Rabe and Staats, "Self-attention does not need O(n²)
memory" (2021). A query that sees no key yields zeros.
"""

from __future__ import annotations

from functools import partial

from mplan.codegen.c.render import function
from mplan.codegen.c.structs import invoke_with
from mplan.codegen.c.table import Site, kernel
from mplan.codegen.c.tensors import Code, Tensor, each
from mplan.codegen.c.text import literal
from mplan.ir.types import DType

#: What the mask's type adds to the kernel: a parameter, a term of the score, a condition.
_MASKS = {
    None: ("attention", "", "", ""),
    DType.F32: (
        "attention_bias",
        "const float *mask, ",
        " + mask[i * p->mask_row + j * p->mask_column]",
        "",
    ),
    DType.BOOL: (
        "attention_mask",
        "const uint8_t *mask, ",
        "",
        "!mask[i * p->mask_row + j * p->mask_column] || ",
    ),
}


@kernel("mplan.attention", "aten.scaled_dot_product_attention.default")
def attention(site: Site) -> Code:
    """``softmax(q kᵀ · scale + mask) v`` for every image and head; keys may be shared by heads."""
    q, k, v = (site.tensor(name) for name in ("query", "key", "value"))
    mask, y = site.maybe("attn_mask"), site.result
    site.require_float(q, k, v)
    site.require(not site.arg("dropout_p"), "with dropout")
    site.require(mask is None or mask.dtype in _MASKS, "with a mask of another type")
    scale = site.optional_number("scale")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch = y.shape[:-2]
    scores = mask and mask.expand((*batch, q.shape[-2], k.shape[-2]))
    if site.arg("enable_gqa"):
        site.require(k.shape[-3] == v.shape[-3], "with groups of keys and values that differ")
        groups = (k.shape[-3], batch[-1] // k.shape[-3])
        q, y = _heads(q, groups), _heads(y, groups)
        scores = scores and _heads(scores, groups)
        k, v = (_heads(t, (groups[0], 1)) for t in (k, v))
        batch = (*batch[:-1], *groups)
    wide = [t.expand((*batch, *t.shape[-2:])) for t in (q, k, v)]
    causal = int(bool(site.arg("is_causal")))
    return each([y, *wide, scores], 2, partial(_head, scale=scale, causal=causal))


def _heads(tensor: Tensor, sizes: tuple[int, int]) -> Tensor:
    return tensor.unflatten(tensor.rank - 3, sizes)


def _head(
    y: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, causal: int
) -> Code:
    name, parameter, added, hidden = _MASKS[mask.dtype if mask else None]
    fields: dict[str, int | str] = {"queries": q.shape[0], "keys": k.shape[0]}
    fields |= {"depth": q.shape[1], "width": v.shape[1], "causal": causal}
    for letter, tensor in (("q", q), ("k", k), ("v", v), ("y", y), ("mask", mask)):
        if tensor:
            fields |= {f"{letter}_row": tensor.strides[0], f"{letter}_column": tensor.strides[1]}
    fields["scale"] = literal(scale, DType.F32)
    struct = function("attention_t")
    made = function(name, "attention", (struct,), parameter=parameter, added=added, hidden=hidden)
    return invoke_with(made, struct, fields, q, k, v, *([mask] if mask else []), y)
