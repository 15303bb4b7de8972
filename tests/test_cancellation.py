"""Runs that are cancelled, closed or interrupted: the record is complete, and no task is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from conftest import Program
from oracle import check_record, ends, pipeline_wide, recorded, stage_wide

from stageflow import (
    Limits,
    Pipeline,
    PipelineResults,
    Retry,
    StageContext,
    StageGraph,
    StageOutput,
    StageStatus,
)
from stageflow.events import MemoryEventSink
from stageflow.testing import VirtualClock

Start = Callable[[str], Program]


def seconds() -> float:
    return asyncio.get_running_loop().time()


def remaining_tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def quick(ctx: StageContext) -> dict[str, Any]:
    return {"done": True}


async def endless(ctx: StageContext) -> None:
    await asyncio.Event().wait()


async def stubborn(ctx: StageContext) -> None:
    """Ignore every cancellation."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


def cleaning_up(took: float, log: list[str]) -> Callable[[StageContext], Coroutine[Any, Any, None]]:
    """Return a stage that waits indefinitely, and takes this number of seconds to clean up when cancelled."""

    async def stage(ctx: StageContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("clean-up began")
            await asyncio.sleep(took)
            log.append("clean-up ended")

    return stage


async def cancel_after(graph: StageGraph, *moments: float) -> asyncio.Task[PipelineResults]:
    """Run `graph`, cancel it at each of these times, wait for its end, and return its task."""
    run = asyncio.create_task(graph.run())
    for moment in moments:
        asyncio.get_running_loop().call_at(moment, run.cancel)
    await asyncio.wait([run])
    return run


# ---------------------------------------------------------------- cancelled externally


def test_cancelled_run_cancels_and_awaits_its_stages_and_propagates_the_cancellation(
    sink: MemoryEventSink,
) -> None:
    log: list[str] = []
    pipeline = (
        Pipeline("p")
        .with_stage("before", quick)
        .with_stage("running", cleaning_up(1, log), dependencies=("before",))
        .with_stage("after", quick, dependencies=("running",))
    )

    async def main() -> None:
        run = await cancel_after(recorded(pipeline, sink), 5)
        assert run.cancelled()
        assert seconds() == 6  # the run waited for the cleanup
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert log == ["clean-up began", "clean-up ended"]
    event = check_record(sink.events, ["before", "running", "after"])
    assert ends(sink.events) == {"before": "OK", "running": "CANCEL", "after": "CANCEL"}
    assert (event["status"], event["outcome"]) == ("FAIL", "cancelled")
    assert event["duration_ms"] == 6000
    assert event["error"] == "cancelled externally"
    running = stage_wide(sink.events, "running")
    assert (running["attempts"], running["duration_ms"]) == (1, 6000)
    assert running["reason"] == "cancelled: cancelled externally"
    after = stage_wide(sink.events, "after")
    assert (after["attempts"], after["duration_ms"]) == (0, 0)
    assert after["reason"] == "never started: cancelled externally"


def test_record_is_complete_before_the_caller_receives_cancelled_error(sink: MemoryEventSink) -> None:
    async def main() -> None:
        graph = recorded(Pipeline("p").with_stage("s", endless), sink)

        async def caller() -> None:
            try:
                await graph.run()
            except asyncio.CancelledError:
                check_record(sink.events, ["s"])
                raise

        task = asyncio.create_task(caller())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    VirtualClock().run(main())


@pytest.mark.parametrize("times", [2, 3, 10])
def test_second_cancellation_has_no_effect(sink: MemoryEventSink, times: int) -> None:
    log: list[str] = []

    async def main() -> None:
        graph = recorded(Pipeline("p").with_stage("s", cleaning_up(1, log)), sink)
        run = await cancel_after(graph, *(5 + number / 20 for number in range(times)))
        assert run.cancelled()
        assert seconds() == 6
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert log == ["clean-up began", "clean-up ended"]
    event = check_record(sink.events, ["s"])
    assert (event["outcome"], event["stages_abandoned"]) == ("cancelled", 0)


def test_cancellation_during_the_cleanup_of_a_failed_run_propagates_after_it(sink: MemoryEventSink) -> None:
    log: list[str] = []

    async def boom(ctx: StageContext) -> None:
        await asyncio.sleep(1)
        raise ValueError("boom")

    async def main() -> None:
        pipeline = Pipeline("p").with_stage("boom", boom).with_stage("other", cleaning_up(1, log))
        run = await cancel_after(recorded(pipeline, sink), 1.5)
        assert run.cancelled()
        assert seconds() == 2

    VirtualClock().run(main())
    assert log == ["clean-up began", "clean-up ended"]
    event = check_record(sink.events, ["boom", "other"])
    assert event["outcome"] == "failed"  # the first cause counts
    assert event["first_failed_stage"] == "boom"


def test_run_cancelled_before_its_first_step_never_starts(sink: MemoryEventSink) -> None:
    async def main() -> None:
        run = asyncio.create_task(recorded(Pipeline("p").with_stage("s", quick), sink).run())
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()

    VirtualClock().run(main())
    assert sink.events == []


@pytest.mark.parametrize("turns", range(8))
def test_cancellation_in_any_loop_iteration_leaves_one_complete_record(
    sink: MemoryEventSink, turns: int
) -> None:
    async def two_turns(ctx: StageContext) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    pipeline = (
        Pipeline("p")
        .with_stage("a", quick)
        .with_stage("b", two_turns, dependencies=("a",))
        .with_stage("c", quick, dependencies=("b",))
    )

    async def main() -> None:
        run = asyncio.create_task(recorded(pipeline, sink).run())
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run])
        assert remaining_tasks() == []

    VirtualClock().run(main())
    check_record(sink.events, ["a", "b", "c"])


