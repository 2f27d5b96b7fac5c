"""What a stage of a stream computes at a position: kernels of ops, with the addresses of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mplan.codegen.c.memory import Memory
from mplan.codegen.c.render import function
from mplan.codegen.c.table import TABLE, Site
from mplan.codegen.c.tensors import Array, Code, Tensor, invoke
from mplan.codegen.c.text import CTYPES
from mplan.diagnostics import UnsupportedError
from mplan.ir.geometry import Spatial
from mplan.ir.graph import Op
from mplan.ir.types import DType, TensorType, contiguous_strides


@dataclass(frozen=True, slots=True)
class Local:
    """Where the values of a stream's body lie: constants outside, ``pixels`` at local pointers.

    Of other values only types are known. ``operands`` maps the body's inputs to values outside;
    ``shared`` is the scratch memory of those ops of the body that have any.
    """

    memory: Memory
    operands: Mapping[str, str]
    types: Mapping[str, TensorType]
    pixels: Mapping[str, Tensor]
    shared: tuple[Tensor, ...] = ()

    def tensor(self, name: str, position: int) -> Tensor:
        """The value as a kernel sees it."""
        if name in self.pixels:
            return self.pixels[name]
        if name in self.operands and not self.memory.pushed(self.operands[name]):
            return self.memory.tensor(self.operands[name], position)
        type_ = self.types[name]
        return Tensor.dense(name, type_.dtype, tuple(n for n in type_.shape if isinstance(n, int)))

    def weight(self, name: str) -> bool:
        """Whether the bytes of ``name`` are constant."""
        return name in self.operands and self.memory.weight(self.operands[name])

    def scratch(self, op: Op, position: int) -> tuple[Tensor, ...]:
        """The scratch of ``op`` as arrays of bytes."""
        return self.shared if op.scratch else ()


@dataclass(frozen=True, slots=True)
class Pixels:
    """Some pixels of a row of a value: an expression for the address of the first, the type of the
    whole value, how many there are, and the bytes from one to the next."""

    address: str
    type: TensorType
    count: int
    step_bytes: int

    def local(self, name: str, dims: tuple[int, int]) -> Tensor:
        """The pixels as a tensor of one row at the pointer ``name``; ``dims`` are rows and columns."""
        shape = [n for n in self.type.shape if isinstance(n, int)]
        pointer, dtype = Array(name, is_pointer=True), self.type.dtype
        if len(shape) <= max(dims):
            return Tensor(pointer, dtype, tuple(shape), contiguous_strides(tuple(shape)))
        shape[dims[0]], shape[dims[1]] = 1, self.count
        inner = list(shape)
        inner[dims[1]] = 1
        strides = list(contiguous_strides(tuple(inner)))
        strides[dims[1]] = self.step_bytes // self.type.dtype.itemsize
        strides[dims[0]] = strides[dims[1]] * self.count
        return Tensor(pointer, dtype, tuple(shape), tuple(strides))


def pointwise(
    op: Op, rule: Spatial, site: Site, local: Local, reads: Mapping[str, Pixels], result: Pixels
) -> Code:
    """An op that computes pixels from the same pixels of its operands, by its kernel for tensors."""
    emitter = TABLE.get(op.kind)
    if emitter is None:
        raise UnsupportedError("MP501", f"{op.kind} has no kernel")
    declared = [_pointer("y", result, "")]
    pixels = {op.result.name: result.local("y", rule.dims)}
    for number, (name, found) in enumerate(reads.items()):
        declared.append(_pointer(f"x{number}", found, "const "))
        pixels[name] = found.local(f"x{number}", rule.dims)
    inside = replace(local, pixels=pixels)
    code = emitter(Site(op, site.position, inside, frozenset(pixels)))
    return (Code(tuple(declared)) + code).block()


def _pointer(name: str, pixels: Pixels, const: str) -> str:
    ctype = CTYPES[pixels.type.dtype]
    return f"{const}{ctype} *const {name} = {pixels.address};"


def accumulated(site: Site, source: Pixels, sums: str, result: str, count: str, ends: str) -> Code:
    """A mean over all positions: ``count`` pixels are added to ``sums``.

    ``ends`` is an expression whose first bit tells that they are the first, the second the last ones;
    those make the ``result``, which may lie over the sums.
    """
    site.require(source.type.dtype is DType.I8, f"of {source.type.dtype.torch_name} in a stream")
    add = function("qmean_add")
    end = function(
        "qmean_end",
        needs=(function("rescale", needs=(function("rounding_shift"),)), function("store_q8")),
    )
    channels = source.step_bytes
    factors = (site.integer(n) for n in ("multiplier", "shift", "output_zero_point"))
    zero = site.integer("input_zero_point")
    code = invoke(add, source.address, sums, channels, count, zero, f"{ends} & 1")
    return code + invoke(end, sums, result, channels, *factors).block(f"if ({ends} & 2)")
