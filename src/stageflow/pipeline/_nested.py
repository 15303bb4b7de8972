"""Runs a pipeline as a stage of another one, once or as a loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import UNSET

from ..context import PipelineContext, StageContext
from ..errors import LoopLimitError, MissingInputError, RunFailedError, StageOutputError
from ..results import PipelineResults
from ..stages import ChildRun, StageOutput, StageResult, StageStatus
from ._output import fields_of
from ._plan import Plan
from ._scheduler import Scheduler
from ._spec import ChildSpec

__all__ = ["NestedPipeline"]


class NestedPipeline:
    """A stage that runs a pipeline.

    Args:
        plan: The pipeline.
        spec: The description of the stage.
        dependencies: Names of the stages whose outputs are passed to the pipeline.
    """

    def __init__(self, plan: Plan, spec: ChildSpec, dependencies: tuple[str, ...]) -> None:
        self._plan = plan
        self._spec = spec
        self._dependencies = dependencies
        self._last = tuple(node.name for node in plan.nodes if not node.dependents)

    async def execute(self, ctx: StageContext) -> StageOutput:
        """Run the pipeline until it has ended, or a loop until its last iteration has ended.

        Raises:
            MissingInputError: Several dependencies returned the same key.
            RunFailedError: A run failed.
        """
        data = self._input(ctx)
        most = self._spec.max_iterations
        if most is None:
            return self._output(await self._run(ctx, data), ctx)
        iterations = 0
        while True:
            results = await self._run(ctx, data)
            iterations += 1
            output = self._output(results, ctx)
            if output.status is not StageStatus.OK or results.outcome == "stopped":
                return output
            done = self._spec.until(results)
            if inspect.isawaitable(done):
                done = await done
            if done:
                return output
            if iterations == most:
                return StageOutput.fail(self._limit_reached(most, results, ctx))
            data = self._next_data(data, output)

    def _limit_reached(self, most: int, results: PipelineResults, ctx: StageContext) -> LoopLimitError:
        return LoopLimitError(
            f"`until` was still false after {most} iteration{'s' if most > 1 else ''} of pipeline"
            f" {self._plan.name!r}, the maximum",
            results=results,
            stage=ctx.stage,
            hint="increase max_iterations, or find out why `until` never returned true:"
            f" `stageflow show {results.context.pipeline_run_id}` shows the last iteration",
        )

    @staticmethod
    def _next_data(data: Any, output: StageOutput) -> Any:
        """Return the data of the next iteration: single values replace each other, mappings are combined."""
        if output.returned is not UNSET and not isinstance(data, Mapping):
            return output.returned
        return {**_as_mapping(data), **output.data}

    def _input(self, ctx: StageContext) -> Any:
        """Return the data of the first run: that of the parent run, and the outputs of the dependencies."""
        if not self._dependencies:
            return ctx.run.data
        outputs, repeated = _merged(ctx.inputs.result_from(name) for name in self._dependencies)
        if repeated is not None:
            key, stages = repeated
            raise MissingInputError(
                f"more than one dependency returned the key {key!r} for the data of pipeline"
                f" {self._plan.name!r}: {' and '.join(map(repr, stages))}",
                stage=ctx.stage,
                run_id=str(ctx.run.pipeline_run_id),
                hint="return the values under different keys",
            )
        return {**_as_mapping(ctx.run.data), **outputs}

    async def _run(self, ctx: StageContext, data: Any) -> PipelineResults:
        if ctx.cancelled:  # an interceptor or `until` has ignored the cancellation of the attempt
            raise asyncio.CancelledError
        context = PipelineContext(data=data, resources=ctx.run.resources)
        run = Scheduler(self._plan, context, None)

        def abandon() -> None:
            run.abandoned()
            _store(ctx, run)

        ctx._on_abandon = abandon
        try:
            results = await run.complete(cancelled_by="cancelled by its parent run")
        finally:
            ctx._on_abandon = None
            _store(ctx, run)
        if results.outcome == "cancelled":
            await self._propagate_cancellation(run)
        try:
            return results.raise_on_failure()
        except RunFailedError as error:
            error.hint = f"`stageflow show {run.run_id}` shows the child run"
            raise

    async def _propagate_cancellation(self, run: Scheduler) -> None:
        """Cancel the current attempt: other code cancelled a task of the child run.

        The parent run then ends as if that task were its own.
        """
        task = asyncio.current_task()
        assert task is not None
        task.cancel(f"a task of its child run {run.run_id}")
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    def _output(self, results: PipelineResults, ctx: StageContext) -> StageOutput:
        """Return the output of a run: the data of its last stages, or of the stage that stopped it."""
        stopped = results.outcome == "stopped"
        reason = f"the child run was stopped: {results.reason}" if stopped else None
        ended = [results[name] for name in self._last if results[name].ok]
        ended += [result for result in results.values() if result.status is StageStatus.CANCEL]
        if len(self._last) == len(ended) == 1:
            (last,) = ended
            return StageOutput(StageStatus.OK, dict(last.data), reason=reason, returned=last.returned)
        data, repeated = _merged(ended)
        if stopped:  # which stages have ended depends on the time, so the data of a stop takes precedence
            for result in ended:
                data.update(result.data)
        if stopped or repeated is None:
            return StageOutput(StageStatus.OK, data, reason=reason)
        key, stages = repeated
        return StageOutput.fail(
            StageOutputError(
                f"more than one of the final stages of pipeline {self._plan.name!r} returned the key {key!r}:"
                f" {' and '.join(map(repr, stages))}",
                stage=ctx.stage,
                hint="return the values under different keys, or add a final stage that combines them",
            )
        )


def _as_mapping(data: Any) -> Mapping[str, Any]:
    """Return the data of a run as a mapping, as for the value of a stage: its fields, or the key `value`."""
    return data if isinstance(data, Mapping) else fields_of(data)


def _merged(
    results: Iterable[StageResult],
) -> tuple[dict[str, Any], tuple[str, tuple[str, str]] | None]:
    """Return the data of several stages, and a key that two of them returned with their names, or None."""
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for result in results:
        for key, value in result.data.items():
            if key in sources:
                return merged, (key, (sources[key], result.name))
            merged[key] = value
            sources[key] = result.name
    return merged, None


def _store(ctx: StageContext, run: Scheduler) -> None:
    """Store the results of a run that has ended."""
    if run.results is not None:
        ctx.child_run_ended(ChildRun(run.run_id, run.results))
