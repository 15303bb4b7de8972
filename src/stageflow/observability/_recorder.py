"""Records a run: every event is emitted, however the run ends."""

from __future__ import annotations

import builtins
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Raw

from .._interrupts import INTERRUPTS, is_a
from .._log import log_safely
from .._time import get_clock, rfc3339
from ..context import PipelineContext, added
from ..errors import as_text, describe, type_name
from ..events import GLOBAL_COUNTERS, DirectSink, Event, NoOpEventSink, accepts_marks, offer
from ..results import PipelineResults
from ..schema import SCHEMA_VERSION, RunClosed, RunOpen, WideAmend, event_id
from ..stages import StageResult
from ._emitter import WideEventEmitter, offer_pipeline_wide, offer_stage_wide
from ._resource import emit_health_if_due
from ._run_context import RunContext
from ._wide_events import stage_wide
from .sanitize._coerce import REPR_CHARS, is_mapping, safe_repr
from .sanitize._sanitizer import new_sanitizer

__all__ = ["RunRecorder"]


log = logging.getLogger("stageflow.observability")

# One for all runs: it is held for some additions. Reentrant: a signal handler may say something, too.
_lock = threading.RLock()

_warned: set[str] = set()
"""Names of the numbers that something else was added to."""

_MAX_WARNED = 1_000

_TYPE_CHARS = 256
"""Characters of the type of an own event, whatever names of fields may have: readers look for it."""


