"""The history of alerts: incidents with their worst value, silences and deliveries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from incident import Past, after
from typer.testing import CliRunner

from stageflow.alerts import (
    AlertRules,
    Call,
    FailureRate,
    NoRuns,
    NotDelivered,
    Notice,
    Receiver,
    Rule,
    Silence,
    alert_history,
    run_alerts,
)
from stageflow.cli._app import app
from stageflow.errors import AlertStateError, InvalidArgumentError, JournalNotFoundError
from stageflow.store import EventStore

FAILS = FailureRate(name="checkout fails", pipeline="checkout", above=0.05, severity="critical", min_events=5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    """A journal in which 30 %, later 60 % of the runs fail between minute 0 and 20."""
    past = Past(tmp_path / "journal")
    past.minutes(-30, 0)
    past.minutes(0, 10, failed=0.3)
    past.minutes(10, 20, failed=0.6)
    past.minutes(20, 60)
    past.close()
    with EventStore(tmp_path / "journal") as store:
        yield store


def evaluate(
    store: EventStore,
    minutes: Sequence[float],
    *,
    rules: Sequence[Rule] = (FAILS,),
    receivers: Sequence[Receiver] = (),
    silences: Sequence[Silence] = (),
) -> None:
    known = AlertRules(rules=tuple(rules), receivers=tuple(receivers), silences=tuple(silences))
    for minute in minutes:
        run_alerts(store, known, now=after(minute))


def test_history_contains_the_worst_value_and_the_deliveries(store: EventStore) -> None:
    notices: list[Notice] = []
    evaluate(store, range(-10, 50, 5), receivers=[Call(name="ops", function=notices.append)])
    assert store.path is not None
    (incident,) = alert_history(store.path)
    assert (incident.rule, incident.kind, incident.severity) == ("checkout fails", "failure_rate", "critical")
    assert (incident.status, incident.began, incident.fired_at) == ("resolved", after(5), after(5))
    assert (incident.worst_at, incident.ended_at) == (after(20), after(30))
    assert incident.worst == pytest.approx(0.6, abs=0.1)
    assert incident.summary.startswith("failure rate ")
    assert incident.threshold.startswith("above 5.0 %")
    assert incident.notices == 2
    assert (incident.receivers["ops"].sent, incident.receivers["ops"].failures) == (2, 0)
    assert {notice.incident for notice in notices} == {incident.id}


def test_firing_alert_is_in_the_history_without_an_end(store: EventStore) -> None:
    assert store.path is not None
    assert alert_history(store.path) == []
    evaluate(store, [5, 10])
    (incident,) = alert_history(store.path)
    assert (incident.status, incident.ended_at, incident.fired_at) == ("firing", None, after(5))


def test_time_of_firing_follows_the_first_bad_evaluation(store: EventStore) -> None:
    assert store.path is not None
    patient = FailureRate(name="patient", pipeline="checkout", above=0.05, for_=3)
    evaluate(store, [5, 6, 7, 8], rules=[patient])
    (incident,) = alert_history(store.path)
    assert (incident.began, incident.fired_at) == (after(5), after(7))


def test_fewer_runs_are_worse_for_no_runs(tmp_path: Path) -> None:
    past = Past(tmp_path / "journal")
    past.minutes(-30, 0)
    past.run(after(2))
    past.close()
    with EventStore(tmp_path / "journal") as store:
        evaluate(store, [4, 20], rules=[NoRuns(name="quiet", window=240, fewer_than=10)])
    (incident,) = alert_history(tmp_path / "journal")
    assert (incident.worst, incident.worst_at) == (0.0, after(20))


def test_silences_that_suppressed_notifications_are_in_the_history(store: EventStore) -> None:
    assert store.path is not None
    silence = Silence(rule=FAILS.name, until=after(60), reason="maintenance", by="ann")
    evaluate(store, range(0, 50, 5), silences=[silence], receivers=[Call(name="ops", function=print)])
    (incident,) = alert_history(store.path)
    assert [(one.reason, one.by) for one in incident.silences] == [("maintenance", "ann")]
    assert (incident.status, incident.notices, incident.receivers) == ("resolved", 0, {})


def test_failed_deliveries_are_counted_per_incident(store: EventStore) -> None:
    def refuse(notice: Notice) -> None:
        raise NotDelivered("out of order", final=True)

    assert store.path is not None
    evaluate(store, [5], receivers=[Call(name="ops", function=refuse)])
    (incident,) = alert_history(store.path)
    counters = incident.receivers["ops"]
    assert (counters.sent, counters.failures, counters.given_up) == (0, 1, 1)
    assert counters.last_error == "out of order"


def test_removed_rule_ends_its_incident(store: EventStore) -> None:
    assert store.path is not None
    evaluate(store, [5])
    evaluate(store, [10], rules=[NoRuns(name="quiet", window=3600)])
    (incident,) = alert_history(store.path)
    assert (incident.status, incident.ended_at, incident.notices) == ("removed", after(10), 2)


def test_history_is_limited_by_count_and_by_age(store: EventStore) -> None:
    state = Path(store.path or "") / "alerts.json"
    evaluate(store, range(0, 50, 5))
    content = json.loads(state.read_bytes())
    del content["crc32"]
    (record,) = content["history"]
    old = {**record, "id": "old", "ended_at": (after(40) - timedelta(days=91)).isoformat()}
    content["history"] = [old, *({**record, "id": str(number)} for number in range(600))]
    state.write_text(json.dumps(content))
    evaluate(store, [55])
    assert {one.id for one in alert_history(state.parent)} == {str(number) for number in range(100, 600)}
    evaluate(store, [91 * 1440])
    assert alert_history(state.parent) == []


def test_incident_that_an_earlier_version_stored_is_recorded(store: EventStore) -> None:
    state = Path(store.path or "") / "alerts.json"
    evaluate(store, [5])
    content = json.loads(state.read_bytes())
    del content["crc32"], content["history"]
    state.write_text(json.dumps(content))
    evaluate(store, [10])
    (incident,) = alert_history(state.parent)
    assert (incident.status, incident.fired_at, incident.notices) == ("firing", after(5), 1)


def test_history_is_filtered_by_rule_and_time(store: EventStore) -> None:
    assert store.path is not None
    evaluate(store, range(0, 50, 5))
    assert len(alert_history(store.path, rule="checkout fails")) == 1
    assert alert_history(store.path, rule="another") == []
    assert len(alert_history(store.path, since=after(30), until=after(60))) == 1
    assert alert_history(store.path, since=after(36)) == []
    assert alert_history(store.path, until=after(5)) == []


def test_invalid_arguments_of_the_history_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="limit"):
        alert_history(tmp_path, limit=0)
    with pytest.raises(JournalNotFoundError):
        alert_history(tmp_path / "missing")
    with pytest.raises(AlertStateError):
        alert_history()


def test_alerts_history_prints_incidents(store: EventStore) -> None:
    command = ["alerts", "history", "--journal", str(store.path)]
    assert CliRunner().invoke(app, command).output == "There are no incidents.\n"
    evaluate(store, range(0, 50, 5), receivers=[Call(name="ops", function=lambda _: None)])
    printed = CliRunner().invoke(app, command, env={"COLUMNS": "160"}).output
    assert "checkout fails critical resolved 2026-11-24 12:05:00Z 2026-11-24 12:30:00Z" in " ".join(
        printed.split()
    )
    assert "ops: 2" in printed
    record = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert (record["status"], record["receivers"]["ops"]["sent"]) == ("resolved", 2)
    later = CliRunner().invoke(app, [*command, "--since", "2026-11-24T12:40Z"])
    assert later.output == "There are no incidents.\n"
