"""Tests crash recovery: the next reader completes the record of each run of a killed process, once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from journal_storm import storm
from oracle import check_record, of_type, pipeline_wide, stage_wide

from stageflow import JournalSink, Pipeline, PipelineContext, set_event_sink
from stageflow.events import FanoutEventSink, MemoryEventSink, clear_event_sink
from stageflow.journal import Journal, JournalReader
from stageflow.observability import WideEventEmitter

Start = Callable[[str], Program]
Events = list[tuple[str, dict[str, Any]]]

KILLED = """
    import asyncio, os, signal, sys
    from stageflow import *
    from stageflow.events import FanoutEventSink, MemoryEventSink, clear_event_sink
    from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide

    async def load(ctx): return {"text": "hello"}

    async def flaky(ctx):
        if ctx.attempt == 1:
            raise ConnectionError("once")

    async def hang(ctx):
        print("ready", flush=True)
        await asyncio.sleep(3600)

    graph = (
        Pipeline("killed")
        .with_stage("load", load)
        .with_stage("flaky", flaky, retry=Retry(attempts=2, wait=0))
        .with_stage("answer", hang, dependencies=("load", "flaky"))
        .with_stage("send", load, dependencies=("answer",))
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True,
               wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])))
    )
    asyncio.run(graph.run(PipelineContext(pipeline_run_id="the-run", user_id="u1", service="shop")))
