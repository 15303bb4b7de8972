"""Run pipelines of stages inside a backend, and record every run completely."""

from . import _installation as _installation  # first: it checks that the package is complete
from ._log_fields import StageLogFilter
from .context import (
    PipelineContext,
    StageContext,
    annotate,
    annotate_run,
    count,
    record_embedding,
    record_llm,
    record_retrieval,
    timer,
)
from .errors import RunFailedError, StageflowError
from .events import EventSink, flush, set_event_sink
from .journal import Journal, JournalReader, JournalSink
from .lifecycle import session
from .observability import Redact
from .pipeline import Limits, Pipeline, StageGraph, active_runs, stage
from .results import PipelineResults
from .retry import Retry
from .settings import configure
from .stages import StageKind, StageOutput, StageResult, StageStatus

__version__ = "0.1.0"

__all__ = [
    "EventSink",
    "Journal",
    "JournalReader",
    "JournalSink",
    "Limits",
    "Pipeline",
    "PipelineContext",
    "PipelineResults",
    "Redact",
    "Retry",
    "RunFailedError",
    "StageContext",
    "StageGraph",
    "StageKind",
    "StageLogFilter",
    "StageOutput",
    "StageResult",
    "StageStatus",
    "StageflowError",
    "active_runs",
    "annotate",
    "annotate_run",
    "configure",
    "count",
    "flush",
    "record_embedding",
    "record_llm",
    "record_retrieval",
    "session",
    "set_event_sink",
    "stage",
    "timer",
]
