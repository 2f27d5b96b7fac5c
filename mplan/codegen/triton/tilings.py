"""Which tilings a target can run: candidates, best first, limited by its shared memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from mplan.codegen.triton.spec import Attention, Tiling, power_of_two
from mplan.diagnostics import InfeasibleError
from mplan.targets.model import Target

#: Queries and keys per tile, warps, stages, and whether it is also good with a mask of all pairs.
_Row = tuple[int, int, int, int, bool]
_Table = Mapping[int, tuple[_Row, ...]]

#: By the largest head size they are meant for. None for heads of 64 and 128 spills registers
#: (``benchmarks/attention.py --kernels`` compiles them all). The order follows block sizes published
#: for FlashAttention-2 kernels; which is fastest on a machine, autotuning tells.
_HALF: Mapping[str, _Table] = {
    "ampere": {
        64: ((128, 64, 8, 3, True), (128, 128, 8, 3, False), (64, 32, 4, 3, True)),
        128: ((128, 64, 8, 3, False), (128, 32, 8, 3, False), (64, 32, 4, 2, True)),
        256: ((64, 32, 8, 2, True), (64, 16, 4, 2, True), (32, 16, 4, 1, True)),
    },
    "hopper": {
        64: (
            (128, 64, 4, 3, False),
            (128, 128, 8, 3, False),
            (128, 64, 8, 3, True),
            (64, 64, 4, 3, True),
        ),
        128: (
            (128, 64, 8, 3, True),
            (128, 128, 8, 2, False),
            (128, 32, 8, 3, True),
            (64, 32, 4, 2, True),
        ),
        256: ((128, 32, 8, 2, False), (64, 32, 8, 2, True), (32, 16, 4, 1, True)),
    },
    "cdna": {
        64: ((128, 64, 4, 2, True), (128, 32, 4, 2, True), (64, 32, 4, 2, True)),
        128: ((128, 32, 8, 2, True), (64, 32, 4, 2, True), (32, 32, 4, 1, True)),
        256: ((64, 16, 4, 2, True), (32, 16, 4, 1, True)),
    },
}
_SINGLE: Mapping[str, _Table] = {
    "ampere": {
        64: ((32, 32, 8, 2, False), (32, 16, 4, 2, True)),
        128: ((32, 16, 8, 2, True), (32, 16, 8, 1, True), (16, 16, 4, 1, True)),
        256: ((16, 16, 8, 1, True),),
    },
    "hopper": {
        64: ((64, 32, 8, 2, False), (32, 32, 8, 2, True), (32, 16, 4, 1, True)),
        128: ((32, 16, 8, 2, True), (32, 16, 8, 1, True), (16, 16, 4, 1, True)),
        256: ((16, 16, 8, 1, True), (16, 16, 4, 1, True)),
    },
    "cdna": {
        64: ((64, 32, 4, 2, True), (32, 32, 4, 2, True), (32, 16, 4, 1, True)),
        128: ((32, 16, 4, 2, True), (16, 16, 4, 1, True)),
        256: ((16, 16, 8, 1, True), (16, 16, 4, 1, True)),
    },
}


def tilings_for(attention: Attention, target: Target) -> tuple[Tiling, ...]:
    """The tilings of ``attention`` that fit the shared memory of ``target``, best first.

    Blocks are no longer than the sequences need. InfeasibleError MP521 if not even the smallest fits.
    """
    family = _family(target)
    table = (_SINGLE if attention.dtype.itemsize > 2 else _HALF)[family]
    largest = max(attention.block_depth, attention.block_width)
    rows = table[next(size for size in sorted(table) if largest <= size)]
    masked = attention.mask_rows and attention.mask_keys
    candidates = dict.fromkeys(
        _cut(Tiling(*row), attention) for *row, with_mask in rows if with_mask or not masked
    )
    limit = target.shared_bytes
    needs = {t: shared_bytes(attention, t, target) for t in candidates}
    fitting = tuple(t for t, size in needs.items() if limit is None or size <= limit)
    if fitting:
        return fitting
    raise InfeasibleError(
        "MP521",
        f"the attention kernel needs {min(needs.values()):,} B of shared memory, "
        f"{target.name} has {limit:,} B",
        help="use smaller heads or half precision",
    )


def shared_bytes(attention: Attention, tiling: Tiling, target: Target) -> int:
    """An upper bound of the shared memory of one program.

    A tile of queries, for each stage of the pipeline a tile of keys, values and mask (AMD's pipeline
    keeps one stage in registers), and a number per query for reductions across warps. What else
    passes through shared memory overlays these.
    """
    item = attention.dtype.itemsize
    depth, width = attention.block_depth, attention.block_width
    stage = tiling.block_k * (depth + width) * item
    if attention.mask is not None and attention.mask_keys:
        rows = tiling.block_q if attention.mask_rows else 1
        stage += rows * tiling.block_k * attention.mask.dtype.itemsize
    stages = max(tiling.stages - (_family(target) == "cdna"), 1)
    reductions = tiling.block_q * 4
    return tiling.block_q * max(depth, width) * item + stages * stage + reductions


def _cut(tiling: Tiling, attention: Attention) -> Tiling:
    """``tiling`` for sequences that may be shorter than its blocks."""
    block_q = min(tiling.block_q, power_of_two(attention.rows))
    block_k = min(tiling.block_k, power_of_two(attention.keys))
    warps = tiling.warps if block_q == tiling.block_q else min(tiling.warps, 4)
    return replace(tiling, block_q=block_q, block_k=block_k, warps=warps)


def _family(target: Target) -> str:
    """Which column of the tables holds for ``target``."""
    match = re.match(r"sm_(\d+)", target.isa.arch)
    if match is None:
        return "cdna" if target.isa.arch.startswith("gfx") else "ampere"
    return "hopper" if int(match[1]) >= 90 else "ampere"
