"""Which tilings a target can run: candidates, best first, limited by its shared memory."""

from __future__ import annotations

from mplan.codegen.triton.spec import SMALLEST_BLOCK, Attention, Tiling, power_of_two
from mplan.diagnostics import InfeasibleError
from mplan.targets.model import Target

#: Tilings by the largest head size they are meant for (rows of half precision), best first. From
#: compiling for sm_80, sm_90 and gfx942 without spills; which is fastest, autotuning tells.
_HALF = {
    64: (
        Tiling(128, 64, 4, 3),
        Tiling(128, 128, 8, 3),
        Tiling(128, 64, 8, 3),
        Tiling(64, 64, 4, 3),
        Tiling(64, 32, 4, 3),
    ),
    128: (
        Tiling(128, 64, 8, 3),
        Tiling(128, 128, 8, 2),
        Tiling(128, 32, 8, 3),
        Tiling(64, 64, 4, 2),
        Tiling(64, 32, 4, 2),
    ),
    256: (Tiling(128, 32, 8, 2), Tiling(64, 32, 8, 2), Tiling(64, 16, 4, 2), Tiling(32, 16, 4, 1)),
}
_SINGLE = {
    64: (Tiling(64, 32, 4, 2), Tiling(32, 32, 4, 2), Tiling(32, 16, 4, 1)),
    128: (Tiling(32, 32, 8, 2), Tiling(32, 16, 4, 2), Tiling(16, 16, 4, 1)),
    256: (Tiling(16, 16, 8, 1), Tiling(16, 16, 4, 1)),
}


def tilings_for(attention: Attention, target: Target) -> tuple[Tiling, ...]:
    """The tilings of ``attention`` that fit the shared memory of ``target``, best first.

    Blocks are no longer than the sequences need. InfeasibleError MP521 if not even the smallest fits.
    """
    table = _SINGLE if attention.dtype.itemsize > 2 else _HALF
    largest = max(attention.block_depth, attention.block_width)
    candidates = table[next(size for size in sorted(table) if largest <= size)]
    cut = dict.fromkeys(_cut(t, attention) for t in candidates)
    limit = target.shared_bytes
    fitting = tuple(t for t in cut if limit is None or shared_bytes(attention, t) <= limit)
    if fitting:
        return fitting
    needs = min(shared_bytes(attention, t) for t in cut)
    raise InfeasibleError(
        "MP521",
        f"the attention kernel needs {needs:,} B of shared memory, {target.name} has {limit:,} B",
        help="use smaller heads or half precision",
    )


def _cut(tiling: Tiling, attention: Attention) -> Tiling:
    return Tiling(
        min(tiling.block_q, power_of_two(attention.rows)),
        min(tiling.block_k, power_of_two(attention.keys)),
        tiling.warps,
        tiling.stages,
    )


def shared_bytes(attention: Attention, tiling: Tiling) -> int:
    """An upper bound of the shared memory of a program: queries, and keys and values of each stage.

    Triton also exchanges data between layouts there, at most a tile of scores or of the result, which
    it overlays with tiles that are not in use.
    """
    item = attention.dtype.itemsize
    depth, width = attention.block_depth, attention.block_width
    queries = tiling.block_q * max(depth, width) * item
    pairs = tiling.block_k * (depth + width) * item
    mask = 0
    if attention.mask is not None:
        rows = tiling.block_q if attention.mask_rows else 1
        mask = rows * tiling.block_k * attention.mask.dtype.itemsize
    scores = tiling.block_q * tiling.block_k * item
    return queries + tiling.stages * (pairs + mask) + scores


__all__ = ["SMALLEST_BLOCK", "shared_bytes", "tilings_for"]
