"""Stages that stream, their readers inside and outside the run, and the record of streams."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from oracle import check_record, of_type, recorded, stage_wide
from typer.testing import CliRunner

import stageflow
from stageflow import (
    Journal,
    JournalSink,
    Limits,
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    StageContext,
    StageGraph,
    configure,
)
from stageflow.cli._app import app
from stageflow.errors import (
    InputError,
    InvalidArgumentError,
    MissingInputError,
    PipelineValidationError,
    StageflowError,
    StageOutputError,
    StageTimeoutError,
)
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.pipeline import Flow, Proceed, StageCall
from stageflow.stages import Chunk, StageOutput, StageStatus, StreamRef
from stageflow.store import EventStore
from stageflow.testing import VirtualClock

OK, SKIP, RETRY, FAIL, CANCEL = StageStatus

pytestmark = pytest.mark.timeout(60)


def words(*given: str, every: float = 1.0) -> Callable[[StageContext], AsyncIterator[str]]:
    """Return a stage that sends a word per second."""

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        for word in given:
            await asyncio.sleep(every)
            yield word

    return write


async def collects(ctx: StageContext) -> dict[str, Any]:
    """Read the stream of `write` to its end."""
    return {"read": [chunk async for chunk in ctx.inputs.stream("write")]}


async def endless(ctx: StageContext) -> AsyncIterator[int]:
    number = 0
    while True:
        await asyncio.sleep(0)
        yield number
        number += 1


def reading(pipeline: Pipeline, sink: MemoryEventSink, **options: Any) -> tuple[list[Chunk], PipelineResults]:
    """Run on a virtual clock, read all chunks, and check the record."""
    graph = recorded(pipeline, sink, **{k: v for k, v in options.items() if k not in STREAM_OPTIONS})
    arguments = {k: v for k, v in options.items() if k in STREAM_OPTIONS}

    async def main() -> tuple[list[Chunk], PipelineResults]:
        async with graph.stream(**arguments) as run:
            chunks = [chunk async for chunk in run]
        results = await run.results()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return chunks, results

    chunks, results = VirtualClock().run(main())
    check(sink, results)
    return chunks, results


STREAM_OPTIONS = {"stages", "buffer", "on_abandon", "deadline"}


def run(pipeline: Pipeline, sink: MemoryEventSink, **options: Any) -> PipelineResults:
    graph = recorded(pipeline, sink, **options)

    async def main() -> PipelineResults:
        results = await graph.run()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    results = VirtualClock().run(main())
    check(sink, results)
    return results


def check(sink: MemoryEventSink, results: PipelineResults) -> None:
    event = check_record(sink.events, list(results))
    assert event["outcome"] == results.outcome


def values(chunks: list[Chunk]) -> list[Any]:
    return [chunk.value for chunk in chunks]


# ---------------------------------------------------------------- chunks outside the run


def test_generator_streams_its_values_and_its_value_is_the_text(sink: MemoryEventSink) -> None:
    chunks, results = reading(Pipeline("p").with_stage("write", words("a", "b", "c")), sink)
    assert [(chunk.stage, chunk.number, chunk.value) for chunk in chunks] == [
        ("write", 0, "a"),
        ("write", 1, "b"),
        ("write", 2, "c"),
    ]
    assert results.data("write") == {"text": "abc"}
    assert results.value("write") == "abc"
    assert stage_wide(sink.events, "write")["stream"] == {
        "chunks": 3,
        "bytes": 3,
        "first_chunk_ms": 1000.0,
        "blocked_ms": 0.0,
        "abandoned": False,
    }


@pytest.mark.parametrize(
    ("sent", "data", "size"),
    [
        (["ä", "b"], {"text": "äb"}, 3),
        ([b"a", b"bc"], {"bytes": b"abc"}, 3),
        ([1, 2], {"chunks": [1, 2]}, None),
        (["a", b"b"], {"chunks": ["a", b"b"]}, 2),
        ([{"a": 1}], {"chunks": [{"a": 1}]}, None),
        (["a", None], {"chunks": ["a", None]}, None),
        ([], {"chunks": []}, 0),
    ],
)
def test_collected_value_depends_on_the_types_of_the_chunks(
    sink: MemoryEventSink, sent: list[Any], data: dict[str, Any], size: int | None
) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[Any]:
        for each in sent:
            yield each

    chunks, results = reading(Pipeline("p").with_stage("write", write), sink)
    assert values(chunks) == sent
    assert results.data("write") == data
    event = stage_wide(sink.events, "write")
    assert (event["stream"]["chunks"], event["stream"]["bytes"]) == (len(sent), size)


def test_many_short_texts_are_collected(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        for number in range(10_000):
            yield str(number % 10)

    _, results = reading(Pipeline("p").with_stage("write", write), sink)
    assert results.value("write") == "0123456789" * 1000


def test_collected_value_has_a_maximum_size(sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stageflow.pipeline._collected.MAX_COLLECTED", 5)
    chunks, results = reading(Pipeline("p").with_stage("write", words("abc", "de", "f", "g")), sink)
    assert "".join(values(chunks)) == "abcdefg"
    assert results.data("write") == {"text": "abcde", "truncated": True}
    assert stage_wide(sink.events, "write")["stream"]["chunks"] == 4


def test_output_that_a_generator_yields_last_replaces_the_collected_value(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str | StageOutput]:
        yield "a"
        yield StageOutput.ok(answer=42)

    chunks, results = reading(Pipeline("p").with_stage("write", write), sink)
    assert (values(chunks), results.data("write")) == (["a"], {"answer": 42})


@pytest.mark.parametrize(
    ("output", "status"), [(StageOutput.fail("no"), FAIL), (StageOutput.stop("off topic"), CANCEL)]
)
def test_output_that_a_generator_yields_last_determines_the_status(
    sink: MemoryEventSink, output: StageOutput, status: StageStatus
) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str | StageOutput]:
        yield "a"
        yield output

    chunks, results = reading(Pipeline("p").with_stage("write", write), sink)
    assert (values(chunks), results["write"].status) == (["a"], status)


def test_value_after_an_output_is_an_error(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str | StageOutput]:
        yield StageOutput.ok(answer=42)
        yield "a"

    def in_thread(ctx: StageContext) -> Iterator[str | StageOutput]:
        yield StageOutput.ok(answer=42)
        yield "a"

    for stage in (write, in_thread):
        _, results = reading(Pipeline("p").with_stage("write", stage), MemoryEventSink())
        assert isinstance(results["write"].exception, StageOutputError)


def test_value_that_a_generator_returns_is_an_error(sink: MemoryEventSink) -> None:
    def write(ctx: StageContext) -> Iterator[str]:
        yield "a"
        return {"n": 1}

    _, results = reading(Pipeline("p").with_stage("write", write), sink)
    assert isinstance(results["write"].exception, StageOutputError)
    assert "it returned one of type dict" in str(results["write"].exception)


async def test_stage_that_is_not_a_generator_sends_chunks(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> None:
        await ctx.send("a")
        await ctx.send("b")

    async def returns(ctx: StageContext) -> dict[str, int]:
        await ctx.send("c")
        return {"n": 1}

    graph = recorded(Pipeline("p").with_stage("write", write).with_stage("returns", returns), sink)
    async with graph.stream(stages=("write", "returns")) as run:
        chunks = [(chunk.stage, chunk.value) async for chunk in run]
    results = await run.results()
    assert sorted(chunks) == [("returns", "c"), ("write", "a"), ("write", "b")]
    assert results.data("write") == {"text": "ab"}
    assert results.data("returns") == {"n": 1}
    check(sink, results)


async def test_chunks_are_collected_and_recorded_without_any_reader(sink: MemoryEventSink) -> None:
    async def sends(ctx: StageContext) -> None:
        await ctx.send(b"x" * 10)

    graph = recorded(Pipeline("p").with_stage("write", words("a", every=0)).with_stage("sends", sends), sink)
    results = await graph.run()
    assert (results.value("write"), results.value("sends")) == ("a", b"x" * 10)
    assert stage_wide(sink.events, "sends")["stream"]["bytes"] == 10
    check(sink, results)


def test_event_of_a_stage_without_a_stream_has_none(sink: MemoryEventSink) -> None:
    run(Pipeline("p").with_stage("plain", lambda ctx: None), sink)
    assert stage_wide(sink.events, "plain")["stream"] is None


async def test_items_of_a_map_send_chunks_to_the_stream_of_the_map() -> None:
    async def each(ctx: StageContext, item: int) -> int:
        await ctx.send(f"{item} ")
        return item

    pipeline = (
        Pipeline("p")
        .with_stage("list", lambda ctx: {"n": [1, 2, 3]})
        .with_map("map", each, over=("list", "n"))
    )
    async with pipeline.build().stream(stages="map") as run:
        chunks = [chunk.value async for chunk in run]
    assert chunks == ["1 ", "2 ", "3 "]
    assert (await run.results()).value("map") == [1, 2, 3]


def test_only_the_selected_stages_are_read(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("one", words("a")).with_stage("two", words(*"b" * 100, every=0))
    chunks, results = reading(pipeline, sink, stages="one", buffer=1)
    assert values(chunks) == ["a"]
    assert len(results.value("two")) == 100


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"stages": "writ"}, "'writ'"),
        ({"buffer": 0}, "buffer"),
        ({"buffer": True}, "buffer"),
        ({"on_abandon": "stop"}, "on_abandon"),
        ({"deadline": 0}, "deadline"),
        ({"ctx": {"question": "?"}}, "PipelineContext"),
    ],
)
def test_invalid_arguments_of_stream_are_errors(arguments: Any, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        Pipeline("p").with_stage("write", words("a")).build().stream(**arguments)


def test_stream_of_a_pipeline_without_generators_needs_names() -> None:
    with pytest.raises(InvalidArgumentError, match="no stage of pipeline 'p' is a generator function"):
        Pipeline("p").with_stage("sends", lambda ctx: None).build().stream()


async def test_chunk_is_sent_although_the_stage_forgets_to_await() -> None:
    async def forgets(ctx: StageContext) -> None:
        ctx.send("a")

    assert (await Pipeline("p").with_stage("sends", forgets).run()).value("sends") == "a"


async def test_stream_must_be_entered_once() -> None:
    graph = Pipeline("p").with_stage("write", words("a", every=0)).build()
    with pytest.raises(RuntimeError, match="context manager"):
        async for _ in graph.stream():
            pass
    async with graph.stream() as run:
        with pytest.raises(RuntimeError, match="already entered"):
            await run.__aenter__()


async def test_block_that_is_left_immediately_has_a_record(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words("a")), sink)
    async with graph.stream() as run:
        pass
    assert [chunk async for chunk in run] == []
    results = await run.results()
    assert results.outcome == "cancelled"
    check(sink, results)


async def test_block_that_raises_immediately_has_a_record(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words("a")), sink)
    with pytest.raises(ValueError, match="no client"):
        async with graph.stream():
            raise ValueError("no client")
    assert of_type(sink.events, "pipeline.wide")[0]["outcome"] == "cancelled"


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_reader_that_is_cancelled_while_it_enters_leaves_no_task(
    sink: MemoryEventSink, after: int
) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words("a")), sink)

    async def reads() -> None:
        async with graph.stream() as run:
            async for _ in run:
                pass

    task = asyncio.create_task(reads())
    for _ in range(after):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    outcomes = [event["outcome"] for event in of_type(sink.events, "pipeline.wide")]
    assert outcomes == ([] if after == 0 else ["cancelled"])


def test_iteration_ends_when_the_selected_stages_have_ended(sink: MemoryEventSink) -> None:
    async def slow(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    graph = recorded(
        Pipeline("p").with_stage("write", words("a")).with_stage("save", slow, dependencies=("write",)), sink
    )

    async def main() -> tuple[float, PipelineResults]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with graph.stream() as run:
            async for _ in run:
                pass
            took = loop.time() - began
        return took, await run.results()

    took, results = VirtualClock().run(main())
    assert took == pytest.approx(1)
    assert results.outcome == "ok"  # leaving the block waits for the rest of the run


def test_results_discard_the_remaining_chunks(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words(*"abcdefgh", every=0)), sink)

    async def main() -> PipelineResults:
        async with graph.stream(buffer=1) as run:
            assert (await anext(run)).value == "a"
            results = await run.results()
            assert [chunk async for chunk in run] == []
        return results

    results = VirtualClock().run(main())
    assert results.value("write") == "abcdefgh"
    assert not stage_wide(sink.events, "write")["stream"]["abandoned"]


async def test_tasks_that_read_concurrently_share_the_chunks() -> None:
    async def workers(ctx: StageContext) -> dict[str, Any]:
        stream = ctx.inputs.stream("write")

        async def work() -> list[str]:
            return [chunk async for chunk in stream]

        read = await asyncio.gather(work(), work(), work())
        return {"read": sorted(chunk for chunks in read for chunk in chunks)}

    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"abcdefgh", every=0.001))
        .with_stage("work", workers, streams=("write",))
    )
    assert (await pipeline.run()).data("work") == {"read": list("abcdefgh")}


async def test_cancelled_read_loses_nothing() -> None:
    release = asyncio.Event()

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        await release.wait()
        yield "a"

    async with Pipeline("p").with_stage("write", write).build().stream() as run:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(run), 0.01)
        release.set()
        assert [chunk.value async for chunk in run] == ["a"]


def test_reads_that_are_cancelled_leave_nothing_behind() -> None:
    async def silent(ctx: StageContext) -> AsyncIterator[str]:
        await asyncio.sleep(10_000)
        yield "a"

    async def main() -> int:
        before = futures()
        async with Pipeline("p").with_stage("write", silent).build().stream() as run:
            for _ in range(1000):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(anext(run), 1)
            return futures() - before

    def futures() -> int:
        gc.collect()
        return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())

    assert VirtualClock().run(main()) < 100


# ---------------------------------------------------------------- leaving early


def left_early(graph: StageGraph, **options: Any) -> PipelineResults:
    async def main() -> PipelineResults:
        async with graph.stream(**options) as run:
            async for chunk in run:
                if chunk.number == 1:
                    break
        results = await run.results()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    return VirtualClock().run(main())


def test_leaving_early_cancels_the_run(sink: MemoryEventSink) -> None:
    closed = []

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        try:
            async for word in words(*"abcdef")(ctx):
                yield word
        finally:
            await asyncio.sleep(0)
            closed.append(ctx.cancelled)

    results = left_early(recorded(Pipeline("p").with_stage("write", write), sink))
    assert (results.outcome, results.reason) == ("cancelled", "the reader of the stream left")
    assert results["write"].status is CANCEL
    assert closed == [True]
    assert stage_wide(sink.events, "write")["stream"] == {
        "chunks": 2,
        "bytes": 2,
        "first_chunk_ms": 1000.0,
        "blocked_ms": 0.0,
        "abandoned": True,
    }
    check(sink, results)


def test_run_can_continue_without_its_reader(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words(*"abcdef" * 50)), sink)
    results = left_early(graph, on_abandon="finish", buffer=2)
    assert (results.outcome, results.value("write")) == ("ok", "abcdef" * 50)
    assert stage_wide(sink.events, "write")["stream"]["abandoned"]
    check(sink, results)


def test_streams_that_start_after_the_reader_left_are_abandoned(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b", "c"))
        .with_stage("ended", words("d", every=0))
        .with_stage("later", words("e"), dependencies=("write",))
        .with_stage("other", words("f"), dependencies=("write",))
    )
    selected = ("write", "ended", "later")
    results = left_early(recorded(pipeline, sink), on_abandon="finish", stages=selected)
    check(sink, results)
    abandoned = {name: stage_wide(sink.events, name)["stream"]["abandoned"] for name in results}
    assert abandoned == {"write": True, "ended": False, "later": True, "other": False}


def test_streams_that_start_after_the_reader_has_asked_for_the_results_are_not_abandoned(
    sink: MemoryEventSink,
) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b", "c"))
        .with_stage("later", words("e"), dependencies=("write",))
    )
    graph = recorded(pipeline, sink)

    async def main() -> PipelineResults:
        async with graph.stream() as run:
            await anext(run)
            return await run.results()

    check(sink, VirtualClock().run(main()))
    for name in ("write", "later"):
        assert not stage_wide(sink.events, name)["stream"]["abandoned"]


def test_exception_in_the_block_cancels_the_run_and_propagates(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words("a", "b")), sink)

    async def main() -> None:
        async with graph.stream() as run:
            async for _ in run:
                raise ValueError("client went away")

    with pytest.raises(ValueError, match="client went away"):
        VirtualClock().run(main())
    assert of_type(sink.events, "pipeline.wide")[0]["outcome"] == "cancelled"


def test_cancelled_reader_cancels_the_run_and_waits_for_its_record(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(1)  # cleanup that takes time

    graph = recorded(Pipeline("p").with_stage("write", write), sink)

    async def reads() -> None:
        async with graph.stream() as run:
            async for _ in run:
                pass

    async def main() -> None:
        task = asyncio.create_task(reads())
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert of_type(sink.events, "pipeline.wide")[0]["outcome"] == "cancelled"

    VirtualClock().run(main())


def test_abandoned_reader_does_not_block_the_stages(sink: MemoryEventSink) -> None:
    """A reader that waits in its block with full buffers, and then leaves, leaves no task behind."""
    graph = recorded(Pipeline("p").with_stage("write", endless), sink)

    async def main() -> PipelineResults:
        async with graph.stream(buffer=3) as run:
            await asyncio.sleep(100)
        return await run.results()

    results = VirtualClock().run(main())
    assert results.outcome == "cancelled"
    stream = stage_wide(sink.events, "write")["stream"]
    assert (stream["chunks"], stream["blocked_ms"]) == (3, pytest.approx(100_000, rel=0.01))


# ---------------------------------------------------------------- buffers


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_buffer_never_exceeds_its_limit_and_a_slow_reader_blocks_the_stage(
    sink: MemoryEventSink, limit: int
) -> None:
    ahead = []
    sent = 0

    async def write(ctx: StageContext) -> AsyncIterator[int]:
        nonlocal sent
        for number in range(20):
            yield number
            sent += 1

    async def main() -> None:
        async with recorded(Pipeline("p").with_stage("write", write), sink).stream(buffer=limit) as run:
            read = 0
            async for _ in run:
                read += 1
                ahead.append(sent - read)
                await asyncio.sleep(1)

    VirtualClock().run(main())
    assert max(ahead) <= limit
    blocked = stage_wide(sink.events, "write")["stream"]["blocked_ms"]
    assert blocked == pytest.approx((20 - limit - 1) * 1000, abs=1001)


def test_buffer_of_the_reader_is_shared_by_the_stages_that_it_reads(sink: MemoryEventSink) -> None:
    async def counts(ctx: StageContext) -> AsyncIterator[int]:
        for number in range(50):
            yield number

    pipeline = Pipeline("p").with_stage("one", counts).with_stage("two", counts)

    async def main() -> int:
        most = 0
        async with recorded(pipeline, sink).stream(buffer=4) as run:
            assert run._buffer is not None
            async for _ in run:
                most = max(most, len(run._buffer) + 1)
                await asyncio.sleep(0)
        return most

    assert VirtualClock().run(main()) == 4


def test_buffer_of_an_edge_can_be_unlimited_up_to_the_maximum_size(
    sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(ctx: StageContext) -> None:
        await asyncio.sleep(100)

    def pipeline(buffer: Any) -> Pipeline:
        return (
            Pipeline("p")
            .with_stage("write", words(*"abcdefgh"))
            .with_stage("late", late)
            .with_stage(
                "read", collects, dependencies=("late",), streams=(StreamRef("write").chunks(buffer=buffer),)
            )
        )

    results = run(pipeline("collect"), sink)
    assert results.data("read")["read"] == list("abcdefgh")
    assert results["write"].ended_ns < results["late"].ended_ns
    assert stage_wide(sink.events, "write")["stream"]["blocked_ms"] == 0

    blocked = run(pipeline(2), MemoryEventSink())
    assert blocked["write"].ended_ns > blocked["late"].ended_ns

    monkeypatch.setattr("stageflow.pipeline._buffer.MAX_COLLECTED", 5)
    failed = run(pipeline("collect"), MemoryEventSink())
    assert isinstance(failed["write"].exception, StageOutputError)
    assert "waiting for stage 'read'" in str(failed["write"].exception)


# ---------------------------------------------------------------- readers inside the run


def test_reader_starts_with_the_first_chunk_and_other_dependents_at_the_end(sink: MemoryEventSink) -> None:
    began: dict[str, float] = {}

    async def reader(ctx: StageContext) -> dict[str, Any]:
        began["reader"] = asyncio.get_running_loop().time()
        return await collects(ctx)

    async def after(ctx: StageContext) -> dict[str, Any]:
        began["after"] = asyncio.get_running_loop().time()
        return {"length": len(ctx.inputs.get_from("write", "text"))}

    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b", "c"))
        .with_stage("reader", reader, streams=("write",))
        .with_stage("after", after, dependencies=("write",))
    )
    results = run(pipeline, sink)
    assert results.data("reader") == {"read": ["a", "b", "c"]}
    assert results.data("after") == {"length": 3}
    assert began["after"] - began["reader"] == pytest.approx(2)


def test_chain_of_streams(sink: MemoryEventSink) -> None:
    async def shout(ctx: StageContext) -> AsyncIterator[str]:
        async for word in ctx.inputs.stream("write"):
            yield word.upper()

    def speak(ctx: StageContext) -> Iterator[bytes]:  # in a thread
        for word in ctx.inputs.stream("shout"):
            yield word.encode()

    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b", "c"))
        .with_stage("shout", shout, streams=("write",))
        .with_stage("speak", speak, streams=("shout",))
    )
    graph = recorded(pipeline, sink)

    async def main() -> list[Any]:
        async with graph.stream(stages="speak") as run:
            return [chunk.value async for chunk in run]

    assert asyncio.run(main()) == [b"A", b"B", b"C"]


def test_critical_path_counts_overlapping_stages_once(sink: MemoryEventSink) -> None:
    """Each stage counts until the next one was ready, which is when the stage sent its first chunk."""

    async def slowly(ctx: StageContext) -> None:
        async for _ in ctx.inputs.stream("write"):
            await asyncio.sleep(10)

    pipeline = (
        Pipeline("p")
        .with_stage("before", words("x", every=2))
        .with_stage("write", words("a", "b", "c"), dependencies=("before",))
        .with_stage("read", slowly, streams=("write",))
        .with_stage("after", words("x"), dependencies=("read",))
    )
    results = run(pipeline, sink)
    (event,) = of_type(sink.events, "pipeline.wide")
    assert event["critical_path"] == ["before", "write", "read", "after"]
    assert event["critical_path_ms"] == results.duration_ms == 34_000


def test_critical_path_contains_the_dependency_that_the_reader_waited_for(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"abcdefgh"))
        .with_stage("prepare", words("x", every=4))
        .with_stage("read", collects, streams=("write",), dependencies=("prepare",))
        .with_stage("after", words("x"), dependencies=("read",))
    )
    results = run(pipeline, sink)
    (event,) = of_type(sink.events, "pipeline.wide")
    assert event["critical_path"] == ["prepare", "read", "after"]
    assert event["critical_path_ms"] == results.duration_ms == 9000


def test_several_readers_receive_all_chunks(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("write", words(*"abcdefgh", every=0))
    for number in range(3):
        pipeline = pipeline.with_stage(
            f"read{number}", collects, streams=(StreamRef("write").chunks(buffer=number + 1),)
        )
    chunks, results = reading(pipeline, sink)
    assert values(chunks) == list("abcdefgh")
    assert all(results.data(f"read{number}")["read"] == list("abcdefgh") for number in range(3))


def test_stream_of_a_stage_that_sends_nothing_is_empty(sink: MemoryEventSink) -> None:
    async def nothing(ctx: StageContext) -> None: ...

    pipeline = (
        Pipeline("p")
        .with_stage("write", nothing, when=lambda ctx: False)
        .with_stage("read", collects, streams=("write",))
    )
    results = run(pipeline, sink)
    assert results["write"].status is SKIP
    assert results.data("read") == {"read": []}


def test_reader_that_stops_early_does_not_block_the_stage(sink: MemoryEventSink) -> None:
    async def first(ctx: StageContext) -> dict[str, Any]:
        return {"first": await anext(ctx.inputs.stream("write"))}

    async def closes(ctx: StageContext) -> dict[str, Any]:
        stream = ctx.inputs.stream("write")
        first = await anext(stream)
        await stream.aclose()
        assert [chunk async for chunk in stream] == []
        await asyncio.sleep(100)
        return {"first": first}

    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"abcdef" * 50, every=0.01))
        .with_stage("first", first, streams=("write",))
        .with_stage("closes", closes, streams=(StreamRef("write").chunks(buffer=1),))
    )
    results = run(pipeline, sink)
    assert results.outcome == "ok"
    assert results.data("first") == results.data("closes") == {"first": "a"}
    assert len(results.value("write")) == 300
    assert results["write"].duration_ms < 10_000


def test_skipped_reader_does_not_block_the_stage(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"abcdefgh", every=0))
        .with_stage("read", collects, streams=(StreamRef("write").chunks(buffer=1),), when=lambda ctx: False)
    )
    results = run(pipeline, sink)
    assert (results["read"].status, results.value("write")) == (SKIP, "abcdefgh")


def test_reading_the_output_of_a_running_stage_is_an_error_with_a_hint(sink: MemoryEventSink) -> None:
    async def reads(ctx: StageContext) -> None:
        with pytest.raises(MissingInputError, match=r"ctx.inputs.stream\('write'\)"):
            ctx.inputs.get_from("write", "text")
        with pytest.raises(InputError, match="does not read the stream of 'other'"):
            ctx.inputs.stream("other")

    pipeline = (
        Pipeline("p").with_stage("write", words("a", "b")).with_stage("read", reads, streams=("write",))
    )
    assert run(pipeline, sink).outcome == "ok"


def test_parameters_are_not_read_from_stages_whose_stream_is_read(sink: MemoryEventSink) -> None:
    async def read(ctx: StageContext, tone: str) -> dict[str, str]:
        return {"said": "".join([tone + word async for word in ctx.inputs.stream("write")])}

    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b"))
        .with_stage("tone", lambda ctx: {"tone": "!"})
        .with_stage("read", read, dependencies=("tone",), streams=("write",))
    )
    assert run(pipeline, sink).data("read") == {"said": "!a!b"}


def test_readers_do_not_count_towards_max_concurrency(sink: MemoryEventSink) -> None:
    async def shout(ctx: StageContext) -> AsyncIterator[str]:
        async for word in ctx.inputs.stream("write"):
            yield word.upper()

    running = most = 0

    async def other(ctx: StageContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(5)
        running -= 1

    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"abcdefgh" * 20, every=0.1))
        .with_stage("shout", shout, streams=("write",))
        .with_stage("last", shout_of("shout"), streams=("shout",))
    )
    for number in range(4):
        pipeline = pipeline.with_stage(f"other{number}", other)
    results = run(pipeline, sink, max_concurrency=1)
    assert results.value("last") == "ABCDEFGH" * 20
    assert most == 1


@pytest.mark.parametrize("order", [("write", "other", "prepare"), ("prepare", "other", "write")])
def test_stage_that_a_reader_waits_for_does_not_count_towards_max_concurrency(
    sink: MemoryEventSink, order: tuple[str, ...]
) -> None:
    """The reader cannot start before it, and the stream that occupies the slot waits for the reader."""

    async def nothing(ctx: StageContext) -> None:
        await asyncio.sleep(1)

    stages: dict[str, Any] = {
        "write": words(*"ab" * 100, every=0),
        "other": nothing,
        "prepare": nothing,
    }
    pipeline = Pipeline("p")
    for name in order:
        pipeline = pipeline.with_stage(name, stages[name])
    pipeline = pipeline.with_stage("prepared", nothing, dependencies=("prepare",))
    pipeline = pipeline.with_stage("read", collects, streams=("write",), dependencies=("prepared",))
    results = run(pipeline, sink, max_concurrency=1)
    assert results.data("read")["read"] == list("ab" * 100)


def test_streams_of_one_reader_do_not_wait_for_the_slots_of_each_other(sink: MemoryEventSink) -> None:
    async def both(ctx: StageContext) -> dict[str, Any]:
        return {name: [each async for each in ctx.inputs.stream(name)] for name in ("write", "other")}

    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"ab" * 100, every=0))
        .with_stage("other", words(*"ab" * 10, every=1))
        .with_stage("both", both, streams=("write", "other"))
    )
    results = run(pipeline, sink, max_concurrency=1)
    assert results.data("both") == {"write": list("ab" * 100), "other": list("ab" * 10)}


async def test_stage_that_a_reader_waits_for_does_not_wait_for_a_thread(sink: MemoryEventSink) -> None:
    def write(ctx: StageContext) -> Iterator[str]:
        yield from "ab" * 100

    def prepare(ctx: StageContext) -> None: ...

    configure(max_threads=1)
    pipeline = (
        Pipeline("p")
        .with_stage("write", write)
        .with_stage("prepare", prepare)
        .with_stage("read", collects, streams=("write",), dependencies=("prepare",))
    )
    results = await recorded(pipeline, sink).run(deadline=30)
    assert results.data("read")["read"] == list("ab" * 100)
    check(sink, results)


def shout_of(stage: str) -> Callable[[StageContext], AsyncIterator[str]]:
    async def shout(ctx: StageContext) -> AsyncIterator[str]:
        async for word in ctx.inputs.stream(stage):
            yield word

    return shout


# ---------------------------------------------------------------- failures and retries


def failing(after: int, failures: int, *, sent: str = "abcdef") -> Callable[..., Any]:
    """Return a generator that fails after some chunks in its first attempts."""

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        for number, word in enumerate(sent):
            await asyncio.sleep(1)
            if number == after and ctx.attempt <= failures:
                raise ConnectionError("lost")
            yield word

    return write


def test_attempt_whose_chunks_were_read_is_not_retried(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("write", failing(2, 9), retry=Retry(attempts=5, wait=1))
    chunks, results = reading(pipeline, sink)
    assert values(chunks) == ["a", "b"]
    assert (results["write"].status, results["write"].attempts) == (FAIL, 1)
    assert "its chunks have been read" in str(results["write"].reason)


def test_attempt_whose_chunks_nobody_read_is_retried(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("write", failing(2, 1), retry=Retry(attempts=5, wait=1))
    results = run(pipeline, sink)
    assert (results.value("write"), results["write"].attempts) == ("abcdef", 2)
    assert stage_wide(sink.events, "write")["stream"]["chunks"] == 6


def test_attempt_that_fails_before_its_first_chunk_is_retried(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("write", failing(0, 2), retry=Retry(attempts=5, wait=1))
    chunks, results = reading(pipeline.with_stage("read", collects, streams=("write",)), sink)
    assert values(chunks) == results.data("read")["read"] == list("abcdef")


def test_restart_repeats_the_stage_and_tells_the_reader(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("write", failing(2, 1), retry=Retry(attempts=2, wait=1), restart=True)
    chunks, results = reading(pipeline, sink)
    assert [(chunk.number, chunk.value, chunk.restart) for chunk in chunks] == [
        (0, "a", False),
        (1, "b", False),
        (-1, None, True),
        *[(number, word, False) for number, word in enumerate("abcdef")],
    ]
    assert (results.value("write"), results["write"].attempts) == ("abcdef", 2)


def test_restart_restarts_the_stages_that_read_chunks(sink: MemoryEventSink) -> None:
    async def ended(ctx: StageContext) -> dict[str, Any]:
        return {"first": await anext(ctx.inputs.stream("write"))}

    pipeline = (
        Pipeline("p")
        .with_stage("write", failing(2, 1), retry=Retry(attempts=2, wait=1), restart=True)
        .with_stage("shout", shout_of("write"), streams=("write",))
        .with_stage("last", shout_of("shout"), streams=("shout",))
        .with_stage("ended", ended, streams=("write",))
        .with_stage("after", lambda ctx: {"n": 1}, dependencies=("last",))
    )
    results = run(pipeline, sink)
    assert results.outcome == "ok"
    assert results.value("last") == "abcdef"
    assert {name: result.attempts for name, result in results.items()} == {
        "write": 2,
        "shout": 2,
        "last": 2,
        "ended": 1,
        "after": 1,
    }
    retried = [event for event in of_type(sink.events, "stage.wide") if event["status"] == "RETRY"]
    assert {event["stage_name"]: event["reason"] for event in retried} == {
        "write": "attempt 1 of 2 failed, the next one in 1 s",
        "shout": "the stream of 'write' restarted",
        "last": "the stream of 'shout' restarted",
    }


def test_reader_of_two_streams_cannot_restart_with_one_of_them(sink: MemoryEventSink) -> None:
    async def both(ctx: StageContext) -> None:
        await anext(ctx.inputs.stream("other"))
        async for _ in ctx.inputs.stream("write"):
            pass

    pipeline = (
        Pipeline("p")
        .with_stage("write", failing(2, 1), retry=Retry(attempts=2, wait=1), restart=True)
        .with_stage("other", words(*"abcdefghij"))
        .with_stage("both", both, streams=("write", "other"))
        .with_stage("after", lambda ctx: None, dependencies=("both",))
    )
    results = run(pipeline, sink)
    assert results["both"].status is CANCEL
    assert "but that of 'other' did not" in str(results["both"].reason)
    assert results["after"].status is CANCEL
    assert results["write"].status is OK


def test_stage_that_has_read_chunks_is_not_retried(sink: MemoryEventSink) -> None:
    async def fails(ctx: StageContext) -> None:
        await anext(ctx.inputs.stream("write"))
        raise ValueError("bad chunk")

    async def fails_first(ctx: StageContext) -> dict[str, Any]:
        if ctx.attempt == 1:
            raise ValueError("no connection")
        return await collects(ctx)

    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b"))
        .with_stage("fails", fails, streams=("write",), retry=Retry(attempts=3), optional=True)
        .with_stage("fails first", fails_first, streams=("write",), retry=Retry(attempts=3, wait=0.1))
    )
    results = run(pipeline, sink)
    assert (results["fails"].status, results["fails"].attempts) == (FAIL, 1)
    assert "the stage has read chunks of the stream of 'write'" in str(results["fails"].reason)
    assert (results.data("fails first")["read"], results["fails first"].attempts) == (["a", "b"], 2)


@pytest.mark.parametrize("options", [{"on_failure": "continue"}, {"on_failure": "cancel"}])
def test_failed_stream_cancels_the_stages_that_are_reading_it(
    sink: MemoryEventSink, options: dict[str, Any]
) -> None:
    async def ended(ctx: StageContext) -> dict[str, Any]:
        return {"first": await anext(ctx.inputs.stream("write"))}

    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    pipeline = (
        Pipeline("p")
        .with_stage("write", failing(2, 1))
        .with_stage("ended", ended, streams=("write",))
        .with_stage("reads", shout_of("write"), streams=("write",))
        .with_stage("last", shout_of("reads"), streams=("reads",))
        .with_stage("not started", collects, streams=("write",), dependencies=("waits",))
        .with_stage("waits", waits)
        .with_stage("after", lambda ctx: None, dependencies=("last",))
    )
    results = run(pipeline, sink, **options)
    assert results.outcome == "failed"
    assert results.first_failed_stage == "write"
    assert {
        name: str(results[name].status)
        for name in ("write", "ended", "reads", "last", "not started", "after")
    } == {
        "write": "FAIL",
        "ended": "OK",
        "reads": "CANCEL",
        "last": "CANCEL",
        "not started": "CANCEL",
        "after": "CANCEL",
    }
    if options["on_failure"] == "continue":
        assert results["reads"].reason == "cancelled: the stream of 'write' was incomplete"
        assert results["last"].reason == "cancelled: the stream of 'reads' was incomplete"
        assert results["after"].reason == "it depends on 'last', which was cancelled"
        assert results["waits"].status is OK


def test_optional_stream_that_fails_cancels_its_readers_and_releases_other_dependents(
    sink: MemoryEventSink,
) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", failing(2, 1), optional=True)
        .with_stage("reads", shout_of("write"), streams=("write",))
        .with_stage("after", lambda ctx: {"n": 1}, dependencies=("write",))
    )
    results = run(pipeline, sink)
    assert (results.outcome, results["reads"].status) == ("degraded", CANCEL)
    assert results.data("after") == {"n": 1}


def test_reader_that_ignores_its_cancellation_is_abandoned(sink: MemoryEventSink) -> None:
    async def stubborn(ctx: StageContext) -> None:
        with pytest.raises(asyncio.CancelledError):
            async for _ in ctx.inputs.stream("write"):
                pass
        ends = asyncio.get_running_loop().time() + 100
        while (left := ends - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue

    pipeline = (
        Pipeline("p").with_stage("write", failing(2, 1)).with_stage("reads", stubborn, streams=("write",))
    )
    graph = recorded(pipeline, sink, on_failure="continue", grace=3)

    async def main() -> PipelineResults:
        results = await graph.run()
        await asyncio.sleep(200)
        return results

    results = VirtualClock().run(main())
    assert (results["reads"].status, results["reads"].abandoned) == (CANCEL, True)
    assert results.duration_ms == pytest.approx(6000, abs=10)
    check(sink, results)


# ---------------------------------------------------------------- timeouts


def test_idle_timeout_limits_the_time_between_two_chunks(sink: MemoryEventSink) -> None:
    async def stalls(ctx: StageContext) -> AsyncIterator[str]:
        for _ in range(5):
            await asyncio.sleep(2)
            yield "a"
        await asyncio.sleep(600)

    results = run(Pipeline("p").with_stage("write", stalls, idle_timeout=3), sink)
    error = results["write"].exception
    assert isinstance(error, StageTimeoutError)
    assert error.message == "the attempt sent no chunk within its idle_timeout of 3 s"
    assert results["write"].duration_ms == pytest.approx(13_000, abs=5)
    assert stage_wide(sink.events, "write")["stream"]["chunks"] == 5


def test_idle_timeout_applies_before_the_first_chunk_and_to_ctx_send(sink: MemoryEventSink) -> None:
    async def silent(ctx: StageContext) -> None:
        await asyncio.sleep(2)
        await ctx.send("a")
        await asyncio.sleep(4)

    for idle, duration in ((3, 5000), (1, 1000)):
        results = run(Pipeline("p").with_stage("write", silent, idle_timeout=idle), MemoryEventSink())
        assert isinstance(results["write"].exception, StageTimeoutError)
        assert results["write"].duration_ms == pytest.approx(duration, abs=5)


def test_idle_timeout_does_not_include_waiting_for_a_reader(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words(*"abcd", every=0.1), idle_timeout=1), sink)

    async def main() -> PipelineResults:
        async with graph.stream(buffer=1) as run:
            async for _ in run:
                await asyncio.sleep(30)
        return await run.results()

    results = VirtualClock().run(main())
    assert results.outcome == "ok"
    check(sink, results)


def test_timeout_covers_the_whole_attempt(sink: MemoryEventSink) -> None:
    results = run(Pipeline("p").with_stage("write", words(*"abcdefgh"), timeout=3.5), sink)
    assert isinstance(results["write"].exception, StageTimeoutError)
    assert stage_wide(sink.events, "write")["stream"]["chunks"] == 3


def test_deadline_of_a_streamed_run(sink: MemoryEventSink) -> None:
    chunks, results = reading(Pipeline("p").with_stage("write", words(*"abcdefgh")), sink, deadline=3.5)
    assert (values(chunks), results.outcome) == (list("abc"), "timeout")


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("buffer", [1, 64])
async def test_synchronous_generator_streams_from_a_thread(sink: MemoryEventSink, buffer: int) -> None:
    def write(ctx: StageContext) -> Iterator[str]:
        assert threading.current_thread() is not threading.main_thread()
        for number in range(100):
            yield f"{number} "

    graph = recorded(Pipeline("p").with_stage("write", write), sink)
    async with graph.stream(buffer=buffer) as run:
        chunks = [chunk.value async for chunk in run]
    assert chunks == [f"{number} " for number in range(100)]
    assert (await run.results()).value("write") == "".join(chunks)


async def test_cancelled_synchronous_generator_is_closed(sink: MemoryEventSink) -> None:
    closed = threading.Event()

    def write(ctx: StageContext) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    graph = recorded(Pipeline("p").with_stage("write", write), sink)
    async with graph.stream(buffer=1) as run:
        assert (await anext(run)).value == 0
    results = await run.results()
    assert (results.outcome, results["write"].abandoned) == ("cancelled", False)
    assert closed.is_set()
    check(sink, results)


async def test_cancelled_synchronous_reader_ends(sink: MemoryEventSink) -> None:
    raised: list[BaseException] = []

    def read(ctx: StageContext) -> None:
        try:
            for _ in ctx.inputs.stream("write"):
                pass
        except BaseException as error:
            raised.append(error)
            raise

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(60)

    pipeline = Pipeline("p").with_stage("write", write).with_stage("read", read, streams=("write",))
    graph = recorded(pipeline, sink)
    async with graph.stream() as run:
        await anext(run)
        await asyncio.sleep(0.05)
    results = await run.results()
    assert (results["read"].status, results["read"].abandoned) == (CANCEL, False)
    assert isinstance(raised[0], asyncio.CancelledError)
    check(sink, results)


async def test_sending_from_a_synchronous_stage_is_an_error_with_a_hint() -> None:
    def write(ctx: StageContext) -> None:
        ctx.send("a")

    results = await Pipeline("p").with_stage("write", write).run()
    assert "or a generator function" in str(results["write"].exception)


async def test_sending_after_the_attempt_is_an_error() -> None:
    late: list[asyncio.Task[None]] = []

    async def sends_late(ctx: StageContext) -> None:
        async def later() -> None:
            await asyncio.sleep(0.01)
            await ctx.send("late")

        await ctx.send("a")
        late.append(asyncio.create_task(later()))

    async def waits(ctx: StageContext) -> None:
        await asyncio.wait(late)

    pipeline = (
        Pipeline("p").with_stage("write", sends_late).with_stage("wait", waits, dependencies=("write",))
    )
    results = await pipeline.run()
    assert results.value("write") == "a"
    with pytest.raises(StageflowError, match="after the attempt had ended"):
        late[0].result()


# ---------------------------------------------------------------- encoding


async def test_encode_replaces_the_values_of_the_reader_outside_the_run(sink: MemoryEventSink) -> None:
    def encode(chunk: Chunk) -> str:
        return f"{chunk.stage} {chunk.number}: {chunk.value}"

    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a", "b", every=0))
        .with_stage("read", collects, streams=("write",))
    )
    async with recorded(pipeline, sink).stream(encode=encode) as run:
        chunks = [chunk async for chunk in run]
    results = await run.results()
    assert [(chunk.number, chunk.value) for chunk in chunks] == [(0, "write 0: a"), (1, "write 1: b")]
    assert results.value("write") == "ab"
    assert results.data("read") == {"read": ["a", "b"]}


@pytest.mark.parametrize("thread", [False, True])
async def test_encode_that_raises_fails_the_stage_that_sent_the_chunk(
    sink: MemoryEventSink, thread: bool
) -> None:
    def write(ctx: StageContext) -> Iterator[str]:
        yield "a"
        yield "b"

    def encode(chunk: Chunk) -> str:
        if chunk.value == "b":
            raise ValueError("not b")
        return str(chunk.value)

    stage = write if thread else words("a", "b", every=0)
    graph = recorded(Pipeline("p").with_stage("write", stage), sink)
    async with graph.stream(encode=encode) as run:
        chunks = [chunk.value async for chunk in run]
    results = await run.results()
    assert (chunks, results.outcome) == (["a"], "failed")
    assert isinstance(results["write"].exception, ValueError)
    check(sink, results)


async def test_encode_must_be_a_function() -> None:
    graph = Pipeline("p").with_stage("write", words("a")).build()
    with pytest.raises(InvalidArgumentError, match="encode must be a function"):
        graph.stream(encode="json")  # type: ignore[arg-type]


# ---------------------------------------------------------------- cancelled readers in threads


def reads_all(ctx: StageContext) -> dict[str, Any]:
    """Read a stream in a thread."""
    return {"got": list(ctx.inputs.stream("write"))}


async def test_cancelled_reader_of_a_skipped_stage_has_a_record(sink: MemoryEventSink) -> None:
    started = threading.Event()
    ends = threading.Event()

    async def generator(ctx: StageContext) -> AsyncIterator[int]:
        yield 1

    def reader(ctx: StageContext) -> None:
        started.set()
        ends.wait(30)

    pipeline = (
        Pipeline("p")
        .with_stage("skipped", lambda ctx: StageOutput.skip("no"))
        .with_stage("g", generator, dependencies=("skipped",), conditional=True)
        .with_stage("r", reader, streams=("g",))
        .with_stage("write", endless)
    )
    graph = recorded(pipeline, sink)
    async with graph.stream(stages="write") as run:
        async for _ in run:
            if started.is_set():
                asyncio.get_running_loop().call_later(0.05, ends.set)
                break
            await asyncio.sleep(0.001)
    check(sink, await run.results())


async def test_cancelled_reader_in_a_thread_does_not_block_the_stage(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        for number in range(40):
            await asyncio.sleep(0.005)
            yield str(number)

    def reader(ctx: StageContext) -> None:
        next(iter(ctx.inputs.stream("write")))
        time.sleep(0.4)

    pipeline = (
        Pipeline("p")
        .with_stage("write", write)
        .with_stage(
            "reader", reader, streams=(StreamRef("write").chunks(buffer=4),), timeout=0.1, optional=True
        )
    )
    results = await recorded(pipeline, sink).run()
    assert (results.outcome, results["write"].status, results["reader"].status) == ("degraded", OK, FAIL)
    check(sink, results)


async def test_reader_in_a_thread_restarts_and_is_retried(sink: MemoryEventSink) -> None:
    def slow_at_first(ctx: StageContext) -> dict[str, Any]:
        if ctx.attempt == 1:
            time.sleep(0.3)
        return reads_all(ctx)

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        for number, word in enumerate("abc"):
            await asyncio.sleep(0.02)
            if number == 2 and ctx.attempt == 1:
                raise ConnectionError("lost")
            yield word

    pipeline = (
        Pipeline("p")
        .with_stage("write", write, retry=Retry(attempts=2, wait=0.01), restart=True)
        .with_stage("read", reads_all, streams=("write",))
        .with_stage("late", slow_at_first, streams=("write",), timeout=0.2, retry=Retry(attempts=2, wait=0))
    )
    results = await recorded(pipeline, sink).run()
    assert (results.data("read"), results.data("late")) == ({"got": list("abc")}, {"got": list("abc")})
    assert (results["read"].attempts, results["late"].attempts) == (2, 2)
    check(sink, results)


async def test_readers_in_threads_do_not_count_towards_max_threads() -> None:
    configure(max_threads=2)
    inner = Pipeline("tool").with_stage("call", lambda ctx: {"n": 1}).build()

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        yield "a"
        await inner.run()
        yield "b"

    pipeline = Pipeline("p").with_stage("write", write).with_stage("read", reads_all, streams=("write",))
    graph = pipeline.build()
    for results in await asyncio.wait_for(asyncio.gather(*[graph.run() for _ in range(8)]), 50):
        assert results.data("read") == {"got": ["a", "b"]}


# ---------------------------------------------------------------- interrupts, cancellation and late chunks


def test_run_finishes_although_its_reader_is_cancelled_while_it_waits(sink: MemoryEventSink) -> None:
    async def store(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    pipeline = (
        Pipeline("p").with_stage("write", words("a")).with_stage("store", store, dependencies=("write",))
    )
    graph = recorded(pipeline, sink)

    async def reads(wait_inside: bool) -> None:
        async with graph.stream(on_abandon="finish") as run:
            async for _ in run:
                pass
            if wait_inside:
                await run.results()

    async def main() -> None:
        for inside in (True, False):
            task = asyncio.create_task(reads(inside))
            await asyncio.sleep(5)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await asyncio.sleep(100)
        assert [event["outcome"] for event in of_type(sink.events, "pipeline.wide")] == ["ok", "ok"]

    VirtualClock().run(main())


def test_cancellation_during_the_exit_of_a_failed_block_is_not_lost(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(1)

    graph = recorded(Pipeline("p").with_stage("write", write), sink)

    async def fails_slowly() -> None:
        async with asyncio.timeout(0.5), graph.stream() as run:
            await anext(run)
            raise ValueError("in the block")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await fails_slowly()

    VirtualClock().run(main())
    assert of_type(sink.events, "pipeline.wide")[0]["outcome"] == "cancelled"


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt])
async def test_interrupt_in_a_streaming_stage_is_raised_in_the_block(
    sink: MemoryEventSink, interrupt: type[BaseException]
) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        yield "a"
        raise interrupt

    graph = recorded(Pipeline("p").with_stage("write", write), sink)

    async def reads() -> None:
        async with graph.stream() as run:
            async for _ in run:
                pass

    with pytest.raises(interrupt):
        await reads()
    await asyncio.sleep(0)  # the loop has not stopped
    assert of_type(sink.events, "pipeline.wide")[0]["outcome"] == "failed"


def test_abandoned_generator_sends_no_more_chunks(sink: MemoryEventSink) -> None:
    async def stubborn(ctx: StageContext) -> AsyncIterator[int]:
        for number in range(60):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
            yield number

    pipeline = Pipeline("p").with_stage("write", stubborn, timeout=3.5, optional=True)
    graph = recorded(pipeline.with_stage("other", words(*"abcdefghijklmno")), sink, grace=2)

    async def main() -> None:
        async with graph.stream() as run:
            chunks = [chunk async for chunk in run]
        results = await run.results()
        assert results["write"].abandoned
        sent = stage_wide(sink.events, "write")["stream"]["chunks"]
        assert [chunk.value for chunk in chunks if chunk.stage == "write"] == list(range(sent))
        await asyncio.sleep(200)

    VirtualClock().run(main())


async def test_leftover_task_does_not_affect_the_next_attempt(sink: MemoryEventSink) -> None:
    late: list[asyncio.Task[None]] = []

    async def write(ctx: StageContext) -> str:
        if ctx.attempt == 1:

            async def later() -> None:
                await asyncio.sleep(0.05)
                await ctx.send("late")

            late.append(asyncio.create_task(later()))
            raise ConnectionError
        await ctx.send("a")
        await asyncio.wait(late)
        await ctx.send("b")
        return "done"

    pipeline = Pipeline("p").with_stage("write", write, retry=Retry(attempts=2, wait=0))
    results = await recorded(pipeline, sink).run()
    assert (results.value("write"), stage_wide(sink.events, "write")["stream"]["chunks"]) == ("done", 2)
    with pytest.raises(StageflowError, match="after the attempt had ended"):
        late[0].result()


def test_boundaries_of_many_texts_are_kept_if_another_type_follows(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[Any]:
        for number in range(5000):
            yield str(number)
        yield {"usage": 1}

    results = run(Pipeline("p").with_stage("write", write), sink)
    assert results.data("write")["chunks"] == [*map(str, range(5000)), {"usage": 1}]


def test_tasks_that_send_concurrently_count_as_one_wait(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(send(ctx))

    async def send(ctx: StageContext) -> None:
        for _ in range(3):
            await ctx.send("a")

    graph = recorded(Pipeline("p").with_stage("write", write, idle_timeout=5), sink)

    async def main() -> PipelineResults:
        async with graph.stream(stages="write", buffer=1) as run:
            async for _ in run:
                await asyncio.sleep(2)
        return await run.results()

    results = VirtualClock().run(main())
    assert results.outcome == "ok"
    assert 0 < stage_wide(sink.events, "write")["stream"]["blocked_ms"] <= results["write"].duration_ms


def test_interceptors_see_that_a_stage_was_idle(sink: MemoryEventSink) -> None:
    seen: list[BaseException] = []

    async def see(call: StageCall, proceed: Proceed) -> StageOutput:
        try:
            return await proceed()
        except BaseException as error:
            seen.append(error)
            raise

    async def returns_when_cancelled(ctx: StageContext) -> AsyncIterator[str]:
        yield "a"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)

    for options in ({"timeout": 60}, {}):
        pipeline = Pipeline("p").with_stage("write", returns_when_cancelled, idle_timeout=3, **options)  # type: ignore[arg-type]
        results = run(pipeline, MemoryEventSink(), interceptors=(see,))
        assert "idle_timeout of 3 s" in str(results["write"].error)
        assert "idle_timeout of 3 s" in str(seen[-1])


def test_incomplete_stream_is_never_used_as_complete(sink: MemoryEventSink) -> None:
    async def reads(ctx: StageContext) -> dict[str, Any]:
        stream, text = ctx.inputs.stream("write"), ""
        while True:
            try:
                text += await asyncio.wait_for(anext(stream), 50)
            except StopAsyncIteration:
                return {"text": text}

    pipeline = (
        Pipeline("p")
        .with_stage("write", failing(3, 1), optional=True)
        .with_stage("reads", reads, streams=("write",))
    )
    assert run(pipeline, sink)["reads"].status is CANCEL


def test_error_of_a_timeout_states_the_wait_for_readers(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words(*"abcdef", every=0), timeout=5), sink)

    async def main() -> PipelineResults:
        async with graph.stream(buffer=1) as run:
            async for _ in run:
                await asyncio.sleep(4)
        return await run.results()

    results = VirtualClock().run(main())
    assert "its timeout of 5 s, of which it waited 5 s for readers of its stream" in str(
        results["write"].error
    )


def test_stream_and_items_are_recorded_although_an_exception_cannot_be(
    sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("cannot be recorded")

    async def fails_on_3(ctx: StageContext, item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    monkeypatch.setattr("stageflow.observability._wide_events.exception_info", broken)
    pipeline = (
        Pipeline("p")
        .with_stage("write", failing(2, 9), optional=True)
        .with_stage("list", lambda ctx: [1, 2, 3])
        .with_map("map", fails_on_3, over="list", optional=True, max_concurrency=1)
    )
    results = VirtualClock().run(recorded(pipeline, sink).run())
    written, mapped = stage_wide(sink.events, "write"), stage_wide(sink.events, "map")
    assert written["reason"] == mapped["reason"] == "the data or the error of the stage could not be recorded"
    assert written["stream"]["chunks"] == 2
    assert (mapped["items"]["ok"], mapped["items"]["failed"], mapped["items"]["failures"]) == (2, 1, [])
    assert mapped["items"]["failure_types"] == ["ValueError"]
    assert results.outcome == "degraded"


# ---------------------------------------------------------------- validation


def problems(pipeline: Pipeline, **options: Any) -> list[str]:
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build(**options)
    return list(caught.value.problems)


def test_stage_that_waits_for_a_stage_that_needs_the_same_stream_is_an_error() -> None:
    write = Pipeline("p").with_stage("write", words("a"))
    (waits,) = problems(
        write.with_stage("sum", collects, dependencies=("write",)).with_stage(
            "join", collects, dependencies=("sum",), streams=("write",)
        )
    )
    assert "'write' -> 'sum' -> 'join'" in waits
    assert 'chunks(buffer="collect")' in waits
    (through_stream,) = problems(
        write.with_stage("shout", shout_of("write"), streams=("write",)).with_stage(
            "join", collects, streams=("write", "shout")
        )
    )
    assert "'write' -> 'shout' -> 'join'" in through_stream
    (through_sender,) = problems(
        write.with_stage("shout", shout_of("write"), streams=("write",)).with_stage(
            "join", collects, dependencies=("write",), streams=("shout",)
        )
    )
    assert "reads the stream of 'shout' and also waits for 'write'" in through_sender
    (twice,) = problems(write.with_stage("read", collects, dependencies=("write",), streams=("write",)))
    assert "both the stream and the collected value of 'write'" in twice


def test_collecting_resolves_the_deadlock(sink: MemoryEventSink) -> None:
    async def join(ctx: StageContext) -> dict[str, Any]:
        return {"shouted": ctx.inputs.get_from("shout", "text"), **await collects(ctx)}

    pipeline = (
        Pipeline("p")
        .with_stage("write", words(*"ab" * 100, every=0))
        .with_stage("shout", shout_of("write"), streams=("write",))
        .with_stage(
            "join", join, dependencies=("shout",), streams=(StreamRef("write").chunks(buffer="collect"),)
        )
    )
    results = run(pipeline, sink)
    assert results.data("join") == {"shouted": "ab" * 100, "read": list("ab" * 100)}


def test_reader_that_needs_the_permit_of_the_stage_that_it_reads_is_an_error() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a"), limit="llm")
        .with_stage("shout", shout_of("write"), streams=("write",))
        .with_stage("read", shout_of("shout"), streams=("shout",), limit="llm")
    )
    (problem,) = problems(pipeline, limits=Limits(llm=4))
    assert "limit 'llm', which 'write' may hold" in problem


def test_stage_that_a_reader_waits_for_does_not_need_the_permit_of_the_stream() -> None:
    async def nothing(ctx: StageContext) -> None: ...

    def pipeline(first: str | None, second: str | None, buffer: Any = 64) -> Pipeline:
        return (
            Pipeline("p")
            .with_stage("write", words("a"), limit=first)
            .with_stage("prepare", nothing, limit=second)
            .with_stage("prepared", nothing, dependencies=("prepare",))
            .with_stage(
                "read",
                shout_of("write"),
                dependencies=("prepared",),
                streams=(StreamRef("write").chunks(buffer=buffer),),
            )
        )

    limits = Limits(llm=4, db=4)
    (problem,) = problems(pipeline("llm", "llm"), limits=limits)
    assert "cannot start before 'prepare', which needs a permit of limit 'llm'" in problem
    pipeline("llm", "db").build(limits=limits)
    pipeline("llm", None).build(limits=limits)
    pipeline("llm", "llm", "collect").build(limits=limits)


def test_reader_of_two_streams_that_need_the_same_limit_is_an_error() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a"), limit="llm")
        .with_stage("other", words("b"), limit="llm")
        .with_stage("both", collects, streams=("write", "other"))
    )
    assert len(problems(pipeline, limits=Limits(llm=8))) == 2


def test_items_and_indirect_readers_count_for_limits_of_streams() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a"), limit="llm")
        .with_stage("list", lambda ctx: [1, 2])
        .with_map("embed", lambda item: item, over="list", limit="llm")
        .with_stage("shout", shout_of("write"), streams=("write",))
        .with_stage("read", shout_of("shout"), dependencies=("embed",), streams=("shout",))
    )
    (problem,) = problems(pipeline, limits=Limits(llm=8))
    assert "cannot start before 'embed', which needs a permit of limit 'llm'" in problem


def test_limit_of_an_ancestor_of_the_stream_is_no_problem() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("plan", words("a"), limit="llm")
        .with_stage("write", words("a"), limit="llm", dependencies=("plan",))
        .with_stage("read", collects, streams=("write",), dependencies=("plan",))
    )
    pipeline.build(limits=Limits(llm=1))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"idle_timeout": 0}, "idle_timeout must be more than 0 seconds"),
        ({"restart": True}, "restart=True has no effect without a retry policy"),
        ({"streams": ("wrte",)}, "unknown dependency 'wrte'"),
        ({"streams": ("write", "write")}, "reads the stream of 'write' 2 times"),
        ({"streams": (StreamRef("write").chunks(buffer=0),)}, "must be a positive integer"),
        ({"streams": (StreamRef("write").chunks(buffer=True),)}, "must be a positive integer"),
    ],
)
def test_invalid_options_of_streams_are_reported(options: Any, problem: str) -> None:
    pipeline = Pipeline("p").with_stage("write", words("a")).with_stage("read", collects, **options)
    assert problem in "\n".join(problems(pipeline))


def test_streams_must_be_names() -> None:
    with pytest.raises(InvalidArgumentError, match="names of stages"):
        Pipeline("p").with_stage("read", collects, streams=(1,))  # type: ignore[arg-type]


def test_stages_without_streams_reject_their_options() -> None:
    write = Pipeline("p").with_stage("write", words("a")).with_stage("list", lambda ctx: [1])
    (mapped,) = problems(write.with_map("map", lambda item: item, over="list", streams=("write",)))
    assert "a mapped stage cannot read a stream" in mapped
    (child,) = problems(write.with_stage("child", Pipeline("c").with_stage("s", collects), idle_timeout=1))
    assert "cannot send or read a stream" in child


def test_generator_function_cannot_be_mapped() -> None:
    async def each(item: int) -> AsyncIterator[int]:
        yield item

    def in_thread(item: int) -> Iterator[int]:
        yield item

    for function in (each, in_thread):
        (problem,) = problems(
            Pipeline("p").with_stage("list", lambda ctx: [1]).with_map("map", function, over="list")
        )
        assert "cannot be a generator function" in problem


def test_parameter_is_not_passed_from_a_stream() -> None:
    async def read(ctx: StageContext, text: str) -> int:
        return len(text)

    write = Pipeline("p").with_stage("write", words("a"))
    (problem,) = problems(write.with_stage("read", read, streams=("write",)))
    assert "ctx.inputs.stream('write')" in problem


def test_missing_stream_cannot_be_replaced() -> None:
    chunks = StreamRef[str]("write").chunks()
    for replace in (chunks.or_none, lambda: chunks.or_default("")):
        with pytest.raises(InvalidArgumentError, match="cannot be replaced"):
            replace()


def test_descriptions_show_streams() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("write", words("a"), retry=Retry(attempts=2), restart=True, idle_timeout=5)
        .with_stage("read", collects, streams=(StreamRef("write").chunks(buffer="collect"),))
    )
    described = pipeline.build().describe()
    assert "idle_timeout=5s" in described
    assert "restart" in described
    assert "streams=write(buffer=collect)" in described
    assert "s0 ==> s1" in pipeline.to_mermaid()
    assert '"write" -> "read" [style=bold]' in pipeline.to_dot()


# ---------------------------------------------------------------- flows


async def test_flow_connects_stages_by_their_streams() -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        for word in ("a", "b"):
            yield word

    async def shout(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        async for chunk in chunks:
            yield chunk.upper()

    def measure(text: str, shouted: Iterator[str]) -> int:
        return len(text) + sum(1 for _ in shouted)

    async def total(text: str) -> int:
        return len(text)

    flow = Flow("p")
    written = flow.add(write)
    shouted = flow.add(shout, written.chunks(buffer=2))
    size = flow.add(total, written)
    results = await flow.build().run()
    assert results.value(shouted) == "AB"
    assert results.value(size) == 2


def test_flow_compares_the_types_of_chunks() -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        yield "a"

    async def read(chunks: AsyncIterator[bytes]) -> int:
        return 0

    async def measure(text: bytes) -> int:
        return 0

    def lines(chunks: Iterator[str]) -> int:
        return 0

    for function, expected in ((read, "sends AsyncIterator[str]"), (measure, "returns str"), (lines, None)):
        flow = Flow("p")
        written = flow.add(write)
        flow.add(function, written if function is measure else written.chunks())  # type: ignore[call-overload]
        if expected is None:
            flow.build()
            continue
        with pytest.raises(PipelineValidationError, match=expected.replace("[", r"\[").replace("]", r"\]")):
            flow.build()


# ---------------------------------------------------------------- around the stage


def test_interceptors_see_the_collected_value(sink: MemoryEventSink) -> None:
    seen = []

    async def see(call: StageCall, proceed: Proceed) -> StageOutput:
        output = await proceed()
        seen.append(output.data)
        return output

    async def sends(ctx: StageContext) -> None:
        await ctx.send("b")

    pipeline = Pipeline("p").with_stage("write", words("a")).with_stage("sends", sends)
    run(pipeline, sink, interceptors=(see,))
    assert sorted(map(str, seen)) == ["{'text': 'a'}", "{'text': 'b'}"]


def test_class_can_stream(sink: MemoryEventSink) -> None:
    class Write:
        async def execute(self, ctx: StageContext) -> AsyncIterator[str]:
            yield "a"

    for runner in (Write, Write()):
        chunks, _ = reading(Pipeline("p").with_stage("write", runner), MemoryEventSink())
        assert values(chunks) == ["a"]


def test_streams_work_without_an_event_loop(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", words("a", "b", every=0)), sink)
    with graph.stream_sync() as run:
        assert [chunk.value for chunk in run] == ["a", "b"]
        assert run.results().value("write") == "ab"
    assert run.results().outcome == "ok"
    slow = recorded(Pipeline("p").with_stage("write", words("a", "b", every=0.01)), sink)
    with slow.stream_sync() as run:
        for _ in run:
            break
    assert run.results().outcome == "cancelled"
    assert list(run) == []
    with pytest.raises(RuntimeError, match="already entered"):
        run.__enter__()


async def test_synchronous_stream_inside_a_loop_is_an_error_with_a_hint() -> None:
    graph = Pipeline("p").with_stage("write", words("a")).build()
    with pytest.raises(RuntimeError, match=r"async with graph\.stream"):
        graph.stream_sync()


async def test_streamed_run_leaves_no_reference_cycle() -> None:
    graph = (
        Pipeline("p")
        .with_stage("write", words("a", every=0))
        .with_stage("r", collects, streams=("write",))
        .build()
    )

    async def once() -> weakref.ref[Any]:
        async with graph.stream() as run:
            async for _ in run:
                pass
        return weakref.ref(run._run)

    await once()
    gc.collect()
    gc.disable()
    try:
        left = await once()
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()


async def test_streamed_run_inside_a_stage_is_a_child_run(sink: MemoryEventSink) -> None:
    inner = recorded(Pipeline("inner").with_stage("write", words("a", "b", every=0)), sink)

    async def relay(ctx: StageContext) -> AsyncIterator[str]:
        async with inner.stream() as run:
            async for chunk in run:
                yield chunk.value

    async with recorded(Pipeline("outer").with_stage("relay", relay), sink).stream() as run:
        chunks = [chunk.value async for chunk in run]
    results = await run.results()
    assert chunks == ["a", "b"]
    runs = {event["pipeline_name"]: event for event in of_type(sink.events, "pipeline.wide")}
    assert runs["inner"]["parent_run_id"] == runs["outer"]["event_id"]
    assert [child.run_id for child in results["relay"].child_runs] == [runs["inner"]["event_id"]]


def test_first_chunk_arrives_within_two_iterations_of_the_loop() -> None:
    async def write(ctx: StageContext) -> AsyncIterator[float]:
        await asyncio.sleep(0.01)
        yield iterations

    iterations = 0

    async def counts() -> None:
        nonlocal iterations
        while True:
            await asyncio.sleep(0)
            iterations += 1

    async def passed(pipeline: Pipeline, stage: str) -> int:
        counting = asyncio.create_task(counts())
        async with pipeline.build().stream(stages=stage) as run:
            chunk = await anext(run)
            took = iterations - int(chunk.value)
        counting.cancel()
        return took

    pipeline = Pipeline("p").with_stage("a", write)
    assert asyncio.run(passed(pipeline, "a")) <= 2
    for before, name in (("a", "b"), ("b", "c")):
        pipeline = pipeline.with_stage(name, shout_of(before), streams=(before,))
    assert asyncio.run(passed(pipeline, "c")) <= 6


# ---------------------------------------------------------------- usage of language models


def test_usage_is_updated_while_the_stream_proceeds(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        call = ctx.record_llm("m", input_tokens=7, provider="acme", operation="text_completion")
        async for word in words("a", "b", "c")(ctx):
            yield word
            call.update(output_tokens=len(word) + 1, cost_usd=0.1)
        call.update(output_tokens=3, finish_reason="stop")

    reading(Pipeline("p").with_stage("write", write), sink)
    for event in (stage_wide(sink.events, "write"), of_type(sink.events, "pipeline.wide")[0]):
        attributes = event["attributes"]
        assert attributes["llm.calls"] == 1
        assert attributes["gen_ai.usage.input_tokens"] == 7
        assert attributes["gen_ai.usage.output_tokens"] == 3
        assert attributes["llm.cost_usd"] == 0.1
        assert "usage_incomplete" not in attributes
    of_stage = stage_wide(sink.events, "write")["attributes"]
    assert of_stage["gen_ai.operation.name"] == "text_completion"
    assert of_stage["gen_ai.response.finish_reasons"] == ["stop"]


@pytest.mark.parametrize("reports", [True, False])
def test_usage_is_recorded_or_marked_incomplete_if_the_reader_leaves(
    sink: MemoryEventSink, reports: bool
) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        call = ctx.record_llm("m", input_tokens=7)
        for number in range(1, 100):
            await asyncio.sleep(1)
            if reports:
                call.update(output_tokens=number)
            yield "a"
        call.update(output_tokens=99)

    results = left_early(recorded(Pipeline("p").with_stage("write", write), sink))
    assert results.outcome == "cancelled"
    for event in (stage_wide(sink.events, "write"), of_type(sink.events, "pipeline.wide")[0]):
        assert event["attributes"]["gen_ai.usage.input_tokens"] == 7
        assert event["attributes"].get("gen_ai.usage.output_tokens") == (2 if reports else None)
        assert event["attributes"].get("usage_incomplete") == (None if reports else True)


async def test_usage_that_arrives_after_the_attempt_amends_its_event(sink: MemoryEventSink) -> None:
    calls: list[Any] = []

    async def write(ctx: StageContext) -> None:
        calls.append(ctx.record_llm("m"))

    async def after(ctx: StageContext) -> None:
        calls[0].update(output_tokens=5)

    pipeline = Pipeline("p").with_stage("write", write).with_stage("after", after, dependencies=("write",))
    await recorded(pipeline, sink).run()
    assert stage_wide(sink.events, "write")["attributes"]["usage_incomplete"] is True
    amended: dict[str, Any] = {}
    for event in of_type(sink.events, "stage.wide.amend"):
        amended |= event["attributes"]
    assert amended == {
        "gen_ai.request.model": "m",
        "gen_ai.usage.output_tokens": 5,
        "usage_incomplete": False,
    }


async def test_usage_of_items_and_of_several_calls_is_summed(sink: MemoryEventSink) -> None:
    async def each(ctx: StageContext, item: int) -> int:
        call = ctx.record_llm("m")
        call.update(output_tokens=item)
        call.update(output_tokens=item * 10)
        if item == 3:
            ctx.record_llm("m")
        return item

    pipeline = Pipeline("p").with_stage("list", lambda ctx: [1, 2, 3]).with_map("map", each, over="list")
    await recorded(pipeline, sink).run()
    attributes = stage_wide(sink.events, "map")["attributes"]
    assert (attributes["gen_ai.usage.output_tokens"], attributes["llm.calls"]) == (60, 4)
    assert attributes["usage_incomplete"] is True


async def test_invalid_updates_of_usage_are_errors_or_counted(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> None:
        call = ctx.record_llm("m", output_tokens=1)
        with pytest.raises(InvalidArgumentError, match="did you mean 'output_tokens'"):
            call.update(output_token=3)  # type: ignore[call-arg]
        call.update(output_tokens="many")  # type: ignore[arg-type]
        call.update(output_tokens=4)

    assert (await recorded(Pipeline("p").with_stage("write", write), sink).run()).outcome == "ok"
    assert stage_wide(sink.events, "write")["attributes"]["gen_ai.usage.output_tokens"] == 4


def test_small_costs_are_not_rounded_away(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        call = ctx.record_llm("m")
        for number in range(1, 1001):
            call.update(output_tokens=number, cost_usd=number * 4e-7)
            yield "a"
        ctx.record_llm("m", output_tokens=1, cost_usd=4e-7)

    run(Pipeline("p").with_stage("write", write), sink)
    for event in (stage_wide(sink.events, "write"), of_type(sink.events, "pipeline.wide")[0]):
        assert event["attributes"]["llm.cost_usd"] == pytest.approx(0.0004004)


def test_usage_outside_a_stage_has_no_effect() -> None:
    stageflow.record_llm("m", input_tokens=1).update(output_tokens=2)


# ---------------------------------------------------------------- the journal and the command line


STREAMS_SLOWLY = """
    import asyncio, sys
    import stageflow
    from stageflow import Pipeline, PipelineContext
    stageflow.configure(journal=sys.argv[1])

    async def write(ctx):
        for number in range(5):
            yield "token "
        print("ready", flush=True)
        await asyncio.Event().wait()

    async def main():
        graph = Pipeline("p").with_stage("write", write).build()
        async with graph.stream(PipelineContext(pipeline_run_id="r"), buffer=100) as run:
            async for chunk in run:
                pass

    asyncio.run(main())
