"""One attempt of a stage: its interceptors and its call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any

from .._fork import FORKED
from .._interrupts import INTERRUPTS, is_a
from .._time import get_clock
from ..context import StageContext, current_stage
from ..errors import (
    StageOutputError,
    StageTimeoutError,
    describe,
    is_internal_code,
    with_message,
)
from ..executors import in_thread
from ..stages import StageOutput, StageStatus
from ._interceptors import Interceptor, Proceed, StageCall
from ._limits import THREADS, ThreadPermit, thread_permit
from ._output import output_of
from ._plan import Node
from ._spec import arguments

__all__ = ["Attempt", "StageScope", "begin", "failure", "first_step", "intercepted", "timed_out"]

Call = Callable[..., Any]

_UNSET = object()

_DECLINED = StageOutput.skip("when= returned false")
"""The output of an attempt whose `when=` returned false: `execute` was not called."""


def timed_out(node: Node, run_id: str, raised: BaseException | None) -> StageTimeoutError:
    """Return the error of an attempt that took too long, regardless of what it returned or raised."""
    if type(raised) is StageTimeoutError and (raised.stage, raised.run_id) == (node.name, run_id):
        return raised
    error = StageTimeoutError(
        f"the attempt took longer than its timeout of {node.timeout:g} s",
        pipeline=node.pipeline,
        stage=node.name,
        run_id=run_id,
    )
    if raised is not None and not is_a(raised, asyncio.CancelledError):
        error.__cause__ = raised
    return error


def failure(error: BaseException) -> StageOutput:
    """Return the outcome of an attempt that raised; its traceback starts in the stage."""
    with INTERRUPTS:
        return _failure(error)


def _failure(error: BaseException) -> StageOutput:
    # Remove the frames of the engine: they refer to the run, and the run refers to this exception.
    try:
        traceback = error.__traceback__
        while traceback is not None and is_internal_code(traceback.tb_frame.f_code.co_filename):
            traceback = traceback.tb_next
        # Not by assignment, which an exception that is a frozen dataclass refuses.
        BaseException.with_traceback(error, traceback)
    except BaseException as raised:  # raised by a class that overrides the attribute
        INTERRUPTS.contain(raised)
    if is_a(error, asyncio.CancelledError):
        text = "CancelledError: something the stage awaited was cancelled, not the stage itself"
        return StageOutput(StageStatus.FAIL, {}, error=with_message(text, error), exception=error)
    return StageOutput(StageStatus.FAIL, {}, error=describe(error), exception=error)


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
    """One interceptor, and the inner layers that it wraps."""

    __slots__ = (
        "_call",
        "_inner",
        "_interceptor",
        "_name",
        "_node",
        "_output",
        "_proceed_awaited",
        "_proceed_called",
        "_raised",
    )

    def __init__(self, interceptor: Interceptor, call: StageCall, inner: Proceed, node: Node) -> None:
        self._interceptor = interceptor
        self._name = getattr(interceptor, "__name__", None) or type(interceptor).__name__
        self._call = call
        self._inner = inner
        self._node = node
        self._proceed_called = False
        self._proceed_awaited = False
        self._output: StageOutput | None = None
        self._raised: BaseException | None = None

    async def outcome(self) -> StageOutput:
        """Return the outcome of the attempt as this interceptor determines it."""
        try:
            value = await self._interceptor(self._call, self._proceed)
        except BaseException as error:
            if error is not self._raised and not is_a(error, asyncio.CancelledError):
                self._call.ctx.outcome_by = self._name
            raise
        finally:
            self._raised = None  # it refers to the frame of this call; avoid a reference cycle
        if isinstance(value, StageOutput) and value is self._output:
            return value  # unchanged: `outcome_by` remains as the inner layers set it
        self._call.ctx.outcome_by = self._name
        if inspect.iscoroutine(value):
            value.close()
        if self._proceed_called and not self._proceed_awaited:
            raise self._error("did not await proceed()", "write `return await proceed()`")
        if not isinstance(value, (StageOutput, Mapping)):
            returned = "None" if value is None else f"{type(value).__name__}"
            raise self._error(f"returned {returned}", "return await proceed(), or another StageOutput")
        return output_of(value, self._node)

    def _proceed(self) -> Coroutine[Any, Any, StageOutput]:
        self._proceed_called = True
        return self._run_inner()

    async def _run_inner(self) -> StageOutput:
        if self._proceed_awaited:
            raise self._error(
                "awaited proceed() twice",
                "an attempt calls the stage once; to retry it, use a Retry policy",
            )
        self._proceed_awaited = True
        try:
            self._output = await self._inner()
        except BaseException as error:
            self._raised = error
            raise
        return self._output

    def _error(self, problem: str, hint: str) -> StageOutputError:
        return StageOutputError(
            f"interceptor {self._name} {problem}",
            pipeline=self._call.pipeline,
            stage=self._call.stage,
            run_id=str(self._call.ctx.run.pipeline_run_id),
            hint=hint,
        )


class StageScope:
    """The state that all attempts of one stage share within one run.

    Attributes:
        instance: The instance of a stage class; None before the first attempt.
        variables: The context variables after instantiation and `when=`, which run once: later attempts start
            with a copy. None if the stage has neither.
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
        ctx: The context that was passed to the stage.
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
        # `cancelling()` does not count all requests, because a stage may call `uncancel()`. It cannot do so
        # between two of its steps: if the number increases in between, there were new requests.
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
    if node.inputs or not node.takes_context:
        values = [ctx.inputs.value(ref) for ref in node.inputs or ()]
        call = _with_inputs(call, node.takes_context, values)
    elif node.parameters:
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


def _with_inputs(call: Call, takes_context: bool, values: list[Any]) -> Call:
    """Return a function that takes the context and calls `call` with the values of its inputs."""
    if takes_context:
        return lambda ctx: call(ctx, *values)
    return lambda _: call(*values)


async def _call_in_thread(call: Call, ctx: StageContext, scope: StageScope, is_intercepted: bool) -> Any:
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


async def _call_when(
    condition: Callable[[StageContext], Any],
    start: Callable[[], Awaitable[Any]],
    ctx: StageContext,
    scope: StageScope,
) -> Any:
    """Start the first attempt if `condition` returns true; otherwise return `_DECLINED`."""
    verdict = condition(ctx)
    if inspect.isawaitable(verdict):
        verdict = await verdict
    if not verdict:
        return _DECLINED
    ctx.attempt = 1
    scope.variables = copy_context()
    return await start()
