// ---- the large map: one canvas as large as its window, drawn again on every scroll, so that its size costs nothing ----------
const shape = () => view.K / view.Q;
const top1 = () => $("stretch").checked ? peak(map) || 1 : 1;
const thumb = (canvas, m) => paint(canvas, m, null, 64);
const INK = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const pen = $("map").getContext("2d");
const small = document.createElement("canvas"); // one pixel a weight, for cells too small to be drawn one by one
const text = (size, bold) => `${bold ? 650 : 400} ${size}px ${FONT}`;
function wide(tokens) {
  pen.font = text(12.5, true);
  return Math.ceil(tokens.reduce((most, t) => Math.max(most, pen.measureText(t).width), 0));
}
function short(token, room) { // cut in the middle: beginnings and ends tell words apart
  if (pen.measureText(token).width <= room) return token;
  const signs = [...token];
  while (signs.length > 2 && pen.measureText(signs.join("") + "…").width > room) signs.splice(signs.length >> 1, 1);
  signs.splice((signs.length + 1) >> 1, 0, "…");
  return signs.join("");
}
function place() { // sizes: as large as fits, a cell of some size never split between device pixels
  const frame = $("frame"), dpr = devicePixelRatio || 1, width = $("frame").parentNode.clientWidth;
  const left = Math.min(wide(view.queries) + 14, Math.max(70, Math.round(width * 0.24))), wk = wide(view.keys);
  const above = frame.getBoundingClientRect().top + scrollY, tall = Math.max(360, Math.min(innerHeight - 110, 900));
  let top, fit, high = Math.min(tall, innerHeight - above - 70); // the map ends where the window ends, unless that makes it too small
  if (high < 430) high = tall;
  let wider = 1; // cells that hold words are wider than high where there is room
  const measure = (head) => {
    const across = (width - left - 2) / view.K, down = Math.min((high - head - 2) / view.Q, 46);
    top = head; fit = Math.min(across, down); wider = view.cells ? Math.max(1, Math.min(across / fit, 110 / fit)) : 1;
  };
  const labels = () => { measure(24); if (wk > fit * wider * 1.3) measure(Math.min(wk, 110) + 12); };
  labels();
  if (fit < (view.cells ? 20 : 13)) { high = tall; labels(); }
  const snap = (x) => x < 6 ? x : Math.floor(x * dpr) / dpr;
  const cell = snap(fit * now.zoom), across = snap(fit * wider * now.zoom), all = [left + across * view.K + 2, top + cell * view.Q + 2];
  box = { left, top, cell, across, dpr, level: wk <= across * 1.3, fits: fit };
  frame.style.overflow = now.zoom > 1 ? "auto" : "hidden";
  frame.style.height = `${Math.min(all[1], high)}px`;
  $("space").style.width = `${all[0]}px`; $("space").style.height = `${all[1]}px`;
  const w = Math.min(all[0], frame.clientWidth), h = Math.min(all[1], frame.clientHeight);
  $("map").width = Math.round(w * dpr); $("map").height = Math.round(h * dpr);
  $("map").style.width = `${w}px`; $("map").style.height = `${h}px`;
  const name = `${view.kind}, ${where()}`;
  $("map").setAttribute("aria-label", `${name}: ${view.Q} queries by ${view.K} keys; the token lines beside it give the numbers`);
  $("less").disabled = $("fit").disabled = now.zoom === 1; $("more").disabled = cell >= 46;
  if (cell < 8) paint(small, map, top1(), 4096);
  draw();
}
function draw() {
  const { left, top, cell, across, dpr, level } = box, canvas = $("map"), W = canvas.width / dpr, H = canvas.height / dpr;
  const sx = $("frame").scrollLeft, sy = $("frame").scrollTop, { hq, hk, side, i } = now.lit, best = top1();
  const q0 = Math.floor(sy / cell), q1 = Math.min(view.Q, Math.ceil((sy + H - top) / cell));
  const k0 = Math.floor(sx / across), k1 = Math.min(view.K, Math.ceil((sx + W - left) / across));
  const row = hq >= 0 ? hq : side === "q" ? i : -1, column = hk >= 0 ? hk : side === "k" ? i : -1;
  const ink = INK("--ink"), soft = INK("--soft"), gold = INK("--mark"), paper = INK("--paper");
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  pen.direction = "ltr"; // a right-to-left token must not turn the axis around
  pen.clearRect(0, 0, W, H);
  pen.save();
  pen.beginPath(); pen.rect(left - 2, top - 2, W - left + 2, H - top + 2); pen.clip(); // with room for a line around the first cells
  pen.translate(left - sx, top - sy);
  if (cell < 8) {
    pen.imageSmoothingEnabled = small.width < view.K || small.height < view.Q;
    pen.drawImage(small, 0, 0, view.K * across, view.Q * cell);
  } else {
    const gap = cell >= 14 ? 1 : 0, said = across >= 31 && (view.cells ? cell >= 12 : cell >= 31);
    pen.font = text(Math.min(11.5, cell - 2)); pen.textAlign = "center"; pen.textBaseline = "middle";
    for (let q = q0; q < q1; q++) for (let k = k0; k < k1; k++) {
      const w = map[q * view.K + k], c = tint(w, best);
      pen.fillStyle = css(c);
      pen.fillRect(k * across, q * cell, across - gap, cell - gap);
      if (!said || w < 0.005) continue;
      pen.fillStyle = onto(c);
      pen.fillText(view.cells ? short(cellOf(q, k), across - 5) : w.toFixed(2).replace(/^0/, ""), (k + 0.5) * across, (q + 0.5) * cell, across - 3);
    }
  }
  pen.strokeStyle = gold; pen.lineWidth = cell < 8 ? 1 : 2;
  const half = pen.lineWidth / 2; // the lines run around the cells, not over them
  if (row >= 0) pen.strokeRect(half, row * cell - half, view.K * across - half, cell + half);
  if (column >= 0) pen.strokeRect(column * across - half, half, across + half, view.Q * cell - half);
  pen.restore();
  const label = (tokens, at, bold, put) => {
    pen.font = text(cell < 15 ? 11.5 : 12.5, bold);
    pen.fillStyle = bold ? ink : soft;
    put(tokens[at], at);
  };
  const clear = (...area) => { const fill = pen.fillStyle; pen.fillStyle = paper; pen.fillRect(...area); pen.fillStyle = fill; };
  const rowLabel = (token, q) => {
    const y = top + (q + 0.5) * cell - sy;
    if (y < top - 4 || y > H) return;
    if (q === row) clear(0, y - 8, left - 1, 16);
    pen.textAlign = "right"; pen.textBaseline = "middle"; pen.fillText(short(token, left - 12), left - 7, y);
  };
  const columnLabel = (token, k) => {
    const x = left + (k + 0.5) * across - sx;
    if (x < left - 4 || x > W) return;
    pen.save(); pen.translate(x, top - 7);
    if (!level) pen.rotate(-Math.PI / 2);
    if (k === column) clear(level ? -across / 2 : -3, level ? -14 : -8, level ? across : top, 16);
    pen.textAlign = level ? "center" : "left"; pen.textBaseline = level ? "alphabetic" : "middle";
    pen.fillText(level ? token : short(token, top - 12), 0, 0, level ? across - 2 : top);
    pen.restore();
  };
  const every = Math.ceil(13 / cell), nth = Math.ceil(13 / across); // small cells: each nth token is named, and the chosen ones always
  for (let q = q0 - q0 % every; q < q1; q += every)
    if (row < 0 || Math.abs(q - row) * cell >= 13) label(view.queries, q, false, rowLabel);
  for (let k = k0 - k0 % nth; k < k1; k += nth)
    if (column < 0 || Math.abs(k - column) * across >= 13) label(view.keys, k, false, columnLabel);
  if (row >= 0) label(view.queries, row, true, rowLabel);
  if (column >= 0) label(view.keys, column, true, columnLabel);
}
function cellAt(event) { // {q, k} under the pointer; over the labels only one of them
  const at = $("map").getBoundingClientRect(), x = event.clientX - at.left - box.left, y = event.clientY - at.top - box.top;
  const k = Math.floor((x + $("frame").scrollLeft) / box.across), q = Math.floor((y + $("frame").scrollTop) / box.cell), found = {};
  if (y >= 0 && q >= 0 && q < view.Q) found.q = q;
  if (x >= 0 && k >= 0 && k < view.K) found.k = k;
  return "q" in found || "k" in found ? found : null;
}
function point(event) {
  now.hover = cellAt(event);
  const { q, k } = now.hover || {}, both = q !== undefined && k !== undefined, tip = $("tip");
  tip.hidden = !both;
  if (both) {
    const weight = make("b", {}, map[q * view.K + k].toFixed(3));
    const word = cellOf(q, k), also = word ? [make("bdi", {}, word), " "] : [];
    tip.replaceChildren(make("bdi", {}, view.queries[q]), " → ", make("bdi", {}, view.keys[k]), "  ", ...also, weight);
    const side = event.clientX + tip.offsetWidth + 24 > innerWidth ? event.clientX - tip.offsetWidth - 12 : event.clientX + 14;
    tip.style.left = `${Math.max(4, side)}px`; tip.style.top = `${Math.max(4, event.clientY - 38)}px`;
  }
  mark(); draw();
}
function size(zoom) {
  now.zoom = Math.max(1, Math.min(zoom, 46 / box.fits));
  if (now.zoom < 1.05) now.zoom = 1;
  place();
  $("frame").scrollTo(Math.max(0, (now.hover?.k ?? now.pin.i) * box.across - 200), Math.max(0, (now.hover?.q ?? now.pin.i) * box.cell - 200));
}
$("map").onpointermove = (event) => { if (event.pointerType === "mouse") point(event); };
$("map").onpointerleave = (event) => { $("tip").hidden = true; if (event.pointerType === "mouse") { now.hover = null; mark(); draw(); } };
$("map").onclick = (event) => {
  const at = cellAt(event);
  if (!at) return;
  now.pin = "q" in at ? { side: "q", i: at.q } : { side: "k", i: at.k };
  show(); point(event);
};
$("frame").onscroll = draw;
addEventListener("scroll", () => { $("tip").hidden = true; }, true);
$("less").onclick = () => size(now.zoom / 1.6);
$("more").onclick = () => size(Math.max(now.zoom * 1.6, 14 / box.fits)); // the first step goes to where every token has its name
$("fit").onclick = () => size(1);
