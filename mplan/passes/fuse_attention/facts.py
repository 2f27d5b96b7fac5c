"""What the matchers ask about a graph: producers, types, and values known at compile time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mplan.diagnostics import MplanError
from mplan.ir.graph import Arg, Graph, Op, Ref, tensor_type
from mplan.ir.ops import bound_args, lookup
from mplan.ir.storage import storages
from mplan.ir.types import Dim, TensorType

if TYPE_CHECKING:
    from torch import Tensor

#: Constants with more elements are not evaluated (a mask of 4096 queries and keys still is).
_MOST_ELEMENTS = 1 << 24
#: Larger ones are not kept.
_LARGE = 1 << 16

#: Side computations of a softmax are at most this many ops long.
_DEEPEST = 12


class Facts:
    """A graph with its look-up tables and a cache of evaluated constants."""

    def __init__(self, graph: Graph, constants: Mapping[str, Any]) -> None:
        self.graph = graph
        self.producers = graph.producers
        self.users = graph.users
        self.values = graph.value_table
        self._returned = frozenset(graph.output_names)
        self._position = {name: i for i, name in enumerate(self.values)}
        self._tensors = dict(constants)
        self._known: dict[str, Tensor | None] = {}
        #: What masks were found to be, by the key of whoever looks.
        self.looks: dict[object, tuple[str, bool, bool]] = {}
        self._fixed = self._find_fixed()
        self._given = self._find_given()

    def _find_fixed(self) -> frozenset[str]:
        """The values that depend on nothing but numbers, constants and buffers that stay the same.

        A buffer that the model assigns to has its next state among the outputs.
        """
        root = storages(self.graph).root
        written = {root[v.name] for v in self.graph.values if v.alias and v.alias.kind == "inplace"}
        returned = {self.values[name].type for name in self._returned}
        fixed = {
            i.value.name
            for i in self.graph.inputs
            if i.value.name in self._tensors and i.value.name not in written
            if i.role == "const" or (i.role == "buffer" and i.value.type not in returned)
        }
        for op in self.graph.ops:
            if not op.loop and len(op.values) == 1 and fixed.issuperset(op.operands):
                fixed.add(op.result.name)
        return frozenset(fixed)

    def _find_given(self) -> frozenset[str]:
        """The values that depend on what the caller passes."""
        given = {i.value.name for i in self.graph.inputs if i.role == "input"}
        for op in self.graph.ops:
            if not given.isdisjoint(op.operands):
                given.update(v.name for v in op.values)
        return frozenset(given)

    def depends_on_inputs(self, name: str) -> bool:
        """Whether ``name`` differs from call to call."""
        return name in self._given

    def type(self, name: str) -> TensorType:
        """The type of a tensor value."""
        return tensor_type(self.values[name])

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The sizes of a tensor value."""
        return self.type(name).shape

    def use_outside(self, interior: frozenset[str], end: Op) -> tuple[str, Op | None] | None:
        """A value of ``interior`` that something beside ``end`` needs, and the op (None: an output).

        Ops whose results serve nothing else, such as the maximum in a decomposed softmax, are inside.
        """
        ordered = sorted(interior, key=self._position.__getitem__)
        for name in (n for n in ordered if n in self._returned):
            return name, None
        for name in ordered:
            for user in self.users.get(name, ()):
                if user is not end and not self._serves_only(user, interior, end, 0):
                    return name, user
        return None

    def _serves_only(self, op: Op, interior: frozenset[str], end: Op, depth: int) -> bool:
        if op is end or interior.issuperset(v.name for v in op.values):
            return bool(op.values)
        if depth > _DEEPEST or any(v.name in self._returned for v in op.values):
            return False
        users = [user for v in op.values for user in self.users.get(v.name, ())]
        return bool(op.values) and all(
            self._serves_only(user, interior, end, depth + 1) for user in users
        )

    def number(self, arg: Arg) -> float | None:
        """The number that ``arg`` is or that a one-element tensor holds, if known at compile time."""
        if isinstance(arg, (int, float)):
            return float(arg)
        if not isinstance(arg, Ref):
            return None
        type_ = self.values[arg.name].type
        if isinstance(type_, TensorType) and all(n == 1 for n in type_.shape):
            tensor = self.constant(arg.name)
            return None if tensor is None else float(tensor.reshape(-1)[0])
        return self._uniform(arg.name)

    def _uniform(self, name: str) -> float | None:
        """The number that fills a tensor which an op has filled with one number."""
        op = self.producers.get(name)
        if op is None:
            return None
        base = op.kind.split(".")[1]
        if base in ("full", "full_like", "new_full"):
            return self.number(op.arg("fill_value"))
        if base in ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"):
            return float("ones" in base)
        if base in ("expand", "view", "clone", "alias", "_to_copy", "to"):
            return self.number(op.args[0][1])
        return None

    def constant(self, name: str) -> Tensor | None:
        """The value of ``name`` if it depends on nothing but numbers, buffers and constants.

        Weights do not count: training changes them, and masks do not come from them.
        """
        found = self._value(name)
        for large in [n for n, t in self._known.items() if t is not None and t.numel() > _LARGE]:
            del self._known[large]
        return found

    def _value(self, name: str) -> Tensor | None:
        if name not in self._known:
            self._known[name] = self._evaluate(name)
        return self._known[name]

    def _evaluate(self, name: str) -> Tensor | None:
        type_ = self.values[name].type
        if name not in self._fixed or not isinstance(type_, TensorType):
            return None
        if not type_.is_static or type_.numel > _MOST_ELEMENTS:
            return None
        op = self.producers.get(name)
        if op is None:
            tensor: Tensor = self._tensors[name]
            return tensor
        env = {operand: self._value(operand) for operand in op.operands}
        return None if any(value is None for value in env.values()) else _run(op, env)


def _run(op: Op, env: Mapping[str, Tensor | None]) -> Tensor | None:
    import torch

    try:
        row = lookup(op.kind)
        if row.random or any(p.written for p in row.params):
            return None
        with torch.no_grad():
            found = row.reference(**bound_args(op, env))
    except (MplanError, RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    return found if isinstance(found, torch.Tensor) else None
