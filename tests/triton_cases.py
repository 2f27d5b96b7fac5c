"""Runs emitted attention kernels in Triton's interpreter; ``TRITON_INTERPRET=1`` must be set.

Called as a script, since Triton decides at import whether it interprets: prints one JSON object per
case with the largest error, the bytes that were planned and those that were moved.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mplan.codegen.triton.emit import Emitted, emit
from mplan.codegen.triton.private import counted_traffic, load_module
from mplan.codegen.triton.spec import Attention, Tiling
from mplan.ir.own_ops import attention as reference
from mplan.ir.types import DType, TensorType
from mplan.targets.load import load_target


@dataclass(frozen=True)
class Case:
    """One kernel and one call: shapes ``[*batch, rows, depth]`` and so on, blocks, masks."""

    query: tuple[int, ...] = (1, 2, 40, 16)
    key: tuple[int, ...] = (1, 2, 56, 16)
    width: int = 16
    dtype: DType = DType.F32
    causal: bool = False
    grouped: bool = False
    scale: float | None = None
    mask: tuple[int, ...] | None = None
    mask_dtype: DType = DType.F32
    blind: float | None = None
    strides: str = ""
    blocks: tuple[int, int] = (16, 16)
    call: dict[str, Any] = field(default_factory=dict)


CASES = {
    "one tile": Case(query=(1, 1, 16, 16), key=(1, 1, 16, 16)),
    "several tiles": Case(query=(2, 2, 48, 16), key=(2, 2, 64, 16), blocks=(16, 32)),
    "odd lengths": Case(query=(1, 2, 37, 16), key=(1, 2, 53, 16)),
    "odd heads": Case(query=(1, 2, 37, 20), key=(1, 2, 21, 20), width=36),
    "heads of 64 in half precision": Case(
        (1, 1, 70, 64), (1, 1, 70, 64), 64, DType.F16, blocks=(32, 16)
    ),
    "causal": Case((1, 2, 64, 16), (1, 2, 64, 16), causal=True),
    "causal, odd": Case((1, 2, 61, 16), (1, 2, 61, 16), causal=True, blocks=(32, 16)),
    "causal, wide tiles of keys": Case((1, 1, 61, 16), (1, 1, 61, 16), causal=True, blocks=(16, 32)),
    "causal, more keys": Case((1, 1, 23, 16), (1, 1, 50, 16), causal=True),
    "causal, more queries": Case((1, 1, 50, 16), (1, 1, 23, 16), causal=True),
    "causal in half precision": Case((2, 1, 45, 32), (2, 1, 45, 32), 32, DType.F16, causal=True),
    "one query": Case((2, 2, 1, 16), (2, 2, 33, 16)),
    "one key": Case((2, 2, 5, 16), (2, 2, 1, 16)),
    "scale": Case(scale=1.7),
    "negative scale": Case(scale=-0.4),
    "scale of zero": Case(scale=0.0),
    "additive mask": Case(mask=(1, 2, 40, 56)),
    "additive mask for all heads": Case(mask=(40, 56)),
    "additive mask of keys": Case(mask=(1, 1, 1, 56)),
    "additive mask of keys, one dimension": Case(mask=(56,)),
    "additive mask of queries": Case(mask=(1, 2, 40, 1)),
    "additive mask in half precision": Case(dtype=DType.F16, mask=(1, 2, 40, 56), mask_dtype=DType.F16),
    "boolean mask": Case(mask=(1, 2, 40, 56), mask_dtype=DType.BOOL),
    "boolean mask of keys": Case(mask=(1, 1, 1, 56), mask_dtype=DType.BOOL),
    "boolean mask, causal": Case(mask=(40, 56), mask_dtype=DType.BOOL, causal=True),
    "additive mask, causal": Case(mask=(40, 56), causal=True),
    "additive mask, negative scale": Case(mask=(40, 56), scale=-0.3),
    "queries without keys": Case(mask=(40, 56), blind=float("-inf")),
    "queries without keys, boolean": Case(mask=(40, 56), blind=float("-inf"), mask_dtype=DType.BOOL),
    "queries with the lowest mask": Case(mask=(40, 56), blind=torch.finfo(torch.float32).min),
    "groups of heads": Case((2, 6, 20, 16), (2, 2, 33, 16), grouped=True),
    "groups, causal": Case((2, 6, 33, 16), (2, 3, 33, 16), grouped=True, causal=True),
    "groups with a mask per head": Case((2, 4, 20, 16), (2, 2, 33, 16), grouped=True, mask=(4, 20, 33)),
    "groups with a mask": Case((2, 4, 20, 16), (2, 2, 33, 16), grouped=True, mask=(2, 1, 20, 33)),
    "one head for all": Case((2, 4, 20, 16), (2, 1, 33, 16), grouped=True),
    "broadcast batch": Case((2, 1, 20, 16), (1, 3, 33, 16)),
    "no batch": Case((20, 16), (33, 16)),
    "one batch dimension": Case((3, 20, 16), (3, 33, 16)),
    "three batch dimensions": Case((2, 1, 2, 20, 16), (2, 3, 1, 33, 16)),
    "heads behind the length": Case((2, 3, 20, 16), (2, 3, 33, 16), strides="heads last"),
    "transposed": Case((2, 3, 20, 16), (2, 3, 33, 16), strides="transposed"),
    "packed": Case((2, 3, 33, 16), (2, 3, 33, 16), strides="packed"),
    "result in place": Case((2, 3, 20, 16), (2, 3, 33, 16), call={"out": True}),
    "other lengths than planned": Case(call={"rows": 51, "keys": 18}),
}


def tensor(shape: tuple[int, ...], dtype: torch.dtype, strides: str) -> torch.Tensor:
    if strides == "heads last":
        return torch.randn(*shape[:-3], shape[-2], shape[-3], shape[-1], dtype=dtype).transpose(-3, -2)
    if strides == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT
    if strides == "packed":
        return torch.randn(*shape, 3, dtype=dtype)[..., 1]
    return torch.randn(*shape, dtype=dtype)


def inputs(case: Case, rows: int, keys: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype.torch_name)
    query, key = (*case.query[:-2], rows, case.query[-1]), (*case.key[:-2], keys, case.key[-1])
    found = {
        "query": tensor(query, dtype, case.strides),
        "key": tensor(key, dtype, case.strides),
        "value": tensor((*key[:-1], case.width), dtype, case.strides),
    }
    if case.mask:
        mask = torch.randn(case.mask)
        if case.blind is not None:
            mask[3] = case.blind
            mask[5, ::2] = case.blind
        boolean = mask > -1.0 if case.blind is None else mask != case.blind
        boolean[..., 0] |= case.blind is None  # leave every query a key
        found["mask"] = boolean if case.mask_dtype is DType.BOOL else mask
        if case.mask_dtype is DType.F16:
            found["mask"] = mask.half()
    return found


def emitted(case: Case) -> Emitted:
    values = inputs(case, case.query[-2], case.key[-2])
    types = {
        name: TensorType(DType.of_torch(str(t.dtype)), tuple(t.shape)) for name, t in values.items()
    }
    spec = Attention(**types, is_causal=case.causal, scale=case.scale, grouped=case.grouped)
    assert spec.obstacle == ""
    return emit(spec, load_target("h100"), (Tiling(*case.blocks, 4, 2),))


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    made = emitted(case)
    path = folder / f"kernel_{made.digest[:16]}.py"
    path.write_text(made.source)
    module = load_module(path, path.stem)
    values = inputs(case, case.call.get("rows", case.query[-2]), case.call.get("keys", case.key[-2]))
    options: dict[str, Any] = {"is_causal": case.causal, "scale": case.scale}
    named = {
        "attn_mask" if k == "mask" else k: v.double() if v.is_floating_point() else v
        for k, v in values.items()
    }
    wanted = reference(**named, **options, enable_gqa=case.grouped)
    out = None
    if case.call.get("out"):
        out = torch.full((*wanted.shape[:-1], 2 * wanted.shape[-1]), 7.0)[..., ::2]
    with counted_traffic() as traffic:
        found = module.run(**values, out=out)
    assert out is None or found is out
    return {
        "error": float((found.double() - wanted).abs().max()),
        "shape": list(found.shape) == list(wanted.shape),
        "planned": made.moved_bytes,
        "moved": traffic.moved_bytes,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            print(json.dumps({"name": name, **run_case(case, Path(folder))}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
