"""Interceptors: around an attempt, outermost first, named in the record when they make the outcome."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import pytest

from stageflow import (
    CircuitBreaker,
    CircuitOpenError,
    Log,
    Pipeline,
    PipelineResults,
    PipelineValidationError,
    Retry,
    StageLogFilter,
    StageOutput,
    StageStatus,
)
from stageflow.testing import VirtualClock, capture_events


async def says_hello(ctx: Any) -> dict[str, str]:
    return {"text": "hello"}


async def breaks(ctx: Any) -> None:
    raise ConnectionError("down")


def noting(name: str, notes: list[str]) -> Any:
    async def interceptor(call: Any, proceed: Any) -> Any:
        notes.append(f"{name} in")
        try:
            return await proceed()
        finally:
            notes.append(f"{name} out")

    interceptor.__name__ = name
    return interceptor


async def test_they_are_nested_outermost_first_those_of_build_outside() -> None:
    notes: list[str] = []
    graph = (
        Pipeline("p")
        .with_stage("s", says_hello, interceptors=(noting("c", notes), noting("d", notes)))
        .with_stage("other", says_hello, dependencies=("s",))
        .build(interceptors=(noting("a", notes), noting("b", notes)))
    )
    results = await graph.run()
    assert notes[:8] == ["a in", "b in", "c in", "d in", "d out", "c out", "b out", "a out"]
    assert notes[8:] == ["a in", "b in", "b out", "a out"]
    assert results["s"].outcome_by is None


async def recorded(interceptor: Any, stage: Any = says_hello, **options: Any) -> dict[str, Any]:
    with capture_events() as events:
        await Pipeline("p").with_stage("s", stage, interceptors=(interceptor,), **options).run()
    return events.stage("s")


async def test_one_that_replaces_the_outcome_is_named_in_the_record() -> None:
    async def cached(call: Any, proceed: Any) -> Any:
        return {"text": "from the cache"}

    event = await recorded(cached)
    assert (event["status"], event["outcome_by"]) == ("OK", "cached")


async def test_one_that_rescues_a_failure_is_named_in_the_record() -> None:
    async def fallback(call: Any, proceed: Any) -> Any:
        try:
            return await proceed()
        except ConnectionError:
            return StageOutput.skip("the search is down")

    event = await recorded(fallback, breaks)
    assert (event["status"], event["reason"], event["outcome_by"]) == (
        "SKIP",
        "the search is down",
        "fallback",
    )


async def test_one_that_raises_is_the_stages_failure_and_named() -> None:
    class Checks:
        async def __call__(self, call: Any, proceed: Any) -> Any:
            raise PermissionError("not today")

    event = await recorded(Checks())
    assert (event["status"], event["error"]) == ("FAIL", "PermissionError: not today")
    assert event["outcome_by"] == "Checks"


async def test_what_the_stage_raised_is_the_stages_own() -> None:
    async def passes(call: Any, proceed: Any) -> Any:
        return await proceed()

    event = await recorded(passes, breaks)
    assert (event["status"], event["error"], event["outcome_by"]) == (
        "FAIL",
        "ConnectionError: down",
        None,
    )


async def test_a_forgotten_return_fails_the_stage_and_says_so() -> None:
    async def forgetful(call: Any, proceed: Any) -> Any:
        await proceed()

    event = await recorded(forgetful)
    assert event["status"] == "FAIL"
    assert event["error"] == "StageOutputError: interceptor forgetful returned None"
    assert event["outcome_by"] == "forgetful"


async def test_a_forgotten_await_of_proceed_fails_the_stage_and_says_so() -> None:
    async def no_await(call: Any, proceed: Any) -> Any:
        return proceed()

    async def called_only(call: Any, proceed: Any) -> Any:
        proceed().close()
        return {}

    for interceptor in (no_await, called_only):
        event = await recorded(interceptor)
        assert event["error"] == (
            f"StageOutputError: interceptor {interceptor.__name__} did not await proceed()"
        )


async def test_what_no_stage_may_return_is_the_interceptors_mistake() -> None:
    async def nonsense(call: Any, proceed: Any) -> Any:
        return 42

    event = await recorded(nonsense)
    assert event["error"] == "StageOutputError: interceptor nonsense returned int"


async def test_proceed_may_be_awaited_once() -> None:
    async def twice(call: Any, proceed: Any) -> Any:
        await proceed()
        return await proceed()

    event = await recorded(twice)
    assert event["status"] == "FAIL"
    assert "interceptor twice awaited proceed() twice" in event["error"]


async def test_plain_functions_in_threads_are_intercepted_too() -> None:
    def plain(ctx: Any) -> dict[str, int]:
        return {"n": 1}

    async def doubles(call: Any, proceed: Any) -> Any:
        output = await proceed()
        return {"n": output.data["n"] * 2}

    graph = Pipeline("p").with_stage("s", plain, interceptors=(doubles,)).build()
    assert (await graph.run()).data("s") == {"n": 2}


def test_a_retry_goes_through_them_again_and_the_time_out_covers_them() -> None:
    async def slow(call: Any, proceed: Any) -> Any:
        await asyncio.sleep(10)
        return await proceed()

    graph = (
        Pipeline("p")
        .with_stage("s", says_hello, interceptors=(slow,), timeout=1, retry=Retry(2, wait=0, on=TimeoutError))
        .build()
    )
    results = VirtualClock().run(graph.run())
    assert (results["s"].status, results["s"].attempts) == (StageStatus.FAIL, 2)
    assert results.duration_ms == 2000


def test_what_is_no_interceptor_is_a_mistake() -> None:
    def plain(call: Any, proceed: Any) -> Any: ...

    pipeline = Pipeline("p").with_stage("s", says_hello, interceptors=(plain, CircuitBreaker))
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build()
    one, two = caught.value.problems
    assert one.startswith("stage 's': ")
    assert one.endswith("plain is no interceptor; give an async callable of (call, proceed)")
    assert two == "stage 's': CircuitBreaker is no interceptor; give an async callable of (call, proceed)"


# ------------------------------------------------------------ the built-in ones


def test_an_open_circuit_is_a_failure_with_its_own_error_never_ok() -> None:
    breaker = CircuitBreaker(failures=2, reset_after=30)
    calls = []
    healthy = False

    async def search(ctx: Any) -> None:
        calls.append(ctx.run.pipeline_run_id)
        if not healthy:
            raise ConnectionError("down")

    graph = Pipeline("p").with_stage("search", search, interceptors=(breaker,)).build()

    async def main() -> None:
        nonlocal healthy
        for _ in range(2):
            assert (await graph.run())["search"].error == "ConnectionError: down"
        assert breaker.state("p", "search") == "open"
        spared = (await graph.run())["search"]
        assert spared.status is StageStatus.FAIL
        assert isinstance(spared.exception, CircuitOpenError)
        assert spared.outcome_by == "CircuitBreaker"
        assert len(calls) == 2

        await asyncio.sleep(30)  # one is let through, and it fails: open for as long again
        assert (await graph.run())["search"].error == "ConnectionError: down"
        assert isinstance((await graph.run())["search"].exception, CircuitOpenError)
        assert len(calls) == 3

        await asyncio.sleep(30)
        healthy = True
        assert (await graph.run()).ok
        assert (await graph.run()).ok
        assert breaker.state("p", "search") == "closed"

    VirtualClock().run(main())


def test_failed_trial_restarts_the_cooldown_at_the_time_of_the_failure() -> None:
    breaker = CircuitBreaker(failures=1, reset_after=30)
    calls: list[float] = []

    async def fails_slowly(ctx: Any) -> None:
        calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(20)
        raise ConnectionError("down")

    graph = Pipeline("p").with_stage("s", fails_slowly, interceptors=(breaker,)).build()

    async def main() -> None:
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 200:
            await graph.run()
            await asyncio.sleep(1)

    VirtualClock().run(main())
    # Each call fails 20 s after it started; the circuit allows the next call 30 s later.
    assert [round(after - before) for before, after in itertools.pairwise(calls)] == [50, 50, 50]


def test_a_trial_that_is_cancelled_leaves_the_circuit_to_the_next_one() -> None:
    breaker = CircuitBreaker(failures=1, reset_after=1)
    hangs = False

    async def search(ctx: Any) -> None:
        if not hangs:
            raise ConnectionError("down")
        await asyncio.Event().wait()

    graph = Pipeline("p").with_stage("search", search, interceptors=(breaker,)).build()

    async def main() -> PipelineResults:
        nonlocal hangs
        await graph.run()
        await asyncio.sleep(1)
        hangs = True
        await graph.run(deadline=1)
        hangs = False
        return await graph.run()

    results = VirtualClock().run(main())
    assert results["search"].error == "ConnectionError: down"


async def test_log_tells_of_every_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "stageflow")
    graph = Pipeline("p").with_stage("ok", says_hello).with_stage("bad", breaks, optional=True)
    results = await graph.build(interceptors=(Log(),)).run()
    run_id = results.context.pipeline_run_id
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0] == ("DEBUG", f"p.ok attempt 1 started (run {run_id})")
    assert ("WARNING", "p.bad attempt 1 raised ConnectionError: down after") in [
        (level, text[:50]) for level, text in told
    ]


async def test_the_filter_puts_run_and_stage_on_lines_below_a_stage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.addFilter(StageLogFilter())
    logger = logging.getLogger("the.application")

    def in_a_thread(ctx: Any) -> None:
        logger.warning("one")

    async def on_the_loop(ctx: Any) -> None:
        logger.warning("two")

    results = await Pipeline("p").with_stage("a", in_a_thread).with_stage("b", on_the_loop).run()
    logger.warning("three")
    lines = {record.getMessage(): record for record in caplog.records}
    run_id = results.context.pipeline_run_id
    found = {
        text: (vars(line)["stage"], vars(line)["pipeline_run_id"], vars(line)["topology"])
        for text, line in lines.items()
    }
    assert found == {"one": ("a", run_id, "p"), "two": ("b", run_id, "p"), "three": ("-", "-", "-")}
