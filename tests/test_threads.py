"""Synchronous stages: the limit on threads, cancellation by interceptors, and late return values."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from oracle import check_record, ends, recorded

import stageflow
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
from stageflow.errors import SettingsError
from stageflow.events import MemoryEventSink
from stageflow.pipeline import CircuitBreaker, Proceed, StageCall

pytestmark = pytest.mark.timeout(60)


class Gate:
    """A synchronous stage that waits until it is released."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.released = threading.Event()
        self.contexts: list[StageContext] = []
        self.returned = threading.Semaphore(0)

    def execute(self, ctx: StageContext) -> Any:
        self.contexts.append(ctx)
        self.started.release()
        self.released.wait(30)
        self.returned.release()
        return {"late": True}

    async def has_started(self, times: int = 1) -> None:
        for _ in range(times):
            await asyncio.to_thread(self.started.acquire)

    async def has_returned(self) -> None:
        await asyncio.to_thread(self.returned.acquire)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.released.set()


# ---------------------------------------------------------------- an interceptor cancels the call


async def by_timeout(call: StageCall, proceed: Proceed) -> StageOutput:
    try:
        async with asyncio.timeout(0.1):
            return await proceed()
    except TimeoutError:
        return StageOutput.ok(fallback=True)


async def by_wait_for(call: StageCall, proceed: Proceed) -> StageOutput:
    try:
        return await asyncio.wait_for(proceed(), 0.1)
    except TimeoutError:
        return StageOutput.ok(fallback=True)


