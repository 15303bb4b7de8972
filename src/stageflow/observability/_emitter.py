"""`WideEventEmitter`, and functions that emit or draw wide events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .._interrupts import INTERRUPTS
from ..context import PipelineContext, StageContext
from ..events import DELIVERY, Event, EventSink, NoOpEventSink, get_event_sink, offer
from ..results import PipelineResults
from ..schema import event_id
from ..stages import StageResult
from ._run_context import RunContext, run_context_of
from ._wide_events import pipeline_wide, stage_wide

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "WideEventEmitter",
    "draw_results",
    "emit_pipeline_wide",
    "emit_pipeline_wide_event",
    "emit_stage_wide",
    "emit_stage_wide_event",
    "offer_pipeline_wide",
    "offer_stage_wide",
]


class WideEventEmitter:
    """Builds wide events and passes them to a sink.

    The engine calls the two methods for every attempt and every run. An overriding method calls its parent to
    emit the event. If it raises, the engine emits the missing event, and counts and logs the error.

    Args:
        event_sink: The sink; default: the global sink at the time of emission.

    Raises:
        TypeError: The sink has neither `emit` nor `try_emit`.

    Example:
        class Alerting(WideEventEmitter):
            def emit_stage_wide(self, stage_name, result, ctx):
                if result.duration_ms > 2000:
                    print(f"{stage_name} took {result.duration_ms} ms")
                super().emit_stage_wide(stage_name, result, ctx)
    """

    # A class attribute, so that a subclass works without calling `super().__init__`.
    _event_sink: EventSink | Any | None = None

    def __init__(self, event_sink: EventSink | Any | None = None) -> None:
        if event_sink is not None:
            DELIVERY.channel_of(event_sink)
            self._event_sink = event_sink

    @property
    def event_sink(self) -> EventSink | Any:
        """The sink that receives the next event."""
        return get_event_sink() if self._event_sink is None else self._event_sink

    def emit_stage_wide(self, stage_name: str, result: StageResult, ctx: PipelineContext) -> None:
        """Emit `stage.wide` for one attempt. Can be called in any thread, with or without an event loop.

        Args:
            stage_name: Name of the stage.
            result: The result of the attempt.
            ctx: The context of the run.
        """
        run = run_context_of(ctx)
        if run.emitted is not None:
            run.emitted.add(event_id(run.run_id, stage_name, result.attempt))
        offer_stage_wide(self.event_sink, stage_name, result, ctx, run)
        INTERRUPTS.raise_held()

    def emit_pipeline_wide(self, results: Mapping[str, StageResult], ctx: PipelineContext) -> None:
        """Emit `pipeline.wide` for one run. Can be called in any thread, with or without an event loop.

        Args:
            results: The return value of `graph.run()`, or a dict of stage results.
            ctx: The context of the run.
        """
        run = run_context_of(ctx)
        if run.emitted is not None:
            run.emitted.add(run.run_id)
        offer_pipeline_wide(self.event_sink, results, ctx, run)
        INTERRUPTS.raise_held()

    def emit_stage_event(self, *, ctx: PipelineContext | StageContext, result: StageResult) -> None:
        """Call `emit_stage_wide`; the name and arguments are those of stageflow-core."""
        self.emit_stage_wide(result.name, result, _context_of(ctx))

    def emit_pipeline_event(
        self, *, ctx: PipelineContext | StageContext, stage_results: Mapping[str, StageResult]
    ) -> None:
        """Call `emit_pipeline_wide`; the name and arguments are those of stageflow-core."""
        self.emit_pipeline_wide(stage_results, _context_of(ctx))


def offer_stage_wide(
    sink: EventSink | Any, stage_name: str, result: StageResult, ctx: PipelineContext, run: RunContext
) -> None:
    """Build a `stage.wide` event and offer it to a sink."""
    if type(sink) is not NoOpEventSink:
        offer(sink, Event("stage.wide", stage_wide(stage_name, result, ctx, run)))


def offer_pipeline_wide(
    sink: EventSink | Any, results: Mapping[str, StageResult], ctx: PipelineContext, run: RunContext
) -> None:
    """Build a `pipeline.wide` event and offer it to a sink."""
    if type(sink) is not NoOpEventSink:
        with INTERRUPTS:
            event = Event("pipeline.wide", pipeline_wide(results, ctx, run))
        offer(sink, event)


def emit_stage_wide(
    stage_name: str,
    result: StageResult,
    ctx: PipelineContext | StageContext,
    event_sink: EventSink | Any | None = None,
) -> None:
    """Emit a single `stage.wide` event manually; see `WideEventEmitter.emit_stage_wide`."""
    WideEventEmitter(event_sink).emit_stage_wide(stage_name, result, _context_of(ctx))


def emit_pipeline_wide(
    results: Mapping[str, StageResult],
    ctx: PipelineContext | StageContext,
    event_sink: EventSink | Any | None = None,
) -> None:
    """Emit a single `pipeline.wide` event manually; see `WideEventEmitter.emit_pipeline_wide`."""
    WideEventEmitter(event_sink).emit_pipeline_wide(results, _context_of(ctx))


def emit_stage_wide_event(
    *, ctx: PipelineContext | StageContext, result: StageResult, emitter: WideEventEmitter | None = None
) -> None:
    """Call `emit_stage_wide`; the name and arguments are those of stageflow-core."""
    (emitter or WideEventEmitter()).emit_stage_event(ctx=ctx, result=result)


def emit_pipeline_wide_event(
    *,
    ctx: PipelineContext | StageContext,
    stage_results: Mapping[str, StageResult],
    emitter: WideEventEmitter | None = None,
) -> None:
    """Call `emit_pipeline_wide`; the name and arguments are those of stageflow-core."""
    (emitter or WideEventEmitter()).emit_pipeline_event(ctx=ctx, stage_results=stage_results)


def _context_of(ctx: PipelineContext | StageContext) -> PipelineContext:
    return ctx.run if isinstance(ctx, StageContext) else ctx


def draw_results(results: PipelineResults) -> RenderableType:
    """Draw a run for a rich console: status, queue time, duration and timeline of every stage.

    Results do not include retried attempts; `stageflow.render.draw_run` draws them from the events of a
    journal.

    Raises:
        MissingExtraError: rich is not installed.

    Example:
        >>> from rich.console import Console
        >>> async def load(ctx): ...
        >>> results = Pipeline("p").with_stage("load", load).build().run_sync()
        >>> Console(width=80).print(draw_results(results))
        p  ok  ...
    """
    from ..render import draw_run  # rich is an extra, so it is imported only when it is needed

    context, run_context = results.context, run_context_of(results.context)
    run = pipeline_wide(results, context, run_context)
    stages = [stage_wide(name, result, context, run_context) for name, result in results.items()]
    return draw_run(msgspec.to_builtins(run), [msgspec.to_builtins(stage) for stage in stages])
