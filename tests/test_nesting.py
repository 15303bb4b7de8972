"""Pipelines as stages of other pipelines, and loops."""

from __future__ import annotations

import asyncio
import gc
import io
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import Program
from oracle import check_record, of_type, recorded, stage_wide
from rich.console import Console
from typer.testing import CliRunner

from stageflow import (
    Journal,
    JournalSink,
    Limits,
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    RunFailedError,
    StageContext,
    StageGraph,
    StageKind,
    StageOutput,
    StageStatus,
)
from stageflow.cli._app import app
from stageflow.errors import (
    InvalidArgumentError,
    LimitDeadlockError,
    LoopLimitError,
    MissingInputError,
    PipelineValidationError,
    StageOutputError,
    StageTimeoutError,
)
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.pipeline import Flow, Interceptor, Proceed, StageCall
from stageflow.render import draw_run, shown_child_runs
from stageflow.retry import Fixed
from stageflow.testing import VirtualClock, run_stage

OK, SKIP, FAIL, CANCEL = StageStatus.OK, StageStatus.SKIP, StageStatus.FAIL, StageStatus.CANCEL
Start = Callable[[str], Program]
Events = list[tuple[str, Any]]


def run(
    pipeline: Pipeline,
    sink: MemoryEventSink,
    data: Any = None,
    *,
    deadline: float | None = None,
    **options: Any,
) -> PipelineResults:
    """Run on a virtual clock; check the record of the run, and that no task is left."""
    graph = recorded(pipeline, sink, **options)
    context = PipelineContext() if data is None else PipelineContext(data=data)

    async def main() -> PipelineResults:
        results = await graph.run(context, deadline=deadline)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    results = VirtualClock().run(main())
    event = check_record(of_run(sink, id_of(results)), list(results))
    assert event["outcome"] == results.outcome
    check_all_records(sink)
    return results


def id_of(results: PipelineResults) -> str:
    return str(results.context.pipeline_run_id)


def of_run(sink: MemoryEventSink, run_id: str) -> Events:
    return [
        (type, data)
        for type, data in sink.events
        if data is not None and data.get("correlation_ids", {}).get("pipeline_run_id") == run_id
    ]


def check_all_records(sink: MemoryEventSink) -> None:
    """Check the record of each run, and that each child run ends before the stage that started it."""
    order = [str((data or {}).get("event_id")) for _, data in sink.events]
    runs = of_type(sink.events, "pipeline.wide")
    for run in runs:
        stages = [summary["stage_name"] for summary in run["stage_summaries"]]
        check_record(of_run(sink, run["event_id"]), stages)
    started = [
        (event["event_id"], child)
        for event in of_type(sink.events, "stage.wide")
        for child in event["child_runs"]
    ]
    for stage, child in started:
        assert order.index(child) < order.index(stage)
    children = [(run["parent_run_id"], run["event_id"]) for run in runs if run["parent_run_id"]]
    assert sorted(children) == sorted((stage.split("/")[0], child) for stage, child in started)


def outcomes(sink: MemoryEventSink, pipeline: str) -> list[str]:
    """Return the outcomes of the runs of a pipeline, in order."""
    return [
        run["outcome"] for run in of_type(sink.events, "pipeline.wide") if run["pipeline_name"] == pipeline
    ]


def returning(value: Any, after: float | None = None) -> Callable[[StageContext], Coroutine[Any, Any, Any]]:
    async def stage(ctx: StageContext) -> Any:
        if after is not None:
            await asyncio.sleep(after)
        return value

    return stage


