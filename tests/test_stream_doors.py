"""Streams from the front doors: what is asked for, what is planned, what is reported."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import mplan
from mplan.diagnostics import InfeasibleError, UserError
from mplan.ir.check import check
from mplan.ir.graph import Graph
from mplan.ir.parser import parse
from mplan.ir.plan import Certificate
from mplan.ir.plan_json import load_plan
from mplan.options import Options
from mplan.viz import render_curves
from tests.cli_runner import run_cli
from tests.quantized_nets import QuantizedNet

TARGET = "stm32f746"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 network in a file."""
    path = tmp_path_factory.mktemp("nets") / "net.mpir"
    path.write_text(f"{inverted_residuals(QuantizedNet(40, 32, 3))}\n")
    return path


def inverted_residuals(net: QuantizedNet) -> Graph:
    """A first convolution, two inverted residuals, a mean."""
    x = net.conv("x", 8, (3, 3), (2, 2), (1, 1, 1, 1))
    y = net.conv(net.conv(x, 24), 24, (3, 3), padding=(1, 1, 1, 1), groups=24)
    x = net.add(x, net.conv(y, 8))
    y = net.conv(net.conv(x, 20), 20, (3, 3), (2, 2), (1, 1, 1, 1), groups=20)
    return net.graph(net.mean(net.conv(y, 12)))


def test_the_report_compares_the_ways_in_which_images_arrive(net: Path) -> None:
    found = {}
    for way in ("whole", "rows", "flash"):
        done = run_cli("plan", net, "-t", TARGET, "--input", way, "--json")
        assert done.code == 0, done.err
        stream = done.json["stream"]
        assert stream["input"] == way and stream["streams"] > 0 and stream["budget_bytes"] is None
        assert stream["arena_bytes"][way] == done.json["regions"]["sram"]["peak_bytes"]
        assert stream["lower_bound_bytes"] <= stream["arena_bytes"][way] < stream["layered_bytes"]
        found[way] = stream["arena_bytes"]
    for way in found:
        assert all(found[way][way] <= f[way] <= 1.02 * found[way][way] for f in found.values())
    assert found["rows"]["whole"] >= 40 * 32 * 3 > found["rows"]["rows"]
    words = run_cli("plan", net, "-t", TARGET, "--input", "rows").err
    assert "image: arrives by rows, arena " in words and "if it lies in the arena " in words


def test_nothing_is_streamed_that_fits_unless_it_is_asked_for(net: Path) -> None:
    done = run_cli("plan", net, "-t", TARGET, "--json")
    assert done.json["stream"] is None
    whole = done.json["regions"]["sram"]["peak_bytes"]
    tight = run_cli("plan", net, "-t", TARGET, "--budget", whole - 1, "--json").json
    assert tight["stream"]["budget_bytes"] == whole - 1 and tight["mac_factor"] == 1.0
    assert tight["regions"]["sram"]["peak_bytes"] < whole


def test_work_buys_bytes_and_both_limits_hold(net: Path) -> None:
    ask = ("plan", net, "-t", TARGET, "--input", "flash", "--json")
    least = run_cli(*ask).json
    more = run_cli(*ask, "--max-mac-factor", 1.5).json
    bytes_ = more["regions"]["sram"]["peak_bytes"]
    assert bytes_ < least["regions"]["sram"]["peak_bytes"]
    assert 1 < more["mac_factor"] <= 1.5
    budget = run_cli(*ask, "--budget", bytes_).json
    assert budget["regions"]["sram"]["peak_bytes"] <= bytes_
    assert budget["mac_factor"] <= more["mac_factor"]
    both = run_cli(*ask, "--budget", bytes_, "--max-mac-factor", 1.5)
    assert both.json["stream"]["mac_factor"] == budget["stream"]["mac_factor"]
    over = run_cli(*ask, "--budget", bytes_, "--max-mac-factor", 1)
    assert over.code == 4 and over.json["error"]["code"] == "MP235"
    assert f"{least['stream']['lower_bound_bytes']:,} B at 1.000" in over.json["error"]["help"]


def test_rows_arrive_as_often_as_they_may(net: Path) -> None:
    """Each scan of the image makes a strip of columns; more of them never need more bytes."""
    ask = ("plan", net, "-t", TARGET, "--input", "rows", "--max-mac-factor", 1.5, "--json")
    found = [run_cli(*ask, "--scans", n).json["stream"] for n in (1, 2, 5, 64)]
    assert [s["scans"] <= n for s, n in zip(found, (1, 2, 5, 64), strict=True)] == [True] * 4
    assert found[0]["scans"] == 1 and found[-1]["scans"] > 2
    for fewer, more in pairwise(found):
        assert more["lower_bound_bytes"] <= fewer["lower_bound_bytes"]
    assert found[-1]["arena_bytes"]["rows"] < found[0]["arena_bytes"]["rows"]
    words = run_cli(*ask[:-1], "--scans", 64).err
    assert f"image: arrives by rows in {found[-1]['scans']} scans, arena " in words
    points = run_cli("plan", net, "-t", TARGET, "--pareto", "--input", "rows", "--scans", 64, "--json")
    assert len(points.json["points"]) > 1 and points.json["points"][-1]["strips"] > 0


