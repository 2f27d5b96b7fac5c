"""Inference captures: ops, sizes, aliases, mutations, places and dynamic sizes match the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from models.cnn import conv_bn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mplan.capture import Captured, capture, capture_exported, capture_loaded
from mplan.diagnostics import UserError
from mplan.ir.graph import Graph, Op, tensor_type
from mplan.ir.interp import run
from mplan.ir.types import Sym, Symbol
from mplan.ir.verify import verify


def run_captured(c: Captured, *args: Any, graph: Graph | None = None) -> tuple[Any, ...]:
    """The outputs of the captured graph (or ``graph`` in its place) for a call's arguments."""
    graph = graph or c.graph
    own = iter(c.flatten(args))
    names = [i.value.name for i in graph.inputs]
    return run(graph, [c.constants[n] if n in c.constants else next(own) for n in names])


def only(graph: Graph, kind: str) -> Op:
    found = [op for op in graph.ops if op.kind == kind]
    assert len(found) == 1, [op.kind for op in graph.ops]
    return found[0]


class Recorder(TorchDispatchMode):
    """Name, shapes, strides and element types of all tensors that each eager op yields."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        shown = [(str(x.dtype), tuple(x.shape), x.stride()) for x in tensors]
        self.calls.append((func._opname.removesuffix("_"), shown))
        return out


#: Eager calls it ``native_batch_norm``; export's twin for evaluation yields the same three tensors.
TWINS = {"_native_batch_norm_legit_no_training": "native_batch_norm"}


def calls_of(graph: Graph) -> list[tuple[str, list[Any]]]:
    calls = []
    for op in graph.ops:
        name = op.kind.split(".")[1]
        types = [tensor_type(v) for v in op.values]
        shown = [(f"torch.{t.dtype.torch_name}", t.shape, t.element_strides) for t in types]
        calls.append((TWINS.get(name, name), shown))
    return calls


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo_captures_and_computes_the_same(name: str) -> None:
    c = zoo.captured(name)
    module, args = zoo.build(name)
    verify(c.graph, deep=True)
    assert str(c.graph).count("\n") > len(c.graph.ops)
    with torch.no_grad():
        want = tree_leaves(module(*args))
    got = run_captured(c, *args)
    assert c.num_user_outputs == len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


#: What export leaves out (or adds) because it changes nothing: batch norm's empty reserve, say.
IDLE = ("detach", "clone", "lift_fresh", "alias", "empty")
EXACT = """
    resnet18 resnet50 mobilenet_v2 efficientnet_b0 densenet121 nasnet googlenet unet convnext
    keyword_spotting super_resolution vit gru gpt experts autoencoder
