"""Holds what alerts tell of recorded incidents, and whom, and how often."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apprise.decorators import notify
from export_receiver import Answer, ExportReceiver
from incident import NOON, Past, after
from kill_alerts import trials
from typer.testing import CliRunner
from webhook_receiver import AS_TEXT, Receiver

from stageflow._files import try_lock
from stageflow.alerts import (
    AlertLoop,
    AlertRules,
    AlertRun,
    AlertState,
    Apprise,
    BurnRate,
    BurnWindows,
    Call,
    CrashedRuns,
    EventsDropped,
    FailureRate,
    Measurement,
    NewError,
    NoRuns,
    NotDelivered,
    Notice,
    Rule,
    Silence,
    SlowerThan,
    SqlRows,
    Webhook,
    check_rules,
    evaluate,
    parse_rules,
    run_alerts,
    sample_notice,
    try_receivers,
)
from stageflow.alerts._rule import Window, add_silence
from stageflow.alerts._state import read_state
from stageflow.cli._app import app
from stageflow.errors import AlertRuleError, DamagedFileError
from stageflow.store import Compactor, EventStore

FAILS = FailureRate(name="checkout fails", pipeline="checkout", above=0.05, severity="critical")
SLOW = SlowerThan(name="pay is slow", stage="pay", above=0.5, window=300)

Told = Callable[..., list[Notice]]


@pytest.fixture(scope="module")
def incident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventStore]:
    """A day that is quiet but for 20 minutes from noon on, in which runs fail and are slow."""
    path = tmp_path_factory.mktemp("incident") / "journal"
    past = Past(path)
    past.minutes(-120, 0)
    past.minutes(0, 20, failed=0.3, ms=900, attributes={"bank": "north"})
    past.minutes(20, 120)
    past.close()
    with EventStore(path) as store:
        yield store


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    past = Past(tmp_path / "journal")
    yield past
    past.close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("OPS_SECRET", AS_TEXT)
    with Receiver() as receiver:
        yield receiver


def told(
    store: EventStore,
    rules: Sequence[Rule],
    minutes: Sequence[float],
    silences: Sequence[Silence] = (),
    state: AlertState | None = None,
) -> list[Notice]:
    """What is told when the rules are evaluated at these minutes."""
    state = state or AlertState()
    notices: list[Notice] = []
    for minute in minutes:
        evaluation = evaluate(store, rules, state, after(minute), silences)
        assert [finding.error for finding in evaluation.findings] == [None] * len(rules)
        notices += evaluation.notices
        state = evaluation.state
    return notices


def kinds(notices: Sequence[Notice]) -> list[str]:
    return [notice.kind for notice in notices]


# ------------------------------------------------------------ a recorded incident


def test_alert_fires_once_and_resolves_once_per_incident(incident: EventStore) -> None:
    notices = told(incident, [FAILS, SLOW], range(-30, 60))
    for rule in (FAILS, SLOW):
        fired, resolved = (notice for notice in notices if notice.rule == rule.name)
        assert (fired.kind, resolved.kind) == ("firing", "resolved")
        assert after(0) < fired.at < after(5)
        assert after(20) < resolved.at <= after(31)
        assert fired.incident == resolved.incident
        assert fired.id != resolved.id


def test_alerts_do_not_fire_without_an_incident(incident: EventStore) -> None:
    burn = BurnRate(name="budget", slo=0.999)
    assert told(incident, [FAILS, SLOW, burn], range(-100, 0, 5)) == []


def test_rule_does_not_fire_below_min_events(past: Past) -> None:
    for second in (10, 20):
        past.run(after(0, seconds=second), failed=True, ms=9000)
    rules = [FAILS, SLOW, BurnRate(name="budget", slo=0.999)]
    with EventStore(past.path) as store:
        assert told(store, rules, range(-5, 10)) == []
        # What two of them are not enough for is the minimum, and nothing else.
        eager = FailureRate(name="eager", above=0.05, min_events=2)
        assert kinds(told(store, [eager], [1])) == ["firing"]


def test_notice_contains_the_values_and_commands(incident: EventStore) -> None:
    fired, resolved = told(incident, [FAILS], range(0, 40, 5))
    assert fired.title == "[FIRING] checkout fails: failure rate 15.0 %"
    assert fired.value == pytest.approx(0.15)
    lines = fired.text.splitlines()
    assert lines[:6] == [
        "threshold    above 5.0 %, resolves below 4.0 %",
        "severity     critical",
        "window       2026-11-24T11:55:00Z to 2026-11-24T12:05:00Z (10 min)",
        "events       120 runs",
        "pipeline     checkout",
        "began        2026-11-24T12:05:00Z",
    ]
    assert len(fired.runs) == 3
    for run in fired.runs:
        assert incident.run(run).run["status"] == "FAIL"
    journal = f" --journal {incident.path}"
    assert fired.commands[0] == (
        f"stageflow errors --since 2026-11-24T11:55:00Z --pipeline checkout{journal}"
    )
    assert fired.commands[1] == fired.commands[0].replace("errors", "explain failed")
    assert fired.commands[2] == f"stageflow show {fired.runs[0]}{journal}"
    assert "lasted       25 min" in resolved.text.splitlines()


def test_notice_contains_the_differences_of_affected_runs(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(600):
        failed = number % 10 == 0
        # Of another pipeline are those of an hour ago: that is no difference within the rule's own.
        bank = "north" if failed and number % 30 else ("south", "west")[number % 2]
        past.run(after(-9, seconds=number / 2), failed=failed, attributes={"bank": bank})
        past.run(after(-69, seconds=number / 2), pipeline="refund", attributes={"bank": "north"})
    with EventStore(past.path) as store:
        (fired,) = told(store, [FAILS], [0])
        assert fired.explained == (
            "pay/attributes.bank = north (100.0 % of these are affected, 3.6 % of the others)",
        )
        assert (
            "differences  pay/attributes.bank = north (100.0 % of these are affected, 3.6 % of the others)"
            in fired.text
        )

        def broken(*args: object, **options: object) -> None:
            raise RuntimeError("no idea")

        monkeypatch.setattr(EventStore, "explain", broken)
        (fired,) = told(store, [FAILS], [0])
        assert fired.explained == ()


def test_sampled_events_are_weighted_and_the_value_is_an_estimate(past: Past) -> None:
    past.minutes(0, 5, failed=0.5)
    past.close()
    (segment,) = past.path.glob("*.ndjson")
    # Every run that is OK stands for fifty.
    lines = segment.read_text().splitlines()
    rare = [
        line.replace('"sample_rate":1', '"sample_rate":50') if '"status":"OK"' in line else line
        for line in lines
    ]
    segment.write_text("\n".join(rare) + "\n")
    with EventStore(past.path) as store:
        rule = FailureRate(name="r", above=0.01)
        (fired,) = told(store, [rule], [5])
        assert fired.value == pytest.approx(30 / (30 + 30 * 50))
        assert fired.events == "estimated 1,530 runs, from 60 seen"
        # Rows are what was seen: a minimum of 61 is not reached.
        assert told(store, [FailureRate(name="r", above=0.01, min_events=61)], [5]) == []


# ------------------------------------------------------------ firing, pending, resolved


def test_rate_that_oscillates_around_its_threshold_sends_one_notice(past: Past) -> None:
    for minute in range(0, 40, 2):
        past.minutes(minute, minute + 1, failed=0.6, each=20)
        past.minutes(minute + 1, minute + 2, failed=0.45, each=20)
    past.minutes(40, 50, each=20)
    with EventStore(past.path) as store:
        notices = told(store, [FailureRate(name="r", above=0.5, window=60)], range(1, 50))
        assert kinds(notices) == ["firing", "resolved"]
        # Without the lower threshold each swing would be told.
        eager = FailureRate(name="r", above=0.5, resolve_below=0.5, window=60)
        assert len(told(store, [eager], range(1, 50))) == 40


def test_for_requires_consecutive_bad_evaluations(incident: EventStore) -> None:
    rule = FailureRate(name="r", above=0.05, for_=3)
    (fired,) = told(incident, [rule], [2, 4, 6, 8])
    assert (fired.began, fired.at) == (after(2), after(6))
    state = evaluate(incident, [rule], AlertState(), after(2)).state
    assert state.rules["r"].status == "pending"
    # One evaluation that is not bad begins the count anew.
    assert told(incident, [rule], [2, 4, -10, 6, 8]) == []


def test_firing_alert_is_repeated_only_with_repeat_every(incident: EventStore) -> None:
    assert kinds(told(incident, [FAILS], range(1, 20))) == ["firing"]
    again = FailureRate(name="r", above=0.05, repeat_every=300)
    notices = told(incident, [again], range(2, 20))
    assert kinds(notices) == ["firing", "repeated", "repeated", "repeated"]
    assert len({notice.id for notice in notices}) == 4
    assert len({notice.incident for notice in notices}) == 1
    assert notices[1].title.startswith("[STILL FIRING] r: ")


def test_too_few_events_neither_fire_nor_resolve(past: Past) -> None:
    past.minutes(0, 5, failed=0.5)
    past.run(after(20))
    with EventStore(past.path) as store:
        assert kinds(told(store, [FAILS], [5, 16, 21, 60])) == ["firing"]


def test_alert_of_a_removed_rule_resolves(incident: EventStore) -> None:
    state = evaluate(incident, [FAILS], AlertState(), after(10)).state
    evaluation = evaluate(incident, [SLOW], state, after(11))
    gone = [notice for notice in evaluation.notices if notice.rule == FAILS.name]
    assert [(notice.kind, notice.summary) for notice in gone] == [
        ("resolved", "the rule was removed; alert closed")
    ]
    assert FAILS.name not in evaluation.state.rules


def test_rule_that_cannot_be_evaluated_keeps_its_status_and_affects_no_other(incident: EventStore) -> None:
    state = evaluate(incident, [FAILS], AlertState(), after(10)).state
    broken = SqlRows(name=FAILS.name, sql="select nothing from runs")
    evaluation = evaluate(incident, [broken, SLOW], state, after(11))
    first, second = evaluation.findings
    assert first.status == "firing"
    assert "nothing" in (first.error or "")
    assert (second.status, second.error) == ("firing", None)
    assert evaluation.state.rules[FAILS.name].errors == 1


def test_silence_suppresses_notices_until_it_ends(incident: EventStore) -> None:
    def quiet(begin: float, end: float) -> Silence:
        return Silence(rule=FAILS.name, since=after(begin), until=after(end), reason="known")

    def at(silence: Silence) -> list[tuple[str, datetime]]:
        return [(notice.kind, notice.at) for notice in told(incident, [FAILS], range(0, 60, 5), [silence])]

    resolves = ("resolved", after(30))
    assert at(quiet(0, 60)) == []
    # It fires still when the silence is over: then it is told.
    assert at(quiet(0, 15)) == [("firing", after(15)), resolves]
    # The end of what was told is told.
    assert at(quiet(10, 60)) == [("firing", after(5)), resolves]
    # Of another rule.
    other = Silence(rule="other", until=after(60), reason="known")
    assert at(other) == [("firing", after(5)), resolves]
    own = FailureRate(name="r", above=0.05, silences=(Silence(until=after(60), reason="known"),))
    assert told(incident, [own], range(0, 60, 5)) == []


# ------------------------------------------------------------ kinds of rules


def test_burn_rate_fires_only_if_both_windows_of_a_pair_exceed_it(incident: EventStore) -> None:
    rule = BurnRate(name="budget", slo=0.99, windows=(BurnWindows(long=3600, short=300, above=14.4),))
    # 30 % of errors are 30x; after 30 minutes with 20 of these the long window has 10x, and more later.
    assert told(incident, [rule], range(0, 40, 2)) == []
    fast = BurnRate(name="budget", slo=0.99, windows=(BurnWindows(long=3600, short=300, above=6.0),))
    fired, resolved = told(incident, [fast], range(10, 30))
    # The long window exceeds 6x once 12 of its 60 minutes had 30x.
    assert after(12) <= fired.at <= after(14)
    # And still does when the short one says that it is over.
    assert after(24) <= resolved.at <= after(26)
    assert resolved.value is not None
    assert resolved.value > 6
    assert re.fullmatch(r"burn rate 6\.\dx over 1 h, \d+\.\dx over 5 min", fired.summary)
    usual = told(incident, [BurnRate(name="usual", slo=0.999)], range(-20, 60, 4))
    assert kinds(usual) == ["firing", "resolved"]
    assert usual[0].threshold == (
        "above 14.4x over both 1 h and 5 min, or above 6x over both 6 h and 30 min,"
        " of the 0.1 % that SLO 99.9 % allows"
    )


def test_burn_rate_counts_slow_runs_as_failures(incident: EventStore) -> None:
    slow = BurnRate(name="slow", slo=0.99, slower_than=0.5, pipeline="checkout", min_events=50)
    (fired,) = told(incident, [slow], [-20, 0, 10])
    # All of 10 minutes, in the 130 that the window of 6 hours has: that exceeds its threshold most.
    assert fired.value == pytest.approx(100 * 10 / 130, rel=0.01)


def test_slower_than_evaluates_percentiles_of_stages_and_runs(incident: EventStore) -> None:
    for rule in (SLOW, SlowerThan(name="r", pipeline="checkout", quantile="p50", above=0.5, window=300)):
        fired, resolved = told(incident, [rule], range(0, 40, 2))
        assert fired.value == 0.9
        assert resolved.value == 0.02
        assert fired.summary.endswith(" 900 ms")


def test_no_runs_fires_if_runs_are_missing(past: Past) -> None:
    past.minutes(-30, 0, pipeline="import")
    past.minutes(60, 70, pipeline="import")
    past.minutes(-30, 70)
    rule = NoRuns(name="import", pipeline="import", window=1800)
    with EventStore(past.path) as store:
        fired, resolved = told(store, [rule], range(-20, 70))
        assert (fired.at, resolved.at) == (after(30), after(61))
        assert fired.summary == "no runs in 30 min"
        assert fired.notes == ("the last run ended 2026-11-24T11:59:57Z",)
        (never,) = told(store, [NoRuns(name="n", pipeline="never")], [0])
        assert never.notes == ("no run has ended yet",)
        few = NoRuns(name="few", pipeline="import", window=600, fewer_than=100)
        assert kinds(told(store, [few], [0, 3])) == ["firing"]


def test_run_in_progress_counts_for_no_runs(program: Any) -> None:
    script = """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline, set_event_sink

        async def wait(ctx):
            print("runs", flush=True)
            await asyncio.sleep(60)

        set_event_sink(JournalSink(sys.argv[1]))
        graph = Pipeline("long").with_stage("wait", wait).build(emit_pipeline_wide_event=True)
        asyncio.run(graph.run())
        """
    running = program(script)
    running.wait_for("runs")
    with EventStore(running.journal) as store:
        now = datetime.now(NOON.tzinfo)
        rule = NoRuns(name="long", pipeline="long")
        assert evaluate(store, [rule], AlertState(), now).notices == ()
        running.process.kill()
        running.process.wait()
        # The run crashed, and that is told as well.
        crashes = CrashedRuns(name="crashes", pipeline="long")
        (fired,) = evaluate(store, [crashes], AlertState(), datetime.now(NOON.tzinfo)).notices
        assert fired.summary == "1 crashed runs"
        assert len(fired.runs) == 1


def test_events_dropped_counts_only_its_window(past: Past) -> None:
    began = after(-90)
    past.health(after(-30), 100, began=began)
    past.health(after(-1), 100, began=began)
    past.health(after(5), 103, began=began)
    # Another process with the same pid begins at nothing.
    past.health(after(30), 2, began=after(29))
    past.health(after(31), 2, began=after(29))
    # One that is older than what anybody looks at lost them at some time.
    past.health(after(32), 50, pid=8, began=after(-20_000))
    past.events([("stageflow.health", {"event_id": "odd", "emitted_at": "2026-11-24T12:33:00.000000Z"})])
    rule = EventsDropped(name="lost")
    with EventStore(past.path) as store:
        notices = told(store, [rule], range(-15, 60))
        assert [(notice.kind, notice.at) for notice in notices] == [
            ("firing", after(5)),
            ("resolved", after(15)),
            ("firing", after(30)),
            ("resolved", after(40)),
        ]
        assert [notices[0].value, notices[2].value] == [3, 2]
        assert notices[0].notes == ("3 by HttpSink: sink_error",)


NEW = NewError(name="new errors", window=600)
DAY = 24 * 60


def test_new_error_fires_once_for_an_error_that_did_not_occur_before(past: Past) -> None:
    past.run(after(-DAY), failed=True)
    for minute in (0, 3, 30, 300):  # it is known, and so are its numbers
        past.run(after(minute), failed=True)
    first = past.run(after(3, seconds=1), failed=True, error="LookupError: no object 'a.b'")
    for minute in (4, 5, 60, 3 * DAY, 9 * DAY):
        past.run(after(minute), failed=True, error=f"LookupError: no object 'c.{minute}'")
    with EventStore(past.path) as store:
        notices = told(store, [NEW], [*range(-10, 70), *range(290, 310), *range(3 * DAY, 3 * DAY + 20, 5)])
    fired, resolved = notices
    assert (fired.kind, fired.at, resolved.kind, resolved.at) == ("firing", after(4), "resolved", after(14))
    assert fired.title == "[FIRING] new errors: new error: failure in stage pay"
    (note,) = fired.notes
    assert note.startswith(f"stage pay: LookupError: no object 'c.4' (first run {first}, fingerprint 1:")
    assert fired.runs == (first,)
    assert fired.events == "2 failures"
    assert fired.threshold == "any error that did not occur in the 7 d before"
    assert f"stageflow show {first} " in fired.commands[-1]
    assert resolved.summary == "no new errors"


def test_error_is_new_again_after_the_baseline(past: Past) -> None:
    for day in (0, 6, 14):
        past.run(after(day * DAY), failed=True)
    with EventStore(past.path) as store:
        notices = told(store, [NEW], [day * DAY + minute for day in (0, 6, 14) for minute in (1, 20)])
        assert [notice.at for notice in notices if notice.kind == "firing"] == [after(1), after(14 * DAY + 1)]
        week = told(store, [NewError(name="r", baseline=5 * 86400)], [1, 20, 6 * DAY + 1])
        assert kinds(week) == ["firing", "resolved", "firing"]


def test_each_new_error_is_notified_while_the_alert_fires(past: Past) -> None:
    for minute, error in (
        (0, "ValueError: a"),
        (2, "ValueError: b"),
        (2, "ValueError: c"),
        (4, "ValueError: a"),
    ):
        past.run(after(minute), failed=True, error=error)
    with EventStore(past.path) as store:
        notices = told(store, [NEW], range(1, 30))
    assert [(notice.kind, notice.at) for notice in notices] == [
        ("firing", after(1)),
        ("firing", after(2)),
        ("resolved", after(12)),
    ]
    first, second, _ = notices
    assert first.incident == second.incident
    assert first.id != second.id
    assert second.summary == "3 new errors, the last: failure in stage pay"
    assert [note.partition(" (")[0] for note in second.notes][-1] == "stage pay: ValueError: a"


def test_new_error_during_a_silence_is_notified_when_it_ends(past: Past) -> None:
    past.run(after(0), failed=True, error="ValueError: a")
    past.run(after(3), failed=True, error="ValueError: b")
    silence = Silence(rule=NEW.name, since=after(2), until=after(6), reason="deployment")
    with EventStore(past.path) as store:
        notices = told(store, [NEW], range(1, 30), [silence])
    assert [(notice.kind, notice.at) for notice in notices] == [
        ("firing", after(1)),
        ("firing", after(6)),
        ("resolved", after(13)),
    ]


@pytest.mark.parametrize("before", ["0:11", "2:11", None])
def test_change_of_the_algorithm_causes_no_new_errors(past: Past, before: str | None) -> None:
    past.run(after(-60), failed=True, fingerprint=before)
    past.run(after(0), failed=True)
    past.run(after(30), failed=True, stage="ship")  # another stage fails in the same way
    with EventStore(past.path) as store:
        notices = told(store, [NEW], range(-5, 60))
    assert [(notice.kind, notice.at) for notice in notices] == [
        ("firing", after(30)),
        ("resolved", after(40)),
    ]


def test_failures_without_fingerprints_are_not_new_errors(past: Past) -> None:
    past.run(after(0), failed=True, fingerprint=None)
    with EventStore(past.path) as store:
        assert told(store, [NEW], [1]) == []


def test_new_error_rule_selects_a_pipeline_or_a_stage(past: Past) -> None:
    past.run(after(0), failed=True)
    past.run(after(0), outcome="timeout", pipeline="nightly", error="the run exceeded its deadline of 3 s")
    rules = [
        NewError(name="all"),
        NewError(name="nightly", pipeline="nightly"),
        NewError(name="pay", stage="pay"),
        NewError(name="ship", stage="ship"),
        NewError(name="often", min_events=2),
    ]
    with EventStore(past.path) as store:
        found = {notice.rule: notice for notice in told(store, rules, [1])}
        assert {name: notice.value for name, notice in found.items()} == {"all": 2, "nightly": 1, "pay": 1}
    assert found["nightly"].summary == "new error: timeout in pipeline nightly"
    assert found["pay"].summary == "new error: failure in stage pay"


def test_new_error_with_a_hostile_message_is_one_short_line(past: Past) -> None:
    past.run(after(0), failed=True, error="ValueError: \x1b[31m@everyone\n" + "x" * 10_000)
    with EventStore(past.path) as store:
        (notice,) = told(store, [NEW], [1])
    (note,) = notice.notes
    assert len(note) < 400
    assert note.isprintable()


@pytest.mark.parametrize("archived", [False, True])
def test_new_error_reads_journal_and_archive(past: Past, archived: bool) -> None:
    past.run(after(-60), failed=True)
    past.run(after(0), failed=True, error="ValueError: x")
    past.close()
    if archived:
        Compactor(past.path, keep_seconds=0).compact()
    with EventStore(past.path) as store:
        (notice,) = told(store, [NEW], [1])
    assert notice.value == 1


def test_sql_rule_fires_if_its_query_returns_rows(incident: EventStore) -> None:
    query = """select pipeline_run_id, stage_name from stages
        where ended_at > $since and ended_at <= $now and duration_ms > 800"""
    rule = SqlRows(name="dear", sql=query, window=120)
    fired, resolved = told(incident, [rule], range(40))
    assert fired.summary == "12 rows"
    assert fired.notes[0] == f"pipeline_run_id={fired.runs[0]}  stage_name=pay"
    assert "ended_at > timestamptz '2026-11-24T11:59:00Z'" in fired.commands[0]
    assert resolved.summary == "0 rows"


def test_rules_in_the_docs_fire_and_resolve(incident: EventStore) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "alerting.md").read_text()
    whole, of_sql, receivers = re.findall(r"^```toml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    six = parse_rules(whole)
    assert len(six.rules) == 6
    notices = told(incident, six.rules, range(-20, 60, 2))
    assert [(notice.kind, notice.rule) for notice in notices] == [
        ("firing", "the nightly import"),
        ("firing", "new errors"),
        ("firing", "checkout burns its budget"),
        ("firing", "pay is slow"),
        ("resolved", "new errors"),
        ("resolved", "pay is slow"),
        ("resolved", "checkout burns its budget"),
    ]
    assert len(parse_rules(of_sql + receivers).receivers) == 2


# ------------------------------------------------------------ from end to end


def test_webhook_signature_can_be_verified(incident: EventStore, receiver: Receiver, tmp_path: Path) -> None:
    rules = AlertRules(rules=(FAILS,), receivers=(webhook(receiver),))
    for minute in range(0, 40, 2):
        run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(minute))
    assert receiver.kinds() == ["firing", "resolved"]
    for delivery in receiver.deliveries:
        assert delivery.signed
        assert delivery.id == delivery.body["data"]["id"]
        assert delivery.headers["content-type"] == "application/json"
        assert "receivers" not in delivery.body["data"]
    assert receiver.deliveries[0].body["type"] == "stageflow.alert.firing"
    assert receiver.deliveries[0].body["timestamp"] == "2026-11-24T12:02:00Z"
    assert AS_TEXT not in (tmp_path / "alerts.json").read_text()


def webhook(receiver: Receiver, **more: Any) -> Webhook:
    return Webhook(name="ops", url=receiver.url, secret_env="OPS_SECRET", **more)


def test_webhook_is_signed_with_each_of_two_secrets(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPS_SECRET", f"whsec_{'A' * 40} {AS_TEXT.removeprefix('whsec_')}")
    webhook(receiver).send(sample_notice(NOON))
    (delivery,) = receiver.deliveries
    assert delivery.headers["webhook-signature"].count("v1,") == 2
    assert delivery.signed


def test_delivery_to_an_unavailable_receiver_is_retried_and_counted(
    incident: EventStore, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answer = 503
    rules = AlertRules(rules=(FAILS,), receivers=(webhook(receiver),))

    def run(seconds: float) -> AlertRun:
        return run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(5, seconds=seconds))

    first = run(0)
    assert [(sent.attempt, sent.error) for sent in first.sent] == [(1, "HTTP status 503")]
    assert not first.well
    assert run(4).sent == ()  # not yet
    assert [sent.attempt for sent in run(5).sent] == [2]
    assert run(14).sent == ()
    assert [sent.attempt for sent in run(15).sent] == [3]
    receiver.answer_headers = {"retry-after": "600"}
    run(35)
    assert run(600).sent == ()
    receiver.answer = 200
    last = run(636)
    assert [(sent.attempt, sent.error) for sent in last.sent] == [(5, None)]
    assert last.well
    counted = last.receivers["ops"]
    assert (counted.sent, counted.attempts, counted.failures, counted.last_error) == (1, 5, 4, None)
    assert {delivery.id for delivery in receiver.deliveries} == {last.sent[0].notice.id}


def test_later_notices_wait_and_are_delivered_in_order(
    incident: EventStore, receiver: Receiver, tmp_path: Path
) -> None:
    got: list[Notice] = []
    rules = AlertRules(rules=(FAILS,), receivers=(webhook(receiver), Call(name="log", function=got.append)))
    receiver.answer = 500
    for minute in (5, 40):
        run = run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(minute))
    # One that is down holds up no other.
    assert kinds(got) == ["firing", "resolved"]
    assert [delivery.notice.kind for delivery in run.waiting] == ["firing", "resolved"]
    receiver.answer = 200
    receiver.deliveries.clear()
    run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(60))
    assert receiver.kinds() == ["firing", "resolved"]


def test_notification_never_overtakes_a_pending_retry(
    incident: EventStore, receiver: Receiver, tmp_path: Path
) -> None:
    rules = AlertRules(rules=(FAILS,), receivers=(webhook(receiver),))

    def run(minute: float) -> AlertRun:
        return run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(minute))

    receiver.answer, receiver.answer_headers = 503, {"retry-after": "3000"}
    run(5)
    receiver.answer, receiver.answer_headers = 200, {}
    resolved = run(40)  # the first attempt is repeated at minute 55
    assert resolved.sent == ()
    assert [delivery.notice.kind for delivery in resolved.waiting] == ["firing", "resolved"]
    assert kinds([sent.notice for sent in run(56).sent]) == ["firing", "resolved"]
    assert receiver.kinds() == ["firing", "firing", "resolved"]


def test_notice_that_is_never_accepted_is_given_up(
    incident: EventStore, receiver: Receiver, tmp_path: Path
) -> None:
    state = tmp_path / "alerts.json"
    rules = AlertRules(rules=(FAILS,), receivers=(webhook(receiver),))
    receiver.answer = 410
    gone = run_alerts(incident, rules, state=state, now=after(5))
    assert (gone.waiting, gone.receivers["ops"].given_up) == ((), 1)
    receiver.answer = 302
    receiver.answer_headers = {"location": receiver.url + "/elsewhere"}
    moved = run_alerts(incident, rules, state=state, now=after(40))
    assert moved.sent[0].error == "HTTP status 302"
    assert len(receiver.deliveries) == 2  # the redirect was not followed
    # After three days it is tried once more, and no more.
    late = run_alerts(incident, rules, state=state, now=after(40) + timedelta(days=3, seconds=1))
    assert (late.waiting, late.receivers["ops"].given_up) == ((), 2)


def test_webhook_errors_do_not_contain_the_secret(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = webhook(receiver)
    for secret, why in (
        ("", "the environment variable OPS_SECRET is not set"),
        ("hunter2", "OPS_SECRET is not base64 of 24 bytes or more"),
        ("whsec_c2hvcnQ=", "OPS_SECRET is not base64 of 24 bytes or more"),
    ):
        monkeypatch.setenv("OPS_SECRET", secret)
        with pytest.raises(NotDelivered) as caught:
            hook.send(sample_notice(NOON))
        assert caught.value.reason == why
        assert hook.missing() == [why]
    monkeypatch.setenv("OPS_SECRET", AS_TEXT)
    monkeypatch.setenv("OPS_URL", "file:///etc/passwd")
    by_name = Webhook(name="ops", url_env="OPS_URL", secret_env="OPS_SECRET")
    with pytest.raises(NotDelivered, match="OPS_URL: expected an address"):
        by_name.send(sample_notice(NOON))
    receiver.close()
    with pytest.raises(NotDelivered, match="no connection"):
        hook.send(sample_notice(NOON))


def test_timeout_of_a_webhook_limits_the_whole_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_SECRET", AS_TEXT)
    with ExportReceiver(lambda request: Answer(slow=0.02)) as receiver:  # each byte arrives in time
        hook = Webhook(name="ops", url=receiver.url, secret_env="OPS_SECRET", timeout=0.3)
        began = time.monotonic()
        with pytest.raises(NotDelivered, match=r"no response within 0\.3 s"):
            hook.send(sample_notice(NOON))
        assert time.monotonic() - began < 5


def test_call_receiver_that_raises_is_retried(incident: EventStore, tmp_path: Path) -> None:
    got: list[Notice] = []

    def fickle(notice: Notice) -> None:
        got.append(notice)
        if len(got) == 1:
            raise RuntimeError("not now")

    rules = AlertRules(rules=(FAILS,), receivers=(Call(name="log", function=fickle),))
    state = tmp_path / "alerts.json"
    first = run_alerts(incident, rules, state=state, now=after(5))
    assert first.sent[0].error == "RuntimeError: not now"
    run_alerts(incident, rules, state=state, now=after(6))
    assert [notice.id for notice in got] == [first.sent[0].notice.id] * 2


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # by a module that Apprise imports
def test_apprise_receives_the_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, str, str]] = []

    @notify(on="stageflowtest")
    def take(body: str, title: str, notify_type: str, *args: Any, **options: Any) -> bool:
        got.append((title, body, str(getattr(notify_type, "value", notify_type))))
        return True

    phone = Apprise(name="phone", url_env="PHONE_URL")
    monkeypatch.setenv("PHONE_URL", "stageflowtest://")
    notice = sample_notice(NOON)
    phone.send(notice)
    phone.send(notice, in_doubt=True)
    (title, body, kind), (again, *_) = got
    assert (title, body, kind) == (notice.title, notice.text, "info")
    assert again == f"{title} (possible duplicate)"
    monkeypatch.setenv("PHONE_URL", "json://127.0.0.1:9/")
    with pytest.raises(NotDelivered, match="the service rejected the notification"):
        phone.send(notice)
    assert Apprise(name="odd", url="nothing://x").missing() == ["Apprise does not support this URL"]


def test_rule_notifies_only_its_receivers(incident: EventStore, tmp_path: Path) -> None:
    got: dict[str, list[Notice]] = {"day": [], "night": []}
    rules = AlertRules(
        rules=(
            FailureRate(name="r", above=0.05, receivers=("night",)),
            SLOW,
        ),
        receivers=tuple(Call(name=name, function=notices.append) for name, notices in got.items()),
    )
    run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(10))
    assert {name: [notice.rule for notice in notices] for name, notices in got.items()} == {
        "day": ["pay is slow"],
        "night": ["r", "pay is slow"],
    }


# ------------------------------------------------------------ restarts, kills, others at work


def test_restart_sends_no_notice_twice(incident: EventStore, receiver: Receiver, tmp_path: Path) -> None:
    assert incident.path is not None
    for minute in range(0, 40, 5):
        with EventStore(incident.path) as fresh:
            rules = AlertRules(rules=(FAILS,), receivers=(webhook(receiver),))
            run_alerts(fresh, rules, state=tmp_path / "alerts.json", now=after(minute))
    assert receiver.kinds() == ["firing", "resolved"]


@pytest.mark.slow
def test_kill_causes_no_duplicate_notice(tmp_path: Path) -> None:
    found = trials(tmp_path, 0, 4)
    assert sum(trial.died for trial in found) >= 4
    assert [problem for trial in found for problem in trial.problems] == []


def test_interrupted_delivery_is_repeated_with_the_same_id_and_marked(
    incident: EventStore, tmp_path: Path
) -> None:
    class Killed(SystemExit):
        pass

    seen: list[tuple[str, bool]] = []

    class Phone:
        name = "phone"

        def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
            seen.append((notice.id, in_doubt))
            if len(seen) == 1:
                raise Killed

        def missing(self) -> Sequence[str]:
            return ()

    rules = AlertRules(rules=(FAILS,), receivers=(Phone(),))
    with pytest.raises(Killed):
        run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(5))
    again = run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(6))
    (first, doubt), (second, doubts) = seen
    assert first == second
    assert (doubt, doubts) == (False, True)
    assert again.receivers["phone"].in_doubt == 1


def test_only_one_process_evaluates_at_a_time(incident: EventStore, tmp_path: Path) -> None:
    rules = AlertRules(rules=(FAILS,))
    with try_lock(str(tmp_path / "alerts.json.lock")) as mine:
        assert mine
        assert run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(5)).busy
    assert not run_alerts(incident, rules, state=tmp_path / "alerts.json", now=after(5)).busy


def test_unreadable_state_is_not_reset(incident: EventStore, tmp_path: Path) -> None:
    state = tmp_path / "alerts.json"
    state.write_text('{"version": 2}')
    with pytest.raises(DamagedFileError, match="move the file away"):
        run_alerts(incident, AlertRules(rules=(FAILS,)), state=state, now=after(5))
    assert state.read_text() == '{"version": 2}'


def test_silence_stored_next_to_the_state_applies(incident: EventStore, tmp_path: Path) -> None:
    state = tmp_path / "alerts.json"
    got: list[Notice] = []
    rules = AlertRules(rules=(FAILS,), receivers=(Call(name="log", function=got.append),))
    add_silence(str(state), Silence(rule=FAILS.name, until=after(15), reason="known"), after(0))
    run = run_alerts(incident, rules, state=state, now=after(5))
    assert run.findings[0].status == "firing"
    assert run.findings[0].silenced is not None
    assert got == []
    add_silence(str(state), Silence(rule=FAILS.name, until=after(0), reason=""), after(6), lift=True)
    run_alerts(incident, rules, state=state, now=after(7))
    assert kinds(got) == ["firing"]


def test_alert_loop_evaluates_until_it_is_stopped(past: Past) -> None:
    now = datetime.now(NOON.tzinfo)
    for second in range(30):
        past.run(now - timedelta(seconds=second), failed=True)
    got: list[Notice] = []
    twice = threading.Event()
    rules = AlertRules(rules=(FAILS,), receivers=(Call(name="log", function=got.append),))

    def count(run: AlertRun) -> None:
        if loop.runs >= 1:
            twice.set()

    loop = AlertLoop(past.path, rules, every=0.01, on_run=count)
    with loop:
        assert twice.wait(20)
    assert kinds(got) == ["firing"]
    assert loop.runs >= 2
    assert loop.failures == 0
    assert read_state(str(past.path / "alerts.json")).rules[FAILS.name].status == "firing"
    with pytest.raises(ValueError, match="every: expected more than 0"):
        AlertLoop(past.path, rules, every=0)


# ------------------------------------------------------------ rules that are wrong


WRONG = """
silence = []

