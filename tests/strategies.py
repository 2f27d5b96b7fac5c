"""Random graphs for tests.

``any_graph()`` yields graphs that are well-formed as text only (odd names, every kind of argument,
loops, symbols, aliases); ``runnable_graph()`` yields graphs that verify and run, with views, in-place
results, multi-output ops and loops. ``GraphBuilder`` writes graphs by hand: it runs each op on zeros
to learn the types of its results and the aliases among them.
"""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st

from mplan.ir.aten_ops import flat_results, type_of
from mplan.ir.graph import (
    Alias,
    Arg,
    Axis,
    Carry,
    Concat,
    Graph,
    Input,
    Loc,
    Loop,
    Op,
    Ref,
    Role,
    Scratch,
    Slice,
    Value,
    Window,
)
from mplan.ir.loops import axis_symbols
from mplan.ir.ops import bind_arg, lookup
from mplan.ir.plan import Problem
from mplan.ir.types import DType, ScalarType, Sym, Symbol, TensorType


class GraphBuilder:
    """Builds a static graph op by op. Values are named by the caller or numbered; all are float32."""

    def __init__(self, name: str = "g") -> None:
        self.name = name
        self.inputs: list[Input] = []
        self.ops: list[Op] = []
        self.tensors: dict[str, Any] = {}
        self.alias: dict[str, Alias | None] = {}

    def input(self, *shape: int, name: str = "", role: Role = "input", dtype: DType = DType.F32) -> str:
        import torch

        name = name or f"x{len(self.inputs)}"
        self.inputs.append(Input(Value(name, TensorType(dtype, shape)), role))
        self.tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype.torch_name))
        self.alias[name] = None
        return name

    def op(
        self, kind: str, /, *, name: str = "", inplace: str = "", loc: Loc | None = None, **args: Arg
    ) -> Any:
        """Add an op; strings of the form ``%name`` in ``args`` are refs. Returns its result names.

        ``inplace`` names the operand whose bytes the result of a functional op overwrites.
        """
        import torch

        given = {key: _refs(arg) for key, arg in args.items()}
        row = lookup(kind)
        out = row.reference(**{key: bind_arg(arg, self.tensors, {}) for key, arg in given.items()})
        results = [t for t in flat_results(out) if t is None or isinstance(t, torch.Tensor)]
        base = name or f"v{len(self.ops)}"
        names = [base] if len(results) == 1 else [f"{base}_{i}" for i in range(len(results))]
        order = [p.name for p in row.params]
        ordered = tuple(sorted(given.items(), key=lambda pair: order.index(pair[0])))
        op = Op(kind, ordered, (), loc)
        written = inplace or next((str(given[p.name].name) for p in row.params if p.written), "")
        values = [self._value(n, t, op, written) for n, t in zip(names, results, strict=True)]
        self.ops.append(Op(kind, ordered, tuple(values), loc))
        return names[0] if len(names) == 1 else tuple(names)

    def _value(self, name: str, tensor: Any, op: Op, written: str) -> Value | None:
        if tensor is None:
            return None
        alias = Alias(written, "inplace") if written else None
        for operand in () if written else op.operands:
            base = self.tensors[operand]
            if (
                base.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
                and base.numel()
            ):
                start = tensor.storage_offset() * tensor.element_size()
                alias = Alias(operand, "view", start - base.storage_offset() * base.element_size())
                break
        self.tensors[name] = self.tensors[written] if written else tensor
        self.alias[name] = alias
        return Value(name, type_of(tensor), alias)

    def add(self, op: Op) -> tuple[str, ...]:
        """Add a finished op whose results are contiguous and alias nothing (a loop)."""
        import torch

        for value in op.values:
            assert isinstance(value.type, TensorType)
            dtype = getattr(torch, value.type.dtype.torch_name)
            self.tensors[value.name] = torch.zeros(value.type.shape, dtype=dtype)
            self.alias[value.name] = None
        self.ops.append(op)
        return tuple(v.name for v in op.values)

    def type(self, name: str) -> TensorType:
        type_ = type_of(self.tensors[name])
        assert isinstance(type_, TensorType)
        return type_

    def root(self, name: str) -> str:
        alias = self.alias[name]
        return self.root(alias.of) if alias else name

    def build(self, *outputs: str, symbols: tuple[Symbol, ...] = ()) -> Graph:
        refs = tuple(Ref(o) for o in outputs)
        return Graph(self.name, tuple(self.inputs), tuple(self.ops), refs, symbols)


def _refs(arg: Any) -> Any:
    if isinstance(arg, str) and arg.startswith("%"):
        return Ref(arg[1:])
    return tuple(_refs(a) for a in arg) if isinstance(arg, (tuple, list)) else arg


