"""Irregular networks are scheduled to proven optimality within seconds."""

from __future__ import annotations

import pytest

from benchmarks.nas_graphs import CELLS, WIRINGS, cell_network, instances, wired_network
from mplan.passes.live import live_peak
from mplan.passes.schedule import schedule
from tests.problems import is_valid

pytestmark = pytest.mark.slow

INSTANCES = instances()


@pytest.mark.parametrize("name", INSTANCES)
def test_irregular_networks_are_proven_optimal(name: str) -> None:
    problem = INSTANCES[name]
    ordered = schedule(problem, limit_s=30)
    assert is_valid(problem, ordered.order)
    assert live_peak(problem, ordered.order, "arena")[0] == ordered.certificate.value_bytes
    assert ordered.certificate.status == "optimal"


@pytest.mark.parametrize("name", ["nasnet_6_cifar", "pnasnet_4_imagenet", "randwire_ws_1"])
def test_their_captured_order_leaves_a_tenth_to_gain(name: str) -> None:
    problem = INSTANCES[name]
    captured, _ = live_peak(problem, range(len(problem.steps)), "arena")
    assert schedule(problem, limit_s=30).certificate.value_bytes < 0.9 * captured


@pytest.mark.parametrize("family", CELLS)
def test_cells_have_one_exit_and_use_every_state(family: str) -> None:
    problem = cell_network(family)
    assert sum(b.live_out for b in problem.buffers) == 1
    for cell in CELLS[family]:
        states = set(range(2 + len(cell.edges) // 2))
        assert states == {e.state for e in cell.edges} | set(cell.concat)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_random_wirings_follow_their_seed(wiring: str) -> None:
    assert wired_network(wiring, 1) == wired_network(wiring, 1) != wired_network(wiring, 2)
    problem = wired_network(wiring, 3)
    assert is_valid(problem, tuple(range(len(problem.steps))))
