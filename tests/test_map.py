"""Mapped stages: a function is called for each item of another stage's output, within one stage."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import io
import json
import signal
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from hypothesis import given, strategies as st
from oracle import check_record, stage_wide
from rich.console import Console

from stageflow import (
    Limits,
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    StageContext,
    StageKind,
    StageOutput,
    StageStatus,
    annotate,
    count,
    stage,
)
from stageflow.errors import (
    InvalidArgumentError,
    LimitDeadlockError,
    MissingInputError,
    PipelineValidationError,
    StageOutputError,
    StageTimeoutError,
)
from stageflow.events import MemoryEventSink
from stageflow.journal import Journal, JournalSink
from stageflow.observability import WideEventEmitter
from stageflow.pipeline import Flow, active_runs
from stageflow.render import draw_run
from stageflow.schema import FailedItem, Items
from stageflow.stages import ItemFailure
from stageflow.store import Compactor, EventStore
from stageflow.testing import VirtualClock

EMITS = {"emit_stage_wide_events": True, "emit_pipeline_wide_event": True}


def over(items: Any, runner: Any, **options: Any) -> Pipeline:
    """A pipeline that maps over these items."""
    return (
        Pipeline("p")
        .with_stage("source", lambda ctx: {"items": items})
        .with_map("map", runner, over=("source", "items"), **options)
    )


async def run(pipeline: Pipeline, sink: MemoryEventSink | None = None, **options: Any) -> PipelineResults:
    """Run a pipeline, and check its record."""
    recorded = sink or MemoryEventSink()
    graph = pipeline.build(**EMITS, wide_event_emitter=WideEventEmitter(recorded), **options)
    results = await graph.run()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    check_record(recorded.events, [spec.name for spec in pipeline.stages])
    return results


def items_of(results: PipelineResults) -> Items:
    items = results["map"].items
    assert items is not None
    return items


@contextlib.contextmanager
def no_cycles() -> Iterator[None]:
    """Assert that the block leaves no reference cycle; threads of other tests may leave objects meanwhile."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        kinds = (BaseException, types.FrameType, types.TracebackType, asyncio.Task)
        found = [
            each
            for each in gc.garbage
            if isinstance(each, kinds) or type(each).__module__.startswith("stageflow.")
        ]
        assert found == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def double(item: int) -> int:
    await asyncio.sleep(0)
    return item * 2


async def odd_fails(item: int) -> int:
    if item % 2:
        raise ValueError(f"odd: {item}")
    return item


def odd_fails_in_thread(item: int) -> int:
    return asyncio.run(odd_fails(item))


# ------------------------------------------------------------ values


@pytest.mark.parametrize("number", [0, 1, 2, 15, 16, 17, 300])
@pytest.mark.parametrize("max_concurrency", [1, 3, 16])
async def test_values_have_the_order_of_the_items(number: int, max_concurrency: int) -> None:
    results = await run(over(range(number), double, max_concurrency=max_concurrency))
    assert results.value("map") == [item * 2 for item in range(number)]
    assert results.data("map") == {"items": results.value("map")}
    items = items_of(results)
    assert (items.total, items.ok, items.failed, items.skipped, items.retried) == (number, number, 0, 0, 0)


async def test_order_of_the_values_does_not_depend_on_the_order_of_completion() -> None:
    async def waits(item: int) -> int:
        for _ in range(item):
            await asyncio.sleep(0)
        return item

    order = [7, 0, 5, 1, 3, 0]
    assert (await run(over(order, waits))).value("map") == order


async def suspends(item: int) -> int:
    await asyncio.sleep(0)
    return item


async def returns_at_once(item: int) -> int:
    return item


def synchronous(item: int) -> int:
    return item


async def with_context(ctx: StageContext, item: int) -> int:
    await asyncio.sleep(0)
    return item


async def named_ctx(ctx: Any, item: Any) -> Any:
    return item


class Execute:
    async def execute(self, ctx: StageContext, item: int) -> int:
        return item


RUNNERS = [
    suspends,
    returns_at_once,
    synchronous,
    with_context,
    named_ctx,
    Execute,
    Execute(),
    lambda item: item,
    lambda c, item: item,
    stage(name="described", retry=Retry(2))(suspends),
]


@pytest.mark.parametrize("runner", RUNNERS, ids=map(str, range(len(RUNNERS))))
async def test_every_kind_of_function_can_be_mapped(runner: Any) -> None:
    assert (await run(over([1, 2, 3], runner))).value("map") == [1, 2, 3]


async def asynchronously(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize(
    "items",
    [(1, 2), {1, 2}, dict.fromkeys((1, 2)).keys(), iter([1, 2]), (n for n in (1, 2))],
    ids=["tuple", "set", "keys", "iterator", "generator"],
)
async def test_any_iterable_can_be_mapped(items: Any) -> None:
    assert sorted((await run(over(items, double))).value("map")) == [2, 4]


@pytest.mark.parametrize("number", [0, 1, 40])
@pytest.mark.parametrize("runner", [suspends, returns_at_once, synchronous])
async def test_asynchronous_iterable_is_received_as_items_are_processed(number: int, runner: Any) -> None:
    received: list[int] = []
    closed = []

    async def source() -> AsyncIterator[int]:
        try:
            for item in range(number):
                received.append(item)
                yield item
        finally:
            closed.append(True)

    results = await run(over(source(), runner, max_concurrency=2))
    assert results.value("map") == received == list(range(number))
    assert closed == [True]


async def test_items_are_not_received_ahead_of_the_workers() -> None:
    most = received = ended = 0

    async def source() -> AsyncIterator[int]:
        nonlocal received, most
        for item in range(20):
            received += 1
            most = max(most, received - ended)
            yield item

    async def slow(item: int) -> None:
        nonlocal ended
        for _ in range(5):
            await asyncio.sleep(0)
        ended += 1

    await run(over(source(), slow, max_concurrency=3))
    assert most <= 4  # three in progress, and one that waits for a worker


@pytest.mark.parametrize("items", ["text", b"bytes", {"a": 1}, 3, None])
async def test_value_without_items_is_an_error(items: Any) -> None:
    results = await run(over(items, double))
    error = results["map"].exception
    assert isinstance(error, InvalidArgumentError)
    assert "'items' of stage 'source' must be an iterable of items" in str(error)


async def test_missing_key_is_an_error() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("source", lambda ctx: {"documents": []})
        .with_map("map", double, over=("source", "document"))
    )
    error = (await run(pipeline))["map"].exception
    assert isinstance(error, MissingInputError)
    assert "did you mean 'documents'" in str(error)


