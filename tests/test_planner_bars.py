"""The figures that the planner has reached on the instances of the project, held.

Bars on orders are proven optima unless a comment says otherwise. Limits leave a slow machine with two
cores several times the seconds that are needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mplan.passes.allocate import allocate
from mplan.passes.planner import solve
from mplan.passes.schedule import schedule

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from planner_generated import skips
from planner_packings import packings
from planner_sets import DATA, SETS, read

pytestmark = pytest.mark.slow

#: Live peak in bytes, and whether it must be proven within the limit in seconds.
GRAPHS = {
    "densenet121.json.gz": (7_225_344, True, 30),
    "gpt2.json.gz": (104_499_200, True, 30),
    "hm_darts_cifar_6.json": (1_622_016, True, 30),
    "hm_nasnet_cifar_6.json.gz": (2_031_616, True, 40),
    "hm_pnas_cifar_6.json.gz": (1_916_928, True, 60),
    "ind_gpt2_tr_1.json.gz": (499_329_024, True, 30),
    "ind_nasnetalarge_inf_0.json.gz": (39_319_008, True, 30),
    "ind_vgg16_tr_1.json": (553_491_712, True, 30),
    "ind_vit_tr_1.json": (346_281_984, True, 30),
    "mobilenet_v2.json": (6_021_120, True, 30),
    "pnasnet5large.json.gz": (33_106_200, True, 40),
    "train_resnet18_b32.json": (730_630_660, False, 12),  # bound 729,025,028
    "train_gpt2_b1_s512.json.gz": (1_332_571_840, True, 30),
    "train_gpt2_96L.json.gz": (8_467_427_008, True, 40),
}

#: The smallest capacity, and whether it must be proven within the limit in seconds.
CAPACITIES = {
    "A": (1_048_576, True, 30),
    "C": (1_039_360, True, 30),
    "E": (1_048_576, True, 30),
    "G": (1_048_576, True, 30),
    "I": (1_048_576, True, 30),
    "J": (1_048_576, False, 12),  # the capacity that MiniMalloc's authors give it
}


@pytest.mark.parametrize("name", GRAPHS)
def test_orders_and_arenas_of_graphs(name: str) -> None:
    peak, proven, limit_s = GRAPHS[name]
    plan = solve(read(DATA / "graphs" / name), limit_s=limit_s)
    ordered = plan.certificate("schedule:arena")
    assert ordered is not None
    assert ordered.value_bytes <= peak
    assert ordered.status == "optimal" or not proven
    assert plan.peak_bytes("arena") <= 1.01 * ordered.value_bytes


@pytest.mark.parametrize("name", CAPACITIES)
def test_smallest_capacities(name: str) -> None:
    capacity, proven, limit_s = CAPACITIES[name]
    problem = read(DATA / "minimalloc" / f"{name}.1048576.csv").unlimited()
    plan = solve(problem, limit_s=limit_s)
    assert plan.peak_bytes("arena") <= capacity
    assert plan.status == "optimal" or not proven


@pytest.mark.parametrize("name", ["pnasnet_4_imagenet", "randwire_ba_1"])
def test_irregular_networks_are_proven_from_end_to_end(name: str) -> None:
    plan = solve(dict(SETS["nas"]())[name](), limit_s=30)
    assert plan.status == "optimal" and plan.gap == 0
    ordered = plan.certificate("schedule:arena")
    assert ordered is not None and plan.peak_bytes("arena") == ordered.lower_bound_bytes


@pytest.mark.parametrize("name", [name for name, _ in packings(3) if name != "dense_I2"])
def test_cut_rectangles_are_put_together_again(name: str) -> None:
    """``dense_I2``, left out, takes 8 s of processor time, which a slow machine may not have."""
    problem = dict(packings(3))[name]()
    assert allocate(problem, limit_s=30).height_bytes <= problem.regions[0].capacity_bytes


def test_ten_thousand_irregular_steps_run_at_the_bound() -> None:
    certificate = schedule(skips(10_000), limit_s=40).certificate
    assert (certificate.status, certificate.bound_kind) == ("optimal", "closure")


def test_irregular_steps_beyond_those_refined_as_a_whole() -> None:
    """The bound is the highest minimum cut found; the order is 2.4 % above it."""
    certificate = schedule(skips(5_000), limit_s=15).certificate
    assert certificate.value_bytes <= 57_992
    assert certificate.lower_bound_bytes >= 56_629
