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
    PipelineContext,
    PipelineResults,
    Retry,
    StageOutput,
    StageStatus,
    active_runs,
)
from stageflow.errors import LimitDeadlockError, PipelineValidationError
from stageflow.testing import VirtualClock, capture_events


class Counting:
    """A stage that counts how many of its attempts are running at once."""

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


def test_named_limit_is_shared_by_all_graphs_in_order_of_requests() -> None:
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


def test_limit_applies_across_loops_in_several_threads() -> None:
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


def test_no_permit_is_held_during_the_wait_before_a_retry() -> None:
    limits = Limits(api=1)

    async def flaky(ctx: Any) -> StageOutput:
        return StageOutput.retry("busy", after=100) if ctx.attempt == 1 else StageOutput.ok()

    pipeline = Pipeline("p").with_stage("flaky", flaky, limit="api", retry=Retry(2))
    pipeline = pipeline.with_stage("quick", Counting(), limit="api")
    results = VirtualClock().run(pipeline.build(limits=limits).run())
    assert results["quick"].total_ms == 1000
    assert results["flaky"].status is StageStatus.OK
    assert limits["api"].taken == 0


def test_cancelled_stage_leaves_the_queue_of_its_limit() -> None:
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


def test_abandoned_stage_releases_its_permit() -> None:
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


def test_unknown_limit_is_a_validation_error() -> None:
    async def stage(ctx: Any) -> None: ...

    pipeline = Pipeline("p").with_stage("s", stage, limit="opnai")
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build(limits=Limits(openai=8))
    assert str(caught.value) == (
        "pipeline 'p' cannot be built: 1 problem\n"
        "  1. stage 's': unknown limit 'opnai'; build() has 'openai'"
        "; did you mean 'openai'?"
    )
    with pytest.raises(ValueError, match=r"^Limits: openai must be a positive integer, got 0$"):
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
    holder.run_until_complete(holds)  # grants the permit to the run of the closed loop, and reclaims it
    holder.close()
    del waits
    gc.collect()
    assert limits["gpu"].taken == 0

    async def several() -> None:
        await asyncio.gather(*(graph.run() for _ in range(4)))

    asyncio.run(several())
    assert most == 1


@pytest.mark.parametrize("collects", [0, 2, 5])
@pytest.mark.parametrize("threshold", [50, 700])
def test_collecting_a_queued_run_reports_no_error_in_any_order(threshold: int, collects: int) -> None:
    limits = Limits(gpu=1)

    async def hold(ctx: Any) -> None:
        await asyncio.sleep(0.001)

    graph = Pipeline("p").with_stage("s", hold, limit="gpu").build(limits=limits)

    async def start() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(graph.run())
        for iteration in range(3):
            await asyncio.sleep(0)
            if collects >> iteration & 1:
                gc.collect(0)  # objects that survive are collected in another order later
        return task

    usual = gc.get_threshold()
    gc.set_threshold(threshold)
    try:
        holder, waiter = asyncio.new_event_loop(), asyncio.new_event_loop()
        holds = holder.run_until_complete(start())
        waits = waiter.run_until_complete(start())
        waits._log_destroy_pending = False  # type: ignore[attr-defined]
        waiter.close()
        holder.run_until_complete(holds)
        holder.close()
        del waits
        gc.collect()  # pytest fails the test for an exception in a finalizer
    finally:
        gc.set_threshold(*usual)
    assert limits["gpu"].taken == 0


# ------------------------------------------------------------ nested runs that wait for their own ancestors


async def no_op(ctx: Any) -> None: ...


def nesting(limits: Limits, name: str, limit: str | None, child: Any, **options: Any) -> Any:
    """Return a graph with one stage, which holds a permit of `limit` and runs `child`."""

    async def runs_child(ctx: Any) -> dict[str, Any]:
        await asyncio.sleep(1)
        return {"child": await child.run()}

    return Pipeline(name).with_stage("runs", runs_child, limit=limit, **options).build(limits=limits)


def leaf(limits: Limits, limit: str, seconds: float = 1, **options: Any) -> Any:
    return (
        Pipeline("leaf").with_stage("works", Counting(seconds), limit=limit, **options).build(limits=limits)
    )


