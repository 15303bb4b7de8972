"""Budgets: a run that exceeds one ends at once, whatever the policies and the code of its stages are."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from oracle import check_record, of_type, recorded, stage_wide

from stageflow import (
    Limits,
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    StageContext,
    StageGraph,
    StageOutput,
    StageStatus,
    configure,
    record_embedding,
    record_llm,
)
from stageflow.errors import (
    BudgetExceededError,
    InvalidArgumentError,
    PipelineValidationError,
    RunFailedError,
)
from stageflow.events import MemoryEventSink
from stageflow.pipeline import Budget, CircuitBreaker, Flow, StageCall
from stageflow.testing import VirtualClock

OK, SKIP, FAIL, CANCEL = StageStatus.OK, StageStatus.SKIP, StageStatus.FAIL, StageStatus.CANCEL
Runner = Callable[[StageContext], Any]

EXCEEDED = "the budget of the run was exceeded"


@pytest.fixture
def sink() -> MemoryEventSink:
    return MemoryEventSink()


def start(graph: StageGraph, data: Any = None) -> PipelineResults:
    """Run a graph in virtual time; no task may be left, except those of abandoned stages."""

    async def main() -> PipelineResults:
        results = await graph.run(PipelineContext(data=data or {}))
        if not any(result.abandoned for result in results.values()):
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    return VirtualClock().run(main())


def check_records(sink: MemoryEventSink) -> None:
    """Check the record guarantees of every run."""
    for run in of_type(sink.events, "pipeline.wide"):
        events = [
            (type, data)
            for type, data in sink.events
            if data is not None and data["correlation_ids"]["pipeline_run_id"] == run["event_id"]
        ]
        check_record(events, [summary["stage_name"] for summary in run["stage_summaries"]])


def total(sink: MemoryEventSink, name: str = "llm.cost_usd") -> float:
    """Return the total of an attribute over all runs; that of a run does not include its child runs."""
    values = [run["attributes"].get(name, 0) for run in of_type(sink.events, "pipeline.wide")]
    return round(sum(values), 9)


def check_exceeded(
    results: PipelineResults, sink: MemoryEventSink, stage: str, spent: float, unit: str = "usd"
) -> BudgetExceededError:
    """Check that `stage` failed because of the budget and the others were cancelled; return its error."""
    check_records(sink)
    assert (results.outcome, results.first_failed_stage) == ("failed", stage)
    assert results.reason == EXCEEDED
    error = results[stage].exception
    assert isinstance(error, BudgetExceededError)
    assert (error.pipeline, error.stage) == (results.pipeline_name, stage)
    assert error.run_id == error.budget_run_id == results.context.pipeline_run_id
    assert (error.unit, round(error.spent, 9)) == (unit, spent)
    assert results[stage].status is FAIL
    assert results.error == f"stage {stage!r} failed: {results[stage].error}"
    assert stage_wide(of_run(sink, results), stage)["error_type"] == "BudgetExceededError"
    return error


def of_run(sink: MemoryEventSink, results: PipelineResults) -> list[tuple[str, Any]]:
    run_id = results.context.pipeline_run_id
    return [
        (type, data)
        for type, data in sink.events
        if data is not None and data["correlation_ids"]["pipeline_run_id"] == run_id
    ]


# ---------------------------------------------------------------- agents

COST = 0.25
LIMIT = 10.0
EXACT = 10.25


async def greedy(ctx: StageContext) -> dict[str, Any]:
    """Call a model, ignoring every exception that Python code usually ignores."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            ctx.record_llm("m", input_tokens=10, output_tokens=5, cost_usd=COST)
        with contextlib.suppress(Exception):
            await asyncio.sleep(0.1)
    return {"done": False}


def blocking_greedy(ctx: StageContext) -> dict[str, Any]:
    for _ in range(3):
        with contextlib.suppress(Exception):
            ctx.record_llm("m", input_tokens=10, output_tokens=5, cost_usd=COST)
    return {"done": False}


async def immediate_greedy(ctx: StageContext) -> dict[str, Any]:
    return blocking_greedy(ctx)


def stubborn_turn(runner: Runner) -> Pipeline:
    return Pipeline("turn").with_stage(
        "think", runner, optional=True, retry=Retry(attempts=10, wait=0.01, on=Exception)
    )


def loop(turn: Pipeline, sink: MemoryEventSink) -> Pipeline:
    return Pipeline("assistant").with_loop(
        "agent",
        turn,
        until=lambda results: False,
        max_iterations=4000,
        optional=True,
        retry=Retry(attempts=10, wait=0),
    )


def nested(turn: Pipeline, sink: MemoryEventSink) -> Pipeline:
    return Pipeline("assistant").with_stage(
        "agent",
        Pipeline("outer").with_loop("inner", turn, until=lambda results: False, max_iterations=4000),
        optional=True,
        retry=Retry(attempts=10, wait=0),
    )


def plain_runs(turn: Pipeline, sink: MemoryEventSink) -> Pipeline:
    graph = recorded(turn, sink)

    async def agent(ctx: StageContext) -> None:
        for _ in range(4000):
            with contextlib.suppress(Exception):
                (await graph.run(ctx.run)).raise_on_failure()

    return Pipeline("assistant").with_stage("agent", agent, optional=True, retry=Retry(attempts=10, wait=0))


def concurrent_runs(turn: Pipeline, sink: MemoryEventSink) -> Pipeline:
    graph = recorded(turn, sink)

    async def agent(ctx: StageContext) -> None:
        async with graph.run_many([PipelineContext()] * 4000, concurrency=1) as runs:
            async for _ in runs:
                pass

    return Pipeline("assistant").with_stage("agent", agent, optional=True, retry=Retry(attempts=10, wait=0))