async def test_value_of_a_stage_can_be_mapped() -> None:
    pipeline = Pipeline("p").with_stage("source", lambda ctx: [1, 2]).with_map("map", double, over="source")
    assert (await run(pipeline)).value("map") == [2, 4]


async def test_map_is_skipped_with_the_stage_that_provides_its_items() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("source", lambda ctx: StageOutput.skip("nothing"))
        .with_map("map", double, over="source")
    )
    results = await run(pipeline)
    assert results["map"].status is StageStatus.SKIP
    assert results["map"].items is None


# ------------------------------------------------------------ outcomes of items


@pytest.mark.parametrize("runner", [odd_fails, odd_fails_in_thread], ids=["async", "sync"])
async def test_failed_item_fails_the_stage(runner: Any) -> None:
    results = await run(over([0, 2, 3, 4], runner, max_concurrency=1))
    failed = results["map"]
    assert failed.status is StageStatus.FAIL
    assert (failed.error, failed.reason) == ("ValueError: odd: 3", "item 2 failed")
    assert isinstance(failed.exception, ValueError)
    items = items_of(results)
    assert (items.total, items.ok, items.failed) == (4, 2, 1)
    assert items.failures == [FailedItem("2", "ValueError", "odd: 3")]


async def test_failed_item_cancels_the_items_in_progress() -> None:
    cancelled = []

    async def hangs(item: int) -> None:
        if item == 3:
            raise ValueError("three")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    results = await run(over(range(10), hangs, max_concurrency=4))
    assert results["map"].reason == "item 3 failed"
    assert cancelled == [0, 1, 2]
    items = items_of(results)
    assert (items.total, items.ok, items.failed, items.skipped) == (10, 0, 1, 0)


async def test_collect_keeps_a_failure_in_place_of_a_failed_item() -> None:
    results = await run(over([0, 1, 2], odd_fails, on_item_failure="collect"))
    zero, failure, two = results.value("map")
    assert (zero, two) == (0, 2)
    assert isinstance(failure, ItemFailure)
    assert (failure.index, failure.key, failure.error, failure.attempts) == (1, "1", "ValueError: odd: 1", 1)
    assert isinstance(failure.exception, ValueError)
    assert results["map"].ok
    assert items_of(results).failure_types == ["ValueError"]


async def test_skip_omits_failed_items() -> None:
    results = await run(over(range(6), odd_fails, on_item_failure="skip"))
    assert results.value("map") == [0, 2, 4]
    items = items_of(results)
    assert (items.total, items.ok, items.failed, items.skipped) == (6, 3, 3, 0)


async def test_item_can_be_skipped() -> None:
    async def even(item: int) -> Any:
        return item if item % 2 == 0 else StageOutput.skip("odd")

    results = await run(over(range(6), even))
    assert results.value("map") == [0, 2, 4]
    assert items_of(results).skipped == 3


async def test_item_can_stop_the_run() -> None:
    async def stops(item: int) -> Any:
        return StageOutput.stop("enough") if item == 2 else item

    results = await run(over(range(6), stops, max_concurrency=1))
    assert results.outcome == "stopped"
    assert results["map"].status is StageStatus.CANCEL
    assert results["map"].reason == "enough"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"a": 1}, {"a": 1}),
        (StageOutput.ok(a=1), {"a": 1}),
        ([1], [1]),
        (3.5, 3.5),
    ],
    ids=["None", "dict", "output", "list", "float"],
)
async def test_item_can_return_any_value(value: Any, expected: Any) -> None:
    async def returns(item: int) -> Any:
        return value

    assert (await run(over([0], returns))).value("map") == [expected]


@pytest.mark.parametrize(
    "value",
    [ValueError("returned"), StageStatus.OK, StageOutput.route("a"), iter],
    ids=["error", "status", "route", "generator"],
)
async def test_invalid_value_fails_the_item(value: Any) -> None:
    async def returns(item: int) -> Any:
        return value if value is not iter else (n for n in [1])

    results = await run(over([0], returns))
    assert isinstance(results["map"].exception, StageOutputError)


async def test_awaitable_that_was_not_awaited_fails_the_item() -> None:
    async def forgets(item: int) -> Any:
        return double(item)

    results = await run(over([0], forgets))
    assert "did you forget an `await`?" in str(results["map"].exception)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("suspend", [False, True])
def test_interrupt_ends_the_run(error: BaseException, suspend: bool) -> None:
    sink = MemoryEventSink()

    async def raises(item: int) -> None:
        if suspend:
            await asyncio.sleep(0)
        if item == 3:
            raise error

    pipeline = over(range(5), raises)
    graph = pipeline.build(**EMITS, wide_event_emitter=WideEventEmitter(sink))
    with pytest.raises(type(error)):
        asyncio.run(graph.run())
    check_record(sink.events, ["source", "map"])


