"""The heartbeat: once per second, a journal receives the runs and stages that are in progress."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Program
from oracle import check_record
from typer.testing import CliRunner

from stageflow import JournalSink, Pipeline, PipelineContext, StageContext, StageGraph, active_runs
from stageflow.cli._app import app
from stageflow.events import stats
from stageflow.journal import Journal, JournalReader
from stageflow.observability import WideEventEmitter
from stageflow.schema import Heartbeat, RunClosed, RunOpen

Start = Callable[[str], Program]
Json = dict[str, Any]

IN_PROGRESS = """
    import asyncio, os, signal, sys, time
    from stageflow import *
    from stageflow.observability import WideEventEmitter

    async def load(ctx): return {}

    async def flaky(ctx):
        ctx.annotate(try_number=ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionError("once")
        await asyncio.sleep(3600)

    async def asks(ctx):
        ctx.annotate(model="m-1", password="hunter2", history=[{"role": "user"}])
        ctx.annotate_run(tenant="acme")
        ctx.count("tokens", 7)
        await asyncio.sleep(3600)

    def in_thread(ctx):
        ctx.annotate(rows=3)
        time.sleep(3600)

    graph = (
        Pipeline("observed")
        .with_stage("load", load)
        .with_stage("flaky", flaky, retry=Retry(attempts=2, wait=0))
        .with_stage("asks", asks, dependencies=("load",))
        .with_stage("in_thread", in_thread)
        .with_stage("sends", load, dependencies=("asks",))
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True,
               wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])))
    )
    asyncio.run(graph.run(PipelineContext(pipeline_run_id="the-run")))
"""

BLOCKS_THE_LOOP = """
    import asyncio, sys, time
    from stageflow import *
    from stageflow.events import Event, stats
    from stageflow.observability import WideEventEmitter

    async def blocks(ctx): time.sleep(3600)

    graph = Pipeline("blocked").with_stage("blocks", blocks).build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])))
    asyncio.run(graph.run(PipelineContext(pipeline_run_id="the-run")))
