"""The bridge: turns what a run did into wide events."""

from ..events import EventSink
from .emitter import WideEventEmitter, emit_pipeline_wide, emit_stage_wide

__all__ = ["EventSink", "WideEventEmitter", "emit_pipeline_wide", "emit_stage_wide"]