def pointwise_loop(builder: GraphBuilder, operand: str, dim: int, step: int, name: str) -> Op:
    """``gelu(operand)`` in tiles of ``step`` along ``dim``."""
    type_ = builder.type(operand)
    axis = Axis("i", int(type_.shape[dim]), step)
    symbols = axis_symbols(axis)
    shape = tuple(Sym("i_len") if d == dim else n for d, n in enumerate(type_.shape))
    tile = TensorType(type_.dtype, shape)
    gelu = Op("aten.gelu.default", (("self", Ref("t")),), (Value("u", tile),))
    body = Graph("tile", (Input(Value("t", tile)),), (gelu,), (Ref("u"),), symbols)
    window = Window(operand, (Slice(dim, "i"),))
    loop = Loop((axis,), (window,), (Concat((dim,), ("i",)),), body)
    result = Value(name, TensorType(type_.dtype, type_.shape))
    return Op("mplan.loop", (), (result,), loop=loop)


# --- graphs that run ------------------------------------------------------------------------------

_SAME_SHAPE = ("aten.relu.default", "aten.neg.default", "aten.sigmoid.default", "aten.tanh.default")
_SHAPE = (4, 6)


@st.composite
def runnable_graph(draw: st.DrawFn, max_ops: int = 12, loops: bool = True) -> Graph:
    """A valid graph over small float32 matrices; its last values are the outputs."""
    b = GraphBuilder("random")
    live = [b.input(*_SHAPE) for _ in range(draw(st.integers(1, 3)))]
    live.append(b.input(6, 4, name="w", role="param"))
    for _ in range(draw(st.integers(1, max_ops))):
        live = _step(draw, b, live, loops)
    count = draw(st.integers(1, min(3, len(live))))
    return b.build(*live[-count:])


