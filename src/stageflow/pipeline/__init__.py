"""Describe a pipeline, check it, run it."""

from .active import ActiveRun, active_runs
from .circuit_breaker import CircuitBreaker
from .decorator import stage
from .graph import StageGraph
from .interceptor import Interceptor, Proceed, StageCall
from .limits import Limit, Limits
from .log import Log
from .many import ManyRuns
from .pipeline import Pipeline

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
