"""What PT2E quantises, and how: the annotations that torchao's observers follow.

Weights are symmetric int8 with a scale per output channel, activations affine int8 with one scale.
Clamps (ReLU, ReLU6, hardtanh) and constant factors belong to the op before them, so that the scale
covers what is left behind the clamp. What only moves numbers shares the scale of its operand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mplan.capture.quantizer_rewrites import with_integer_forms
from mplan.passes.lower_quantized.tables import UNTAGGED

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

#: Ops with weights, which follow the input.
_WEIGHTED = {
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv_transpose1d.default",
    "aten.conv_transpose2d.input",
    "aten.convolution.default",
    "aten.linear.default",
}
_BINARY = {
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.mul.Tensor",
    "aten.matmul.default",
    "aten.bmm.default",
    "aten.mm.default",
}
_UNARY = {
    "aten.layer_norm.default",
    "aten.mean.dim",
    "aten.mean.default",
    "aten.prelu.default",
    "aten.sum.dim_IntList",
}
_CLAMPS = {
    "aten.relu.default",
    "aten.relu6.default",
    "aten.hardtanh.default",
    "aten.clamp.default",
    "aten.clamp_min.default",
    "aten.clamp_max.default",
}
_FACTORS = {"aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"}
_MOVES = {
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.permute.default",
    "aten.transpose.int",
    "aten.t.default",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.expand.default",
    "aten.clone.default",
    "aten.as_strided.default",
    "aten.alias.default",
    "aten.slice.Tensor",
    "aten.select.int",
    "aten.split.Tensor",
    "aten.split_with_sizes.default",
    "aten.unbind.int",
    "aten.cat.default",
    "aten.constant_pad_nd.default",
    "aten.max_pool2d.default",
    "aten.max_pool2d_with_indices.default",
    "aten.adaptive_max_pool2d.default",
    "aten.amax.default",
    "aten.avg_pool2d.default",
    "aten._adaptive_avg_pool2d.default",
    "aten.upsample_bilinear2d.vec",
    "aten.upsample_bilinear2d.default",
    "aten.upsample_nearest2d.vec",
    "aten.upsample_nearest2d.default",
    "aten.upsample_nearest1d.vec",
    "aten.upsample_nearest1d.default",
    "aten._upsample_nearest_exact2d.vec",
    "aten._upsample_nearest_exact2d.default",
    "aten._upsample_nearest_exact1d.vec",
    "aten._upsample_nearest_exact1d.default",
    "aten.flip.default",
    "aten.roll.default",
    "aten.repeat.default",
    "aten.index_select.default",
    "aten.reflection_pad1d.default",
    "aten.reflection_pad2d.default",
    "aten.replication_pad1d.default",
    "aten.replication_pad2d.default",
    "aten.maximum.default",
    "aten.minimum.default",
}
#: Ops whose results have the same range whatever the operand: scale and zero point.
_FIXED = {
    "aten._softmax.default": (1 / 256, -128),
    "aten.softmax.int": (1 / 256, -128),
    "aten.sigmoid.default": (1 / 256, -128),
    "aten.hardsigmoid.default": (1 / 256, -128),
    "aten.tanh.default": (1 / 128, 0),
}
#: No scale is smaller, so that factors between scales stay in range.
_LEAST_SCALE = 2.0**-20


class Int8Quantizer:
    """A quantizer as ``prepare_pt2e`` takes it."""

    def __init__(self) -> None:
        import torch
        from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
        from torchao.quantization.pt2e.quantizer import QuantizationSpec

        self.activation = QuantizationSpec(
            torch.int8,
            MinMaxObserver.with_args(eps=_LEAST_SCALE),
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
        )
        self.weight = QuantizationSpec(
            torch.int8,
            PerChannelMinMaxObserver.with_args(eps=_LEAST_SCALE),
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Norms that no layer could take in become layers, quotients by constants products."""
        with_integer_forms(model)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write annotations to all nodes that have an integer form."""
        nodes = list(model.graph.nodes)
        walk = _Walk(self.activation, self.weight, *_groups(nodes))
        for node in nodes:
            if node in walk.functions or (node not in walk.fused and _is_float(node)):
                walk.annotate(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, made: dict[Any, Any]) -> None:
        """Nothing to adjust."""


@dataclass
class _Walk:
    """One pass over a graph.

    ``fused`` are nodes that belong to one before them, ``functions`` those that are functions of one
    value, with that value; ``fixed`` have a fixed scale.
    """

    activation: Any
    weight: Any
    fused: set[Node]
    functions: dict[Node, Node]
    fixed: set[Node] = field(default_factory=set)

    def annotate(self, node: Node) -> None:
        """What ``node`` needs, if it has an integer form."""
        kind, operands = str(node.target), _tensors(node)
        if node in self.functions:
            self._function(node)
        elif kind in _MOVES and not _is_global_pool(node):
            self._share(node, operands)
        elif kind == "<built-in function getitem>":
            self._share_part(node)
        elif kind in _WEIGHTED:
            x, w = operands[:2]
            self._mark(node, {x: self.activation, w: replace(self.weight, ch_axis=_axis(node, x, w))})
        elif kind in _BINARY and len(operands) == 2:
            self._mark(node, dict.fromkeys(operands, self.activation))
        elif kind in _UNARY or kind in _FIXED or _is_global_pool(node):
            self._mark(node, {operands[0]: self.activation})

    def _function(self, node: Node) -> None:
        """Quantise the value that ``node`` is a function of, and its result where that ends."""
        value = self.functions[node]
        inputs = {value} & set(node.all_input_nodes) - self.fixed
        ends = _is_float(node) and not _is_inside(node, self.functions)
        self._write(node, dict.fromkeys(inputs, self.activation), self._output(node) if ends else None)

    def _mark(self, node: Node, inputs: dict[Node, Any]) -> None:
        """Quantise the operands of ``node``, and its result behind clamps and factors."""
        last = (node, *_followers(node))[-1]
        inputs = {n: spec for n, spec in inputs.items() if n not in self.fixed}
        if last is node:
            self._write(node, inputs, self._output(node))
        else:
            self._write(node, inputs, None)
            self._write(last, {}, self.activation)

    def _output(self, node: Node) -> Any:
        import torch
        from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec

        fixed = _FIXED.get(str(node.target))
        if fixed is None:
            return self.activation
        self.fixed.add(node)
        return FixedQParamsQuantizationSpec(
            torch.int8, *fixed, quant_min=-128, quant_max=127, qscheme=torch.per_tensor_affine
        )

    def _share(self, node: Node, operands: list[Node]) -> None:
        """One scale for all operands and the result; that of the first where it is fixed."""
        from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec

        first, *others = operands
        if first in self.fixed:
            self.fixed.add(node)
            shared = SharedQuantizationSpec(first)
            self._write(node, dict.fromkeys(others, shared), shared)
            return
        shared = SharedQuantizationSpec((first, node))
        self._write(node, {first: self.activation, **dict.fromkeys(others, shared)}, shared)

    def _share_part(self, node: Node) -> None:
        """One of the results of an op that splits its operand."""
        from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec

        whole: Any = node.args[0]
        if str(getattr(whole, "target", "")) in _MOVES:
            operand = _tensors(whole)[0]
            if operand in self.fixed:
                self.fixed.add(node)
                self._write(node, {}, SharedQuantizationSpec(operand))
            else:
                self._write(node, {}, SharedQuantizationSpec((operand, whole)))

    def _write(self, node: Node, inputs: dict[Node, Any], output: Any) -> None:
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=output, _annotated=True
        )


def _value(node: Any) -> Any:
    """The fake result of ``node``, the first of several, or None."""
    value = node.meta.get("val")
    return value[0] if isinstance(value, (tuple, list)) and value else value


def _is_float(node: Any) -> bool:
    """Whether ``node`` is a call with a float32 result (or several)."""
    import torch

    first = _value(node)
    return (
        node.op == "call_function" and isinstance(first, torch.Tensor) and first.dtype == torch.float32
    )


def _tensors(node: Node) -> list[Node]:
    """The operands of ``node`` that are float tensors, each once."""
    import torch

    return [
        n
        for n in node.all_input_nodes
        if isinstance(n.meta.get("val"), torch.Tensor) and n.meta["val"].is_floating_point()
    ]


def _followers(node: Node) -> Iterator[Node]:
    """The clamps and factors behind a layer, a sum or a product."""
    if str(node.target) in _WEIGHTED | _BINARY:
        while (follower := _follower(node)) is not None:
            yield (node := follower)


def _follower(node: Node) -> Node | None:
    """The only reader of ``node`` if it clamps it or multiplies it by a positive number."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    kind = str(reader.target)
    if kind in _CLAMPS and reader.args[0] is node:
        return reader
    other = reader.args[1] if len(reader.args) > 1 else None
    positive = isinstance(other, (int, float)) and other > 0
    return reader if kind in _FACTORS and reader.args[0] is node and positive else None


