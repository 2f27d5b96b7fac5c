"""What a fused attention kernel is made for, and how it is tiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mplan.diagnostics import UnsupportedError, Where
from mplan.ir.graph import Op, Value
from mplan.ir.types import Dim, DType, TensorType
from mplan.passes.tile_attention import broadcast, operand_types

#: Tensor cores take tiles of at least this many rows and columns.
SMALLEST_BLOCK = 16
LARGEST_DEPTH = 256
ELEMENT_TYPES = (DType.F16, DType.BF16, DType.F32)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel is tiled: queries and keys per tile, warps per program, stages of the pipeline."""

    block_q: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention: operand types as of ``mplan.attention``, and what is fixed in its kernel."""

    query: TensorType
    key: TensorType
    value: TensorType
    mask: TensorType | None = None
    is_causal: bool = False
    scale: float | None = None
    grouped: bool = False

    @classmethod
    def of(cls, op: Op, values: Mapping[str, Value]) -> Attention:
        """The attention that ``op`` computes; ``values`` are those of its graph by name.

        UnsupportedError MP520 if no kernel can be generated.
        """
        types = operand_types(op, values)
        scale = op.arg("scale")
        made = cls(
            types["query"],
            types["key"],
            types["value"],
            types.get("attn_mask"),
            bool(op.arg("is_causal")),
            float(scale) if isinstance(scale, (int, float)) else None,
            bool(op.arg("enable_gqa")),
        )
        made.require_kernel(op.loc.where() if op.loc else None)
        return made

    def require_kernel(self, where: Where | None = None) -> None:
        """UnsupportedError MP520 if no kernel can be generated."""
        if self.obstacle:
            raise UnsupportedError("MP520", f"no attention kernel: {self.obstacle}", where)

    @property
    def obstacle(self) -> str:
        """Why no kernel can be generated for these types; empty if one can."""
        types = (self.query, self.key, self.value, *((self.mask,) if self.mask else ()))
        if not all(t.is_static for t in types):
            return "its sizes are known only at run time"
        if self.dtype not in ELEMENT_TYPES:
            return f"its elements are {self.dtype.value}, kernels take f16, bf16 and f32"
        if max(self.depth, self.width) > LARGEST_DEPTH:
            return (
                f"its heads have {max(self.depth, self.width)} elements, kernels take {LARGEST_DEPTH}"
            )
        if self.grouped and self.key.shape[-3] != self.value.shape[-3]:
            return "key and value have different numbers of heads"
        if any(0 in t.shape for t in types):
            return "it has an axis without elements"
        return ""

    @property
    def dtype(self) -> DType:
        """The element type of query, key, value and result."""
        return self.query.dtype

    @property
    def factor(self) -> float:
        """What the products of query and key are multiplied by."""
        return self.depth**-0.5 if self.scale is None else self.scale

    @property
    def rows(self) -> int:
        """The number of queries."""
        return _int(self.query.shape[-2])

    @property
    def keys(self) -> int:
        """The number of keys."""
        return _int(self.key.shape[-2])

    @property
    def depth(self) -> int:
        """Elements of a query or key."""
        return _int(self.query.shape[-1])

    @property
    def width(self) -> int:
        """Elements of a value."""
        return _int(self.value.shape[-1])

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch dimensions of the result, heads included."""
        heads = [list(t.shape[:-2]) for t in (self.query, self.key, self.value)]
        if self.grouped:
            for batch in heads[1:]:
                batch[-1] = heads[0][-1]
        return tuple(_int(n) for n in broadcast(*heads))

    @property
    def programs(self) -> int:
        """Independent attentions: the product of the batch dimensions."""
        return prod(self.batch)

    @property
    def kernel_rank(self) -> int:
        """Batch dimensions that the kernel sees: with grouped heads, heads are two of them."""
        return len(self.batch) + self.grouped

    @property
    def mask_rows(self) -> bool:
        """Whether the mask differs between queries."""
        return self.mask is not None and len(self.mask.shape) > 1 and self.mask.shape[-2] != 1

    @property
    def mask_keys(self) -> bool:
        """Whether the mask differs between keys."""
        return self.mask is not None and self.mask.shape[-1] != 1

    @property
    def block_depth(self) -> int:
        """``depth`` rounded up to what a tile can have."""
        return power_of_two(self.depth)

    @property
    def block_width(self) -> int:
        """``width`` rounded up to what a tile can have."""
        return power_of_two(self.width)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size`` and ``SMALLEST_BLOCK``."""
    return max(SMALLEST_BLOCK, 1 << (size - 1).bit_length())


def _int(dim: Dim) -> int:
    assert isinstance(dim, int)
    return dim
