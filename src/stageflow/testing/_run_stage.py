"""Runs one stage alone, through the engine, with stand-ins for the stages before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypedDict, Unpack

from msgspec.structs import replace

from ..context import PipelineContext, StageContext
from ..errors import InvalidArgumentError, did_you_mean
from ..pipeline import Interceptor, Pipeline, Proceed, StageCall, StageSpec, carried
from ..retry import Retry
from ..stages import StageOutput, StageResult, StageStatus

__all__ = ["Alone", "run_stage", "run_stage_sync"]


class Alone(TypedDict, total=False):
    """How a stage is run alone; see `run_stage`."""

    context: PipelineContext | None
    data: Any
    name: str | None
    attempt: int
    retry: Retry | None
    timeout: float | None
    routes: Iterable[str]


async def run_stage(
    stage: Any,
    inputs: Mapping[str, Mapping[str, Any] | StageOutput | None] | None = None,
    *,
    context: PipelineContext | None = None,
    data: Any = None,
    name: str | None = None,
    attempt: int = 1,
    retry: Retry | None = None,
    timeout: float | None = None,
    routes: Iterable[str] = (),
) -> StageResult:
    """Run one stage as a pipeline would, and return its result: status, data, attributes, exception.

    What the stage carries by `@stage` holds (`when`, `retry`, `timeout`, `interceptors`, ...), but for
    its `limit` and its `route`, which are the business of its pipeline.

    Args:
        stage: What `with_stage` takes: a function, also one with parameters by name, a class, an instance.
        inputs: What the stages before it gave, by their names: a mapping, or a `StageOutput` such as
            `StageOutput.skip("no index")`. They are its dependencies. Where it carries its own by `@stage`,
            each must be here, and what else is here are stages before those.
        context: The context of the run; default an empty one.
        data: The input of the run, instead of the one in `context`.
        name: Name of the stage; default the one it carries, or that of the function or class.
        attempt: Number of the attempt that it sees as its first; those before count as retried.
        retry: Its retry policy; default what it carries.
        timeout: Seconds for an attempt; default what it carries.
        routes: For a stage of kind ROUTE, the labels that it may choose from. Those that it chose are
            in `attributes["routes"]` of the result.

    Raises:
        PipelineValidationError: It is no stage, or its description is wrong.
        ValueError: A dependency has no input, or there is no such attempt.
        InvalidArgumentError: An input is nothing that a stage can have given.

    Example:
        >>> def answer(ctx, documents):
        ...     return {"text": f"{len(documents)} documents"}
        >>> async def main():
        ...     return await run_stage(answer, {"search": {"documents": ["a", "b"]}})
        >>> asyncio.run(main()).data
        {'text': '2 documents'}
    """
    name = name or _name_of(stage)
    if inputs is not None and not isinstance(inputs, Mapping):
        raise InvalidArgumentError(f"inputs={inputs!r}; give what each stage before it gave, by their names")
    given = {before: _given(before, output) for before, output in (inputs or {}).items()}
    (described,) = Pipeline().with_stage(name, stage, retry=retry, timeout=timeout).stages
    described = _starting_at(attempt, replace(described, route=None, limit=None))
    pipeline = _with_those_before(described, given)
    routes = (routes,) if isinstance(routes, str) else routes
    labels = {f"{name} -> {label}": label for label in routes}
    for after, label in labels.items():
        pipeline = pipeline.with_stage(after, _gives(StageOutput.ok()), dependencies=(name,), route=label)
    context = context or PipelineContext()
    if data is not None:
        context = context.with_data(data)
    results = await pipeline.build().run(context)
    result = results[name]
    if labels and result.ok:
        chosen = [label for after, label in labels.items() if results[after].ok]
        result = replace(result, attributes={**result.attributes, "routes": chosen})
    return result


def run_stage_sync(
    stage: Any,
    inputs: Mapping[str, Mapping[str, Any] | StageOutput | None] | None = None,
    **alone: Unpack[Alone],
) -> StageResult:
    """Run one stage from a test without an event loop; see `run_stage`.

    Raises:
        RuntimeError: There is a running loop in this thread: await `run_stage` there.

    Example:
        >>> run_stage_sync(lambda ctx: {"length": len(ctx.run.data)}, data="four").data
        {'length': 4}
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "run_stage_sync() would block the event loop that runs in this thread"
            "\n  hint: await run_stage(...)"
        )
    return asyncio.run(run_stage(stage, inputs, **alone))


def _name_of(stage: Any) -> str:
    name = carried(stage).get("name") or getattr(stage, "__name__", None) or type(stage).__name__
    return name if isinstance(name, str) and name != "<lambda>" else "stage"


def _given(before: str, output: Any) -> StageOutput:
    """Return what a stage before this one gave, as it gave it."""
    if output is None or isinstance(output, Mapping):
        return StageOutput.ok(output or {})
    if not isinstance(output, StageOutput):
        raise InvalidArgumentError(
            f"inputs[{before!r}] is {type(output).__name__} {output!r}; give a mapping, or a StageOutput"
            ' such as StageOutput.skip("...")'
        )
    if output.status in (StageStatus.CANCEL, StageStatus.RETRY):
        raise InvalidArgumentError(
            f"inputs[{before!r}] is StageOutput.{output.status.lower()}(...), after which no stage starts; "
            "give ok, skip or fail"
        )
    return replace(output, routes=None)


def _with_those_before(described: StageSpec, given: Mapping[str, StageOutput]) -> Pipeline:
    name, direct = described.name, described.dependencies or tuple(given)
    further = tuple(other for other in given if other not in direct)
    for dependency in direct:
        if dependency not in given:
            raise ValueError(
                f"stage {name!r} depends on {dependency!r}, and inputs has nothing of it"
                f"{did_you_mean(dependency, further)}\n  hint: inputs={{{dependency!r}: {{...}}}}"
            )
    pipeline = Pipeline(name)
    for before in (*further, *direct):
        # Optional: after a failure that ends the run the stage would not run, and there were no test.
        pipeline = pipeline.with_stage(
            before,
            _gives(given[before]),
            dependencies=further if before in direct else (),
            optional=True,
        )
    return Pipeline(name, stages=(*pipeline.stages, replace(described, dependencies=direct)))


def _gives(output: StageOutput) -> Callable[[StageContext], Coroutine[Any, Any, StageOutput]]:
    async def stand_in(ctx: StageContext) -> StageOutput:
        return output

    return stand_in


def _starting_at(attempt: int, described: StageSpec) -> StageSpec:
    """Return the stage, to be retried without being called until its attempt has this number."""
    if attempt == 1:
        return described
    if not isinstance(attempt, int) or attempt < 1:
        raise ValueError(f"attempt={attempt!r}; give a whole number, 1 or more")
    policy = described.retry or Retry(attempts=max(3, attempt), on=())
    if attempt > policy.attempts:
        raise ValueError(
            f"attempt={attempt!r}, but the retry policy of stage {described.name!r} gives {policy.attempts}"
        )

    async def earlier_attempts(call: StageCall, proceed: Proceed) -> StageOutput:
        if call.ctx.attempt < attempt:
            return StageOutput.retry(f"not made: the test begins with attempt {attempt}", after=0)
        return await proceed()

    around: tuple[Interceptor, ...] = (earlier_attempts, *described.interceptors)
    return replace(described, retry=policy, interceptors=around)
