"""From a .tflite file to a captured graph: values, constants, and the errors of the whole file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplan.capture.captured import Captured
from mplan.capture.tflite.model import TfModel, TfOp, TfTensor, enum_names, parse_model
from mplan.capture.tflite.quantization import RANGES
from mplan.diagnostics import UnsupportedError, UserError, Where
from mplan.ir.affine import Affine
from mplan.ir.graph import Alias, Arg, Graph, Input, Loc, Op, Ref, Role, Value
from mplan.ir.ops import infer
from mplan.ir.types import DType, TensorType, Type

if TYPE_CHECKING:
    from numpy import ndarray


class Unreadable(Exception):
    """An operator that mplan cannot express; ``message`` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def read_tflite(path: str | Path, *, linear_rounding: str = "single") -> Captured:
    """The graph of an int8 .tflite model.

    Fully connected layers round as LiteRT (``single``) or as CMSIS-NN and TFLite Micro (``double``).
    Images are NHWC, as in the file. The ``module`` of an op's location is the name of the tensor that
    it computes. Example inputs are random with a fixed seed, uniform over int8 or over [0, 1).

    UserError MP313 if the file is malformed; UnsupportedError MP302 lists all operators that mplan
    cannot express.
    """
    file = str(path)
    model = parse_model(Path(path).read_bytes(), file)
    reader = Reader(model, file, linear_rounding)
    return reader.read(Path(path).stem)


class Reader:
    """The graph while it is read; rules emit ops into it."""

    def __init__(self, model: TfModel, file: str, linear_rounding: str = "single") -> None:
        self.model = model
        self.file = file
        self.linear_rounding = linear_rounding
        self.inputs: list[Input] = []
        self.constants: dict[str, Any] = {}
        self.ops: list[Op] = []
        self.types: dict[str, Type] = {}
        self.values: dict[int, Value] = {}
        self.faults: list[tuple[str, Where | None]] = []

    def read(self, name: str) -> Captured:
        """The whole model."""
        for tensor in self.model.inputs:
            self._input(tensor)
        for op in self.model.ops:
            self._convert(op)
        self._raise_faults()
        outputs = tuple(Ref(self.value(tensor).name) for tensor in self.model.outputs)
        graph = Graph(_identifier(name), tuple(self.inputs), tuple(self.ops), outputs)
        return Captured(
            graph,
            self.constants,
            example_inputs=_example_inputs(self.model.inputs),
            input_leaves=tuple(range(len(self.model.inputs))),
            num_user_outputs=len(outputs),
            affines={**_affines("input", self.model.inputs), **_affines("output", self.model.outputs)},
        )

    def _convert(self, op: TfOp) -> None:
        from mplan.capture.tflite import rules  # noqa: F401
        from mplan.capture.tflite.table import RULES

        try:
            rule = RULES.get(op.name)
            if rule is None:
                raise Unreadable("mplan has no such operator")
            rule(self, op)
        except (Unreadable, UserError) as e:
            self._fault(_place(op), e.message)
        except Exception as e:  # options or operands that are not as the schema has them
            self._fault(_place(op), f"it is malformed: {type(e).__name__}: {e}")
        for tensor in op.outputs:  # ops that follow a fault are examined as well
            if tensor.index not in self.values:
                self.values[tensor.index] = self._new(tensor.name, _stated(tensor))

    def _fault(self, place: str, reason: str) -> None:
        self.faults.append((f"{place}: {reason}", Where(self.file)))

    def _raise_faults(self) -> None:
        if self.faults:
            message = f"mplan cannot express {len(self.faults)} of {len(self.model.ops)} operators"
            hint = "mplan reads models that are quantised to int8 throughout"
            raise UnsupportedError("MP302", message, Where(self.file), hint, tuple(self.faults))

    # --- values -------------------------------------------------------------------------------

    def value(self, tensor: TfTensor) -> Value:
        """The value of a tensor; a constant becomes an input of the graph on first use."""
        if tensor.index not in self.values:
            if tensor.data is None:
                raise UserError("MP313", f"{tensor.name!r} is used before it is computed")
            self.values[tensor.index] = self._constant(tensor.name, tensor.data, "param")
        return self.values[tensor.index]

    def ref(self, tensor: TfTensor) -> Ref:
        """A use of a tensor."""
        return Ref(self.value(tensor).name)

    def constant(self, name: str, numbers: Any, dtype: str) -> Ref:
        """A constant of the reader's own making, one for all equal ones."""
        import numpy as np

        array = np.asarray(numbers, dtype)
        for known, tensor in self.constants.items():
            if str(tensor.dtype) == f"torch.{dtype}" and np.array_equal(tensor.numpy(), array):
                return Ref(known)
        return Ref(self._constant(name, array, "const").name)

    def _constant(self, name: str, array: ndarray[Any, Any], role: Role) -> Value:
        import torch

        type_ = TensorType(DType.of_torch(str(array.dtype)), tuple(array.shape))
        value = self._new(name, type_)
        self.inputs.append(Input(value, role, name))
        self.constants[value.name] = torch.from_numpy(array.copy())
        return value

    def _input(self, tensor: TfTensor) -> None:
        if tensor.dtype not in ("int8", "float32"):
            self._fault(f"input {tensor.name!r}", f"{tensor.dtype} is not supported")
        value = self._new(tensor.name, _stated(tensor))
        self.inputs.append(Input(value, "input", tensor.name))
        self.values[tensor.index] = value

    def _new(self, name: str, type_: Type, alias: Alias | None = None) -> Value:
        unique, count = _identifier(name), 0
        while unique in self.types:
            count += 1
            unique = f"{_identifier(name)}_{count}"
        self.types[unique] = type_
        return Value(unique, type_, alias)

    def emit(
        self,
        kind: str,
        args: Mapping[str, Arg],
        target: TfTensor,
        *,
        view_of: str = "",
        offset_bytes: int = 0,
        final: bool = True,
    ) -> Ref:
        """An op on the way to ``target``; the ``final`` one must have its shape and element type.

        Views name the value whose bytes they show.
        """
        given = tuple((name, arg) for name, arg in args.items() if arg is not None)
        loc = Loc(module=target.name)
        bare = Op(kind, given, (), loc)
        (type_,) = infer(bare, self.types)
        assert isinstance(type_, TensorType)
        stated = _stated(target)
        if final and (type_.shape, type_.dtype) != (stated.shape, stated.dtype):
            found = f"{type_.dtype.value}{list(type_.shape)}"
            raise Unreadable(f"it yields {found}, the file states {target.dtype}{list(target.shape)}")
        alias = Alias(view_of, "view", offset_bytes) if view_of else None
        value = self._new(target.name, type_, alias)
        self.ops.append(Op(kind, given, (value,), loc))
        if final:
            self.values[target.index] = value
        return Ref(value.name)

    # --- quantisation -------------------------------------------------------------------------

    def affine(self, tensor: TfTensor) -> Affine:
        """Scale and zero point of an int8 tensor that has one of each."""
        if tensor.dtype != "int8":
            raise Unreadable(f"{tensor.name!r} is {tensor.dtype}, not int8")
        if len(tensor.scales) != 1:
            raise Unreadable(f"{tensor.name!r} has {len(tensor.scales)} scales, not one")
        return Affine(tensor.scales[0], tensor.zero_points[0])

    def same_affine(self, *tensors: TfTensor) -> Affine:
        """The quantisation that all ``tensors`` share."""
        first = self.affine(tensors[0])
        for tensor in tensors[1:]:
            if self.affine(tensor) != first:
                raise Unreadable(f"{tensor.name!r} and {tensors[0].name!r} are scaled differently")
        return first


