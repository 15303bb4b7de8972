"""Keeps the law of the record for one run: every event is emitted, whatever an emitter does."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable
from typing import Any

from ..clock import get_clock
from ..context import PipelineContext, StageContext
from ..events import Event, NoOpEventSink
from ..events.channel import offer
from ..events.stats import TALLY
from ..stages import PipelineResults, StageResult
from .emitter import WideEventEmitter
from .plain import plain
from .run_record import RunRecord
from .stage_event import stage_event_id
from .timestamps import rfc3339

__all__ = ["RunRecorder"]

log = logging.getLogger("stageflow.observability")


class RunRecorder:
    """Emits what a run did.

    Args:
        record: The identity of the run.
        context: The run's own context.
        emitter: The emitter of the graph, overriding or not.
        stages: Emit `stage.wide`.
        pipeline: Emit `pipeline.wide`.
    """

    __slots__ = ("_context", "_emitter", "_pipeline", "_record", "interrupt", "stages")

    def __init__(
        self,
        record: RunRecord,
        context: PipelineContext,
        emitter: WideEventEmitter,
        *,
        stages: bool,
        pipeline: bool,
    ) -> None:
        self._record = record
        self._context = context
        self._emitter = emitter
        self.stages = stages
        self._pipeline = pipeline
        self.interrupt: BaseException | None = None
        """A `KeyboardInterrupt` or `SystemExit` out of an emitter, for the run to pass on."""
        if type(emitter) is not WideEventEmitter:
            record.emitted = set()

    def stage_ended(self, result: StageResult) -> None:
        """Emit `stage.wide` for an attempt that was retried, or for a stage's end."""
        emitter, context = self._emitter, self._context
        try:
            emitter.emit_stage_wide(result.name, result, context)
        except BaseException as error:
            self._missed(
                error,
                stage_event_id(result.name, result, self._record),
                lambda: WideEventEmitter.emit_stage_wide(emitter, result.name, result, context),
            )

    def run_ended(self, results: PipelineResults) -> None:
        """Emit `pipeline.wide`."""
        if not self._pipeline:
            return
        emitter, context = self._emitter, self._context
        try:
            emitter.emit_pipeline_wide(results, context)
        except BaseException as error:
            self._missed(
                error,
                self._record.run_id,
                lambda: WideEventEmitter.emit_pipeline_wide(emitter, results, context),
            )

    def _missed(self, error: BaseException, event_id: str, emit: Callable[[], None]) -> None:
        TALLY.emitter_errors += 1
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.interrupt = self.interrupt or error
        log.warning(
            "emitter %s raised while emitting %s: %s: %s",
            type(self._emitter).__name__,
            event_id,
            type(error).__name__,
            error,
        )
        emitted = self._record.emitted
        if emitted is not None and event_id not in emitted:
            try:
                emit()
            except Exception:
                log.exception("event %s could not be emitted", event_id)

    def custom_event(self, ctx: StageContext, type: str, data: dict[str, Any] | None) -> None:
        """Send an event of a stage's own, with the ids of its run; the stage's keys come first.

        A key of the stage that is also one of ours is kept under `payload`.
        """
        sink = self._emitter.event_sink
        if builtins.type(sink) is NoOpEventSink:
            return
        record = self._record
        correlation_ids, metadata = record.identity
        now = record.origin_ns + get_clock().monotonic_ns()
        ours: dict[str, Any] = {
            "event_id": f"{record.run_id}/{ctx.stage}/{ctx.attempt}/{ctx.events_count}",
            "stage_name": ctx.stage,
            "attempt": ctx.attempt,
            "emitted_at": rfc3339(now // 1000),
            "correlation_ids": correlation_ids,
            "pipeline_metadata": metadata,
        }
        own = plain(dict(data)) if data else {}
        clash = own.keys() & ours.keys()
        if clash:
            ours["payload"] = {key: own[key] for key in clash}
        offer(sink, Event(str(type), {**own, **ours}))
