"""Code around an attempt: it sees the call, may replace the outcome, and is named in the record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..context import StageContext
from ..stages import StageOutput, StageResult

__all__ = ["Interceptor", "Proceed", "StageCall"]

Proceed = Callable[[], Awaitable[StageOutput]]


class StageCall:
    """The attempt that an interceptor wraps.

    Attributes:
        pipeline: Name of the pipeline.
        stage: Name of the stage.
        ctx: The context of the stage; `ctx.attempt` is the number of the attempt.
    """

    __slots__ = ("ctx", "pipeline", "stage")

    def __init__(self, pipeline: str, ctx: StageContext) -> None:
        self.pipeline = pipeline
        self.stage = ctx.stage
        self.ctx = ctx

    def add_done_callback(self, callback: Callable[[StageResult], object]) -> None:
        """Call `callback` with the recorded result of the attempt, once the engine has determined it.

        The result may differ from what `proceed()` returns: the attempt may time out or be abandoned, another
        interceptor may replace its outcome, and the retry policy decides between RETRY and FAIL. The callback
        is called on the event loop of the run, in the context variables of this call, and before `run()`
        returns. It must not block. An exception that it raises is logged.

        Example:
            async def metrics(call, proceed):
                call.add_done_callback(lambda result: requests.labels(call.stage, result.status).inc())
                return await proceed()
        """
        self.ctx.add_done_callback(callback)


class Interceptor(Protocol):
    """An async callable around one attempt of a stage.

    `await proceed()` runs what is inside: further interceptors and the stage. It returns the
    stage's `StageOutput`, or raises what the stage raised. What the interceptor returns is the
    outcome of the attempt; what it raises is the attempt's failure.

    Example:
        async def timing(call, proceed):
            began = time.monotonic()
            try:
                return await proceed()
            finally:
                call.ctx.annotate(timed_s=time.monotonic() - began)
    """

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Do something before and after `await proceed()`, or instead of it."""
        ...