def test_nested_run_that_waits_for_the_permit_of_its_own_stage_fails_at_once() -> None:
    limits = Limits(gpu=1)
    parent = nesting(limits, "parent", "gpu", leaf(limits, "gpu"))
    with capture_events() as events:
        results = VirtualClock().run(parent.run())
    child = results.data("runs")["child"]
    assert (child.outcome, results.duration_ms) == ("failed", 1000)
    error = child["works"].exception
    assert isinstance(error, LimitDeadlockError)
    run_id, child_id = results.context.pipeline_run_id, child.context.pipeline_run_id
    assert str(error) == (
        "limit 'gpu' would never become available: its only permit is held by stage 'runs' of pipeline "
        f"'parent', which waits for this run [stage 'works', pipeline 'leaf', run {child_id}]"
        "\n  hint: do not use the same limit for the stages of nested runs and for the stages that "
        f"start them; permits are held in run {run_id}"
    )
    assert (error.limit, error.holders) == ("gpu", (("parent", "runs", run_id),))
    event = events.stage("works")
    assert (event["status"], event["attempts"], event["duration_ms"]) == ("FAIL", 0, 0)
    assert event["reason"] == "no attempt started: its limit would never become available"
    assert str(run_id) not in event["error"]  # equal errors have equal texts
    assert (limits["gpu"].taken, limits["gpu"].waiting) == (0, 0)


@pytest.mark.parametrize(("parents", "failed"), [(3, 0), (4, 1), (8, 5)])
def test_nested_runs_of_many_parents_that_hold_all_permits_never_hang(parents: int, failed: int) -> None:
    limits = Limits(llm=4)
    parent = nesting(limits, "parent", "llm", leaf(limits, "llm"))

    async def main() -> list[PipelineResults]:
        return await asyncio.gather(*(parent.run() for _ in range(parents)))

    runs = VirtualClock().run(asyncio.wait_for(main(), 1000))
    outcomes = [run.data("runs")["child"].outcome for run in runs]
    # Whenever four parents hold all permits, the request of the last child is refused.
    assert (outcomes.count("failed"), outcomes.count("ok")) == (failed, parents - failed)
    assert (limits["llm"].taken, limits["llm"].waiting) == (0, 0)


def test_deadlock_across_two_limits_is_found() -> None:
    limits = Limits(a=1, b=1)
    graphs = [
        nesting(limits, "one", "a", leaf(limits, "b")),
        nesting(limits, "two", "b", leaf(limits, "a")),
    ]

    async def main() -> list[PipelineResults]:
        return await asyncio.gather(*(graph.run() for graph in graphs))

    runs = VirtualClock().run(asyncio.wait_for(main(), 100))
    children = [run.data("runs")["child"] for run in runs]
    assert sorted(child.outcome for child in children) == ["failed", "ok"]
    (failed,) = (child for child in children if not child.ok)
    assert isinstance(failed["works"].exception, LimitDeadlockError)


@pytest.mark.parametrize("middle_limit", [None, "other"])
def test_deadlock_with_an_ancestor_of_the_parent_is_found(middle_limit: str | None) -> None:
    limits = Limits(gpu=1, other=1)
    middle = nesting(limits, "middle", middle_limit, leaf(limits, "gpu"))
    results = VirtualClock().run(asyncio.wait_for(nesting(limits, "outer", "gpu", middle).run(), 100))
    error = results.data("runs")["child"].data("runs")["child"]["works"].exception
    assert isinstance(error, LimitDeadlockError)
    assert [holder[:2] for holder in error.holders] == [("outer", "runs")]


@pytest.mark.timeout(30)
def test_deadlock_of_a_nested_run_in_a_thread_and_on_another_loop_is_found() -> None:
    limits = Limits(gpu=1)
    child = Pipeline("leaf").with_stage("works", no_op, limit="gpu").build(limits=limits)

    def runs_child(ctx: Any) -> dict[str, Any]:
        return {"outcome": child.run_sync().outcome}

    parent = Pipeline("parent").with_stage("runs", runs_child, limit="gpu").build(limits=limits)
    assert parent.run_sync().data("runs") == {"outcome": "failed"}


def test_nested_run_waits_while_any_permit_can_still_be_released() -> None:
    limits = Limits(llm=2)
    other = Pipeline("other").with_stage("works", Counting(10), limit="llm").build(limits=limits)
    parent = nesting(limits, "parent", "llm", leaf(limits, "llm"))

    async def main() -> list[PipelineResults]:
        return await asyncio.gather(parent.run(), other.run())

    results, _ = VirtualClock().run(main())
    child = results.data("runs")["child"]
    assert (child.outcome, child["works"].queue_ms) == ("ok", 9000)


