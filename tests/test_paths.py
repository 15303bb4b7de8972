"""Tests that each path is made absolute once, when it is set, and does not follow the working directory."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Program

import stageflow
from stageflow import Journal, JournalReader, JournalSink, Pipeline, StageContext
from stageflow.alerts import AlertLoop, AlertRules, FailureRate, run_alerts
from stageflow.alerts._rule import Silence, add_silence, read_silences
from stageflow.alerts._run import state_path
from stageflow.store import Compactor, EventStore

Start = Callable[[str], Program]


async def work(ctx: StageContext) -> None:
    pass


GRAPH = Pipeline("p").with_stage("w", work).build(emit_stage_wide_events=None)
RULES = AlertRules(rules=(FailureRate(name="fails", above=0.05),))


@pytest.fixture(autouse=True)
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Begin in an empty directory; return one to change to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAGEFLOW_JOURNAL", raising=False)
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


def runs_of(path: Path) -> int:
    return len(Journal(path).runs())


def test_rotation_after_chdir_does_not_move_the_journal(tmp_path: Path, other: Path) -> None:
    sink = JournalSink("journal", segment_bytes=1)
    stageflow.configure(sink=sink, health_seconds=None)
    GRAPH.run_sync()
    os.chdir(other)
    for _ in range(3):
        GRAPH.run_sync()
    sink.run_maintenance()
    sink.close()
    assert runs_of(tmp_path / "journal") == 4
    assert os.listdir(other) == []


def test_fork_after_chdir_does_not_move_the_journal(program: Start, tmp_path: Path) -> None:
    status, _, err = program("""
        import os, sys
        import stageflow
        from stageflow import Pipeline
        folder = os.path.dirname(sys.argv[1])
        os.makedirs(folder + "/other", exist_ok=True)
        os.chdir(folder)
        stageflow.configure(journal="journal", health_seconds=None)
        async def work(ctx): return {}
        graph = Pipeline("p").with_stage("w", work).build()
        graph.run_sync()
        os.chdir("other")
        if not os.fork():
            graph.run_sync()
            os._exit(0)
        assert os.wait()[1] == 0
        assert os.listdir(".") == []
    """).ended()
    assert status == 0, err
    assert runs_of(tmp_path / "journal") == 2


def test_pickled_sink_writes_to_the_same_journal_from_another_directory(tmp_path: Path, other: Path) -> None:
    with_path = pickle.dumps(JournalSink("journal"))
    os.chdir(other)
    assert pickle.loads(with_path).path == str(tmp_path / "journal")


def test_configuring_the_same_journal_again_after_chdir_changes_nothing(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stageflow.configure(journal="journal")
    os.chdir(other)
    assert stageflow.configure(journal="journal") == first
    assert first.journal == str(tmp_path / "journal")
    monkeypatch.setenv("STAGEFLOW_JOURNAL", "journal")
    assert stageflow.configure().journal == str(other / "journal")  # another origin: a new setting
    os.chdir(tmp_path)
    assert stageflow.configure(service="shop").journal == str(other / "journal")


def test_failed_change_of_the_journal_has_no_effect(tmp_path: Path, other: Path) -> None:
    (tmp_path / "file").touch()
    stageflow.configure(journal="journal")
    for _ in range(2):
        with pytest.raises(stageflow.errors.SettingsError):
            stageflow.configure(journal="file")
    os.chdir(other)
    assert stageflow.configure(journal="journal").journal == str(tmp_path / "journal")


def test_path_in_pyproject_is_relative_to_that_file(tmp_path: Path, other: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.stageflow]\njournal = "records/journal"\n')
    deep = other / "deep"
    deep.mkdir()
    os.chdir(deep)
    assert stageflow.configure().journal == str(tmp_path / "records/journal")
    GRAPH.run_sync()
    stageflow.configure(journal=None)
    assert runs_of(tmp_path / "records/journal") == 1
    assert os.listdir(deep) == []


def test_absolute_path_in_pyproject_is_not_changed(tmp_path: Path, other: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.stageflow]\njournal = {json.dumps(str(other / 'j'))}\n")
    assert stageflow.configure().journal == str(other / "j")


def test_readers_continue_with_their_journal_after_chdir(tmp_path: Path, other: Path) -> None:
    stageflow.configure(journal="journal", health_seconds=None)
    GRAPH.run_sync()
    journal, reader = Journal("journal"), JournalReader("journal", "warehouse")
    store, compactor = EventStore("journal"), Compactor("journal", keep_seconds=0)
    loop = AlertLoop("journal", RULES, state="state.json")
    os.chdir(other)
    assert len(journal.runs()) == 1
    assert journal.check().damaged == []
    assert len(reader.read()) == 2
    reader.commit()
    assert len(store.runs()) == 1
    stageflow.configure(journal=None)
    stageflow.set_event_sink(stageflow.events.MemoryEventSink())
    assert not compactor.compact().busy
    run_alerts(store, RULES)
    loop.start()
    loop.stop()
    for each in (reader, store):
        each.close()
    assert os.listdir(other) == []
    assert (tmp_path / "journal/cursors/warehouse.json").is_file()
    assert (tmp_path / "journal/alerts.json").is_file()


def test_relative_archive_address_is_independent_of_chdir(tmp_path: Path, other: Path) -> None:
    sink = JournalSink("journal")
    stageflow.configure(sink=sink, health_seconds=None)
    GRAPH.run_sync()
    sink.close()
    compactor = Compactor("journal", "archive", keep_seconds=0)
    os.chdir(other)
    assert compactor.compact().rows == 2
    with EventStore(tmp_path / "journal") as store:
        assert store.archive.address == str(tmp_path / "archive")
        assert len(store.runs()) == 1
    assert os.listdir(other) == []


def test_relative_address_in_archive_json_is_relative_to_the_journal(tmp_path: Path, other: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/archive.json").write_text('{"address": "../store"}')
    os.chdir(other)
    with EventStore(tmp_path / "journal") as store:
        assert store.archive.address == str(tmp_path / "store")


def test_path_can_be_bytes_and_cannot_be_empty(tmp_path: Path) -> None:
    assert JournalSink(os.fsencode("journal")).path == str(tmp_path / "journal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path must be a directory, got ''"):
        JournalSink("")


def test_silences_are_stored_next_to_the_state_of_alerts(tmp_path: Path, other: Path) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    stageflow.configure(journal="journal", health_seconds=None)
    asyncio.run(GRAPH.run())
    path = state_path(str(tmp_path / "journal"), "state.json")
    os.chdir(other)
    add_silence(path, Silence(rule="fails", until=now + timedelta(hours=1), reason="deploy"), now)
    assert len(read_silences(path)) == 1
    assert os.listdir(other) == []
