"""One call of a stage: in context variables of its own, on the loop or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any

from ..context import StageContext
from ..executors import in_thread
from ..stages import StageOutput

__all__ = ["Attempt", "call_in_thread", "call_when", "resume"]

Call = Callable[[StageContext], Any]


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
            try:
                waits_for = run(steps.throw, error)
            except StopIteration as stop:
                return stop.value
        else:
            try:
                waits_for = run(steps.send, value)
            except StopIteration as stop:
                return stop.value


async def call_in_thread(call: Call, ctx: StageContext, variables: Context) -> Any:
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
            value = variables.run(call, ctx)
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


async def call_when(
    condition: Callable[[StageContext], Any],
    begin: Callable[[], Awaitable[Any]],
    ctx: StageContext,
) -> Any:
    """Begin the attempt if `condition` says so; else hand back `Declined`."""
    verdict = condition(ctx)
    if inspect.isawaitable(verdict):
        verdict = await verdict
    return await begin() if verdict else DECLINED


DECLINED = StageOutput.skip("its when= said no")
"""What an attempt comes to whose condition said no: `execute` was not called."""
