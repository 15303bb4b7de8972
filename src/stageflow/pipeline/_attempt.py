"""One attempt of a function: its steps, its cancellation, and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from .._activation import activate
from .._fork import FORKED
from .._interrupts import INTERRUPTS, is_a
from ..context import StageContext
from ..errors import StageTimeoutError, describe, is_internal_code, with_message
from ..retry import Retry
from ..stages import StageOutput, StageStatus
from ._limits import ThreadPermit
from ._plan import Node

__all__ = [
    "Attempt",
    "Call",
    "StageScope",
    "failure",
    "first_step",
    "retried_or_failed",
    "stage_timed_out",
    "timed_out",
]

Call = Callable[..., Any]


def stage_timed_out(node: Node, ctx: StageContext, raised: BaseException | None) -> StageTimeoutError:
    """Return the error of an attempt of a stage that took too long; see `timed_out`."""
    if ctx._is_idle:
        what = f"sent no chunk within its idle_timeout of {node.idle_timeout or 0:g} s"
    else:
        what = f"took longer than its timeout of {node.timeout or 0:g} s"
        if ctx._stream is not None and (blocked_ms := ctx._stream.summary(0).blocked_ms):
            what += f", of which it waited {blocked_ms / 1000:.3g} s for readers of its stream"
    return timed_out(node, what, ctx._upstream.run_id, raised)


def timed_out(node: Node, what: str, run_id: str, raised: BaseException | None) -> StageTimeoutError:
    """Return the error of an attempt that took too long, regardless of what it returned or raised.

    Args:
        node: The stage.
        what: What the attempt did: "took longer than its timeout of 5 s".
        run_id: Id of the run.
        raised: The exception that the attempt raised, or None.
    """
    if type(raised) is StageTimeoutError and (raised.stage, raised.run_id) == (node.name, run_id):
        return raised
    error = StageTimeoutError(
        f"the attempt {what}",
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


_DEFAULT_RETRY = Retry(attempts=3, on=())
"""For a stage or an item without a policy that returns `StageOutput.retry`."""


def retried_or_failed(
    output: StageOutput, policy: Retry | None, attempt: int, raised: BaseException | None, since: float
) -> StageOutput:
    """Return RETRY with its wait if the policy allows another attempt, else FAIL.

    `since` is the number of seconds since the start of the first attempt.
    """
    policy = policy or _DEFAULT_RETRY
    requested = output.status is StageStatus.RETRY
    after: float | None = None
    reason: str | None = None
    try:
        if not requested and (raised is None or not policy.covers(raised)):
            return output
        if attempt < policy.attempts:
            after = policy.seconds_after(attempt) if output.after is None else output.after
            if policy.deadline is not None and since + after > policy.deadline:
                reason = (
                    f"attempt {attempt} of {policy.attempts} failed after {since:.3g} s, and the next one "
                    f"in {after:g} s would be past the deadline of {policy.deadline:g} s"
                )
                return StageOutput(StageStatus.FAIL, {}, output.error, output.exception, reason)
            status = StageStatus.RETRY
            reason = f"attempt {attempt} of {policy.attempts} failed, the next one in {after:g} s"
        else:
            status = StageStatus.FAIL
            reason = (
                f"no attempts left ({attempt} of {policy.attempts})" if attempt > 1 or requested else None
            )
    except BaseException as error:
        # The policy may call functions of the application.
        INTERRUPTS.postpone(error)
        status = StageStatus.FAIL
        with INTERRUPTS:
            reason = f"its retry policy raised {describe(error)}"
    return StageOutput(status, {}, error=output.error, exception=output.exception, reason=reason, after=after)


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
        idle_timer: The timer of its `idle_timeout`.
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
        "idle_timer",
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
        self.idle_timer: asyncio.TimerHandle | None = None
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
            args = ()  # an exception in it refers to this frame from Python 3.13 on; avoid a reference cycle
            took = self._now() - began
            if took > self.blocked:
                self.blocked = took
            self._cancelling = self.task.cancelling()
            self._pending = 0

    def cancel(self, reason: str, *, timed_out: bool) -> None:
        """Cancel the attempt; `reason` is the message of its `CancelledError`."""
        self.ctx.cancelled = True
        self.ctx.timed_out = timed_out
        self._by_engine = True
        self._notice_others()
        self._pending += 1
        self.task.cancel(reason)

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
        if self.ctx._on_abandon is not None:
            self.ctx._on_abandon()
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

    def stop_timers(self) -> None:
        """Cancel the timers of the attempt."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.idle_timer is not None:
            self.idle_timer.cancel()
            self.idle_timer = None


def first_step(ctx: StageContext, call: Call, /, *args: Any) -> tuple[Coroutine[Any, Any, Any], Any]:
    """Start an attempt in the current context variables: return its coroutine and what it waits for first.

    Raises:
        StopIteration: The attempt ended without suspending; `value` is its return value.
    """
    activate(ctx)
    try:
        try:
            steps = call(*args)
        except StopIteration as error:  # it would be mistaken for the end of the attempt
            raise RuntimeError(f"the call of stage {ctx.stage!r} raised StopIteration") from error
        return steps, steps.send(None)
    finally:
        if FORKED.loop is not None:
            FORKED.return_to_loop()
