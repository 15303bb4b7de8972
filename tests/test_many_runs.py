"""`run_many`: order of completion, limited concurrency, cleanup, and isolation between runs."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from stageflow import Pipeline, PipelineContext, PipelineResults, StageOutput, active_runs
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.testing import VirtualClock


async def sleeps(ctx: Any) -> dict[str, Any]:
    await asyncio.sleep(ctx.run.data["seconds"])
    return {"seconds": ctx.run.data["seconds"]}


GRAPH = Pipeline("p").with_stage("s", sleeps).build()


def contexts(*seconds: float) -> Iterator[PipelineContext]:
    return (PipelineContext(data={"seconds": value}) for value in seconds)


def test_results_come_in_order_of_completion() -> None:
    async def main() -> list[float]:
        async with GRAPH.run_many(contexts(3, 1, 2)) as runs:
            return [results.data("s")["seconds"] async for results in runs]

    assert VirtualClock().run(main()) == [1, 2, 3]


def test_concurrency_limits_the_started_runs() -> None:
    most = 0
    taken = 0

    def counted() -> Iterator[PipelineContext]:
        nonlocal taken
        for context in contexts(*[1.0] * 20):
            taken += 1
            yield context

    async def main() -> int:
        nonlocal most
        handed_out = 0
        async with GRAPH.run_many(counted(), concurrency=4) as runs:
            async for _ in runs:
                handed_out += 1
                most = max(most, taken - handed_out + 1)
        return handed_out

    assert VirtualClock().run(main()) == 20
    assert most == 4


def test_contexts_can_be_an_asynchronous_iterable() -> None:
    closed = False

    async def stream() -> AsyncIterator[PipelineContext]:
        nonlocal closed
        try:
            while True:
                await asyncio.sleep(1)
                yield PipelineContext(data={"seconds": 0})
        finally:
            closed = True

    async def main() -> None:
        async with GRAPH.run_many(stream(), concurrency=2) as runs:
            count = 0
            async for _ in runs:
                count += 1
                if count == 5:
                    break

    VirtualClock().run(main())
    assert closed


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
def test_leaving_the_block_early_cancels_the_source_and_all_runs(how: str) -> None:
    sink = MemoryEventSink()
    graph = (
        Pipeline("p")
        .with_stage("s", sleeps)
        .build(emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink))
    )

    async def early() -> None:
        async with graph.run_many(contexts(1, *[100.0] * 9)) as runs:
            async for _ in runs:
                assert len(active_runs()) == 9
                if how == "break":
                    break
                if how == "raise":
                    raise ValueError("enough")

    async def main() -> None:
        task = asyncio.create_task(early())
        if how == "cancel":
            await asyncio.sleep(2)
            task.cancel()
        await asyncio.wait([task])
        assert asyncio.all_tasks() == {asyncio.current_task()}
        if how == "raise":
            assert isinstance(task.exception(), ValueError)
        assert task.cancelled() is (how == "cancel")

    VirtualClock().run(main())
    outcomes = [event["outcome"] for event in sink.of_type("pipeline.wide")]
    assert sorted(outcomes) == ["cancelled"] * 9 + ["ok"]
    assert active_runs() == []


def numbered(*numbers: int) -> Iterator[PipelineContext]:
    return (PipelineContext(data={"seconds": 0, "n": number}) for number in numbers)


async def echo(ctx: Any) -> dict[str, Any]:
    return {"n": ctx.run.data["n"]}


ECHO = Pipeline("p").with_stage("s", echo).build()


def test_result_is_available_while_the_source_waits() -> None:
    async def source() -> AsyncIterator[PipelineContext]:
        for context in numbered(1, 2):
            yield context
            await asyncio.sleep(100)

    async def main() -> list[tuple[int, float]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with ECHO.run_many(source(), concurrency=8) as runs:
            return [(results.data("s")["n"], loop.time() - began) async for results in runs]

    assert VirtualClock().run(main()) == [(1, 0), (2, 100)]


@pytest.mark.parametrize("concurrency", [1, 2, 64])
def test_source_can_depend_on_earlier_results(concurrency: int) -> None:
    async def main() -> list[int]:
        queue: asyncio.Queue[int | None] = asyncio.Queue()
        queue.put_nowait(1)

        async def crawl() -> AsyncIterator[PipelineContext]:
            while (number := await queue.get()) is not None:
                for context in numbered(number):
                    yield context

        found = []
        async with ECHO.run_many(crawl(), concurrency=concurrency) as runs:
            async for results in runs:
                found.append(results.data("s")["n"])
                queue.put_nowait(found[-1] + 1 if found[-1] < 20 else None)
        return found

    assert VirtualClock().run(asyncio.wait_for(main(), 10)) == list(range(1, 21))


def test_timeout_around_anext_loses_no_result() -> None:
    async def source() -> AsyncIterator[PipelineContext]:
        for number in range(5):
            await asyncio.sleep(1)
            for context in contexts(0.5):
                yield PipelineContext(data={**context.data, "n": number})

    async def main() -> list[Any]:
        got: list[Any] = []
        async with ECHO.run_many(source(), concurrency=2) as runs:
            while True:
                try:
                    async with asyncio.timeout(0.3):
                        got.append((await anext(runs)).data("s")["n"])
                except TimeoutError:
                    got.append("idle")
                except StopAsyncIteration:
                    return got

    got = VirtualClock().run(main())
    assert [each for each in got if each != "idle"] == list(range(5))
    assert got.count("idle") > 10


def test_several_readers_share_the_results() -> None:
    async def main() -> list[list[int]]:
        got: list[list[int]] = [[], [], []]

        async def read(runs: Any, mine: list[int]) -> None:
            async for results in runs:
                mine.append(results.data("s")["n"])
                await asyncio.sleep(1)

        async with ECHO.run_many(numbered(*range(12)), concurrency=4) as runs:
            await asyncio.gather(*(read(runs, mine) for mine in got))
        return got

    got = VirtualClock().run(main())
    assert sorted(number for mine in got for number in mine) == list(range(12))
    assert [len(mine) for mine in got] == [4, 4, 4]


@pytest.mark.parametrize("waiting_in", ["source", "run"])
def test_exception_of_the_block_is_never_masked(waiting_in: str, caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []

    async def source() -> AsyncIterator[PipelineContext]:
        try:
            yield PipelineContext(data={"seconds": 100 if waiting_in == "run" else 0})
            if waiting_in == "source":
                await asyncio.Event().wait()
            while True:
                yield PipelineContext(data={"seconds": 0.3})
        finally:
            events.append("closed")
            raise ValueError("of the source")

    async def main() -> None:
        async def read(runs: Any) -> None:
            async for _ in runs:
                events.append("read")  # noqa: PERF401
            events.append("reader ended")

        reader = None
        try:
            async with GRAPH.run_many(source(), concurrency=2) as runs:
                reader = asyncio.create_task(read(runs))
                await asyncio.sleep(1)
                raise KeyError("mine")
        finally:
            assert reader is not None
            await asyncio.wait_for(reader, 10)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with pytest.raises(KeyError) as caught:
        VirtualClock().run(main())
    assert caught.value.args == ("mine",)
    assert "closed" in events
    assert "reader ended" in events
    assert active_runs() == []
    assert "closing the contexts of run_many() failed: ValueError: of the source" in caplog.text


def test_error_while_closing_the_source_is_raised_if_the_block_raised_none() -> None:
    async def source() -> AsyncIterator[PipelineContext]:
        try:
            for context in numbered(1, 2):
                yield context
        finally:
            raise ValueError("of the source")

    async def main() -> None:
        async with ECHO.run_many(source(), concurrency=1) as runs:
            async for _ in runs:
                break

    with pytest.raises(ValueError, match="of the source"):
        VirtualClock().run(main())


@pytest.mark.parametrize("fails_with", [OSError("source"), asyncio.CancelledError("pool closed")])
def test_error_of_the_source_is_raised_after_the_results_of_earlier_runs(
    fails_with: BaseException,
) -> None:
    async def source() -> AsyncIterator[PipelineContext]:
        for context in contexts(3, 1):
            yield context
        raise fails_with

    async def main() -> list[Any]:
        got: list[Any] = []
        async with GRAPH.run_many(source()) as runs:
            while True:
                try:
                    got.append((await anext(runs)).data("s")["seconds"])
                except StopAsyncIteration:
                    return got
                except Exception as error:
                    got.append(str(error.__cause__ or error))

    assert VirtualClock().run(main()) == [1, 3, str(fails_with)]


def test_cancellation_on_exit_interrupts_a_source_that_does_not_close() -> None:
    async def source() -> AsyncIterator[PipelineContext]:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()
        yield PipelineContext()

    async def leaves(raised: BaseException | None) -> None:
        async with GRAPH.run_many(source()):
            await asyncio.sleep(0)
            if raised is not None:
                raise raised

    async def main() -> None:
        for raised in (None, KeyError("mine")):
            task = asyncio.create_task(leaves(raised))
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.done()
            assert task.cancelled() is (raised is None)
            if raised is not None:
                assert task.exception() is raised
            assert asyncio.all_tasks() == {asyncio.current_task()}

    VirtualClock().run(main())


def test_cancel_scope_in_the_source_cancels_nothing_else() -> None:
    async def source() -> AsyncIterator[PipelineContext]:
        async with asyncio.timeout(2), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            for context in contexts(5, 5):
                yield context
            await asyncio.sleep(100)

    async def main() -> list[Any]:
        got: list[Any] = []
        async with GRAPH.run_many(source()) as runs:
            try:
                async for results in runs:
                    got.append(results.outcome)  # noqa: PERF401
            except TimeoutError:
                got.append("timeout")
        return got

    assert VirtualClock().run(main()) == ["ok", "ok", "timeout"]


@pytest.mark.timeout(20)
async def test_endless_synchronous_iterable_does_not_block_the_event_loop() -> None:
    def endless() -> Iterator[PipelineContext]:
        while True:
            yield PipelineContext(data={"n": 1})

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    async with ECHO.run_many(endless(), concurrency=10**9) as runs:
        async for _ in runs:
            if ticks > 20:
                break
    ticker.cancel()


async def test_source_and_runs_see_the_context_variables_of_the_block() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")
    seen: list[tuple[str, str]] = []

    async def looks(ctx: Any) -> None:
        seen.append((ctx.run.data, tenant.get()))

    async def source() -> AsyncIterator[PipelineContext]:
        yield PipelineContext(data=tenant.get())
        await asyncio.sleep(0)
        tenant.set("of the source")
        yield PipelineContext(data=tenant.get())

    tenant.set("acme")
    async with Pipeline("p").with_stage("s", looks).build().run_many(source(), concurrency=1) as runs:
        async for _ in runs:
            pass
    assert seen == [("acme", "acme"), ("of the source", "of the source")]
    assert tenant.get() == "acme"


async def test_block_cannot_be_entered_twice_and_has_no_results_after_exit() -> None:
    runs = ECHO.run_many(numbered(1, 2))
    async with runs:
        await anext(runs)
    with pytest.raises(StopAsyncIteration):
        await anext(runs)
    with pytest.raises(RuntimeError, match="entered twice"):
        async with runs:
            pass


async def test_iterating_run_many_without_a_block_raises_with_a_hint() -> None:
    with pytest.raises(RuntimeError) as caught:
        async for _ in GRAPH.run_many(contexts(0)):
            pass
    assert "hint: async with graph.run_many(contexts) as runs" in str(caught.value)
    with pytest.raises(
        ValueError,
        match=r"^run_many\(\): concurrency must be a positive integer, got 0 \[pipeline 'p'\]",
    ):
        GRAPH.run_many(contexts(0), concurrency=0)


async def mixed(ctx: Any) -> Any:
    number = ctx.run.data["n"]
    ctx.annotate(n=number, by=ctx.stage)
    # Two stages of a run never end at the same time, because their order would be arbitrary.
    await asyncio.sleep(number % 7 + {"left": 0.1, "right": 0.2, "last": 0.3}[ctx.stage])
    kind = number % 6
    if kind == 1:
        raise ValueError(f"run {number}")
    if kind == 2:
        return StageOutput.skip(f"run {number}")
    if kind == 3:
        return StageOutput.stop(f"run {number}")
    if kind == 4 and ctx.attempt == 1:
        return StageOutput.retry(f"run {number}", after=number % 5)
    return {"n": number, "seen": ctx.inputs.get_from("first", "n")}


def test_1000_concurrent_runs_have_the_same_results_as_single_runs() -> None:
    async def first(ctx: Any) -> dict[str, int]:
        await asyncio.sleep(ctx.run.data["n"] % 3)
        return {"n": ctx.run.data["n"]}

    graph = (
        Pipeline("p")
        .with_stage("first", first)
        .with_stage("left", mixed, dependencies=("first",))
        .with_stage("right", mixed, dependencies=("first",), optional=True)
        .with_stage("last", mixed, dependencies=("left", "right"), conditional=True)
        .build()
    )

    def summary(results: PipelineResults) -> Any:
        return (
            results.outcome,
            results.error,
            results.duration_ms,
            [
                (
                    r.name,
                    r.status,
                    r.data,
                    r.error,
                    r.reason,
                    r.attempts,
                    r.duration_ms,
                    r.total_ms,
                    r.attributes,
                )
                for r in results.values()
            ],
        )

    async def all_at_once() -> list[PipelineResults]:
        return await asyncio.gather(*(graph.run(PipelineContext(data={"n": n})) for n in range(1000)))

    together = VirtualClock().run(all_at_once())
    assert len({results.context.pipeline_run_id for results in together}) == 1000
    for number, results in enumerate(together):
        # Only these determine the results of a run; each combination is run once on its own.
        if number >= 210:
            break
        alone = VirtualClock().run(graph.run(PipelineContext(data={"n": number})))
        assert summary(results) == summary(alone)
    for number, results in enumerate(together):
        assert results["first"].data == {"n": number}


def test_run_sync_requires_a_thread_without_a_loop() -> None:
    results = GRAPH.run_sync(PipelineContext(data={"seconds": 0}))
    assert results.ok

    async def main() -> None:
        GRAPH.run_sync()

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(main())
    assert str(caught.value) == (
        "pipeline 'p': run_sync() would block the event loop of this thread"
        "\n  hint: use `await graph.run(ctx)`"
    )


async def test_synchronous_stage_can_run_another_pipeline_with_run_sync() -> None:
    sink = MemoryEventSink()

    async def waits(ctx: Any) -> None:
        await asyncio.sleep(0)

    inner = (
        Pipeline("inner")
        .with_stage("waits", waits)
        .build(emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink))
    )

    def outer(ctx: Any) -> None:
        inner.run_sync()

    results = await Pipeline("outer").with_stage("outer", outer).run()
    ((_, event),) = sink.events
    assert event["parent_run_id"] == results.context.pipeline_run_id


async def test_active_runs_lists_pipeline_run_and_stages() -> None:
    inside, held = asyncio.Event(), asyncio.Event()

    async def waits(ctx: Any) -> None:
        inside.set()
        await held.wait()

    task = asyncio.create_task(Pipeline("held").with_stage("waits", waits).run())
    await inside.wait()
    (run,) = active_runs()
    assert (run.pipeline, run.stages) == ("held", ("waits",))
    held.set()
    results = await task
    assert run.pipeline_run_id == results.context.pipeline_run_id
    assert active_runs() == []


def test_progress_bar_is_not_written_to_a_pipe() -> None:
    script = """
import asyncio
from stageflow import Pipeline, PipelineContext
from stageflow.render import track

async def s(ctx): ...
async def main():
    graph = Pipeline("p").with_stage("s", s).build()
    async with graph.run_many([PipelineContext()] * 20) as runs:
        print(len([results async for results in track(runs, total=20)]))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("20\n", "")
