"""The new graph while it is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mplan.ir.graph import Alias, Arg, Graph, Input, Loc, Op, Ref, Role, Value, refs
from mplan.ir.ops import infer, lookup
from mplan.ir.types import DType, TensorType, Type


@dataclass
class Builder:
    """Ops and constants of the new graph, with unique names; it starts with the old one's inputs.

    ``constants`` holds the tensors of constant inputs by name.
    """

    graph: Graph
    constants: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    types: dict[str, Type] = field(default_factory=dict)
    _roots: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = list(self.graph.inputs)
        self.types = {i.value.name: i.value.type for i in self.inputs}

    def fresh(self, name: str) -> str:
        """``name``, or one like it that is not taken; a view of it gets no longer name than it."""
        root = unique = self._roots.get(name, name)
        count = 0
        while unique in self.types:
            count += 1
            unique = f"{root}_v{count}"
        self._roots[unique] = root
        return unique

    def emit(
        self,
        kind: str,
        args: Mapping[str, Arg],
        name: str,
        loc: Loc | None = None,
        *,
        view_of: str = "",
        offset_bytes: int = 0,
    ) -> str:
        """Append an op of one result, its arguments in any order; its name.

        Views name the value whose bytes they show.
        """
        order = (param.name for param in lookup(kind).params)
        given = tuple((key, args[key]) for key in order if args.get(key) is not None)
        (type_,) = infer(Op(kind, given, (), loc), self.types)
        assert type_ is not None
        alias = Alias(view_of, "view", offset_bytes) if view_of else None
        value = Value(self.fresh(name), type_, alias)
        self.append(Op(kind, given, (value,), loc))
        return value.name

    def append(self, op: Op) -> None:
        """Append an op as it is."""
        self.ops.append(op)
        self.types |= {v.name: v.type for v in op.values}

    def constant(self, name: str, tensor: Any, role: Role = "const") -> Ref:
        """A constant input; small ones of the same value are one."""
        import torch

        tensor = tensor.contiguous()
        for known, other in self.constants.items():
            alike = other.dtype == tensor.dtype and other.shape == tensor.shape
            if alike and tensor.numel() <= 4096 and torch.equal(other, tensor):
                return Ref(known)
        type_ = TensorType(DType.of_torch(str(tensor.dtype)), tuple(tensor.shape))
        value = Value(self.fresh(re.sub(r"\W", "_", name)), type_)
        self.types[value.name] = type_
        self.inputs.append(Input(value, role, name))
        self.constants[value.name] = tensor
        return Ref(value.name)

    def finish(self, outputs: tuple[Arg, ...]) -> tuple[Graph, dict[str, Any]]:
        """The graph and its constants, without ops and constants that nothing uses."""
        used = {ref.name for ref in refs(outputs)}
        ops: list[Op] = []
        for op in reversed(self.ops):
            if any(v.name in used for v in op.values):
                used |= {*op.operands, *(v.alias.of for v in op.values if v.alias)}
                ops.append(op)
        kept = [i for i in self.inputs if i.role in ("input", "symbol") or i.value.name in used]
        kept.sort(key=lambda i: i.role not in ("input", "symbol"))
        names = {i.value.name for i in kept}
        graph = replace(self.graph, inputs=tuple(kept), ops=tuple(reversed(ops)), outputs=outputs)
        return graph, {name: t for name, t in self.constants.items() if name in names}
