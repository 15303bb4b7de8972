"""`EventStore.findings`: the story of an incident does not depend on the time range from which one looks."""

from __future__ import annotations

import random
import re
from collections.abc import Generator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_explain_more import write
from test_sampling import BEGAN

from stageflow.journal import RunFilter
from stageflow.store import EventStore, OverviewFinding

pytestmark = pytest.mark.slow

HOURS = 48
ONSET = 41.0
"""Hour at which the runs of two customers on one shard become slow, and some of them fail."""

PER_HOUR = 160


def incident(folder: Path, *, until: float = HOURS) -> Path:
    """Write the runs of two days, a normal tail, and an incident from `ONSET` on."""

    def run(number: int) -> dict[str, Any]:
        hour = number / PER_HOUR
        shard, org = f"eu-{number % 5}", ("acme", "globex", "initech", "hooli")[number // 5 % 4]
        affected = ONSET <= hour < until and shard == "eu-4" and org in ("acme", "initech")
        slow = affected and number % 7 > 0
        tail = number % 31 == 0
        return {
            "second": hour * 3600,
            "ms": 100 + number % 37 + 3_000 * slow + 900 * tail,
            "fails": number % 211 == 0,
            "user": f"u-{number % 211}",
            "version": "2.4.0" if hour >= 30 else "2.3.9",
            "attributes": {"shard": shard, "org": org, "channel": ("web", "voice")[number // 3 % 2]},
        }

    return write(folder, map(run, range(HOURS * PER_HOUR)))


def at(hour: float) -> str:
    return (BEGAN + timedelta(hours=hour)).isoformat()


def findings(store: EventStore, since: float, until: float = HOURS) -> dict[str, OverviewFinding]:
    filter = RunFilter(since=at(since), until=at(until))
    return {finding.kind: finding for finding in store.findings(filter, explain=True)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Generator[EventStore]:
    with EventStore(incident(tmp_path_factory.mktemp("findings") / "journal")) as opened:
        yield opened


@pytest.mark.parametrize("since", [0, 24, 44, 47])
def test_cause_and_onset_are_the_same_in_every_range(store: EventStore, since: float) -> None:
    found = findings(store, since)["durations"]
    assert found.cause is not None
    assert "eu-4" in found.cause
    assert "match attributes.shard = eu-4 and attributes.org in (" in found.text
    assert "acme" in found.text
    assert "initech" in found.text
    assert "globex" not in found.text
    assert "service_version" not in found.text
    assert found.since is not None
    onset = (datetime.fromisoformat(found.since) - BEGAN) / timedelta(hours=1)
    assert onset == pytest.approx(ONSET, abs=0.3)
    assert ("before the start of this time range" in found.text) == (since > onset)


def test_shares_are_those_since_the_onset(store: EventStore) -> None:
    (whole, late) = (findings(store, since)["durations"].text for since in (0, 42))
    # Since the onset, 6 of 7 of the affected runs are slow, and 1 of 31 of the others.
    for text in (whole, late):
        assert re.search(r"8[67]% of the matching runs are that slow, compared with 3", text)
    assert " of the runs since then that are slower than " in whole


def test_incident_that_ended_before_the_range_is_not_reported(tmp_path: Path) -> None:
    with EventStore(incident(tmp_path / "journal", until=44)) as store:
        during, after = findings(store, 42, 44), findings(store, 45)
    assert "eu-4" in during["durations"].text
    assert "durations" not in after


def test_quiet_range_before_the_incident_has_no_finding_about_durations(store: EventStore) -> None:
    assert "durations" not in findings(store, 30, 40)


def test_few_failures_that_chance_explains_are_no_increase(store: EventStore) -> None:
    found = findings(store, 43)["failures"]
    assert found.level == "info"
    assert "up from" not in found.text


@pytest.mark.parametrize("failing", [40, 80])
def test_failures_of_a_short_range_are_compared_with_the_baseline(tmp_path: Path, failing: int) -> None:
    def run(number: int) -> dict[str, Any]:
        fails = number >= 5_000 - failing or number % 100 == 0
        return {"second": number * 30, "fails": fails, "user": f"u-{number % 97}"}

    with EventStore(write(tmp_path / "journal", map(run, range(5_000)))) as store:
        end = 5_000 * 30 / 3600
        found = store.findings(RunFilter(since=at(end - failing * 30 / 3600), until=at(end)))
    assert found[0].level == "bad"
    assert "100% of the runs fail" in found[0].text
    assert re.search(r"up from [12](\.\d)?% before", found[0].text)


def test_failures_share_the_cause_of_slow_runs_if_it_makes_them_fail(tmp_path: Path) -> None:
    dice = random.Random(5)

    def run(number: int) -> dict[str, Any]:
        affected = number >= 2_400 and number % 8 == 3
        return {
            "second": number * 60,
            "ms": 100 + number % 37 + 3_000 * affected,
            # Too few failures to find their cause among all fields and values.
            "fails": dice.random() < (0.1 if affected else 0.01),
            "user": f"u-{number % 211}",
            "attributes": {"shard": f"eu-{number % 8}", "colors": f"c-{number % 50}"},
        }

    with EventStore(write(tmp_path / "journal", map(run, range(3_000)))) as store:
        assert store.explain().differences == ()
        found = {finding.kind: finding for finding in store.findings(explain=True)}
    assert re.search(
        r": \d[.\d]*% of the matching runs fail, compared with [01][.\d]*% of the others",
        found["failures"].text,
    )
    assert found["failures"].cause == found["durations"].cause
    assert "eu-3" in str(found["failures"].cause)


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00Z", at(-1)])
def test_time_before_the_first_run_does_not_count(store: EventStore, since: str) -> None:
    filter = RunFilter(since=since, until=at(HOURS))
    found = {finding.kind: finding for finding in store.findings(filter, explain=True)}
    assert "up from 0%" not in found["failures"].text
    expected = findings(store, 0)["durations"]
    assert (found["durations"].text, found["durations"].since) == (expected.text, expected.since)


def test_runs_that_fail_from_the_first_one_on_are_no_increase(tmp_path: Path) -> None:
    runs = [{"second": number * 30, "fails": number % 3 == 0} for number in range(300)]
    with EventStore(write(tmp_path / "journal", runs)) as store:
        (found, *_) = store.findings(RunFilter(since=at(-1), until=at(3)))
    assert (found.level, found.text) == ("bad", "33% of the runs fail (100 of 300).")


def voice_calls(folder: Path) -> Path:
    """Write runs of two pipelines, of which one is affected by a region and a codec since `ONSET`."""
    dice = random.Random(8)

    def run(number: int) -> dict[str, Any]:
        hour = number / PER_HOUR
        region, codec = dice.choice(("us", "eu", "ap")), dice.choice(("opus", "pcm"))
        pipeline = dice.choice(("call", "call", "voicemail"))
        affected = hour >= ONSET and (region, codec, pipeline) == ("ap", "opus", "call")
        usual = 300 if pipeline == "voicemail" else 100
        return {
            "second": hour * 3600,
            "ms": usual * dice.lognormvariate(0, 0.3) + 2_000 * (affected and dice.random() < 0.8),
            "fails": dice.random() < (0.15 if affected else 0.01),
            "pipeline": pipeline,
            "user": f"u-{number % 509}",
            "version": "5.1.0" if hour >= ONSET - 3 else "5.0.3",
            "attributes": {"region": region, "codec": codec, "recording": dice.random() < 0.4},
        }

    return write(folder, map(run, range(HOURS * PER_HOUR)))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Generator[EventStore]:
    with EventStore(voice_calls(tmp_path_factory.mktemp("calls") / "journal")) as opened:
        yield opened


@pytest.mark.parametrize("since", [0, 44, HOURS - 0.5])
def test_condition_names_the_affected_pipelines_and_the_number_of_users(
    calls: EventStore, since: float
) -> None:
    for kind, finding in findings(calls, since).items():
        condition = set(str(finding.condition).split(" and "))
        expected = {"attributes.region = ap", "attributes.codec = opus", "pipeline_name = call"}
        assert condition == expected, kind
        users = re.search(r"; ([\d,]+) users? (is|are) affected", finding.text)
        assert users is not None
        begin = max(since, ONSET)
        selected = f"{finding.where} and {finding.cause} and started_at >= '{at(begin)}'"
        counted = calls.sql(f"select count(distinct user_id) from runs where {selected}").rows
        assert int(users[1]) == pytest.approx(counted[0][0], abs=1)


@pytest.mark.parametrize(
    ("where", "rest"),
    [("attributes.region = 'ap'", "attributes.codec = opus"), ("failed or true", "attributes.region = ap")],
)
def test_cause_within_a_filter_does_not_contain_the_release(calls: EventStore, where: str, rest: str) -> None:
    filter = RunFilter(since=at(36), until=at(HOURS))
    for finding in calls.findings(filter, where=where, explain=True):
        assert rest in str(finding.condition)
        assert "service_version" not in str(finding.condition)


def test_pipeline_that_is_not_affected_has_no_cause(calls: EventStore) -> None:
    found = calls.findings(
        RunFilter(since=at(24), until=at(HOURS)), where="pipeline_name = 'voicemail'", explain=True
    )
    assert all(finding.cause is None for finding in found)
