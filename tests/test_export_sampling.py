"""Tests for sampling decisions: made once per root run, and the same for the archive and all exporters."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from export_receiver import ExportReceiver
from sampling_storm import storm
from test_sampling import write_runs
from test_store import compact
from typer.testing import CliRunner

import stageflow
from stageflow import JournalSink
from stageflow._time import SystemClock, set_clock
from stageflow.cli._app import app
from stageflow.errors import DamagedFileError, InvalidArgumentError, QueryError, SettingsError
from stageflow.events import Event
from stageflow.export import Exporter, ExportRunner, ExportSettings, OtlpExporter, Sent, export_status
from stageflow.store import Compactor, EventStore, SampleRule, SamplingCounts, TailSampler, check_archive

FAST = ExportSettings(batch_seconds=0.01, retry_first=0.01)
ONE_IN_5 = TailSampler(first_of_a_kind=False, one_in=5)


class Collected(Exporter):
    """Collects events."""

    def __init__(self, name: str = "collected") -> None:
        self.name = name
        self.events: list[Any] = []

    async def send(self, batch: Any) -> Sent:
        self.events += [(event.type, event.data()) for event in batch.events]
        return Sent()

    @property
    def runs(self) -> set[str]:
        return {data["correlation_ids"]["pipeline_run_id"] for _, data in self.events}


def exported(journal: Path, exporter: Exporter, sampler: TailSampler | None = ONE_IN_5) -> ExportRunner:
    runner = ExportRunner(journal, exporter, settings=FAST, sampler=sampler)
    runner.request_stop(30, drain=True)
    runner.run()
    return runner


def decisions(journal: Path) -> list[dict[str, Any]]:
    lines = [line for path in journal.glob("*.ndjson") for line in path.read_bytes().splitlines()]
    return [json.loads(line)["journal"] for line in lines if b'"sample.decision"' in line]


def open_writer(journal: Path, *events: tuple[str, dict[str, Any]]) -> JournalSink:
    """Write events that were emitted now, and keep the writer open."""
    sink = JournalSink(journal, fsync="never")
    for type, data in events:
        sink.deliver(Event(type, data))
    return sink


def wide(run: str, *, parent: str | None = None, ago: float = 0.0, stage: str | None = None) -> Any:
    (line,) = write_lines({"id": run, "parent": parent})
    data = json.loads(line)["data"]
    at = (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    data |= {"started_at": at, "ended_at": at}
    if stage is not None:
        return ("stage.wide", data | {"event_id": f"{run}/{stage}/1", "stage_name": stage, "attempts": 1})
    return ("pipeline.wide", data)


def write_lines(run: dict[str, Any]) -> list[str]:
    from test_sampling import lines_of

    return list(lines_of(0, run))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


# ---------------------------------------------------------------- the same runs everywhere


@pytest.mark.slow
def test_archive_and_exporters_keep_the_same_runs_while_processes_are_killed(tmp_path: Path) -> None:
    found = storm(tmp_path, 3, 30)
    assert not found.problems
    assert found.killed["exporter"] >= 1


def test_exporter_that_starts_later_follows_the_decisions_of_the_first(journal: Path) -> None:
    write_runs(journal, [{"stages": 2} for _ in range(300)])
    first, later = Collected("first"), Collected("later")
    exported(journal, first)
    # The sampler of the second would keep everything, but the runs are decided.
    runner = exported(journal, later, TailSampler())
    assert 30 < len(first.runs) < 100
    assert sorted(map(str, later.events)) == sorted(map(str, first.events))
    counters = runner.state.counters
    assert (counters.read, counters.sent, counters.sampled_out) == (
        900,
        len(later.events),
        900 - len(later.events),
    )
    (_, status) = export_status(journal)
    assert (status.sampled_out, status.missed, status.lag_events) == (counters.sampled_out, 0, 0)
    compact(journal, sampler=ONE_IN_5)
    with EventStore(journal) as store:
        assert {run for (run,) in store.sql("select pipeline_run_id from runs").rows} == first.runs
    recorded = decisions(journal)
    assert Counter(each["event_id"] for each in recorded) == Counter(f"{n:08d}-run" for n in range(300))
    assert {each["event_id"] for each in recorded if each["kept"]} == first.runs
    assert {(each["rate"], each["reason"]) for each in recorded} == {(5.0, "one in 5")}


def test_exported_events_have_the_rate_and_the_reason(journal: Path) -> None:
    write_runs(journal, [{"stages": 1, "sample_rate": 2} for _ in range(100)])
    exporter = Collected()
    exported(journal, exporter)
    assert {(data["sample_rate"], data["sample_reason"]) for _, data in exporter.events} == {(10, "one in 5")}


def test_rate_is_the_sample_rate_and_the_tracestate_of_a_span(journal: Path) -> None:
    write_runs(journal, [{"stages": 1} for _ in range(100)])
    with ExportReceiver() as receiver:
        exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}", encoding="json")
        exported(journal, exporter, TailSampler(first_of_a_kind=False, one_in=4))
    spans = [
        span
        for request in receiver.requests
        for resource in json.loads(request.content).get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert spans
    for span in spans:
        values = {each["key"]: each["value"] for each in span["attributes"]}
        assert (values["SampleRate"], span["traceState"]) == ({"intValue": "4"}, "ot=th:c")


def test_exporter_without_a_sampler_exports_all_runs_of_a_sampled_journal(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(50)])
    exported(journal, Collected("some"))
    everything = Collected("everything")
    exported(journal, everything, None)
    assert len(everything.runs) == 50
    assert {data["sample_rate"] for _, data in everything.events} == {1}


def test_store_that_archives_automatically_keeps_the_sampler_of_the_archive(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(10)])
    compact(journal, sampler=ONE_IN_5)
    write_runs(journal, [{"id": f"{n:04d}-later"} for n in range(200)])
    with EventStore(journal, compact_beyond=1) as store:
        ((runs,),) = store.sql("select count(*) from runs").rows
    assert runs < 100


def test_sampled_out_runs_are_counted_in_the_status(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(200)])
    exporter = Collected()
    exported(journal, exporter)
    compact(journal, sampler=ONE_IN_5)
    dropped = 200 - len(exporter.runs)
    assert check_archive(journal).sampling == SamplingCounts(len(exporter.runs), dropped, 0)
    doctor = CliRunner().invoke(app, ["doctor", "--journal", str(journal)], terminal_width=400)
    assert f"{dropped} of 200 runs sampled out" in doctor.stdout
    status = CliRunner().invoke(app, ["export", "status", "--journal", str(journal)], terminal_width=200)
    assert f"{dropped} events of collected were sampled out, not lost" in status.stdout


def test_one_setting_applies_to_exporters_and_the_archive(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sampling.toml").write_text("first_of_a_kind = false\none_in = 5\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.stageflow]\njournal = "journal"\nsampler = "sampling.toml"\n'
    )
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    monkeypatch.setenv("STAGEFLOW_JOURNAL", str(journal))
    write_runs(journal, [{} for _ in range(100)])
    with ExportReceiver() as receiver:
        done = CliRunner().invoke(app, ["export", "run", receiver.url, "--once", "--name", "shop"])
        assert done.exit_code == 0, done.output
        kept = {line["event_id"] for line in receiver.accepted}
    assert 5 < len(kept) < 50
    assert CliRunner().invoke(app, ["compact", "--keep", "0s"]).exit_code == 0
    with EventStore(journal) as store:
        assert {run for (run,) in store.sql("select pipeline_run_id from runs").rows} == kept


BACKGROUND = """
import asyncio, sys, stageflow
from stageflow import Pipeline
from stageflow.store import TailSampler

