"""A page of ours in headless Chromium: what it asked for, what it complained of, what it drew.

Playwright drives the Chromium that is on the machine; none is downloaded.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NONE_FOUND = "no Chromium on this machine: no page was opened in a browser"

DRAWN = """() => Array.from(document.querySelectorAll("[data-figure]"), (box) => ({
  key: box.dataset.figure,
  size: Math.min(...Object.values(box.getBoundingClientRect().toJSON()).slice(2, 4)),
  marks: box.querySelectorAll(".trace, .hm, .points path, .annotation").length,
  faults: box.querySelectorAll(".error").length,
}))"""


@dataclass
class Opened:
    """A page that is ready, and everything it did besides drawing."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions nobody caught."""
    requests: list[str] = field(default_factory=list)
    """All that was asked for besides the file itself."""

    def assert_clean(self, figures: int) -> None:
        """Nothing went wrong, nothing was asked for, and so many figures have marks in them."""
        assert self.complaints == []
        assert self.requests == []
        page: dict[str, str] = self.page.evaluate("() => ({...document.documentElement.dataset})")
        assert page["errors"] == page["violations"] == "0", page
        assert "owned" not in page
        drawn: list[dict[str, Any]] = self.page.evaluate(DRAWN)
        assert len(drawn) == figures
        for found in drawn:
            assert found["size"] > 50, found
            assert found["marks"] > 0, found
            assert found["faults"] == 0, found


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, **context: Any) -> Iterator[Opened]:
    """A file opened in a context of its own (``viewport``, ``color_scheme``), figures drawn."""
    own = browser.new_context(**context)
    try:
        page = own.new_page()
        page.set_default_timeout(120_000)
        found = Opened(page)
        page.on("console", lambda said: found.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("request", lambda asked: found.requests.append(asked.url))
        page.on("dialog", lambda dialog: found.complaints.append(f"dialog {dialog.message}"))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready='yes']", state="attached")
        found.requests.remove(path.as_uri())
        yield found
    finally:
        own.close()
