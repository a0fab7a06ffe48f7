"use strict";
(async () => {
const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent), VIEWS = DATA.views;
const night = matchMedia("(prefers-color-scheme: dark)");
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
const bytes = (hex) => hex.match(/../g).map((byte) => parseInt(byte, 16));
const RAMPS = { light: bytes(DATA.ramp.light), dark: bytes(DATA.ramp.dark) };
// `kind` numbers a view; `head` -1 is the mean; `pin` is the chosen token {side, i}; `hover` {q, k} wins over it while it lasts
const now = { kind: 0, layer: 0, head: 0, pin: null, hover: null, zoom: 1 };
let view, map, box = {};

// ---- numbers -------------------------------------------------------------------------------------------------------
async function unpack(v) { // the twin of unpack() in page.py
  if (v.weights) return;
  const bytes = Uint8Array.from(atob(v.roots), (c) => c.charCodeAt(0));
  const flow = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const plain = new Uint8Array(await new Response(flow).arrayBuffer()), n = plain.length / 2;
  v.weights = new Float32Array(n);
  for (let i = 0; i < n; i++) v.weights[i] = ((plain[i] | plain[n + i] << 8) / DATA.levels) ** 2;
  v.Q = v.queries.length; v.K = v.keys.length; v.size = v.Q * v.K; v.means = []; v.roots = null;
  v.start ??= Math.max(0, v.queries.findIndex((t) => !/^([<\[].*[>\]]|[^\p{L}]*)$/u.test(t))); // special tokens say little
}
function weights(layer, head) { // [Q * K]
  const at = (h) => view.weights.subarray((layer * view.heads + h) * view.size, (layer * view.heads + h + 1) * view.size);
  if (head >= 0) return at(head);
  if (!view.means[layer]) {
    const sum = new Float32Array(view.size);
    for (let h = 0; h < view.heads; h++) at(h).forEach((w, i) => { sum[i] += w / view.heads; });
    view.means[layer] = sum;
  }
  return view.means[layer];
}
const full = (w) => w >= 0.0995 ? w.toFixed(2) : w >= 0.0005 ? w.toFixed(3) : "0";
const digits = (w) => full(w).replace(/^0\./, "."); // in tight places
const peak = (m) => m.reduce((a, b) => Math.max(a, b), 0);
const tint = (w, top = 1) => 3 * Math.min(255, Math.round(255 * (w / top) ** now.bend)); // a colour's place in the ramp
const ramp = () => RAMPS[night.matches ? "dark" : "light"];
const css = (at) => `rgb(${ramp().slice(at, at + 3).join()})`;
function onto(at) { // the ink with the larger contrast to a colour of the ramp, at least 4.5 to 1 (WCAG 2.1, 1.4.3)
  const [r, g, b] = ramp().slice(at, at + 3).map((x) => (x / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#06070d" : "#fff";
}
const headSign = (h) => h < 0 ? "mean" : view.headNames?.[h] ?? (view.heads > 1 ? String(h) : "all");
const headName = (h) => h < 0 ? "mean of heads" : view.headNames?.[h] ?? (view.heads > 1 ? `head ${h}` : "all heads");
const layerSign = (l) => view.layerNames?.[l] ?? String(l);
const layerName = (l) => view.layerNames ? (/^\d/.test(view.layerNames[l]) ? `layer ${view.layerNames[l]}` : view.layerNames[l]) : `layer ${l}`;
const headsOf = (l) => view.counts?.[l] ?? view.heads; // a pruned layer has fewer
const least = () => view.heads > 1 && !view.headNames ? -1 : 0; // names are of things that have no mean
const where = () => { // what is named is of its own kind: "lens: likeliest"
  const name = [layerName(now.layer), headName(now.head)].filter(Boolean).join(", ");
  return capital(view.headNames && !layerName(now.layer) ? `${view.kind}: ${name}` : name);
};
const capital = (name) => name.charAt(0).toUpperCase() + name.slice(1);
const cellOf = (q, k) => view.cells ? view.cells[now.head][q][k] : "";

// ---- pieces of the page --------------------------------------------------------------------------------------------
function make(tag, attributes, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside); // strings become text, never markup: tokens are anybody's
  return node;
}
function paint(canvas, m, top, most) { // a map at most `most` cells a side; larger ones keep the largest weight of what a cell covers
  top ??= $("stretch").checked ? peak(m) : 1;
  const w = Math.min(view.K, most), h = Math.min(view.Q, most), best = new Float32Array(w * h), colours = ramp();
  for (let q = 0; q < view.Q; q++) for (let k = 0, y = Math.floor(q * h / view.Q) * w; k < view.K; k++) {
    const at = y + Math.floor(k * w / view.K), value = m[q * view.K + k];
    if (value > best[at]) best[at] = value;
  }
  canvas.width = w; canvas.height = h;
  const ctx = canvas.getContext("2d"), image = ctx.createImageData(w, h);
  best.forEach((value, i) => { const c = tint(value, top); image.data.set([colours[c], colours[c + 1], colours[c + 2], 255], 4 * i); });
  ctx.putImageData(image, 0, 0);
}
function buildGrid() {
  const heads = [...(least() < 0 ? [-1] : []), ...Array(view.heads).keys()], grid = $("grid");
  const names = heads.map((h) => make("span", { class: "n", "data-head": h }, headSign(h)));
  grid.replaceChildren(make("span", { class: "n" }), ...names);
  grid.style.gridTemplateColumns = `${view.layerNames ? "auto" : "16px"} repeat(${heads.length}, minmax(20px, ${view.headNames ? 90 : 52}px))`;
  document.body.style.setProperty("--nav", `${Math.min(360, Math.max(210, 28 + 30 * heads.length))}px`);
  for (let layer = 0; layer < view.layers; layer++) {
    grid.append(make("span", { class: "n", "data-layer": layer }, layerSign(layer)));
    for (const head of heads) {
      if (head >= headsOf(layer)) { grid.append(make("span", {})); continue; }
      const canvas = make("canvas", {});
      canvas.style.aspectRatio = Math.min(1.6, Math.max(0.6, shape()));
      canvas.style.imageRendering = view.K < 50 ? "pixelated" : "auto";
      const label = [layerName(layer), headName(head)].filter(Boolean).join(", ");
      grid.append(make("button", { role: "radio", "data-layer": layer, "data-head": head, "aria-label": label }, canvas));
    }
  }
  paintGrid();
  $("layer").replaceChildren(...Array.from({ length: view.layers }, (_, i) => make("option", { value: i }, layerSign(i))));
  $("head").replaceChildren(...heads.map((h) => make("option", { value: h }, headSign(h))));
}
function paintGrid() {
  now.bend = $("stretch").checked ? 1 / 2 : 2 / 3; // below 1, so that faint attention over many tokens can be seen; the legend shows it
  for (const b of $("grid").querySelectorAll("button")) thumb(b.firstChild, weights(+b.dataset.layer, +b.dataset.head));
}
function buildLines() {
  for (const [side, id] of [["q", "queries"], ["k", "keys"]])
    $(id).replaceChildren(...view[id].map((token, i) =>
      make("button", { role: "option", "data-side": side, "data-i": i }, make("bdi", {}, token), make("small", {}))));
  $("nq").textContent = `${view.Q} ${view.are[0]}`; $("nk").textContent = `${view.K} ${view.are[1]}`;
  $("hint").textContent = view.hint;
  $("maps").textContent = view.headNames ? "Maps" : "Layers and heads";
  $("head").previousSibling.textContent = view.headNames ? "map " : "head ";
  $("layer").parentNode.hidden = view.layers < 2; $("head").parentNode.hidden = view.heads < 2;
  $("view").classList.toggle("single", view.layers * view.heads < 2);
}

// ---- showing -------------------------------------------------------------------------------------------------------
function show() { // after a change of kind, layer, head or token
  map = weights(now.layer, now.head);
  $("where").textContent = where();
  $("layer").value = now.layer; $("head").value = now.head;
  for (const b of $("grid").querySelectorAll("[data-layer], [data-head]")) {
    const { layer = now.layer, head = now.head } = b.dataset, on = +layer === now.layer && +head === now.head;
    if (b.tagName === "SPAN") b.classList.toggle("on", on);
    else { b.setAttribute("aria-checked", on); b.tabIndex = on ? 0 : -1; }
  }
  const address = [view.slug, now.layer, now.head < 0 ? "mean" : now.head, now.pin.side + now.pin.i].join("/");
  try { history.replaceState(null, "", `#${address}`); } catch { /* a frame without an address */ }
  $("tip").hidden = true;
  legend(); mark(); place();
}
function legend() {
  const top = top1(), stops = Array.from({ length: 17 }, (_, i) => css(3 * Math.round(255 * i / 16)));
  $("bar").style.background = `linear-gradient(90deg, ${stops.join()})`;
  $("ticks").replaceChildren(...[0, 0.1, 0.25, 0.5, 0.75, 1].map((part) => {
    const tick = make("span", {}, String(+full(part * top)));
    tick.style.left = `${100 * part ** now.bend}%`;
    return tick;
  }));
}
function reveal(line, i) { // scrolls a long line of tokens, and never the page
  const b = line.children[i], from = line.scrollTop, to = from + line.clientHeight;
  if (b.offsetTop < from || b.offsetTop + b.offsetHeight > to) line.scrollTop = b.offsetTop - line.clientHeight / 2 + 18;
}
function asked() { // the token that is shown: {side, i}
  const { q = -1, k } = now.hover || {};
  return !now.hover ? now.pin : q >= 0 ? { side: "q", i: q } : { side: "k", i: k };
}
function mark() { // the chosen token and what it looks at (or who looks at it), in both lines and in words
  const { q: hq = -1, k: hk = -1 } = now.hover || {}, { side, i } = asked();
  const top = top1(), other = side === "q" ? "k" : "q", n = side === "q" ? view.K : view.Q;
  const values = Array.from({ length: n }, (_, j) => side === "q" ? map[i * view.K + j] : map[j * view.K + i]);
  for (const b of document.querySelectorAll(".line button")) {
    const j = +b.dataset.i, lit = b.dataset.side === other, c = lit ? tint(values[j], top) : 0;
    b.style.background = lit ? css(c) : ""; b.style.color = lit ? onto(c) : "";
    b.classList.toggle("lit", lit);
    const word = lit ? cellOf(...(side === "q" ? [i, j] : [j, i])) : "";
    b.lastChild.textContent = lit ? [word, digits(values[j])].filter(Boolean).join(" ") : j;
    b.classList.toggle("on", !lit && j === i);
    b.classList.toggle("near", lit && j === (side === "q" ? hk : -1));
    b.setAttribute("aria-selected", !lit && j === i);
    b.tabIndex = (b.dataset.side === now.pin.side ? j === now.pin.i : j === 0) ? 0 : -1;
  }
  const names = side === "q" ? [view.queries, view.keys] : [view.keys, view.queries];
  const first = values.map((w, j) => [w, j]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([w]) => w >= 0.01);
  const say = (token) => make("b", {}, make("bdi", {}, token));
  const verb = ` ${view.does[side === "q" ? 0 : 1]} `;
  const parts = first.flatMap(([w, j], at) => {
    const word = cellOf(...(side === "q" ? [i, j] : [j, i]));
    return [at ? ", " : "", ...(word ? [say(word), " at "] : []), say(names[1][j]), ` ${full(w)}`];
  });
  $("says").replaceChildren(say(names[0][i]), ` (${i})`, verb, ...(parts.length ? parts : ["nothing above 0.01"]));
  reveal($(other === "k" ? "keys" : "queries"), hk >= 0 && side === "q" ? hk : first.length ? first[0][1] : 0);
  if (!now.over) reveal($(side === "k" ? "keys" : "queries"), i);
  now.lit = { side, i, hq, hk };
}
{{map}}
// ---- moving about --------------------------------------------------------------------------------------------------
async function go(kind, layer, head, pin) {
  const fresh = view !== VIEWS[kind];
  if (fresh) {
    await unpack(VIEWS[kind]);
    view = VIEWS[kind];
    now.zoom = 1; now.hover = null;
    for (const tab of $("tabs").children) {
      const on = +tab.dataset.kind === kind;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      if (on) $("tabs").scrollLeft = tab.offsetLeft - 40;
    }
    $("view").setAttribute("aria-labelledby", `tab${kind}`);
    $("stretch").checked = view.K > 40; // many keys leave little for each
    buildGrid(); buildLines();
  }
  const clip = (x, low, high) => Math.min(high, Math.max(low, Math.trunc(x) || 0));
  now.kind = kind; now.layer = clip(layer, 0, view.layers - 1); now.head = clip(head, least(), headsOf(now.layer) - 1);
  now.pin = pin || (fresh ? null : now.pin) || { side: "q", i: view.start };
  now.pin.i = clip(now.pin.i, 0, (now.pin.side === "q" ? view.Q : view.K) - 1);
  show();
}
function fromAddress() { // kind/layer/head/token: "cross-attention/2/mean/q5"; what cannot be read falls back to the start
  let text = location.hash.slice(1);
  try { text = decodeURIComponent(text); } catch { /* not an address of ours */ }
  const [slug, layer, head, token] = text.split("/"), pin = /^([qk])(\d+)$/.exec(token || "");
  return go(Math.max(0, VIEWS.findIndex((v) => v.slug === slug)), layer, head === "mean" ? -1 : head, pin && { side: pin[1], i: +pin[2] });
}
const STEP = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
addEventListener("keydown", (event) => {
  const step = STEP[event.key], [line, tabs, grid] = [".line", "#tabs", "#grid"].map((where) => event.target.closest(where));
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest("select, input, #frame")) return;
  if (!grid && !line && !tabs && step[0]) return; // elsewhere up and down scroll the page
  event.preventDefault();
  const turn = step[0] + step[1];
  if (tabs) go((now.kind + turn + VIEWS.length) % VIEWS.length, now.layer, now.head).then(() => $(`tab${now.kind}`).focus());
  else if (line) {
    const next = turn > 0 ? event.target.nextSibling : event.target.previousSibling;
    if (next) { next.focus(); next.click(); }
  }
  else go(now.kind, now.layer + step[0], now.head + step[1]).then(() => grid && $("grid").querySelector("[aria-checked=true]").focus());
});
$("tabs").replaceChildren(...VIEWS.map((v, i) =>
  make("button", { role: "tab", id: `tab${i}`, "data-kind": i, "aria-controls": "view" }, capital(v.kind))));
$("tabs").onclick = (event) => { if (event.target.dataset.kind) go(+event.target.dataset.kind, now.layer, now.head); };
$("grid").onclick = (event) => {
  const b = event.target.closest("button");
  if (b) { go(now.kind, +b.dataset.layer, +b.dataset.head); b.focus(); }
};
$("layer").onchange = $("head").onchange = () => go(now.kind, +$("layer").value, +$("head").value);
$("stretch").onchange = () => { paintGrid(); show(); };
for (const id of ["queries", "keys"]) {
  const line = $(id), chip = (event) => event.target.closest("button")?.dataset;
  line.onclick = (event) => {
    const at = chip(event);
    if (!at) return;
    now.hover = null;
    go(now.kind, now.layer, now.head, { side: at.side, i: +at.i });
  };
  line.onpointerover = (event) => {
    const at = chip(event);
    if (!at || event.pointerType !== "mouse") return;
    now.over = true; now.hover = { [at.side]: +at.i };
    mark(); draw();
  };
  line.onpointerleave = () => { now.over = false; now.hover = null; mark(); draw(); };
}
night.addEventListener("change", () => { paintGrid(); show(); });
addEventListener("hashchange", fromAddress);
await fromAddress();
new ResizeObserver(place).observe($("chart"));
document.body.dataset.ready = "yes";
})();
