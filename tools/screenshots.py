"""Make the pictures of the page of `softxent explain --html` for the documentation: python tools/screenshots.py

It needs Playwright and a `chromium` on the PATH.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from softxent.explanation.page import page

IMAGES = Path(__file__).parent.parent / "docs" / "img"
SCORES, LABEL, NAMES = (2, -1, 0.5, 3), 0, ("cat", "dog", "owl", "newt")


def screenshots(folder: Path) -> None:
    """Write explain-light.png and explain-dark.png, 1200 x 900 pixels. They show Result 1 with its numbers and with one reason open."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as tool:
        file = Path(place, "page.html")
        file.write_text(page(SCORES, LABEL, NAMES), encoding="utf-8")
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
            tab.goto(file.as_uri() + "#result1")
            tab.click("#result1 summary >> nth=0")
            tab.wait_for_selector("text=derivations agree")
            tab.screenshot(path=folder / f"explain-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