def test_stage_waiting_for_a_retry_is_not_retried_after_cancellation(sink: MemoryEventSink) -> None:
    async def later(ctx: StageContext) -> StageOutput:
        return StageOutput.retry("not yet", after=60)

    async def main() -> None:
        run = await cancel_after(recorded(Pipeline("p").with_stage("s", later), sink), 5)
        assert run.cancelled()
        assert seconds() == 5

    VirtualClock().run(main())
    check_record(sink.events, ["s"])
    event = stage_wide(sink.events, "s")
    assert (event["status"], event["attempts"]) == ("CANCEL", 1)
    assert event["reason"] == "not tried again: cancelled externally"
    assert event["error"] == "not yet"


def test_stage_waiting_for_a_permit_never_starts_after_cancellation(sink: MemoryEventSink) -> None:
    async def main() -> None:
        pipeline = Pipeline("p").with_stage("first", endless).with_stage("second", quick)
        await cancel_after(recorded(pipeline, sink, max_concurrency=1), 5)

    VirtualClock().run(main())
    check_record(sink.events, ["first", "second"])
    assert stage_wide(sink.events, "second")["attempts"] == 0


def test_return_value_of_a_cancelled_stage_counts(sink: MemoryEventSink) -> None:
    async def saves_what_it_has(ctx: StageContext) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return {"half": 1}
        return {"whole": 2}

    async def main() -> None:
        pipeline = (
            Pipeline("p").with_stage("s", saves_what_it_has).with_stage("after", quick, dependencies=("s",))
        )
        run = await cancel_after(recorded(pipeline, sink), 5)
        assert run.cancelled()

    VirtualClock().run(main())
    check_record(sink.events, ["s", "after"])
    assert ends(sink.events) == {"s": "OK", "after": "CANCEL"}
    assert stage_wide(sink.events, "s")["data_keys"] == ["half"]


