"""Which stages share an asyncio task: only those that cannot affect each other through it."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from stageflow import Pipeline, PipelineResults, StageContext, StageStatus
from stageflow.testing import VirtualClock


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def with_timeout() -> AsyncIterator[str]:
    async with asyncio.timeout(1):
        yield "first"
        await asyncio.sleep(60)


async def with_task_group() -> AsyncIterator[str]:
    async def fails() -> None:
        await asyncio.sleep(1)
        raise ValueError

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            yield "first"
            await asyncio.sleep(60)


async def unrelated(ctx: StageContext) -> dict[str, Any]:
    await asyncio.sleep(3)
    return {"done": True}


def run_before(*stages: Callable[[StageContext], Any]) -> PipelineResults:
    """Run these stages and then one that waits for three seconds, each after the previous one."""
    pipeline = Pipeline("p")
    for number, stage in enumerate((*stages, unrelated)):
        pipeline = pipeline.with_stage(
            f"s{number}", stage, dependencies=(f"s{number - 1}",) if number else ()
        )
    kept: list[Any] = []

    async def main() -> PipelineResults:
        results = await pipeline.run()
        kept.extend(results.values())
        return results

    results = VirtualClock().run(main())
    assert results.outcome == "ok"
    assert [result.status for result in results.values()] == [StageStatus.OK] * len(results)
    return results


@pytest.mark.parametrize("waits_first", [False, True])
@pytest.mark.parametrize("source", [with_timeout, with_task_group])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_generator_with_an_open_cancel_scope_never_cancels_another_stage(
    source: Callable[[], AsyncIterator[str]], waits_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def opens(ctx: StageContext) -> dict[str, Any]:
        if waits_first:
            await asyncio.sleep(0)
        stream = source()
        return {"first": await anext(stream), "stream": stream}

    run_before(opens)


@pytest.mark.parametrize("waits_first", [False, True])
def test_scope_that_a_stage_leaves_open_never_cancels_another_stage(waits_first: bool) -> None:
    scopes = contextlib.AsyncExitStack()

    async def opens(ctx: StageContext) -> None:
        if waits_first:
            await asyncio.sleep(0)
        await scopes.enter_async_context(asyncio.timeout(1))

    async def does_nothing(ctx: StageContext) -> None: ...

    run_before(opens, does_nothing)


def test_callback_that_cancels_the_task_of_an_ended_stage_cancels_no_other() -> None:
    async def plans(ctx: StageContext) -> None:
        asyncio.get_running_loop().call_later(1, current_task().cancel)

    run_before(plans)


def test_registry_of_weak_references_to_tasks_cancels_no_other_stage() -> None:
    registered: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def cancel_all() -> None:
        for task in registered:
            task.cancel()

    async def registers(ctx: StageContext) -> None:
        registered.add(current_task())
        asyncio.get_running_loop().call_later(1, cancel_all)

    run_before(registers)


def test_scope_that_an_interceptor_or_a_condition_leaves_open_cancels_no_other_stage() -> None:
    scopes = contextlib.AsyncExitStack()

    async def opens(call: Any, proceed: Any) -> Any:
        await scopes.enter_async_context(asyncio.timeout(1))
        return await proceed()

    async def condition(ctx: StageContext) -> bool:
        await scopes.enter_async_context(asyncio.timeout(1))
        return True

    async def does_nothing(ctx: StageContext) -> None: ...

    async def main() -> None:
        for options in ({"interceptors": (opens,)}, {"when": condition}):
            pipeline = (
                Pipeline("p")
                .with_stage("first", does_nothing, **options)  # type: ignore[arg-type]
                .with_stage("next", unrelated, dependencies=("first",))
            )
            results = await pipeline.run()
            assert (results.outcome, results["next"].status) == ("ok", "OK")

    VirtualClock().run(main())


def test_stages_that_neither_wait_nor_keep_their_task_share_one() -> None:
    # This must hold on every Python version, or each stage costs a task.
    tasks: list[int] = []

    async def notes(ctx: StageContext) -> None:
        tasks.append(id(asyncio.current_task()))  # a reference would keep other stages out of this task

    pipeline = Pipeline("p")
    for number in range(10):
        pipeline = pipeline.with_stage(
            f"s{number}", notes, dependencies=(f"s{number - 1}",) if number else ()
        )
    asyncio.run(pipeline.run())
    assert len(tasks) == 10
    assert len(set(tasks)) == 1


def test_stage_that_has_waited_does_not_share_its_task_with_later_stages() -> None:
    kept: list[asyncio.Task[Any]] = []

    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(0)
        kept.append(current_task())

    pipeline = Pipeline("p")
    for number in range(10):
        pipeline = pipeline.with_stage(
            f"s{number}", waits, dependencies=(f"s{number - 1}",) if number else ()
        )
    asyncio.run(pipeline.run())
    assert len(set(kept)) == 10
    assert all(task.done() and not task.cancelled() for task in kept)
