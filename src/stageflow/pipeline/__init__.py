"""Describe a pipeline, check it, run it."""

from ._active import ActiveRun, active_runs

# For other packages of stageflow.
from ._decorator import carried as carried, stage
from ._interceptors import CircuitBreaker, Interceptor, Log, Proceed, StageCall
from ._limits import Limit, Limits
from ._many import ManyRuns
from ._pipeline import Pipeline, StageGraph
from ._spec import StageSpec as StageSpec

__all__ = [
    "ActiveRun",
    "CircuitBreaker",
    "Interceptor",
    "Limit",
    "Limits",
    "Log",
    "ManyRuns",
    "Pipeline",
    "Proceed",
    "StageCall",
    "StageGraph",
    "active_runs",
    "stage",
]
