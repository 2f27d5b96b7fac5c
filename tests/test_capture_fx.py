"""Graphs that Dynamo and AOTAutograd hand to a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import zoo
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from mplan.capture import Captured, capture_fx
from mplan.capture.fx import Source
from mplan.diagnostics import UserError
from mplan.ir.graph import tensor_type
from mplan.ir.interp import run
from mplan.ir.types import ScalarType, Sym
from mplan.ir.verify import verify


class Backend:
    """Collects captures of all graphs; at each call the graph must compute what torch computes."""

    def __init__(self, unbounded: int | None = None) -> None:
        self.found: list[Captured] = []
        self.calls = 0
        self.unbounded = unbounded

    def __call__(self, module: GraphModule, inputs: Sequence[Any]) -> Any:
        c = capture_fx(module, inputs, unbounded=self.unbounded)
        verify(c.graph, deep=True)
        self.found.append(c)

        def call(*args: Any) -> Any:
            mine = run(c.graph, c.flatten(args))
            theirs = module(*args)
            for a, b in zip(mine[: c.num_user_outputs], theirs, strict=True):
                if isinstance(b, Tensor):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
                else:
                    assert a == b
            self.calls += 1
            return theirs

        return call


def compile_aot(module: Any, backend: Backend, dynamic: bool = False) -> Any:
    torch._dynamo.reset()

    def boxed(module: GraphModule, inputs: Sequence[Any]) -> Any:
        return make_boxed_func(backend(module, inputs))

    compiler = aot_autograd(fw_compiler=boxed, bw_compiler=boxed, keep_inference_input_mutations=True)
    return torch.compile(module, backend=compiler, dynamic=dynamic)


@pytest.mark.parametrize("name", ["resnet18", "vit_fused", "gpt", "qwen3"])
def test_inference_graphs(name: str) -> None:
    module, args = zoo.build(name)
    backend = Backend()
    with torch.no_grad():
        compile_aot(module, backend)(*args)
    assert backend.calls == len(backend.found) >= 1


@pytest.mark.parametrize("name", ["gru", "autoencoder", "bert"])
def test_forward_and_backward_graphs(name: str) -> None:
    module, args, loss = zoo.build_training(name)
    backend = Backend()
    loss(compile_aot(module, backend)(*args)).backward()
    assert backend.calls == len(backend.found) == 2


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum(0)
        return x * self.total


def test_overwritten_inputs_are_in_place_results() -> None:
    module, backend = Overwriting(), Backend()
    with torch.no_grad():
        compile_aot(module, backend)(torch.ones(2, 3))
    (c,) = backend.found
    verify(c.graph)
    written = [v for v in c.graph.values if v.alias and v.alias.kind == "inplace"]
    assert [c.graph.producers[v.name].kind for v in written] == ["aten.copy_.default"]
    buffer = next(i for i in c.graph.inputs if i.value.name == written[0].alias.of)
    assert tensor_type(buffer.value).shape == (3,)


def test_symbols_come_as_inputs() -> None:
    backend = Backend(unbounded=1 << 40)
    with torch.no_grad():
        compile_aot(nn.Linear(4, 2), backend, dynamic=True)(torch.ones(5, 4))
    (c,) = backend.found
    (symbol,) = c.graph.symbols
    assert symbol.high == 1 << 40 and symbol.low <= 5
    (given,) = (i for i in c.graph.inputs if i.role == "symbol")
    assert given.value.type == ScalarType("int") and given.source == symbol.name
    assert tensor_type(c.graph.ops[-1].result).shape == (Sym(symbol.name), 2)
    roles = [i.role for i in c.graph.inputs]
    assert [isinstance(x, torch.SymInt) for x in c.example_inputs] == [r == "symbol" for r in roles]


def test_symbols_without_bound_are_an_error_unless_one_is_given() -> None:
    def strict(module: GraphModule, inputs: Sequence[Any]) -> Any:
        with pytest.raises(UserError, match="no upper bound") as caught:
            capture_fx(module, inputs)
        assert caught.value.code == "MP304"
        seen.append(module)
        return module.forward

    seen: list[GraphModule] = []
    torch._dynamo.reset()
    with torch.no_grad():
        compiler = aot_autograd(fw_compiler=strict)
        torch.compile(nn.Linear(4, 2), backend=compiler, dynamic=True)(torch.ones(5, 4))
    assert seen


def test_dynamo_graphs_are_traced_to_operators() -> None:
    """Dynamo's own graph has functions, methods and mutation."""
    module, backend = Overwriting(), Backend()
    torch._dynamo.reset()
    x = torch.ones(2, 3)
    with torch.no_grad():
        torch.compile(module, backend=backend)(x)
    (c,) = backend.found
    assert backend.calls == 1
    given = [torch.full(tensor_type(i.value).shape, 2.0) for i in c.graph.inputs]
    out = run(c.graph, given)
    (index,) = c.mutations
    total = next(t for t in given if t.shape == (3,)) + next(t for t in given if t.ndim == 2).sum(0)
    torch.testing.assert_close(out[index], total)
    assert c.graph.ops[0].loc is not None and c.graph.ops[0].loc.file == __file__


def graph_of(body: Any, *args: Any) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(body, tracing_mode="fake", _allow_non_fake_inputs=True)(*args)


def test_overwritten_intermediates_are_traced_again() -> None:
    def body(x: Tensor) -> Tensor:
        y = x + 1
        part = y[0]
        part.mul_(3)
        return y.relu_() * 2

    x = torch.randn(2, 3)
    gm = graph_of(body, x)
    assert any("_." in str(n.target) for n in gm.graph.nodes)
    c = capture_fx(gm, (x,))
    verify(c.graph, deep=True)
    assert not any(v.alias and v.alias.kind == "inplace" for v in c.graph.values)
    torch.testing.assert_close(run(c.graph, c.flatten((x,)))[0], body(x))


def test_constants_of_a_graph_become_inputs() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    x = torch.randn(2, 3)
    c = capture_fx(graph_of(lambda x: x * table, x), (x,))
    (name,) = c.constants
    item = next(i for i in c.graph.inputs if i.value.name == name)
    assert item.role == "const" and torch.equal(c.constants[name], table)


def test_sources_name_and_fix_inputs() -> None:
    weight, x = torch.randn(3, 3), torch.randn(2, 3)
    gm = graph_of(lambda w, x: x @ w, weight, x)
    sources = [Source("param", "layer.weight", weight), Source("input", "x")]
    c = capture_fx(gm, (weight, x), name="layer", sources=sources)
    assert [(i.role, i.source) for i in c.graph.inputs] == [("param", "layer.weight"), ("input", "x")]
    assert c.input_leaves == (1,) and next(iter(c.constants.values())) is weight
    assert c.graph.name == "layer"
