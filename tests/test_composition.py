"""Composition: `compose`, `@stage`, parameters by name, and diagrams of pipelines."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Generic, TypeVar
from unittest.mock import AsyncMock, Mock, create_autospec

import pytest

from stageflow import Pipeline, Retry, StageKind, StageOutput, StageStatus, stage
from stageflow.errors import MissingInputError, PipelineValidationError
from stageflow.pipeline._spec import StageDescription, StageSpec
from stageflow.render import graph_as_text

T = TypeVar("T")


async def nothing(ctx: Any) -> None: ...


# ------------------------------------------------------------ compose


async def test_compose_returns_the_stages_of_both_with_the_first_name() -> None:
    first = Pipeline("first").with_stage("a", nothing)
    second = Pipeline("second").with_stage("b", nothing, dependencies=("a",))
    composed = first.compose(second)
    assert repr(composed) == "<Pipeline 'first': a, b>"
    assert (repr(first), repr(second)) == ("<Pipeline 'first': a>", "<Pipeline 'second': b>")
    assert (await composed.run()).ok


def test_compose_includes_a_stage_of_a_common_pipeline_once() -> None:
    common = Pipeline("common").with_stage("load", nothing)
    left = common.with_stage("left", nothing, dependencies=("load",))
    right = common.with_stage("right", nothing, dependencies=("load",))
    assert repr(left.compose(right)) == "<Pipeline 'common': load, left, right>"


def test_compose_of_different_stages_with_one_name_is_a_validation_error() -> None:
    composed = Pipeline("p").with_stage("a", nothing).compose(Pipeline("q").with_stage("a", nothing))
    with pytest.raises(PipelineValidationError) as caught:
        composed.build()
    assert caught.value.problems == (
        "stage 'a' is defined 2 times; names must be unique: rename all but one",
    )


# ------------------------------------------------------------ @stage


@stage(kind=StageKind.ENRICH, retry=Retry(attempts=2, wait=0), timeout=5)
async def load(ctx: Any) -> dict[str, Any]:
    if ctx.attempt == 1:
        raise ConnectionError("again")
    return {"documents": ["a", "b"], "source": "index"}


@stage(name="rank_them", dependencies=("load",))
def rank(ctx: Any, documents: list[str], *, top: int = 1) -> dict[str, Any]:
    return {"best": documents[:top]}


async def test_decorated_function_has_name_kind_and_policies() -> None:
    graph = Pipeline("p").with_stages(load, rank).build()
    results = await graph.run()
    assert results.data("rank_them") == {"best": ["a"]}
    assert (results["load"].kind, results["load"].attempts) == (StageKind.ENRICH, 2)


async def test_options_of_with_stage_override_those_of_the_decorator() -> None:
    results = await Pipeline("p").with_stage("other", load, StageKind.AGENT, retry=Retry(1)).run()
    assert (results["other"].kind, results["other"].status) == (StageKind.AGENT, StageStatus.FAIL)


def test_decorator_does_not_modify_the_function() -> None:
    assert rank(None, ["x", "y"], top=2) == {"best": ["x", "y"]}


def test_kind_of_a_class_is_used() -> None:
    class Guard:
        kind = StageKind.GUARD

        async def execute(self, ctx: Any) -> None: ...

    assert Pipeline("p").with_stage("g", Guard).stages[0].kind is StageKind.GUARD


def test_unknown_option_or_missing_name_raises_at_once() -> None:
    with pytest.raises(TypeError) as caught:
        stage(retires=3)  # type: ignore[call-overload]
    assert str(caught.value) == (
        "@stage: unknown option 'retires'; did you mean 'retry'?"
        "\n  hint: the options are conditional, optional, when, route, timeout, retry, limit, interceptors,"
        " streams, idle_timeout, restart, executor, name, kind, dependencies"
    )
    with pytest.raises(
        TypeError, match="stage 'a': with_stage\\(\\): unknown option 'timout'; did you mean 'timeout'"
    ):
        Pipeline("p").with_stage("a", nothing, timout=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has no name"):
        Pipeline("p").with_stages(nothing)


# ------------------------------------------------------------ parameters by name


async def test_parameters_are_passed_from_the_dependencies_by_name() -> None:
    async def gives(ctx: Any) -> dict[str, int]:
        return {f"from_{ctx.stage}": 1}

    async def takes(ctx: Any, from_a: int, from_b: int, absent: str = "default") -> dict[str, Any]:
        return {"took": (from_a, from_b, absent)}

    pipeline = Pipeline("p").with_stage("a", gives).with_stage("b", gives)
    results = await pipeline.with_stage("takes", takes, dependencies=("a", "b")).run()
    assert results.data("takes") == {"took": (1, 1, "default")}


async def test_parameter_without_a_value_fails_the_stage_with_the_closest_match() -> None:
    async def takes(ctx: Any, documnets: list[str]) -> None: ...

    pipeline = Pipeline("p").with_stage("load", load).with_stage("takes", takes, dependencies=("load",))
    error = (await pipeline.run())["takes"].exception
    assert isinstance(error, MissingInputError)
    assert (
        error.message == "no dependency returned a value for parameter 'documnets'; did you mean 'documents'?"
    )
    assert error.hint == "'load' returned ['documents', 'source']"


async def test_parameter_with_several_values_fails_the_stage_and_names_their_stages() -> None:
    async def gives(ctx: Any) -> dict[str, int]:
        return {"n": 1}

    async def takes(ctx: Any, n: int) -> None: ...

    pipeline = Pipeline("p").with_stage("a", gives).with_stage("b", gives)
    results = await pipeline.with_stage("takes", takes, dependencies=("a", "b")).run()
    error = results["takes"].exception
    assert isinstance(error, MissingInputError)
    assert error.message == "several dependencies returned a value for parameter 'n': 'a' and 'b'"


# ------------------------------------------------------------ several descriptions


async def call(ctx: Any) -> dict[str, str]:
    """Do the work."""
    return {"stage": ctx.stage}


async def test_function_decorated_twice_is_two_stages() -> None:
    fast = stage(name="fast", timeout=1, optional=True)(call)
    slow = stage(name="slow", timeout=60)(call)
    first, second, third = Pipeline("p").with_stages(fast, slow).with_stage("plain", call).stages
    assert (first.name, first.timeout, first.optional) == ("fast", 1, True)
    assert (second.name, second.timeout, second.optional) == ("slow", 60, False)
    assert (third.timeout, third.optional) == (None, False)
    assert (fast.__name__, fast.__doc__, inspect.signature(fast)) == (
        "call",
        "Do the work.",
        inspect.signature(call),
    )
    assert inspect.iscoroutinefunction(fast)
    results = await Pipeline("p").with_stages(fast, slow).run()
    assert results.data("slow") == {"stage": "slow"}


async def test_second_decorator_replaces_the_first_description() -> None:
    again = stage(name="again")(stage(name="first", timeout=5, optional=True)(call))
    (described,) = Pipeline("p").with_stages(again).stages
    assert (described.name, described.timeout, described.optional) == ("again", None, False)


class Service:
    def __init__(self, name: str = "service") -> None:
        self.name = name

    async def work(self, ctx: Any) -> dict[str, str]:
        return {"by": self.name}

    def __call__(self, ctx: Any) -> dict[str, str]:
        return {"called": self.name}


async def test_callables_that_cannot_be_copied_can_be_decorated_repeatedly() -> None:
    a, b = Service("a"), Service("b")
    stages = [
        stage(name="one")(a.work),
        stage(name="two", optional=True)(a.work),
        stage(name="three")(b),
        stage(timeout=5)(functools.partial(call)),
        stage(functools.partial(a.work)),
    ]
    pipeline = Pipeline("p").with_stages(*stages)
    assert [spec.name for spec in pipeline.stages] == ["one", "two", "three", "call", "work"]
    assert [spec.optional for spec in pipeline.stages] == [False, True, False, False, False]
    results = await pipeline.run()
    assert [results.data(name) for name in results] == [
        {"by": "a"},
        {"by": "a"},
        {"called": "b"},
        {"stage": "call"},
        {"by": "a"},
    ]
    assert stages[2](None) == {"called": "b"}


@stage(timeout=5, kind=StageKind.ENRICH)
class Load:
    async def execute(self, ctx: Any) -> dict[str, str]:
        return {"by": type(self).__name__}


class LoadFast(Load): ...


@stage(name="guard_it")
class Guard(Load):
    kind = StageKind.GUARD


class LoadAll(Guard):
    kind = StageKind.AGENT


async def test_subclass_inherits_the_options_of_a_decorated_class_but_not_its_name() -> None:
    pipeline = Pipeline("p").with_stages(Load, LoadFast, Guard, LoadAll, LoadFast())
    assert [(spec.name, spec.timeout, spec.kind) for spec in pipeline.stages] == [
        ("Load", 5, StageKind.ENRICH),
        ("LoadFast", 5, StageKind.ENRICH),
        ("guard_it", 5, StageKind.GUARD),
        ("LoadAll", 5, StageKind.AGENT),
        ("LoadFast", 5, StageKind.ENRICH),
    ]
    results = await Pipeline("p").with_stages(Load, LoadFast).run()
    assert results.data("LoadFast") == {"by": "LoadFast"}


async def test_class_decorated_twice_is_two_stages() -> None:
    second = stage(name="second", optional=True)(Load)
    pipeline = Pipeline("p").with_stages(Load, second)
    assert [(spec.name, spec.timeout, spec.optional) for spec in pipeline.stages] == [
        ("Load", 5, False),
        ("second", None, True),
    ]
    assert (await pipeline.run()).data("second") == {"by": "Load"}


# ------------------------------------------------------------ parameters of every kind of callable


async def gives_documents(ctx: Any) -> dict[str, Any]:
    return {"documents": ["a", "b"], "top": 99, "n": 99}


async def rank_with(index: str, ctx: Any, documents: list[str], *, top: int = 1) -> dict[str, Any]:
    return {"took": (index, documents, top)}


class Ranker:
    async def __call__(self, ctx: Any, documents: list[str]) -> dict[str, Any]:
        return {"took": documents}


class Ranks(Generic[T]):
    async def execute(self, ctx: Any, documents: list[str]) -> dict[str, Any]:
        return {"took": documents}


class RanksStatically:
    @staticmethod
    def execute(ctx: Any, documents: list[str]) -> dict[str, Any]:
        return {"took": documents}


@pytest.mark.parametrize(
    ("runner", "took"),
    [
        (functools.partial(rank_with, "index"), ("index", ["a", "b"], 99)),
        (functools.partial(rank_with, "index", top=2), ("index", ["a", "b"], 2)),
        (functools.partial(functools.partial(rank_with, "index"), top=3), ("index", ["a", "b"], 3)),
        (functools.partial(Ranker()), ["a", "b"]),
        (functools.partial(Ranker(), documents=["c"]), ["c"]),
        (Ranker(), ["a", "b"]),
        (Ranker().__call__, ["a", "b"]),
        (Ranks, ["a", "b"]),
        (Ranks(), ["a", "b"]),
        (Ranks[int], ["a", "b"]),
        (Ranks[T], ["a", "b"]),
        (RanksStatically, ["a", "b"]),
        (create_autospec(Ranks().execute, return_value={"took": 1}), 1),
        (AsyncMock(return_value={"took": 2}), 2),
        (Mock(return_value={"took": 3}), 3),
        (Mock(spec=Ranks(), execute=AsyncMock(return_value={"took": 4})), 4),
    ],
)
async def test_every_kind_of_runner_accepts_parameters_by_name(runner: Any, took: Any) -> None:
    pipeline = Pipeline("p").with_stage("gives", gives_documents)
    results = await pipeline.with_stage("takes", runner, dependencies=("gives",)).run()
    assert results["takes"].error is None
    assert results.data("takes") == {"took": took}


async def test_mock_is_called_with_the_context_of_the_stage() -> None:
    mock = AsyncMock(return_value={})
    await Pipeline("p").with_stage("a", mock).run()
    ((ctx,), _) = mock.await_args
    assert ctx.stage == "a"


async def test_value_bound_to_a_function_is_not_replaced_by_an_input() -> None:
    def bound(n: int) -> Any:
        async def takes(ctx: Any, n: int) -> dict[str, int]:
            return {"took": n}

        return functools.partial(takes, n=n)

    pipeline = Pipeline("p").with_stage("gives", gives_documents)
    for number in range(3):
        pipeline = pipeline.with_stage(f"partial{number}", bound(number), dependencies=("gives",))
        pipeline = pipeline.with_stage(
            f"lambda{number}", lambda ctx, _n=number: {"took": _n}, dependencies=("gives",)
        )
        # A parameter with a default is an optional input: the dependency has a key of this name.
        pipeline = pipeline.with_stage(
            f"input{number}", lambda ctx, n=number: {"took": n}, dependencies=("gives",)
        )
    results = await pipeline.run()
    took = {name: results.data(name)["took"] for name in results if name != "gives"}
    assert took == {
        **{f"partial{number}": number for number in range(3)},
        **{f"lambda{number}": number for number in range(3)},
        **{f"input{number}": 99 for number in range(3)},
    }
    assert results["lambda0"].missing_inputs == ()


def test_partial_without_a_parameter_for_the_context_is_a_validation_error() -> None:
    runner = functools.partial(rank_with, index="index")
    with pytest.raises(PipelineValidationError) as caught:
        Pipeline("p").with_stage("a", runner, dependencies=("b",)).with_stage("b", nothing).build()
    (problem,) = caught.value.problems
    assert problem.endswith("bind the parameters before the context by position: functools.partial(f, value)")


def test_generic_alias_without_execute_is_a_validation_error() -> None:
    with pytest.raises(PipelineValidationError, match=r"class list has no method `execute\(ctx\)`"):
        Pipeline("p").with_stage("a", list[int]).build()


# ------------------------------------------------------------ diagrams


def routed() -> Pipeline:
    async def route(ctx: Any) -> StageOutput:
        return StageOutput.route("x")

    return (
        Pipeline('the "p"')
        .with_stage("r", route, StageKind.ROUTE)
        .with_stage("b", nothing, dependencies=("r",), route="x", timeout=3, retry=Retry(2), limit=None)
        .with_stage("c", nothing, dependencies=("b",), conditional=True, optional=True)
    )


def test_to_mermaid_returns_a_flowchart() -> None:
    assert routed().to_mermaid().splitlines() == [
        "flowchart LR",
        '    s0{{"r"}}',
        '    s1["b<br/>timeout=3s<br/>retry=2"]',
        '    s2["c<br/>conditional<br/>optional"]',
        "    s0 -.->|x| s1",
        "    s1 -.-> s2",
    ]


def test_to_dot_returns_a_graph() -> None:
    assert routed().to_dot().splitlines() == [
        'digraph "the \\"p\\"" {',
        "    rankdir=LR;",
        '    node [shape=box, fontname="sans-serif"];',
        '    "r" [label="r", shape=diamond];',
        '    "b" [label="b\\ntimeout=3s\\nretry=2"];',
        '    "c" [label="c\\nconditional\\noptional"];',
        '    "r" -> "b" [style=dashed, label="x"];',
        '    "b" -> "c" [style=dashed];',
        "}",
    ]


def test_describe_returns_a_table_of_the_stages() -> None:
    assert routed().build().describe().splitlines() == [
        "level  stage  kind       after  policies",
        "1      r      route      -      -",
        "2      b      transform  r      route=x timeout=3s retry=2",
        "3      c      transform  b      conditional optional",
    ]


def test_diagram_of_a_long_chain_does_not_recurse() -> None:
    pipeline = Pipeline("long", stages=[])
    for number in reversed(range(3000)):
        needs = (f"s{number - 1}",) if number else ()
        pipeline = pipeline.with_stage(f"s{number}", nothing, dependencies=needs)
    lines = pipeline.build().describe().splitlines()
    assert lines[-1].split()[:2] == ["3000", "s2999"]
    assert graph_as_text([]) == "level  stage  kind  after  policies"


def test_every_stage_option_is_declared_as_keyword_and_as_spec_field() -> None:
    internal = {"runner", "inputs", "takes_context", "map", "child"}  # set by the methods that add a stage
    assert set(StageDescription.__annotations__) == set(StageSpec.__struct_fields__) - internal
