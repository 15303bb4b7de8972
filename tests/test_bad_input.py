"""Invalid descriptions, which `build()` reports all at once, and values that JSON cannot represent.

Each `type: ignore` is for input that is invalid on purpose: a type checker and the library both reject it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from oracle import check_record, pipeline_wide, stage_wide

import stageflow
from stageflow import (
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    RunFailedError,
    StageContext,
    StageflowError,
    StageKind,
    StageOutput,
    StageStatus,
    errors,
)
from stageflow.errors import (
    DeadlineExceededError,
    InputError,
    InvalidArgumentError,
    PipelineValidationError,
    StageOutputError,
    StageTimeoutError,
)
from stageflow.events import MemoryEventSink, stats
from stageflow.observability import WideEventEmitter
from stageflow.testing import VirtualClock


async def quick(ctx: StageContext) -> None:
    return None


class Fine:
    async def execute(self, ctx: StageContext) -> None:
        return None


def problems(pipeline: Pipeline, **options: Any) -> tuple[str, ...]:
    """Return the problems that `build()` reports, and check the complete message."""
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build(**options)
    error = caught.value
    count = len(error.problems)
    lines = [f"  {number}. {problem}" for number, problem in enumerate(error.problems, 1)]
    head = f"pipeline {pipeline.name!r} cannot be built: {count} problem{'s' if count != 1 else ''}"
    assert str(error) == "\n".join([head.replace(repr(pipeline.name), repr(str(pipeline.name))), *lines])
    assert isinstance(error, ValueError)
    assert error.pipeline == str(pipeline.name)
    return error.problems


def problem(pipeline: Pipeline, **options: Any) -> str:
    (one,) = problems(pipeline, **options)
    return one


# ---------------------------------------------------------------- invalid descriptions


def test_empty_pipeline_is_reported() -> None:
    assert problem(Pipeline("p")) == "the pipeline has no stages; add one with .with_stage(name, runner)"


def test_duplicate_name_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick).with_stage("a", quick).with_stage("a", quick)
    assert problem(pipeline) == "stage 'a' is defined 3 times; names must be unique: rename all but one"


def test_unknown_dependency_is_reported_with_the_closest_match() -> None:
    pipeline = Pipeline("p").with_stage("search", quick).with_stage("b", quick, dependencies=("serch",))
    assert problem(pipeline) == ("stage 'b': unknown dependency 'serch'; did you mean 'search'?")


def test_unknown_dependency_without_a_close_match_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("search", quick).with_stage("b", quick, dependencies=("xyz",))
    assert problem(pipeline) == "stage 'b': unknown dependency 'xyz'"


def test_dependency_listed_twice_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick).with_stage("b", quick, dependencies=("a", "a"))
    assert problem(pipeline) == "stage 'b' lists the dependency 'a' 2 times"


def test_dependency_that_is_not_a_name_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", Fine).with_stage("b", Fine, dependencies=(3,))  # type: ignore[arg-type]
    assert problem(pipeline) == "stage 'b': dependencies must be stage names (str), got 3"


def test_dependency_that_is_not_hashable_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick, dependencies=(["b"],))  # type: ignore[arg-type]
    assert problem(pipeline) == "stage 'a': dependencies must be stage names (str), got ['b']"


def test_single_dependency_can_be_a_string() -> None:
    Pipeline("p").with_stage("ab", quick).with_stage("b", quick, dependencies="ab").build()


def test_cycle_is_reported_with_its_stages() -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("start", quick)
        .with_stage("a", quick, dependencies=("start", "c"))
        .with_stage("b", quick, dependencies=("a",))
        .with_stage("c", quick, dependencies=("b",))
        .with_stage("end", quick, dependencies=("c",))
    )
    assert problem(pipeline) in {
        f"dependency cycle: {drawn}; remove one of these edges"
        for drawn in (
            "'a' -> 'b' -> 'c' -> 'a'",
            "'b' -> 'c' -> 'a' -> 'b'",
            "'c' -> 'a' -> 'b' -> 'c'",
        )
    }


def test_stage_that_depends_on_itself_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick, dependencies=("a",))
    assert problem(pipeline) == "stage 'a' depends on itself; remove this dependency"


def test_long_cycle_is_reported_without_recursion() -> None:
    pipeline = Pipeline("p")
    for number in range(2000):
        pipeline = pipeline.with_stage(f"s{number}", quick, dependencies=(f"s{(number + 1) % 2000}",))
    assert problem(pipeline).startswith("dependency cycle: ")


class NoExecute:
    pass


def test_class_without_execute_is_reported() -> None:
    assert problem(Pipeline("p").with_stage("a", NoExecute)) == (
        "stage 'a': class NoExecute has no method `execute(ctx)`"
    )


@pytest.mark.parametrize(
    "runner", [None, 42, "quick", {"execute": quick}], ids=["none", "number", "text", "mapping"]
)
def test_object_without_execute_is_reported(runner: Any) -> None:
    assert problem(Pipeline("p").with_stage("a", runner)) == (
        f"stage 'a': {runner!r} is not a function and has no method `execute(ctx)`; "
        "pass a class, an instance or a function"
    ).replace(repr({"execute": quick}), repr({"execute": quick})[:80])


def test_execute_that_is_not_callable_is_reported() -> None:
    class Odd:
        execute = 3

    assert problem(Pipeline("p").with_stage("a", Odd)) == (
        "stage 'a': class Odd has no method `execute(ctx)`"
    )


class NeedsClient:
    def __init__(self, client: Any) -> None:
        self.client = client

    async def execute(self, ctx: StageContext) -> None:
        return None


def test_class_that_requires_arguments_is_reported() -> None:
    assert problem(Pipeline("p").with_stage("a", NeedsClient)) == (
        "stage 'a': class NeedsClient cannot be instantiated without arguments "
        "(missing a required argument: 'client'); pass an instance"
    )
    Pipeline("p").with_stage("a", NeedsClient(client=None)).build()


def test_abstract_class_is_reported() -> None:
    class Abstract(ABC):
        @abstractmethod
        async def execute(self, ctx: StageContext) -> None: ...

    assert problem(Pipeline("p").with_stage("a", Abstract)) == (
        "stage 'a': class Abstract is abstract; pass a concrete class"
    )


def test_execute_without_a_parameter_for_the_context_is_reported() -> None:
    class Forgot:
        async def execute(self) -> None:
            return None

    def nothing() -> None:
        return None

    shown = f"{Forgot.__qualname__}.execute"
    wrong = (
        "cannot be called with the context as its only positional argument; "
        "write `execute(self, ctx)`, or a function that takes `ctx` (other parameters are passed by name)"
    )
    assert problem(Pipeline("p").with_stage("a", Forgot)) == f"stage 'a': {shown} {wrong}"
    assert problem(Pipeline("p").with_stage("a", Forgot())) == f"stage 'a': {shown} {wrong}"
    assert problem(Pipeline("p").with_stage("a", nothing)) == f"stage 'a': {nothing.__qualname__} {wrong}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "must not be empty"),
        ("  ", "must not be empty"),
        ("a/b", "contains a '/', which separates the parts of an event id; use '.' or '_'"),
        ("a\nb", "contains a character that is not printable"),
        ("a\ud800b", "contains a character that is not printable"),
        ("x" * 201, "has 201 characters; the maximum is 200"),
        (None, "must be a str, got None"),
        (7, "must be a str, got 7"),
        (["a"], "must be a str, got ['a']"),
    ],
)
def test_invalid_name_is_reported(name: Any, reason: str) -> None:
    assert problem(Pipeline("p").with_stage(name, quick)) == f"stage {name!r}: the name {reason}"
    assert problem(Pipeline(name).with_stage("a", quick)) == f"the pipeline name {reason}"


@pytest.mark.parametrize("name", ["a", "ä", "two words", "dotted.name", "x" * 200, "日本", "a:b"])
def test_valid_name_is_accepted(name: str) -> None:
    Pipeline(name).with_stage(name, quick).build()


def test_invalid_kind_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick, "transform")  # type: ignore[arg-type]
    assert problem(pipeline) == (
        "stage 'a': kind must be a StageKind, got 'transform'; "
        "use one of TRANSFORM, ENRICH, ROUTE, GUARD, WORK, AGENT"
    )


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, "5", True])
def test_invalid_timeout_is_reported(timeout: Any) -> None:
    assert problem(Pipeline("p").with_stage("a", quick, timeout=timeout)) == (
        f"stage 'a': timeout must be more than 0 seconds, got {timeout!r}"
    )


def test_invalid_retry_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick, retry=3)  # type: ignore[arg-type]
    assert problem(pipeline) == "stage 'a': retry must be a policy such as Retry(attempts=3), got 3"


def test_condition_that_is_not_callable_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick, when=True)  # type: ignore[arg-type]
    assert problem(pipeline) == "stage 'a': when must be a function that takes the stage's context, got True"


def test_route_without_a_router_is_reported() -> None:
    pipeline = Pipeline("p").with_stage("a", quick).with_stage("b", quick, dependencies=("a",), route="left")
    assert problem(pipeline) == "stage 'b': route='left', but none of its dependencies has kind ROUTE"


def test_all_problems_are_reported_at_once() -> None:
    pipeline = (
        Pipeline("my/pipeline")
        .with_stage("twice", quick)
        .with_stage("twice", quick)
        .with_stage("", quick)
        .with_stage("lost", quick, dependencies=("twise",))
        .with_stage("none", None)
        .with_stage("client", NeedsClient)
        .with_stage("x", quick, dependencies=("y",))
        .with_stage("y", quick, dependencies=("x",))
    )
    found = problems(pipeline, on_failure="stop", max_concurrency=0, grace=-1, wide_event_emitter=print)
    separates = "which separates the parts of an event id; use '.' or '_'"
    fit = "pass a class, an instance or a function"
    missing = "(missing a required argument: 'client'); pass an instance"
    assert found == (
        f"the pipeline name contains a '/', {separates}",
        "stage 'twice' is defined 2 times; names must be unique: rename all but one",
        "stage '': the name must not be empty",
        "stage 'lost': unknown dependency 'twise'; did you mean 'twice'?",
        f"stage 'none': None is not a function and has no method `execute(ctx)`; {fit}",
        f"stage 'client': class NeedsClient cannot be instantiated without arguments {missing}",
        found[6],
        "wide_event_emitter must be an instance of WideEventEmitter, got <built-in function print>",
        'on_failure must be "cancel" or "continue", got \'stop\'',
        "max_concurrency must be a positive integer, got 0",
        "grace must be 0 or more seconds, got -1",
    )
    assert found[6] in {
        f"dependency cycle: {drawn}; remove one of these edges"
        for drawn in ("'x' -> 'y' -> 'x'", "'y' -> 'x' -> 'y'")
    }


def test_build_instantiates_no_stage() -> None:
    made: list[str] = []

    class Made:
        def __init__(self) -> None:
            made.append("made")

        async def execute(self, ctx: StageContext) -> None:
            return None

    pipeline = Pipeline("p").with_stage("a", Made)
    pipeline.build()
    problems(pipeline.with_stage("b", None))
    assert made == []


def test_emitter_with_coroutine_functions_is_reported() -> None:
    class Waits(WideEventEmitter):
        async def emit_stage_wide(self, *args: Any) -> None:  # type: ignore[override]
            return None

    assert problem(Pipeline("p").with_stage("a", quick), wide_event_emitter=Waits()) == (
        "Waits.emit_stage_wide is a coroutine function, but the engine does not await it; "
        "define it with `def`"
    )


def test_pipeline_is_immutable() -> None:
    one = Pipeline("p").with_stage("a", quick)
    two = one.with_stage("b", quick)
    assert [spec.name for spec in one.stages] == ["a"]
    assert [spec.name for spec in two.stages] == ["a", "b"]


# ---------------------------------------------------------------- invalid arguments


async def test_run_rejects_other_types_of_context() -> None:
    graph = Pipeline("p").with_stage("a", quick).build()
    with pytest.raises(TypeError) as caught:
        await graph.run({"user_id": "u"})  # type: ignore[arg-type]
    assert str(caught.value) == (
        "run(): ctx must be a PipelineContext, got {'user_id': 'u'} [pipeline 'p']\n"
        "  hint: write graph.run(PipelineContext(data={...}))"
    )


@pytest.mark.parametrize("deadline", [0, -1, math.inf, math.nan, "5"])
async def test_invalid_deadline_is_rejected(deadline: Any) -> None:
    graph = Pipeline("p").with_stage("a", quick).build()
    with pytest.raises(ValueError) as caught:
        await graph.run(deadline=deadline)
    assert str(caught.value) == (
        f"run(): deadline must be more than 0 seconds, got {deadline!r} [pipeline 'p']"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(Retry, attempts=0), "Retry: attempts must be a positive integer, got 0"),
        (functools.partial(Retry, attempts=1.5), "Retry: attempts must be a positive integer, got 1.5"),
        (functools.partial(Retry, wait=-1), "Retry: wait must be 0 or more seconds, got -1"),
        (functools.partial(stageflow.retry.Fixed, -1), "Fixed: seconds must be 0 or more seconds, got -1"),
        (
            functools.partial(stageflow.retry.Exponential, initial=math.inf),
            "Exponential: initial must be 0 or more seconds, got inf",
        ),
        (
            functools.partial(stageflow.retry.Exponential, jitter=2),
            "Exponential: jitter must be a number from 0 to 1, got 2",
        ),
        (
            functools.partial(StageOutput.retry, "e", after=-1),
            (
                "StageOutput.retry(): after must be 0 or more seconds, got -1\n"
                "  hint: write StageOutput.retry(error, after=2.5)"
            ),
        ),
    ],
)
def test_invalid_policy_is_rejected(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


async def test_unknown_stage_in_results_raises_with_the_closest_match() -> None:
    results = await Pipeline("p").with_stage("search", quick).build().run()
    with pytest.raises(KeyError) as caught:
        results.data("serch")
    assert caught.value.args == ("no stage 'serch' in this run; did you mean 'search'?",)


def test_wide_events_are_emitted_for_a_context() -> None:
    with pytest.raises(TypeError) as caught:
        stageflow.observability.emit_stage_wide(
            "a", stageflow.StageResult("a", StageStatus.OK), {}, MemoryEventSink()
        )  # type: ignore[arg-type]
    assert str(caught.value) == "emit_event(): ctx must be a PipelineContext or a StageContext, got {}"


# ---------------------------------------------------------------- invalid return values


async def run(sink: MemoryEventSink, stage: Any, kind: StageKind = StageKind.WORK) -> PipelineResults:
    pipeline = Pipeline("p").with_stage("s", stage, kind)
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )
    results = await graph.run()
    check_record(sink.events, ["s"])
    return results


OUTPUT_HINT = "return StageOutput.ok(...), or a value"


def returning(value: Any, wait: bool) -> Any:
    async def stage(ctx: StageContext) -> Any:
        if wait:
            await asyncio.sleep(0)
        return value

    return stage


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize(
    ("value", "shown", "hint"),
    [
        (StageStatus.OK, "a value of type StageStatus: <StageStatus.OK: 'OK'>", "return StageOutput.ok(...)"),
        (
            ValueError("no"),
            "a value of type ValueError: ValueError('no')",
            "raise it, or return StageOutput.fail(error)",
        ),
        (
            ValueError("x" * 200),
            "a value of type ValueError: ValueError('" + "x" * 67 + "…",
            "raise it, or return StageOutput.fail(error)",
        ),
        (StageOutput("OK", {}), "a StageOutput with status='OK'", OUTPUT_HINT),  # type: ignore[arg-type]
        (StageOutput(StageStatus.OK, None), "a StageOutput with data=None", OUTPUT_HINT),  # type: ignore[arg-type]
        (StageOutput(StageStatus.SKIP, {}, reason=4), "a StageOutput with reason=4", OUTPUT_HINT),  # type: ignore[arg-type]
        (StageOutput(StageStatus.FAIL, {}, error=4), "a StageOutput with error=4", OUTPUT_HINT),  # type: ignore[arg-type]
    ],
)
async def test_invalid_return_value_fails_the_stage_with_a_hint(
    sink: MemoryEventSink, value: Any, shown: str, hint: str, wait: bool
) -> None:
    results = await run(sink, returning(value, wait))
    assert results["s"].status is StageStatus.FAIL
    error = results["s"].exception
    assert isinstance(error, StageOutputError)
    assert isinstance(error, TypeError)
    assert error.message == f"the stage returned {shown}"
    assert error.stage == "s"
    assert error.hint == hint
    assert results.outcome == "failed"
    assert stage_wide(sink.events, "s")["error_type"] == "StageOutputError"


class Broken(Mapping[str, Any]):
    """A mapping that raises when it is read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("the cursor is closed")

    def __iter__(self) -> Iterator[str]:
        return iter(["key"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("wait", [False, True])
async def test_mapping_that_raises_fails_its_stage(sink: MemoryEventSink, wait: bool) -> None:
    results = await run(sink, returning(Broken(), wait))
    assert (results["s"].status, results["s"].attempts) == ("FAIL", 1)
    assert results["s"].error == "RuntimeError: the cursor is closed"


class Unreadable:
    """An object whose `repr`, `str` and comparison raise."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no eq")

    def __hash__(self) -> int:
        return 987_654_321  # without another key, it is never compared


class UnreadableError(Unreadable, Exception): ...


async def test_invalid_return_value_without_a_repr_fails_the_stage(sink: MemoryEventSink) -> None:
    results = await run(sink, returning(UnreadableError(), wait=False))
    assert results["s"].status is StageStatus.FAIL
    assert "<repr() of UnreadableError failed: " in (results["s"].error or "")


async def test_value_that_cannot_be_read_is_a_valid_value(sink: MemoryEventSink) -> None:
    results = await run(sink, returning(Unreadable(), wait=False))
    assert results["s"].status is StageStatus.OK
    assert stage_wide(sink.events, "s")["data_keys"] == ["value"]


@pytest.mark.parametrize("reason", [404, ValueError("enough"), ["a"], Unreadable(), b"bytes"], ids=type)
@pytest.mark.parametrize("make", [StageOutput.skip, StageOutput.stop])
async def test_reason_can_be_any_object(
    sink: MemoryEventSink, make: Callable[[Any], StageOutput], reason: Any
) -> None:
    results = await run(sink, returning(make(reason), wait=False))
    said = stage_wide(sink.events, "s")["reason"]
    assert said == results["s"].reason
    assert said == (
        "<str() of Unreadable failed: RuntimeError>" if type(reason) is Unreadable else str(reason)
    )


@pytest.mark.parametrize("error", [404, Unreadable()], ids=type)
async def test_error_can_be_any_object(sink: MemoryEventSink, error: Any) -> None:
    results = await run(sink, returning(StageOutput.fail(error), wait=False))
    assert results["s"].status is StageStatus.FAIL
    assert stage_wide(sink.events, "s")["error"] == results["s"].error


MISSING_VALUES: dict[str, tuple[Callable[[], StageOutput], str]] = {
    "ok": (lambda: StageOutput.ok(None), "StageOutput.ok(): data must be a mapping, got None"),  # type: ignore[arg-type]
    "fail": (
        lambda: StageOutput.fail(None),
        "StageOutput.fail(): error must be text or an exception, got None",
    ),  # type: ignore[arg-type]
    "retry": (
        lambda: StageOutput.retry(None),
        "StageOutput.retry(): error must be text or an exception, got None",
    ),  # type: ignore[arg-type]
    "skip": (lambda: StageOutput.skip(None), "StageOutput.skip(): reason must be text, got None"),
    "cancel": (lambda: StageOutput.stop(None), "StageOutput.stop(): reason must be text, got None"),
    "route": (lambda: StageOutput.route(None), "StageOutput.route(): labels must be strings, got None"),  # type: ignore[arg-type]
    "after": (
        lambda: StageOutput.retry("down", after="soon"),  # type: ignore[arg-type]
        "StageOutput.retry(): after must be 0 or more seconds, got 'soon'",
    ),
    "exception class": (
        lambda: StageOutput.fail(UnicodeDecodeError),  # type: ignore[arg-type]
        "StageOutput.fail() cannot create the exception UnicodeDecodeError: TypeError: ",
    ),
}


@pytest.mark.parametrize("function", MISSING_VALUES)
async def test_stage_output_rejects_missing_values(sink: MemoryEventSink, function: str) -> None:
    make, message = MISSING_VALUES[function]

    async def work(ctx: StageContext) -> StageOutput:
        return make()

    results = await run(sink, work)
    error = results["s"].exception
    assert isinstance(error, InvalidArgumentError)
    assert isinstance(error, TypeError)
    assert error.message.startswith(message)
    assert error.hint
    assert (results["s"].status, results["s"].attempts) == (StageStatus.FAIL, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PipelineContext(user="u"), "did you mean 'user_id'?"),
        (lambda: Retry(attemps=3), "did you mean 'attempts'?"),
        (lambda: stageflow.Redact("password"), "Redact(): "),
        (lambda: stageflow.Redact(names=3), "Redact: names must be a tuple of str, got 3"),
        (lambda: stageflow.Redact(patterns=["x"]), "Redact: patterns must be a mapping, got ['x']"),
        (lambda: stageflow.observability.EventLimits(byte=3), "EventLimits() has no argument 'byte'"),
        (lambda: stageflow.journal.RunFilter(pipelines="p"), "did you mean 'pipeline'?"),
        (lambda: stageflow.stage(nme="x"), "did you mean 'name'?"),
        (lambda: stageflow.set_event_sink(MemoryEventSink), "got the class MemoryEventSink"),
        (lambda: Pipeline("p").with_stage("s", quick, dependency="a"), "did you mean 'dependencies'?"),
        (
            lambda: asyncio.run(Pipeline("p").with_stage("s", quick).run({"a": 1})),
            "ctx must be a PipelineContext, got",
        ),
        (
            lambda: stageflow.observability.emit_pipeline_wide({}, {}),
            "ctx must be a PipelineContext",
        ),
    ],
)
def test_argument_errors_are_errors_of_the_library(make: Callable[[], object], message: str) -> None:
    with pytest.raises(stageflow.errors.InvalidArgumentError) as caught:
        make()
    assert isinstance(caught.value, TypeError)
    assert message in str(caught.value)


async def test_route_returned_by_a_stage_of_another_kind_fails_the_stage(sink: MemoryEventSink) -> None:
    results = await run(sink, returning(StageOutput.route("left"), wait=False))
    assert str(results["s"].exception) == (
        "a stage of kind WORK returned StageOutput.route "
        f"[stage 's', pipeline 'p', run {results.context.pipeline_run_id}]\n"
        "  hint: declare the stage with kind=StageKind.ROUTE"
    )


async def test_unknown_route_fails_the_stage_with_the_closest_match(sink: MemoryEventSink) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("router", returning(StageOutput.route("lefft"), wait=False), StageKind.ROUTE)
        .with_stage("a", quick, dependencies=("router",), route="left")
        .with_stage("b", quick, dependencies=("router",), route="right")
    )
    results = await pipeline.build().run()
    assert results["router"].status is StageStatus.FAIL
    assert str(results["router"].exception) == (
        "no dependent has the route 'lefft'; did you mean 'left'? "
        f"[stage 'router', pipeline 'p', run {results.context.pipeline_run_id}]\n"
        "  hint: the routes of its dependents are 'left', 'right'"
    )


async def test_exception_during_instantiation_fails_the_stage(sink: MemoryEventSink) -> None:
    class Unlucky:
        def __init__(self) -> None:
            next(iter(()))

        async def execute(self, ctx: StageContext) -> None:
            return None

    results = await run(sink, Unlucky)
    assert (results["s"].status, results["s"].error) == (
        "FAIL",
        "RuntimeError: the call of stage 's' raised StopIteration",
    )


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("error", [StopIteration(3), StopAsyncIteration(), GeneratorExit()], ids=repr)
async def test_unusual_exception_fails_its_stage(
    sink: MemoryEventSink, error: BaseException, wait: bool
) -> None:
    async def stage(ctx: StageContext) -> None:
        if wait:
            await asyncio.sleep(0)
        raise error

    def plain(ctx: StageContext) -> None:
        raise error

    results = await run(sink, stage if wait else plain)
    assert results["s"].status is StageStatus.FAIL
    assert type(error).__name__ in (results["s"].error or "")
    assert results.outcome == "failed"
    assert results["s"].abandoned is False


async def test_exception_whose_str_raises_fails_its_stage(sink: MemoryEventSink) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async def stage(ctx: StageContext) -> None:
        raise Odd

    results = await run(sink, stage)
    assert results["s"].status is StageStatus.FAIL
    assert (results["s"].error or "").startswith("Odd: ")
    exception = stage_wide(sink.events, "s")["exception"]
    assert exception["type"].endswith("Odd")
    assert "<str() of " in exception["message"]


@pytest.mark.parametrize("policy", ["on", "wait"])
async def test_policy_that_raises_fails_the_stage_and_is_recorded(sink: MemoryEventSink, policy: str) -> None:
    def broken(argument: Any) -> Any:
        raise RuntimeError("the policy")

    async def stage(ctx: StageContext) -> None:
        raise ValueError("the stage")

    pipeline = Pipeline("p").with_stage("s", stage, retry=Retry(**{policy: broken}))
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )
    await graph.run()
    check_record(sink.events, ["s"])
    event = stage_wide(sink.events, "s")
    assert (event["status"], event["error"]) == ("FAIL", "ValueError: the stage")
    assert event["reason"] == "its retry policy raised RuntimeError: the policy"


async def test_condition_that_raises_fails_the_stage_before_it_starts(sink: MemoryEventSink) -> None:
    calls: list[int] = []

    def broken(ctx: StageContext) -> bool:
        calls.append(0)
        raise RuntimeError("the condition")

    async def stage(ctx: StageContext) -> None:
        calls.append(ctx.attempt)

    pipeline = Pipeline("p").with_stage("s", stage, when=broken, retry=Retry(3, wait=0))
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )
    results = await graph.run()
    check_record(sink.events, ["s"])
    assert set(calls) == {0}
    assert (results["s"].status, results["s"].error) == ("FAIL", "RuntimeError: the condition")
    assert results["s"].attempts == 0


# ---------------------------------------------------------------- values that JSON cannot represent


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


async def test_annotated_objects_are_recorded_as_truncated_repr_and_counted(
    sink: MemoryEventSink,
) -> None:
    long = object.__new__(type("Long", (), {"__repr__": lambda self: "y" * 1000}))
    values = {
        "complex": 1j,
        "bytes": b"x",
        "nan": math.nan,
        "infinite": -math.inf,
        "long": long,
        "unreadable": Unreadable(),
        "huge": 1 << 70,
    }

    async def stage(ctx: StageContext) -> None:
        ctx.annotate(**values, fine=[1, "two", 3.5, None, {"a": True}], text="ä\ud800")

    before = stats().coerced_values
    await run(sink, stage)
    assert stats().coerced_values - before == len(values)
    assert stage_wide(sink.events, "s")["attributes"] == {
        "complex": "1j",
        "bytes": "b'x'",
        "nan": "nan",
        "infinite": "-inf",
        "long": "y" * 199 + "…",
        "unreadable": "<repr() of Unreadable failed: RuntimeError>",
        "huge": "1180591620717411303424",
        "fine": [1, "two", 3.5, None, {"a": True}],
        "text": "ä?",
    }


@pytest.mark.parametrize("make", [cyclic, deep])
async def test_endlessly_nested_values_are_truncated_and_counted(
    sink: MemoryEventSink, make: Callable[[], Any]
) -> None:
    async def stage(ctx: StageContext) -> None:
        ctx.annotate(value=make())
        ctx.emit_event("note", {"value": make()})

    before = stats().coerced_values
    await run(sink, stage)
    assert stats().coerced_values > before
    json.dumps(sink.events, allow_nan=False)
    assert len(json.dumps(sink.events)) < 10_000


async def test_keys_of_any_type_are_recorded(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> dict[Any, Any]:
        ctx.annotate(nested={1: "one", None: "none", (1, 2): "pair"})
        return {1: "a", ("b", 2): "c", "d": "e", Unreadable(): "f", "\ud800": "g"}

    await run(sink, stage)
    event = stage_wide(sink.events, "s")
    assert event["data_keys"][:3] == ["1", "('b', 2)", "d"]
    assert event["data_keys"][3:] == ["<repr() of Unreadable failed: RuntimeError>", "?"]
    assert event["attributes"]["nested"] == {"1": "one", "None": "none", "(1, 2)": "pair"}


async def test_results_contain_the_returned_objects(sink: MemoryEventSink) -> None:
    value = object()
    results = await run(sink, returning({"value": value}, wait=False))
    assert results.data("s")["value"] is value
    assert stage_wide(sink.events, "s")["data_keys"] == ["value"]


async def test_custom_event_is_never_lost_because_of_a_value(sink: MemoryEventSink) -> None:
    async def stage(ctx: StageContext) -> None:
        ctx.emit_event("note", {"value": Unreadable(), "complex": 1j, "nan": math.nan, 3: "three"})

    before = stats().coerced_values
    await run(sink, stage)
    (note,) = sink.of_type("note")
    assert note["value"] == "<repr() of Unreadable failed: RuntimeError>"
    assert (note["complex"], note["nan"], note["3"]) == ("1j", "nan", "three")
    assert stats().coerced_values - before == 3
    assert stage_wide(sink.events, "s")["events_count"] == 1


async def test_ids_of_any_type_are_recorded_as_strings(sink: MemoryEventSink) -> None:
    graph = (
        Pipeline("p")
        .with_stage("s", quick)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    await graph.run(PipelineContext(user_id=7, org_id="\ud800", session_id=Unreadable()))  # type: ignore[arg-type]
    check_record(sink.events, ["s"])
    ids = pipeline_wide(sink.events)["correlation_ids"]
    assert (ids["user_id"], ids["org_id"], ids["request_id"]) == ("7", "?", None)
    assert isinstance(ids["session_id"], str)


# ---------------------------------------------------------------- error classes


def test_every_error_class_is_a_stageflow_error() -> None:
    classes = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(classes) >= 10
    for error in classes:
        assert issubclass(error, StageflowError)


def test_errors_contain_the_run_the_stage_and_a_hint() -> None:
    async def slow(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        graph = Pipeline("p").with_stage("slow", slow, timeout=1).build()
        results = await graph.run()
        run_id = str(results.context.pipeline_run_id)
        error = results["slow"].exception
        assert isinstance(error, StageTimeoutError)
        assert (error.pipeline, error.stage, error.run_id) == ("p", "slow", run_id)
        assert str(error) == (
            f"the attempt took longer than its timeout of 1 s [stage 'slow', pipeline 'p', run {run_id}]"
        )
        with pytest.raises(RunFailedError) as caught:
            results.raise_on_failure()
        failed = caught.value
        assert failed.results is results
        assert (failed.pipeline, failed.stage, failed.run_id) == ("p", "slow", run_id)
        assert failed.__cause__ is error

        late = await Pipeline("p").with_stage("slow", slow).build().run(deadline=1)
        assert isinstance(late.exception, DeadlineExceededError)
        assert (late.exception.pipeline, late.exception.stage) == ("p", None)
        assert late.exception.run_id == str(late.context.pipeline_run_id)

    VirtualClock().run(main())


@pytest.mark.parametrize(
    "error",
    [
        StageflowError("m", pipeline="p", stage="s", run_id="r", hint="h"),
        StageTimeoutError("m", stage="s"),
        PipelineValidationError("p", ["one", "two"]),
        RunFailedError("m", results={"s": 1}, stage="s"),
        InputError("m", hint="h"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: StageflowError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_unknown_argument_of_a_context_names_the_closest_match() -> None:
    with pytest.raises(TypeError) as caught:
        PipelineContext(sesion_id="s1")  # type: ignore[call-arg]
    assert str(caught.value) == (
        "PipelineContext() has no argument 'sesion_id'; did you mean 'session_id'?"
        "\n  hint: its arguments are pipeline_run_id, request_id, session_id, user_id, org_id, service,"
        " topology, execution_mode, data, resources, traceparent"
    )
    with pytest.raises(TypeError, match=r"PipelineContext\(\): Extra positional arguments provided"):
        PipelineContext("r1")  # type: ignore[misc]


async def test_context_is_immutable_and_does_not_expose_the_engine() -> None:
    async def stage(ctx: Any) -> None:
        with pytest.raises(AttributeError):
            ctx.run.user_id = "u2"

    given = PipelineContext(user_id="u1")
    results = await Pipeline("p").with_stage("s", stage).run(given)
    assert results.ok
    run_id = results.context.pipeline_run_id
    assert repr(results.context) == (
        f"PipelineContext(pipeline_run_id={run_id!r}, request_id=None, session_id=None, user_id='u1',"
        " org_id=None, service='unknown_service', topology='p', execution_mode='default', data={},"
        " resources={}, traceparent=None)"
    )
    assert repr(given) == repr(PipelineContext(user_id="u1"))


async def test_context_with_other_data_keeps_everything_else() -> None:
    async def stage(ctx: Any) -> dict[str, Any]:
        return {"seen": (ctx.run.user_id, ctx.run.data)}

    graph = Pipeline("p").with_stage("s", stage).build()
    context = PipelineContext(user_id="u1", data={"n": 1})
    assert (await graph.run(context.with_data({"n": 2}))).data("s")["seen"] == ("u1", {"n": 2})
    assert context.data == {"n": 1}
    # Also from the context of a run, whose id is not inherited.
    first = await graph.run(context)
    second = await graph.run(first.context.with_data({"n": 3}))
    assert second.data("s")["seen"] == ("u1", {"n": 3})
    assert second.context.pipeline_run_id != first.context.pipeline_run_id


async def test_default_labels_of_a_run_are_not_inherited_with_its_context() -> None:
    async def stage(ctx: Any) -> None: ...

    first = Pipeline("first").with_stage("s", stage).build()
    second = Pipeline("second").with_stage("s", stage).build()
    results = await first.run(PipelineContext(user_id="u1", execution_mode="batch"))
    again = await second.run(results.context)
    labels = (again.context.user_id, again.context.topology, again.context.execution_mode)
    assert labels == ("u1", "second", "batch")
    chosen = await first.run(PipelineContext(topology="mine"))
    assert (await second.run(chosen.context.with_data({}))).context.topology == "mine"
