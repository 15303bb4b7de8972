"""What a run and its stages are given."""

from .inputs import StageInputs, Upstream
from .pipeline_context import PipelineContext
from .recorder import Recorder
from .results import PipelineResults
from .stage import Stage
from .stage_context import StageContext

__all__ = [
    "PipelineContext",
    "PipelineResults",
    "Recorder",
    "Stage",
    "StageContext",
    "StageInputs",
    "Upstream",
]
