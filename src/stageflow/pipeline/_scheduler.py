"""The scheduler: runs one graph once, from its first stage to its record.

`Scheduler` owns everything that `RunState` must not touch: the event loop, the clock, tasks, timers and
permits. It reports each event to the state and then executes the effects. Both happen on one loop, without an
await in between.

Stages run in *workers*. A worker is a task that runs ready stages one after another: if the last dependency
of a stage ends without suspending, the stage runs in the task of that dependency.

A stage may leave something behind that later cancels its task: a generator with an open `asyncio.timeout` or
`TaskGroup`, which keeps a reference to the task that entered it. No other stage may suspend in that task. So
a worker ends after a stage that has suspended, or that has left a reference to the task, and the next stage
runs in another task. (A task for each stage would be simpler, and twice as slow for stages that do not
suspend.)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, copy_context
from sys import getrefcount
from typing import Any, Concatenate, ParamSpec, cast
from weakref import getweakrefcount

from .._drive import drive
from .._interrupts import INTERRUPTS, is_a
from .._log import log_safely
from .._time import get_clock
from ..budget import Account
from ..context import PipelineContext, StageContext, current_stage
from ..errors import BudgetExceededError, LimitDeadlockError, with_message
from ..observability import RunRecorder, defaults, deliver_on, start_run
from ..results import PipelineResults
from ._active import HEARTBEATS, add_active_run, remove_active_run
from ._attempt import Attempt, StageScope, failure, first_step
from ._call import begin
from ._limits import THREADS, Permit, ThreadPermit, innermost_permit, thread_permit
from ._output import output_of
from ._plan import Node, Plan
from ._run_state import CANCELLING, RUNNING, TIMED_OUT, Effect, RunState
from ._upstream import UpstreamOfRun

__all__ = ["Scheduler"]

log = logging.getLogger("stageflow")

P = ParamSpec("P")

YIELD_EVERY = 16
"""Number of stages that a worker starts before it yields to the event loop."""

LOOP_BLOCKED_NS = 50_000_000
"""A stage that blocks the event loop for longer than this in a single step is reported."""

_blocking: set[tuple[str, str]] = set()
"""The pipelines and stages whose blocking of the event loop has been logged."""
_MAX_BLOCKING = 1000


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


def _close(steps: Coroutine[Any, Any, Any], variables: Context) -> None:
    """Close a coroutine that was not driven to completion because the engine was interrupted or failed."""
    try:
        variables.run(steps.close)
    except BaseException as error:  # the engine raises the first interrupt
        INTERRUPTS.postpone(error)


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
            stages=defaults().emit_wide_events if plan.emits_stages is None else plan.emits_stages,
            pipeline=defaults().emit_wide_events if plan.emits_pipeline is None else plan.emits_pipeline,
        )
        self.account: Account | None = None
        if plan.budget is not None or current_stage.get() is not None:
            self._open_account()
        self.variables = copy_context()
        self.variables.run(deliver_on, self.loop)
        self.state = RunState(plan, self.run_id, self.began, origin)
        self.upstream = UpstreamOfRun(self, plan, self.state)
        self.attempts: dict[int, Attempt] = {}
        self.scopes: dict[int, StageScope] = {}
        self.results: PipelineResults | None = None
        self.deadline = deadline
        self._waiter: asyncio.Future[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._dispatching = False
        self._yielding = 0
        self._retries: dict[int, asyncio.TimerHandle] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._held: dict[int, Permit] = {}
        self._requests: dict[int, Permit] = {}
        self._thread_requests: dict[int, ThreadPermit] = {}
        # The permit of the synchronous stage that started this run.
        self._outer_permit = thread_permit.get()

    def _open_account(self) -> None:
        """Open the account of this run if it, or an outer run, has a budget."""
        budget, caller = self.plan.budget, current_stage.get()
        outer = None if caller is None else caller._recorder.account
        if budget is not None or outer is not None:
            stage = -1 if caller is None else caller._sequence
            self.account = Account(budget, self.pipeline_name, self.run_id, self, outer, stage)
            self.recorder.account = self.account

    # ------------------------------------------------------------ start and end of the run

    async def complete(self, cancelled_by: str = "cancelled externally") -> PipelineResults:
        """Run all stages and return their results; see `StageGraph.run`.

        Args:
            cancelled_by: The reason for the end of the run if its caller is cancelled; the message of the
                cancellation is appended.
        """
        if self.deadline is not None:
            self._timers["deadline"] = self.loop.call_later(self.deadline, self._deadline_passed)
        add_active_run(self)
        if self._outer_permit is not None:
            THREADS.suspend(self._outer_permit)
        self.recorder.run_started(self.plan.outline, self.began + self.state.origin)
        if self.recorder.marked_sink is not None:
            HEARTBEATS.run_started()
        self._start()
        cancelled: asyncio.CancelledError | None = None
        while self.results is None:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                # A second cancellation has no effect: the first has already cancelled every stage.
                cancelled = cancelled or error
                for attempt in self.attempts.values():
                    attempt.caller_cancelled()
                self._cancelled(with_message(cancelled_by, error))
            except GeneratorExit:
                self._closed("the coroutine of run() was closed")
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

    @_ends_run
    def _start(self) -> None:
        self.state.started()
        self._start_worker()
        self._dispatch_soon()

    def _cancelled(self, reason: str) -> None:
        self.state.cancelled(reason, self.now())
        self._apply()

    @_ends_run
    def _deadline_passed(self) -> None:
        self.state.deadline_passed(self.deadline or 0, self.now())
        self._apply()

    @_ends_run
    def budget_exceeded(self, stage: int | None, error: BudgetExceededError) -> None:
        """See `BudgetedRun`."""
        if stage is None:
            self.state.cancelled(
                "cancelled by its parent run: the budget of an outer run was exceeded", self.now()
            )
        else:
            self.state.budget_exceeded(stage, error, self.now())
        self._apply()

    def _refuse_attempt(self, index: int) -> None:
        """Withdraw an attempt that must not start, because this run or an outer one exceeds its budget."""
        self._release_unused_thread(index)
        self.state.attempt_withdrawn(index, self.now())
        self._execute()

    @_ends_run
    def abandoned(self) -> None:
        """End now, because the stage of the parent run that waits for this run was abandoned."""
        reason = "the stage of its parent run was abandoned"
        if self.loop.is_closed():
            self._closed(reason)
        else:
            self._cancelled(reason)
            self._grace_over(-1, waited=False)

    def _closed(self, reason: str) -> None:
        """End without another loop iteration."""
        # The callback of the future may have the last reference to the coroutine that is being closed.
        self._waiter = None
        self.state.cancelled(reason, self.now())
        # The loop may already be closed, so it can neither cancel tasks nor call timers.
        self.state.effects = [each for each in self.state.effects if each[0] == "release"]
        for task in self._workers:
            with contextlib.suppress(RuntimeError):
                task.cancel()
        self._grace_over(-1, waited=False)

    def _engine_failed(self, error: BaseException) -> None:
        """End the run because of an error in the engine itself."""
        self.state.engine_failed(error, self.now())
        self._apply()

    def detach_after_fork(self) -> None:
        """See `Running.detach_after_fork`."""
        self.recorder.detach_after_fork()

    def suspended_stages(self) -> tuple[str, ...]:
        """See `ActiveRun.stages`."""
        return tuple(self.plan.nodes[index].name for index in list(self.attempts))

    def stages_in_progress(self) -> Iterator[tuple[str, int, int | None, StageContext | None]]:
        """See `ObservedRun.stages_in_progress`."""
        for index, phase in enumerate(self.state.phases):
            if phase in (RUNNING, TIMED_OUT, CANCELLING):
                attempt, name = self.attempts.get(index), self.plan.nodes[index].name
                if attempt is None:
                    yield name, self.state.attempt_number(index), None, None
                else:
                    yield name, attempt.ctx.attempt, attempt.began, attempt.ctx

    # ------------------------------------------------------------ workers

    def _dispatch_soon(self) -> None:
        """Start workers for ready stages in the next loop iteration.

        Not immediately: if the current stage ends without suspending, its worker can run the next stage. A
        task is therefore created only for stages that wait concurrently with others.
        """
        if self.state.ready and not self._dispatching:
            self._dispatching = True
            self.loop.call_soon(self._dispatch, context=self.variables)

    @_ends_run
    def _dispatch(self) -> None:
        self._dispatching = False
        if self._yielding:
            return  # the yielding worker is not blocked; it will start the next stage itself
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
        # A worker that ended normally is not in the set, even if it was cancelled afterwards.
        if task not in self._workers:
            return
        self._workers.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            self._cancelled(with_message("a task of the run was cancelled externally", cancelled))
            return
        if error is not None:
            self._attempt_lost(task, error)
            self._engine_failed(error)

    def _attempt_lost(self, task: asyncio.Task[None], error: BaseException) -> None:
        """Record the stage that a failed worker was running; all other stages wait in their own tasks."""
        now, state = self.now(), self.state
        for index, phase in enumerate(state.phases):
            if phase in (RUNNING, TIMED_OUT, CANCELLING) and index not in self._thread_requests:
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
        """Run one stage after another, until none is ready or the next one must not run in this task."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        state, now, base, account = self.state, self.now, self.variables, self.account
        context, recorder, nodes = self.context, self.recorder, self.state.nodes
        upstream = self.upstream
        ready, emits = state.ready, state.emits
        completed = 0
        # With `partial`: since Python 3.14, the position of a call in the code determines whether passing a
        # local variable adds a reference.
        strong_references = functools.partial(getrefcount, task)
        weak_references = functools.partial(getweakrefcount, task)
        strong, weak = strong_references(), weak_references()
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
            if node.plain:
                if not await self._acquire_thread(index):
                    break  # the run has ended
                strong, weak = strong_references(), weak_references()
            number = state.attempt_number(index) if state.retried else node.first_attempt
            if account is not None and not account.start_attempt(index, min(number, 1)):
                self._refuse_attempt(index)
                break
            ctx = StageContext(context, node.name, node.kind, number, index, upstream, recorder)
            if node.opens_stream:
                ctx._stream = upstream.open_stream(ctx)
            variables = base.copy() if number <= 1 else self._variables_of(index).copy()
            if node.shared_limit is not None:
                variables.run(innermost_permit.set, self._held[index])
            attempt = raised = value = None
            began = now()
            try:
                if node.direct:
                    steps, waits_for = variables.run(first_step, ctx, node.call, ctx)
                else:
                    steps, waits_for = variables.run(first_step, ctx, begin, node, self._scope(index), ctx)
            except StopIteration as stop:
                value = stop.value
            except BaseException as error:
                raised = error
            else:
                attempt = self.attempts[index] = Attempt(index, ctx, began, now, task, variables)
                if node.executor is not None:
                    ctx._on_worker_change = functools.partial(self._start_timers, attempt, node)
                try:
                    if state.phases[index] == CANCELLING:  # the run ended during the first step
                        attempt.cancel(state.cancellation_reason(index, ctx), timed_out=False)
                    self._start_timers(attempt, node)
                    value = await drive(steps, attempt.step, waits_for, attempt.gives_up)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    raised = error
                    _close(steps, variables)
                if ctx.abandoned:
                    self._workers.discard(task)
                    return  # its result has already been recorded
                del self.attempts[index]
                attempt.stop_timers()
                began = ctx._worker_began or began
            ended = now()
            if node.plain:
                self._release_unused_thread(index)
            if ended - began > LOOP_BLOCKED_NS:
                self._note_blocking(node, ctx, ended - began if attempt is None else attempt.blocked)
            try:
                if raised is not None:
                    output = failure(raised)
                else:
                    try:
                        output = output_of(value, node, ctx)
                    except BaseException as error:  # the class of the value may override any method
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
                self._execute()
            # An exception refers to the frames of its traceback; avoid a reference cycle with this one.
            del value, raised
            # A task that the stage has cancelled would cancel what the next stage awaits.
            if (
                attempt is not None
                or strong_references() != strong
                or weak_references() != weak
                or task.cancelling()
            ):
                if state.startable > 0:
                    self._start_worker()
                break
            completed += 1
            if completed % YIELD_EVERY == 0 and ready:
                self._yielding += 1
                try:
                    await asyncio.sleep(0)
                finally:
                    self._yielding -= 1
                strong, weak = strong_references(), weak_references()
        self._workers.discard(task)
        task.remove_done_callback(self._worker_done)  # it ends normally: this saves an event-loop callback

    def _scope(self, index: int) -> StageScope:
        scope = self.scopes.get(index)
        if scope is None:
            scope = self.scopes[index] = StageScope()
        return scope

    def _variables_of(self, index: int) -> Context:
        """Return the context variables with which a further attempt of a stage starts."""
        scope = self.scopes.get(index)
        return self.variables if scope is None or scope.variables is None else scope.variables

    def _note_blocking(self, node: Node, ctx: StageContext, nanoseconds: int) -> None:
        """Record the longest step of an attempt, and log a warning, if it blocked the loop for too long."""
        nanoseconds = max(nanoseconds, ctx._blocked_ns)
        if nanoseconds <= LOOP_BLOCKED_NS:
            return
        if node.plain and node.make is None and node.when is None and not node.interceptors:
            return  # all of its code runs in a thread; starting one can take a long time on a busy machine
        ctx.loop_blocked_ms = nanoseconds // 1000 / 1000
        key = (self.pipeline_name, ctx.stage)
        if key not in _blocking and len(_blocking) < _MAX_BLOCKING:
            _blocking.add(key)
            log_safely(
                log,
                "pipeline %r: stage %r blocked the event loop for %.0f ms, and no other task could run; "
                "run blocking code in a thread: in a synchronous stage, or with asyncio.to_thread(...) "
                "(further occurrences are not logged; see loop_blocked_ms in its events)",
                *key,
                ctx.loop_blocked_ms,
            )

    # ------------------------------------------------------------ effects

    def _emit(self) -> None:
        """Emit the results in the outbox, in order."""
        emits, recorder = self.state.emits, self.recorder
        if recorder.stages:
            for result in emits:
                recorder.stage_ended(result)
        last, streams = emits[-1], self.upstream.streams
        if streams is None:
            emits.clear()
        else:
            results = emits.copy()
            emits.clear()  # first, so that no event is emitted twice if the engine fails
            streams.process_results(results)
        interrupt = recorder.interrupt if INTERRUPTS.interrupt is None else INTERRUPTS.take()
        if interrupt is not None:
            self.state.interrupted(last, interrupt, self.now())

    def _apply(self) -> None:
        """Execute all effects, and start workers for the stages that are ready afterwards."""
        self._execute()
        self._dispatch_soon()

    def _execute(self) -> None:
        """Execute all effects, and end the run if it is done."""
        state = self.state
        while state.pending or state.emits:
            if state.emits:
                self._emit()
            state.pending = False
            for effect, index, seconds in state.effects:  # including those that are added in the meantime
                self._execute_one(effect, index, seconds)
            state.effects.clear()
            if state.ending is not None:
                self._cancel_waits()
        if state.done and self.results is None:
            self._conclude()

    def _execute_one(self, effect: Effect, index: int, seconds: float) -> None:
        state = self.state
        if effect == "cancel":
            if (attempt := self.attempts.get(index)) is not None:
                timed_out = state.phases[index] == TIMED_OUT
                attempt.cancel(state.cancellation_reason(index, attempt.ctx), timed_out=timed_out)
                if state.nodes[index].plain and self.upstream.streams is not None:
                    self.upstream.streams.interrupt(index)
            elif (request := self._thread_requests.pop(index, None)) is not None:
                self._withdraw(request)
                state.attempt_withdrawn(index, self.now())
        elif effect == "release":
            if (permit := self._held.pop(index, None)) is not None:
                permit.limit.release(permit)
        elif effect == "defer":
            permit = self._requests[index] = self._held.pop(index)
            permit.limit.defer(permit)
        elif effect == "resume":
            self._resume_permit(index)
        elif effect == "retry_due":
            self._retries[index] = self.loop.call_later(seconds, self._retry_due, index)
        elif index >= 0:
            self.attempts[index].timer = self.loop.call_later(seconds, self._grace_over, index)
        else:
            self._timers[effect] = self.loop.call_later(seconds, self._grace_over, index)

    def _cancel_waits(self) -> None:
        """Cancel all pending requests for permits, and all timers for retries."""
        for permit in self._requests.values():
            permit.limit.release(permit)
        self._requests.clear()
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()

    def _conclude(self) -> None:
        """Emit the event of the run and wake its caller. Nothing here waits."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for permit in self._held.values():
            permit.limit.release(permit)  # none is left, unless the engine has failed
        self._held.clear()
        if self.account is not None:
            self.account.close()
        self.results = self.state.conclude(self.context, self.began)
        self.upstream.close()
        try:
            self.recorder.run_ended(self.results)
        finally:
            if (held := INTERRUPTS.take()) is not None and self.state.interrupt is None:
                self.state.interrupt = held
            remove_active_run(self)
            if self._outer_permit is not None:
                THREADS.resume(self._outer_permit)
            if self._waiter is not None and not self._waiter.done():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._waiter.set_result(None)

    # ------------------------------------------------------------ timers

    @_ends_run
    def _retry_due(self, index: int) -> None:
        del self._retries[index]
        self.state.retry_due(index)
        self._dispatch_soon()

    def _start_timers(self, attempt: Attempt, node: Node) -> None:
        """Start the timers of a suspended attempt, unless it waits for a worker that will start it."""
        attempt.stop_timers()
        if attempt.ctx._waits_for_worker:
            return
        if node.timeout is not None:
            self._start_timeout(attempt, node.timeout)
        if node.idle_timeout is not None:
            self._start_idle_timeout(attempt, node.idle_timeout)

    def _start_timeout(self, attempt: Attempt, seconds: float) -> None:
        """Start the timeout of an attempt, which is measured from its start."""
        seconds -= (self.now() - (attempt.ctx._worker_began or attempt.began)) / 1e9
        if seconds > 0:
            attempt.timer = self.loop.call_later(seconds, self._timed_out, attempt)
        else:
            self._timed_out(attempt)

    @_ends_run
    def _timed_out(self, attempt: Attempt) -> None:
        self.state.attempt_timed_out(attempt.index)
        self._apply()

    @_ends_run
    def _grace_over(self, index: int, *, waited: bool = True) -> None:
        """Abandon one attempt (-1: all running attempts) that did not end within the grace period.

        `waited` is False if the run did not wait for the grace period.
        """
        for known, attempt in list(self.attempts.items()):
            if index in (known, -1):
                del self.attempts[known]
                attempt.stop_timers()
                attempt.abandon()
                scope = self.scopes.get(known)
                if scope is not None and scope.returned is not None:
                    with contextlib.suppress(RuntimeError):  # the loop is closed
                        scope.returned.cancel()  # the thread continues, but no task waits for it
                self._release_unused_thread(known)
                self._note_blocking(self.plan.nodes[known], attempt.ctx, attempt.blocked)
                self.state.grace_over(known, attempt.ctx, attempt.began, self.now(), waited=waited)
                self._attempt_done(known, attempt.ctx)
        if index < 0:
            self.state.run_grace_over(self.now())
        self._apply()

    # ------------------------------------------------------------ streams

    @_ends_run
    def stream_started(self, index: int) -> None:
        """See `_streams.Owner`."""
        self.state.stream_started(index, self.now())
        self._apply()

    @_ends_run
    def sender_blocked(self, index: int) -> None:
        """See `_streams.Owner`."""
        self.state.streams.blocked[index] = None
        self.state.resume_deferred()
        self._apply()

    def _start_idle_timeout(self, attempt: Attempt, seconds: float) -> None:
        attempt.idle_timer = self.loop.call_later(seconds, self._check_idle, attempt, seconds)

    @_ends_run
    def _check_idle(self, attempt: Attempt, seconds: float) -> None:
        """Cancel an attempt that has sent no chunk for `seconds` seconds, unless it waits for a reader."""
        stream = self.upstream.open_streams().of(attempt.index)
        left = seconds if stream.waiting else seconds - (self.now() - stream.last_ns) / 1e9
        if left > 1e-6:  # less is a rounding error, for which a virtual clock would not advance
            attempt.idle_timer = self.loop.call_later(left, self._check_idle, attempt, seconds)
        elif self.state.phases[attempt.index] == RUNNING:
            attempt.ctx._is_idle = True
            self._timed_out(attempt)

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

    def _resume_permit(self, index: int) -> None:
        permit = self._requests[index]
        try:
            permit.limit.resume(permit)
        except LimitDeadlockError as error:
            del self._requests[index]
            self.state.permit_refused(index, error, self.now())

    @_ends_run
    def _permit_granted(self, permit: Permit) -> None:
        self._held[permit.index] = self._requests.pop(permit.index)
        self.state.permit_granted(permit.index)
        self._apply()

    # ------------------------------------------------------------ threads

    async def _acquire_thread(self, index: int) -> bool:
        """Acquire a permit for a thread; return False if the run has ended before it was granted."""
        permit = ThreadPermit(self.loop)
        if self.state.nodes[index].streams:
            THREADS.exceed(permit)  # it does not count: the stages whose streams it reads may wait for it
            THREADS.suspend(permit)
        elif (granted := THREADS.acquire(permit)) is not None:
            self._thread_requests[index] = permit
            try:
                await granted
            except BaseException:
                # Cancelled by `_withdraw`, or by other code, which ends the run; or this coroutine is closed.
                THREADS.release(permit)
                if index in self._thread_requests:
                    raise
                return False
            if self._thread_requests.pop(index, None) is None:
                return False  # `_withdraw` came after the grant, in the same loop iteration
        self._scope(index).permit = permit
        return True

    def _withdraw(self, permit: ThreadPermit) -> None:
        THREADS.release(permit)
        if permit.granted is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                permit.granted.cancel()

    def _release_unused_thread(self, index: int) -> None:
        """Release the permit of an attempt that did not call its function, for example a skipped one."""
        scope = self.scopes.get(index)
        if scope is not None and scope.permit is not None:
            THREADS.release(scope.permit)
            scope.permit = None
