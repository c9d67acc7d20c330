"""Draw the answer card of a report as the picture of README.md.

    python scripts/answer_card_picture.py DIR/report.html docs/images/answer-card.png

It needs Playwright (the extra ``dev``) and a Chromium on the PATH.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, SCALE = 1080, 1.0


def main(page_file: Path, picture: Path) -> None:
    browsers = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, browsers)), None)
    if found is None:
        sys.exit(f"no browser found; expected one of {', '.join(browsers)} on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=SCALE)
        page.goto(page_file.resolve().as_uri())
        picture.parent.mkdir(parents=True, exist_ok=True)
        page.locator("section.answer").first.screenshot(path=picture)
        browser.close()
    print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
