"""Replace regions by ``mplan.attention`` and drop the ops that this makes superfluous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mplan.ir.graph import Arg, Graph, Op, Ref, tensor_type
from mplan.ir.ops import lookup
from mplan.ir.types import DType, TensorType
from mplan.passes.fuse_attention.emitter import Emitter, broadcast_shape
from mplan.passes.fuse_attention.layout import Space
from mplan.passes.fuse_attention.masks import MINUS_INFINITY
from mplan.passes.fuse_attention.operands import atoms
from mplan.passes.fuse_attention.region import Bias, Keep, Operand, Region
from mplan.passes.fuse_attention.sdpa import attention_args

#: The most negative number of each type: a masked score that still tells "all masked" from "none".
_LOWEST = {
    DType.F64: -3.4028234663852886e38,
    DType.F32: -3.4028234663852886e38,
    DType.BF16: -3.3895313892515355e38,
    DType.F16: -65504.0,
}


def fuse(graph: Graph, regions: Iterable[Region]) -> Graph:
    """``graph`` with each region replaced; the values they yield keep name, type and strides."""
    table = {region.result.value: region for region in regions}
    used = frozenset(graph.users) | set(graph.output_names)
    emitter = Emitter(graph)
    for op in graph.ops:
        region = table.get(op.values[0].name) if op.values else None
        args = attention_args(op, used)
        if region is not None:
            _Rewrite(emitter, region).run()
        elif args is not None:
            _renamed(emitter, op, args, Space(graph.symbol_table))
        else:
            emitter.ops.append(op)
    ops = tuple(emitter.ops)
    return graph if ops == graph.ops else drop_dead(replace(graph, ops=ops))


def _renamed(emitter: Emitter, op: Op, args: Mapping[str, Arg], space: Space) -> None:
    """One of torch's attention ops as ``mplan.attention`` (whose result is contiguous)."""
    emitter.loc = op.loc
    want = tensor_type(op.result)
    dense = TensorType(want.dtype, want.shape)
    name = emitter.add("mplan.attention", f"{op.result.name}_attention", dense, args)
    emitter.finish(emitter.restride(space, name, want), op.result)


def drop_dead(graph: Graph) -> Graph:
    """``graph`` without ops whose results nobody uses; those that overwrite or draw numbers stay."""
    needed = set(graph.output_names)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        writes = any(v.alias and v.alias.kind == "inplace" for v in op.values)
        used = not op.values or any(v.name in needed for v in op.values)
        if used or writes or lookup(op.kind).random:
            needed.update(op.operands)
            needed.update(v.alias.of for v in op.values if v.alias)
            kept.append(op)
    return replace(graph, ops=tuple(reversed(kept)))