"""


@pytest.mark.parametrize("name", EXACT.split())
def test_ops_and_sizes_are_those_of_an_eager_run(name: str) -> None:
    module, args = zoo.build(name)
    with torch.no_grad(), Recorder() as eager:
        module(*args)
    expected = [call for call in eager.calls if call[0] not in IDLE]
    assert [call for call in calls_of(zoo.captured(name).graph) if call[0] not in IDLE] == expected


@pytest.mark.parametrize("name", ["resnet18", "vit_fused", "gru", "unet", "bert"])
def test_core_aten_decomposition_computes_the_same(name: str) -> None:
    module, args = zoo.build(name)
    c = capture(module, args, decompose=True)
    verify(c.graph, deep=True)
    kinds = {op.kind for op in c.graph.ops}
    assert not kinds & {"aten.t.default", "aten.scaled_dot_product_attention.default"}
    with torch.no_grad():
        torch.testing.assert_close(run_captured(c, *args)[0], module(*args), rtol=1e-5, atol=1e-6)


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "slice": lambda x: x[1:3, 2:5],
    "step": lambda x: x[:, 1::2],
    "select": lambda x: x[2],
    "transpose": lambda x: x.t(),
    "permute": lambda x: x.permute(1, 0),
    "expand": lambda x: x[1].unsqueeze(0).expand(5, 6),
    "reshape": lambda x: x.reshape(2, 12),
    "diagonal": lambda x: x.diagonal(1),
    "as_strided": lambda x: x.as_strided((2, 3), (6, 2), 7),
    "split": lambda x: x.split([1, 3], 0),
    "chunk": lambda x: x.chunk(3, 1),
    "unbind": lambda x: x.unbind(1),
    "unfold": lambda x: x.unfold(1, 3, 2),
    "narrow_of_transpose": lambda x: x.t()[2:4, 1:],
    "other_type": lambda x: x[1].view(torch.int32)[3:],
    "half_type": lambda x: x.view(torch.float16)[2:, 3:5],
}


class Viewing(nn.Module):
    def __init__(self, view: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Any:
        return self.view(x + 1)


@pytest.mark.parametrize("name", VIEWS)
def test_views_share_the_bytes_that_torch_shares(name: str) -> None:
    x = torch.arange(24.0).reshape(4, 6)
    real = tree_leaves(VIEWS[name](x.clone()))
    graph = capture(Viewing(VIEWS[name]), (x,)).graph
    base, *views = graph.ops
    assert all(op.is_view for op in views)
    values = graph.value_table
    for ref, expected in zip(graph.output_names, real, strict=True):
        value, offset = values[ref], 0
        while value.alias:
            assert value.alias.kind == "view" and isinstance(value.alias.offset_bytes, int)
            offset += value.alias.offset_bytes
            value = values[value.alias.of]
        assert value == base.result
        type_ = tensor_type(values[ref])
        assert offset == expected.storage_offset() * expected.element_size()
        assert (type_.shape, type_.element_strides) == (tuple(expected.shape), expected.stride())


def test_copies_do_not_alias() -> None:
    copies = Viewing(lambda x: (x.t().contiguous(), x.clone(), torch.cat([x, x]), x.to(torch.float64)))
    graph = capture(copies, (torch.zeros(4, 6),)).graph
    assert all(graph.value_table[name].alias is None for name in graph.output_names)


class Counting(nn.Module):
    """Overwrites a buffer, an input, and a part of an intermediate result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("hidden", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        self.steps += 1
        self.hidden.copy_(x[0])
        state.mul_(2)
        y = x * 1
        y[:, 0] = 7
        return y.relu_() + self.steps + state


def test_mutations_are_extra_outputs() -> None:
    x, state = torch.randn(2, 3), torch.ones(3)
    c = capture(Counting(), (x, state))
    verify(c.graph)
    assert c.num_user_outputs == 1
    assert sorted(c.mutations.values()) == ["b_hidden", "b_steps", "state"]
    out = run_captured(c, x, state)
    assert torch.equal(state, torch.ones(3))
    twin = Counting()
    torch.testing.assert_close(out[0], twin(x, state))
    new = {"b_steps": twin.steps, "b_hidden": twin.hidden, "state": state}
    for index, name in c.mutations.items():
        torch.testing.assert_close(out[index], new[name])


def test_statistics_of_batch_norm_in_training_are_mutations() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    c = capture(module, (torch.randn(2, 3, 6, 6),))
    written = {c.graph.value_table[n].name for n in c.mutations.values()}
    assert written == {"b_1_running_mean", "b_1_running_var", "b_1_num_batches_tracked"}


class Nested(nn.Module):
    def forward(self, pair: tuple[Tensor, int], *, table: dict[str, Tensor], flag: bool = True) -> Any:
        x, times = pair
        unused = table["a"] * 3
        return {"sum": x * times + table["b"], "none": None, "number": 3, "x": (x, unused.shape[0])}


def test_nested_arguments_and_results() -> None:
    x, a, b = torch.randn(2), torch.randn(4), torch.randn(2)
    c = capture(Nested(), ((x, 5),), {"table": {"a": a, "b": b}})
    own = c.flatten(((x, 5),), {"table": {"a": a, "b": b}})
    assert [id(t) for t in own] == [id(x), id(a), id(b)]
    assert [i.source for i in c.graph.inputs] == ["pair_0", "table_a", "table_b"]
    assert [id(t) for t in c.example_inputs] == [id(x), id(a), id(b)]
    result = c.unflatten(run(c.graph, own))
    torch.testing.assert_close(result["sum"], x * 5 + b)
    assert result["none"] is None and result["number"] == 3
    assert torch.equal(result["x"][0], x) and result["x"][1] == 4


def test_arguments_of_another_structure_are_refused() -> None:
    c = capture(Nested(), ((torch.ones(2), 5),), {"table": {"a": torch.ones(4), "b": torch.ones(2)}})
    with pytest.raises(UserError) as caught:
        c.flatten((torch.ones(2),), {"table": {"a": torch.ones(4), "b": torch.ones(2)}})
    assert caught.value.code == "MP311"


def test_keyword_arguments_may_come_in_any_order() -> None:
    class Two(nn.Module):
        def forward(self, *, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    a, b = torch.ones(2), torch.zeros(2)
    c = capture(Two(), (), {"b": b, "a": a})
    assert [id(t) for t in c.flatten((), {"a": a, "b": b})] == [id(t) for t in c.example_inputs]


def test_tied_weights_are_one_input() -> None:
    c = zoo.captured("gpt")
    shared = [i.source for i in c.graph.inputs if i.role == "param" and "layers" not in i.source]
    assert shared == ["embedding.weight", "norm.weight", "norm.bias"]
    assert len({id(t) for t in c.constants.values()}) == len(c.constants)


def scaled(x: Tensor) -> Tensor:
    return x * 2  # in a helper


class Places(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"first": nn.Linear(3, 3)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner["first"](x)  # through torch's module
        x = scaled(x)
        return torch.sigmoid(x)  # directly


def line_of(comment: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (found,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"  # {comment}"))
    return found


def test_ops_carry_the_users_line_and_module() -> None:
    graph = capture(Places(), (torch.randn(2, 3),)).graph
    for kind, comment, module in (
        ("aten.addmm.default", "through torch's module", "inner.first"),
        ("aten.mul.Tensor", "in a helper", ""),
        ("aten.sigmoid.default", "directly", ""),
    ):
        loc = only(graph, kind).loc
        assert loc is not None and Path(loc.file) == Path(__file__)
        assert (loc.line, loc.module) == (line_of(comment), module)


def test_ops_of_a_library_model_carry_its_own_file() -> None:
    module, args = zoo.build("gpt2")
    inner = module.model
    assert isinstance(inner, nn.Module)
    locs = [op.loc for op in capture(inner, args).graph.ops if op.loc]
    files = {Path(loc.file).name for loc in locs}
    assert "modeling_gpt2.py" in files and not any("torch" in Path(f).parts for f in files)
    assert "transformer.h.1.attn.c_attn" in {loc.module for loc in locs}


def test_graph_is_named_after_the_model() -> None:
    assert zoo.captured("resnet18").graph.name == "ResNet"


# --- dynamic sizes ---------------------------------------------------------------------------


def dim(name: str, low: int, high: int) -> Any:
    return torch.export.Dim(name, min=low, max=high)


@pytest.mark.parametrize("name", ["resnet18", "vit", "unet", "evoformer", "gru"])
def test_dynamic_batch_is_a_symbol_with_its_range(name: str) -> None:
    module, args = zoo.build(name)
    batch = dim("batch", 1, 16)
    twice = tuple(torch.cat([a, a]) if a.shape[0] == 1 else a for a in args)
    c = capture(module, twice, dynamic_shapes=tuple({0: batch} for _ in args))
    verify(c.graph)
    (symbol,) = c.graph.symbols
    assert (symbol.low, symbol.high) == (1, 16)
    assert tensor_type(c.graph.inputs[-1].value).shape[0] == Sym(symbol.name)
    for size in (1, 5):
        given = tuple(torch.randn(size, *a.shape[1:]) for a in args)
        with torch.no_grad():
            want = tree_leaves(module(*given))
        for a, b in zip(run_captured(c, *given), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sizes_that_depend_on_symbols_are_exact() -> None:
    """Every size of a graph captured with free height equals the eager one at other heights."""
    stages = [conv_bn(3, 8, 7, 2), nn.ReLU(), conv_bn(8, 16, 3, 2), nn.Conv2d(16, 16, 3, 1, 2, 2)]
    module = nn.Sequential(*stages, nn.Conv2d(16, 4, 1), nn.Flatten()).eval()
    shapes = ({2: dim("height", 33, 80)},)
    c = capture(module, (torch.randn(1, 3, 40, 32),), dynamic_shapes=shapes)
    (symbol,) = c.graph.symbols
    for height in (33, 49, 80):
        x = torch.randn(1, 3, height, 32)
        with torch.no_grad(), Recorder() as eager:
            module(x)
        bound = {symbol.name: height}
        types = [[tensor_type(v).bound(bound) for v in op.values] for op in c.graph.ops]
        got = [[(t.shape, t.element_strides) for t in results] for results in types]
        real = [results for name, results in eager.calls if name not in IDLE]
        assert got == [[(shape, strides) for _, shape, strides in results] for results in real]


def test_offsets_can_be_symbolic() -> None:
    class Second(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x + 1])[x.shape[0] :] * 2

    c = capture(Second(), (torch.randn(8, 3),), dynamic_shapes=({0: dim("n", 2, 64)},))
    alias = only(c.graph, "aten.slice.Tensor").result.alias
    assert alias is not None and isinstance(alias.offset_bytes, Sym)
    (symbol,) = c.graph.symbols
    assert alias.offset_bytes.evaluate({symbol.name: 7}) == 7 * 3 * 4
    x = torch.randn(7, 3)
    torch.testing.assert_close(run_captured(c, x)[0], (x + 1) * 2)


def test_two_symbols_and_products() -> None:
    class Outer(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.outer(x, y).reshape(-1).cumsum(0)

    shapes = ({0: dim("n", 2, 9)}, {0: dim("m", 2, 7)})
    c = capture(Outer(), (torch.ones(4), torch.ones(3)), dynamic_shapes=shapes)
    assert sorted(s.high for s in c.graph.symbols) == [7, 9]
    assert tensor_type(c.graph.ops[-1].result).bounded(c.graph.symbol_table).shape == (63,)
    assert run_captured(c, torch.ones(5), torch.ones(2))[0].shape == (10,)


def test_a_range_that_the_model_does_not_treat_alike_is_an_error() -> None:
    module, _ = zoo.build("resnet18")
    with pytest.raises(UserError) as caught:
        capture(module, (torch.ones(1, 3, 48, 32),), dynamic_shapes=({2: dim("height", 16, 80)},))
    assert caught.value.code == "MP312" and "16 <= height <= 80" in caught.value.notes[0][0]


def test_a_size_without_upper_bound_is_an_error() -> None:
    with pytest.raises(UserError) as caught:
        capture(nn.ReLU(), (torch.ones(4),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    assert caught.value.code == "MP304" and "Dim" in caught.value.help


# --- exported programs -----------------------------------------------------------------------


def test_saved_programs_give_the_same_graph(tmp_path: Path) -> None:
    from mplan.capture import load_model

    module, args = zoo.build("unet")
    program = torch.export.export(module, args, dynamic_shapes=({0: dim("b", 1, 8)},))
    file = tmp_path / "unet.pt2"
    torch.export.save(program, file)
    loaded = capture_loaded(load_model(str(file)))
    direct = capture_exported(program)
    verify(loaded.graph)
    text = [str(op.results) + op.kind for op in loaded.graph.ops]
    assert text == [str(op.results) + op.kind for op in direct.graph.ops]
    assert loaded.graph.symbols == (Symbol(loaded.graph.symbols[0].name, 1, 8),)
    with torch.no_grad():
        torch.testing.assert_close(run_captured(loaded, *args)[0], module(*args))
