"""Executors run the functions of stages in threads, in processes on this machine, or on a Ray cluster."""

from typing import TYPE_CHECKING, Any

# Exported for other packages of stageflow, except `Executor`.
from ._executor import (
    Call as Call,
    Chunk as Chunk,
    Executor,
    Message as Message,
    Raised as Raised,
    Recorded as Recorded,
    Returned as Returned,
    Session as Session,
    StageCallContext as StageCallContext,
    Started as Started,
    open_calls as open_calls,
)
from ._threads import busy_threads as busy_threads, in_thread as in_thread

if TYPE_CHECKING:
    from ._process import ProcessExecutor
    from ._ray import RayExecutor

__all__ = ["Executor", "ProcessExecutor", "RayExecutor"]


def __getattr__(name: str) -> Any:
    # Imported on first use, because `import stageflow` does not need them.
    if name == "ProcessExecutor":
        from ._process import ProcessExecutor

        return ProcessExecutor
    if name == "RayExecutor":
        from ._ray import RayExecutor

        return RayExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
