"""Code around an attempt: it sees the call, may replace the outcome, and is named in the record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..context import StageContext
from ..stages import StageOutput

__all__ = ["Interceptor", "Proceed", "StageCall"]

Proceed = Callable[[], Awaitable[StageOutput]]


class StageCall:
    """The attempt that an interceptor is around.

    Attributes:
        pipeline: Name of the pipeline.
        stage: Name of the stage.
        ctx: What the stage is given; `ctx.attempt` is the number of the attempt.
    """

    __slots__ = ("ctx", "pipeline", "stage")

    def __init__(self, pipeline: str, ctx: StageContext) -> None:
        self.pipeline = pipeline
        self.stage = ctx.stage
        self.ctx = ctx


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
