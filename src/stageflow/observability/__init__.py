"""Instrumentation: builds wide events from runs, and emits them."""

from ..events import EventSink

# For other packages of stageflow.
from ._defaults import (
    Defaults as Defaults,
    defaults as defaults,
    on_change as on_change,
    use_defaults as use_defaults,
)
from ._emitter import (
    WideEventEmitter,
    draw_results,
    emit_pipeline_wide,
    emit_pipeline_wide_event,
    emit_stage_wide,
    emit_stage_wide_event,
)
from ._heartbeat import Heartbeats as Heartbeats, ObservedRun as ObservedRun
from ._recorder import RunRecorder as RunRecorder
from ._resource import emit_health as emit_health
from ._run_context import deliver_on as deliver_on, start_run as start_run
from .sanitize._redact import Redact
from .sanitize._sanitizer import (
    EventLimits,
    SanitizeRules as SanitizeRules,
    use_sanitize_rules as use_sanitize_rules,
)

__all__ = [
    "EventLimits",
    "EventSink",
    "Redact",
    "WideEventEmitter",
    "draw_results",
    "emit_pipeline_wide",
    "emit_pipeline_wide_event",
    "emit_stage_wide",
    "emit_stage_wide_event",
]
