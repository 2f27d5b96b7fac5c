"""Rows of the op table for torch operators, derived from torch's schemas.

The shape rule runs the operator on fake CPU tensors, so it gives the strides that eager execution
gives. Contractions are counted by torch's ``FlopCounterMode``, which sees through composite
operators (``linear``, ``conv2d``, ``matmul``, ``einsum``) to the ones it has formulas for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from mplan.diagnostics import UnsupportedError, UserError
from mplan.ir.graph import Op
from mplan.ir.ops import BoundArg, OpDef, Param, bound_args
from mplan.ir.types import DType, ScalarType, TensorType, Type


def derive(kind: str) -> OpDef:
    """The row of a torch operator; UserError MP102 if torch does not know it."""
    op = overload(kind)
    schema = op._schema
    returns = tuple(_notation(str(r.real_type)) for r in schema.returns)
    import torch

    return OpDef(
        kind=kind,
        params=tuple(_param(a) for a in schema.arguments),
        returns=returns,
        infer=_shape_rule(kind, returns),
        reference=lambda **args: op(**to_torch(kind, args)),
        macs=_macs,
        pointwise=torch.Tag.pointwise in op.tags,
        is_view=_is_view(schema),
        random=torch.Tag.nondeterministic_seeded in op.tags,
    )


def _shape_rule(
    kind: str, returns: tuple[str, ...]
) -> Callable[[Mapping[str, BoundArg]], tuple[Type | None, ...]]:
    if returns == ("Scalar",):
        return lambda args: _infer_number(tuple(args.items()))
    return lambda args: _infer(kind, _Args(args.items()))


def overload(kind: str) -> Any:
    """torch's ``OpOverload`` of ``kind``; UserError MP102 if there is none."""
    import torch

    namespace, _, rest = kind.partition(".")
    name, _, variant = rest.rpartition(".")
    if namespace == "quantized_decomposed":
        import torch.ao.quantization.fx._decomposed  # registers them
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), name), variant)
    except (AttributeError, RuntimeError, ValueError):
        found = None
    if not isinstance(found, torch._ops.OpOverload):
        raise UserError("MP102", f"torch has no operator {kind!r}", help=_overloads(namespace, name))
    return found