# ------------------------------------------------------------ policies of items


@pytest.mark.parametrize("suspend", [False, True])
async def test_retry_applies_to_each_item(suspend: bool) -> None:
    attempts: dict[int, int] = {}

    async def flaky(ctx: StageContext, item: int) -> int:
        attempts[item] = attempts.get(item, 0) + 1
        assert ctx.attempt == attempts[item]
        if suspend:
            await asyncio.sleep(0)
        if item % 3 == 0 and ctx.attempt < 3:
            raise ConnectionError("again")
        return item

    sink = MemoryEventSink()
    results = await run(over(range(7), flaky, retry=Retry(attempts=3, wait=0)), sink)
    assert results.value("map") == list(range(7))
    assert attempts == {item: 3 if item % 3 == 0 else 1 for item in range(7)}
    assert items_of(results).retried == 3
    event = stage_wide(sink.events, "map")
    assert (event["attempt"], event["attempts"]) == (1, 1)
    assert [each["status"] for each in sink.of_type("stage.wide")] == ["OK", "OK"]


async def test_item_fails_after_its_last_attempt() -> None:
    async def fails(item: int) -> None:
        raise ConnectionError("down")

    results = await run(over([0], fails, retry=Retry(attempts=3, wait=0), on_item_failure="collect"))
    (failure,) = results.value("map")
    assert failure.attempts == 3


async def test_item_can_request_a_retry() -> None:
    async def retries(ctx: StageContext, item: int) -> Any:
        return ctx.attempt if ctx.attempt == 2 else StageOutput.retry("not ready", after=0)

    assert (await run(over([0], retries))).value("map") == [2]


def test_item_that_waits_for_its_retry_does_not_block_others() -> None:
    clock, order = VirtualClock(), []

    async def flaky(ctx: StageContext, item: int) -> None:
        if item == 0 and ctx.attempt == 1:
            raise ConnectionError("again")
        order.append(item)

    clock.run(run(over(range(4), flaky, retry=Retry(wait=60), max_concurrency=1)))
    assert order == [1, 2, 3, 0]


def test_timeout_applies_to_each_attempt_of_an_item() -> None:
    clock = VirtualClock()

    async def waits(item: int) -> int:
        await asyncio.sleep(item)
        return item

    results = clock.run(run(over([1, 30, 2], waits, timeout=5, on_item_failure="collect", max_concurrency=1)))
    one, failure, two = results.value("map")
    assert (one, two) == (1, 2)
    assert isinstance(failure.exception, StageTimeoutError)
    items = items_of(results)
    assert items.max_ms == pytest.approx(5000, rel=0.01)
    assert items.slowest == "1"
    assert items.p50_ms == pytest.approx(2000, rel=0.01)
    assert items.p95_ms == pytest.approx(5000, rel=0.01)


def test_item_that_ignores_its_cancellation_is_abandoned() -> None:
    clock = VirtualClock()
    released = []

    async def stubborn(item: int) -> int:
        while item == 1 and not released:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue
        return item

    async def main() -> PipelineResults:
        graph = over(
            [0, 1, 2], stubborn, timeout=5, on_item_failure="skip", limit="l", max_concurrency=1
        ).build(limits=Limits(l=1), grace=1)
        results = await graph.run()
        assert active_runs() == []
        released.append(True)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait([task])
        return results

    results = clock.run(main())
    assert results.value("map") == [0, 2]
    assert items_of(results).failed == 1


def test_total_timeout_fails_the_stage() -> None:
    clock = VirtualClock()

    async def waits(item: int) -> None:
        await asyncio.sleep(10)

    results = clock.run(run(over(range(100), waits, total_timeout=25, max_concurrency=10)))
    assert isinstance(results["map"].exception, StageTimeoutError)
    items = items_of(results)
    assert (items.total, items.failed) == (100, 0)
    assert 11 <= items.ok <= 20  # those that end at the same time as the timeout may be cancelled


@pytest.mark.parametrize("runner", ["async", "sync"])
async def test_limit_applies_to_each_item(runner: str) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def enter(change: int) -> None:
        nonlocal running, most
        with lock:
            running += change
            most = max(most, running)

    async def asynchronous(item: int) -> int:
        enter(1)
        for _ in range(3):
            await asyncio.sleep(0)
        enter(-1)
        return item

    def in_thread(item: int) -> int:
        enter(1)
        enter(-1)
        return item

    limits = Limits(api=2)
    function = asynchronous if runner == "async" else in_thread
    results = await run(over(range(30), function, limit="api"), limits=limits)
    assert results.value("map") == list(range(30))
    assert most <= 2
    assert (limits["api"].taken, limits["api"].waiting) == (0, 0)


async def test_limit_that_would_never_become_available_fails_the_item() -> None:
    limits = Limits(api=1)
    inner = Pipeline("inner").with_stage("s", lambda ctx: None, limit="api").build(limits=limits)

    async def nested(ctx: StageContext, item: int) -> Any:
        return (await inner.run(ctx.run)).raise_on_failure()

    results = await run(over([0], nested, limit="api"), limits=limits)
    cause: Any = results["map"].exception
    assert isinstance(cause.__cause__, LimitDeadlockError)
    assert limits["api"].taken == 0


@pytest.mark.parametrize("max_concurrency", [1, 2, 7])
async def test_max_concurrency_is_never_exceeded(max_concurrency: int) -> None:
    running, most = 0, 0

    async def measures(ctx: StageContext, item: int) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(item % 3):
            await asyncio.sleep(0)
        running -= 1
        return StageOutput.retry("again", after=0) if item % 4 == 0 and ctx.attempt == 1 else item

    results = await run(over(range(60), measures, max_concurrency=max_concurrency))
    assert results.value("map") == list(range(60))
    assert most <= max_concurrency


