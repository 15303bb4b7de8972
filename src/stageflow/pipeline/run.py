"""The scheduler: one run of a graph, from its first stage to its record.

Everything here happens on one loop, between two awaits. A task of the run, a worker, takes stage
after stage from the queue. So a stage whose last dependency has ended goes on in the task of that
dependency, and there are as many tasks as stages that wait for something at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Concatenate, ParamSpec, cast

from ..clock import get_clock
from ..context import PipelineContext, PipelineResults, StageContext, current_stage
from ..errors import StageflowError
from ..interrupts import INTERRUPTS, is_a
from ..observability.defaults import defaults
from ..observability.recorder import RunRecorder
from ..observability.run_record import emit_on
from ..stages import StageOutput, StageResult, StageStatus
from . import active
from .attempt import Attempt, begin, resume
from .ending import (
    Ending,
    cancelled_because,
    conclude,
    failed_at,
    out_of_time,
    scheduler_failed,
)
from .forked_loop import FORKED
from .ledger import Ledger
from .node import Node
from .outcome import failure, output_of, retried_or_failed, timed_out, told_to_end
from .plan import Plan
from .run_context import own_context
from .turns import Turns
from .workers import BREATHE_EVERY, Workers

__all__ = ["Run"]

OK, SKIP, RETRY = StageStatus.OK, StageStatus.SKIP, StageStatus.RETRY
FAIL, CANCEL = StageStatus.FAIL, StageStatus.CANCEL

P = ParamSpec("P")


def _or_end(callback: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[Run, P], None]:
    """Have a fault in a callback of the loop end the run: nobody else would ever hear of it."""

    @functools.wraps(callback)
    def guarded(self: Run, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception as error:
            self._fault(error)

    return guarded


class Run:
    """One run: its tasks, its timers, and how it ends."""

    def __init__(self, plan: Plan, context: PipelineContext, deadline: float | None) -> None:
        clock = get_clock()
        self.now = clock.monotonic_ns
        wall, self.began = clock.wall_ns(), self.now()
        self.origin = wall - self.began
        self.loop = asyncio.get_running_loop()
        self.plan = plan
        self.pipeline_name = plan.name
        self.context = own_context(context, plan.name, wall, self.origin)
        self.run_id: str = self.context._record.run_id
        self.recorder = RunRecorder(
            self.context._record,
            self.context,
            plan.emitter,
            stages=defaults().emits if plan.emits_stages is None else plan.emits_stages,
            pipeline=defaults().emits if plan.emits_pipeline is None else plan.emits_pipeline,
        )
        self.variables = copy_context()
        self.variables.run(emit_on, self.loop)
        self.ledger = Ledger(plan, self.recorder, self.run_id, self.began, self.origin)
        self.attempts: dict[int, Attempt] = {}
        self.timers: dict[int, asyncio.TimerHandle] = {}
        self.instances: dict[int, Any] = {}
        self.workers = Workers(
            self.loop, plan.name, self.variables, plan.max_concurrency, self._work, self._worker_lost
        )
        self.ending: Ending | None = None
        self.interrupt: BaseException | None = None
        self.results: PipelineResults | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.deadline = deadline
        self.limits: list[asyncio.TimerHandle] = []
        self.turns = Turns(plan, self.loop, self._its_turn) if plan.limited else None

    # ------------------------------------------------------------ the caller's side

    async def complete(self) -> PipelineResults:
        """Run all stages and return their results; see `StageGraph.run`."""
        if self.deadline is not None:
            self.limits.append(self.loop.call_later(self.deadline, self._out_of_time))
        active.entered(self)
        self.recorder.run_started(self.plan.outline, self.began + self.origin)
        self.workers.queue.extend(self.plan.roots)
        self.workers.start()
        cancelled: asyncio.CancelledError | None = None
        while self.results is None:
            self.waiter = self.loop.create_future()
            try:
                await self.waiter
            except asyncio.CancelledError as error:
                # A second one changes nothing: the first has already told every stage to end.
                cancelled = cancelled or error
                self._end(cancelled_because("cancelled from outside"))
            except GeneratorExit:
                self._torn_down()
                raise
        self.workers.close()
        self.turns = None
        interrupt = self.interrupt or self.recorder.interrupt
        if interrupt is not None:
            raise interrupt
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                cancelled = None  # or it and this frame would hold each other
        return self.results

    @_or_end
    def _out_of_time(self) -> None:
        self._end(out_of_time(self.deadline, self.pipeline_name, self.run_id))

    def _torn_down(self) -> None:
        """End without a further step of the loop: the coroutine of the run was closed."""
        self.ending = self.ending or cancelled_because("the coroutine of run() was closed")
        for task in self.workers.tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
                task.cancel()
        self._wait_for_nothing()
        self._abandon_rest()
        self._finish()

    # ------------------------------------------------------------ starting stages

    def disown(self) -> None:
        """See `Running.disown`."""
        self.recorder.disown()

    def stages_under_way(self) -> tuple[str, ...]:
        """See `ActiveRun.stages`."""
        return tuple(self.plan.nodes[index].name for index in list(self.attempts))

    @_or_end
    def _its_turn(self, index: int) -> None:
        """Start a stage that now has the place it waited for."""
        self.workers.queue.appendleft(index)
        if self.turns is not None and self.workers.full:
            # It cannot start yet, and must not keep the place from those who can.
            self.turns.over(index)
        self.workers.dispatch()

    def _worker_lost(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._end(cancelled_because("a task of the run was cancelled from outside"))
        elif (error := task.exception()) is not None:
            self._fault(error)

    def _fault(self, error: BaseException) -> None:
        """End the run over a fault of ours, and wait for nothing that it left undone."""
        self.ending = scheduler_failed(error)
        self._wait_for_nothing()
        for attempt in self.attempts.values():
            attempt.abandon()
        self.attempts.clear()
        self._finish()

    async def _work(self) -> None:
        """Run one stage after the other, until none is queued."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        nodes, now, base = self.plan.nodes, self.now, self.variables
        context, recorder, ledger = self.context, self.recorder, self.ledger
        retries, enter = ledger.retries, current_stage.set
        workers, queue = self.workers, self.workers.queue
        turn = 0
        while queue and self.ending is None:
            index = queue.popleft()
            if queue:
                workers.dispatch()
            node = nodes[index]
            if node.limit is not None and self.turns is not None and not self.turns.has(index):
                continue  # it waits for a place, and comes back with it
            number = retries[index].attempts + 1 if index in retries else node.first_attempt
            ctx = StageContext(context, node.name, node.kind, number, index, ledger, recorder)
            variables = base.copy()
            variables.run(enter, ctx)
            attempt = raised = None
            began = now()
            try:
                if node.direct:
                    steps = variables.run(node.call, ctx)
                else:
                    steps = variables.run(begin, node, ctx, variables, self.instances)
                try:
                    waits_for = variables.run(steps.send, None)
                finally:
                    if FORKED.loop is not None:
                        FORKED.return_to_loop()
            except StopIteration as stop:
                output = output_of(stop.value, node)
            except BaseException as error:
                raised = error
                output = failure(error)
            else:
                attempt = self.attempts[index] = Attempt(index, ctx, began, task)
                if node.timeout is not None:
                    attempt.timer = self.loop.call_later(node.timeout, self._time_out, attempt)
                try:
                    output = output_of(await resume(variables, steps, waits_for, ctx), node)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    raised = error
                    output = failure(error)
                if ctx.abandoned:
                    workers.left(task)
                    return  # its result is in, and its place is taken
                del self.attempts[index]
                attempt.stop_timer()
            self._came_to(node, ctx, output, raised, began, now(), attempt)
            # An exception holds the frames it went through: this one must not hold it in turn.
            del output, raised
            if task.cancelling():
                # A cancelled task would cancel the next stage's waits: that one starts afresh.
                workers.dispatch()
                break
            turn += 1
            if turn % BREATHE_EVERY == 0 and queue:
                await workers.breathe()
        workers.place_is_free()
        workers.left(task)

    # ------------------------------------------------------------ ending stages

    def _came_to(
        self,
        node: Node,
        ctx: StageContext,
        output: StageOutput,
        raised: BaseException | None,
        began: int,
        ended: int,
        attempt: Attempt | None,
    ) -> None:
        """Record what an attempt came to."""
        number = ctx.attempt
        if raised is not None or attempt is not None or output.status is not OK:
            if attempt is not None and attempt.told == "timeout":
                raised = timed_out(node, self.run_id, raised)
                output = failure(raised)
            elif is_a(raised, asyncio.CancelledError) and (
                attempt is not None and attempt.cancelled_from_outside
            ):
                why = "a task of the run was cancelled from outside"
                self._end(cancelled_because(why), settling=True)
            if self.ending is not None and (attempt is None or attempt.told != "timeout"):
                output = told_to_end(output, raised, f"cancelled: {self.ending.reason}")
            elif self.ending is None and number and (raised is not None or output.status is RETRY):
                since = ended - self.ledger.first_began(node, began)
                output = retried_or_failed(output, node, number, raised, since / 1e9)
            if not number:  # `execute` was never called
                began = ended
        if node.route_labels:
            self.ledger.route(node, output.routes or ())
        if node.limit is not None and self.turns is not None:
            self.turns.over(node.index)
        self._locate(output.exception, node)
        result = self.ledger.result(node, ctx, output, number, began, ended)
        if is_a(raised, (SystemExit, KeyboardInterrupt)) and self.interrupt is None:
            self.interrupt = raised
        self._settle(node, result, ended)

    def _locate(self, error: BaseException | None, node: Node) -> None:
        """Add to an error of the library, or of a class derived from one, where it happened."""
        if is_a(error, StageflowError):
            try:
                cast("StageflowError", error).locate(self.pipeline_name, node.name, self.run_id)
            except BaseException as raised:
                INTERRUPTS.postpone(raised)

    def _interrupted(self) -> bool:
        """Return whether the process was interrupted, also if only while the record was written."""
        if INTERRUPTS.interrupt is not None:
            interrupt = INTERRUPTS.take()
            if self.interrupt is None:
                self.interrupt = interrupt
        return self.interrupt is not None or self.recorder.interrupt is not None

    def _settle(self, node: Node, result: StageResult, at: int) -> None:
        """Take in a result, and start or end what follows from it."""
        status, ledger = result.status, self.ledger
        if status is RETRY:
            ledger.retry(node, result)
            if not self._interrupted():
                self.timers[node.index] = self.loop.call_later(
                    result.retry_after or 0, self._again, node.index
                )
                return
        else:
            ledger.keep(node, result)
        interrupted = self._interrupted()
        if self.ending is not None:
            pass
        elif interrupted:
            self._fail(result)
        elif status is OK or status is SKIP or (status is FAIL and node.optional):
            self.workers.queue.extend(ledger.release(node, at))
        elif status is CANCEL:
            self._end(Ending("stopped", f"stage {node.name!r}: {result.reason}"))
        elif self.plan.fail_fast:
            self._fail(result)
        else:
            ledger.first_failed = ledger.first_failed or result
            ledger.cancel_downstream(node, at)
        if not ledger.left or (self.ending is not None and not self.attempts):
            self._finish()

    def _fail(self, result: StageResult) -> None:
        self.ledger.first_failed = self.ledger.first_failed or result
        self._end(failed_at(result))

    @_or_end
    def _again(self, index: int) -> None:
        del self.timers[index]
        self.workers.queue.append(index)
        self.workers.dispatch()

    # ------------------------------------------------------------ ending early

    @_or_end
    def _time_out(self, attempt: Attempt) -> None:
        attempt.tell("timeout")
        attempt.timer = self.loop.call_later(self.plan.grace, self._overdue, attempt)

    @_or_end
    def _overdue(self, attempt: Attempt) -> None:
        """A timed-out attempt outlasted its grace: the run goes on without it."""
        self.workers.place_is_free()
        self._abandon(attempt)
        self.workers.dispatch()

    def _end(self, ending: Ending, *, settling: bool = False) -> None:
        """End the run: start nothing more, cancel what waits, finish when all of it has ended.

        `settling`: a result is about to be settled, and that will finish the run.
        """
        if self.ending is not None or self.results is not None:
            return
        self.ending = ending
        self._wait_for_nothing()
        for attempt in self.attempts.values():
            attempt.tell("ending")
        if self.attempts:
            self.limits.append(self.loop.call_later(self.plan.grace, self._abandon_rest))
        elif not settling:
            self._finish()

    def _wait_for_nothing(self) -> None:
        """Forget what has not started: queued, waiting for its turn, or for its next attempt."""
        self.workers.queue.clear()
        if self.turns is not None:
            self.turns.withdraw()
        for timer in self.timers.values():
            timer.cancel()

    @_or_end
    def _abandon_rest(self) -> None:
        for attempt in list(self.attempts.values()):
            self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        """Settle a stage that refuses to end, and leave it to itself."""
        del self.attempts[attempt.index]
        attempt.stop_timer()
        attempt.abandon()
        if self.turns is not None:
            self.turns.over(attempt.index)
        node, ctx, now = self.plan.nodes[attempt.index], attempt.ctx, self.now()
        left = f"it did not end within {self.plan.grace:g} s and was left running"
        if attempt.told == "timeout":
            late = failure(timed_out(node, self.run_id, None))
            output = StageOutput(FAIL, {}, late.error, late.exception, left)
        else:
            why = self.ending.reason if self.ending else "the run ended"
            output = StageOutput(CANCEL, {}, reason=f"cancelled: {why}; {left}")
        result = self.ledger.result(node, ctx, output, ctx.attempt, attempt.began, now, abandoned=True)
        self._settle(node, result, now)

    def _finish(self) -> None:
        """Settle what never started, and write the record. Nothing here waits."""
        if self.results is not None:
            return
        now, ending = self.now(), self.ending
        for limit in self.limits:
            limit.cancel()
        if self.turns is not None:
            self.turns.give_back()
        self.ledger.settle_rest(now, ending.reason if ending else "the run ended")
        self.results = conclude(self.ledger, ending, self.context, self.began, now)
        try:
            self.recorder.run_ended(self.results)
        finally:
            self._interrupted()
            active.left(self)
            if self.waiter is not None and not self.waiter.done():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self.waiter.set_result(None)
