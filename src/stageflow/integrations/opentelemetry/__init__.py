"""OpenTelemetry: stages are active spans, and spans of instrumentation libraries become fields of events."""

from ...errors import MissingExtraError

try:
    from ._span_processor import StageflowSpanProcessor
except ImportError as error:
    if (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise MissingExtraError("stageflow.integrations.opentelemetry", "otel") from error

__all__ = ["StageflowSpanProcessor"]
