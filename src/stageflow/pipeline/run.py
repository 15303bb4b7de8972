"""The scheduler: one run of a graph, from its first stage to its record.

Everything here happens on one loop, between two awaits. A task of the run, a worker, takes stage
after stage from the queue. So a stage whose last dependency has ended goes on in the task of that
dependency, and there are as many tasks as stages that wait for something at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextvars import copy_context
from typing import Any, cast

from ..clock import get_clock
from ..context import PipelineContext, PipelineResults, StageContext, current_stage
from ..errors import StageflowError
from ..observability.recorder import RunRecorder
from ..observability.run_record import emit_on
from ..stages import StageOutput, StageResult, StageStatus
from . import active
from .attempt import Attempt, begin, resume
from .ending import Ending, cancelled_because, conclude, failed_at, out_of_time
from .ledger import Ledger
from .node import Node
from .outcome import failure, output_of, retried_or_failed, timed_out, told_to_end
from .plan import Plan
from .run_context import own_context
from .turns import Turns

__all__ = ["Run"]

OK, SKIP, RETRY = StageStatus.OK, StageStatus.SKIP, StageStatus.RETRY
FAIL, CANCEL = StageStatus.FAIL, StageStatus.CANCEL

_TURNS = 16
"""So many stages go on in one task before it lets others have the loop."""


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
            stages=plan.emits_stages,
            pipeline=plan.emits_pipeline,
        )
        self.variables = copy_context()
        self.variables.run(emit_on, self.loop)
        self.ledger = Ledger(plan, self.recorder, self.run_id, self.began, self.origin)
        self.attempts: dict[int, Attempt] = {}
        self.timers: dict[int, asyncio.TimerHandle] = {}
        self.instances: dict[int, Any] = {}
        self.queue: deque[int] = deque()
        self.active = 0
        self.dispatching = False
        self.yielding = 0
        self.tasks: set[asyncio.Task[None]] = set()
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
        self.queue.extend(self.plan.roots)
        if self.queue:
            self._start_worker()
            self._dispatch_soon()
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
        interrupt = self.interrupt or self.recorder.interrupt
        if interrupt is not None:
            raise interrupt
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                cancelled = None  # or it and this frame would hold each other
        return self.results

    def _out_of_time(self) -> None:
        self._end(out_of_time(self.deadline, self.pipeline_name, self.run_id))

    def _torn_down(self) -> None:
        """End without a further step of the loop: the coroutine of the run was closed."""
        self.ending = self.ending or cancelled_because("the coroutine of run() was closed")
        for task in self.tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
                task.cancel()
        self._wait_for_nothing()
        self._abandon_rest()
        self._finish()

    # ------------------------------------------------------------ starting stages

    def stages_under_way(self) -> tuple[str, ...]:
        """See `ActiveRun.stages`."""
        return tuple(self.plan.nodes[index].name for index in list(self.attempts))

    def _its_turn(self, index: int) -> None:
        """Start a stage that now has the place it waited for."""
        self.queue.appendleft(index)
        most = self.plan.max_concurrency
        if self.turns is not None and most is not None and self.active >= most:
            # It cannot start yet, and must not keep the place from those who can.
            self.turns.over(index)
        self._dispatch()

    def _dispatch_soon(self) -> None:
        """See to it that what is queued starts with the next turn of the loop.

        Not at once: the stage at hand may be done without waiting for anything, and then its task
        can take the next one. So a task is made only for a stage that has to wait beside another.
        """
        if self.queue and not self.dispatching:
            self.dispatching = True
            self.loop.call_soon(self._dispatch, context=self.variables)

    def _dispatch(self) -> None:
        self.dispatching = False
        if self.yielding:
            return  # that worker is not waiting for anything: it takes the next one in its turn
        free = len(self.queue)
        if self.plan.max_concurrency is not None:
            free = min(free, self.plan.max_concurrency - self.active)
        for _ in range(free):
            self._start_worker()

    def _start_worker(self) -> None:
        self.active += 1
        # The constructor, not `loop.create_task`: an eager task factory would start a stage inside
        # the bookkeeping of the one before it.
        task = asyncio.Task(
            self._work(), loop=self.loop, name=self.pipeline_name, context=self.variables.copy()
        )
        self.tasks.add(task)
        task.add_done_callback(self._worker_done)

    def _worker_done(self, task: asyncio.Task[None]) -> None:
        if task not in self.tasks:
            return  # it ended in order, also if it was cancelled with nothing left to do
        self.tasks.discard(task)
        if task.cancelled():
            self._end(cancelled_because("a task of the run was cancelled from outside"))
        elif (error := task.exception()) is not None:
            # A fault of ours. The run ends with it, and does not wait for what it left undone.
            text = f"the scheduler itself failed: {error!r}"
            self._end(Ending("failed", text, text, error))

    async def _work(self) -> None:
        """Run one stage after the other, until none is queued."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        nodes, now, base = self.plan.nodes, self.now, self.variables
        context, recorder, ledger = self.context, self.recorder, self.ledger
        retries, enter, queue = ledger.retries, current_stage.set, self.queue
        turn = 0
        while queue and self.ending is None:
            index = queue.popleft()
            if queue:
                self._dispatch_soon()
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
                    steps = node.call(ctx)
                else:
                    steps = variables.run(begin, node, ctx, variables, self.instances)
                waits_for = variables.run(steps.send, None)
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
                    self.tasks.discard(task)
                    return  # its result is in, and its place is taken
                del self.attempts[index]
                attempt.stop_timer()
            self._came_to(node, ctx, output, raised, began, now(), attempt)
            # An exception holds the frames it went through: this one must not hold it in turn.
            del output, raised
            if task.cancelling():
                # A cancelled task would cancel the next stage's waits: that one starts afresh.
                self._dispatch_soon()
                break
            turn += 1
            if turn % _TURNS == 0 and queue:
                self.yielding += 1
                await asyncio.sleep(0)
                self.yielding -= 1
        self.active -= 1
        self.tasks.discard(task)

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
            elif isinstance(raised, asyncio.CancelledError) and (
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
        if isinstance(output.exception, StageflowError):
            output.exception.locate(self.pipeline_name, node.name, self.run_id)
        result = self.ledger.result(node, ctx, output, number, began, ended)
        if isinstance(raised, (SystemExit, KeyboardInterrupt)):
            self.interrupt = self.interrupt or raised
        self._settle(node, result, ended)

    def _settle(self, node: Node, result: StageResult, at: int) -> None:
        """Take in a result, and start or end what follows from it."""
        status, ledger = result.status, self.ledger
        if status is RETRY:
            ledger.retry(node, result)
            self.timers[node.index] = self.loop.call_later(result.retry_after or 0, self._again, node.index)
            return
        ledger.keep(node, result)
        if self.ending is not None:
            pass
        elif self.interrupt is not None or self.recorder.interrupt is not None:
            self._fail(result)
        elif status is OK or status is SKIP or (status is FAIL and node.optional):
            self.queue.extend(ledger.release(node, at))
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

    def _again(self, index: int) -> None:
        del self.timers[index]
        self.queue.append(index)
        self._dispatch()

    # ------------------------------------------------------------ ending early

    def _time_out(self, attempt: Attempt) -> None:
        attempt.tell("timeout")
        attempt.timer = self.loop.call_later(self.plan.grace, self._overdue, attempt)

    def _overdue(self, attempt: Attempt) -> None:
        """A timed-out attempt outlasted its grace: the run goes on without it."""
        self.active -= 1
        self._abandon(attempt)
        self._dispatch()

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
        self.queue.clear()
        if self.turns is not None:
            self.turns.withdraw()
        for timer in self.timers.values():
            timer.cancel()

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
            active.left(self)
            if self.waiter is not None and not self.waiter.done():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self.waiter.set_result(None)
