"""One call of a stage: in context variables of its own, on the loop or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any

from ..context import StageContext
from ..executors import in_thread
from ..stages import StageOutput
from .around import intercepted
from .forked_loop import FORKED
from .node import Node
from .parameters import arguments

__all__ = ["Attempt", "begin", "resume"]

Call = Callable[..., Any]


class Attempt:
    """An attempt that waits for something: only such a one can be timed out or cancelled.

    Attributes:
        index: Number of the stage.
        ctx: What the stage was given.
        began: Start, monotonic nanoseconds.
        task: The task that drives it.
        timer: Its time-out, or the end of its grace.
        told: Why it was told to end: "timeout" or "ending"; None while it was not.
    """

    __slots__ = ("_cancels", "began", "ctx", "index", "task", "timer", "told")

    def __init__(self, index: int, ctx: StageContext, began: int, task: asyncio.Task[None]) -> None:
        self.index = index
        self.ctx = ctx
        self.began = began
        self.task = task
        self.timer: asyncio.TimerHandle | None = None
        self.told: str | None = None
        self._cancels = 0

    def tell(self, why: str) -> None:
        """Ask it to end, once."""
        if self.told is None:
            self.told = why
            self.ctx.cancelled = True
            self.ctx.timed_out = why == "timeout"
            self._cancels += 1
            self.task.cancel()

    def abandon(self) -> None:
        """Wait for it no longer. It goes on by itself, and ends for good when it is cancelled again."""
        self.ctx.abandoned = True
        self.ctx.cancelled = True
        if self.cancelled_from_outside:
            # The loop is being torn down and waits for this task: it must not wait for ever.
            self.task.cancel()

    @property
    def cancelled_from_outside(self) -> bool:
        """True when somebody other than the run cancelled the task."""
        return self.task.cancelling() > self._cancels

    def stop_timer(self) -> None:
        """Disarm what was to happen to it."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@coroutine
def resume(
    variables: Context, steps: Coroutine[Any, Any, Any], waits_for: Any, ctx: StageContext
) -> Generator[Any, Any, Any]:
    """Drive `steps`, suspended at `waits_for`, to its end, each step in `variables`.

    A task can have one context only. Driven by hand, stage after stage can share a task, which
    costs a tenth of a task each, and none sees what another one set.
    """
    run = variables.run
    while True:
        thrown: BaseException | None = None
        value = None
        try:
            value = yield waits_for
        except GeneratorExit:
            run(steps.close)
            raise
        except BaseException as error:
            if ctx.abandoned and isinstance(error, asyncio.CancelledError):
                with contextlib.suppress(RuntimeError):  # it ignores even this: it is let go
                    run(steps.close)
                raise
            thrown = error
        # Outside of the handler, or what the stage raises next would claim it as its context.
        try:
            waits_for = run(steps.send, value) if thrown is None else run(steps.throw, thrown)
        except StopIteration as stop:
            return stop.value
        except GeneratorExit as exit_of_stage:
            raise _in_disguise(exit_of_stage) from exit_of_stage
        finally:
            if FORKED.loop is not None:
                FORKED.return_to_loop()


def _in_disguise(error: BaseException) -> RuntimeError:
    """Return what stands for an exception that would end the coroutine it goes through."""
    return RuntimeError(f"the stage raised {type(error).__name__}")


def begin(
    node: Node, ctx: StageContext, variables: Context, instances: dict[int, Any]
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
