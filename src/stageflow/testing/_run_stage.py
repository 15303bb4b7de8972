"""Runs a single stage through the engine, with stubs for its dependencies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from msgspec.structs import replace

from ..context import PipelineContext, StageContext
from ..errors import InvalidArgumentError, did_you_mean, invalid_argument
from ..pipeline import Interceptor, Pipeline, Proceed, StageCall, StageSpec, carried_description
from ..retry import Retry
from ..stages import StageOutput, StageResult, StageStatus

__all__ = ["RunStageOptions", "run_stage", "run_stage_sync"]

Input = Mapping[str, Any] | StageOutput | Sequence[Any] | None
"""The output of a dependency, or the chunks of its stream."""


class RunStageOptions(TypedDict, total=False):
    """The keyword arguments of `run_stage`."""

    context: PipelineContext | None
    data: Any
    name: str | None
    attempt: int
    retry: Retry | None
    timeout: float | None
    routes: Iterable[str]


async def run_stage(
    stage: Any,
    inputs: Mapping[str, Input] | None = None,
    *,
    context: PipelineContext | None = None,
    data: Any = None,
    name: str | None = None,
    attempt: int = 1,
    retry: Retry | None = None,
    timeout: float | None = None,
    routes: Iterable[str] = (),
) -> StageResult:
    """Run a single stage as a pipeline would, and return its result: status, data, attributes, exception.

    The options that `@stage` attaches to the stage apply (`when`, `retry`, `timeout`, `interceptors`, ...),
    except for `limit` and `route`, which depend on the pipeline.

    Args:
        stage: A runner as for `with_stage`: a function, a class or an instance.
        inputs: The outputs of the dependencies, by name: a mapping, or a `StageOutput` such as
            `StageOutput.skip("no index")`. If `@stage` declares dependencies, each of them must be included;
            other stages are ancestors of the dependencies. For a stage in `streams`: the list of its chunks.
        context: The context of the run; default an empty one.
        data: The input of the run, instead of the one in `context`.
        name: Name of the stage; default the name from `@stage`, or that of the function or class.
        attempt: Number of the first attempt that calls the stage; the previous ones count as retried.
        retry: Retry policy; default the one from `@stage`.
        timeout: Maximum duration of an attempt in seconds; default the one from `@stage`.
        routes: The labels from which a stage of kind ROUTE can choose. The chosen labels are in
            `attributes["routes"]` of the result.

    Raises:
        PipelineValidationError: The stage or its description is invalid.
        InvalidArgumentError: The output of a dependency is missing, an input cannot be the output of a
            stage, or the retry policy has fewer attempts.

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
        raise invalid_argument(
            "run_stage()", "inputs", inputs, "a mapping from the name of each dependency to its output"
        )
    (spec,) = Pipeline().with_stage(name, stage, retry=retry, timeout=timeout).stages
    spec = _starting_at(attempt, replace(spec, route=None, limit=None))
    streams = {ref.name for ref in spec.streams}
    pipeline = _with_dependencies(
        spec,
        {
            dependency: _stub(dependency, output, is_stream=dependency in streams)
            for dependency, output in (inputs or {}).items()
        },
    )
    routes = (routes,) if isinstance(routes, str) else routes
    labels = {f"{name} -> {label}": label for label in routes}
    for after, label in labels.items():
        pipeline = pipeline.with_stage(after, _returns(StageOutput.ok()), dependencies=(name,), route=label)
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
    inputs: Mapping[str, Input] | None = None,
    **options: Unpack[RunStageOptions],
) -> StageResult:
    """Run a single stage from a test without an event loop; see `run_stage`.

    Raises:
        RuntimeError: An event loop is running in this thread; use `await run_stage(...)` instead.

    Example:
        >>> run_stage_sync(lambda ctx: {"length": len(ctx.run.data)}, data="four").data
        {'length': 4}
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "run_stage_sync() would block the event loop of this thread\n  hint: use `await run_stage(...)`"
        )
    return asyncio.run(run_stage(stage, inputs, **options))


def _name_of(stage: Any) -> str:
    name = carried_description(stage).get("name") or getattr(stage, "__name__", None) or type(stage).__name__
    return name if isinstance(name, str) and name != "<lambda>" else "stage"


def _as_output(dependency: str, output: Any) -> StageOutput:
    """Return the value of an item of `inputs` as the output of a stage."""
    if output is None or isinstance(output, Mapping):
        return StageOutput.ok(output or {})
    if not isinstance(output, StageOutput):
        raise invalid_argument(
            "run_stage()",
            f"inputs[{dependency!r}]",
            output,
            'a mapping, or a StageOutput such as StageOutput.skip("...")',
            hint=f"to pass the chunks of a stream, declare it: @stage(streams=({dependency!r},))"
            if isinstance(output, list)
            else None,
        )
    if output.status in (StageStatus.CANCEL, StageStatus.RETRY):
        raise InvalidArgumentError(
            f"inputs[{dependency!r}] has the status {output.status}, after which no stage starts; "
            "use ok, skip or fail"
        )
    return replace(output, routes=None)


def _with_dependencies(spec: StageSpec, stubs: Mapping[str, Callable[..., Any]]) -> Pipeline:
    """Return a pipeline of a stage and a stub for each of its dependencies and their ancestors."""
    name, direct = spec.name, spec.dependencies or tuple(stubs)
    further = tuple(other for other in stubs if other not in direct)
    for dependency in direct:
        if dependency not in stubs:
            raise InvalidArgumentError(
                f"stage {name!r} depends on {dependency!r}, but inputs does not contain its output"
                f"{did_you_mean(dependency, further)}",
                hint=f"inputs={{{dependency!r}: {{...}}}}",
            )
    pipeline = Pipeline(name)
    for ancestor in (*further, *direct):
        # Optional, so that the stage under test runs even if a dependency fails.
        pipeline = pipeline.with_stage(
            ancestor,
            stubs[ancestor],
            dependencies=further if ancestor in direct else (),
            optional=True,
        )
    return Pipeline(name, stages=(*pipeline.stages, replace(spec, dependencies=direct)))


def _stub(dependency: str, output: Any, *, is_stream: bool) -> Callable[..., Any]:
    """Return a stage for an item of `inputs`."""
    if not is_stream or isinstance(output, StageOutput):
        return _returns(_as_output(dependency, output))
    if not isinstance(output, Sequence) or isinstance(output, (str, bytes)):
        raise invalid_argument(
            "run_stage()", f"inputs[{dependency!r}]", output, "the list of the chunks of the stream"
        )
    return _sends(output)


def _returns(output: StageOutput) -> Callable[[StageContext], Coroutine[Any, Any, StageOutput]]:
    async def stub(ctx: StageContext) -> StageOutput:
        return output

    return stub


def _sends(chunks: Sequence[Any]) -> Callable[[StageContext], AsyncIterator[Any]]:
    async def stub(ctx: StageContext) -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    return stub


def _starting_at(attempt: int, spec: StageSpec) -> StageSpec:
    """Return the stage with an interceptor that retries all earlier attempts without calling the stage."""
    if attempt == 1:
        return spec
    if not isinstance(attempt, int) or attempt < 1:
        raise invalid_argument("run_stage()", "attempt", attempt, "a positive integer")
    policy = spec.retry or Retry(attempts=max(3, attempt), on=())
    if attempt > policy.attempts:
        raise invalid_argument(
            "run_stage()",
            "attempt",
            attempt,
            f"at most {policy.attempts}, the number of attempts in the retry policy of stage {spec.name!r}",
        )

    async def skip_earlier_attempts(call: StageCall, proceed: Proceed) -> StageOutput:
        if call.ctx.attempt < attempt:
            return StageOutput.retry(f"skipped: the test starts with attempt {attempt}", after=0)
        return await proceed()

    interceptors: tuple[Interceptor, ...] = (skip_earlier_attempts, *spec.interceptors)
    return replace(spec, retry=policy, interceptors=interceptors)
