"""What both interpreters share: inputs, symbols from shapes, calls of reference functions, layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import MplanError, UserError
from mplan.ir.graph import Graph, Op, Value
from mplan.ir.ops import BoundArg, lookup
from mplan.ir.printer import print_type
from mplan.ir.types import ScalarType, Sym, Symbol, TensorType, Type

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Ranges up to this many values are searched for a symbol that occurs only inside expressions.
SEARCHED = 1 << 16


def named_inputs(graph: Graph, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """The inputs by value name; UserError MP108 unless there is one for each input of ``graph``."""
    names = [item.value.name for item in graph.inputs]
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(names):
            raise UserError("MP108", f"graph {graph.name} takes {len(names)} inputs, got {len(inputs)}")
        return dict(zip(names, inputs, strict=True))
    missing = [name for name in names if name not in inputs]
    unknown = [name for name in inputs if name not in names]
    if missing or unknown:
        problem = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
        help = f"its inputs: {', '.join(names)}"
        raise UserError("MP108", f"wrong inputs for graph {graph.name}; {problem}", help=help)
    return dict(inputs)


def bind_symbols(
    graph: Graph, values: Mapping[str, Any], given: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The value of each symbol of ``graph``: given, an input of role ``symbol``, or found from shapes.

    UserError MP108 if one is not determined or outside its range.
    """
    found = {s.name: (given or {})[s.name] for s in graph.symbols if s.name in (given or {})}
    equations = list(_equations(graph, values))
    for size, number in equations:
        if size.text in graph.symbol_table:
            found.setdefault(size.text, number)
    for size, number in equations:
        unknown = set(size.symbols) - found.keys()
        if len(unknown) == 1:
            _solve(graph.symbol_table[unknown.pop()], size, number, found)
    for symbol in graph.symbols:
        if symbol.name not in found:
            help = f"pass symbols={{{symbol.name!r}: …}}"
            raise UserError("MP108", f"no input says what {symbol.name} is", help=help)
        if not symbol.low <= found[symbol.name] <= symbol.high:
            allowed = f"[{symbol.low}, {symbol.high}]"
            raise UserError("MP108", f"{symbol.name} is {found[symbol.name]}, must be in {allowed}")
    return found


def _equations(graph: Graph, values: Mapping[str, Any]) -> Iterator[tuple[Sym, int]]:
    """Sizes whose numbers the inputs tell."""
    for item in graph.inputs:
        type_, value = item.value.type, values[item.value.name]
        if isinstance(type_, TensorType):
            for dim, number in zip(type_.shape, getattr(value, "shape", ()), strict=False):
                if isinstance(dim, Sym):
                    yield dim, int(number)
        elif item.role == "symbol":
            yield Sym(item.source or item.value.name), int(value)


def _solve(symbol: Symbol, size: Sym, number: int, found: dict[str, int]) -> None:
    if symbol.high - symbol.low > SEARCHED:
        return
    for candidate in range(symbol.low, symbol.high + 1):
        if size.evaluate({**found, symbol.name: candidate}) == number:
            found[symbol.name] = candidate
            return


def check_value(label: str, value: Any, type_: Type, symbols: Mapping[str, int]) -> None:
    """UserError MP108 unless ``value`` has the element type and shape of ``type_``."""
    import torch

    if isinstance(type_, ScalarType):
        if isinstance(value, torch.Tensor) or not isinstance(value, (bool, int, float)):
            raise UserError("MP108", f"{label} must be a number, got {type(value).__name__}")
        return
    wanted = type_.bound(symbols)
    if not isinstance(value, torch.Tensor):
        got = type(value).__name__
        raise UserError("MP108", f"{label} must be a tensor {print_type(wanted)}, got {got}")
    if value.dtype != torch_dtype(wanted) or tuple(value.shape) != wanted.shape:
        dtype = str(value.dtype).removeprefix("torch.")
        sizes = ",".join(str(n) for n in value.shape)
        raise UserError("MP108", f"{label} must be {print_type(wanted)}, got {dtype}[{sizes}]")


def call(op: Op, args: Mapping[str, BoundArg], symbols: Mapping[str, int]) -> tuple[Any, ...]:
    """The results of ``op``'s reference function, of the stated types (None where ``op`` has None).

    UserError MP109 with the op's place if the operator fails or yields something else.
    """
    from mplan.ir.aten_ops import flat_results

    try:
        out = lookup(op.kind).reference(**args)
    except MplanError:
        raise
    except Exception as e:  # whatever the operator raises is about this op and its inputs
        raise _failure(op, str(e).strip().split("\n")[0] or type(e).__name__) from e
    results = flat_results(out) if op.results else ()
    if len(results) != len(op.results):
        raise _failure(op, f"it yields {len(results)} results, the graph states {len(op.results)}")
    pairs = zip(op.results, results, strict=True)
    return tuple(None if v is None else _stated(op, v, item, symbols) for v, item in pairs)


def _failure(op: Op, reason: str) -> UserError:
    name = f"%{op.result.name} = {op.kind}" if op.values else op.kind
    return UserError("MP109", f"{name} failed: {reason}", op.loc.where() if op.loc else None)


def _stated(op: Op, value: Value, item: Any, symbols: Mapping[str, int]) -> Any:
    try:
        check_value(f"the result %{value.name}", item, value.type, symbols)
    except UserError as e:
        raise _failure(op, e.message) from None
    return item


def torch_dtype(type_: TensorType) -> torch.dtype:
    """torch's element type."""
    import torch

    dtype = getattr(torch, type_.dtype.torch_name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def overlay(bytes_: Tensor, type_: TensorType, offset_bytes: int) -> Tensor:
    """A tensor of the static ``type_`` on the storage of ``bytes_``, from its ``offset_bytes`` on."""
    import torch

    start, rest = divmod(offset_bytes, type_.dtype.itemsize)
    if rest:
        message = f"{print_type(type_)} cannot lie at byte {offset_bytes}"
        raise UserError("MP110", f"{message}: its elements have {type_.dtype.itemsize} B")
    empty = torch.empty(0, dtype=torch_dtype(type_))
    shape = [n for n in type_.shape if isinstance(n, int)]
    return empty.set_(bytes_.untyped_storage(), start, shape, list(type_.element_strides))


def laid_out(tensor: Tensor, type_: TensorType) -> Tensor:
    """``tensor`` itself if it has the strides of the static ``type_``, else a copy that has."""
    import torch

    strides = type_.element_strides
    pairs = zip(tensor.shape, tensor.stride(), strides, strict=True)
    if tensor.numel() == 0 or all(n == 1 or a == b for n, a, b in pairs):
        return tensor
    copy = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype)
    return copy.copy_(tensor)


def first_byte(tensor: Tensor) -> int:
    """How many bytes of its storage lie before the first element of ``tensor``."""
    return int(tensor.storage_offset()) * tensor.element_size()


def shares_storage(tensor: Any, others: Any) -> bool:
    """Whether ``tensor`` lies in the storage of one of ``others``."""
    import torch

    tensors = [t for t in others if isinstance(t, torch.Tensor)]
    mine = tensor.untyped_storage().data_ptr() if isinstance(tensor, torch.Tensor) else 0
    return bool(mine) and any(mine == t.untyped_storage().data_ptr() for t in tensors)
