"""The scheduler: runs one graph once, from its first stage to its record.

`Scheduler` owns everything that `RunState` must not touch: the event loop, the clock, tasks, timers and
permits. It reports each event to the state and then executes the effects. Both happen on one loop, without an
await in between.

Stages run in *workers*. A worker is a task that runs ready stages one after another, so a stage whose last
dependency has just ended runs in the task of that dependency. There are only as many tasks as stages that
wait concurrently.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Concatenate, ParamSpec, cast

from .._drive import drive
from ..clock import get_clock
from ..context import PipelineContext, PipelineResults, StageContext
from ..errors import LimitDeadlockError, with_message
from ..interrupts import INTERRUPTS, is_a
from ..observability.defaults import defaults
from ..observability.recorder import RunRecorder
from ..observability.run_context import deliver_on, start_run
from . import active
from ._run_state import CANCELLING, RUNNING, TIMED_OUT, RunState
from .attempt import Attempt, begin, first_step
from .limits import Permit, innermost_permit
from .outcome import failure, output_of
from .plan import Plan

__all__ = ["Scheduler"]

YIELD_EVERY = 16
"""Number of stages that a worker starts before it yields to the event loop."""

P = ParamSpec("P")


def _ends_run(
    callback: Callable[Concatenate[Scheduler, P], None],
) -> Callable[Concatenate[Scheduler, P], None]:
    """End the run if a loop callback raises: the error would otherwise go unreported."""

    @functools.wraps(callback)
    def guarded(self: Scheduler, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception as error:
            self._engine_failed(error)

    return guarded


class Scheduler:
    """One run: its state, its workers, its timers and its permits."""

    def __init__(self, plan: Plan, context: PipelineContext, deadline: float | None) -> None:
        clock = get_clock()
        self.now = clock.monotonic_ns
        wall, self.began = clock.wall_ns(), self.now()
        origin = wall - self.began
        self.loop = asyncio.get_running_loop()
        self.plan = plan
        self.pipeline_name = plan.name
        self.context, run = start_run(context, plan.name, wall, origin)
        self.run_id = run.run_id
        self.recorder = RunRecorder(
            run,
            self.context,
            plan.emitter,
            stages=defaults().emits if plan.emits_stages is None else plan.emits_stages,
            pipeline=defaults().emits if plan.emits_pipeline is None else plan.emits_pipeline,
        )
        self.variables = copy_context()
        self.variables.run(deliver_on, self.loop)
        self.state = RunState(plan, self.run_id, self.began, origin)
        self.attempts: dict[int, Attempt] = {}
        self.instances: dict[int, Any] = {}
        self.results: PipelineResults | None = None
        self.deadline = deadline
        self._waiter: asyncio.Future[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._dispatching = False
        self._yielding = 0
        self._retries: dict[int, asyncio.TimerHandle] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._held: dict[int, Permit] = {}
        self._requests: dict[int, Permit] = {}

    # ------------------------------------------------------------ the caller's side

    async def complete(self) -> PipelineResults:
        """Run all stages and return their results; see `StageGraph.run`."""
        if self.deadline is not None:
            self._timers.append(self.loop.call_later(self.deadline, self._deadline_passed))
        active.entered(self)
        self.recorder.run_started(self.plan.outline, self.began + self.state.origin)
        self.state.started()
        self._start_worker()
        self._dispatch_soon()
        cancelled: asyncio.CancelledError | None = None
        while self.results is None:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                # A second cancellation has no effect: the first has already cancelled every stage.
                cancelled = cancelled or error
                self._cancelled(with_message("cancelled from outside", error))
            except GeneratorExit:
                self._closed()
                raise
        interrupt = self.state.interrupt
        if interrupt is None:
            interrupt = self.recorder.interrupt
        if interrupt is not None:
            raise interrupt
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                cancelled = None  # avoid a reference cycle with this frame
        return self.results

    def _cancelled(self, reason: str) -> None:
        self.state.cancelled(reason, self.now())
        self._apply()

    @_ends_run
    def _deadline_passed(self) -> None:
        self.state.deadline_passed(self.deadline or 0, self.now())
        self._apply()

    def _closed(self) -> None:
        """End without another loop iteration: the coroutine of the run was closed."""
        self.state.cancelled("the coroutine of run() was closed", self.now())
        # The loop may already be closed, so it cannot cancel tasks or call timers.
        self.state.cancels.clear()
        self.state.timers.clear()
        for task in self._workers:
            with contextlib.suppress(RuntimeError):
                task.cancel()
        self._grace_over(-1)

    def _engine_failed(self, error: BaseException) -> None:
        """End the run because of an error in the engine itself."""
        self.state.engine_failed(error, self.now())
        self._apply()

    def disown(self) -> None:
        """See `Running.disown`."""
        self.recorder.disown()

    def stages_under_way(self) -> tuple[str, ...]:
        """See `ActiveRun.stages`."""
        return tuple(self.plan.nodes[index].name for index in list(self.attempts))

    # ------------------------------------------------------------ workers

    def _dispatch_soon(self) -> None:
        """Start workers for ready stages in the next loop iteration.

        Not immediately: if the current stage ends without waiting, its worker can run the next stage. A task
        is therefore created only for stages that wait concurrently with others.
        """
        if self.state.ready and not self._dispatching:
            self._dispatching = True
            self.loop.call_soon(self._dispatch, context=self.variables)

    def _dispatch(self) -> None:
        self._dispatching = False
        if self._yielding:
            return  # that worker is not waiting; it will start the next stage itself
        for _ in range(self.state.startable):
            self._start_worker()

    def _start_worker(self) -> None:
        # The constructor, not `loop.create_task`: an eager task factory would start a stage in the middle of
        # the bookkeeping for the previous one.
        task = asyncio.Task(
            self._work(), loop=self.loop, name=self.pipeline_name, context=self.variables.copy()
        )
        self._workers.add(task)
        task.add_done_callback(self._worker_done)

    @_ends_run
    def _worker_done(self, task: asyncio.Task[None]) -> None:
        # A worker that ended normally is no longer in the set, even if it was cancelled afterwards.
        if task not in self._workers:
            return
        self._workers.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            self._cancelled(with_message("a task of the run was cancelled from outside", cancelled))
            return
        if error is not None:
            self._attempt_lost(task, error)
            self._engine_failed(error)

    def _attempt_lost(self, task: asyncio.Task[None], error: BaseException) -> None:
        """Record the stage that a failed worker was running; all other stages wait in their own tasks."""
        now, state = self.now(), self.state
        for index, phase in enumerate(state.phases):
            if phase in (RUNNING, TIMED_OUT, CANCELLING):
                attempt = self.attempts.get(index)
                if attempt is None or attempt.task is task:
                    self.attempts.pop(index, None)
                    state.attempt_lost(index, state.attempt_number(index), failure(error), now, now)
                    if attempt is not None:
                        self._attempt_done(index, attempt.ctx)

    def _attempt_done(self, index: int, ctx: StageContext) -> None:
        """Pass the result of an attempt to the interceptors that requested it."""
        result = self.state.recorded(index)
        if result is None:
            return
        ctx.report(result)
        if (interrupt := INTERRUPTS.take()) is not None:
            self.state.interrupted(result, interrupt, self.now())

    async def _work(self) -> None:
        """Run one stage after another until none is ready."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        state, now, base = self.state, self.now, self.variables
        context, recorder, nodes = self.context, self.recorder, self.state.nodes
        ready, emits = state.ready, state.emits
        turn = 0
        while True:
            index = state.take()
            if index < 0:
                if not state.acquires:
                    break
                self._acquire_permits()
                continue
            if ready:
                self._dispatch_soon()
            node = nodes[index]
            number = state.attempt_number(index) if state.retried else node.first_attempt
            ctx = StageContext(context, node.name, node.kind, number, index, state, recorder)
            variables = base.copy()
            if node.shared_limit is not None:
                variables.run(innermost_permit.set, self._held[index])
            attempt = raised = value = None
            began = now()
            try:
                if node.direct:
                    steps, waits_for = variables.run(first_step, ctx, node.call)
                else:
                    steps, waits_for = variables.run(
                        first_step, ctx, functools.partial(begin, node, variables, self.instances)
                    )
            except StopIteration as stop:
                value = stop.value
            except BaseException as error:
                raised = error
            else:
                attempt = self.attempts[index] = Attempt(index, ctx, began, task)
                if node.timeout is not None:
                    attempt.timer = self.loop.call_later(node.timeout, self._timed_out, attempt)
                try:
                    value = await drive(steps, variables.run, waits_for, attempt.gives_up)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    raised = error
                if ctx.abandoned:
                    self._workers.discard(task)
                    return  # its result has already been recorded
                del self.attempts[index]
                attempt.stop_timer()
            ended = now()
            try:
                if raised is not None:
                    output = failure(raised)
                else:
                    try:
                        output = output_of(value, node)
                    except BaseException as error:  # the value may define any method arbitrarily
                        INTERRUPTS.postpone(error)
                        raised, output = error if is_a(error, Exception) else None, failure(error)
                state.attempt_ended(
                    index,
                    ctx,
                    output,
                    raised,
                    began,
                    ended,
                    attempt is not None
                    and is_a(raised, asyncio.CancelledError)
                    and attempt.cancelled_externally,
                )
            except BaseException as error:
                state.attempt_lost(index, number, failure(error), began, ended)
            if emits:
                self._emit()
            if ctx._done_callbacks is not None:
                self._attempt_done(index, ctx)
            if state.pending:
                self._apply()
            # An exception refers to the frames of its traceback; avoid a reference cycle with this one.
            del value, raised
            if task.cancelling():
                # A cancelled task would cancel the awaits of the next stage, so that stage starts in another
                # task.
                self._dispatch_soon()
                break
            turn += 1
            if turn % YIELD_EVERY == 0 and ready:
                self._yielding += 1
                try:
                    await asyncio.sleep(0)
                finally:
                    self._yielding -= 1
        self._workers.discard(task)

    # ------------------------------------------------------------ effects

    def _emit(self) -> None:
        """Emit the results in the outbox, in order."""
        emits, recorder = self.state.emits, self.recorder
        if recorder.stages:
            for result in emits:
                recorder.stage_ended(result)
        interrupt = recorder.interrupt if INTERRUPTS.interrupt is None else INTERRUPTS.take()
        last = emits[-1]
        emits.clear()
        if interrupt is not None:
            self.state.interrupted(last, interrupt, self.now())

    def _apply(self) -> None:
        """Execute all effects."""
        state = self.state
        while state.pending or state.emits:
            if state.emits:
                self._emit()
            state.pending = False
            for index in state.cancels:
                if (attempt := self.attempts.get(index)) is not None:
                    attempt.cancel(timed_out=state.phases[index] == TIMED_OUT)
            state.cancels.clear()
            for index in state.releases:
                if (permit := self._held.pop(index, None)) is not None:
                    permit.limit.release(permit)
            state.releases.clear()
            self._defer_permits()
            self._resume_permits()
            for event, index, seconds in state.timers:
                if event == "retry_due":
                    self._retries[index] = self.loop.call_later(seconds, self._retry_due, index)
                elif index >= 0:
                    self.attempts[index].timer = self.loop.call_later(seconds, self._grace_over, index)
                else:
                    self._timers.append(self.loop.call_later(seconds, self._grace_over, index))
            state.timers.clear()
            if state.ending is not None:
                self._wait_for_nothing()
        if state.done and self.results is None:
            self._conclude()
        else:
            self._dispatch_soon()

    def _wait_for_nothing(self) -> None:
        """Cancel all pending requests for permits, and all timers for retries."""
        for permit in self._requests.values():
            permit.limit.release(permit)
        self._requests.clear()
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()

    def _conclude(self) -> None:
        """Emit the event of the run and wake its caller. Nothing here waits."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self.results = self.state.conclude(self.context, self.began)
        try:
            self.recorder.run_ended(self.results)
        finally:
            if (held := INTERRUPTS.take()) is not None and self.state.interrupt is None:
                self.state.interrupt = held
            active.left(self)
            if self._waiter is not None and not self._waiter.done():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._waiter.set_result(None)

    # ------------------------------------------------------------ timers

    @_ends_run
    def _retry_due(self, index: int) -> None:
        del self._retries[index]
        self.state.retry_due(index)
        self._dispatch_soon()

    @_ends_run
    def _timed_out(self, attempt: Attempt) -> None:
        self.state.attempt_timed_out(attempt.index)
        self._apply()

    @_ends_run
    def _grace_over(self, index: int) -> None:
        """Abandon one attempt (-1: all running attempts) that did not end within the grace period."""
        for known, attempt in list(self.attempts.items()):
            if index in (known, -1):
                del self.attempts[known]
                attempt.stop_timer()
                attempt.abandon()
                self.state.grace_over(known, attempt.ctx, attempt.began, self.now())
                self._attempt_done(known, attempt.ctx)
        if index < 0:
            self.state.run_grace_over(self.now())
        self._apply()

    # ------------------------------------------------------------ permits

    def _acquire_permits(self) -> None:
        """Acquire the permits that queued stages need, or wait for them."""
        outer = self.variables.get(innermost_permit)
        for index in self.state.acquires:
            node = self.state.nodes[index]
            limit = node.shared_limit
            assert limit is not None
            permit = Permit(
                limit,
                index,
                self.pipeline_name,
                node.name,
                self.run_id,
                self.loop,
                self._permit_granted,
                outer,
            )
            try:
                if limit.acquire(permit):
                    self._held[index] = permit
                    self.state.permit_granted(index)
                else:
                    self._requests[index] = permit
            except LimitDeadlockError as error:
                self.state.permit_refused(index, error, self.now())
        self.state.acquires.clear()
        if self.state.pending or self.state.emits:
            self._apply()

    def _defer_permits(self) -> None:
        for index in self.state.defers:
            permit = self._requests[index] = self._held.pop(index)
            permit.limit.defer(permit)
        self.state.defers.clear()

    def _resume_permits(self) -> None:
        for index in self.state.resumes:
            permit = self._requests[index]
            try:
                permit.limit.resume(permit)
            except LimitDeadlockError as error:
                del self._requests[index]
                self.state.permit_refused(index, error, self.now())
        self.state.resumes.clear()

    @_ends_run
    def _permit_granted(self, permit: Permit) -> None:
        self._held[permit.index] = self._requests.pop(permit.index)
        self.state.permit_granted(permit.index)
        self._apply()
