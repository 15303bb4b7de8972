"""Tests for exporters that send the archived events before those of the journal."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from export_receiver import ExportReceiver
from test_export_sampling import ONE_IN_5, Collected, exported
from test_sampling import write_runs
from test_store import compact, run_some

from stageflow import JournalSink
from stageflow.events import Event
from stageflow.export import Exporter, ExportRunner, ExportSettings, HttpExporter, Sent, export_status
from stageflow.journal import JournalReader
from stageflow.store import Compactor, move_archive

FAST = ExportSettings(batch_seconds=0.01, retry_first=0.01)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def backfilled(journal: Path, exporter: Exporter, settings: ExportSettings = FAST) -> ExportRunner:
    runner = ExportRunner(journal, exporter, settings=settings, backfill=True)
    runner.request_stop(60, drain=True)
    runner.run()
    return runner


def all_events(journal: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(entry.type, entry.data() or {}) for entry in JournalReader(journal)]


def in_order(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(events, key=lambda event: (event[0], str(event[1].get("event_id")), str(event[1])))


def test_archived_events_are_sent_before_those_of_the_journal(journal: Path) -> None:
    run_some(journal, times=4)
    sink = JournalSink(journal)
    sink.deliver(Event("stageflow.health", {"emitted_at": "2026-11-01T00:00:00.000000Z", "n": 1}))
    sink.close()
    archived = all_events(journal)
    compact(journal)
    assert not all_events(journal)
    run_some(journal, times=2)
    exporter = Collected()
    runner = backfilled(journal, exporter)
    assert in_order(exporter.events) == in_order(archived + all_events(journal))
    assert in_order(exporter.events[: len(archived)]) == in_order(archived)
    ends = [data["event_id"] for type, data in exporter.events if type == "pipeline.wide"]
    for run in ends:
        events = [data["event_id"] for _, data in exporter.events if data.get("event_id", "").startswith(run)]
        assert events[-1] == run
    (status,) = export_status(journal)
    assert (status.sent, status.skipped, status.backfill_left) == (len(exporter.events), 0, 0)
    assert runner.state.counters.read == len(exporter.events)
    # The archive is sent once.
    again = Collected()
    backfilled(journal, again)
    assert again.events == []


def test_archive_is_exported_once_while_it_is_compacted(journal: Path) -> None:
    """Segments are archived and files are merged between two batches of the backfill."""
    for part in range(9):
        write_runs(journal, [{"id": f"{part}-{n}", "stages": 1} for n in range(20)])
        Compactor(journal, keep_seconds=0, target_bytes=1).compact()
    write_runs(journal, [{"id": f"9-{n}", "stages": 1} for n in range(20)])

    class Compacting(Collected):
        async def send(self, batch: Any) -> Sent:
            if len(self.events) in (20, 60):
                await asyncio.to_thread(lambda: Compactor(journal, keep_seconds=0).compact())
            return await super().send(batch)

    exporter = Compacting()
    backfilled(journal, exporter, ExportSettings(batch_events=20, batch_seconds=0.01))
    expected = {f"{part}-{n}{suffix}" for part in range(10) for n in range(20) for suffix in ("", "/s0/1")}
    assert Counter(data["event_id"] for _, data in exporter.events) == Counter(expected)
    assert list((journal / "pins").iterdir()) == []


def test_archived_segments_that_are_still_in_the_journal_are_not_exported_twice(journal: Path) -> None:
    write_runs(journal, [{"id": f"a-{n}"} for n in range(20)])
    compact(journal, keep_seconds=86_400)
    assert len(all_events(journal)) == 20
    write_runs(journal, [{"id": f"b-{n}"} for n in range(20)])
    exporter = Collected()
    backfilled(journal, exporter)
    expected = [f"{part}-{n}" for part in "ab" for n in range(20)]
    assert Counter(data["event_id"] for _, data in exporter.events) == Counter(expected)


def test_events_of_a_sampled_archive_have_its_rate(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(100)])
    compact(journal, sampler=ONE_IN_5)
    exporter = Collected()
    backfilled(journal, exporter)
    assert 5 < len(exporter.runs) < 50
    assert {(data["sample_rate"], data["sample_reason"]) for _, data in exporter.events} == {(5, "one in 5")}


def test_sampled_exporter_drops_archived_runs_that_were_sampled_out(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(100)])
    first, later = Collected("first"), Collected("later")
    exported(journal, first)
    compact(journal)  # without the sampler
    runner = ExportRunner(journal, later, settings=FAST, backfill=True, sampler=ONE_IN_5)
    runner.request_stop(60, drain=True)
    runner.run()
    assert later.runs == first.runs
    assert {data["sample_rate"] for _, data in later.events} == {5}
    assert runner.state.counters.sampled_out == 100 - len(first.events)


def test_journal_without_an_archive_is_exported_from_its_start(journal: Path) -> None:
    run_some(journal, times=1)
    exporter = Collected()
    backfilled(journal, exporter)
    assert in_order(exporter.events) == in_order(all_events(journal))


def test_exporter_that_has_started_before_does_not_export_the_archive(journal: Path) -> None:
    run_some(journal, times=1)
    compact(journal)
    first = Collected()
    exported(journal, first, None)
    backfilled(journal, first)
    assert first.events == []


EXPORTER = """
import sys
from stageflow.export import ExportRunner, ExportSettings, HttpExporter

