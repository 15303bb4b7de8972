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
    """Builds wide events and hands them to a sink.

    The engine calls its two methods for every attempt and every run. A subclass that overrides
    one calls the parent to emit; if it raises, the engine emits what is missing, and counts.

    Args:
        event_sink: Where events go; default the global sink at the moment of emission.

    Raises:
        TypeError: The sink has neither `emit` nor `try_emit`.

    Example:
        class Alerting(WideEventEmitter):
            def emit_stage_wide(self, stage_name, result, ctx):
                if result.duration_ms > 2000:
                    print(f"{stage_name} took {result.duration_ms} ms")
                super().emit_stage_wide(stage_name, result, ctx)
    """

    # On the class, so that a subclass which does not call `super().__init__` works too.
    _event_sink: EventSink | Any | None = None

    def __init__(self, event_sink: EventSink | Any | None = None) -> None:
        if event_sink is not None:
            DELIVERY.channel_of(event_sink)
            self._event_sink = event_sink

    @property
    def event_sink(self) -> EventSink | Any:
        """The sink that the next event goes to."""
        return get_event_sink() if self._event_sink is None else self._event_sink

    def emit_stage_wide(self, stage_name: str, result: StageResult, ctx: PipelineContext) -> None:
        """Emit `stage.wide`. A plain call: in a coroutine, in a thread, with no event loop at all.

        Args:
            stage_name: Name of the stage.
            result: How the attempt ended.
            ctx: The context of the run.
        """
        run = run_context_of(ctx)
        if run.emitted is not None:
            run.emitted.add(event_id(run.run_id, stage_name, result.attempt))
        offer_stage_wide(self.event_sink, stage_name, result, ctx, run)
        INTERRUPTS.raise_held()

    def emit_pipeline_wide(self, results: Mapping[str, StageResult], ctx: PipelineContext) -> None:
        """Emit `pipeline.wide`. A plain call: in a coroutine, in a thread, with no event loop at all.

        Args:
            results: What `graph.run()` returned, or a dict of stage results.
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
    """Build a `stage.wide` and offer it to a sink."""
    if type(sink) is not NoOpEventSink:
        offer(sink, Event("stage.wide", stage_wide(stage_name, result, ctx, run)))


def offer_pipeline_wide(
    sink: EventSink | Any, results: Mapping[str, StageResult], ctx: PipelineContext, run: RunContext
) -> None:
    """Build a `pipeline.wide` and offer it to a sink."""
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
    """Emit `stage.wide` once, by hand; see `WideEventEmitter.emit_stage_wide`."""
    WideEventEmitter(event_sink).emit_stage_wide(stage_name, result, _context_of(ctx))


def emit_pipeline_wide(
    results: Mapping[str, StageResult],
    ctx: PipelineContext | StageContext,
    event_sink: EventSink | Any | None = None,
) -> None:
    """Emit `pipeline.wide` once, by hand; see `WideEventEmitter.emit_pipeline_wide`."""
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
    """Return a picture for a rich console: status, queue, milliseconds and time of every stage.

    Attempts that were retried are not in the results; `stageflow.render.draw_run` draws them from
    the events of a journal.

    Raises:
        MissingExtraError: rich is not installed.

    Example:
        >>> from rich.console import Console
        >>> async def load(ctx): ...
        >>> results = Pipeline("p").with_stage("load", load).build().run_sync()
        >>> Console(width=80).print(draw_results(results))
        p  ok  ...
    """
    from ..render import draw_run  # rich is an extra: needed by who looks, not by who runs

    context, run_context = results.context, run_context_of(results.context)
    run = pipeline_wide(results, context, run_context)
    stages = [stage_wide(name, result, context, run_context) for name, result in results.items()]
    return draw_run(msgspec.to_builtins(run), [msgspec.to_builtins(stage) for stage in stages])
