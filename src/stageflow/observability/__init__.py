"""The bridge: turns what a run did into wide events."""

from ..events import EventSink
from .emitter import WideEventEmitter, emit_pipeline_wide, emit_stage_wide
from .picture import draw_results
from .redaction import Redact
from .shape import EventLimits

__all__ = [
    "EventLimits",
    "EventSink",
    "Redact",
    "WideEventEmitter",
    "draw_results",
    "emit_pipeline_wide",
    "emit_stage_wide",
]
