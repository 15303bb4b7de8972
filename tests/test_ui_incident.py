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
