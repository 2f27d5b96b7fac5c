// State and wiring: which region, plans, position and buffer are shown, and what mouse and keys do.

class App {
  constructor(data) {
    this.plans = data.plans.map((raw, i) => new PlanModel(raw, data.labels[i]));
    this.stages = this.plans.map((plan, i) => new Stage(this, plan, i));
    this.active = this.plans.length - 1;
    this.mode = this.plans.length > 1 ? "both" : "before";
    this.positions = this.plans.map(() => new Map());
    this.found = this.plans.map(() => null);
    this.chosen = this.plans.map(() => undefined);
    this.pending = false;
    this.lastDrawMs = 0;
    this.draws = 0;
    document.getElementById("plots").append(...this.stages.map((s) => s.root));
    this.paint("kind");
    this.showRegion(data.region);
  }

  get plan() { return this.plans[this.active]; }
  get stage() { return this.stages[this.active]; }

  positionOf(plan) {
    const kept = this.positions[this.plans.indexOf(plan)].get(this.region);
    return kept ?? plan.region(this.region)?.peak ?? 0;
  }

  paint(mode) {
    this.colours = paint(this.plans, mode);
    this.update();
  }

  showLegend() {
    const r = this.plan.region(this.region), rows = this.colours.map(([name, colour]) => el("span", { title: name }, swatch(colour), name));
    const stroke = (colour, text, dashed) => {
      const mark = el("i", { className: dashed ? "stroke dashed" : "stroke" });
      mark.style.borderTopColor = `var(--${colour})`;
      return el("span", {}, mark, text);
    };
    const lines = [stroke("peak", "peak", true)];
    if (r && r.capacity !== null) {
      const place = r.capacity > this.extent.a1 ? ", above the picture" : "";
      lines.push(stroke("limit", `capacity ${bytes(r.capacity)}${place}`));
    }
    if (r?.allocate) lines.push(stroke("bound", "lower bound", true));
    document.getElementById("legend").replaceChildren(...rows, ...lines);
  }

  showRegion(name) {
    this.region = name;
    for (const card of document.querySelectorAll("[data-region]")) {
      const on = card.dataset.region === name;
      card.setAttribute("aria-selected", String(on));
      card.tabIndex = on ? 0 : -1;
    }
    const shown = this.plans.map((p) => p.region(name)).filter(Boolean);
    const tallest = Math.max(1, ...shown.map((r) => Math.max(r.height, r.allocate?.lower_bound_bytes ?? 0)));
    const limits = shown.map((r) => r.capacity ?? 0).filter((c) => c <= 2 * tallest);
    this.extent = { t0: 0, t1: Math.max(1, ...this.plans.map((p) => p.horizon)), a0: 0, a1: Math.max(tallest, ...limits) * 1.07 };
    this.view = { ...this.extent };
    this.showMode(this.mode);
  }

  showMode(mode) {
    this.mode = mode;
    if (mode === "before") this.active = 0;
    if (mode === "after") this.active = 1;
    this.stages.forEach((s, i) => { s.root.hidden = mode !== "both" && i !== this.active; });
    for (const b of document.querySelectorAll("[data-mode]")) b.setAttribute("aria-pressed", String(b.dataset.mode === mode));
    this.update();
  }

  /** Redraws soon and refreshes the panel. */
  update() {
    if (!this.region) return;
    this.stages.forEach((s) => describe(s, this));
    this.showLegend();
    showPanel(this);
    this.request();
  }

