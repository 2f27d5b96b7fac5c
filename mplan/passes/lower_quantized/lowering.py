"""From floats between dequantize and quantize to integers: the walk, on demand from each quantize.

Every quantize of the old graph is a *goal* for the float value that it reads. ``integer`` looks for an
int8 value of the new graph that meets it: it walks back through clamps, factors and moves, which
commute with quantisation, to an op with an integer form (``RULES``), to a function of one int8 value
(which becomes a table), or to a value that is the dequantisation of another (``real``). Where none is
found, the float ops are copied between ``mplan.dequantize`` and ``mplan.quantize``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from mplan.diagnostics import UserError
from mplan.ir.affine import Affine
from mplan.ir.fixed_point import quantize_multiplier
from mplan.ir.graph import Arg, Op, Ref, Value, refs, substitute, tensor_type
from mplan.ir.ops import bind_arg, infer, lookup
from mplan.ir.types import DType, TensorType, Type
from mplan.passes.lower_quantized import scales
from mplan.passes.lower_quantized.builder import Builder
from mplan.passes.lower_quantized.goal import Goal, Unlowered
from mplan.passes.lower_quantized.layout import Sizes, Stored, plain, reshaped_order, same_places
from mplan.passes.lower_quantized.scales import Weight

if TYPE_CHECKING:
    from torch import Tensor

Get: TypeAlias = "Callable[[str], Stored]"
#: Integer forms: the op, and what its result must meet.
Rule: TypeAlias = "Callable[[Lowering, Op, Goal], Stored]"
#: Moves: the op, the name of one of its results, and what gives its operands as integers.
Move: TypeAlias = "Callable[[Lowering, Op, str, Get], Stored]"

RULES: dict[str, Rule] = {}
MOVES: dict[str, Move] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Enter the decorated function into ``RULES`` for each of ``kinds``."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return enter


def move(*kinds: str) -> Callable[[Move], Move]:
    """Enter the decorated function into ``MOVES`` for each of ``kinds``."""

    def enter(function: Move) -> Move:
        MOVES.update(dict.fromkeys(kinds, function))
        return function

    return enter


@dataclass
class Lowering:
    """The walk over one graph. ``kept`` maps float ops that stay to the reason."""

    builder: Builder
    producers: dict[str, Op] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    kept: dict[str, tuple[Op, str]] = field(default_factory=dict)
    _integers: dict[tuple[str, Goal], Stored | Unlowered] = field(default_factory=dict)
    _reals: dict[str, Stored | None] = field(default_factory=dict)
    _floats: dict[str, str] = field(default_factory=dict)
    _constants: dict[str, Tensor | None] = field(default_factory=dict)
    _bytes: dict[str, Stored] = field(default_factory=dict)
    _bases: dict[str, str] = field(default_factory=dict)
    _views: dict[tuple[str, Sizes], str] = field(default_factory=dict)
    _requantized: dict[tuple[str, Affine, Goal], Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers = self.builder.graph.producers
        self.values = self.builder.graph.value_table

    def run(self) -> tuple[Arg, ...]:
        """Lower the whole graph; its outputs in the new one."""
        for op in self.builder.graph.ops:
            if op.kind in scales.QUANTIZE and self.constant(Ref(op.result.name)) is None:
                self.quantised(op.result.name)
        outputs = self.builder.graph.outputs
        names = {ref.name: self.floating(ref.name) for ref in refs(outputs)}
        return tuple(substitute(arg, names) for arg in outputs)

    # --- values of the old graph, as int8 -----------------------------------------------------

    def quantised(self, name: str, affine: Affine | None = None) -> Stored:
        """An int8 (or uint8) value of the old graph; ``affine`` is that of its dequantisation."""
        found = self._bytes.get(name)
        if found is None:
            found = self._bytes[name] = self._quantised(name, affine)
        return replace(found, affine=affine) if affine else found

    def _quantised(self, name: str, affine: Affine | None) -> Stored:
        op = self.producers.get(name)
        if op is not None and op.kind in scales.QUANTIZE:
            goal = scales.goal_of(op, self.constant)
            try:
                return self.integer(self.source(op), goal)
            except Unlowered as e:
                return self._from_float(op, goal, e.reason)
        assert affine is not None
        if op is not None and op.kind in MOVES:
            return MOVES[op.kind](self, op, name, lambda n: self.quantised(n, affine))
        if op is not None:
            raise Unlowered(f"{op.kind} computes with integers")
        shape = self.shape(name)
        return Stored(name, shape, plain(len(shape)), affine)

    def _from_float(self, op: Op, goal: Goal, reason: str) -> Stored:
        """Quantisation of what stays float."""
        source = self.source(op)
        maker = self.producers.get(source)
        if maker is not None:
            self.kept.setdefault(source, (maker, reason))
        args: dict[str, Arg] = {
            "input": Ref(self.floating(source)),
            "scale": goal.affine.scale,
            "zero_point": goal.affine.zero_point,
        }
        name = self.builder.emit("mplan.quantize", args, op.result.name, op.loc)
        shape = self.shape(source)
        return self.requantized(Stored(name, shape, plain(len(shape)), goal.affine), goal)

    def real(self, name: str) -> Stored | None:
        """The int8 value whose dequantisation the float value ``name`` is, if there is one."""
        if name not in self._reals:
            try:
                self._reals[name] = self._real(name)
            except Unlowered:
                self._reals[name] = None
        return self._reals[name]

    def _real(self, name: str) -> Stored | None:
        op = self.producers.get(name)
        if op is None:
            return None
        if op.kind in scales.DEQUANTIZE:
            return self._dequantised(op)
        if op.kind in MOVES:
            return MOVES[op.kind](self, op, name, self.required)
        return None

    def _dequantised(self, op: Op) -> Stored | None:
        if "per_channel" in op.kind:
            return None
        affine = scales.affine_of(op, self.constant)
        values = self.constant(op.arg("input"))
        if values is None:
            return self.quantised(self.source(op), affine)
        ref = self.builder.constant(op.result.name, scales.as_int8(op, values))
        return Stored(ref.name, tuple(values.shape), plain(values.dim()), affine)

    def required(self, name: str) -> Stored:
        """As ``real``; Unlowered if there is none."""
        found = self.real(name)
        if found is None:
            op = self.producers.get(name)
            raise Unlowered(f"its operand {op.kind if op else name} is not quantised")
        return found

    def operand(self, op: Op, name: str) -> Stored:
        """The argument ``name`` of ``op`` as integers; Unlowered if it has no such form."""
        return self.required(self.source(op, name))

    def integer(self, name: str, goal: Goal) -> Stored:
        """The float value ``name`` as the integers that ``goal`` asks for, or Unlowered."""
        key = name, goal
        if key not in self._integers:
            try:
                self._integers[key] = self._integer(name, goal)
            except UserError as e:
                self._integers[key] = Unlowered(e.message)
            except Unlowered as e:
                self._integers[key] = e
        found = self._integers[key]
        if isinstance(found, Unlowered):
            raise found
        return found

    def _integer(self, name: str, goal: Goal) -> Stored:
        from mplan.passes.lower_quantized.tables import tabulated

        known = self.real(name)
        if known is not None:
            return self.requantized(known, goal)
        op = self.producers.get(name)
        if op is None:
            raise Unlowered("it is the caller's")
        if op.kind in MOVES:  # a pad may add what the goal excludes
            moved = MOVES[op.kind](self, op, name, lambda n: self.integer(n, goal))
            return self.requantized(moved, goal)
        if name != op.result.name:
            raise Unlowered("it is not the first result of its op")
        found = tabulated(self, op, goal)
        if found is not None:
            return found
        if op.kind not in RULES:
            raise Unlowered("it has no integer form")
        return RULES[op.kind](self, op, goal)

    # --- int8 values of the new graph ---------------------------------------------------------

    def requantized(self, stored: Stored, goal: Goal) -> Stored:
        """The same real numbers as ``goal`` asks for."""
        low, high = goal.range
        if stored.affine == goal.affine and low <= stored.least and stored.most <= high:
            return stored
        key = stored.name, stored.affine, goal
        if key not in self._requantized:
            multiplier, shift = quantize_multiplier(stored.affine.scale / goal.affine.scale)
            args: dict[str, Arg] = {
                "input": Ref(stored.name),
                "input_zero_point": stored.affine.zero_point,
                "multiplier": multiplier,
                "shift": shift,
            }
            name = self.builder.emit("mplan.requantize", {**args, **goal.output()}, stored.name)
            self._requantized[key] = self.made(name, stored.shape, stored.order, goal)
        found = self._requantized[key]
        return replace(found, shape=stored.shape, order=stored.order)

    def made(self, name: str, shape: Sizes, order: Sizes, goal: Goal) -> Stored:
        """An op's result that meets ``goal``."""
        return Stored(name, shape, order, goal.affine, *goal.range)

    def reshaped(self, stored: Stored, shape: Sizes) -> Stored:
        """The same elements, in row-major order of both shapes, as another shape."""
        order = reshaped_order(stored.shape, stored.order, shape)
        if order is None:
            return self.reshaped(self.arranged(stored, plain(len(stored.shape))), shape)
        return self._viewed(stored, replace(stored, shape=shape, order=order))

    def arranged(self, stored: Stored, order: Sizes) -> Stored:
        """The same value stored in ``order``."""
        wanted = replace(stored, order=order)
        if same_places(stored.shape, stored.order, order):
            return self._viewed(stored, wanted)
        constant = self.builder.constants.get(stored.name)
        dims = tuple(stored.order.index(d) for d in order)
        if constant is not None:
            ref = self.builder.constant(f"{stored.name}_moved", constant.permute(dims))
            return replace(wanted, name=ref.name)
        return replace(wanted, name=self._dense(self._permuted(stored, dims)))

    def ordered(self, stored: Stored) -> Stored:
        """The same value, row-major in its logical shape, perhaps as a strided view."""
        order = plain(len(stored.shape))
        if stored.in_order:
            return self.arranged(stored, order)
        dims = tuple(stored.order.index(d) for d in order)
        return replace(stored, name=self._permuted(stored, dims), order=order)

    def _viewed(self, stored: Stored, wanted: Stored) -> Stored:
        base = self._bases.get(stored.name, stored.name)
        key = base, wanted.sizes
        if key not in self._views:
            if self.builder.types[base] == TensorType(DType.I8, wanted.sizes):
                return replace(wanted, name=base)
            args: dict[str, Arg] = {"self": Ref(base), "size": wanted.sizes}
            name = self.builder.emit("aten.view.default", args, base, view_of=base)
            self._views[key], self._bases[name] = name, base
        return replace(wanted, name=self._views[key])

    def _permuted(self, stored: Stored, dims: Sizes) -> str:
        args: dict[str, Arg] = {"self": Ref(stored.name), "dims": dims}
        return self.builder.emit("aten.permute.default", args, stored.name, view_of=stored.name)

    def _dense(self, view: str) -> str:
        args: dict[str, Arg] = {"self": Ref(view), "memory_format": "contiguous_format"}
        return self.builder.emit("aten.clone.default", args, view)

    def cut(self, stored: Stored, dim: int, start: int, end: int, step: int = 1) -> Stored:
        """The positions ``start, start + step, …`` before ``end`` of a logical dimension, as a copy."""
        length = len(range(start, end, step))
        if length == stored.shape[dim]:
            return stored
        shape = (*stored.shape[:dim], length, *stored.shape[dim + 1 :])
        place, sizes = stored.order.index(dim), stored.sizes
        stride = 1
        for n in sizes[place + 1 :]:
            stride *= n
        args: dict[str, Arg] = {
            "self": Ref(stored.name),
            "dim": place,
            "start": start,
            "end": end,
            "step": step,
        }
        view = self.builder.emit(
            "aten.slice.Tensor", args, stored.name, view_of=stored.name, offset_bytes=start * stride
        )
        return replace(stored, name=self._dense(view), shape=shape)

    # --- what stays float ---------------------------------------------------------------------

    def floating(self, name: str) -> str:
        """The value ``name`` of the old graph as it is there: float, or row-major integers."""
        if name not in self._floats:
            self._floats[name] = self._floating(name)
        return self._floats[name]

    def _floating(self, name: str) -> str:
        op = self.producers.get(name)
        if op is None:
            return name
        values = self.constant(Ref(name))
        if values is not None:
            return self.builder.constant(name, values).name
        if op.kind in scales.QUANTIZE:
            stored = self.quantised(name)
            return self.arranged(stored, plain(len(stored.shape))).name
        known = self.real(name)
        return self._dequantize(op, name, known) if known else self._copy(op, name)

    def _copy(self, op: Op, name: str) -> str:
        """The float op ``op`` in the new graph; its result ``name`` there."""
        names = {n: self.floating(n) for n in op.operands}
        results: list[Value | None] = []
        for value in op.results:
            if value is None:
                results.append(None)
                continue
            alias = value.alias
            if alias is not None:
                alias = replace(alias, of=names.get(alias.of) or self.floating(alias.of))
            results.append(replace(value, name=self.builder.fresh(value.name), alias=alias))
        args = tuple((key, substitute(arg, names)) for key, arg in op.args)
        copied = replace(op, args=args, results=tuple(results))
        if any(self.builder.types[new] != self.values[old].type for old, new in names.items()):
            copied = _restrided(copied, self.builder.types)
        self.builder.append(copied)
        for old, new in zip(op.results, copied.results, strict=True):
            if old is not None and new is not None:
                self._floats[old.name] = new.name
        self.kept.setdefault(name, (op, "what reads it stays float"))
        return self._floats[name]

    def _dequantize(self, op: Op, name: str, stored: Stored) -> str:
        stored = self.arranged(stored, plain(len(stored.shape)))
        affine = stored.affine
        args: dict[str, Arg] = {"scale": affine.scale, "zero_point": affine.zero_point}
        args["input"] = Ref(stored.name)
        return self.builder.emit("mplan.dequantize", args, name, op.loc)

    # --- the old graph ------------------------------------------------------------------------

    def source(self, op: Op, name: str = "input") -> str:
        """The name of the value that ``op`` takes as its argument ``name``."""
        found = op.arg(name)
        if not isinstance(found, Ref):
            raise Unlowered(f"its {name} is no tensor")
        return found.name

    def shape(self, name: str) -> Sizes:
        """The shape of a value of the old graph."""
        found = tensor_type(self.values[name]).shape
        sizes = tuple(n for n in found if isinstance(n, int))
        if len(sizes) != len(found):
            raise UserError("MP105", f"the shape of %{name} is symbolic; bind or bound it first")
        return sizes

    def constant(self, arg: Arg) -> Tensor | None:
        """The value of an argument that follows from constants alone; None for others."""
        if not isinstance(arg, Ref):
            return None
        if arg.name not in self._constants:
            self._constants[arg.name] = self._constant(arg.name)
        return self._constants[arg.name]

    def _constant(self, name: str) -> Tensor | None:
        op = self.producers.get(name)
        if op is None:
            found: Any = self.builder.constants.get(name)
            return None if found is None else found.detach()
        env = {n: self.constant(Ref(n)) for n in op.operands}
        if len(op.results) != 1 or op.loop or any(t is None for t in env.values()):
            return None
        row = lookup(op.kind)
        if row.random or any(p.written for p in row.params):
            return None
        result: Tensor = row.reference(**{key: bind_arg(arg, env, {}) for key, arg in op.args})
        return result

    def weight(self, name: str) -> Weight | None:
        """The constant weights that the float value ``name`` is the dequantisation of."""
        op = self.producers.get(name)
        if op is None or self.constant(Ref(name)) is None:
            return None
        if op.kind in scales.DEQUANTIZE:
            return scales.weight_of(op, self.constant)
        inner = self.weight(self.source(op, "self")) if op.arg("self") is not None else None
        dims = permutation(op, len(self.shape(name)))
        return inner.moved(dims) if inner and dims is not None else None


