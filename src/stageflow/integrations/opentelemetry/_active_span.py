"""Makes each attempt the active span for the code that it runs."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakSet

from opentelemetry.context import attach
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from ..._activation import ACTIVATION
from ..._fork import reset_in_child
from ...context import StageContext

__all__ = ["ACTIVE_SPANS"]


class StageSpan(NonRecordingSpan):
    """The span of an attempt, which an exporter sends when the attempt has ended.

    Its ids are computed when they are first used, because most attempts start no span.
    """

    def __init__(self, ctx: StageContext) -> None:
        self._ctx = ctx
        self._known: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        if self._known is None:
            _, trace_id, span_id, flags = self._ctx.traceparent.split("-")
            self._known = SpanContext(
                int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(int(flags, 16))
            )
        return self._known

    def __repr__(self) -> str:
        return f"StageSpan({self._ctx!r})"


class Processor(Protocol):
    """A span processor that uses the spans of attempts."""

    def reset_lock(self) -> None:
        """Replace its lock in a forked child: a thread of the parent may hold it."""
        ...


class ActiveSpans:
    """Activates the spans of attempts while at least one processor uses them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users: WeakSet[Processor] = WeakSet()
        reset_in_child(self._reset)

    def acquire(self, processor: Processor) -> None:
        """Activate the span of each attempt that starts from now on."""
        with self._lock:
            self._users.add(processor)
            ACTIVATION.listener = _enter

    def release(self, processor: Processor) -> None:
        """Stop when no processor uses the spans any more."""
        with self._lock:
            self._users.discard(processor)
            if not self._users:
                ACTIVATION.listener = None

    def _reset(self) -> None:
        self._lock = threading.RLock()
        for processor in self._users:
            processor.reset_lock()


def _enter(ctx: StageContext) -> None:
    # Not detached: the context variables belong to the attempt, and the code after it has its own.
    attach(set_span_in_context(StageSpan(ctx)))


ACTIVE_SPANS = ActiveSpans()
