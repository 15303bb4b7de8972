"""When the timeout of a stage takes effect, and which stages are reported to block the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from oracle import check_record, stage_wide

from stageflow import Pipeline, PipelineResults, Retry, StageContext, StageOutput, StageStatus
from stageflow.errors import StageTimeoutError
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.pipeline import Proceed, StageCall
from stageflow.testing import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    """A clock that `clock.advance(seconds)` moves as a blocking call would."""
    return VirtualClock()


def run_one(
    clock: VirtualClock, sink: MemoryEventSink, stage: Any, *, retry: Retry | None = None, **options: Any
) -> PipelineResults:
    graph = (
        Pipeline("p")
        .with_stage("s", stage, retry=retry, **options)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
            on_failure="continue",
        )
    )

    async def main() -> PipelineResults:
        results = await graph.run()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    results = clock.run(main())
    check_record(sink.events, ["s"])
    return results


async def works(ctx: StageContext) -> dict[str, Any]:
    await asyncio.sleep(2)
    return {"done": True}


def blocking_before_the_first_await(clock: VirtualClock) -> tuple[Any, dict[str, Any]]:
    async def stage(ctx: StageContext) -> dict[str, Any]:
        clock.advance(2.5)
        return await works(ctx)

    return stage, {}


def blocking_condition(clock: VirtualClock) -> tuple[Any, dict[str, Any]]:
    def condition(ctx: StageContext) -> bool:
        clock.advance(2.5)
        return True

    return works, {"when": condition}


def waiting_condition(clock: VirtualClock) -> tuple[Any, dict[str, Any]]:
    async def condition(ctx: StageContext) -> bool:
        await asyncio.sleep(2.5)
        return True

    return works, {"when": condition}


def blocking_instantiation(clock: VirtualClock) -> tuple[Any, dict[str, Any]]:
    class Stage:
        def __init__(self) -> None:
            clock.advance(2.5)

        async def execute(self, ctx: StageContext) -> Any:
            return await works(ctx)

    return Stage, {}


def blocking_interceptor(clock: VirtualClock) -> tuple[Any, dict[str, Any]]:
    async def blocks(call: StageCall, proceed: Proceed) -> StageOutput:
        clock.advance(2.5)
        return await proceed()

    return works, {"interceptors": (blocks,)}


@pytest.mark.parametrize(
    "slow",
    [
        blocking_before_the_first_await,
        blocking_condition,
        waiting_condition,
        blocking_instantiation,
        blocking_interceptor,
    ],
)
def test_timeout_starts_when_the_attempt_starts(
    clock: VirtualClock, sink: MemoryEventSink, slow: Callable[[VirtualClock], tuple[Any, dict[str, Any]]]
) -> None:
    stage, options = slow(clock)
    result = run_one(clock, sink, stage, timeout=3, **options)["s"]
    assert (result.status, result.duration_ms) == (StageStatus.FAIL, 3000)
    assert isinstance(result.exception, StageTimeoutError)


def test_attempt_whose_time_is_over_at_its_first_await_times_out_there(
    clock: VirtualClock, sink: MemoryEventSink
) -> None:
    seen: list[str] = []

    async def stage(ctx: StageContext) -> None:
        clock.advance(4)
        try:
            await asyncio.sleep(0)  # it would complete before a timer of the loop is called
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    result = run_one(clock, sink, stage, timeout=3)["s"]
    assert (result.status, result.duration_ms, seen) == (StageStatus.FAIL, 4000, ["cancelled"])


@pytest.mark.parametrize("awaits", [False, True])
@pytest.mark.parametrize("ends", ["returns", "raises", "skips"])
def test_attempt_that_took_too_long_fails_although_it_ended_before_it_could_be_cancelled(
    clock: VirtualClock, sink: MemoryEventSink, ends: str, awaits: bool
) -> None:
    async def stage(ctx: StageContext) -> Any:
        if awaits:
            await asyncio.sleep(1)
        clock.advance(4)
        if ends == "raises":
            raise ConnectionError("no")
        return StageOutput.skip("nothing to do") if ends == "skips" else {"value": 1}

    result = run_one(clock, sink, stage, timeout=3)["s"]
    assert (result.status, dict(result.data)) == (StageStatus.FAIL, {})
    assert isinstance(result.exception, StageTimeoutError)
    assert isinstance(result.exception.__cause__, ConnectionError) is (ends == "raises")


def test_attempt_that_took_exactly_its_timeout_is_in_time(clock: VirtualClock, sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        clock.advance(3)

    assert run_one(clock, sink, stage, timeout=3)["s"].ok


def test_late_attempt_is_retried_if_its_policy_covers_timeouts(
    clock: VirtualClock, sink: MemoryEventSink
) -> None:
    async def stage(ctx: StageContext) -> dict[str, Any]:
        clock.advance(4 if ctx.attempt == 1 else 1)
        return {"attempt": ctx.attempt}

    results = run_one(clock, sink, stage, timeout=3, retry=Retry(attempts=2, wait=0, on=TimeoutError))
    assert results.data("s") == {"attempt": 2}


# ---------------------------------------------------------------- stages that block the event loop


def blocking_for(seconds: float, clock: VirtualClock, where: str) -> tuple[Any, dict[str, Any]]:
    async def stage(ctx: StageContext) -> None:
        if where == "at first":
            clock.advance(seconds)
        await asyncio.sleep(1)
        clock.advance(0.02)
        await asyncio.sleep(1)
        if where == "later":
            clock.advance(seconds)
            await asyncio.sleep(1)
        if where == "at last":
            clock.advance(seconds)

    async def never_waits(ctx: StageContext) -> None:
        clock.advance(seconds)

    def condition(ctx: StageContext) -> bool:
        clock.advance(seconds)
        return True

    async def interceptor(call: StageCall, proceed: Proceed) -> StageOutput:
        output = await proceed()
        clock.advance(seconds)
        return output

    def in_thread(ctx: StageContext) -> None:
        clock.advance(seconds)

    return {
        "never waits": (never_waits, {}),
        "condition": (stage, {"when": condition}),
        "interceptor": (stage, {"interceptors": (interceptor,)}),
        "thread": (in_thread, {}),
    }.get(where, (stage, {}))


@pytest.mark.parametrize("where", ["at first", "later", "at last", "never waits", "condition", "interceptor"])
def test_longest_step_on_the_event_loop_is_recorded(
    clock: VirtualClock, sink: MemoryEventSink, where: str
) -> None:
    stage, options = blocking_for(0.3, clock, where)
    result = run_one(clock, sink, stage, **options)["s"]
    assert result.loop_blocked_ms == 300
    assert stage_wide(sink.events, "s")["loop_blocked_ms"] == 300


@pytest.mark.parametrize("where", ["at first", "later", "never waits", "thread"])
def test_stage_that_does_not_block_the_event_loop_for_long_is_not_reported(
    clock: VirtualClock, sink: MemoryEventSink, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage, options = blocking_for(0.05 if where != "thread" else 0, clock, where)
    assert run_one(clock, sink, stage, **options)["s"].loop_blocked_ms is None
    assert stage_wide(sink.events, "s")["loop_blocked_ms"] is None
    assert caplog.records == []


def test_retried_attempt_has_its_own_blocking(clock: VirtualClock, sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        if ctx.attempt == 1:
            clock.advance(0.3)
            raise ConnectionError

    run_one(clock, sink, stage, retry=Retry(attempts=2, wait=0))
    blocked = [event["loop_blocked_ms"] for event in sink.of_type("stage.wide")]
    assert blocked == [300, None]


def test_abandoned_stage_has_its_blocking_in_the_record(clock: VirtualClock, sink: MemoryEventSink) -> None:
    async def stubborn(ctx: StageContext) -> None:
        clock.advance(0.3)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def main() -> None:
        graph = (
            Pipeline("p")
            .with_stage("s", stubborn)
            .build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(sink),
            )
        )
        assert (await graph.run(deadline=1)).abandoned == ("s",)

    clock.run(main())
    assert stage_wide(sink.events, "s")["loop_blocked_ms"] == 300


async def test_one_warning_names_each_stage_that_blocks_the_event_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def blocks(ctx: StageContext) -> None:
        time.sleep(0.06)

    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(0.06)

    def in_thread(ctx: StageContext) -> None:
        time.sleep(0.06)

    pipeline = (
        Pipeline("blocked loop")
        .with_stage("parse", blocks)
        .with_stage("fetch", waits)
        .with_stage("rank", in_thread)
    )
    graph = pipeline.build()
    for _ in range(3):
        assert (await graph.run()).ok
    # A loaded machine may delay a step of another stage.
    (record,) = (record for record in caplog.records if "'parse'" in record.getMessage())
    assert (record.name, record.levelno) == ("stageflow", logging.WARNING)
    assert record.getMessage().startswith(
        "pipeline 'blocked loop': stage 'parse' blocked the event loop for "
    )
    assert "(further occurrences are not logged" in record.getMessage()
