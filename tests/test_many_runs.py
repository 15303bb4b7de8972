"""Many runs: in order of completion, bounded, nothing left behind, no leak from one to another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from stageflow import (
    MemoryEventSink,
    Pipeline,
    PipelineContext,
    PipelineResults,
    StageOutput,
    WideEventEmitter,
    active_runs,
)
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


def test_no_more_runs_are_started_than_concurrency_allows() -> None:
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


def test_contexts_may_be_an_asynchronous_stream() -> None:
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
def test_nothing_is_left_behind_when_it_is_left_early(how: str) -> None:
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


async def test_it_is_a_context_manager_and_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        async for _ in GRAPH.run_many(contexts(0)):
            pass
    assert "hint: async with graph.run_many(contexts) as runs" in str(caught.value)
    with pytest.raises(ValueError, match=r"^pipeline 'p': run_many\(concurrency=0\); give a whole"):
        GRAPH.run_many(contexts(0), concurrency=0)


async def mixed(ctx: Any) -> Any:
    number = ctx.run.data["n"]
    ctx.annotate(n=number, by=ctx.stage)
    # Never two stages of a run at the same moment: their order would be left to the loop.
    await asyncio.sleep(number % 7 + {"left": 0.1, "right": 0.2, "last": 0.3}[ctx.stage])
    kind = number % 6
    if kind == 1:
        raise ValueError(f"run {number}")
    if kind == 2:
        return StageOutput.skip(f"run {number}")
    if kind == 3:
        return StageOutput.cancel(f"run {number}")
    if kind == 4 and ctx.attempt == 1:
        return StageOutput.retry(f"run {number}", after=number % 5)
    return {"n": number, "seen": ctx.inputs.get_from("first", "n")}


def test_1000_runs_at_once_come_to_what_each_comes_to_alone() -> None:
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

    def told(results: PipelineResults) -> Any:
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
        # What a run comes to depends on these alone; each kind of run is run alone once.
        if number >= 210:
            break
        alone = VirtualClock().run(graph.run(PipelineContext(data={"n": number})))
        assert told(results) == told(alone)
    for number, results in enumerate(together):
        assert results["first"].data == {"n": number}


def test_run_sync_is_for_code_without_a_loop() -> None:
    results = GRAPH.run_sync(PipelineContext(data={"seconds": 0}))
    assert results.ok

    async def main() -> None:
        GRAPH.run_sync()

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(main())
    assert str(caught.value) == (
        "pipeline 'p': run_sync() would block the event loop that runs in this thread"
        "\n  hint: await graph.run(ctx)"
    )


async def test_a_plain_stage_may_run_another_pipeline_with_run_sync() -> None:
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


async def test_active_runs_tells_pipeline_run_and_stages() -> None:
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


def test_the_progress_bar_stays_out_of_a_pipe() -> None:
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
