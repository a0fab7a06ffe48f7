// ---- the picture: dimmed and grey, with the weights of one entry over it ----------------------------------------------------
const P = DATA.picture, pen = $("map").getContext("2d");
const shape = () => P.width / P.height;
const most = (m, at) => { // of this entry, as others may be far sharper, and of what is on the picture, as a class token may get most
  const { places } = view.on[at.side === "q" ? "k" : "q"];
  return $("stretch").checked ? peak(row(m, at).filter((_, j) => places[j])) || 1 : 1;
};
const top1 = () => most(map, asked());
const base = await (async () => {
  const image = await createImageBitmap(new Blob([Uint8Array.from(atob(P.jpeg), (c) => c.charCodeAt(0))], { type: "image/jpeg" }));
  const canvas = make("canvas", { width: image.width, height: image.height }), ctx = canvas.getContext("2d");
  ctx.drawImage(image, 0, 0);
  const found = ctx.getImageData(0, 0, canvas.width, canvas.height), d = found.data;
  for (let i = 0; i < d.length; i += 4) d.fill(P.dimmed * (P.luma[0] * d[i] + P.luma[1] * d[i + 1] + P.luma[2] * d[i + 2]), i, i + 3);
  ctx.putImageData(found, 0, 0);
  return canvas;
})();
function row(m, { side, i }) { // what an entry looks at, or who looks at it
  return Array.from({ length: side === "q" ? view.K : view.Q }, (_, j) => (side === "q" ? m[i * view.K + j] : m[j * view.K + i]) || 0);
}
function lay(ctx, W, H, values, { places, tiled }, top, wide) { // weights over a picture of W x H
  values.forEach((w, j) => {
    if (!places[j]) return;
    const [x0, y0, x1, y1] = places[j].map((share, axis) => tiled ? Math.round(share * (axis % 2 ? H : W)) : share * (axis % 2 ? H : W));
    const colour = `rgba(${P.hue.join()},${P.most * (w / top) ** now.bend})`;
    ctx.fillStyle = ctx.strokeStyle = colour; ctx.lineWidth = wide;
    if (tiled) ctx.fillRect(x0, y0, x1 - x0, y1 - y0);
    else ctx.strokeRect(x0, y0, x1 - x0, y1 - y0);
  });
}
function thumb(canvas, m) {
  const at = now.pin || { side: "q", i: view.start }, values = row(m, at), ctx = canvas.getContext("2d");
  canvas.width = 96; canvas.height = Math.max(1, Math.round(96 / Math.min(1.6, Math.max(0.6, shape()))));
  ctx.fillStyle = css(0); ctx.fillRect(0, 0, canvas.width, canvas.height);
  lay(ctx, canvas.width, canvas.height, values, view.on[at.side === "q" ? "k" : "q"], most(m, at), 2);
}
let painted = "";
function place() {
  const dpr = devicePixelRatio || 1, width = $("frame").parentNode.clientWidth, tall = Math.max(300, Math.min(innerHeight - 170, 900));
  const scale = Math.min(width / P.width, tall / P.height), W = Math.round(P.width * scale), H = Math.round(P.height * scale);
  box = { W, H, dpr };
  for (const id of ["space", "map"]) { $(id).style.width = `${W}px`; $(id).style.height = `${H}px`; }
  $("frame").style.height = `${H}px`;
  $("map").width = Math.round(W * dpr); $("map").height = Math.round(H * dpr);
  const { side, i } = now.pin, who = view[side === "q" ? "queries" : "keys"][i];
  $("map").setAttribute("aria-label", `${view.kind}, ${where()}, of ${who}, over the picture; the lines beside it give the numbers, arrow keys choose another`);
  const shown = [now.kind, side, i].join();
  if (shown !== painted) paintGrid();
  painted = shown;
  draw();
}
function draw() {
  const { W, H, dpr } = box, at = asked(), { side, i } = at, values = row(map, at);
  pen.setTransform(dpr, 0, 0, dpr, 0, 0);
  pen.imageSmoothingEnabled = base.width > 200;
  pen.drawImage(base, 0, 0, W, H);
  lay(pen, W, H, values, view.on[side === "q" ? "k" : "q"], top1(), 3);
  const ring = (place, colour, wide) => {
    if (!place) return;
    const [x0, y0, x1, y1] = place.map((share, axis) => share * (axis % 2 ? H : W));
    pen.strokeStyle = colour; pen.lineWidth = wide; pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  };
  const { places, tiled, offered } = view.on.q;
  if (!tiled) for (const j of offered) ring(places[j], "rgba(255,255,255,.6)", 1);
  if (now.hover?.k >= 0 && side === "q") ring(view.on.k.places[now.hover.k], "rgba(255,255,255,.8)", 1);
  ring(view.on[side].places[i], "#000", 5); ring(view.on[side].places[i], "#fff", 2.5);
  legend();
}
function under(event, side, among) { // the smallest entry under the pointer, -1 where there is none
  const at = $("map").getBoundingClientRect(), x = (event.clientX - at.left) / at.width, y = (event.clientY - at.top) / at.height;
  const size = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0), { places } = view.on[side];
  const inside = (among || places.map((_, j) => j)).filter((j) => {
    const [x0, y0, x1, y1] = places[j] || [];
    return x >= x0 && x < x1 && y >= y0 && y < y1;
  });
  return inside.reduce((best, j) => best < 0 || size(places[j]) < size(places[best]) ? j : best, -1);
}
function choose(i) {
  if (i < 0 || (now.pin.side === "q" && now.pin.i === i)) return;
  now.hover = null; now.pin = { side: "q", i };
  show();
}
function point(event) { // the weight of what is under the pointer, for the chosen entry
  if (event.buttons & 1 && view.on.q.tiled) choose(under(event, "q", view.on.q.offered));
  const { side, i } = now.pin, other = side === "q" ? "k" : "q", j = under(event, other), tip = $("tip");
  now.hover = side === "q" && j >= 0 ? { q: i, k: j } : null;
  tip.hidden = j < 0;
  if (j >= 0) {
    const [q, k] = side === "q" ? [i, j] : [j, i], weight = make("b", {}, map[q * view.K + k].toFixed(3));
    tip.replaceChildren(make("bdi", {}, view.queries[q]), " → ", make("bdi", {}, view.keys[k]), "  ", weight);
    const left = event.clientX + tip.offsetWidth + 24 > innerWidth ? event.clientX - tip.offsetWidth - 12 : event.clientX + 14;
    tip.style.left = `${Math.max(4, left)}px`; tip.style.top = `${Math.max(4, event.clientY - 38)}px`;
  }
  mark(); draw();
}
$("map").onpointermove = (event) => { if (event.pointerType === "mouse") point(event); };
$("map").onpointerleave = () => { $("tip").hidden = true; now.hover = null; mark(); draw(); };
$("map").onclick = (event) => choose(under(event, "q", view.on.q.offered));
$("map").tabIndex = 0;
$("map").onkeydown = (event) => { // to the nearest entry that way
  const [down, right] = STEP[event.key] || [0, 0], { places, offered } = view.on.q;
  if (!down && !right) return;
  event.preventDefault();
  const middle = (p) => p ? [(p[0] + p[2]) / 2 * P.width, (p[1] + p[3]) / 2 * P.height] : [P.width / 2, P.height / 2];
  const [x, y] = middle(now.pin.side === "q" ? places[now.pin.i] : null);
  const far = (j) => { // sideways counts double, so that a row of patches is kept
    const [a, b] = middle(places[j]), along = (a - x) * right + (b - y) * down, aside = Math.abs((a - x) * down) + Math.abs((b - y) * right);
    return along > 1e-3 && places[j] ? along + 2 * aside : Infinity;
  };
  const best = offered.reduce((least, j) => far(j) < (least < 0 ? Infinity : far(least)) ? j : least, -1);
  choose(best);
};
addEventListener("scroll", () => { $("tip").hidden = true; }, true);
document.querySelector(".zoom").hidden = true;
