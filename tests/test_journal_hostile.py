"""Tests the journal under adverse conditions: signals, forks, failing disks, invalid files and races."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from oracle import check_record, recorded

from stageflow import JournalSink, Pipeline, PipelineContext, StageGraph
from stageflow.events._delivery import DELIVERY
from stageflow.journal import Journal, JournalReader
from stageflow.journal._retention import RetentionPolicy

Start = Callable[[str], Program]
Events = list[tuple[str, dict[str, Any]]]


async def nothing(ctx: Any) -> None: ...


def graph_on(sink: JournalSink, last: Any = nothing) -> StageGraph:
    pipeline = Pipeline("p").with_stage("a", nothing).with_stage("b", last, dependencies=("a",))
    return recorded(pipeline, sink)


def read(path: Path, name: str | None = None) -> Events:
    with JournalReader(path, name) as reader:
        return [(entry.type, entry.data() or {}) for entry in reader]


def of_run(events: Events, run: str) -> Events:
    return [event for event in events if event[1]["correlation_ids"]["pipeline_run_id"] == run]


async def beside(sink: JournalSink, last: Any, many: int, run: str = "long") -> None:
    """Run one long run, and many short ones while it is under way."""
    ready, end = asyncio.Event(), asyncio.Event()

    async def wait(ctx: Any) -> None:
        ready.set()
        await end.wait()
        await last(ctx)

    long = asyncio.create_task(graph_on(sink, wait).run(PipelineContext(pipeline_run_id=run)))
    await ready.wait()
    for _ in range(many):
        await graph_on(sink).run()
    end.set()
    await long


# ------------------------------------------------------------ making room


async def test_run_whose_end_was_deleted_is_neither_open_nor_crashed(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, segment_bytes=8_000, max_bytes=80_000, fsync_interval=3600)
    await beside(sink, nothing, 60)
    for _ in range(60):
        await graph_on(sink).run()
        sink.run_maintenance()
    assert "long" not in [run["event_id"] for run in Journal(tmp_path).runs(limit=None)]
    sink.close()
    assert Journal(tmp_path).recover() == []
    assert [data for _, data in of_run(read(tmp_path), "long") if data.get("outcome") == "crashed"] == []


async def test_retention_keeps_all_lines_of_a_long_failed_run(tmp_path: Path) -> None:
    async def fail(ctx: Any) -> None:
        raise ValueError("late")

    sink = JournalSink(tmp_path, segment_bytes=8_000, max_bytes=None)
    await beside(sink, fail, 40)
    sink.close()
    size = sum(path.stat().st_size for path in tmp_path.glob("*.ndjson"))
    RetentionPolicy(max_bytes=size // 2).apply(str(tmp_path))
    events = read(tmp_path)
    check_record(of_run(events, "long"), "ab")
    assert {writer.state for writer in Journal(tmp_path).check().writers} == {"closed"}


def test_retention_keeps_runs_that_are_not_recorded_as_crashed_yet(
    program: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = program(
        """
        import asyncio, os, sys
        from stageflow import *
        from stageflow.events import stats
        from stageflow.observability import WideEventEmitter, emit_stage_wide

        async def nothing(ctx): ...
        async def wait(ctx): await asyncio.sleep(3600)

        emitter = WideEventEmitter(JournalSink(sys.argv[1], segment_bytes=8_000, max_bytes=None))
        flags = dict(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter)
        short = Pipeline("p").with_stage("a", nothing).build(**flags)
        long = Pipeline("p").with_stage("a", nothing)
        long = long.with_stage("b", wait, dependencies=("a",)).build(**flags)

        async def main():
            task = asyncio.create_task(long.run(PipelineContext(pipeline_run_id="long")))
            for _ in range(40):
                await short.run()
                await asyncio.sleep(0)
            os._exit(9)

        asyncio.run(main())
        """
    )
    assert one.ended()[0] == 9

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("stageflow._files.sync", refuse)
        with pytest.raises(OSError, match="No space"):
            RetentionPolicy(max_bytes=40_000).apply(str(one.journal))
    assert Journal(one.journal).recover() == ["long"]
    check_record(of_run(read(one.journal), "long"), "ab")


async def test_segment_superseded_by_a_killed_process_is_removed_and_counted(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, segment_bytes=4_000)
    for _ in range(10):
        await graph_on(sink).run()
    sink.close()
    first = min(tmp_path.glob("*.ndjson"))
    lines = first.read_bytes().splitlines(keepends=True)
    kept = {"type": "journal.kept", "journal": {"size": first.stat().st_size, "offsets": [0]}}
    first.with_suffix(".kept.ndjson").write_bytes(json.dumps(kept).encode() + b"\n" + lines[0])
    assert "1 file was left behind by a killed process" in Journal(tmp_path).check().problems[0]
    RetentionPolicy(max_bytes=1 << 30).apply(str(tmp_path))
    assert not first.exists()
    state = Journal(tmp_path).check()
    assert state.problems == []
    assert state.deleted.lines == len(lines) - 1


async def test_unreadable_cursor_does_not_stop_readers_or_retention(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, segment_bytes=4_000)
    for _ in range(20):
        await graph_on(sink).run()
    sink.close()
    (tmp_path / "cursors").mkdir()
    (tmp_path / "cursors" / "bad.json").write_text("")
    assert RetentionPolicy(max_bytes=20_000).apply(str(tmp_path)).bytes > 0


# ------------------------------------------------------------ writing


def test_signal_handler_that_emits_loses_no_event(program: Start) -> None:
    one = program(
        """
        import asyncio, signal, sys
        from stageflow import *
        from stageflow.events import stats
        from stageflow.observability import WideEventEmitter, emit_stage_wide
        from stageflow.events import stats

        sink = JournalSink(sys.argv[1], segment_bytes=1)  # each line begins a segment

        async def nothing(ctx): ...

        graph = Pipeline("p").with_stage("a", nothing).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink))
        result = StageResult("from-handler", StageStatus.OK)
        running = True

        def emit(*_):
            emit_stage_wide("from-handler", result, PipelineContext(), sink)
            if running:  # one signal at a time: on a slow machine, an interval timer would nest handlers
                signal.setitimer(signal.ITIMER_REAL, 0.0005)

        signal.signal(signal.SIGALRM, emit)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

        async def main():
            for _ in range(300):
                await graph.run()

        asyncio.run(main())
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        counted = stats().of("JournalSink")
        assert counted.offered == counted.delivered
        print(counted.delivered)
        """
    )
    status, out, err = one.ended()
    assert status == 0, err
    ids = [data["event_id"] for _, data in read(one.journal)]
    assert len(ids) == len(set(ids)) == int(out) > 600


@pytest.mark.parametrize("moment", ["first event", "new segment", "close"])
def test_signal_at_any_line_of_an_emission_loses_no_event(program: Start, moment: str) -> None:
    one = program(
        """