[[receivers]]
kind = "webhook"
name = "ops"
url = "ftp://ops.example"
secret_env = "OPS_SECRET"

[[rules]]
kind = "failure_rat"
name = "a"
above = 0.05

[[rules]]
kind = "failure_rate"
name = "b"
abov = 0.05

[[rules]]
kind = "failure_rate"
name = "c"
above = "5 %"
severity = "critcal"
for = 0.5
receivers = ["op", 7]

[[rules]]
kind = "slower_than"
name = "c"
above = 800
resolve_below = 900

[[rules]]
kind = "failure_rate"
name = "d"
above = 5

[[rules]]
kind = "burn_rate"
name = "e"
slo = 0.9
windows = [{ long = 3600, short = 300, abov = 14.4 }]

[[rules]]
kind = "sql"
name = "f"
sql = "select 1"
silences = [{ until = 2026-11-25, reason = "known" }]

[[silences]]
rule = "x"
until = 2026-11-25T08:00:00Z
reason = "known"
"""


def test_all_problems_of_a_rules_file_are_reported_with_their_paths() -> None:
    with pytest.raises(AlertRuleError) as caught:
        parse_rules(WRONG, "ops.toml")
    assert list(caught.value.problems) == [
        "at $.silence: unknown key; did you mean 'silences'?",
        (
            "at $.rules[0].kind: expected one of burn_rate, crashed_runs, events_dropped, failure_rate,"
            " new_error, no_runs, slower_than, sql, got 'failure_rat'; did you mean 'failure_rate'?"
        ),
        "at $.rules[1].abov: unknown key; did you mean 'above'?",
        "at $.rules[2].for: expected a whole number, got 0.5",
        (
            "at $.rules[2].severity: expected one of critical, warning, info, got 'critcal';"
            " did you mean 'critical'?"
        ),
        "at $.rules[2].receivers[1]: expected text, got 7",
        "at $.rules[2].above: expected a number, got '5 %'",
        "at $.rules[3].resolve_below: expected no more than above = 800, got 900",
        "at $.rules[4].above: expected a share below 1 (0.05 is 5%), got 5.0",
        "at $.rules[5].windows[0].abov: unknown key; did you mean 'above'?",
        "at $.rules[6].silences[0].until: expected a time (2026-11-25T08:00:00Z), got 2026-11-25",
        (
            "at $.receivers[0].url: expected an address that begins with https:// or http://,"
            " got 'ftp://ops.example'"
        ),
        "at $.rules[3].name: name 'c' is already used at $.rules[2]",
        "at $.rules[2].receivers[0]: unknown receiver 'op'; did you mean 'ops'?",
        "at $.silences[0].rule: unknown rule 'x'",
    ]
    assert str(caught.value).startswith("ops.toml cannot be used:\n  at $.silence: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules = 1", "at $.rules: expected a list of tables ([[rules]]), got 1"),
        ("", "at $.rules: at least one rule is required; add one with [[rules]]"),
        (
            """[[rules]]
            kind = "burn_rate"
            name = "e"
            slo = 0.9
            windows = [{ long = 60, short = 600, above = 2 }]""",
            "at $.rules[0].windows[0].short: expected less than long = 60, got 600",
        ),
        (
            "[[rules]]\nkind = 'sql'\nname = 'a'\nsql = ' '",
            "at $.rules[0].sql: must not be empty; expected a query",
        ),
        ("[[rules]\n", "at $: invalid TOML: "),
        ("a = " + "[" * 10_000, "at $: invalid TOML: the document is nested too deeply"),
        ("[[rules]]\nname = 'a'", "at $.rules[0].kind: the key is required; it is one of burn_rate, "),
    ],
)
def test_file_without_a_list_of_rules_is_reported(text: str, problem: str) -> None:
    with pytest.raises(AlertRuleError) as caught:
        parse_rules(text)
    assert caught.value.problems[0].startswith(problem)


INCOMPLETE = {
    "[[receivers]]\nkind = 'webhook'\nname = 'ops'\nurl = 'https://ops.example'": (
        "at $.receivers[0].secret_env: the key is required"
    ),
    "[[receivers]]\nkind = 'webhook'\nurl = 'https://ops.example'\nsecret_env = 'S'": (
        "at $.receivers[0].name: the key is required"
    ),
    "[[receivers]]\nname = 'ops'": (
        "at $.receivers[0].kind: the key is required; it is one of apprise, webhook"
    ),
    "[[receivers]]\nkind = 'apprise'\nname = 'ops'": (
        "at $.receivers[0].url: either url or url_env is required"
    ),
    "[[silences]]\nuntil = 2026-11-25T08:00:00Z\nreason = 'known'": (
        "at $.silences[0].rule: the key is required"
    ),
    "[[silences]]\nrule = 'a'\nreason = 'known'": "at $.silences[0].until: the key is required",
    "[[rules]]\nkind = 'burn_rate'\nname = 'b'\nslo = 0.9\nwindows = [{ long = 60, above = 2 }]": (
        "at $.rules[1].windows[0].short: the key is required"
    ),
}


@pytest.mark.parametrize("table", INCOMPLETE)
def test_missing_keys_are_reported_in_one_style(table: str) -> None:
    with pytest.raises(AlertRuleError) as caught:
        parse_rules(f"[[rules]]\nkind = 'failure_rate'\nname = 'a'\nabove = 0.1\n{table}")
    assert list(caught.value.problems) == [INCOMPLETE[table]]


def test_invalid_rules_in_python_raise_with_the_problem() -> None:
    with pytest.raises(ValueError, match="r: above: expected a share below 1"):
        FailureRate(name="r", above=5)
    with pytest.raises(ValueError, match="r: slo: expected a share below 1"):
        BurnRate(name="r", slo=99.9)
    with pytest.raises(
        ValueError, match=r"r: windows\[0\].above: a burn rate cannot exceed 10 with slo = 0.9"
    ):
        BurnRate(name="r", slo=0.9)
    with pytest.raises(ValueError, match="more than one rule is named"):
        AlertRules(rules=(FAILS, FAILS))
    with pytest.raises(ValueError, match="names an unknown receiver 'x'"):
        AlertRules(rules=(FailureRate(name="r", above=0.1, receivers=("x",)),))


# ------------------------------------------------------------ the command line


RULES = """
[[receivers]]
kind = "webhook"
name = "ops"
url_env = "OPS_URL"
secret_env = "OPS_SECRET"