sampler = TailSampler(first_of_a_kind=False, one_in=5)
stageflow.configure(journal=sys.argv[1], health_seconds=None, export=[input()], sampler=sampler)
graph = Pipeline("p").with_stage("a", lambda ctx: None).build()

async def main():
    for _ in range(100):
        await graph.run()

asyncio.run(main())
"""


def test_background_exporter_exports_the_kept_runs_before_the_process_ends(
    program: Any, journal: Path
) -> None:
    with ExportReceiver() as receiver:
        started: Program = program(BACKGROUND)
        assert started.process.stdin is not None
        print(receiver.url, file=started.process.stdin, flush=True)
        assert started.ended() == (0, "", "")
        kept = {line["data"]["correlation_ids"]["pipeline_run_id"] for line in receiver.accepted}
    assert kept == {each["event_id"] for each in decisions(journal) if each["kept"]}
    assert 5 < len(kept) < 50


@pytest.mark.parametrize("sampler", [5, "missing.toml"])
def test_invalid_sampler_raises_at_once(journal: Path, sampler: Any) -> None:
    with pytest.raises(SettingsError, match="sampler"):
        stageflow.configure(journal=journal, export=["http://127.0.0.1:1/"], sampler=sampler)


# ---------------------------------------------------------------- undecided runs


def test_events_wait_until_their_root_run_has_ended(journal: Path) -> None:
    sink = open_writer(journal, wide("c1", parent="r1"), wide("r2"))
    exporter = Collected()
    exported(journal, exporter, TailSampler())
    assert exporter.events == []
    (status,) = export_status(journal)
    assert (status.lag_events, status.sampled_out) == (2, 0)
    assert Compactor(journal, keep_seconds=0, sampler=TailSampler()).compact().rows == 0
    sink.deliver(Event(*wide("r1")))
    exported(journal, exporter, TailSampler())
    assert [data["event_id"] for _, data in exporter.events] == ["c1", "r2", "r1"]
    sink.close()


def test_run_that_is_longer_than_decide_after_is_kept_with_its_child_runs(journal: Path) -> None:
    drops = TailSampler(first_of_a_kind=False, one_in=1e12, decide_after=60)
    sink = open_writer(journal, wide("c1", parent="r1", ago=61), wide("r2", ago=61))
    exporter = Collected()
    exported(journal, exporter, drops)
    assert exporter.runs == {"c1"}
    assert {data["sample_reason"] for _, data in exporter.events} == {"long"}
    # The end of the root run follows the decision.
    sink.deliver(Event(*wide("r1")))
    exported(journal, exporter, drops)
    assert exporter.runs == {"c1", "r1"}
    sink.close()


def test_late_events_of_a_decided_run_follow_its_decision(journal: Path) -> None:
    drops = TailSampler(first_of_a_kind=False, one_in=1e12)
    sink = open_writer(journal, wide("kept", stage="a"), wide("dropped", stage="a"))
    sink.deliver(Event("pipeline.wide", wide("kept")[1] | {"status": "FAIL", "outcome": "failed"}))
    sink.deliver(Event(*wide("dropped")))
    exporter = Collected()
    exported(journal, exporter, drops)
    for run in ("kept", "dropped"):
        sink.deliver(Event(*wide(f"{run}-child", parent=run)))
        ids = {"pipeline_run_id": run}
        amendment = {"event_id": run, "correlation_ids": ids, "attributes": {"a": 1}}
        sink.deliver(Event("pipeline.wide.amend", amendment))
    exported(journal, exporter, drops)
    assert [data["event_id"] for _, data in exporter.events] == ["kept/a/1", "kept", "kept-child", "kept"]
    assert export_status(journal)[0].sampled_out == 4
    sink.close()


def test_events_of_a_writer_that_closed_without_the_end_of_the_run_are_kept(journal: Path) -> None:
    sink = open_writer(journal, wide("r1", stage="a"), ("custom", {"n": 1}))
    exporter = Collected()
    exported(journal, exporter)
    assert exporter.events == []
    sink.close()
    exported(journal, exporter)
    assert [data.get("sample_reason") for _, data in exporter.events] == ["incomplete", None]


def test_events_that_belong_to_no_run_are_exported(journal: Path) -> None:
    sink = open_writer(journal, ("stageflow.health", {"ok": 1}))
    runner_exporter = Collected()
    runner = ExportRunner(journal, runner_exporter, settings=FAST, sampler=ONE_IN_5)
    runner.request_stop(30, drain=True)
    runner.run()
    assert runner_exporter.events == [("stageflow.health", {"ok": 1})]
    sink.close()


# ---------------------------------------------------------------- crashes


Start = Any

KILLED_WHILE_DECIDING = """
import os, signal, sqlite3, sys
from stageflow.store import Decider, TailSampler, _decisions