"""


def heartbeats(path: Path) -> list[Json]:
    files = [file.read_bytes() for file in sorted(path.glob("[!.]*.ndjson"))]
    # The last line of a file may be incomplete while the heartbeat thread writes it.
    lines = [line for content in files for line in content.split(b"\n")[:-1]]
    return [msgspec.json.decode(line)["journal"] for line in lines if line.startswith(b'{"type":"heartbeat"')]


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
    return found


def wait_for_heartbeat(path: Path, mentions: str) -> None:
    wait_for(lambda: any(mentions in str(beat["runs"]) for beat in heartbeats(path)))


def wait_for_end_of_heartbeats() -> None:
    wait_for(lambda: not any(thread.name == "stageflow-heartbeat" for thread in threading.enumerate()))


def kill(program: Program) -> None:
    program.process.send_signal(signal.SIGKILL)
    program.process.wait(10)


def graph_of(stage: Any, sink: JournalSink, **options: Any) -> StageGraph:
    return (
        Pipeline("observed")
        .with_stage("works", stage)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
            **options,
        )
    )


# ------------------------------------------------------------ crashed runs


def test_crashed_run_names_its_running_stages_and_their_attributes(program: Start) -> None:
    one = program(IN_PROGRESS)
    wait_for_heartbeat(one.journal, "in_thread")
    kill(one)
    with JournalReader(one.journal) as reader:
        events = [(entry.type, entry.data() or {}) for entry in reader]
    run = check_record(events, ["load", "flaky", "asks", "in_thread", "sends"])
    stages = {data["stage_name"]: data for type, data in events if type == "stage.wide"}
    assert run["outcome"] == "crashed"
    assert run["attributes"] == {"tenant": "acme", "tokens": 7}
    assert run["process"]["memory_peak_bytes"] > 0
    asks = stages["asks"]
    assert (asks["status"], asks["attempt"], asks["attempts"]) == ("CANCEL", 1, 1)
    assert asks["reason"] == "process died during attempt 1"
    assert asks["attributes"]["model"] == "m-1"
    assert asks["attributes"]["history"] == [{"role": "user"}]
    assert asks["duration_ms"] > 0
    assert stages["in_thread"]["attributes"] == {"rows": 3}
    flaky = stages["flaky"]
    assert (flaky["attempt"], flaky["attempts"]) == (2, 2)
    assert flaky["reason"] == "process died during attempt 2"
    assert flaky["attributes"] == {"try_number": 2}
    assert stages["sends"]["attempts"] == 0


def test_heartbeat_is_redacted(program: Start) -> None:
    one = program(IN_PROGRESS)
    wait_for_heartbeat(one.journal, "asks")
    kill(one)
    assert not any(b"hunter2" in file.read_bytes() for file in one.journal.glob("*.ndjson"))


def test_crashed_run_names_the_stage_that_blocks_the_event_loop(program: Start) -> None:
    one = program(BLOCKS_THE_LOOP)
    wait_for_heartbeat(one.journal, "blocks")
    kill(one)
    story = Journal(one.journal).run("the-run")
    (stage,) = story.stages
    assert (stage["status"], stage["attempts"]) == ("CANCEL", 1)
    assert stage["reason"] == "process died during attempt 1"


# ------------------------------------------------------------ runs in other processes


def test_run_of_another_process_shows_running_stages_and_attributes(program: Start) -> None:
    one = program(IN_PROGRESS)
    wait_for_heartbeat(one.journal, "in_thread")
    (listed,) = Journal(one.journal).runs()
    shown = Journal(one.journal).run("the-run").run
    for run in (listed, shown):
        running = {stage["stage_name"]: stage["attempt"] for stage in run["stages_running"]}
        assert running == {"flaky": 2, "asks": 1, "in_thread": 1}
        assert run["attributes"] == {"tenant": "acme", "tokens": 7}
    page = CliRunner().invoke(app, ["show", "the-run", "--journal", str(one.journal)]).output
    assert re.search(r"running +flaky \(attempt 2\), asks \(attempt 1\), in_thread \(attempt 1\)", page)
    table = CliRunner().invoke(app, ["runs", "--journal", str(one.journal)]).output
    assert "running: flaky, asks, in_thread" in table
    kill(one)


# ------------------------------------------------------------ the line


@pytest.mark.timeout(60)
def test_line_is_bounded_and_rotates_through_what_does_not_fit(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    ids = {f"run-{number:030d}" for number in range(1500)}

    async def works(ctx: StageContext) -> None:
        ctx.annotate(note="x" * 500)
        await release.wait()

    async def main() -> None:
        graph = graph_of(works, sink)
        runs = [asyncio.ensure_future(graph.run(PipelineContext(pipeline_run_id=run_id))) for run_id in ids]
        while ids - {run[0] for beat in heartbeats(tmp_path) for run in beat["runs"]}:
            await asyncio.sleep(0.1)
        release.set()
        await asyncio.gather(*runs)

    release = asyncio.Event()
    asyncio.run(main())
    sink.close()
    lines = [line for file in tmp_path.glob("*.ndjson") for line in file.read_bytes().splitlines()]
    beats = [line for line in lines if line.startswith(b'{"type":"heartbeat"')]
    assert all(len(line) <= 64 << 10 for line in beats)
    # The first heartbeat may be written before every stage has started.
    counts = [
        (len(beat["runs"]) + beat["omitted_runs"], len(beat["attributes"]) + beat["omitted_attributes"])
        for beat in heartbeats(tmp_path)
        if beat["omitted_runs"] and beat["omitted_attributes"]
    ]
    assert (len(ids), len(ids)) in counts


@pytest.mark.timeout(60)
def test_attributes_rotate_through_the_space_that_ids_leave(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    release = asyncio.Event()

    async def works(ctx: StageContext) -> None:
        ctx.annotate(note="x" * 2_000)
        await release.wait()

    async def main() -> None:
        graph = graph_of(works, sink)
        runs = [asyncio.ensure_future(graph.run(PipelineContext(pipeline_run_id=f"r{n}"))) for n in range(60)]
        while len({entry[0] for beat in heartbeats(tmp_path) for entry in beat["attributes"]}) < 60:
            await asyncio.sleep(0.1)
        release.set()
        await asyncio.gather(*runs)

    asyncio.run(main())
    sink.close()
    assert all(beat["omitted_runs"] == 0 for beat in heartbeats(tmp_path))


@pytest.mark.timeout(60)
def test_heartbeat_calls_no_application_code(tmp_path: Path) -> None:
    class Hostile:
        def __repr__(self) -> str:
            called.append(threading.current_thread().name)
            return "hostile"

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            called.append(threading.current_thread().name)
            return "text"

    called: list[str] = []
    sink = JournalSink(tmp_path)

    async def works(ctx: StageContext) -> None:
        ctx.annotate(
            plain=1, hostile=Hostile(), text=Text("t"), nested=[Hostile(), 2], deep={"in": Hostile()}
        )
        while not heartbeats(tmp_path):
            await asyncio.sleep(0.05)

    asyncio.run(graph_of(works, sink).run())
    sink.close()
    assert "stageflow-heartbeat" not in called
    assert called  # the stage's own event does contain them
    assert heartbeats(tmp_path)[0]["attributes"][0][3] == {"plain": 1, "nested": [2], "deep": {}}


def doubled(value: Any) -> Any:
    """Return a small value that is very large as JSON: it contains the same list many times."""
    for _ in range(7):
        value = [value] * 100
    return value


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "huge",
    [
        pytest.param(doubled(1), id="shared lists"),
        pytest.param({"a": doubled({"b": 1})}, id="shared mappings"),
        pytest.param(list(range(200_000)), id="long list"),
        pytest.param(doubled(object()), id="nothing plain"),
    ],
)
def test_attribute_that_fits_in_no_line_costs_little_and_is_counted(tmp_path: Path, huge: Any) -> None:
    sink = JournalSink(tmp_path)

    async def works(ctx: StageContext) -> None:
        ctx.annotate(small=1, huge=huge)
        while not heartbeats(tmp_path):
            await asyncio.sleep(0.05)

    asyncio.run(graph_of(works, sink).run())
    sink.close()
    beat = heartbeats(tmp_path)[0]
    assert [entry[3] for entry in beat["attributes"]] == [{"small": 1}]
    assert beat["omitted_attributes"] == 1


@pytest.mark.timeout(60)
def test_too_large_attributes_do_not_displace_others(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    release = asyncio.Event()
    large = [f"a{number:02d}" for number in range(40)]

    async def works(ctx: StageContext) -> None:
        if ctx.run.pipeline_run_id in large:
            ctx.annotate(**{f"text_{number}": "x" * 4_000 for number in range(20)})
        else:
            ctx.annotate(small=1)
        await release.wait()

    async def main() -> None:
        graph = graph_of(works, sink)
        ids = [*large, "b"]
        runs = [asyncio.ensure_future(graph.run(PipelineContext(pipeline_run_id=run_id))) for run_id in ids]
        while not any(entry[0] == "b" for beat in heartbeats(tmp_path) for entry in beat["attributes"]):
            await asyncio.sleep(0.1)
        release.set()
        await asyncio.gather(*runs)

    asyncio.run(main())
    sink.close()
    assert heartbeats(tmp_path)[0]["omitted_attributes"] >= len(large)


# ------------------------------------------------------------ no event, no cost


@pytest.mark.timeout(60)
def test_heartbeat_is_not_an_event_and_stops_with_the_last_run(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)

    async def works(ctx: StageContext) -> None:
        while not heartbeats(tmp_path):
            await asyncio.sleep(0.05)

    asyncio.run(graph_of(works, sink).run())
    wait_for_end_of_heartbeats()
    counted = next(known for known in stats().sinks if known.sink.startswith("JournalSink"))
    sink.close()
    with JournalReader(tmp_path) as reader:
        assert [entry.type for entry in reader] == ["stage.wide", "pipeline.wide"]
    assert counted.offered == counted.delivered == 2
    assert Journal(tmp_path).check().problems == []


@pytest.mark.timeout(60)
def test_heartbeat_after_the_end_of_all_runs_opens_no_segment(tmp_path: Path) -> None:
    class Late(JournalSink):
        def accept_mark(self, mark: RunOpen | RunClosed | Heartbeat) -> None:
            if isinstance(mark, Heartbeat):
                late.append(mark)
            else:
                super().accept_mark(mark)

    late: list[Heartbeat] = []
    sink = Late(tmp_path)

    async def works(ctx: StageContext) -> None:
        while not late:
            await asyncio.sleep(0.05)

    asyncio.run(graph_of(works, sink).run())
    JournalSink.accept_mark(sink, late[0])
    sink.close()
    JournalSink.accept_mark(sink, late[0])
    assert len(list(tmp_path.glob("*.ndjson"))) == 1
    assert heartbeats(tmp_path) == []


def test_heartbeat_is_not_written_without_a_journal() -> None:
    async def works(ctx: StageContext) -> dict[str, list[str]]:
        return {"threads": [thread.name for thread in threading.enumerate()]}

    wait_for_end_of_heartbeats()
    results = asyncio.run(Pipeline("p").with_stage("works", works).run())
    assert "stageflow-heartbeat" not in results.data("works")["threads"]


@pytest.mark.timeout(60)
def test_heartbeat_does_not_keep_a_dropped_run_alive(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)

    async def works(ctx: StageContext) -> None:
        await asyncio.sleep(3600)

    loop = asyncio.new_event_loop()
    task = loop.create_task(graph_of(works, sink).run())
    loop.run_until_complete(asyncio.sleep(0))
    wait_for(lambda: heartbeats(tmp_path))
    loop.call_exception_handler = lambda context: None  # type: ignore[method-assign]
    loop.close()
    del task
    gc.collect()
    assert active_runs() == []
    sink.close()


@pytest.mark.timeout(60)
def test_forked_child_writes_heartbeats_of_its_own_runs_only(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)

    async def child_works(ctx: StageContext) -> None:
        while not any("child" in str(beat["runs"]) for beat in heartbeats(tmp_path)):
            await asyncio.sleep(0.05)

    async def works(ctx: StageContext) -> None:
        while not heartbeats(tmp_path):
            await asyncio.sleep(0.05)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                asyncio.run(graph_of(child_works, sink).run(PipelineContext(pipeline_run_id="child")))
                sink.close()
                code = 0
            finally:
                os._exit(code)
        assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)

    asyncio.run(graph_of(works, sink).run(PipelineContext(pipeline_run_id="parent")))
    sink.close()
    mentioned = [{run[0] for run in beat["runs"]} for beat in heartbeats(tmp_path)]
    assert {"child"} in mentioned
    assert {"parent"} in mentioned
    assert {"child", "parent"} not in mentioned