async def stubborn(ctx: StageContext) -> None:
    """Ignore every cancellation for 100 seconds."""
    ends = asyncio.get_running_loop().time() + 100
    while (left := ends - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


@dataclass
class Question:
    text: str
    a: int


def one(runner: Any, name: str = "child", **options: Any) -> Pipeline:
    return Pipeline(name).with_stage("work", runner, **options)


async def seen(ctx: StageContext) -> dict[str, Any]:
    return {"seen": ctx.run.data}


async def fails(ctx: StageContext) -> None:
    raise ValueError("no index")


def by_build(pipeline: Pipeline, sink: MemoryEventSink) -> Any:
    return pipeline


# ---------------------------------------------------------------- identity and data


@pytest.mark.parametrize("make", [by_build, recorded], ids=["pipeline", "graph"])
def test_child_run_has_a_record_that_is_linked_in_both_directions(
    sink: MemoryEventSink, make: Callable[[Pipeline, MemoryEventSink], Any]
) -> None:
    inner = Pipeline("middle").with_stage("deep", make(one(seen, "inner"), sink))
    graph = recorded(Pipeline("outer").with_stage("nested", make(inner, sink)), sink)
    context = PipelineContext(user_id="u", request_id="r", service="shop", execution_mode="batch")
    results = VirtualClock().run(graph.run(context))

    check_all_records(sink)
    runs = {run["pipeline_name"]: run for run in of_type(sink.events, "pipeline.wide")}
    ids = {name: run["event_id"] for name, run in runs.items()}
    assert list(ids) == ["inner", "middle", "outer"]
    assert {name: (run["parent_run_id"], run["root_run_id"]) for name, run in runs.items()} == {
        "outer": (None, None),
        "middle": (ids["outer"], ids["outer"]),
        "inner": (ids["middle"], ids["outer"]),
    }
    assert stage_wide(sink.events, "nested")["child_runs"] == [ids["middle"]]
    assert stage_wide(sink.events, "deep")["child_runs"] == [ids["inner"]]
    assert stage_wide(sink.events, "work")["child_runs"] == []
    assert len({run["trace"]["trace_id"] for run in runs.values()}) == 1
    for name, run in runs.items():
        assert (run["correlation_ids"]["user_id"], run["correlation_ids"]["request_id"]) == ("u", "r")
        assert run["pipeline_metadata"] == {"service": "shop", "topology": name, "execution_mode": "batch"}
    (child,) = results["nested"].children
    assert (child.pipeline_name, id_of(child)) == ("middle", ids["middle"])
    assert [run.run_id for run in child["deep"].child_runs] == [ids["inner"]]


async def test_runs_started_by_the_code_of_a_stage_are_listed_without_results(sink: MemoryEventSink) -> None:
    inner = recorded(one(seen), sink)

    async def starts(ctx: StageContext) -> None:
        await asyncio.gather(inner.run(), inner.run())
        await asyncio.to_thread(inner.run_sync)

    results = await recorded(Pipeline("outer").with_stage("starts", starts), sink).run()
    check_all_records(sink)
    assert len(stage_wide(sink.events, "starts")["child_runs"]) == len(results["starts"].child_runs) == 3
    assert results["starts"].children == ()


@pytest.mark.parametrize("takes_context", [False, True])
async def test_runs_started_by_items_of_a_map_are_listed_in_its_event(
    sink: MemoryEventSink, takes_context: bool
) -> None:
    inner = recorded(one(seen), sink)

    async def with_context(ctx: StageContext, item: int) -> None:
        await asyncio.sleep(0)
        await inner.run()

    async def without_context(item: int) -> None:
        await inner.run()

    starts: Any = with_context if takes_context else without_context

    pipeline = (
        Pipeline("outer")
        .with_stage("items", returning({"items": [1, 2]}))
        .with_map("starts", starts, over=("items", "items"))
    )
    await recorded(pipeline, sink).run()
    check_all_records(sink)
    assert len(stage_wide(sink.events, "starts")["child_runs"]) == 2


async def test_event_lists_the_first_999_child_runs_and_the_last(sink: MemoryEventSink) -> None:
    inner = one(seen).build()
    started: list[str] = []

    async def starts(ctx: StageContext) -> None:
        started.extend([id_of(await inner.run()) for _ in range(1005)])

    results = await recorded(Pipeline("outer").with_stage("starts", starts), sink).run()
    event = stage_wide(sink.events, "starts")
    assert event["child_runs"] == [*started[:999], started[-1]]
    assert (event["child_runs_total"], event["truncated"]) == (1005, ["child_runs"])
    assert [child.run_id for child in results["starts"].child_runs] == event["child_runs"]
    assert results["starts"].child_runs_total == 1005


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": 0, "z": 1}, {"a": 1, "z": 1, "b": 2}),
        ("text", {"value": "text", "a": 1, "b": 2}),
        (Question("why?", a=7), {"text": "why?", "a": 1, "b": 2}),
        ({}, {"a": 1, "b": 2}),
    ],
)
def test_data_of_a_child_is_that_of_its_parent_and_the_outputs_of_dependencies(
    sink: MemoryEventSink, data: Any, expected: dict[str, Any]
) -> None:
    pipeline = (
        Pipeline("outer")
        .with_stage("one", returning({"a": 1}))
        .with_stage("two", returning({"b": 2}))
        .with_stage("not a dependency", returning({"c": 3}))
        .with_stage("nested", one(seen), dependencies=("one", "two"))
    )
    results = run(pipeline, sink, data)
    assert results.data("nested") == {"seen": expected}


@pytest.mark.parametrize("data", [{"a": 0}, "text", 7])
def test_child_of_a_stage_without_dependencies_gets_the_data_of_the_run(
    sink: MemoryEventSink, data: Any
) -> None:
    assert run(one(one(seen), "outer"), sink, data).data("work") == {"seen": data}


async def test_child_gets_the_resources_of_its_parent() -> None:
    async def reads(ctx: StageContext) -> dict[str, Any]:
        return {"client": ctx.run.resources["client"]}

    client = object()
    results = await one(one(reads), "outer").run(PipelineContext(resources={"client": client}))
    assert results.data("work")["client"] is client


def test_same_key_of_two_dependencies_is_an_error(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("outer")
        .with_stage("one", returning({"a": 1}))
        .with_stage("two", returning({"a": 2}))
        .with_stage("nested", one(seen), dependencies=("one", "two"))
    )
    results = run(pipeline, sink)
    assert isinstance(results["nested"].exception, MissingInputError)
    assert "more than one dependency returned the key 'a'" in str(results["nested"].exception)
    assert "'one' and 'two'" in str(results["nested"].exception)
    assert results["nested"].child_runs == ()


def test_value_is_the_merged_data_of_the_last_stages_that_ended_ok(sink: MemoryEventSink) -> None:
    child = (
        Pipeline("child")
        .with_stage("first", returning({"first": 1}))
        .with_stage("left", returning({"left": 2}), dependencies=("first",))
        .with_stage("right", returning({"right": 3}), dependencies=("first",))
        .with_stage("skipped", returning(StageOutput.skip("no", left=9)), dependencies=("first",))
        .with_stage("optional", fails, optional=True)
    )

    async def reads(ctx: StageContext) -> dict[str, Any]:
        return {"left": ctx.inputs.get_from("nested", "left")}

    pipeline = (
        Pipeline("outer").with_stage("nested", child).with_stage("reads", reads, dependencies=("nested",))
    )
    results = run(pipeline, sink)
    assert results.data("nested") == {"left": 2, "right": 3}
    assert results.data("reads") == {"left": 2}
    # The outcome of the child has no effect on that of its parent.
    assert (results["nested"].children[0].outcome, results.outcome) == ("degraded", "ok")
    assert stage_wide(sink.events, "nested")["data_keys"] == ["left", "right"]


async def test_single_last_stage_provides_its_value() -> None:
    results = await one(one(returning([1, 2])), "outer").run()
    assert results.value("work") == [1, 2]
    assert results.data("work") == {"value": [1, 2]}


def test_same_key_of_two_last_stages_is_an_error_that_is_not_retried(sink: MemoryEventSink) -> None:
    child = Pipeline("child").with_stage("one", returning({"a": 1})).with_stage("two", returning({"a": 2}))
    results = run(Pipeline("outer").with_stage("nested", child, retry=Retry(attempts=3)), sink)
    assert isinstance(results["nested"].exception, StageOutputError)
    assert "'one' and 'two'" in str(results["nested"].exception)
    assert results["nested"].attempts == 1