def test_options_of_streams(net: Path) -> None:
    made = mplan.plan(net, target=TARGET, input="rows", max_mac_factor=1.1, limit=2)
    assert made.report.stream is not None and made.report.stream.input == "rows"
    for wrong in (
        *({"max_mac_factor": 0.9}, {"max_mac_factor": "much"}, {"input": "columns"}),
        *({"scans": 2}, {"scans": 2, "input": "flash"}),
        *({"scans": n, "input": "rows"} for n in (0, 1.5, "some")),
    ):
        with pytest.raises(UserError, match="MP423"):
            Options.parse(wrong)
    with pytest.raises(UserError, match="MP421"):
        mplan.plan(net, target="cpu", input="rows")
    with pytest.raises(InfeasibleError, match="MP235"):
        mplan.plan(net, target=TARGET, budget=100)


def test_the_certificate_of_streams_is_checked(net: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert run_cli("plan", net, "-t", TARGET, "--input", "rows", "-o", path).code == 0
    assert run_cli("check", path).code == 0
    _, file = load_plan(path)
    good = file.plan.certificate("stream:sram")
    assert good is not None and good.bound_kind == "cuts" and good.status == "optimal"

    def faults(changed: Certificate) -> tuple[str, ...]:
        others = tuple(c for c in file.plan.certificates if c is not good)
        plan = replace(file.plan, certificates=(changed, *others))
        return tuple(v.reason for v in check(file.problem, plan))

    assert faults(good) == ()
    assert faults(replace(good, lower_bound_bytes=good.lower_bound_bytes - 1, status="feasible")) == ()
    for wrong in (
        replace(good, value_bytes=good.value_bytes + 1),
        replace(good, lower_bound_bytes=good.lower_bound_bytes - 1),
        replace(good, lower_bound_bytes=good.lower_bound_bytes + 1),
        replace(good, status="feasible"),
        replace(good, bound_kind="exhaustive"),
        replace(good, subject="stream:ram"),
    ):
        assert faults(wrong) == ("bound",), wrong
    other = file.plan.certificate("schedule:sram")
    assert other is not None
    plan = replace(file.plan, certificates=(replace(other, bound_kind="cuts", witness=()),))
    assert [v.reason for v in check(file.problem, plan)] == ["bound"]


def test_the_frontier_is_what_plans_need(net: Path) -> None:
    done = run_cli("plan", net, "-t", TARGET, "--pareto", "--json")
    assert done.code == 0, done.err
    points = done.json["points"]
    assert {p["input"] for p in points} == {"whole", "rows", "flash"}
    for way in ("whole", "rows", "flash"):
        mine = [p for p in points if p["input"] == way]
        assert mine[0]["mac_factor"] == 1.0
        for cheap, small in pairwise(mine):
            assert cheap["arena_bytes"] > small["arena_bytes"] and cheap["macs"] < small["macs"]
    flash = [p for p in points if p["input"] == "flash"]
    assert len(flash) >= 3 and flash[-1]["strips"] > 0
    for point in flash:
        factor = point["macs"] / done.json["macs"]
        made = mplan.plan(net, target=TARGET, input="flash", max_mac_factor=factor)
        least = made.file.plan.certificate("stream:sram")
        assert least is not None and least.lower_bound_bytes == point["live_bytes"]
        assert made.file.plan.peak_bytes("sram") <= point["arena_bytes"]


def test_the_frontier_is_drawn(net: Path, tmp_path: Path) -> None:
    svg, html = tmp_path / "f.svg", tmp_path / "f.html"
    asked = ("plan", net, "-t", TARGET, "--pareto", "--input", "flash", "--budget", "1700")
    done = run_cli(*asked, "--svg", svg, "--html", html)
    assert done.code == 0 and "from flash" in done.err and "by rows" not in done.err
    frontier = mplan.pareto(net, target=TARGET, input="flash", budget="1700")
    assert svg.read_text() == render_curves(frontier)
    namespace = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(svg.read_text())
    titles = [c.findtext(f"{namespace}title") for c in root.iter(f"{namespace}circle")]
    shown = [t for t in titles if t]
    assert len(shown) == len(frontier.points)
    for title, point in zip(shown, frontier.points, strict=True):
        assert title.startswith(f"{point.arena_bytes:,} B at {point.mac_factor:.3f}")
    assert "limit 1.66 KiB" in "".join(root.itertext())
    page = html.read_text()
    assert f"<title>{parse(net.read_text()).name} " in page and str(net.parent) not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert page.count("<tr>") == 1 + len(frontier.points)


def test_what_has_no_rows_has_no_frontier(tmp_path: Path) -> None:
    path = tmp_path / "linear.mpir"
    path.write_text(
        "graph @g(%x: f32[4,4]) {\n  %y: f32[4,4] = aten.exp.default(self=%x)\n  return %y\n}\n"
    )
    done = run_cli("plan", path, "-t", TARGET, "--pareto")
    assert done.code == 4 and "MP235" in done.err
    assert run_cli("plan", path, "-t", "cpu", "--pareto").code == 2
    for ignored in (("-o", tmp_path / "plan.json"), ("--minimise",)):
        done = run_cli("plan", path, "-t", TARGET, "--pareto", *ignored)
        assert done.code == 2 and "MP423" in done.err