class _Rewrite:
    """Emits the attention of one region and what leads to and from it."""

    def __init__(self, emitter: Emitter, region: Region) -> None:
        self.emitter = emitter
        self.region = region
        self.space = region.space
        emitter.loc = region.op.loc

    def run(self) -> None:
        region, emitter, axes = self.region, self.emitter, self.region.axes
        name = region.result.value
        ends = [self._layout(o) for o in (region.query, region.key, region.value)]
        targets = axes.targets(ends)
        query, key, value = (
            emitter.cast(
                emitter.arrange(self.space, operand.value, operand.layout, target, f"{name}_{part}"),
                region.dtype,
            )
            for operand, target, part in zip(
                (region.query, region.key, region.value),
                targets,
                ("query", "key", "value"),
                strict=True,
            )
        )
        args: dict[str, Arg] = {"query": Ref(self._scaled(query)), "key": Ref(key), "value": Ref(value)}
        mask = self._mask()
        if mask:
            args["attn_mask"] = Ref(mask)
        if region.is_causal:
            args["is_causal"] = True
        args["scale"] = region.scale
        if axes.grouped:
            args["enable_gqa"] = True
        type_ = TensorType(region.dtype, self.space.shape(axes.result))
        out = emitter.add("mplan.attention", f"{name}_attention", type_, args)
        self._result(out)

    def _result(self, out: str) -> None:
        region, emitter = self.region, self.emitter
        replaced = emitter.values[region.result.value]
        want = tensor_type(replaced)
        out = emitter.cast(out, want.dtype)
        hint = f"{region.result.value}_result"
        out = emitter.arrange(self.space, out, region.axes.result, region.result.layout, hint)
        emitter.finish(emitter.restride(self.space, out, want), replaced)

    def _layout(self, operand: Operand) -> tuple[tuple[int, ...], ...]:
        return self.space.resolved(operand.layout)

    def _scaled(self, query: str) -> str:
        """The query times the tensors that multiply all scores of a query alike."""
        axes, emitter = self.region.axes, self.emitter
        for factor in self.region.factors:
            known = atoms(self._layout(factor.operand))
            rows = axes.rows if known.issuperset(axes.rows) else ()
            target = (*axes.present(self._layout(factor.operand)), rows, ())
            source, layout = factor.operand.value, factor.operand.layout
            other = emitter.arrange(self.space, source, layout, target, f"{query}_factor")
            other = emitter.cast(other, self.region.dtype)
            kind = "aten.div.Tensor" if factor.inverse else "aten.mul.Tensor"
            query = self._combined(kind, query, other, f"{query}_scaled")
        return query

    def _combined(self, kind: str, first: str, second: str, hint: str) -> str:
        shapes = [self.emitter.type(n).shape for n in (first, second)]
        like = TensorType(self.emitter.type(first).dtype, broadcast_shape(self.space, shapes))
        args: dict[str, Arg] = {"self": Ref(first), "other": Ref(second)}
        return self.emitter.computed(kind, hint, like, args)

    # --- masks ----------------------------------------------------------------------------------

    def _mask(self) -> str:
        """The mask to hand over; empty if there is none."""
        hint = f"{self.region.result.value}_mask"
        hard = [k for k in self.region.keeps if k.fill == MINUS_INFINITY]
        soft = [self._penalty(k) for k in self.region.keeps if k.fill != MINUS_INFINITY]
        visible = self._reduce("aten.logical_and.default", [self._keep(k) for k in hard], hint)
        added = [*(self._bias(b) for b in self.region.biases), *soft]
        bias = self._reduce("aten.add.Tensor", added, hint)
        if not visible or not bias:
            return visible or bias
        shapes = [self.emitter.type(n).shape for n in (bias, visible)]
        like = TensorType(self.region.dtype, broadcast_shape(self.space, shapes))
        args: dict[str, Arg] = {
            "self": Ref(bias),
            "mask": Ref(self._negated(visible)),
            "value": MINUS_INFINITY,
        }
        return self.emitter.computed("aten.masked_fill.Scalar", hint, like, args)

    def _reduce(self, kind: str, names: list[str], hint: str) -> str:
        total = names[0] if names else ""
        for name in names[1:]:
            total = self._combined(kind, total, name, hint)
        return total

    def _keep(self, keep: Keep) -> str:
        name = self._placed(keep.operand)
        return self._negated(name) if keep.negated else name

    def _negated(self, name: str) -> str:
        like = TensorType(DType.BOOL, self.emitter.type(name).shape)
        args: dict[str, Arg] = {"self": Ref(name)}
        return self.emitter.computed("aten.logical_not.default", f"{name}_not", like, args)

    def _penalty(self, keep: Keep) -> str:
        """A finite mask as numbers to add: queries without any key keep attending to all alike."""
        name = self._placed(keep.operand)
        numbers = (0.0, _LOWEST[self.region.dtype])
        low, high = reversed(numbers) if keep.negated else numbers
        args: dict[str, Arg] = {"condition": Ref(name), "self": low, "other": high}
        like = TensorType(DType.F32, self.emitter.type(name).shape)
        found = self.emitter.computed("aten.where.Scalar", f"{name}_added", like, args)
        return self.emitter.cast(found, self.region.dtype)

    def _bias(self, bias: Bias) -> str:
        name = self._placed(bias.operand)
        if bias.factor != 1.0:
            like = self.emitter.type(name)
            args: dict[str, Arg] = {"self": Ref(name), "other": bias.factor}
            name = self.emitter.computed("aten.mul.Tensor", f"{name}_times", like, args)
        return self.emitter.cast(name, self.region.dtype)

    def _placed(self, operand: Operand) -> str:
        layout = self._layout(operand)
        hint = f"{self.region.result.value}_mask"
        return self.emitter.arrange(
            self.space, operand.value, layout, self.region.axes.mask_target(layout), hint
        )
