"""Stages that type checkers accept and reject: mypy and pyright check this file, and unused ignores in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from stageflow import Pipeline, PipelineResults, StageContext, StageOutput, stage


class Synchronous:
    def execute(self, ctx: StageContext) -> dict[str, int]:
        return {"rows": 1}


class Asynchronous:
    async def execute(self, ctx: StageContext) -> StageOutput:
        return StageOutput.ok(rows=1)


class WithInput:
    async def execute(self, ctx: StageContext, rows: list[int]) -> None: ...


class WithoutExecute:
    pass


class Text:
    def execute(self, ctx: StageContext) -> str:
        return "rows"


def function(ctx: StageContext) -> Mapping[str, Any]:
    return {}


async def coroutine(ctx: StageContext, rows: int = 3) -> dict[str, str] | None:
    return None


@stage(name="described", timeout=2.0)
async def described(ctx: StageContext) -> StageOutput:
    return StageOutput.skip("nothing to do")


def untyped(ctx):  # type: ignore[no-untyped-def]
    return {"rows": 1}


def text(ctx: StageContext) -> str:
    return "rows"


async def coroutine_of_set(ctx: StageContext) -> set[WithoutExecute]:
    return set()


accepted = (
    Pipeline("accepted")
    .with_stage("class", Synchronous)
    .with_stage("instance", Asynchronous())
    .with_stage("input", WithInput)
    .with_stage("function", function)
    .with_stage("coroutine", coroutine)
    .with_stage("described", described)
    .with_stage("partial", partial(coroutine, rows=1))
    .with_stage("lambda", lambda ctx: {"rows": 1})
    .with_stage("untyped", untyped)
    .with_stage("text", Text)
    .with_stage("text function", text)
    .with_stage("set", coroutine_of_set)
    .with_stages(described, described)
)


def rejected(pipeline: Pipeline) -> None:
    pipeline.with_stage("number", 42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pipeline.with_stage("class", WithoutExecute)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pipeline.with_stages(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def results(found: PipelineResults) -> tuple[dict[str, Any], float, bool]:
    return found.data("load"), found["load"].duration_ms, found.ok
