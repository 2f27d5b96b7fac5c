"""The passes that clean a graph: IR in and out, the same numbers, and no needless change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from hypothesis import given, settings
from strategies import random_inputs, runnable_graph
from torch import Tensor, nn

from mplan.capture import capture
from mplan.ir.graph import Graph
from mplan.ir.interp import run, run_in_arena
from mplan.ir.parser import parse
from mplan.ir.plan import Region
from mplan.ir.storage import Layout, problem_of
from mplan.ir.verify import verify
from mplan.passes.base import Context
from mplan.passes.canonicalize import Canonicalize
from mplan.passes.fold_batch_norm import FoldBatchNorm
from mplan.passes.inplace import Inplace
from mplan.passes.planner import solve
from mplan.passes.registry import parse_pipeline

PAIRS = sorted((Path(__file__).parent / "data" / "passes").glob("*.mpir"))
CLEANING = "canonicalize,inplace,inplace{conditional=true}"


def context(constants: Any = None, **fields: Any) -> Context:
    return Context(Layout(Region("arena")), constants=constants or {}, **fields)


def transform(graph: Graph, pipeline: str, ctx: Context) -> Graph:
    for pass_ in parse_pipeline(pipeline):
        graph = pass_.run(graph, ctx)
        verify(graph, deep=True)
        assert pass_.run(graph, ctx) is graph, f"{pass_} finds more to do in its own result"
    return graph


def invented_constants(graph: Graph) -> dict[str, Tensor]:
    return {
        i.value.name: invented(i.value.type) if i.value.type.dtype.is_float else integers(i.value.type)
        for i in graph.inputs
        if i.role in ("param", "buffer", "const")
    }


def invented(type_: Any) -> Tensor:
    return torch.rand(type_.shape) + 0.5


def integers(type_: Any) -> Tensor:
    """Small numbers as int8, fixed-point factors as int32."""
    low, high = (-5, 6) if type_.dtype.itemsize == 1 else (2**30, 2**31)
    return torch.randint(low, high, type_.shape).to(getattr(torch, type_.dtype.torch_name))


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_pairs(path: Path) -> None:
    text, _, expected = path.read_text(encoding="utf-8").partition("// becomes\n")
    pipeline = text.splitlines()[0].removeprefix("// pipeline: ")
    graph = parse(text)
    verify(graph, deep=True)
    constants = invented_constants(graph)
    ctx = context(constants)
    result = transform(graph, pipeline, ctx)
    if expected.strip() == "the same":
        assert result is graph
    else:
        assert str(result) == str(parse(expected))
    symbols = {s.name: 3 for s in graph.symbols}
    types = {i.value.name: i.value.type.bound(symbols) for i in graph.inputs}  # type: ignore[union-attr]
    inputs = {
        name: torch.rand(type_.shape) if type_.dtype.is_float else integers(type_)
        for name, type_ in types.items()
        if name not in constants
    }
    torch.manual_seed(1)
    before = run(graph, {**inputs, **constants})
    torch.manual_seed(1)
    after = run(result, {**inputs, **ctx.constants})
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@given(runnable_graph())
@settings(max_examples=150, deadline=None)
def test_any_graph_keeps_its_results(graph: Graph) -> None:
    inputs = random_inputs(graph)
    expected = run(graph, inputs)
    cleaned = transform(graph, CLEANING, context())
    results = run(cleaned, inputs)
    lowered = problem_of(cleaned, Layout(Region("arena")))
    plan = solve(lowered.problem, limit_s=1.0)
    planned = run_in_arena(cleaned, lowered, plan, inputs)
    for a, b, c in zip(results, expected, planned, strict=True):
        assert torch.equal(a, b) and torch.equal(c, b)


def outputs_of(graph: Graph, ctx: Context, c: Any) -> tuple[Any, ...]:
    own = iter(c.example_inputs)
    names = [i.value.name for i in graph.inputs]
    values = [ctx.constants[n] if n in ctx.constants else next(own) for n in names]
    return run(graph, [v.detach() for v in values])


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo_computes_the_same_after_cleaning(name: str) -> None:
    c = zoo.captured(name)
    ctx = context(c.constants)
    before = outputs_of(c.graph, ctx, c)
    cleaned = transform(c.graph, CLEANING, ctx)
    for a, b in zip(outputs_of(cleaned, ctx, c), before, strict=True):
        assert torch.equal(a, b)
    assert any(v.alias and v.alias.kind == "inplace" for v in cleaned.values)
    folded = transform(cleaned, "fold_batch_norm", ctx)
    for a, b in zip(outputs_of(folded, ctx, c), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("name", zoo.TRAINABLE)
def test_training_steps_compute_the_same_after_cleaning(name: str) -> None:
    c = zoo.captured_training(name)
    ctx = context(c.constants)
    before = outputs_of(c.graph, ctx, c)
    cleaned = transform(c.graph, f"{CLEANING},fold_batch_norm", ctx)
    assert len(cleaned.ops) < len(c.graph.ops)
    for a, b in zip(outputs_of(cleaned, ctx, c), before, strict=True):
        assert torch.equal(a, b)


def peak(graph: Graph) -> int:
    problem = problem_of(graph, Layout(Region("arena"))).problem
    return solve(problem, limit_s=5.0).peak_bytes("arena")


@pytest.mark.parametrize("name", ["resnet18", "vit", "gpt2", "unet"])
def test_cleaning_never_costs_memory(name: str) -> None:
    graph = zoo.captured(name).graph
    clean = Canonicalize().run(graph, context())
    assert peak(Inplace().run(clean, context())) <= peak(clean) <= peak(graph)


# --- batch norm ------------------------------------------------------------------------------


def randomised(*layers: nn.Module) -> nn.Module:
    """Layers in evaluation mode whose norms have statistics that matter."""
    torch.manual_seed(3)
    module = nn.Sequential(*layers).eval()
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 3)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module


FOLDABLE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (randomised(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (2, 3, 7, 7)),
    "no_bias": (randomised(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), (2, 3, 7, 7)),
    "no_affine": (randomised(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), (1, 3, 5, 5)),
    "eps": (randomised(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.1)), (1, 3, 5, 5)),
    "depthwise": (randomised(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)), (1, 6, 5, 5)),
    "groups": (randomised(nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)), (1, 6, 5, 5)),
    "transposed": (randomised(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), (1, 4, 5, 5)),
    "transposed_groups": (
        randomised(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)),
        (1, 4, 5, 5),
    ),
    "conv1d": (randomised(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)), (2, 3, 9)),
    "conv3d": (randomised(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (1, 2, 4, 4, 4)),
    "linear": (randomised(nn.Linear(5, 7), nn.BatchNorm1d(7)), (3, 5)),
}


@pytest.mark.parametrize("decompose", [False, True], ids=["captured", "core_aten"])
@pytest.mark.parametrize("name", FOLDABLE)
def test_batch_norm_folds_into(name: str, decompose: bool) -> None:
    module, shape = FOLDABLE[name]
    c = capture(module, (torch.randn(shape),), decompose=decompose)
    ctx = context(c.constants)
    folded = transform(c.graph, "canonicalize,fold_batch_norm", ctx)
    assert not any("batch_norm" in op.kind for op in folded.ops)
    assert {i.role for i in folded.inputs} == {"input", "const"}
    assert set(ctx.constants) == {i.value.name for i in folded.inputs if i.role == "const"}
    (got,), want = outputs_of(folded, ctx, c), module(c.example_inputs[0])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
    assert ctx.notes == ["folded 1 batch norms into the layers before them"]


class Shared(nn.Module):
    """One layer at three places, two of them before norms of their own."""

    def __init__(self, layer: nn.Module, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.layer, self.norms = layer, randomised(a, b)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norms
        return self.layer(b(self.layer(a(self.layer(x)))))


@pytest.mark.parametrize("pipeline", ["fold_batch_norm", "canonicalize,fold_batch_norm"])
@pytest.mark.parametrize("linear", [False, True], ids=["conv", "linear"])
def test_layers_that_share_a_weight_fold_apart(linear: bool, pipeline: str) -> None:
    if linear:
        module = Shared(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    else:
        module = Shared(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    c = capture(module, (torch.randn(2, 3) if linear else torch.randn(1, 3, 4, 4),))
    ctx = context(c.constants)
    folded = transform(c.graph, pipeline, ctx)
    kept = [i.source for i in folded.inputs if i.role == "param" and "layer" in i.source]
    assert kept == ["layer.weight", "layer.bias"]
    (got,), want = outputs_of(folded, ctx, c), module(c.example_inputs[0])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


class Unfoldable(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor, weight: Tensor) -> Any:
        if self.kind == "computed_weight":
            y = torch.conv2d(x, weight)
        else:
            y = self.conv(x)
        if self.kind == "activation_between":
            y = y.relu()
        n = self.norm(y)
        return {"used_twice": n + y, "returned": (n, y)}.get(self.kind, n)


@pytest.mark.parametrize(
    "kind", ["used_twice", "returned", "activation_between", "computed_weight", "training"]
)
def test_batch_norm_stays(kind: str) -> None:
    module = Unfoldable(kind).train(kind == "training")
    c = capture(module, (torch.randn(2, 2, 3, 3), torch.randn(2, 2, 1, 1)))
    ctx = context(c.constants)
    assert FoldBatchNorm().run(c.graph, ctx) is c.graph
    assert ctx.constants is c.constants and not ctx.notes
