"""What a run and its stages are given."""

from .inputs import StageInputs, Upstream
from .pipeline_context import PipelineContext
from .recorder import Recorder
from .stage import Stage
from .stage_context import StageContext

__all__ = ["PipelineContext", "Recorder", "Stage", "StageContext", "StageInputs", "Upstream"]
