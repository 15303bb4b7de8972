"""Tests for the fields that the web UI suggests, the groups of its charts, and rows from the same time."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from test_explain_more import write
from ui_server import Served, serve

RUNS = 600


def incident(folder: Path) -> Path:
    """Write runs of which those of one shard become slow, hours after the release of an innocent version."""

    def run(number: int) -> dict[str, Any]:
        shard = f"eu-{number % 5}"
        slow = number >= 450 and shard == "eu-4" and number % 3 > 0
        return {
            "second": number * 60,
            "ms": 100 + number % 37 + 4000 * slow,
            "user": f"u-{number % 7}",
            "version": "2.4.0" if number >= 300 else "2.3.9",
            "attributes": {"ticket": f"t-{number}", "channel": ("web", "voice")[number % 2]},
            "stage_ms": {"search": 50.0 + 4000 * slow},
            "stage_attributes": {"shard": shard, "trace": f"x{number}", "hits": number % 9},
        }

    return write(folder, map(run, range(RUNS)))


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with serve(incident(tmp_path_factory.mktemp("ui") / "journal")) as served:
        yield served


def fields(ui: Served) -> dict[str, dict[str, Any]]:
    return {each["text"]: each for each in ui.get("complete")["suggestions"]}


def test_suggested_groups_include_fields_of_stages_but_no_ids(ui: Served) -> None:
    found = fields(ui)
    useful = {name for name, each in found.items() if each["usefulness"] is not None}
    assert {"service_version", "attributes.channel", "user_id", "search/attributes.shard"} <= useful
    assert not useful & {
        "request_id",
        "session_id",
        "event_id",
        "attributes.ticket",
        "search/attributes.trace",
    }
    assert found["search/attributes.shard"]["kind"] == "stage field"
    assert "attributes.shard" not in found
    # A field with one value shows nothing.
    assert found["service_version"]["usefulness"] > found["pipeline_name"]["usefulness"]


def test_suggested_groups_of_stages(ui: Served) -> None:
    useful = {
        each["text"]: each["usefulness"]
        for each in ui.get("complete", over="stages")["suggestions"]
        if each["usefulness"] is not None
    }
    assert {"service_version", "attributes.shard", "stage_name"} <= set(useful)
    assert not set(useful) & {"attributes.trace", "event_id", "request_id"}
    assert not any("/" in name for name in useful)


def test_values_of_a_field_of_a_stage_are_suggested(ui: Served) -> None:
    values = ui.get("complete", field="search/attributes.shard", prefix="EU-4")["suggestions"]
    assert [(each["text"], each["count"]) for each in values] == [("eu-4", 120)]


def test_fields_with_a_value_are_suggested(ui: Served) -> None:
    def found(value: str, over: str = "runs") -> list[tuple[str, float, str]]:
        suggestions = ui.get("complete", value=value, over=over)["suggestions"]
        return [(each["text"], each["count"], each["value"]) for each in suggestions]

    assert found("VOICE") == [("attributes.channel", RUNS / 2, "voice")]
    assert found("eu-4") == [("search/attributes.shard", RUNS / 5, "eu-4")]
    assert found("eu-4", over="stages") == [("attributes.shard", RUNS / 5, "eu-4")]
    assert ("user_id", 86, "u-1") in found("u-1")
    assert found("nowhere") == []
    assert found("it's") == []


def test_series_of_a_selection_and_the_rest(ui: Served) -> None:
    def counts(**parameters: str) -> dict[str | None, float]:
        return {group["name"]: sum(group["count"]) for group in ui.get("series", **parameters)["groups"]}

    slow = "duration_ms > 1000"
    selected = counts(where=slow)[None]
    assert counts(select=slow) == {"selection": selected, "rest": RUNS - selected}
    by_stage = "\"search/attributes.shard\" = 'eu-4'"
    assert counts(select=slow, against=by_stage) == {"selection": selected, "rest": RUNS / 5 - selected}
    assert counts(select=by_stage, where="service_version = '2.4.0'") == {"selection": 60, "rest": 240}
    # A field takes precedence.
    assert set(counts(select=slow, by="service_version")) == {"2.3.9", "2.4.0"}


def test_series_by_a_field_of_a_stage_counts_every_run(ui: Served) -> None:
    found = ui.get("series", by="search/attributes.shard")
    assert {group["name"]: group["total"]["count"] for group in found["groups"]} == {
        f"eu-{n}": 120 for n in range(5)
    }
    for group in found["groups"]:
        assert ui.get("runs", where=group["where"], count="1")["total"] == sum(group["count"])
    slow = {group["name"] for group in found["groups"] if group["total"]["p99_ms"] > 1000}
    assert slow == {"eu-4"}


def test_heatmap_of_a_field_of_a_stage_selects_its_runs(ui: Served) -> None:
    found = ui.get("heatmap", measure="search/duration_ms")
    assert (found["count"], found["missing"]) == (RUNS, 0)
    slow = f"{found['measure_sql']} >= 1000"
    assert ui.get("heatmap", measure="search/duration_ms", select=slow)["count"] == RUNS
    assert ui.get("runs", where=slow, count="1")["total"] == 20
    assert "is not numeric" in ui.problem("heatmap", measure="search/attributes.shard")["title"]


def test_series_of_stages_by_a_field_of_their_run(ui: Served) -> None:
    found = ui.get("series", over="stages", by="run/attributes.channel", where="stage_name = 'search'")
    assert {group["name"]: group["total"]["count"] for group in found["groups"]} == {"web": 300, "voice": 300}


@pytest.mark.parametrize(
    ("by", "problem"),
    [
        ("serch/attributes.shard", "did you mean 'search'?"),
        ("search/attributes.shrad", 'did you mean "attributes.shard"?'),
    ],
)
def test_unknown_field_of_a_stage_is_rejected(ui: Served, by: str, problem: str) -> None:
    assert problem in ui.problem("series", by=by)["title"]


def test_rank_of_a_group_does_not_depend_on_the_filter(ui: Served) -> None:
    def ranks(**filter: str) -> dict[str, int]:
        groups = ui.get("series", by="service_version", **filter)["groups"]
        return {group["name"]: group["rank"] for group in groups}

    # The order of the first occurrence: a new version does not change the rank of an old one.
    assert ranks() == {"2.3.9": 0, "2.4.0": 1}
    assert ranks(where="service_version = '2.4.0'") == {"2.4.0": 1}
    assert ranks(where="user_id = 'u-3' and duration_ms > 1000") == {"2.4.0": 1}


def selection(ui: Served) -> str:
    (rows,) = ui.get("sql", query="select min(started_at)::varchar from runs where duration_ms > 1000")[
        "rows"
    ]
    return f"started_at >= '{rows[0]}' AND duration_ms > 1000"


def test_version_of_the_time_of_a_selection_is_marked(ui: Served) -> None:
    found = ui.get("differences", select=selection(ui))
    explanation = found["explanation"]
    shares = {each["description"]: each["same_time_share"] for each in explanation["differences"]}
    assert {name: share for name, share in shares.items() if share is not None} == {
        "service_version = 2.4.0": 1
    }
    assert list(shares)[-1] == "service_version = 2.4.0"
    same_time = explanation["same_time"]
    others = ui.get("runs", where=f"{same_time['against']} and duration_ms <= 1000", count="1")["total"]
    assert same_time["count"] == others > 0
    assert "`service_version = 2.4.0` is due to the time of the selection" in found["markdown"]


def test_selection_is_compared_with_the_runs_of_the_same_time(ui: Served) -> None:
    select = selection(ui)
    against = ui.get("differences", select=select)["explanation"]["same_time"]["against"]
    found = ui.get("differences", select=select, against=against)
    assert found["explanation"]["same_time"] is None
    descriptions = [each["description"] for each in found["explanation"]["differences"]]
    assert descriptions[0] == "search/attributes.shard = eu-4"
    assert not any("service_version" in each for each in descriptions)
    assert "--against" in found["command"]
    facets = ui.get("facets", select=select, against=against)
    assert facets["rest"] == ui.get("runs", where=f"({against}) and not ({select})", count="1")["total"]
    assert facets["selection"] + facets["rest"] < RUNS


def test_selection_of_all_times_has_no_difference_that_is_due_to_the_time(ui: Served) -> None:
    explanation = ui.get("differences", select="\"search/attributes.shard\" = 'eu-4'")["explanation"]
    assert explanation["same_time"] is None
    assert all(each["same_time_share"] is None for each in explanation["differences"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("customer", "'org_id'"),
        ("latency", "'duration_ms'"),
        ("version", "'service_version'"),
        ("channel", '"attributes.channel"'),
        ("stauts", "'status'"),
        ("zebra", None),
    ],
)
def test_unknown_field_suggests_a_field_that_means_the_same(
    ui: Served, typed: str, meant: str | None
) -> None:
    title = ui.problem("runs", where=f"{typed} = 'x'")["title"]
    assert title.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in title
