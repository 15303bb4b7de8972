"""One call of a stage: in context variables of its own, on the loop or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from .._fork import FORKED
from ..context import StageContext, current_stage
from ..executors import in_thread
from ..interrupts import is_a
from ..stages import StageOutput
from .around import intercepted
from .node import Node
from .parameters import arguments

__all__ = ["Attempt", "begin", "first_step"]

Call = Callable[..., Any]


class Attempt:
    """A suspended attempt: only a suspended attempt can time out or be cancelled.

    Attributes:
        index: The instance in the state of the run.
        ctx: What the stage was given.
        began: Start time in monotonic nanoseconds.
        task: The task that drives it.
        timer: The timer of its timeout or grace period.
    """

    __slots__ = ("_cancels", "began", "ctx", "index", "task", "timer")

    def __init__(self, index: int, ctx: StageContext, began: int, task: asyncio.Task[None]) -> None:
        self.index = index
        self.ctx = ctx
        self.began = began
        self.task = task
        self.timer: asyncio.TimerHandle | None = None
        self._cancels = 0

    def cancel(self, *, timed_out: bool) -> None:
        """Cancel the attempt."""
        self.ctx.cancelled = True
        self.ctx.timed_out = timed_out
        self._cancels += 1
        self.task.cancel()

    def abandon(self) -> None:
        """Stop waiting for the attempt. It continues in the background; another cancellation closes it."""
        self.ctx.abandoned = True
        self.ctx.cancelled = True
        if self.cancelled_externally:
            # The loop is shutting down and waits for this task.
            self.task.cancel()

    @property
    def cancelled_externally(self) -> bool:
        """True if code outside the run cancelled the task."""
        return self.task.cancelling() > self._cancels

    def gives_up(self, error: BaseException) -> bool:
        """Return whether to close the attempt: it was abandoned and is cancelled again."""
        return self.ctx.abandoned and is_a(error, asyncio.CancelledError)

    def stop_timer(self) -> None:
        """Cancel the timer of the attempt."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def first_step(ctx: StageContext, call: Call) -> tuple[Coroutine[Any, Any, Any], Any]:
    """Start an attempt in the current context variables: return its coroutine and what it waits for first.

    Raises:
        StopIteration: The attempt ended without suspending; `value` is its return value.
    """
    current_stage.set(ctx)
    try:
        steps = call(ctx)
        return steps, steps.send(None)
    finally:
        if FORKED.loop is not None:
            FORKED.return_to_loop()


def begin(
    node: Node, variables: Context, instances: dict[int, Any], ctx: StageContext
) -> Coroutine[Any, Any, Any]:
    """Return the coroutine of an attempt that is more than the call of a coroutine function.

    `instances` holds what the run has made of stage classes, by stage number.
    """
    call = node.call
    if node.make is not None:
        instance = instances.get(node.index)
        if instance is None:
            try:
                instance = instances[node.index] = node.make()
            except StopIteration as error:  # it would read as the end of the coroutine
                raise RuntimeError(f"{node.make.__name__}() raised StopIteration") from error
        call = instance.execute
    if node.plain:
        # A copy: a context can be entered once at a time, and `variables` drives the waiting.
        start = functools.partial(_call_in_thread, call, ctx, variables.copy())
    else:
        start = functools.partial(call, ctx)
    if node.parameters:
        start = functools.partial(start, **arguments(ctx, node.parameters, node.dependencies))
    if node.interceptors:
        start = functools.partial(intercepted, node, ctx, start)
    if node.when is not None and ctx.attempt == 0:
        return _call_when(node.when, start, ctx)
    steps: Coroutine[Any, Any, Any] = start()
    return steps


async def _call_in_thread(call: Call, ctx: StageContext, variables: Context, **by_name: Any) -> Any:
    """Call a plain function in a thread of the library's own, with `variables`.

    Nothing can interrupt a thread, so a cancelled attempt ends when its function returns; what
    it returns then counts.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def arrive(value: Any, error: BaseException | None) -> None:
        if not arrived.done():
            arrived.set_result((value, error))

    def job() -> None:
        value, error = None, None
        try:
            value = variables.run(call, ctx, **by_name)
        except BaseException as caught:
            error = caught
        # A loop that was closed in the meantime has nobody left who would want to know.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(arrive, value, error)

    in_thread(job)
    while not arrived.done():
        try:
            await asyncio.shield(arrived)
        except asyncio.CancelledError:
            if ctx.abandoned:
                raise
            ctx.cancelled = True
    value, error = arrived.result()
    if error is not None:
        raise error
    # A plain function may hand back a coroutine: `partial`, a decorator, a callable object.
    return await value if inspect.isawaitable(value) else value


async def _call_when(
    condition: Callable[[StageContext], Any],
    start: Callable[[], Awaitable[Any]],
    ctx: StageContext,
) -> Any:
    """Begin the first attempt if `condition` says so; else hand back `_DECLINED`."""
    verdict = condition(ctx)
    if inspect.isawaitable(verdict):
        verdict = await verdict
    if not verdict:
        return _DECLINED
    ctx.attempt = 1
    return await start()


_DECLINED = StageOutput.skip("its when= said no")
"""What an attempt comes to whose condition said no: `execute` was not called."""
