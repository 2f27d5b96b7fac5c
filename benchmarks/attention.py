"""Generated attention kernels: speed on a GPU, bytes moved, and what they need of the chip.

    python benchmarks/attention.py              # on a GPU: TFLOP/s beside SDPA and FlexAttention
    python benchmarks/attention.py --bytes      # bytes that kernels move (the default without a GPU)
    python benchmarks/attention.py --kernels    # registers, spills and shared memory of all tilings

``--kernels`` compiles for all GPUs without needing one and fails if a kernel for heads of 64 or 128
elements spills.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mplan.codegen.triton.cross_compile import compile_for
from mplan.codegen.triton.emit import emit
from mplan.codegen.triton.spec import Attention
from mplan.codegen.triton.tilings import shared_bytes, tilings_for
from mplan.codegen.triton.traffic import attention_bytes, spelled_out_bytes
from mplan.ir.types import DType, TensorType
from mplan.targets.load import load_target

GPUS = ("a100", "h100", "mi300x")
LENGTHS = (1024, 4096, 16384)
TOKENS = 16384
KINDS = ("full", "causal", "bias", "mask")


def attention(
    kind: str, depth: int, length: int, dtype: DType = DType.BF16, batch: int = 1
) -> Attention:
    """Model width 2048: ``2048 / depth`` heads, as FlashAttention's papers measure."""
    type_ = TensorType(dtype, (batch, 2048 // depth, length, depth))
    masks = {"bias": dtype, "mask": DType.BOOL}
    mask = TensorType(masks[kind], (1, 1, length, length)) if kind in masks else None
    return Attention(type_, type_, type_, mask, is_causal=kind == "causal")


def compulsory_bytes(a: Attention) -> int:
    """Operands read once, the result written once: no kernel can move less."""
    mask = a.mask.nbytes if a.mask else 0
    return a.programs * (a.rows + a.keys) * (a.depth + a.width) * a.dtype.itemsize + mask


def show(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))


# --- bytes ----------------------------------------------------------------------------------------


def bytes_rows() -> Iterator[tuple[str, ...]]:
    yield ("attention, h100", "lower bound", "kernel", "ratio", "separate ops", "ratio")
    target = load_target("h100")
    for depth in (64, 128):
        for kind in KINDS:
            for length in LENGTHS:
                a = attention(kind, depth, length)
                low = compulsory_bytes(a)
                kernel = attention_bytes(a, tilings_for(a, target)[0])
                naive = spelled_out_bytes(a)
                ratios = f"{kernel / low:.2f}", f"{naive / low:.2f}"
                name = f"{kind}, heads of {depth}, {length}"
                yield (name, f"{low:,}", f"{kernel:,}", ratios[0], f"{naive:,}", ratios[1])


# --- kernels --------------------------------------------------------------------------------------


def kernel_rows() -> Iterator[tuple[str, ...]]:
    yield ("kernel", "queries", "keys", "warps", "stages", "registers", "spills", "shared", "bound")
    for gpu in GPUS:
        target = load_target(gpu)
        for dtype in (DType.F16, DType.BF16, DType.F32):
            for depth in (64, 128, 256):
                for kind in KINDS:
                    a = attention(kind, depth, 4096, dtype)
                    for t in tilings_for(a, target):
                        made = compile_for(emit(a, target, (t,)), target)
                        blocks = (t.block_q, t.block_k, t.warps, t.stages)
                        found = (made.registers, made.spill_bytes, made.shared_bytes)
                        numbers = (*blocks, *found, shared_bytes(a, t, target))
                        name = f"{gpu} {dtype.value} {depth} {kind}"
                        yield (name, *(f"{n:,}" for n in numbers))


# --- speed ----------------------------------------------------------------------------------------


def speed_rows() -> Iterator[tuple[str, ...]]:
    import torch

    from mplan.runtime.triton_attention import attention_callable

    target = load_target("h200" if "H200" in torch.cuda.get_device_name() else "h100")
    yield ("TFLOP/s", "kernel", "SDPA", "FlexAttention", "kernel / best peer")
    for depth in (64, 128):
        for kind in KINDS:
            for length in LENGTHS:
                a = attention(kind, depth, length, batch=TOKENS // length)
                inputs = [
                    torch.randn(a.query.shape, dtype=torch.bfloat16, device="cuda") for _ in "qkv"
                ]
                mask = mask_of(kind, length)
                kernel = attention_callable(a, target, choice="kernel", tune=True)
                flops = 4 * a.programs * length * length * depth / (2 if kind == "causal" else 1)
                runs: list[Callable[[], Any]] = [
                    lambda: kernel(*inputs, mask),  # noqa: B023 (called before the next turn)
                    lambda: torch.nn.functional.scaled_dot_product_attention(
                        *inputs,  # noqa: B023
                        attn_mask=mask,  # noqa: B023
                        is_causal=kind == "causal",  # noqa: B023
                    ),
                    flex(kind, inputs, mask),
                ]
                speeds = [flops / seconds(run) / 1e12 for run in runs]
                ratio = speeds[0] / max(speeds[1:])
                name = f"{kind}, heads of {depth}, {length}"
                yield (name, *(f"{s:.0f}" for s in speeds), f"{ratio:.2f}")


def mask_of(kind: str, length: int) -> Any:
    import torch

    if kind == "bias":
        return torch.randn(1, 1, length, length, dtype=torch.bfloat16, device="cuda")
    if kind == "mask":
        return torch.rand(1, 1, length, length, device="cuda") > 0.2
    return None


def flex(kind: str, inputs: list[Any], mask: Any) -> Callable[[], Any]:
    """The same through FlexAttention, compiled."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    length = inputs[0].shape[-2]
    options: dict[str, Any] = {}
    if kind == "causal":
        options["block_mask"] = create_block_mask(
            lambda b, h, i, j: i >= j, None, None, length, length, device="cuda"
        )
    elif kind == "bias":
        options["score_mod"] = lambda score, b, h, i, j: score + mask[0, 0, i, j]
    elif kind == "mask":
        options["score_mod"] = lambda score, b, h, i, j: torch.where(
            mask[0, 0, i, j], score, -torch.inf
        )
    return lambda: compiled(*inputs, **options)


def seconds(run: Callable[[], Any]) -> float:
    """The median time of a call in seconds."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=100, rep=300, return_mode="median")) / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bytes", action="store_true", help="bytes moved, planned")
    parser.add_argument("--kernels", action="store_true", help="what compiled kernels need")
    args = parser.parse_args()
    if args.kernels:
        rows = list(kernel_rows())
        show(rows)
        spilling = [r[0] for r in rows[1:] if r[6] != "0" and " 256 " not in r[0]]
        print(f"\n{len(rows) - 1} kernels, {len(spilling)} spill {' '.join(spilling)}")
        return 1 if spilling else 0
    import torch

    show(list(bytes_rows() if args.bytes or not torch.cuda.is_available() else speed_rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
