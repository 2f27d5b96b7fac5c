"""Input zero points of quantised layers become part of their biases."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mplan.ir.graph import Arg, Graph, Input, Op, Ref
from mplan.ir.ops import lookup
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import new_constant, without_unused_constants

#: The dimensions of each layer's weights that one output sums over.
_SUMMED = {
    "mplan.qconv2d": (1, 2, 3),
    "mplan.qdepthwise_conv2d": (0, 1, 2),
    "mplan.qlinear": (1,),
}


@dataclass(frozen=True, slots=True)
class FoldZeroPoints(Pass):
    """Let layers sum plain products, as ``sum((x - zero) * w) = sum(x * w) - zero * sum(w)``.

    The new biases are constants of the context; padding keeps reading as the old zero point
    (``padding_value``). Layers whose weights or biases are not constant stay, and those whose sums
    could leave 32 bits for some input.
    """

    name: ClassVar[str] = "fold_zero_points"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph with folded layers; ``graph`` itself when there are none."""
        folding = _Folding(graph, dict(ctx.constants))
        ops = tuple(folding.folded(op) for op in graph.ops)
        if not folding.added:
            return graph
        result = replace(graph, inputs=(*graph.inputs, *folding.added), ops=ops)
        result = without_unused_constants(result, folding.old_biases)
        names = {i.value.name for i in result.inputs}
        ctx.constants = {n: t for n, t in folding.constants.items() if n in names}
        return result


@dataclass(slots=True)
class _Folding:
    graph: Graph
    constants: dict[str, Any]
    added: list[Input] = field(default_factory=list)
    old_biases: set[str] = field(default_factory=set)

    def folded(self, op: Op) -> Op:
        """``op`` without an input zero point, if it is a layer that can do without."""
        zero = op.arg("input_zero_point", 0)
        if op.kind not in _SUMMED or not isinstance(zero, int) or zero == 0:
            return op
        weight, bias = (self._constant(op.arg(name)) for name in ("weight", "bias"))
        if weight is None or (bias is None and op.arg("bias") is not None):
            return op
        wide = weight.to("cpu").long()
        moved = (0 if bias is None else bias.long()) - zero * wide.sum(_SUMMED[op.kind])
        if int((moved.abs() + 128 * wide.abs().sum(_SUMMED[op.kind])).max()) >= 2**31:
            return op
        return self._with_bias(op, moved.int())

    def _constant(self, arg: Arg) -> Any:
        return self.constants.get(arg.name) if isinstance(arg, Ref) else None

    def _with_bias(self, op: Op, bias: Any) -> Op:
        weight, old = op.arg("weight"), op.arg("bias")
        assert isinstance(weight, Ref)
        taken = {v.name for v in self.graph.values} | set(self.constants)
        made = new_constant(f"{weight.name}_bias", bias, taken)
        self.constants[made.value.name] = bias
        self.added.append(made)
        if isinstance(old, Ref):
            self.old_biases.add(old.name)
        args: dict[str, Arg] = {**dict(op.args), "bias": Ref(made.value.name), "input_zero_point": 0}
        padding = op.arg("padding")
        if isinstance(padding, tuple) and any(padding) and op.arg("padding_value") is None:
            args["padding_value"] = op.arg("input_zero_point")
        order = (param.name for param in lookup(op.kind).params)
        return replace(op, args=tuple((name, args[name]) for name in order if name in args))
