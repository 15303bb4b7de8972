"""The scheduler: one run of a graph, from its first stage to its record.

Everything here happens on one loop, between two awaits. A stage whose last dependency has ended
goes on in the task of that dependency; others that become ready with it get a task of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Collection, Coroutine
from contextvars import Context, copy_context
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from ..clock import get_clock
from ..context import PipelineContext, StageContext
from ..errors import DeadlineExceededError
from ..ids import uuid7
from ..observability.recorder import RunRecorder
from ..observability.run_record import RunRecord, current_run, enter_run
from ..stages import PipelineResults, StageOutput, StageResult, StageStatus
from ..stages.results import Outcome
from .attempt import DECLINED, Attempt, call_in_thread, call_when, resume
from .node import Node
from .outcome import failure, output_of, retried_or_failed, timed_out, told_to_end

if TYPE_CHECKING:
    from .graph import StageGraph

__all__ = ["Run"]

OK, SKIP, RETRY = StageStatus.OK, StageStatus.SKIP, StageStatus.RETRY
FAIL, CANCEL = StageStatus.FAIL, StageStatus.CANCEL

_TURNS = 16
"""So many stages go on in one task before it lets others have the loop."""


class Ending(Struct, frozen=True):
    """Why a run ends before all of its stages have. The first cause counts."""

    outcome: Outcome
    reason: str
    error: str | None = None
    exception: BaseException | None = None
    stage: str | None = None


class Run:
    """One run. Its fields are lists by stage number, so that a stage costs no look-up by name."""

    def __init__(self, graph: StageGraph, context: PipelineContext, deadline: float | None) -> None:
        clock = get_clock()
        self.now = clock.monotonic_ns
        wall, self.began = clock.wall_ns(), self.now()
        self.origin = wall - self.began
        self.loop = asyncio.get_running_loop()
        self.graph = graph
        self.pipeline_name = graph.name
        self.context = self._own(context, wall)
        self.run_id: str = self.context._record.run_id
        self.recorder = RunRecorder(
            self.context._record,
            self.context,
            graph.emitter,
            stages=graph.emits_stages,
            pipeline=graph.emits_pipeline,
        )
        self.variables = copy_context()
        self.variables.run(enter_run, self.context._record, self.loop)
        self.waiting = graph.waiting.copy()
        self.slots: list[StageResult | None] = [None] * len(graph.nodes)
        self.left = len(graph.nodes)
        self.ready_at = [self.began] * len(graph.nodes)
        self.attempts: dict[int, Attempt] = {}
        self.retries: dict[int, StageResult] = {}
        self.timers: dict[int, asyncio.TimerHandle] = {}
        self.instances: dict[int, Any] = {}
        self.routes: dict[int, tuple[str, ...]] = {}
        self.queue: deque[int] = deque()
        self.active = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.ending: Ending | None = None
        self.first_failed: StageResult | None = None
        self.interrupt: BaseException | None = None
        self.results: PipelineResults | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.deadline = deadline
        self.limits: list[asyncio.TimerHandle] = []

    def _own(self, context: PipelineContext, wall_ns: int) -> PipelineContext:
        """Return the run's own copy of the caller's context, with its id and its record."""
        own = copy(context)
        if own.pipeline_run_id is None or own._record is not None:
            # The context of another run lends its labels, never its id.
            own.pipeline_run_id = uuid7(wall_ns)
        own.service = own.service or "unknown_service"
        own.topology = own.topology or self.graph.name
        own.execution_mode = own.execution_mode or "default"
        if type(own.data) is dict:
            own.data = own.data.copy()
        own._record = RunRecord(own, self.graph.name, current_run.get(), self.origin)
        return own

    # ------------------------------------------------------------ the caller's side

    async def complete(self) -> PipelineResults:
        """Run all stages and return their results; see `StageGraph.run`."""
        if self.deadline is not None:
            self.limits.append(self.loop.call_later(self.deadline, self._out_of_time))
        for index in self.graph.roots:
            self._ready(index)
        cancelled: asyncio.CancelledError | None = None
        while self.results is None:
            self.waiter = self.loop.create_future()
            try:
                await self.waiter
            except asyncio.CancelledError as error:
                # A second one changes nothing: the first has already told every stage to end.
                cancelled = cancelled or error
                self._end(Ending("cancelled", "cancelled from outside", "cancelled from outside"))
            except GeneratorExit:
                self._torn_down()
                raise
        interrupt = self.interrupt or self.recorder.interrupt
        if interrupt is not None:
            raise interrupt
        if cancelled is not None:
            raise cancelled
        return self.results

    def _out_of_time(self) -> None:
        error = DeadlineExceededError(
            f"the run took longer than its deadline of {self.deadline:g} s",
            pipeline=self.pipeline_name,
            run_id=self.run_id,
        )
        self._end(Ending("timeout", error.message, f"DeadlineExceededError: {error.message}", error))

    def _torn_down(self) -> None:
        """End without a further step of the loop: the coroutine of the run was closed."""
        reason = "the coroutine of run() was closed"
        self.ending = self.ending or Ending("cancelled", reason, reason)
        for task in self.tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
                task.cancel()
        self._abandon_rest()
        self._finish()

    # ------------------------------------------------------------ starting stages

    def _ready(self, index: int) -> None:
        """Start a stage in a task of its own, or let it wait for a place."""
        limit = self.graph.max_concurrency
        if limit is not None and self.active >= limit:
            self.queue.append(index)
            return
        self.active += 1
        # The constructor, not `loop.create_task`: an eager task factory would start the stage
        # inside the bookkeeping of the one before it.
        task = asyncio.Task(
            self._work(index), loop=self.loop, name=self.pipeline_name, context=self.variables
        )
        self.tasks.add(task)
        task.add_done_callback(self._worker_done)

    def _worker_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            reason = "a task of the run was cancelled from outside"
            self._end(Ending("cancelled", reason, reason))
        elif (error := task.exception()) is not None:
            # A fault of ours. The run ends with it, and does not wait for what it left undone.
            text = f"the scheduler itself failed: {error!r}"
            self._end(Ending("failed", text, text, error))

    async def _work(self, index: int) -> None:
        """Run a stage, then one that it made ready, and so on."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        nodes, now, base = self.graph.nodes, self.now, self.variables
        context, recorder = self.context, self.recorder
        turn = 0
        while index >= 0 and self.ending is None:
            node = nodes[index]
            number = self.retries[index].attempts + 1 if index in self.retries else 1
            ctx = StageContext(context, node.name, node.kind, number, index, self, recorder)
            variables = base.copy()
            attempt = raised = None
            began = now()
            try:
                if node.direct:
                    steps = node.call(ctx)
                else:
                    steps = variables.run(self._begin, node, ctx, variables)
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
                    return  # its result is in, and its place is taken
                del self.attempts[index]
                attempt.stop_timer()
            index = self._came_to(node, ctx, output, raised, began, now(), attempt)
            if attempt is not None and task.cancelling() and index >= 0:
                # A cancelled task would cancel the next stage's waits: let it start afresh.
                self.active -= 1
                self._ready(index)
                return
            turn += 1
            if turn % _TURNS == 0:
                await asyncio.sleep(0)
        self.active -= 1

    def _begin(self, node: Node, ctx: StageContext, variables: Context) -> Coroutine[Any, Any, Any]:
        """Return the coroutine of an attempt that is more than the call of a coroutine function."""
        call = node.call
        if call is None:
            instance = self.instances.get(node.index)
            if instance is None:
                instance = self.instances[node.index] = node.make()
            call = instance.execute
        if node.plain:
            # A copy: a context can be entered once at a time, and `variables` drives the waiting.
            begin = functools.partial(call_in_thread, call, ctx, variables.copy())
        else:
            begin = functools.partial(call, ctx)
        if node.when is not None and ctx.attempt == 1:
            return call_when(node.when, begin, ctx)
        coroutine: Coroutine[Any, Any, Any] = begin()
        return coroutine

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
    ) -> int:
        """Record what an attempt came to. Return the stage to go on with, or -1."""
        number = ctx.attempt
        if raised is not None or attempt is not None or output.status is not OK:
            if attempt is not None and attempt.told == "timeout":
                raised = timed_out(node, self.run_id, raised)
                output = failure(raised)
            elif isinstance(raised, asyncio.CancelledError) and (
                attempt is not None and attempt.cancelled_from_outside
            ):
                reason = "a task of the run was cancelled from outside"
                self._end(Ending("cancelled", reason, reason), but=node.index)
            if self.ending is not None:
                output = told_to_end(output, raised, f"cancelled: {self.ending.reason}")
            elif raised is not None or output.status is RETRY:
                output = retried_or_failed(output, node, number, raised)
            if output is DECLINED:
                number, began = 0, ended
        if output.routes or node.route_labels:
            self.routes[node.index] = output.routes
        result = self._result(node, ctx, output, number, began, ended)
        if isinstance(raised, (SystemExit, KeyboardInterrupt)):
            self.interrupt = self.interrupt or raised
        return self._settle(node, result, ended)

    def _result(
        self,
        node: Node,
        ctx: StageContext | None,
        output: StageOutput,
        attempts: int,
        began: int,
        ended: int,
        abandoned: bool = False,
    ) -> StageResult:
        origin = self.origin
        return StageResult(
            node.name,
            output.status,
            output.data,
            output.error,
            output.exception,
            output.reason,
            attempts,
            self.ready_at[node.index] + origin,
            began + origin,
            ended + origin,
            node.kind,
            node.dependencies,
            node.optional,
            (ctx.attributes or {}) if ctx else {},
            tuple(ctx.artifacts) if ctx and ctx.artifacts else (),
            ctx.events_count if ctx else 0,
            ctx.missing_inputs if ctx else (),
            output.after,
            abandoned,
            node.index,
        )

    def _settle(self, node: Node, result: StageResult, at: int) -> int:
        """Take in a result: emit it, and start, cancel or end what follows from it."""
        status = result.status
        if status is RETRY:
            if self.recorder.stages:
                self.recorder.stage_ended(result)
            self.retries[node.index] = result
            self.timers[node.index] = self.loop.call_later(result.retry_after or 0, self._again, node.index)
            return self._next_in_queue()
        self._keep(node, result)
        following = -1
        if self.ending is not None:
            pass
        elif self.interrupt is not None or self.recorder.interrupt is not None:
            self._fail(result)
        elif status is OK or status is SKIP or (status is FAIL and node.optional):
            following = self._release(node, at)
        elif status is CANCEL:
            self._end(Ending("stopped", f"stage {node.name!r}: {result.reason}"))
        elif self.graph.fail_fast:
            self._fail(result)
        else:
            self.first_failed = self.first_failed or result
            self._cancel_downstream(node, at)
        if self.results is None and (not self.left or (self.ending and not self.attempts)):
            self._finish()
        return following if following >= 0 else self._next_in_queue()

    def _keep(self, node: Node, result: StageResult) -> None:
        self.slots[node.index] = result
        self.left -= 1
        if self.recorder.stages:
            self.recorder.stage_ended(result)

    def _fail(self, result: StageResult) -> None:
        text = f"stage {result.name!r} failed: {result.error}"
        self.first_failed = self.first_failed or result
        self._end(Ending("failed", f"stage {result.name!r} failed", text, result.exception, result.name))

    def _next_in_queue(self) -> int:
        return self.queue.popleft() if self.queue else -1

    def _again(self, index: int) -> None:
        del self.timers[index]
        self._ready(index)

    def _release(self, node: Node, at: int) -> int:
        """Start what `node` was the last to hold up. Return one stage for the task at hand, or -1."""
        nodes, waiting, slots = self.graph.nodes, self.waiting, self.slots
        following = -1
        skipped: list[Node] = []
        while True:
            for index in node.dependents:
                waiting[index] -= 1
                if waiting[index] or slots[index] is not None:
                    continue
                self.ready_at[index] = at
                after = nodes[index]
                if after.gated and (reason := self._skip_reason(after)) is not None:
                    output = StageOutput(SKIP, {}, reason=reason)
                    self._keep(after, self._result(after, None, output, 0, at, at))
                    skipped.append(after)
                elif following < 0 and not self.queue:
                    following = index
                else:
                    self._ready(index)
            if not skipped:
                return following
            node = skipped.pop()

    def _skip_reason(self, node: Node) -> str | None:
        """Return why its dependencies skip a stage, or None where they do not."""
        index = self.graph.index
        if node.route is not None:
            routers = [name for name in node.dependencies if index[name] in self.routes]
            chosen = [label for name in routers for label in self.routes[index[name]]]
            if node.route not in chosen:
                went = ", ".join(repr(label) for label in chosen) or "nowhere"
                by = ", ".join(repr(name) for name in routers) or "no router ran"
                return f"its route is {node.route!r}; {by} went to {went}"
        if node.conditional:
            results = [self.slots[index[name]] for name in node.dependencies]
            if all(result is None or result.status in (SKIP, FAIL) for result in results):
                return "every one of its dependencies was skipped"
        return None

    def _cancel_downstream(self, node: Node, at: int) -> None:
        """`on_failure="continue"`: settle everything that can no longer start."""
        following = [node]
        while following:
            for index in following.pop().dependents:
                if self.slots[index] is None:
                    after = self.graph.nodes[index]
                    reason = f"it depends on {node.name!r}, which failed"
                    output = StageOutput(CANCEL, {}, reason=reason)
                    self.ready_at[index] = at
                    self._keep(after, self._result(after, None, output, 0, at, at))
                    following.append(after)

    # ------------------------------------------------------------ ending early

    def _time_out(self, attempt: Attempt) -> None:
        attempt.tell("timeout")
        attempt.timer = self.loop.call_later(self.graph.grace, self._overdue, attempt)

    def _overdue(self, attempt: Attempt) -> None:
        """A timed-out attempt outlasted its grace: the run goes on without it."""
        following = self._abandon(attempt)
        self.active -= 1
        if following >= 0:
            self._ready(following)

    def _end(self, ending: Ending, but: int = -1) -> None:
        """End the run: start nothing more, cancel what waits, finish when all of it has ended."""
        if self.ending is not None or self.results is not None:
            return
        self.ending = ending
        self.queue.clear()
        for timer in self.timers.values():
            timer.cancel()
        for attempt in self.attempts.values():
            attempt.tell("ending")
        if self.attempts:
            self.limits.append(self.loop.call_later(self.graph.grace, self._abandon_rest))
        elif but < 0:
            self._finish()

    def _abandon_rest(self) -> None:
        for attempt in list(self.attempts.values()):
            self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> int:
        """Settle a stage that refuses to end, and leave it to itself."""
        del self.attempts[attempt.index]
        attempt.stop_timer()
        attempt.abandon()
        node, ctx, now = self.graph.nodes[attempt.index], attempt.ctx, self.now()
        left = f"it did not end within {self.graph.grace:g} s and was left running"
        if attempt.told == "timeout":
            late = failure(timed_out(node, self.run_id, None))
            output = StageOutput(FAIL, {}, late.error, late.exception, left)
        else:
            why = self.ending.reason if self.ending else "the run ended"
            output = StageOutput(CANCEL, {}, reason=f"cancelled: {why}; {left}")
        result = self._result(node, ctx, output, ctx.attempt, attempt.began, now, abandoned=True)
        return self._settle(node, result, now)

    def _finish(self) -> None:
        """Settle what never started, and write the record. Nothing here waits."""
        if self.results is not None:
            return
        now, ending = self.now(), self.ending
        for limit in self.limits:
            limit.cancel()
        for node in self.graph.nodes:
            if self.slots[node.index] is None:
                self._keep(node, self._never_started(node, now))
        results = [result for result in self.slots if result is not None]
        failed = self.first_failed
        if ending is None and failed is not None:
            text = f"stage {failed.name!r} failed: {failed.error}"
            ending = Ending("failed", f"stage {failed.name!r} failed", text, failed.exception)
        if ending is None:
            degraded = any(result.status is FAIL for result in results)
            ending = Ending("degraded" if degraded else "ok", "")
        self.results = PipelineResults(
            ((result.name, result) for result in results),
            pipeline_name=self.pipeline_name,
            context=self.context,
            outcome=ending.outcome,
            error=ending.error,
            exception=ending.exception,
            reason=ending.reason or None,
            first_failed_stage=failed.name if failed else None,
            started_ns=self.began + self.origin,
            ended_ns=now + self.origin,
        )
        self.recorder.run_ended(self.results)
        if self.waiter is not None and not self.waiter.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.waiter.set_result(None)

    def _never_started(self, node: Node, now: int) -> StageResult:
        why = self.ending.reason if self.ending else "the run ended"
        last = self.retries.get(node.index)
        if last is None:
            output = StageOutput(CANCEL, {}, reason=f"never started: {why}")
            self.ready_at[node.index] = now
            return self._result(node, None, output, 0, now, now)
        # It waited for its next attempt: its end is that of its last one.
        output = StageOutput(CANCEL, {}, last.error, last.exception, f"not tried again: {why}")
        origin = self.origin
        return self._result(
            node, None, output, last.attempts, last.started_ns - origin, last.ended_ns - origin
        )

    # ------------------------------------------------------------ what inputs ask

    def ancestor(self, reader: int, stage: str) -> StageResult | None:
        """See `Upstream`."""
        known = stage in self.graph.nodes[reader].dependency_set
        if known or stage in self.graph.ancestors(reader):
            return self.slots[self.graph.index[stage]]
        return None

    def ancestors(self, reader: int) -> Collection[str]:
        """See `Upstream`."""
        return self.graph.ancestors(reader)
