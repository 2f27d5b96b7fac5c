"""torch.compile(backend="mplan"): bit-equal results in a measured arena, inference and training."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from mplan import backend
from mplan.diagnostics import MplanError
from mplan.ir.plan_json import load_plan
from mplan.runtime import heap


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2)
        self.norm = nn.GroupNorm(4, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        x = nn.functional.gelu(self.norm(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    backend._COMPILED.clear()
    heap.install()


def compiled(model: nn.Module, **kwargs: object) -> nn.Module:
    return torch.compile(model, backend="mplan", **kwargs)  # type: ignore[arg-type]


def report(role: str) -> backend.GraphReport:
    gc.collect()
    found = [r for r in backend.reports() if r.role == role]
    assert len(found) == 1, found
    return found[0]


def measured(call: object, *args: object) -> tuple[object, int]:
    with heap.measure() as meter:
        result = call(*args)  # type: ignore[operator]
    return result, meter.peak_bytes


@pytest.mark.parametrize("model", [ConvNet(), Mlp()], ids=["conv", "mlp"])
def test_inference_is_bit_equal_and_peaks_as_planned(model: nn.Module) -> None:
    model.eval()
    x = torch.randn(4, 3, 32, 32) if isinstance(model, ConvNet) else torch.randn(8, 64)
    fast = compiled(model)
    with torch.no_grad():
        expected, eager_peak = measured(model, x)
        fast(x)
        got, peak = measured(fast, x)
    assert torch.equal(got, expected)
    r = report("inference")
    assert (r.fallbacks, r.misses) == ((), 0)
    assert peak == r.peak_bytes
    assert peak <= eager_peak


def test_outputs_alone_survive_the_call() -> None:
    model = ConvNet().eval()
    x = torch.randn(4, 3, 32, 32)
    fast = compiled(model)
    with torch.no_grad():
        fast(x)
        gc.collect()
        before = heap.level_bytes()
        out = fast(x)
        assert heap.level_bytes() - before == out.nbytes
        del out
        gc.collect()
        assert heap.level_bytes() == before


def test_inputs_and_weights_are_not_kept_alive() -> None:
    model = Mlp().eval()
    fast = compiled(model)
    x = torch.randn(8, 64)
    with torch.no_grad():
        fast(x)
    gone = weakref.ref(x)
    weight = weakref.ref(model.up.weight)
    del x, fast, model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    assert weight() is None


def test_training_step_is_bit_equal() -> None:
    torch.manual_seed(1)
    model, twin = ConvNet(), ConvNet()
    twin.load_state_dict(model.state_dict())
    fast = compiled(twin)
    x, y = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
    for _ in range(3):
        for net in (model, fast):
            net.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), name
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(p, q)
    for role in ("forward", "backward"):
        assert report(role).fallbacks == ()
        assert report(role).misses == 0


def test_one_plan_serves_all_smaller_sizes() -> None:
    model = Mlp().eval()
    fast = compiled(model, dynamic=True)
    with torch.no_grad():
        for n in (32, 8, 19, 2):
            x = torch.randn(n, 64)
            assert torch.equal(fast(x), model(x))
        first = report("inference")
        _, peak = measured(fast, torch.randn(32, 64))
        assert peak == first.peak_bytes
        x = torch.randn(50, 64)
        assert torch.equal(fast(x), model(x))
    assert report("inference").peak_bytes > first.peak_bytes
    assert report("inference").misses == 0


def test_a_bounded_size_is_planned_for_its_bound() -> None:
    model = Mlp().eval()
    fast = compiled(model)
    x = torch.randn(8, 64)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=128)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
        before = report("inference")
        big = torch.randn(128, 64)
        assert torch.equal(fast(big), model(big))
    assert report("inference").digest == before.digest
    assert before.peak_bytes >= 128 * 64 * 4 * 5


def test_graph_breaks_make_several_graphs() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(x) * 2
        torch._dynamo.graph_break()
        return torch.cos(y) + x

    x = torch.randn(100, 10)
    assert torch.equal(compiled(broken)(x), broken(x))  # type: ignore[arg-type]
    gc.collect()
    assert sum(r.role == "inference" for r in backend.reports()) == 2


def test_numbers_of_two_types_are_planned_apart() -> None:
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.add(x, 1), torch.add(x, 1.0)

    x = torch.arange(1000)
    for got, expected in zip(compiled(both)(x), both(x), strict=True):  # type: ignore[arg-type]
        assert torch.equal(got, expected)
    assert (report("inference").fallbacks, report("inference").misses) == ((), 0)


def test_a_pipeline_without_profile_runs_beside_the_arena() -> None:
    model = ConvNet().eval()
    fast = compiled(model, options={"pipeline": "canonicalize,inplace,schedule,allocate"})
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))
    reasons = {f.reason for f in report("inference").fallbacks}
    assert any("profile_scratch" in r for r in reasons)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"target": "stm32f746"}, "MP427"),
        ({"pipeline": "canonicalize"}, "MP421"),
        ({"quantize": "int8"}, "MP423"),
    ],
)
def test_options_that_make_no_program_are_refused(options: dict[str, str], code: str) -> None:
    with pytest.raises(Exception, match=code):
        compiled(Mlp(), options=options)(torch.randn(2, 64))


def test_in_place_changes_of_inputs_happen() -> None:
    def bump(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(y)
        return x * 2

    x, y = torch.zeros(7), torch.arange(7.0)
    out = compiled(bump)(x, y)  # type: ignore[arg-type]
    assert torch.equal(x, torch.arange(7.0))
    assert torch.equal(out, 2 * torch.arange(7.0))


def test_unknown_options_are_refused_with_a_suggestion() -> None:
    fast = compiled(Mlp(), options={"budgets": "1MiB"})
    with pytest.raises(Exception, match="unknown option 'budgets'") as info:
        fast(torch.randn(2, 64))
    cause = info.value if isinstance(info.value, MplanError) else info.value.__cause__
    text = str(info.value) + str(cause)
    assert "MP422" in text


def test_a_budget_that_cannot_hold_names_both_numbers() -> None:
    fast = compiled(ConvNet().eval(), options={"budget": "4KiB"})
    with pytest.raises(Exception, match=r"4,096 B"), torch.no_grad():
        fast(torch.randn(4, 3, 32, 32))


def test_dump_holds_the_graph_after_every_pass(tmp_path: Path) -> None:
    fast = compiled(Mlp().eval(), options={"dump": str(tmp_path)})
    with torch.no_grad():
        fast(torch.randn(4, 64))
    names = sorted(p.name for p in tmp_path.glob("*.mpir"))
    assert names[0].startswith("00-canonicalize")
    assert any("allocate" in n for n in names)


def test_a_plan_saved_from_the_backend_checks(tmp_path: Path) -> None:
    from mplan.ir.check import check_file
    from mplan.ir.plan_json import save_plan

    fast = compiled(Mlp().eval())
    with torch.no_grad():
        fast(torch.randn(4, 64))
    graph = next(iter(backend._COMPILED))
    assert graph.planned is not None
    path = tmp_path / "plan.json"
    save_plan(path, graph.planned.file("mlp"))
    document, file = load_plan(path)
    assert check_file(document, file) == ()
    assert json.loads(path.read_text())["plan_digest"] == graph.report().digest


def test_constant_masks_are_known_while_dynamo_traces() -> None:
    from models.sequence import Gpt

    model = Gpt().eval()
    tokens = torch.randint(0, 64, (2, 12))
    fast = compiled(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(fast(tokens), model(tokens))
    gc.collect()
    plans = [g.planned for g in backend._COMPILED if g.planned]
    ops = [op for plan in plans for op in plan.graph.ops if op.kind == "mplan.attention"]
    assert [op.arg("is_causal") for op in ops] == [True, True]