"""


@pytest.fixture
def streaming(program: Callable[[str], Program]) -> Program:
    """A process whose run has sent five chunks, which a heartbeat has recorded."""
    running = program(STREAMS_SLOWLY)
    running.wait_for("ready")
    ends = time.monotonic() + 50
    while time.monotonic() < ends:
        found = Journal(running.journal).runs()
        stages = found[0]["stages_running"] if found else []
        if stages and stages[0]["stream"]:
            return running
        time.sleep(0.05)
    pytest.fail("no heartbeat contains the stream")


def test_show_draws_the_chunks_of_a_running_stage(streaming: Program) -> None:
    shown = CliRunner().invoke(app, ["show", "r", "--journal", streaming.journal], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert "5 chunks, first after" in shown.stdout


def test_record_of_a_crashed_stream_has_its_chunks_so_far(streaming: Program) -> None:
    streaming.process.send_signal(signal.SIGKILL)
    streaming.ended()
    story = Journal(streaming.journal).run("r")
    (stage,) = story.stages
    assert (stage["status"], story.run["outcome"]) == ("CANCEL", "crashed")
    assert (stage["stream"]["chunks"], stage["stream"]["bytes"]) == (5, 30)
    assert stage["stream"]["first_chunk_ms"] is not None


def test_show_and_tail_summarize_streams(tmp_path: Path) -> None:
    async def main() -> None:
        sink = JournalSink(tmp_path / "journal")
        graph = (
            Pipeline("p")
            .with_stage("write", words(*"abcdef", every=0.001))
            .build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(sink),
            )
        )
        async with graph.stream(PipelineContext(pipeline_run_id="slow"), buffer=1) as run:
            async for _ in run:
                await asyncio.sleep(0.02)
        async with graph.stream(PipelineContext(pipeline_run_id="left")) as run:
            await anext(run)
        sink.close()

    asyncio.run(main())
    journal = str(tmp_path / "journal")

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--journal", journal], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.stdout

    assert re.search(
        r"6 chunks, first after [\d.]+ ms, [\d.]+ per s, waited \d[\d.]+ ms for a reader",
        invoke("show", "slow"),
    )
    assert "the reader left" in invoke("show", "left")
    assert "6 chunks, first after" in invoke("tail")


def test_explain_finds_a_slow_client(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path / "journal")
    clock = VirtualClock()

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        await asyncio.sleep(1)
        for _ in range(10):
            yield "token "

    graph = (
        Pipeline("p")
        .with_stage("write", write)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )

    async def main() -> None:
        for number in range(120):
            async with graph.stream(PipelineContext(user_id=f"u{number}"), buffer=1) as run:
                async for _ in run:
                    await asyncio.sleep(2 if number % 4 == 0 else 0)

    clock.run(main())
    sink.close()
    with EventStore(tmp_path / "journal") as store:
        found = store.explain("duration_ms > 5000")
    assert "stream_blocked_ms" in str(found)
