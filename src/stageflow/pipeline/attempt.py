"""One attempt of a stage: its context variables, its cancellation, and the call of its function."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any

from .._fork import FORKED
from ..clock import get_clock
from ..context import StageContext, current_stage
from ..executors import in_thread
from ..interrupts import is_a
from ..stages import StageOutput
from ._thread_limit import THREADS, ThreadPermit, thread_permit
from .around import intercepted
from .node import Node
from .parameters import arguments

__all__ = ["Attempt", "StageScope", "begin", "first_step"]

Call = Callable[..., Any]


class StageScope:
    """What the attempts of one stage share within one run.

    Attributes:
        instance: The instance of a stage class; None before the first attempt.
        variables: The context variables as instantiation and `when=` left them. They run once, so later
            attempts start with a copy of these. None if the stage has neither.
        permit: The permit of the current attempt for a thread, until it calls its function there.
        returned: Completed when the function of the current attempt returns from its thread. None if the
            stage has not called a function in a thread.
    """

    __slots__ = ("instance", "permit", "returned", "variables")

    def __init__(self) -> None:
        self.instance: Any = None
        self.variables: Context | None = None
        self.permit: ThreadPermit | None = None
        self.returned: asyncio.Future[tuple[Any, BaseException | None]] | None = None


class Attempt:
    """A suspended attempt: only a suspended attempt can time out or be cancelled.

    Attributes:
        index: The instance in the state of the run.
        ctx: What the stage was given.
        began: Start time in monotonic nanoseconds.
        blocked: Nanoseconds of its longest step so far, for which it blocked the event loop.
        task: The task that drives it. It drives no other attempt that suspends.
        timer: The timer of its timeout or grace period.
    """

    __slots__ = (
        "_by_engine",
        "_by_others",
        "_cancelling",
        "_loop_ends",
        "_now",
        "_pending",
        "_variables",
        "began",
        "blocked",
        "ctx",
        "index",
        "task",
        "timer",
    )

    def __init__(
        self,
        index: int,
        ctx: StageContext,
        began: int,
        now: Callable[[], int],
        task: asyncio.Task[None],
        variables: Context,
    ) -> None:
        self.index = index
        self.ctx = ctx
        self.began = began
        self.blocked = now() - began
        self.task = task
        self.timer: asyncio.TimerHandle | None = None
        self._now = now
        self._variables = variables
        self._by_engine = self._by_others = self._loop_ends = False
        # `cancelling()` does not count requests, because a stage may call `uncancel()`. Between two steps it
        # cannot: what is added to the number after one step and before the next are new requests.
        self._cancelling = task.cancelling()
        self._pending = 0

    def step(self, method: Call, /, *args: Any) -> Any:
        """Run one step of the coroutine of the attempt in its context variables."""
        began = self._now()
        try:
            return self._variables.run(method, *args)
        finally:
            took = self._now() - began
            if took > self.blocked:
                self.blocked = took
            self._cancelling = self.task.cancelling()
            self._pending = 0

    def cancel(self, *, timed_out: bool) -> None:
        """Cancel the attempt."""
        self.ctx.cancelled = True
        self.ctx.timed_out = timed_out
        self._by_engine = True
        self._notice_others()
        self._pending += 1
        self.task.cancel()

    def _notice_others(self) -> None:
        if self.task.cancelling() > self._cancelling + self._pending:
            self._by_others = True

    def caller_cancelled(self) -> None:
        """Notice that the caller of the run was cancelled.

        If the task of the attempt was cancelled in the same iteration of the loop, code cancels all tasks
        and most likely waits for them, as `asyncio.run` does when it ends.
        """
        self._notice_others()
        self._loop_ends = self._loop_ends or self._by_others

    def _forget_others(self) -> None:
        self._by_others = False

    def abandon(self) -> None:
        """Stop waiting for the attempt. It continues in the background; another cancellation closes it."""
        self.ctx.abandoned = self.ctx.cancelled = True
        if self._loop_ends:
            self.task.cancel()

    @property
    def cancelled_externally(self) -> bool:
        """True if code outside the run, and not the engine, cancelled the task."""
        return not self._by_engine and self.task.cancelling() > 0

    def gives_up(self, error: BaseException) -> bool:
        """Return whether to close the attempt: it was abandoned and is cancelled again."""
        self._notice_others()
        if self._by_others:
            self.task.get_loop().call_soon(self._forget_others)
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
        try:
            steps = call(ctx)
        except StopIteration as error:  # it would be mistaken for the end of the attempt
            raise RuntimeError(f"the call of stage {ctx.stage!r} raised StopIteration") from error
        return steps, steps.send(None)
    finally:
        if FORKED.loop is not None:
            FORKED.return_to_loop()


def begin(node: Node, scope: StageScope, ctx: StageContext) -> Coroutine[Any, Any, Any]:
    """Return the coroutine of an attempt that is more than the call of a coroutine function."""
    began = get_clock().monotonic_ns() if node.interceptors else 0
    call = node.call
    if node.make is not None:
        if scope.instance is None:
            scope.instance = node.make()
            scope.variables = copy_context()
        call = scope.instance.execute
    if node.parameters:
        call = functools.partial(call, **arguments(ctx, node.parameters, node.dependencies))
    if node.plain:
        start = functools.partial(_call_in_thread, call, ctx, scope, bool(node.interceptors))
    else:
        start = functools.partial(call, ctx)
    if node.interceptors:
        start = functools.partial(intercepted, node, ctx, start, began)
    if node.when is not None and ctx.attempt == 0:
        return _call_when(node.when, start, ctx, scope)
    steps: Coroutine[Any, Any, Any] = start()
    return steps


async def _call_in_thread(call: Call, ctx: StageContext, scope: StageScope, is_intercepted: bool) -> Any:
    """Call a synchronous function in a thread, in a copy of the current context variables.

    Nothing can interrupt a thread. If the engine cancels the attempt, the attempt ends when the function
    returns, and what it returns counts. If an interceptor cancels the call, for example because of its own
    timeout, the call raises `CancelledError` at once, and what the function returns is discarded.
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


_UNSET = object()


def _adopt(variables: Context) -> None:
    """Set the context variables that the function has set in its thread, as if it had run here."""
    for variable, value in variables.items():
        if variable.get(_UNSET) is not value:
            variable.set(value)


def _discard(value: Any) -> None:
    if is_a(value, CoroutineType):
        value.close()  # it was never awaited, and Python would warn of that


async def _call_when(
    condition: Callable[[StageContext], Any],
    start: Callable[[], Awaitable[Any]],
    ctx: StageContext,
    scope: StageScope,
) -> Any:
    """Begin the first attempt if `condition` says so; else hand back `_DECLINED`."""
    verdict = condition(ctx)
    if inspect.isawaitable(verdict):
        verdict = await verdict
    if not verdict:
        return _DECLINED
    ctx.attempt = 1
    scope.variables = copy_context()
    return await start()


_DECLINED = StageOutput.skip("when= returned false")
"""What an attempt comes to whose condition said no: `execute` was not called."""
