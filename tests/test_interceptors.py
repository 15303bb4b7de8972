"""Interceptors: they wrap attempts, outermost first, and are recorded if they determine the outcome."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stageflow import (
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    StageLogFilter,
    StageOutput,
    StageStatus,
)
from stageflow.errors import CircuitOpenError, PipelineValidationError
from stageflow.pipeline import CircuitBreaker, Log
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


async def test_interceptors_are_nested_outermost_first_with_those_of_build_outside() -> None:
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


async def test_interceptor_that_replaces_the_outcome_is_recorded() -> None:
    async def cached(call: Any, proceed: Any) -> Any:
        return {"text": "from the cache"}

    event = await recorded(cached)
    assert (event["status"], event["outcome_by"]) == ("OK", "cached")


async def test_interceptor_that_handles_a_failure_is_recorded() -> None:
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


async def test_interceptor_that_raises_fails_the_stage_and_is_recorded() -> None:
    class Checks:
        async def __call__(self, call: Any, proceed: Any) -> Any:
            raise PermissionError("not today")

    event = await recorded(Checks())
    assert (event["status"], event["error"]) == ("FAIL", "PermissionError: not today")
    assert event["outcome_by"] == "Checks"


async def test_exception_of_the_stage_is_not_attributed_to_an_interceptor() -> None:
    async def passes(call: Any, proceed: Any) -> Any:
        return await proceed()

    event = await recorded(passes, breaks)
    assert (event["status"], event["error"], event["outcome_by"]) == (
        "FAIL",
        "ConnectionError: down",
        None,
    )


async def test_interceptor_without_return_fails_the_stage_with_a_hint() -> None:
    async def forgetful(call: Any, proceed: Any) -> Any:
        await proceed()

    event = await recorded(forgetful)
    assert event["status"] == "FAIL"
    assert event["error"] == "StageOutputError: interceptor forgetful returned None"
    assert event["outcome_by"] == "forgetful"


async def test_interceptor_that_does_not_await_proceed_fails_the_stage_with_a_hint() -> None:
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


async def test_invalid_return_value_of_an_interceptor_fails_the_stage() -> None:
    async def nonsense(call: Any, proceed: Any) -> Any:
        return 42

    event = await recorded(nonsense)
    assert event["error"] == "StageOutputError: interceptor nonsense returned int"


async def test_proceed_can_be_awaited_once() -> None:
    async def twice(call: Any, proceed: Any) -> Any:
        await proceed()
        return await proceed()

    event = await recorded(twice)
    assert event["status"] == "FAIL"
    assert "interceptor twice awaited proceed() twice" in event["error"]


async def test_synchronous_functions_are_intercepted() -> None:
    def plain(ctx: Any) -> dict[str, int]:
        return {"n": 1}

    async def doubles(call: Any, proceed: Any) -> Any:
        output = await proceed()
        return {"n": output.data["n"] * 2}

    graph = Pipeline("p").with_stage("s", plain, interceptors=(doubles,)).build()
    assert (await graph.run()).data("s") == {"n": 2}


def test_interceptors_wrap_each_attempt_and_count_towards_its_timeout() -> None:
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


def test_invalid_interceptor_is_a_validation_error() -> None:
    def plain(call: Any, proceed: Any) -> Any: ...

    pipeline = Pipeline("p").with_stage("s", says_hello, interceptors=(plain, CircuitBreaker))
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build()
    one, two = caught.value.problems
    expected = "stage 's': an interceptor must be an async callable (call, proceed), got "
    assert one == expected + plain.__qualname__
    assert two == expected + "CircuitBreaker"


# ------------------------------------------------------------ built-in interceptors


def test_open_circuit_fails_attempts_with_circuit_open_error() -> None:
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

        await asyncio.sleep(30)  # a trial is allowed and fails: the circuit stays open for another period
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


def test_cancelled_trial_is_followed_by_another_trial() -> None:
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


async def hangs_in_a_coroutine(ctx: Any) -> None:
    await asyncio.Event().wait()


def hangs_in_a_thread(ctx: Any) -> dict[str, bool]:
    while not ctx.cancelled:
        time.sleep(0.001)
    return {"late": True}


async def returns_when_it_is_cancelled(ctx: Any) -> dict[str, bool]:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    return {"partial": True}


async def raises_when_it_is_cancelled(ctx: Any) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise KeyError("clean-up") from None


async def never_ends(ctx: Any) -> None:
    while not ctx.abandoned:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass


async def asks_for_a_retry(ctx: Any) -> StageOutput:
    return StageOutput.retry("down", after=0)


async def fails_by_return(ctx: Any) -> StageOutput:
    return StageOutput.fail("down")


FAILING = (
    hangs_in_a_coroutine,
    hangs_in_a_thread,
    returns_when_it_is_cancelled,
    raises_when_it_is_cancelled,
    never_ends,
    asks_for_a_retry,
    fails_by_return,
    breaks,
)


@pytest.mark.parametrize("stage", FAILING)
async def test_circuit_breaker_counts_every_failure_that_is_recorded(stage: Any) -> None:
    breaker = CircuitBreaker(failures=2, reset_after=60, on=ConnectionError)
    pipeline = Pipeline("p").with_stage("s", stage, timeout=0.03, retry=Retry(1), interceptors=(breaker,))
    graph = pipeline.build(grace=0.03)
    states = []
    for _ in range(3):
        result = (await graph.run())["s"]
        assert result.status is StageStatus.FAIL
        states.append(breaker.state("p", "s"))
    assert states == ["closed", "open", "open"]
    assert isinstance(result.exception, CircuitOpenError)


@pytest.mark.parametrize("stage", FAILING)
async def test_failed_trial_keeps_the_circuit_open(stage: Any) -> None:
    breaker = CircuitBreaker(failures=1, reset_after=0.01)
    first = Pipeline("p").with_stage("s", breaks, interceptors=(breaker,)).build()
    second = Pipeline("p").with_stage("s", stage, timeout=0.03, retry=Retry(1), interceptors=(breaker,))
    await first.run()
    await asyncio.sleep(0.02)
    assert not isinstance((await second.build(grace=0.03).run())["s"].exception, CircuitOpenError)
    assert breaker.state("p", "s") == "open"


async def test_each_attempt_of_a_retried_stage_counts() -> None:
    breaker = CircuitBreaker(failures=3)
    policy = Retry(3, wait=0, on=ConnectionError)
    graph = Pipeline("p").with_stage("s", breaks, retry=policy, interceptors=(breaker,)).build()
    await graph.run()
    assert breaker.state("p", "s") == "open"


def test_success_between_failures_resets_the_count() -> None:
    breaker = CircuitBreaker(failures=2)

    async def search(ctx: Any) -> None:
        if ctx.run.data["fails"]:
            raise ConnectionError("down")

    graph = Pipeline("p").with_stage("s", search, interceptors=(breaker,)).build()

    async def main() -> list[str]:
        states = []
        for fails in (True, False, True, False, True, True):
            await graph.run(PipelineContext(data={"fails": fails}))
            states.append(breaker.state("p", "s"))
        return states

    assert VirtualClock().run(main()) == ["closed"] * 5 + ["open"]


@pytest.mark.parametrize("stage", [hangs_in_a_coroutine, raises_when_it_is_cancelled, never_ends])
def test_attempts_cancelled_with_their_run_are_not_counted(stage: Any) -> None:
    breaker = CircuitBreaker(failures=1, reset_after=5)
    cancelled = Pipeline("p").with_stage("s", stage, interceptors=(breaker,)).build(grace=0.5)
    fails = Pipeline("p").with_stage("s", breaks, interceptors=(breaker,)).build()
    works = Pipeline("p").with_stage("s", says_hello, interceptors=(breaker,)).build()

    async def main() -> None:
        await cancelled.run(deadline=1)
        assert breaker.state("p", "s") == "closed"
        await fails.run()
        await asyncio.sleep(5)
        await cancelled.run(deadline=1)  # the trial
        assert breaker.state("p", "s") == "open"
        assert (await works.run()).ok  # the next attempt is a trial again, without another wait
        assert breaker.state("p", "s") == "closed"

    VirtualClock().run(main())


def test_results_of_attempts_that_started_before_the_circuit_changed_are_ignored() -> None:
    breaker = CircuitBreaker(failures=1, reset_after=10)

    async def search(ctx: Any) -> None:
        await asyncio.sleep(ctx.run.data["seconds"])
        if ctx.run.data["fails"]:
            raise ConnectionError("down")

    graph = Pipeline("p").with_stage("s", search, interceptors=(breaker,)).build()

    def run(seconds: float, fails: bool) -> asyncio.Task[PipelineResults]:
        return asyncio.ensure_future(graph.run(PipelineContext(data={"seconds": seconds, "fails": fails})))

    async def main() -> None:
        slow = [run(1, True), run(8, True), run(9, False), run(11.5, True)]
        await asyncio.sleep(2)
        assert breaker.state("p", "s") == "open"  # since 1 s
        await asyncio.sleep(8)
        assert breaker.state("p", "s") == "open"  # not closed by the success at 9 s
        await asyncio.sleep(1.1)
        # The trial is due 10 s after the first failure: the failure at 8 s does not postpone it.
        assert (await run(0, False)).ok
        await asyncio.wait(slow)
        assert breaker.state("p", "s") == "closed"  # the failure at 11.5 s is not counted

    VirtualClock().run(main())


def test_timeout_of_an_outer_interceptor_counts_as_failure() -> None:
    breaker = CircuitBreaker(failures=1)

    async def falls_back(call: Any, proceed: Any) -> Any:
        try:
            async with asyncio.timeout(1):
                return await proceed()
        except TimeoutError:
            return StageOutput.skip("too slow")

    pipeline = Pipeline("p").with_stage("s", hangs_in_a_coroutine, interceptors=(falls_back, breaker))
    assert VirtualClock().run(pipeline.run())["s"].status is StageStatus.SKIP
    assert breaker.state("p", "s") == "open"


async def test_log_reports_every_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "stageflow")
    graph = Pipeline("p").with_stage("ok", says_hello).with_stage("bad", breaks, optional=True)
    results = await graph.build(interceptors=(Log(),)).run()
    run_id = results.context.pipeline_run_id
    lines = [
        (record.levelname, re.sub(r"[\d.]+ ms", "1.0 ms", record.getMessage())) for record in caplog.records
    ]
    assert lines == [
        ("DEBUG", f"p.ok attempt 1 started (run {run_id})"),
        ("DEBUG", f"p.ok attempt 1 ended OK after 1.0 ms (run {run_id})"),
        ("DEBUG", f"p.bad attempt 1 started (run {run_id})"),
        ("WARNING", f"p.bad attempt 1 ended FAIL after 1.0 ms: ConnectionError: down (run {run_id})"),
    ]


@pytest.fixture
def stage_fields(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Add the fields of the stage to the captured records; pytest uses the handler for all tests."""
    with caplog.filtering(StageLogFilter()):
        yield


