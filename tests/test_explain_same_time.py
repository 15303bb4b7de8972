"""Tests for values that stand for a time: of a selection that is restricted to it, and in combinations."""

from __future__ import annotations

import random
from collections.abc import Generator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_explain_more import write
from test_sampling import BEGAN

from stageflow.render import draw_explanation
from stageflow.store import EventStore, Explanation

pytestmark = pytest.mark.slow

RUNS = 2_000
AFTER = f"started_at >= '{BEGAN.isoformat()}'::timestamptz + interval '1400 minutes'"


def incident(folder: Path) -> Path:
    """Write runs of which those of two customers on one shard become slow, hours after a release."""

    def run(number: int) -> dict[str, Any]:
        shard, org = f"eu-{number % 5}", ("acme", "globex", "initech", "hooli")[number // 5 % 4]
        slow = number >= 1_400 and shard == "eu-4" and org in ("acme", "initech") and number % 7 > 0
        tail = number % 41 == 0
        return {
            "second": number * 60,
            "ms": 100 + number % 37 + 2_000 * (slow or tail),
            "user": f"u-{number % 211}",
            "version": "2.4.0" if number >= 1_000 else "2.3.9",
            "attributes": {"shard": shard, "org": org, "channel": ("web", "voice")[number // 3 % 2]},
        }

    return write(folder, map(run, range(RUNS)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Generator[EventStore]:
    with EventStore(incident(tmp_path_factory.mktemp("same_time") / "journal")) as opened:
        yield opened


def due_to_time(explanation: Explanation) -> dict[str, float]:
    return {
        each.description: each.same_time_share
        for each in explanation.differences
        if each.same_time_share is not None
    }


def test_version_is_no_part_of_a_combination_because_it_was_released_before(store: EventStore) -> None:
    found = store.explain(f"{AFTER} and duration_ms > 1000")
    first = found.differences[0]
    assert first.shape == "combination"
    assert set(first.fields) == {"attributes.shard", "attributes.org"}
    assert not any(
        "service_version" in each.fields for each in found.differences if each.shape == "combination"
    )


def test_difference_that_is_due_to_the_time_is_last_and_explains_no_other(store: EventStore) -> None:
    found = store.explain(f"{AFTER} and duration_ms > 1000")
    assert due_to_time(found) == {"service_version = 2.4.0": 1.0}
    assert found.differences[-1].description == "service_version = 2.4.0"
    assert not any("service_version" in str(each.relates_to) for each in found.differences)


def test_rows_of_the_same_time_are_counted_and_can_be_compared(store: EventStore) -> None:
    found = store.explain(f"{AFTER} and duration_ms > 1000")
    same_time = found.same_time
    assert same_time is not None
    others = store.sql(f"select count(*) from runs where {same_time.against} and not duration_ms > 1000").rows
    assert others == [(same_time.count,)]
    again = store.explain(found.where, against=same_time.against)
    assert again.rest.count == same_time.count
    assert again.same_time is None
    assert not any("service_version" in each.fields for each in again.differences)


@pytest.mark.parametrize(
    "where",
    ["duration_ms > 1000", "failed", pytest.param(AFTER, id="all runs of a time")],
)
def test_selection_without_other_rows_of_its_time_has_no_difference_due_to_it(
    store: EventStore, where: str
) -> None:
    found = store.explain(where)
    assert found.same_time is None
    assert due_to_time(found) == {}


def test_version_differs_if_all_runs_of_a_time_are_selected(store: EventStore) -> None:
    first = store.explain(AFTER).differences[0]
    assert first.description == "service_version = 2.4.0"
    assert first.same_time_share is None


def test_terminal_states_what_is_due_to_the_time(store: EventStore) -> None:
    found = store.explain(f"{AFTER} and duration_ms > 1000")
    screen = Console(file=StringIO(), width=200)
    screen.print(draw_explanation(found, width=200))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "due to the time of the selection: 100% of the other runs from that time also match" in text


@pytest.mark.parametrize(("release", "is_cause"), [(1_000, False), (1_400, True)])
def test_version_is_part_of_a_combination_only_if_its_release_was_the_start(
    tmp_path: Path, release: int, is_cause: bool
) -> None:
    dice = random.Random(3)

    def run(number: int) -> dict[str, Any]:
        shard = f"eu-{number % 5}"
        affected = number >= 1_400 and shard == "eu-4"
        return {
            "second": number * 60,
            "fails": dice.random() < (0.4 if affected else 0.01),
            "user": f"u-{number % 211}",
            "version": "2.4.0" if number >= release else "2.3.9",
            "attributes": {"shard": shard},
        }

    with EventStore(write(tmp_path / "journal", map(run, range(RUNS)))) as store:
        first = store.explain().differences[0]
    assert "attributes.shard" in first.fields
    assert ("service_version" in first.fields) is is_cause
    assert ("started_at" in first.fields) is not is_cause
