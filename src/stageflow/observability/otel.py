"""The OpenTelemetry span that is active where a run begins, if the application uses OpenTelemetry."""

from __future__ import annotations

import sys

__all__ = ["active_span"]


def active_span() -> tuple[str, str, str] | None:
    """Return trace id, span id and flags of the active span, or None.

    Looked up among what is imported already: an application that does not use OpenTelemetry does
    not pay for it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{int(context.trace_flags):02x}"