@pytest.mark.parametrize("runner", [greedy, immediate_greedy, blocking_greedy])
@pytest.mark.parametrize("form", [loop, nested, plain_runs, concurrent_runs])
@pytest.mark.parametrize("on_failure", ["cancel", "continue"])
def test_agent_that_would_spend_a_hundred_times_its_budget_ends_at_once(
    form: Any, runner: Runner, on_failure: str, sink: MemoryEventSink
) -> None:
    pipeline = form(stubborn_turn(runner), sink).with_stage(
        "after", immediate_greedy, dependencies=("agent",), conditional=True
    )
    graph = recorded(pipeline, sink, budget=Budget(usd=LIMIT), on_failure=on_failure)
    results = start(graph)
    check_exceeded(results, sink, "agent", EXACT)
    # Code that ignores the error can record further calls until its next await; nothing else can.
    assert total(sink) == (EXACT if runner is greedy else EXACT + COST)
    assert results["agent"].attempts == 1
    assert results["after"].status is CANCEL
    turns = [run for run in of_type(sink.events, "pipeline.wide") if run["pipeline_name"] == "turn"]
    *completed, last = turns
    assert {run["outcome"] for run in completed} == {"ok"}
    assert last["outcome"] == "failed"
    (think,) = [event for event in of_type(sink.events, "stage.wide") if event["status"] == "FAIL"][:1]
    assert (think["stage_name"], think["error_type"]) == ("think", "BudgetExceededError")
    assert think["error"] == (
        "BudgetExceededError: the outer run of pipeline 'assistant' spent 10.25 USD, more than its budget of"
        " 10 USD"
    )


def test_child_run_in_a_thread_counts_towards_its_parent(sink: MemoryEventSink) -> None:
    turn = recorded(stubborn_turn(greedy_in_thread), sink)

    def agent(ctx: StageContext) -> None:
        while not ctx.cancelled:
            turn.run_sync(ctx.run)

    graph = recorded(Pipeline("p").with_stage("agent", agent, optional=True), sink, budget=Budget(usd=1))
    results = asyncio.run(graph.run())
    check_exceeded(results, sink, "agent", 1.25)
    assert total(sink) == 1.25


async def greedy_in_thread(ctx: StageContext) -> None:
    for _ in range(3):
        ctx.record_llm("m", output_tokens=1, cost_usd=COST)
        await asyncio.sleep(0)


# ---------------------------------------------------------------- policies and code of one stage


async def raises_it(ctx: StageContext) -> None:
    ctx.record_llm("m", output_tokens=1, cost_usd=2)


async def ignores_it(ctx: StageContext) -> dict[str, Any]:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    return {"text": "done"}


async def ignores_it_and_waits(ctx: StageContext) -> None:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    assert ctx.cancelled
    await asyncio.sleep(3600)


async def waits_first(ctx: StageContext) -> None:
    await asyncio.sleep(1)
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    await asyncio.sleep(3600)


async def replaces_it(ctx: StageContext) -> None:
    try:
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    except BudgetExceededError as error:
        raise ConnectionError("replaced") from error


async def asks_for_a_retry(ctx: StageContext) -> Any:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    return StageOutput.retry("again")


async def skips(ctx: StageContext) -> Any:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    return StageOutput.skip("nothing")


async def stops(ctx: StageContext) -> Any:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    return StageOutput.stop("enough")


async def ignores_cancellation(ctx: StageContext) -> dict[str, Any]:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)
    return {"text": "done"}


async def never_ends(ctx: StageContext) -> None:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    for _ in range(100):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)


async def embeds(ctx: StageContext) -> None:
    with contextlib.suppress(Exception):
        record_embedding("m", input_tokens=1, cost_usd=2)


async def updates(ctx: StageContext) -> None:
    call = record_llm("m")
    with contextlib.suppress(Exception):
        call.update(output_tokens=1, cost_usd=2)


def in_a_thread(ctx: StageContext) -> dict[str, Any]:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=2)
    return {"text": "done"}


async def in_its_thread(ctx: StageContext) -> None:
    await asyncio.to_thread(in_a_thread, ctx)


async def streams(ctx: StageContext) -> AsyncIterator[str]:
    call = ctx.record_llm("m", input_tokens=5)
    for number in range(100):
        yield "text"
        with contextlib.suppress(Exception):
            call.update(output_tokens=number, cost_usd=number * 0.25)


def streams_in_a_thread(ctx: StageContext) -> Iterator[str]:
    call = ctx.record_llm("m", input_tokens=5)
    for number in range(9):
        yield "text"
        with contextlib.suppress(Exception):
            call.update(output_tokens=number, cost_usd=number * 0.25)


class Stage:
    async def execute(self, ctx: StageContext) -> None:
        await waits_first(ctx)


FORMS: dict[str, Any] = {
    "raises": raises_it,
    "ignores": ignores_it,
    "ignores and waits": ignores_it_and_waits,
    "waits first": waits_first,
    "replaces": replaces_it,
    "retry": asks_for_a_retry,
    "skip": skips,
    "stop": stops,
    "ignores cancellation": ignores_cancellation,
    "never ends": never_ends,
    "embeds": embeds,
    "updates": updates,
    "thread": in_a_thread,
    "to_thread": in_its_thread,
    "class": Stage,
}


async def recovers(call: StageCall, proceed: Any) -> Any:
    """Replace every failure by a value."""
    try:
        return await proceed()
    except Exception:
        return StageOutput.ok(text="fallback")


POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    "retry": {"retry": Retry(attempts=100, wait=0, on=Exception)},
    "optional": {"optional": True},
    "interceptor": {"interceptors": (recovers,)},
    "timeout": {"timeout": 60},
    "condition": {"when": lambda ctx: True},
    "limit": {"limit": "one"},
    "everything": {
        "retry": Retry(attempts=100, wait=0, on=Exception),
        "optional": True,
        "interceptors": (recovers,),
        "timeout": 60,
        "when": lambda ctx: True,
        "limit": "one",
    },
}