[[rules]]
kind = "failure_rate"
name = "checkout fails"
above = 0.05

[[rules]]
kind = "sql"
name = "dear"
sql = "select * from runs where ended_at > $since and duration_ms > 5000"
"""


@pytest.fixture
def cli(
    past: Past, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    now = datetime.now(NOON.tzinfo)
    for second in range(30):
        past.run(now - timedelta(seconds=second), failed=True)
    (tmp_path / "alerts.toml").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPS_URL", receiver.url)

    def call(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["alerts", *args])
        return done.exit_code, done.output

    return call


def test_alerts_run_prints_findings_and_sends_notices(
    cli: Callable[..., tuple[int, str]], receiver: Receiver
) -> None:
    code, printed = cli("run")
    assert code == 0
    assert "checkout fails   firing " in printed
    assert "sent    [FIRING] checkout fails: failure rate 100.0 % -> ops" in printed
    code, printed = cli("run", "--json")
    run = json.loads(printed)
    assert [finding["status"] for finding in run["findings"]] == ["firing", "inactive"]
    assert (run["sent"], run["receivers"]["ops"]["sent"]) == ([], 1)
    assert receiver.kinds() == ["firing"]


def test_alerts_run_exits_with_1_if_no_receiver_accepts_a_notice(
    cli: Callable[..., tuple[int, str]], receiver: Receiver
) -> None:
    receiver.answer = 500
    code, printed = cli("run")
    assert code == 1
    assert (
        "failed  [FIRING] checkout fails: failure rate 100.0 % -> ops (attempt 1: HTTP status 500)" in printed
    )


def test_alerts_check_reports_all_problems(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("check") == (0, "OK: 2 rules, 1 receiver\n")
    monkeypatch.delenv("OPS_SECRET")
    code, printed = cli("check")
    assert code == 0
    assert "warning: receiver 'ops': the environment variable OPS_SECRET is not set" in printed
    (tmp_path / "alerts.toml").write_text(RULES.replace("duration_ms", "duration"))
    code, printed = cli("check", "--json")
    assert code == 1
    assert (
        'at $.rules[1].sql: Binder Error: Referenced column "duration" not found'
        in json.loads(printed)["problems"][0]
    )
    (tmp_path / "alerts.toml").write_text(RULES.replace("above", "abov"))
    code, printed = cli("check")
    assert (code, printed) == (
        1,
        "alerts.toml: at $.rules[0].abov: unknown key; did you mean 'above'?\n",
    )
    code, printed = cli("run")
    assert code == 1
    assert "alerts.toml cannot be used:" in printed
    assert cli("check", "--rules", "none.toml")[0] == 2


def test_alerts_test_sends_a_sample_to_each_receiver(
    cli: Callable[..., tuple[int, str]], receiver: Receiver
) -> None:
    code, printed = cli("test")
    assert code == 0
    assert "ops        webhook   sent" in printed
    assert (receiver.kinds(), receiver.deliveries[0].signed) == (["test"], True)
    receiver.answer = 401
    code, printed = cli("test", "--receiver", "ops", "--json")
    assert (code, json.loads(printed)) == (
        1,
        {"receiver": "ops", "kind": "webhook", "error": "HTTP status 401"},
    )
    assert cli("test", "--receiver", "opps")[0] == 2


def test_alerts_list_shows_silences(cli: Callable[..., tuple[int, str]], receiver: Receiver) -> None:
    code, printed = cli("silence", "checkout fails", "--for", "2h", "--reason", "the bank works on it")
    assert code == 0
    assert printed.startswith("checkout fails: silenced until 20")
    assert cli("run")[0] == 0
    assert receiver.deliveries == []
    code, printed = cli("list")
    assert code == 0
    assert "the bank works on it" in printed
    assert "firing" in printed
    standing = json.loads(cli("list", "--json")[1])
    assert standing["rules"][0]["silenced"]["reason"] == "the bank works on it"
    assert cli("silence", "checkout fails", "--lift") == (0, "checkout fails: silence lifted.\n")
    cli("run")
    assert receiver.kinds() == ["firing"]
    for wrong in (
        ("silence", "checkout", "--for", "2h", "--reason", "x"),
        ("silence", "checkout fails", "--for", "2x", "--reason", "x"),
        ("silence", "checkout fails", "--until", "yesterday", "--reason", "x"),
        ("silence", "checkout fails", "--for", "2h"),
        ("silence", "checkout fails", "--reason", "x"),
    ):
        assert cli(*wrong)[0] == 2, wrong


# ------------------------------------------------------------ rules and receivers that raise


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Custom(Rule, frozen=True, kw_only=True):
    """A rule of an application."""

    does: Callable[[], Any]

    def measure(self, store: EventStore, now: datetime) -> Measurement:
        found = self.does()
        return found if isinstance(found, Measurement) else self.measured(now, **found)

    def measured(self, now: datetime, **more: Any) -> Measurement:
        fields = {
            "value": 1.0,
            "summary": "it is bad",
            "threshold": "",
            "bad": True,
            "good": False,
            "rows": 1,
        }
        window = Window.ending(now, 60)
        return Measurement(**{**fields, "events": 1.0, "noun": "runs", "window": window, **more})

    def commands(self, window: Window) -> Sequence[str]:
        return ["stageflow runs"]


def raises(error: BaseException) -> Callable[[], Any]:
    def does() -> Any:
        raise error

    return does


MISBEHAVES: dict[str, Callable[[], Any]] = {
    "a bug": raises(ZeroDivisionError("division by zero")),
    "cancelled": raises(asyncio.CancelledError()),
    "generator": raises(GeneratorExit()),
    "base": raises(type("Base", (BaseException,), {})("x")),
    "group": raises(BaseExceptionGroup("some", [ValueError("x"), asyncio.CancelledError()])),
    "without text": raises(Unprintable()),
    "half a surrogate": raises(ValueError("\udc80")),
    "recursion": raises(RecursionError()),
    "no measurement": lambda: {"rows": None},
    "a wrong type": lambda: {"summary": 5},
    "text that cannot be stored": lambda: {"summary": "\udc80"},
    "a wrong selection": lambda: {"notes": (object(),)},
}


@pytest.mark.parametrize("kind", MISBEHAVES)
def test_rule_that_raises_anything_does_not_stop_the_others(
    kind: str, incident: EventStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[str] = []
    rules = AlertRules(
        rules=(Custom(name="custom", does=MISBEHAVES[kind]), FAILS),
        receivers=(Call(name="me", function=lambda notice: sent.append(notice.rule)),),
    )
    for number in (1, 2):
        run = run_alerts(incident, rules, state=tmp_path / "state.json", now=after(10 + number))
        custom, fails = run.findings
        assert custom.error
        assert fails.error is None
        assert not run.well
    assert sent == ["checkout fails"]
    state = read_state(str(tmp_path / "state.json"))
    assert (state.rules["custom"].errors, state.rules["custom"].status) == (2, "inactive")
    logged = [record for record in caplog.records if "cannot evaluate alert rule 'custom'" in record.message]
    assert len(logged) == 1
    if MISBEHAVES[kind].__name__ == "does":
        (problem,) = check_rules(incident, rules)
        assert problem.startswith("at $.rules[0]: rule 'custom' cannot be evaluated: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_interrupts_end_an_evaluation(error: BaseException, incident: EventStore) -> None:
    with pytest.raises(type(error)):
        evaluate(incident, [Custom(name="custom", does=raises(error))], AlertState(), NOON)


def test_alert_fires_even_if_its_commands_cannot_be_listed(incident: EventStore) -> None:
    class WithoutCommands(Custom, frozen=True, kw_only=True):
        def commands(self, window: Window) -> Sequence[str]:
            raise KeyError("no commands")

    rule = WithoutCommands(name="custom", does=dict)
    evaluation = evaluate(incident, [rule], AlertState(), NOON)
    assert [(notice.rule, notice.commands) for notice in evaluation.notices] == [("custom", ())]


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), GeneratorExit(), Unprintable(), ValueError("\udc80")]
)
def test_receiver_that_raises_anything_does_not_stop_the_others(
    error: BaseException, incident: EventStore, tmp_path: Path
) -> None:
    sent: list[str] = []

    def call(notice: Notice) -> None:
        raise error

    rules = AlertRules(
        rules=(FAILS,),
        receivers=(
            Call(name="broken", function=call),
            Call(name="me", function=lambda notice: sent.append(notice.rule)),
        ),
    )
    run = run_alerts(incident, rules, state=tmp_path / "state.json", now=after(10))
    assert sent == ["checkout fails"]
    assert [one.receiver for one in run.waiting] == ["broken"]
    assert run.receivers["broken"].last_error
    read_state(str(tmp_path / "state.json"))
    tests = {one["receiver"]: one["error"] for one in try_receivers(rules, NOON)}
    assert (bool(tests["broken"]), tests["me"]) == (True, None)


def test_check_reports_rules_that_cannot_be_evaluated(past: Past, tmp_path: Path) -> None:
    past.minutes(0, 5)
    past.close()
    Compactor(past.path, keep_seconds=0).compact()
    for path in past.path.glob("archive/day=*/part-*.parquet"):
        path.write_bytes(b"")
    rules = tmp_path / "alerts.toml"
    rules.write_text(
        '[[rules]]\nkind = "failure_rate"\nname = "fails"\nabove = 0.05\n'
        '[[rules]]\nkind = "no_runs"\nname = "none"\n'
    )
    done = CliRunner().invoke(app, ["alerts", "check", "--rules", str(rules), "--journal", str(past.path)])
    assert done.exit_code == 1
    assert "at $.rules[0]: rule 'fails' cannot be evaluated: ArchiveDamagedError: archive" in done.output
    assert "at $.rules[1]" in done.output
    ran = CliRunner().invoke(app, ["alerts", "run", "--rules", str(rules), "--journal", str(past.path)])
    assert ran.exit_code == 1
    assert "ArchiveDamagedError" in ran.output
