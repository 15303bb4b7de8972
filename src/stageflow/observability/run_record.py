"""The identity of one run, as all of its events carry it, made once a run."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ..clock import get_clock
from ..context import PipelineContext, StageContext, current_stage
from ..errors import as_text
from ..events.loops import home_loop
from ..ids import format_span_id, parse_traceparent, random_bits, trace_flags, uuid7
from ..schema import CorrelationIds, PipelineMetadata, ProcessSample, Trace
from .otel import active_span
from .shape import shaper
from .short_repr import safe_text

__all__ = ["RunRecord", "emit_on", "parent_record", "record_of"]


class RunRecord:
    """Ids, labels, trace and parent of a run. What events alone need is made with the first event.

    Attributes:
        run_id: The `pipeline_run_id`, as text.
        origin_ns: What to add to the monotonic clock to have the wall clock of this run.
        emitted: Ids of the events that reached the base emitter, where that has to be known.
        attributes: What was said of the run as a whole, or None.
        process: How the process was when `pipeline.wide` was first built: the same by hand as by the engine.
        sealed: True once `pipeline.wide` was built: what comes later amends it.
    """

    __slots__ = (
        "_identity",
        "attributes",
        "emitted",
        "origin_ns",
        "parent_run_id",
        "pipeline_name",
        "process",
        "root_run_id",
        "run_id",
        "sealed",
        "trace",
    )

    def __init__(
        self,
        context: PipelineContext,
        pipeline_name: str,
        parent: RunRecord | None = None,
        origin_ns: int = 0,
    ) -> None:
        self._identity: tuple[CorrelationIds, PipelineMetadata] | None = None
        self.pipeline_name = pipeline_name
        self.origin_ns = origin_ns
        # A context of no run may name none. Its events must not count as one, so each gets an id.
        run_id = context.pipeline_run_id
        self.run_id = uuid7(get_clock().wall_ns()) if run_id is None else safe_text(as_text(run_id))
        self.parent_run_id: str | None = parent.run_id if parent else None
        self.root_run_id: str | None = (parent.root_run_id or parent.run_id) if parent else None
        self.emitted: set[str] | None = None
        self.attributes: dict[str, Any] | None = None
        self.sealed = False
        self.process: ProcessSample | None = None
        self.trace: RunTrace = RunTrace(context.traceparent, parent.trace if parent else None)

    def identity(self, context: PipelineContext) -> tuple[CorrelationIds, PipelineMetadata]:
        """Return the parts that every event of the run shares, from the context of the run.

        It is handed in: a record that held its context would be in a circle with it, and every
        finished run would wait for the garbage collector.
        """
        if self._identity is None:
            shaping = shaper()

            def shaped(value: Any, name: str) -> str | None:
                return None if value is None else shaping.text(as_text(value), name)

            self._identity = (
                CorrelationIds(
                    # Never redacted: all events of the run are found by it.
                    pipeline_run_id=_text(context.pipeline_run_id),
                    request_id=shaped(context.request_id, "request_id"),
                    session_id=shaped(context.session_id, "session_id"),
                    user_id=shaped(context.user_id, "user_id"),
                    org_id=shaped(context.org_id, "org_id"),
                ),
                PipelineMetadata(
                    service=shaped(context.service, "service") or "unknown_service",
                    topology=shaped(context.topology, "topology") or self.pipeline_name,
                    execution_mode=shaped(context.execution_mode, "execution_mode") or "default",
                ),
            )
        return self._identity


class RunTrace:
    """Where a run stands in a trace.

    A run inside a run belongs to the trace of that one. Otherwise it is that of the OpenTelemetry
    span that is active, where there is one; else that of the `traceparent` it was given; else a fresh one.
    """

    __slots__ = ("_base", "_flags", "_parent_span_id", "_span_id", "_trace_id")

    def __init__(self, traceparent: str | None, parent: RunTrace | None) -> None:
        self._trace_id: str
        self._parent_span_id: str | None = None
        self._flags = "01"
        self._base: int = random_bits(64)
        self._span_id: str = format_span_id(self._base)
        given = parse_traceparent(traceparent)
        if parent is not None and given is None:
            self._trace_id, self._parent_span_id = parent._trace_id, parent._span_id
            self._flags = parent._flags
        elif (active := active_span()) is not None:
            self._trace_id, self._parent_span_id, self._flags = active
        elif given is not None:
            self._trace_id, self._parent_span_id = given
            self._flags = trace_flags(traceparent)
        else:
            # All zero means "invalid" in W3C Trace Context.
            self._trace_id = f"{random_bits(128) or 1:032x}"

    def traceparent(self, sequence: int, attempt: int) -> str:
        """Return the W3C header that makes an attempt the parent of what is called with it."""
        return f"00-{self._trace_id}-{self.of_attempt(sequence, attempt).span_id}-{self._flags}"

    def of_run(self) -> Trace:
        """Return the span of the run itself."""
        return Trace(self._trace_id, self._span_id, self._parent_span_id)

    def of_attempt(self, sequence: int, attempt: int) -> Trace:
        """Return the span of one attempt: the same whenever it is asked for."""
        number = self._base + (sequence << 16) + attempt + 1
        return Trace(self._trace_id, format_span_id(number), self._span_id)


def parent_record() -> RunRecord | None:
    """Return the record of the run in whose stages the code at hand runs, or None."""
    ctx = current_stage.get()
    return ctx.run._record if ctx is not None else None


def emit_on(loop: asyncio.AbstractEventLoop) -> None:
    """Have what is emitted in threads of the context at hand delivered on `loop`."""
    home_loop.set((loop, os.getpid()))


def record_of(ctx: PipelineContext | StageContext | Any) -> RunRecord:
    """Return the record of the run that `ctx` belongs to, or one made up for a context of no run.

    Raises:
        TypeError: It is no context.
    """
    context = ctx.run if isinstance(ctx, StageContext) else ctx
    if not isinstance(context, PipelineContext):
        raise TypeError(f"wide events are emitted for a PipelineContext or a StageContext, not for {ctx!r}")
    record = context._record
    if isinstance(record, RunRecord):
        return record
    return RunRecord(context, _text(context.topology) or "pipeline")


def _text(value: Any) -> str | None:
    return None if value is None else safe_text(as_text(value))