def test_exception_during_cleanup_does_not_fail_a_cancelled_stage(sink: MemoryEventSink) -> None:
    async def fragile(ctx: StageContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("already closed")

    async def main() -> None:
        run = await cancel_after(recorded(Pipeline("p").with_stage("s", fragile), sink), 5)
        assert run.cancelled()

    VirtualClock().run(main())
    event = check_record(sink.events, ["s"])
    assert (event["outcome"], event["first_failed_stage"]) == ("cancelled", None)
    stage = stage_wide(sink.events, "s")
    assert (stage["status"], stage["error"]) == ("CANCEL", "ConnectionError: already closed")


def test_cancelled_stage_is_not_retried(sink: MemoryEventSink) -> None:
    calls: list[int] = []

    async def raises_what_is_covered(ctx: StageContext) -> None:
        calls.append(ctx.attempt)
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError

    async def main() -> None:
        pipeline = Pipeline("p").with_stage("s", raises_what_is_covered, retry=Retry(attempts=5, wait=0))
        await cancel_after(recorded(pipeline, sink), 5)

    VirtualClock().run(main())
    check_record(sink.events, ["s"])
    assert calls == [1]
    assert ends(sink.events) == {"s": "CANCEL"}


def test_asyncio_timeout_around_a_run(sink: MemoryEventSink) -> None:
    log: list[str] = []

    async def main() -> None:
        graph = recorded(Pipeline("p").with_stage("s", cleaning_up(1, log)), sink)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await graph.run()
        assert seconds() == 6
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert log == ["clean-up began", "clean-up ended"]
    assert check_record(sink.events, ["s"])["outcome"] == "cancelled"


def test_wait_for_around_a_run(sink: MemoryEventSink) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(recorded(Pipeline("p").with_stage("s", endless), sink).run(), 5)
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert check_record(sink.events, ["s"])["outcome"] == "cancelled"


def test_run_in_a_task_group_is_cancelled_if_another_task_fails(sink: MemoryEventSink) -> None:
    async def main() -> None:
        graph = recorded(Pipeline("p").with_stage("s", endless), sink)

        async def group_of_two() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(graph.run())
                await asyncio.sleep(1)
                raise ValueError("the other one")

        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await group_of_two()
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert check_record(sink.events, ["s"])["outcome"] == "cancelled"


def test_cancelling_all_tasks_leaves_a_complete_record(sink: MemoryEventSink) -> None:
    async def main() -> None:
        pipeline = Pipeline("p").with_stage("a", endless).with_stage("b", endless)
        run = asyncio.create_task(recorded(pipeline, sink).run())
        await asyncio.sleep(1)
        for task in remaining_tasks():
            task.cancel()
        await asyncio.wait([run])
        assert run.cancelled()
        assert remaining_tasks() == []

    VirtualClock().run(main())
    event = check_record(sink.events, ["a", "b"])
    assert event["outcome"] == "cancelled"
    assert event["stages_cancelled"] == 2


def test_cancellation_reaches_a_nested_run(sink: MemoryEventSink) -> None:
    log: list[str] = []
    of_inner = MemoryEventSink()
    inner = recorded(Pipeline("inner").with_stage("s", cleaning_up(1, log)), of_inner)

    async def nest(ctx: StageContext) -> None:
        await inner.run()

    async def main() -> None:
        run = await cancel_after(recorded(Pipeline("outer").with_stage("nest", nest), sink), 5)
        assert run.cancelled()
        assert seconds() == 6
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert log == ["clean-up began", "clean-up ended"]
    assert check_record(of_inner.events, ["s"])["outcome"] == "cancelled"
    outer = check_record(sink.events, ["nest"])
    assert (outer["outcome"], outer["stages_abandoned"]) == ("cancelled", 0)


def test_nested_run_with_a_stage_that_ignores_cancellation_is_recorded(sink: MemoryEventSink) -> None:
    of_inner = MemoryEventSink()
    inner = recorded(Pipeline("inner").with_stage("s", stubborn), of_inner)

    async def nest(ctx: StageContext) -> None:
        await inner.run()

    async def main() -> None:
        run = await cancel_after(recorded(Pipeline("outer").with_stage("nest", nest), sink), 5)
        assert run.cancelled()
        assert seconds() == 7
        await asyncio.sleep(0)
        assert len(remaining_tasks()) == 1  # the stubborn stage itself

    VirtualClock().run(main())
    assert check_record(of_inner.events, ["s"])["stages_abandoned"] == 1
    assert check_record(sink.events, ["nest"])["outcome"] == "cancelled"


def test_cancelled_synchronous_stage_ends_when_its_function_returns(sink: MemoryEventSink) -> None:
    began = threading.Event()

    def looks_now_and_then(ctx: StageContext) -> dict[str, Any]:
        began.set()
        while not ctx.cancelled:
            time.sleep(0.001)
        return {"saw": "cancelled"}

    async def main() -> None:
        run = asyncio.create_task(recorded(Pipeline("p").with_stage("s", looks_now_and_then), sink).run())
        await asyncio.to_thread(began.wait)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()

    asyncio.run(main())
    event = check_record(sink.events, ["s"])
    assert (event["outcome"], event["stages_abandoned"]) == ("cancelled", 0)
    assert stage_wide(sink.events, "s")["data_keys"] == ["saw"]


# ---------------------------------------------------------------- not cancelled externally


def test_stage_fails_if_something_that_it_awaits_is_cancelled(sink: MemoryEventSink) -> None:
    async def awaits_a_cancelled_task(ctx: StageContext) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(1)
        task.cancel()
        await task

    async def main() -> PipelineResults:
        return await recorded(Pipeline("p").with_stage("s", awaits_a_cancelled_task), sink).run()

    results = VirtualClock().run(main())
    assert results["s"].status is StageStatus.FAIL
    assert isinstance(results["s"].exception, asyncio.CancelledError)
    event = check_record(sink.events, ["s"])
    assert (event["outcome"], event["first_failed_stage"]) == ("failed", "s")


async def times_out_inside(ctx: StageContext) -> dict[str, Any]:
    try:
        async with asyncio.timeout(1):
            await asyncio.sleep(60)
    except TimeoutError:
        return {"timed": "out"}
    raise AssertionError


async def groups_tasks(ctx: StageContext) -> dict[str, Any]:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            await asyncio.sleep(1)
            raise ValueError
    except* ValueError:
        pass
    return {"group": "ended"}


@pytest.mark.parametrize("scoped", [times_out_inside, groups_tasks])
def test_cancel_scopes_work_in_a_stage_after_one_that_timed_out(
    sink: MemoryEventSink, scoped: Callable[[StageContext], Coroutine[Any, Any, dict[str, Any]]]
) -> None:
    # Stages can share a task: the cancellation of one must not affect the next.
    async def main() -> PipelineResults:
        pipeline = (
            Pipeline("p")
            .with_stage("late", endless, timeout=1, optional=True)
            .with_stage("scoped", scoped, dependencies=("late",))
            .with_stage("again", scoped, dependencies=("scoped",))
        )
        return await recorded(pipeline, sink).run()

    results = VirtualClock().run(main())
    assert check_record(sink.events, ["late", "scoped", "again"])["outcome"] == "degraded"
    assert [result.status for result in results.values()] == ["FAIL", "OK", "OK"]


def test_stage_that_cancels_its_task_does_not_affect_other_stages(sink: MemoryEventSink) -> None:
    async def cancels_itself(ctx: StageContext) -> dict[str, Any]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return {}

    async def takes_a_second(ctx: StageContext) -> None:
        await asyncio.sleep(1)

    async def main() -> PipelineResults:
        pipeline = (
            Pipeline("p")
            .with_stage("odd", cancels_itself)
            .with_stage("next", takes_a_second, dependencies=("odd",))
        )
        return await recorded(pipeline, sink).run()

    results = VirtualClock().run(main())
    check_record(sink.events, ["odd", "next"])
    assert results["next"].status is StageStatus.OK


# ---------------------------------------------------------------- the deadline of the run


def test_run_past_its_deadline_is_cancelled(sink: MemoryEventSink) -> None:
    log: list[str] = []

    async def main() -> PipelineResults:
        pipeline = (
            Pipeline("p").with_stage("s", cleaning_up(1, log)).with_stage("after", quick, dependencies=("s",))
        )
        results = await recorded(pipeline, sink).run(deadline=5)
        assert seconds() == 6
        assert remaining_tasks() == []
        return results

    results = VirtualClock().run(main())
    assert log == ["clean-up began", "clean-up ended"]
    event = check_record(sink.events, ["s", "after"])
    assert (event["status"], event["outcome"]) == ("FAIL", "timeout")
    assert event["error"] == "DeadlineExceededError: the run exceeded its deadline of 5 s"
    assert event["error_type"] == "DeadlineExceededError"
    assert (results.outcome, results.status, results.ok) == ("timeout", StageStatus.FAIL, False)
    assert isinstance(results.exception, TimeoutError)
    assert ends(sink.events) == {"s": "CANCEL", "after": "CANCEL"}


def test_deadline_has_no_effect_on_a_run_that_ends_in_time(sink: MemoryEventSink) -> None:
    async def main() -> PipelineResults:
        results = await recorded(Pipeline("p").with_stage("s", quick), sink).run(deadline=5)
        await asyncio.sleep(60)
        return results

    assert VirtualClock().run(main()).ok
    assert check_record(sink.events, ["s"])["outcome"] == "ok"


# ---------------------------------------------------------------- stages that ignore cancellation


def test_stage_that_ignores_cancellation_is_abandoned_after_the_grace_period(sink: MemoryEventSink) -> None:
    async def boom(ctx: StageContext) -> None:
        await asyncio.sleep(1)
        raise ValueError("boom")

    async def main() -> PipelineResults:
        pipeline = Pipeline("p").with_stage("stubborn", stubborn).with_stage("boom", boom)
        results = await recorded(pipeline, sink, grace=2.0).run()
        assert seconds() == 3
        assert len(remaining_tasks()) == 1  # the only task that can outlive run()
        return results

    results = VirtualClock().run(main())
    event = check_record(sink.events, ["stubborn", "boom"])
    assert (event["outcome"], event["stages_abandoned"], event["duration_ms"]) == ("failed", 1, 3000)
    assert results.abandoned == ("stubborn",)
    assert results["stubborn"].status is StageStatus.CANCEL
    stage = stage_wide(sink.events, "stubborn")
    assert stage["abandoned"]
    assert stage["reason"] == "cancelled: stage 'boom' failed; it did not end within 2 s and was left running"


@pytest.mark.parametrize("grace", [0, 0.5, 10])
def test_grace_period_applies_to_every_end_of_a_run(sink: MemoryEventSink, grace: float) -> None:
    async def main() -> None:
        graph = recorded(Pipeline("p").with_stage("s", stubborn), sink, grace=grace)
        results = await graph.run(deadline=5)
        assert results.abandoned == ("s",)
        assert seconds() == pytest.approx(5 + grace)
        run = asyncio.create_task(graph.run())
        await asyncio.sleep(1)
        run.cancel()
        await asyncio.wait([run])
        assert seconds() == pytest.approx(5 + grace + 1 + grace)

    VirtualClock().run(main())
    first, second = (index + 1 for index, (type, _) in enumerate(sink.events) if type == "pipeline.wide")
    assert check_record(sink.events[:first], ["s"])["outcome"] == "timeout"
    assert check_record(sink.events[first:second], ["s"])["outcome"] == "cancelled"


def test_stage_that_ends_at_once_is_not_abandoned_without_grace(sink: MemoryEventSink) -> None:
    async def main() -> None:
        await cancel_after(recorded(Pipeline("p").with_stage("s", endless), sink, grace=0), 5)
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert check_record(sink.events, ["s"])["stages_abandoned"] == 0


def test_abandoned_stage_cannot_change_its_result(sink: MemoryEventSink) -> None:
    async def late(ctx: StageContext) -> dict[str, Any]:
        ctx.annotate(when="in time")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.sleep(10)
        assert ctx.cancelled
        assert ctx.abandoned
        ctx.annotate(when="too late")
        return {"too": "late"}

    async def main() -> PipelineResults:
        results = await recorded(Pipeline("p").with_stage("s", late), sink).run(deadline=5)
        await asyncio.sleep(60)
        assert remaining_tasks() == []
        return results

    results = VirtualClock().run(main())
    check_record(sink.events, ["s"])
    assert results["s"].status is StageStatus.CANCEL
    assert dict(results["s"].data) == {}
    assert results["s"].attributes == stage_wide(sink.events, "s")["attributes"] == {"when": "in time"}


def test_run_continues_after_a_stage_that_outlasts_its_timeout_and_grace(
    sink: MemoryEventSink,
) -> None:
    async def main() -> PipelineResults:
        pipeline = (
            Pipeline("p")
            .with_stage("stubborn", stubborn, timeout=3, optional=True)
            .with_stage("after", quick, dependencies=("stubborn",))
        )
        results = await recorded(pipeline, sink, grace=2.0).run()
        assert seconds() == 5
        return results

    results = VirtualClock().run(main())
    event = check_record(sink.events, ["stubborn", "after"])
    assert (event["outcome"], event["stages_abandoned"]) == ("degraded", 1)
    assert ends(sink.events) == {"stubborn": "FAIL", "after": "OK"}
    assert results.abandoned == ("stubborn",)


def test_abandoned_stage_releases_its_slot_to_the_next_stage(sink: MemoryEventSink) -> None:
    async def main() -> PipelineResults:
        pipeline = (
            Pipeline("p").with_stage("stubborn", stubborn, timeout=3, optional=True).with_stage("next", quick)
        )
        return await recorded(pipeline, sink, max_concurrency=1).run()

    results = VirtualClock().run(main())
    check_record(sink.events, ["stubborn", "next"])
    assert results["next"].queue_ms == 5000


def test_stage_that_timed_out_before_the_end_of_the_run_fails(sink: MemoryEventSink) -> None:
    log: list[str] = []

    async def boom(ctx: StageContext) -> None:
        await asyncio.sleep(3.5)
        raise ValueError("boom")

    async def main() -> PipelineResults:
        pipeline = Pipeline("p").with_stage("late", cleaning_up(1, log), timeout=3).with_stage("boom", boom)
        return await recorded(pipeline, sink).run()

    results = VirtualClock().run(main())
    check_record(sink.events, ["late", "boom"])
    assert log == ["clean-up began", "clean-up ended"]
    assert results["late"].status is StageStatus.FAIL
    assert isinstance(results["late"].exception, TimeoutError)


# ---------------------------------------------------------------- closed coroutines and loops


def test_closed_coroutine_of_a_run_is_recorded(sink: MemoryEventSink) -> None:
    ended: list[str] = []

    async def stage(ctx: StageContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(ctx.stage)

    async def main() -> None:
        pipeline = (
            Pipeline("p")
            .with_stage("a", stage)
            .with_stage("b", stage)
            .with_stage("after", quick, dependencies=("a",))
        )
        run = recorded(pipeline, sink).run()
        run.send(None)
        await asyncio.sleep(1)
        run.close()
        check_record(sink.events, ["a", "b", "after"])  # at once: there was no await
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert remaining_tasks() == []

    VirtualClock().run(main())
    assert sorted(ended) == ["a", "b"]
    event = check_record(sink.events, ["a", "b", "after"])
    assert (event["status"], event["outcome"]) == ("FAIL", "cancelled")
    assert event["reason"] == "the coroutine of run() was closed"
    assert ends(sink.events) == {"a": "CANCEL", "b": "CANCEL", "after": "CANCEL"}


def test_coroutine_closed_before_its_first_step_has_no_record(sink: MemoryEventSink) -> None:
    async def main() -> None:
        recorded(Pipeline("p").with_stage("s", quick), sink).run().close()

    VirtualClock().run(main())
    assert sink.events == []


@pytest.mark.parametrize("way", ["holds and waits", "waits for another run", "waits for a retry"])
def test_closed_run_releases_its_permits(sink: MemoryEventSink, way: str) -> None:
    limits = Limits(place=1)

    async def again(ctx: StageContext) -> StageOutput:
        return StageOutput.retry("not yet", after=60)

    def limited(stage: Any, *names: str) -> StageGraph:
        pipeline = Pipeline("p")
        for name in names:
            pipeline = pipeline.with_stage(name, stage, limit="place")
        return pipeline.build(limits=limits)

    async def main() -> None:
        other = asyncio.create_task(limited(endless, "s").run()) if way == "waits for another run" else None
        await asyncio.sleep(1)
        run = limited(again, "s").run() if way == "waits for a retry" else limited(endless, "a", "b").run()
        run.send(None)
        await asyncio.sleep(1)
        run.close()
        await asyncio.sleep(100)
        if other is not None:
            other.cancel()
            await asyncio.wait([other])
        await asyncio.sleep(1)
        assert (limits["place"].taken, limits["place"].waiting) == (0, 0)
        assert (await limited(quick, "s").run()).ok
        assert remaining_tasks() == []

    VirtualClock().run(main())


def test_run_closed_during_the_wait_for_a_retry_starts_nothing(sink: MemoryEventSink) -> None:
    calls: list[int] = []

    async def again(ctx: StageContext) -> StageOutput:
        calls.append(ctx.attempt)
        return StageOutput.retry("not yet", after=60)

    async def main() -> None:
        run = recorded(Pipeline("p").with_stage("s", again), sink).run()
        run.send(None)
        await asyncio.sleep(1)
        run.close()
        await asyncio.sleep(600)
        assert remaining_tasks() == []

    VirtualClock().run(main())
    check_record(sink.events, ["s"])
    assert calls == [1]


def test_closing_the_loop_of_an_active_run_is_recorded(
    sink: MemoryEventSink, caplog: pytest.LogCaptureFixture
) -> None:
    graph = recorded(Pipeline("p").with_stage("a", endless).with_stage("b", stubborn), sink)
    loop = VirtualClock().new_loop()
    run = loop.create_task(graph.run())
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert sink.events == []
    del run
    gc.collect()
    event = check_record(sink.events, ["a", "b"])
    assert event["outcome"] == "cancelled"
    assert all("Task was destroyed but it is pending" in record.message for record in caplog.records)


@pytest.mark.parametrize("run", [asyncio.run, lambda main: VirtualClock().run(main)])
def test_end_of_asyncio_run_records_a_run_in_a_background_task(
    sink: MemoryEventSink, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    log: list[str] = []
    kept: list[Any] = []

    async def main() -> None:
        started = asyncio.Event()

        async def starts(ctx: StageContext) -> None:
            started.set()
            await asyncio.Event().wait()

        pipeline = (
            Pipeline("p")
            .with_stage("a", starts)
            .with_stage("b", cleaning_up(0.01, log))
            .with_stage("c", quick, dependencies=("a", "b"))
        )
        kept.append(asyncio.create_task(recorded(pipeline, sink).run()))
        await started.wait()

    run(main())
    event = check_record(sink.events, ["a", "b", "c"])
    assert event["outcome"] == "cancelled"
    assert ends(sink.events) == {"a": "CANCEL", "b": "CANCEL", "c": "CANCEL"}
    assert kept[0].cancelled()


def test_end_of_asyncio_run_records_a_run_whose_thread_hangs(sink: MemoryEventSink) -> None:
    began, let_go = threading.Event(), threading.Event()

    def hangs(ctx: StageContext) -> None:
        began.set()
        let_go.wait(timeout=30)

    kept: list[Any] = []

    async def main() -> None:
        graph = recorded(Pipeline("p").with_stage("s", hangs), sink, grace=0.05)
        kept.append(asyncio.create_task(graph.run()))
        await asyncio.to_thread(began.wait)

    try:
        asyncio.run(main())
        event = check_record(sink.events, ["s"])
    finally:
        let_go.set()
    assert (event["outcome"], event["stages_abandoned"]) == ("cancelled", 1)


async def uncancels(ctx: StageContext) -> None:
    """Ignore every cancellation, and call `uncancel()` for each."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()


async def uncancels_after_timeouts(ctx: StageContext) -> None:
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.sleep(3600)
    await uncancels(ctx)


async def counts_cancellations(ctx: StageContext) -> None:
    """Ignore every cancellation, and call `uncancel()` for every second one."""
    while True:
        for withdraws in (False, True):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                if withdraws:
                    task.uncancel()


@pytest.mark.parametrize("stage", [stubborn, uncancels, uncancels_after_timeouts, counts_cancellations])
@pytest.mark.parametrize("before", ["nothing", "timed out", "run failed", "abandoned"])
def test_stage_that_ignores_cancellation_never_blocks_the_end_of_asyncio_run(
    sink: MemoryEventSink, stage: Any, before: str
) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async def fails(ctx: StageContext) -> None:
            if before != "run failed":
                await asyncio.Event().wait()
            await asyncio.sleep(2)
            raise ValueError

        timeout = 2 if before in ("timed out", "abandoned") else None
        pipeline = Pipeline("p").with_stage("s", stage, timeout=timeout, optional=True).with_stage("f", fails)
        grace = 1 if before == "abandoned" else 10
        kept.append(asyncio.create_task(recorded(pipeline, sink, grace=grace).run()))
        await asyncio.sleep(5)

    VirtualClock().run(main())  # which ends as `asyncio.run` does
    event = check_record(sink.events, ["s", "f"])
    assert event["stages_abandoned"] == 1
    assert event["outcome"] == ("failed" if before == "run failed" else "cancelled")
    assert kept[0].cancelled()


def test_only_the_end_of_the_loop_closes_an_abandoned_stage_that_its_run_has_cancelled(
    sink: MemoryEventSink,
) -> None:
    """A stage that needs longer than the grace period can continue in the background, as documented."""
    finished: list[str] = []

    async def commits(ctx: StageContext) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(3600)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(10)
            finished.append("commit")

    async def main() -> None:
        await cancel_after(recorded(Pipeline("p").with_stage("s", commits), sink), 5)
        assert seconds() == 7
        await asyncio.sleep(60)

    VirtualClock().run(main())
    assert finished == ["commit"]
    assert check_record(sink.events, ["s"])["stages_abandoned"] == 1


@pytest.mark.parametrize("times", [1, 2])
def test_stage_that_uncancels_does_not_block_ctrl_c(program: Start, times: int) -> None:
    running = program(
        """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def uncancels(ctx):
            print("running", flush=True)
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    asyncio.current_task().uncancel()
                    print("refused", flush=True)

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            await Pipeline("p").with_stage("s", uncancels).build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=emitter,
                grace=0.3,
            ).run()

        asyncio.run(main())
        """
    )
    running.wait_for("running")
    for _ in range(times):
        running.process.send_signal(signal.SIGINT)
        running.wait_for("refused")
        if times > 1:
            break
    if times > 1:
        running.process.send_signal(signal.SIGINT)
    status, _, err = running.ended(within=60)
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    check_record(running.events(), ["s"])


# ---------------------------------------------------------------- the end of the process


def test_system_exit_in_a_stage_propagates_after_the_record_is_written(program: Start) -> None:
    running = program(
        """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def leave(ctx):
            await asyncio.sleep(0.01)
            sys.exit(3)

        async def other(ctx):
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned up")

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            pipeline = Pipeline("p").with_stage("leave", leave, optional=True).with_stage("other", other)
            await pipeline.build(
                emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter
            ).run()
            print("never reached")

        asyncio.run(main())
        """
    )
    assert running.ended() == (3, "cleaned up\n", "")
    event = check_record(running.events(), ["leave", "other"])
    assert (event["status"], event["outcome"], event["first_failed_stage"]) == ("FAIL", "failed", "leave")
    assert ends(running.events()) == {"leave": "FAIL", "other": "CANCEL"}
    assert stage_wide(running.events(), "leave")["error_type"] == "SystemExit"


@pytest.mark.parametrize("how", ["at once", "after a wait", "in a thread"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_interrupt_in_a_stage_is_never_stored_in_a_result(
    sink: MemoryEventSink, how: str, error: BaseException
) -> None:
    async def at_once(ctx: StageContext) -> None:
        raise error

    async def after_a_wait(ctx: StageContext) -> None:
        await asyncio.sleep(1)
        raise error

    def in_a_thread(ctx: StageContext) -> None:
        raise error

    stage = {"at once": at_once, "after a wait": after_a_wait, "in a thread": in_a_thread}[how]

    async def main() -> None:
        pipeline = (
            Pipeline("p")
            .with_stage("s", stage, optional=True, retry=Retry(on=BaseException))
            .with_stage("other", endless)
        )
        await recorded(pipeline, sink).run()

    with pytest.raises(type(error)):
        VirtualClock().run(main())
    event = check_record(sink.events, ["s", "other"])
    assert (event["outcome"], event["first_failed_stage"]) == ("failed", "s")
    assert ends(sink.events) == {"s": "FAIL", "other": "CANCEL"}


def test_ctrl_c_in_asyncio_run_propagates_after_the_record_is_written(program: Start) -> None:
    running = program(
        """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def stage(ctx):
            print("running", flush=True)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                print("cleaned up", flush=True)

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            await Pipeline("p").with_stage("s", stage).build(
                emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter
            ).run()

        asyncio.run(main())
        """
    )
    running.wait_for("running")
    running.process.send_signal(signal.SIGINT)
    status, out, err = running.ended()
    assert status == -signal.SIGINT
    assert out == "cleaned up\n"
    assert err.endswith("KeyboardInterrupt\n")
    event = check_record(running.events(), ["s"])
    assert (event["status"], event["outcome"]) == ("FAIL", "cancelled")


def test_second_ctrl_c_during_the_cleanup_leaves_the_record(program: Start) -> None:
    running = program(
        """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def stage(ctx):
            print("running", flush=True)
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaning up", flush=True)
                await asyncio.sleep(60)

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            await Pipeline("p").with_stage("s", stage).build(
                emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter
            ).run()

        asyncio.run(main())
        """
    )
    running.wait_for("running")
    running.process.send_signal(signal.SIGINT)
    running.wait_for("cleaning up")
    running.process.send_signal(signal.SIGINT)
    status, _, err = running.ended()
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    check_record(running.events(), ["s"])


def test_stage_that_ignores_cancellation_does_not_delay_the_exit(program: Start) -> None:
    running = program(
        """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def stubborn(ctx):
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            results = await Pipeline("p").with_stage("s", stubborn).build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=emitter,
                grace=0.05,
            ).run(deadline=0.05)
            print(results.abandoned)

        asyncio.run(main())
        """
    )
    assert running.ended(within=60) == (0, "('s',)\n", "")
    event = check_record(running.events(), ["s"])
    assert (event["outcome"], event["stages_abandoned"]) == ("timeout", 1)


def test_end_of_asyncio_run_waits_only_for_the_grace_period(program: Start) -> None:
    running = program(
        """
        import asyncio, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def stubborn(ctx):
            print("running", flush=True)
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            run = asyncio.create_task(Pipeline("p").with_stage("s", stubborn).build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=emitter,
                grace=0.1,
            ).run())
            await asyncio.sleep(0.05)

        asyncio.run(main())
        print("ended")
        """
    )
    assert running.ended(within=60) == (0, "running\nended\n", "")
    event = check_record(running.events(), ["s"])
    assert (event["outcome"], event["stages_abandoned"]) == ("cancelled", 1)


def test_hanging_thread_delays_neither_the_run_nor_the_exit(program: Start) -> None:
    running = program(
        """
        import asyncio, sys, threading
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        def hangs(ctx):
            threading.Event().wait()

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            results = await Pipeline("p").with_stage("s", hangs).build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=emitter,
                grace=0.05,
            ).run(deadline=0.05)
            print(results.abandoned)

        asyncio.run(main())
        """
    )
    assert running.ended(within=60) == (0, "('s',)\n", "")
    event = check_record(running.events(), ["s"])
    assert (event["outcome"], event["stages_abandoned"]) == ("timeout", 1)


def test_exit_during_a_cleanup_keeps_the_emitted_events(program: Start) -> None:
    running = program(
        """
        import asyncio, os, signal, sys
        from stageflow import JournalSink, Pipeline
        from stageflow.observability import WideEventEmitter

        async def quick(ctx):
            return {"done": True}

        async def kill(ctx):
            os.kill(os.getpid(), signal.SIGKILL)

        async def main():
            emitter = WideEventEmitter(JournalSink(sys.argv[1]))
            await (
                Pipeline("p")
                .with_stage("quick", quick)
                .with_stage("kill", kill, dependencies=("quick",))
                .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter)
                .run()
            )

        asyncio.run(main())
        """
    )
    status, _, _ = running.ended()
    assert status == -signal.SIGKILL
    assert ends(running.events()) == {"quick": "OK"}


def test_pipeline_wide_is_emitted_once_if_two_causes_end_the_run_at_once(sink: MemoryEventSink) -> None:
    async def boom(ctx: StageContext) -> None:
        await asyncio.sleep(5)
        raise ValueError("boom")

    async def stop(ctx: StageContext) -> StageOutput:
        await asyncio.sleep(5)
        return StageOutput.stop("enough")

    async def main() -> None:
        pipeline = (
            Pipeline("p").with_stage("boom", boom).with_stage("stop", stop).with_stage("s", boom, timeout=5)
        )
        graph = recorded(pipeline, sink)
        run = asyncio.create_task(graph.run(deadline=5))
        asyncio.get_running_loop().call_at(5, run.cancel)
        await asyncio.wait([run])
        assert remaining_tasks() == []

    VirtualClock().run(main())
    check_record(sink.events, ["boom", "stop", "s"])
    assert pipeline_wide(sink.events)["duration_ms"] == 5000
