"""Tests of the view Explore in a browser: selections of a time, groups, marks, explanations and menus."""

from __future__ import annotations

from collections.abc import Callable, Generator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect
from test_ui_browser import Watched, browser, drag_over, opened, settle
from test_ui_groups import incident
from ui_server import Served, serve

__all__ = ["browser", "opened"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with serve(incident(tmp_path_factory.mktemp("explore") / "journal")) as served:
        yield served


def parameters(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def test_box_is_compared_with_the_runs_of_the_same_time(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore").page
    drag_over(page, 0.7, 0.0, 0.99, 0.4)
    settle(page)
    table = page.get_by_role("table", name="Differences")
    expect(table).to_contain_text("due to the time: all other runs from that time also match")
    page.get_by_role("button", name="Compare with the runs from the same time").click()
    settle(page)
    expect(page.get_by_text("other runs from the same time.")).to_be_visible()
    expect(table.locator("tbody tr").first).to_contain_text("search/attributes.shard = eu-4")
    expect(table).not_to_contain_text("service_version")
    page.get_by_role("button", name="Clear selection").click()
    assert "against" not in parameters(page)


def test_difference_groups_by_a_field_of_a_stage(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore&select=duration_ms>1000").page
    page.get_by_role("table", name="Differences").get_by_role("button", name="eu-4").first.click()
    page.get_by_role("menuitem", name="Group by search/attributes.shard").click()
    settle(page)
    rows = page.get_by_role("table", name="Totals of each group").get_by_role("link")
    assert sorted(rows.all_inner_texts()) == [f"eu-{number}" for number in range(5)]


def test_group_by_offers_fields_of_stages_and_no_ids(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore").page
    options = page.get_by_label("group by").locator("option").all_inner_texts()
    assert {"service_version", "search/attributes.shard", "attributes.channel"} <= set(options)
    assert not {"request_id", "session_id", "event_id", "attributes.ticket"} & set(options)
    assert options.index("service_version") < options.index("pipeline_name")


def test_group_keeps_its_color_when_the_filter_changes(slow: Served, opened: Callable[..., Watched]) -> None:
    def colors(where: str) -> dict[str, str]:
        page = opened(slow, f"view=explore&by=search/attributes.shard&where={where}").page
        keys = page.locator(".line-chart .key")
        return {
            key.inner_text().strip(): str(key.locator("line").get_attribute("stroke")) for key in keys.all()
        }

    every = colors("")
    assert len(set(every.values())) == 5
    for where in ("duration_ms>1000", "\"search/attributes.shard\" IN ('eu-4','eu-1')"):
        found = colors(where)
        assert found
        assert found.items() <= every.items()


def test_chart_compares_the_selection_with_the_rest(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore").page
    expect(page.get_by_role("heading", name="Over time")).to_have_text("Over time")
    page = opened(slow, "view=explore&select=duration_ms>1000").page
    expect(page.locator(".line-chart .key")).to_have_text(["selection", "the rest"])
    expect(page.get_by_role("heading", name="Over time")).to_have_text("Over time")
    page.get_by_label("group by").select_option("service_version")
    settle(page)
    expect(page.get_by_role("heading", name="Over time")).to_have_text("Over time, all runs")


def test_word_without_a_field_offers_the_fields_with_this_value(
    slow: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(slow, "view=runs").page
    page.get_by_role("combobox", name="Filter").fill("EU-4")
    options = page.get_by_role("listbox", name="Suggestions").get_by_role("option")
    expect(options.first).to_have_text("search/attributes.shard=eu-4120")
    expect(options.nth(1)).to_contain_text("=EU-4")
    options.first.click()
    expect(page.locator("h1")).to_contain_text("120 runs match the filter")


def test_empty_selection_has_no_failure_rate(slow: Served, opened: Callable[..., Watched]) -> None:
    headline = opened(slow, "view=explore&select=duration_ms<0").page.locator("h1")
    expect(headline).to_contain_text("0 of 600 runs selected")
    expect(headline).not_to_contain_text("failed")


def test_chart_shows_the_percentiles_of_the_measure(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore").page
    expect(page.get_by_label("show")).to_have_value("p95_ms")
    page.locator("label", has_text="color").locator("select").select_option("failure rate")
    expect(page.get_by_label("show")).to_have_value("failure_rate")


def test_box_over_a_stage_shows_its_cause(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore").page
    page.locator("label", has_text="measure").locator("select").select_option("search/duration_ms")
    settle(page)
    drag_over(page, 0.0, 0.0, 0.999, 0.4)
    settle(page)
    assert parameters(page)["select"][0].count('"search/duration_ms"') == 2
    expect(page.locator(".heatmap .box")).to_be_visible()
    expect(page.get_by_role("table", name="Differences")).to_contain_text("search/attributes.shard = eu-4")


def test_marks_have_labels_and_a_legend(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore").page
    assert page.locator(".heatmap .vmark-label").all_inner_texts() == ["2.4.0"]
    assert page.locator(".line-chart .vmark-label").all_inner_texts() == ["2.4.0"]
    expect(page.get_by_text("new version: 2.4.0")).to_have_count(2)
    assert str(page.locator(".heatmap .vmark").get_attribute("title")).startswith("new version: 2.4.0, first")


def test_keyboard_opens_the_explanation_of_a_word(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore&select=duration_ms>1000").page
    explanation = page.get_by_role("tooltip").filter(has_text="corrected for the number of comparisons")
    expect(explanation).to_have_count(0)
    page.get_by_role("button", name="Chance (q)").focus()
    expect(explanation).to_be_visible()
    page.keyboard.press("Escape")
    expect(explanation).to_have_count(0)
    assert "select" in parameters(page)


@pytest.mark.parametrize("height", [260, 500, 900])
def test_menu_stays_inside_the_window(slow: Served, opened: Callable[..., Watched], height: int) -> None:
    page = opened(slow, "view=explore", viewport={"width": 1000, "height": height}).page
    buttons = page.locator(".facet button.value")
    for number in range(0, buttons.count(), 7):
        button = buttons.nth(number)
        # The button is at the lower edge of the window.
        button.evaluate("(one) => scrollBy(0, one.getBoundingClientRect().bottom - innerHeight + 4)")
        button.focus()
        page.keyboard.press("Enter")
        box = page.locator(".menu > .items").bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
        page.keyboard.press("Escape")


def test_unknown_field_suggests_the_field_that_is_meant(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=runs").page
    field = page.get_by_role("combobox", name="Filter runs")
    for typed, meant in (
        ("tenant", "org_id"),
        ("latency", "duration_ms"),
        ("shard", "search/attributes.shard"),
    ):
        field.fill(typed)
        expect(page.get_by_role("option").first).to_contain_text(meant)
    field.fill("zebra")
    expect(page.get_by_role("option").filter(has_text="outcome=")).to_have_count(1)


def test_two_runs_are_compared_in_a_narrow_window(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=runs", viewport={"width": 360, "height": 740}, has_touch=True).page
    boxes = page.get_by_role("checkbox")
    boxes.nth(0).tap()
    expect(page.get_by_text("Select another run to compare")).to_be_visible()
    boxes.nth(2).tap()
    page.get_by_role("link", name="Compare the two selected runs").tap()
    settle(page)
    expect(page.get_by_role("heading", name="Stages, largest difference first")).to_be_visible()


@pytest.mark.parametrize("view", ["explore", "explore&select=duration_ms>1000&by=user_id", "runs", "stages"])
def test_touch_targets_are_large_enough(slow: Served, opened: Callable[..., Watched], view: str) -> None:
    page = opened(
        slow,
        f"view={view}&where=duration_ms>0 AND NOT failed",
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
    ).page
    small = page.evaluate(_SMALL)
    assert small == []
    assert page.evaluate("document.querySelector('.top').offsetHeight") <= 104


_SMALL = """[...document.querySelectorAll('button:not(.bin), select, input, summary, .c-check label')]
    .filter((one) => one.offsetParent && !one.closest('label.control, .c-check') | one.matches('label'))
    .map((one) => [one.textContent.slice(0, 30), one.className, one.getBoundingClientRect()])
    .filter(([, , box]) => box.height > 0 && (box.height < 24 || box.width < 24))
    .map(([text, kind, box]) => `${text} ${kind} ${box.width} ${box.height}`)"""


def test_wide_window_is_used(slow: Served, opened: Callable[..., Watched]) -> None:
    page = opened(slow, "view=explore", viewport={"width": 1920, "height": 900}).page
    box = page.locator(".heatmap").bounding_box()
    assert box is not None
    assert box["width"] > 1700
