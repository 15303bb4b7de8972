"""What the application does while the record is written: raise, log, signal, fork. The law stands."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stageflow import (
    CircuitBreaker,
    EventSink,
    FanoutEventSink,
    Limits,
    MemoryEventSink,
    Pipeline,
    PipelineContext,
    WideEventEmitter,
    flush,
    stats,
)
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


async def test_a_sink_whose_error_has_no_text_costs_only_its_own_events() -> None:
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
async def test_a_log_that_raises_neither_hangs_a_run_nor_loses_its_record() -> None:
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


def test_a_signal_handler_may_emit_while_its_thread_is_emitting(
    program: Callable[[str], Any],
) -> None:
    started = program("""
        import asyncio, signal, sys
        from stageflow import *

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
            for number in range(20_000):
                emit_stage_wide(f"loop{number}", result, context, sink)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert await flush()

        asyncio.run(main())
        found = stats().of("Slow")
        assert handled > 0
        assert found.accepted == found.delivered == slow.seen, found
        assert found.offered == 20_000 + handled, (found, handled)
        print("done", 20_000 + handled)
    """)
    status, out, err = started.ended(within=50)
    assert status == 0, err
    assert len(started.events()) == int(out.split()[1])


def test_a_child_forked_in_a_plain_stage_delivers_its_own_events_and_exits(
    program: Callable[[str], Any],
) -> None:
    started = program("""
        import asyncio, multiprocessing, sys, time
        from stageflow import *

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


def test_what_an_emitter_or_a_sink_sets_in_context_variables_no_stage_sees() -> None:
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


def test_a_stage_that_cannot_start_keeps_no_place_of_a_limit_from_others() -> None:
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


def test_time_outs_open_a_circuit_and_a_trial_that_times_out_keeps_it_open() -> None:
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


async def test_two_consumers_of_many_runs_are_both_served_and_none_is_a_context() -> None:
    graph = Pipeline("p").with_stage("a", works).build()
    contexts: list[Any] = [PipelineContext(), None, PipelineContext(), PipelineContext()]
    async with graph.run_many(contexts, concurrency=2) as runs:

        async def consume() -> int:
            return len([results async for results in runs])

        counts = await asyncio.gather(consume(), consume())
    assert sum(counts) == 4


async def test_what_contains_itself_is_cut_where_it_does() -> None:
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
