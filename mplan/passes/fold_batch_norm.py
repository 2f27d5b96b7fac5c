"""Batch norm with fixed statistics folded into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mplan.ir.graph import Arg, Graph, Input, Op, Ref, substitute
from mplan.ir.types import TensorType
from mplan.passes.base import Context, Pass
from mplan.passes.rewrite import new_constant, rename_uses, without_unused_constants

#: Batch norms that can be fixed, with the argument that says whether they train.
_NORMS = {
    "aten._native_batch_norm_legit_no_training.default": "",
    "aten.native_batch_norm.default": "training",
    "aten.batch_norm.default": "training",
}
#: Where each layer has its input, weight and bias.
_LAYERS = {
    "aten.convolution.default": ("input", "weight", "bias"),
    "aten.conv1d.default": ("input", "weight", "bias"),
    "aten.conv2d.default": ("input", "weight", "bias"),
    "aten.conv3d.default": ("input", "weight", "bias"),
    "aten.linear.default": ("input", "weight", "bias"),
    "aten.addmm.default": ("mat1", "mat2", "self"),
}
_TRANSPOSES = ("aten.t.default", "aten.permute.default", "aten.transpose.int")


@dataclass(frozen=True, slots=True)
class FoldBatchNorm(Pass):
    """Replace ``batch_norm(layer(x))`` by a layer with scaled weights, for inference.

    With ``s = gamma / sqrt(variance + eps)`` the new weight is ``s * weight`` per output channel and
    the new bias ``s * (bias - mean) + beta``; both are computed in float64 and become constants of
    the context. The layer's result must have no other user, and its weights and the statistics must
    be constants. Weights that nothing else uses leave the graph. (Jacob et al. 2018, section 3.2.)
    """

    name: ClassVar[str] = "fold_batch_norm"

    def run(self, graph: Graph, ctx: Context) -> Graph:
        """The graph without the foldable norms; ``graph`` itself when there are none."""
        folding = _Folding(graph, dict(ctx.constants))
        for op in graph.ops:
            folding.visit(op)
        if not folding.renamed:
            return graph
        folded = folding.graph_without_norms()
        names = {i.value.name for i in folded.inputs}
        ctx.constants = {n: t for n, t in folding.constants.items() if n in names}
        ctx.notes.append(f"folded {len(folding.renamed)} batch norms into the layers before them")
        return folded


@dataclass(slots=True)
class _Folding:
    graph: Graph
    constants: dict[str, Any]
    replaced: dict[str, Op] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    added: list[Input] = field(default_factory=list)
    old_weights: set[str] = field(default_factory=set)
    producers: dict[str, Op] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers = self.graph.producers
        for name in (*(n for op in self.graph.ops for n in op.operands), *self.graph.output_names):
            self.uses[name] = self.uses.get(name, 0) + 1

    def visit(self, norm: Op) -> None:
        """Fold ``norm`` if it is a fixed batch norm of a layer with constant weights."""
        if norm.kind not in _NORMS or norm.arg(_NORMS[norm.kind], False) is not False:
            return
        layer = self.producers.get(_ref(norm.arg("input")))
        if layer is None or layer.kind not in _LAYERS or not self._only_for(layer, norm):
            return
        weight, transpose = self._weight(layer)
        bias = layer.arg(_LAYERS[layer.kind][2])
        statistics = [norm.arg(key) for key in ("weight", "bias", "running_mean", "running_var")]
        needed = [a for a in (Ref(weight), bias, *statistics) if a is not None]
        if not all(_ref(a) in self.constants for a in needed):
            return
        scale, shift = self._factors(norm, bias)
        new_weight = self._constant(
            weight, _scaled(self.constants[weight], scale, _output_axis(layer, transpose), layer)
        )
        new_bias = self._constant(f"{weight}_shift", shift.to(self.constants[weight].dtype))
        self._replace_layer(layer, transpose, weight, new_weight, new_bias)
        self.old_weights.update(_ref(a) for a in needed)
        self.removed.add(norm.result.name)
        self.renamed[norm.result.name] = layer.result.name

    def _only_for(self, layer: Op, norm: Op) -> bool:
        """Whether nobody else sees the layer's result, nor the norm's statistics."""
        unused = all(v is None or v.name not in self.uses for v in norm.results[1:])
        plain = not any(key in ("alpha", "beta") for key, _ in layer.args)
        same = layer.result.type == norm.result.type
        return unused and plain and same and self.uses[layer.result.name] == 1

    def _weight(self, layer: Op) -> tuple[str, Op | None]:
        """The layer's weight, and the transpose between both if there is one."""
        name = _ref(layer.arg(_LAYERS[layer.kind][1]))
        view = self.producers.get(name)
        if view is None or view.kind not in _TRANSPOSES or self.uses[name] != 1:
            return name, None
        type_ = view.result.type
        two = isinstance(type_, TensorType) and len(type_.shape) == 2
        return (_ref(view.arg("self")), view) if two else (name, None)

    def _factors(self, norm: Op, bias: Arg) -> tuple[Any, Any]:
        """Scale and shift per channel, in float64."""
        import torch

        def vector(arg: Arg, default: float) -> Any:
            if arg is None:
                return torch.tensor(default, dtype=torch.float64)
            return self.constants[_ref(arg)].detach().double()

        mean, variance = vector(norm.arg("running_mean"), 0), vector(norm.arg("running_var"), 1)
        epsilon = norm.arg("eps")
        assert isinstance(epsilon, float)
        scale = vector(norm.arg("weight"), 1) / torch.sqrt(variance + epsilon)
        return scale, vector(norm.arg("bias"), 0) + scale * (vector(bias, 0) - mean)

    def _constant(self, base: str, tensor: Any) -> str:
        """A new constant input with the value ``tensor``."""
        taken = {v.name for v in self.graph.values} | set(self.constants)
        made = new_constant(base, tensor, taken)
        self.constants[made.value.name] = tensor
        self.added.append(made)
        return made.value.name

    def _replace_layer(
        self, layer: Op, transpose: Op | None, weight: str, new_weight: str, new_bias: str
    ) -> None:
        _, weight_, bias_ = _LAYERS[layer.kind]
        if transpose is not None:
            self.replaced[transpose.result.name] = rename_uses(transpose, {weight: new_weight})
            given = dict(layer.args) | {bias_: Ref(new_bias)}
        else:
            given = dict(layer.args) | {weight_: Ref(new_weight), bias_: Ref(new_bias)}
        order = [key for key, _ in layer.args]
        if bias_ not in order:
            order.insert(order.index(weight_) + 1, bias_)
        self.replaced[layer.result.name] = replace(layer, args=tuple((k, given[k]) for k in order))

    def graph_without_norms(self) -> Graph:
        """The graph with all replacements made."""
        kept = (op for op in self.graph.ops if not op.values or op.result.name not in self.removed)
        ops = (self.replaced.get(op.result.name, op) if op.values else op for op in kept)
        outputs = tuple(substitute(o, self.renamed) for o in self.graph.outputs)
        graph = replace(
            self.graph,
            inputs=(*self.graph.inputs, *self.added),
            ops=tuple(rename_uses(op, self.renamed) for op in ops),
            outputs=outputs,
        )
        return without_unused_constants(graph, self.old_weights)


def _ref(arg: Arg) -> str:
    return arg.name if isinstance(arg, Ref) else ""


def _output_axis(layer: Op, transpose: Op | None) -> int:
    """The dimension of the stored weight that holds the output channels."""
    if layer.kind == "aten.addmm.default":
        return 1 if transpose is None else 0
    return 1 if layer.arg("transposed") is True else 0


def _scaled(weight: Any, scale: Any, axis: int, layer: Op) -> Any:
    """``weight`` times ``scale`` per output channel; transposed convolutions count them per group."""
    import torch

    groups = layer.arg("groups", 1)
    assert isinstance(groups, int)
    wide = weight.detach().double()
    if axis == 1 and groups > 1:
        parts = wide.reshape(groups, -1, *wide.shape[1:])
        factor = scale.reshape(groups, 1, wide.shape[1], *[1] * (wide.ndim - 2))
        return (parts * factor).reshape(wide.shape).to(weight.dtype)
    shape = [1] * wide.ndim
    shape[axis] = -1
    return (
        (wide * scale.reshape(shape)).to(weight.dtype).contiguous(memory_format=torch.preserve_format)
    )