def _overloads(namespace: str, name: str) -> str:
    import torch

    packet = getattr(getattr(torch.ops, namespace, None), name or "_", None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return "kinds are namespace.name.overload, such as aten.add.Tensor"
    variants: Any = packet
    return "its overloads: " + ", ".join(f"{namespace}.{name}.{o}" for o in variants.overloads())


def _param(argument: Any) -> Param:
    required = not argument.has_default_value()
    default = None if required else _constant(argument.default_value)
    alias = argument.alias_info
    written = alias is not None and alias.is_write
    return Param(argument.name, _notation(str(argument.real_type)), required, default, written)


def _constant(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_constant(v) for v in value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _notation(name: str) -> str:
    """``Optional[List[int]]`` as ``int[]?``."""
    for prefix, suffix in (("Optional[", "?"), ("List[", "[]")):
        if name.startswith(prefix):
            return _notation(name[len(prefix) : -1]) + suffix
    return "Scalar" if name == "number" else name


def _is_view(schema: Any) -> bool:
    aliases = [r.alias_info for r in schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def to_torch(kind: str, args: Mapping[str, BoundArg]) -> dict[str, Any]:
    """Arguments as torch takes them: dtypes, devices, layouts and memory formats by torch's objects."""
    types = _param_types(kind)
    return {name: torch_value(arg, types.get(name, "")) for name, arg in args.items()}


@lru_cache(maxsize=4096)
def _param_types(kind: str) -> dict[str, str]:
    return {a.name: _notation(str(a.real_type)).rstrip("?") for a in overload(kind)._schema.arguments}


def torch_value(arg: BoundArg, type_: str) -> Any:
    """``arg`` for a parameter of the schema type ``type_`` as torch takes it."""
    import torch

    if isinstance(arg, DType):
        return getattr(torch, arg.torch_name)
    if isinstance(arg, tuple):
        return [torch_value(item, type_) for item in arg]
    if isinstance(arg, str) and type_ == "Device":
        return torch.device(arg)
    if isinstance(arg, str) and type_ in ("MemoryFormat", "Layout", "ScalarType"):
        return getattr(torch, arg.removeprefix("torch."))
    return arg


def _infer_number(args: tuple[tuple[str, BoundArg], ...]) -> tuple[Type | None, ...]:
    """The number that ``item`` reads from its tensor."""
    type_ = next(arg for _, arg in args if isinstance(arg, TensorType))
    name = "float" if type_.dtype.is_float else "bool" if type_.dtype is DType.BOOL else "int"
    return (ScalarType(name),)


class _Args(tuple[tuple[str, BoundArg], ...]):
    """Arguments as the key of a cache: unlike in plain tuples, 1, 1.0 and True differ."""

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


@lru_cache(maxsize=16384)
def _infer(kind: str, args: _Args) -> tuple[Type | None, ...]:
    op = overload(kind)
    try:
        with _meta() if _is_view(op._schema) else _fake_cpu():
            out = op(**to_torch(kind, {name: sample_of(arg) for name, arg in args}))
    except Exception as e:  # torch raises whatever the operator's meta function does
        raise _rejection(kind, args, e) from None
    return tuple(type_of(item) for item in flat_results(out))


@contextmanager
def _meta() -> Iterator[None]:
    """Tensors made inside have no bytes. Views of them get the strides of real ones, also for
    dimensions of size 1, where fake tensors differ."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.device("meta"), torch.no_grad():
        yield


@contextmanager
def _fake_cpu() -> Iterator[None]:
    """Tensors made inside are fake; torch's own log of rejected calls is silent."""
    import torch
    from torch._subclasses import fake_tensor
    from torch.utils._python_dispatch import _disable_current_modes

    log = fake_tensor.log
    disabled, log.disabled = log.disabled, True
    try:
        with _disable_current_modes(), fake_tensor.FakeTensorMode(), torch.no_grad():
            yield
    finally:
        log.disabled = disabled


def _rejection(kind: str, args: tuple[tuple[str, BoundArg], ...], e: Exception) -> Exception:
    from torch._subclasses import fake_tensor

    dynamic = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
    if isinstance(e, dynamic):
        return UnsupportedError("MP107", f"the result of {kind} depends on data")
    missing = (fake_tensor.UnsupportedFakeTensorException, fake_tensor.UnsupportedOperatorException)
    if isinstance(e, (*missing, NotImplementedError)):
        return UnsupportedError("MP107", f"torch has no shape rule for {kind}")
    shown = ", ".join(f"{name}={_show(arg)}" for name, arg in args)
    reason = str(e).strip().split("\n")[0]
    return UserError("MP107", f"{kind}({shown}) is rejected: {reason}")


def _show(arg: BoundArg) -> str:
    from mplan.ir.printer import print_arg, print_type

    if isinstance(arg, tuple):
        return "[" + ", ".join(_show(item) for item in arg) + "]"
    return print_type(arg) if isinstance(arg, (TensorType, ScalarType)) else print_arg(arg)


def sample_of(arg: BoundArg) -> Any:
    """A tensor for a type (fake while a fake mode is active), a sample number for a scalar type."""
    import torch

    if isinstance(arg, TensorType):
        dtype = getattr(torch, arg.dtype.torch_name)
        return torch.empty_strided(_sizes(arg), arg.element_strides, dtype=dtype)
    if isinstance(arg, ScalarType):
        return {"int": 1, "float": 1.0, "bool": True}[arg.name]
    if isinstance(arg, tuple):
        return tuple(sample_of(item) for item in arg)
    return arg


def _sizes(type_: TensorType) -> tuple[int, ...]:
    return tuple(n for n in type_.shape if isinstance(n, int))


def type_of(item: Any) -> Type | None:
    """The type of a tensor or number; contiguous tensors get ``strides=None``."""
    if item is None:
        return None
    if isinstance(item, (bool, int, float)):
        return ScalarType(type(item).__name__)
    shape = tuple(int(n) for n in item.shape)
    dtype = DType.of_torch(str(item.dtype))
    strided = TensorType(dtype, shape, tuple(int(s) for s in item.stride()))
    return TensorType(dtype, shape) if strided.is_contiguous else strided


def flat_results(out: Any) -> tuple[Any, ...]:
    """The results of an operator as one tuple; lists of tensors are flattened."""
    if not isinstance(out, (tuple, list)):
        return (out,)
    return tuple(item for part in out for item in flat_results(part))


def _macs(op: Op, types: Mapping[str, Type]) -> int:
    from mplan.ir.ops import lookup

    row = lookup(op.kind)
    if row.pointwise or row.is_view or op.is_view:
        return 0
    return _counted(op.kind, _Args(bound_args(op, types).items())) // 2


@lru_cache(maxsize=16384)
def _counted(kind: str, args: _Args) -> int:
    """The FLOPs that torch's counter sees on fake tensors; 0 if the operator cannot run on them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
    try:
        with _fake_cpu():
            inputs = to_torch(kind, {name: sample_of(arg) for name, arg in args})
            with counter:
                overload(kind)(**inputs)
    except Exception:  # an operator that needs data has no contraction that torch knows
        return 0
    return int(counter.get_total_flops())


def _cpu_attention() -> dict[Any, Any]:
    """Formulas for the CPU's fused attention, which torch's registry lacks."""
    import torch
    from torch.utils import flop_counter

    count: Any = flop_counter
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return {
        fused: lambda q, k, v, *_, **__: count.sdpa_flop_count(q, k, v),
        backward: lambda g, q, k, v, *_, **__: count.sdpa_backward_flop_count(g, q, k, v),
    }