# ---------------------------------------------------------------- outcomes


def test_failed_child_fails_the_stage(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("outer").with_stage("nested", one(fails))
    results = run(pipeline.with_stage("after", seen, dependencies=("nested",)), sink)
    assert (results.outcome, results["nested"].status, results["after"].status) == ("failed", FAIL, CANCEL)
    error = results["nested"].exception
    assert isinstance(error, RunFailedError)
    assert isinstance(error.__cause__, ValueError)
    (child,) = results["nested"].children
    assert error.results is child
    assert (error.pipeline, error.stage, error.run_id) == ("child", "work", id_of(child))
    assert f"stageflow show {id_of(child)}" in str(error)
    event = stage_wide(sink.events, "nested")
    assert event["error_type"] == "RunFailedError"
    assert "stage 'work' failed: ValueError: no index" in event["error"]
    assert id_of(child) not in event["error"]  # equal errors have equal texts
    assert [link["type"] for link in event["exception"]["chain"]] == ["ValueError"]


def test_each_attempt_of_a_nested_pipeline_is_a_new_run(sink: MemoryEventSink) -> None:
    calls = iter([ValueError("one"), ConnectionError("two"), None])

    async def flaky(ctx: StageContext) -> dict[str, Any]:
        if error := next(calls):
            raise error
        return {"done": True}

    retry = Retry(attempts=3, wait=Fixed(1))
    results = run(Pipeline("outer").with_stage("nested", one(flaky), retry=retry), sink)
    assert (results["nested"].status, results["nested"].attempts) == (OK, 3)
    assert outcomes(sink, "child") == ["failed", "failed", "ok"]
    events = of_type(sink.events, "stage.wide")
    listed = [event["child_runs"] for event in events if event["stage_name"] == "nested"]
    assert [len(each) for each in listed] == [1, 1, 1]
    assert len({each[0] for each in listed}) == 3
    assert [id_of(child) for child in results["nested"].children] == listed[2]


def test_optional_nested_pipeline_that_fails_degrades_the_run(sink: MemoryEventSink) -> None:
    results = run(Pipeline("outer").with_stage("nested", one(fails), optional=True), sink)
    assert (results.outcome, results["nested"].status) == ("degraded", FAIL)


def test_child_that_stops_is_ok_and_provides_the_data_of_the_stop(sink: MemoryEventSink) -> None:
    child = one(returning(StageOutput.stop("off topic", text="sorry"))).with_stage(
        "never", seen, dependencies=("work",)
    )
    pipeline = Pipeline("outer").with_stage("nested", child)
    results = run(pipeline.with_stage("after", seen, dependencies=("nested",)), sink)
    assert (results.outcome, results["nested"].status, results["after"].status) == ("ok", OK, OK)
    assert results.data("nested") == {"text": "sorry"}
    reason = stage_wide(sink.events, "nested")["reason"]
    assert reason == "the child run was stopped: stage 'work': off topic"
    assert outcomes(sink, "child") == ["stopped"]


def test_nested_pipeline_can_be_skipped(sink: MemoryEventSink) -> None:
    results = run(Pipeline("outer").with_stage("nested", one(seen), when=lambda ctx: False), sink)
    assert (results["nested"].status, results["nested"].child_runs) == (SKIP, ())
    assert outcomes(sink, "child") == []


def test_interceptor_wraps_the_whole_child_run(sink: MemoryEventSink) -> None:
    seen_stages = []

    async def log(call: StageCall, proceed: Proceed) -> Any:
        output = await proceed()
        seen_stages.append((call.stage, output.data))
        return output

    interceptor: Interceptor = log
    results = run(one(one(returning({"a": 1})), "outer", interceptors=[interceptor]), sink)
    assert seen_stages == [("work", {"a": 1})]
    assert len(results["work"].children) == 1


# ---------------------------------------------------------------- cancellation and timeouts


def test_timeout_of_the_stage_cancels_the_child(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("outer").with_stage("nested", one(returning(None, after=60)), timeout=5)
    results = run(pipeline, sink)
    assert isinstance(results["nested"].exception, StageTimeoutError)
    assert (results["nested"].duration_ms, outcomes(sink, "child")) == (5000, ["cancelled"])
    (child,) = results["nested"].children
    assert child["work"].status is CANCEL
    assert child.reason == "cancelled by its parent run: stage 'nested' exceeded its timeout of 5 s"


def test_deadline_of_the_parent_cancels_the_child(sink: MemoryEventSink) -> None:
    results = run(one(one(returning(None, after=60)), "outer"), sink, deadline=3)
    assert (results.outcome, outcomes(sink, "child")) == ("timeout", ["cancelled"])
    (child,) = results["work"].children
    assert child.reason == "cancelled by its parent run: the run exceeded its deadline of 3 s"


@pytest.mark.parametrize("depth", [1, 3])
def test_cancelled_task_of_a_child_cancels_the_parent_as_its_own_would(
    sink: MemoryEventSink, depth: int
) -> None:
    async def cancels_itself(ctx: StageContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("by mistake")
        await asyncio.sleep(1)

    plain = recorded(one(cancels_itself, retry=Retry(attempts=3)), MemoryEventSink())
    nested = one(cancels_itself)
    for _ in range(depth):
        nested = one(nested, "outer", retry=Retry(attempts=3))
    graph = recorded(nested, sink)
    (of_plain, of_nested) = VirtualClock().run(asyncio.wait_for(both(plain, graph), 60))
    for results in (of_plain, of_nested):
        assert (results.outcome, results["work"].status, results["work"].attempts) == ("cancelled", CANCEL, 1)
    assert of_plain.reason == "a task of the run was cancelled externally: by mistake"
    child = of_nested["work"].children[0].context.pipeline_run_id
    assert of_nested.reason == f"a task of the run was cancelled externally: a task of its child run {child}"
    check_all_records(sink)


async def both(plain: StageGraph, nested: StageGraph) -> tuple[PipelineResults, PipelineResults]:
    return await plain.run(), await nested.run()


def test_record_contains_the_root_cause_of_a_failure_20_levels_deep(sink: MemoryEventSink) -> None:
    pipeline = one(fails)
    for _ in range(20):
        pipeline = one(pipeline)
    run(pipeline, sink)
    chain = of_type(sink.events, "stage.wide")[-1]["exception"]["chain"]
    assert (chain[-1]["type"], chain[-1]["message"]) == ("ValueError", "no index")


def test_failure_of_another_stage_cancels_the_child(sink: MemoryEventSink) -> None:
    async def fails_later(ctx: StageContext) -> None:
        await asyncio.sleep(1)
        raise ValueError

    pipeline = one(one(returning(None, after=60)), "outer").with_stage("other", fails_later)
    results = run(pipeline, sink)
    assert (results["work"].status, outcomes(sink, "child")) == (CANCEL, ["cancelled"])


def test_cancelled_run_cancels_its_children_at_every_level(sink: MemoryEventSink) -> None:
    deep = one(one(one(returning(None, after=60), "inner"), "middle"), "outer")
    graph = recorded(deep, sink)

    async def main() -> None:
        task = asyncio.create_task(graph.run())
        await asyncio.sleep(5)
        task.cancel("client went away")
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    VirtualClock().run(main())
    check_all_records(sink)
    runs = of_type(sink.events, "pipeline.wide")
    assert [(run["pipeline_name"], run["outcome"]) for run in runs] == [
        ("inner", "cancelled"),
        ("middle", "cancelled"),
        ("outer", "cancelled"),
    ]


@pytest.mark.parametrize("grace", [2.0, 0.0])
@pytest.mark.parametrize("make", [by_build, recorded], ids=["pipeline", "graph"])
def test_record_of_a_child_that_ignores_cancellation_precedes_the_event_of_its_stage(
    sink: MemoryEventSink, make: Callable[[Pipeline, MemoryEventSink], Any], grace: float
) -> None:
    middle = make(one(make(one(stubborn, "inner"), sink), "middle"), sink)
    graph = recorded(one(middle, "outer", timeout=5), sink, grace=grace)

    async def main() -> PipelineResults:
        results = await graph.run()
        await asyncio.sleep(200)  # the stubborn stage ends
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return results

    results = VirtualClock().run(main())
    check_all_records(sink)
    assert outcomes(sink, "inner") == outcomes(sink, "middle") == ["cancelled"]
    assert results["work"].abandoned
    (child,) = results["work"].children
    assert child.abandoned == ("work",)
    assert isinstance(results["work"].exception, StageTimeoutError)
    why = "cancelled by its parent run: stage 'work' exceeded its timeout of 5 s"
    assert child["work"].reason == f"cancelled: {why}; it was left running"


def test_stages_of_a_nested_pipeline_have_the_grace_period_of_the_parent(sink: MemoryEventSink) -> None:
    async def cleans_up(ctx: StageContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(5)

    results = run(one(one(cleans_up), "outer"), sink, deadline=3, grace=9)
    assert (results.outcome, results.duration_ms) == ("timeout", 8000)
    assert results["work"].children[0].abandoned == ()


def test_child_of_a_run_whose_coroutine_is_closed_is_recorded(sink: MemoryEventSink) -> None:
    graph = recorded(one(one(returning(None, after=60)), "outer"), sink)
    loop = asyncio.new_event_loop()
    task = loop.create_task(graph.run())
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    # The loop is dropped with its tasks, as if the process gave up on it.
    loop.set_exception_handler(lambda loop, context: None)
    task.get_coro().close()  # type: ignore[union-attr]
    assert outcomes(sink, "child") == outcomes(sink, "outer") == ["cancelled"]
    check_all_records(sink)
    for each in asyncio.all_tasks(loop):
        each.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    gc.collect()


async def test_interrupt_in_a_child_ends_all_runs_with_their_records(sink: MemoryEventSink) -> None:
    async def exits(ctx: StageContext) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await recorded(one(one(exits), "outer"), sink).run()
    check_all_records(sink)
    assert outcomes(sink, "child") == outcomes(sink, "outer") == ["failed"]


def test_nested_pipeline_that_needs_the_permit_of_its_own_stage_fails(sink: MemoryEventSink) -> None:
    pipeline = one(one(seen, limit="gpu"), "outer", limit="gpu")
    results = run(pipeline, sink, limits=Limits(gpu=1))
    error = results["work"].exception
    assert isinstance(error, RunFailedError)
    assert isinstance(error.__cause__, LimitDeadlockError)


def test_max_concurrency_of_the_parent_does_not_apply_to_the_child(sink: MemoryEventSink) -> None:
    child = Pipeline("child").with_stage("a", returning({"a": 1}, 1)).with_stage("b", returning({"b": 1}, 1))
    pipeline = Pipeline("outer").with_stage("one", child).with_stage("two", returning({}, 1))
    results = run(pipeline, sink, max_concurrency=1)
    assert results.duration_ms == 2000


# ---------------------------------------------------------------- loops


async def counts(ctx: StageContext) -> dict[str, Any]:
    return {"n": ctx.run.data.get("n", 0) + 1, "kept": ctx.run.data.get("kept")}


def reaches(n: int) -> Callable[[PipelineResults], bool]:
    return lambda results: results.data("work")["n"] >= n


def test_loop_repeats_the_pipeline_until_the_condition_is_true(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("outer")
        .with_stage("before", returning({"n": 2}))
        .with_loop(
            "loop", one(counts), dependencies=("before",), until=reaches(5), max_iterations=3, timeout=9
        )
    )
    results = run(pipeline, sink, {"n": 100, "kept": "yes"})
    assert results.data("loop") == {"n": 5, "kept": "yes"}
    assert [child.data("work")["n"] for child in results["loop"].children] == [3, 4, 5]
    assert stage_wide(sink.events, "loop")["child_runs"] == [id_of(run) for run in results["loop"].children]
    assert outcomes(sink, "child") == ["ok"] * 3


async def test_iterations_keep_the_data_of_the_run_that_they_do_not_return() -> None:
    async def work(ctx: StageContext) -> dict[str, Any]:
        return {"n": ctx.run.data.get("n", 0) + ctx.run.data["step"]}

    pipeline = Pipeline("outer").with_loop("loop", one(work), until=reaches(6), max_iterations=3)
    assert (await pipeline.run(PipelineContext(data={"step": 2}))).data("loop") == {"n": 6}


async def test_condition_of_a_loop_can_be_asynchronous() -> None:
    async def until(results: PipelineResults) -> bool:
        await asyncio.sleep(0)
        return results.data("work")["n"] == 2

    results = await Pipeline("outer").with_loop("loop", one(counts), until=until, max_iterations=9).run()
    assert results.data("loop")["n"] == 2


@pytest.mark.parametrize(
    ("data", "returned", "expected"),
    [
        ("a", lambda data: data + "b", ["a", "ab", "abb"]),
        (3, lambda data: {"n": 1}, [3, {"value": 3, "n": 1}, {"value": 3, "n": 1}]),
        (None, lambda data: {"n": 1}, [None, {"value": None, "n": 1}, {"value": None, "n": 1}]),
        ({"m": 1}, lambda data: 5, [{"m": 1}, {"m": 1, "value": 5}, {"m": 1, "value": 5}]),
        (Question("why?", 7), lambda data: {"a": 1}, [Question("why?", 7), *[{"text": "why?", "a": 1}] * 2]),
    ],
)
async def test_no_data_of_a_loop_is_lost(
    data: Any, returned: Callable[[Any], Any], expected: list[Any]
) -> None:
    received = []

    async def work(ctx: StageContext) -> Any:
        received.append(ctx.run.data)
        return returned(ctx.run.data)

    def until(results: PipelineResults) -> bool:
        return len(received) == 3

    pipeline = Pipeline("outer").with_loop("loop", one(work), until=until, max_iterations=3)
    results = await pipeline.run(PipelineContext(data=data))
    assert received == expected
    assert results["loop"].value == returned(received[-1])


@pytest.mark.parametrize("most", [1, 3])
def test_loop_that_reaches_its_maximum_fails_and_is_not_retried(sink: MemoryEventSink, most: int) -> None:
    pipeline = Pipeline("outer").with_loop(
        "loop", one(counts), until=lambda results: False, max_iterations=most, retry=Retry(attempts=3)
    )
    results = run(pipeline, sink)
    error = results["loop"].exception
    assert isinstance(error, LoopLimitError)
    assert (error.pipeline, error.stage, error.run_id) == ("outer", "loop", id_of(results))
    assert error.results is results["loop"].children[-1]
    assert f"after {most} iteration{'s' if most > 1 else ''} of pipeline 'child'" in error.message
    assert (results["loop"].attempts, outcomes(sink, "child")) == (1, ["ok"] * most)
    assert stage_wide(sink.events, "loop")["error_type"] == "LoopLimitError"


def test_failed_iteration_fails_the_loop_and_a_retry_starts_over(sink: MemoryEventSink) -> None:
    calls = iter(range(10))

    async def work(ctx: StageContext) -> dict[str, Any]:
        if next(calls) == 1:
            raise ValueError("second call")
        return await counts(ctx)

    pipeline = Pipeline("outer").with_loop(
        "loop", one(work), until=reaches(2), max_iterations=2, retry=Retry(attempts=2, wait=Fixed(1))
    )
    results = run(pipeline, sink)
    assert (results["loop"].status, results["loop"].attempts) == (OK, 2)
    assert outcomes(sink, "child") == ["ok", "failed", "ok", "ok"]
    listed = [event["child_runs"] for event in of_type(sink.events, "stage.wide") if event["child_runs"]]
    assert [len(each) for each in listed] == [2, 2]


@pytest.mark.parametrize("is_async", [False, True])
def test_error_in_the_condition_fails_the_loop(sink: MemoryEventSink, is_async: bool) -> None:
    def until(results: PipelineResults) -> bool:
        raise KeyError("typo")

    async def until_async(results: PipelineResults) -> bool:
        raise KeyError("typo")

    pipeline = Pipeline("outer").with_loop(
        "loop", one(counts), until=until_async if is_async else until, max_iterations=9
    )
    results = run(pipeline, sink)
    assert isinstance(results["loop"].exception, KeyError)
    assert len(results["loop"].children) == 1


def test_stop_in_an_iteration_ends_the_loop(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> Any:
        n = ctx.run.data.get("n", 0) + 1
        return StageOutput.stop("done", answer=n) if n == 3 else {"n": n}

    def until(results: PipelineResults) -> bool:
        assert results.outcome != "stopped"
        return False

    pipeline = Pipeline("outer").with_loop("loop", one(work), until=until, max_iterations=9)
    results = run(pipeline, sink)
    assert (results["loop"].status, results.data("loop")) == (OK, {"answer": 3})
    assert outcomes(sink, "child") == ["ok", "ok", "stopped"]


def test_timeout_cancels_the_current_iteration(sink: MemoryEventSink) -> None:
    async def slow(ctx: StageContext) -> dict[str, Any]:
        await asyncio.sleep(2)
        return {}

    pipeline = Pipeline("outer").with_loop(
        "loop", one(slow), until=lambda results: False, max_iterations=99, timeout=5
    )
    results = run(pipeline, sink)
    assert isinstance(results["loop"].exception, StageTimeoutError)
    assert outcomes(sink, "child") == ["ok", "ok", "cancelled"]
    assert len(results["loop"].children) == 3


async def test_loops_can_be_nested(sink: MemoryEventSink) -> None:
    inner = Pipeline("inner").with_loop("work", one(counts), until=reaches(2), max_iterations=2)
    calls = iter([False, True])
    outer = Pipeline("outer").with_loop("loop", inner, until=lambda results: next(calls), max_iterations=2)
    results = await recorded(outer, sink).run()
    check_all_records(sink)
    assert [len(child["work"].children) for child in results["loop"].children] == [2, 1]
    assert results.data("loop")["n"] == 3  # the second iteration starts with the output of the first


async def test_loop_of_1500_iterations_keeps_and_lists_the_first_999_and_the_last(
    sink: MemoryEventSink,
) -> None:
    pipeline = Pipeline("outer").with_loop("loop", one(counts), until=reaches(1500), max_iterations=1500)
    results = await pipeline.build(
        emit_stage_wide_events=True, wide_event_emitter=WideEventEmitter(sink)
    ).run()
    assert [child.data("work")["n"] for child in results["loop"].children] == [*range(1, 1000), 1500]
    event = stage_wide([each for each in sink.events if (each[1] or {})["stage_name"] == "loop"], "loop")
    assert event["child_runs"] == [id_of(child) for child in results["loop"].children]
    assert (event["child_runs_total"], event["truncated"]) == (1500, ["child_runs"])


# ---------------------------------------------------------------- the critical path


def test_critical_path_continues_into_child_runs(sink: MemoryEventSink) -> None:
    inner = (
        Pipeline("inner")
        .with_stage("search", returning({"hits": 1}, 2))
        .with_stage("short", returning({"s": 1}, 1))
        .with_stage("rank", returning({"best": 1}, 1), dependencies=("search",))
    )
    middle = Pipeline("middle").with_stage("nested", inner).with_stage("quick", returning({"q": 1}, 1))
    pipeline = (
        Pipeline("outer")
        .with_stage("before", returning({}, 1))
        .with_stage("research", middle, dependencies=("before",))
        .with_stage("after", returning({}, 1), dependencies=("research",))
    )
    results = run(pipeline, sink)
    event = of_type(of_run(sink, id_of(results)), "pipeline.wide")[0]
    assert event["critical_path"] == [
        "before",
        "research",
        "research/nested",
        "research/nested/search",
        "research/nested/rank",
        "after",
    ]
    assert event["critical_path_ms"] == results.duration_ms == 5000


def test_critical_path_continues_into_the_last_iteration(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> dict[str, Any]:
        await asyncio.sleep(3 - ctx.run.data.get("n", 0))
        return {"n": ctx.run.data.get("n", 0) + 1}

    async def then(ctx: StageContext, n: int) -> dict[str, Any]:
        await asyncio.sleep(1)
        return {"n": n}

    step = one(work).with_stage("then", then, dependencies=("work",))
    pipeline = Pipeline("outer").with_loop("loop", step, until=reaches(2), max_iterations=2)
    results = run(pipeline, sink)
    event = of_type(of_run(sink, id_of(results)), "pipeline.wide")[0]
    assert event["critical_path"] == ["loop", "loop/work", "loop/then"]
    assert event["critical_path_ms"] == results.duration_ms == 7000


# ---------------------------------------------------------------- validation and descriptions


def test_problems_of_nested_pipelines_are_reported_with_the_name_of_the_stage() -> None:
    inner = Pipeline("inner").with_stage("a", seen, dependencies=("b",))
    middle = Pipeline("middle").with_stage("deep", inner).with_stage("c", seen, limit="gpu")
    unknown = "stage 'a': unknown dependency 'b'"
    with pytest.raises(PipelineValidationError) as caught:
        Pipeline("outer").with_stage("nested", middle).with_stage("empty", Pipeline("none")).build()
    assert caught.value.problems == (
        "stage 'nested': pipeline 'middle': stage 'c': unknown limit 'gpu'; build() has none",
        f"stage 'nested': pipeline 'middle': stage 'deep': pipeline 'inner': {unknown}",
        "stage 'empty': pipeline 'none': the pipeline has no stages; add one with .with_stage(name, runner)",
    )


def test_problems_of_options_are_reported_once() -> None:
    with pytest.raises(PipelineValidationError) as caught:
        one(one(seen), "outer").build(
            grace=-1,
            limits={"gpu": 1},  # type: ignore[arg-type]
            wide_event_emitter="no",  # type: ignore[arg-type]
        )
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_iterations": 0}, "max_iterations must be a positive integer, got 0"),
        ({"max_iterations": True}, "max_iterations must be a positive integer, got True"),
        ({"max_iterations": 2.5}, "max_iterations must be a positive integer, got 2.5"),
        ({"until": lambda: True}, "until must be a function that takes the results of an iteration"),
        ({"until": "never"}, "until must be a function that takes the results of an iteration"),
        ({"kind": StageKind.ROUTE}, "a stage that runs a pipeline cannot have kind ROUTE"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
    ],
)
def test_invalid_options_of_a_loop_are_reported(options: dict[str, Any], problem: str) -> None:
    given = {"until": lambda results: True, "max_iterations": 3, **options}
    with pytest.raises(PipelineValidationError) as caught:
        Pipeline("outer").with_loop("loop", one(seen), **given).build()
    (found,) = caught.value.problems
    assert found.startswith(f"stage 'loop': {problem}")


def test_loop_over_a_function_is_an_error_with_a_hint() -> None:
    with pytest.raises(InvalidArgumentError, match="with_loop\\(\\): pipeline must be a Pipeline") as caught:
        Pipeline("outer").with_loop("loop", seen, until=bool, max_iterations=3)  # type: ignore[arg-type]
    assert 'Pipeline("step").with_stage("step", function)' in str(caught.value)


def test_nested_pipeline_inherits_the_limits_of_build() -> None:
    limits = Limits(gpu=1)
    pipeline = (
        Pipeline("outer")
        .with_stage("one", one(returning({"a": 1}, 1), limit="gpu"))
        .with_stage("two", one(returning({"a": 1}, 1), limit="gpu"))
    )
    results = VirtualClock().run(pipeline.build(limits=limits).run())
    assert (results.outcome, results.duration_ms) == ("ok", 2000)


@pytest.mark.parametrize("flag", ["emit_stage_wide_events", "emit_pipeline_wide_event"])
async def test_nested_pipeline_emits_what_its_parent_emits(sink: MemoryEventSink, flag: str) -> None:
    flags = {"emit_stage_wide_events": True, "emit_pipeline_wide_event": True, flag: False}
    await one(one(seen), "outer").build(wide_event_emitter=WideEventEmitter(sink), **flags).run()
    types = [type for type, _ in sink.events]
    assert types == ["pipeline.wide" if flag == "emit_stage_wide_events" else "stage.wide"] * 2


def test_descriptions_show_nested_pipelines_and_loops() -> None:
    pipeline = (
        Pipeline("outer")
        .with_stage("research", one(seen), timeout=5)
        .with_loop(
            "agent", one(seen).build(), dependencies=("research",), until=lambda r: True, max_iterations=8
        )
    )
    text = pipeline.build().describe()
    assert "pipeline=child timeout=5s" in text
    assert "loop=child max_iterations=8" in text
    assert '"research<br/>pipeline=child<br/>timeout=5s"' in pipeline.to_mermaid()
    assert r"agent\nloop=child\nmax_iterations=8" in pipeline.to_dot()


async def test_nested_pipeline_can_be_tested_as_a_single_stage() -> None:
    result = await run_stage(one(seen), {"search": {"hits": 3}}, data={"q": 1}, name="nested")
    assert result.data == {"seen": {"q": 1, "hits": 3}}


# ---------------------------------------------------------------- the journal and the command line

CRASHES = """
    import asyncio, os, sys, time
    from stageflow import *
    from stageflow.observability import WideEventEmitter

    async def quick(ctx): return {"n": ctx.run.data.get("n", 0) + 1}

    async def dies(ctx):
        if ctx.run.data["n"] == 2:
            print("ready", flush=True)
            await asyncio.sleep(600)
        return {"n": ctx.run.data["n"]}

    step = (
        Pipeline("step").with_stage("quick", quick).with_stage("dies", dies, dependencies=("quick",))
        .with_stage("after", quick, dependencies=("dies",))
    )
    outer = Pipeline("outer").with_stage("before", lambda ctx: {"n": 0}).with_loop(
        "loop", step, dependencies=("before",), until=lambda results: False, max_iterations=5
    )
    step2 = outer.build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])),
    )
    asyncio.run(step2.run(PipelineContext(pipeline_run_id="outer", data={"n": 0})))
"""


def test_records_of_a_run_and_its_children_are_completed_after_a_crash(program: Start) -> None:
    crashing = program(CRASHES.replace('ctx.run.data["n"] == 2', 'ctx.run.data["n"] == 1'))
    crashing.wait_for("ready")
    crashing.process.send_signal(signal.SIGKILL)
    crashing.ended()
    story = Journal(crashing.journal).run("outer")
    assert story.run["outcome"] == "crashed"
    assert [child["outcome"] for child in story.children] == ["ok", "crashed"]
    assert {child["parent_run_id"] for child in story.children} == {"outer"}
    # The start marks of the children, written before any heartbeat, identify the attempt that started them.
    loop = next(stage for stage in story.stages if stage["stage_name"] == "loop")
    assert loop["child_runs"] == [child["event_id"] for child in story.children]
    assert (loop["child_runs_total"], loop["attempt"], loop["attempts"]) == (2, 1, 1)
    assert loop["reason"] == "process died during attempt 1"
    assert {child["trace"]["parent_span_id"] for child in story.children} == {loop["trace"]["span_id"]}
    shown = CliRunner().invoke(app, ["show", "outer", "--journal", crashing.journal], env={"COLUMNS": "100"})
    assert "iteration 2" in shown.stdout
    for run in (story.run, *story.children):
        of_this = Journal(crashing.journal).run(run["event_id"])
        events = [("stage.wide", stage) for stage in of_this.stages]
        names = [summary["stage_name"] for summary in run["stage_summaries"]]
        check_record([*events, ("pipeline.wide", of_this.run)], names)


def test_show_draws_the_iterations_of_a_running_loop(program: Start) -> None:
    running = program(CRASHES.replace('ctx.run.data["n"] == 2', 'ctx.run.data["n"] == 1'))
    running.wait_for("ready")
    shown = CliRunner().invoke(app, ["show", "outer", "--journal", running.journal], env={"COLUMNS": "100"})
    assert shown.exit_code == 0, shown.output
    rows = [" ".join(line.split()[:3]) for line in shown.stdout.splitlines()]
    assert [row for row in rows if row.startswith("iteration")] == ["iteration 1 ok", "iteration 2 open"]


def test_show_numbers_the_last_of_more_than_1000_iterations() -> None:
    stage = {"child_runs": [str(number) for number in range(1000)], "child_runs_total": 4321}
    assert shown_child_runs(stage) == [(1, "0"), (2, "1"), (3, "2"), (4321, "999")]


@pytest.fixture
def journal(tmp_path: Any) -> Journal:
    """A journal with a run that has a nested pipeline of three levels, and a loop of seven iterations."""

    async def main() -> None:
        sink = JournalSink(tmp_path / "journal")
        inner = one(returning({"deep": 1}), "inner")
        middle = Pipeline("middle").with_stage("deeper", inner)
        pipeline = (
            Pipeline("outer")
            .with_stage("research", Pipeline("child").with_stage("deep", middle))
            .with_loop(
                "agent", one(counts, "step"), dependencies=("research",), until=reaches(7), max_iterations=7
            )
        )
        await recorded(pipeline, sink).run(PipelineContext(pipeline_run_id="outer"))  # type: ignore[arg-type]
        sink.close()

    asyncio.run(main())
    return Journal(tmp_path / "journal")


ROWS = [
    "* research OK",
    "* deep OK",
    "* deeper OK",
    "* work OK",
    "* agent OK",
    "iteration 1 ok",
    "work OK",
    "iteration 2 ok",
    "work OK",
    "iteration 3 ok",
    "work OK",
    "... 3 more",
    "iteration 7 ok",
    "* work OK",
]


@pytest.mark.parametrize(("width", "ascii_only"), [("80", False), ("80", True), ("200", False), ("50", True)])
def test_show_draws_the_stages_of_child_runs_below_their_stage(
    journal: Journal, width: str, ascii_only: bool
) -> None:
    charset = "ascii" if ascii_only else "utf-8"
    done = CliRunner(charset=charset).invoke(
        app, ["show", "outer", "--journal", journal.path], env={"COLUMNS": width}
    )
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("* research"))
    table = [" ".join(line.replace("|", " ").split()) for line in lines[start : start + len(ROWS)]]
    for line, row in zip(table, ROWS, strict=True):
        assert line.startswith(row), (line, row)
    indents = [len(line) - len(line.lstrip("* ")) for line in lines[start : start + 4]]
    assert indents == [2, 4, 6, 8]
    _, _, listed = done.stdout.partition("child runs")
    assert (listed.count(" child "), listed.count(" step ")) == (1, 4)  # not the omitted iterations


def test_show_lists_child_runs_of_all_attempts(tmp_path: Any) -> None:
    async def main() -> None:
        sink = JournalSink(tmp_path / "journal")
        calls = iter([ValueError("first"), None])

        async def flaky(ctx: StageContext) -> None:
            if error := next(calls):
                raise error

        pipeline = Pipeline("outer").with_stage("nested", one(flaky), retry=Retry(attempts=2, wait=Fixed(0)))
        await recorded(pipeline, sink).run(PipelineContext(pipeline_run_id="outer"))  # type: ignore[arg-type]
        sink.close()

    asyncio.run(main())
    done = CliRunner().invoke(app, ["show", "outer", "--journal", str(tmp_path / "journal")])
    _, _, listed = done.stdout.partition("child runs")
    assert (listed.count("  failed  "), listed.count("  ok  ")) == (1, 1)


def test_concurrent_child_runs_are_named_after_their_pipeline(journal: Journal) -> None:
    story = journal.run("outer")
    children = {child["event_id"]: journal.run(child["event_id"]) for child in story.children}
    agent = next(stage for stage in story.stages if stage["stage_name"] == "agent")
    nested = {run_id: (child.run, child.stages) for run_id, child in children.items()}
    for run, _ in nested.values():
        run["started_at"] = story.run["started_at"]
    file = io.StringIO()
    Console(file=file, width=100).print(draw_run(story.run, story.stages, nested=nested))
    assert "step 1" in file.getvalue()
    assert f"step {len(agent['child_runs'])}" in file.getvalue()


def test_newest_run_and_list_of_roots_omit_child_runs(journal: Journal) -> None:
    assert journal.run("last").run["event_id"] == "outer"
    done = CliRunner().invoke(app, ["runs", "--roots", "--json", "--journal", journal.path])
    assert done.stdout.count("\n") == 1
    assert '"event_id":"outer"' in done.stdout


# ---------------------------------------------------------------- flows


async def test_flow_contains_pipelines_and_loops() -> None:
    def question() -> dict[str, int]:
        return {"n": 5}

    def double(output: dict[str, Any]) -> int:
        return 2 * int(output["n"])

    flow = Flow("outer")
    start = flow.add(question)
    nested = flow.add(one(counts), dependencies=(start,))
    loop = flow.loop(
        one(counts).build(), until=reaches(9), max_iterations=9, dependencies=(nested,), name="loop"
    )
    doubled = flow.add(double, loop)
    results = await flow.run()
    assert (results.value(nested)["n"], results.value(loop)["n"], results.value(doubled)) == (6, 9, 18)
    assert "loop=child max_iterations=9" in flow.build().describe()


def test_mistakes_in_flows_with_pipelines_are_errors() -> None:
    flow = Flow("outer")
    start = flow.add(returning(1), name="start")
    with pytest.raises(InvalidArgumentError, match="a pipeline takes no inputs, got 1"):
        flow.add(one(seen), start)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="pipeline must be a Pipeline or a StageGraph"):
        flow.loop(counts, until=reaches(1), max_iterations=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="unknown option 'retries'; did you mean 'retry'"):
        flow.add(one(seen), retries=3)  # type: ignore[call-overload]


# ------------------------------------------------------------ late child runs, and stops


async def returns_one(ctx: StageContext) -> dict[str, int]:
    return {"answer": 1}


async def test_cancelled_loop_starts_no_further_iteration() -> None:
    iterations = []

    async def step(ctx: StageContext) -> None:
        iterations.append(1)

    async def ignores_cancellation(results: PipelineResults) -> bool:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            pass
        return False

    child = Pipeline("child").with_stage("step", step)
    pipeline = Pipeline("p").with_loop(
        "loop", child, until=ignores_cancellation, max_iterations=5, timeout=0.02
    )
    results = await pipeline.build(grace=1).run()
    assert results["loop"].status is StageStatus.FAIL
    assert not results["loop"].abandoned
    assert len(iterations) == 1


async def test_data_of_a_stop_replaces_that_of_the_last_stages() -> None:
    async def stops(ctx: StageContext) -> StageOutput:
        await asyncio.sleep(0.01)
        return StageOutput.stop("enough", answer=2)

    child = Pipeline("child").with_stage("fast", returns_one).with_stage("guard", stops)
    results = await Pipeline("p").with_stage("nested", child).run()
    assert results["nested"].ok, results["nested"].error
    assert results.data("nested") == {"answer": 2}


async def test_child_run_is_listed_once_beside_runs_of_an_interceptor() -> None:
    other = Pipeline("other").with_stage("s", returns_one).build()

    async def runs_another(call: Any, proceed: Any) -> Any:
        task = asyncio.create_task(other.run())
        output = await proceed()
        await task
        return output

    async def slow(ctx: StageContext) -> None:
        await asyncio.sleep(0.01)

    child = Pipeline("child").with_stage("slow", slow)
    results = await Pipeline("p").with_stage("nested", child, interceptors=(runs_another,)).run()
    ids = [run.run_id for run in results["nested"].child_runs]
    assert len(ids) == len(set(ids)) == 2
