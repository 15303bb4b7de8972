"""Tests for predicates with fields as `explain` displays them: "stage/field" and "attributes.name"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_explain_more import write
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.errors import QueryError
from stageflow.store import Compactor, EventStore

MODELS = ("m-small", "m-large", "m-mini")


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    runs = [
        {
            "attributes": {"region": "eu" if number % 2 else "us"},
            "stage_ms": {"llm": 10.0 * number, "my stage": 1.0},
            "stage_attributes": {"model": MODELS[number % 3]},
        }
        for number in range(60)
    ]
    return EventStore(write(tmp_path / "journal", runs))


@pytest.mark.parametrize(
    ("where", "runs"),
    [
        ("llm/attributes.model = 'm-large'", 20),
        ("llm/attributes.model = 'm-large' and attributes.region = 'eu'", 10),
        ("llm/duration_ms >= 300", 30),
        ("llm/duration_ms/10 >= 30", 30),
        ("\"my stage/attributes.model\" = 'm-mini'", 20),
        ("llm/status is null", 0),
        ("stages_failed/stages_total >= 0", 60),
        ("attributes.region = 'llm/status'", 0),
        ("llm/attributes.model = 'm-large' -- llm/attributes.model", 20),
        ("duration_ms/(llm/duration_ms + 1) >= 0", 60),
    ],
)
def test_predicate_selects_runs_by_a_field_of_a_stage(store: EventStore, where: str, runs: int) -> None:
    assert len(store.runs(where=where, limit=None)) == runs


def test_predicate_selects_stages_by_a_field_of_their_run(store: EventStore) -> None:
    rows = store.stats("stages", where="run/attributes.region = 'eu'")
    assert {stat.stage: stat.count for stat in rows} == {"llm": 30.0, "my stage": 30.0}


def test_view_has_only_the_attributes_of_its_own_rows(store: EventStore) -> None:
    names = {
        view: [name for name, *_ in store.sql(f"describe {view}").rows if name.startswith("attributes.")]
        for view in ("runs", "stages")
    }
    assert names == {"runs": ["attributes.region"], "stages": ["attributes.model"]}


def test_view_has_only_the_attributes_of_its_own_rows_after_archiving(tmp_path: Path) -> None:
    runs = [{"attributes": {"region": "eu"}, "stage_ms": {"llm": 1.0}, "stage_attributes": {"model": "m"}}]
    journal = write(tmp_path / "journal", runs)
    Compactor(journal).compact()
    with EventStore(journal) as store:
        names = [name for name, *_ in store.sql("describe runs").rows if name.startswith("attributes.")]
        assert names == ["attributes.region"]


@pytest.mark.parametrize(
    ("where", "suggested"),
    [
        ("model = 'm-large'", "llm/attributes.model"),
        ("attributes.model = 'm-large'", "llm/attributes.model"),
        ("modle = 'm-large'", "llm/attributes.model"),
        ("regoin = 'eu'", "attributes.region"),
    ],
)
def test_error_suggests_the_attribute_of_a_stage(store: EventStore, where: str, suggested: str) -> None:
    with pytest.raises(QueryError) as raised:
        store.runs(where=where)
    assert f'did you mean "{suggested}"?' in str(raised.value)
    assert store.runs(where=f'"{suggested}" is not null')


def test_error_suggests_the_attribute_of_the_run_of_a_stage(store: EventStore) -> None:
    with pytest.raises(QueryError, match=r'did you mean "run/attributes\.region"'):
        store.stats("stages", where="region = 'eu'")


def test_field_of_a_stage_that_defines_the_selection_is_not_a_difference(store: EventStore) -> None:
    found = store.explain("llm/attributes.model = 'm-large'")
    assert found.selection.rows == 20
    assert not [one for one in found.differences if "attributes.model" in str(one.fields)]
    assert not [one for one in found.effects if "attributes.model" in str(one.fields)]


def test_field_that_restricts_both_sides_is_accepted(store: EventStore) -> None:
    found = store.explain("llm/duration_ms >= 300", within="llm/attributes.model = 'm-large'")
    assert (found.selection.rows, found.rest.rows) == (10, 10)


def test_condition_of_a_difference_and_its_displayed_name_select_the_same_runs(tmp_path: Path) -> None:
    runs = [
        {
            "fails": number % 3 == 1 and number % 10 > 0,
            "stage_ms": {"llm": 1.0},
            "stage_attributes": {"model": MODELS[number % 3]},
        }
        for number in range(600)
    ]
    with EventStore(write(tmp_path / "journal", runs)) as store:
        first = store.explain().differences[0]
        assert str(first) == "llm/attributes.model = m-large"
        displayed = store.runs(where="llm/attributes.model = 'm-large'", limit=None)
        assert {run["event_id"] for run in displayed} == {
            run["event_id"] for run in store.runs(where=first.condition, limit=None)
        }


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("lm/attributes.model = 'm-large'", "unknown stage 'lm'.*did you mean 'llm'"),
        ("llm/attributes.modle = 'm-large'", "unknown field 'attributes.modle'"),
        ("llm/colour = 'red'", "unknown field"),
    ],
)
def test_misspelled_name_is_an_error(store: EventStore, where: str, message: str) -> None:
    with pytest.raises(QueryError, match=re.compile(message, re.DOTALL)):
        store.runs(where=where)


def test_explain_command_restricts_both_sides(store: EventStore) -> None:
    command = ["explain", "llm/duration_ms >= 300", "--within", "llm/attributes.model = 'm-large'"]
    printed = CliRunner().invoke(app, [*command, "--journal", str(store.path), "--json"])
    assert printed.exit_code == 0, printed.output
    assert '"rows":10' in printed.output


def test_field_without_a_value_is_left_out_as_empty(store: EventStore) -> None:
    reasons = {
        name: one.reason for one in store.explain("llm/duration_ms >= 300").left_out for name in one.fields
    }
    assert reasons["commit"] == "empty in every row"
    assert reasons["outcome"] == "the same in every row"
