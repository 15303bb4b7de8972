"""`RunRecorder`: emits the events of a run, and guarantees that each of them is emitted."""

from __future__ import annotations

import builtins
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET, Raw
from msgspec.structs import replace

from .._interrupts import INTERRUPTS, is_a
from .._items import ItemAttempt
from .._log import log_safely
from .._log_tail import LOG_CAPTURE
from .._time import get_clock, rfc3339
from ..budget import Account
from ..context import PipelineContext, added, current_stage
from ..errors import as_text, describe, type_name
from ..events import GLOBAL_COUNTERS, DirectSink, Event, NoOpEventSink, accepts_marks, offer
from ..results import PipelineResults
from ..schema import SCHEMA_VERSION, RunClosed, RunOpen, WideAmend, event_id
from ..stages import StageResult
from ._defaults import defaults, on_change
from ._emitter import WideEventEmitter, offer_pipeline_wide, offer_stage_wide
from ._resource import emit_health_if_due
from ._run_context import RunContext
from ._wide_events import item_event, stage_wide
from .sanitize._coerce import REPR_CHARS, is_mapping, safe_repr
from .sanitize._sanitizer import new_sanitizer

__all__ = ["RunRecorder"]


log = logging.getLogger("stageflow.observability")

# One lock for all runs, because it is acquired only for short updates of attributes. It is reentrant, because
# a signal handler may update attributes as well.
_lock = threading.RLock()

_warned: set[str] = set()
"""Names of counters for which a non-numeric amount was logged."""

_MAX_WARNED = 1_000

on_change(lambda: LOG_CAPTURE.resize(defaults().log_tail))

_TYPE_CHARS = 256
"""Maximum length of the type of a custom event. Readers use it, so `EventLimits` does not change it."""


