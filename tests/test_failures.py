"""Which runs count as failures, for statistics, errors, explain, alerts, sampling and retention."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_sampling import BEGAN, write_runs
from typer.testing import CliRunner

import stageflow
from stageflow import Pipeline
from stageflow.alerts import AlertState, BurnRate, FailureRate, evaluate
from stageflow.cli._app import app
from stageflow.errors import DamagedFileError, SettingsError
from stageflow.events import LoggingEventSink
from stageflow.journal import Journal
from stageflow.journal._retention import RetentionPolicy
from stageflow.store import Compactor, EventStore, TailSampler

OUTCOMES = {
    "ok": 60,
    "degraded": 5,
    "stopped": 5,
    "failed": 6,
    "timeout": 3,
    "crashed": 1,
    "cancelled": 40,
    "suspended": 10,
}
COUNTED = 80  # without those that were cancelled or suspended
RATE = 10 / COUNTED
NOW = BEGAN + timedelta(minutes=10)
BAD = {"failed", "timeout", "crashed", "cancelled"}


def runs(outcomes: dict[str, int] = OUTCOMES, **more: Any) -> Iterable[dict[str, Any]]:
    for outcome, many in outcomes.items():
        for _ in range(many):
            yield {"outcome": outcome, "fails": outcome in BAD, **more}


@pytest.fixture(params=[False, True], ids=["journal", "archive"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    write_runs(folder, runs())
    if request.param:
        Compactor(folder, keep_seconds=0).compact()
    return folder


def command(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# ------------------------------------------------------------ every rate


def test_statistics_exclude_cancelled_and_suspended_runs(folder: Path) -> None:
    with EventStore(folder) as store:
        (stat,) = store.stats("runs")
    assert (stat.count, stat.ok, stat.failed, stat.cancelled) == (130, 80, 10, 40)  # suspended runs are OK
    assert stat.failure_rate == RATE


def test_totals_state_whether_an_outcome_is_a_failure(folder: Path) -> None:
    with EventStore(folder) as store:
        totals = {total.outcome: (total.count, total.failed) for total in store.totals()}
    failures = dict.fromkeys(("failed", "timeout", "crashed"), True) | dict.fromkeys(
        ("cancelled", "suspended")
    )
    assert totals == {outcome: (many, failures.get(outcome, False)) for outcome, many in OUTCOMES.items()}
    rows = [json.loads(row) for row in command("totals", "--json", "--journal", folder).splitlines()]
    assert {row["outcome"]: row["failed"] for row in rows}["cancelled"] is None
    assert "not counted" in command("totals", "--journal", folder)


def test_errors_do_not_contain_cancelled_runs(folder: Path) -> None:
    with EventStore(folder) as store:
        assert {group.kind: group.count for group in store.errors()} == {
            "failed": 6,
            "timeout": 3,
            "crashed": 1,
        }
    assert "cancelled" not in command("errors", "--journal", folder)


def test_explain_compares_failures_with_runs_that_were_not_cancelled(folder: Path) -> None:
    with EventStore(folder) as store:
        found = store.explain()
        assert (found.selection.rows, found.rest.rows) == (10, 70)
        assert not [one for one in (*found.differences, *found.effects) if "failed" in one.fields]
    shown = json.loads(command("explain", "--json", "--journal", folder))
    assert (shown["selection"]["rows"], shown["rest"]["rows"]) == (10, 70)


def test_comparisons_exclude_cancelled_runs(folder: Path) -> None:
    with EventStore(folder) as store:
        (row,) = store.compare("outcome <> 'stopped'", "outcome = 'cancelled'", "runs")
    assert row.before.failure_rate == 10 / 75
    assert row.after.failure_rate is None
    assert row.q_failures is None
    assert command(
        "compare", "outcome <> 'stopped'", "outcome = 'cancelled'", "--over", "runs", "--journal", folder
    )


@pytest.mark.parametrize("above", [RATE - 0.001, RATE + 0.001])
def test_alerts_fire_for_the_rate_without_cancelled_runs(folder: Path, above: float) -> None:
    rule = FailureRate(name="fails", above=above, window=3600)
    with EventStore(folder) as store:
        (finding,) = evaluate(store, [rule], AlertState(), NOW).findings
    assert finding.error is None
    assert finding.status == ("firing" if above < RATE else "inactive")
    assert (finding.summary, finding.events) == ("failure rate 12.5 %", "80 runs")


@pytest.mark.parametrize("slower_than", [None, 0.005])
def test_burn_rates_exclude_cancelled_runs(tmp_path: Path, slower_than: float | None) -> None:
    write_runs(tmp_path / "journal", runs({"ok": 30, "cancelled": 60}, ms=1.0))
    write_runs(
        tmp_path / "journal", ({**run, "id": f"late-{n}"} for n, run in enumerate(runs({"cancelled": 9})))
    )
    rule = BurnRate(name="budget", slo=0.99, slower_than=slower_than)
    with EventStore(tmp_path / "journal") as store:
        (finding,) = evaluate(store, [rule], AlertState(), BEGAN + timedelta(minutes=2)).findings
    assert finding.error is None
    assert (finding.status, finding.events) == ("inactive", "30 runs")
    assert finding.summary.startswith("burn rate 0.0x over 1 h, 0.0x over 5 min")


def test_burst_of_cancelled_runs_fires_no_alert(tmp_path: Path) -> None:
    async def waits(ctx: Any) -> None:
        await asyncio.sleep(60)

    async def works(ctx: Any) -> None: ...

    async def main() -> None:
        for _ in range(5):
            await Pipeline("chat").with_stage("answer", works).run()
        slow = Pipeline("chat").with_stage("answer", waits)
        tasks = [asyncio.create_task(slow.run()) for _ in range(30)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()  # the client has disconnected
        await asyncio.gather(*tasks, return_exceptions=True)

    stageflow.configure(journal=tmp_path, health_seconds=None)
    asyncio.run(main())
    rules = [
        FailureRate(name="runs", above=0.01, min_events=1),
        FailureRate(name="stage", stage="answer", above=0.01, min_events=1),
        BurnRate(name="budget", slo=0.999, min_events=1),
    ]
    with EventStore(tmp_path) as store:
        evaluation = evaluate(store, rules, AlertState(), datetime.now(UTC))
        (stat,) = store.stats("stages")
        assert store.errors() == []
        assert "failed" not in store.runs(limit=1)[0]
    assert [(one.status, one.error) for one in evaluation.findings] == [("inactive", None)] * 3
    assert (stat.count, stat.cancelled, stat.failed, stat.failure_rate) == (35, 30, 0, 0.0)


def test_view_has_the_column_from_which_rates_follow(folder: Path) -> None:
    with EventStore(folder) as store:
        found = store.sql("select failed, count(*) from runs group by 1 order by 2").rows
        assert found == [(True, 10), (None, 50), (False, 70)]
        assert "failed" in [name for name, *_ in store.sql("describe stages").rows]


# ------------------------------------------------------------ one setting


def configured(folder: Path, outcomes: list[str], tmp_path: Path) -> None:
    """Let another process, with a pyproject.toml, write to the journal."""
    (tmp_path / "pyproject.toml").write_text(f"[tool.stageflow]\nfailure_outcomes = {json.dumps(outcomes)}\n")
    program = f"import stageflow; stageflow.configure(journal={str(folder)!r}, health_seconds=None)"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)


def test_setting_of_the_writer_is_the_definition_of_every_reader(folder: Path, tmp_path: Path) -> None:
    store = EventStore(folder)  # opened before
    assert store.stats("runs")[0].failed == 10
    configured(folder, ["failed", "degraded", "cancelled"], tmp_path)
    (stat,) = store.stats("runs")
    assert (stat.failed, stat.failure_rate) == (51, 51 / 120)
    rule = FailureRate(name="fails", above=0.4, window=3600)
    (finding,) = evaluate(store, [rule], AlertState(), NOW).findings
    assert (finding.status, finding.events) == ("firing", "120 runs")
    assert {group.kind for group in store.errors()} == {"failed", "degraded", "cancelled"}
    assert {one.outcome for one in store.totals() if one.failed} == {"failed", "degraded", "cancelled"}
    store.close()
    (row,) = (
        json.loads(row)
        for row in command("stats", "--over", "runs", "--json", "--journal", folder).splitlines()
    )
    assert row["failed"] == 51
    with EventStore(folder, failure_outcomes=["crashed"]) as other:
        assert other.stats("runs")[0].failed == 1


def test_process_without_the_setting_does_not_change_the_definition(tmp_path: Path) -> None:
    stageflow.configure(journal=tmp_path / "journal", failure_outcomes=["crashed"])
    stageflow.settings.reset()
    stageflow.configure(journal=tmp_path / "journal")
    write_runs(tmp_path / "journal", runs())
    with EventStore(tmp_path / "journal") as store:
        assert store.stats("runs")[0].failed == 1


@pytest.mark.parametrize("wrong", [["ok"], ["fialed"], 3, [7], [], (), "failed", ""])
def test_wrong_outcome_is_an_error_that_names_the_setting(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"failure_outcomes.*\(from: argument\)"):
        stageflow.configure(journal=tmp_path / "journal", failure_outcomes=wrong)


@pytest.mark.parametrize("wrong", [[], "failed", ["ok"]])
def test_every_parameter_for_outcomes_rejects_invalid_ones(wrong: Any, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    for build in (LoggingEventSink, lambda **given: EventStore(tmp_path / "journal", **given)):
        with pytest.raises((TypeError, ValueError), match="failure_outcomes"):
            build(failure_outcomes=wrong)


def test_setting_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEFLOW_FAILURE_OUTCOMES", '["timeout", "failed", "timeout"]')
    found = stageflow.configure(journal=tmp_path / "journal")
    assert found.failure_outcomes == ("failed", "timeout")
    assert found.origins["failure_outcomes"] == "STAGEFLOW_FAILURE_OUTCOMES"


def test_damaged_definition_is_an_error_and_can_be_repaired(folder: Path) -> None:
    (folder / "failures.json").write_text('{"outcomes":["fai')
    with EventStore(folder) as store:
        with pytest.raises(DamagedFileError, match="set `failure_outcomes` again"):
            store.stats("runs")
        assert [file.path for file in Journal(folder).check().damaged] == [str(folder / "failures.json")]
        RetentionPolicy(max_age=0).apply(str(folder))  # it must not keep retention from working
        Journal(folder).repair()
        assert Journal(folder).check().damaged == []
        store.stats("runs")


# ------------------------------------------------------------ what is kept


def test_sampling_keeps_failures_and_not_cancelled_runs(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    write_runs(folder, runs({"ok": 300, "failed": 5, "cancelled": 300}))
    Compactor(folder, keep_seconds=0, sampler=TailSampler(one_in=10, first_of_a_kind=False)).compact()
    with EventStore(folder) as store:
        kept = dict(store.sql("select outcome, count(*) from runs group by 1").rows)
        reasons = dict(store.sql("select sample_reason, count(*) from runs group by 1").rows)
    assert kept["failed"] == reasons["failed"] == 5
    assert 10 < kept["cancelled"] < 60


def test_sampling_uses_the_definition_of_the_journal(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    stageflow.configure(journal=folder, failure_outcomes=["cancelled"])
    write_runs(folder, runs({"ok": 100, "failed": 100, "cancelled": 100}))
    sampler = TailSampler(one_in=10, first_of_a_kind=False)
    with EventStore(folder) as store:
        planned = {one.reason: one.kept for one in store.dry_run(sampler)}
    Compactor(folder, keep_seconds=0, sampler=sampler).compact()
    with EventStore(folder) as store:
        kept = dict(store.sql("select outcome, count(*) from runs group by 1").rows)
    assert kept["cancelled"] == planned["failed"] == 100
    assert kept["failed"] < 50


@pytest.mark.parametrize(("outcomes", "kept"), [(None, {"failed"}), (["cancelled"], {"cancelled"})])
def test_retention_keeps_failures_longest(tmp_path: Path, outcomes: list[str] | None, kept: set[str]) -> None:
    folder = tmp_path / "journal"
    if outcomes is not None:
        stageflow.configure(journal=folder, failure_outcomes=outcomes)
        stageflow.settings.reset()
    write_runs(folder, runs({"ok": 100, "failed": 2, "cancelled": 2}))
    for file in folder.glob("*.ndjson"):
        os.utime(file, (time.time() - 60,) * 2)
    RetentionPolicy(max_bytes=10_000).apply(str(folder))
    assert {run["outcome"] for run in Journal(folder).runs(limit=None)} == kept


def test_log_has_no_error_for_a_cancelled_run(caplog: pytest.LogCaptureFixture) -> None:
    async def waits(ctx: Any) -> None:
        await asyncio.sleep(60)

    async def fails(ctx: Any) -> None:
        raise ValueError("x")

    async def main(sink: LoggingEventSink) -> None:
        stageflow.configure(sink=sink, health_seconds=None)
        task = asyncio.create_task(Pipeline("p").with_stage("a", waits).run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await Pipeline("q").with_stage("a", fails).run()

    def errors(sink: LoggingEventSink) -> list[str]:
        caplog.clear()
        asyncio.run(main(sink))
        return [record.message.split()[1] for record in caplog.records if record.levelno == logging.ERROR]

    with caplog.at_level(logging.DEBUG, "stageflow"):
        assert errors(LoggingEventSink()) == ["a", "q"]
        assert errors(LoggingEventSink(failure_outcomes=["cancelled"])) == ["p", "a"]