@pytest.mark.parametrize("policies", POLICIES)
@pytest.mark.parametrize("form", FORMS)
def test_reporting_stage_fails_whatever_it_does_and_its_policies_are(
    form: str, policies: str, sink: MemoryEventSink
) -> None:
    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(50)

    pipeline = (
        Pipeline("p")
        .with_stage("first", FORMS[form], **POLICIES[policies])
        .with_stage("concurrent", waits, optional=True)
        .with_stage("after", waits, dependencies=("first",))
    )
    graph = recorded(
        pipeline, sink, budget=Budget(usd=1.5), limits=Limits(one=1), on_failure="continue", grace=5
    )
    results = start(graph)
    error = check_exceeded(results, sink, "first", 2)
    assert error.message == "the run spent 2 USD, more than its budget of 1.5 USD"
    assert total(sink) == 2
    assert results["first"].attempts == 1
    assert results["first"].outcome_by is None
    assert results["first"].abandoned == (form == "never ends")
    assert results["concurrent"].status is CANCEL
    # The worker of the first stage may end before the second one starts.
    assert results["concurrent"].reason in (f"cancelled: {EXCEEDED}", f"never started: {EXCEEDED}")
    assert results["after"].reason == f"never started: {EXCEEDED}"
    with pytest.raises(RunFailedError) as caught:
        results.raise_on_failure()
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("form", [streams, streams_in_a_thread])
@pytest.mark.parametrize("policies", POLICIES)
def test_update_of_a_stream_is_counted_and_ends_the_run(
    form: Any, policies: str, sink: MemoryEventSink
) -> None:
    async def read(ctx: StageContext) -> None:
        async for _ in ctx.inputs.stream("write"):
            pass

    pipeline = (
        Pipeline("p")
        .with_stage("write", form, **POLICIES[policies])
        .with_stage("read", read, streams=("write",))
    )
    graph = recorded(pipeline, sink, budget=Budget(usd=1), limits=Limits(one=1))

    async def main() -> PipelineResults:
        chunks = 0
        async with graph.stream(stages="write", buffer=1) as run:
            async for _ in run:
                chunks += 1
        assert 6 <= chunks <= 9
        return await run.results()

    results = VirtualClock().run(main())
    check_exceeded(results, sink, "write", 1.25)
    assert results["read"].status is CANCEL
    if form is streams:
        assert total(sink) == 1.25


def test_error_has_the_traceback_of_the_call(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("a", raises_it), sink, budget=Budget(usd=1))
    start(graph)
    exception = stage_wide(sink.events, "a")["exception"]
    assert "raises_it" in str(exception)


def test_error_that_the_stage_raises_instead_is_the_cause(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("a", replaces_it), sink, budget=Budget(usd=1))
    error = check_exceeded(start(graph), sink, "a", 2)
    assert isinstance(error.__cause__, ConnectionError)


def test_further_calls_raise_again_and_are_recorded(sink: MemoryEventSink) -> None:
    raised: list[str] = []

    def stage(ctx: StageContext) -> None:
        for _ in range(3):
            try:
                ctx.record_llm("m", output_tokens=1, cost_usd=2)
            except BudgetExceededError as error:
                raised.append(error.message)

    graph = recorded(Pipeline("p").with_stage("a", stage), sink, budget=Budget(usd=1))
    check_exceeded(start(graph), sink, "a", 2)
    assert raised == ["the run spent 2 USD, more than its budget of 1 USD"] * 3
    assert total(sink) == 6


async def records_an_embedding(ctx: StageContext) -> None:
    ctx.record_embedding("m", cost_usd=2)


async def updates_a_call(ctx: StageContext) -> None:
    ctx.record_llm("m").update(cost_usd=2)


@pytest.mark.parametrize("stage", [raises_it, records_an_embedding, updates_a_call])
def test_each_function_that_records_usage_raises_the_error(stage: Runner, sink: MemoryEventSink) -> None:
    raised: list[BaseException] = []

    async def catches(ctx: StageContext) -> None:
        try:
            await stage(ctx)
        except BaseException as error:
            raised.append(error)

    graph = recorded(Pipeline("p").with_stage("a", catches), sink, budget=Budget(usd=1))
    check_exceeded(start(graph), sink, "a", 2)
    assert [type(error) for error in raised] == [BudgetExceededError]


def test_call_that_exceeds_the_budget_is_recorded_completely(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        complete = ctx.record_llm("m", input_tokens=1)
        with contextlib.suppress(BudgetExceededError):
            complete.update(output_tokens=3, cost_usd=2)
        with contextlib.suppress(BudgetExceededError):
            ctx.record_llm("m", input_tokens=7)

    graph = recorded(Pipeline("p").with_stage("a", stage), sink, budget=Budget(usd=1))
    check_exceeded(start(graph), sink, "a", 2)
    attributes = stage_wide(sink.events, "a")["attributes"]
    assert attributes["gen_ai.usage.input_tokens"] == 8
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["usage_incomplete"] is True


def test_circuit_breaker_does_not_count_an_exceeded_budget(sink: MemoryEventSink) -> None:
    breaker = CircuitBreaker(failures=1)
    calls = 0

    async def stage(ctx: StageContext) -> None:
        nonlocal calls
        calls += 1
        ctx.record_llm("m", output_tokens=1, cost_usd=2)

    pipeline = Pipeline("p").with_stage("a", stage, interceptors=(breaker,))
    graph = recorded(pipeline, sink, budget=Budget(usd=1))
    start(graph)
    start(graph)
    assert calls == 2


# ---------------------------------------------------------------- amounts


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        (Budget(usd=0.3), [{"cost_usd": 0.1, "output_tokens": 1}] * 3),  # the sum of these floats is greater
        (Budget(tokens=300), [{"input_tokens": 100, "output_tokens": 50}] * 2),
        (Budget(usd=0, tokens=10), [{"input_tokens": 10, "cached_tokens": 500, "reasoning_tokens": 500}]),
        (Budget(tokens=10), [{"cost_usd": 0.5}, {"cost_usd": 10**400, "output_tokens": 10}]),
    ],
)
def test_run_may_spend_exactly_its_budget(
    budget: Budget, calls: list[dict[str, Any]], sink: MemoryEventSink
) -> None:
    async def stage(ctx: StageContext) -> None:
        for call in calls:
            ctx.record_llm("m", **call)

    results = start(recorded(Pipeline("p").with_stage("a", stage), sink, budget=budget))
    assert results.outcome == "ok"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(usd=0.35), "the run spent 0.4 USD, more than its budget of 0.35 USD"),
        (Budget(tokens=3_500), "the run used 4,000 tokens, more than its budget of 3,500 tokens"),
        (Budget(usd=0.35, tokens=10**9), "the run spent 0.4 USD, more than its budget of 0.35 USD"),
    ],
)
def test_error_states_the_amount_and_how_to_increase_the_budget(
    budget: Budget, message: str, sink: MemoryEventSink
) -> None:
    async def stage(ctx: StageContext) -> None:
        while True:
            ctx.record_llm("m", input_tokens=900, output_tokens=100, cost_usd=0.1)

    results = start(recorded(Pipeline("p").with_stage("a", stage), sink, budget=budget))
    error = results["a"].exception
    assert isinstance(error, BudgetExceededError)
    assert error.message == message
    assert str(error).startswith(
        f"{message} [stage 'a', pipeline 'p', run {error.run_id}]\n  hint: increase "
    )
    assert error.hint is not None
    assert "of pipeline 'p'" in error.hint
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.spent, copy.unit, copy.limit) == (
        str(error),
        error.spent,
        error.unit,
        error.limit,
    )


