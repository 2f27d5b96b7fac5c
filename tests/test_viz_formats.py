"""SVG, text, Chrome trace and PyTorch snapshot: valid in their format, true to the plan."""

from __future__ import annotations

import json
import pickle
import pickletools
from collections import defaultdict
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from plan_factory import first_fit, plan_file, random_problem, spilled_plan_file
from rich.cells import cell_len

from mplan.ir.plan import Plan, PlanFile, Problem, Region
from mplan.viz import chrome_trace, memory_snapshot, render_svg, render_text

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '</title><script>alert("x")</script>&日本語テンソル\x00\x1b[31m\ud800'

#: The opcodes that the viewer at pytorch.org/memory_viz can read (torch/utils/viz/MemoryViz.js).
VIEWER_OPCODES = {
    *("PROTO", "FRAME", "MEMOIZE", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE", "SHORT_BINUNICODE", "BINUNICODE", "BINGET"),
    *("LONG_BINGET", "TUPLE1", "TUPLE2", "TUPLE3"),
}


def evil_file() -> PlanFile:
    problem = random_problem(12, 2)
    buffers = tuple(replace(b, name=f"{i}{EVIL}", shape=EVIL) for i, b in enumerate(problem.buffers))
    steps = tuple(replace(s, name=EVIL, kind=EVIL, where=EVIL) for s in problem.steps)
    nasty = replace(problem, name=EVIL, buffers=buffers, steps=steps)
    return PlanFile(nasty, first_fit(nasty), EVIL, EVIL, EVIL)


def empty_file() -> PlanFile:
    problem = Problem("empty", (Region("arena", 1024),), ())
    return PlanFile(problem, Plan(problem.digest, (), ()))


FILES = {
    "net": plan_file(),
    "large": plan_file(3000, capacity=None),
    "spill": spilled_plan_file(),
    "evil": evil_file(),
    "empty": empty_file(),
}


def drawn(file: PlanFile) -> list[Any]:
    return [
        p for p in file.plan.placements if p.end > p.start and file.problem.buffers[p.buffer].size_bytes
    ]


def live(file: PlanFile, region: str) -> list[int]:
    """Live bytes by position, the slow and plain way."""
    sizes = [b.size_bytes for b in file.problem.buffers]
    here = [p for p in file.plan.placements if p.region == region]
    return [
        sum(sizes[p.buffer] for p in here if p.start <= t < p.end) for t in range(file.problem.horizon)
    ]


@pytest.mark.parametrize("name", FILES)
def test_svg_is_xml_with_one_box_per_placement(name: str) -> None:
    file = FILES[name]
    root = ElementTree.fromstring(render_svg(file))
    boxes = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert len(boxes) == len(drawn(file))
    assert root.find(f".//{SVG}script") is None
    width = float(root.get("width", 0))
    for box in boxes:
        assert 0 <= float(box.get("x")) <= float(box.get("x")) + float(box.get("width")) <= width


def test_svg_is_to_scale() -> None:
    file = FILES["net"]
    root = ElementTree.fromstring(render_svg(file))
    boxes = {
        r.find(f"{SVG}title").text.split(",")[0]: r
        for r in root.iter(f"{SVG}rect")
        if r.find(f"{SVG}title") is not None
    }
    spans = file.problem.lifetimes(file.plan.order)
    area = {name: float(box.get("width")) * float(box.get("height")) for name, box in boxes.items()}
    for i, b in enumerate(file.problem.buffers):
        if b.regions[0] == "sram" and b.size_bytes > 8000:
            start, end = spans[i]
            unit = area[b.name] / ((end - start) * b.size_bytes)
            assert unit == pytest.approx(area["image"] / (spans[0][1] * 12288), rel=0.01)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("width", [48, 80, 120])
def test_text_fits_its_width(name: str, width: int) -> None:
    text = render_text(FILES[name], width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert all(c.isprintable() or c == "\n" for c in text)


def test_text_names_peak_holders_and_proof() -> None:
    file = FILES["net"]
    text, curve = render_text(file), live(file, "sram")
    peak = curve.index(max(curve))
    assert f"peak at step {peak}" in text
    assert f"live peak {max(curve) / 1024:.1f} KiB" in text
    for p in file.plan.placements:
        if p.region == "sram" and p.start <= peak < p.end:
            assert file.problem.buffers[p.buffer].name in text
    for certificate in file.plan.certificates:
        assert f"{certificate.subject}: " in text
    assert text.count("solver") == len(file.plan.certificates)


def test_bars_follow_the_live_bytes() -> None:
    file = FILES["net"]
    lines = render_text(file, 80).split("\n\n")[1].splitlines()[1:9]
    rows = [line.split("┤")[1].ljust(68) for line in lines]
    heights = [sum(" ▁▂▃▄▅▆▇█".index(row[c]) for row in rows) for c in range(68)]
    curve = live(file, "sram")
    top = file.plan.peak_bytes("sram")
    for column, height in enumerate(heights):
        first, last = column * len(curve) // 68, (column + 1) * len(curve) // 68
        wanted = max(curve[first : max(last, first + 1)]) * 64 / top
        assert wanted <= height < wanted + 1


@pytest.mark.parametrize("name", FILES)
def test_chrome_trace_is_json_with_matched_slices(name: str) -> None:
    file = FILES[name]
    trace = json.loads(json.dumps(chrome_trace(file)))
    events = trace["traceEvents"]
    assert all({"ph", "pid", "name"} <= set(e) for e in events)
    slices = [e for e in events if e["ph"] == "X"]
    assert [e["name"] for e in slices] == [file.problem.steps[i].name for i in file.plan.order]
    begun = {(e["pid"], e["id"]): e for e in events if e["ph"] == "b"}
    ended = {(e["pid"], e["id"]): e for e in events if e["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert len(begun) == len(drawn(file))
    assert all(begun[key]["ts"] < ended[key]["ts"] for key in begun)


def test_chrome_trace_counts_live_bytes() -> None:
    file = FILES["spill"]
    events = chrome_trace(file)["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    counters = defaultdict(list)
    for e in events:
        if e["ph"] == "C":
            counters[names[e["pid"]]].append(e["args"]["bytes"])
    assert counters == {region: [*live(file, region), 0] for region in ("sram", "dram")}


@pytest.mark.parametrize("name", FILES)
def test_snapshot_unpickles_in_the_viewer_and_replays(name: str) -> None:
    file = FILES[name]
    data = memory_snapshot(file)
    assert data[:2] == b"\x80\x04"
    assert {op.name for op, _, _ in pickletools.genops(data)} <= VIEWER_OPCODES
    snapshot = pickle.loads(data)
    regions = [r.name for r in file.problem.regions if file.plan.peak_bytes(r.name)]
    for device, region in enumerate(regions):
        segment = snapshot["segments"][device]
        held, most = {}, 0
        for event in snapshot["device_traces"][device][1:]:
            if event["action"] == "alloc":
                assert event["addr"] not in held
                held[event["addr"]] = event["size"]
            elif event["action"] == "free_completed":
                assert held.pop(event["addr"]) == event["size"]
            most = max(most, sum(held.values()))
        assert most == max(live(file, region))
        assert segment["total_size"] == file.plan.peak_bytes(region)
        assert sum(b["size"] for b in segment["blocks"]) == segment["total_size"]
        left = [b["size"] for b in segment["blocks"] if b["state"] == "active_allocated"]
        assert sorted(left) == sorted(held.values())


def test_snapshot_is_read_by_torch() -> None:
    from torch.cuda import _memory_viz

    file = FILES["net"]
    snapshot = pickle.loads(memory_snapshot(file))
    results = sum(b.live_out for b in file.problem.buffers)
    log = _memory_viz.trace(snapshot)
    assert log.count("\ndel ") == log.count("# free completed") == len(drawn(file)) - results
    assert "total_reserved" in _memory_viz.segsum(snapshot)
    kept = _memory_viz.memory(snapshot, format_flamegraph=str)
    assert next(b.name for b in file.problem.buffers if b.live_out) in kept
    assert "MemoryViz" in _memory_viz.trace_plot(snapshot)


def test_snapshot_categories_satisfy_the_viewer() -> None:
    for trace in pickle.loads(memory_snapshot(FILES["net"]))["device_traces"]:
        assert all("category" in event for event in trace)
        assert "unknown" in {event["category"] for event in trace}


def test_frames_carry_the_source_line() -> None:
    snapshot = pickle.loads(memory_snapshot(FILES["net"]))
    event = next(
        e for e in snapshot["device_traces"][0] if e["frames"][0]["name"].startswith("gelu_15")
    )
    assert event["frames"][0]["filename"] == "model.py"
    assert event["frames"][0]["line"] == 25
    assert event["frames"][1]["name"] == "step 15: gelu.15"
