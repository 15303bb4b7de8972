"""Tests of the web UI in a browser: every view, links, the keyboard, themes, many tabs, hostile records."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Program
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright
from test_explain_more import write
from test_ui_server import WRITER, evaluated, planted
from ui_server import Served, serve

VIEWS = ("overview", "explore", "runs", "errors", "stages", "status")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("browser") / "journal")


@pytest.fixture(scope="module")
def ui(journal: Path) -> Generator[Served]:
    with serve(journal) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


def command_line(*arguments: str) -> None:
    """Run `stageflow` in a separate process: in this one, an event loop drives the browser."""
    subprocess.run(
        [sys.executable, "-m", "stageflow", *arguments], check=True, capture_output=True, timeout=60
    )


class Watched:
    """A page that records errors, and requests to other servers."""

    def __init__(self, context: BrowserContext) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._log)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _log(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)


@pytest.fixture
def opened(browser: Browser) -> Generator[Callable[..., Watched]]:
    """Return a function that opens a view, and verify afterwards that there was no problem."""
    contexts: list[BrowserContext] = []
    pages: list[Watched] = []

    def open_view(served: Served, query: str = "", **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        watched = Watched(context)
        pages.append(watched)
        watched.page.goto(served.url)
        watched.page.goto(f"{served.origin}/?{query}")
        settle(watched.page)
        return watched

    yield open_view
    for watched in pages:
        assert watched.problems == []
        assert [
            url for url in watched.requests if not url.startswith(("http://localhost", "data:", "blob:"))
        ] == []
    for context in contexts:
        context.close()


def settle(page: Page) -> None:
    """Wait until the view has a heading and no panel is loading."""
    expect(page.locator("main")).to_be_visible()
    expect(page.locator("main .skeleton, main [aria-busy=true]")).to_have_count(0)


def test_status_states_what_is_the_case(ui: Served, opened: Callable[..., Watched]) -> None:
    expect(opened(ui, "view=status").page.locator("h1")).to_have_text(
        "Alerts are not evaluated; nothing is lost or damaged; no process is writing now"
    )


def test_live_switch_states_whether_it_is_on(ui: Served, opened: Callable[..., Watched]) -> None:
    switch = opened(ui).page.get_by_role("switch")
    dot = switch.locator(".dot")
    green = dot.evaluate("each => getComputedStyle(each).backgroundColor")
    expect(switch).to_have_text("Live")
    assert green == switch.evaluate(
        "each => { each.style.color = 'var(--ok-bar)'; return getComputedStyle(each).color }"
    )
    switch.click()
    expect(switch).to_have_text("Paused")
    expect(switch).to_have_attribute("aria-checked", "false")
    expect(dot).to_have_css("background-color", "rgba(0, 0, 0, 0)")


def serious_findings(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def assert_within_width(page: Page) -> None:
    """Verify that the page does not scroll horizontally, after its charts have the size of the window."""
    deadline = time.monotonic() + 5
    while page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
        widest = page.evaluate(_WIDEST)
        assert time.monotonic() < deadline, f"{page.url} at {page.viewport_size}: {widest}"
        page.wait_for_timeout(50)


_WIDEST = """[...document.querySelectorAll('body *')]
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 1)
    .slice(0, 8).map((one) => `${one.tagName}.${one.className}`)"""


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_view_is_accessible_and_fits_the_width(
    ui: Served, opened: Callable[..., Watched], view: str, scheme: str
) -> None:
    page = opened(ui, f"view={view}", color_scheme=scheme).page
    assert serious_findings(page) == []
    for width in (1920, 1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert_within_width(page)


def test_views_are_reached_from_the_navigation_and_the_back_button_returns(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui).page
    navigation = page.get_by_role("navigation", name="Views")
    for view in VIEWS:
        navigation.get_by_role("link", name=view.capitalize()).click()
        page.wait_for_url(re.compile(f"view={view}"))
        settle(page)
    for view in reversed(VIEWS[:-1]):
        page.go_back()
        page.wait_for_url(re.compile(f"view={view}"))


def test_overview_states_the_cause_and_links_to_it(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui).page
    findings = page.get_by_role("region", name="Findings")
    expect(findings).to_contain_text("attributes.model = m-large")
    findings.get_by_role("link").first.click()
    page.wait_for_url(re.compile("view=explore"))


def test_runs_lead_to_a_run_with_its_stages(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=runs&where=failed").page
    page.locator("table.runs tbody a").first.click()
    page.wait_for_url(re.compile("view=run&"))
    settle(page)
    for stage in ("search", "llm"):
        expect(page.locator("main")).to_contain_text(stage)
    assert serious_findings(page) == []
    page.get_by_role("tab", name="JSON").click()
    expect(page.get_by_role("tabpanel")).to_contain_text("correlation_ids")


def test_errors_and_stages_list_the_records(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=errors").page
    expect(page.get_by_role("table", name="Errors")).to_contain_text("ValueError")
    page = opened(ui, "view=stages").page
    expect(page.get_by_role("table", name="Stages")).to_contain_text("llm")


def test_status_shows_alerts_and_silences_them(tmp_path: Path, opened: Callable[..., Watched]) -> None:
    with serve(evaluated(tmp_path)) as served:
        page = opened(served, "view=status").page
        expect(page.get_by_role("table", name="Alerts")).to_contain_text("runs fail")
        incidents = page.get_by_role("table", name="Incidents")
        expect(incidents).to_contain_text("runs fail")
        expect(incidents).to_contain_text("firing")


# ---------------------------------------------------------------- from an anomaly to its cause


def drag_over(page: Page, left: float, top: float, right: float, bottom: float) -> None:
    """Drag over a part of the heatmap; the limits are shares of its size."""
    plot = page.get_by_role("application").first
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=8)
    page.mouse.up()


def test_box_over_slow_runs_shows_the_planted_cause(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=explore").page
    drag_over(page, 0.002, 0.02, 0.998, 0.3)
    page.wait_for_url(re.compile("select="))
    settle(page)
    first = page.locator(".difference-table tbody tr").first
    expect(first).to_contain_text("attributes.model = m-large")
    expect(first).to_contain_text("attributes.org = o-1")
    first.get_by_role("button").first.click()
    page.get_by_role("menuitem", name=re.compile("only", re.IGNORECASE)).first.click()
    page.wait_for_url(re.compile("where="))


def test_link_shows_the_same_selection_and_escape_clears_it(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore").page
    drag_over(page, 0.002, 0.02, 0.998, 0.3)
    page.wait_for_url(re.compile("select="))
    settle(page)
    heading = page.locator("main h1, main h2").first.inner_text()
    other = opened(ui, page.url.partition("?")[2]).page
    expect(other.locator("main h1, main h2").first).to_have_text(heading)
    other.get_by_role("application").first.focus()
    other.keyboard.press("Escape")
    expect(other).not_to_have_url(re.compile("select="))


def test_keyboard_alone_selects_a_region_and_moves_between_stages(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore").page
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement?.getAttribute('role')") == "application":
            break
    assert page.evaluate("document.activeElement.getAttribute('role')") == "application"
    page.keyboard.press("ArrowLeft")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("select="))
    run = opened(ui, "view=run&id=last").page
    for key, stage in (("j", "llm"), ("j", "search"), ("k", "llm")):
        run.keyboard.press(key)
        expect(run).to_have_url(re.compile(f"stage={stage}"))


def selection_of(page: Page) -> str:
    return parse_qs(urlsplit(page.url).query).get("select", [""])[0]


def test_keyboard_extends_a_box_until_enter_and_leaves_one_entry_in_the_history(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore").page
    plot = page.get_by_role("application").first
    plot.focus()
    page.keyboard.press("ArrowLeft")
    entries = page.evaluate("history.length")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowDown")
    assert selection_of(page) == ""
    box = page.locator(".heatmap .box")
    expect(box).to_have_count(1)
    cell, drawn = page.locator(".heatmap .cursor").bounding_box(), box.bounding_box()
    assert cell is not None
    assert drawn is not None
    assert round(drawn["width"] / cell["width"]) == 6
    assert round(drawn["height"] / cell["height"]) == 4
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("select="))
    assert page.evaluate("history.length") == entries + 1
    plot.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    before = selection_of(page)
    page.keyboard.press("Tab")
    expect(page).not_to_have_url(re.compile(re.escape(quote_plus(before))))
    assert selection_of(page) != ""
    assert page.evaluate("history.length") == entries + 2


def test_drag_that_starts_outside_the_plot_selects_from_its_edge(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore").page
    box = page.get_by_role("application").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] - 8, box["y"] - 8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    page.wait_for_url(re.compile("select="))
    assert '"duration_ms" <=' in selection_of(page)
    assert page.evaluate("String(getSelection())") == ""


def test_headline_of_earlier_parameters_says_that_it_is_loading(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore").page
    expect(page.locator("main h1")).to_contain_text("failed")
    held: list[Route] = []
    page.route("**/api/heatmap*", lambda route: held.append(route))
    field = page.get_by_role("combobox", name="Filter runs")
    field.fill("NOT failed")
    field.press("Enter")
    headline = page.locator("main .headline")
    expect(headline).to_contain_text("Loading")
    expect(headline.locator("h1")).to_have_css("opacity", "0.55")
    for route in held:
        route.continue_()
    expect(headline).to_contain_text("0% failed")
    expect(headline).not_to_contain_text("Loading")


def test_findings_without_causes_are_provisional_and_nothing_moves_when_the_causes_arrive(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore").page
    held: list[Route] = []
    page.route("**/api/causes*", lambda route: held.append(route))
    page.get_by_role("link", name="Overview").click()
    findings = page.get_by_role("region", name="Findings")
    expect(findings).to_contain_text("Searching for causes")
    expect(findings).to_contain_text("Provisional")
    charts = page.locator("main .columns-3")
    expect(charts.locator(".u-over")).to_have_count(3)
    before = charts.bounding_box()
    for route in held:
        route.continue_()
    expect(findings).to_contain_text("of the failures match")
    expect(findings).not_to_contain_text("Provisional")
    expect(findings).not_to_contain_text("Searching")
    assert charts.bounding_box() == before


def test_text_for_an_assistant_compares_only_a_selection(ui: Served, opened: Callable[..., Watched]) -> None:
    watched = opened(ui, "view=explore", permissions=["clipboard-read", "clipboard-write"])
    page = watched.page

    def copied() -> str:
        page.get_by_role("button", name="Share").click()
        page.get_by_role("menuitem", name=re.compile("assistant")).click()
        expect(page.get_by_role("status").filter(has_text="Copied")).to_be_visible()
        return str(page.evaluate("navigator.clipboard.readText()"))

    text = copied()
    assert "selection / rest" not in text
    assert "Command: `stageflow explain" in text
    page.get_by_role("button", name=re.compile("failures")).click()
    page.wait_for_url(re.compile("select="))
    settle(page)
    assert "selection / rest" in copied()


def test_filter_completes_fields_and_values(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=runs").page
    field = page.get_by_role("combobox", name="Filter runs")
    field.fill("attributes.mod")
    expect(page.get_by_role("option", name=re.compile("attributes.model"))).to_be_visible()
    field.fill("attributes.model=m-la")
    expect(page.get_by_role("option", name=re.compile("m-large"))).to_be_visible()
    field.fill("attributes.model = 'm-large'")
    field.press("Enter")
    page.wait_for_url(re.compile("where="))
    settle(page)
    expect(page.locator("main")).to_contain_text("134")
    page.get_by_role("button", name=re.compile("^Remove")).click()
    expect(page).not_to_have_url(re.compile("where="))


def test_filter_that_matches_nothing_and_invalid_filter_are_explained(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=runs&where=duration_ms%3E1e9").page
    expect(page.locator("main")).to_contain_text("No run matches")
    watched = opened(ui, "view=runs&where=nothing%3D1")
    expect(watched.page.get_by_role("alert").first).to_contain_text("unknown field 'nothing'")
    watched.problems[:] = [text for text in watched.problems if "status of 400" not in text]


def without_rejections(watched: Watched) -> None:
    watched.problems[:] = [text for text in watched.problems if "status of 400" not in text]


def test_invalid_term_is_marked_and_the_page_keeps_its_content(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    watched = opened(ui, "view=runs")
    page = watched.page
    field = page.get_by_role("combobox", name="Filter runs")
    field.fill("model='m-large'")
    field.press("Enter")
    expect(page.locator(".chip.bad")).to_contain_text("model=m-large")
    rejection = page.locator(".rejection")
    expect(rejection).to_contain_text("unknown field 'model'")
    expect(page.get_by_role("table", name="Runs", exact=True).locator("tbody tr")).to_have_count(200)
    assert "where=" not in page.url
    assert serious_findings(page) == []
    rejection.get_by_role("button", name="Use attributes.model").click()
    page.wait_for_url(re.compile("where=.*attributes.model"))
    settle(page)
    expect(rejection).to_have_count(0)
    expect(page.locator("main h1")).to_contain_text("134 runs")
    without_rejections(watched)


def test_word_that_is_no_condition_is_explained_and_completed(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=runs").page
    field = page.get_by_role("combobox", name="Filter runs")
    field.fill("globex")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not a condition")
    page.get_by_role("option", name=re.compile("pipeline_name=globex")).click()
    page.wait_for_url(re.compile("where="))
    field.fill("fail")
    field.press("Shift+Tab")
    assert page.evaluate("document.activeElement !== document.body")


def test_invalid_time_is_rejected_with_examples(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=runs").page
    page.get_by_role("button", name=re.compile("^Time range")).click()
    since = page.get_by_role("textbox", name="From")
    since.fill("yesterdayish")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert")).to_contain_text("2026-11-27 14:00")
    expect(since).to_have_attribute("aria-invalid", "true")
    assert "since=" not in page.url
    since.fill("2026-11-01 00:30")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(re.compile("since=2026-11-01T"))


@pytest.mark.parametrize("view", ["overview", "explore", "runs"])
def test_empty_time_range_leads_to_the_newest_runs(
    ui: Served, opened: Callable[..., Watched], view: str
) -> None:
    page = opened(ui, f"view={view}&since=2030-01-01T00:00:00Z").page
    expect(page.locator("main")).to_contain_text("The newest run started at 2026-11-01")
    page.get_by_role("button", name="Show the newest runs").click()
    page.wait_for_url(re.compile("since=2026-11-01"))
    settle(page)
    expect(page.locator("main")).not_to_contain_text("The newest run started")


def test_chosen_runs_are_compared_and_stay_chosen(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=runs").page
    boxes = page.get_by_role("checkbox")
    boxes.nth(0).check()
    boxes.nth(1).check()
    page.get_by_role("link", name="Compare the two selected runs").click()
    page.wait_for_url(re.compile("view=compare"))
    settle(page)
    expect(page.locator(".wf-legend")).to_have_count(2)
    page.go_back()
    settle(page)
    expect(boxes.nth(0)).to_be_checked()
    expect(boxes.nth(1)).to_be_checked()


def test_run_keeps_its_error_and_its_comparison_moves_nothing(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=runs&where=failed").page
    error = page.locator("td.c-error bdi").first.inner_text()
    held: list[Route] = []
    page.route("**/api/run?*explain=1*", lambda route: held.append(route))
    page.locator("table.runs tbody a").first.click()
    heading = page.locator(".run-heading")
    expect(heading).to_contain_text(error)
    expect(heading).to_contain_text("Comparing this run")
    details = page.get_by_role("region", name="Details")
    expect(details).to_be_visible()
    for route in held:
        route.continue_()
    expect(page.locator(".explanation")).to_contain_text("other runs")
    expect(heading).not_to_contain_text("Comparing this run")
    expect(heading).to_contain_text(error)


def test_runs_on_a_narrow_screen_show_their_errors(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=runs&where=failed", viewport={"width": 360, "height": 800}).page
    expect(page.locator("td.c-error").first).to_be_visible()
    expect(page.locator("td.c-duration").first).to_be_visible()
    expect(page.locator("td.c-time").first).to_contain_text(re.compile(r"\d\d:\d\d:\d\d"))
    assert_within_width(page)


# ---------------------------------------------------------------- themes, tabs, new data


def test_theme_follows_the_system_and_can_be_overridden(ui: Served, opened: Callable[..., Watched]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = opened(ui, color_scheme="light").page
    dark = opened(ui, color_scheme="dark").page
    colour = dark.evaluate(background)
    assert light.evaluate(background) != colour
    light.get_by_role("button", name=re.compile("theme|settings|display", re.IGNORECASE)).click()
    light.get_by_role("menuitemradio", name=re.compile("dark", re.IGNORECASE)).click()
    assert light.evaluate(background) == colour
    light.reload()
    settle(light)
    assert light.evaluate(background) == colour


def test_seven_tabs_share_one_event_stream(journal: Path, opened: Callable[..., Watched]) -> None:
    with serve(journal) as served:
        first = opened(served, "view=runs").page
        tabs = [first, *(first.context.new_page() for _ in range(6))]
        for tab in tabs:
            tab.goto(f"{served.origin}/?view=explore")
        for tab in tabs:
            settle(tab)
            expect(tab.get_by_role("application").first).to_be_visible()
        assert served.get("status")["viewers"] == 1


def test_page_shows_new_and_crashed_runs(
    program: Callable[[str], Program], opened: Callable[..., Watched]
) -> None:
    writer = program(WRITER)
    writer.wait_for("ran")
    with serve(writer.journal) as served:
        page = opened(served, "view=runs").page
        expect(page.locator("table.runs").last).to_contain_text("quick")
        assert writer.process.stdin is not None
        writer.process.stdin.write("go on\n")
        writer.process.stdin.flush()
        writer.wait_for("hanging")
        expect(page.locator("main")).to_contain_text("slow")
        expect(page.locator("main")).to_contain_text("hang")
        writer.process.send_signal(signal.SIGKILL)
        expect(page.locator("main")).to_contain_text(re.compile("1 new run"))
        page.get_by_role("button", name=re.compile("new run")).click()
        expect(page.locator("main")).to_contain_text("crashed")


def test_expired_token_is_explained(tmp_path: Path, opened: Callable[..., Watched]) -> None:
    folder = planted(tmp_path / "journal", 20)
    with serve(folder) as served:
        watched = opened(served, "view=runs")
        port = served.port
    with serve(folder, "--port", str(port)):
        watched.page.get_by_role("link", name="Explore", exact=True).click()
        expect(watched.page.locator("body")).to_contain_text(re.compile("expired"))
        expect(watched.page.locator("body")).to_contain_text("stageflow ui")
        watched.problems.clear()


def test_stopped_server_is_reported(tmp_path: Path, opened: Callable[..., Watched]) -> None:
    with serve(planted(tmp_path / "journal", 20)) as served:
        watched = opened(served, "view=runs")
    watched.page.get_by_role("link", name="Explore", exact=True).click()
    expect(watched.page.locator("body")).to_contain_text(re.compile("does not respond|cannot be reached"))
    watched.problems.clear()


# ---------------------------------------------------------------- hostile records


SCRIPT = "<script>window.pwned = 1</script>"
HOSTILE = (
    SCRIPT,
    "<img src=x onerror='window.pwned = 1'>",
    "'\"><svg onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "</script><script>window.pwned=1</script>",
    "\x1b[31mred\x1b]8;;http://evil.example\x07",
    "\u202eright to left \u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "{{constructor.constructor('window.pwned=1')()}}",
    "a\nb\tc\x00d",
    "W" * 300,
    "x" * 1_000_000,
)


def hostile(folder: Path) -> Path:
    """Write runs in which every text is hostile."""

    def run(number: int) -> dict[str, Any]:
        text = HOSTILE[number % len(HOSTILE)]
        short = text[:3_000]
        return {
            "fails": number % 2 == 0,
            "second": number,
            "error": text,
            "user": short,
            "pipeline": short,
            "version": short,
            "attributes": {"text": text, short[:60]: short, **{f"k{n}": n for n in range(40)}},
            "stage_ms": {short: 5.0 + number},
            "stage_attributes": {"text": text},
            "fingerprint": f"1:{number % 11:016x}",
        }

    return write(folder, map(run, range(66)))


@pytest.fixture(scope="module")
def hostile_ui(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    folder = hostile(tmp_path_factory.mktemp("hostile") / "journal")
    with serve(folder) as served:
        yield served


@pytest.mark.parametrize("view", [*VIEWS, "explore&select=failed", "explore&by=user_id", "runs&where=failed"])
def test_hostile_text_is_shown_as_text(hostile_ui: Served, opened: Callable[..., Watched], view: str) -> None:
    page = opened(hostile_ui, f"view={view}").page
    assert page.evaluate("window.pwned") is None
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert_within_width(page)


def test_hostile_run_is_shown_as_text(hostile_ui: Served, opened: Callable[..., Watched]) -> None:
    for row in hostile_ui.get("runs")["rows"][: len(HOSTILE)]:
        page = opened(hostile_ui, f"view=run&id={row['run_id']}").page
        for tab in page.get_by_role("tab").all():
            tab.click()
        assert page.evaluate("window.pwned") is None
        assert_within_width(page)
        page.context.close()


# ---------------------------------------------------------------- saved pages


def test_saved_run_and_explanation_are_shown_without_a_server(
    journal: Path, browser: Browser, tmp_path: Path
) -> None:
    run, cause = tmp_path / "run.html", tmp_path / "cause.html"
    for command in (["show", "last", "--html", str(run)], ["explain", "--html", str(cause)]):
        command_line(*command, "--journal", str(journal))
    for file, expected in ((run, "llm"), (cause, "attributes.model = m-large")):
        assert file.stat().st_size < 300_000
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        watched = Watched(context)
        watched.page.goto(file.as_uri())
        expect(watched.page.locator("main")).to_contain_text(expected)
        settle(watched.page)
        assert watched.problems == []
        assert watched.requests == [file.as_uri()]
        assert watched.page.get_by_role("alert").count() == 0
        context.close()


def test_saved_page_escapes_its_records(tmp_path: Path, browser: Browser) -> None:
    folder = hostile(tmp_path / "journal")
    file = tmp_path / "run.html"
    for number in range(5):
        run_id = json.dumps(f"{number:08d}-run")[1:-1]
        command_line("show", run_id, "--html", str(file), "--journal", str(folder))
        context = browser.new_context()
        watched = Watched(context)
        watched.page.goto(file.as_uri())
        settle(watched.page)
        assert watched.page.evaluate("window.pwned") is None
        assert watched.problems == []
        context.close()


def test_saved_run_with_many_stages_or_attributes_is_small(tmp_path: Path, browser: Browser) -> None:
    stages = {f"stage-{number}": 5.0 + number for number in range(500)}
    attributes = {f"key-{number}": f"value {number * 7919 % 10007}" for number in range(10_000)}
    runs = [{"second": 1, "stage_ms": stages}, {"second": 2, "stage_ms": stages, "attributes": attributes}]
    folder = write(tmp_path / "journal", iter(runs))
    for number in range(len(runs)):
        file = tmp_path / f"{number}.html"
        command_line("show", f"{number:08d}-run", "--html", str(file), "--journal", str(folder))
        assert file.stat().st_size < 300_000
    context = browser.new_context()
    watched = Watched(context)
    watched.page.goto(file.as_uri())
    expect(watched.page.locator("main")).to_contain_text("stage-499")
    assert watched.problems == []
    context.close()


def test_explore_is_saved_as_a_small_file(ui: Served, opened: Callable[..., Watched], tmp_path: Path) -> None:
    page = opened(ui, "view=explore&select=failed&by=user_id").page
    settle(page)
    page.get_by_role("button", name="Share").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name=re.compile("HTML")).click()
    file = tmp_path / "explore.html"
    download.value.save_as(file)
    assert file.stat().st_size < 300_000
    saved = Watched(page.context)
    saved.page.goto(file.as_uri())
    expect(saved.page.locator("main")).to_contain_text("attributes.model = m-large")
    assert saved.problems == []


def test_view_is_saved_as_a_file(ui: Served, opened: Callable[..., Watched], tmp_path: Path) -> None:
    page = opened(ui, "view=errors").page
    page.get_by_role("button", name="Share").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name=re.compile("HTML")).click()
    file = tmp_path / "errors.html"
    download.value.save_as(file)
    assert file.stat().st_size < 300_000
    saved = Watched(page.context)
    saved.page.goto(file.as_uri())
    expect(saved.page.locator("main")).to_contain_text("ValueError")
    assert saved.problems == []
    assert saved.requests == [file.as_uri()]