# ------------------------------------------------------------ cancellation


@pytest.mark.parametrize("items", ["list", "asynchronous"])
async def test_cancelled_run_cancels_its_items(items: str) -> None:
    sink = MemoryEventSink()
    started, cancelled = asyncio.Event(), []

    async def hangs(item: int) -> None:
        if item == 2:
            started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    source = range(9) if items == "list" else asynchronously(range(9))
    graph = over(source, hangs, max_concurrency=3).build(**EMITS, wide_event_emitter=WideEventEmitter(sink))
    task = asyncio.create_task(graph.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cancelled) == [0, 1, 2]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    check_record(sink.events, ["source", "map"])
    event = stage_wide(sink.events, "map")
    assert event["status"] == "CANCEL"
    assert event["items"]["ok"] == 0
    assert event["items"]["total"] >= 3


async def test_failing_stage_cancels_a_map_in_progress() -> None:
    started = asyncio.Event()

    async def hangs(item: int) -> None:
        started.set()
        await asyncio.Event().wait()

    async def fails(ctx: StageContext) -> None:
        await started.wait()
        raise ValueError("other")

    results = await run(over(range(5), hangs).with_stage("other", fails, dependencies=("source",)))
    assert results["map"].status is StageStatus.CANCEL
    assert results["other"].status is StageStatus.FAIL


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_error_of_the_source_fails_the_stage(asynchronous: bool) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ConnectionError("source")

    async def asynchronous_source() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("source")

    results = await run(over(asynchronous_source() if asynchronous else source(), double))
    assert results["map"].error == "ConnectionError: source"
    assert items_of(results).total == 1


