"""Every kernel of the C code generator against PyTorch, under the address and UB sanitizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mplan.capture import capture
from mplan.codegen.c.kernels import supported
from mplan.ir.graph import Alias, Graph, Input, Op, Ref, Value
from mplan.ir.ops import lookup
from mplan.ir.quantized_ops import ROWS
from mplan.ir.types import DType, TensorType
from tests.c_cases import CASES
from tests.c_direct_cases import DIRECT
from tests.c_support import assert_close, build, emitted, run_program

pytestmark = pytest.mark.slow

Outputs = dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]]


class AllCases(torch.nn.Module):
    """The cases called ``names`` side by side: one graph, so one plan and one run of the compiler."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        supply = iter(tensors)
        results = (_results(n, [next(supply) for _ in CASES[n][1]]) for n in self.names)
        return tuple(t for part in results for t in part)


def _results(name: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    result = CASES[name][0](*tensors)
    return list(result) if isinstance(result, (tuple, list)) else [result]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outputs, Graph]:
    """What C and PyTorch compute for each case, and the graph of them all."""
    names = list(CASES)
    inputs = tuple(t for n in names for t in CASES[n][1])
    captured = capture(AllCases(names), inputs, decompose=True)
    expected = [_results(n, CASES[n][1]) for n in names]
    files = emitted(captured.graph, captured.constants)
    flat = [t for part in expected for t in part]
    actual = run_program(tmp_path_factory.mktemp("core"), files, captured.flatten(inputs), flat)
    ends = [0]
    for part in expected:
        ends.append(ends[-1] + len(part))
    slices = [actual[a:b] for a, b in pairwise(ends)]
    pairs = zip(slices, expected, strict=True)
    return dict(zip(names, pairs, strict=True)), captured.graph


@pytest.mark.parametrize("name", CASES)
def test_op_equals_pytorch(core: tuple[Outputs, Graph], name: str) -> None:
    assert_close(*core[0][name])


def _direct_graph() -> tuple[Graph, list[torch.Tensor], list[list[torch.Tensor]]]:
    """The ops of ``DIRECT`` side by side, their operands, and what their references compute."""
    inputs: list[Input] = []
    operands: list[torch.Tensor] = []

    def entered(arg: object) -> object:
        if isinstance(arg, tuple):
            return tuple(entered(a) for a in arg)
        if not isinstance(arg, torch.Tensor):
            return arg
        operands.append(arg)
        inputs.append(Input(Value(f"in{len(inputs)}", _type_of(arg))))
        return Ref(inputs[-1].value.name)

    ops, expected = [], []
    for i, (kind, args) in enumerate(DIRECT):
        found = lookup(kind).reference(**args)
        flat = list(found) if isinstance(found, tuple) else [found]
        expected.append([t for t in flat if t.numel()])
        values = (Value(f"y{i}_{j}", _type_of(t)) for j, t in enumerate(flat))
        ops.append(Op(kind, tuple((k, entered(a)) for k, a in args.items()), tuple(values)))
    names = [v.name for op in ops for v in op.values if isinstance(v.type, TensorType) and v.type.numel]
    return Graph("direct", tuple(inputs), tuple(ops), tuple(map(Ref, names))), operands, expected


def _type_of(tensor: torch.Tensor) -> TensorType:
    strides = None if tensor.is_contiguous() else tensor.stride()
    return TensorType(DType.of_torch(str(tensor.dtype)), tuple(tensor.shape), strides)


def test_direct_ops_equal_their_references(tmp_path: Path) -> None:
    graph, operands, expected = _direct_graph()
    flat = [t for part in expected for t in part]
    actual = run_program(tmp_path, emitted(graph, {}), operands, flat)
    for kind, part in zip((kind for kind, _ in DIRECT), expected, strict=True):
        ours, actual = actual[: len(part)], actual[len(part) :]
        try:
            assert_close(ours, part)
        except AssertionError as e:
            raise AssertionError(kind) from e


#: Kernels that write nothing.
EMPTY = {"aten.empty.memory_format", "aten.empty_like.default"}


