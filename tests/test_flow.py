"""Flows: stages that are connected by typed references."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest

from stageflow import (
    Pipeline,
    PipelineContext,
    Retry,
    StageContext,
    StageKind,
    StageOutput,
    StageResult,
    stage,
)
from stageflow.errors import (
    InvalidArgumentError,
    MissingInputError,
    PipelineValidationError,
    StageNotFinishedError,
    StageOutputError,
    UnknownInputError,
)
from stageflow.pipeline import Flow
from stageflow.stages import StageRef
from stageflow.testing import capture_events


@dataclass(frozen=True)
class Document:
    text: str
    score: float


class Point(msgspec.Struct):
    x: int
    y: int


class PydanticModel(pydantic.BaseModel):
    a: int
    b: list[int]


@attrs.define
class AttrsModel:
    a: int
    b: list[int]


async def search(ctx: StageContext) -> list[Document]:
    return [Document("low", 1.0), Document("high", 2.0)]


async def rank(ctx: StageContext, documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: -document.score)


def best(documents: list[Document]) -> Document:
    return documents[0]


async def write(ctx: StageContext, documents: list[Document], document: Document) -> str:
    return f"{document.text} of {len(documents)}"


async def test_values_are_passed_by_reference() -> None:
    flow = Flow("ask")
    documents = flow.add(search)
    ranked = flow.add(rank, documents, retry=Retry(attempts=3))
    top = flow.add(best, ranked)
    reply = flow.add(write, ranked, top, timeout=30)
    results = await flow.build().run(PipelineContext())
    assert results.value(reply) == "high of 2"
    assert results.value(top) == Document("high", 2.0)
    assert results.value("write") == "high of 2"
    assert results.data("best") == {"text": "high", "score": 2.0}
    assert results.data("write") == {"value": "high of 2"}
    assert [spec.dependencies for spec in flow.pipeline.stages] == [
        (),
        ("search",),
        ("rank",),
        ("rank", "best"),
    ]


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (42, {"value": 42}),
        ("text", {"value": "text"}),
        ([1, 2], {"value": [1, 2]}),
        ((1, 2), {"value": (1, 2)}),
        (False, {"value": False}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        (Document("t", 1.0), {"text": "t", "score": 1.0}),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Document, {"value": Document}),
    ],
    ids=["int", "str", "list", "tuple", "bool", "None", "dict", "dataclass", "Struct", "class"],
)
@pytest.mark.parametrize("synchronous", [False, True])
async def test_stage_can_return_any_value(value: Any, data: dict[str, Any], synchronous: bool) -> None:
    async def returns(ctx: StageContext) -> Any:
        return value

    def returns_in_thread(ctx: StageContext) -> Any:
        return value

    runner = returns_in_thread if synchronous else returns
    with capture_events() as events:
        results = await Pipeline("p").with_stage("s", runner).run()
    assert results["s"].ok, results["s"].error
    assert results.value("s") == value
    assert results.data("s") == data
    assert events.stage("s")["data_keys"] == list(data)


@pytest.mark.parametrize("model", [PydanticModel(a=1, b=[2]), AttrsModel(1, [2])], ids=["pydantic", "attrs"])
async def test_fields_of_a_model_are_the_data(model: Any) -> None:
    async def returns(ctx: StageContext) -> Any:
        return model

    async def wrong_type(ctx: StageContext, a: str) -> None: ...

    results = await Pipeline("p").with_stage("s", returns).run()
    assert results.value("s") is model
    assert results.data("s") == {"a": 1, "b": [2]}
    returns.__annotations__["return"] = type(model)
    pipeline = Pipeline("p").with_stage("s", returns).with_stage("t", wrong_type, dependencies=("s",))
    with pytest.raises(PipelineValidationError, match="'a' in the output of stage 's' is int"):
        pipeline.build()


@pytest.mark.parametrize("kind", ["coroutine", "generator", "async generator"])
async def test_value_that_can_be_read_only_once_is_rejected(kind: str) -> None:
    async def coroutine() -> None: ...

    async def chunks() -> AsyncIterator[int]:
        yield 1

    async def returns(ctx: StageContext) -> Any:
        return {"coroutine": coroutine, "generator": lambda: (n for n in [1]), "async generator": chunks}[
            kind
        ]()

    results = await Pipeline("p").with_stage("s", returns).run()
    error = results["s"].exception
    assert isinstance(error, StageOutputError)
    assert error.hint == (
        "did you forget an `await`?"
        if kind == "coroutine"
        else "a generator can be read only once; return a list"
    )


@dataclass
class Partial:
    first: int
    second: int = field(init=False)


async def test_field_that_is_not_set_is_not_in_the_data() -> None:
    async def returns(ctx: StageContext) -> Partial:
        return Partial(1)

    results = (await Pipeline("p").with_stage("s", returns).run()).raise_on_failure()
    assert results.data("s") == {"first": 1}


async def test_stage_output_keeps_its_data_as_the_value() -> None:
    async def returns(ctx: StageContext) -> StageOutput:
        return StageOutput.ok(a=1)

    results = await Pipeline("p").with_stage("s", returns).run()
    assert results.value("s") == results.data("s") == {"a": 1}


async def no_arguments() -> str:
    return "none"


async def named_ctx(ctx: Any) -> str:
    return f"context of {ctx.stage}"


async def annotated(run: StageContext, value: str) -> str:
    return f"{run.stage} {value}"


async def annotated_as_text(run: "StageContext", value: str) -> str:  # noqa: UP037
    return f"{run.stage} {value}"


async def by_arity(run, value):  # type: ignore[no-untyped-def]
    return f"{run.stage} {value}"


async def unannotated(value):  # type: ignore[no-untyped-def]
    return f"only {value}"


async def ctx_is_a_value(ctx: str) -> str:
    return f"only {ctx}"


def with_default(value: str, times: int = 2) -> str:
    return value * times


class Callable_:
    async def __call__(self, value: str) -> str:
        return f"called with {value}"


class Stage:
    async def execute(self, ctx: StageContext, value: str) -> str:
        return f"{ctx.stage} {value}"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (annotated, "s first"),
        (annotated_as_text, "s first"),
        (by_arity, "s first"),
        (unannotated, "only first"),
        (ctx_is_a_value, "only first"),
        (with_default, "firstfirst"),
        (functools.partial(with_default, times=1), "first"),
        (Callable_(), "called with first"),
        (Stage, "s first"),
        (Stage(), "s first"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_context_is_passed_to_functions_that_accept_it(
    function: Callable[..., Any], expected: str
) -> None:
    flow = Flow()
    first: StageRef[Any] = flow.add(lambda: "first", name="first")
    ref: StageRef[Any] = flow.add(function, first, name="s")
    assert (await flow.run()).raise_on_failure().value(ref) == expected


async def test_context_is_optional_without_inputs() -> None:
    flow = Flow()
    none, context = flow.add(no_arguments), flow.add(named_ctx)
    results = (await flow.run()).raise_on_failure()
    assert (results.value(none), results.value(context)) == ("none", "context of named_ctx")


def skips_or_fails(how: str) -> Any:
    async def first(ctx: StageContext) -> str | StageOutput:
        if how == "skip":
            return StageOutput.skip("nothing to do")
        if how == "fail":
            return StageOutput.fail("broken")
        return "value"

    return first


@pytest.mark.parametrize("how", ["skip", "fail"])
async def test_missing_input_skips_a_stage_unless_it_has_a_default(how: str) -> None:
    received: dict[str, Any] = {}

    def receiver(name: str) -> Any:
        async def receive(value: Any) -> str:
            received[name] = value
            return name

        return receive

    flow = Flow()
    first: StageRef[str] = flow.add(skips_or_fails(how), name="first", optional=True)
    required = flow.add(receiver("required"), first, name="required")
    after = flow.add(receiver("after"), required, name="after")
    flow.add(receiver("none"), first.or_none(), name="none")
    flow.add(receiver("default"), first.or_default("d"), name="default")
    flow.add(receiver("after none"), required.or_none(), name="after none")
    with capture_events() as events:
        results = await flow.run()
    assert {name: result.status for name, result in results.items()} == {
        "first": "SKIP" if how == "skip" else "FAIL",
        "required": "SKIP",
        "after": "SKIP",
        "none": "OK",
        "default": "OK",
        "after none": "OK",
    }
    assert received == {"none": None, "default": "d", "after none": None}
    reason = f"its input 'first' {'was skipped' if how == 'skip' else 'failed'}"
    assert results["required"].reason == events.stage("required")["reason"] == reason
    assert results.value(first.or_none()) is None
    assert results.value(after.or_default("x")) == "x"
    with pytest.raises(StageNotFinishedError, match="stage 'after' has no value: it ended with SKIP"):
        results.value(after)


async def test_inputs_by_reference_can_be_read_from_the_context() -> None:
    flow = Flow()
    first = flow.add(skips_or_fails("ok"), name="first")
    skipped = flow.add(skips_or_fails("skip"), name="skipped")

    async def reads(ctx: StageContext) -> dict[str, Any]:
        with pytest.raises(MissingInputError, match="'skipped' has no value: it ended with SKIP"):
            ctx.inputs.value(skipped)
        with pytest.raises(UnknownInputError, match="'reads' is not an ancestor"):
            ctx.inputs.value(StageRef[Any]("reads"))
        return {"first": ctx.inputs.value(first), "skipped": ctx.inputs.value(skipped.or_default(3))}

    reader = flow.add(reads, dependencies=(first, skipped))
    results = (await flow.run()).raise_on_failure()
    assert results.value(reader) == {"first": "value", "skipped": 3}


async def test_value_of_a_failed_run_is_an_error() -> None:
    flow = Flow("p")
    first = flow.add(skips_or_fails("fail"), name="first")
    second = flow.add(annotated, first, name="second")
    results = await flow.run()
    with pytest.raises(StageNotFinishedError, match=r"'first' has no value: it ended with FAIL \(broken\)"):
        results.value(first)
    with pytest.raises(StageNotFinishedError, match="CANCEL"):
        results.value(second.or_none())
    with pytest.raises(KeyError, match="no stage 'frist' in this run; did you mean 'first'"):
        results.value("frist")


async def test_retry_and_timeout_apply_to_stages_of_a_flow() -> None:
    attempts = []

    async def flaky(ctx: StageContext, value: str) -> str:
        attempts.append(value)
        if len(attempts) < 3:
            raise ConnectionError("down")
        return value

    async def slow(value: str) -> str:
        await asyncio.sleep(60)
        return value

    flow = Flow()
    first = flow.add(skips_or_fails("ok"), name="first")
    ref = flow.add(flaky, first, retry=Retry(attempts=3, wait=0))
    flow.add(slow, first, timeout=0.01, optional=True)
    results = await flow.run()
    assert results.value(ref) == "value"
    assert attempts == ["value"] * 3
    assert results["slow"].status == "FAIL"


async def test_description_of_a_decorated_function_applies() -> None:
    @stage(name="search", kind=StageKind.ENRICH, timeout=5)
    async def finds(ctx: StageContext) -> list[str]:
        return []

    flow = Flow()
    ref = flow.add(finds)
    (spec,) = flow.pipeline.stages
    assert (ref.name, spec.name, spec.kind, spec.timeout) == ("search", "search", StageKind.ENRICH, 5)
    assert (await flow.run()).value(ref) == []


async def test_flow_composes_with_stages_described_by_names() -> None:
    async def by_name(ctx: StageContext) -> dict[str, Any]:
        return {"text": ctx.inputs.get_from("best", "text")}

    flow = Flow("ask")
    flow.add(best, flow.add(search))
    pipeline = Pipeline("all").compose(flow.pipeline).with_stage("after", by_name, dependencies=("best",))
    results = (await pipeline.run()).raise_on_failure()
    assert results.data("after") == {"text": "low"}


def problems(flow: Flow) -> tuple[str, ...]:
    with pytest.raises(PipelineValidationError) as caught:
        flow.build()
    return caught.value.problems


def test_build_reports_inputs_that_a_function_does_not_accept() -> None:
    flow: Any = Flow("p")
    documents = flow.add(search)
    flow.add(rank)
    flow.add(best, documents, documents)
    flow.add(search, documents, name="again")
    assert problems(flow) == (
        (
            "stage 'rank': rank cannot be called with the context and 0 inputs (none): "
            "missing a required argument: 'documents'"
        ),
        "stage 'best': best cannot be called with 2 inputs (search, search): too many positional arguments",
        (
            "stage 'again': search cannot be called with the context and 1 input (search): "
            "too many positional arguments"
        ),
    )


def test_reference_to_a_stage_of_another_flow_is_reported() -> None:
    other = Flow("other")
    flow = Flow("p")
    flow.add(best, other.add(search))
    assert problems(flow) == ("stage 'best': unknown dependency 'search'",)


def test_two_stages_with_the_same_function_need_names() -> None:
    flow = Flow("p")
    flow.add(search)
    flow.add(search)
    assert problems(flow) == ("stage 'search' is defined 2 times; names must be unique: rename all but one",)


@pytest.mark.parametrize(
    ("given", "shown"),
    [([], r"\[\]"), ("search", "'search'"), (search, "<function search")],
    ids=["list", "name", "function"],
)
def test_input_that_is_not_a_reference_is_rejected(given: Any, shown: str) -> None:
    flow: Any = Flow("p")
    with pytest.raises(InvalidArgumentError, match=f"input 1 must be a reference .*, got {shown}"):
        flow.add(rank, given)


def test_unknown_option_is_rejected() -> None:
    flow: Any = Flow("p")
    with pytest.raises(InvalidArgumentError, match="unknown option 'retri'; did you mean 'retry'"):
        flow.add(search, retri=3)


def test_build_options_of_flow_and_pipeline_are_the_same() -> None:
    from stageflow.pipeline._pipeline import BuildOptions

    assert list(BuildOptions.__annotations__) == list(inspect.signature(Pipeline.build).parameters)[1:]


def test_result_without_a_value_has_its_data_as_value() -> None:
    result = StageResult("s", "OK", {"a": 1})  # type: ignore[arg-type]
    assert result.value == {"a": 1}


# ------------------------------------------------------------ annotations of connected stages

T = TypeVar("T")


class Animal: ...


class Dog(Animal): ...


class Row(TypedDict):
    text: str
    score: float


@pytest.mark.parametrize(
    ("returned", "accepted"),
    [
        (int, int),
        (Dog, Animal),
        (int, float),
        (list[int], list[int]),
        (list[int], Sequence[int]),
        (list[int], list),
        (list, list[int]),
        (int, int | None),
        (int, float | None),
        (dict[str, Any], dict[str, int]),
        (list[Any], list[int]),
        (Any, int),
        (int, object),
        (list[T], list[int]),  # type: ignore[valid-type]
        (int | StageOutput, int),
        (StageOutput, int),
        (Row, dict[str, Any]),
        (Callable[[int], str], Callable[[bool], str]),
        (Literal["a"], str),
    ],
    ids=str,
)
def test_build_accepts_compatible_annotations(returned: Any, accepted: Any) -> None:
    build_connected(returned, accepted)


@pytest.mark.parametrize(
    ("returned", "accepted", "shown"),
    [
        (str, int, "is int, but stage 'first' returns str"),
        (Animal, Dog, "is Dog, but stage 'first' returns Animal"),
        (float, int, "is int, but stage 'first' returns float"),
        (list[str], list[int], r"is list\[int\], but stage 'first' returns list\[str\]"),
        (int | None, int, r"is int, but stage 'first' returns int \| None"),
        (str | StageOutput, int, "is int, but stage 'first' returns str"),
        (tuple[int, str], tuple[int, int], r"returns tuple\[int, str\]"),
        (dict, list, "is list, but stage 'first' returns dict"),
    ],
    ids=str,
)
def test_build_reports_incompatible_annotations(returned: Any, accepted: Any, shown: str) -> None:
    with pytest.raises(PipelineValidationError, match=shown):
        build_connected(returned, accepted)


def build_connected(returned: Any, accepted: Any) -> None:
    async def first() -> Any: ...

    async def second(value: Any) -> None: ...

    first.__annotations__["return"] = returned
    second.__annotations__["value"] = accepted
    flow = Flow("p")
    flow.add(second, flow.add(first))
    flow.build()


def test_default_of_a_missing_input_is_compared() -> None:
    async def length(text: str) -> int:
        return len(text)

    async def text() -> str:
        return "text"

    flow = Flow("p")
    first = flow.add(text)
    flow.add(length, first.or_default("none"), name="valid")
    flow.add(length, first.or_none(), name="none")  # type: ignore[arg-type]
    flow.add(length, first.or_default(3), name="number")  # type: ignore[arg-type]
    assert [problem.partition(":")[0] for problem in problems(flow)] == ["stage 'none'", "stage 'number'"]


async def returns_row(ctx: StageContext) -> Row:
    return {"text": "t", "score": 1.0}


async def returns_document(ctx: StageContext) -> Document:
    return Document("t", 1.0)


@pytest.mark.parametrize("source", [returns_row, returns_document], ids=lambda source: source.__name__)
def test_parameters_by_name_are_compared_with_the_fields_of_a_dependency(source: Any) -> None:
    async def valid(ctx: StageContext, text: str, score: float = 0, other: int = 1) -> None: ...

    async def wrong_type(ctx: StageContext, text: int) -> None: ...

    async def misspelled(ctx: StageContext, txet: str) -> None: ...

    pipeline = Pipeline("p").with_stage("source", source)
    for stage_function in (valid, wrong_type, misspelled):
        name = stage_function.__name__
        pipeline = pipeline.with_stage(name, stage_function, dependencies=("source",))
    with pytest.raises(PipelineValidationError) as caught:
        pipeline.build()
    assert list(caught.value.problems) == [
        (
            "stage 'wrong_type': parameter 'text' of wrong_type is int, but 'text' in the output of stage "
            "'source' is str"
        ),
        (
            "stage 'misspelled': no dependency returns a value for parameter 'txet' of misspelled; "
            "did you mean 'text'?"
        ),
    ]


def test_parameters_of_a_dependency_with_unknown_fields_are_accepted() -> None:
    async def unknown(ctx: StageContext) -> dict[str, Any]:
        return {"a": 1}

    async def reads(ctx: StageContext, text: str) -> None: ...

    pipeline = Pipeline("p").with_stage("row", returns_document).with_stage("unknown", unknown)
    pipeline.with_stage("reads", reads, dependencies=("row", "unknown")).build()


def test_annotation_that_cannot_be_evaluated_is_accepted() -> None:
    async def first() -> "Missing":  # type: ignore[name-defined]  # noqa: F821, UP037
        ...

    async def second(value: int) -> None: ...

    flow = Flow("p")
    flow.add(second, flow.add(first))
    flow.build()


def test_classes_are_compared_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "beartype.door", None)
    build_connected(list[str], list[int])
    build_connected(list[str], Sequence[str])
    build_connected(list[str] | None, list[str] | None)
    for given, accepted in ((str, int), (Document, list[Document]), (list[str], dict[str, str])):
        with pytest.raises(PipelineValidationError):
            build_connected(given, accepted)


def test_import_of_the_library_does_not_import_beartype() -> None:
    code = "import sys, stageflow.pipeline; sys.exit('beartype' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
