"""Context variables: those that a stage sees, and those that interceptors and other stages see from it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from stageflow import Pipeline, PipelineResults, Retry, StageContext, StageOutput
from stageflow.pipeline import Proceed, StageCall

tenant: ContextVar[str] = ContextVar("tenant", default="none")


async def coroutine(ctx: StageContext) -> dict[str, Any]:
    return {"tenant": tenant.get()}


def synchronous(ctx: StageContext) -> dict[str, Any]:
    return {"tenant": tenant.get(), "thread": threading.current_thread().name}


class AsClass:
    async def execute(self, ctx: StageContext) -> dict[str, Any]:
        return await coroutine(ctx)


class AsSynchronousClass:
    def execute(self, ctx: StageContext) -> dict[str, Any]:
        return synchronous(ctx)


async def for_acme(call: StageCall, proceed: Proceed) -> StageOutput:
    token = tenant.set("acme")
    try:
        return await proceed()
    finally:
        tenant.reset(token)


def is_for_acme(ctx: StageContext) -> bool:
    tenant.set("acme")
    return True


async def is_for_acme_later(ctx: StageContext) -> bool:
    await asyncio.sleep(0)
    return is_for_acme(ctx)


def decorated(function: Callable[[StageContext], Any]) -> Callable[[StageContext], Any]:
    @functools.wraps(function)
    def call(ctx: StageContext) -> Any:
        tenant.set("acme")
        return function(ctx)

    return call


async def run_one(stage: Any, **options: Any) -> PipelineResults:
    return await Pipeline("p").with_stage("s", stage, **options).run()


@pytest.mark.parametrize("stage", [coroutine, synchronous, AsClass, AsSynchronousClass])
@pytest.mark.parametrize(
    "options",
    [{"interceptors": (for_acme,)}, {"when": is_for_acme}, {"when": is_for_acme_later}],
    ids=["interceptor", "when", "asynchronous when"],
)
async def test_stage_sees_variables_of_its_interceptors_and_its_condition(
    stage: Any, options: dict[str, Any]
) -> None:
    assert (await run_one(stage, **options)).data("s")["tenant"] == "acme"
    assert tenant.get() == "none"


@pytest.mark.parametrize("function", [coroutine, synchronous])
async def test_stage_sees_variables_of_a_synchronous_decorator(function: Any) -> None:
    assert (await run_one(decorated(function))).data("s")["tenant"] == "acme"


@pytest.mark.parametrize("function", [coroutine, synchronous])
async def test_stage_sees_variables_that_its_class_sets_when_it_is_instantiated(function: Any) -> None:
    class Client:
        def __init__(self) -> None:
            tenant.set("acme")

        def execute(self, ctx: StageContext) -> Any:
            return function(ctx)

    assert (await run_one(Client)).data("s")["tenant"] == "acme"


@pytest.mark.parametrize("function", [coroutine, synchronous])
async def test_each_attempt_sees_variables_of_condition_and_instantiation_which_run_once(
    function: Any,
) -> None:
    locale: ContextVar[str] = ContextVar("locale", default="none")
    seen: list[tuple[int, str, str]] = []

    class Client:
        def __init__(self) -> None:
            locale.set("de")

        def execute(self, ctx: StageContext) -> Any:
            seen.append((ctx.attempt, tenant.get(), locale.get()))
            tenant.set(f"set by attempt {ctx.attempt}")
            if ctx.attempt < 3:
                raise ConnectionError
            return function(ctx)

    results = await run_one(Client, when=is_for_acme, retry=Retry(attempts=3, wait=0))
    assert results.data("s")["tenant"] == "set by attempt 3"
    assert seen == [(1, "acme", "de"), (2, "acme", "de"), (3, "acme", "de")]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("runs_in_thread", [False, True])
async def test_interceptor_sees_variables_that_the_stage_has_set(runs_in_thread: bool, fails: bool) -> None:
    seen: list[str] = []

    async def looks(call: StageCall, proceed: Proceed) -> StageOutput:
        try:
            return await proceed()
        finally:
            seen.append(tenant.get())

    def sets(ctx: StageContext) -> None:
        tenant.set("acme")
        if fails:
            raise ValueError

    async def sets_on_the_loop(ctx: StageContext) -> None:
        sets(ctx)

    results = await run_one(sets if runs_in_thread else sets_on_the_loop, interceptors=(looks,))
    assert results["s"].ok is not fails
    assert seen == ["acme"]


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Set a variable for a block, as tracing libraries do: the token must be reset in the same context."""
    token = tenant.set(name)
    try:
        yield
    finally:
        tenant.reset(token)


async def test_spans_nest_across_interceptors_and_threads() -> None:
    seen: list[str] = []

    async def outer(call: StageCall, proceed: Proceed) -> StageOutput:
        with span("outer"):
            output = await proceed()
            seen.append(tenant.get())
            return output

    def inner(ctx: StageContext) -> None:
        seen.append(tenant.get())
        with span("inner"):
            seen.append(tenant.get())

    assert (await run_one(inner, interceptors=(outer,))).ok
    assert seen == ["outer", "inner", "outer"]


@pytest.mark.parametrize("sets_in_thread", [False, True])
async def test_other_stages_see_variables_of_the_run_only(sets_in_thread: bool) -> None:
    def sets(ctx: StageContext) -> None:
        tenant.set("acme")

    async def sets_on_the_loop(ctx: StageContext) -> None:
        tenant.set("acme")

    pipeline = (
        Pipeline("p")
        .with_stage("first", sets if sets_in_thread else sets_on_the_loop, interceptors=(for_acme,))
        .with_stage("next", coroutine, dependencies=("first",))
        .with_stage("last", synchronous, dependencies=("next",))
    )
    token = tenant.set("caller")
    results = await pipeline.run()
    assert [results.data(name)["tenant"] for name in ("next", "last")] == ["caller", "caller"]
    assert tenant.get() == "caller"
    tenant.reset(token)