"""


def read(path: Path, name: str | None = None) -> Events:
    with JournalReader(path, name) as reader:
        return [(entry.type, entry.data() or {}) for entry in reader]


def kill(one: Program) -> None:
    one.process.send_signal(signal.SIGKILL)
    one.process.wait(10)


# ------------------------------------------------------------ a run that was cut off


def test_killed_run_is_recorded_as_crashed_and_the_guarantees_hold(program: Start) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    kill(one)
    events = read(one.journal)
    run = check_record(events, ["load", "flaky", "answer", "send"])
    assert (run["status"], run["outcome"]) == ("FAIL", "crashed")
    assert run["error"].startswith(f"process died before the run ended (pid {one.process.pid} on ")
    assert run["pipeline_name"] == "killed"
    assert run["correlation_ids"]["user_id"] == "u1"
    assert run["pipeline_metadata"]["service"] == "shop"
    assert run["resource"]["pid"] == one.process.pid
    assert run["stages_completed"] == 2
    assert stage_wide(events, "load")["status"] == "OK"
    assert stage_wide(events, "flaky")["attempts"] == 2
    answer, send = stage_wide(events, "answer"), stage_wide(events, "send")
    assert answer["status"] == send["status"] == "CANCEL"
    assert answer["reason"] == "process died while the stage was ready or running"
    assert send["reason"] == "never started: process died while the stage waited for 'answer'"
    assert answer["trace"]["trace_id"] == run["trace"]["trace_id"]
    assert answer["trace"]["parent_span_id"] == run["trace"]["span_id"]


def test_run_of_a_journal_inside_a_fanout_is_completed_too(program: Start) -> None:
    """The start mark reaches the journal through the enclosing sink."""
    inside = "FanoutEventSink(MemoryEventSink(), JournalSink(sys.argv[1]))"
    one = program(KILLED.replace("JournalSink(sys.argv[1])", inside))
    one.wait_for("ready")
    kill(one)
    run = check_record(read(one.journal), ["load", "flaky", "answer", "send"])
    assert (run["outcome"], run["pipeline_name"]) == ("crashed", "killed")


def test_crashed_stage_keeps_the_number_of_its_retried_attempts(program: Start) -> None:
    one = program(
        """
        import asyncio, sys
        from stageflow import *
        from stageflow.events import FanoutEventSink, MemoryEventSink, clear_event_sink
        from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide

        class Told:
            def try_emit(self, *, type, data):
                print(data["status"], flush=True)

        async def down(ctx): raise ConnectionError("down")

        sink = FanoutEventSink(JournalSink(sys.argv[1]), Told())
        graph = Pipeline("p").with_stage("a", down, retry=Retry(attempts=5, wait=3600)).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink))
        asyncio.run(graph.run())
        """
    )
    one.wait_for("RETRY")
    kill(one)
    events = read(one.journal)
    check_record(events, ["a"])
    end = stage_wide(events, "a")
    assert (end["status"], end["attempt"], end["attempts"]) == ("CANCEL", 2, 1)


def test_run_in_progress_in_a_live_process_is_not_crashed(program: Start) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    (run,) = Journal(one.journal).runs()
    assert (run["status"], run["outcome"], run["ended_at"]) == ("OPEN", "open", None)
    assert [summary["status"] for summary in run["stage_summaries"]] == ["OK", "OK", "OPEN", "OPEN"]
    story = Journal(one.journal).run("the-run")
    assert story.run["outcome"] == "open"
    assert len(story.stages) == 3
    assert of_type(read(one.journal), "pipeline.wide") == []
    kill(one)
    (run,) = Journal(one.journal).runs()
    assert run["outcome"] == "crashed"


def test_stopped_process_counts_as_alive(program: Start) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    one.process.send_signal(signal.SIGSTOP)
    assert Journal(one.journal).recover() == []
    one.process.send_signal(signal.SIGCONT)
    kill(one)
    assert Journal(one.journal).recover() == ["the-run"]


def test_os_exit_and_sigterm_are_crashes(program: Start) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    one.process.terminate()
    one.process.wait(10)
    assert pipeline_wide(read(one.journal))["outcome"] == "crashed"


def test_process_that_exits_normally_needs_no_recovery(program: Start) -> None:
    one = program(
        """
        import asyncio, sys
        from stageflow import *
        from stageflow.events import FanoutEventSink, MemoryEventSink, clear_event_sink
        from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide

        async def nothing(ctx): ...

        graph = Pipeline("p").with_stage("a", nothing).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])))
        asyncio.run(graph.run())
        """
    )
    assert one.ended()[0] == 0
    (file,) = one.journal.glob("*.ndjson")
    assert file.read_text().splitlines()[-1] == (
        '{"type":"writer.closed","journal":{"adopted_by":null,"crashed":0}}'
    )
    assert Journal(one.journal).recover() == []
    assert [*one.journal.glob("*.ndjson")] == [file]


def test_recovery_does_not_change_runs_that_ended(program: Start) -> None:
    one = program(
        """
        import asyncio, os, sys
        from stageflow import *
        from stageflow.events import FanoutEventSink, MemoryEventSink, clear_event_sink
        from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide

        async def nothing(ctx): ...
        async def die(ctx): os._exit(3)

        emitter = WideEventEmitter(JournalSink(sys.argv[1], segment_bytes=4000))
        flags = dict(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter)
        good = Pipeline("good").with_stage("a", nothing).build(**flags)
        bad = Pipeline("bad").with_stage("a", nothing)
        bad = bad.with_stage("b", die, dependencies=("a",)).build(**flags)

        async def main():
            for _ in range(10):
                await good.run()
            await bad.run(PipelineContext(pipeline_run_id="bad"))

        asyncio.run(main())
        """
    )
    assert one.ended()[0] == 3
    runs = Journal(one.journal).runs()
    assert [run["outcome"] for run in runs] == ["crashed", *["ok"] * 10]
    events = [event for event in read(one.journal) if event[1]["correlation_ids"]["pipeline_run_id"] == "bad"]
    check_record(events, "ab")


def test_nested_run_crashes_with_its_parent(program: Start) -> None:
    one = program(
        """
        import asyncio, os, sys
        from stageflow import *
        from stageflow.events import FanoutEventSink, MemoryEventSink, clear_event_sink
        from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide

        emitter = WideEventEmitter(JournalSink(sys.argv[1]))
        flags = dict(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter)

        async def die(ctx): os.kill(os.getpid(), 9)

        inner = Pipeline("inner").with_stage("die", die).build(**flags)

        async def nest(ctx): await inner.run(PipelineContext(pipeline_run_id="inner"))

        outer = Pipeline("outer").with_stage("nest", nest).build(**flags)
        asyncio.run(outer.run(PipelineContext(pipeline_run_id="outer")))
        """
    )
    one.ended()
    story = Journal(one.journal).run("outer")
    assert story.run["outcome"] == "crashed"
    (child,) = story.children
    assert (child["event_id"], child["outcome"], child["root_run_id"]) == ("inner", "crashed", "outer")


# ------------------------------------------------------------ whose record it is


def test_recovery_adds_no_pipeline_wide_to_a_graph_without_it(program: Start) -> None:
    one = program(KILLED.replace("emit_pipeline_wide_event=True", "emit_pipeline_wide_event=False"))
    one.wait_for("ready")
    kill(one)
    events = read(one.journal)
    assert of_type(events, "pipeline.wide") == []
    assert [event["status"] for event in of_type(events, "stage.wide")].count("CANCEL") == 2


@pytest.mark.parametrize("flag", ["emit_stage_wide_events", "emit_pipeline_wide_event"])
async def test_run_without_pipeline_wide_is_closed_in_the_journal(tmp_path: Path, flag: str) -> None:
    sink = JournalSink(tmp_path)

    async def nothing(ctx: Any) -> None: ...

    flags: dict[str, Any] = {flag: True}
    graph = Pipeline("p").with_stage("a", nothing).build(wide_event_emitter=WideEventEmitter(sink), **flags)
    await graph.run()
    assert [writer.open_runs for writer in Journal(tmp_path).check().writers] == [[]]
    sink.close()
    assert Journal(tmp_path).check().writers[0].state == "closed"


async def test_run_whose_emitter_does_not_emit_is_closed(tmp_path: Path) -> None:
    class Silent(WideEventEmitter):
        def emit_pipeline_wide(self, results: Any, ctx: Any) -> None: ...

    async def nothing(ctx: Any) -> None: ...

    sink = JournalSink(tmp_path)
    graph = (
        Pipeline("p")
        .with_stage("a", nothing)
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=Silent(sink))
    )
    await graph.run(PipelineContext(pipeline_run_id="r"))
    sink.close()
    story = Journal(tmp_path).run("r")
    assert story.run["outcome"] == "closed"
    assert story.run["reason"] == "pipeline.wide was not emitted by the emitter of the graph"
    assert Journal(tmp_path).runs() == []


async def test_run_whose_events_went_to_another_sink_is_closed(tmp_path: Path) -> None:
    sink, other = JournalSink(tmp_path), MemoryEventSink()

    async def move(ctx: Any) -> None:
        set_event_sink(other)

    set_event_sink(FanoutEventSink(sink))
    graph = (
        Pipeline("p").with_stage("a", move).build(emit_stage_wide_events=True, emit_pipeline_wide_event=True)
    )
    await graph.run(PipelineContext(pipeline_run_id="r"))
    clear_event_sink()
    sink.close()
    assert len(other.events) == 2
    assert Journal(tmp_path).check().writers[0].state == "closed"
    assert Journal(tmp_path).recover() == []


# ------------------------------------------------------------ once, however many look


def test_crashed_run_is_completed_by_one_of_many_readers(program: Start) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    kill(one)
    together, found = threading.Barrier(8), []

    def look() -> None:
        together.wait(10)
        found.extend(Journal(one.journal).recover())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == ["the-run"]
    assert len(of_type(read(one.journal), "pipeline.wide")) == 1


def test_recovery_is_retried_after_the_disk_was_full(program: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    kill(one)

    def refuse(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("stageflow._files.sync", refuse)
        with pytest.raises(OSError, match="No space"):
            Journal(one.journal).recover()
        assert of_type(read(one.journal), "pipeline.wide") == []  # a reader goes on without
    assert not [*one.journal.glob(".*")]
    assert Journal(one.journal).recover() == ["the-run"]


def test_torn_last_line_is_skipped_and_counted(program: Start) -> None:
    one = program(KILLED)
    one.wait_for("ready")
    kill(one)
    (file,) = one.journal.glob("*.ndjson")
    with file.open("ab") as torn:
        torn.write(b'{"type":"stage.wide","data":{"stage_na')
    with JournalReader(one.journal, "r") as reader:
        events = [(entry.type, entry.data() or {}) for entry in reader]
        assert (reader.torn, reader.broken) == (1, 0)
        reader.commit()
    check_record(events, ["load", "flaky", "answer", "send"])
    assert len(Journal(one.journal).check().torn) == 1
    assert Journal(one.journal).repair().torn == 1
    state = Journal(one.journal).check()
    assert (state.torn, state.quarantined, state.problems) == ([], 1, [])


@pytest.mark.slow
@pytest.mark.timeout(180)  # on a loaded machine
def test_guarantees_hold_after_many_kills(tmp_path: Path) -> None:
    """For a longer one: `python -m tests.journal_storm 60`."""
    found = storm(2, tmp_path)
    assert found.problems == []
    assert found.kills > 2
    assert found.crashed > 0


async def test_manually_emitted_events_are_not_a_run(tmp_path: Path) -> None:
    from stageflow import StageResult, StageStatus
    from stageflow.observability import emit_stage_wide

    sink = JournalSink(tmp_path)
    result = StageResult("s", StageStatus.OK)
    emit_stage_wide("s", result, PipelineContext(pipeline_run_id="by-hand"), sink)
    await asyncio.sleep(0)
    sink.close()
    assert Journal(tmp_path).recover() == []
    assert len(read(tmp_path)) == 1
