"""Pipelines of stages inside a backend, and one complete record of every run."""

from .context import PipelineContext, PipelineResults, Stage, StageContext, StageInputs
from .errors import (
    DeadlineExceededError,
    InputError,
    MissingInputError,
    PipelineValidationError,
    RunFailedError,
    StageFailedError,
    StageflowError,
    StageOutputError,
    StageTimeoutError,
    UnknownInputError,
)
from .events import (
    BackgroundEventSink,
    EventSink,
    FanoutEventSink,
    LoggingEventSink,
    MemoryEventSink,
    NoOpEventSink,
    clear_event_sink,
    flush,
    get_event_sink,
    set_event_sink,
)
from .journal import JournalSink
from .observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide
from .pipeline import Pipeline, StageGraph
from .stages import (
    Artifact,
    Exponential,
    Fixed,
    Linear,
    Retry,
    StageKind,
    StageOutput,
    StageResult,
    StageStatus,
)

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "BackgroundEventSink",
    "DeadlineExceededError",
    "EventSink",
    "Exponential",
    "FanoutEventSink",
    "Fixed",
    "InputError",
    "JournalSink",
    "Linear",
    "LoggingEventSink",
    "MemoryEventSink",
    "MissingInputError",
    "NoOpEventSink",
    "Pipeline",
    "PipelineContext",
    "PipelineResults",
    "PipelineValidationError",
    "Retry",
    "RunFailedError",
    "Stage",
    "StageContext",
    "StageFailedError",
    "StageGraph",
    "StageInputs",
    "StageKind",
    "StageOutput",
    "StageOutputError",
    "StageResult",
    "StageStatus",
    "StageTimeoutError",
    "StageflowError",
    "UnknownInputError",
    "WideEventEmitter",
    "clear_event_sink",
    "emit_pipeline_wide",
    "emit_stage_wide",
    "flush",
    "get_event_sink",
    "set_event_sink",
]