def _axis(node: Node, x: Node, w: Node) -> int:
    """The dimension of the weights of ``node`` that counts its output channels (of a group)."""
    kind = str(node.target)
    if "conv_transpose" not in kind and not (kind == "aten.convolution.default" and node.args[6]):
        return 0
    channels, each = (n.meta["val"].shape[1] for n in (x, w))
    depthwise = node.meta["val"].shape[1] == channels * each
    return 0 if depthwise and channels > 1 else 1


def _is_global_pool(node: Node) -> bool:
    """Whether ``node`` is the mean of whole images, whose range is less than theirs."""
    kind = str(node.target)
    if kind not in ("aten.avg_pool2d.default", "aten._adaptive_avg_pool2d.default"):
        return False
    return all(n == 1 for n in node.meta["val"].shape[2:])


def _groups(nodes: Sequence[Node]) -> tuple[set[Node], dict[Node, Node]]:
    """Nodes that belong to the op before them, and functions of one value, with the value.

    A function may be written in many ops. One that others read, too, is a value of its own.
    """
    ends: set[Node] = set()
    while True:
        fused: set[Node] = set()
        functions: dict[Node, Node] = {}
        for node in nodes:
            value = None if node in fused else _argument(node, functions, ends)
            if value is not None:
                functions[node] = value
            else:
                fused.update(_followers(node))
        found = {
            node
            for node in functions
            if not _is_inside(node, functions)
            and any(functions.get(n) is functions[node] for n in node.users)
        }
        if found <= ends:
            return fused, functions
        ends |= found


def _argument(node: Node, functions: Mapping[Node, Node], ends: Collection[Node]) -> Node | None:
    """The value that each number of ``node``'s result is computed from one number of, or None."""
    import torch

    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise not in tags and str(node.target) not in UNTAGGED:
        return None
    operands = [n for n in node.all_input_nodes if n.op != "get_attr" or _value(n).numel() != 1]
    found = {n if n in ends else functions.get(n, n) for n in operands}
    if len(found) != 1:
        return None
    (value,) = found
    alike = getattr(_value(value), "shape", None) == _value(node).shape
    return value if alike and value.op != "get_attr" and _value(value).dtype == torch.float32 else None


def _is_inside(node: Node, functions: Mapping[Node, Node]) -> bool:
    """Whether all that read the function ``node`` are functions of the same value."""
    return bool(node.users) and all(functions.get(n) is functions[node] for n in node.users)
