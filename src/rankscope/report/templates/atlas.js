(function () {
  "use strict";
  const curves = JSON.parse(document.getElementById("atlas").textContent);
  const form = document.querySelector(".filters"), panels = document.querySelector(".panels");
  const rows = Array.from(document.querySelectorAll(".atlas tbody tr"));
  const WIDTH = 340, HEIGHT = 210, LEFT = 40, RIGHT = 12, TOP = 10, BOTTOM = 24, FULL = 40;
  const TONES = 6, MOST_BANDS = 3;

  function element(parent, tag, settings, text) {
    const isPage = parent.namespaceURI.endsWith("xhtml") && tag !== "svg";
    const one = document.createElementNS(`http://www.w3.org/${isPage ? "1999/xhtml" : "2000/svg"}`, tag);
    Object.entries(settings || {}).forEach(([key, value]) => one.setAttribute(key, value));
    if (text !== undefined) one.textContent = text;
    return parent.appendChild(one);
  }

  function shown(value) { return (value > 0 ? "+" : "") + Number(value.toPrecision(3)); }

  // Round numbers that cut the axis into three to six parts.
  function ticks(low, high) {
    const power = 10 ** Math.floor(Math.log10((high - low) / 3));
    const step = [5, 2, 1].map((part) => part * power).find((size) => (high - low) / size >= 3);
    const first = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
  }

  // Points and zero are always inside; an interval reaches at most as far again.
  function span(lines) {
    const points = lines.flatMap((line) => line.points.concat(line.full ? [line.full] : []));
    const values = [0, ...points.map((point) => point[1])];
    const least = Math.min(...values), most = Math.max(...values);
    const reach = most - least || Math.max(...points.map((point) => point[3] - point[2])) || 1;
    const low = Math.max(least - reach, Math.min(least, ...points.map((point) => point[2])));
    const high = Math.min(most + reach, Math.max(most, ...points.map((point) => point[3])));
    return [low - 0.04 * (high - low), high + 0.04 * (high - low)];
  }

  function draw(lines) {
    const [{ model, model_sha256: sha256, task, unit }] = lines;
    const box = element(panels, "figure", { class: "panel" });
    element(box, "h3", {}, task);
    element(box, "p", { title: `sha256 of the base: ${sha256}` }, `${model}; ${unit}`);
    const svg = element(box, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    svg.setAttribute("aria-label", `Expected net gain against rank: ${task}, ${model}`);
    svg.classList.toggle("many", lines.length > MOST_BANDS);
    const ranks = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
    const [low, high] = span(lines), hasFull = lines.some((line) => line.full);
    const end = WIDTH - RIGHT - (hasFull ? FULL : 0), width = Math.log2(ranks.at(-1) / ranks[0]);
    const pad = 14, inner = end - LEFT - 2 * pad;
    const x = (rank) => LEFT + pad + (width ? (Math.log2(rank / ranks[0]) / width) * inner : inner / 2);
    const y = (value) => {
      const place = (high - Math.min(high, Math.max(low, value))) / (high - low);
      return TOP + place * (HEIGHT - TOP - BOTTOM);
    };
    for (const value of ticks(low, high)) {
      const at = { y1: y(value), y2: y(value), x1: LEFT, x2: WIDTH - RIGHT };
      element(svg, "line", { class: Math.abs(value) < 1e-9 ? "zero" : "grid", ...at });
      element(svg, "text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, shown(value));
    }
    let taken = -Infinity;
    for (const rank of ranks) {
      const half = 3.5 * String(rank).length + 2;
      if (x(rank) - half < taken) continue;
      taken = x(rank) + half;
      element(svg, "text", { x: x(rank), y: HEIGHT - 6, "text-anchor": "middle" }, rank);
    }
    if (hasFull) element(svg, "text", { x: WIDTH - RIGHT - FULL / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "full");
    const list = element(box, "ul");
    lines.forEach((line, place) => drawLine(svg, list, line, place, lines.length, x, y));
  }

  function drawLine(svg, list, line, place, number, x, y) {
    const shift = (place - (number - 1) / 2) * Math.min(4, 20 / number);
    const tone = `t${place % TONES}`, dashed = place >= TONES;
    const group = element(svg, "g", { class: `line ${tone}` });
    const at = (point) => [(point[0] === null ? WIDTH - RIGHT - FULL / 2 : x(point[0])) + shift, y(point[1])];
    const path = (points) => points.map((point) => point.join(",")).join("L");
    if (line.points.length > 1) {
      const band = [...line.points.map((p) => [at(p)[0], y(p[3])]), ...line.points.map((p) => [at(p)[0], y(p[2])]).reverse()];
      element(group, "path", { class: "band", d: `M${path(band)}Z` });
      element(group, "path", { d: `M${path(line.points.map(at))}`, ...(dashed ? { "stroke-dasharray": "5 3" } : {}) });
    }
    const all = line.points.concat(line.full ? [line.full] : []);
    for (const point of all) {
      const [left, top] = at(point);
      if (point[0] === null || line.points.length === 1)
        element(group, "line", { class: "bar", x1: left, x2: left, y1: y(point[2]), y2: y(point[3]) });
      const mark = point[0] === null
        ? element(group, "rect", { x: left - 4, y: top - 4, width: 8, height: 8 })
        : element(group, "circle", { cx: left, cy: top, r: 4.2 });
      if (line.isAnswer && point[5] === line.arm) element(group, "circle", { class: "ring", cx: left, cy: top, r: 8 });
      const text = `${shown(point[1])} [${shown(point[2])}, ${shown(point[3])}] ${line.unit}, expected`;
      element(mark, "title", {}, `${line.study}: ${point[5]}\n${text}\nwithin the margin of the best: ${Math.floor(100 * point[4])} %`);
    }
    const item = element(list, "li", { class: dashed ? `${tone} dashed` : tone });
    element(item, "i");
    element(item, "a", { href: `#row-${line.row}` }, line.several ? `${line.study}: ${line.name}` : line.study);
  }

  function show() {
    const { model, task, method, p, least, found } = form.elements;
    const isShown = (row) => (!model.value || row.dataset.model === model.value)
      && (!task.value || row.dataset.task === task.value)
      && (!method.value || row.dataset.method.split(" ").includes(method.value))
      && Number(row.dataset.p) >= Number(p.value);
    rows.forEach((row) => { row.hidden = !isShown(row); });
    const kept = new Set(rows.filter((row) => !row.hidden).map((row) => row.id));
    least.value = `${p.value} %`;
    found.value = `${kept.size} of ${rows.length} rows`;
    const byPanel = new Map();
    for (const curve of curves.filter((one) => kept.has(`row-${one.row}`))) {
      const key = JSON.stringify([curve.model_sha256, curve.model, curve.task, curve.unit]);
      const own = curve.lines.filter((line) => line.method === method.value);
      const lines = own.length ? own : curve.lines; // a method without ranks has no line
      // Full fine-tuning is drawn once, with the first line of its study.
      const drawn = lines.map((line, place) => ({
        ...curve, ...line, several: lines.length > 1, full: place ? null : curve.full,
      }));
      byPanel.set(key, (byPanel.get(key) || []).concat(drawn));
    }
    panels.replaceChildren();
    [...byPanel.values()].filter((lines) => lines.length).forEach(draw);
    if (!panels.children.length) element(panels, "p", {}, "No curve matches.");
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
