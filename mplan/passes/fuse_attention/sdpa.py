"""torch's own attention ops, which say what they are."""

from __future__ import annotations

from collections.abc import Container

from mplan.ir.graph import Arg, Op
from mplan.passes.fuse_attention.views import base_name

#: Arguments by the names that torch's ops give them.
_RENAMED = {"attn_bias": "attn_mask"}
_TAKEN = ("query", "key", "value", "attn_mask", "is_causal", "scale", "enable_gqa")
_OPS = frozenset(
    (
        "scaled_dot_product_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_attention_math",
    )
)


def attention_args(op: Op, used: Container[str]) -> dict[str, Arg] | None:
    """The arguments of ``mplan.attention`` that computes the same; None if ``op`` is no such op.

    ``used`` are the values that some op or the caller reads: an op whose statistics are used (for a
    backward pass) or that drops weights at random stays.
    """
    if base_name(op) not in _OPS or op.results[0] is None:
        return None
    if op.arg("dropout_p", 0.0) != 0.0 or any(v.name in used for v in op.values[1:]):
        return None
    given = {_RENAMED.get(name, name): arg for name, arg in op.args}
    kept = {name: given[name] for name in _TAKEN if name in given}
    return {name: arg for name, arg in kept.items() if arg not in (None, False)}
