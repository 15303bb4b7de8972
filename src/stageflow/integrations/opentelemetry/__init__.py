"""OpenTelemetry: stages are active spans, and the spans of instrumentations become fields of their events."""

from ...errors import MissingExtraError

try:
    from ._span_processor import StageflowSpanProcessor
except ImportError as error:
    if (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise MissingExtraError("stageflow.integrations.opentelemetry", "otel") from error

__all__ = ["StageflowSpanProcessor"]
