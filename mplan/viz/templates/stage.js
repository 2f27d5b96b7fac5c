// One plan on one canvas: the address × step map above, the live-bytes curve beneath, one time axis.

const PAD = { left: 72, right: 16, top: 30, gap: 28, bottom: 38 };
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
const MAX_LABELS = 800;

const theme = {};
function readTheme() {
  const style = getComputedStyle(document.documentElement), read = (name) => style.getPropertyValue(name).trim();
  for (const name of ["surface", "ink", "muted", "line", "grid", "accent", "peak", "limit", "bound"]) theme[name] = read(`--${name}`);
  theme.soft = read("--accent-soft");
  theme.fill = Array.from({ length: 10 }, (_, i) => read(`--f${i}`));
  theme.edge = Array.from({ length: 10 }, (_, i) => read(`--s${i}`));
}

class Stage {
  constructor(app, plan, number) {
    this.app = app;
    this.plan = plan;
    this.number = number;
    this.canvas = el("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.title = el("h2");
    this.root = el("div", { className: "plot" }, this.title, this.canvas);
    this.ctx = this.canvas.getContext("2d");
    new ResizeObserver(() => app.request()).observe(this.canvas);
    listen(this);
  }

  get region() { return this.plan.region(this.app.region); }
  get regionNumber() { return this.plan.regionIndex.get(this.app.region); }
  get position() { return this.app.positionOf(this.plan); }

  fitCanvas() {
    const { clientWidth, clientHeight } = this.canvas, ratio = window.devicePixelRatio || 1;
    const width = Math.round(clientWidth * ratio), height = Math.round(clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    const room = clientHeight - PAD.top - PAD.gap - PAD.bottom;
    this.left = PAD.left;
    this.right = Math.max(PAD.left + 20, clientWidth - PAD.right);
    this.top = PAD.top;
    this.floor = PAD.top + Math.round(room * 0.72);
    this.curveTop = this.floor + PAD.gap;
    this.curveFloor = clientHeight - PAD.bottom;
    this.width = clientWidth;
    this.height = clientHeight;
  }

  x(t) { const v = this.app.view; return this.left + ((t - v.t0) / (v.t1 - v.t0)) * (this.right - this.left); }
  y(a) { const v = this.app.view; return this.floor - ((a - v.a0) / (v.a1 - v.a0)) * (this.floor - this.top); }
  curveY(n) { return this.curveFloor - (n / this.app.extent.a1) * (this.curveFloor - this.curveTop); }
  timeAt(x) { const v = this.app.view; return v.t0 + ((x - this.left) / (this.right - this.left)) * (v.t1 - v.t0); }
  addressAt(y) { const v = this.app.view; return v.a0 + ((this.floor - y) / (this.floor - this.top)) * (v.a1 - v.a0); }

  draw() {
    this.fitCanvas();
    this.ctx.clearRect(0, 0, this.width, this.height);
    this.drawGrid();
    if (this.region) {
      this.within(this.top, this.floor, () => { this.drawCursor(this.top, this.floor); this.drawBoxes(); this.drawLevels(); });
      this.within(this.curveTop - 4, this.curveFloor, () => { this.drawCursor(this.curveTop, this.curveFloor); this.drawCurve(); });
      this.drawFlags();
    }
    this.drawTimeAxis();
  }

  within(top, bottom, paintIt) {
    const { ctx } = this;
    ctx.save();
    ctx.beginPath();
    ctx.rect(this.left, top, this.right - this.left, bottom - top + 1);
    ctx.clip();
    paintIt();
    ctx.restore();
  }

  line(x0, y0, x1, y1, colour, dash = []) {
    const { ctx } = this;
    ctx.strokeStyle = colour;
    ctx.setLineDash(dash);
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
    ctx.setLineDash([]);
  }

  say(text, x, y, colour, align = "left", size = 11, weight = 400) {
    const { ctx } = this;
    ctx.font = `${weight} ${size}px ${FONT}`;
    ctx.textAlign = align;
    ctx.fillStyle = colour;
    ctx.fillText(text, x, y);
  }

  drawGrid() {
    const { app } = this;
    this.ctx.lineWidth = 1;
    this.drawByteAxis(ticks(app.view.a0, app.view.a1, (this.floor - this.top) / 46, true), (a) => this.y(a), this.levels());
    const most = Math.max(1, (this.curveFloor - this.curveTop) / 28);
    this.drawByteAxis(ticks(0, app.extent.a1, most, true), (n) => this.curveY(n), []);
    this.say("address", this.left - 8, this.top - 8, theme.muted, "right");
    this.say("live", this.left - 8, this.curveTop - 10, theme.muted, "right");
  }

  /** Grid lines and byte labels; the labels of `levels` come first, and ticks beside them give way. */
  drawByteAxis(values, place, levels) {
    const taken = [];
    const label = (text, y, colour, weight) => {
      if (taken.some((other) => Math.abs(other - y) < 13)) return;
      taken.push(y);
      this.say(text, this.left - 8, y + 4, colour, "right", 11, weight);
    };
    for (const [at, colour] of levels) {
      const y = Math.round(place(at));
      if (y > this.top - 2 && y <= this.floor) label(bytes(at), y, colour, 600);
    }
    for (const at of values) {
      const y = Math.round(place(at)) + 0.5;
      this.line(this.left, y, this.right, y, theme.grid);
      label(short(at), y, theme.muted, 400);
    }
  }

  /** The limits of the arena with their colour and dash: capacity and proven lower bound. */
  levels() {
    const r = this.region, found = [];
    if (r?.capacity !== null && r?.capacity !== undefined) found.push([r.capacity, theme.limit, []]);
    if (r?.allocate) found.push([r.allocate.lower_bound_bytes, theme.bound, [5, 4]]);
    return found;
  }

  drawCursor(top, bottom) {
    const { ctx } = this, x = this.x(this.position), width = this.x(this.position + 1) - x;
    ctx.fillStyle = theme.soft;
    ctx.fillRect(x, top, Math.max(width, 1.5), bottom - top);
  }

  /** Pixel rectangle of a box: whole pixels, at least one wide and high. */
  rect(id) {
    const { start, end, offset, size } = this.plan.boxes;
    const x = Math.round(this.x(start[id])), y = Math.round(this.y(offset[id] + size[id]));
    return [x, y, Math.max(1, Math.round(this.x(end[id])) - x), Math.max(1, Math.round(this.y(offset[id])) - y)];
  }

  visible() {
    const { plan, app } = this, { offset, size } = plan.boxes, v = app.view, ids = [];
    plan.grids[this.regionNumber].query(v.t0, v.t1, (id) => {
      if (offset[id] < v.a1 && offset[id] + size[id] > v.a0) ids.push(id);
    });
    return ids;
  }

  drawBoxes() {
    const { ctx, plan, app } = this, { buffer } = plan.boxes;
    const found = app.found[this.number], groups = Array.from({ length: 20 }, () => []);
    for (const id of this.visible()) {
      const lit = !found || found.has(buffer[id]);
      groups[plan.colour[buffer[id]] + (lit ? 10 : 0)].push(id);
    }
    groups.forEach((ids, g) => {
      ctx.globalAlpha = g < 10 ? 0.16 : 1;
      ctx.fillStyle = theme.fill[g % 10];
      ctx.strokeStyle = theme.edge[g % 10];
      ctx.lineWidth = 1;
      for (const id of ids) this.drawBox(id);
    });
    ctx.globalAlpha = 1;
    const held = plan.held(this.regionNumber, this.position).filter((id) => !found || found.has(buffer[id]));
    this.outline(held, theme.ink, 1, 0.55);
    const labelled = groups.slice(10).flat();
    this.drawLabels(labelled);
    this.drawArrivals(labelled);
    const chosen = app.chosenIn(plan);
    if (chosen !== undefined) this.outline((plan.boxesOf.get(chosen) || []).filter((id) => plan.boxes.region[id] === this.regionNumber), theme.ink, 2.5, 1);
    if (this.hover >= 0) this.outline([this.hover], theme.ink, 1.5, 0.9);
  }

  drawBox(id) {
    const { ctx } = this, [x, y, w, h] = this.rect(id);
    if (w < 4 || h < 4) {
      if (h > 1) ctx.fillRect(x, y, w, h);
      else hairline(ctx, x, y, w);
      return;
    }
    ctx.fillRect(x, y, w - 1, h - 1);
    ctx.strokeRect(x + 0.5, y + 0.5, w - 2, h - 2);
  }

  outline(ids, colour, width, alpha) {
    const { ctx } = this;
    ctx.save();
    ctx.strokeStyle = colour;
    ctx.lineWidth = width;
    ctx.globalAlpha = alpha;
    for (const id of ids) {
      const [x, y, w, h] = this.rect(id);
      if (h > 2 || width > 1) ctx.strokeRect(x + 0.5, y + 0.5, Math.max(1, w - 2), Math.max(1, h - 2));
    }
    ctx.restore();
  }

  drawLabels(ids) {
    const { plan } = this, { buffer, size } = plan.boxes;
    let room = MAX_LABELS;
    for (const id of ids) {
      const [x, y, w, h] = this.rect(id);
      if (h < 14 || w < 30 || !room) continue;
      const from = Math.max(x, this.left) + 5, width = Math.min(x + w, this.right) - from - 4;
      if (width < 22) continue;
      room--;
      const top = Math.max(h < 28 ? y + h / 2 + 4 : y + 14, this.top + 12);
      this.say(fit(plan.buffers.name[buffer[id]], width), from, top, theme.ink);
      const figure = bytes(size[id]);
      if (y + h - top > 16 && fit(figure, width) === figure) {
        this.ctx.globalAlpha = 0.65;
        this.say(figure, from, top + 13, theme.ink, "left", 10);
        this.ctx.globalAlpha = 1;
      }
    }
  }

  /** A mark at the corner of each box whose bytes are copied in from another region. */
  drawArrivals(ids) {
    const { ctx, plan } = this;
    ctx.fillStyle = theme.ink;
    for (const id of ids) {
      if (!plan.fetched[id]) continue;
      const [x, y, w, h] = this.rect(id);
      if (w < 8 || h < 8) continue;
      ctx.beginPath();
      ctx.moveTo(x, y + h - 9);
      ctx.lineTo(x + 8, y + h - 1);
      ctx.lineTo(x, y + h - 1);
      ctx.fill();
    }
  }

  drawLevels() {
    this.ctx.lineWidth = 1.5;
    for (const [at, colour, dash] of this.levels()) {
      const y = Math.round(this.y(at)) + 0.5;
      this.line(this.left, y, this.right, y, colour, dash);
    }
    this.ctx.lineWidth = 1;
  }

  drawCurve() {
    const { ctx, app, region: r, plan } = this, v = app.view;
    const chosen = app.chosenIn(plan);
    if (chosen !== undefined) this.drawLifetime(chosen);
    const first = Math.max(0, Math.floor(v.t0)), last = Math.min(r.live.length, Math.ceil(v.t1));
    const path = new Path2D();
    path.moveTo(this.x(first), this.curveFloor);
    for (let p = first; p < last;) {
      const column = Math.floor(this.x(p));
      let top = r.live[p], next = p + 1;
      while (next < last && Math.floor(this.x(next)) === column) top = Math.max(top, r.live[next++]);
      const y = this.curveY(top);
      path.lineTo(this.x(p), y);
      path.lineTo(this.x(next), y);
      p = next;
    }
    path.lineTo(this.x(last), this.curveFloor);
    ctx.fillStyle = theme.soft;
    ctx.fill(path);
    ctx.strokeStyle = theme.accent;
    ctx.lineWidth = last - first > this.right - this.left ? 1 : 1.5;
    ctx.stroke(path);
    const y = (n) => Math.round(this.curveY(n)) + 0.5;
    if (r.schedule) this.line(this.left, y(r.schedule.lower_bound_bytes), this.right, y(r.schedule.lower_bound_bytes), theme.bound, [5, 4]);
    if (r.capacity !== null && r.capacity <= app.extent.a1) this.line(this.left, y(r.capacity), this.right, y(r.capacity), theme.limit);
    ctx.lineWidth = 1;
  }

  drawLifetime(buffer) {
    const { ctx, plan } = this, colour = theme.edge[plan.colour[buffer]];
    ctx.globalAlpha = 0.22;
    ctx.fillStyle = colour;
    for (const id of plan.boxesOf.get(buffer) || []) {
      if (plan.boxes.region[id] !== this.regionNumber) continue;
      const x = this.x(plan.boxes.start[id]);
      ctx.fillRect(x, this.curveTop - 4, Math.max(1, this.x(plan.boxes.end[id]) - x), this.curveFloor - this.curveTop + 4);
    }
    ctx.globalAlpha = 1;
    ctx.fillStyle = colour;
    for (const p of plan.buffers.touched[buffer]) ctx.fillRect(Math.round(this.x(p + 0.5)) - 1, this.curveFloor - 7, 2, 7);
  }

  /** The peak's flag, and the cursor's where it is elsewhere; the second gives way. */
  drawFlags() {
    const r = this.region, taken = [];
    this.flag(r.peak, theme.peak, `peak ${bytes(r.live[r.peak] || 0)} · step ${count(r.peak)}`, [4, 3], taken);
    if (this.position !== r.peak) {
      this.flag(this.position, theme.accent, `step ${count(this.position)} · ${bytes(r.live[this.position] || 0)}`, [], taken);
    }
  }

  flag(position, colour, text, dash, taken) {
    const { ctx } = this, x = Math.round(this.x(position + 0.5)) + 0.5;
    if (x < this.left || x > this.right) return;
    this.line(x, this.top - 8, x, this.floor, colour, dash);
    this.line(x, this.curveTop, x, this.curveFloor, colour, dash);
    ctx.font = `600 11px ${FONT}`;
    const width = ctx.measureText(text).width + 14;
    let left = Math.min(Math.max(x - width / 2, this.left), this.right - width);
    for (const [from, to] of taken) {
      if (left < to + 6 && left + width > from - 6) left = from - 6 - width >= this.left && x < (from + to) / 2 ? from - 6 - width : to + 6;
    }
    if (left + width > this.right + 8) left = taken[0][0] - 6 - width;
    taken.push([left, left + width]);
    ctx.fillStyle = theme.surface;
    ctx.strokeStyle = colour;
    ctx.beginPath();
    ctx.roundRect(left, 4.5, width, 18, 9);
    ctx.fill();
    ctx.stroke();
    this.say(text, left + 7, 17.5, colour, "left", 11, 600);
  }

  drawTimeAxis() {
    const v = this.app.view, perStep = (this.right - this.left) / (v.t1 - v.t0), named = perStep >= 58;
    this.line(this.left, this.curveFloor + 0.5, this.right, this.curveFloor + 0.5, theme.line);
    this.line(this.left, this.floor + 0.5, this.right, this.floor + 0.5, theme.line);
    for (const p of ticks(v.t0, v.t1, (this.right - this.left) / (named ? 58 : 64), false)) {
      const x = this.x(p + 0.5);
      if (x < this.left || x > this.right || p >= this.app.extent.t1) continue;
      this.say(count(p), x, this.curveFloor + 14, theme.muted, "center");
      if (named && p < this.plan.steps.name.length) this.say(fit(this.plan.steps.name[p], perStep - 6), x, this.curveFloor + 28, theme.ink, "center", 10);
    }
    if (!named) this.say("step", (this.left + this.right) / 2, this.curveFloor + 30, theme.muted, "center");
  }

  /** The box under a pixel, or the nearest within three pixels; -1 if there is none. */
  hit(px, py) {
    if (!this.region || px < this.left || px > this.right || py < this.top || py > this.floor) return -1;
    let best = -1, nearest = 3.01;
    this.plan.grids[this.regionNumber].query(this.timeAt(px - 3), this.timeAt(px + 3), (id) => {
      const [x, y, w, h] = this.rect(id);
      const away = Math.max(x - px, px - x - w, 0) + Math.max(y - py, py - y - h, 0);
      if (away < nearest) { best = id; nearest = away; }
    });
    return best;
  }

  positionAt(px) {
    return Math.min(Math.max(0, Math.floor(this.timeAt(px))), Math.max(0, this.plan.horizon - 1));
  }
}

/** A box too flat for its pale fill to be seen. */
function hairline(ctx, x, y, width) {
  const fill = ctx.fillStyle;
  ctx.fillStyle = ctx.strokeStyle;
  ctx.fillRect(x, y, width, 1);
  ctx.fillStyle = fill;
}

const widths = new Map();
function fit(text, room) {
  const ctx = fit.ctx ??= document.createElement("canvas").getContext("2d");
  ctx.font = `400 11px ${FONT}`;
  const measure = (s) => {
    if (!widths.has(s)) { if (widths.size > 50000) widths.clear(); widths.set(s, ctx.measureText(s).width); }
    return widths.get(s);
  };
  if (measure(text) <= room) return text;
  const cut = (n) => (n < 9 ? `${text.slice(0, n)}…` : `${text.slice(0, Math.ceil(n / 2))}…${text.slice(-Math.floor(n / 2))}`);
  let letters = Math.floor((room / measure(text)) * text.length);
  while (letters > 1 && measure(cut(letters)) > room) letters--;
  return letters > 1 ? cut(letters) : "";
}

/** Round values in [low, high], at most about `most` of them: powers of two for bytes, 1-2-5 for steps. */
function ticks(low, high, most, binary) {
  const rough = Math.max((high - low) / Math.max(most, 1), binary ? 1 : 1e-9);
  let step = 2 ** Math.ceil(Math.log2(rough));
  if (!binary) {
    const ten = 10 ** Math.floor(Math.log10(rough));
    step = Math.max(1, ten * [1, 2, 5, 10].find((m) => m * ten >= rough));
  }
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
}
