"""The engine's part of one run, next to its `PipelineContext`: identity, trace, parent and attributes."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any

from msgspec.structs import replace

from .._ids import parse_traceparent, random_bits, trace_flags, uuid7
from .._time import get_clock
from ..context import ContextOfRun, PipelineContext, StageContext, current_stage
from ..errors import as_text, invalid_argument
from ..events import home_loop
from ..schema import CorrelationIds, PipelineMetadata, ProcessSample, RunIdentity, Trace, span_id
from ._resource import active_span, resource, service_name
from .sanitize._coerce import safe_text
from .sanitize._sanitizer import new_sanitizer

__all__ = ["RunContext", "deliver_on", "run_context_of", "start_run"]


class RunContext:
    """The engine's part of a run. Fields that only events need are computed for the first event.

    A nested run continues the trace of its parent run: its span is a child of the span of the attempt that
    started it. Other runs continue the trace of the active
    OpenTelemetry span if there is one, otherwise the trace of their `traceparent`, and otherwise start a new
    trace.

    Attributes:
        run_id: The `pipeline_run_id`, as text.
        pipeline_name: Name of the pipeline.
        origin_ns: Offset from the monotonic clock to the wall clock of this run, in nanoseconds.
        parent_run_id: Id of the run that started this run inside a stage, or None.
        root_run_id: Id of the outermost such run, or None.
        span_base: 64 random bits from which the span ids of the run and its attempts are derived.
        attributes: The attributes of the run as a whole, or None.
        emitted: Ids of the events that reached the base emitter, if they are tracked.
        process: The process sample of the first `pipeline.wide`, so that a second one is equal.
        sealed: True once `pipeline.wide` was built. Later attributes are emitted as amendments.
    """

    __slots__ = (
        "_flags",
        "_identity",
        "_trace",
        "attributes",
        "emitted",
        "origin_ns",
        "parent_run_id",
        "pipeline_name",
        "process",
        "root_run_id",
        "run_id",
        "sealed",
        "span_base",
    )

    def __init__(
        self,
        context: PipelineContext,
        pipeline_name: str,
        parent: RunContext | None = None,
        origin_ns: int = 0,
        parent_span: str | None = None,
    ) -> None:
        # A context outside a run may have no id. Generate one, because readers deduplicate events by their
        # id.
        run_id = context.pipeline_run_id
        self.run_id = uuid7(get_clock().wall_ns()) if run_id is None else safe_text(as_text(run_id))
        self.pipeline_name = pipeline_name
        self.origin_ns = origin_ns
        self.parent_run_id: str | None = parent.run_id if parent else None
        self.root_run_id: str | None = (parent.root_run_id or parent.run_id) if parent else None
        self.attributes: dict[str, Any] | None = None
        self.emitted: set[str] | None = None
        self.process: ProcessSample | None = None
        self.sealed = False
        self.span_base = random_bits(64)
        self._identity: RunIdentity | None = None
        self._trace, self._flags = _trace(context.traceparent, parent, parent_span, span_id(self.span_base))

    def identity(self, context: PipelineContext) -> RunIdentity:
        """Return the fields that all events of the run share.

        `context` is a parameter because this object must not keep it alive: `run_context_of` looks this
        object up by the context, for as long as the context exists.
        """
        if self._identity is None:
            sanitizer = new_sanitizer()

            def sanitized(value: Any, name: str) -> str | None:
                return None if value is None else sanitizer.text(as_text(value), name)

            self._identity = RunIdentity(
                event_id=self.run_id,
                pipeline_name=self.pipeline_name,
                correlation_ids=CorrelationIds(
                    # Never redacted, because readers find all events of the run by it.
                    pipeline_run_id=_text(context.pipeline_run_id),
                    request_id=sanitized(context.request_id, "request_id"),
                    session_id=sanitized(context.session_id, "session_id"),
                    user_id=sanitized(context.user_id, "user_id"),
                    org_id=sanitized(context.org_id, "org_id"),
                ),
                pipeline_metadata=PipelineMetadata(
                    service=sanitized(context.service, "service") or "unknown_service",
                    topology=sanitized(context.topology, "topology") or self.pipeline_name,
                    execution_mode=sanitized(context.execution_mode, "execution_mode") or "default",
                ),
                parent_run_id=self.parent_run_id,
                root_run_id=self.root_run_id,
                resource=resource(),
                trace=self._trace,
            )
        return self._identity

    def traceparent(self, sequence: int, attempt: int) -> str:
        """Return the W3C `traceparent` header for calls made by an attempt."""
        return f"00-{self._trace.trace_id}-{span_id(self.span_base, sequence, attempt)}-{self._flags}"


def _trace(
    traceparent: str | None, parent: RunContext | None, parent_span: str | None, own_span: str
) -> tuple[Trace, str]:
    """Return the span of a run, and the flags of its trace."""
    given = parse_traceparent(traceparent)
    if parent is not None and given is None:
        return Trace(parent._trace.trace_id, own_span, parent_span), parent._flags
    # The span of the attempt that starts this run is active, too, but `traceparent` takes precedence over it.
    if (active := active_span()) is not None and active[1] != parent_span:
        trace_id, active_id, flags = active
        return Trace(trace_id, own_span, active_id), flags
    if given is not None:
        return Trace(given[0], own_span, given[1]), trace_flags(traceparent)
    # All zeros is an invalid trace id in W3C Trace Context.
    return Trace(f"{random_bits(128) or 1:032x}", own_span, None), "01"


class _RunOf(weakref.ref[PipelineContext]):
    """A weak reference to the context of a run that also contains the run, to save an object per run."""

    __slots__ = ("key", "run")
    key: int
    run: RunContext


_runs: dict[int, _RunOf] = {}
"""The runs by the `id()` of their context, for as long as that context exists."""


def _forget(known: weakref.ref[PipelineContext]) -> None:
    assert isinstance(known, _RunOf)
    _runs.pop(known.key, None)


_LABELS = ("service", "topology", "execution_mode")
_ALL_LABELS = frozenset(_LABELS)
_INHERITED_IDS = ("request_id", "session_id", "user_id", "org_id")
_INHERITED_LABELS = ("service", "execution_mode")


def start_run(
    context: PipelineContext, pipeline: str, wall_ns: int, origin_ns: int
) -> tuple[PipelineContext, RunContext]:
    """Return the context of a new run (a copy of `context` with all fields set) and its `RunContext`.

    A run that is started inside a stage inherits those ids and labels of the stage's run that `context` does
    not set.
    """
    current = current_stage.get()
    parent = run_context_of(current) if current is not None else None
    if current is not None:
        context = _inheriting(context, current.run)
    run_id, service, topology, mode = (
        context.pipeline_run_id,
        context.service,
        context.topology,
        context.execution_mode,
    )
    if isinstance(context, ContextOfRun):
        # The context of another run provides the labels that its caller set, never its id.
        run_id = None
        service = None if "service" in context.defaults else service
        topology = None if "topology" in context.defaults else topology
        mode = None if "execution_mode" in context.defaults else mode
    given = (service, topology, mode)
    own = ContextOfRun(
        pipeline_run_id=run_id or uuid7(wall_ns),
        request_id=context.request_id,
        session_id=context.session_id,
        user_id=context.user_id,
        org_id=context.org_id,
        service=service or service_name() or "unknown_service",
        topology=topology or pipeline,
        execution_mode=mode or "default",
        data=context.data.copy() if type(context.data) is dict else context.data,
        resources=context.resources,
        traceparent=context.traceparent,
        defaults=(
            frozenset(name for name, value in zip(_LABELS, given, strict=True) if not value)
            if any(given)
            else _ALL_LABELS
        ),
    )
    span = parse_traceparent(current.traceparent) if current is not None else None
    run = RunContext(own, pipeline, parent, origin_ns, None if span is None else span[1])
    known = _RunOf(own, _forget)
    known.key, known.run = id(own), run
    _runs[known.key] = known
    if current is not None:
        current.child_run_started(run.run_id)
    return own, run


def _inheriting(context: PipelineContext, parent: PipelineContext) -> PipelineContext:
    """Return a context with the ids and labels of the parent's context for those that it does not set."""
    inherited: dict[str, Any] = {
        name: getattr(parent, name) for name in _INHERITED_IDS if getattr(context, name) is None
    }
    for name in _INHERITED_LABELS:
        if not _sets(context, name) and _sets(parent, name):
            inherited[name] = getattr(parent, name)
    if isinstance(context, ContextOfRun):
        inherited["defaults"] = context.defaults - inherited.keys()
    return replace(context, **inherited)


def _sets(context: PipelineContext, label: str) -> bool:
    """Return whether the caller of a run set a label; the engine fills in the others."""
    return bool(getattr(context, label)) and not (
        isinstance(context, ContextOfRun) and label in context.defaults
    )


def run_context_of(ctx: PipelineContext | StageContext | Any) -> RunContext:
    """Return the `RunContext` of the run that `ctx` belongs to, or a new one for a context outside a run.

    Raises:
        InvalidArgumentError: `ctx` is not a context.
    """
    context = ctx.run if isinstance(ctx, StageContext) else ctx
    known = _runs.get(id(context))
    if known is not None:
        return known.run
    if not isinstance(context, PipelineContext):
        raise invalid_argument("emit_event()", "ctx", ctx, "a PipelineContext or a StageContext")
    return RunContext(context, _text(context.topology) or "pipeline")


def deliver_on(loop: asyncio.AbstractEventLoop) -> None:
    """Deliver events emitted in threads of the current context on `loop`."""
    home_loop.set((loop, os.getpid()))


def _text(value: Any) -> str | None:
    return None if value is None else safe_text(as_text(value))
