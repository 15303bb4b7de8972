"""Tests delivery: accepted events arrive, lost events are counted, and sink errors do not reach a run."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest

from stageflow import (
    EventSink,
    Pipeline,
    PipelineContext,
    StageResult,
    StageStatus,
    flush,
    set_event_sink,
)
from stageflow.events import (
    BackgroundEventSink,
    FanoutEventSink,
    MemoryEventSink,
    NoOpEventSink,
    SinkStats,
    clear_event_sink,
    get_event_sink,
    stats,
)
from stageflow.events._channel import CAPACITY
from stageflow.events._delivery import DELIVERY
from stageflow.observability import WideEventEmitter, emit_stage_wide

RESULT = StageResult("s", StageStatus.OK)


def counters(sink: Any) -> SinkStats:
    found = DELIVERY.channel_of(sink).stats()
    assert found.offered == found.accepted + sum(found.rejected.values())
    assert found.accepted == found.delivered + sum(found.dropped.values()) + found.pending
    return found


def emit(sink: Any, count: int = 1) -> None:
    for number in range(count):
        emit_stage_wide(f"s{number}", RESULT, PipelineContext(), sink)


def run_script(script: str, *, timeout: float = 30) -> str:
    """Run a program of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Collecting(EventSink):
    """Takes events asynchronously, and keeps the names of their stages."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        await asyncio.sleep(0)
        self.loops.add(asyncio.get_running_loop())
        assert data is not None
        self.names.append(data.get("stage_name", type))


# ------------------------------------------------------------ the forms a sink may have


async def test_sink_with_emit_receives_every_event_in_order() -> None:
    sink = Collecting()
    emit(sink, 4)
    assert await flush()
    assert sink.names == ["s0", "s1", "s2", "s3"]
    assert counters(sink).delivered == 4


async def test_async_try_emit_receives_every_event() -> None:
    class Sink(EventSink):
        seen = 0

        async def emit(self, *, type: str, data: Any) -> None:
            self.seen += 1

        async def try_emit(self, *, type: str, data: Any) -> None:
            await self.emit(type=type, data=data)

    sink = Sink()
    emit(sink, 4)
    assert await flush()
    assert sink.seen == 4


def test_synchronous_try_emit_is_called_directly() -> None:
    class Sink(EventSink):
        def __init__(self) -> None:
            self.threads: list[int] = []

        def try_emit(self, *, type: str, data: Any) -> None:
            self.threads.append(threading.get_ident())

    sink = Sink()
    emit(sink, 4)
    assert sink.threads == [threading.get_ident()] * 4


async def test_override_that_calls_its_parent_delivers_the_event() -> None:
    class Sink(Collecting):
        offered = 0

        def try_emit(self, *, type: str, data: Any) -> Any:
            self.offered += 1
            return super().try_emit(type=type, data=data)

    sink = Sink()
    emit(sink, 3)
    assert await flush()
    assert (sink.offered, len(sink.names)) == (3, 3)


async def test_override_of_a_built_in_sink_can_call_its_parent() -> None:
    class Plain(MemoryEventSink):
        def try_emit(self, *, type: str, data: Any) -> Any:
            return super().try_emit(type=type.upper(), data=data)

    class Async(MemoryEventSink):
        async def emit(self, *, type: str, data: Any) -> None:
            await super().emit(type=type.upper(), data=data)

    for sink in (Plain(), Async()):
        emit(sink, 2)
        assert await flush()
        assert [type for type, _ in sink.events] == ["STAGE.WIDE"] * 2


async def test_object_without_a_base_class_works_with_either_method() -> None:
    class OnlyEmit:
        __slots__ = ("seen",)

        def __init__(self) -> None:
            self.seen: list[str] = []

        async def emit(self, *, type: str, data: Any) -> None:
            self.seen.append(type)

    class OnlyTryEmit:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def try_emit(self, *, type: str, data: Any) -> None:
            self.seen.append(type)

    for sink in (OnlyEmit(), OnlyTryEmit()):
        emit(sink)
        assert await flush()
        assert sink.seen == ["stage.wide"]


async def test_synchronous_method_can_return_an_awaitable() -> None:
    class Sink:
        seen = 0

        def try_emit(self, *, type: str, data: Any) -> Any:
            async def rest() -> None:
                await asyncio.sleep(0)
                self.seen += 1

            return rest()

    sink = Sink()
    emit(sink, 3)
    assert await flush()
    assert sink.seen == 3
    assert counters(sink).delivered == 3


@pytest.mark.parametrize(
    "use",
    [set_event_sink, WideEventEmitter, FanoutEventSink, BackgroundEventSink],
    ids=lambda use: use.__name__,
)
def test_invalid_sink_is_rejected_with_a_hint(use: Any) -> None:
    with pytest.raises(TypeError) as caught:
        use(object())
    assert str(caught.value) == (
        "object is not an event sink: it implements neither `emit` nor `try_emit`"
        "\n  hint: class MySink(EventSink): async def emit(self, *, type, data): ..."
    )


async def test_sink_method_with_yield_is_rejected() -> None:
    class Asynchronous(EventSink):
        async def emit(self, *, type: str, data: Any) -> Any:  # type: ignore[override]
            yield

    class Synchronous:
        def try_emit(self, *, type: str, data: Any) -> Any:
            yield

    for sink in (Asynchronous(), Synchronous()):
        with pytest.raises(TypeError, match=r"is a generator function.*\n  hint: remove `yield` from"):
            set_event_sink(sink)


def test_global_sink_is_looked_up_at_emission() -> None:
    emitter = WideEventEmitter()
    assert type(get_event_sink()) is NoOpEventSink
    sink = MemoryEventSink()
    emitter.emit_stage_wide("early", RESULT, PipelineContext())
    set_event_sink(sink)
    try:
        emitter.emit_stage_wide("late", RESULT, PipelineContext())
    finally:
        clear_event_sink()
    emitter.emit_stage_wide("after", RESULT, PipelineContext())
    assert [event["stage_name"] for event in sink.of_type("stage.wide")] == ["late"]


def test_each_sink_of_a_fanout_receives_its_own_copy() -> None:
    class Spoiling(EventSink):
        def try_emit(self, *, type: str, data: Any) -> None:
            data["correlation_ids"].clear()
            data.clear()
            raise RuntimeError("and raises")

    first, second = MemoryEventSink(), MemoryEventSink()
    emit(FanoutEventSink(first, Spoiling(), second))
    assert first.events == second.events
    assert first.of_type("stage.wide")[0]["correlation_ids"]["user_id"] is None


# ------------------------------------------------------------ where a sink runs


async def test_events_from_threads_of_a_run_are_delivered_on_the_loop_of_the_run() -> None:
    sink = Collecting()

    def work(ctx: Any) -> None:
        ctx.emit_event("from.thread")

    graph = Pipeline().with_stage("work", work).build(wide_event_emitter=WideEventEmitter(sink))
    await graph.run()
    assert await flush()
    assert sink.loops == {asyncio.get_running_loop()}


def test_events_without_a_loop_are_delivered_on_the_background_loop() -> None:
    sink = Collecting()
    emit(sink, 10)
    assert asyncio.run(flush())
    assert len(sink.names) == 10
    assert len(sink.loops) == 1


async def test_delivery_leaves_no_task_and_no_outbox_behind() -> None:
    before = asyncio.all_tasks()
    sink = Collecting()
    emit(sink, 10)
    assert asyncio.all_tasks() == before
    assert await flush()
    assert asyncio.all_tasks() == before
    assert DELIVERY.channel_of(sink)._outboxes == {}


# ------------------------------------------------------------ all of it arrives


def test_accepted_events_are_delivered_when_asyncio_run_ends_without_a_flush() -> None:
    printed = run_script("""
        import asyncio
        from stageflow import EventSink, PipelineContext, StageResult, StageStatus
        from stageflow.observability import emit_stage_wide
        from stageflow.events import stats

        class Slow(EventSink):
            seen = 0
            async def emit(self, *, type, data):
                await asyncio.sleep(0.001)
                self.seen += 1

        sink = Slow()
        async def main():
            for n in range(500):
                emit_stage_wide(f"s{n}", StageResult("s", StageStatus.OK), PipelineContext(), sink)

        asyncio.run(main())
        print(sink.seen, stats().of("Slow").delivered, stats().of("Slow").dropped)
    """)
    assert printed == "500 500 {}\n"


@pytest.mark.parametrize("how", ["threads", "no loop"])
def test_events_accepted_outside_a_loop_are_delivered_before_exit(how: str) -> None:
    printed = run_script(f"""
        import asyncio, atexit, threading
        from stageflow import EventSink, PipelineContext, StageResult, StageStatus
        from stageflow.observability import emit_stage_wide
        from stageflow.events import stats

        class Slow(EventSink):
            seen = 0
            async def emit(self, *, type, data):
                await asyncio.sleep(0.001)
                self.seen += 1

        sink = Slow()
        def emit(count):
            for n in range(count):
                emit_stage_wide(f"s{{n}}", StageResult("s", StageStatus.OK), PipelineContext(), sink)

        # Plain exit handlers run after the library's own.
        atexit.register(lambda: print(sink.seen, stats().of("Slow").delivered))
        if {how!r} == "threads":
            threads = [threading.Thread(target=emit, args=(125,)) for _ in range(4)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        else:
            emit(500)
    """)
    assert printed == "500 500\n"


@pytest.mark.parametrize("where", ["loop", "threads", "no loop"])
def test_rejected_events_are_counted_exactly(where: str) -> None:
    class Gated(EventSink):
        """Takes nothing until it is let."""

        def __init__(self) -> None:
            self.seen = 0
            self.open = False

        async def emit(self, *, type: str, data: Any) -> None:
            while not self.open:
                await asyncio.sleep(0)
            self.seen += 1

    sink = Gated()

    async def main() -> None:
        if where == "loop":
            emit(sink, 10_000)
        elif where == "threads":
            await asyncio.gather(*(asyncio.to_thread(emit, sink, 2_500) for _ in range(4)))
        else:
            thread = threading.Thread(target=emit, args=(sink, 10_000))
            thread.start()
            await asyncio.to_thread(thread.join)
        seen = counters(sink)
        assert seen.offered == 10_000
        assert seen.rejected == {"queue_full": 10_000 - seen.accepted}
        # One more than fits may be under way already.
        assert CAPACITY <= seen.accepted <= CAPACITY + 1
        sink.open = True
        assert await flush()

    asyncio.run(main())
    seen = counters(sink)
    assert sink.seen == seen.delivered == seen.accepted


def test_runs_cancelled_by_the_end_of_asyncio_run_are_recorded() -> None:
    printed = run_script("""
        import asyncio
        from stageflow import EventSink, Pipeline
        from stageflow.observability import WideEventEmitter

        class Slow(EventSink):
            seen = []
            async def emit(self, *, type, data):
                await asyncio.sleep(0.01)
                self.seen.append((type, data["status"]))

        sink = Slow()
        started = asyncio.Event()
        async def waits(ctx):
            started.set()
            await asyncio.Event().wait()

        graph = Pipeline().with_stage("waits", waits).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink))

        async def main():
            task = asyncio.create_task(graph.run())
            await started.wait()

        asyncio.run(main())
        print(sink.seen)
    """)
    assert printed == "[('stage.wide', 'CANCEL'), ('pipeline.wide', 'FAIL')]\n"


# ------------------------------------------------------------ what is lost is counted


async def test_events_lost_by_a_raising_sink_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raising(EventSink):
        async def emit(self, *, type: str, data: Any) -> None:
            raise ConnectionError("no route to host")

    class RaisingInPlace(EventSink):
        def try_emit(self, *, type: str, data: Any) -> None:
            raise ConnectionError("no route to host")

    for sink in (Raising(), RaisingInPlace()):
        caplog.clear()
        emit(sink, 5)
        assert await flush()
        assert counters(sink).dropped == {"sink_error": 5}
        assert [record.getMessage() for record in caplog.records] == [
            (
                f"event sink {type(sink).__name__}: 1 event was dropped (sink_error): "
                "ConnectionError: no route to host (further occurrences are not logged;"
                " see stageflow.events.stats())"
            )
        ]


async def test_flush_waits_for_a_slow_sink_within_its_timeout() -> None:
    class Slow(EventSink):
        seen = 0

        async def emit(self, *, type: str, data: Any) -> None:
            await asyncio.sleep(0.05)
            self.seen += 1

    sink = Slow()
    emit(sink)
    assert await flush(0.9)
    assert sink.seen == 1


async def test_flush_respects_its_timeout_and_loses_no_event() -> None:
    class Hanging(EventSink):
        def __init__(self) -> None:
            self.let_go = asyncio.Event()
            self.seen = 0

        async def emit(self, *, type: str, data: Any) -> None:
            await self.let_go.wait()
            self.seen += 1

    sink = Hanging()
    emit(sink, 3)
    assert not await flush(0.01)
    assert counters(sink).pending == 3
    sink.let_go.set()
    assert await flush()
    assert sink.seen == 3


def test_hanging_sink_delays_the_exit_by_one_drain_timeout() -> None:
    began = time.monotonic()
    printed = run_script("""
        import asyncio, atexit
        from stageflow import *
        from stageflow.events import BackgroundEventSink, Event, FanoutEventSink, MemoryEventSink
        from stageflow.observability import WideEventEmitter, emit_stage_wide
        from stageflow.events import set_drain_timeout, stats

        class Hanging(EventSink):
            async def emit(self, *, type, data):
                while True:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        pass

        set_drain_timeout(0.5)
        on_loop, beside, healthy = Hanging(), BackgroundEventSink(Hanging()), MemoryEventSink()
        sink = FanoutEventSink(on_loop, beside, healthy)
        async def main():
            for n in range(3):
                emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)

        atexit.register(lambda: print(
            stats().of("Hanging").dropped, stats().of("BackgroundEventSink").dropped,
            len(healthy.events)))
        asyncio.run(main())
    """)
    took = time.monotonic() - began
    assert printed == "{'drain_timeout': 3} {'drain_timeout': 3} 3\n"
    # The bound is 0.5 s; the rest is the start of an interpreter on a busy machine.
    assert took < 10


def test_errors_during_shutdown_are_counted_as_sink_closed() -> None:
    printed = run_script("""
        import asyncio
        from stageflow import EventSink, PipelineContext, StageResult, StageStatus
        from stageflow.observability import emit_stage_wide
        from stageflow.events import stats

        class Client(EventSink):
            async def connection(self):
                await asyncio.Event().wait()
            async def emit(self, *, type, data):
                await asyncio.sleep(0.01)
                if self.task.done():
                    raise ConnectionError("closed")

        async def main():
            sink = Client()
            sink.task = asyncio.create_task(sink.connection())
            emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)
            return sink

        sink = asyncio.run(main())
        print(stats().of("Client").dropped)
    """)
    assert printed == "{'sink_closed': 1}\n"


def test_events_on_a_loop_closed_without_a_drain_are_counted() -> None:
    sink = Collecting()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        emit(sink, 3)

    loop.run_until_complete(main())
    loop.close()
    stats()
    found = counters(sink)
    assert found.pending == 0
    assert found.delivered <= 1  # uvloop completes the first delivery before it stops
    assert found.dropped == {"loop_closed": 3 - found.delivered}


def test_open_loop_is_drained_at_exit() -> None:
    printed = run_script("""
        import asyncio, atexit
        from stageflow import EventSink, PipelineContext, StageResult, StageStatus
        from stageflow.observability import emit_stage_wide

        class Sink(EventSink):
            seen = 0
            async def emit(self, *, type, data):
                await asyncio.sleep(0.001)
                self.seen += 1

        sink = Sink()
        async def main():
            for n in range(50):
                emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        atexit.register(lambda: (print(sink.seen), loop.close()))
    """)
    assert printed == "50\n"


# ------------------------------------------------------------ what a sink costs a run


async def test_blocking_sink_is_logged_once_and_its_time_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = threading.Event()

    class Blocking(EventSink):
        async def emit(self, *, type: str, data: Any) -> None:
            released.wait(0.06)

    sink = Blocking()
    emit(sink, 2)
    assert await flush()
    assert counters(sink).blocked_ms >= 120
    (record,) = [record for record in caplog.records if "blocked its caller" in record.getMessage()]
    assert record.getMessage().startswith("event sink Blocking: blocked its caller for ")


async def test_background_sink_does_not_block_the_event_loop() -> None:
    inside = threading.Event()
    let_go = threading.Event()

    class Blocking(EventSink):
        def __init__(self) -> None:
            self.seen = 0

        def try_emit(self, *, type: str, data: Any) -> None:
            inside.set()
            let_go.wait(10)
            self.seen += 1

    inner = Blocking()
    sink = BackgroundEventSink(inner)
    emit(sink, 3)
    await asyncio.to_thread(inside.wait, 10)
    assert counters(sink).pending == 3  # it is blocked, and this coroutine is not
    let_go.set()
    assert await flush()
    assert inner.seen == 3
    assert counters(sink).delivered == 3


async def test_delivery_to_a_sink_that_never_waits_yields_to_the_event_loop() -> None:
    class NeverWaits(EventSink):
        seen = 0

        async def emit(self, *, type: str, data: Any) -> None:
            self.seen += 1

    sink, events = NeverWaits(), 2_000
    for _ in range(events):
        emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)
    steps: list[int] = []
    while sink.seen < events:
        await asyncio.sleep(0)
        steps.append(sink.seen)
    at_once = max(after - before for before, after in itertools.pairwise([0, *steps]))
    assert at_once <= 100


def test_forked_child_delivers_no_events_of_its_parent() -> None:
    printed = run_script("""
        import asyncio, os, sys
        from stageflow import EventSink, PipelineContext, StageResult, StageStatus
        from stageflow.observability import emit_stage_wide
        from stageflow.events import stats

        class Telling(EventSink):
            async def emit(self, *, type, data):
                who = "parent" if os.getpid() == parent else "child"
                os.write(1, f"{data['stage_name']} by {who}\\n".encode())

        parent, sink = os.getpid(), Telling()
        def emit(name):
            emit_stage_wide(name, StageResult("s", StageStatus.OK), PipelineContext(), sink)

        async def main():
            emit("before")
            if os.fork() == 0:
                asyncio._set_running_loop(None)
                assert stats().sinks == [], stats()
                emit("in child")
                asyncio.new_event_loop().run_until_complete(flush_and_leave())
            os.wait()

        async def flush_and_leave():
            from stageflow import flush
            await flush()
            os._exit(0)

        asyncio.run(main())
    """)
    assert sorted(printed.splitlines()) == ["before by parent", "in child by child"]


def test_counters_are_consistent_under_threads() -> None:
    sink = Collecting()
    fanout = FanoutEventSink(sink, MemoryEventSink())
    stop = threading.Event()

    def watch() -> int:
        looks = 0
        while not stop.is_set():
            counters(sink), counters(fanout)
            looks += 1
        return looks

    async def main() -> int:
        watching = asyncio.create_task(asyncio.to_thread(watch))
        await asyncio.gather(*(asyncio.to_thread(emit, fanout, 500) for _ in range(4)))
        assert await flush()
        stop.set()
        return await watching

    assert asyncio.run(main()) > 0
    assert counters(fanout).delivered == counters(sink).offered == 2000


def test_journal_belongs_to_the_process_that_opened_it(tmp_path: Any) -> None:
    from stageflow import JournalSink

    journal = JournalSink(tmp_path / "journal")
    emit(journal)
    child = os.fork()
    if child == 0:
        emit(journal, 2)
        os._exit(0)
    os.waitpid(child, 0)
    emit(journal)
    lines = {
        path.name.split("-")[1]: path.read_text().count("\n") for path in (tmp_path / "journal").iterdir()
    }
    assert lines == {f"p{os.getpid()}": 2, f"p{child}": 2}


async def test_background_sink_forwards_manually_emitted_events() -> None:
    inner = MemoryEventSink()
    sink = BackgroundEventSink(inner)
    sink.try_emit(type="a", data=None)
    await sink.emit(type="b", data=None)
    assert await flush()
    assert [type for type, _ in inner.events] == ["a", "b"]
    assert DELIVERY.channel_of(sink).stats().delivered == 2


async def test_override_in_a_subclass_of_a_background_sink_is_called() -> None:
    class Redacting(BackgroundEventSink):
        def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Any:
            return super().try_emit(type=type, data={"redacted": True})

    class Renaming(BackgroundEventSink):
        async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
            await super().emit(type=type.upper(), data=data)

    async def stage(ctx: Any) -> None: ...

    for kind, expected in (
        (Redacting, [("pipeline.wide", True)]),
        (Renaming, [("PIPELINE.WIDE", False)]),
    ):
        inner = MemoryEventSink()
        emitter = WideEventEmitter(kind(inner))
        graph = (
            Pipeline("p")
            .with_stage("s", stage)
            .build(emit_pipeline_wide_event=True, wide_event_emitter=emitter)
        )
        await graph.run()
        async with asyncio.timeout(20):
            while not inner.events:  # `emit` runs in the background, and forwards from there
                await flush()
        assert [(type, data == {"redacted": True}) for type, data in inner.events] == expected
