"""The only reader of torch.fx nodes: an ATen graph with fake tensors becomes an ``ir.Graph``.

Every node must be an ATen (or custom) operator overload whose ``meta['val']`` holds the fake results
(export, AOTAutograd and make_fx write it). Views are found by comparing fake storages, so the
reader needs no table of view ops. What it cannot express is collected and reported at once.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mplan.capture.source import loc_of
from mplan.capture.strides import true_strides
from mplan.capture.symbols import DataDependent, SymbolReader
from mplan.diagnostics import UnsupportedError, Where
from mplan.ir.graph import Alias, Arg, Graph, Input, Loc, Op, Ref, Role, Value
from mplan.ir.types import DType, ScalarType, TensorType

if TYPE_CHECKING:
    import torch
    from torch.fx import Node


@dataclass(frozen=True, slots=True)
class Source:
    """What a placeholder is: its role, the user's name for it, and the tensor if it is constant.

    ``value`` is the name that it gets in the graph, if that is not the placeholder's.
    """

    role: Role = "input"
    name: str = ""
    constant: Any = None
    value: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The result of a node that no op may use, and why; unused ones do no harm."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value's bytes lie: the identity of the fake storage and the offset into it."""

    storage: int
    offset_bytes: Any


@dataclass
class GraphReader:
    """Reads one graph. Call ``read`` once; then the other results are filled too.

    ``constants`` holds the tensors of constant inputs by value name, ``user_inputs`` the placeholders
    of the inputs that the caller passes, ``named`` the value names by the user's names. ``prefix`` is
    taken off all module paths.
    """

    name: str
    sizes: SymbolReader
    sources: Mapping[str, Source] = field(default_factory=dict)
    prefix: str = ""
    constants: dict[str, Any] = field(default_factory=dict)
    user_inputs: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    env: dict[Node, Any] = field(default_factory=dict)
    faults: list[tuple[str, Where | None]] = field(default_factory=list)
    _places: dict[str, _Place] = field(default_factory=dict)
    _owners: dict[int, str] = field(default_factory=dict)
    _shared: dict[int, str] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def read(self, module: torch.fx.GraphModule) -> Graph:
        """The graph; UnsupportedError MP302 with all nodes that mplan cannot express."""
        outputs: tuple[Arg, ...] = ()
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr":
                self._attribute(node, module)
            elif node.op == "output":
                outputs = self._outputs(node)
            else:
                self._guarded(node)
        self._raise_faults()
        symbols = self.sizes.symbols()
        graph = Graph(self.name, tuple(self.inputs), tuple(self.ops), outputs, symbols)
        return true_strides(graph)

    def fault(self, message: str, loc: Loc | None = None) -> Unreadable:
        """Note that something cannot be expressed; the run goes on to find more."""
        self.faults.append((message, loc.where() if loc else None))
        return Unreadable("")

    def _raise_faults(self) -> None:
        if not self.faults:
            return
        notes = tuple(dict.fromkeys(self.faults))
        rest = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        raise UnsupportedError(
            "MP302",
            f"{notes[0][0]}{rest}",
            notes[0][1],
            help="move these parts out of the model, or give them fixed sizes",
            notes=notes[1:],
        )

    # --- inputs -------------------------------------------------------------------------------

    def _placeholder(self, node: Node) -> None:
        import torch

        value = node.meta.get("val")
        source = self.sources.get(node.name, Source(name=node.name))
        if isinstance(value, torch.SymInt):
            self._symbol_input(node, value, source)
        elif isinstance(value, torch.Tensor):
            self._tensor_input(node, value, source)
        elif value is None or isinstance(value, (bool, int, float, str)):
            self.env[node] = value
        else:
            self.env[node] = Unreadable(f"an input of type {type(value).__name__}")

    def _symbol_input(self, node: Node, value: Any, source: Source) -> None:
        try:
            size = self.sizes.dim(value)
        except DataDependent:
            self.env[node] = Unreadable(f"the input {node.name} is a number read from a tensor")
            return
        self.env[node] = size
        name = self._fresh(source.value or node.name)
        self.inputs.append(Input(Value(name, ScalarType("int")), "symbol", str(size)))
        self.user_inputs.append(node.name)

    def _tensor_input(self, node: Node, value: Any, source: Source) -> None:
        name = self._shared.get(id(source.constant)) if source.constant is not None else None
        if name is None:
            name = self._fresh(source.value or node.name)
            if not self._own(name, value, Loc(module=source.name)):
                self.env[node] = Unreadable("")
                return
            self.inputs.append(Input(Value(name, self._type(value)), source.role, source.name))
            if source.constant is not None:
                self._shared[id(source.constant)] = name
                self.constants[name] = source.constant
            elif source.role == "input":
                self.user_inputs.append(node.name)
        self.env[node] = Ref(name)
        self.named[source.name] = name

    def _attribute(self, node: Node, module: torch.fx.GraphModule) -> None:
        import torch

        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            self.env[node] = Unreadable(f"the attribute {node.target} of type {type(value).__name__}")
            return
        self._tensor_input(node, node.meta.get("val", value), Source("const", str(node.target), value))

    def _own(self, name: str, value: Any, loc: Loc) -> bool:
        """Register ``name`` as the owner of its bytes; False if mplan has no type for it."""
        try:
            self._type(value)
            place = self._place(value)
        except (DataDependent, KeyError) as e:
            self.fault(_why(e, name), loc)
            return False
        self._places[name] = place
        self._owners.setdefault(place.storage, name)
        return True

    # --- ops ----------------------------------------------------------------------------------

    def _guarded(self, node: Node) -> None:
        try:
            self.env[node] = self._call(node)
        except (DataDependent, KeyError) as e:
            self.env[node] = self.fault(_why(e, _label(node)), self._loc(node))
        except _Reported:
            self.env[node] = Unreadable("")

    def _call(self, node: Node) -> Any:
        import torch

        value = node.meta.get("val")
        if node.target is operator.getitem:
            return self._item(node)
        if isinstance(value, torch.SymInt):
            return self._number(value, node)
        if isinstance(value, (int, float, bool)):
            return value
        if isinstance(value, (torch.SymFloat, torch.SymBool)):
            return Unreadable(f"{_label(node)} yields a number that depends on sizes or data")
        if not isinstance(node.target, torch._ops.OpOverload):
            return self.fault(f"{_label(node)} is not an operator of a torch library", self._loc(node))
        if not node.target._schema.returns and not _written(node.target):
            return Unreadable("nothing")
        return self._operator(node, node.target, value)

    def _number(self, value: Any, node: Node) -> Any:
        try:
            return self.sizes.dim(value)
        except DataDependent as e:
            return Unreadable(f"{_label(node)} reads the number {e} from a tensor")

    def _item(self, node: Node) -> Any:
        base = node.args[0]
        items = self.env[base]  # type: ignore[index]
        if isinstance(items, Unreadable):
            return items
        return items[node.args[1]]

    def _operator(self, node: Node, target: torch._ops.OpOverload, value: Any) -> Any:
        loc = self._loc(node)
        args = tuple((name, self._arg(a, node)) for name, a in bound_args(target, node))
        args = _without_ignored(_kind(target), args)
        written = written_nodes(node)
        if len(written) > 1 or (written and len(target._schema.returns) > 1):
            return self.fault(f"{_label(node)} overwrites several tensors", loc)
        if written:
            return self._mutation(node, args, written[0], loc)
        operands = [a for _, arg in bound_args(target, node) for a in _nodes(arg)]
        results: list[Value | None] = []
        found = self._results(node.name, _masked(value, args), operands, results)
        self.ops.append(Op(_kind(target), args, tuple(results), loc))
        return found

    def _results(
        self,
        name: str,
        value: Any,
        operands: list[Node],
        results: list[Value | None],
    ) -> Any:
        """Append the flattened results of one call; returns them in the shape of ``value``."""
        if isinstance(value, (tuple, list)):
            return tuple(
                self._results(f"{name}_r{i}", item, operands, results) for i, item in enumerate(value)
            )
        import torch

        if not isinstance(value, torch.Tensor):
            results.append(None)
            if isinstance(value, torch.SymInt):
                return self.sizes.dim(value)
            return value if value is None or isinstance(value, int) else Unreadable("a result")
        type_ = self._type(value)
        siblings = {v.name for v in results if v is not None}
        result = Value(self._fresh(name), type_, self._alias(value, operands, siblings))
        place = self._place(value)
        self._places[result.name] = place
        self._owners.setdefault(place.storage, result.name)
        results.append(result)
        return Ref(result.name)

    def _alias(self, value: Any, operands: list[Node], siblings: set[str]) -> Alias | None:
        """Whose bytes a result shares: an operand's if possible, but not another result's."""
        place = self._place(value)
        for node in operands:
            ref = self.env.get(node)
            if isinstance(ref, Ref) and self._places[ref.name].storage == place.storage:
                return self._alias_of(ref.name, place)
        owner = self._owners.get(place.storage)
        return self._alias_of(owner, place) if owner and owner not in siblings else None

    def _alias_of(self, name: str, place: _Place) -> Alias:
        distance = place.offset_bytes - self._places[name].offset_bytes
        return Alias(name, "view", self.sizes.dim(distance))

    def _mutation(
        self, node: Node, args: tuple[tuple[str, Arg], ...], target: Any, loc: Loc | None
    ) -> Any:
        """An op that overwrites ``target``: its result is the new state of those bytes."""
        ref = self.env[target]
        old = target.meta["val"]
        result = Value(self._fresh(node.name), self._type(old), Alias(ref.name, "inplace"))
        place = self._places[ref.name]
        self._places[result.name] = place
        self.ops.append(Op(_kind(node.target), args, (result,), loc))
        for other, value in self.env.items():
            if isinstance(value, Ref) and self._places[value.name].storage == place.storage:
                same = value.name == ref.name
                stale = Unreadable(f"{other.name} is read after {_label(node)} has overwritten it")
                self.env[other] = Ref(result.name) if same else stale
        self._owners[place.storage] = result.name
        return Ref(result.name)

    # --- arguments and types ------------------------------------------------------------------

    def _arg(self, arg: Any, user: Node) -> Arg:
        import torch
        from torch.fx import Node

        if isinstance(arg, Node):
            found = self.env[arg]
            if isinstance(found, Unreadable):
                if found.reason:
                    self.fault(
                        f"{_label(user)} uses what mplan cannot: {found.reason}",
                        self._loc(arg) or self._loc(user),
                    )
                raise _Reported
            return found  # type: ignore[no-any-return]
        if isinstance(arg, (list, tuple)):
            return tuple(self._arg(a, user) for a in arg)
        if isinstance(arg, torch.dtype):
            return DType.of_torch(str(arg))
        if isinstance(arg, (torch.device, torch.layout, torch.memory_format)):
            return str(arg).removeprefix("torch.")
        if isinstance(arg, torch.SymInt):
            return self.sizes.dim(arg)
        if arg is None or isinstance(arg, (bool, int, float, str)):
            return arg
        self.fault(f"{_label(user)} has an argument of type {type(arg).__name__}", self._loc(user))
        raise _Reported

    def _outputs(self, node: Node) -> tuple[Arg, ...]:
        import torch.utils._pytree as pytree

        outputs: list[Arg] = []
        for leaf in pytree.tree_leaves(node.args[0], is_leaf=lambda x: x is None):
            try:
                outputs.append(self._arg(leaf, node))
            except _Reported:
                outputs.append(None)
        return tuple(outputs)

    def _type(self, value: Any) -> TensorType:
        import torch

        if value.layout is not torch.strided or value.is_quantized:
            raise KeyError(str(value.layout if not value.is_quantized else value.dtype))
        shape = tuple(self.sizes.dim(n) for n in value.shape)
        strides = None if _is_contiguous(value) else tuple(self.sizes.dim(s) for s in value.stride())
        return TensorType(DType.of_torch(str(value.dtype)), shape, strides)

    def _place(self, value: Any) -> _Place:
        offset = _expr(value.storage_offset()) * value.dtype.itemsize
        return _Place(value.untyped_storage()._cdata, offset)

    def _loc(self, node: Node) -> Loc | None:
        return loc_of(node.meta, self.prefix)

    def _fresh(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique


def without_unused_constants(graph: Graph, keep: Collection[str] = ()) -> Graph:
    """``graph`` without the param, buffer and const inputs that nothing reads; ``keep`` stays."""
    used = {name for op in graph.ops for name in op.operands} | {*graph.output_names, *keep}
    kept = (i for i in graph.inputs if i.role in ("input", "symbol") or i.value.name in used)
    return replace(graph, inputs=tuple(kept))


class _Reported(Exception):
    """A fault of an argument has been noted; the op cannot be built."""


def bound_args(target: torch._ops.OpOverload, node: Node) -> Iterator[tuple[str, Any]]:
    """The arguments that ``node`` passes, by schema name in schema order."""
    schema = target._schema.arguments
    given = {a.name: value for a, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    return ((a.name, given[a.name]) for a in schema if a.name in given)


def written_nodes(node: Node) -> list[Node]:
    """The nodes whose tensors ``node`` (an operator call) overwrites."""
    target: Any = node.target
    given = dict(bound_args(target, node))
    return [n for name in _written(target) for n in _nodes(given.get(name))]


def _written(target: torch._ops.OpOverload) -> list[str]:
    return [a.name for a in target._schema.arguments if a.alias_info and a.alias_info.is_write]


def _kind(target: Any) -> str:
    return f"{target.namespace}.{target._opname}.{target._overloadname}"


def _label(node: Node) -> str:
    import torch

    if isinstance(node.target, torch._ops.OpOverload):
        return _kind(node.target)
    if node.op == "output":
        return "the output"
    return str(getattr(node.target, "__name__", node.target))


def _why(error: Exception, subject: str) -> str:
    if isinstance(error, DataDependent):
        return f"{subject} has the size {error}, which depends on the data"
    return f"{subject} has the element type or layout {error.args[0]}, which mplan does not know"


def _nodes(arg: Any) -> Iterator[Node]:
    from torch.fx import Node

    if isinstance(arg, Node):
        yield arg
    elif isinstance(arg, (list, tuple)):
        for item in arg:
            yield from _nodes(item)


def _expr(size: Any) -> Any:
    """A size as an integer or SymPy expression, so that arithmetic on it adds no guards."""
    return size if isinstance(size, int) else size.node.expr


def _is_contiguous(value: Any) -> bool:
    """Whether a tensor has exactly the row-major strides that PyTorch gives to a new one.

    Where torch writes ``max(n, 1)`` for the stride over a size that may be 0, ``n`` does as well: a
    tensor without elements has no use for its strides.
    """
    step: Any = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        size, stride = _expr(size), _expr(stride)
        if stride != step and _plain(stride) != _plain(step):
            return False
        step = step * (max(size, 1) if isinstance(size, int) else size)
    return True


@lru_cache(maxsize=4096)
def _plain(size: Any) -> Any:
    """``size`` in one canonical form, without ``max(…, 1)``."""
    import sympy

    def without_one(e: sympy.Expr) -> sympy.Expr:
        return type(e)(*(a for a in e.args if a != 1))

    size = sympy.sympify(size)
    return sympy.expand(size.replace(lambda e: type(e).__name__ == "Max", without_one))


#: Operands that a kernel does not read when a flag has the given value, though its schema names them.
_IGNORED = {
    "aten.native_batch_norm_backward.default": (("running_mean", "running_var"), "train", True),
}


def _masked(value: Any, args: tuple[tuple[str, Arg], ...]) -> Any:
    """The results that ``output_mask`` asks for; fake kernels may give the others as well."""
    mask = dict(args).get("output_mask")
    if not isinstance(mask, tuple) or not isinstance(value, (tuple, list)):
        return value
    return tuple(v if wanted else None for v, wanted in zip(value, mask, strict=True))


def _without_ignored(kind: str, args: tuple[tuple[str, Arg], ...]) -> tuple[tuple[str, Arg], ...]:
    """``args`` with None for operands that the kernel ignores: they must not hold memory."""
    names, flag, value = _IGNORED.get(kind, ((), "", None))
    if dict(args).get(flag) is not value:
        return args
    return tuple((name, None if name in names else arg) for name, arg in args)
