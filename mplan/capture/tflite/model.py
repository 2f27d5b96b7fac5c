"""A .tflite file as plain data: tensors with their quantisation, operators with their options."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import UnsupportedError, UserError, Where

if TYPE_CHECKING:
    from numpy import ndarray

#: The file identifier behind the root offset.
MAGIC = b"TFL3"
#: No tensor of a microcontroller's model comes near; larger ones are taken for damage.
MAX_ELEMENTS = 1 << 28
#: Element types by the names that the schema gives them, as numpy names them.
_DTYPES = {
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FLOAT32": "float32",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class TfTensor:
    """A tensor: ``dtype`` by its numpy name, one scale and zero point or one per index of ``axis``.

    ``data`` is the value of a constant.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    data: ndarray[Any, Any] | None


@dataclass(frozen=True, slots=True)
class TfOp:
    """An operator by its builtin name; absent inputs are None, ``options`` its table or None."""

    name: str
    inputs: tuple[TfTensor | None, ...]
    outputs: tuple[TfTensor, ...]
    options: Any


@dataclass(frozen=True, slots=True)
class TfModel:
    """The only subgraph of a model, operators in execution order."""

    inputs: tuple[TfTensor, ...]
    outputs: tuple[TfTensor, ...]
    ops: tuple[TfOp, ...]


def parse_model(content: bytes, file: str) -> TfModel:
    """The model in the bytes of a .tflite file; UserError MP313 if they are none.

    UnsupportedError MP302 for models of several subgraphs.
    """
    if content[4:8] != MAGIC:
        raise _malformed(file, "its identifier is missing")
    try:
        return _parse(content, file)
    except UnsupportedError:
        raise
    except Exception as e:  # flatbuffers read any offset; what a wrong one raises varies
        raise _malformed(file, f"{type(e).__name__}: {e}") from e


def _malformed(file: str, reason: str) -> UserError:
    hint = "the file may be cut off; write it again with the TFLite converter"
    return UserError("MP313", f"{file} is no TFLite model: {reason}", Where(file), hint)


def _parse(content: bytes, file: str) -> TfModel:
    import tflite

    model = tflite.Model.GetRootAsModel(content, 0)
    if model.SubgraphsLength() != 1:
        message = f"the model has {model.SubgraphsLength()} subgraphs; mplan reads models of one"
        raise UnsupportedError("MP302", message, Where(file))
    graph = model.Subgraphs(0)
    tensors = [_tensor(model, graph.Tensors(i), i) for i in range(graph.TensorsLength())]
    ops = (graph.Operators(i) for i in range(graph.OperatorsLength()))
    return TfModel(
        tuple(tensors[graph.Inputs(i)] for i in range(graph.InputsLength())),
        tuple(tensors[graph.Outputs(i)] for i in range(graph.OutputsLength())),
        tuple(_op(model, op, tensors) for op in ops),
    )


def _tensor(model: Any, tensor: Any, index: int) -> TfTensor:
    import numpy as np

    type_name = enum_names("TensorType")[tensor.Type()]
    dtype = _DTYPES.get(type_name, type_name.lower())
    shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
    if any(n < 0 for n in shape) or prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"tensor {index} has the shape {list(shape)}")
    about = tensor.Quantization()
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = 0
    if about is not None:
        scales = tuple(float(about.Scale(i)) for i in range(about.ScaleLength()))
        zero_points = tuple(int(about.ZeroPoint(i)) for i in range(about.ZeroPointLength()))
        axis = int(about.QuantizedDimension())
    buffer = model.Buffers(tensor.Buffer())
    data = None
    if buffer.DataLength() and dtype in _DTYPES.values():
        data = np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype).reshape(shape)
    name = (tensor.Name() or b"").decode("utf-8", "replace")
    return TfTensor(index, name, shape, dtype, scales, zero_points or (0,) * len(scales), axis, data)


def _op(model: Any, op: Any, tensors: list[TfTensor]) -> TfOp:
    code = model.OperatorCodes(op.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = enum_names("BuiltinOperator").get(number, f"operator {number}")
    if name == "CUSTOM":
        name = (code.CustomCode() or b"custom").decode("utf-8", "replace")
    inputs = (op.Inputs(i) for i in range(op.InputsLength()))
    return TfOp(
        name,
        tuple(tensors[i] if i >= 0 else None for i in inputs),
        tuple(tensors[op.Outputs(i)] for i in range(op.OutputsLength())),
        _options(op),
    )


def _options(op: Any) -> Any:
    """The operator's options table as its own class, None if it has none."""
    import tflite

    table = op.BuiltinOptions()
    name = enum_names("BuiltinOptions").get(op.BuiltinOptionsType(), "NONE")
    if table is None or not hasattr(tflite, name):
        return None
    options = getattr(tflite, name)()
    options.Init(table.Bytes, table.Pos)
    return options


def enum_names(name: str) -> dict[int, str]:
    """The names of an enumeration of the schema by number."""
    import tflite

    return {v: k for k, v in vars(getattr(tflite, name)).items() if isinstance(v, int)}
