"""Composition: `compose`, `@stage`, parameters by name; and pictures of what was composed."""

from __future__ import annotations

from typing import Any

import pytest

from stageflow import (
    MissingInputError,
    Pipeline,
    PipelineValidationError,
    Retry,
    StageKind,
    StageOutput,
    StageStatus,
    stage,
)
from stageflow.pipeline.spec import StageDescription, StageSpec
from stageflow.render import graph_as_text


async def nothing(ctx: Any) -> None: ...


# ------------------------------------------------------------ compose


async def test_compose_puts_the_stages_of_both_under_the_first_name() -> None:
    first = Pipeline("first").with_stage("a", nothing)
    second = Pipeline("second").with_stage("b", nothing, dependencies=("a",))
    whole = first.compose(second)
    assert repr(whole) == "<Pipeline 'first': a, b>"
    assert (repr(first), repr(second)) == ("<Pipeline 'first': a>", "<Pipeline 'second': b>")
    assert (await whole.run()).ok


def test_a_stage_from_a_common_pipeline_stands_once() -> None:
    common = Pipeline("common").with_stage("load", nothing)
    left = common.with_stage("left", nothing, dependencies=("load",))
    right = common.with_stage("right", nothing, dependencies=("load",))
    assert repr(left.compose(right)) == "<Pipeline 'common': load, left, right>"


def test_two_different_stages_of_one_name_are_a_mistake() -> None:
    whole = Pipeline("p").with_stage("a", nothing).compose(Pipeline("q").with_stage("a", nothing))
    with pytest.raises(PipelineValidationError) as caught:
        whole.build()
    assert caught.value.problems == ("stage 'a' is described 2 times; names must differ: rename all but one",)


# ------------------------------------------------------------ @stage


@stage(kind=StageKind.ENRICH, retry=Retry(attempts=2, wait=0), timeout=5)
async def load(ctx: Any) -> dict[str, Any]:
    if ctx.attempt == 1:
        raise ConnectionError("again")
    return {"documents": ["a", "b"], "source": "index"}


@stage(name="rank_them", dependencies=("load",))
def rank(ctx: Any, documents: list[str], *, top: int = 1) -> dict[str, Any]:
    return {"best": documents[:top]}


async def test_a_decorated_function_carries_name_kind_and_policies() -> None:
    graph = Pipeline("p").with_stages(load, rank).build()
    results = await graph.run()
    assert results.data("rank_them") == {"best": ["a"]}
    assert (results["load"].kind, results["load"].attempts) == (StageKind.ENRICH, 2)


async def test_what_with_stage_is_told_goes_before_what_is_carried() -> None:
    results = await Pipeline("p").with_stage("other", load, StageKind.AGENT, retry=Retry(1)).run()
    assert (results["other"].kind, results["other"].status) == (StageKind.AGENT, StageStatus.FAIL)


def test_the_decorated_function_stays_as_it_is() -> None:
    assert rank(None, ["x", "y"], top=2) == {"best": ["x", "y"]}


def test_a_class_carries_its_kind() -> None:
    class Guard:
        kind = StageKind.GUARD

        async def execute(self, ctx: Any) -> None: ...

    assert Pipeline("p").with_stage("g", Guard).stages[0].kind is StageKind.GUARD


def test_unknown_option_or_missing_name_raises_at_once() -> None:
    with pytest.raises(TypeError) as caught:
        stage(retires=3)  # type: ignore[call-overload]
    assert str(caught.value) == (
        "@stage has no option 'retires'; did you mean 'retry'?"
        "\n  hint: the options are conditional, optional, when, route, timeout, retry, limit, interceptors,"
        " name, kind, dependencies"
    )
    with pytest.raises(
        TypeError, match="stage 'a': with_stage\\(\\) has no option 'timout'; did you mean 'timeout'"
    ):
        Pipeline("p").with_stage("a", nothing, timout=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="carries no name"):
        Pipeline("p").with_stages(nothing)


# ------------------------------------------------------------ parameters by name


async def test_parameters_are_taken_from_the_dependencies_by_name() -> None:
    async def gives(ctx: Any) -> dict[str, int]:
        return {f"from_{ctx.stage}": 1}

    async def takes(ctx: Any, from_a: int, from_b: int, absent: str = "default") -> dict[str, Any]:
        return {"took": (from_a, from_b, absent)}

    pipeline = Pipeline("p").with_stage("a", gives).with_stage("b", gives)
    results = await pipeline.with_stage("takes", takes, dependencies=("a", "b")).run()
    assert results.data("takes") == {"took": (1, 1, "default")}


async def test_a_parameter_that_nothing_gave_fails_the_stage_with_the_nearest_match() -> None:
    async def takes(ctx: Any, documnets: list[str]) -> None: ...

    pipeline = Pipeline("p").with_stage("load", load).with_stage("takes", takes, dependencies=("load",))
    error = (await pipeline.run())["takes"].exception
    assert isinstance(error, MissingInputError)
    assert error.message == "no dependency gave its parameter 'documnets'; did you mean 'documents'?"
    assert error.hint == "'load' gave ['documents', 'source']"


async def test_a_parameter_that_several_gave_fails_the_stage_and_names_them() -> None:
    async def gives(ctx: Any) -> dict[str, int]:
        return {"n": 1}

    async def takes(ctx: Any, n: int) -> None: ...

    pipeline = Pipeline("p").with_stage("a", gives).with_stage("b", gives)
    results = await pipeline.with_stage("takes", takes, dependencies=("a", "b")).run()
    error = results["takes"].exception
    assert isinstance(error, MissingInputError)
    assert error.message == "its parameter 'n' is given by 'a' and 'b'"


# ------------------------------------------------------------ pictures


def routed() -> Pipeline:
    async def route(ctx: Any) -> StageOutput:
        return StageOutput.route("x")

    return (
        Pipeline('the "p"')
        .with_stage("r", route, StageKind.ROUTE)
        .with_stage("b", nothing, dependencies=("r",), route="x", timeout=3, retry=Retry(2), limit=None)
        .with_stage("c", nothing, dependencies=("b",), conditional=True, optional=True)
    )


def test_a_pipeline_as_mermaid() -> None:
    assert routed().to_mermaid().splitlines() == [
        "flowchart LR",
        '    s0{{"r"}}',
        '    s1["b<br/>timeout=3s<br/>retry=2"]',
        '    s2["c<br/>conditional<br/>optional"]',
        "    s0 -.->|x| s1",
        "    s1 -.-> s2",
    ]


def test_a_pipeline_as_dot() -> None:
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


def test_a_graph_described_in_a_terminal() -> None:
    assert routed().build().describe().splitlines() == [
        "level  stage  kind       after  policies",
        "1      r      route      -      -",
        "2      b      transform  r      route=x timeout=3s retry=2",
        "3      c      transform  b      conditional optional",
    ]


def test_a_picture_of_a_long_chain_needs_no_recursion() -> None:
    pipeline = Pipeline("long", stages=[])
    for number in reversed(range(3000)):
        needs = (f"s{number - 1}",) if number else ()
        pipeline = pipeline.with_stage(f"s{number}", nothing, dependencies=needs)
    lines = pipeline.build().describe().splitlines()
    assert lines[-1].split()[:2] == ["3000", "s2999"]
    assert graph_as_text([]) == "level  stage  kind  after  policies"


def test_every_stage_option_is_declared_as_keyword_and_as_spec_field() -> None:
    assert set(StageDescription.__annotations__) == set(StageSpec.__struct_fields__) - {"runner"}