async def by_cancelling_a_task(call: StageCall, proceed: Proceed) -> StageOutput:
    task = asyncio.ensure_future(proceed())
    await asyncio.wait([task], timeout=0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return StageOutput.ok(fallback=True)


async def by_task_group(call: StageCall, proceed: Proceed) -> StageOutput:
    async def fails() -> None:
        await asyncio.sleep(0.1)
        raise ConnectionError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            return await proceed()
    except* ConnectionError:
        pass
    return StageOutput.ok(fallback=True)


@pytest.mark.parametrize("interceptor", [by_timeout, by_wait_for, by_cancelling_a_task, by_task_group])
async def test_interceptor_that_cancels_a_synchronous_stage_continues_at_once(
    gate: Gate, sink: MemoryEventSink, interceptor: Any
) -> None:
    graph = recorded(Pipeline("p").with_stage("s", gate, interceptors=(interceptor,)), sink, grace=30)
    results = await graph.run()
    assert dict(results.data("s")) == {"fallback": True}
    assert not gate.released.is_set()  # its function is still running
    assert gate.contexts[0].cancelled
    assert results["s"].outcome_by == interceptor.__name__
    gate.released.set()
    await gate.has_returned()
    await asyncio.sleep(0)
    check_record(sink.events, ["s"])
    assert dict(results.data("s")) == {"fallback": True}


async def test_timeout_of_an_interceptor_fails_the_stage_and_can_be_retried(gate: Gate) -> None:
    async def bounded(call: StageCall, proceed: Proceed) -> StageOutput:
        async with asyncio.timeout(0.01):
            return await proceed()

    pipeline = Pipeline("p").with_stage(
        "s", gate, interceptors=(bounded,), retry=Retry(attempts=2, wait=0, on=TimeoutError)
    )
    results = await pipeline.run()
    assert (results["s"].status, results["s"].attempts) == (StageStatus.FAIL, 2)
    assert type(results["s"].exception) is TimeoutError
    assert [ctx.cancelled for ctx in gate.contexts] == [True, True]


async def test_late_coroutine_of_a_synchronous_stage_is_closed_without_a_warning() -> None:
    may_return = threading.Event()
    returned: list[Any] = []

    async def never_awaited() -> None: ...

    def late(ctx: StageContext) -> Any:
        may_return.wait(30)
        returned.append(never_awaited())
        return returned[0]

    assert dict((await Pipeline("p").with_stage("s", late, interceptors=(by_timeout,)).run()).data("s")) == {
        "fallback": True
    }
    may_return.set()
    while not returned or returned[0].cr_frame is not None:
        await asyncio.sleep(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returned.clear()
        gc.collect()


async def test_timeout_of_the_stage_still_waits_for_its_thread_under_an_interceptor(
    gate: Gate, sink: MemoryEventSink
) -> None:
    seen: list[str] = []

    async def notes(call: StageCall, proceed: Proceed) -> StageOutput:
        try:
            return await proceed()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    def returns_when_cancelled(ctx: StageContext) -> dict[str, Any]:
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        return {"value": 1}

    pipeline = Pipeline("p").with_stage("s", returns_when_cancelled, timeout=0.01, interceptors=(notes,))
    results = await recorded(pipeline, sink, grace=30).run()
    assert (results["s"].status, results["s"].abandoned) == (StageStatus.FAIL, False)
    assert seen == ["StageTimeoutError"]
    check_record(sink.events, ["s"])


@pytest.mark.parametrize("kind", ["waits", "never waits", "thread", "returns when cancelled"])
def test_interceptors_see_that_an_attempt_timed_out(kind: str) -> None:
    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(30)

    async def never_waits(ctx: StageContext) -> None:
        threading.Event().wait(0.02)

    def in_thread(ctx: StageContext) -> None:
        threading.Event().wait(0.02)

    async def returns(ctx: StageContext) -> dict[str, Any]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return {"partial": True}

    stage = {"waits": waits, "never waits": never_waits, "thread": in_thread}.get(kind, returns)
    breaker = CircuitBreaker(failures=2, reset_after=60)
    graph = Pipeline("p").with_stage("s", stage, timeout=0.01, interceptors=(breaker,)).build()

    async def main() -> list[str]:
        return [str((await graph.run())["s"].exception.__class__.__name__) for _ in range(3)]

    assert asyncio.run(main()) == ["StageTimeoutError", "StageTimeoutError", "CircuitOpenError"]
    assert breaker.state("p", "s") == "open"


def test_end_of_asyncio_run_waits_for_a_thread_under_an_interceptor_and_counts_its_value(
    sink: MemoryEventSink,
) -> None:
    async def passes(call: StageCall, proceed: Proceed) -> StageOutput:
        return await proceed()

    began = threading.Event()

    def looks_now_and_then(ctx: StageContext) -> dict[str, Any]:
        began.set()
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        return {"saw": "cancelled"}

    kept: list[Any] = []

    async def main() -> None:
        pipeline = Pipeline("p").with_stage("s", looks_now_and_then, interceptors=(passes,))
        kept.append(asyncio.create_task(recorded(pipeline, sink).run()))
        await asyncio.to_thread(began.wait)

    asyncio.run(main())
    assert check_record(sink.events, ["s"])["outcome"] == "cancelled"
    assert ends(sink.events) == {"s": "OK"}


@pytest.mark.parametrize("interceptors", [(), (by_wait_for,)])
def test_no_task_waits_for_the_thread_of_an_abandoned_stage(
    gate: Gate, sink: MemoryEventSink, interceptors: tuple[Any, ...]
) -> None:
    async def slow_to_cancel(call: StageCall, proceed: Proceed) -> StageOutput:
        return await asyncio.wait_for(proceed(), 60)

    async def main() -> PipelineResults:
        pipeline = Pipeline("p").with_stage("s", gate, interceptors=(slow_to_cancel,) if interceptors else ())
        results = await recorded(pipeline, sink, grace=0.01).run(deadline=0.01)
        for _ in range(5):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    results = asyncio.run(main())
    assert results.abandoned == ("s",)
    assert check_record(sink.events, ["s"])["stages_abandoned"] == 1


# ---------------------------------------------------------------- the limit on threads


async def test_number_of_threads_is_limited_and_queue_ms_contains_the_wait(sink: MemoryEventSink) -> None:
    stageflow.configure(sink=sink, max_threads=3)
    lock = threading.Lock()
    running = most = 0

    def works(ctx: StageContext) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    graph = Pipeline("p").with_stage("s", works).build()
    runs = await asyncio.gather(*(graph.run() for _ in range(30)))
    assert all(results.ok for results in runs)
    assert most == 3
    # Ten rounds of 10 ms: a stage of the last one has waited for those before it, and its own time is short.
    last = max((results["s"] for results in runs), key=lambda result: result.queue_ms)
    assert last.queue_ms > 80
    assert last.queue_ms > last.duration_ms


async def test_wait_for_a_thread_is_not_part_of_the_timeout(gate: Gate) -> None:
    stageflow.configure(max_threads=1)
    holds = asyncio.create_task(Pipeline("p").with_stage("s", gate).run())
    await gate.has_started()

    def quick(ctx: StageContext) -> None: ...

    waits = asyncio.create_task(Pipeline("q").with_stage("s", quick, timeout=0.2).run())
    await asyncio.sleep(0.3)
    gate.released.set()
    results = await waits
    assert results["s"].ok
    assert results["s"].queue_ms > 250
    await holds


async def test_stage_that_waits_for_a_thread_never_starts_if_its_run_is_cancelled(gate: Gate) -> None:
    stageflow.configure(max_threads=1)
    called: list[str] = []
    limits = Limits(gpu=1)

    def second(ctx: StageContext) -> None:
        called.append(ctx.stage)

    holds = asyncio.create_task(Pipeline("p").with_stage("s", gate).run())
    await gate.has_started()
    graph = Pipeline("q").with_stage("s", second, limit="gpu").build(limits=limits)
    results = await graph.run(deadline=0.01)
    assert (results["s"].status, results["s"].attempts) == (StageStatus.CANCEL, 0)
    assert (limits["gpu"].taken, limits["gpu"].waiting) == (0, 0)
    gate.released.set()
    await holds
    assert (await Pipeline("r").with_stage("s", second).run()).ok
    assert called == ["s"]


async def test_abandoned_thread_keeps_its_permit_until_its_function_returns(gate: Gate) -> None:
    stageflow.configure(max_threads=1)

    def quick(ctx: StageContext) -> None: ...

    results = await Pipeline("p").with_stage("s", gate).build(grace=0).run(deadline=0.01)
    assert results.abandoned == ("s",)
    graph = Pipeline("q").with_stage("s", quick).build()
    assert (await graph.run(deadline=0.01))["s"].attempts == 0
    gate.released.set()
    assert (await graph.run(deadline=30)).ok


async def test_stages_that_call_no_function_release_their_thread() -> None:
    stageflow.configure(max_threads=1)

    def never_called(ctx: StageContext) -> None:
        raise AssertionError

    async def instead(call: StageCall, proceed: Proceed) -> StageOutput:
        return StageOutput.ok(cached=True)

    async def raises(call: StageCall, proceed: Proceed) -> StageOutput:
        raise ValueError

    pipeline = Pipeline("p")
    for number in range(5):
        pipeline = (
            pipeline.with_stage(f"declined{number}", never_called, when=lambda ctx: False)
            .with_stage(f"cached{number}", never_called, interceptors=(instead,))
            .with_stage(f"raised{number}", never_called, interceptors=(raises,), optional=True)
        )
    results = await pipeline.build().run(deadline=30)
    assert results.outcome == "degraded"
    assert all(result.status in ("SKIP", "OK", "FAIL") for result in results.values())


def by_run_sync(inner: StageGraph, loop: asyncio.AbstractEventLoop) -> PipelineResults:
    return inner.run_sync()


def by_asyncio_run(inner: StageGraph, loop: asyncio.AbstractEventLoop) -> PipelineResults:
    return asyncio.run(inner.run())


def by_the_loop_of_the_caller(inner: StageGraph, loop: asyncio.AbstractEventLoop) -> PipelineResults:
    return asyncio.run_coroutine_threadsafe(inner.run(), loop).result()


@pytest.mark.parametrize("waits", [by_run_sync, by_asyncio_run, by_the_loop_of_the_caller])
@pytest.mark.parametrize("max_threads", [1, 2])
async def test_synchronous_stages_that_wait_for_nested_runs_never_deadlock(
    waits: Callable[[StageGraph, asyncio.AbstractEventLoop], PipelineResults], max_threads: int
) -> None:
    stageflow.configure(max_threads=max_threads)
    loop = asyncio.get_running_loop()

    def work(ctx: StageContext) -> dict[str, Any]:
        return {"depth": 3}

    innermost = Pipeline("innermost").with_stage("s", work).build()

    def nests_again(ctx: StageContext) -> dict[str, Any]:
        return dict(waits(innermost, loop).data("s"))

    inner = Pipeline("inner").with_stage("s", nests_again).build()

    def nests(ctx: StageContext) -> dict[str, Any]:
        return dict(waits(inner, loop).data("s"))

    graph = Pipeline("outer").with_stage("s", nests).build()
    runs = await asyncio.gather(*(graph.run(deadline=30) for _ in range(8)))
    assert [results.data("s")["depth"] for results in runs] == [3] * 8


async def test_raised_limit_starts_stages_that_wait(gate: Gate) -> None:
    stageflow.configure(max_threads=1)
    runs = [asyncio.create_task(Pipeline("p").with_stage("s", gate).run()) for _ in range(3)]
    await gate.has_started()
    stageflow.configure(max_threads=3)
    await gate.has_started(2)
    gate.released.set()
    assert all(results.ok for results in await asyncio.gather(*runs))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_invalid_number_of_threads_is_a_settings_error(value: Any) -> None:
    with pytest.raises(SettingsError, match="max_threads"):
        stageflow.configure(max_threads=value)


def test_number_of_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEFLOW_MAX_THREADS", "7")
    assert stageflow.configure().max_threads == 7
    monkeypatch.delenv("STAGEFLOW_MAX_THREADS")
    assert stageflow.configure().max_threads == 256


@pytest.mark.parametrize("name", ["call", "variables", "scope", "function", "is_intercepted", "method"])
async def test_parameter_of_a_synchronous_stage_can_have_any_name(name: str) -> None:
    async def gives(ctx: StageContext) -> dict[str, Any]:
        return {name: 3}

    namespace: dict[str, Any] = {}
    exec(f"def takes(ctx, {name}): return {{'taken': {name}}}", namespace)
    pipeline = (
        Pipeline("p").with_stage("gives", gives).with_stage("s", namespace["takes"], dependencies=("gives",))
    )
    assert (await pipeline.run()).data("s")["taken"] == 3
