"""Tests of the web UI with an incident: each view leads to the stage and the runs that it is about."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from urllib.parse import quote

import pytest
from incident_runs import write_incident
from playwright.sync_api import Page, expect
from test_ui_browser import Watched, browser, opened, settle
from ui_server import Served, serve

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


@pytest.mark.slow
def test_where_begins_with_the_stage_of_the_first_difference(
    ui: Served, opened: Callable[..., Watched]
) -> None:
    page = opened(ui, f"view=explore&select={quote(SLOWEST)}").page
    where = page.locator(".differences li", has_text="of the additional time of the runs that match row 1")
    expect(where.first).to_contain_text("search took")


# ---------------------------------------------------------------- stages


def test_stages_are_compared_with_the_time_before(ui: Served) -> None:
    found = ui.get("stages")
    rows = {row["stat"]["stage"]: row for row in found["rows"] if row["stat"]["pipeline"] == "ask"}
    search, llm = rows["search"], rows["llm"]
    assert search["earlier"]["count"] + search["recent"]["count"] == search["stat"]["count"]
    assert search["recent"]["p99_ms"] > 10 * search["earlier"]["p99_ms"]
    assert llm["recent"]["p99_ms"] < 1.5 * llm["earlier"]["p99_ms"]
    assert search["earlier"]["failed"] == 0 < search["recent"]["failed"]
    assert len(search["p99_ms"]) == len(search["p95_ms"])
    assert max(filter(None, search["p99_ms"][:20])) < 500 < max(filter(None, search["p99_ms"][-8:]))


@pytest.mark.slow
def test_stages_begin_with_what_changed(ui: Served, opened: Callable[..., Watched]) -> None:
    page = opened(ui, "view=stages&pipeline=ask").page
    expect(page.locator("h1")).to_contain_text(
        re.compile(r"^ask: search became slower: p99 \S+ s since .* before")
    )
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


# ---------------------------------------------------------------- distributions


@pytest.mark.slow
def test_distributions_agree_with_the_differences(ui: Served, opened: Callable[..., Watched]) -> None:
    select = quote("failed and first_failed_stage = 'llm'")
    page = opened(ui, f"view=explore&select={select}").page
    expect(page.get_by_text("differs as a cause").first).to_be_visible()
    expect(page.locator(".facet .badge.differs")).to_have_count(0)
    page = opened(ui, f"view=explore&select={quote('duration_ms > 3000')}").page
    expect(page.get_by_role("region", name="org_id").locator(".badge")).to_have_text("differs")
    stage = page.get_by_role("region", name="first_failed_stage")
    expect(stage.locator(".badge")).to_have_text("likely effect")