  request() {
    if (this.pending || !this.view) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      const began = performance.now();
      for (const s of this.stages) if (!s.root.hidden) s.draw();
      this.lastDrawMs = performance.now() - began;
      this.draws++;
    });
  }

  focus(plan) { this.active = this.plans.indexOf(plan); }

  select(plan, buffer) {
    this.focus(plan);
    this.chosen = this.plans.map((other) => (other === plan ? buffer : other.index.get(plan.buffers.name[buffer])));
    const inRegion = (plan.boxesOf.get(buffer) || []).map((id) => plan.boxes.region[id]);
    const first = inRegion[0];
    if (first !== undefined && !inRegion.includes(plan.regionIndex.get(this.region))) this.showRegion(plan.regions[first].name);
    this.update();
  }

  chosenIn(plan) { return this.chosen[this.plans.indexOf(plan)]; }

  deselect() { this.chosen = this.plans.map(() => undefined); }

  clear() {
    if (this.chosenIn(this.plan) === undefined) this.search("");
    this.deselect();
    this.update();
  }

  moveTo(position) {
    const at = Math.min(Math.max(0, position), Math.max(0, this.plan.horizon - 1)), v = this.view;
    this.positions[this.active].set(this.region, at);
    this.deselect();
    if (at < v.t0 || at + 1 > v.t1) this.pan(at + 0.5 - (v.t0 + v.t1) / 2, 0);
    this.update();
  }

  toPeak() { this.moveTo(this.plan.region(this.region)?.peak ?? 0); }

  /** Chooses the neighbour by address of the selected buffer at the cursor. */
  climb(direction) {
    const plan = this.plan, { offset, buffer } = plan.boxes;
    const ids = plan.held(plan.regionIndex.get(this.region), this.positionOf(plan)).sort((a, b) => offset[a] - offset[b]);
    if (!ids.length) return;
    const at = ids.findIndex((id) => buffer[id] === this.chosenIn(plan));
    const next = at < 0 ? (direction > 0 ? 0 : ids.length - 1) : Math.min(Math.max(0, at + direction), ids.length - 1);
    this.select(plan, buffer[ids[next]]);
  }

  setView(t0, t1, a0, a1) {
    const e = this.extent;
    const span = (low, high, most, least) => {
      const size = Math.min(Math.max(high - low, least), most), middle = (low + high) / 2;
      const from = Math.min(Math.max(0, middle - size / 2), most - size);
      return [from, from + size];
    };
    [t0, t1] = span(t0, t1, e.t1, Math.min(e.t1, 2));
    [a0, a1] = span(a0, a1, e.a1, Math.min(e.a1, 64));
    this.view = { t0, t1, a0, a1 };
    this.request();
  }

  pan(dt, da) { const v = this.view; this.setView(v.t0 + dt, v.t1 + dt, v.a0 + da, v.a1 + da); }

  zoom(factor, t, a, inTime = true, inAddress = true) {
    const v = this.view, f = inTime ? factor : 1, g = inAddress ? factor : 1;
    this.setView(t - (t - v.t0) * f, t + (v.t1 - t) * f, a - (a - v.a0) * g, a + (v.a1 - a) * g);
  }

  zoomStep(kind) {
    const v = this.view;
    if (kind === "reset") { this.view = { ...this.extent }; this.request(); }
    else this.zoom(kind === "in" ? 0.6 : 1 / 0.6, (v.t0 + v.t1) / 2, (v.a0 + v.a1) / 2);
  }

  zoomTo(plan, buffer) {
    const { start, end, offset, size } = plan.boxes;
    const id = plan.boxAt(buffer, plan.regionIndex.get(this.region), this.positionOf(plan));
    if (id < 0) return;
    const steps = Math.max(end[id] - start[id], 6), height = size[id];
    this.setView(start[id] - steps * 0.4, start[id] + steps * 1.4, offset[id] - height * 1.5, offset[id] + height * 2.5);
  }

  search(query) {
    const input = document.getElementById("search");
    if (input.value !== query) input.value = query;
    this.found = this.plans.map((plan) => plan.search(query));
    const found = this.found[this.active];
    const total = found ? [...found].reduce((n, b) => n + this.plan.buffers.size[b], 0) : 0;
    document.getElementById("matches").textContent = found ? `${count(found.size)} · ${bytes(total)}` : "";
    this.match = -1;
    this.update();
  }

  nextMatch() {
    const found = [...(this.found[this.active] || [])];
    if (!found.length) return;
    this.match = (this.match + 1) % found.length;
    this.select(this.plan, found[this.match]);
    const { start, end, offset, size } = this.plan.boxes, v = this.view;
    const id = this.plan.boxAt(found[this.match], this.plan.regionIndex.get(this.region), this.positionOf(this.plan));
    if (id < 0) return;
    const t = (start[id] + end[id]) / 2, a = offset[id] + size[id] / 2;
    if (end[id] < v.t0 || start[id] > v.t1 || offset[id] + size[id] < v.a0 || offset[id] > v.a1) this.pan(t - (v.t0 + v.t1) / 2, a - (v.a0 + v.a1) / 2);
  }

  /** For scripts and tests: where on the page a buffer is drawn, {x, y} or null. */
  locate(name, number = this.active) {
    const stage = this.stages[number], buffer = this.plans[number].index.get(name);
    stage.fitCanvas();
    const id = buffer === undefined ? -1 : this.plans[number].boxAt(buffer, stage.regionNumber, this.positionOf(this.plans[number]));
    if (id < 0 || stage.root.hidden) return null;
    const [x, y, w, h] = stage.rect(id), page = stage.canvas.getBoundingClientRect();
    return { x: page.left + x + w / 2, y: page.top + y + h / 2 };
  }
}

function describe(stage, app) {
  const r = stage.region, { plan } = stage;
  const figure = r ? `${bytes(r.height)} in ${app.region}` : "no such region";
  stage.title.replaceChildren(plan.label, el("small", { textContent: `${figure}${r ? ` · ${r.verdict}` : ""}` }));
  stage.title.hidden = app.plans.length < 2;
  stage.canvas.setAttribute("aria-label", `${plan.label}: ${figure}; use the arrow keys to walk through steps and buffers, the panel tells what is there`);
}