class RunRecorder:
    """Emits what a run did.

    Args:
        run: The engine's part of the run.
        context: The context of the run.
        emitter: The emitter of the graph, overriding or not.
        stages: Emit `stage.wide`.
        pipeline: Emit `pipeline.wide`.
    """

    __slots__ = (
        "_context",
        "_emitter",
        "_marked",
        "_pipeline",
        "_plain",
        "_run",
        "detached",
        "interrupt",
        "stages",
    )

    def __init__(
        self,
        run: RunContext,
        context: PipelineContext,
        emitter: WideEventEmitter,
        *,
        stages: bool,
        pipeline: bool,
    ) -> None:
        self._run = run
        self._context = context
        self._emitter = emitter
        self.stages = stages
        self._pipeline = pipeline
        self._marked: DirectSink | None = None
        self.detached = False
        self.interrupt: BaseException | None = None
        """A `KeyboardInterrupt` or `SystemExit` out of an emitter, for the run to pass on."""
        self._plain = type(emitter) is WideEventEmitter
        if not self._plain:
            run.emitted = set()

    def run_started(self, stages: Raw, started_ns: int) -> None:
        """Mark the run's beginning in a sink that keeps such marks.

        Args:
            stages: The outline of every stage, as JSON.
            started_ns: When, in nanoseconds since the epoch.
        """
        if not (self.stages or self._pipeline):
            return
        try:
            sink = self._emitter.event_sink
            if not accepts_marks(sink):
                return
            identity = self._run.identity(self._context)
            opened = RunOpen(
                identity.event_id,
                identity.pipeline_name,
                identity.correlation_ids,
                identity.pipeline_metadata,
                identity.parent_run_id,
                identity.root_run_id,
                identity.resource,
                identity.trace,
                rfc3339(started_ns // 1000),
                self.stages,
                self._pipeline,
                stages,
            )
            self._marked = sink
            sink.accept_mark(opened)
        except BaseException as error:
            INTERRUPTS.postpone(error)
            log_safely(
                log, "the start mark of run %s could not be written: %s", self._run.run_id, describe(error)
            )

    @property
    def marked_sink(self) -> DirectSink | None:
        """The sink that received the mark of the start of this run, or None."""
        return self._marked

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._run.run_id

    @property
    def origin_ns(self) -> int:
        """Offset from the monotonic clock to the wall clock of the run."""
        return self._run.origin_ns

    def attributes_so_far(self) -> dict[str, Any]:
        """Return a copy of the attributes of the run."""
        return self._run.attributes.copy() if self._run.attributes else {}

    def detach_after_fork(self) -> None:
        """Write no record: this is a forked child, and the run is its parent's."""
        self.detached = True
        self.stages = self._pipeline = False
        self._marked = None

    def stage_ended(self, result: StageResult) -> None:
        """Emit `stage.wide` for an attempt that was retried, or for the end of a stage."""
        emitter, context, run = self._emitter, self._context, self._run
        try:
            if not self._plain:
                with INTERRUPTS:
                    emitter.emit_stage_wide(result.name, result, context)
                return
            sink = emitter.event_sink
            if type(sink) is NoOpEventSink:
                return
            event = Event("stage.wide", stage_wide(result.name, result, context, run))
        except BaseException as error:
            self._emit_missed(
                error,
                event_id(run.run_id, result.name, result.attempt),
                lambda: offer_stage_wide(emitter.event_sink, result.name, result, context, run),
                lambda: offer_stage_wide(
                    emitter.event_sink, result.name, _without_application_data(result), context, run
                ),
            )
            return
        try:
            offer(sink, event)
        except BaseException as error:  # an interrupt: the sink may not have been offered the event
            self._interrupted_by(error)
            try:
                offer(sink, event)  # if it has, the event has the same id, and counts once
            except BaseException as again:
                self._interrupted_by(again)

    def run_ended(self, results: PipelineResults) -> None:
        """Emit `pipeline.wide`."""
        self._run.sealed = True
        if self._pipeline:
            self._emit_pipeline(results)
        if self._marked is not None:
            self._close_mark(self._marked)
        if self.stages or self._pipeline:
            try:
                emit_health_if_due(self._emitter.event_sink)
            except BaseException as error:
                INTERRUPTS.postpone(error)
                log_safely(log, "the health of this process could not be reported: %s", describe(error))

    def _close_mark(self, sink: DirectSink) -> None:
        """Have the sink that was told of the run's beginning hear of its end, if not by `pipeline.wide`."""
        emitted, run_id = self._run.emitted, self._run.run_id
        try:
            moved = self._emitter.event_sink is not sink
        except BaseException as error:
            INTERRUPTS.postpone(error)
            moved = False
        if not self._pipeline:
            reason = "its graph was built without pipeline.wide"
        elif moved:
            reason = "its events went to another sink by then"
        elif emitted is not None and run_id not in emitted:
            reason = "its emitter kept pipeline.wide back"
        else:
            return
        sink.accept_mark(RunClosed(run_id, reason))

    def _emit_pipeline(self, results: PipelineResults) -> None:
        emitter, context, run = self._emitter, self._context, self._run
        try:
            with INTERRUPTS:
                if self._plain:
                    offer_pipeline_wide(emitter.event_sink, results, context, run)
                    return
                emitter.emit_pipeline_wide(results, context)
        except BaseException as error:
            self._emit_missed(
                error,
                run.run_id,
                lambda: offer_pipeline_wide(emitter.event_sink, results, context, run),
                lambda: offer_pipeline_wide(
                    emitter.event_sink, _all_without_application_data(results), context, run
                ),
            )

    def _emit_missed(self, error: BaseException, missed_id: str, *ways: Callable[[], None]) -> None:
        """Emit what an emitter that raised has not: whole, or else without what could not be built."""
        GLOBAL_COUNTERS.emitter_errors += 1
        self._interrupted_by(error)
        log_safely(
            log,
            "emitter %s raised while emitting %s: %s: %s",
            type(self._emitter).__name__,
            missed_id,
            type_name(error),
            as_text(error),
        )
        emitted = self._run.emitted
        if emitted is not None and missed_id in emitted:
            return
        # The last way uses no application code; repeat it if Ctrl-C interrupts it.
        for emit in (*ways, ways[-1]):
            try:
                with INTERRUPTS:
                    emit()
            except BaseException as again:
                self._interrupted_by(again)
                log_safely(
                    log,
                    "event %s could not be built (%s); retrying with fewer fields",
                    missed_id,
                    describe(again),
                )
            else:
                return

    def _interrupted_by(self, error: BaseException) -> None:
        """Store a `KeyboardInterrupt` or `SystemExit` of an emitter, for the run to raise."""
        if is_a(error, (KeyboardInterrupt, SystemExit)) and self.interrupt is None:
            self.interrupt = error

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """See `_custom_event`; an interrupt is raised when the event has been sent."""
        with INTERRUPTS:
            self._custom_event(stage, attempt, number, type, data)
        INTERRUPTS.raise_held()

    def _custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Send an event of a stage's own, with the ids of its run; the stage's keys come first.

        A key of the stage that is also one of ours is kept under `payload`.
        """
        sink = self._emitter.event_sink
        if builtins.type(sink) is NoOpEventSink:
            return
        run = self._run
        # A forked child counts on from where its parent stood: its events need ids of their own.
        place = f"{os.getpid()}.{number}" if self.detached else str(number)
        identity = run.identity(self._context)
        now = run.origin_ns + get_clock().monotonic_ns()
        ours: dict[str, Any] = {
            "event_id": f"{event_id(run.run_id, stage, attempt)}/{place}",
            "stage_name": stage,
            "attempt": attempt,
            "emitted_at": rfc3339(now // 1000),
            "correlation_ids": identity.correlation_ids,
            "pipeline_metadata": identity.pipeline_metadata,
        }
        sanitizer = new_sanitizer()
        whole = {} if data is None else data if is_mapping(data) else {"payload": data}
        own = sanitizer.fields(whole, "payload")
        kind = sanitizer.text(type, "type", _TYPE_CHARS)
        if sanitizer.redacted:
            ours["redacted"] = sanitizer.redacted
        if sanitizer.truncated:
            ours["truncated"] = sanitizer.truncated
        clash = own.keys() & ours.keys()
        if clash:
            ours["payload"] = {key: own[key] for key in clash}
        offer(sink, Event(kind, {**own, **ours}))

    # What stages say of the whole run, and what they say too late; see `context.Recorder`.

    def traceparent(self, sequence: int, attempt: int) -> str:
        return self._run.traceparent(sequence, attempt)

    def annotate_run(self, fields: Mapping[str, Any]) -> None:
        run = self._run
        with _lock:
            if run.attributes is None:
                run.attributes = {}
            run.attributes.update(fields)
            sealed = run.sealed
        if sealed and self._pipeline:
            self._amend("pipeline.wide.amend", run.run_id, None, fields)

    def add_to_run(self, amounts: Mapping[str, float]) -> None:
        run = self._run
        with _lock:
            if run.attributes is None:
                run.attributes = {}
            totals = added(run.attributes, amounts)
            sealed = run.sealed
        if sealed and self._pipeline:
            self._amend("pipeline.wide.amend", run.run_id, None, totals)

    def non_numeric_amount(self, stage: str, name: str, value: Any) -> None:
        sanitizer = new_sanitizer()
        shown, name = sanitizer.text(safe_repr(value), name, REPR_CHARS), sanitizer.name(as_text(name))
        if name not in _warned and len(_warned) < _MAX_WARNED:
            _warned.add(name)
            log_safely(
                log,
                "stage %r: %r is unchanged, because %s is not a number (further occurrences are not logged)",
                stage,
                name,
                shown,
            )

    def amend_stage(self, stage: str, attempt: int, fields: Mapping[str, Any]) -> None:
        if self.stages:
            amended = event_id(self._run.run_id, stage, attempt)
            self._amend("stage.wide.amend", amended, stage, fields)

    def _amend(self, type: str, amended_id: str, stage: str | None, fields: Mapping[str, Any]) -> None:
        with INTERRUPTS:
            self._send_amendment(type, amended_id, stage, fields)
        INTERRUPTS.raise_held()

    def _send_amendment(
        self, type: str, amended_id: str, stage: str | None, fields: Mapping[str, Any]
    ) -> None:
        sink = self._emitter.event_sink
        if builtins.type(sink) is NoOpEventSink or self.detached:
            return
        run = self._run
        identity = run.identity(self._context)
        sanitizer = new_sanitizer()
        amendment = WideAmend(
            event_id=amended_id,
            amended_at=rfc3339((run.origin_ns + get_clock().monotonic_ns()) // 1000),
            attributes=sanitizer.attributes(fields),
            redacted=sanitizer.redacted,
            truncated=sanitizer.truncated,
            stage_name=stage,
            correlation_ids=identity.correlation_ids,
            pipeline_metadata=identity.pipeline_metadata,
            schema_version=SCHEMA_VERSION,
        )
        offer(sink, Event(type, amendment))


def _without_application_data(result: StageResult) -> StageResult:
    """Return a result without anything of the application's own."""
    return StageResult(
        result.name,
        result.status,
        reason="its data or its error could not be put into an event",
        attempt=result.attempt,
        attempts=result.attempts,
        ready_ns=result.ready_ns,
        started_ns=result.started_ns,
        ended_ns=result.ended_ns,
        kind=result.kind,
        dependencies=result.dependencies,
        optional=result.optional,
        sequence=result.sequence,
        loop_blocked_ms=result.loop_blocked_ms,
    )


def _all_without_application_data(results: PipelineResults) -> PipelineResults:
    return PipelineResults(
        ((name, _without_application_data(result)) for name, result in results.items()),
        pipeline_name=results.pipeline_name,
        context=results.context,
        outcome=results.outcome,
        reason="its error could not be put into an event",
        first_failed_stage=results.first_failed_stage,
        started_ns=results.started_ns,
        ended_ns=results.ended_ns,
    )
