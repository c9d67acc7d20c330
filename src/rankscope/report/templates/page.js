(function () {
  "use strict";
  const html = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const stored = document.getElementById("item-data");
  const itemData = stored ? JSON.parse(stored.textContent) : [];
  const darkOf = JSON.parse(document.getElementById("dark-colors").textContent);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isPhone = matchMedia("(max-width: 36rem)");
  const shown = {};

  function recolored(value, dark) {
    if (typeof value === "string") return dark && Object.hasOwn(darkOf, value) ? darkOf[value] : value;
    if (Array.isArray(value)) return value.map((inner) => recolored(inner, dark));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recolored(inner, dark)]));
  }

  function settings(figure, width) {
    const layout = { ...figure.layout };
    if (width) Object.assign(layout, { width, autosize: false });
    // A finger scrolls the page; a mouse zooms by dragging and goes back by a double click.
    else if (matchMedia("(pointer: fine)").matches) layout.dragmode = "zoom";
    return layout;
  }

  function draw(box, dark, width) {
    const figure = figures[box.dataset.figure];
    const data = recolored(figure.data, dark);
    if (isPhone.matches && !width) data.forEach((trace) => Object.assign(trace, trace.meta && trace.meta.narrow));
    if (figure.choices.length) {
      const visible = figure.choices[shown[box.dataset.figure] || 0];
      data.forEach((trace, place) => { trace.visible = visible.includes(place); });
    }
    return Plotly.react(box, data, recolored(settings(figure, width), dark), {
      responsive: true, displayModeBar: false,
    });
  }

  const boxes = Array.from(document.querySelectorAll("[data-figure]"));
  const drawn = new Set();
  html.dataset.figures = String(boxes.length);

  function redraw(dark, width) { drawn.forEach((box) => draw(box, dark, width)); }

  function hintCut(across) {
    const rest = across.scrollWidth - across.clientWidth - across.scrollLeft;
    across.parentElement.classList.toggle("cut", rest > 24);
  }

  // Figures in a closed fold have no size yet; they are drawn when it opens.
  async function drawOpen() {
    for (const box of boxes) {
      if (drawn.has(box) || box.closest("details:not([open])")) continue;
      drawn.add(box);
      await draw(box, prefersDark.matches);
      hintCut(box.parentElement);
      html.dataset.drawn = String(drawn.size);
      // Let the reader scroll between two figures.
      await new Promise((resume) => setTimeout(resume, 0));
    }
  }

  async function unpackPlotly() {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function drawAll() {
    if (!("DecompressionStream" in window)) {
      document.querySelector(".old-browser").hidden = false;
      return;
    }
    if (boxes.length) await unpackPlotly();
    await drawOpen();
    document.querySelectorAll("details").forEach((one) => one.addEventListener("toggle", drawOpen));
    document.querySelectorAll(".across").forEach((across) => {
      across.addEventListener("scroll", () => hintCut(across));
    });
    addEventListener("resize", () => document.querySelectorAll(".across").forEach(hintCut));
    html.dataset.requests = String(performance.getEntriesByType("resource").length);
    html.dataset.ready = "yes";
  }

  function boxOf(control) {
    return boxes.find((box) => box.dataset.figure === control.dataset.for);
  }

  document.querySelectorAll("button.png").forEach((button) => {
    button.addEventListener("click", () => {
      const filename = figures[button.dataset.for].file;
      Plotly.downloadImage(boxOf(button), { format: "png", scale: 2, filename });
    });
  });

  document.querySelectorAll("button.copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // Without the right to write to the clipboard, the text is marked for Ctrl-C.
        getSelection().selectAllChildren(code);
        button.textContent = "Press Ctrl-C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  });

  // Text that a spreadsheet would run as a formula is kept text.
  function csvCell(cell) {
    if (cell.dataset.v !== undefined) return cell.dataset.v;
    if (cell.matches("td.n")) return "";
    const text = cell.textContent;
    const safe = /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
    return '"' + safe.replaceAll('"', '""') + '"';
  }

  function csvOf(table) {
    return Array.from(table.rows, (row) => Array.from(row.cells, csvCell).join(",")).join("\r\n") + "\r\n";
  }

  document.querySelectorAll("button.csv").forEach((button) => {
    button.addEventListener("click", () => {
      const table = button.parentElement.querySelector("table");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv;charset=utf-8" }));
      link.download = button.dataset.file + ".csv";
      link.click();
      // Not at once: the download reads the blob after the click has returned.
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    });
  });

  // What a cell is sorted by; unknown numbers come last in either direction.
  function sortValue(cell) {
    if (cell.dataset.v !== undefined) {
      const value = Number(cell.dataset.v);
      return Number.isFinite(value) ? value : null;
    }
    return cell.matches("td.n") ? null : cell.textContent;
  }

  function compared(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sortBy(table, column, direction) {
    const known = [], unknown = [];
    for (const row of table.tBodies[0].rows) {
      const value = sortValue(row.cells[column]);
      (value === null ? unknown : known).push({ row, value });
    }
    known.sort((a, b) => direction * compared(a.value, b.value));
    table.tBodies[0].append(...known.concat(unknown).map((entry) => entry.row));
  }

  document.querySelectorAll(".scroll thead").forEach((head) => {
    const table = head.parentElement;
    if (table.tBodies[0].rows.length < 2) return;
    const headings = Array.from(head.rows[0].cells);
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        sortBy(table, column, up ? 1 : -1);
      });
    });
  });

  const MOST_FOUND = 50;

  function itemNode([outcome, prompt, gold, answers], names) {
    const node = (tag, ...inner) => {
      const element = document.createElement(tag);
      element.append(...inner);
      return element;
    };
    const titled = (title, text) => node("div", node("dt", title), node("dd", text));
    const texts = [titled("right answer", gold), ...answers.map((text, place) => titled(names[place], text))];
    const item = node("li", node("details", node("summary", prompt), node("dl", ...texts)));
    item.className = outcome;
    return item;
  }

  document.querySelectorAll(".compared").forEach((block) => {
    const [rows, first, names] = itemData[block.dataset.items];
    const input = block.querySelector("input"), outcome = block.querySelector("select");
    const search = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const isFound = (row) => (!outcome.value || row[0] === outcome.value)
        && words.every((word) => row.slice(1).flat().some((text) => text.toLowerCase().includes(word)));
      const isAsked = words.length > 0 || outcome.value !== "";
      const found = isAsked ? rows.filter(isFound) : first.map((place) => rows[place]);
      block.querySelector("ol").replaceChildren(...found.slice(0, MOST_FOUND).map((row) => itemNode(row, names)));
      block.querySelector("output").textContent = isAsked
        ? `${found.length} found${found.length > MOST_FOUND ? `, the first ${MOST_FOUND} shown` : ""}`
        : "";
    };
    block.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    input.addEventListener("input", search);
    outcome.addEventListener("change", search);
  });

  document.querySelectorAll("select[data-for]").forEach((select) => {
    select.addEventListener("change", () => {
      shown[select.dataset.for] = select.selectedIndex;
      draw(boxOf(select), prefersDark.matches);
    });
  });

  const contents = document.querySelector(".contents details");
  const isNarrow = matchMedia("(max-width: 77.99rem)");
  const fold = () => { contents.open = !isNarrow.matches; };
  isNarrow.addEventListener("change", fold);
  fold();

  // A link to something in a fold opens the fold.
  addEventListener("hashchange", () => {
    const target = document.getElementById(location.hash.slice(1));
    const inner = target && (target.matches("details") ? target : target.querySelector(":scope > details"));
    if (inner) inner.open = true;
  });

  const PAPER_WIDTH = 640;
  [prefersDark, isPhone].forEach((mode) => {
    mode.addEventListener("change", () => redraw(prefersDark.matches));
  });
  addEventListener("beforeprint", () => redraw(false, PAPER_WIDTH));
  addEventListener("afterprint", () => redraw(prefersDark.matches));
  drawAll();
})();
