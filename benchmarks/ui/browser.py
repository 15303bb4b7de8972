"""First paint, the list of runs, and a box to its differences, in a browser; and the memory of a tab."""

from __future__ import annotations

import statistics
import time

from playwright.sync_api import Page, expect, sync_playwright

from .server import serve

__all__ = ["bench_browser"]

_BUSY = "main .skeleton, main [aria-busy=true]"


def bench_browser(journal: str, rounds: int = 5) -> None:
    """Print the times that a person waits for."""
    with serve(journal) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(server.url)
        origin = server.url.partition("/?")[0]
        print("\n| in the browser | first, ms | repeated, ms |")
        print("| --- | --- | --- |")
        for name, query, ready in (
            ("overview, first content", "view=overview", ".line-chart"),
            ("runs", "view=runs", "table.runs tbody tr"),
            ("explore, heatmap", "view=explore", "[role=application]"),
        ):
            seconds = [_opened(page, f"{origin}/?{query}", ready) for _ in range(rounds)]
            _print(name, seconds)
        seconds = []
        for number in range(rounds):
            page.goto(f"{origin}/?view=explore")
            expect(page.locator(_BUSY)).to_have_count(0, timeout=60_000)
            seconds.append(_box(page, 0.02 + number / 100))
        _print("box to differences", seconds)
        seconds = []
        for number in range(rounds):
            page.goto(f"{origin}/?view=runs")
            expect(page.locator(_BUSY)).to_have_count(0, timeout=60_000)
            field = page.get_by_role("combobox", name="Filter runs")
            field.fill(f"duration_ms > {3000 + number}")
            began = time.perf_counter()
            field.press("Enter")
            page.wait_for_url("**where=**")
            expect(page.locator(_BUSY)).to_have_count(0, timeout=60_000)
            seconds.append(time.perf_counter() - began)
        _print("filter", seconds)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        print(f"\nmemory of the tab: {metrics['JSHeapUsedSize'] / 1e6:.1f} MB of JavaScript objects")
        print(f"peak memory of the server: {server.peak_mb:,.0f} MB")
        browser.close()


def _opened(page: Page, url: str, ready: str) -> float:
    began = time.perf_counter()
    page.goto(url)
    page.locator(ready).first.wait_for(timeout=60_000)
    return time.perf_counter() - began


def _box(page: Page, top: float) -> float:
    plot = page.get_by_role("application").first
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + top * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.99 * box["width"], box["y"] + 0.3 * box["height"], steps=5)
    began = time.perf_counter()
    page.mouse.up()
    page.locator(".difference-table tbody tr").first.wait_for(timeout=60_000)
    return time.perf_counter() - began


def _print(name: str, seconds: list[float]) -> None:
    repeated = statistics.median(seconds[1:])
    print(f"| {name} | {seconds[0] * 1e3:.0f} | {repeated * 1e3:.0f} |", flush=True)
