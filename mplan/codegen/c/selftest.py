"""The self-test: golden inputs and outputs as constants, compared in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mplan.codegen.c.pointwise import copy
from mplan.codegen.c.render import function
from mplan.codegen.c.tensors import Code, Tensor, rows
from mplan.codegen.c.text import CTYPES, initialiser, literal
from mplan.codegen.c.weights import Field
from mplan.diagnostics import UserError
from mplan.ir.types import DType

#: Largest error of a right result, absolute and relative to the largest expected number.
_TOLERANCE = 1e-4


def arrays(golden: Mapping[str, Any], prefix: str, tensors: Sequence[Tensor]) -> list[Field]:
    """The constants ``prefix0``, ``prefix1``, …; UserError MP504 if one is missing or misshapen."""
    import torch

    found = []
    for i, tensor in enumerate(tensors):
        if f"{prefix}{i}" not in golden:
            raise UserError("MP504", f"the golden data has no {prefix}{i}")
        value = torch.as_tensor(golden[f"{prefix}{i}"])
        if tuple(value.shape) != tensor.shape or str(value.dtype)[6:] != tensor.dtype.torch_name:
            shape = list(value.shape)
            raise UserError("MP504", f"{prefix}{i} of the golden data is {value.dtype} {shape}")
        flat = value.detach().contiguous().reshape(-1)
        rows_ = initialiser(flat, tensor.dtype)
        found.append(Field(CTYPES[tensor.dtype], f"{prefix}{i}", flat.numel(), rows=rows_))
    return found


def tolerance(golden: Mapping[str, Any]) -> str:
    """What the self-test's result may be at most, as a C literal."""
    import torch

    outputs = [torch.as_tensor(v).double() for k, v in golden.items() if k.startswith("output")]
    finite = [t[t.isfinite()].abs().max().item() for t in outputs if t.isfinite().any()]
    return literal(_TOLERANCE * (1 + max(finite, default=0.0)), DType.F32)


def fill_inputs(name: str, inputs: Sequence[tuple[int, Tensor]]) -> Code:
    """Copy the golden inputs, with their numbers, to where the network reads them."""
    code = Code()
    for i, tensor in inputs:
        code += _through(f"{name}_input({i})", tensor, lambda t, i=i: copy(t, _golden("input", i, t)))
    return code


def compare_outputs(name: str, outputs: Sequence[Tensor]) -> Code:
    """Fold the errors of all outputs into ``error``."""
    code = Code()
    for i, tensor in enumerate(outputs):
        code += _through(
            f"{name}_output({i})", tensor, lambda t, i=i: _error(t, _golden("output", i, t)), "const "
        )
    return code


def _golden(prefix: str, index: int, like: Tensor) -> Tensor:
    return Tensor.dense(f"{prefix}{index}", like.dtype, like.shape)


def _through(pointer: str, tensor: Tensor, body: Any, const: str = "") -> Code:
    """``body`` of the tensor seen through a local pointer."""
    if not tensor.numel:
        return Code()
    declared = f"{const}{tensor.ctype} *const p = {pointer};"
    local = Tensor.dense("p", tensor.dtype, tensor.shape)
    seen = Tensor(local.array, tensor.dtype, tensor.shape, tensor.strides)
    code: Code = Code((declared,)) + body(seen)
    return code.block()


def _error(actual: Tensor, expected: Tensor) -> Code:
    made = function(
        f"largest_error_{actual.dtype.value}",
        "largest_error",
        ctype=actual.ctype,
        floats=actual.dtype.is_float,
    )

    def body(a: Tensor, b: Tensor) -> Code:
        args = (a.pointer, a.strides[0], b.pointer, b.strides[0], a.shape[0], "error")
        return Code((f"error = {made.name}({', '.join(map(str, args))});",), (made,))

    return rows([actual, expected], body)
