"""What a capture yields: the graph, its constants, and how the caller's arguments map to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mplan.diagnostics import UserError
from mplan.ir.affine import Affine
from mplan.ir.graph import Alias, Graph, Op, Ref, Value


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph with everything that is needed to run it.

    ``constants`` maps the names of param, buffer and const inputs to tensors. ``example_inputs`` are
    the values of the inputs of role ``input`` and ``symbol``, in the order of the graph;
    ``input_leaves[i]`` says which leaf of the flattened ``(args, kwargs)`` (pytree ``in_spec``) the
    i-th of them is. The first ``num_user_outputs`` outputs of the graph are the leaves of
    ``out_spec``; ``mutations`` maps the index of each further output to the graph input (by name)
    whose bytes the model has overwritten with it, for the runtime to copy back. ``gradients`` maps an
    output index to the name of the input that it is the gradient for (training graphs). ``notes`` are
    for the user: they become warnings of a report. ``affines`` say what real numbers the integers of
    inputs and outputs stand for, under the names ``input0`` …, ``output0`` …, where that is known.
    """

    graph: Graph
    constants: Mapping[str, Any]
    example_inputs: tuple[Any, ...] = ()
    in_spec: Any = None
    out_spec: Any = None
    input_leaves: tuple[int, ...] = ()
    num_user_outputs: int = 0
    mutations: Mapping[int, str] = field(default_factory=dict)
    gradients: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    affines: Mapping[str, Affine] = field(default_factory=dict)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
        """The graph's user inputs, in its order, out of a call's arguments.

        UserError MP311 unless the arguments have the structure of the captured call.
        """
        from torch.utils._pytree import tree_flatten, tree_unflatten

        named = dict(kwargs or {})
        if self.in_spec is not None:
            _, known = tree_unflatten([None] * self.in_spec.num_leaves, self.in_spec)
            named = {key: named[key] for key in known if key in named} | named
        leaves, spec = tree_flatten((tuple(args), named))
        if self.in_spec is not None and spec != self.in_spec:
            message = f"the arguments are {spec}, the captured ones were {self.in_spec}"
            raise UserError("MP311", " ".join(message.split()))
        return [leaves[i] for i in self.input_leaves]

    def unflatten(self, outputs: tuple[Any, ...]) -> Any:
        """The model's return value out of the graph's outputs."""
        from torch.utils._pytree import tree_unflatten

        if self.out_spec is None:
            return outputs
        return tree_unflatten(list(outputs[: self.num_user_outputs]), self.out_spec)

    def with_write_back(self) -> Captured:
        """The same program with ops that overwrite the mutated inputs, instead of further outputs.

        Each copy stands behind the last op that reads the old bytes, so new values die early.
        """
        if not self.mutations:
            return self
        ops = list(self.graph.ops)
        table = self.graph.value_table
        for index, name in self.mutations.items():
            source = self.graph.outputs[index]
            if not isinstance(source, Ref):
                continue
            result = Value(f"{name}_after", table[name].type, Alias(name, "inplace"))
            copy = Op("aten.copy_.default", (("self", Ref(name)), ("src", source)), (result,))
            ops.insert(_after_last_use(ops, {name, source.name}), copy)
        kept = [i for i in range(len(self.graph.outputs)) if i not in self.mutations]
        position = {old: new for new, old in enumerate(kept)}
        outputs = tuple(self.graph.outputs[i] for i in kept)
        return replace(
            self,
            graph=replace(self.graph, ops=tuple(ops), outputs=outputs),
            mutations={},
            gradients={position[i]: n for i, n in self.gradients.items()},
        )


def _after_last_use(ops: list[Op], names: set[str]) -> int:
    """The position behind the last op that makes or reads one of ``names``, or a view of one."""
    position, known = 0, set(names)
    for index, op in enumerate(ops):
        if not known.isdisjoint((*op.operands, *(v.name for v in op.values))):
            position = index + 1
            known |= {v.name for v in op.values if v.alias and v.alias.of in known}
    return position
