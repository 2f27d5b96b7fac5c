"""The HTML page in a real browser: what it shows and does, and that it asks the network nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_factory import first_fit, plan_file, random_problem, spilled_plan_file

from mplan.ir.check import check
from mplan.ir.plan import Buffer, Placement, Plan, PlanFile, Problem, Region
from mplan.viz import render_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"no browser: the tests of the HTML page need one of {', '.join(BROWSERS)} on PATH")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield launched
        launched.close()


class Viewer:
    """A page with a plan in it, and everything that went wrong or over the wire."""

    def __init__(self, browser: Any, folder: Path, html: str, **context: Any) -> None:
        self.path = folder / "plan.html"
        self.path.write_text(html, encoding="utf-8")
        size = context.pop("viewport", {"width": 1280, "height": 800})
        self.context = browser.new_context(viewport=size, **context)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(self.path.as_uri())
        self.drawn()

    def js(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def drawn(self) -> None:
        """Wait until a frame after this moment has been drawn."""
        self.js(
            "new Promise((done) => { const n = mplan.draws; mplan.request();"
            " const look = () => mplan.draws > n ? done() : requestAnimationFrame(look); look(); })"
        )

    def locate(self, name: str, plan: int | None = None) -> dict[str, float]:
        where = self.page.evaluate(
            "([name, plan]) => mplan.locate(name, plan ?? undefined)", [name, plan]
        )
        assert where is not None, f"{name} is not drawn"
        return where

    def click(self, name: str, plan: int | None = None) -> None:
        where = self.locate(name, plan)
        self.page.mouse.click(where["x"], where["y"])
        self.drawn()

    def pixel(self, name: str) -> tuple[int, int, int]:
        """The colour in the lower right quarter of a buffer, away from its label."""
        self.drawn()
        return tuple(
            self.page.evaluate(
                """(name) => {
                  const s = mplan.stage, plan = s.plan, ratio = devicePixelRatio;
                  const id = plan.boxAt(plan.index.get(name), s.regionNumber, 0);
                  const [x, y, w, h] = s.rect(id);
                  const at = [(x + w * 0.9) * ratio, (y + h * 0.85) * ratio];
                  return [...s.ctx.getImageData(...at, 1, 1).data.slice(0, 4)];
                }""",
                name,
            )
        )

    @property
    def panel(self) -> str:
        return self.page.inner_text("#panel").replace("\u00a0", " ")


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    opened: list[Viewer] = []

    def open_(html: str, **context: Any) -> Viewer:
        opened.append(Viewer(browser, tmp_path, html, **context))
        return opened[-1]

    yield open_
    for viewer in opened:
        assert viewer.errors == []
        assert viewer.requests == [viewer.path.as_uri()], "the page went to the network"
        viewer.context.close()


def spans_of(file: PlanFile) -> dict[str, tuple[int, int]]:
    spans = file.problem.lifetimes(file.plan.order)
    return {b.name: span for b, span in zip(file.problem.buffers, spans, strict=True)}


def held_at(file: PlanFile, region: str, position: int) -> dict[str, int]:
    spans = spans_of(file)
    return {
        b.name: b.size_bytes
        for b in file.problem.buffers
        if b.regions[0] == region and spans[b.name][0] <= position < spans[b.name][1]
    }


def peak_of(file: PlanFile, region: str) -> int:
    totals = [sum(held_at(file, region, t).values()) for t in range(file.problem.horizon)]
    return totals.index(max(totals))


def test_the_plans_of_these_tests_are_valid() -> None:
    for file in (plan_file(), plan_file(slack=4096), spilled_plan_file()):
        assert check(file.problem, file.plan) == ()


def test_page_has_no_address_in_it() -> None:
    html = render_html(plan_file(slack=4096), plan_file())
    assert re.findall(r"""\w+://|(?:src|href|action)\s*=|url\(|@import""", html) == []


def test_policy_forbids_all_but_the_inlined_script_and_style() -> None:
    html = render_html(plan_file())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "unsafe" not in policy[1]


def test_facts_of_the_plan_are_on_the_page(show: Any) -> None:
    file = plan_file()
    page = show(render_html(file)).page
    header = page.inner_text("header")
    for text in (file.model, file.target, file.producer, file.plan.digest[:12], "feasible, gap"):
        assert text in header
    assert page.get_attribute(f'[title="{file.plan.digest}"]', "title") == file.plan.digest
    cards = page.inner_text("nav")
    assert f"{file.plan.peak_bytes('sram') / 1024:.1f} KiB" in cards.replace("\u00a0", " ")
    assert "of 160 KiB" in cards
    assert "optimal" in page.inner_text('[data-region="flash"]')