def _restrided(op: Op, types: Mapping[str, Type]) -> Op:
    """``op`` for operands of ``types``, which may have other strides than it was made for."""
    import torch

    operands = {}
    for name in op.operands:
        type_ = types[name]
        assert isinstance(type_, TensorType)
        dtype = getattr(torch, type_.dtype.torch_name)
        sizes = [n for n in type_.shape if isinstance(n, int)]
        operands[name] = torch.empty_strided(sizes, type_.element_strides, dtype=dtype, device="meta")
    results = []
    for value, inferred in zip(op.results, infer(op, types), strict=True):
        if value is not None and inferred is not None:
            value = replace(value, type=inferred)
            if value.alias and value.alias.offset_bytes != 0:
                args = {key: bind_arg(arg, operands, {}) for key, arg in op.args}
                shown = lookup(op.kind).reference(**args)
                place = shown.storage_offset() * shown.element_size()
                value = replace(value, alias=replace(value.alias, offset_bytes=place))
        results.append(value)
    return replace(op, results=tuple(results))


def permutation(op: Op, rank: int) -> Sizes | None:
    """The order of dimensions that ``op`` permutes its operand to; None for other ops."""
    order = list(range(rank))
    if op.kind == "aten.permute.default":
        given = op.arg("dims")
        assert isinstance(given, tuple)
        return tuple(d % rank for d in given if isinstance(d, int))
    if op.kind == "aten.t.default":
        return tuple(reversed(order))
    if op.kind == "aten.transpose.int":
        a, b = (op.arg(name) for name in ("dim0", "dim1"))
        assert isinstance(a, int) and isinstance(b, int)
        order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
        return tuple(order)
    return None
