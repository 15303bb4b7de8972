"""Calls a synchronous function in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any

from .._interrupts import is_a
from ..context import StageContext
from ..executors import in_thread
from ._attempt import Call, StageScope
from ._limits import THREADS, ThreadPermit, thread_permit

__all__ = ["call_in_thread"]

_UNSET = object()


async def call_in_thread(call: Call, ctx: StageContext, scope: StageScope, is_intercepted: bool) -> Any:
    """Call a synchronous function in a thread, in a copy of the current context variables.

    Nothing can interrupt a thread. If the engine cancels the attempt, the attempt ends when the function
    returns, and its return value is used. If an interceptor cancels the call, for example because of a
    timeout, the call raises `CancelledError` immediately, and the return value is discarded.
    """
    loop = asyncio.get_running_loop()
    returned: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    scope.returned = returned
    # A copy: a context can be entered once at a time, and the current one continues to drive the attempt.
    variables = copy_context()
    permit, scope.permit = scope.permit, None
    if permit is None:  # the attempt was abandoned before it called the function
        permit = ThreadPermit(loop)
        THREADS.exceed(permit)
    variables.run(thread_permit.set, permit)

    def deliver(value: Any, error: BaseException | None) -> None:
        if not returned.done():
            returned.set_result((value, error))
        else:
            _discard(value)

    def job() -> None:
        value, error = None, None
        try:
            value = variables.run(call, ctx)
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(deliver, value, error)
        except RuntimeError:  # the loop was closed in the meantime: nothing waits for the value
            _discard(value)

    try:
        in_thread(job, functools.partial(THREADS.release, permit))
    except RuntimeError:
        THREADS.release(permit)
        raise
    while not returned.done():
        try:
            await asyncio.shield(returned)
        except asyncio.CancelledError:
            if ctx.abandoned:
                raise
            if is_intercepted and not ctx.cancelled:
                # Code that cancels all tasks, such as the end of `asyncio.run`, cancels the run as well:
                # within the same iteration of the loop, the engine then cancels this attempt.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                if not ctx.cancelled:
                    ctx.cancelled = True
                    returned.cancel()
                    raise
            ctx.cancelled = True
    value, error = returned.result()
    _adopt(variables)
    if error is not None:
        raise error
    # A synchronous function may return a coroutine: `partial`, a decorator, a callable object.
    return await value if inspect.isawaitable(value) else value


def _adopt(variables: Context) -> None:
    """Set the context variables that the function has set in its thread, as if it had run here."""
    for variable, value in variables.items():
        if variable.get(_UNSET) is not value:
            variable.set(value)


def _discard(value: Any) -> None:
    if is_a(value, CoroutineType):
        value.close()  # otherwise Python warns that it was never awaited
