"""Every model of the zoo through the whole CPU pipeline: planned bytes are measured bytes.

For inference of all models and a training step of some: the graph verifies, prints and parses back,
is planned and checked, runs in the poisoned arena of the interpreter and in the real arena; outputs
equal eager's, the measured peak equals the planned one, and is no higher than eager's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from zoo import TRAINABLE, ZOO, build, build_training, captured, captured_training

from mplan.capture import Captured
from mplan.ir import interp
from mplan.ir.arena import run_in_arena
from mplan.ir.check import check
from mplan.ir.parser import parse
from mplan.ir.verify import verify
from mplan.options import Options
from mplan.pipeline import Planned, plan_graph
from mplan.runtime import heap
from mplan.runtime.program import Program

pytestmark = pytest.mark.slow

CASES = [(name, False) for name in ZOO] + [(name, True) for name in TRAINABLE]
IDS = [f"{name}-{'training' if training else 'inference'}" for name, training in CASES]
#: The scope has pytest run all tests of a graph one after the other, so that it is captured once.
every_graph = pytest.mark.parametrize(("name", "training"), CASES, ids=IDS, scope="module")


@lru_cache(maxsize=1)
def capture_of(name: str, training: bool) -> Captured:
    found = captured_training(name) if training else captured(name)
    return found.with_write_back()


@lru_cache(maxsize=1)
def planned(name: str, training: bool) -> Planned:
    heap.install()
    found = capture_of(name, training)
    return plan_graph(found.graph, found.constants, Options(limit=10))


def inputs_of(found: Captured, graph: Any) -> list[Any]:
    supply = iter(found.example_inputs)
    constants = found.constants
    names = (i.value.name for i in graph.inputs)
    return [constants[n] if n in constants else next(supply) for n in names]


def peak_in_lines(tape: heap.Tape) -> int:
    """The peak of what the tape saw when every block takes whole lines of 64 bytes.

    That is how an allocator with aligned blocks hands them out, ours and PyTorch's alike.
    """
    level = peak = 0
    for event in tape.events:
        size = -(-tape.allocations[event.index].size_bytes // 64) * 64
        level += size if isinstance(event, heap.Alloc) else -size
        peak = max(peak, level)
    return peak


def eager(name: str, training: bool) -> tuple[tuple[Any, ...], int]:
    """Eager's outputs, flattened, and the peak above its inputs and weights."""
    from torch.utils._pytree import tree_leaves

    if training:
        module, args, loss = build_training(name)
        params = [p for p in module.parameters() if p.requires_grad]
        with heap.record() as tape:
            value = loss(module(*args))
            grads = torch.autograd.grad(value, params, allow_unused=True)
        found = (value.detach(), *(g for g in grads if g is not None))
        return found, peak_in_lines(tape)
    module, args = build(name)
    with torch.no_grad(), heap.record() as tape:
        out = module(*args)
    return tuple(x for x in tree_leaves(out) if isinstance(x, torch.Tensor)), peak_in_lines(tape)


def ours(name: str, training: bool) -> tuple[tuple[Any, ...], Program, int]:
    """The outputs of the program, flattened like eager's, and its measured peak."""
    from torch.utils._pytree import tree_leaves

    plan = planned(name, training)
    program = Program(plan.graph, plan.lowered, plan.plan)
    found = capture_of(name, training)
    inputs = inputs_of(found, plan.graph)
    with heap.measure() as meter:
        outputs = tuple(program(inputs))
        peak = meter.peak_bytes
    if training:
        loss, grads = found.unflatten(outputs)
        module, _, _ = build_training(name)
        ordered = [grads[n] for n, p in module.named_parameters() if n in grads]
        return (loss, *ordered), program, peak
    leaves = tree_leaves(found.unflatten(outputs))
    return tuple(x for x in leaves if isinstance(x, torch.Tensor)), program, peak


@every_graph
def test_graph_verifies_and_reads_back(name: str, training: bool) -> None:
    graph = capture_of(name, training).graph
    verify(graph)
    assert parse(str(graph)) == graph


@every_graph
def test_plan_holds_and_beats_the_captured_order(name: str, training: bool) -> None:
    plan = planned(name, training)
    assert check(plan.lowered.problem, plan.plan) == ()
    arena = plan.plan.certificate("allocate:dram")
    assert arena is not None
    assert plan.plan.peak_bytes("dram") == arena.value_bytes
    schedule = plan.plan.certificate("schedule:dram")
    assert schedule is not None
    assert schedule.value_bytes <= plan.baseline_peak_bytes
    assert arena.gap <= 0.01


@every_graph
def test_outputs_equal_eager_and_planned_bytes_are_measured(name: str, training: bool) -> None:
    ours(name, training)  # kernels that PyTorch prepares on first use are not what is measured
    got, program, peak = ours(name, training)
    eager(name, training)
    expected, eager_peak = eager(name, training)
    fused = any(op.kind == "mplan.attention" for op in program.graph.ops)
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        if fused:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(mine, theirs)
    assert program.fallbacks == ()
    assert program.misses == 0
    assert peak == program.arena_bytes
    assert peak <= eager_peak


@every_graph
def test_poisoned_arena_of_the_interpreter_agrees(name: str, training: bool) -> None:
    plan = planned(name, training)
    inputs = inputs_of(capture_of(name, training), plan.graph)
    expected = interp.run(plan.graph, inputs)
    got = run_in_arena(plan.graph, plan.lowered, plan.plan, inputs)
    for mine, theirs in zip(got, expected, strict=True):
        if isinstance(theirs, torch.Tensor):  # kernels may sum in another order at other addresses
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