def test_update_replaces_the_usage_of_its_call(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        for _ in range(4):
            call = ctx.record_llm("m", output_tokens=100, cost_usd=0.2)
            for _ in range(5):
                call.update(output_tokens=100, cost_usd=0.25)

    budget = Budget(usd=1, tokens=400)
    assert start(recorded(Pipeline("p").with_stage("a", stage), sink, budget=budget)).outcome == "ok"


def test_amount_that_is_no_number_is_ignored(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        ctx.record_llm("m", output_tokens="many", cost_usd=float("nan"))  # type: ignore[arg-type]

    budget = Budget(usd=0, tokens=0)
    assert start(recorded(Pipeline("p").with_stage("a", stage), sink, budget=budget)).outcome == "ok"


# ---------------------------------------------------------------- other stages of the run


def test_no_stage_starts_after_the_budget_was_exceeded(sink: MemoryEventSink) -> None:
    started: list[str] = []

    async def stage(ctx: StageContext) -> None:
        started.append(ctx.stage)
        with contextlib.suppress(Exception):
            ctx.record_llm("m", output_tokens=1, cost_usd=1)

    pipeline = Pipeline("p")
    for number in range(50):
        pipeline = pipeline.with_stage(f"s{number}", stage, optional=True)
    results = start(recorded(pipeline, sink, budget=Budget(usd=5), on_failure="continue"))
    check_exceeded(results, sink, "s5", 6)
    assert started == [f"s{number}" for number in range(6)]
    assert total(sink) == 6


def test_concurrent_stages_spend_from_one_budget(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(Exception):
                ctx.record_llm("m", output_tokens=1, cost_usd=1)

    pipeline = Pipeline("p")
    for number in range(5):
        pipeline = pipeline.with_stage(f"s{number}", stage)
    results = start(recorded(pipeline, sink, budget=Budget(usd=7)))
    (failed,) = [result for result in results.values() if result.status is FAIL]
    check_exceeded(results, sink, failed.name, 8)
    assert total(sink) == 8
    others = [result for result in results.values() if result is not failed]
    assert {(result.status, result.reason) for result in others} == {(CANCEL, f"cancelled: {EXCEEDED}")}


@pytest.mark.parametrize("ignored", [(), Exception])
def test_threads_spend_from_one_budget(ignored: Any, sink: MemoryEventSink) -> None:
    at_once = threading.Barrier(8)

    def stage(ctx: StageContext) -> None:
        at_once.wait(10)
        while not ctx.cancelled:
            with contextlib.suppress(ignored):
                ctx.record_llm("m", output_tokens=1, cost_usd=0.25)

    pipeline = Pipeline("p")
    for number in range(8):
        pipeline = pipeline.with_stage(f"s{number}", stage)
    results = asyncio.run(recorded(pipeline, sink, budget=Budget(usd=100)).run())
    (failed,) = [result for result in results.values() if result.status is FAIL]
    check_exceeded(results, sink, failed.name, 100.25)


def run_slowly(graph: StageGraph, *, slow_calls: int, after: float = 0, before: float = 0) -> PipelineResults:
    """Run a graph; the first calls of threads to the event loop take some time, as on a busy machine."""

    async def main() -> PipelineResults:
        loop = asyncio.get_running_loop()
        call, calls = loop.call_soon_threadsafe, itertools.count()

        def slow_call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread() or next(calls) >= slow_calls:
                return call(*arguments, **options)
            time.sleep(before)
            handle = call(*arguments, **options)
            time.sleep(after)
            return handle

        loop.call_soon_threadsafe = slow_call  # type: ignore[method-assign]
        return await graph.run()

    return asyncio.run(main())


def test_runs_end_together_if_a_thread_exceeds_the_budget(sink: MemoryEventSink) -> None:
    def spends_after_the_others_started(ctx: StageContext) -> None:
        all_run.wait(30)
        ctx.record_llm("m", output_tokens=1, cost_usd=2)

    async def waits(ctx: StageContext) -> None:
        all_run.set()
        await asyncio.sleep(3600)

    all_run = threading.Event()
    inner = Pipeline("inner").with_stage("spends", spends_after_the_others_started)
    sibling = Pipeline("sibling").with_stage("waits", waits)
    pipeline = (
        Pipeline("p")
        .with_stage("nested", Pipeline("middle").with_stage("inner", inner))
        .with_stage("other", Pipeline("middle").with_stage("sibling", sibling))
    )
    graph = recorded(pipeline, sink, budget=Budget(usd=1), grace=0)
    check_exceeded(run_slowly(graph, slow_calls=10, after=0.05), sink, "nested", 2)
    ends = [(run["pipeline_name"], run["outcome"]) for run in of_type(sink.events, "pipeline.wide")]
    assert sorted(ends) == [
        ("inner", "failed"),
        ("middle", "cancelled"),
        ("middle", "failed"),
        ("p", "failed"),
        ("sibling", "cancelled"),
    ]


def test_thread_that_records_usage_after_another_one_exceeded_the_budget_ends_the_run(
    sink: MemoryEventSink,
) -> None:
    both_run = threading.Barrier(2)

    def first(ctx: StageContext) -> None:
        both_run.wait(30)
        ctx.record_llm("m", output_tokens=1, cost_usd=2)

    def second(ctx: StageContext) -> None:
        both_run.wait(30)
        time.sleep(0.05)  # the other thread has recorded its usage, and is about to call the loop
        ctx.record_llm("m", output_tokens=1, cost_usd=2)

    pipeline = Pipeline("p").with_stage("first", first).with_stage("second", second)
    graph = recorded(pipeline, sink, budget=Budget(usd=1), grace=0)
    check_exceeded(run_slowly(graph, slow_calls=1, before=0.2), sink, "first", 2)


def test_cancelled_stage_can_clean_up_and_record_its_usage(sink: MemoryEventSink) -> None:
    async def cleans_up(ctx: StageContext) -> None:
        call = ctx.record_llm("m", input_tokens=1)
        try:
            await asyncio.sleep(3600)
        finally:
            with contextlib.suppress(BudgetExceededError):
                call.update(output_tokens=1, cost_usd=0.5)

    pipeline = Pipeline("p").with_stage("a", waits_first).with_stage("b", cleans_up)
    results = start(recorded(pipeline, sink, budget=Budget(usd=1)))
    check_exceeded(results, sink, "a", 2)
    assert results["b"].reason == f"cancelled: {EXCEEDED}"
    assert total(sink) == 2.5


def test_stages_that_have_ended_keep_their_status(sink: MemoryEventSink) -> None:
    async def fails(ctx: StageContext) -> None:
        raise ValueError

    pipeline = (
        Pipeline("p")
        .with_stage("ok", lambda ctx: {})
        .with_stage("skipped", lambda ctx: {}, when=lambda ctx: False)
        .with_stage("failed", fails)
        .with_stage("spends", waits_first)
    )
    results = start(recorded(pipeline, sink, budget=Budget(usd=1), on_failure="continue"))
    check_records(sink)
    assert [result.status for result in results.values()] == [OK, SKIP, FAIL, FAIL]
    # The first failure is still the first one; the error of the run is that of its end.
    assert results.first_failed_stage == "failed"
    assert isinstance(results.exception, BudgetExceededError)


def test_stage_that_exceeds_the_budget_in_its_condition_fails(sink: MemoryEventSink) -> None:
    async def asks_a_model(ctx: StageContext) -> bool:
        with contextlib.suppress(Exception):
            ctx.record_llm("m", output_tokens=1, cost_usd=2)
        return True

    called = False

    async def stage(ctx: StageContext) -> None:
        nonlocal called
        called = True

    pipeline = Pipeline("p").with_stage("a", stage, when=asks_a_model, optional=True)
    results = start(recorded(pipeline, sink, budget=Budget(usd=1)))
    check_exceeded(results, sink, "a", 2)
    assert results["a"].attempts == 0
    assert not called


def test_stage_that_exceeds_the_budget_after_its_timeout_is_not_retried(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            with contextlib.suppress(Exception):
                ctx.record_llm("m", output_tokens=1, cost_usd=2)

    pipeline = Pipeline("p").with_stage("a", stage, timeout=1, retry=Retry(attempts=5, on=Exception))
    results = start(recorded(pipeline, sink, budget=Budget(usd=1)))
    check_exceeded(results, sink, "a", 2)
    assert results["a"].attempts == 1


def test_usage_that_exceeds_the_budget_between_two_attempts_fails_the_stage(sink: MemoryEventSink) -> None:
    async def later(ctx: StageContext) -> None:
        await asyncio.sleep(5)
        with contextlib.suppress(BudgetExceededError):
            ctx.record_llm("m", output_tokens=1, cost_usd=2)

    tasks = []

    async def stage(ctx: StageContext) -> None:
        tasks.append(asyncio.create_task(later(ctx)))
        raise ConnectionError

    pipeline = Pipeline("p").with_stage("a", stage, retry=Retry(attempts=5, wait=10))
    results = start(recorded(pipeline, sink, budget=Budget(usd=1)))
    check_exceeded(results, sink, "a", 2)
    assert results["a"].reason == f"attempt 2 did not start: {EXCEEDED}"
    assert results["a"].attempts == 1


def test_late_usage_of_a_stage_that_has_ended_ends_the_run(sink: MemoryEventSink) -> None:
    async def later(ctx: StageContext) -> None:
        await asyncio.sleep(5)
        with pytest.raises(BudgetExceededError):
            ctx.record_llm("m", output_tokens=1, cost_usd=2)

    tasks = []

    async def starts_a_task(ctx: StageContext) -> None:
        tasks.append(asyncio.create_task(later(ctx)))

    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(3600)

    pipeline = Pipeline("p").with_stage("a", starts_a_task).with_stage("b", waits)
    results = start(recorded(pipeline, sink, budget=Budget(usd=1)))
    check_records(sink)
    assert (results.outcome, results.first_failed_stage) == ("failed", None)
    assert isinstance(results.exception, BudgetExceededError)
    assert results.error == "BudgetExceededError: the run spent 2 USD, more than its budget of 1 USD"
    assert results["a"].status is OK
    assert results["b"].reason == f"cancelled: {EXCEEDED}"


def test_usage_after_the_end_of_the_run_is_recorded_without_effect(sink: MemoryEventSink) -> None:
    contexts: list[StageContext] = []

    async def stage(ctx: StageContext) -> None:
        contexts.append(ctx)

    results = start(recorded(Pipeline("p").with_stage("a", stage), sink, budget=Budget(usd=1)))
    contexts[0].record_llm("m", output_tokens=1, cost_usd=2)
    assert results.outcome == "ok"
    (amendment,) = of_type(sink.events, "pipeline.wide.amend")
    assert amendment["attributes"]["llm.cost_usd"] == 2


def test_thread_that_was_left_running_cannot_record_without_an_error(sink: MemoryEventSink) -> None:
    run_has_ended, calls_again = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def stage(ctx: StageContext) -> None:
        with contextlib.suppress(Exception):
            ctx.record_llm("m", output_tokens=1, cost_usd=2)
        run_has_ended.wait(30)
        try:
            assert ctx.abandoned
            ctx.record_llm("m", output_tokens=1, cost_usd=2)
        except BaseException as error:
            raised.append(error)
        calls_again.set()

    pipeline = Pipeline("p").with_stage("a", stage, retry=Retry(attempts=3, wait=0))
    results = asyncio.run(recorded(pipeline, sink, budget=Budget(usd=1), grace=0.01).run())
    check_exceeded(results, sink, "a", 2)
    assert results["a"].reason == "it did not end within 0.01 s and was left running"
    run_has_ended.set()
    assert calls_again.wait(30)
    assert [type(error) for error in raised] == [BudgetExceededError]


def test_thread_can_exceed_the_budget_after_the_event_loop_was_closed(sink: MemoryEventSink) -> None:
    started, closed, ended = threading.Event(), threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def stage(ctx: StageContext) -> None:
        started.set()
        closed.wait(30)
        try:
            ctx.record_llm("m", output_tokens=1, cost_usd=2)
        except BaseException as error:
            raised.append(error)
        ended.set()

    graph = recorded(Pipeline("p").with_stage("a", stage), sink, budget=Budget(usd=1))
    loop = asyncio.new_event_loop()
    run = graph.run()
    task = loop.create_task(run)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert started.wait(30)
    loop.close()
    closed.set()
    assert ended.wait(30)
    assert [type(error) for error in raised] == [BudgetExceededError]
    run.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    check_records(sink)


def test_first_cause_of_the_end_of_a_run_counts(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ctx.record_llm("m", output_tokens=1, cost_usd=2)

    graph = recorded(Pipeline("p").with_stage("a", stage), sink, budget=Budget(usd=1))
    results = VirtualClock().run(graph.run(deadline=1))
    check_records(sink)
    assert (results.outcome, results["a"].status) == ("timeout", CANCEL)
    assert isinstance(results["a"].exception, BudgetExceededError)


# ---------------------------------------------------------------- maps

ITEMS = 1000


def map_of(runner: Any, **options: Any) -> Pipeline:
    return (
        Pipeline("p")
        .with_stage("items", lambda ctx: list(range(ITEMS)))
        .with_map("map", runner, over="items", **options)
    )


async def immediate_item(ctx: StageContext, item: int) -> int:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=1)
    return item


async def raising_item(ctx: StageContext, item: int) -> int:
    ctx.record_llm("m", output_tokens=1, cost_usd=1)
    return item


async def item_without_context(item: int) -> int:
    with contextlib.suppress(Exception):
        record_llm("m", output_tokens=1, cost_usd=1)
    return item


async def waiting_item(ctx: StageContext, item: int) -> int:
    await asyncio.sleep(1)
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=1)
    return item


def item_in_a_thread(ctx: StageContext, item: int) -> int:
    with contextlib.suppress(Exception):
        ctx.record_llm("m", output_tokens=1, cost_usd=1)
    return item


@pytest.mark.parametrize("policy", ["fail", "skip", "collect"])
@pytest.mark.parametrize("limit", [None, "one"])
@pytest.mark.parametrize(
    "runner", [immediate_item, raising_item, item_without_context, waiting_item, item_in_a_thread]
)
def test_map_ends_with_the_item_that_exceeds_the_budget(
    runner: Any, limit: str | None, policy: Any, sink: MemoryEventSink
) -> None:
    concurrency = 1 if runner in (waiting_item, item_in_a_thread) else 16
    pipeline = map_of(
        runner,
        on_item_failure=policy,
        retry=Retry(attempts=100, wait=0, on=Exception),
        optional=True,
        limit=limit,
        max_concurrency=concurrency,
    )
    graph = recorded(pipeline, sink, budget=Budget(usd=20), limits=Limits(one=1), on_failure="continue")
    results = start(graph)
    check_exceeded(results, sink, "map", 21)
    assert total(sink) == 21
    items = stage_wide(sink.events, "map")["items"]
    assert items["ok"] + items["failed"] + items["skipped"] <= 21


def test_map_requests_no_item_after_the_budget_was_exceeded(sink: MemoryEventSink) -> None:
    requested = 0

    def items(ctx: StageContext) -> Any:
        def numbers() -> Iterator[int]:
            nonlocal requested
            for number in range(ITEMS):
                requested += 1
                yield number

        return StageOutput.ok(items=numbers())

    pipeline = (
        Pipeline("p")
        .with_stage("items", items)
        .with_map("map", immediate_item, over=("items", "items"), on_item_failure="skip")
    )
    results = start(recorded(pipeline, sink, budget=Budget(usd=20)))
    check_exceeded(results, sink, "map", 21)
    assert requested == 21


def test_map_ends_even_if_an_interceptor_shields_it_from_cancellation(sink: MemoryEventSink) -> None:
    async def shields(call: StageCall, proceed: Any) -> Any:
        return await asyncio.shield(asyncio.ensure_future(proceed()))

    pipeline = map_of(immediate_item, interceptors=(shields,))
    graph = recorded(pipeline, sink, budget=Budget(usd=20))

    async def main() -> PipelineResults:
        results = await graph.run()
        await asyncio.sleep(1)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    check_exceeded(VirtualClock().run(main()), sink, "map", 21)
    assert total(sink) == 21


def test_map_over_a_stream_of_items_ends(sink: MemoryEventSink) -> None:
    async def items(ctx: StageContext) -> Any:
        async def numbers() -> AsyncIterator[int]:
            for number in range(ITEMS):
                yield number
                await asyncio.sleep(0.01)

        return StageOutput.ok(items=numbers())

    pipeline = (
        Pipeline("p")
        .with_stage("items", items)
        .with_map("map", immediate_item, over=("items", "items"), on_item_failure="skip")
    )
    results = start(recorded(pipeline, sink, budget=Budget(usd=20)))
    check_exceeded(results, sink, "map", 21)
    assert total(sink) == 21


# ---------------------------------------------------------------- budgets of child runs and of their parents


async def spends(ctx: StageContext) -> None:
    for _ in range(ctx.run.data["calls"]):
        ctx.record_llm("m", output_tokens=1, cost_usd=1)
        await asyncio.sleep(0)


def child(sink: MemoryEventSink, **options: Any) -> StageGraph:
    return recorded(Pipeline("child").with_stage("spends", spends), sink, **options)


def test_budget_of_a_child_run_is_an_ordinary_failure_of_its_stage(sink: MemoryEventSink) -> None:
    graph = child(sink, budget=Budget(usd=2))
    pipeline = Pipeline("parent").with_stage(
        "child", graph, optional=True, retry=Retry(attempts=2, wait=0, on=RunFailedError)
    )
    results = start(recorded(pipeline, sink, budget=Budget(usd=6)), {"calls": 5})
    check_records(sink)
    assert results.outcome == "degraded"
    assert results["child"].attempts == 2
    assert isinstance(results["child"].exception, RunFailedError)
    assert isinstance(results["child"].exception.__cause__, BudgetExceededError)
    assert total(sink) == 6


@pytest.mark.parametrize("own", [None, Budget(usd=2), Budget(usd=100)])
def test_usage_of_child_runs_counts_towards_their_parent(own: Budget | None, sink: MemoryEventSink) -> None:
    pipeline = Pipeline("parent").with_loop(
        "loop", child(sink, budget=own), until=lambda results: False, max_iterations=100, optional=True
    )
    results = start(recorded(pipeline, sink, budget=Budget(usd=9)), {"calls": 2})
    check_exceeded(results, sink, "loop", 10)
    assert total(sink) == 10
    *_, last = [run for run in of_type(sink.events, "pipeline.wide") if run["pipeline_name"] == "child"]
    assert last["outcome"] == "failed"
    assert last["reason"] == "the budget of an outer run was exceeded"


def test_one_call_can_exceed_the_budgets_of_a_run_and_its_parent(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("parent").with_stage("child", child(sink, budget=Budget(usd=3)), optional=True)
    results = start(recorded(pipeline, sink, budget=Budget(usd=3)), {"calls": 9})
    check_exceeded(results, sink, "child", 4)
    (failed, _) = [event for event in of_type(sink.events, "stage.wide") if event["status"] == "FAIL"]
    assert failed["error"].startswith("BudgetExceededError: the run spent 4 USD")


def test_error_of_a_child_run_does_not_replace_that_of_the_run(sink: MemoryEventSink) -> None:
    errors: list[BaseException] = []

    async def raises(ctx: StageContext) -> None:
        try:
            ctx.record_llm("m", output_tokens=1, cost_usd=2)
        except BudgetExceededError as error:
            errors.append(error)

    graph = recorded(Pipeline("child").with_stage("stage", raises), sink)

    async def stage(ctx: StageContext) -> None:
        try:
            await graph.run()
        except asyncio.CancelledError:
            raise errors[0] from None

    results = start(recorded(Pipeline("p").with_stage("stage", stage), sink, budget=Budget(usd=1)))
    error = check_exceeded(results, sink, "stage", 2)
    assert error.__cause__ is errors[0]


def test_concurrent_child_runs_are_cancelled(sink: MemoryEventSink) -> None:
    async def spends_forever(ctx: StageContext) -> None:
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(Exception):
                ctx.record_llm("m", output_tokens=1, cost_usd=1)

    turn = Pipeline("child").with_stage("spends", spends_forever, optional=True)
    pipeline = Pipeline("parent")
    for number in range(4):
        pipeline = pipeline.with_stage(f"c{number}", turn, optional=True)
    results = start(recorded(pipeline, sink, budget=Budget(usd=6), on_failure="continue"))
    (failed,) = [result for result in results.values() if result.status is FAIL]
    check_exceeded(results, sink, failed.name, 7)
    assert total(sink) == 7
    outcomes = [
        (run["outcome"], run["reason"])
        for run in of_type(sink.events, "pipeline.wide")
        if run["pipeline_name"] == "child"
    ]
    assert sorted(outcomes) == [
        ("cancelled", "cancelled by its parent run: the budget of an outer run was exceeded")
    ] * 3 + [("failed", "the budget of an outer run was exceeded")]


def test_concurrent_child_runs_start_no_stage_after_the_budget_was_exceeded(sink: MemoryEventSink) -> None:
    turn = Pipeline("child").with_stage("s0", immediate_greedy)
    for number in range(1, 40):
        turn = turn.with_stage(
            f"s{number}", immediate_greedy, dependencies=(f"s{number - 1}",), optional=True
        )
    pipeline = Pipeline("parent")
    for number in range(4):
        pipeline = pipeline.with_stage(f"c{number}", turn, optional=True)
    results = start(recorded(pipeline, sink, budget=Budget(usd=7.5), on_failure="continue"))
    (failed,) = [result for result in results.values() if result.status is FAIL]
    check_exceeded(results, sink, failed.name, 7.75)
    assert total(sink) <= 7.75 + 2 * COST


def test_runs_of_one_graph_have_separate_budgets(sink: MemoryEventSink) -> None:
    graph = child(sink, budget=Budget(usd=3))

    async def main() -> list[PipelineResults]:
        context = PipelineContext(data={"calls": 3})
        return await asyncio.gather(*(graph.run(context) for _ in range(5)))

    assert {results.outcome for results in VirtualClock().run(main())} == {"ok"}


def test_child_run_that_outlives_its_stage_counts_towards_the_parent(sink: MemoryEventSink) -> None:
    tasks = []

    async def starts_a_run(ctx: StageContext) -> None:
        tasks.append(asyncio.create_task(child(sink).run(PipelineContext(data={"calls": 5}))))

    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(3600)

    pipeline = Pipeline("parent").with_stage("a", starts_a_run).with_stage("b", waits)
    results = start(recorded(pipeline, sink, budget=Budget(usd=2)))
    assert (results.outcome, results.first_failed_stage) == ("failed", None)
    assert tasks[0].result()["spends"].status is FAIL
    assert total(sink) == 3


# ---------------------------------------------------------------- attempts


def check_attempts(sink: MemoryEventSink, expected: int) -> None:
    """Check the number of attempts of stages that have started, in all runs."""
    started = [
        event
        for event in of_type(sink.events, "stage.wide")
        if event["status"] == "RETRY" or event["started"]
    ]
    assert len(started) == expected


def test_attempt_that_would_exceed_the_budget_does_not_start(sink: MemoryEventSink) -> None:
    calls = 0

    async def stage(ctx: StageContext) -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError

    pipeline = Pipeline("p").with_stage(
        "a", stage, optional=True, retry=Retry(attempts=500, wait=0, on=Exception)
    )
    results = start(recorded(pipeline, sink, budget=Budget(attempts=5), on_failure="continue"))
    error = check_exceeded(results, sink, "a", 5, "attempts")
    assert error.message == "the run needs more attempts than its budget of 5"
    assert results["a"].reason == f"attempt 6 did not start: {EXCEEDED}"
    assert results.ended_ns == results.started_ns  # nothing is left for which the run waits
    assert (calls, results["a"].attempts) == (5, 5)


@pytest.mark.parametrize("runner", [immediate_greedy, greedy, blocking_greedy])
@pytest.mark.parametrize("when", [None, lambda ctx: True])
def test_stages_share_the_attempts_of_the_budget(runner: Any, when: Any, sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p")
    for number in range(10):
        pipeline = pipeline.with_stage(f"s{number}", runner, when=when, limit="one")
    graph = recorded(pipeline, sink, budget=Budget(attempts=4), limits=Limits(one=1), max_concurrency=1)
    results = start(graph)
    check_exceeded(results, sink, "s4", 4, "attempts")
    assert results["s4"].attempts == 0
    assert [result.status for result in results.values()] == [OK] * 4 + [FAIL] + [CANCEL] * 5


def test_refused_attempt_of_a_synchronous_stage_releases_its_thread(sink: MemoryEventSink) -> None:
    configure(max_threads=1)

    pipeline = Pipeline("p").with_stage("a", lambda ctx: {}).with_stage("b", lambda ctx: {})
    graph = recorded(pipeline, sink, budget=Budget(attempts=1))

    async def main() -> None:
        async with asyncio.timeout(30):
            for _ in range(3):
                check_exceeded(await graph.run(), sink, "b", 1, "attempts")

    asyncio.run(main())


def test_skipped_stage_is_no_attempt(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p")
    for number in range(10):
        pipeline = pipeline.with_stage(f"s{number}", immediate_greedy, when=lambda ctx: False)
    assert start(recorded(pipeline, sink, budget=Budget(attempts=1))).outcome == "ok"


@pytest.mark.parametrize("limit", [None, "one"])
@pytest.mark.parametrize("policy", ["fail", "skip", "collect"])
def test_attempts_of_items_count(policy: Any, limit: str | None, sink: MemoryEventSink) -> None:
    calls = 0

    async def item(ctx: StageContext, number: int) -> None:
        nonlocal calls
        calls += 1
        if ctx.attempt == 1:
            raise ConnectionError

    pipeline = map_of(
        item, on_item_failure=policy, retry=Retry(attempts=2, wait=0), limit=limit, optional=True
    )
    graph = recorded(pipeline, sink, budget=Budget(attempts=2 + 30), limits=Limits(one=1))
    results = start(graph)
    check_exceeded(results, sink, "map", 32, "attempts")
    assert calls == 30


def test_attempts_of_child_runs_count(sink: MemoryEventSink) -> None:
    calls = 0

    async def stage(ctx: StageContext) -> None:
        nonlocal calls
        calls += 1

    pipeline = Pipeline("p").with_loop(
        "loop",
        Pipeline("turn").with_stage("a", stage).with_stage("b", stage, dependencies=("a",)),
        until=lambda results: False,
        max_iterations=1000,
        optional=True,
    )
    results = start(recorded(pipeline, sink, budget=Budget(attempts=8)))
    check_exceeded(results, sink, "loop", 8, "attempts")
    assert calls == 7
    *_, last = [run for run in of_type(sink.events, "pipeline.wide") if run["pipeline_name"] == "turn"]
    assert [summary["status"] for summary in last["stage_summaries"]] == ["OK", "FAIL"]


def test_run_may_use_all_attempts_of_its_budget(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p").with_stage("a", lambda ctx: {}).with_stage("b", lambda ctx: {}, dependencies=("a",))
    )
    assert start(recorded(pipeline, sink, budget=Budget(attempts=2))).outcome == "ok"


# ---------------------------------------------------------------- definition


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"usd": -1},
        {"usd": float("nan")},
        {"usd": float("inf")},
        {"usd": True},
        {"usd": "1"},
        {"tokens": -1},
        {"tokens": 1.5},
        {"attempts": 0},
        {"attempts": True},
        {"dollars": 1},
    ],
)
def test_invalid_budget_is_rejected(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Budget(**limits)


def test_build_rejects_something_other_than_a_budget() -> None:
    pipeline = Pipeline("p").with_stage("a", raises_it)
    with pytest.raises(PipelineValidationError, match=r"budget must be Budget\(usd=.*got 5"):
        pipeline.build(budget=5)  # type: ignore[arg-type]


def test_description_contains_the_budget() -> None:
    graph = Pipeline("p").with_stage("a", raises_it).build(budget=Budget(usd=0.5, tokens=100_000))
    assert graph.describe().splitlines()[-1] == "budget: 0.5 USD, 100,000 tokens"


def test_flow_accepts_a_budget() -> None:
    flow = Flow("f")
    flow.add(raises_it)
    results = start(flow.build(budget=Budget(usd=1)))
    assert isinstance(results["raises_it"].exception, BudgetExceededError)


def test_run_without_a_budget_has_no_account() -> None:
    accounts: list[Any] = []

    async def stage(ctx: StageContext) -> None:
        accounts.append(ctx._recorder.account)

    inner = Pipeline("inner").with_stage("a", stage)
    start(Pipeline("p").with_stage("a", stage).with_stage("b", inner).build())
    assert accounts == [None, None]
