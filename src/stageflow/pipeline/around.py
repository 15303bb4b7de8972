"""Runs an attempt inside its interceptors, and tells which of them made the outcome."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from ..clock import get_clock
from ..context import StageContext
from ..errors import StageOutputError
from ..interrupts import is_a
from ..stages import StageOutput
from .interceptor import Interceptor, Proceed, StageCall
from .node import Node
from .outcome import output_of, timed_out

__all__ = ["intercepted"]


async def intercepted(
    node: Node, ctx: StageContext, start: Callable[[], Awaitable[Any]], began: int
) -> StageOutput:
    """Run an attempt inside the interceptors of its stage, the first one outermost.

    Args:
        node: The stage.
        ctx: The context of the attempt.
        start: Calls the stage.
        began: Start of the attempt in monotonic nanoseconds.
    """
    call = StageCall(node.pipeline, ctx)

    async def innermost() -> StageOutput:
        output = output_of(await start(), node)
        if node.timeout is not None:
            # The attempt fails although the stage returned, and the interceptors must see that failure.
            if get_clock().monotonic_ns() - began > node.timeout * 1e9:
                ctx.timed_out = True
            if ctx.timed_out:
                raise timed_out(node, str(ctx.run.pipeline_run_id), None)
        return output

    proceed: Proceed = innermost
    for interceptor in reversed(node.interceptors):
        proceed = _Layer(interceptor, call, proceed, node).outcome
    return await proceed()


class _Layer:
    """One interceptor around what is inside it."""

    __slots__ = (
        "_asked",
        "_call",
        "_called",
        "_inside",
        "_interceptor",
        "_name",
        "_node",
        "_output",
        "_raised",
    )

    def __init__(self, interceptor: Interceptor, call: StageCall, inside: Proceed, node: Node) -> None:
        self._interceptor = interceptor
        self._name = getattr(interceptor, "__name__", None) or type(interceptor).__name__
        self._call = call
        self._inside = inside
        self._node = node
        self._asked = False
        self._called = False
        self._output: StageOutput | None = None
        self._raised: BaseException | None = None

    async def outcome(self) -> StageOutput:
        """Return what the interceptor makes of the attempt."""
        try:
            value = await self._interceptor(self._call, self._proceed)
        except BaseException as error:
            if error is not self._raised and not is_a(error, asyncio.CancelledError):
                self._call.ctx.outcome_by = self._name
            raise
        finally:
            self._raised = None  # it holds the frame of this call, which holds us
        if isinstance(value, StageOutput) and value is self._output:
            return value  # handed through: whoever made it made it
        self._call.ctx.outcome_by = self._name
        if inspect.iscoroutine(value):
            value.close()
        if self._asked and not self._called:
            raise self._mistake("did not await proceed()", "write `return await proceed()`")
        if not isinstance(value, (StageOutput, Mapping)):
            what = "None" if value is None else f"{type(value).__name__}"
            raise self._mistake(f"returned {what}", "return await proceed(), or an outcome of its own")
        return output_of(value, self._node)

    def _proceed(self) -> Coroutine[Any, Any, StageOutput]:
        self._asked = True
        return self._run_inside()

    async def _run_inside(self) -> StageOutput:
        if self._called:
            raise self._mistake(
                "awaited proceed() twice",
                "one attempt is one call; to try again, give the stage a Retry policy",
            )
        self._called = True
        try:
            self._output = await self._inside()
        except BaseException as error:
            self._raised = error
            raise
        return self._output

    def _mistake(self, what: str, hint: str) -> StageOutputError:
        return StageOutputError(
            f"interceptor {self._name} {what}",
            pipeline=self._call.pipeline,
            stage=self._call.stage,
            run_id=str(self._call.ctx.run.pipeline_run_id),
            hint=hint,
        )
