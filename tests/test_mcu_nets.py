"""The int8 networks of the microcontroller benchmark: published sizes, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.mcu_nets import NAMES, int8_network
from mplan.ir.interp import run
from mplan.ir.ops import graph_macs
from mplan.ir.types import TensorType

pytestmark = pytest.mark.slow

#: Multiply-accumulates of each, as its authors count them (fully connected layers included).
MACS = {"mcunet-vww1": 11_578_816, "mcunet-in3": 81_785_520, "mbv2-0.35": 23_499_152}
WIDTHS = {"mcunet-vww1": 80, "mcunet-in3": 176, "mbv2-0.35": 144}


@pytest.mark.parametrize("name", MACS)
def test_a_network_is_integers_from_end_to_end(name: str) -> None:
    assert name in NAMES
    network = int8_network(name)
    graph = network.graph
    assert not network.notes
    assert graph_macs(graph) == MACS[name]
    (entry,) = (i.value for i in graph.inputs if i.role == "input")
    assert isinstance(entry.type, TensorType)
    assert entry.type.shape == (1, WIDTHS[name], WIDTHS[name], 3)
    types = {v.type.dtype.value for v in graph.values if isinstance(v.type, TensorType)}
    assert types == {"i8", "i32"}


def test_a_network_is_the_same_for_the_same_seed() -> None:
    first, second = (int8_network("proxyless-w0.3") for _ in range(2))
    assert first.graph == second.graph
    assert all(torch.equal(t, second.constants[name]) for name, t in first.constants.items())
    (name,) = (i.value.name for i in first.graph.inputs if i.role == "input")
    (scores,) = run(first.graph, {**first.constants, name: first.example_inputs[0]})
    assert scores.shape == (1, 1000) and scores.unique().numel() > 100