def _affines(name: str, tensors: tuple[TfTensor, ...]) -> dict[str, Affine]:
    """What the int8 ones of ``tensors`` stand for, by name and number."""
    return {
        f"{name}{n}": Affine(t.scales[0], t.zero_points[0])
        for n, t in enumerate(tensors)
        if t.dtype == "int8" and len(t.scales) == 1
    }


def constant_of(tensor: TfTensor | None, what: str) -> ndarray[Any, Any]:
    """The value of a tensor that must be a constant."""
    if tensor is None or tensor.data is None:
        raise Unreadable(f"{what} is not a constant")
    return tensor.data


def integers(tensor: TfTensor | None, what: str) -> tuple[int, ...]:
    """A constant list of integers."""
    return tuple(int(n) for n in constant_of(tensor, what).reshape(-1))


def activation_of(op: TfOp) -> str:
    """The name of the activation that is fused into ``op``."""
    name = enum_names("ActivationFunctionType")[
        op.options.FusedActivationFunction() if op.options else 0
    ]
    if name not in RANGES:
        raise Unreadable(f"the fused activation {name} is not supported")
    return name


def _place(op: TfOp) -> str:
    return f"{op.name} -> {', '.join(repr(tensor.name) for tensor in op.outputs)}"


def _stated(tensor: TfTensor) -> TensorType:
    """The type that the file states; element types that no rule takes count as bytes."""
    known = tensor.dtype in ("int8", "int16", "int32", "int64", "float32", "bool")
    return TensorType(DType.of_torch(tensor.dtype) if known else DType.U8, tensor.shape)


def _identifier(name: str) -> str:
    bare = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return bare if bare[:1].isalpha() else f"t_{bare}"


def _example_inputs(tensors: tuple[TfTensor, ...]) -> tuple[Any, ...]:
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    for tensor in tensors:
        if tensor.dtype == "int8":
            number = torch.randint(-128, 128, tensor.shape, generator=generator, dtype=torch.int8)
        else:
            number = torch.rand(tensor.shape, generator=generator)
        made.append(number)
    return tuple(made)
