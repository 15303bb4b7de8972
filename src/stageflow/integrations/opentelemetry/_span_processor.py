"""`StageflowSpanProcessor`: summarizes the spans that end in a stage in the attributes of its event."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from ..._interrupts import INTERRUPTS
from ...context import StageContext, current_stage
from ...errors import did_you_mean, invalid_argument
from ._active_span import ACTIVE_SPANS
from ._conventions import GEN_AI, KINDS, call_of, kind_of, usage_of

__all__ = ["StageflowSpanProcessor"]


_MAX_OPEN = 10_000
"""Number of spans whose end is awaited. Further ones replace the oldest, which may then be counted twice."""


_MAX_DEPTH = 100
"""Number of spans around a span that are searched for calls of the same kind."""


class _OpenSpan:
    """A span that started in a stage, and the spans around it.

    Attributes:
        parent: The span in which it started, if that had not ended; else None.
        inner: The kinds of calls that were counted for spans inside this one.
        counted: The kinds of calls that were counted for this span, and for ended spans around it.
        has_ended: Whether the span has ended.
    """

    __slots__ = ("counted", "has_ended", "inner", "parent")

    def __init__(self, parent: _OpenSpan | None) -> None:
        self.parent = parent
        self.inner: frozenset[str] = frozenset()
        self.counted: frozenset[str] = frozenset()
        self.has_ended = False

    def around(self) -> Iterator[_OpenSpan]:
        """Yield up to `_MAX_DEPTH` spans around this one, from the inside out."""
        span = self.parent
        for _ in range(_MAX_DEPTH):
            if span is None:
                return
            yield span
            span = span.parent

    def end(self, kind: str | None) -> bool:
        """End the span; return whether to count it as a call of this kind.

        It is not counted if a span inside or around it was counted.
        """
        is_counted = (
            kind is not None
            and kind not in self.inner
            and not any(kind in span.counted for span in self.around())
        )
        if kind is not None and is_counted:
            self.counted |= {kind}
            for span in self.around():
                span.inner |= {kind}
        self.has_ended = True
        # Release ended spans, so that a sequence of spans, each started in the one before, needs no memory.
        while self.parent is not None and self.parent.has_ended:
            self.counted |= self.parent.counted
            self.parent = self.parent.parent
        return is_counted


class StageflowSpanProcessor(SpanProcessor):
    """Makes each attempt the active span, and adds the calls that spans represent to the event of the stage.

    While it exists, the spans that the code of a stage starts are children of the span of its attempt, as
    `OtlpExporter` sends it; so are the spans of services that the stage calls. Each span that ends in a stage
    and represents a call is added to the attributes of the attempt: `http.client.count`, `http.client.ms`,
    `http.client.errors`, `http.client.slowest`, `http.client.slowest_ms` and `http.client.hosts`. The same
    applies to `db`, `gen_ai.client`, `rpc.client` and `messaging`. The usage of a model is recorded as by
    `record_llm`. Numbers, durations and errors are also added to the run.

    Of nested spans of the same kind, the innermost is counted. Spans that OpenTelemetry does not sample are
    not counted.

    Args:
        kinds: Kinds of calls to add; default all of "http", "db", "gen_ai", "rpc" and "messaging".

    Attributes:
        late_spans: Number of calls that ended after their attempt, and were not added to its event.

    Raises:
        InvalidArgumentError: A kind is unknown.

    Example:
        provider = TracerProvider()
        provider.add_span_processor(StageflowSpanProcessor())
    """

    def __init__(self, *, kinds: Iterable[str] = KINDS) -> None:
        self._kinds = frozenset((kinds,) if isinstance(kinds, str) else kinds)
        for kind in self._kinds:
            if kind not in KINDS:
                expected = f"of {', '.join(KINDS)}{did_you_mean(str(kind), KINDS)}"
                raise invalid_argument("StageflowSpanProcessor", "kinds", kind, expected)
        self.late_spans = 0
        # Reentrant: the garbage collector may close a generator that ends a span.
        self._lock = threading.RLock()
        self._open: dict[int, _OpenSpan] = {}
        self._is_active = True
        ACTIVE_SPANS.acquire(self)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if current_stage.get() is None or not self._is_active:
            return
        parent = span.parent
        with self._lock:
            opened = self._open.get(parent.span_id) if parent is not None else None
            self._open[_id(span)] = _OpenSpan(opened)
            if len(self._open) > _MAX_OPEN:
                del self._open[next(iter(self._open))]

    def on_end(self, span: ReadableSpan) -> None:
        ctx = current_stage.get()
        if not self._is_active or (ctx is None and not self._open):
            return
        try:
            kind = kind_of(span)
            if kind not in self._kinds:
                kind = None
            with self._lock:
                opened = self._open.pop(_id(span), None)
                is_counted = opened.end(kind) if opened is not None else kind is not None
            if kind is not None and is_counted and ctx is not None:
                self._add(ctx, span, kind)
        except BaseException as error:
            INTERRUPTS.contain(error)

    def _add(self, ctx: StageContext, span: ReadableSpan, kind: str) -> None:
        if not ctx._record_call(call_of(span, kind)):
            with self._lock:
                self.late_spans += 1
        elif kind == GEN_AI:
            ctx._record(*usage_of(span))

    def reset_lock(self) -> None:
        """Replace the lock in a forked child, in which no thread would release it."""
        self._lock = threading.RLock()

    def shutdown(self) -> None:
        """Stop: spans are no longer added, and attempts that start later are not active spans."""
        if self._is_active:
            self._is_active = False
            ACTIVE_SPANS.release(self)
            with self._lock:
                self._open.clear()


def _id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return 0 if context is None else context.span_id
