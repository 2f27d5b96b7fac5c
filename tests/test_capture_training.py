"""Training steps: the joint graph's loss and gradients are those of eager autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from mplan.capture import Captured, capture_training
from mplan.diagnostics import UserError
from mplan.ir.interp import run
from mplan.ir.types import Symbol
from mplan.ir.verify import verify


def run_step(c: Captured, *args: Any) -> tuple[Any, ...]:
    own = iter(c.flatten(args))
    names = [i.value.name for i in c.graph.inputs]
    values = [c.constants[n] if n in c.constants else next(own) for n in names]
    return run(c.graph, [v.detach() for v in values])


@pytest.mark.parametrize("name", zoo.TRAINABLE)
def test_loss_gradients_and_statistics_match_autograd(name: str) -> None:
    module, args, loss = zoo.build_training(name)
    c = zoo.captured_training(name)
    verify(c.graph, deep=True)
    out = run_step(c, *args)
    want = loss(module(*args))
    want.backward()
    got_loss, gradients = c.unflatten(out)
    torch.testing.assert_close(got_loss, want.detach())
    expected = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert set(gradients) == set(expected)
    for parameter, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9)
    sources = {i.value.name: i.source for i in c.graph.inputs}
    assert [sources[c.gradients[i]] for i in sorted(c.gradients)] == list(gradients)
    buffers = dict(module.named_buffers())
    for index, value in c.mutations.items():
        torch.testing.assert_close(out[index], buffers[sources[value]])


def test_batch_norm_updates_its_statistics() -> None:
    c = zoo.captured_training("autoencoder")
    sources = {i.value.name: i.source for i in c.graph.inputs}
    assert {sources[n].rpartition(".")[2] for n in c.mutations.values()} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_the_graph_keeps_forward_results_for_the_backward_pass() -> None:
    """The longest lifetime in a training graph spans most of it; in inference it does not."""
    graph = zoo.captured_training("resnet18").graph
    last = {name: i for i, op in enumerate(graph.ops) for name in op.operands}
    span = max(last.get(v.name, i) - i for i, op in enumerate(graph.ops) for v in op.values)
    assert span > 0.9 * len(graph.ops)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)) * self.frozen  # the forward line


def test_backward_ops_carry_the_place_of_their_forward_op() -> None:
    graph = capture_training(Model(), (torch.randn(2, 3),), torch.mean).graph
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (line,) = (i for i, text in enumerate(lines, 1) if text.endswith("  # the forward line"))
    op = next(op for op in graph.ops if op.kind == "aten.tanh_backward.default")
    assert op.loc is not None and (Path(op.loc.file), op.loc.line) == (Path(__file__), line)
    products = [op for op in graph.ops if op.kind == "aten.mm.default"]
    assert [op.loc.module for op in products if op.loc] == ["layer"] * len(products)


def test_parameters_without_gradient_are_left_out() -> None:
    c = capture_training(Model(), (torch.randn(2, 3),), torch.mean)
    _, gradients = c.unflatten(tuple(range(len(c.graph.outputs))))
    assert list(gradients) == ["layer.weight", "layer.bias"]
    assert "unused.weight" not in {i.source for i in c.graph.inputs}


def test_gradient_of_an_input() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    model = Model()
    c = capture_training(model, (x,), torch.mean)
    _, gradients = c.unflatten(run_step(c, x.detach()))
    assert set(gradients) == {"layer.weight", "layer.bias", "x"}
    model(x).mean().backward()
    torch.testing.assert_close(gradients["x"], x.grad)


def test_dynamic_batch_of_a_training_step() -> None:
    torch.manual_seed(0)
    model = Model()
    batch = torch.export.Dim("batch", min=2, max=32)
    c = capture_training(model, (torch.randn(4, 3),), torch.sum, dynamic_shapes={"x": {0: batch}})
    verify(c.graph)
    assert c.graph.symbols == (Symbol(c.graph.symbols[0].name, 2, 32),)
    x = torch.randn(9, 3)
    model(x).sum().backward()
    _, gradients = c.unflatten(run_step(c, x))
    torch.testing.assert_close(gradients["layer.weight"], model.layer.weight.grad)


def test_capture_leaves_the_model_as_it_was() -> None:
    module, args, loss = zoo.build_training("autoencoder")
    before = {n: t.clone() for n, t in module.state_dict().items()}
    capture_training(module, args, loss)
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda out: out, "shape (2, 4)"),
        (lambda out: (out.sum(), out.mean()), "several values"),
        (lambda out: out.detach().sum(), "does not depend"),
    ],
)
def test_losses_that_have_no_gradient_are_refused(loss: Any, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        capture_training(Model(), (torch.randn(2, 3),), loss)
    assert caught.value.code == "MP309" and reason in caught.value.message


def test_results_that_the_mask_leaves_out_are_absent() -> None:
    """The fake kernel yields a gradient for the input; the real one does not."""
    module = nn.InstanceNorm2d(3, affine=True)
    x = torch.randn(2, 3, 4, 4)
    c = capture_training(module, (x,), lambda out: out.square().mean())
    op = next(op for op in c.graph.ops if op.kind == "aten.native_batch_norm_backward.default")
    assert [value is None for value in op.results] == [True, False, False]
    _, gradients = c.unflatten(run_step(c, x))
    module(x).square().mean().backward()
    torch.testing.assert_close(gradients["weight"], module.weight.grad)


def test_results_that_share_bytes_with_each_other_count_apart() -> None:
    """The backward pass of a fused LSTM returns one tensor as two gradients."""
    module = nn.LSTM(4, 5, batch_first=True)
    graph = capture_training(module, (torch.randn(2, 3, 4),), lambda out: out[0].sum()).graph
    verify(graph, deep=True)
    op = next(op for op in graph.ops if "rnn_layer_backward" in op.kind)
    assert all(v.alias is None for v in op.values)