def test_nested_run_waits_for_a_stage_whose_own_nested_run_waits_for_another_limit() -> None:
    limits = Limits(a=1, b=1, c=1)
    busy = Pipeline("busy").with_stage("works", Counting(10), limit="b").build(limits=limits)
    first = nesting(limits, "first", "a", leaf(limits, "b"))
    second = nesting(limits, "second", "c", leaf(limits, "a"))

    async def main() -> list[PipelineResults]:
        return await asyncio.gather(busy.run(), first.run(), second.run())

    # `second` waits for `first`, which waits for `busy`, which waits for nothing.
    _, *runs = VirtualClock().run(asyncio.wait_for(main(), 100))
    children = [run.data("runs")["child"] for run in runs]
    assert [(child.outcome, child["works"].queue_ms) for child in children] == [("ok", 9000), ("ok", 10_000)]


def test_nested_run_that_continues_after_its_parent_stage_is_not_a_deadlock() -> None:
    limits = Limits(gpu=1)
    child = leaf(limits, "gpu")
    tasks = []

    async def starts_child(ctx: Any) -> None:
        async def later() -> PipelineResults:
            await asyncio.sleep(1)
            return await child.run()

        tasks.append(asyncio.create_task(later()))

    parent = Pipeline("parent").with_stage("starts", starts_child, limit="gpu").build(limits=limits)
    other = leaf(limits, "gpu", seconds=5)

    async def main() -> PipelineResults:
        await parent.run()
        blocks = asyncio.create_task(other.run())
        results = await tasks[0]
        await blocks
        return results

    results = VirtualClock().run(main())
    assert (results.outcome, results["works"].queue_ms) == ("ok", 4000)


@pytest.mark.parametrize(
    ("options", "outcome"),
    [({"retry": Retry(3, wait=1, on=Exception)}, "failed"), ({"optional": True}, "degraded")],
)
def test_deadlock_is_not_retried_and_an_optional_stage_degrades_the_run(
    options: dict[str, Any], outcome: str
) -> None:
    limits = Limits(gpu=1)
    parent = nesting(limits, "parent", "gpu", leaf(limits, "gpu", **options))
    results = VirtualClock().run(parent.run())
    child = results.data("runs")["child"]
    assert (child.outcome, child["works"].attempts, results.duration_ms) == (outcome, 0, 1000)


