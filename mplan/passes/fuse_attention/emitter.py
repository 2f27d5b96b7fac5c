"""Appends ops to a graph that is being rewritten, with types, aliases and fresh names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mplan.diagnostics import UserError
from mplan.ir.graph import Alias, Arg, Graph, Loc, Op, Ref, Value, tensor_type
from mplan.ir.ops import infer
from mplan.ir.types import Dim, DType, TensorType
from mplan.passes.fuse_attention.layout import Layout, Space, product
from mplan.passes.fuse_attention.operands import View, rearrange


class Emitter:
    """Collects new ops; ``values`` are those of the graph and of the ops so far."""

    def __init__(self, graph: Graph) -> None:
        self.ops: list[Op] = []
        self.values = graph.value_table
        self.loc: Loc | None = None

    def type(self, name: str) -> TensorType:
        """The type of a tensor value."""
        return tensor_type(self.values[name])

    def fresh(self, hint: str) -> str:
        """A name that no value has."""
        name, count = hint, 0
        while name in self.values:
            count += 1
            name = f"{hint}_{count}"
        return name

    def add(
        self, kind: str, hint: str, type_: TensorType, args: Mapping[str, Arg], view_of: str = ""
    ) -> str:
        """Append an op with one result; returns its name."""
        alias = Alias(view_of) if view_of else None
        value = Value(self.fresh(hint), type_, alias)
        self.values[value.name] = value
        self.ops.append(Op(kind, tuple(args.items()), (value,), self.loc))
        return value.name

    def computed(self, kind: str, hint: str, like: TensorType, args: Mapping[str, Arg]) -> str:
        """Append a torch op that makes a new tensor; ``like`` gives its type where sizes are symbolic.

        Torch's results take the strides of their operands, which shape rules know for static sizes
        only; with symbolic ones the operands are made contiguous first.
        """
        if not self._all_static(args):
            args = {
                k: Ref(self.contiguous(a.name)) if isinstance(a, Ref) else a for k, a in args.items()
            }
            return self.add(kind, hint, like, args)
        return self.add(kind, hint, self._inferred(kind, args), args)

    def _all_static(self, args: Mapping[str, Arg]) -> bool:
        return all(self.type(a.name).is_static for a in args.values() if isinstance(a, Ref))

    def _inferred(self, kind: str, args: Mapping[str, Arg]) -> TensorType:
        op = Op(kind, tuple(args.items()), ())
        (found,) = infer(op, {name: value.type for name, value in self.values.items()})
        assert isinstance(found, TensorType)
        return found

    # --- data movement --------------------------------------------------------------------------

    def contiguous(self, name: str) -> str:
        """``name``, copied if it does not lie row by row."""
        type_ = self.type(name)
        if type_.strides is None:
            return name
        dense = TensorType(type_.dtype, type_.shape)
        args: dict[str, Arg] = {"self": Ref(name), "memory_format": "contiguous_format"}
        return self.add("aten.clone.default", f"{name}_dense", dense, args)

    def cast(self, name: str, dtype: DType) -> str:
        """``name`` as elements of ``dtype``."""
        type_ = self.type(name)
        if type_.dtype is dtype:
            return name
        like = TensorType(dtype, type_.shape)
        args: dict[str, Arg] = {"self": Ref(name), "dtype": dtype}
        return self.computed("aten._to_copy.default", f"{name}_{dtype.value}", like, args)

    def arrange(self, space: Space, name: str, have: Layout, want: Layout, hint: str) -> str:
        """Views (and copies where there must be) that bring ``name`` into the layout ``want``."""
        for step in rearrange(space.resolved(have), space.resolved(want)):
            if isinstance(step, View):
                name = self.view(name, space.shape(step.layout), hint)
            else:
                name = self.permute(name, step.order, hint)
        return name

    def view(self, name: str, shape: tuple[Dim, ...], hint: str) -> str:
        """``name`` as a tensor of ``shape``, copied first where its strides do not allow a view."""
        args: dict[str, Arg] = {"self": Ref(name), "size": shape}
        type_ = self.type(name)
        if type_.strides is None:
            found = TensorType(type_.dtype, shape)
        elif not type_.is_static:
            return self.view(self.contiguous(name), shape, hint)
        else:
            try:
                found = self._inferred("aten.view.default", args)
            except UserError:
                return self.view(self.contiguous(name), shape, hint)
        return self.add("aten.view.default", hint, found, args, view_of=name)

    def permute(self, name: str, order: Sequence[int], hint: str) -> str:
        """``name`` with its dimensions in ``order``."""
        type_ = self.type(name)
        strides = type_.strides or dense_strides(type_.shape)
        found = TensorType(
            type_.dtype, tuple(type_.shape[i] for i in order), tuple(strides[i] for i in order)
        )
        if found.is_static and found.is_contiguous:
            found = TensorType(found.dtype, found.shape)
        args: dict[str, Arg] = {"self": Ref(name), "dims": tuple(order)}
        return self.add("aten.permute.default", hint, found, args, view_of=name)

    def restride(self, space: Space, name: str, want: TensorType) -> str:
        """``name`` with the strides of ``want``, by a copy if they differ."""
        if same_strides(space, self.type(name), want):
            return name
        strides = want.strides or dense_strides(want.shape)
        order = sorted(range(len(strides)), key=lambda i: space.rank(strides[i]), reverse=True)
        identity = order == sorted(order)
        if not identity:
            name = self.permute(name, order, f"{name}_dense")
        name = self.contiguous(name)
        back = [order.index(i) for i in range(len(order))]
        return name if identity else self.permute(name, back, f"{name}_back")

    def finish(self, name: str, replaced: Value) -> None:
        """Let the result ``name`` of the last op take the place of a value with the same layout."""
        last = self.ops.pop()
        assert last.result.name == name
        value = replace(replaced, alias=last.result.alias)
        del self.values[name]
        self.values[value.name] = value
        self.ops.append(Op(last.kind, last.args, (value,), last.loc))


def dense_strides(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Row-major strides of ``shape``."""
    return tuple(product(shape[i + 1 :]) for i in range(len(shape)))


def same_strides(space: Space, a: TensorType, b: TensorType) -> bool:
    """Whether two tensors of the same shape address their elements alike."""
    pairs = zip(
        a.shape, a.strides or dense_strides(a.shape), b.strides or dense_strides(b.shape), strict=True
    )
    return all(space.same(n, 1) or space.same(x, y) for n, x, y in pairs)


def broadcast_shape(space: Space, shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The shape that ``shapes`` broadcast to."""
    rank = max(len(s) for s in shapes)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(
        next((n for n in sizes if not space.same(n, 1)), sizes[0])
        for sizes in zip(*padded, strict=True)
    )
