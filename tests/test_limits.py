"""Limits: `max_concurrency` of a run, and named limits that all runs of a process share."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from stageflow import (
    Limits,
    Pipeline,
    PipelineResults,
    PipelineValidationError,
    Retry,
    StageOutput,
    StageStatus,
    active_runs,
)
from stageflow.testing import VirtualClock


class Counting:
    """A stage that counts how many of its attempts are under way at once."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.now = 0
        self.most = 0
        self.order: list[str] = []

    async def execute(self, ctx: Any) -> None:
        self.order.append(str(ctx.run.user_id or ctx.stage))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1


def test_max_concurrency_bounds_the_stages_of_one_run() -> None:
    stage = Counting()
    pipeline = Pipeline("p")
    for number in range(10):
        pipeline = pipeline.with_stage(f"s{number}", stage)

    results = VirtualClock().run(pipeline.build(max_concurrency=3).run())
    assert stage.most == 3
    assert stage.order == [f"s{number}" for number in range(10)]
    assert results["s9"].queue_ms == 3000
    assert results["s9"].duration_ms == 1000
    assert results.duration_ms == 4000


def test_a_named_limit_is_shared_by_all_runs_of_all_graphs_first_come_first_served() -> None:
    limits, stage = Limits(openai=2), Counting()
    graphs = [
        Pipeline(name).with_stage(name, stage, limit="openai").build(limits=limits) for name in ("a", "b")
    ]

    async def main() -> list[PipelineResults]:
        return await asyncio.gather(*(graphs[number % 2].run() for number in range(8)))

    runs = VirtualClock().run(main())
    assert stage.most == 2
    assert stage.order == ["a", "b"] * 4
    waits = [result.queue_ms for run in runs for result in run.values()]
    assert waits == [0, 0, 1000, 1000, 2000, 2000, 3000, 3000]
    assert (limits["openai"].taken, limits["openai"].waiting) == (0, 0)


def test_a_limit_holds_across_loops_in_several_threads() -> None:
    limits = Limits(gpu=1)
    inside = threading.Lock()
    clashes = []

    async def uses_the_gpu(ctx: Any) -> None:
        if not inside.acquire(blocking=False):
            clashes.append(ctx.run.pipeline_run_id)
            return
        await asyncio.sleep(0)
        inside.release()

    graph = Pipeline("p").with_stage("gpu", uses_the_gpu, limit="gpu").build(limits=limits)
    ended: list[PipelineResults] = []

    def many() -> None:
        async def main() -> None:
            ended.extend(await asyncio.gather(*(graph.run() for _ in range(50))))

        asyncio.run(main())

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert clashes == []
    assert len(ended) == 200
    assert all(run.ok for run in ended)
    assert limits["gpu"].taken == 0


def test_no_place_is_held_during_the_wait_before_a_retry() -> None:
    limits = Limits(api=1)

    async def flaky(ctx: Any) -> StageOutput:
        return StageOutput.retry("busy", after=100) if ctx.attempt == 1 else StageOutput.ok()

    pipeline = Pipeline("p").with_stage("flaky", flaky, limit="api", retry=Retry(2))
    pipeline = pipeline.with_stage("quick", Counting(), limit="api")
    results = VirtualClock().run(pipeline.build(limits=limits).run())
    assert results["quick"].total_ms == 1000
    assert results["flaky"].status is StageStatus.OK
    assert limits["api"].taken == 0


def test_a_stage_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    limits, stage = Limits(api=1), Counting(10)
    graph = Pipeline("p").with_stage("s", stage, limit="api").build(limits=limits)

    async def main() -> None:
        first = asyncio.create_task(graph.run())
        await asyncio.sleep(1)
        second = asyncio.create_task(graph.run())
        third = asyncio.create_task(graph.run())
        await asyncio.sleep(1)
        assert limits["api"].waiting == 2
        second.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert limits["api"].waiting == 1
        assert (await first).ok
        results = await third
        assert results.ok
        assert results["s"].queue_ms == 9000
        with pytest.raises(asyncio.CancelledError):
            await second

    VirtualClock().run(main())
    assert stage.order == ["s", "s"]
    assert limits["api"].taken == 0
    assert active_runs() == []


def test_an_abandoned_stage_gives_its_place_back() -> None:
    limits = Limits(api=1)
    let_go = asyncio.Event()

    async def stubborn(ctx: Any) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass

    graph = Pipeline("p").with_stage("s", stubborn, limit="api", timeout=1).build(limits=limits, grace=1)

    async def main() -> None:
        results = await graph.run()
        assert results.abandoned == ("s",)
        assert limits["api"].taken == 0
        let_go.set()
        await asyncio.sleep(0)

    VirtualClock().run(main())
    assert limits["api"].taken == 0


def test_a_limit_that_build_does_not_know_is_a_mistake() -> None:
    async def stage(ctx: Any) -> None: ...

    pipeline = Pipeline("p").with_stage("s", stage, limit="opnai")
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build(limits=Limits(openai=8))
    assert str(caught.value) == (
        "pipeline 'p' cannot be built: 1 problem\n"
        "  1. stage 's': limit='opnai' is not among the limits of build(), which has 'openai'"
        "; did you mean 'openai'?"
    )
    with pytest.raises(ValueError, match=r"^Limits\(openai=0\): give a whole number, 1 or more$"):
        Limits(openai=0)


def test_queued_run_of_a_closed_loop_releases_no_permit_when_it_is_collected() -> None:
    limits = Limits(gpu=1)
    running = most = 0

    async def hold(ctx: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.05)
        finally:
            running -= 1

    graph = Pipeline("p").with_stage("s", hold, limit="gpu").build(limits=limits)

    async def start() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(graph.run())
        await asyncio.sleep(0.01)
        return task

    holder, waiter = asyncio.new_event_loop(), asyncio.new_event_loop()
    holds = holder.run_until_complete(start())
    waits = waiter.run_until_complete(start())
    waits._log_destroy_pending = False  # type: ignore[attr-defined]
    waiter.close()
    holder.run_until_complete(holds)  # hands the permit to the run of the closed loop, and takes it back
    holder.close()
    del waits
    gc.collect()
    assert limits["gpu"].taken == 0

    async def several() -> None:
        await asyncio.gather(*(graph.run() for _ in range(4)))

    asyncio.run(several())
    assert most == 1