decider = Decider(sys.argv[1], TailSampler(one_in=5, first_of_a_kind=False))
# The decisions were written to the journal, but not stored.
_decisions.Decisions.decide = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
decider.decide()
"""


def test_decisions_of_a_killed_process_are_final(program: Start, journal: Path) -> None:
    write_runs(journal, [{} for _ in range(200)])
    killed: Program = program(KILLED_WHILE_DECIDING)
    killed.ended()
    before = decisions(journal)
    assert len(before) == 200
    exporter = Collected()
    exported(journal, exporter, TailSampler(first_of_a_kind=False, one_in=1e12))
    assert exporter.runs == {each["event_id"] for each in before if each["kept"]}
    assert decisions(journal) == before


def test_deleted_index_is_rebuilt_from_the_recorded_decisions(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(200)])
    first, again = Collected("first"), Collected("again")
    exported(journal, first)
    for path in (journal / "sampling").iterdir():
        os.unlink(path)
    exported(journal, again, TailSampler(first_of_a_kind=False, one_in=1e12))
    assert again.runs == first.runs
    assert len(decisions(journal)) == 200


def test_damaged_index_is_reported(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_runs(journal, [{} for _ in range(10)])
    compact(journal, sampler=ONE_IN_5)
    (journal / "sampling" / "decisions.db").write_bytes(b"x" * 5000)
    for name in ("decisions.db-wal", "decisions.db-shm"):
        (journal / "sampling" / name).unlink(missing_ok=True)
    with pytest.raises(DamagedFileError, match="delete the `sampling` directory"):
        compact(journal, sampler=ONE_IN_5)


def test_changed_sampler_is_logged(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_runs(journal, [{} for _ in range(10)])
    compact(journal, sampler=ONE_IN_5)
    assert caplog.messages == []
    compact(journal, sampler=TailSampler())
    (message,) = caplog.messages
    assert message.endswith("has changed: new decisions follow it")


# ---------------------------------------------------------------- hostile events, rules and files

DROPS = TailSampler(first_of_a_kind=False, one_in=1e15)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": 200},
        {"outcome": {"a": 1}},
        {"started_at": 5},
        {"duration_ms": "long"},
        {"stages_failed": 10**400},
        {"root_run_id": ["r2"]},
        {"pipeline_name": 1, "resource": "x"},
    ],
)
def test_custom_events_wait_for_the_decision_whatever_their_fields_contain(
    journal: Path, fields: dict[str, Any]
) -> None:
    custom = {"event_id": "e1", "correlation_ids": {"pipeline_run_id": "r1"}}
    sink = open_writer(journal, ("payment.received", custom | fields))
    exporter = Collected()
    exported(journal, exporter, DROPS)
    assert exporter.events == []
    sink.deliver(Event(*wide("r1")))
    runner = exported(journal, exporter, DROPS)
    assert (exporter.events, runner.state.counters.sampled_out) == ([], 2)
    sink.close()


@pytest.mark.parametrize("run", ["a\0b", "\0", "a" * 100_000, "\u2028", "\\u0000", "'", '"', " "])
def test_runs_with_any_id_are_decided(journal: Path, run: str) -> None:
    sink = open_writer(journal)
    for type, data in (wide("r1", stage="a"), wide("r1")):
        sink.deliver(Event(type, data | {"event_id": run, "correlation_ids": {"pipeline_run_id": run}}))
    sink.close()
    runner = exported(journal, Collected(), DROPS)
    assert runner.state.counters.sampled_out == 2


@pytest.mark.parametrize("sampler", [DROPS, TailSampler()])
def test_amendments_of_another_process_wait_for_the_decision(journal: Path, sampler: TailSampler) -> None:
    sink = open_writer(journal, wide("r1", stage="a"))
    exporter = Collected()
    exported(journal, exporter, sampler)
    ids = {"pipeline_run_id": "r1"}
    at = wide("r1")[1]["ended_at"]
    amendment = {"event_id": "r1", "correlation_ids": ids, "amended_at": at, "attributes": {"rating": 5}}
    open_writer(journal, ("pipeline.wide.amend", amendment)).close()
    exported(journal, exporter, sampler)
    assert Compactor(journal, keep_seconds=0, sampler=sampler).compact().rows == 0
    assert exporter.events == []
    sink.deliver(Event(*wide("r1")))
    sink.close()
    exported(journal, exporter, sampler)
    compact(journal, sampler=sampler)
    kept = sampler is not DROPS
    assert len(exporter.events) == (3 if kept else 0)
    with EventStore(journal) as store:
        assert store.sql("select count(*) from runs").rows == [(int(kept),)]


class TwoDaysLater(SystemClock):
    def wall_ns(self) -> int:
        return super().wall_ns() + 2 * 86_400 * 10**9


def test_decision_is_kept_until_the_last_event_of_the_run_has_left_the_journal(journal: Path) -> None:
    write_runs(journal, [{"id": "r1", "stages": 3}], segments=2)
    exported(journal, Collected("first"), DROPS)
    # What retention does when all exporters have read the first segment
    next(path for path in journal.glob("*.ndjson") if b"r1/s0/1" in path.read_bytes()).unlink()
    previous = set_clock(TwoDaysLater())
    try:
        later = Collected("later")
        exported(journal, later, DROPS)
    finally:
        set_clock(previous)
    assert later.events == []


@pytest.mark.parametrize(
    "where",
    [
        '"attributes.amount" > 100',
        "attributes.amount > 100",
        "attributes.amount + 1 > 101",
        "attributes.amount::int > 100",
        "attributes.amount > 100 and user_id is null",
    ],
)
@pytest.mark.parametrize("other", [None, "n/a", True, {"a": 1}, [1], 5.5])
def test_rule_does_not_match_runs_for_which_it_cannot_be_evaluated(
    journal: Path, where: str, other: Any
) -> None:
    sampler = TailSampler(
        first_of_a_kind=False, one_in=1e15, rules=(SampleRule(where=where, reason="large"),)
    )
    exporter = Collected()
    for amounts in ([other], [other, 500]):  # the first batch may contain no number
        for amount in amounts:
            type, data = wide(f"{len(list(journal.glob('*')))}-{amount}")
            attributes = {} if amount is None else {"amount": amount}
            open_writer(journal, (type, data | {"attributes": attributes})).close()
        exported(journal, exporter, sampler)
    assert export_status(journal)[0].lag_events == 0
    assert [data["attributes"] for _, data in exporter.events] == [{"amount": 500}]
    assert {data["sample_reason"] for _, data in exporter.events} == {"large"}


@pytest.mark.parametrize(
    ("where", "matching"),
    [
        ("attributes.value = true", [True]),
        ("attributes.value = 'pro'", ["pro"]),
        ("attributes.value > 100", [500, 250.5, "700"]),
        ("attributes.value is null", [None]),
        ("attributes.value > 100 or attributes.paid", ["pro", 500, 250.5, "700", None]),
    ],
)
def test_rule_reads_each_value_with_its_own_type(journal: Path, where: str, matching: list[Any]) -> None:
    sampler = TailSampler(first_of_a_kind=False, one_in=1e15, rules=(SampleRule(where=where),))
    exporter = Collected()
    sink = open_writer(journal)
    for number, value in enumerate([True, False, "pro", "free", 500, 5, 250.5, "700", None]):
        type, data = wide(f"r{number}")
        attributes: dict[str, Any] = {"paid": True} if value in ("pro", None) else {"paid": "no"}
        if value is not None:
            attributes["value"] = value
        sink.deliver(Event(type, data | {"attributes": attributes}))
    sink.close()
    exported(journal, exporter, sampler)
    assert [data["attributes"].get("value") for _, data in exporter.events] == matching


def test_invalid_rule_raises(journal: Path) -> None:
    write_runs(journal, [{}])
    for where in ("nothing > 1", "user_id >", "length(user_id, 1, 2) > 1"):
        with pytest.raises(QueryError):
            compact(journal, sampler=TailSampler(rules=(SampleRule(where=where),)))


@pytest.mark.parametrize("name", ["one_in", "decide_after", "slower_than", "target_per_minute"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_of_a_sampler_are_finite(name: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        TailSampler(**{name: value})


def test_earlier_copy_of_the_index_does_not_lose_undecided_runs(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(20)])
    exported(journal, Collected("first"), DROPS)
    database = journal / "sampling" / "decisions.db"
    copy = database.read_bytes()
    sink = open_writer(journal, wide("r1", stage="a"))
    exported(journal, Collected("first"), DROPS)
    for path in (journal / "sampling").iterdir():
        path.unlink()
    database.write_bytes(copy)
    again = Collected("again")
    exported(journal, again, TailSampler())
    assert again.events == []
    sink.deliver(Event(*wide("r1")))
    sink.close()
    runner = exported(journal, again, DROPS)
    assert (again.events, runner.state.counters.sampled_out) == ([], 22)


class Awaited(Collected):
    """Collects events, and waits for a number of them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.changed = threading.Condition()

    async def send(self, batch: Any) -> Sent:
        with self.changed:
            sent = await super().send(batch)
            self.changed.notify_all()
        return sent

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.events) >= count, 30), len(self.events)


def test_index_that_is_deleted_while_exporters_run_is_rebuilt(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(20)])
    first, later = Awaited("first"), Awaited("later")
    with ExportRunner(journal, first, settings=FAST, sampler=TailSampler()) as running:
        first.wait_for(20)
        shutil.rmtree(journal / "sampling")
        write_runs(journal, [{"id": f"{n}-later"} for n in range(20)])
        first.wait_for(40)
        with ExportRunner(journal, later, settings=FAST, sampler=DROPS):
            later.wait_for(40)
        assert running.status == "exporting"
