"""Stages as values: kinds, statuses, outputs, results and policies."""

from .kind import StageKind, StageStatus
from .output import StageOutput
from .result import Artifact, StageResult
from .retry import Retry
from .wait import Exponential, Fixed, Linear

__all__ = [
    "Artifact",
    "Exponential",
    "Fixed",
    "Linear",
    "Retry",
    "StageKind",
    "StageOutput",
    "StageResult",
    "StageStatus",
]
