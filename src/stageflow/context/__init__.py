"""What a run and its stages are given, and what a run gives back."""

from .annotation import (
    annotate,
    annotate_run,
    count,
    record_embedding,
    record_llm,
    record_retrieval,
    timer,
)
from .inputs import StageInputs, Upstream
from .log_filter import StageLogFilter
from .pipeline_context import ContextOfRun, PipelineContext
from .recorder import Recorder
from .results import PipelineResults
from .stage import Stage
from .stage_context import StageContext, current_stage

__all__ = [
    "ContextOfRun",
    "PipelineContext",
    "PipelineResults",
    "Recorder",
    "Stage",
    "StageContext",
    "StageInputs",
    "StageLogFilter",
    "Upstream",
    "annotate",
    "annotate_run",
    "count",
    "current_stage",
    "record_embedding",
    "record_llm",
    "record_retrieval",
    "timer",
]