@pytest.mark.usefixtures("stage_fields")
@pytest.mark.parametrize("stage", FAILING)
async def test_log_and_done_callbacks_report_the_recorded_result(
    stage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stageflow")
    seen: list[tuple[int, StageStatus, str | None]] = []

    async def observes(call: Any, proceed: Any) -> Any:
        call.add_done_callback(lambda result: seen.append((result.attempt, result.status, result.error)))
        return await proceed()

    with capture_events() as events:
        pipeline = Pipeline("p").with_stage(
            "s", stage, timeout=0.03, retry=Retry(2, wait=0, on=(ConnectionError, TimeoutError))
        )
        await pipeline.build(grace=0.03, interceptors=(Log(), observes)).run()
    recorded = [
        (event["attempt"], event["status"], event["error"])
        for event in events.of_type("stage.wide")
        if event["stage_name"] == "s"
    ]
    assert seen == recorded
    ended = [record for record in caplog.records if " ended " in record.getMessage()]
    assert [record.getMessage().split()[4] for record in ended] == [status for _, status, _ in recorded]
    assert {vars(record)["stage"] for record in ended} == {"s"}


async def test_done_callback_receives_the_outcome_of_the_outermost_interceptor() -> None:
    seen: list[StageStatus] = []

    async def rescues(call: Any, proceed: Any) -> Any:
        try:
            return await proceed()
        except ConnectionError:
            return StageOutput.skip("down")

    async def observes(call: Any, proceed: Any) -> Any:
        call.add_done_callback(lambda result: seen.append(result.status))
        return await proceed()

    await Pipeline("p").with_stage("s", breaks, interceptors=(rescues, observes)).run()
    assert seen == [StageStatus.SKIP]


async def test_done_callback_that_raises_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = []

    def raises(result: Any) -> None:
        raise RuntimeError("of the callback")

    async def observes(call: Any, proceed: Any) -> Any:
        call.add_done_callback(raises)
        call.add_done_callback(seen.append)
        return await proceed()

    with capture_events() as events:
        results = await Pipeline("p").with_stage("s", says_hello, interceptors=(observes,)).run()
    assert results.ok
    assert [result.status for result in seen] == [StageStatus.OK]
    assert events.stage("s")["status"] == "OK"
    assert "stage 's': a callback of an interceptor raised RuntimeError: of the callback" in caplog.text


@pytest.mark.usefixtures("stage_fields")
async def test_log_filter_adds_run_and_stage_to_records_inside_a_stage(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