async def test_external_cancellation_of_an_item_cancels_the_run() -> None:
    async def cancels_itself(item: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        if item == 1:
            task.cancel()
        await asyncio.sleep(0)

    graph = over(range(4), cancels_itself).build()
    results = await graph.run()
    assert results.outcome == "cancelled"
    assert results["map"].status is StageStatus.CANCEL


# ------------------------------------------------------------ scheduling and endings of the map


async def test_item_starts_as_soon_as_a_worker_is_free() -> None:
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def source() -> AsyncIterator[int]:
        nonlocal turn
        for item in range(3):
            turn = asyncio.get_running_loop().create_future()
            yield item
            await turn

    async def completes_turn(item: int) -> int:
        await asyncio.sleep(0)
        turn.set_result(None)
        return item

    assert (await run(over(source(), completes_turn, max_concurrency=1))).value("map") == [0, 1, 2]


async def test_items_of_an_asynchronous_source_can_wait_for_each_other() -> None:
    second_started = asyncio.Event()

    async def waits(item: int) -> None:
        if item == 1:
            second_started.set()
        await second_started.wait()

    await run(over(asynchronously(range(4)), waits, max_concurrency=2))


def test_retry_that_is_due_starts_when_a_worker_ends() -> None:
    clock, attempts = VirtualClock(), []

    async def item(ctx: StageContext, seconds: float) -> None:
        if seconds == 0 and ctx.attempt == 1:
            raise ConnectionError("again")
        attempts.append((seconds, asyncio.get_running_loop().time() - began))
        await asyncio.sleep(seconds)

    async def main() -> None:
        nonlocal began
        began = asyncio.get_running_loop().time()
        await run(over([0, 1, 20], item, max_concurrency=2, retry=Retry(wait=1)))

    began = 0.0
    clock.run(main())
    assert dict(attempts)[0] == pytest.approx(1, abs=0.1)


async def stubborn(item: int) -> int:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


def hangs_in_thread(item: int) -> int:
    hanging.wait(20)
    return item


hanging = threading.Event()


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize("runner", [stubborn, hangs_in_thread], ids=["async", "sync"])
def test_item_that_never_ends_does_not_block_the_end_of_the_loop(runner: Any, awaited: bool) -> None:
    sink = MemoryEventSink()
    hanging.clear()

    async def main() -> None:
        graph = over([1], runner).build(**EMITS, wide_event_emitter=WideEventEmitter(sink), grace=0.05)
        task = asyncio.create_task(graph.run())
        while not active_runs() or active_runs()[0].stages != ("map",):
            await asyncio.sleep(0.001)
        if awaited:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(main())
    hanging.set()
    check_record(sink.events, ["source", "map"])
    assert stage_wide(sink.events, "map")["abandoned"]


def test_source_that_never_ends_does_not_block_the_end_of_the_loop() -> None:
    class Endless:
        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> int:
            return await stubborn(0)

    sink = MemoryEventSink()

    async def main() -> None:
        graph = over(Endless(), double).build(**EMITS, wide_event_emitter=WideEventEmitter(sink), grace=0.05)
        task = asyncio.create_task(graph.run())
        while not active_runs() or active_runs()[0].stages != ("map",):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    check_record(sink.events, ["source", "map"])


@pytest.mark.parametrize("ends_by", ["total_timeout", "failure"])
def test_permits_of_abandoned_items_are_released(ends_by: str) -> None:
    limits = Limits(db=2)

    async def item(number: int) -> None:
        if number == 0 and ends_by == "failure":
            raise ValueError("zero")
        await stubborn(number)

    async def main() -> PipelineResults:
        options: dict[str, Any] = {"total_timeout": 0.05} if ends_by == "total_timeout" else {}
        graph = over([1, 0], item, limit="db", **options).build(limits=limits, grace=0.05)
        results = await graph.run()
        assert limits["db"].taken == 0  # although the item is still running
        return results

    results = asyncio.run(main())
    assert results["map"].status is StageStatus.FAIL
    if ends_by == "failure":
        assert results["map"].reason == "item 1 failed; 1 item did not end within 0.05 s and was left running"


def test_map_whose_items_wait_for_a_retry_ends_at_once() -> None:
    clock = VirtualClock()

    async def fails(item: int) -> None:
        raise ConnectionError("down")

    results = clock.run(run(over([1], fails, retry=Retry(wait=100), total_timeout=5)))
    assert results["map"].duration_ms == pytest.approx(5000, abs=100)
    assert not results["map"].abandoned


@pytest.mark.parametrize("where", ["cleanup", "source"])
def test_interrupt_during_the_end_of_a_map_ends_the_run(where: str) -> None:
    sink = MemoryEventSink()

    async def item(number: int) -> None:
        if number == 0 and where == "cleanup":
            raise ValueError("zero")
        try:
            await asyncio.Event().wait()
        finally:
            if where == "cleanup":
                raise SystemExit(3)

    async def source() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        raise SystemExit(3)

    items = source() if where == "source" else [1, 0]
    graph = over(items, item).build(**EMITS, wide_event_emitter=WideEventEmitter(sink))
    with pytest.raises(SystemExit):
        asyncio.run(graph.run())
    check_record(sink.events, ["source", "map"])


async def test_cleanup_of_items_is_cancelled_once() -> None:
    cleaned = []
    started = asyncio.Event()

    async def cleans(item: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append(item)

    graph = over([0, 1, 2], cleans, limit="db").build(limits=Limits(db=1))
    task = asyncio.create_task(graph.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [0]


async def test_item_that_cancels_its_own_task_and_returns_is_ok() -> None:
    async def cancels(item: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return item

    assert (await run(over(range(5), cancels))).value("map") == [0, 1, 2, 3, 4]


async def test_generator_of_a_source_is_closed() -> None:
    closed = []

    class Source:
        async def __aiter__(self) -> AsyncIterator[int]:
            try:
                for item in range(100):
                    yield item
            finally:
                await asyncio.sleep(0)
                closed.append("asynchronous")

    def synchronous_source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append("synchronous")

    await run(over(Source(), odd_fails))
    await run(over(synchronous_source(), odd_fails))
    assert closed == ["asynchronous", "synchronous"]


async def test_generator_can_set_context_variables() -> None:
    def source() -> Iterator[int]:
        token = variable.set("source")
        yield from range(5)
        variable.reset(token)

    assert (await run(over(source(), double))).value("map") == [0, 2, 4, 6, 8]


class Lies(list[int]):
    def __len__(self) -> int:
        return 10


class NoSize(list[int]):
    def __len__(self) -> int:
        raise RuntimeError("no size")


@pytest.mark.parametrize("items", [Lies([1, 2]), NoSize([1, 2])], ids=["wrong", "raises"])
async def test_total_is_the_number_of_items(items: Any) -> None:
    results = await run(over(items, double))
    assert items_of(results).total == 2


async def test_context_of_an_item_has_the_items_so_far() -> None:
    async def reads(ctx: StageContext, item: int) -> int:
        assert ctx.items is not None
        return ctx.items.ok

    assert (await run(over(range(4), reads, max_concurrency=1))).value("map") == [0, 1, 2, 3]


@pytest.mark.parametrize("suspend", [False, True])
def test_item_that_blocks_the_loop_is_reported(suspend: bool) -> None:
    clock = VirtualClock()

    async def blocks(item: int) -> None:
        if suspend:
            await asyncio.sleep(0)
        clock.advance(0.3)

    results = clock.run(run(over([1, 2], blocks)))
    assert results["map"].loop_blocked_ms == 300


def test_late_items_leave_no_reference_cycles() -> None:
    async def raises_late(item: int) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise ValueError("late") from None

    graph = over(range(20), raises_late, timeout=1, on_item_failure="skip").build()

    async def main() -> None:
        await graph.run()
        with no_cycles():
            await graph.run()

    VirtualClock().run(main())


# ------------------------------------------------------------ isolation


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("runner", ["immediate", "suspending", "sync"])
async def test_items_do_not_see_the_context_variables_of_other_items(runner: str) -> None:
    def swap(item: int) -> str:
        before = variable.get()
        variable.set(f"item {item}")
        return before

    async def immediate(item: int) -> str:
        return swap(item)

    async def suspending(item: int) -> str:
        before = swap(item)
        await asyncio.sleep(0)
        assert variable.get() == f"item {item}"
        return before

    function = {"immediate": immediate, "suspending": suspending, "sync": swap}[runner]
    assert (await run(over(range(20), function))).value("map") == ["unset"] * 20


@pytest.mark.parametrize("suspend", [False, True])
async def test_generator_that_an_item_leaves_open_cancels_no_other_item(suspend: bool) -> None:
    left = []

    async def with_timeout() -> AsyncIterator[None]:
        async with asyncio.timeout(0.01):
            yield

    async def leaves(item: int) -> int:
        if item == 0:
            generator = with_timeout()
            left.append(generator)
            await anext(generator)
            if suspend:
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.02)
        return item

    assert (await run(over(range(8), leaves, max_concurrency=1))).value("map") == list(range(8))
    for generator in left:
        await generator.aclose()


async def test_what_an_item_records_belongs_to_the_stage() -> None:
    sink = MemoryEventSink()

    async def records(ctx: StageContext, item: int) -> None:
        ctx.count("cache.hit")
        ctx.record_llm("m", input_tokens=10, output_tokens=item)
        ctx.annotate(last=item)
        ctx.emit_event("chat.tokens", {"item": item})
        ctx.add_artifact("prompt")
        assert ctx.traceparent
        assert ctx.inputs.get_from("source", "items") is not None

    results = await run(over(range(5), records), sink)
    event = stage_wide(sink.events, "map")
    assert event["attributes"]["cache.hit"] == 5
    assert event["attributes"]["gen_ai.usage.input_tokens"] == 50
    assert event["events_count"] == event["artifacts_count"] == 5
    assert len(sink.of_type("chat.tokens")) == 5
    assert len({each["event_id"] for each in sink.of_type("chat.tokens")}) == 5
    assert results["map"].attributes["last"] == 4


async def test_functions_without_context_can_annotate() -> None:
    async def records(item: int) -> None:
        count("seen")
        annotate(kind="x")

    results = await run(over(range(5), records))
    assert results["map"].attributes == {"seen": 5, "kind": "x"}


# ------------------------------------------------------------ events


async def test_event_of_a_failed_map_contains_the_first_failures() -> None:
    sink = MemoryEventSink()

    async def fails(item: int) -> None:
        raise (ValueError if item < 4 else KeyError)(f"password=hunter{item}2")

    pipeline = over(range(8), fails, on_item_failure="skip", item_key=lambda item: f"s3://bucket/{item}")
    await run(pipeline, sink)
    items = stage_wide(sink.events, "map")["items"]
    assert items["failed"] == 8
    assert items["failure_types"] == ["KeyError", "ValueError"]
    assert [each["key"] for each in items["failures"]] == [f"s3://bucket/{item}" for item in range(5)]
    assert "hunter" not in json.dumps(stage_wide(sink.events, "map"))


async def test_failed_items_emit_events() -> None:
    sink = MemoryEventSink()
    pipeline = over([0, 1, 2], odd_fails, on_item_failure="skip", retry=Retry(attempts=2, wait=0))
    results = await run(pipeline, sink)
    run_id = str(results.context.pipeline_run_id)
    events = sink.of_type("stage.item")
    assert [event["event_id"] for event in events] == [f"{run_id}/map/1/1/1", f"{run_id}/map/1/1/2"]
    assert [(event["status"], event["item_attempt"]) for event in events] == [("RETRY", 1), ("FAIL", 2)]
    assert {event["error_type"] for event in events} == {"ValueError"}
    assert {event["stage_name"] for event in events} == {"map"}


@pytest.mark.parametrize("archived", [False, True])
def test_items_can_be_queried(tmp_path: Path, archived: bool) -> None:
    sink = JournalSink(tmp_path)
    graph = over(range(4), odd_fails, on_item_failure="skip", item_key=lambda item: f"file-{item}").build(
        **EMITS, wide_event_emitter=WideEventEmitter(sink)
    )
    asyncio.run(graph.run(PipelineContext(request_id="r1")))
    sink.close()
    if archived:
        Compactor(tmp_path, keep_seconds=0).compact()
    with EventStore(tmp_path) as store:
        query = (
            "select request_id, item, failed, error, item_attempt, duration_ms >= 0 from items order by item"
        )
        failed = [("r1", f"file-{item}", True, f"ValueError: odd: {item}", 1, True) for item in (1, 3)]
        assert [tuple(row) for row in store.sql(query).rows] == failed
        query = (
            "select items_total, items_failed, items_failure_types from stages where items_total is not null"
        )
        assert [tuple(row) for row in store.sql(query).rows] == [(4, 2, ["ValueError"])]


async def test_event_contains_at_most_ten_types_of_errors() -> None:
    async def fails(item: int) -> None:
        raise type(f"Error{item:02}", (Exception,), {})("failed")

    results = await run(over(range(12), fails, on_item_failure="skip", max_concurrency=1))
    assert items_of(results).failure_types == [f"Error{number:02}" for number in range(10)]
    assert len(items_of(results).failures) == 5


def test_default_of_slow_after_is_one_second() -> None:
    sink = MemoryEventSink()

    async def waits(seconds: float) -> None:
        await asyncio.sleep(seconds)

    VirtualClock().run(run(over([0.5, 1.5], waits), sink))
    assert [event["item"] for event in sink.of_type("stage.item")] == ["1"]


def test_max_concurrency_of_a_map_is_16_by_default() -> None:
    most = running = 0

    async def counts(item: int) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    VirtualClock().run(run(over(range(40), counts)))
    assert most == 16


def test_show_prints_the_items_of_a_map() -> None:
    sink = MemoryEventSink()

    async def fails(item: int) -> None:
        if item == 0:
            raise ConnectionError("again")
        if item < 8:
            raise ValueError(f"odd \x1b[31m {item}")

    pipeline = over(range(10), fails, on_item_failure="skip", item_key=lambda item: f"file-{item}")
    asyncio.run(run(pipeline, sink))
    (record,) = sink.of_type("pipeline.wide")
    file = io.StringIO()
    events = [(type, data) for type, data in sink.events if type == "stage.item"]
    Console(file=file, width=80).print(draw_run(record, sink.of_type("stage.wide"), events=events))
    text = file.getvalue()
    assert "2 of 10 items OK, 8 failed" in text
    assert "item file-0: ConnectionError: again" in text
    assert "item file-1: ValueError: odd \\x1b[31m 1" in text
    assert "and 3 more failed items" in text
    assert "custom events" not in text


@pytest.mark.parametrize(("item_events", "number"), [("all", 5), ("problems", 2), ("none", 0)])
async def test_item_events_selects_the_items_that_emit_events(item_events: str, number: int) -> None:
    sink = MemoryEventSink()
    await run(over(range(5), odd_fails, on_item_failure="skip", item_events=item_events), sink)
    assert len(sink.of_type("stage.item")) == number


def test_slow_items_emit_events() -> None:
    clock, sink = VirtualClock(), MemoryEventSink()

    async def waits(item: int) -> None:
        await asyncio.sleep(item)

    clock.run(run(over([1, 3, 2, 9], waits, slow_after=2.5), sink))
    assert sorted(event["item"] for event in sink.of_type("stage.item")) == ["1", "3"]


async def test_stage_item_is_reserved() -> None:
    async def emits(ctx: StageContext) -> None:
        ctx.emit_event("stage.item", {})

    results = await Pipeline("p").with_stage("s", emits).run()
    assert isinstance(results["s"].exception, InvalidArgumentError)


async def test_item_key_that_raises_is_replaced_by_the_index() -> None:
    def raises(item: int) -> str:
        raise RuntimeError("key")

    results = await run(over([0, 1], odd_fails, on_item_failure="collect", item_key=raises))
    assert results.value("map")[1].key == "1"


async def test_active_runs_shows_the_progress_of_a_map() -> None:
    half_done, release = asyncio.Event(), asyncio.Event()

    async def waits(item: int) -> int:
        if item == 3:
            half_done.set()
            await release.wait()
        if item == 1:
            raise ValueError("one")
        return item

    graph = over(range(6), waits, max_concurrency=1, on_item_failure="skip").build()
    task = asyncio.create_task(graph.run())
    await half_done.wait()
    ((progress,),) = [active.maps for active in active_runs()]
    assert (progress.stage, progress.done, progress.total, progress.failed) == ("map", 3, 6, 1)
    release.set()
    await task
    assert active_runs() == []


def test_crashed_map_has_its_items_so_far(tmp_path: Path) -> None:
    program = Program(
        """
        import asyncio, sys
        import stageflow
        from stageflow import Pipeline
        stageflow.configure(journal=sys.argv[1])
        async def hangs(item):
            if item == 2:
                raise ValueError("two")
            if item > 4:
                await asyncio.Event().wait()
        async def report(ctx):
            await asyncio.sleep(1.5)  # after the first heartbeat
            print("ready", flush=True)
            await asyncio.Event().wait()
        pipeline = (
            Pipeline("p")
            .with_stage("source", lambda ctx: list(range(50)))
            .with_map("map", hangs, over="source", on_item_failure="skip")
            .with_stage("report", report)
        )
        asyncio.run(pipeline.run())
        """,
        tmp_path,
    )
    program.wait_for("ready")
    program.process.send_signal(signal.SIGKILL)
    program.ended()
    assert len(Journal(tmp_path).recover()) == 1
    event = stage_wide(program.events(), "map")
    assert event["status"] == "CANCEL"
    items = event["items"]
    assert (items["total"], items["ok"], items["failed"]) == (50, 4, 1)
    assert items["failure_types"] == ["ValueError"]


# ------------------------------------------------------------ definition


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_concurrency": 0}, "max_concurrency must be a positive integer, got 0"),
        ({"on_item_failure": "ignore"}, 'on_item_failure must be one of "fail", "skip", "collect"'),
        ({"item_events": "some"}, 'item_events must be one of "problems", "all", "none"'),
        ({"timeout": 0}, "timeout must be more than 0 seconds, got 0"),
        ({"total_timeout": "5"}, "total_timeout must be more than 0 seconds, got '5'"),
        ({"retry": 3}, "retry must be a policy"),
        ({"limit": "nope"}, "unknown limit 'nope'"),
        ({"kind": StageKind.ROUTE}, "a mapped stage cannot have kind ROUTE"),
        ({"item_key": 3}, "item_key must be a synchronous function that takes an item"),
        ({"slow_after": -1}, "slow_after must be 0 or more seconds, got -1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_options_are_reported(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(PipelineValidationError, match=problem.replace("(", r"\(")):
        over([], double, **options).build()


def test_unknown_option_is_reported_with_the_closest_match() -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'max_concurrency'"):
        over([], double, max_concurency=3)


@pytest.mark.parametrize("over_", [3, ("a",), ("a", 3), None, ("a", "b", "c")])
def test_over_must_name_a_stage(over_: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="over must be the name of a stage, or a stage and a key"):
        Pipeline("p").with_map("m", double, over=over_)


def test_unknown_stage_is_reported() -> None:
    with pytest.raises(PipelineValidationError, match="unknown dependency 'sorce'; did you mean 'source'"):
        Pipeline("p").with_stage("source", double).with_map("m", double, over=("sorce", "x")).build()


def test_function_with_wrong_parameters_is_reported() -> None:
    async def three(ctx: StageContext, item: int, other: int) -> None: ...

    with pytest.raises(PipelineValidationError, match="cannot be called with the context and 1 input"):
        over([], three).build()


def test_map_is_described() -> None:
    pipeline = over([], double, max_concurrency=4, timeout=5, total_timeout=60, on_item_failure="skip")
    described = pipeline.build().describe().splitlines()[-1].split()
    assert described[4:] == [
        "map=source.items",
        "max_concurrency=4",
        "on_item_failure=skip",
        "timeout=5s",
        "total_timeout=60s",
    ]
    assert "map=source.items" in pipeline.to_mermaid()
    assert "map=source.items" in pipeline.to_dot()


# ------------------------------------------------------------ flows


async def numbers() -> list[int]:
    return [1, 2, 3]


async def factor() -> int:
    return 10


async def times(item: int, by: int) -> int:
    return item * by


async def add_context(ctx: StageContext, item: int, by: int) -> str:
    return f"{ctx.stage}: {item * by}"


async def test_map_of_a_flow_passes_further_inputs_to_each_call() -> None:
    flow = Flow("f")
    items, by = flow.add(numbers), flow.add(factor)
    scaled = flow.map(times, items, by)
    labelled = flow.map(add_context, scaled, by, max_concurrency=1)
    total = flow.add(lambda values: sum(values), scaled, name="total")
    results = await flow.run(PipelineContext())
    assert results.value(scaled) == [10, 20, 30]
    assert results.value(labelled) == ["add_context: 100", "add_context: 200", "add_context: 300"]
    assert results.value(total) == 60


async def text() -> str:
    return "text"


async def nothing() -> int:
    return 1


async def upper(item: str) -> str:
    return item.upper()


async def sums(values: list[str]) -> str:
    return "".join(values)


@pytest.mark.parametrize(
    ("describe", "problem"),
    [
        (
            lambda flow: flow.map(upper, flow.add(numbers)),
            "stage 'upper': parameter 'item' of upper is str, but an item of stage 'numbers' is int",
        ),
        (
            lambda flow: flow.map(upper, flow.add(nothing)),
            "stage 'upper': stage 'nothing' returns int, which is not an iterable of items",
        ),
        (
            lambda flow: flow.map(upper, flow.add(text)),
            "stage 'upper': stage 'text' returns str, which is not an iterable of items",
        ),
        (
            lambda flow: flow.add(sums, flow.map(times, flow.add(numbers), flow.add(factor))),
            "stage 'sums': parameter 'values' of sums is list[str], but stage 'times' returns list[int]",
        ),
    ],
    ids=["item", "no iterable", "text", "result"],
)
def test_annotations_of_maps_are_compared(describe: Callable[[Flow], object], problem: str) -> None:
    flow = Flow("f")
    describe(flow)
    with pytest.raises(PipelineValidationError) as caught:
        flow.build()
    assert problem in str(caught.value)


def test_result_of_a_collecting_map_may_contain_failures() -> None:
    async def values(results: list[int]) -> None: ...

    flow = Flow("f")
    flow.add(values, flow.map(times, flow.add(numbers), flow.add(factor), on_item_failure="collect"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(PipelineValidationError, match="ItemFailure"):
        flow.build()


# ------------------------------------------------------------ properties


@given(
    outcomes=st.lists(st.sampled_from(["ok", "slow", "fail", "skip", "flaky", "late"]), max_size=40),
    policy=st.sampled_from(["skip", "collect", "fail"]),
    max_concurrency=st.integers(1, 5),
    in_thread=st.booleans(),
    asynchronous=st.booleans(),
    limited=st.booleans(),
    cancel_after=st.none() | st.floats(0, 30),
)
def test_record_of_a_map_is_complete(
    outcomes: list[str],
    policy: Any,
    max_concurrency: int,
    in_thread: bool,
    asynchronous: bool,
    limited: bool,
    cancel_after: float | None,
) -> None:
    sink = MemoryEventSink()
    running = most = 0

    async def item(ctx: StageContext, work: tuple[int, str]) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            index, outcome = work
            if outcome in ("slow", "late"):
                await asyncio.sleep(1 if outcome == "slow" else 10)
            if outcome == "fail" or (outcome == "flaky" and ctx.attempt == 1):
                raise ConnectionError(outcome)
            return StageOutput.skip("odd") if outcome == "skip" else index
        finally:
            running -= 1

    def item_in_thread(ctx: StageContext, work: tuple[int, str]) -> Any:
        index, outcome = work
        if outcome == "fail" or (outcome == "flaky" and ctx.attempt == 1):
            raise ConnectionError(outcome)
        return StageOutput.skip("odd") if outcome == "skip" else index

    work = list(enumerate(outcomes))
    limits = Limits(api=2)
    graph = over(
        asynchronously(work) if asynchronous else work,
        item_in_thread if in_thread else item,
        max_concurrency=max_concurrency,
        on_item_failure=policy,
        timeout=5,
        retry=Retry(attempts=2, wait=0 if in_thread else 1, on=ConnectionError),
        limit="api" if limited else None,
    ).build(**EMITS, wide_event_emitter=WideEventEmitter(sink), limits=limits)

    # Threads use real time, which a virtual clock does not wait for.
    seconds = None if cancel_after is None else cancel_after / 1000 if in_thread else cancel_after

    async def main() -> PipelineResults | None:
        try:
            async with asyncio.timeout(seconds):
                return await graph.run()
        except TimeoutError:
            return None
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    results = asyncio.run(main()) if in_thread else VirtualClock().run(main())
    check_record(sink.events, ["source", "map"])
    assert most <= max_concurrency
    assert limits["api"].taken == limits["api"].waiting == 0
    items = stage_wide(sink.events, "map")["items"]
    if items is None:  # the run was cancelled before the map started
        return
    ended = items["ok"] + items["failed"] + items["skipped"]
    assert ended <= items["total"] <= len(outcomes)
    if results is not None and results["map"].ok:
        fails = [
            index for index, outcome in work if outcome == "fail" or (outcome == "late" and not in_thread)
        ]
        skipped = [index for index, outcome in work if outcome == "skip"]
        assert (ended, items["failed"], items["skipped"]) == (len(outcomes), len(fails), len(skipped))
        assert items["ok"] == len(outcomes) - len(fails) - len(skipped)
        values = results.value("map")
        kept = [index for index, _ in work if index not in skipped and index not in fails]
        if policy == "collect":
            assert [each.index for each in values if isinstance(each, ItemFailure)] == fails
        assert [each for each in values if not isinstance(each, ItemFailure)] == kept


async def test_map_leaves_no_reference_cycles() -> None:
    graph = over(range(200), odd_fails, on_item_failure="skip").build()
    await graph.run()
    with no_cycles():
        await graph.run()
