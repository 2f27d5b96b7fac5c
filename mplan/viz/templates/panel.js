// The side panel: what lies in memory at a step, one buffer in full, and the proofs. Text only, never markup.

function el(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const MAX_ROWS = 150;

function swatch(index) {
  const mark = el("i");
  mark.style.background = `var(--f${index})`;
  mark.style.borderColor = `var(--s${index})`;
  return mark;
}

function link(text, action, title = "") {
  return el("button", { type: "button", textContent: text, onclick: action, title });
}

function showPanel(app) {
  const panel = document.getElementById("panel"), plan = app.plan, top = panel.scrollTop;
  const buffer = app.chosenIn(plan);
  const shown = buffer === undefined ? positionView(app, plan) : bufferView(app, plan, buffer);
  panel.replaceChildren(...shown, ...proofView(app, plan));
  const key = `${buffer} ${app.region} ${plan.label}`;
  panel.scrollTop = panel.dataset.key === key ? top : 0;
  panel.dataset.key = key;
}

function eyebrow(app, plan, text, ...buttons) {
  const label = app.plans.length > 1 ? `${plan.label} · ${text}` : text;
  return el("div", { className: "eyebrow" }, label, el("span", { className: "push" }, ...buttons));
}

function positionView(app, plan) {
  const r = plan.region(app.region), p = app.positionOf(plan);
  if (!r) return [eyebrow(app, plan, app.region), el("p", { className: "lead", textContent: "This plan does not have the region." })];
  const atPeak = p === r.peak, total = r.live[p] || 0, step = plan.steps;
  const known = p < step.name.length;
  const limit = r.capacity === null ? "" : ` of ${bytes(r.capacity)} (${percent(total / r.capacity)})`;
  return [
    eyebrow(app, plan, atPeak ? `Peak of ${app.region}` : app.region,
      link("‹", () => app.moveTo(p - 1), "Previous step (←)"), link("›", () => app.moveTo(p + 1), "Next step (→)"),
      !atPeak && link("Peak", () => app.toPeak(), "Go to the peak (p)")),
    el("h2", { textContent: `Step ${count(p)}${known ? ` · ${step.name[p]}` : ""}` }),
    known && el("p", { className: "lead", textContent: [step.kind[p], step.where[p]].filter(Boolean).join(" · ") }),
    el("p", { className: "figure" }, `${bytes(total)} `, el("small", { className: "lead", textContent: `live${limit}` })),
    holders(app, plan, plan.held(plan.regionIndex.get(app.region), p), p, total),
  ].filter(Boolean);
}

function holders(app, plan, ids, position, total) {
  const { buffer, size } = plan.boxes, list = el("ul", { className: "holders" });
  for (const id of ids.slice(0, MAX_ROWS)) {
    const b = buffer[id], { name, shape, dtype } = plan.buffers;
    const about = [shape[b], dtype[b], plan.source(b)].filter(Boolean).join(" · ");
    const row = el("button", { type: "button", onclick: () => app.select(plan, b), title: name[b] },
      swatch(plan.colour[b]), el("b", { textContent: name[b] }),
      el("span", { className: "n", textContent: `${bytes(size[id])} · ${percent(total ? size[id] / total : 0)}` }),
      about && el("small", { textContent: about }), el("small", { textContent: plan.why(b, position) }));
    row.style.setProperty("--share", String(total ? size[id] / total : 0));
    row.style.setProperty("--tone", `var(--s${plan.colour[b]})`);
    list.append(el("li", {}, row));
  }
  const rest = ids.slice(MAX_ROWS);
  if (rest.length) list.append(el("li", { className: "lead", textContent: `and ${count(rest.length)} more, ${bytes(rest.reduce((n, id) => n + size[id], 0))}` }));
  return list;
}

function bufferView(app, plan, b) {
  const data = plan.buffers, producer = data.producer[b], boxes = plan.boxes;
  const segments = (plan.boxesOf.get(b) || []).map((id) => {
    const { start, end, offset, size, region } = boxes, name = plan.regions[region[id]].name;
    if (end[id] <= start[id]) return "never in memory";
    const steps = end[id] - start[id];
    return `${name} [${count(offset[id])}, ${count(offset[id] + size[id])}) during steps [${count(start[id])}, ${count(end[id])}), ${count(steps)} step${steps === 1 ? "" : "s"}`;
  });
  const copies = plan.transfers.filter((t) => t.buffer === b).map((t) => `${t.source} → ${t.target} before step ${t.step}`);
  const made = producer >= 0 ? `${plan.stepName(producer)}${plan.steps.kind[producer] ? ` (${plan.steps.kind[producer]})` : ""}` : data.live_in[b] ? "there before the first step" : "";
  const facts = el("dl", { className: "facts" });
  const fact = (name, text) => text && facts.append(el("dt", { textContent: name }), el("dd", { textContent: text }));
  fact("Size", exact(data.size[b]));
  fact("Shape", data.shape[b]);
  fact("Type", data.dtype[b]);
  fact("Kind", data.kind[b]);
  fact("Produced by", made);
  fact("Source", plan.source(b));
  fact("Kept alive by", plan.keeper(b));
  fact("Lies in", segments.join("; "));
  fact("Copied", copies.join("; "));
  return [
    eyebrow(app, plan, "Buffer", link("✕", () => app.clear(), "Back to the step (Esc)")),
    el("h2", { textContent: data.name[b] }), facts,
    el("div", { className: "actions" }, link("Zoom to it", () => app.zoomTo(plan, b), "z"), link("Back to the step", () => app.clear(), "Esc")),
    ...usesView(app, plan, b),
  ];
}

function usesView(app, plan, b) {
  const touched = plan.buffers.touched[b];
  if (!touched.length) return [];
  const list = el("ul", { className: "uses" });
  for (const p of touched.slice(0, MAX_ROWS)) {
    const text = `${count(p)} · ${plan.steps.name[p]}${plan.buffers.producer[b] === p ? " (writes it first)" : ""}`;
    list.append(el("li", {}, link(text, () => { app.clear(); app.moveTo(p); }, plan.steps.where[p])));
  }
  return [el("h3", { textContent: `Touched by ${count(touched.length)} step${touched.length === 1 ? "" : "s"}` }), list];
}

function proofView(app, plan) {
  const r = plan.region(app.region);
  if (!r) return [];
  const rows = [["Order of steps", r.schedule], ["Addresses", r.allocate]].filter(([, c]) => c);
  const cards = rows.map(([what, c]) => el("div", { className: "proof" },
    el("div", { className: "row" }, el("b", { textContent: what }), el("span", { className: `badge ${c.status}`, textContent: c.status })),
    el("p", { textContent: `${c === r.schedule ? "live peak" : "height"} ${bytes(c.value_bytes)}, at least ${bytes(c.lower_bound_bytes)}; gap ${percent(c.gap)}` }),
    el("p", { textContent: `bound: ${c.bound_kind.replaceAll("_", " ")}${witness(plan, c)}` }),
    el("p", { textContent: `solver: ${c.solver}, seed ${c.seed}, ${c.took}` })));
  const none = el("p", { className: "lead", textContent: "The plan carries no certificate for this region." });
  return [el("h3", { textContent: "Proof" }), ...(cards.length ? cards : [none])];
}

function witness(plan, c) {
  if (c.witness.length !== 1) return "";
  const [at] = c.witness;
  if (c.bound_kind === "live") return ` at step ${count(at)}`;
  return c.bound_kind === "working_set" ? ` of ${plan.capturedSteps[at] ?? `step ${at}`}` : "";
}
