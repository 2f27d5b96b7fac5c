"""The table of kernels: one row per op kind, and what an emitter sees of a step.

A row maps a kind to a function from a ``Site`` (one op with its tensors placed) to ``Code``. The
coverage table of the documentation derives from ``TABLE``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mplan.codegen.c.tensors import Code, Tensor
from mplan.diagnostics import UnsupportedError
from mplan.ir.graph import Arg, Op, Ref
from mplan.ir.ops import lookup
from mplan.ir.types import DType

Number: TypeAlias = int | float | bool


class Places(Protocol):
    """Where values lie: in the memory of a plan, or inside of a stream."""

    def tensor(self, name: str, position: int) -> Tensor:
        """The value ``name`` as it lies when the step at ``position`` of the plan runs."""

    def weight(self, name: str) -> bool:
        """Whether the bytes of ``name`` are constant."""

    def scratch(self, op: Op, position: int) -> tuple[Tensor, ...]:
        """The scratch of ``op`` as arrays of bytes."""


@dataclass(frozen=True, slots=True)
class Site:
    """An op at its position in the plan: its tensors with their addresses, its other arguments.

    ``used`` are the names of all values that an op or the caller reads.
    """

    op: Op
    position: int
    memory: Places
    used: frozenset[str]

    def arg(self, name: str) -> Arg:
        """The argument, or the schema's default."""
        for key, value in self.op.args:
            if key == name:
                return value
        param = lookup(self.op.kind).param(name)
        return param.default if param else None

    def place(self, arg: Arg) -> Tensor | None:
        """The tensor that ``arg`` refers to; None for None."""
        if arg is None:
            return None
        if not isinstance(arg, Ref):
            raise UnsupportedError("MP501", f"{self.op.kind} with {arg!r} in the place of a tensor")
        return self.memory.tensor(arg.name, self.position)

    def maybe(self, name: str) -> Tensor | None:
        """The tensor argument ``name``, or None."""
        return self.place(self.arg(name))

    def tensor(self, name: str) -> Tensor:
        """The tensor argument ``name``."""
        found = self.maybe(name)
        if found is None:
            raise UnsupportedError("MP501", f"{self.op.kind} without {name}")
        return found

    def number(self, name: str) -> Number:
        """The numeric argument ``name``."""
        value = self.arg(name)
        if not isinstance(value, int | float):
            raise UnsupportedError("MP501", f"{self.op.kind} with {name}={value!r}")
        return value

    def integer(self, name: str) -> int:
        """The integer argument ``name``."""
        value = self.number(name)
        if isinstance(value, float):
            raise UnsupportedError("MP501", f"{self.op.kind} with {name}={value!r}")
        return int(value)

    def optional_number(self, name: str) -> Number | None:
        """The numeric argument ``name``, or None."""
        return None if self.arg(name) is None else self.number(name)

    def integers(self, name: str, count: int | None = None) -> tuple[int, ...]:
        """The list argument ``name``; a list of one stands for ``count`` equal numbers."""
        value = self.arg(name)
        items = value if isinstance(value, tuple) else (value,)
        numbers = tuple(i for i in items if isinstance(i, int))
        if len(numbers) != len(items):
            raise UnsupportedError("MP501", f"{self.op.kind} with {name}={value!r}")
        return numbers * count if count and len(numbers) == 1 else numbers

    def dims(self, name: str, rank: int) -> tuple[int, ...]:
        """The dimensions in the list argument ``name``, counted from the front; all if it is empty."""
        given = self.arg(name)
        found = () if given is None else self.integers(name)
        return tuple(sorted(d % rank for d in found)) or tuple(range(rank))

    def dim(self, name: str, rank: int) -> int:
        """The dimension ``name``, counted from the front."""
        return self.integer(name) % max(rank, 1)

    def scratch(self) -> tuple[Tensor, ...]:
        """The scratch of the op as arrays of bytes."""
        return self.memory.scratch(self.op, self.position)

    @property
    def result(self) -> Tensor:
        """The first result."""
        return self.memory.tensor(self.op.result.name, self.position)

    def results(self) -> tuple[Tensor | None, ...]:
        """All results; None where one is absent or never read."""
        return tuple(
            self.memory.tensor(v.name, self.position) if v and v.name in self.used else None
            for v in self.op.results
        )

    def require(self, condition: bool, what: str) -> None:
        """UnsupportedError MP501 saying ``what`` unless ``condition`` holds."""
        if not condition:
            raise UnsupportedError("MP501", f"{self.op.kind} {what}")

    def require_float(self, *tensors: Tensor | None) -> None:
        """UnsupportedError MP501 unless all tensors are float32."""
        for tensor in tensors:
            if tensor is not None:
                self.require(tensor.dtype is DType.F32, f"on {tensor.dtype.torch_name}")


Emitter: TypeAlias = Callable[[Site], Code]

#: Op kind → the function that writes its code.
TABLE: dict[str, Emitter] = {}


def kernel(*kinds: str) -> Callable[[Emitter], Emitter]:
    """Enter the decorated emitter into ``TABLE`` for each of ``kinds``."""

    def enter(emitter: Emitter) -> Emitter:
        for kind in kinds:
            if kind in TABLE:
                raise ValueError(f"{kind} has two kernels")
            TABLE[kind] = emitter
        return emitter

    return enter
