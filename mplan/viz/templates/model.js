// The data of the page: plans decoded into typed arrays, an index over time, names of numbers.

function bytes(n) {
  if (Math.abs(n) < 1000) return `${n}\u00a0B`;
  let value = n, unit = "";
  for (unit of ["KiB", "MiB", "GiB", "TiB"]) {
    value /= 1024;
    if (Math.abs(value) < 999.5) break;
  }
  const digits = Math.abs(value) < 9.995 ? 2 : Math.abs(value) < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)}\u00a0${unit}`;
}

const count = (n) => n.toLocaleString("en-US");
const exact = (n) => (Math.abs(n) < 1000 ? bytes(n) : `${bytes(n)} (${count(n)} B)`);
const percent = (r) => (r > 0 && r < 0.0005 ? "<0.1\u00a0%" : `${(100 * r).toFixed(1)}\u00a0%`);
const short = (n) => bytes(n).replace(/\.0+(?=\u00a0)/, "");

/** Boxes sorted by the power of two of their length, then bucketed by start: no box is stored twice. */
class TimeGrid {
  constructor(boxes, ids) {
    this.boxes = boxes;
    this.levels = new Map();
    for (const id of ids) {
      const length = boxes.end[id] - boxes.start[id];
      const level = Math.max(0, Math.ceil(Math.log2(Math.max(1, length))));
      if (!this.levels.has(level)) this.levels.set(level, new Map());
      const buckets = this.levels.get(level), key = Math.floor(boxes.start[id] / 2 ** level);
      if (!buckets.has(key)) buckets.set(key, []);
      buckets.get(key).push(id);
    }
  }

  /** Calls `visit(id)` once for each box that is alive somewhere in [from, to). */
  query(from, to, visit) {
    const { start, end } = this.boxes;
    const scan = (ids) => {
      for (const id of ids) if (start[id] < to && end[id] > from) visit(id);
    };
    for (const [level, buckets] of this.levels) {
      const width = 2 ** level;
      const first = Math.floor(from / width) - 1, last = Math.floor(to / width);
      if (last - first >= buckets.size) buckets.forEach(scan);
      else for (let key = first; key <= last; key++) scan(buckets.get(key) || []);
    }
  }
}

class PlanModel {
  constructor(raw, label) {
    Object.assign(this, raw);
    this.label = label;
    const { buffer, region, offset, start, end } = raw.boxes;
    this.boxes = {
      buffer: Int32Array.from(buffer), region: Int32Array.from(region), offset: Float64Array.from(offset),
      start: Int32Array.from(start), end: Int32Array.from(end),
      size: Float64Array.from(buffer, (b) => raw.buffers.size[b]),
    };
    this.index = new Map(raw.buffers.name.map((name, i) => [name, i]).reverse());
    this.regionIndex = new Map(raw.regions.map((r, i) => [r.name, i]));
    const inRegion = raw.regions.map(() => []);
    this.boxesOf = new Map();
    for (let id = 0; id < buffer.length; id++) {
      if (!this.boxesOf.has(buffer[id])) this.boxesOf.set(buffer[id], []);
      this.boxesOf.get(buffer[id]).push(id);
      if (end[id] > start[id] && this.boxes.size[id] > 0) inRegion[region[id]].push(id);
    }
    const arrivals = new Set(raw.transfers.map((t) => `${t.buffer} ${t.step} ${t.target}`));
    this.fetched = this.boxes.buffer.map((b, id) => Number(arrivals.has(`${b} ${start[id]} ${raw.regions[region[id]].name}`)));
    this.grids = inRegion.map((ids) => new TimeGrid(this.boxes, ids));
    this.text = null;
  }

  region(name) { return this.regions[this.regionIndex.get(name)]; }

  /** The box of `buffer` in region `r` that is nearest to `position`; -1 if there is none. */
  boxAt(buffer, r, position) {
    let best = -1, distance = Infinity;
    for (const id of this.boxesOf.get(buffer) || []) {
      if (this.boxes.region[id] !== r || this.boxes.end[id] <= this.boxes.start[id]) continue;
      const away = Math.max(this.boxes.start[id] - position, position - this.boxes.end[id] + 1, 0);
      if (away < distance) { best = id; distance = away; }
    }
    return best;
  }

  /** Box ids that lie in region `r` at `position`, largest first. */
  held(r, position) {
    const ids = [];
    if (r !== undefined) this.grids[r].query(position, position + 1, (id) => ids.push(id));
    const { size, offset } = this.boxes;
    return ids.sort((a, b) => size[b] - size[a] || offset[a] - offset[b]);
  }

  stepName(position) {
    return position < this.steps.name.length ? `${this.steps.name[position]} at step ${position}` : `step ${position}`;
  }

  source(buffer) {
    const producer = this.buffers.producer[buffer];
    return this.buffers.where[buffer] || (producer >= 0 ? this.steps.where[producer] : "");
  }

  opKind(buffer) {
    const producer = this.buffers.producer[buffer];
    return producer >= 0 ? this.steps.kind[producer] || "unnamed op" : "no op";
  }

  why(buffer, position) {
    const next = this.buffers.touched[buffer].find((p) => p >= position);
    if (next === position) return "used by this step";
    if (next !== undefined) return `needed by ${this.stepName(next)}`;
    if (this.buffers.live_out[buffer]) return "a result of the model";
    return this.buffers.fixed[buffer] ? "its lifetime is given" : "held before the first step";
  }

  keeper(buffer) {
    const touched = this.buffers.touched[buffer];
    if (this.buffers.live_out[buffer]) return "the model’s result: it survives the last step";
    if (touched.length) return `${this.stepName(touched[touched.length - 1])}, its last use`;
    return this.buffers.fixed[buffer] ? "its lifetime is given" : "no step touches it";
  }

  /** The buffers whose name, shape, type, source or op contain all words of `query`. */
  search(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return null;
    this.text ??= this.buffers.name.map((name, b) => {
      const { shape, dtype, kind } = this.buffers, producer = this.buffers.producer[b];
      const op = producer >= 0 ? `${this.steps.name[producer]} ${this.steps.kind[producer]}` : "";
      return `${name}\n${shape[b]}\n${dtype[b]}\n${kind[b]}\n${this.source(b)}\n${op}`.toLowerCase();
    });
    const found = new Set();
    this.text.forEach((text, b) => { if (words.every((w) => text.includes(w))) found.add(b); });
    return found;
  }
}

const KINDS = ["input", "intermediate", "output", "weight", "scratch"];
const OTHER = 9;

/** Assigns each buffer of all plans one of ten colours, the most bytes first; returns the legend. */
function paint(plans, mode) {
  const label = {
    kind: (plan, b) => plan.buffers.kind[b],
    op: (plan, b) => plan.opKind(b),
    source: (plan, b) => plan.source(b) || "unknown",
  }[mode];
  const totals = new Map();
  for (const plan of plans) {
    plan.buffers.size.forEach((size, b) => totals.set(label(plan, b), (totals.get(label(plan, b)) || 0) + size));
  }
  const ranked = mode === "kind" ? KINDS.filter((k) => totals.has(k)) : [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a));
  const colour = new Map(ranked.map((name, i) => [name, mode === "kind" ? KINDS.indexOf(name) : Math.min(i, OTHER)]));
  for (const plan of plans) {
    plan.colour = Uint8Array.from(plan.buffers.size, (_, b) => colour.get(label(plan, b)));
  }
  const legend = ranked.slice(0, OTHER).map((name) => [name, colour.get(name)]);
  if (ranked.length > OTHER) legend.push([`${ranked.length - OTHER} others`, OTHER]);
  return legend;
}
