(function () {
  "use strict";
  const html = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const darkOf = JSON.parse(document.getElementById("dark-colors").textContent);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const shown = {};

  function recolored(value, dark) {
    if (typeof value === "string") return dark && Object.hasOwn(darkOf, value) ? darkOf[value] : value;
    if (Array.isArray(value)) return value.map((inner) => recolored(inner, dark));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recolored(inner, dark)]));
  }

  function draw(box, dark) {
    const figure = figures[box.dataset.figure];
    const data = recolored(figure.data, dark);
    if (figure.choices.length) {
      const visible = figure.choices[shown[box.dataset.figure] || 0];
      data.forEach((trace, place) => { trace.visible = visible.includes(place); });
    }
    return Plotly.react(box, data, recolored(figure.layout, dark), {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
      toImageButtonOptions: { filename: figure.file, scale: 2 },
    });
  }

  const boxes = Array.from(document.querySelectorAll("[data-figure]"));
  html.dataset.figures = String(boxes.length);

  function redraw(dark) { boxes.forEach((box) => draw(box, dark)); }

  async function drawAll() {
    for (const box of boxes) {
      await draw(box, prefersDark.matches);
      html.dataset.drawn = String(Number(html.dataset.drawn) + 1);
      // Let the reader scroll between two figures.
      await new Promise((resume) => setTimeout(resume, 0));
    }
    html.dataset.requests = String(performance.getEntriesByType("resource").length);
    html.dataset.ready = "yes";
  }

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

  document.querySelectorAll("thead").forEach((head) => {
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

  document.querySelectorAll("select[data-for]").forEach((select) => {
    select.addEventListener("change", () => {
      shown[select.dataset.for] = select.selectedIndex;
      draw(boxes.find((box) => box.dataset.figure === select.dataset.for), prefersDark.matches);
    });
  });

  prefersDark.addEventListener("change", () => redraw(prefersDark.matches));
  addEventListener("beforeprint", () => redraw(false));
  addEventListener("afterprint", () => redraw(prefersDark.matches));
  drawAll();
})();