import os, signal, sys, tempfile
from stageflow import JournalSink
from stageflow.journal import JournalReader

moment = MOMENT


def emissions(line):
    # Return the events emitted and recorded if a handler emits at a line, and whether the line exists.
    emitted, left = [], [line]

    def emit(number):
        emitted.append(number)
        sink.try_emit(type="app.event", data={"number": number, "text": "x" * 300})

    def trace(frame, event, argument):
        if os.sep + "stageflow" + os.sep not in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGUSR1)
        return trace

    def handle(*_):
        sys.settrace(None)
        emit(-1)

    signal.signal(signal.SIGUSR1, handle)
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        sink = JournalSink(folder, fsync="never", segment_bytes=1500)
        if moment != "first event":
            for number in range(1, 5 if moment == "new segment" else 2):
                emit(number)
        sys.settrace(trace)
        sink.close() if moment == "close" else emit(0)
        sys.settrace(None)
        sink.close()
        with JournalReader(folder) as reader:
            return sorted(emitted), sorted(entry.data()["number"] for entry in reader), left[0] <= 0


os.makedirs(sys.argv[1])
line, reached = 1, True
while reached:
    emitted, recorded, reached = emissions(line)
    assert emitted == recorded, (line, emitted, recorded)
    line += 1
print(line)
""".replace("MOMENT", repr(moment))
    )
    status, out, err = one.ended()
    assert (status, err) == (0, "")
    assert int(out) > 50


def test_signal_handler_that_exits_ends_the_process(program: Start) -> None:
    one = program(
        """
        import os, signal, sys
        from stageflow import *
        from stageflow.events import stats
        from stageflow.observability import WideEventEmitter

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))

        class Journal(JournalSink):
            def _write(self, line):
                super()._write(line)
                os.kill(os.getpid(), signal.SIGTERM)  # in the middle of the emission

        async def nothing(ctx): ...

        graph = Pipeline("p").with_stage("a", nothing).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(Journal(sys.argv[1])))
        graph.run_sync()
        print("went on")
        """
    )
    status, out, _ = one.ended()
    assert (status, out) == (7, "")


async def test_live_run_keeps_its_lock_while_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JournalSink(tmp_path, fsync_interval=0.01)

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def look(ctx: Any) -> None:
        sink._writer._started = -1e9  # a segment that is old enough to be given up
        with monkeypatch.context() as patch:
            patch.setattr("stageflow.journal._writer.os.write", fail)
            for _ in range(50):
                ctx.emit_event("note")
        sink.run_maintenance()
        assert Journal(tmp_path).recover() == []

    await graph_on(sink, look).run(PipelineContext(pipeline_run_id="live"))
    assert DELIVERY.channel_of(sink).stats().dropped == {"journal_unwritable": 50}
    assert len(sink._writer.retired) <= 2
    sink.run_maintenance()
    sink.close()
    assert [run["outcome"] for run in Journal(tmp_path).runs()] == ["ok"]


async def test_close_while_threads_emit_loses_no_event(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, fsync="never")
    threads = [
        threading.Thread(target=lambda: [graph_on(sink).run_sync() for _ in range(40)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sink.close()
    sink.close()
    counted = DELIVERY.channel_of(sink).stats()
    assert counted.delivered == counted.offered == len(read(tmp_path)) == 480
    assert {run["outcome"] for run in Journal(tmp_path).runs(limit=None)} == {"ok"}


# ------------------------------------------------------------ reading


async def test_read_error_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JournalSink(tmp_path, segment_bytes=4_000)
    for _ in range(10):
        await graph_on(sink).run()
    sink.close()
    reader = JournalReader(tmp_path, "me")
    real, calls = os.pread, iter(range(100))

    def fail(*arguments: Any) -> bytes:
        if next(calls) >= 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("stageflow.journal._segments.os.pread", fail)
        before = reader.read(1000)  # events found before the error are returned first
        with pytest.raises(OSError, match="Input/output"):
            reader.read(1000)
    reader.commit()
    assert 0 < len(before) < 30
    assert len(before) + len(reader.read(1000)) == 30


async def test_iterated_events_are_committed_one_by_one(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    for _ in range(10):
        await graph_on(sink).run()
    sink.close()
    reader = JournalReader(tmp_path, "me")
    for _ in reader:
        reader.commit()
        break
    reader.close()
    assert len(read(tmp_path, "me")) == 29


async def test_removed_directory_does_not_block_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sink = JournalSink(path)
    await graph_on(sink).run()
    reader = JournalReader(path)
    assert len(reader.read()) == 3
    sink.close()
    for file in sorted(path.rglob("*"), reverse=True):
        file.unlink()
    (path / "20261123T160028Z-p4711-9f3a61c2-000001.ndjson").symlink_to("/nowhere")
    assert reader.read(timeout=0.05) == []
    (path / "20261123T160028Z-p4711-9f3a61c2-000001.ndjson").unlink()
    path.rmdir()
    assert reader.read(timeout=0.05) == []


async def test_custom_events_with_names_of_wide_events_do_not_break_readers(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    await graph_on(sink).run(PipelineContext(pipeline_run_id="ours"))
    for data in (None, {}, {"correlation_ids": "odd"}, {"event_id": 7, "status": []}):
        for type in ("stage.wide", "pipeline.wide"):
            await sink.emit(type=type, data=data)
    (file,) = tmp_path.glob("*.ndjson")
    dead = file.with_name(file.name.replace("-p", "-p1"))  # and a copy of it whose writer is gone
    dead.write_bytes(file.read_bytes())
    assert Journal(tmp_path).recover() == []
    assert [run["event_id"] for run in Journal(tmp_path).runs()] == ["ours"]
    assert Journal(tmp_path).run("ours").run["outcome"] == "ok"
    assert len(read(tmp_path)) == 22
    assert Journal(tmp_path).check().problems == []
    sink.close()


async def test_complete_id_is_found_among_many_with_the_same_prefix(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, fsync="never")
    ids = [*(f"job-{number}" for number in range(1000, 1120)), "job-1", "a\nb", "x\u00a0y", 'quo"te/']
    for run in ids:
        await graph_on(sink).run(PipelineContext(pipeline_run_id=run))
    for run in ("job-1", "a\nb", "x\u00a0y", 'quo"te/'):
        story = Journal(tmp_path).run(run)
        assert story.run["event_id"] == run
        assert len(story.stages) == 2
    with pytest.raises(LookupError, match="more than 100 runs that match 'job-'"):
        Journal(tmp_path).run("job-")
    for none in ("", "\ud800"):
        with pytest.raises(LookupError, match="contains no run"):
            Journal(tmp_path).run(none)
    sink.close()


def test_reader_is_closed_in_a_forked_child(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path, "me")
    pid = os.fork()
    if not pid:
        try:
            reader.read()
        except ValueError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert reader.read() == []
    reader.close()


def test_forked_child_does_not_keep_the_retention_lock_of_its_parent(program: Start) -> None:
    one = program(
        """
        import os, signal, sys
        from stageflow import *
        from stageflow.observability import WideEventEmitter

        async def nothing(ctx): ...

        sink = JournalSink(sys.argv[1], segment_bytes=2_000, max_bytes=16_000, fsync_interval=0.001)
        graph = Pipeline("p").with_stage("a", nothing).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink))
        children = []
        for _ in range(60):
            graph.run_sync()
            if not (child := os.fork()):
                signal.pause()
            children.append(child)
        sink.close()
        before = sum(entry.stat().st_size for entry in os.scandir(sys.argv[1]) if entry.is_file())
        from stageflow.journal._retention import RetentionPolicy
        RetentionPolicy(max_bytes=1).apply(sys.argv[1])
        after = sum(entry.stat().st_size for entry in os.scandir(sys.argv[1]) if entry.is_file())
        for child in children:
            os.kill(child, signal.SIGKILL)
        print(before > after)
        """
    )
    status, out, err = one.ended()
    assert (status, out) == (0, "True\n"), err


def test_released_lock_is_free_before_a_forked_child_closes_its_copy(program: Start) -> None:
    one = program(
        """
        import os, signal, sys
        waiting = False
        # Registered first, so it runs first, like a child that was not scheduled yet.
        os.register_at_fork(after_in_child=lambda: waiting and signal.pause())
        from stageflow import *
        from stageflow.observability import WideEventEmitter
        from stageflow.journal._retention import RetentionPolicy

        async def nothing(ctx): ...

        sink = JournalSink(sys.argv[1])
        graph = Pipeline("p").with_stage("a", nothing).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink))
        graph.run_sync()
        reader = JournalReader(sys.argv[1], "me")
        waiting = True
        child = os.fork()
        try:
            sink.close()
            reader.close()
            JournalReader(sys.argv[1], "me").close()
            RetentionPolicy(max_bytes=1).apply(sys.argv[1])
            print([name for name in os.listdir(sys.argv[1]) if name.endswith(".ndjson")])
        finally:
            os.kill(child, signal.SIGKILL)
        """
    )
    status, out, err = one.ended()
    assert (status, out) == (0, "[]\n"), err