def test_peak_panel_lists_what_is_held(show: Any) -> None:
    file = plan_file()
    viewer = show(render_html(file))
    peak = peak_of(file, "sram")
    held = held_at(file, "sram", peak)
    assert f"Step {peak} · {file.problem.steps[file.plan.order[peak]].name}" in viewer.panel
    shown = viewer.page.eval_on_selector_all(".holders b", "(all) => all.map((b) => b.textContent)")
    assert sorted(shown) == sorted(held)
    sizes = [held[name] for name in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert f"{sum(held.values()) / 1024:.1f} KiB" in viewer.panel
    assert "first-fit" in viewer.panel
    assert "working set of" in viewer.panel


def test_click_on_a_buffer_tells_all_about_it(show: Any) -> None:
    file = plan_file()
    viewer = show(render_html(file))
    index, buffer = max(
        ((i, b) for i, b in enumerate(file.problem.buffers) if b.kind == "intermediate"),
        key=lambda pair: pair[1].size_bytes,
    )
    viewer.click(buffer.name)
    start, end = spans_of(file)[buffer.name]
    place = next(p for p in file.plan.placements if p.buffer == index)
    writer = next(s for s in file.problem.steps if index in s.writes)
    reader = [s for s in file.problem.steps if index in s.reads][-1]
    wanted = (
        buffer.name,
        f"({buffer.size_bytes:,} B)",
        buffer.shape,
        buffer.dtype,
        f"{writer.name} at step {start} ({writer.kind})",
        buffer.where,
        f"{reader.name} at step {end - 1}, its last use",
        f"sram [{place.offset:,}, {place.offset + buffer.size_bytes:,})",
        f"[{start}, {end})",
    )
    for text in wanted:
        assert text in viewer.panel
    viewer.page.keyboard.press("Escape")
    assert "Peak of sram" in viewer.panel


def test_results_of_the_model_outlive_the_run(show: Any) -> None:
    file = plan_file()
    viewer = show(render_html(file))
    viewer.click(next(b.name for b in file.problem.buffers if b.live_out))
    assert "the model’s result" in viewer.panel


def test_hover_shows_a_tooltip(show: Any) -> None:
    viewer = show(render_html(plan_file()))
    where = viewer.locate("image")
    viewer.page.mouse.move(where["x"], where["y"])
    assert viewer.page.inner_text("#tip b") == "image"
    assert "12,288 B" in viewer.page.inner_text("#tip")
    viewer.page.mouse.move(5, 5)
    assert not viewer.page.is_visible("#tip")


def test_search_counts_and_dims(show: Any) -> None:
    file = plan_file()
    viewer = show(render_html(file))
    matching = [b for b in file.problem.buffers if "softmax" in b.name]
    other = next(b for b in file.problem.buffers if b.name == "image")
    biggest = max(matching, key=lambda b: b.size_bytes)
    before = viewer.pixel(biggest.name), viewer.pixel(other.name)
    viewer.page.fill("#search", "softmax")
    after = viewer.pixel(biggest.name), viewer.pixel(other.name)
    assert viewer.page.inner_text("#matches").startswith(f"{len(matching)} ·")
    assert after[0] == before[0]
    assert after[1] != before[1]
    viewer.page.press("#search", "Enter")
    assert viewer.page.inner_text("#panel h2") == matching[0].name


@pytest.mark.parametrize("query", ["(16, 32, 32)", "model.py:25", "gelu.15", "GELU model.py:25"])
def test_search_finds_shapes_sources_and_ops(show: Any, query: str) -> None:
    file = plan_file()
    viewer = show(render_html(file))
    viewer.page.fill("#search", query)
    spans, steps = spans_of(file), file.problem.steps
    found = 0
    for i, b in enumerate(file.problem.buffers):
        op = next((f"{s.name} {s.kind}" for s in steps if i in s.writes), "")
        text = " ".join((b.name, b.shape, b.dtype, b.kind, b.where, op)).lower()
        found += all(word in text for word in query.lower().split())
    assert spans and found
    assert viewer.page.inner_text("#matches").startswith(f"{found} ·")


def brightness(viewer: Viewer) -> float:
    """Mean of the page's background and of an empty spot of the canvas."""
    viewer.drawn()
    colour = viewer.js("getComputedStyle(document.body).backgroundColor")
    numbers = [int(n) for n in re.findall(r"\d+", colour)[:3]]
    return sum(numbers) / 3


def test_dark_mode_follows_the_system_and_the_button(show: Any) -> None:
    dark = show(render_html(plan_file()), color_scheme="dark")
    assert brightness(dark) < 60
    night = dark.pixel("image")
    dark.page.click("#theme")
    assert brightness(dark) > 200
    day = dark.pixel("image")
    assert sum(day[:3]) > sum(night[:3]) + 150


def test_light_mode_is_the_default_of_a_light_system(show: Any) -> None:
    viewer = show(render_html(plan_file()), color_scheme="light")
    assert brightness(viewer) > 200
    viewer.page.keyboard.press("t")
    assert brightness(viewer) < 60


def test_keys_walk_through_steps_and_buffers(show: Any) -> None:
    file = plan_file()
    viewer = show(render_html(file))
    peak = peak_of(file, "sram")
    viewer.page.keyboard.press("ArrowRight")
    assert f"Step {peak + 1} ·" in viewer.panel
    shown = viewer.page.eval_on_selector_all(".holders b", "(all) => all.map((b) => b.textContent)")
    assert sorted(shown) == sorted(held_at(file, "sram", peak + 1))
    viewer.page.keyboard.press("p")
    assert f"Step {peak} ·" in viewer.panel
    offsets = {file.problem.buffers[p.buffer].name: p.offset for p in file.plan.placements}
    upward = sorted(held_at(file, "sram", peak), key=lambda name: offsets[name])
    for name in upward[:2]:
        viewer.page.keyboard.press("ArrowUp")
        assert viewer.page.inner_text("#panel h2") == name
    viewer.page.keyboard.press("/")
    assert viewer.js("document.activeElement.id") == "search"


def test_zoom_pan_and_reset(show: Any) -> None:
    viewer = show(render_html(plan_file()))
    whole = viewer.js("({...mplan.view})")
    where = viewer.locate("softmax_11")
    viewer.page.mouse.move(where["x"], where["y"])
    viewer.page.mouse.wheel(0, -400)
    viewer.drawn()
    zoomed = viewer.js("({...mplan.view})")
    assert zoomed["t1"] - zoomed["t0"] < 0.9 * (whole["t1"] - whole["t0"])
    assert (zoomed["a0"], zoomed["a1"]) == (whole["a0"], whole["a1"])
    assert viewer.locate("softmax_11")["x"] == pytest.approx(where["x"], abs=60)
    viewer.page.mouse.down()
    viewer.page.mouse.move(where["x"] + 80, where["y"], steps=4)
    viewer.page.mouse.up()
    moved = viewer.js("({...mplan.view})")
    assert moved["t0"] < zoomed["t0"]
    viewer.page.click('[data-zoom="reset"]')
    assert viewer.js("({...mplan.view})") == whole


def test_before_and_after_share_a_scale(show: Any) -> None:
    before, after = plan_file(slack=4096), plan_file()
    viewer = show(render_html(after, before))
    canvases = viewer.page.locator(".plot canvas")
    assert [canvases.nth(i).is_visible() for i in range(2)] == [True, True]
    heights = viewer.js("mplan.stages.map((s) => s.y(0) - s.y(1024))")
    assert heights[0] == pytest.approx(heights[1])
    change = after.plan.peak_bytes("sram") / before.plan.peak_bytes("sram") - 1
    assert f"{100 * change:.1f} %" in viewer.page.inner_text('[data-region="sram"]')
    viewer.page.click('[data-mode="before"]')
    assert [canvases.nth(i).is_visible() for i in range(2)] == [True, False]
    viewer.drawn()
    viewer.click("gelu_15", 0)
    assert place_of(before, "gelu_15") in viewer.panel
    viewer.page.click('[data-mode="after"]')
    viewer.drawn()
    assert place_of(after, "gelu_15") in viewer.panel
    assert place_of(after, "gelu_15") != place_of(before, "gelu_15")


def place_of(file: PlanFile, name: str) -> str:
    index = next(i for i, b in enumerate(file.problem.buffers) if b.name == name)
    place = next(p for p in file.plan.placements if p.buffer == index)
    return f"sram [{place.offset:,}, {place.offset + file.problem.buffers[index].size_bytes:,})"


def test_regions_are_tabs_and_copies_are_told(show: Any) -> None:
    file = spilled_plan_file()
    viewer = show(render_html(file))
    viewer.click("t1")
    assert "sram → dram before step 2" in viewer.panel
    assert "dram → sram before step 9" in viewer.panel
    viewer.page.click('[data-region="dram"]')
    assert viewer.page.get_attribute('[data-region="dram"]', "aria-selected") == "true"
    viewer.page.keyboard.press("Escape")
    shown = viewer.page.eval_on_selector_all(".holders b", "(all) => all.map((b) => b.textContent)")
    assert shown == ["t1"]


def test_colours_by_op_and_source(show: Any) -> None:
    viewer = show(render_html(plan_file()))
    viewer.page.select_option("#colour", "op")
    legend = viewer.page.inner_text("#legend")
    assert "softmax" in legend and "layer_norm" in legend
    viewer.page.select_option("#colour", "source")
    assert "model.py:25" in viewer.page.inner_text("#legend")


def test_names_cannot_become_code(show: Any) -> None:
    evil = (
        '</script><script>window.hacked = 1</script>"\'`<img src=x onerror="window.hacked=1">'
        "&lt;日本\u2028\u2029${window.hacked=1}\x00\ud800"
    )
    problem = random_problem(8, 1)
    buffers = tuple(
        replace(b, name=f"{evil}{i}", shape=evil, where=evil) for i, b in enumerate(problem.buffers)
    )
    steps = tuple(replace(s, name=evil, kind=evil, where=evil) for s in problem.steps)
    regions = tuple(replace(r, kind=evil) for r in problem.regions)
    nasty = replace(problem, name=evil, regions=regions, buffers=buffers, steps=steps)
    file = PlanFile(nasty, first_fit(nasty), evil, evil, evil)
    viewer = show(render_html(file, file))
    viewer.page.fill("#search", "hacked")
    viewer.page.select_option("#colour", "op")
    viewer.click(buffers[0].name)
    assert viewer.js("window.hacked") is None
    assert viewer.page.locator("img").count() == 0
    assert '<img src=x onerror="window.hacked=1">' in viewer.page.inner_text("#panel h2")


@pytest.mark.parametrize("width", [360, 700, 1280, 1920])
def test_page_fits_the_window(show: Any, width: int) -> None:
    viewer = show(
        render_html(plan_file(slack=4096), plan_file()), viewport={"width": width, "height": 800}
    )
    assert viewer.js("document.documentElement.scrollWidth") <= width
    canvas = viewer.page.locator("canvas").first.bounding_box()
    assert canvas["height"] > 250 and canvas["width"] > 150


def test_fixed_lifetimes_without_steps(show: Any) -> None:
    buffers = tuple(Buffer(f"b{i}", 100 * (i + 1), ("arena",), lifetime=(i, i + 3)) for i in range(6))
    problem = Problem("csv", (Region("arena", 4096),), buffers)
    file = PlanFile(problem, first_fit(problem))
    assert check(file.problem, file.plan) == ()
    viewer = show(render_html(file))
    viewer.click("b2")
    assert "its lifetime is given" in viewer.panel


def test_empty_plan(show: Any) -> None:
    problem = Problem("empty", (Region("arena", 4096),), ())
    viewer = show(render_html(PlanFile(problem, Plan(problem.digest, (), ()))))
    assert "no proof" in viewer.page.inner_text("header")


def test_buffers_that_are_never_used_do_not_harm(show: Any) -> None:
    file = plan_file(6)
    extra = Buffer("ghost", 64, ("sram",))
    problem = replace(file.problem, buffers=(*file.problem.buffers, extra))
    nowhere = Placement(len(file.problem.buffers), "sram", 0, 0, 0)
    plan = replace(file.plan, problem=problem.digest, placements=(*file.plan.placements, nowhere))
    viewer = show(render_html(PlanFile(problem, plan)))
    viewer.page.fill("#search", "ghost")
    viewer.page.press("#search", "Enter")
    assert "never in memory" in viewer.panel


@pytest.mark.slow
def test_twenty_thousand_buffers_stay_fluid(show: Any) -> None:
    problem = random_problem(20_000, 3, None, weights=False)
    viewer = show(render_html(PlanFile(problem, first_fit(problem), "mplan test", "big", "cpu")))
    assert viewer.js("mplan.plan.buffers.name.length") == len(problem.buffers) > 20_000
    times = []
    for _ in range(3):
        viewer.drawn()
        times.append(viewer.js("mplan.lastDrawMs"))
    # About 30 ms on an idle core; the bound leaves room for a loaded machine without a GPU.
    assert min(times) < 400
    viewer.js("mplan.setView(10000, 10040, 0, mplan.extent.a1)")
    viewer.drawn()
    assert viewer.js("mplan.stage.visible().length") < 200
    assert viewer.js("mplan.lastDrawMs") < 100
    middle = viewer.js("mplan.plan.buffers.name[10020]")
    viewer.click(middle)
    assert viewer.page.inner_text("#panel h2") == middle
    began = viewer.js("performance.now()")
    viewer.page.fill("#search", "layer_norm")
    assert viewer.js("performance.now()") - began < 2000
    found = sum("layer_norm" in b.name for b in problem.buffers)
    assert viewer.page.inner_text("#matches").startswith(f"{found:,} ·")
