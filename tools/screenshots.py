"""Takes the screenshots for the README and the docs with the data of the demo: `make screenshots`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

_ROOT = Path(__file__).parents[1]
_IMAGES = _ROOT / "docs" / "images"
_STAGEFLOW = (sys.executable, "-m", "stageflow")
_SIZE = {"width": 1280, "height": 800}


def main() -> None:
    """Run the demo, open it in the browser, and save the images."""
    _IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run((*_STAGEFLOW, "demo"), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        command = (*_STAGEFLOW, "ui", "--journal", ".stageflow/demo", "--port", "0")
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://\S+", server.stdout.readline())
                assert found is not None
                _take_all(found[0])
            finally:
                server.send_signal(signal.SIGINT)


def _take_all(url: str) -> None:
    origin = url.partition("/?")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport=_SIZE, color_scheme="light")
        page.goto(url)
        _take(page, f"{origin}/?view=explore&select=failed", "explore.png")
        page.goto(f"{origin}/?view=runs&where=outcome%20%3D%20'failed'")
        page.locator("table.runs tbody a").first.click()
        page.wait_for_url(re.compile("view=run&"))
        # The exception tab shows local paths.
        _take(page, f"{page.url}&tab=attributes", "run.png")
        browser.close()


def _take(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.locator("main").wait_for()
    expect(page.locator("main .skeleton, main [aria-busy=true], main .slow")).to_have_count(0, timeout=20_000)
    page.screenshot(path=_IMAGES / name)


if __name__ == "__main__":
    main()