def _step(draw: st.DrawFn, b: GraphBuilder, live: list[str], loops: bool) -> list[str]:
    """Add one op on live values; returns the values that may still be read."""
    x = draw(st.sampled_from(live))
    type_ = b.type(x)
    choices = ["unary", "binary", "view", "slice", "split", "transpose", "sum", "cat", "max"]
    if type_.is_contiguous and not x.startswith("w"):
        choices += ["inplace", "mutate"]
    if loops and type_.is_contiguous:
        choices.append("loop")
    choice = draw(st.sampled_from(choices))
    ref = f"%{x}"
    shape = [int(n) for n in type_.shape]
    if choice == "unary":
        return [*live, b.op(draw(st.sampled_from(_SAME_SHAPE)), self=ref)]
    if choice == "binary":
        same = [v for v in live if b.type(v).shape == type_.shape]
        other = f"%{draw(st.sampled_from(same))}"
        return [*live, b.op("aten.add.Tensor", self=ref, other=other)]
    if choice == "view":
        if not type_.is_contiguous:
            return [*live, b.op("aten.clone.default", self=ref, memory_format="contiguous_format")]
        return [*live, b.op("aten.view.default", self=ref, size=(shape[-1], math.prod(shape[:-1])))]
    if choice == "slice":
        end = max(shape[0] // 2, 1)
        start = draw(st.integers(0, shape[0] - end))
        return [*live, b.op("aten.slice.Tensor", self=ref, dim=0, start=start, end=start + end)]
    if choice == "split":
        names = b.op("aten.split.Tensor", self=ref, split_size=max(shape[1] // 2, 1), dim=1)
        return [*live, *([names] if isinstance(names, str) else names)]
    if choice == "transpose":
        return [*live, b.op("aten.transpose.int", self=ref, dim0=0, dim1=1)]
    if choice == "sum":
        return [*live, b.op("aten.sum.dim_IntList", self=ref, dim=(0,), keepdim=True)]
    if choice == "cat":
        return [*live, b.op("aten.cat.default", tensors=(ref, ref), dim=draw(st.integers(0, 1)))]
    if choice == "max":
        values, _ = b.op("aten.max.dim", self=ref, dim=1, keepdim=True)
        return [*live, values]
    if choice == "loop":
        dim = draw(st.integers(0, 1))
        step = draw(st.integers(1, shape[dim]))
        return [*live, *b.add(pointwise_loop(b, x, dim, step, f"v{len(b.ops)}"))]
    stale = b.root(x)
    rest = [v for v in live if b.root(v) != stale]
    if choice == "mutate":
        return [*rest, b.op("aten.mul_.Scalar", self=ref, other=0.5)]
    return [*rest, b.op(draw(st.sampled_from(_SAME_SHAPE)), self=ref, inplace=x)]


def random_inputs(graph: Graph, seed: int = 0) -> dict[str, Any]:
    """Normally distributed inputs (small integers for integer types), by value name."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for item in graph.inputs:
        type_ = item.value.type
        assert isinstance(type_, TensorType)
        dtype = getattr(torch, type_.dtype.torch_name)
        shape = tuple(int(n) for n in type_.shape)
        if dtype.is_floating_point:
            found[item.value.name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            found[item.value.name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return found


@st.composite
def topological_order(draw: st.DrawFn, problem: Problem) -> tuple[int, ...]:
    """Any order of the steps of ``problem`` that its precedence allows."""
    waiting = {i: set(step.after) for i, step in enumerate(problem.steps)}
    order: list[int] = []
    while waiting:
        ready = sorted(i for i, after in waiting.items() if not after)
        chosen = draw(st.sampled_from(ready))
        order.append(chosen)
        del waiting[chosen]
        for after in waiting.values():
            after.discard(chosen)
    return tuple(order)


# --- graphs that are only text --------------------------------------------------------------------


def tuples(strategy: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=most).map(tuple)


bare_names = st.from_regex(r"[a-z_][a-z0-9_.]{0,8}", fullmatch=True)
names = st.one_of(bare_names, st.text(min_size=1, max_size=6))
symbol_names = st.sampled_from(["s0", "s1", "n", "h", "h_len"])
expressions = st.sampled_from(
    ["s0", "s0 * 2", "(s0+1)//2", "max(s0, 4) % n", "-s1", "min(h, h_len)", "2 * (n - 1)"]
).map(Sym)
integers = st.integers(-(2**70), 2**70)
floats = st.one_of(st.floats(allow_nan=False), st.just(math.nan))
dims = st.one_of(st.integers(0, 2**40), expressions)
locs = st.builds(Loc, st.text(max_size=12), st.integers(0, 10**6), st.text(max_size=12))
scalars = st.sampled_from([ScalarType("int"), ScalarType("float"), ScalarType("bool")])


@st.composite
def tensor_types(draw: st.DrawFn) -> TensorType:
    rank = draw(st.integers(0, 4))
    shape = tuple(draw(dims) for _ in range(rank))
    strides = tuple(draw(dims) for _ in range(rank)) if draw(st.booleans()) else None
    return TensorType(draw(st.sampled_from(list(DType))), shape, strides)


types = st.one_of(tensor_types(), scalars)
aliases = st.builds(
    Alias, names, st.sampled_from(["view", "inplace"]), st.one_of(st.integers(-9, 999), expressions)
)
values = st.builds(Value, names, types, st.one_of(st.none(), aliases))
atoms = st.one_of(
    st.builds(Ref, names),
    integers,
    floats,
    st.booleans(),
    st.text(max_size=10),
    st.sampled_from(list(DType)),
    expressions,
    st.none(),
)
args = st.recursive(atoms, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
roles = st.sampled_from(["input", "param", "buffer", "const", "symbol"])
inputs = st.builds(Input, values, roles, st.text(max_size=10), st.booleans())
symbols = st.builds(Symbol, st.one_of(symbol_names, names), integers, integers)
scratches = st.builds(Scratch, st.integers(0, 999), st.integers(0, 3), st.integers(0, 3))
axes = st.builds(Axis, names, st.integers(1, 99), st.integers(1, 99))
slices = st.builds(
    Slice, st.integers(0, 5), names, st.integers(-3, 9), st.integers(-9, 9), st.integers(0, 9)
)
windows = st.builds(Window, names, tuples(slices, 2))


concats = st.lists(st.tuples(st.integers(0, 5), names), max_size=2).map(
    lambda pairs: Concat(tuple(d for d, _ in pairs), tuple(a for _, a in pairs))
)
kinds = st.one_of(st.sampled_from(["aten.add.Tensor", "mplan.attention", "a.b.c.default"]), names)


def ops(bodies: st.SearchStrategy[Graph] | None) -> st.SearchStrategy[Op]:
    """Ops; with a strategy for bodies, also loops."""
    loop: st.SearchStrategy[Loop | None] = st.none()
    if bodies is not None:
        results = tuples(st.one_of(concats, st.builds(Carry, names)), 2)
        loop = st.one_of(loop, st.builds(Loop, tuples(axes, 2), tuples(windows, 2), results, bodies))
    return st.builds(
        Op,
        kinds,
        tuples(st.tuples(names, args), 3),
        tuples(st.one_of(st.none(), values), 3),
        st.one_of(st.none(), locs),
        tuples(scratches, 2),
        tuples(st.integers(0, 3), 2),
        loop,
    )


def graphs(bodies: st.SearchStrategy[Graph] | None) -> st.SearchStrategy[Graph]:
    """Graphs; ``bodies`` are those of their loops."""
    return st.builds(
        Graph, names, tuples(inputs, 3), tuples(ops(bodies), 3), tuples(args, 3), tuples(symbols, 2)
    )


def any_graph() -> st.SearchStrategy[Graph]:
    """Graphs with loops two deep."""
    return graphs(graphs(graphs(None)))
