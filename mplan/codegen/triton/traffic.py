"""The bytes that a fused attention kernel moves between device memory and the chip."""

from __future__ import annotations

from mplan.codegen.triton.spec import Attention, Tiling


def attention_bytes(attention: Attention, tiling: Tiling) -> int:
    """Bytes that the kernel loads and stores: what its tiles need, counted each time it is read.

    A tile of queries is loaded once and its result stored once; the keys and values that it sees,
    and the mask for them, are loaded once per tile of queries. Caches are not taken into account.
    """
    return attention.programs * sum(
        _tile_bytes(attention, first, min(tiling.block_q, attention.rows - first))
        for first in range(0, attention.rows, tiling.block_q)
    )


def _tile_bytes(attention: Attention, first: int, rows: int) -> int:
    keys = min(attention.keys, first + rows) if attention.is_causal else attention.keys
    elements = (rows + keys) * (attention.depth + attention.width)
    found = elements * attention.dtype.itemsize
    if attention.mask is not None:
        per_row = keys if attention.mask_keys else 1
        found += (rows if attention.mask_rows else 1) * per_row * attention.mask.dtype.itemsize
    return found


def spelled_out_bytes(attention: Attention) -> int:
    """Bytes that attention moves as separate ops: product, scale and mask, softmax, product.

    Each op reads its operands and writes its result once, so scores and weights of all queries and
    keys are written and read in full.
    """
    a = attention
    scores = a.programs * a.rows * a.keys * a.dtype.itemsize
    inputs = a.programs * (a.rows + a.keys) * (a.depth + a.width) * a.dtype.itemsize
    masking = 2 if a.mask is not None or a.is_causal else 0
    return inputs + scores * (2 + 2 + 2 + masking)
