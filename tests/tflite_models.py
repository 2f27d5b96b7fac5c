"""Small .tflite models made by hand, and what LiteRT's reference kernels compute for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from mplan.capture import Captured
from mplan.capture.tflite.model import parse_model
from mplan.capture.tflite.reader import Reader
from mplan.ir.graph import Ref
from mplan.ir.interp import run
from mplan.ir.verify import verify

_TYPES = {
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "float32": schema.TensorType.FLOAT32,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
}


class Builder:
    """Collects tensors and ops of one subgraph; ``finish`` yields the bytes of the file."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.ops: list[Any] = []
        self.codes: list[Any] = []
        self.inputs: list[int] = []

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str = "int8",
        scale: float | Sequence[float] | None = None,
        zero_point: int = 0,
        data: Any = None,
        axis: int = 0,
        name: str = "",
    ) -> int:
        """A tensor; with ``data`` a constant. ``scale`` per tensor, or per channel along ``axis``."""
        made = schema.TensorT()
        made.name = name or f"t{len(self.tensors)}"
        made.shape = list(shape)
        made.type = _TYPES[dtype]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)
            made.buffer = len(self.buffers)
            self.buffers.append(buffer)
        if scale is not None:
            scales = [float(s) for s in np.atleast_1d(scale)]
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = scales
            made.quantization.zeroPoint = [zero_point] * len(scales)
            made.quantization.quantizedDimension = axis
        self.tensors.append(made)
        return len(self.tensors) - 1

    def input(self, shape: Sequence[int], dtype: str = "int8", **rest: Any) -> int:
        """A tensor that the caller gives."""
        self.inputs.append(self.tensor(shape, dtype, **rest))
        return self.inputs[-1]

    def const(self, data: Any, dtype: str = "int32", **rest: Any) -> int:
        """A constant."""
        array = np.asarray(data, dtype)
        return self.tensor(array.shape, dtype, data=array, **rest)

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        version: int = 1,
        **fields: Any,
    ) -> None:
        """An operator; ``options`` names its table of the schema."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        made = schema.OperatorT()
        made.opcodeIndex = len(self.codes)
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, options + "T")()
            for key, value in fields.items():
                if not hasattr(made.builtinOptions, key):
                    raise AttributeError(f"{options} has no field {key}")
                setattr(made.builtinOptions, key, value)
        self.codes.append(code)
        self.ops.append(made)

    def finish(self, *outputs: int) -> bytes:
        """The file that returns ``outputs``."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.ops
        graph.inputs, graph.outputs = self.inputs, list(outputs)
        model = schema.ModelT()
        model.version = 3
        model.operatorCodes, model.subgraphs, model.buffers = self.codes, [graph], self.buffers
        model.description = "made by a test"
        writer = flatbuffers.Builder(1024)
        writer.Finish(model.Pack(writer), b"TFL3")
        return bytes(writer.Output())


def reference(model: bytes | Path, inputs: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
    """Every tensor by name as LiteRT's reference kernels (BUILTIN_REF) compute it."""
    given = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
    run = Interpreter(
        **given,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
        num_threads=1,
    )
    run.allocate_tensors()
    for detail, value in zip(run.get_input_details(), inputs, strict=True):
        run.set_tensor(detail["index"], value)
    run.invoke()
    found = {}
    for detail in run.get_tensor_details():
        try:
            found[detail["name"]] = run.get_tensor(detail["index"]).copy()
        except ValueError:  # temporaries that a kernel has released
            continue
    return found


def agreement(model: bytes, inputs: Sequence[np.ndarray]) -> bool:
    """Whether every tensor that mplan's graph computes has LiteRT's bytes; AssertionError names one."""
    expected = reference(model, inputs)
    computed = interpreted(read(model), inputs)
    assert computed
    for name, value in computed.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=f"tensor {name}")
    return True


def read(model: bytes) -> Captured:
    """The graph of a model in memory."""
    captured = Reader(parse_model(model, "model.tflite"), "model.tflite").read("model")
    verify(captured.graph)
    return captured


def interpreted(captured: Captured, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What the interpreter computes for every op of the graph, by the name of the file's tensor."""
    graph = captured.graph
    values = [(op.loc.module, value.name) for op in graph.ops for value in op.values]
    whole = replace(graph, outputs=tuple(Ref(name) for _, name in values))
    supply = iter(inputs)
    given = {
        i.value.name: torch.from_numpy(next(supply)) if i.role == "input" else captured.constants[n]
        for i in graph.inputs
        for n in (i.value.name,)
    }
    outputs = run(whole, given)
    return {name: out.numpy() for (name, _), out in zip(values, outputs, strict=True)}