def test_deadlock_of_a_later_attempt_has_a_separate_event() -> None:
    limits = Limits(llm=2)
    attempts: list[int] = []

    async def flaky(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionError("again")

    child = (
        Pipeline("leaf")
        .with_stage("works", flaky, limit="llm", retry=Retry(3, wait=5, on=ConnectionError))
        .build(limits=limits)
    )
    parent = nesting(limits, "parent", "llm", child)

    async def main() -> PipelineResults:
        first = asyncio.create_task(parent.run())
        await asyncio.sleep(3)
        # It acquires the second permit while the first child waits for a retry, and also runs a child.
        second = asyncio.create_task(nesting(limits, "second", "llm", leaf(limits, "llm", 100)).run())
        await asyncio.wait([first, second])
        return first.result()

    with capture_events() as events:
        results = VirtualClock().run(asyncio.wait_for(main(), 1000))
    child_results = results.data("runs")["child"]
    assert attempts == [1]
    assert isinstance(child_results["works"].exception, LimitDeadlockError)
    assert child_results["works"].attempts == 1
    assert child_results["works"].reason == "attempt 2 did not start: its limit would never become available"
    ids = [event["event_id"] for event in events.of_type("stage.wide") if event["stage_name"] == "works"]
    assert len(ids) == len(set(ids))


# ------------------------------------------------------------ limits and max_concurrency


def test_stage_keeps_its_place_in_the_queue_while_other_stages_run() -> None:
    limits = Limits(gpu=1)
    began: dict[str, float] = {}

    def works(name: str, seconds: float) -> Any:
        async def run(ctx: Any) -> None:
            began.setdefault(name, asyncio.get_running_loop().time() - began["start"])
            await asyncio.sleep(seconds)

        return run

    pipeline = Pipeline("p").with_stage("needs", works("needs", 1), limit="gpu")
    for number in range(10):
        pipeline = pipeline.with_stage(f"x{number}", works(f"x{number}", 10))
    graph = pipeline.build(limits=limits, max_concurrency=1)
    rival = Pipeline("rival").with_stage("s", works("rival", 3), limit="gpu").build(limits=limits)

    async def main() -> None:
        began["start"] = asyncio.get_running_loop().time()
        stop = False

        async def contend() -> None:
            while not stop:
                await rival.run()

        rivals = [asyncio.create_task(contend()) for _ in range(3)]
        await asyncio.sleep(0)
        results = await graph.run()
        assert results.ok
        stop = True
        await asyncio.gather(*rivals)

    VirtualClock().run(main())
    # It is next in the queue while `x0` uses the only slot until 10; a rival holds the permit until 12.
    assert began["needs"] == 12
    assert began["x1"] == 13


def test_permit_is_never_idle_while_its_stage_waits_for_a_slot_of_max_concurrency() -> None:
    limits, rival_stage = Limits(gpu=1), Counting(1)
    pipeline = Pipeline("p").with_stage("needs", no_op, limit="gpu").with_stage("long", Counting(100))
    graph = pipeline.build(limits=limits, max_concurrency=1)
    rival = Pipeline("rival").with_stage("s", rival_stage, limit="gpu").build(limits=limits)

    async def main() -> tuple[list[PipelineResults], PipelineResults]:
        first = asyncio.create_task(rival.run())
        await asyncio.sleep(0.5)
        slow = asyncio.create_task(graph.run())
        await asyncio.sleep(0)
        rivals = await asyncio.gather(*(rival.run() for _ in range(5)))
        await first
        return rivals, await slow

    rivals, slow = VirtualClock().run(main())
    assert [run["s"].queue_ms for run in rivals] == [500, 1500, 2500, 3500, 4500]
    assert slow["needs"].queue_ms == 100_000
    assert limits["gpu"].taken == 0


def test_deferred_stages_get_their_permits_in_the_order_of_their_requests() -> None:
    limits = Limits(gpu=1)
    order: list[str] = []

    async def notes(ctx: Any) -> None:
        order.append(str(ctx.run.user_id))
        await asyncio.sleep(1)

    def busy(seconds: float) -> Any:
        pipeline = Pipeline("p").with_stage("needs", notes, limit="gpu").with_stage("long", Counting(seconds))
        return pipeline.build(limits=limits, max_concurrency=1)

    holder = Pipeline("holder").with_stage("s", Counting(2), limit="gpu").build(limits=limits)
    last = Pipeline("last").with_stage("s", notes, limit="gpu").build(limits=limits)

    async def main() -> None:
        runs = [asyncio.create_task(holder.run())]
        await asyncio.sleep(0.1)
        # The slots of both are free again at the same time, while `late` holds the permit.
        for name in ("a", "b"):
            runs.append(asyncio.create_task(busy(4).run(PipelineContext(user_id=name))))
            await asyncio.sleep(0)
        runs.append(asyncio.create_task(holder.run(PipelineContext(user_id="late"))))
        await asyncio.sleep(0.1)
        runs.append(asyncio.create_task(holder.run()))
        runs.append(asyncio.create_task(last.run(PipelineContext(user_id="last"))))
        await asyncio.gather(*runs)

    VirtualClock().run(main())
    assert order == ["a", "b", "last"]


def test_cancelled_run_releases_deferred_and_reserved_permits() -> None:
    limits = Limits(gpu=1)
    pipeline = Pipeline("p").with_stage("needs", Counting(1), limit="gpu").with_stage("long", Counting(10))
    graph = pipeline.build(limits=limits, max_concurrency=1)
    rival = Pipeline("rival").with_stage("s", Counting(4), limit="gpu").build(limits=limits)

    async def main(cancelled_at: float) -> None:
        async def contend() -> None:
            for _ in range(10):
                await rival.run()

        rivals = [asyncio.create_task(contend()) for _ in range(2)]
        await asyncio.sleep(0)
        task = asyncio.create_task(graph.run())
        await asyncio.sleep(cancelled_at)
        task.cancel()
        await asyncio.gather(*rivals)
        assert task.cancelled()

    for moment in (2, 6, 11):  # queued; deferred; resumed
        VirtualClock().run(main(moment))
        assert (limits["gpu"].taken, limits["gpu"].waiting) == (0, 0)


# ------------------------------------------------------------ loops that were closed


def test_permits_of_runs_on_a_closed_loop_are_available_at_once() -> None:
    limits = Limits(gpu=1)

    async def waits(ctx: Any) -> None:
        await asyncio.Event().wait()

    holder = asyncio.new_event_loop()
    graph = Pipeline("p").with_stage("s", waits, limit="gpu").build(limits=limits)

    async def start() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(graph.run())
        await asyncio.sleep(0.01)
        return task

    task = holder.run_until_complete(start())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    holder.close()
    assert limits["gpu"].taken == 1
    gc.disable()  # the reference prevents the garbage collection of the run
    try:
        assert leaf(limits, "gpu", 0).run_sync(deadline=5).ok
    finally:
        gc.enable()
    assert limits["gpu"].taken == 0
    del task
    gc.collect()
    assert limits["gpu"].taken == 0
