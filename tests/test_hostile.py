"""Tests that the guarantees hold while the application raises, logs, handles signals or forks."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stageflow import (
    EventSink,
    JournalSink,
    Limits,
    Pipeline,
    PipelineContext,
    StageOutput,
    StageResult,
    StageStatus,
    flush,
)
from stageflow.events import BackgroundEventSink, FanoutEventSink, MemoryEventSink, stats
from stageflow.observability import WideEventEmitter, emit_stage_wide
from stageflow.pipeline import CircuitBreaker
from stageflow.testing import VirtualClock


class Unspeakable(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


async def works(ctx: Any) -> dict[str, int]:
    return {"n": 1}


def recorded(sink: Any, **options: Any) -> Any:
    return (
        Pipeline("p")
        .with_stage("a", works)
        .with_stage("b", works, dependencies=("a",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
            **options,
        )
    )


async def test_sink_error_without_text_affects_only_its_own_events() -> None:
    class InPlace(EventSink):
        calls = 0

        def try_emit(self, *, type: str, data: Any) -> None:
            self.calls += 1
            raise Unspeakable

    class Async(EventSink):
        calls = 0

        async def emit(self, *, type: str, data: Any) -> None:
            self.calls += 1
            raise Unspeakable

    in_place, other, memory = InPlace(), Async(), MemoryEventSink()
    await recorded(FanoutEventSink(in_place, other, memory)).run()
    assert await flush()
    assert (in_place.calls, other.calls, len(memory.events)) == (3, 3, 3)
    assert stats().of("Async").dropped == {"sink_error": 3}


@pytest.fixture
def logging_that_raises() -> Iterator[None]:
    class Refuses(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no logging here")

    loggers = [logging.getLogger(name) for name in ("stageflow.events", "stageflow.observability")]
    refuses = Refuses()
    for logger in loggers:
        logger.addFilter(refuses)
    yield
    for logger in loggers:
        logger.removeFilter(refuses)


@pytest.mark.usefixtures("logging_that_raises")
async def test_raising_log_handler_neither_blocks_a_run_nor_loses_its_record() -> None:
    class Raises(WideEventEmitter):
        def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
            raise ValueError("before")

        def emit_pipeline_wide(self, results: Any, ctx: Any) -> None:
            super().emit_pipeline_wide(results, ctx)
            raise ValueError("after")

    sink = MemoryEventSink()
    graph = (
        Pipeline("p")
        .with_stage("a", works)
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=Raises(sink))
    )
    assert (await graph.run(deadline=10)).ok
    assert [type for type, _ in sink.events] == ["stage.wide", "pipeline.wide"]


def test_signal_handler_can_emit_while_its_thread_is_emitting(
    program: Callable[[str], Any],
) -> None:
    started = program("""
        import asyncio, signal, sys
        from stageflow import *
        from stageflow.events import FanoutEventSink, stats
        from stageflow.observability import emit_stage_wide

        class Slow(EventSink):
            seen = 0
            async def emit(self, *, type, data):
                self.seen += 1

        slow = Slow()
        sink = FanoutEventSink(JournalSink(sys.argv[1]), slow)
        result, context = StageResult("s", StageStatus.OK), PipelineContext(pipeline_run_id="r")
        handled = 0
        def handler(*_):
            global handled
            handled += 1
            emit_stage_wide(f"signal{handled}", result, context, sink)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)

        async def main():
            for number in range(8_000):
                emit_stage_wide(f"loop{number}", result, context, sink)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert await flush()

        asyncio.run(main())
        found = stats().of("Slow")
        assert handled > 0
        assert found.accepted == found.delivered == slow.seen, found
        assert found.offered == 8_000 + handled, (found, handled)
        print("done", 8_000 + handled)
    """)
    status, out, err = started.ended(within=50)
    assert status == 0, err
    assert len(started.events()) == int(out.split()[1])


def test_child_forked_in_a_synchronous_stage_delivers_its_own_events_and_exits(
    program: Callable[[str], Any],
) -> None:
    started = program("""
        import asyncio, multiprocessing, sys, time
        from stageflow import *
        from stageflow.events import BackgroundEventSink, Event, MemoryEventSink, stats
        from stageflow.observability import WideEventEmitter, emit_stage_wide
        from stageflow.pipeline import CircuitBreaker

        class Telling(EventSink):
            async def emit(self, *, type, data):
                print(type, data.get("who"), flush=True)

        def in_child(ctx):
            ctx.emit_event("note", {"who": "child"})
            sys.exit(0)

        def forks(ctx):
            child = multiprocessing.get_context("fork").Process(target=in_child, args=(ctx,))
            began = time.monotonic()
            child.start()
            child.join(20)
            assert child.exitcode == 0, child.exitcode
            ctx.emit_event("note", {"who": "parent"})
            return {"quick": time.monotonic() - began < 4}

        graph = Pipeline("p").with_stage("forks", forks).build(wide_event_emitter=WideEventEmitter(Telling()))
        results = asyncio.run(graph.run())
        assert results.data("forks") == {"quick": True}, results["forks"]
    """)
    status, out, err = started.ended(within=50)
    assert status == 0, err
    assert out == "note child\nnote parent\n"


def test_context_variables_set_by_an_emitter_or_a_sink_are_invisible_to_stages() -> None:
    seen: list[str] = []
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    class Sets(EventSink):
        def try_emit(self, *, type: str, data: Any) -> None:
            who.set("the sink")

    async def looks(ctx: Any) -> None:
        seen.append(who.get())

    pipeline = Pipeline("p").with_stage("a", looks)
    for before, after in ("ab", "bc", "bd"):
        pipeline = pipeline.with_stage(after, looks, dependencies=(before,))
    graph = pipeline.build(emit_stage_wide_events=True, wide_event_emitter=WideEventEmitter(Sets()))
    asyncio.run(graph.run())
    assert seen == ["nobody"] * 4


def test_stage_that_cannot_start_releases_its_permit() -> None:
    limits = Limits(db=1)

    async def reads(ctx: Any) -> None:
        await asyncio.sleep(1)

    child = Pipeline("child").with_stage("reads", reads, limit="db").build(limits=limits)

    async def runs_a_child(ctx: Any) -> None:
        await asyncio.sleep(1)
        assert (await child.run()).ok

    graph = (
        Pipeline("parent")
        .with_stage("a", runs_a_child)
        .with_stage("b", reads, limit="db")
        .build(limits=limits, max_concurrency=1)
    )

    async def main() -> None:
        runs = await asyncio.gather(graph.run(deadline=100), graph.run(deadline=100))
        assert [run.outcome for run in runs] == ["ok", "ok"]

    VirtualClock().run(main())
    assert limits["db"].taken == 0


def test_timeouts_open_a_circuit_and_a_trial_that_times_out_keeps_it_open() -> None:
    breaker, calls = CircuitBreaker(failures=2, reset_after=10), 0

    async def hangs(ctx: Any) -> None:
        nonlocal calls
        calls += 1
        await asyncio.Event().wait()

    graph = Pipeline("p").with_stage("s", hangs, timeout=1, interceptors=(breaker,)).build()

    async def main() -> None:
        for _ in range(5):
            await graph.run()
        assert (calls, breaker.state("p", "s")) == (2, "open")
        await asyncio.sleep(10)
        for _ in range(3):
            await graph.run()
        assert (calls, breaker.state("p", "s")) == (3, "open")

    VirtualClock().run(main())


async def test_two_consumers_of_run_many_share_its_results() -> None:
    graph = Pipeline("p").with_stage("a", works).build()
    contexts: list[Any] = [PipelineContext(), None, PipelineContext(), PipelineContext()]
    async with graph.run_many(contexts, concurrency=2) as runs:

        async def consume() -> int:
            return len([results async for results in runs])

        counts = await asyncio.gather(consume(), consume())
    assert sum(counts) == 4


async def test_value_that_contains_itself_is_truncated() -> None:
    sink = MemoryEventSink()
    rounds: dict[str, Any] = {"name": "root"}
    rounds["children"] = [{"parent": rounds, "n": n} for n in range(50)]

    async def annotates(ctx: Any) -> None:
        ctx.annotate(tree=rounds, many=list(range(100_000)))

    graph = (
        Pipeline("p")
        .with_stage("s", annotates)
        .build(emit_stage_wide_events=True, wide_event_emitter=WideEventEmitter(sink))
    )
    await graph.run()
    (event,) = sink.of_type("stage.wide")
    tree = event["attributes"]["tree"]
    assert tree["name"] == "root"
    assert [child["n"] for child in tree["children"]] == list(range(50))
    assert all(isinstance(child["parent"], str) for child in tree["children"])


def test_stages_due_at_the_same_time_get_one_task_each() -> None:
    most = 0

    async def flaky(ctx: Any) -> StageOutput:
        nonlocal most
        most = max(most, len(asyncio.all_tasks()))
        await asyncio.sleep(0)
        return StageOutput.retry("again", after=1) if ctx.attempt == 1 else StageOutput.ok()

    pipeline = Pipeline("p")
    for number in range(1000):
        pipeline = pipeline.with_stage(f"s{number}", flaky, limit="many")
    results = VirtualClock().run(pipeline.build(limits=Limits(many=1000)).run())
    assert results.ok
    assert {result.attempts for result in results.values()} == {2}
    assert most <= 1002  # one for each, the caller's, and the one that is about to end


def test_background_sink_is_called_by_one_thread() -> None:
    class Watching(EventSink):
        def __init__(self) -> None:
            self.threads: set[int] = set()

        def try_emit(self, *, type: str, data: Any) -> None:
            self.threads.add(threading.get_ident())

    for _ in range(20):
        inner = Watching()
        sink = BackgroundEventSink(inner)
        barrier = threading.Barrier(8)

        def emit(sink: Any = sink, barrier: Any = barrier) -> None:
            barrier.wait(10)
            emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)

        threads = [threading.Thread(target=emit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert asyncio.run(flush())
        assert len(inner.threads) == 1


def test_keyboard_interrupt_in_a_sink_loses_only_that_event() -> None:
    class Interrupted(EventSink):
        seen = 0

        async def emit(self, *, type: str, data: Any) -> None:
            self.seen += 1
            if self.seen == 1:
                raise KeyboardInterrupt

    sink = Interrupted()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        for _ in range(8):
            emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)
        assert await flush()

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert loop.run_until_complete(flush())
    loop.close()
    found = stats().of("Interrupted")
    assert (found.delivered, found.dropped, sink.seen) == (7, {"sink_error": 1}, 8)


async def test_sink_that_flushes_does_not_wait_for_itself() -> None:
    class Flushing(EventSink):
        answers: list[bool]

        async def emit(self, *, type: str, data: Any) -> None:
            self.answers.append(await flush(5))

    sink = Flushing()
    sink.answers = []
    await recorded(sink).run()
    assert await flush()
    assert sink.answers == [True, True, True]


async def test_stage_that_damages_its_context_affects_neither_record_nor_run() -> None:
    async def spoils(ctx: Any) -> dict[str, int]:
        for name in ("_attributes", "_artifacts", "_events_count", "outcome_by", "cancelled"):
            setattr(ctx, name, object())
        return {"n": 1}

    sink = MemoryEventSink()
    graph = (
        Pipeline("p")
        .with_stage("spoils", spoils)
        .with_stage("other", works)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    async with asyncio.timeout(10):
        results = await graph.run()
    assert len(results) == 2
    assert {event["stage_name"] for event in sink.of_type("stage.wide")} == {"spoils", "other"}
    assert len(sink.of_type("pipeline.wide")) == 1


async def test_run_id_with_the_text_none_is_recorded_unchanged() -> None:
    sink = MemoryEventSink()
    await recorded(sink).run(PipelineContext(pipeline_run_id="None"))
    assert [event["event_id"] for _, event in sink.events] == ["None/a/1", "None/b/1", "None"]


def test_journal_creates_its_removed_directory_again(tmp_path: Any) -> None:
    folder = tmp_path / "journal"
    sink = JournalSink(folder)
    result = StageResult("s", StageStatus.OK)
    emit_stage_wide("s", result, PipelineContext(), sink)
    shutil.rmtree(folder)
    until = time.monotonic() + 20
    while not folder.exists():
        emit_stage_wide("s", result, PipelineContext(), sink)
        assert time.monotonic() < until
    assert all(path.read_bytes().endswith(b"}\n") for path in folder.iterdir())