class RunRecorder:
    """Emits the events of one run.

    Args:
        run: The engine's part of the run.
        context: The context of the run.
        emitter: The emitter of the graph; a subclass may override its methods.
        stages: Whether to emit `stage.wide` events.
        pipeline: Whether to emit the `pipeline.wide` event.

    Attributes:
        account: What the run has spent; None if neither it nor an outer run has a budget.
        interrupt: A `KeyboardInterrupt` or `SystemExit` raised by an emitter, for the run to raise, or None.
    """

    __slots__ = (
        "_context",
        "_emitter",
        "_marked",
        "_pipeline",
        "_plain",
        "_run",
        "account",
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
        self.account: Account | None = None
        self.detached = False
        self.interrupt: BaseException | None = None
        self._plain = type(emitter) is WideEventEmitter
        if not self._plain:
            run.emitted = set()

    def run_started(self, stages: Raw, started_ns: int) -> None:
        """Write the start mark of the run to a sink that accepts marks.

        Args:
            stages: The outlines of all stages, as JSON.
            started_ns: Start of the run, in nanoseconds since the epoch.
        """
        if not (self.stages or self._pipeline):
            return
        if self.stages:
            LOG_CAPTURE.install(current_stage.get)
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
        """The sink that received the start mark of this run, or None."""
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
        """Stop recording: this process is a forked child, and the parent records the run."""
        self.detached = True
        self.stages = self._pipeline = False
        self._marked = None

    def stage_ended(self, result: StageResult) -> None:
        """Emit `stage.wide` for a retried attempt or a terminal result."""
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
        except BaseException as error:  # an interrupt; the sink may not have received the event
            self._interrupted_by(error)
            try:
                offer(sink, event)  # if it did, readers deduplicate the event by its id
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
                log_safely(log, "could not emit stageflow.health: %s", describe(error))

    def _close_mark(self, sink: DirectSink) -> None:
        """Write an end mark to the sink with the start mark, unless it received `pipeline.wide`."""
        emitted, run_id = self._run.emitted, self._run.run_id
        try:
            moved = self._emitter.event_sink is not sink
        except BaseException as error:
            INTERRUPTS.postpone(error)
            moved = False
        if not self._pipeline:
            reason = "pipeline.wide was not emitted: the graph was built without it"
        elif moved:
            reason = "pipeline.wide was emitted to another sink"
        elif emitted is not None and run_id not in emitted:
            reason = "pipeline.wide was not emitted by the emitter of the graph"
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

    def _emit_missed(self, error: BaseException, missed_id: str, *fallbacks: Callable[[], None]) -> None:
        """Emit an event that an emitter did not emit before it raised, with fewer fields if necessary."""
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
        # The last fallback calls no application code; repeat it in case Ctrl-C interrupts it.
        for emit in (*fallbacks, fallbacks[-1]):
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
        """Store a `KeyboardInterrupt` or `SystemExit` raised by an emitter, for the run to raise."""
        if is_a(error, (KeyboardInterrupt, SystemExit)) and self.interrupt is None:
            self.interrupt = error

    def custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Emit a custom event; see `_custom_event`. Interrupts are raised after the event was emitted."""
        with INTERRUPTS:
            self._custom_event(stage, attempt, number, type, data)
        INTERRUPTS.raise_held()

    def _custom_event(self, stage: str, attempt: int, number: int, type: str, data: Any) -> None:
        """Emit a custom event of a stage, with the payload first and then the ids of the run.

        A payload key that collides with a key of the library is stored under `payload`.
        """
        sink = self._emitter.event_sink
        if builtins.type(sink) is NoOpEventSink:
            return
        run = self._run
        # A forked child continues the numbers of its parent, so the ids of its events also contain its pid.
        suffix = f"{os.getpid()}.{number}" if self.detached else str(number)
        identity = run.identity(self._context)
        now = run.origin_ns + get_clock().monotonic_ns()
        common: dict[str, Any] = {
            "event_id": f"{event_id(run.run_id, stage, attempt)}/{suffix}",
            "stage_name": stage,
            "attempt": attempt,
            "emitted_at": rfc3339(now // 1000),
            "correlation_ids": identity.correlation_ids,
            "pipeline_metadata": identity.pipeline_metadata,
        }
        sanitizer = new_sanitizer()
        fields = {} if data is None else data if is_mapping(data) else {"payload": data}
        payload = sanitizer.fields(fields, "payload")
        kind = sanitizer.text(type, "type", _TYPE_CHARS)
        if sanitizer.redacted:
            common["redacted"] = sanitizer.redacted
        if sanitizer.truncated:
            common["truncated"] = sanitizer.truncated
        collisions = payload.keys() & common.keys()
        if collisions:
            common["payload"] = {key: payload[key] for key in collisions}
        offer(sink, Event(kind, {**payload, **common}))

    def item_ended(self, stage: str, attempt: int, item: ItemAttempt) -> None:
        """Emit `stage.item`, unless the graph emits no `stage.wide`."""
        if not self.stages:
            return
        with INTERRUPTS:
            sink = self._emitter.event_sink
            if builtins.type(sink) is NoOpEventSink:
                return
            try:
                identity = self._run.identity(self._context)
                now = self._run.origin_ns + get_clock().monotonic_ns()
                offer(sink, Event("stage.item", item_event(identity, stage, attempt, item, now)))
            except Exception as error:
                INTERRUPTS.postpone(error)
                log_safely(log, "could not emit stage.item of stage %r: %s", stage, describe(error))

    # Attributes of the run, and amendments of events that were already emitted; see `context.Recorder`.

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
                "stage %r: count(%r) ignored the amount %s, which is not a number"
                " (further occurrences are not logged)",
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
    """Return a copy of a result without the data, attributes, keys and errors of the application."""
    items, logs = result.items, result.logs
    return replace(
        result,
        data={},
        error=None,
        exception=None,
        reason="the data or the error of the stage could not be recorded",
        attributes={},
        artifacts=(),
        missing_inputs=(),
        returned=UNSET,
        items=None if items is None else replace(items, slowest=None, failures=[]),
        logs=None if logs is None else replace(logs, tail=()),
    )


def _all_without_application_data(results: PipelineResults) -> PipelineResults:
    return PipelineResults(
        ((name, _without_application_data(result)) for name, result in results.items()),
        pipeline_name=results.pipeline_name,
        context=results.context,
        outcome=results.outcome,
        reason="the error of the run could not be recorded",
        first_failed_stage=results.first_failed_stage,
        started_ns=results.started_ns,
        ended_ns=results.ended_ns,
    )
