"""Stages as values: kinds, statuses, outputs, results and policies."""

from .kind import StageKind, StageStatus
from .output import StageOutput
from .result import Artifact, StageResult
from .results import PipelineResults
from .retry import Exponential, Fixed, Retry

__all__ = [
    "Artifact",
    "Exponential",
    "Fixed",
    "PipelineResults",
    "Retry",
    "StageKind",
    "StageOutput",
    "StageResult",
    "StageStatus",
]
