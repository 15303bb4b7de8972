"""`EventStore.overview`: what is unusual, what is new, and the pipelines."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from incident import Past, after

from stageflow.errors import QueryError
from stageflow.journal import RunFilter
from stageflow.store import EventStore, PinnedStore


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours of runs, which fail with one attribute from minute 100 on."""
    path = tmp_path_factory.mktemp("overview") / "journal"
    past = Past(path)
    past.minutes(0, 100)
    past.minutes(100, 120, failed=0.5, ms=900, attributes={"bank": "north"})
    past.run(after(50), pipeline="nightly", stage="import")
    past.close()
    return path


def test_overview_states_what_is_unusual(journal: Path) -> None:
    with EventStore(journal) as store:
        found = store.overview()
    assert [(finding.kind, finding.level) for finding in found.findings] == [
        ("failures", "bad"),
        ("durations", "bad"),
    ]
    failures, slow = found.findings
    assert "in the last quarter of the time range" in failures.text
    assert (failures.where, failures.since) == ("failed", None)
    assert slow.text.startswith(
        "The p95 duration is 900 ms, up from 20 ms, in the last quarter of the time range"
    )
    assert slow.where == "duration_ms > 20.0"


def test_findings_with_causes_name_what_affected_runs_have_in_common(journal: Path) -> None:
    with EventStore(journal) as store:
        plain, explained = store.findings(), store.findings(explain=True)
        assert plain == store.overview().findings
        assert explained == store.overview(explain=True).findings
    assert "bank" not in plain[0].text
    failures, slow = explained
    assert (
        "100% of the failures match pay/attributes.bank has a value: 50% of the matching runs fail, compared"
        " with 0% of" in failures.text
    )
    assert slow.text.startswith("The p95 duration has been 900 ms, up from 20 ms, since ")
    # Both are about the same incident, which started after minute 100.
    assert failures.since is not None
    assert (failures.since, failures.since_range) == (slow.since, slow.since_range)
    assert after(99) <= datetime.fromisoformat(failures.since) <= after(101)
    assert f"since {failures.since[:19]}Z" in failures.text
    assert f"since {failures.since[:19]}Z" in slow.text


def test_overview_lists_failures_slow_runs_and_first_sightings(journal: Path) -> None:
    with EventStore(journal) as store:
        found = store.overview()
    assert len(found.failing) == len(found.slowest) == 5
    assert [run.started_at for run in found.failing] == sorted(
        (run.started_at for run in found.failing), reverse=True
    )
    assert all(run.outcome == "failed" and run.error is not None for run in found.failing)
    assert {run.duration_ms for run in found.slowest} == {900.0}
    assert [(change.kind, change.label) for change in found.changes] == [
        ("error", "failed in pay (checkout)")
    ]
    assert found.since == found.first_at


def test_overview_contains_the_pipelines_unless_details_are_excluded(journal: Path) -> None:
    with EventStore(journal) as store:
        found = store.overview()
        assert store.overview(details=False).pipelines == ()
    checkout, nightly = found.pipelines
    assert (checkout.pipeline, nightly.pipeline) == ("checkout", "nightly")
    assert (nightly.runs, nightly.failure_rate, nightly.stages) == (1, 0, ("import",))
    assert checkout.outcomes["failed"] + checkout.outcomes["ok"] == checkout.runs
    assert found.runs == checkout.runs + nightly.runs


def test_overview_of_a_time_range_compares_only_its_runs(journal: Path) -> None:
    since, until = (after(minute).isoformat().replace("+00:00", "Z") for minute in (0, 90))
    with PinnedStore(journal) as store:
        quiet = store.overview(RunFilter(since=since, until=until))
        nothing = store.findings(RunFilter(since=(after(1) + timedelta(days=9)).isoformat()))
        nightly = store.overview(where="pipeline_name = 'nightly'")
        with pytest.raises(QueryError, match="colour"):
            store.overview(where="colour = 1")
    assert [finding.kind for finding in quiet.findings] == ["none"]
    assert quiet.findings[0].text.startswith("Nothing unusual: ")
    assert (quiet.since[:19], quiet.changes) == (since[:19], ())
    assert nothing[0].text == "There are no runs in this time range."
    assert (nightly.runs, len(nightly.pipelines)) == (1, 1)


def test_overview_of_a_single_run_has_no_problems(tmp_path: Path) -> None:
    past = Past(tmp_path / "journal")
    past.run(after(0))
    past.close()
    with EventStore(tmp_path / "journal") as store:
        found = store.overview(explain=True)
    assert (found.runs, [finding.kind for finding in found.findings]) == (1, ["none"])


def test_explain_run_accepts_a_run_that_was_read(journal: Path) -> None:
    with EventStore(journal) as store:
        record = store.run("last")
        assert store.explain_run(record) == store.explain_run("last")