def test_every_kernel_is_run(core: tuple[Outputs, Graph]) -> None:
    graphs = (core[1], _direct_graph()[0])
    run = {op.kind for graph in graphs for op in graph.ops}
    streams = {"mplan.loop"}  # tests/test_codegen_stream.py
    assert set(supported()) - set(ROWS) - streams - run == EMPTY


@dataclass(frozen=True)
class Conv:
    """A convolution of random shape."""

    groups: int
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    extra: tuple[int, int]
    bias: bool
    transposed: bool

    @property
    def size(self) -> tuple[int, int]:
        """The smallest image with an output, and ``extra`` rows and columns."""
        sides = []
        for k, p, d, extra in zip(self.kernel, self.padding, self.dilation, self.extra, strict=True):
            reach = d * (k - 1) + 1
            sides.append(max(1, (2 * p - reach) // 1 + 2 if self.transposed else reach - 2 * p) + extra)
        return sides[0], sides[1]

    def tensors(self) -> list[torch.Tensor]:
        """Image, weight and perhaps bias."""
        image = torch.randn(2, self.groups * self.inputs, *self.size)
        ends = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        weight = torch.randn(self.groups * ends[0], ends[1], *self.kernel)
        return [image, weight, *([torch.randn(self.groups * self.outputs)] if self.bias else [])]

    def options(self) -> dict[str, object]:
        """The arguments of the operator besides tensors."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "transposed": self.transposed,
            "output_padding": (0, 0),
            "groups": self.groups,
        }


def _pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


CONVS = st.builds(
    Conv,
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 5),
    kernel=_pair(1, 5),
    stride=_pair(1, 3),
    padding=_pair(0, 3),
    dilation=_pair(1, 3),
    extra=_pair(0, 11),
    bias=st.booleans(),
    transposed=st.sampled_from([False, False, False, True]),
)


def _single(name: str, shape: Sequence[int]) -> Value:
    return Value(name, TensorType(DType.F32, tuple(shape)))


def _conv_graph(convs: Sequence[Conv]) -> tuple[Graph, list[torch.Tensor], list[torch.Tensor]]:
    """The convolutions side by side, their operands, and what PyTorch computes."""
    inputs, ops, operands, expected = [], [], [], []
    for i, conv in enumerate(convs):
        tensors = conv.tensors()
        names = [f"{part}{i}" for part in ("x", "w", "b")[: len(tensors)]]
        inputs += [Input(_single(n, t.shape)) for n, t in zip(names, tensors, strict=True)]
        operands += tensors
        full = [*tensors, *([None] if len(tensors) == 2 else [])]
        expected.append(
            lookup("aten.convolution.default").reference(
                **dict(zip(("input", "weight", "bias"), full, strict=True)), **conv.options()
            )
        )
        refs = [*map(Ref, names), *([None] if len(names) == 2 else [])]
        args = (*zip(("input", "weight", "bias"), refs, strict=True), *conv.options().items())
        ops.append(Op("aten.convolution.default", args, (_single(f"y{i}", expected[-1].shape),)))
    outputs = tuple(Ref(f"y{i}") for i in range(len(convs)))
    return Graph("convs", tuple(inputs), tuple(ops), outputs), operands, expected


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(convs=st.lists(CONVS, min_size=12, max_size=12), seed=st.integers(0, 1000))
def test_convolutions_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, convs: list[Conv], seed: int
) -> None:
    torch.manual_seed(seed)
    graph, operands, expected = _conv_graph(convs)
    network = build(tmp_path_factory.mktemp("convs"), emitted(graph, {}), "-fsanitize=undefined")
    assert_close(network.run(operands, expected), expected)
    assert network.guards_intact


@pytest.mark.parametrize("kind", ["softmax", "layer_norm", "attention"])
def test_long_rows_keep_their_accuracy(tmp_path: Path, kind: str) -> None:
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "softmax": lambda x: x.softmax(-1),
        "layer_norm": lambda x: F.layer_norm(x + 3, (4096,)),
        "attention": lambda x: F.scaled_dot_product_attention(*x.view(3, 4096, 1).unbind()),
    }

    class Row(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functions[kind](x)

    x = torch.randn(3, 4096) if kind == "attention" else torch.randn(2, 4096)
    captured = capture(Row(), (x,), decompose=kind != "attention")
    network = build(tmp_path, emitted(captured.graph, captured.constants), "-O2")
    expected = functions[kind](x.double()).float()
    assert_close(network.run([x], [expected]), [expected])


@dataclass(frozen=True)
class Layouts:
    """A permuted tensor, one that is broadcast to it, and dimensions to reduce."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    wide: tuple[bool, ...]
    dims: tuple[int, ...]
    keepdim: bool

    def ops(self, tag: str) -> tuple[list[Op], list[torch.Tensor], list[torch.Tensor]]:
        """A view, a sum of both, its reduction, its softmax; the operands; the results."""
        x = torch.randn(self.shape)
        view = x.permute(self.order)
        narrow = [n if wide else 1 for n, wide in zip(view.shape, self.wide, strict=True)]
        y = torch.randn(narrow)
        x_ref, y_ref, view_ref, sum_ref = (Ref(f"{name}{tag}") for name in "xyvs")
        steps: list[tuple[str, str, dict[str, object]]] = [
            ("s", "aten.add.Tensor", {"self": view_ref, "other": y_ref}),
            ("r", "aten.sum.dim_IntList", {"self": sum_ref, "dim": self.dims, "keepdim": self.keepdim}),
            ("n", "aten.var.correction", {"self": view_ref, "dim": self.dims, "correction": 0}),
            (
                "e",
                "aten._softmax.default",
                {"self": sum_ref, "dim": self.dims[0], "half_to_float": False},
            ),
            ("c", "aten.cat.default", {"tensors": (view_ref, sum_ref), "dim": self.dims[0]}),
            ("f", "aten.flip.default", {"self": sum_ref, "dims": self.dims}),
        ]
        alias = Value(f"v{tag}", _type_of(view), Alias(x_ref.name))
        ops = [Op("aten.permute.default", (("self", x_ref), ("dims", self.order)), (alias,))]
        env = {x_ref: x, y_ref: y, view_ref: view}
        for name, kind, args in steps:
            bound = {k: _bound(a, env) for k, a in args.items()}
            env[Ref(f"{name}{tag}")] = found = lookup(kind).reference(**bound)
            ops.append(Op(kind, tuple(args.items()), (Value(f"{name}{tag}", _type_of(found)),)))
        return ops, [x, y], [env[Ref(op.result.name)] for op in ops[1:]]


def _bound(arg: object, env: dict[Ref, torch.Tensor]) -> object:
    if isinstance(arg, tuple):
        return tuple(_bound(a, env) for a in arg)
    return env[arg] if isinstance(arg, Ref) else arg


@st.composite
def layouts(draw: st.DrawFn) -> Layouts:
    """Any of rank 1 to 5."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    rank = len(shape)
    order = tuple(draw(st.permutations(range(rank))))
    wide = tuple(draw(st.lists(st.booleans(), min_size=rank, max_size=rank)))
    dims = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
    return Layouts(shape, order, wide, tuple(dims), draw(st.booleans()))


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases=st.lists(layouts(), min_size=12, max_size=12), seed=st.integers(0, 1000))
def test_tensors_of_any_layout(
    tmp_path_factory: pytest.TempPathFactory, cases: list[Layouts], seed: int
) -> None:
    torch.manual_seed(seed)
    ops, operands, expected, inputs = [], [], [], []
    for i, case in enumerate(cases):
        found, tensors, results = case.ops(str(i))
        ops += found
        operands += tensors
        expected += results
        inputs += [Input(Value(f"{n}{i}", _type_of(t))) for n, t in zip("xy", tensors, strict=True)]
    outputs = tuple(Ref(op.result.name) for op in ops if not op.is_view)
    graph = Graph("layouts", tuple(inputs), tuple(ops), outputs)
    network = build(tmp_path_factory.mktemp("layouts"), emitted(graph, {}), "-fsanitize=undefined")
    assert_close(network.run(operands, expected), expected)
    assert network.guards_intact
