"""Make the picture of the page of `softxent explain --html` for the documentation: python tools/screenshots.py

It needs Playwright and a `chromium` on the PATH.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from softxent.explanation.page import page

IMAGE = Path(__file__).parent.parent / "docs" / "img" / "explain.png"


def screenshot(image: Path) -> None:
    """Write a picture of 1200 x 900 pixels, which shows the controls and the first steps of Part 1."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as tool:
        file = Path(place, "page.html")
        file.write_text(page((2, -1, 0.5, 3), 0, ("cat", "dog", "owl", "newt")), encoding="utf-8")
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light", reduced_motion="reduce")
        tab.goto(file.as_uri() + "#part-1")
        tab.wait_for_selector("text=The lines of every derivation agree.")
        tab.screenshot(path=image)
        browser.close()


if __name__ == "__main__":
    screenshot(IMAGE)
