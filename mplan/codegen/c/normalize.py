"""Softmax and normalisation: two passes for the moments of a row or group, one for the result.

The result may lie exactly on the input: it is written only after the last read of the moments.
"""

from __future__ import annotations

from mplan.codegen.c.pointwise import Operand, Source, pointwise
from mplan.codegen.c.reduce import moments
from mplan.codegen.c.render import function
from mplan.codegen.c.table import Number, Site, kernel
from mplan.codegen.c.tensors import Code, Tensor, each, invoke
from mplan.codegen.c.text import literal
from mplan.ir.types import DType


@kernel("aten._softmax.default", "aten.softmax.int")
def softmax(site: Site) -> Code:
    """Exponentials along a dimension, divided by their sum."""
    return _rows(site, "softmax")


@kernel("aten._log_softmax.default", "aten.log_softmax.int")
def log_softmax(site: Site) -> Code:
    """The logarithm of softmax."""
    return _rows(site, "log_softmax")


def _rows(site: Site, name: str) -> Code:
    x, y = site.tensor("self"), site.result
    site.require_float(x, y)
    if not x.rank:
        x, y = (Tensor(t.array, t.dtype, (1,), (1,), t.offset_bytes) for t in (x, y))
    dim = site.dim("dim", x.rank)
    order = [*(d for d in range(x.rank) if d != dim), dim]

    def body(target: Tensor, part: Tensor) -> Code:
        made = function(name)
        return invoke(made, part, part.strides[0], target, target.strides[0], part.shape[0])

    return each([y.permute(order), x.permute(order)], 1, body)


@kernel("aten.native_layer_norm.default", "aten.layer_norm.default")
def layer_norm(site: Site) -> Code:
    """Normalisation over the last dimensions."""
    x = site.tensor("input")
    inner = len(site.integers("normalized_shape"))
    return _normalize(site, x, site.result, site.maybe("weight"), site.maybe("bias"), inner)


@kernel("aten.native_group_norm.default", "aten.group_norm.default")
def group_norm(site: Site) -> Code:
    """Normalisation over the channels of a group and their planes."""
    groups = site.integer("group" if site.op.arg("group") is not None else "num_groups")
    x, y, w, b = site.tensor("input"), site.result, site.maybe("weight"), site.maybe("bias")
    channels = x.shape[1]
    split = (groups, channels // groups)
    x, y = x.unflatten(1, split), y.unflatten(1, split)
    ones = (1,) * (x.rank - 3)
    w, b = (t and t.unflatten(0, (*split, *ones)) for t in (w, b))
    return _normalize(site, x, y, w, b, x.rank - 2)


def _normalize(
    site: Site, x: Tensor, y: Tensor, w: Tensor | None, b: Tensor | None, inner: int
) -> Code:
    """``(x - mean) / deviation * w + b`` over the last ``inner`` dimensions."""
    site.require_float(x, w, b)
    eps = literal(site.number("eps"), DType.F32)
    lead = x.shape[: x.rank - inner]
    saved = [t and _flat(t, len(lead)) for t in site.results()[1:]] or [None, None]
    w, b = (t and t.expand(x.shape) for t in (w, b))

    def body(
        target: Tensor,
        part: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
    ) -> Code:
        code = moments(part) + Code(
            (f"const float scale = 1.0f / sqrtf(spread / {part.numel}.0f + {eps});",)
        )
        code += _affine(target, part, weight, bias)
        lines = [f"{t.element} = {name};" for t, name in ((mean, "mean"), (rstd, "scale")) if t]
        return (code + Code(tuple(lines))).block()

    return each([y, x, w, b, *saved], inner, body)


def _flat(tensor: Tensor, rank: int) -> Tensor:
    """Without the trailing dimensions of size 1 beyond ``rank``."""
    while tensor.rank > rank:
        tensor = tensor.select(tensor.rank - 1)
    return tensor


def _affine(y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Code:
    sources: dict[str, Source] = {"a": x, "mean": "mean", "scale": "scale"}
    text, name = "(a - mean) * scale", "normalize"
    if weight:
        sources["w"], text, name = weight, f"{text} * w", f"{name}_scaled"
    if bias:
        sources["b"], text, name = bias, f"{text} + b", f"{name}_shifted"
    operands = {key: Operand(part, DType.F32) for key, part in sources.items()}
    return pointwise(name, text, y, operands, DType.F32)


@kernel("aten._native_batch_norm_legit_no_training.default", "aten.native_batch_norm.default")
def batch_norm(site: Site) -> Code:
    """Normalisation by stored means and variances of the channels."""
    site.require(not site.arg("training"), "in training")
    x, y = site.tensor("input"), site.result
    site.require_float(x)
    shape = (x.shape[1], *(1,) * (x.rank - 2))
    sources: dict[str, Source] = {"a": x, "eps": site.number("eps")}
    absent: dict[str, Number] = {"weight": 1.0, "bias": 0.0}
    for key, name in (("m", "running_mean"), ("v", "running_var"), ("w", "weight"), ("b", "bias")):
        tensor = site.maybe(name)
        sources[key] = tensor.unflatten(0, shape) if tensor else absent[name]
    operands = {key: Operand(part, DType.F32) for key, part in sources.items()}
    return pointwise("batch_norm", "(a - m) / sqrtf(v + eps) * w + b", y, operands, DType.F32)


@kernel("aten._native_batch_norm_legit.no_stats")
def instance_norm(site: Site) -> Code:
    """Normalisation of each channel over all images and its plane (instance norm is made of it)."""
    x = site.tensor("input")
    order = (1, 0, *range(2, x.rank))
    ones = (1,) * (x.rank - 1)
    w, b = site.maybe("weight"), site.maybe("bias")
    w, b = (t and t.unflatten(0, (x.shape[1], *ones)) for t in (w, b))
    return _normalize(site, x.permute(order), site.result.permute(order), w, b, x.rank - 1)
