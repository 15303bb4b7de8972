"""Define, validate and run pipelines."""

from ..budget import Budget
from ._active import ActiveRun, MapProgress, active_runs

# `carried_description` and `StageSpec` are exported for other packages of stageflow.
from ._decorator import carried_description as carried_description, stage
from ._flow import Flow
from ._interceptors import CircuitBreaker, Interceptor, Log, Proceed, StageCall
from ._limits import Limit, Limits
from ._many import ManyRuns
from ._pipeline import Pipeline, StageGraph
from ._spec import StageSpec as StageSpec
from ._streamed_run import StreamedRun, SyncStreamedRun

__all__ = [
    "ActiveRun",
    "Budget",
    "CircuitBreaker",
    "Flow",
    "Interceptor",
    "Limit",
    "Limits",
    "Log",
    "ManyRuns",
    "MapProgress",
    "Pipeline",
    "Proceed",
    "StageCall",
    "StageGraph",
    "StreamedRun",
    "SyncStreamedRun",
    "active_runs",
    "stage",
]
