"""The quantize and dequantize ops of ``quantized_decomposed``: what they say, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UnsupportedError, Where
from mplan.ir.affine import Affine
from mplan.ir.graph import Arg, Graph, Op, Ref, tensor_type
from mplan.ir.types import DType
from mplan.passes.lower_quantized.goal import Goal

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "quantized_decomposed."
#: Kinds, with the names of scale and zero point.
_NAMES = {
    "per_tensor.default": ("scale", "zero_point"),
    "per_tensor.tensor": ("scale", "zero_point"),
    "per_tensor.tensor2": ("scale", "zero_point"),
    "per_channel.default": ("scales", "zero_points"),
}
QUANTIZE = {f"{LIBRARY}quantize_{name}": names for name, names in _NAMES.items()}
DEQUANTIZE = {f"{LIBRARY}dequantize_{name}": names for name, names in _NAMES.items()}
_ALL = {**QUANTIZE, **DEQUANTIZE}
#: What is added to integers of each 8-bit type to make them int8.
_MOVES = {DType.I8: 0, DType.U8: -128}

#: Evaluates an argument that is constant; None for others.
Constant = Callable[[Arg], "Tensor | None"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant int8 tensor that is symmetric, with one scale or one per index of ``axis``."""

    values: Tensor
    scales: Tensor
    axis: int | None

    def moved(self, dims: tuple[int, ...]) -> Weight:
        """The same numbers with dimensions in the order ``dims``."""
        axis = None if self.axis is None else dims.index(self.axis)
        return Weight(self.values.permute(dims), self.scales, axis)


def is_quantised(graph: Graph) -> bool:
    """Whether the graph has such ops."""
    return any(op.kind.startswith(LIBRARY) for op in graph.ops)


def goal_of(op: Op, constant: Constant) -> Goal:
    """Scale, zero point and range of a quantization per tensor, for int8."""
    move = _MOVES[_dtype(op)]
    least, most = (_number(op.arg(name)) for name in ("quant_min", "quant_max"))
    affine = affine_of(op, constant)
    return Goal(affine, least=max(-128, least + move), most=min(127, most + move))


def affine_of(op: Op, constant: Constant) -> Affine:
    """Scale and zero point of a quantization or dequantization per tensor, for int8."""
    scale, zero = (_numbers(op.arg(name), constant) for name in _ALL[op.kind])
    return Affine(float(scale[0]), int(zero[0]) + _MOVES[_dtype(op)])


def weight_of(op: Op, constant: Constant) -> Weight | None:
    """The constant that ``op`` dequantizes; None if it is not constant or not symmetric in 8 bits."""
    values = constant(op.arg("input"))
    if values is None or _dtype(op) not in _MOVES:
        return None
    scales, zeros = (_numbers(op.arg(name), constant) for name in _ALL[op.kind])
    if any(int(z) + _MOVES[_dtype(op)] for z in zeros):
        return None
    axis = _number(op.arg("axis")) % values.dim() if op.arg("axis") is not None else None
    return Weight(as_int8(op, values), scales.double(), axis)


def as_int8(op: Op, values: Tensor) -> Tensor:
    """The integers of ``op``'s 8-bit type as int8, zero point moved with them."""
    import torch

    return (values.to(torch.int16) + _MOVES[_dtype(op)]).to(torch.int8)


def _dtype(op: Op) -> DType:
    found = op.arg("dtype")
    assert isinstance(found, DType)
    return found


def _number(arg: Arg) -> int:
    assert isinstance(arg, int)
    return arg


def _numbers(arg: Arg, constant: Constant) -> Any:
    """A number or a constant tensor as a tensor of one dimension."""
    import torch

    if isinstance(arg, Ref):
        found = constant(arg)
        assert found is not None
        return found.reshape(-1)
    return torch.tensor([arg], dtype=torch.float64 if isinstance(arg, float) else torch.int64)


def refuse_others(graph: Graph, constant: Constant) -> None:
    """UnsupportedError MP314 with all ops that quantise as integers of 8 bits cannot be lowered."""
    table = graph.value_table
    faults: list[tuple[str, Where | None]] = []
    for op in graph.ops:
        reason = _fault(op, constant) if op.kind.startswith((LIBRARY, "torchao.")) else ""
        if reason:
            name = (op.operands or ("",))[0]
            source = next((p for p in graph.ops if name in [v.name for v in p.values]), op)
            place = op.loc or source.loc
            faults.append((f"{op.kind} of %{name}: {reason}", place.where() if place else None))
    bytes_ = {DType.U8}
    for i in graph.inputs:
        if i.role == "input" and getattr(i.value.type, "dtype", None) in bytes_:
            faults.append((f"the input {i.source or i.value.name} is uint8", None))
    for name in graph.output_names:
        if tensor_type(table[name]).dtype in bytes_:
            faults.append((f"the output %{name} is uint8", None))
    if faults:
        count = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UnsupportedError(
            "MP314",
            f"{faults[0][0]}{count}",
            faults[0][1],
            "quantise activations per tensor to int8 or uint8 with fixed scales, weights per tensor or "
            "channel; int8 or float at the boundary",
            tuple(faults[1:]),
        )


def _fault(op: Op, constant: Constant) -> str:
    if op.kind not in _ALL:
        return "scales that are found at run time" if "choose_qparams" in op.kind else "no such form"
    if any(isinstance(a, Ref) and constant(a) is None for a in (op.arg(n) for n in _ALL[op.kind])):
        return "scales that are found at run time"
    given = op.arg("input")
    fixed = constant(given) is not None
    if not fixed and "per_channel" in op.kind:
        return "activations with a scale per channel"
    if not fixed and _dtype(op) not in _MOVES:
        return f"{_dtype(op).torch_name}, not 8 bits"
    return ""
