"""The report opened in Chromium: everything drawn, nothing asked for, nothing broken.

The page keeps its own record of faults on ``<html>``; Chromium runs it and prints the document.
"""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rankscope.report.html import render
from rankscope.report.style import SURFACE
from rankscope.report.view import StudyView

from .studies import hostile_study, ordinary_study

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page was not opened in a browser"
)

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--virtual-time-budget=120000",
)

# Runs after the page is ready and writes what it finds on <html>, as the page itself does.
AFTER = """<script>
(async () => {
  const out = document.documentElement.dataset;
  while (out.ready !== "yes") await new Promise((go) => setTimeout(go, 50));
  const boxes = Array.from(document.querySelectorAll("[data-figure]"));
  out.drawings = boxes.filter((box) => box.querySelector("svg.main-svg")).length;
  out.paper = boxes[0]._fullLayout.paper_bgcolor;
  const image = await Plotly.toImage(boxes[0], { format: "png", width: 400, height: 300 });
  out.png = image.slice(0, 21) + image.length;
  const blobs = [];
  URL.createObjectURL = (blob) => { blobs.push(blob); return "#"; };
  document.querySelector("button.csv").click();
  out.csv = await blobs[0].text();
  const select = document.querySelector("select[data-for]");
  select.selectedIndex = 1;
  select.dispatchEvent(new Event("change"));
  const map = boxes.find((box) => box.dataset.figure === select.dataset.for);
  out.layers = map.data.map((trace) => Number(trace.visible)).join("");
  out.overflow = document.documentElement.scrollWidth - innerWidth;
  out.requests = performance.getEntriesByType("resource").length;
  out.done = "yes";
})();
</script>"""
DARK = """<script>
const asked = window.matchMedia.bind(window);
window.matchMedia = (query) => query.includes("color-scheme: dark")
  ? { matches: true, addEventListener() {} } : asked(query);
</script>"""


def opened(page: str, folder: Path, width: int = 1280) -> dict[str, str]:
    """Open a page in Chromium; what it left on ``<html>``, by name."""
    path = folder / "report.html"
    path.write_text(page.replace("</body>", AFTER + "</body>"), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *QUIET,
        f"--window-size={width},900",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=240)
    text = done.stdout.decode("utf-8")
    opening = re.search(r"<html[^>]*>", text)
    assert opening is not None, done.stderr.decode("utf-8", "replace")[-2000:]
    return {k: html.unescape(v) for k, v in re.findall(r'data-([\w-]+)="([^"]*)"', opening[0])}


def assert_clean(found: dict[str, str], figures: int) -> None:
    assert found.get("done") == "yes", found
    assert found["errors"] == "0", found.get("last-error")
    assert found["violations"] == "0", found.get("last-violation")
    assert found["requests"] == "0"
    assert int(found["figures"]) == int(found["drawn"]) == int(found["drawings"]) == figures
    assert found["png"].startswith("data:image/png;base64")
    assert "owned" not in found


def test_every_figure_is_drawn_and_every_button_works(tmp_path: Path) -> None:
    study, advice = ordinary_study()
    page = render(StudyView(study, advice))
    found = opened(page, tmp_path)
    assert_clean(found, figures=19)
    lines = found["csv"].splitlines()
    arms = advice.advice[0].arms
    assert lines[0].startswith('"arm","seeds","gain over base, points"')
    assert [line.split(",")[0] for line in lines[1:]] == [f'"{arm.label}"' for arm in arms]
    gain = arms[0].gain
    assert gain is not None
    assert float(lines[1].split(",")[2]) == pytest.approx(100 * gain.value)
    assert found["layers"] == "01" + "0" * (len(found["layers"]) - 2)


def test_hostile_data_do_nothing_in_a_browser(tmp_path: Path) -> None:
    assert_clean(opened(render(StudyView(*hostile_study())), tmp_path), figures=19)


def test_a_dark_system_gets_dark_figures_and_a_phone_no_sideways_scroll(tmp_path: Path) -> None:
    page = render(StudyView(*ordinary_study())).replace("<style>", DARK + "<style>", 1)
    found = opened(page, tmp_path, width=500)
    assert_clean(found, figures=19)
    assert found["paper"] == SURFACE.dark
    assert int(found["overflow"]) <= 0
