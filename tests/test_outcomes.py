"""The outcomes of stages and runs, row by row as documented, and the properties of a run."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from oracle import check_record, ends, of_type, pipeline_wide, recorded, stage_wide

from stageflow import (
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    RunFailedError,
    StageContext,
    StageKind,
    StageOutput,
    StageStatus,
    set_event_sink,
)
from stageflow.errors import StageOutputError, StageTimeoutError
from stageflow.events import MemoryEventSink, stats
from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide
from stageflow.retry import Exponential, Fixed
from stageflow.testing import VirtualClock

OK, SKIP, RETRY = StageStatus.OK, StageStatus.SKIP, StageStatus.RETRY
FAIL, CANCEL = StageStatus.FAIL, StageStatus.CANCEL


def run(
    pipeline: Pipeline,
    sink: MemoryEventSink,
    context: PipelineContext | None = None,
    *,
    deadline: float | None = None,
    **options: Any,
) -> PipelineResults:
    """Run on a virtual clock, and check the results and the record guarantees."""
    graph = recorded(pipeline, sink, **options)

    async def main() -> PipelineResults:
        results = await graph.run(context, deadline=deadline)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    results = VirtualClock().run(main())
    names = [spec.name for spec in pipeline.stages]
    assert list(results) == names  # one entry for every stage, in the order of the pipeline
    event = check_record(sink.events, names)
    assert event["outcome"] == results.outcome
    assert event["status"] == results.status
    assert ends(sink.events) == {name: result.status for name, result in results.items()}
    return results


def returning(value: Any, after: float | None = None) -> Callable[[StageContext], Any]:
    async def stage(ctx: StageContext) -> Any:
        if after is not None:
            await asyncio.sleep(after)
        return value

    return stage


def raising(error: BaseException, after: float | None = None) -> Callable[[StageContext], Any]:
    async def stage(ctx: StageContext) -> Any:
        if after is not None:
            await asyncio.sleep(after)
        raise error

    return stage


quick = returning({"done": True})
endless = returning(None, after=10_000_000)


# ---------------------------------------------------------------- OK


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (StageOutput.ok(answer=42), {"answer": 42}),
        (StageOutput.ok({"a": 1}, b=2), {"a": 1, "b": 2}),
        (StageOutput.ok(), {}),
        ({"answer": 42}, {"answer": 42}),
        ({}, {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("after", [None, 1])
def test_ok_is_returned_as_stage_output_mapping_or_none(
    sink: MemoryEventSink, value: Any, data: dict[str, Any], after: float | None
) -> None:
    pipeline = (
        Pipeline("p").with_stage("s", returning(value, after)).with_stage("after", quick, dependencies=("s",))
    )
    results = run(pipeline, sink)
    assert results["s"].status is OK
    assert results.data("s") == data
    assert results["after"].status is OK  # its dependents run
    assert (results.outcome, results.status, results.ok, results.error) == ("ok", OK, True, None)
    assert results.raise_on_failure() is results
    assert stage_wide(sink.events, "s")["data_keys"] == list(data)


# ---------------------------------------------------------------- SKIP


def test_dependents_of_a_skipped_stage_run(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("s", returning(StageOutput.skip("nothing to do")))
        .with_stage("after", quick, dependencies=("s",))
    )
    results = run(pipeline, sink)
    assert (results["s"].status, results["s"].reason) == (SKIP, "nothing to do")
    assert results["after"].status is OK
    assert results.outcome == "ok"


@pytest.mark.parametrize("waits", [False, True])
def test_stage_is_skipped_if_when_returns_false(sink: MemoryEventSink, waits: bool) -> None:
    async def no(ctx: StageContext) -> bool:
        await asyncio.sleep(1)
        return False

    condition: Any = no if waits else lambda ctx: False
    pipeline = (
        Pipeline("p")
        .with_stage("s", raising(AssertionError("it began")), when=condition)
        .with_stage("after", quick, dependencies=("s",))
    )
    results = run(pipeline, sink)
    assert (results["s"].status, results["s"].attempts) == (SKIP, 0)
    assert results["s"].reason == "when= returned false"
    assert results["after"].status is OK


def test_when_is_evaluated_just_before_the_stage_starts_and_can_read_its_inputs(
    sink: MemoryEventSink,
) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("search", returning({"hits": 0}))
        .with_stage(
            "answer",
            quick,
            dependencies=("search",),
            when=lambda ctx: bool(ctx.inputs.get_from("search", "hits")),
        )
    )
    assert run(pipeline, sink)["answer"].status is SKIP


def test_when_is_evaluated_once_even_if_the_stage_is_retried(sink: MemoryEventSink) -> None:
    calls: list[int] = []

    def yes(ctx: StageContext) -> bool:
        calls.append(1)
        return True

    pipeline = Pipeline("p").with_stage("s", returning(StageOutput.retry("again", after=1)), when=yes)
    results = run(pipeline, sink)
    assert results["s"].attempts == 3
    assert calls == [1]


def routing(*labels: str) -> Pipeline:
    """Return a pipeline whose `router` chooses these of its routes `left` and `right`."""
    return (
        Pipeline("p")
        .with_stage("router", returning(StageOutput.route(*labels)), StageKind.ROUTE)
        .with_stage("left", quick, dependencies=("router",), route="left")
        .with_stage("right", quick, dependencies=("router",), route="right")
        .with_stage("any", quick, dependencies=("router",))
        .with_stage("join", quick, dependencies=("left", "right"))
        .with_stage("after_left", quick, dependencies=("left",), conditional=True)
    )


@pytest.mark.parametrize(
    ("labels", "left", "right"),
    [
        (("left",), OK, SKIP),
        (("right",), SKIP, OK),
        (("left", "right"), OK, OK),
        ((), SKIP, SKIP),
    ],
)
def test_stage_is_skipped_if_its_route_is_not_chosen(
    sink: MemoryEventSink, labels: tuple[str, ...], left: StageStatus, right: StageStatus
) -> None:
    results = run(routing(*labels), sink)
    assert (results["left"].status, results["right"].status) == (left, right)
    assert results["any"].status is OK  # without a route
    assert results["join"].status is OK  # dependents of a skipped stage run
    assert results["after_left"].status is left  # except for a conditional one
    assert results.outcome == "ok"


@pytest.mark.parametrize("output", [StageOutput.ok(a=1), {"a": 1}, None])
def test_router_that_chooses_no_route_fails(sink: MemoryEventSink, output: Any) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("router", returning(output), StageKind.ROUTE)
        .with_stage("left", quick, dependencies=("router",), route="left")
    )
    results = run(pipeline, sink)
    assert results["router"].status is FAIL
    assert isinstance(results["router"].exception, StageOutputError)
    assert "chose no route" in (results["router"].error or "")


def test_skipped_router_skips_every_route(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("router", quick, StageKind.ROUTE, when=lambda ctx: False)
        .with_stage("left", quick, dependencies=("router",), route="left")
        .with_stage("any", quick, dependencies=("router",))
    )
    results = run(pipeline, sink)
    assert (results["left"].status, results["any"].status) == (SKIP, OK)


def test_router_without_routed_dependents_need_not_choose(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("router", quick, StageKind.ROUTE)
        .with_stage("any", quick, dependencies=("router",))
    )
    assert run(pipeline, sink).outcome == "ok"


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        (SKIP, SKIP, SKIP),  # every dependency was skipped
        (SKIP, OK, OK),
        (OK, SKIP, OK),
        (OK, OK, OK),
    ],
)
def test_conditional_stage_is_skipped_if_all_dependencies_were_skipped(
    sink: MemoryEventSink, first: StageStatus, second: StageStatus, third: StageStatus
) -> None:
    output = {OK: StageOutput.ok(), SKIP: StageOutput.skip()}
    pipeline = (
        Pipeline("p")
        .with_stage("first", returning(output[first]))
        .with_stage("second", returning(output[second], after=1))
        .with_stage("third", quick, dependencies=("first", "second"), conditional=True)
        .with_stage("fourth", quick, dependencies=("third",), conditional=True)
        .with_stage("fifth", quick, dependencies=("fourth",))
    )
    results = run(pipeline, sink)
    assert results["third"].status is third
    assert results["fourth"].status is third
    assert results["fifth"].status is OK


def test_conditional_stage_without_dependencies_runs(sink: MemoryEventSink) -> None:
    assert run(Pipeline("p").with_stage("s", quick, conditional=True), sink)["s"].status is OK


# ---------------------------------------------------------------- RETRY


def test_returned_retry_without_a_policy_makes_three_attempts(sink: MemoryEventSink) -> None:
    began: list[tuple[int, float]] = []

    async def flaky(ctx: StageContext) -> StageOutput:
        began.append((ctx.attempt, asyncio.get_running_loop().time()))
        return (
            StageOutput.retry("not yet", after=10) if ctx.attempt < 3 else StageOutput.ok(tries=ctx.attempt)
        )

    pipeline = Pipeline("p").with_stage("s", flaky).with_stage("after", quick, dependencies=("s",))
    results = run(pipeline, sink)
    assert began == [(1, 0), (2, 10), (3, 20)]
    assert (results["s"].status, results["s"].attempts, results.data("s")) == (OK, 3, {"tries": 3})
    assert results["after"].queue_ms == 0  # its dependents wait
    assert results["after"].started_ns >= results["s"].ended_ns
    events = [data for data in sink.of_type("stage.wide") if data["stage_name"] == "s"]
    assert [(data["status"], data["attempt"], data["retry_after_ms"]) for data in events] == [
        ("RETRY", 1, 10_000),
        ("RETRY", 2, 10_000),
        ("OK", 3, None),
    ]
    assert events[0]["error"] == "not yet"
    # `duration_ms` is that of the last attempt; `total_ms` is the time from ready to ended, including waits.
    assert (events[2]["duration_ms"], events[2]["queue_ms"], events[2]["total_ms"]) == (0, 20_000, 20_000)


def test_stage_without_attempts_left_fails_with_its_last_error(sink: MemoryEventSink) -> None:
    async def never(ctx: StageContext) -> StageOutput:
        return StageOutput.retry(f"no {ctx.attempt}", after=1)

    results = run(Pipeline("p").with_stage("s", never), sink)
    assert (results["s"].status, results["s"].attempts, results["s"].error) == (FAIL, 3, "no 3")
    assert results["s"].reason == "no attempts left (3 of 3)"
    assert results.outcome == "failed"
    assert len(sink.of_type("stage.wide")) == 3


@pytest.mark.parametrize(
    ("on", "attempts"),
    [
        (ConnectionError, 4),
        (OSError, 4),
        ((ValueError, ConnectionError), 4),
        (lambda error: "down" in str(error), 4),
        (lambda error: False, 1),
        (ValueError, 1),
        ((), 1),
    ],
)
def test_exception_covered_by_the_policy_is_retried(sink: MemoryEventSink, on: Any, attempts: int) -> None:
    pipeline = Pipeline("p").with_stage(
        "s", raising(ConnectionError("down")), retry=Retry(attempts=4, wait=1, on=on)
    )
    results = run(pipeline, sink)
    assert (results["s"].status, results["s"].attempts) == (FAIL, attempts)
    assert isinstance(results["s"].exception, ConnectionError)
    assert len(of_type(sink.events, "stage.wide")) == attempts


def test_exception_is_not_retried_without_a_policy(sink: MemoryEventSink) -> None:
    assert run(Pipeline("p").with_stage("s", raising(ValueError())), sink)["s"].attempts == 1


def test_returned_failure_is_not_retried(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("s", returning(StageOutput.fail("no use")), retry=Retry(5, wait=0))
    assert run(pipeline, sink)["s"].attempts == 1


def test_timeout_is_retried_if_the_policy_covers_it(sink: MemoryEventSink) -> None:
    async def slow_at_first(ctx: StageContext) -> dict[str, Any]:
        await asyncio.sleep(60 if ctx.attempt == 1 else 1)
        return {"attempt": ctx.attempt}

    pipeline = Pipeline("p").with_stage(
        "s", slow_at_first, timeout=5, retry=Retry(2, wait=1, on=TimeoutError)
    )
    results = run(pipeline, sink)
    assert (results["s"].status, results.data("s")) == (OK, {"attempt": 2})
    assert results["s"].total_ms == 7000


@pytest.mark.parametrize(
    ("wait", "moments"),
    [
        (3, [0, 3, 6, 9]),
        (Fixed(2), [0, 2, 4, 6]),
        (Exponential(initial=1, factor=2, jitter=0), [0, 1, 3, 7]),
        (Exponential(initial=1, factor=10, maximum=5, jitter=0), [0, 1, 6, 11]),
        (lambda attempt: 10 * attempt, [0, 10, 30, 60]),
        (0, [0, 0, 0, 0]),
    ],
)
def test_policy_determines_the_wait_between_attempts(
    sink: MemoryEventSink, wait: Any, moments: list[float]
) -> None:
    began: list[float] = []

    async def never(ctx: StageContext) -> None:
        began.append(asyncio.get_running_loop().time())
        raise ConnectionError

    run(Pipeline("p").with_stage("s", never, retry=Retry(attempts=4, wait=wait)), sink)
    assert began == pytest.approx(moments)


def test_after_overrides_the_wait_of_the_policy(sink: MemoryEventSink) -> None:
    began: list[float] = []

    async def stage(ctx: StageContext) -> StageOutput:
        began.append(asyncio.get_running_loop().time())
        return StageOutput.retry("again", after=7)

    run(Pipeline("p").with_stage("s", stage, retry=Retry(attempts=2, wait=100)), sink)
    assert began == [0, 7]


def test_jitter_stays_within_its_bounds() -> None:
    policy = Exponential(initial=10, factor=1, jitter=0.5)
    assert all(5 <= policy(1) <= 10 for _ in range(200))


def test_wait_before_a_retry_does_not_block_other_stages(sink: MemoryEventSink) -> None:
    order: list[str] = []

    async def flaky(ctx: StageContext) -> StageOutput | None:
        order.append(f"flaky {ctx.attempt}")
        return StageOutput.retry("again", after=5) if ctx.attempt == 1 else None

    async def other(ctx: StageContext) -> None:
        order.append("other")

    pipeline = Pipeline("p").with_stage("flaky", flaky).with_stage("other", other)
    run(pipeline, sink, max_concurrency=1)
    assert order == ["flaky 1", "other", "flaky 2"]


# ---------------------------------------------------------------- FAIL


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        (raising(ValueError("boom")), "ValueError: boom"),
        (raising(ValueError("boom"), after=1), "ValueError: boom"),
        (raising(ValueError()), "ValueError"),
        (returning(StageOutput.fail("failed")), "failed"),
        (returning(StageOutput.fail(KeyError("k"))), "KeyError: 'k'"),
    ],
)
def test_run_returns_results_if_a_stage_raises_or_returns_a_failure(
    sink: MemoryEventSink, stage: Any, error: str
) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("s", stage)
        .with_stage("after", quick, dependencies=("s",))
        .with_stage("last", quick, dependencies=("after",))
    )
    results = run(pipeline, sink)
    assert (results["s"].status, results["s"].error) == (FAIL, error)
    assert (results["after"].status, results["last"].status) == (CANCEL, CANCEL)
    assert (results.outcome, results.status, results.ok) == ("failed", FAIL, False)
    assert results.first_failed_stage == "s"
    assert results.error == f"stage 's' failed: {error}"
    event = pipeline_wide(sink.events)
    assert (event["error"], event["first_failed_stage"]) == (results.error, "s")
    with pytest.raises(RunFailedError) as caught:
        results.raise_on_failure()
    assert caught.value.results is results


def test_result_contains_the_exception_and_the_record_its_type_message_stack_and_chain(
    sink: MemoryEventSink,
) -> None:
    async def stage(ctx: StageContext) -> None:
        try:
            raise ConnectionError("the socket")
        except ConnectionError as error:
            raise ValueError("the answer") from error

    results = run(Pipeline("p").with_stage("s", stage), sink)
    exception = results["s"].exception
    assert isinstance(exception, ValueError)
    assert results.exception is exception
    event = stage_wide(sink.events, "s")
    assert (event["error_type"], event["error"]) == ("ValueError", "ValueError: the answer")
    assert (event["exception"]["type"], event["exception"]["message"]) == ("ValueError", "the answer")
    assert "in test_result_contains_the_exception" in event["exception"]["stack"][-1]
    (link,) = event["exception"]["chain"]
    assert (link["type"], link["message"], link["relation"]) == ("ConnectionError", "the socket", "cause")


def test_stage_that_times_out_fails(sink: MemoryEventSink) -> None:
    results = run(Pipeline("p").with_stage("s", endless, timeout=5), sink)
    assert isinstance(results["s"].exception, StageTimeoutError)
    assert results["s"].status is FAIL
    assert results["s"].duration_ms == 5000


def test_stage_that_returns_after_its_timeout_fails(sink: MemoryEventSink) -> None:
    async def swallows(ctx: StageContext) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return {"too": "late"}

    results = run(Pipeline("p").with_stage("s", swallows, timeout=5), sink)
    assert (results["s"].status, dict(results["s"].data)) == (FAIL, {})


def test_on_failure_cancel_cancels_running_stages_and_starts_no_others(
    sink: MemoryEventSink,
) -> None:
    cleaned: list[float] = []

    async def running(ctx: StageContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1)
            cleaned.append(asyncio.get_running_loop().time())

    pipeline = (
        Pipeline("p")
        .with_stage("boom", raising(ValueError("boom"), after=5))
        .with_stage("running", running)
        .with_stage("later", quick, dependencies=("running",))
    )
    results = run(pipeline, sink)
    assert cleaned == [6]
    assert ends(sink.events) == {"boom": "FAIL", "running": "CANCEL", "later": "CANCEL"}
    assert results["running"].reason == "cancelled: stage 'boom' failed"
    assert results["later"].reason == "never started: stage 'boom' failed"
    assert (results["running"].attempts, results["later"].attempts) == (1, 0)
    assert pipeline_wide(sink.events)["duration_ms"] == 6000


def test_on_failure_continue_runs_all_stages_that_are_not_downstream(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("boom", raising(ValueError("boom"), after=1))
        .with_stage("child", quick, dependencies=("boom", "slow"))
        .with_stage("grandchild", quick, dependencies=("child",))
        .with_stage("slow", returning(None, after=5))
        .with_stage("after_slow", quick, dependencies=("slow",))
    )
    results = run(pipeline, sink, on_failure="continue")
    assert {name: result.status for name, result in results.items()} == {
        "boom": FAIL,
        "child": CANCEL,
        "grandchild": CANCEL,
        "slow": OK,
        "after_slow": OK,
    }
    assert results["grandchild"].reason == "it depends on 'boom', which failed"
    assert (results.outcome, results.first_failed_stage) == ("failed", "boom")
    assert results["after_slow"].ok


def test_first_failed_stage_is_the_first_of_several_failures(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("second", raising(ValueError("2"), after=2))
        .with_stage("first", raising(ValueError("1"), after=1))
    )
    results = run(pipeline, sink, on_failure="continue")
    assert results.first_failed_stage == "first"
    assert results.error == "stage 'first' failed: ValueError: 1"


def test_failure_of_an_optional_stage_does_not_stop_the_run(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("extra", raising(ValueError("boom")), optional=True)
        .with_stage("after", quick, dependencies=("extra",))
        .with_stage("conditional", quick, dependencies=("extra",), conditional=True)
        .with_stage("other", returning(None, after=5))
    )
    results = run(pipeline, sink)
    assert {name: result.status for name, result in results.items()} == {
        "extra": FAIL,
        "after": OK,  # as after a skip
        "conditional": SKIP,
        "other": OK,
    }
    assert (results.outcome, results.status, results.ok, results.error) == ("degraded", OK, True, None)
    assert results.first_failed_stage is None
    assert results.raise_on_failure() is results


# ---------------------------------------------------------------- CANCEL


def test_graceful_cancel_ends_the_run_with_status_ok(sink: MemoryEventSink) -> None:
    cleaned: list[str] = []

    async def running(ctx: StageContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(ctx.stage)

    pipeline = (
        Pipeline("p")
        .with_stage("guard", returning(StageOutput.stop("blocked", rule=7), after=5), StageKind.GUARD)
        .with_stage("running", running)
        .with_stage("answer", quick, dependencies=("guard",))
    )
    results = run(pipeline, sink)
    assert cleaned == ["running"]
    assert {name: result.status for name, result in results.items()} == dict.fromkeys(results, CANCEL)
    assert (results.outcome, results.status, results.ok, results.error) == ("stopped", OK, True, None)
    assert results["guard"].reason == "blocked"
    assert results.data("guard") == {"rule": 7}
    assert results.reason == "stage 'guard': blocked"
    assert results["running"].reason == "cancelled: stage 'guard': blocked"
    assert results["answer"].reason == "never started: stage 'guard': blocked"
    assert results.raise_on_failure() is results
    assert pipeline_wide(sink.events)["reason"] == "stage 'guard': blocked"


def test_graceful_cancel_does_not_hide_an_earlier_failure(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("boom", raising(ValueError("boom")))
        .with_stage("stop", returning(StageOutput.stop("enough"), after=1))
    )
    results = run(pipeline, sink, on_failure="continue")
    assert (results.outcome, results.status) == ("failed", FAIL)
    assert results.first_failed_stage == "boom"


@pytest.mark.parametrize(
    ("output", "count"),
    [
        (StageOutput.skip(), "stages_skipped"),
        (StageOutput.stop(), "stages_cancelled"),
        (StageOutput.retry("never", after=0), "stages_failed"),
    ],
)
def test_skip_cancel_and_retry_do_not_count_as_completed(
    sink: MemoryEventSink, output: StageOutput, count: str
) -> None:
    run(Pipeline("p").with_stage("s", returning(output)), sink)
    event = pipeline_wide(sink.events)
    assert event["stages_completed"] == 0
    assert event[count] == event["stages_total"] == 1


# ---------------------------------------------------------------- outcome of the run


@pytest.mark.parametrize(
    ("outcome", "status", "stage", "deadline"),
    [
        ("ok", "OK", quick, None),
        ("degraded", "OK", raising(ValueError()), None),
        ("stopped", "OK", returning(StageOutput.stop()), None),
        ("failed", "FAIL", raising(ValueError()), None),
        ("timeout", "FAIL", endless, 5),
    ],
)
def test_each_outcome_of_a_run_has_status_ok_or_fail(
    sink: MemoryEventSink, outcome: str, status: str, stage: Any, deadline: float | None
) -> None:
    pipeline = Pipeline("p").with_stage("s", stage, optional=outcome == "degraded")
    results = run(pipeline, sink, deadline=deadline)
    event = pipeline_wide(sink.events)
    assert (event["outcome"], event["status"]) == (outcome, status)
    assert (results.outcome, results.status) == (outcome, status)


# ---------------------------------------------------------------- a run


async def test_context_needs_no_fields_and_is_not_modified(sink: MemoryEventSink) -> None:
    context = PipelineContext()
    graph = recorded(Pipeline("p").with_stage("s", quick), sink)
    results = await graph.run(context)
    assert context.pipeline_run_id is None
    assert (context.service, context.topology, context.execution_mode) == (None, None, None)
    assert uuid.UUID(str(results.context.pipeline_run_id)).version == 7
    event = pipeline_wide(sink.events)
    assert event["event_id"] == str(results.context.pipeline_run_id)
    assert event["pipeline_metadata"] == {
        "service": "unknown_service",
        "topology": "p",
        "execution_mode": "default",
    }


async def test_run_without_a_context_uses_an_empty_one(sink: MemoryEventSink) -> None:
    results = await recorded(Pipeline("p").with_stage("s", quick), sink).run()
    assert results.context.pipeline_run_id is not None


async def test_ids_are_strings_or_uuids_and_included_in_every_event(sink: MemoryEventSink) -> None:
    run_id, user = uuid.uuid4(), uuid.uuid4()
    context = PipelineContext(
        pipeline_run_id=run_id,
        request_id="r",
        session_id="s",
        user_id=user,
        org_id="o",
        service="chat",
        topology="fast",
        execution_mode="practice",
    )
    results = await recorded(Pipeline("p").with_stage("s", quick), sink).run(context)
    assert results.context.pipeline_run_id == run_id
    for _, data in sink.events:
        assert data is not None
        assert data["correlation_ids"] == {
            "pipeline_run_id": str(run_id),
            "request_id": "r",
            "session_id": "s",
            "user_id": str(user),
            "org_id": "o",
        }
        assert data["pipeline_metadata"] == {
            "service": "chat",
            "topology": "fast",
            "execution_mode": "practice",
        }
    assert [(data or {})["event_id"] for _, data in sink.events] == [f"{run_id}/s/1", str(run_id)]


async def test_concurrent_runs_share_one_context(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> dict[str, Any]:
        ctx.run.data["mine"] = str(ctx.run.pipeline_run_id)
        await asyncio.sleep(0)
        return {"mine": ctx.run.data["mine"]}

    context = PipelineContext(user_id="u", data={"question": "why?"})
    graph = recorded(Pipeline("p").with_stage("s", stage), sink)
    many = await asyncio.gather(*(graph.run(context) for _ in range(20)))
    ids = [str(results.context.pipeline_run_id) for results in many]
    assert len(set(ids)) == 20
    assert [results.data("s")["mine"] for results in many] == ids
    assert context.data == {"question": "why?"}
    for run_id in ids:
        of_run = [event for event in sink.events if (event[1] or {})["event_id"].startswith(run_id)]
        check_record(of_run, ["s"], run_id)


async def test_context_of_a_run_can_start_another_run(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("s", quick), sink)
    first = await graph.run(PipelineContext(user_id="u"))
    second = await graph.run(first.context)
    assert second.context.user_id == "u"
    assert second.context.pipeline_run_id != first.context.pipeline_run_id


async def test_stage_reads_the_input_and_the_resources_of_the_run(sink: MemoryEventSink) -> None:
    client = object()

    async def stage(ctx: StageContext) -> dict[str, Any]:
        assert ctx.run.resources["client"] is client
        return {"question": ctx.run.data["question"]}

    context = PipelineContext(data={"question": "why?"}, resources={"client": client})
    results = await recorded(Pipeline("p").with_stage("s", stage), sink).run(context)
    assert results.data("s") == {"question": "why?"}
    assert "client" not in str(sink.events)  # resources are never recorded
    assert "why?" not in str(sink.events)  # nor are the outputs of stages; their keys are


async def test_stage_class_is_instantiated_per_run(sink: MemoryEventSink) -> None:
    class Counts:
        def __init__(self) -> None:
            self.calls = 0

        async def execute(self, ctx: StageContext) -> StageOutput:
            self.calls += 1
            return (
                StageOutput.retry("once", after=0) if ctx.attempt == 1 else StageOutput.ok(calls=self.calls)
            )

    graph = recorded(Pipeline("p").with_stage("s", Counts), sink)
    first, second = await graph.run(), await graph.run()
    assert first.data("s") == second.data("s") == {"calls": 2}  # both attempts of a run have one instance


async def test_stage_instance_is_shared_by_all_runs(sink: MemoryEventSink) -> None:
    class Counts:
        calls = 0

        async def execute(self, ctx: StageContext) -> dict[str, Any]:
            self.calls += 1
            return {"calls": self.calls}

    graph = recorded(Pipeline("p").with_stage("s", Counts()), sink)
    first, second = await graph.run(), await graph.run()
    assert (first.data("s"), second.data("s")) == ({"calls": 1}, {"calls": 2})


@pytest.mark.parametrize("as_class", [False, True])
async def test_synchronous_stage_runs_in_a_daemon_thread(sink: MemoryEventSink, as_class: bool) -> None:
    def plain(ctx: StageContext) -> dict[str, Any]:
        thread = threading.current_thread()
        return {"daemon": thread.daemon, "main": thread is threading.main_thread()}

    class Plain:
        def execute(self, ctx: StageContext) -> dict[str, Any]:
            return plain(ctx)

    results = await recorded(Pipeline("p").with_stage("s", Plain if as_class else plain), sink).run()
    assert results.data("s") == {"daemon": True, "main": False}


@pytest.mark.parametrize(
    ("returned", "status"),
    [
        ({"a": 1}, OK),
        (None, OK),
        (StageOutput.skip(), SKIP),
        (StageOutput.fail("no"), FAIL),
        (StageOutput.stop(), CANCEL),
        (42, OK),
        (StageStatus.OK, FAIL),
    ],
)
async def test_synchronous_function_supports_every_outcome(
    sink: MemoryEventSink, returned: Any, status: StageStatus
) -> None:
    results = await recorded(Pipeline("p").with_stage("s", lambda ctx: returned), sink).run()
    check_record(sink.events, ["s"])
    assert results["s"].status is status


async def test_synchronous_function_is_retried(sink: MemoryEventSink) -> None:
    def flaky(ctx: StageContext) -> dict[str, Any]:
        if ctx.attempt < 3:
            raise ConnectionError
        return {"attempt": ctx.attempt}

    pipeline = Pipeline("p").with_stage("s", flaky, retry=Retry(3, wait=0, on=ConnectionError))
    results = await recorded(pipeline, sink).run()
    check_record(sink.events, ["s"])
    assert results.data("s") == {"attempt": 3}


async def test_synchronous_function_can_return_a_coroutine(sink: MemoryEventSink) -> None:
    results = await recorded(Pipeline("p").with_stage("s", lambda ctx: quick(ctx)), sink).run()
    assert results.data("s") == {"done": True}


async def test_threads_of_synchronous_stages_are_reused(sink: MemoryEventSink) -> None:
    threads: list[
        threading.Thread
    ] = []  # keep references, because a new thread could have the identity of an old one

    def stage(ctx: StageContext) -> None:
        threads.append(threading.current_thread())

    pipeline = Pipeline("p").with_stage("s0", stage)
    for number in range(1, 100):
        pipeline = pipeline.with_stage(f"s{number}", stage, dependencies=(f"s{number - 1}",))
    assert (await pipeline.run()).ok
    assert len(threads) == 100
    assert len(set(threads)) <= 10  # one, and a few if a stage started before a thread was idle again


async def test_synchronous_stages_run_concurrently(sink: MemoryEventSink) -> None:
    together = threading.Barrier(8)

    def plain(ctx: StageContext) -> None:
        together.wait(timeout=30)

    pipeline = Pipeline("p")
    for number in range(8):
        pipeline = pipeline.with_stage(f"s{number}", plain)
    results = await recorded(pipeline, sink).run()
    assert results.outcome == "ok"


# ---------------------------------------------------------------- context variables

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_each_stage_sees_the_context_variables_at_the_start_of_the_run(
    sink: MemoryEventSink,
) -> None:
    async def sets(ctx: StageContext) -> dict[str, Any]:
        before = variable.get()
        variable.set(f"set by {ctx.stage}")
        await asyncio.sleep(0)
        return {"before": before, "after": variable.get()}

    def sets_in_a_thread(ctx: StageContext) -> dict[str, Any]:
        before = variable.get()
        variable.set(f"set by {ctx.stage}")
        return {"before": before, "after": variable.get()}

    pipeline = (
        Pipeline("p")
        .with_stage("a", sets)
        .with_stage("b", sets, dependencies=("a",))  # may share the task of a
        .with_stage("c", sets_in_a_thread, dependencies=("b",))
        .with_stage("d", sets, dependencies=("c",))
        .with_stage("e", sets, dependencies=("a",))
    )
    variable.set("as the run began")
    task = asyncio.create_task(recorded(pipeline, sink).run())
    await asyncio.sleep(0)
    variable.set("set by the caller, too late")
    results = await task
    for name in results:
        assert results.data(name) == {"before": "as the run began", "after": f"set by {name}"}
    assert variable.get() == "set by the caller, too late"


async def test_each_attempt_sees_the_context_variables_at_the_start_of_the_run(sink: MemoryEventSink) -> None:
    seen: list[str] = []

    async def stage(ctx: StageContext) -> StageOutput:
        seen.append(variable.get())
        variable.set("set by an attempt")
        return StageOutput.retry("again", after=0)

    variable.set("as the run began")
    await recorded(Pipeline("p").with_stage("s", stage), sink).run()
    assert seen == ["as the run began"] * 3


async def test_condition_and_its_stage_share_context_variables(sink: MemoryEventSink) -> None:
    def when(ctx: StageContext) -> bool:
        variable.set("set by the condition")
        return True

    async def stage(ctx: StageContext) -> dict[str, Any]:
        return {"seen": variable.get()}

    results = await recorded(Pipeline("p").with_stage("s", stage, when=when), sink).run()
    assert results.data("s") == {"seen": "set by the condition"}


async def test_task_started_by_a_stage_keeps_the_context_variables_of_the_stage(
    sink: MemoryEventSink,
) -> None:
    async def child() -> str:
        await asyncio.sleep(0)
        return variable.get()

    async def stage(ctx: StageContext) -> dict[str, Any]:
        variable.set("of the stage")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(child())
        return {"seen": task.result()}

    results = await recorded(Pipeline("p").with_stage("s", stage), sink).run()
    assert results.data("s") == {"seen": "of the stage"}


# ---------------------------------------------------------------- nested runs


@pytest.mark.parametrize("how", ["awaited", "in a task", "in a thread"])
async def test_nested_run_records_its_parent_and_root(how: str) -> None:
    sinks = {name: MemoryEventSink() for name in ("outer", "middle", "inner")}
    inner = recorded(Pipeline("inner").with_stage("s", quick), sinks["inner"])

    async def awaits(ctx: StageContext) -> None:
        await inner.run()

    async def starts(ctx: StageContext) -> None:
        await asyncio.create_task(inner.run())

    def in_a_thread(ctx: StageContext) -> None:
        asyncio.run(inner.run())

    stage = {"awaited": awaits, "in a task": starts, "in a thread": in_a_thread}[how]
    middle = recorded(Pipeline("middle").with_stage("s", stage), sinks["middle"])

    async def nests(ctx: StageContext) -> None:
        (await middle.run()).raise_on_failure()

    outer = recorded(Pipeline("outer").with_stage("s", nests), sinks["outer"])
    (await outer.run(PipelineContext(user_id="u"))).raise_on_failure()

    events = {name: check_record(sink.events, ["s"]) for name, sink in sinks.items()}
    ids = {name: event["event_id"] for name, event in events.items()}
    lineage = {name: (event["parent_run_id"], event["root_run_id"]) for name, event in events.items()}
    assert lineage == {
        "outer": (None, None),
        "middle": (ids["outer"], ids["outer"]),
        "inner": (ids["middle"], ids["outer"]),
    }
    assert len({event["trace"]["trace_id"] for event in events.values()}) == 1
    assert len({event["trace"]["span_id"] for event in events.values()}) == 3


INHERITED = ("request_id", "session_id", "user_id", "org_id", "service", "execution_mode")


def labels_of(event: dict[str, Any]) -> dict[str, Any]:
    both = {**event["correlation_ids"], **event["pipeline_metadata"]}
    return {name: both[name] for name in INHERITED}


@pytest.mark.parametrize("how", ["awaited", "in a task", "in a thread", "by run_sync", "by run_many"])
async def test_nested_run_inherits_ids_and_labels(how: str, sink: MemoryEventSink) -> None:
    inner = recorded(Pipeline("inner").with_stage("s", quick), sink)

    async def awaits(ctx: StageContext) -> None:
        await inner.run()

    async def starts(ctx: StageContext) -> None:
        await asyncio.create_task(inner.run())

    async def in_a_thread(ctx: StageContext) -> None:
        await asyncio.to_thread(inner.run_sync)

    def by_run_sync(ctx: StageContext) -> None:
        inner.run_sync()

    async def by_run_many(ctx: StageContext) -> None:
        async with inner.run_many([PipelineContext()]) as runs:
            async for _ in runs:
                pass

    stage = {
        "awaited": awaits,
        "in a task": starts,
        "in a thread": in_a_thread,
        "by run_sync": by_run_sync,
        "by run_many": by_run_many,
    }[how]
    given = {name: f"the {name}" for name in INHERITED}
    outer = Pipeline("outer").with_stage("s", stage).build()
    (await outer.run(PipelineContext(**given, data={"not": "inherited"}))).raise_on_failure()
    event = pipeline_wide(sink.events)
    assert labels_of(event) == labels_of(stage_wide(sink.events, "s")) == given
    assert event["pipeline_metadata"]["topology"] == "inner"


async def test_context_of_a_nested_run_overrides_inherited_values(sink: MemoryEventSink) -> None:
    seen: list[PipelineContext] = []

    async def looks(ctx: StageContext) -> None:
        seen.append(ctx.run)

    inner = recorded(Pipeline("inner").with_stage("s", looks), sink)
    other = await Pipeline("other").with_stage("s", quick).run(PipelineContext(user_id="of another run"))

    async def nests(ctx: StageContext) -> None:
        await inner.run(PipelineContext(user_id="own", execution_mode="batch"))
        await inner.run(PipelineContext(org_id="", data=1))
        await inner.run(other.context)
        await inner.run(ctx.run)

    outer = Pipeline("outer").with_stage("s", nests)
    context = PipelineContext(user_id="u", org_id="o", service="chat", data="of the parent")
    (await outer.run(context)).raise_on_failure()
    assert [(ctx.user_id, ctx.org_id, ctx.service, ctx.execution_mode) for ctx in seen] == [
        ("own", "o", "chat", "batch"),
        ("u", "", "chat", "default"),
        ("of another run", "o", "chat", "default"),
        ("u", "o", "chat", "default"),
    ]
    assert [ctx.data for ctx in seen] == [{}, 1, {}, "of the parent"]


async def test_ids_are_inherited_only_from_the_innermost_enclosing_run(
    sink: MemoryEventSink,
) -> None:
    inner = recorded(Pipeline("inner").with_stage("s", quick), sink)

    async def nests(ctx: StageContext) -> None:
        await inner.run()

    middle = Pipeline("middle").with_stage("s", nests)

    async def nests_twice(ctx: StageContext) -> None:
        await middle.run(PipelineContext(user_id="of the middle"))

    await Pipeline("outer").with_stage("s", nests_twice).run(PipelineContext(user_id="u", org_id="o"))
    await inner.run()
    ids = [event["correlation_ids"] for event in sink.of_type("pipeline.wide")]
    assert [(each["user_id"], each["org_id"]) for each in ids] == [("of the middle", "o"), (None, None)]


async def test_subsequent_run_has_no_parent(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("s", quick), sink)
    await graph.run()
    await graph.run()
    assert [data["parent_run_id"] for data in sink.of_type("pipeline.wide")] == [None, None]


async def test_run_continues_the_trace_of_the_caller(sink: MemoryEventSink) -> None:
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    context = PipelineContext(traceparent=f"00-{trace_id}-{span_id}-01")
    await recorded(Pipeline("p").with_stage("s", quick), sink).run(context)
    of_run, of_stage = pipeline_wide(sink.events)["trace"], stage_wide(sink.events, "s")["trace"]
    assert (of_run["trace_id"], of_run["parent_span_id"]) == (trace_id, span_id)
    assert (of_stage["trace_id"], of_stage["parent_span_id"]) == (trace_id, of_run["span_id"])


# ---------------------------------------------------------------- scheduling


def test_independent_stages_run_concurrently(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p")
    for number in range(100):
        pipeline = pipeline.with_stage(f"s{number}", returning(None, after=60))
    run(pipeline, sink)
    assert pipeline_wide(sink.events)["duration_ms"] == 60_000


def test_stage_starts_when_its_last_dependency_ends(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("quick", returning(None, after=1))
        .with_stage("slow", returning(None, after=5))
        .with_stage("after_quick", returning(None, after=1), dependencies=("quick",))
        .with_stage("after_both", returning(None, after=1), dependencies=("quick", "slow"))
    )
    results = run(pipeline, sink)
    began = results["quick"].started_ns
    moments = {name: (result.started_ns - began) / 1e9 for name, result in results.items()}
    assert moments == {"quick": 0, "slow": 0, "after_quick": 1, "after_both": 5}
    event = pipeline_wide(sink.events)
    assert event["critical_path"] == ["slow", "after_both"]
    assert event["critical_path_ms"] == 6000


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_concurrency_is_respected_and_fully_used(sink: MemoryEventSink, limit: int) -> None:
    running = 0
    most = 0

    async def stage(ctx: StageContext) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    pipeline = Pipeline("p").with_stage("root", quick)
    for number in range(14):
        pipeline = pipeline.with_stage(f"s{number}", stage, dependencies=("root",))
    run(pipeline, sink, max_concurrency=limit)
    assert most == limit
    assert pipeline_wide(sink.events)["duration_ms"] == 14 / limit * 1000


def test_no_stage_starts_after_a_failure_under_max_concurrency(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("boom", raising(ValueError(), after=1))
    for number in range(5):
        pipeline = pipeline.with_stage(f"s{number}", quick)
    results = run(pipeline, sink, max_concurrency=1)
    assert [result.status for result in results.values()] == [FAIL] + [CANCEL] * 5


@pytest.mark.parametrize("length", [1200, 5000])
def test_long_chain_declared_in_reverse_builds_and_runs(sink: MemoryEventSink, length: int) -> None:
    ran: list[int] = []

    async def stage(ctx: StageContext) -> None:
        ran.append(int(ctx.stage))

    pipeline = Pipeline("p")
    for number in reversed(range(length)):
        needs = (str(number - 1),) if number else ()
        pipeline = pipeline.with_stage(str(number), stage, dependencies=needs)
    run(pipeline, sink)
    assert ran == list(range(length))


def test_no_task_outlives_a_run_with_a_long_chain() -> None:
    async def main() -> None:
        pipeline = Pipeline("p").with_stage("0", quick)
        for number in range(1, 70):
            results = await pipeline.build().run()
            assert len(results) == number
            assert asyncio.all_tasks() == {asyncio.current_task()}
            pipeline = pipeline.with_stage(str(number), quick, dependencies=(str(number - 1),))

    VirtualClock().run(main())


def test_long_chain_is_skipped_or_cancelled(sink: MemoryEventSink) -> None:
    def chain(first: Any, **options: Any) -> Pipeline:
        pipeline = Pipeline("p").with_stage("0", first)
        for number in range(1, 2000):
            pipeline = pipeline.with_stage(str(number), quick, dependencies=(str(number - 1),), **options)
        return pipeline

    skipped = run(chain(returning(StageOutput.skip()), conditional=True), sink)
    assert {result.status for result in skipped.values()} == {SKIP}
    sink.clear()
    failed = run(chain(raising(ValueError())), sink, on_failure="continue")
    assert [result.status for result in failed.values()] == [FAIL] + [CANCEL] * 1999


async def test_long_chain_that_never_waits_yields_to_other_tasks(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("0", quick)
    for number in range(1, 1000):
        pipeline = pipeline.with_stage(str(number), quick, dependencies=(str(number - 1),))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    await recorded(pipeline, sink).run()
    other.cancel()
    assert turns > 10


def test_graph_runs_on_several_loops_at_once() -> None:
    graph = (
        Pipeline("p")
        .with_stage("a", returning({"a": 1}, after=0))
        .with_stage("b", lambda ctx: {"b": ctx.inputs.get_from("a", "a")}, dependencies=("a",))
        .build(max_concurrency=1)
    )
    failures: list[BaseException] = []

    def in_a_loop_of_its_own() -> None:
        async def main() -> None:
            for results in await asyncio.gather(*(graph.run() for _ in range(10))):
                assert results.data("b") == {"b": 1}

        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=in_a_loop_of_its_own) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert failures == []


# ---------------------------------------------------------------- annotations, artifacts and custom events


async def test_annotations_artifacts_and_events_of_a_stage_are_recorded(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> dict[str, Any]:
        ctx.annotate(cache_hit=False, rows=1)
        ctx.annotate(**{"rows": 17, "gen_ai.usage.input_tokens": 5})
        ctx.add_artifact("image", b"...")
        ctx.emit_event("progress", {"percent": 50})
        ctx.emit_event("progress", None)
        return {"a": 1, "b": 2}

    results = await recorded(Pipeline("p").with_stage("s", stage), sink).run()
    check_record(sink.events, ["s"])
    event = stage_wide(sink.events, "s")
    assert event["attributes"] == {"cache_hit": False, "rows": 17, "gen_ai.usage.input_tokens": 5}
    assert (event["data_keys"], event["artifacts_count"], event["events_count"]) == (["a", "b"], 1, 2)
    assert [artifact.type for artifact in results["s"].artifacts] == ["image"]
    first, second = sink.of_type("progress")
    assert first["percent"] == 50
    assert first["correlation_ids"] == event["correlation_ids"]
    assert (first["stage_name"], first["attempt"]) == ("s", 1)
    assert first["event_id"] != second["event_id"]
    assert [type for type, _ in sink.events] == ["progress", "progress", "stage.wide", "pipeline.wide"]


async def test_key_of_a_custom_event_does_not_replace_its_correlation_ids(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        ctx.emit_event("note", {"stage_name": "mine", "event_id": "mine", "other": 1})

    await recorded(Pipeline("p").with_stage("s", stage), sink).run()
    (note,) = sink.of_type("note")
    assert (note["stage_name"], note["other"]) == ("s", 1)
    assert note["payload"] == {"stage_name": "mine", "event_id": "mine"}


def test_steps_of_the_wall_clock_do_not_affect_durations(sink: MemoryEventSink) -> None:
    clock = VirtualClock(wall_ns=1_700_000_000_000_000_000)

    async def stage(ctx: StageContext) -> None:
        await asyncio.sleep(1)
        clock.step_wall(-3600)
        await asyncio.sleep(1)

    graph = recorded(Pipeline("p").with_stage("a", stage).with_stage("b", stage, dependencies=("a",)), sink)
    clock.run(graph.run())
    event = check_record(sink.events, ["a", "b"])
    assert event["started_at"] == "2023-11-14T22:13:20.000000Z"
    assert event["ended_at"] == "2023-11-14T22:13:24.000000Z"
    assert stage_wide(sink.events, "b")["started_at"] == "2023-11-14T22:13:22.000000Z"


# ---------------------------------------------------------------- emitters


@pytest.mark.parametrize("ending", ["ok", "failed", "stopped", "retried"])
def test_manual_emit_with_results_matches_the_automatic_events(sink: MemoryEventSink, ending: str) -> None:
    async def annotates(ctx: StageContext) -> dict[str, Any]:
        ctx.annotate(rows=3)
        ctx.add_artifact("text", "x")
        ctx.emit_event("note", None)
        return {"a": 1}

    last = {
        "ok": quick,
        "failed": raising(ValueError("boom"), after=1),
        "stopped": returning(StageOutput.stop("enough"), after=1),
        "retried": returning(StageOutput.retry("again", after=1)),
    }[ending]
    pipeline = (
        Pipeline("p")
        .with_stage("first", annotates)
        .with_stage("skipped", quick, when=lambda ctx: False)
        .with_stage("last", last, dependencies=("first",))
        .with_stage("never", quick, dependencies=("last",))
    )
    results = run(pipeline, sink, PipelineContext(user_id="u"))
    by_hand = MemoryEventSink()
    for name, result in results.items():
        emit_stage_wide(name, result, results.context, by_hand)
    emit_pipeline_wide(results, results.context, by_hand)
    own = [data for data in sink.of_type("stage.wide") if data["status"] != "RETRY"]
    order = list(results)
    assert by_hand.of_type("stage.wide") == sorted(own, key=lambda data: order.index(data["stage_name"]))
    assert by_hand.of_type("pipeline.wide") == sink.of_type("pipeline.wide")


async def test_manual_emit_inside_a_stage_accepts_a_stage_context(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        emit_stage_wide("s", ctx.inputs.result_from("before"), ctx, by_hand)

    by_hand = MemoryEventSink()
    pipeline = Pipeline("p").with_stage("before", quick).with_stage("s", stage, dependencies=("before",))
    results = await recorded(pipeline, sink).run()
    results.raise_on_failure()
    (event,) = by_hand.of_type("stage.wide")
    assert event["correlation_ids"] == pipeline_wide(sink.events)["correlation_ids"]


class Loud(WideEventEmitter):
    """Raises before or after it calls its parent, or never calls it."""

    error: BaseException = RuntimeError("the emitter")
    when = "before"

    def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
        if self.when == "before":
            raise self.error
        if self.when != "instead":
            super().emit_stage_wide(stage_name, result, ctx)
        if self.when == "after":
            raise self.error

    def emit_pipeline_wide(self, results: Any, ctx: Any) -> None:
        if self.when == "before":
            raise self.error
        super().emit_pipeline_wide(results, ctx)
        if self.when == "after":
            raise self.error


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [RuntimeError("the emitter"), asyncio.CancelledError(), GeneratorExit()])
def test_record_is_complete_if_an_emitter_raises_and_the_error_is_counted(
    sink: MemoryEventSink, when: str, error: BaseException
) -> None:
    emitter = Loud(sink)
    emitter.when, emitter.error = when, error
    pipeline = (
        Pipeline("p")
        .with_stage("a", returning(StageOutput.retry("again", after=5)))
        .with_stage("b", raising(ValueError("boom"), after=1))
        .with_stage("c", quick, dependencies=("a",))
    )
    before = stats().emitter_errors
    results = run(pipeline, sink, wide_event_emitter=emitter)
    assert results.outcome == "failed"
    assert stats().emitter_errors - before == 5  # RETRY of a, FAIL of b, CANCEL of a and c, the run


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_interrupt_in_an_emitter_propagates_after_the_record_is_written(
    sink: MemoryEventSink, error: BaseException
) -> None:
    emitter = Loud(sink)
    emitter.error = error
    graph = recorded(
        Pipeline("p").with_stage("a", quick).with_stage("b", quick), sink, wide_event_emitter=emitter
    )
    with pytest.raises(type(error)):
        VirtualClock().run(graph.run())
    check_record(sink.events, ["a", "b"])


async def test_override_is_called_even_without_a_sink() -> None:
    called: list[str] = []

    class Custom(WideEventEmitter):
        def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
            called.append(stage_name)
            super().emit_stage_wide(stage_name, result, ctx)

        def emit_pipeline_wide(self, results: Any, ctx: Any) -> None:
            called.append("the run")
            super().emit_pipeline_wide(results, ctx)

    pipeline = Pipeline("p").with_stage("a", quick).with_stage("b", quick, when=lambda ctx: False)
    await pipeline.build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=Custom()
    ).run()
    assert sorted(called) == ["a", "b", "the run"]


async def test_override_that_does_not_call_its_parent_suppresses_the_event(sink: MemoryEventSink) -> None:
    emitter = Loud(sink)
    emitter.when = "instead"
    results = await recorded(Pipeline("p").with_stage("s", quick), sink, wide_event_emitter=emitter).run()
    assert results.ok
    assert [type for type, _ in sink.events] == ["pipeline.wide"]


async def test_event_emitted_twice_has_the_same_id(sink: MemoryEventSink) -> None:
    class Twice(WideEventEmitter):
        def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
            super().emit_stage_wide(stage_name, result, ctx)
            super().emit_stage_wide(stage_name, result, ctx)

    await recorded(Pipeline("p").with_stage("s", quick), sink, wide_event_emitter=Twice(sink)).run()
    first, second = sink.of_type("stage.wide")
    assert first == second


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("pipelines", [False, True])
async def test_flag_disables_only_its_event_type(
    sink: MemoryEventSink, stages: bool, pipelines: bool
) -> None:
    set_event_sink(sink)
    graph = (
        Pipeline("p")
        .with_stage("s", quick)
        .build(emit_stage_wide_events=stages, emit_pipeline_wide_event=pipelines)
    )
    await graph.run()
    assert [type for type, _ in sink.events] == ["stage.wide"] * stages + ["pipeline.wide"] * pipelines


async def test_graph_without_flags_emits_no_events(sink: MemoryEventSink) -> None:
    set_event_sink(sink)
    await Pipeline("p").with_stage("s", quick).build().run()
    assert sink.events == []


def test_events_are_emitted_in_order_of_completion(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("slow", returning(None, after=2))
        .with_stage("quick", returning(None, after=1))
        .with_stage("last", quick, dependencies=("slow", "quick"))
    )
    run(pipeline, sink)
    assert list(ends(sink.events)) == ["quick", "slow", "last"]
