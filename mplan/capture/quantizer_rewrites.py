"""Before quantisation: norms and quotients without an integer form become ops that have one.

A batch norm with fixed statistics is a factor and an offset per channel, a depthwise convolution of one
pixel. Group and instance norms are layer norms of rows that hold a group, with such a layer behind. A
quotient by a constant is a product.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def with_integer_forms(model: GraphModule) -> None:
    """Rewrite ``model`` in place; norms of other ranks than 2 to 4 stay."""
    _fold_constants(model)
    for node in list(model.graph.nodes):
        replace = _REWRITES.get(str(node.target))
        if replace is not None and hasattr(node.args[0], "meta"):
            replace(_Rewrite(model, node))
    model.graph.eliminate_dead_code()
    model.recompile()


def _fold_constants(model: GraphModule) -> None:
    """Buffers for what follows from parameters and buffers alone."""
    import torch

    known: dict[Node, Any] = {}
    for node in list(model.graph.nodes):
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "get_attr":
            found = _constant(model, node)
        elif node.op == "call_function" and not random and known.keys() >= set(node.all_input_nodes):
            args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
            found = node.target(*args, **kwargs)
            if isinstance(found, torch.Tensor):
                node.replace_all_uses_with(made := _attribute(model, node, "value", found))
                known[made] = found
        else:
            continue
        if found is not None:
            known[node] = found


def _constant(model: GraphModule, node: Any) -> Any:
    """The parameter or buffer that ``node`` is, or None; the model's state is no constant."""
    if getattr(node, "op", "") != "get_attr" or any("copy_" in str(n.target) for n in node.users):
        return None
    found: Any = model
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found.detach()


def _attribute(model: GraphModule, node: Node, key: str, tensor: Any) -> Node:
    """A buffer that holds ``tensor``, read before ``node``."""
    name = f"{node.name}_{key}"
    model.register_buffer(name, tensor.clone())
    with model.graph.inserting_before(node):
        made = model.graph.get_attr(name)
    fake = getattr(_value(node), "fake_mode", None)
    made.meta["val"] = tensor if fake is None else fake.from_tensor(tensor)
    return made


class _Rewrite:
    """What takes the place of ``node``, written before it."""

    def __init__(self, model: GraphModule, node: Node) -> None:
        self.model, self.node = model, node
        self.input: Node = node.args[0]  # type: ignore[assignment]
        self.shape: tuple[int, ...] = tuple(_value(self.input).shape)

    def constant(self, place: int) -> Any:
        """The parameter or buffer that is the argument at ``place``, or None."""
        return _constant(self.model, self.node.args[place])

    def call(self, kind: Any, *args: Any) -> Node:
        """A call with the module and the source of the node; its result is computed from fakes."""
        import torch

        with self.model.graph.inserting_before(self.node):
            made = self.model.graph.call_function(kind, args)
        kept = {k: v for k, v in self.node.meta.items() if k in ("stack_trace", "nn_module_stack")}
        shown = [_value(a) if isinstance(a, torch.fx.Node) else a for a in args]
        made.meta.update({**kept, "val": kind(*shown)})
        return made

    def viewed(self, x: Node, shape: tuple[int, ...]) -> Node:
        """``x`` with ``shape``."""
        import torch

        return self.call(torch.ops.aten.view.default, x, list(shape))

    def scaled(self, x: Node, scale: Any, offset: Any) -> Node:
        """``x`` times ``scale`` plus ``offset``, one number of each per channel."""
        import torch

        aten, rank, shape = torch.ops.aten, _value(x).dim(), tuple(_value(x).shape)
        if rank == 2:
            return self.viewed(self.scaled(self.viewed(x, (*shape, 1)), scale, offset), shape)
        weight = self.attribute("weight", scale.reshape(-1, *[1] * (rank - 1)))
        layer, ones = (aten.conv1d, [1]) if rank == 3 else (aten.conv2d, [1, 1])
        args = (x, weight, self.attribute("bias", offset), ones, [0] * len(ones), ones, len(scale))
        return self.call(layer.default, *args)

    def attribute(self, key: str, tensor: Any) -> Node:
        """A buffer of the model that holds ``tensor``."""
        return _attribute(self.model, self.node, key, tensor)

    def normalised(self, length: int, epsilon: float) -> Node:
        """The operand with mean 0 and variance 1 in each ``length`` of its numbers."""
        import torch

        shape = self.shape
        rows = self.viewed(self.input, (shape[0], prod(shape[1:]) // length, length))
        made = self.call(torch.ops.aten.layer_norm.default, rows, [length], None, None, epsilon)
        return self.viewed(made, shape)

    def put(self, made: Node) -> None:
        """Let readers of the node, or of its first result, read ``made``."""
        if not isinstance(self.node.meta.get("val"), (tuple, list)):
            self.node.replace_all_uses_with(made)
            return
        for reader in list(self.node.users):
            if reader.args[1] == 0:
                reader.replace_all_uses_with(made)


def _batch_norm(new: _Rewrite) -> None:
    import torch

    weight, bias, mean, variance = (new.constant(i) for i in (1, 2, 3, 4))
    epsilon = new.node.args[6 if "legit" in str(new.node.target) else 7]
    if mean is None or variance is None or len(new.shape) not in (2, 3, 4):
        return
    scale = torch.rsqrt(variance + epsilon)
    scale = scale if weight is None else scale * weight
    offset = -mean * scale if bias is None else bias - mean * scale
    new.put(new.scaled(new.input, scale, offset))


def _group_norm(new: _Rewrite) -> None:
    channels, pixels, groups, epsilon = new.node.args[4:8]
    _by_groups(new, int(channels) // int(groups) * int(pixels), epsilon)  # type: ignore[arg-type]


def _instance_norm(new: _Rewrite) -> None:
    """A batch norm of one image whose channels are those of all images, with its own statistics."""
    _by_groups(new, prod(new.shape[2:]), new.node.args[5])


def _by_groups(new: _Rewrite, length: int, epsilon: Any) -> None:
    import torch

    names, (weight, bias) = new.node.args[1:3], (new.constant(i) for i in (1, 2))
    unknown = any(n is not None and t is None for n, t in zip(names, (weight, bias), strict=True))
    if unknown or len(new.shape) not in (3, 4) or length < 2:
        return
    made = new.normalised(length, epsilon)
    if weight is not None or bias is not None:
        weight = torch.ones_like(bias) if weight is None else weight
        made = new.scaled(made, weight, torch.zeros_like(weight) if bias is None else bias)
    new.put(made)


def _quotient(new: _Rewrite) -> None:
    import torch

    divisor = new.constant(1)
    if isinstance(divisor, torch.Tensor) and divisor.is_floating_point() and bool((divisor != 0).all()):
        factor = new.attribute("reciprocal", 1 / divisor)
        new.put(new.call(torch.ops.aten.mul.Tensor, new.input, factor))


_REWRITES: dict[str, Callable[[_Rewrite], None]] = {
    "aten.div.Tensor": _quotient,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten.batch_norm.default": _batch_norm,
    "aten.native_group_norm.default": _group_norm,
    "aten._native_batch_norm_legit.no_stats": _instance_norm,
}


def _value(node: Any) -> Any:
    """The fake result of ``node``, the first of several."""
    value = node.meta["val"]
    return value[0] if isinstance(value, (tuple, list)) else value