settings = ExportSettings(batch_events=10, batch_seconds=0.01)
exporter = HttpExporter(input(), name="shop")
print("ready", flush=True)
ExportRunner(sys.argv[1], exporter, settings=settings, backfill=True).run()
"""


def test_killed_exporter_resumes_in_the_archive(program: Any, journal: Path) -> None:
    write_runs(journal, [{"id": f"a-{n:03d}", "stages": 1} for n in range(150)])
    compact(journal)
    write_runs(journal, [{"id": f"b-{n:03d}", "stages": 1} for n in range(20)])
    with ExportReceiver() as receiver:
        for kill_at in (60, 120, 200):
            exporter: Program = program(EXPORTER)
            assert exporter.process.stdin is not None
            print(receiver.url, file=exporter.process.stdin, flush=True)
            exporter.wait_for("ready")
            receiver.wait(lambda at=kill_at: len(receiver.accepted) >= at)  # type: ignore[misc]
            exporter.process.kill()
            exporter.process.wait()
        compact(journal)
        backfilled(journal, HttpExporter(receiver.url, name="shop"))
        found = receiver.keys()
    assert len(found) == 2 * 170
    assert sum(found.values()) <= 2 * 170 + 3 * 10  # the batch of each kill can be sent again
    (status,) = export_status(journal)
    assert (status.sent, status.lag_events, status.missed, status.skipped) == (2 * 170, 0, 0, 0)


def stopped_after_a_batch(journal: Path) -> Collected:
    """Export ten archived events, and stop."""

    class Stopping(Collected):
        async def send(self, batch: Any) -> Sent:
            runner.request_stop(30)
            return await super().send(batch)

    exporter = Stopping()
    settings = ExportSettings(batch_events=10, batch_seconds=0.01)
    runner = ExportRunner(journal, exporter, settings=settings, backfill=True)
    runner.run()
    assert len(exporter.events) == 10
    return exporter


@pytest.mark.parametrize("is_deleted", [False, True])
def test_archived_events_are_sent_again_if_the_state_is_lost(journal: Path, is_deleted: bool) -> None:
    write_runs(journal, [{} for _ in range(30)])
    compact(journal)
    stopped_after_a_batch(journal)
    state = journal / "export" / "collected" / "state.json"
    if is_deleted:
        state.unlink()  # what `doctor --repair` does with a damaged file
    else:
        state.write_text("damaged")
    rest = Collected()
    runner = ExportRunner(journal, rest, settings=FAST)
    runner.request_stop(30, drain=True)
    runner.run()
    assert len(rest.runs) == len(rest.events) == 30
    assert list((journal / "pins").iterdir()) == []


def test_missing_archive_is_not_skipped(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_runs(journal, [{} for _ in range(30)])
    compact(journal)
    (journal / "archive").rename(journal / "unmounted")
    exporter = Collected()
    backfilled(journal, exporter)
    assert "does not exist, but 30 events" in caplog.text
    (journal / "unmounted").rename(journal / "archive")
    backfilled(journal, exporter)
    assert len(exporter.runs) == len(exporter.events) == 30


def test_backfill_continues_after_the_archive_was_moved(journal: Path) -> None:
    write_runs(journal, [{} for _ in range(30)])
    compact(journal)
    first = stopped_after_a_batch(journal)
    moved = move_archive(journal, journal.parent / "moved")
    shutil.rmtree(moved.source)
    rest = Collected()
    backfilled(journal, rest)
    assert len(rest.events) == 20
    assert len(first.runs | rest.runs) == 30
