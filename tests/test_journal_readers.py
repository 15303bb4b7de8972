"""Tests that readers return every event at least once, in the order of each run; and queries of a journal."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from oracle import recorded

from stageflow import JournalSink, Pipeline, PipelineContext, StageGraph
from stageflow._files import try_lock
from stageflow.errors import (
    CursorInUseError,
    DamagedFileError,
    InvalidArgumentError,
    JournalNotFoundError,
    RunNotFoundError,
)
from stageflow.events import Event
from stageflow.journal import Journal, JournalReader, RunFilter, Unread, read_deletion_counts, unread
from stageflow.journal._retention import RetentionPolicy
from stageflow.observability import WideEventEmitter
from stageflow.store import Compactor

Start = Callable[[str], Program]


async def work(ctx: Any) -> dict[str, Any]:
    if ctx.run.data.get("fail"):
        raise ValueError("told to")
    return {}


def graph_on(path: Path, name: str = "p", **options: Any) -> tuple[StageGraph, JournalSink]:
    sink = JournalSink(path, **options)
    pipeline = Pipeline(name).with_stage("a", work).with_stage("b", work, dependencies=("a",))
    graph = recorded(pipeline, sink)
    return graph, sink


def ids(entries: Any) -> list[str]:
    return [(entry.data() or {})["event_id"] for entry in entries]


def wanted(*runs: str) -> list[str]:
    return [event for run in runs for event in (f"{run}/a/1", f"{run}/b/1", run)]


# ------------------------------------------------------------ cursors


async def test_named_reader_resumes_at_its_position(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    with JournalReader(tmp_path, "me") as reader:
        assert ids(reader.read(2)) == ["r1/a/1", "r1/b/1"]
        reader.commit()
    await graph.run(PipelineContext(pipeline_run_id="r2"))
    with JournalReader(tmp_path, "me") as reader:
        assert ids(reader) == ["r1", *wanted("r2")]
        reader.commit()
        assert reader.events == 6
        assert reader.read() == []
    sink.close()
    with JournalReader(tmp_path, "me") as reader:
        assert reader.read() == []


async def test_uncommitted_events_are_read_again(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    for _ in range(2):
        with JournalReader(tmp_path, "me") as reader:
            assert ids(reader.read()) == wanted("r1")
    sink.close()


async def test_read_returns_events_of_a_writer_started_after_the_last_read(tmp_path: Path) -> None:
    """An empty list means that no events are left, even if the last batch ended in the middle of a file."""
    first, sink = graph_on(tmp_path)
    await first.run(PipelineContext(pipeline_run_id="r1"))
    with JournalReader(tmp_path) as reader:
        seen = ids(reader.read(len(wanted("r1"))))
        second, other = graph_on(tmp_path)
        await second.run(PipelineContext(pipeline_run_id="r2"))
        seen += ids(reader.read())
        assert reader.read() == []
    assert sorted(seen) == sorted(wanted("r1", "r2"))
    sink.close()
    other.close()


async def test_readers_with_different_names_are_independent(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    with JournalReader(tmp_path, "one") as one, JournalReader(tmp_path, "two") as two:
        assert ids(one) == wanted("r1")
        one.commit()
        assert ids(two) == wanted("r1")
    sink.close()


def test_name_is_used_by_one_reader_at_a_time(tmp_path: Path) -> None:
    with (
        JournalReader(tmp_path, "me"),
        pytest.raises(CursorInUseError, match=f"in use by process {os.getpid()}"),
    ):
        JournalReader(tmp_path, "me")
    JournalReader(tmp_path, "me").close()


def test_killed_reader_releases_its_name(tmp_path: Path, program: Start) -> None:
    one = program(
        """
        import sys, time
        from stageflow.journal import JournalReader, JournalSink
        JournalSink(sys.argv[1])
        reader = JournalReader(sys.argv[1], "me")
        print("ready", flush=True)
        time.sleep(3600)
        """
    )
    one.wait_for("ready")
    with pytest.raises(CursorInUseError):
        JournalReader(one.journal, "me")
    one.process.kill()
    one.process.wait(10)
    JournalReader(one.journal, "me").close()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101])
def test_invalid_reader_name_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="JournalReader: name must be at most 100 letters"):
        JournalReader(tmp_path, name)


def test_damaged_cursor_raises_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "cursors").mkdir()
    (tmp_path / "cursors" / "me.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"me\.json is damaged: .*\n  hint: .*doctor --repair"):
        JournalReader(tmp_path, "me")


def test_reading_a_missing_journal_raises(tmp_path: Path) -> None:
    with pytest.raises(JournalNotFoundError, match="there is no journal at"):
        JournalReader(tmp_path / "none")
    with pytest.raises(JournalNotFoundError, match="there is no journal at"):
        Journal(tmp_path / "none")


async def test_reader_at_end_returns_only_later_events(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    reader = JournalReader(tmp_path, at_end=True)
    assert reader.read() == []
    await graph.run(PipelineContext(pipeline_run_id="r2"))
    assert ids(reader) == wanted("r2")
    sink.close()


async def test_waiting_reader_returns_a_new_event(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    found: list[str] = []
    reader = JournalReader(tmp_path)
    thread = threading.Thread(target=lambda: found.extend(ids(reader.read(1, timeout=30))))
    thread.start()
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    thread.join(30)
    assert found == ["r1/a/1"]
    sink.close()


async def test_commit_requires_a_named_reader(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"commit\(\) requires a named reader"):
        JournalReader(tmp_path).commit()


async def test_events_are_read_while_segments_are_created_and_deleted(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=4_000)
    reader = JournalReader(tmp_path, "me")
    found: list[str] = []
    for number in range(20):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
        found += ids(reader.read(2))
    found += ids(reader)
    assert found == wanted(*(f"r{number}" for number in range(20)))
    assert reader.missed == 0
    sink.close()


async def test_segments_deleted_before_they_were_read_are_counted(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=4_000)
    reader = JournalReader(tmp_path, "me")
    await graph.run(PipelineContext(pipeline_run_id="r0"))
    assert ids(reader.read(1)) == ["r0/a/1"]
    for number in range(1, 10):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
    files = sorted(tmp_path.glob("*.ndjson"))
    for file in files[:3]:
        file.unlink()
    rest = ids(reader)
    assert rest[-1] == "r9"
    assert reader.missed == 3
    sink.close()


async def test_remaining_lines_of_a_pruned_segment_are_read_once(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=12_000, max_bytes=100_000, fsync_interval=3600)
    reader = JournalReader(tmp_path, "me")
    await graph.run(PipelineContext(pipeline_run_id="bad", data={"fail": True}))
    seen = ids(reader.read(1))
    number = 0
    while not [*tmp_path.glob("*.kept.ndjson")]:
        number += 1
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
        sink.run_maintenance()
    seen += ids(reader)
    assert seen[:3] == ["bad/a/1", "bad/b/0", "bad"]
    assert seen[-1] == f"r{number}"
    assert len(seen) == len(set(seen))
    assert reader.missed == 1
    assert Journal(tmp_path).check().deleted.unread > 0
    sink.close()


# ------------------------------------------------------------ lines that are none


async def test_new_reader_logs_events_archived_before_it_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with JournalReader(journal_in(tmp_path), "before") as before:
        for number in range(3):  # writers that have ended
            graph, sink = graph_on(tmp_path)
            await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
            sink.close()
        graph, sink = graph_on(tmp_path, segment_bytes=4_000)  # one that goes on
        for number in range(3, 9):
            await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
        files = len([*tmp_path.glob("*.ndjson")])
        read = len(list(before))
        before.commit()
    await asyncio.to_thread(lambda: Compactor(tmp_path, keep_seconds=0).compact())
    left = len([*tmp_path.glob("*.ndjson")])
    assert 0 < left < files
    with JournalReader(tmp_path, "late") as late:
        found = len(list(late))
        assert found + late.removed_events == read == 27
        assert late.missed == files - left
        late.commit()
    (logged,) = (each.message for each in caplog.records if "'late'" in each.message)
    text = (
        f"reader 'late' of journal {tmp_path} does not receive {27 - found} events that were removed before"
    )
    assert text in logged
    await graph.run(PipelineContext(pipeline_run_id="r9"))
    with JournalReader(tmp_path, "late") as late:
        assert ids(late) == wanted("r9")
        assert (late.removed_events, late.missed) == (27 - found, files - left)
    sink.close()
    without_name = JournalReader(tmp_path)
    assert len(list(without_name)) + without_name.removed_events == 30
    at_end = JournalReader(tmp_path, at_end=True)
    assert (at_end.removed_events, at_end.missed) == (0, 0)
    state = Journal(tmp_path).check()
    assert state.problems == []  # nothing was lost
    cursors = {cursor.name: cursor for cursor in state.cursors}
    assert cursors["late"].removed_events == 27 - found
    assert (cursors["before"].removed_events, cursors["before"].missed) == (0, 0)


async def test_new_reader_counts_events_that_retention_removed(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=12_000, fsync_interval=3600)
    for number in range(60):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}", data={"fail": number % 10 == 0}))
    RetentionPolicy(max_bytes=40_000).apply(str(tmp_path))
    assert [*tmp_path.glob("*.kept.ndjson")]
    reader = JournalReader(tmp_path, "me")
    assert len(list(reader)) + reader.removed_events == 180
    RetentionPolicy(max_bytes=10_000).apply(str(tmp_path))
    again = JournalReader(tmp_path, "other")
    assert len(list(again)) + again.removed_events == 180
    sink.close()


async def test_custom_events_but_not_marks_are_counted_as_removed(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    for number in range(5):
        sink.deliver(Event("order.placed", {"number": number}))
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    sink.close()
    lines = sum(len(path.read_bytes().splitlines()) for path in tmp_path.glob("*.ndjson"))
    RetentionPolicy(max_age=0).apply(str(tmp_path))
    reader = JournalReader(tmp_path, "me")
    assert reader.removed_events == 8 < lines
    assert reader.read() == []


async def test_new_reader_waits_for_retention_to_count(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    sink.close()
    with try_lock(str(tmp_path / "lock")) as mine:
        assert mine
        started = threading.Event()
        found: list[JournalReader] = []

        def start() -> None:
            started.set()
            found.append(JournalReader(tmp_path, "me"))

        thread = threading.Thread(target=start)
        thread.start()
        await asyncio.to_thread(started.wait)
        path = next(tmp_path.glob("*.ndjson"))
        path.unlink()  # as retention does, which has not counted it yet
        (tmp_path / "deleted.json").write_text('{"lines":5,"bytes":9,"events":3,"files":1}')
    await asyncio.to_thread(thread.join, 10)
    assert (found[0].removed_events, found[0].missed) == (3, 1)


def test_new_reader_starts_with_damaged_counts(tmp_path: Path) -> None:
    JournalSink(journal_in(tmp_path)).close()
    (tmp_path / "deleted.json").write_bytes(b"\xe6")
    reader = JournalReader(tmp_path, "me")
    assert (reader.read(), reader.removed_events) == ([], 0)


def journal_in(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(0o700)
    return path


async def test_damaged_line_is_skipped_counted_and_quarantined(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path)
    await graph.run(PipelineContext(pipeline_run_id="r1"))
    await graph.run(PipelineContext(pipeline_run_id="r2"))
    sink.close()
    (file,) = tmp_path.glob("*.ndjson")
    lines = file.read_bytes().splitlines(keepends=True)
    broken = [b'{"type": "stage.wide", "data": {"stage_name\n', b"\xff\xfe\n", b'{"type": "neither"}\n']
    file.write_bytes(b"".join([*lines[:2], *broken, *lines[2:]]))
    with JournalReader(tmp_path, "me") as reader:
        assert ids(reader) == wanted("r1", "r2")
        assert (reader.broken, reader.torn) == (3, 0)
        reader.commit()
    kept = sorted(path.read_bytes() for path in (tmp_path / "broken").iterdir())
    assert kept == sorted(broken)
    with JournalReader(tmp_path, "other") as other:  # kept once, however many come by
        assert ids(other) == wanted("r1", "r2")
    assert len([*(tmp_path / "broken").iterdir()]) == 3

    state = Journal(tmp_path).check()
    assert len(state.broken) == 3
    assert "3 lines are damaged" in state.problems[0]
    assert Journal(tmp_path).repair().broken == 3
    assert Journal(tmp_path).check().problems == []
    for text in file.read_bytes().splitlines():
        assert text.isspace() or json.loads(text)
    with JournalReader(tmp_path, "me") as reader:
        assert reader.read() == []
        assert reader.broken == 3


# ------------------------------------------------------------ looking into it


async def test_runs_are_returned_newest_first_and_filtered(tmp_path: Path) -> None:
    shop, sink = graph_on(tmp_path, "shop", segment_bytes=5_000)
    desk, other = graph_on(tmp_path, "desk")
    for number in range(10):
        graph = desk if number % 2 else shop
        context = PipelineContext(
            pipeline_run_id=f"r{number}", user_id=f"u{number % 3}", data={"fail": number in (4, 7)}
        )
        await graph.run(context)
    journal = Journal(tmp_path)

    def chosen(limit: int | None = None, **where: Any) -> list[str]:
        return [run["event_id"] for run in journal.runs(RunFilter(**where), limit=limit)]

    everything = [f"r{number}" for number in reversed(range(10))]
    assert chosen() == everything
    assert chosen(3) == everything[:3]
    assert chosen(status="FAIL") == chosen(status="failed") == ["r7", "r4"]
    assert chosen(1, status="fail") == ["r7"]
    assert chosen(pipeline="desk") == ["r9", "r7", "r5", "r3", "r1"]
    assert chosen(id="u1") == ["r7", "r4", "r1"]
    assert chosen(id="r3") == ["r3"]
    assert chosen(stage="b") == everything
    assert chosen(stage="b:cancel") == ["r7", "r4"]
    assert chosen(stage="zzz") == []
    began = {run["event_id"]: run["started_at"] for run in journal.runs(limit=None)}
    assert chosen(since=began["r6"]) == ["r9", "r8", "r7", "r6"]
    assert chosen(until=began["r2"]) == ["r1", "r0"]
    sink.close()
    other.close()


async def test_roots_filter_selects_runs_not_started_by_a_stage(tmp_path: Path) -> None:
    inner, sink = graph_on(tmp_path, "inner")
    journal = Journal(tmp_path)
    seen: list[set[str]] = []

    async def nests(ctx: Any) -> None:
        inside = (
            Pipeline("middle")
            .with_stage("s", looks)
            .build(emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink))
        )
        await inside.run(PipelineContext(pipeline_run_id="middle"))

    async def looks(ctx: Any) -> None:
        await inner.run(PipelineContext(pipeline_run_id="inner", data={}))
        seen.extend(
            {run["event_id"] for run in journal.runs(where)} for where in (RunFilter(), RunFilter(roots=True))
        )

    outer = (
        Pipeline("outer")
        .with_stage("s", nests)
        .build(emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink))
    )
    await outer.run(PipelineContext(pipeline_run_id="outer"))
    assert seen == [{"outer", "middle", "inner"}, {"outer"}]
    assert [run["event_id"] for run in journal.runs(RunFilter(roots=True))] == ["outer"]
    assert [run["event_id"] for run in journal.runs()] == ["inner", "middle", "outer"]
    sink.close()


async def test_run_returns_the_complete_record_of_a_run(tmp_path: Path) -> None:
    async def noted(ctx: Any) -> None:
        ctx.emit_event("note", {"text": "hello"})

    sink = JournalSink(tmp_path)
    graph = (
        Pipeline("p")
        .with_stage("a", noted)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    await graph.run(PipelineContext(pipeline_run_id="abc-1"))
    await graph.run(PipelineContext(pipeline_run_id="abc-2"))
    await graph.run(PipelineContext(pipeline_run_id="xyz"))
    journal = Journal(tmp_path)
    story = journal.run("xy")
    assert story.run["event_id"] == "xyz"
    assert [stage["event_id"] for stage in story.stages] == ["xyz/a/1"]
    assert [(type, data["text"]) for type, data in story.events] == [("note", "hello")]
    assert journal.run("last").run["event_id"] == "xyz"
    assert journal.run("abc-1").run["event_id"] == "abc-1"
    with pytest.raises(RunNotFoundError, match="2 runs that match 'abc': abc-1, abc-2"):
        journal.run("abc")
    with pytest.raises(RunNotFoundError, match="contains no run 'nope'"):
        journal.run("nope")
    sink.close()


async def test_invalid_arguments_are_rejected(tmp_path: Path) -> None:
    journal, reader = Journal(tmp_path), JournalReader(tmp_path)
    for wrong in (0, -1, "5"):
        with pytest.raises(ValueError, match=r"limit must be a positive integer or None, got"):
            journal.runs(limit=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"read\(\): limit must be a positive integer, got"):
            reader.read(wrong)  # type: ignore[arg-type]
    for wrong in (float("nan"), -1, "x"):
        with pytest.raises(ValueError, match="timeout must be 0 or more seconds, got"):
            reader.read(timeout=wrong)  # type: ignore[arg-type]
    for where in ({"since": "1h"}, {"until": 5}, {"status": ""}, {"id": 7}):
        with pytest.raises(ValueError, match="RunFilter"):
            RunFilter(**where)
    (tmp_path / "file").write_text("")
    for path in ("", tmp_path / "file"):
        with pytest.raises(ValueError, match="path must be a directory, got"):
            JournalSink(path)


# ------------------------------------------------------------ exporters read by size, and know their lag


async def test_read_returns_events_up_to_a_total_size_and_a_larger_event_alone(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    for number, size in enumerate((10, 10, 500, 10)):
        sink.try_emit(type="t", data={"event_id": str(number), "text": "x" * size})
    reader = JournalReader(tmp_path, "me")
    assert (ids(reader.read(max_bytes=100)), reader.has_more) == (["0", "1"], True)
    assert (reader.read(max_bytes=100, larger_alone=False), reader.has_more) == ([], True)
    assert (ids(reader.read(max_bytes=100)), reader.has_more) == (["2"], True)
    assert (ids(reader.read(max_bytes=100)), reader.has_more) == (["3"], False)
    assert reader.events == 4
    with pytest.raises(InvalidArgumentError, match="max_bytes must be a positive integer or None, got 0"):
        reader.read(max_bytes=0)
    sink.close()


async def test_event_that_was_read_ahead_is_not_lost_when_the_reader_iterates(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    for number in range(4):
        sink.try_emit(type="t", data={"event_id": str(number), "text": "x" * 60})
    reader = JournalReader(tmp_path)
    found = [entry.data()["event_id"] for entry in reader.read(max_bytes=100)]
    found += [entry.data()["event_id"] for entry in reader]
    assert found == ["0", "1", "2", "3"]
    sink.close()


async def test_every_entry_has_a_unique_place_in_its_segment(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=4_000)
    for number in range(4):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
    entries = JournalReader(tmp_path).read()
    places = [(entry.writer, entry.segment, entry.offset) for entry in entries]
    assert len(set(places)) == len(entries) == 12
    assert places == sorted(places)
    sink.close()


async def test_lag_of_a_reader_is_counted_in_events_and_bytes(tmp_path: Path) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=4_000)
    assert unread(str(tmp_path), "me") == Unread()
    for number in range(4):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
    first = JournalReader(tmp_path).read()
    lag = unread(str(tmp_path), "me")
    assert (lag.events, lag.oldest) == (12, first[0].data()["ended_at"])
    assert lag.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.ndjson"))
    with JournalReader(tmp_path, "me") as reader:
        reader.read(7)
        reader.commit()
        lag = unread(str(tmp_path), "me")
        assert (lag.events, lag.oldest) == (5, first[7].data()["ended_at"])
        list(reader)
        reader.commit()
    assert unread(str(tmp_path), "me").events == 0
    sink.close()


async def test_events_deleted_before_a_reader_read_them_are_counted_for_that_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph, sink = graph_on(tmp_path, segment_bytes=4_000, max_bytes=40_000, fsync_interval=3600)
    slow, fast = JournalReader(tmp_path, "slow"), JournalReader(tmp_path, "fast")
    await graph.run(PipelineContext(pipeline_run_id="r0"))
    assert len(slow.read(2)) == 2
    slow.commit()
    warned_at = None
    for number in range(1, 40):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
        list(fast)
        fast.commit()
        sink.run_maintenance()
        if warned_at is None and "reader 'slow' has not read" in caplog.text:
            warned_at = read_deletion_counts(str(tmp_path)).missed
    assert warned_at == {}, "the warning precedes the first deletion"
    assert "'fast'" not in caplog.text
    read = 2 + len(list(slow))
    assert read_deletion_counts(str(tmp_path)).missed == {"slow": 40 * 3 - read}
    sink.close()