/** Mouse and touch on one canvas. */
function listen(stage) {
  const { canvas, app } = stage;
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { from: at(event), last: at(event), moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!drag) { hover(stage, x, y, event); return; }
    drag.moved ||= Math.hypot(x - drag.from[0], y - drag.from[1]) > 4;
    if (!drag.moved) return;
    app.pan(stage.timeAt(drag.last[0]) - stage.timeAt(x), stage.addressAt(drag.last[1]) - stage.addressAt(y));
    drag.last = [x, y];
    tip(null);
  });
  canvas.addEventListener("pointerup", (event) => {
    const [x, y] = at(event), clicked = drag && !drag.moved;
    drag = null;
    if (!clicked) return;
    const id = stage.hit(x, y);
    app.focus(stage.plan);
    if (id >= 0) app.select(stage.plan, stage.plan.boxes.buffer[id]);
    else if (x >= stage.left && x <= stage.right) app.moveTo(stage.positionAt(x));
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => { stage.hover = -1; tip(null); app.request(); });
  canvas.addEventListener("dblclick", (event) => {
    const id = stage.hit(...at(event));
    if (id >= 0) app.zoomTo(stage.plan, stage.plan.boxes.buffer[id]);
    else app.zoomStep("reset");
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [x, y] = at(event), v = app.view, turn = event.deltaY || event.deltaX;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY) && !event.shiftKey) {
      app.pan((event.deltaX / (stage.right - stage.left)) * (v.t1 - v.t0), 0);
      return;
    }
    const inTime = event.ctrlKey || !event.shiftKey, inAddress = event.ctrlKey || event.shiftKey;
    app.zoom(Math.exp(Math.max(-120, Math.min(120, turn)) * 0.0022), stage.timeAt(x), stage.addressAt(y), inTime, inAddress);
  }, { passive: false });
  canvas.addEventListener("focus", () => { if (app.plan !== stage.plan) { app.focus(stage.plan); app.update(); } });
}

function hover(stage, x, y, event) {
  const id = stage.hit(x, y), { plan } = stage, r = stage.region;
  if (id !== stage.hover) { stage.hover = id; stage.app.request(); }
  if (id >= 0) {
    const b = plan.boxes.buffer[id], { name, shape, dtype, size } = plan.buffers;
    tip(event, name[b], [exact(size[b]), [shape[b], dtype[b], plan.buffers.kind[b]].filter(Boolean).join(" · "),
      plan.source(b), `until ${plan.keeper(b)}`]);
  } else if (r && x >= stage.left && x <= stage.right && y > stage.floor) {
    const p = stage.positionAt(x);
    tip(event, `Step ${count(p)}${p < plan.steps.name.length ? ` · ${plan.steps.name[p]}` : ""}`, [`${exact(r.live[p] || 0)} live`, plan.steps.where[p]]);
  } else tip(null);
}

function tip(event, title = "", lines = []) {
  const box = document.getElementById("tip");
  box.hidden = !event;
  if (!event) return;
  box.replaceChildren(el("b", { textContent: title }), ...lines.filter(Boolean).map((text) => el("span", { textContent: text })));
  const { offsetWidth: w, offsetHeight: h } = box;
  box.style.left = `${Math.max(4, event.clientX + 16 + w > innerWidth ? event.clientX - w - 12 : event.clientX + 16)}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - h - 6))}px`;
}

function toggleTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  readTheme();
  window.mplan?.request();
}

function start() {
  const media = matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  toggleTheme(media.matches);
  media.addEventListener("change", () => { if (!chosen) toggleTheme(media.matches); });
  const app = new App(JSON.parse(document.getElementById("data").textContent));
  window.mplan = app;
  const flip = () => { chosen = true; toggleTheme(document.documentElement.dataset.theme !== "dark"); };
  const search = document.getElementById("search");
  document.getElementById("theme").onclick = flip;
  document.getElementById("colour").onchange = (event) => app.paint(event.target.value);
  search.oninput = () => app.search(search.value);
  search.onkeydown = (event) => {
    if (event.key === "Enter") app.nextMatch();
    if (event.key === "Escape") { app.search(""); search.blur(); event.stopPropagation(); }
  };
  const cards = [...document.querySelectorAll("[data-region]")];
  cards.forEach((card, i) => {
    card.onclick = () => app.showRegion(card.dataset.region);
    card.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = cards[(i + step + cards.length) % cards.length];
      app.showRegion(next.dataset.region);
      next.focus();
      event.stopPropagation();
    };
  });
  for (const b of document.querySelectorAll("[data-mode]")) b.onclick = () => app.showMode(b.dataset.mode);
  for (const b of document.querySelectorAll("[data-zoom]")) b.onclick = () => app.zoomStep(b.dataset.zoom);
  const keys = {
    ArrowLeft: () => app.moveTo(app.positionOf(app.plan) - 1), ArrowRight: () => app.moveTo(app.positionOf(app.plan) + 1),
    ArrowUp: () => app.climb(1), ArrowDown: () => app.climb(-1), "+": () => app.zoomStep("in"), "=": () => app.zoomStep("in"),
    "-": () => app.zoomStep("out"), 0: () => app.zoomStep("reset"), p: () => app.toPeak(), t: flip, Escape: () => app.clear(),
    z: () => { const b = app.chosenIn(app.plan); if (b !== undefined) app.zoomTo(app.plan, b); }, "/": () => search.focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}

start();
