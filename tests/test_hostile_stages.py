"""Stages that return or raise objects whose operations raise: each is a failure of that stage alone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from oracle import check_record

from stageflow import (
    Limits,
    Pipeline,
    PipelineResults,
    Retry,
    StageContext,
    StageflowError,
    StageKind,
    StageOutput,
    StageStatus,
)
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.pipeline import Proceed, StageCall
from stageflow.pipeline._run_state import RunState
from stageflow.pipeline._scheduler import Scheduler

OPERATIONS = (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__len__", "__bool__"),
    *("__str__", "__repr__", "__format__", "__iter__", "__getitem__", "__contains__", "__setattr__"),
    *(
        "__delattr__",
        "__reduce_ex__",
        "__await__",
        "__call__",
        "__int__",
        "__float__",
        "__index__",
        "__add__",
    ),
    *("__radd__", "__mul__", "__rmul__", "keys", "items", "values", "copy", "with_traceback", "strip"),
)
ATTRIBUTES = ("__class__", "__dict__", "__cause__", "__context__", "__traceback__", "__notes__", "args")


class Refused(Exception):
    """Raised by every operation of a hostile object."""


def hostile(base: type, *arguments: Any) -> Any:
    """Return an instance of a subclass of `base` whose every operation and attribute raises."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise Refused

    members = dict.fromkeys(OPERATIONS, refuse) | dict.fromkeys(ATTRIBUTES, property(refuse, refuse))
    return base.__new__(type("Hostile", (base,), members), *arguments)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Does not allow `error.__traceback__ = ...`."""

    key: str


@dataclasses.dataclass
class WithoutInit(StageflowError):
    """Its generated `__init__` does not call that of its base."""

    code: int


def frozen() -> Any:
    raise Frozen("k")


def without_init() -> Any:
    raise WithoutInit(3)


def hostile_error() -> Any:
    raise hostile(ValueError)


def hostile_cause() -> Any:
    raise ValueError("no") from hostile(Exception)


def hostile_group() -> Any:
    raise hostile(ExceptionGroup, "several", [hostile(ValueError)])


def hostile_value() -> Any:
    return hostile(object)


def hostile_mapping() -> Any:
    return hostile(dict)


def hostile_text() -> Any:
    return StageOutput(StageStatus.FAIL, {}, error=hostile(str, "no"))


def hostile_reason() -> Any:
    return StageOutput(StageStatus.FAIL, {}, error="no", reason=hostile(str, "because"))


def hostile_delay() -> Any:
    return StageOutput(StageStatus.RETRY, {}, error="no", after=hostile(float, 0.0))


def hostile_data() -> Any:
    return StageOutput(StageStatus.OK, hostile(dict))


def hostile_exception() -> Any:
    return StageOutput.fail(hostile(ValueError))


def hostile_field() -> Any:
    return StageOutput(StageStatus.OK, {}, error=hostile(object))


BAD = [
    *(frozen, without_init, hostile_error, hostile_cause, hostile_group, hostile_value, hostile_mapping),
    *(hostile_text, hostile_reason, hostile_delay, hostile_data, hostile_exception, hostile_field),
]


async def passes(call: StageCall, proceed: Proceed) -> StageOutput:
    return await proceed()


def as_stage(make: Callable[[], Any], how: str) -> Any:
    async def at_once(ctx: StageContext) -> Any:
        return make()

    async def after_a_wait(ctx: StageContext) -> Any:
        await asyncio.sleep(0)
        return make()

    def in_a_thread(ctx: StageContext) -> Any:
        return make()

    return {"after a wait": after_a_wait, "in a thread": in_a_thread}.get(how, at_once)


async def run_beside(sink: MemoryEventSink, stage: Any, on_failure: Any, **options: Any) -> PipelineResults:
    """Run a stage named "bad" beside a stage that waits until the bad one has ended, or is cancelled."""
    ended: list[str] = []

    async def beside(ctx: StageContext) -> None:
        try:
            await asyncio.sleep(0.01)
            ended.append("completed")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    pipeline = (
        Pipeline("p")
        .with_stage("beside", beside)
        .with_stage("bad", stage, **options)
        .with_stage("after", beside, dependencies=("bad",))
    )
    graph = pipeline.build(
        on_failure=on_failure,
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )
    results = await graph.run()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    check_record(sink.events, ["beside", "bad", "after"])
    started = [name for name in ("beside", "after") if results[name].attempts]
    assert len(ended) == len(started)  # none was left running
    return results


@pytest.mark.parametrize("how", ["at once", "after a wait", "in a thread", "intercepted"])
@pytest.mark.parametrize("bad", BAD)
async def test_hostile_object_fails_its_optional_stage_and_nothing_else(
    sink: MemoryEventSink, bad: Callable[[], Any], how: str
) -> None:
    results = await run_beside(
        sink,
        as_stage(bad, how),
        "continue",
        optional=True,
        interceptors=(passes,) if how == "intercepted" else (),
    )
    assert results.outcome == "degraded"
    assert (results["bad"].status, results["bad"].attempts) == (
        StageStatus.FAIL,
        3 if bad is hostile_delay else 1,
    )
    assert results["bad"].error
    assert (results["beside"].status, results["after"].status) == (StageStatus.OK, StageStatus.OK)


@pytest.mark.parametrize("bad", BAD)
async def test_hostile_object_fails_its_run_and_siblings_are_cancelled_and_awaited(
    sink: MemoryEventSink, bad: Callable[[], Any]
) -> None:
    results = await run_beside(sink, as_stage(bad, "at once"), "cancel")
    assert (results.outcome, results.first_failed_stage) == ("failed", "bad")
    assert (results["bad"].status, results["after"].attempts) == (StageStatus.FAIL, 0)
    assert "scheduler" not in str(results.error)


@pytest.mark.parametrize("bad", [frozen, without_init, hostile_error, hostile_cause, hostile_value])
async def test_hostile_object_is_retried_as_any_failure(
    sink: MemoryEventSink, bad: Callable[[], Any]
) -> None:
    retried = Retry(attempts=2, wait=0)
    results = await run_beside(sink, as_stage(bad, "at once"), "continue", retry=retried)
    assert (results["bad"].status, results["bad"].attempts) == (StageStatus.FAIL, 2)
    assert results["beside"].status is StageStatus.OK


async def test_hostile_reason_of_a_graceful_stop_stops_the_run(sink: MemoryEventSink) -> None:
    def stops() -> StageOutput:
        return StageOutput(StageStatus.CANCEL, {}, reason=hostile(str, "enough"))

    results = await run_beside(sink, as_stage(stops, "at once"), "cancel")
    assert (results.outcome, results.reason) == ("stopped", "stage 'bad': enough")


async def test_label_of_a_route_with_hostile_operations_fails_the_router() -> None:
    async def router(ctx: StageContext) -> StageOutput:
        return StageOutput.route(hostile(str, "left"))

    async def left(ctx: StageContext) -> None: ...

    pipeline = (
        Pipeline("p")
        .with_stage("router", router, StageKind.ROUTE, optional=True)
        .with_stage("left", left, dependencies=("router",), route="left")
    )
    results = await pipeline.run()
    assert results.outcome == "degraded"
    assert isinstance(results["router"].exception, Refused)


async def test_label_of_a_route_that_is_an_instance_of_a_subclass_of_str() -> None:
    class Label(str):
        def __repr__(self) -> str:
            raise Refused

    async def router(ctx: StageContext) -> StageOutput:
        return StageOutput.route(Label("left"))

    async def stage(ctx: StageContext) -> None: ...

    pipeline = (
        Pipeline("p")
        .with_stage("router", router, StageKind.ROUTE)
        .with_stage("left", stage, dependencies=("router",), route="left")
        .with_stage("right", stage, dependencies=("router",), route="right")
    )
    results = await pipeline.run()
    assert [result.status for result in results.values()] == ["OK", "OK", "SKIP"]


def test_output_of_a_stage_has_exact_types() -> None:
    class Text(str):
        pass

    async def stage(ctx: StageContext) -> StageOutput:
        return StageOutput(StageStatus.SKIP, {}, error=Text("error"), reason=Text("reason"))

    result = asyncio.run(Pipeline("p").with_stage("s", stage).run())["s"]
    assert (type(result.error), type(result.reason)) == (str, str)


# ---------------------------------------------------------------- an error of the engine itself

ENGINE = [
    *(
        (RunState, name)
        for name in ("take", "attempt_ended", "_apply_result", "_result", "permit_granted", "retry_due")
    ),
    *((RunState, name) for name in ("attempt_timed_out", "_release_dependents", "attempt_number")),
    *((Scheduler, name) for name in ("_execute", "_acquire_permits", "_start_worker", "_emit")),
    *((Scheduler, name) for name in ("_start_timeout", "_dispatch_soon", "_acquire_thread", "_scope")),
]


@pytest.mark.parametrize("at_call", range(4))
@pytest.mark.parametrize(("owner", "name"), ENGINE, ids=lambda value: getattr(value, "__name__", value))
async def test_error_of_the_engine_leaves_no_stage_running_and_no_permit_held(
    monkeypatch: pytest.MonkeyPatch, sink: MemoryEventSink, owner: Any, name: str, at_call: int
) -> None:
    original = getattr(owner, name)
    calls = 0

    def fails_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call + 1:
            raise Refused
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fails_once)
    called: set[str] = set()
    running: set[str] = set()
    limits = Limits(place=1)

    async def waits(ctx: StageContext) -> None:
        called.add(ctx.stage)
        running.add(ctx.stage)
        try:
            await asyncio.sleep(0.002)
        finally:
            running.discard(ctx.stage)
        if ctx.stage == "retried" and ctx.attempt == 1:
            raise ConnectionError

    async def quick(ctx: StageContext) -> None:
        called.add(ctx.stage)

    pipeline = (
        Pipeline("p")
        .with_stage("quick", quick)
        .with_stage("waits", waits, timeout=30, limit="place")
        .with_stage("retried", waits, dependencies=("quick",), retry=Retry(attempts=2, wait=0), limit="place")
        .with_stage("late", waits, timeout=0.001, optional=True)
        .with_stage("last", quick, dependencies=("retried", "waits"))
    )
    graph = pipeline.build(
        limits=limits,
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )
    async with asyncio.timeout(30):
        results = await graph.run()
    await asyncio.sleep(0)  # a worker that was created, and finds nothing to run
    check_record(sink.events, list(results))
    assert running == set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (limits["place"].taken, limits["place"].waiting) == (0, 0)
    assert {stage for stage in called if results[stage].attempts == 0} == set()
