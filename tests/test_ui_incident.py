"""Tests of the web UI with an incident: each view leads to the stage and the runs that it is about."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from incident_runs import write_incident
from playwright.sync_api import Locator, Page, Route, expect
from test_explain_more import write
from test_ui_browser import Watched, browser, opened, settle
from ui_server import Served, serve

from stageflow._time import epoch_us
from stageflow.store import EventStore

__all__ = ["browser", "opened"]

pytestmark = pytest.mark.timeout(120)

SLOWEST = "duration_ms > CASE pipeline_name WHEN 'ask' THEN 1250 WHEN 'ingest' THEN 1230 END"
"""The selection to which the finding about durations leads."""


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_incident(tmp_path_factory.mktemp("incident") / "journal")


@pytest.fixture(scope="module")
def ui(journal: Path) -> Generator[Served]:
    with serve(journal) as served:
        yield served


# ---------------------------------------------------------------- where


def test_stage_of_the_first_difference_precedes_that_of_the_usual_tail(journal: Path) -> None:
    with EventStore(journal) as store:
        places = {place.stage: place for place in store.explain_slow("runs").locations}
    assert list(places) == ["search", "llm"]
    assert places["search"].share < places["llm"].share
    assert places["search"].cause_share == pytest.approx(1, abs=0.05)


def test_error_of_the_first_difference_precedes_more_frequent_ones(journal: Path) -> None:
    with EventStore(journal) as store:
        found = store.explain()
    assert "eu-4" in str(found.differences[0])
    first, second = found.locations[:2]
    assert (first.stage, second.stage) == ("search", "llm")
    assert first.share < second.share
    assert first.cause_share is not None
    assert first.cause_share > 0.5


@pytest.mark.slow
def test_where_begins_with_the_stage_of_the_first_difference(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, f"view=explore&select={quote(SLOWEST)}").page
    where = page.locator(".differences li", has_text="of the additional time of the runs that match row 1")
    expect(where.first).to_have_text(
        re.compile(r"^search took .* on average: >?\d+% of the additional time of the runs that match row 1$")
    )


@pytest.mark.slow
def test_list_of_failures_is_explored_as_a_selection(ui: Served, opened: Callable[..., Watched]) -> None:
    for conditions, select, where in (
        ("failed", "failed", None),
        ("pipeline_name = 'ask' AND outcome = 'failed'", "outcome = 'failed'", "pipeline_name = 'ask'"),
        ("error_type = 'TimeoutError'", "error_type = 'TimeoutError'", None),
        ("pipeline_name = 'ask'", None, "pipeline_name = 'ask'"),
    ):
        page = opened(ui, f"view=runs&where={quote(conditions)}").page
        page.get_by_role("link", name="Explore these runs").click()
        page.wait_for_url(re.compile("view=explore"))
        found = parse_qs(urlsplit(page.url).query)
        assert (found.get("select"), found.get("where")) == (select and [select], where and [where])
        settle(page)
    page = opened(ui, f"view=runs&where={quote(ui.get('errors')['rows'][0]['where'])}").page
    page.get_by_role("link", name="Explore these runs").click()
    page.wait_for_url(re.compile("view=explore.*select=pipeline_run_id"))
    settle(page)
    expect(page.locator("h1")).to_contain_text("runs selected")


# ---------------------------------------------------------------- stages


def test_stages_are_compared_with_the_baseline(ui: Served) -> None:
    found = ui.get("stages")
    rows = {row["stat"]["stage"]: row for row in found["rows"] if row["stat"]["pipeline"] == "ask"}
    search, llm = rows["search"], rows["llm"]
    assert search["earlier"]["count"] + search["recent"]["count"] == search["stat"]["count"]
    assert search["recent"]["p99_ms"] > 10 * search["earlier"]["p99_ms"]
    assert llm["recent"]["p99_ms"] < 1.5 * llm["earlier"]["p99_ms"]
    assert search["earlier"]["failed"] == 0 < search["recent"]["failed"]
    assert len(search["p99_ms"]) == len(search["p95_ms"])
    assert max(filter(None, search["p99_ms"][:20])) < 500 < max(filter(None, search["p99_ms"][-8:]))


def test_time_before_the_first_run_is_no_baseline_of_stages(ui: Served) -> None:
    every, month = ui.get("stages"), ui.get("stages", since="30d")
    assert epoch_us(month["recent_since"]) == pytest.approx(epoch_us(every["recent_since"]), abs=120e6)
    for one, other in zip(every["rows"], month["rows"], strict=True):
        assert other["earlier"]["count"] == pytest.approx(one["earlier"]["count"], abs=5)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """Runs in whose last quarter `guard` fails twice, `search` 6 and `llm` 50 times; before, only `llm`."""

    def run(number: int) -> dict[str, Any]:
        late = number >= 300
        fails = {
            "guard": number in (340, 360),
            "search": number in range(310, 322, 2),
            "llm": number % (2 if late else 5) == 1,
        }
        return {
            "second": number * 60,
            "ms": 100,
            "stage_ms": {"guard": 1, "search": 40, "llm": 50},
            "stage_data": {name: {"status": "FAIL"} for name, each in fails.items() if each},
        }

    with serve(write(tmp_path_factory.mktemp("failing") / "journal", map(run, range(400)))) as served:
        yield served


@pytest.mark.slow
def test_stage_with_the_most_additional_failures_is_named(
    failing: Served, opened: Callable[..., Watched]
) -> None:
    def headline(where: str) -> Locator:
        return opened(failing, f"view=stages&where={quote(where)}").page.locator("h1")

    expect(headline("")).to_contain_text(
        "llm fails more often: 50% in the last quarter of the time range, 20% before"
    )
    expect(headline("stage_name = 'search'")).to_contain_text("search fails more often: 6%")
    expect(headline("stage_name = 'guard'")).to_contain_text("1 stage, none became slower")


@pytest.mark.slow
def test_stages_begin_with_what_changed(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=stages&pipeline=ask").page
    expect(page.locator("h1")).to_contain_text(
        re.compile(
            r"^ask: search became slower: p99 \S+ s in the last quarter of the time range, \S+ m?s before"
        )
    )
    expect(page.locator("h1")).not_to_contain_text("since")
    expect(page.locator("h1")).to_contain_text("search fails more often")
    first = page.get_by_role("table", name="Stages").locator("tbody tr").first
    expect(first).to_contain_text("guard")
    page.get_by_role("button", name="Change").click()
    expect(first).to_contain_text("search")
    assert "sort=change" in page.url
    expect(first.get_by_role("img", name="p99 over time").last).to_be_visible()
    page.get_by_role("button", name="Change").click()
    expect(first).to_contain_text("guard")


# ---------------------------------------------------------------- fields of stages


@pytest.mark.slow
def test_filter_by_an_attribute_without_its_stage_suggests_the_stage(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    watched = opened(ui, "view=runs")
    page = watched.page
    page.get_by_role("combobox", name="Filter").fill("shard = eu-4")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This filter is not applied: unknown field")
    page.get_by_role("button", name="Use search/attributes.shard").click()
    page.wait_for_url(re.compile("where=.*search%2Fattributes.shard"))
    expect(page.locator("h1")).to_contain_text(re.compile(r"^\d+ runs match the filter"))
    watched.problems[:] = [each for each in watched.problems if "status of 400" not in each]


# ---------------------------------------------------------------- two runs


@pytest.mark.slow
def test_comparison_states_which_stages_were_not_reached(ui: Served, opened: Callable[..., Watched]) -> None:
    failed = ui.get("runs", where="first_failed_stage = 'search' and pipeline_name = 'ask'")["rows"][0]
    ended = ui.get("runs", where="outcome = 'ok' and pipeline_name = 'ask' and duration_ms > 900")["rows"][0]
    page = opened(ui, f"view=compare&id={ended['run_id']}&with={failed['run_id']}").page
    expect(page.locator("h1")).to_contain_text("not reached in the second run")
    expect(page.locator("h1")).not_to_contain_text("llm (")
    line = page.get_by_role("table", name="Stages of both runs").locator("tr", has_text="llm")
    expect(line.locator("td").last).to_have_text("not reached")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_labels_of_the_axis_of_a_comparison_do_not_touch(
    ui: Served, opened: Callable[..., Watched], width: int
) -> None:
    one, other = (run["run_id"] for run in ui.get("runs", limit="2")["rows"])
    page = opened(ui, f"view=compare&id={one}&with={other}", viewport={"width": width, "height": 800}).page
    axes = page.locator(".wf-axis .wf-track")
    assert axes.count() == 2
    for axis in axes.all():
        labels = axis.locator(".tick").evaluate_all(
            "all => all.map((each) => each.getBoundingClientRect()).map(({left, right}) => [left, right])"
        )
        box = axis.bounding_box()
        assert labels
        assert box is not None
        assert all(right + 8 < left for (_, right), (left, _) in pairwise(labels))
        assert labels[-1][1] <= box["x"] + box["width"]


@pytest.mark.slow
def test_header_of_a_run_states_the_time_of_day(ui: Served, opened: Callable[..., Watched]) -> None:
    run = ui.get("runs", limit="1")["rows"][0]
    facts = opened(ui, f"view=run&id={run['run_id']}").page.locator(".facts-line")
    expect(facts).to_contain_text(re.compile(r"started \d+ (s|min) ago, (\d\d-\d\d )?\d\d:\d\d:\d\d"))


@pytest.mark.slow
def test_last_label_of_a_time_axis_has_space(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui).page
    for chart in page.locator(".uplot").all():
        space = chart.evaluate(
            "each => each.getBoundingClientRect().right"
            " - each.querySelector('.u-over').getBoundingClientRect().right"
        )
        assert space >= 24


# ---------------------------------------------------------------- distributions


@pytest.mark.slow
def test_distributions_agree_with_the_differences(ui: Served, opened: Callable[..., Watched]) -> None:
    select = quote("failed and first_failed_stage = 'llm'")
    page = opened(ui, f"view=explore&select={select}").page
    expect(page.get_by_text("compared fields differs").first).to_be_visible()
    expect(page.locator(".facet .badge.differs")).to_have_count(0)
    page = opened(ui, f"view=explore&select={quote('duration_ms > 3000')}").page
    expect(page.get_by_role("region", name="org_id").locator(".badge")).to_have_text("differs")
    stage = page.get_by_role("region", name="first_failed_stage")
    expect(stage.locator(".badge")).to_have_text("likely effect")


# ---------------------------------------------------------------- incomplete intervals


def test_series_states_which_intervals_are_incomplete(ui: Served) -> None:
    found = ui.get("series")
    assert (found["incomplete_first"], found["incomplete_last"]) == (True, True)
    found = ui.get("series", since="2026-01-01T00:00:00Z", until="2026-01-03T00:00:00Z")
    assert (found["incomplete_first"], found["incomplete_last"]) == (False, False)
    assert ui.get("stages")["incomplete_last"]


@pytest.mark.slow
def test_incomplete_interval_is_marked(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui).page
    chart = page.locator(".line-chart").first
    expect(chart.locator("figcaption")).to_contain_text("incomplete interval")
    chart.get_by_role("application").press("ArrowLeft")
    expect(chart.locator("figcaption")).to_contain_text(", incomplete interval")
    chart.get_by_role("application").press("ArrowLeft")
    expect(chart.locator("figcaption")).not_to_contain_text(", incomplete interval")


# ---------------------------------------------------------------- narrow windows

PHONE = {"viewport": {"width": 360, "height": 800}, "has_touch": True, "is_mobile": True}


def swipe(page: Page, x: float, y: float, dx: float, dy: float) -> None:
    """Move a finger over the heatmap."""
    plot = page.get_by_role("application", name="of runs over time")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    start = (box["x"] + x * box["width"], box["y"] + y * box["height"])
    client = page.context.new_cdp_session(page)
    for step in range(13):
        kind = "touchStart" if step == 0 else "touchMove"
        point = {"x": start[0] + dx * step / 12, "y": start[1] + dy * step / 12}
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.slow
def test_steep_drag_of_a_finger_selects_and_a_vertical_one_scrolls(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, "view=explore", **PHONE).page
    swipe(page, 0.7, 0.9, 45, -110)
    page.wait_for_url(re.compile("select="))
    page.get_by_role("button", name="Clear selection").click()
    settle(page)
    before = page.evaluate("scrollY")
    swipe(page, 0.5, 0.9, 3, -120)
    page.wait_for_function(f"scrollY > {before} + 40")
    assert "select=" not in page.url


def assert_columns_fit(page: Page) -> None:
    for table in page.locator("table:visible").all():
        assert table.evaluate("each => each.scrollWidth <= each.parentElement.clientWidth + 1")


@pytest.mark.slow
def test_narrow_window_shows_the_key_figures(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=stages&pipeline=ask", **PHONE).page
    row = page.get_by_role("table", name="Stages").locator("tbody tr", has_text="search")
    for text in ("p50", "p95", "p99", "\N{MULTIPLICATION SIGN}"):
        expect(row.get_by_text(text).locator("visible=true").first).to_be_visible()
    assert_columns_fit(page)
    page = opened(ui, "view=errors", **PHONE).page
    row = page.get_by_role("table", name="Errors").locator("tbody tr").first
    for text in ("users", "first", "Example"):
        expect(row.get_by_text(text).locator("visible=true").first).to_be_visible()
    assert_columns_fit(page)
    run = ui.get("runs", where="duration_ms > 3000")["rows"][0]
    page = opened(ui, f"view=run&id={run['run_id']}", **PHONE).page
    row = page.get_by_role("table", name="Times compared").locator("tbody tr").first
    for text in ("p50", "p95", "slower than"):
        expect(row.get_by_text(text).locator("visible=true").first).to_be_visible()
    assert_columns_fit(page)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_error_of_a_run_is_complete(ui: Served, opened: Callable[..., Watched], width: int) -> None:
    where = quote("first_failed_stage = 'search'")
    page = opened(ui, f"view=runs&where={where}", viewport={"width": width, "height": 800}).page
    row = page.get_by_role("table", name="Runs").locator("tbody tr").first
    error = row.locator(".c-error")
    # The text that is read aloud and copied is the text that is visible.
    assert error.inner_text() == "search TimeoutError: no answer from eu-4"
    expect(error).to_have_attribute("title", "search: TimeoutError: no answer from eu-4")
    assert error.locator(".reason").evaluate("each => each.scrollHeight <= each.clientHeight")
    box, all_of_row, pipeline = (each.bounding_box() for each in (error, row, row.locator(".c-pipeline")))
    assert box is not None
    assert all_of_row is not None
    assert pipeline is not None
    if width == 360:
        assert box["y"] >= pipeline["y"] + pipeline["height"]
        assert box["width"] > 0.8 * all_of_row["width"]
    assert_columns_fit(page)


@pytest.mark.slow
def test_long_error_has_two_lines(opened: Callable[..., Watched], tmp_path: Path) -> None:
    error = f"ValueError: {'a long message ' * 15}of the service"
    runs = [{"second": 0, "fails": True, "error": error, "data": {"first_failed_stage": "search"}}]
    with serve(write(tmp_path / "journal", runs)) as served:
        page = opened(served, "view=runs").page
        reason = page.locator(".c-error .reason")
        height, line = reason.evaluate(
            "each => [each.clientHeight, parseFloat(getComputedStyle(each).lineHeight)]"
        )
        assert height == pytest.approx(2 * line, abs=1)
        expect(page.locator("td.c-error")).to_have_attribute("title", f"search: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_label_of_a_mark_is_above_its_line(ui: Served, opened: Callable[..., Watched], width: int) -> None:
    page = opened(ui, viewport={"width": width, "height": 800}).page
    expect(page.locator(".vmark.onset")).to_have_count(3)
    for marks in page.locator(".marks").all():
        plot, line, label = (
            marks.bounding_box(),
            marks.locator(".vmark.onset").bounding_box(),
            marks.locator(".vmark-label", has_text="onset").first.bounding_box(),
        )
        assert plot is not None
        assert line is not None
        assert label is not None
        at = line["x"] + line["width"] / 2
        assert label["x"] - 1 <= at <= label["x"] + label["width"] + 1
        assert plot["x"] <= label["x"]
        assert label["x"] + label["width"] <= plot["x"] + plot["width"] + 1


@pytest.mark.slow
def test_streaming_looks_different_from_running(ui: Served, opened: Callable[..., Watched]) -> None:
    run = ui.get("runs", limit="1")["rows"][0]
    page = opened(ui, f"view=run&id={run['run_id']}").page
    ran, streamed = (
        page.locator(f".wf-legend .seg.{kind}.is-ok").evaluate(
            "each => getComputedStyle(each).backgroundImage"
        )
        for kind in ("run", "stream")
    )
    assert (ran, "gradient" in streamed) == ("none", True)


# ---------------------------------------------------------------- words


@pytest.mark.slow
def test_selection_of_an_error_is_named_by_its_type(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=errors").page
    page.get_by_role("link", name="What is different").first.click()
    settle(page)
    expect(page.locator("h1")).to_contain_text("search failed with TimeoutError (ask)")
    expect(page.locator("h1")).not_to_contain_text("1:search")


@pytest.mark.slow
def test_fast_run_that_failed_is_not_explained_as_slow(ui: Served, opened: Callable[..., Watched]) -> None:
    failed = ui.get("runs", where="failed and duration_ms < 900 and first_failed_stage = 'llm'")["rows"][0]
    page = opened(ui, f"view=run&id={failed['run_id']}").page
    expect(page.locator(".explanation h2")).to_have_text(re.compile("^Compared with .* with outcome ok$"))
    slow = ui.get("runs", where="not failed and duration_ms > 3000")["rows"][0]
    page = opened(ui, f"view=run&id={slow['run_id']}").page
    expect(page.locator(".explanation h2")).to_contain_text("Why this run was slow")


# ---------------------------------------------------------------- the incident on the overview


def test_onsets_are_marks(ui: Served) -> None:
    found = ui.get("causes")
    (onset,) = found["onsets"]
    assert onset["kind"] == "onset"
    assert onset["at"] in {finding["since"] for finding in found["findings"]}
    assert onset["label"] == "more failures, more slow runs"
    assert {finding["kind"] for finding in found["findings"]} == {"failures", "durations"}


@pytest.mark.slow
def test_overview_begins_with_the_incident(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui).page
    expect(page.locator("h1")).to_have_text(
        re.compile(
            r"^Since (\d\d-\d\d )?\d\d:\d\d, runs with search/attributes\.shard = eu-4 .*more often"
            r", mostly in search\.$"
        )
    )
    expect(page.locator("h1")).to_contain_text(re.compile(r"\bhave failed\b.*\bhave been slow\b"))
    change = page.locator(".changes li", has_text="onset")
    expect(change).to_contain_text(re.compile(r"\d h ago, (\d\d-\d\d )?\d\d:\d\d"))
    change.get_by_role("link", name="more failures").click()
    page.wait_for_url(re.compile("view=explore.*select="))
    expect(page.locator(".vmark.onset").first).to_be_attached()


@pytest.mark.slow
def test_differences_of_a_finding_start_at_its_onset(ui: Served, opened: Callable[..., Watched]) -> None:
    findings = {finding["kind"]: finding for finding in ui.get("causes")["findings"]}
    page = opened(ui).page
    expect(page.locator(".findings")).to_contain_text("match search/attributes.shard = eu-4")
    page.get_by_role("link", name="What is different").first.click()
    page.wait_for_url(re.compile("view=explore"))
    assert parse_qs(urlsplit(page.url).query)["since"] == [findings["failures"]["since"]]
    settle(page)
    difference = page.get_by_role("table", name="Differences").locator("tbody tr").first
    expect(difference).to_contain_text("eu-4")
    share = re.search(r"(\d+%) of the failures since then match", findings["failures"]["text"])
    assert share is not None
    expect(difference.locator("td.share").first).to_contain_text(share[1])
    # The onset precedes this range, which therefore stays.
    page = opened(ui, "since=3h").page
    page.get_by_role("link", name="What is different").first.click()
    page.wait_for_url(re.compile("view=explore"))
    assert parse_qs(urlsplit(page.url).query)["since"] == ["3h"]


@pytest.mark.slow
def test_what_changed_is_unknown_until_the_search_for_causes_has_ended(
    failing: Served, opened: Callable[..., Watched]
) -> None:
    waiting: list[Route] = []
    # In these runs, no error is new.
    since, until = (
        failing.get("runs", where=f"pipeline_run_id = '{number:08d}-run'")["rows"][0]["started_at"]
        for number in (10, 200)
    )
    page = opened(failing, f"view=runs&since={quote(since)}&until={quote(until)}").page
    page.route("**/api/causes*", lambda route: waiting.append(route))
    page.get_by_role("link", name="Overview").click()
    changes = page.locator(".panel", has=page.get_by_role("heading", name="What changed"))
    nothing = "Nothing started, and no version, error or alert is new."
    expect(changes).to_contain_text("Searching for what changed")
    expect(changes).not_to_contain_text(nothing)
    waiting.pop().continue_()
    expect(changes).to_contain_text(nothing)


@pytest.mark.slow
def test_new_errors_come_first(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=errors").page
    rows = page.get_by_role("table", name="Errors").locator("tbody tr")
    expect(rows.first).to_contain_text("new")
    expect(page.locator("h1")).to_contain_text("2 new errors: TimeoutError in search")
    expect(rows.last).to_contain_text("llm")
    page.get_by_role("button", name="Most frequent").click()
    expect(rows.first).to_contain_text("llm")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_time_zone_is_always_visible(ui: Served, opened: Callable[..., Watched], width: int) -> None:
    options = {"viewport": {"width": width, "height": 800}, "timezone_id": "Asia/Kolkata"}
    page = opened(ui, "view=runs", **options).page
    expect(page.locator("header.top").get_by_text("UTC+05:30")).to_be_visible()
