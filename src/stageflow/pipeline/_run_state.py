"""The state of one run as a pure state machine: events go in, effects come out.

`RunState` has one method per event of a run. It uses no event loop, no clock and no I/O: the scheduler passes
the time with each event, and then executes the effects that the state has put into its outboxes. An outbox is
a list (for `ready`, a deque) that the state owns and reuses; an effect is a number or a tuple.

The unit of state is an *instance* of a node, numbered from 0. Each instance is in one phase:

    waiting ------ started() or attempt_ended() of a dependency -> ready
    waiting ------ it is skipped, or a dependency failed --------> done
    ready -------- take() ---------------------------------------> running
    ready -------- take(), and it needs a permit ----------------> queued
    queued ------- permit_granted() -----------------------------> ready
    queued ------- permit_refused() -----------------------------> done
    running ------ attempt_timed_out() --------------------------> timed_out
    running ------ the run ends ---------------------------------> cancelling
    running ------ attempt_ended() ------------------------------> done
    running ------ attempt_ended(), another attempt is due ------> backoff
    timed_out ---- attempt_ended() ------------------------------> done
    timed_out ---- attempt_ended(), another attempt is due ------> backoff
    timed_out ---- grace_over() ---------------------------------> done
    cancelling --- attempt_ended() ------------------------------> done
    cancelling --- attempt_withdrawn() --------------------------> done
    cancelling --- grace_over() ---------------------------------> done
    running ------ the stream that it reads fails ---------------> cancelling
    running ------ the stream that it reads restarts ------------> cancelling
    cancelling --- attempt_ended() or grace_over(), it restarts -> backoff
    backoff ------ retry_due() ----------------------------------> ready
    waiting, ready, queued, backoff --- the run ends ------------> done
    waiting, ready, queued, backoff --- a dependency fails ------> done

A stage that sends chunks is *streaming* from its first chunk on: the stages that read its stream are ready
although it is running.

The run itself is *running* until `ending` is set or every instance is done, then *ending* while attempts are
still running, and *done* once every instance has its terminal result. `done` never changes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, cast

from msgspec.structs import replace

from .._interrupts import INTERRUPTS, is_a
from ..context import PipelineContext, StageContext
from ..errors import (
    BudgetExceededError,
    LimitDeadlockError,
    StageflowError,
    describe,
    with_message,
)
from ..results import PipelineResults
from ..stages import StageOutput, StageResult, StageStatus
from ._attempt import retried_or_failed, stage_timed_out
from ._ending import Ending, cancelled_output, over_budget_output
from ._plan import Node, Plan
from ._skipping import skip_reason
from ._stream_state import StreamState

__all__ = [
    "BACKOFF",
    "CANCELLING",
    "DONE",
    "PHASES",
    "QUEUED",
    "READY",
    "RUNNING",
    "TIMED_OUT",
    "WAITING",
    "Effect",
    "RunState",
]

OK, SKIP, RETRY = StageStatus.OK, StageStatus.SKIP, StageStatus.RETRY
FAIL, CANCEL = StageStatus.FAIL, StageStatus.CANCEL

PHASES = ("waiting", "ready", "queued", "running", "timed_out", "cancelling", "backoff", "done")
WAITING, READY, QUEUED, RUNNING, TIMED_OUT, CANCELLING, BACKOFF, DONE = range(len(PHASES))

_ACTIVE = (RUNNING, TIMED_OUT, CANCELLING)

Effect = Literal["cancel", "release", "defer", "resume", "retry_due", "grace_over"]
"""What the scheduler must do for an instance.

- `cancel`: cancel its running attempt.
- `release`: release its permit.
- `defer`: release the permit that it was granted, but keep its place in the queue, because the run is at
  `max_concurrency`.
- `resume`: acquire its deferred permit again; a slot of `max_concurrency` is reserved for it.
- `retry_due`, `grace_over`: call the method of this name after that many seconds.
"""


class RunState:
    """The state of all instances of one run, and the transition for each event.

    All times are monotonic nanoseconds.

    Attributes:
        ready: Outbox: instances to start, in FIFO order. Use `take()` to remove one.
        emits: Outbox: results to emit, in order.
        acquires: Outbox: queued instances for which the scheduler must acquire a permit of their limit.
        effects: Outbox: everything else that the scheduler must do, in order, as (effect, instance, seconds).
            See `Effect`; the instance -1 means the whole run.
        pending: True if any outbox except `ready` and `emits` is not empty, or the run has started to end.
        phases: The phase of each instance.
        results: The terminal result of each instance, or None.
        retried: The last RETRY result of each instance that was retried.
        running: Number of running attempts.
        left: Number of instances without a terminal result.
        ending: Why the run ends early, or None.
        origin: Offset from monotonic time to nanoseconds since the Unix epoch.
        first_failed: The result of the first stage that failed and is not optional.
        interrupt: A `SystemExit` or `KeyboardInterrupt` from a stage, to raise after the record is written.
        done: True once every instance has its terminal result.
        streams: Which instances send streams, and which ones read them.
    """

    __slots__ = (
        "_cancelling",
        "_deferred",
        "_first_began",
        "_limit",
        "_permits",
        "_plan",
        "_ready_at",
        "_reserved",
        "_routes",
        "_waiting",
        "acquires",
        "done",
        "effects",
        "emits",
        "ended_at",
        "ending",
        "first_failed",
        "interrupt",
        "left",
        "nodes",
        "origin",
        "pending",
        "phases",
        "pipeline_name",
        "ready",
        "results",
        "retried",
        "run_id",
        "running",
        "streams",
    )

    def __init__(self, plan: Plan, run_id: str, began: int, origin: int) -> None:
        size = len(plan.nodes)
        self.nodes: Sequence[Node] = plan.nodes
        self.pipeline_name = plan.name
        self.run_id = run_id
        self.ready: deque[int] = deque()
        self.emits: list[StageResult] = []
        self.acquires: list[int] = []
        self.effects: list[tuple[Effect, int, float]] = []
        self.pending = False
        self.phases = bytearray(size)
        self.results: list[StageResult | None] = [None] * size
        self.retried: dict[int, StageResult] = {}
        self.running = 0
        self.left = size
        self.ending: Ending | None = None
        self.first_failed: StageResult | None = None
        self.interrupt: BaseException | None = None
        self.done = False
        self.ended_at = 0
        self._plan = plan
        self._limit = plan.max_concurrency
        self.origin = origin
        self._waiting = plan.waiting.copy()
        self._ready_at = [began] * size
        self._first_began: dict[int, int] = {}
        self._routes: dict[int, tuple[str, ...]] = {}
        # Dicts with the value None, not sets: the garbage collector does not visit an empty dict.
        self._permits: dict[int, None] = {}
        # With `max_concurrency`, an instance that was granted a permit keeps the next free slot for itself.
        self._deferred: dict[int, None] = {}
        self._reserved: dict[int, None] = {}
        self.streams = StreamState(plan.nodes)
        # Why an attempt is cancelled although the run continues, and whether it is then repeated.
        self._cancelling: dict[int, tuple[str, bool]] = {}

    # ------------------------------------------------------------ events

    def started(self) -> None:
        """The run starts: every instance without dependencies is ready."""
        for index in self._plan.roots:
            self.phases[index] = READY
        self.ready.extend(self._plan.roots)

    def take(self) -> int:
        """Start the next ready instance, and return its number.

        Returns:
            -1 if none may start now. If `acquires` is not empty, one needs a permit, and others may be
            ready.
        """
        if self.ending is not None or not self.ready:
            return -1
        if self._limit is not None:
            if self.ready[0] in self._reserved:
                del self._reserved[self.ready[0]]
            elif self._full and not self.nodes[self.ready[0]].streams:
                return -1
        index = self.ready.popleft()
        if self.nodes[index].shared_limit is not None and index not in self._permits:
            self.phases[index] = QUEUED
            self.acquires.append(index)
            return -1
        self.phases[index] = RUNNING
        self.running += 1
        return index

    @property
    def startable(self) -> int:
        """Number of ready instances that may start now."""
        ready = len(self.ready)
        if self._limit is None:
            return ready
        reserved = sum(self.phases[index] == READY for index in self._reserved)
        unlimited = sum(bool(self.nodes[index].streams) for index in self.ready)
        free = self._limit - self._used - len(self._reserved) + reserved
        return unlimited + max(0, min(ready - unlimited, free))

    @property
    def _full(self) -> bool:
        """True if every slot of `max_concurrency` is used or reserved."""
        return self._limit is not None and self._used + len(self._reserved) >= self._limit

    @property
    def _used(self) -> int:
        """The number of running attempts that count towards `max_concurrency`.

        A stage that waits for a reader does not count, and neither does a stage that reads a stream.
        """
        if not self._plan.has_readers and not self.streams.blocked:
            return self.running
        active = (i for i, phase in enumerate(self.phases) if phase in _ACTIVE)
        return sum(not self.nodes[i].streams and i not in self.streams.blocked for i in active)

    def _make_ready(self, index: int) -> None:
        self.phases[index] = READY
        if self._limit is not None and self.nodes[index].streams:
            self.ready.appendleft(index)  # those behind it may wait for a slot
        else:
            self.ready.append(index)

    def permit_granted(self, index: int) -> None:
        """An instance has acquired a permit of its limit."""
        if self.phases[index] != QUEUED or self.ending is not None:
            self._release_permit(index)
            return
        if self._limit is not None and index not in self._reserved and not self.nodes[index].streams:
            if self._full:
                # It must not hold a permit that others can use while it waits for a slot.
                self._deferred[index] = None
                self.effects.append(("defer", index, 0))
                self.pending = True
                return
            self._reserved[index] = None
        self.phases[index] = READY
        self.ready.appendleft(index)
        self._permits[index] = None

    def permit_refused(self, index: int, error: LimitDeadlockError, at: int) -> None:
        """An instance would wait indefinitely for a permit: it fails, and is not retried."""
        if self.phases[index] != QUEUED or self.ending is not None:
            return
        self._reserved.pop(index, None)
        result = self._refused(index, error, "its limit would never become available", at)
        self.running += 1  # as for an attempt that ends immediately
        self._apply_result(index, result, at)

    def resume_deferred(self) -> None:
        """Reserve free slots for instances that could not use the permit that they were granted."""
        while self._deferred and not self._full:
            index = next(iter(self._deferred))
            del self._deferred[index]
            self._reserved[index] = None
            self.effects.append(("resume", index, 0))
            self.pending = True

    def attempt_number(self, index: int) -> int:
        """Return the number of the attempt that starts now; 0 if `when=` is evaluated first."""
        last = self.retried.get(index)
        return self.nodes[index].first_attempt if last is None else last.attempts + 1

    def attempt_ended(
        self,
        index: int,
        ctx: StageContext,
        output: StageOutput,
        raised: BaseException | None,
        began: int,
        ended: int,
        cancelled_externally: bool = False,
    ) -> None:
        """An attempt ended.

        Args:
            index: The instance.
            ctx: The context of the attempt; its attempt number is 0 if `execute` was never called.
            output: The outcome of the attempt, regardless of the state of the run.
            raised: The exception that the attempt raised, or None.
            began: Start time.
            ended: End time.
            cancelled_externally: True if code outside the run cancelled its task.
        """
        node, phase = self.nodes[index], self.phases[index]
        if node.timeout is not None and phase == RUNNING and ended - began > node.timeout * 1e9:
            phase = TIMED_OUT  # it ended before the loop could cancel it
        if raised is not None or phase != RUNNING or output.status is not OK:
            if cancelled_externally and phase != TIMED_OUT:
                self.phases[index] = CANCELLING
                why = with_message("a task of the run was cancelled externally", raised)
                self._end(Ending.cancelled(why), ended)
            output = self._outcome(index, ctx, output, raised, began, ended, phase)
            if self.ending is not None and self.ending.over_budget == index:
                output, ctx.outcome_by = over_budget_output(self.ending, raised), None
        is_cancelled = phase == CANCELLING and self._cancelling.pop(index, None) is not None
        if not ctx.attempt:
            began = ended
        if node.route_labels:
            self._routes[index] = output.routes or ()
        result = self._result(index, ctx, output, ctx.attempt, began, ended)
        self._apply_result(index, result, ended, is_cancelled=is_cancelled)

    def attempt_withdrawn(self, index: int, at: int) -> None:
        """The run ended before an attempt could start: it waited for a thread."""
        self.phases[index] = READY
        self.running -= 1
        if self._permits and index in self._permits:
            self._release_permit(index)
        if self.ending is not None and not self.running:
            self._finish(at)

    def recorded(self, index: int) -> StageResult | None:
        """Return the latest result of an instance, which may be that of an attempt that is retried."""
        return self.results[index] or self.retried.get(index)

    def attempt_lost(self, index: int, attempt: int, output: StageOutput, began: int, ended: int) -> None:
        """The engine was interrupted, or failed, while it processed the end of an attempt.

        The attempt fails with that error, `output`, if it has no result yet; the run ends in any case if the
        error is an interrupt of the process, or if the consequences of the result are unknown.
        """
        if is_a(output.exception, (SystemExit, KeyboardInterrupt)):
            self._interrupted_by(output.exception)
        # The interrupt may have occurred between any two statements, so count again.
        self.running = sum(phase in _ACTIVE for phase in self.phases)
        self.left = self.results.count(None)
        if self.phases[index] not in _ACTIVE:
            if output.exception is not None:
                self.engine_failed(output.exception, ended)
            if not self.running:
                self._finish(ended)
            return
        if self.emits and self.emits[-1].sequence == index:
            self.emits.pop()
        if self.results[index] is not None:
            self.results[index] = None
            self.left += 1
        if self.nodes[index].route_labels:
            self._routes[index] = ()
        self._apply_result(index, self._result(index, None, output, attempt, began, ended), ended)

    def attempt_timed_out(self, index: int) -> None:
        """The `timeout` or `idle_timeout` of a running attempt has passed: cancel it, with a grace period."""
        if self.phases[index] == RUNNING:
            self.phases[index] = TIMED_OUT
            self.effects.append(("cancel", index, 0))
            self.effects.append(("grace_over", index, self._plan.grace))
            self.pending = True

    def cancellation_reason(self, index: int, ctx: StageContext) -> str:
        """Return why the attempt of an instance is being cancelled."""
        if index in self._cancelling:
            return self._cancelling[index][0]
        if self.phases[index] == TIMED_OUT:
            node = self.nodes[index]
            limit = ("idle_timeout", node.idle_timeout) if ctx._is_idle else ("timeout", node.timeout)
            return f"stage {node.name!r} exceeded its {limit[0]} of {limit[1] or 0:g} s"
        return self.ending.reason if self.ending else "the run ended"

    def grace_over(self, index: int, ctx: StageContext, began: int, at: int, *, waited: bool = True) -> None:
        """A cancelled attempt did not end within the grace period: the run continues without it.

        `waited` is False if the run did not wait for the grace period.
        """
        phase = self.phases[index]
        if phase not in (TIMED_OUT, CANCELLING):
            return
        is_cancelled = index in self._cancelling
        within = f"it did not end within {self._plan.grace:g} s and" if waited else "it"
        abandoned = f"{within} was left running"
        if self.ending is not None and self.ending.over_budget == index:
            output = over_budget_output(self.ending, None, abandoned)
        elif phase == TIMED_OUT:
            late = stage_timed_out(self.nodes[index], ctx, None)
            output = StageOutput(FAIL, {}, describe(late), late, abandoned)
        else:
            why = self.cancellation_reason(index, ctx)
            output = StageOutput(CANCEL, {}, reason=f"cancelled: {why}; {abandoned}")
            if self.ending is None and is_cancelled and self._cancelling[index][1]:
                output = StageOutput(RETRY, {}, reason=f"{why}; {abandoned}", after=0)
            self._cancelling.pop(index, None)
        if self.nodes[index].route_labels:
            self._routes[index] = ()
        result = self._result(index, ctx, output, ctx.attempt, began, at, abandoned=True)
        self._apply_result(index, result, at, is_cancelled=is_cancelled)

    def run_grace_over(self, at: int) -> None:
        """The grace period of the run is over: it ends, even if attempts are still running."""
        if self.ending is not None:
            self.running = 0
            self._finish(at)

    def retry_due(self, index: int) -> None:
        """The wait before the next attempt of an instance is over."""
        if self.phases[index] == BACKOFF:
            self._make_ready(index)

    def cancelled(self, reason: str, at: int) -> None:
        """The run was cancelled externally."""
        self._end(Ending.cancelled(reason), at)

    def deadline_passed(self, deadline: float, at: int) -> None:
        """The run exceeded its deadline, in seconds."""
        self._end(Ending.deadline_exceeded(deadline, self.pipeline_name, self.run_id), at)

    def budget_exceeded(self, index: int, error: BudgetExceededError, at: int) -> None:
        """The run, or an outer one, exceeded its budget with the usage, or an attempt, of an instance.

        The instance fails, even if it waits for an attempt, unless it has already ended.
        """
        node, has_ended = self.nodes[index], self.phases[index] == DONE
        error.locate(self.pipeline_name, node.name, self.run_id)
        self._end(Ending.budget_exceeded(index, node.name, error, has_ended=has_ended), at)

    def interrupted(self, result: StageResult, interrupt: BaseException, at: int) -> None:
        """A `KeyboardInterrupt` or `SystemExit` occurred while emitting a result: the run fails there."""
        self._interrupted_by(interrupt)
        text = f"{type(interrupt).__name__} while the result of stage {result.name!r} was emitted"
        self._end(Ending("failed", text, text, interrupt), at)

    def engine_failed(self, error: BaseException, at: int) -> None:
        """The engine itself failed: the run ends as after any failure."""
        text = f"the scheduler itself failed: {describe(error)}"
        self._end(Ending("failed", text, text, error), at)

    def _interrupted_by(self, error: BaseException | None) -> None:
        if self.interrupt is None:
            self.interrupt = error

    # ------------------------------------------------------------ streams

    def stream_started(self, index: int, at: int) -> None:
        """An instance sent its first chunk: the stages that read its stream are ready."""
        if self.ending is None and self.streams.start(index):
            self._release(self.nodes[index].stream_dependents, at)

    def _cancel_attempt(self, index: int, reason: str, *, repeat: bool) -> None:
        """Cancel a running attempt, although the run continues."""
        self.phases[index] = CANCELLING
        self._cancelling[index] = reason, repeat
        self.effects.append(("cancel", index, 0))
        self.effects.append(("grace_over", index, self._plan.grace))
        self.pending = True

    # ------------------------------------------------------------ the result of an attempt

    def _outcome(
        self,
        index: int,
        ctx: StageContext,
        output: StageOutput,
        raised: BaseException | None,
        began: int,
        ended: int,
        phase: int,
    ) -> StageOutput:
        """Return the outcome of an attempt, given the state of the run."""
        node, attempt = self.nodes[index], ctx.attempt
        if is_a(raised, (SystemExit, KeyboardInterrupt)):
            self._interrupted_by(raised)
        if is_a(output.exception, StageflowError):
            try:
                cast("StageflowError", output.exception).locate(self.pipeline_name, node.name, self.run_id)
            except BaseException as error:  # a subclass may refuse new attributes
                INTERRUPTS.postpone(error)
        if phase == TIMED_OUT:
            raised = stage_timed_out(node, ctx, raised)
            output = StageOutput(FAIL, {}, describe(raised), raised)
        if self.ending is not None:
            return output if phase == TIMED_OUT else cancelled_output(output, raised, self.ending.reason)
        if index in self._cancelling:
            reason, repeat = self._cancelling[index]
            if not repeat:
                return cancelled_output(output, raised, reason)
            return output if raised is None else StageOutput(RETRY, {}, reason=reason, after=0)
        if attempt and (raised is not None or output.status is RETRY):
            since = ended - self._first_began.get(index, began)
            if (why := self.streams.why_not_retryable(index)) is not None:
                return StageOutput(FAIL, {}, output.error, output.exception, why)
            return retried_or_failed(output, node.retry, attempt, raised, since / 1e9)
        return output

    def _result(
        self,
        index: int,
        ctx: StageContext | None,
        output: StageOutput,
        attempt: int,
        began: int,
        ended: int,
        abandoned: bool = False,
    ) -> StageResult:
        node, origin = self.nodes[index], self.origin
        return StageResult(
            node.name,
            output.status,
            output.data,
            output.error,
            output.exception,
            output.reason,
            attempt,  # the number of this attempt
            attempt,  # the number of attempts so far
            self._ready_at[index] + origin,
            began + origin,
            ended + origin,
            node.kind,
            node.dependencies,
            node.optional,
            ctx.seal() if ctx else {},
            tuple(ctx._artifacts) if ctx and ctx._artifacts else (),
            ctx._events_count if ctx else 0,
            ctx.missing_inputs if ctx else (),
            output.after,
            abandoned,
            ctx.outcome_by if ctx else None,
            node.index,
            ctx.loop_blocked_ms if ctx else None,
            output.returned,
            ctx._items.summary() if ctx and ctx._items else None,
            tuple(ctx._child_runs.values()) if ctx and ctx._child_runs else (),
            ctx._child_runs_total if ctx else 0,
            ctx._stream.summary(began) if ctx and ctx._stream else None,
            ctx._worker if ctx else None,
            ctx._logged(output.status) if ctx and ctx._log_tail else None,
        )

    def _apply_result(self, index: int, result: StageResult, at: int, *, is_cancelled: bool = False) -> None:
        """Apply the result of an attempt, and start or end the stages that depend on it.

        `is_cancelled` is True if the attempt was cancelled although the run continues.
        """
        if self._permits and index in self._permits:
            self._release_permit(index)
        if result.status is RETRY and (why := self.streams.why_incomplete(index, self.results)) is not None:
            result, is_cancelled = (
                replace(result, status=CANCEL, reason=f"cancelled: {why}", retry_after=None),
                True,
            )
        status = result.status
        # The phase comes last: until then, an interrupt leaves an attempt that `attempt_lost` completes.
        self.emits.append(result)
        if status is RETRY:
            self.retried[index] = result
            self._first_began.setdefault(index, result.started_ns - self.origin)
            self.effects.append(("retry_due", index, result.retry_after or 0))
            self.pending = True
            self.phases[index] = BACKOFF
            self.running -= 1
            for reader, why, repeat in self.streams.restart(index):
                if self.phases[reader] == RUNNING:
                    self._cancel_attempt(reader, why, repeat=repeat)
            if self._deferred:
                self.resume_deferred()
            return
        self.results[index] = result
        self.left -= 1
        self.phases[index] = DONE
        self.running -= 1
        if self.ending is not None:
            if self.ending.over_budget == index:
                self.first_failed = self.first_failed or result
                # The one that the stage raised has a traceback.
                self.ending = replace(self.ending, exception=result.exception)
        elif self.interrupt is not None:
            self._fail(result, at)
        elif status is OK or status is SKIP or (status is FAIL and result.optional):
            if self.nodes[index].dependents:
                self._release_dependents(index, at)
                if status is FAIL and index in self.streams.started:
                    self._cancel_downstream(index, at, self.nodes[index].stream_dependents)
        elif status is CANCEL and is_cancelled:
            self._cancel_downstream(index, at, self.nodes[index].dependents)
        elif status is CANCEL:
            self._end(Ending("stopped", f"stage {result.name!r}: {result.reason}"), at)
        elif self._plan.fail_fast:
            self._fail(result, at)
        else:
            self.first_failed = self.first_failed or result
            self._cancel_downstream(index, at, self.nodes[index].dependents)
        if self._deferred:
            self.resume_deferred()
        if not self.left or (self.ending is not None and not self.running):
            self._finish(at)

    def _store(self, index: int, result: StageResult) -> None:
        self.phases[index] = DONE
        self.results[index] = result
        self.left -= 1
        self.emits.append(result)

    def _refused(self, index: int, error: StageflowError, why: str, at: int) -> StageResult:
        """Return the result of an instance that fails because its next attempt must not start."""
        last = self.retried.get(index)
        attempts = 0 if last is None else last.attempts
        reason = "no attempt started" if last is None else f"attempt {attempts + 1} did not start"
        output = StageOutput(FAIL, {}, describe(error), error, f"{reason}: {why}")
        result = self._result(index, None, output, attempts, at, at)
        # Count the attempt that never started, so that the terminal event has a unique id.
        return result if last is None else replace(result, attempt=attempts + 1)

    def _store_unstarted(self, index: int, status: StageStatus, reason: str, at: int) -> None:
        output = StageOutput(status, {}, reason=reason)
        self._store(index, self._result(index, None, output, 0, at, at))

    # ------------------------------------------------------------ dependents

    def _release_dependents(self, index: int, at: int) -> None:
        """Make the dependents of a stage that has ended ready, except those that read its stream already."""
        node, started = self.nodes[index], self.streams.started
        self._release(node.end_dependents if started and index in started else node.dependents, at)

    def _release(self, dependents: tuple[int, ...], at: int) -> None:
        """Make stages ready if this was their last dependency; skip those that their dependencies skip."""
        nodes, waiting, phases = self.nodes, self._waiting, self.phases
        skipped: list[int] = []
        while True:
            for after in dependents:
                waiting[after] -= 1
                if waiting[after] or phases[after] == DONE:
                    continue
                self._ready_at[after] = at
                if nodes[after].gated and (reason := self._skip_reason(nodes[after])) is not None:
                    self._store_unstarted(after, SKIP, reason, at)
                    skipped.append(after)
                elif self._limit is None:
                    phases[after] = READY
                    self.ready.append(after)
                else:
                    self._make_ready(after)
            if not skipped:
                return
            dependents = nodes[skipped.pop()].dependents

    def _skip_reason(self, node: Node) -> str | None:
        return skip_reason(node, self._plan, self.results, self._routes)

    def _cancel_downstream(self, index: int, at: int, dependents: tuple[int, ...]) -> None:
        """Cancel dependents of an instance that failed or was cancelled, and all instances after them."""
        result = self.results[index]
        ended = "failed" if result is None or result.status is FAIL else "was cancelled"
        reason = f"it depends on {self.nodes[index].name!r}, which {ended}"
        following = [dependents]
        self._cancel_readers(index)
        while following:
            for after in following.pop():
                if self.phases[after] in (WAITING, READY, QUEUED, BACKOFF):
                    self._forget(after)
                    self._store_never_ended(after, reason, at)
                    following.append(self.nodes[after].dependents)

    def _cancel_readers(self, index: int) -> None:
        """Cancel the running stages that are reading the stream of an instance that failed."""
        for reader in self.streams.active_readers(index):
            if self.phases[reader] == RUNNING and (why := self.streams.why_incomplete(reader, self.results)):
                self._cancel_attempt(reader, why, repeat=False)

    def _forget(self, index: int) -> None:
        """Remove an instance from every queue."""
        if self.phases[index] == READY:
            self.ready.remove(index)
        if index in self.acquires:
            self.acquires.remove(index)
        self._deferred.pop(index, None)
        self._reserved.pop(index, None)
        if index in self._permits:
            self._release_permit(index)

    # ------------------------------------------------------------ the end of the run

    def _fail(self, result: StageResult, at: int) -> None:
        self.first_failed = self.first_failed or result
        self._end(Ending.failed_at(result), at)

    def _end(self, ending: Ending, at: int) -> None:
        """End the run: start no more attempts, cancel running attempts, and finish when all have ended."""
        if self.ending is not None:
            return
        self.ending = ending
        if self.done:
            return
        self.pending = True
        self.ready.clear()
        self.acquires.clear()
        self._deferred.clear()
        self._reserved.clear()
        if self.running:
            for index, phase in enumerate(self.phases):
                if phase == RUNNING:
                    self.phases[index] = CANCELLING
                    self.effects.append(("cancel", index, 0))
            self.effects.append(("grace_over", -1, self._plan.grace))
        else:
            self._finish(at)

    def _finish(self, at: int) -> None:
        """Store a terminal result for every instance that has none."""
        if self.done:
            return
        self.done = self.pending = True
        self.ended_at = at
        for index in list(self._permits):
            self._release_permit(index)
        why = self.ending.reason if self.ending else "the run ended"
        for index, result in enumerate(self.results):
            if result is not None:
                continue
            if self.ending is not None and self.ending.over_budget == index:
                refused = self._refused(index, cast("StageflowError", self.ending.exception), why, at)
                self.first_failed = self.first_failed or refused
                self._store(index, refused)
                continue
            tried = "never started" if index not in self.retried else "not tried again"
            self._store_never_ended(index, f"{tried}: {why}", at)

    def _store_never_ended(self, index: int, reason: str, at: int) -> None:
        """Cancel an instance that has not started, or that waits for its next attempt."""
        last = self.retried.get(index)
        if last is None:
            self._ready_at[index] = at
            self._store_unstarted(index, CANCEL, reason, at)
            return
        # Its times are those of its last attempt.
        output = StageOutput(CANCEL, {}, last.error, last.exception, reason)
        began, ended = last.started_ns - self.origin, last.ended_ns - self.origin
        final = self._result(index, None, output, last.attempts, began, ended)
        # Count the attempt that never started, so that the terminal event has a unique id.
        self._store(index, replace(final, attempt=last.attempts + 1))

    def _release_permit(self, index: int) -> None:
        self._permits.pop(index, None)
        self.effects.append(("release", index, 0))
        self.pending = True

    def conclude(self, context: PipelineContext, began: int) -> PipelineResults:
        """Return the results of a run that is done."""
        ending, failed = self.ending, self.first_failed
        if failed is not None and (ending is None or ending.outcome == "stopped"):
            # It failed before the run stopped; the run continued for the stages that do not depend on it.
            ending = Ending.failed_at(failed)
        results = [result for result in self.results if result is not None]
        if ending is None:
            degraded = any(result.status is FAIL for result in results)
            ending = Ending("degraded" if degraded else "ok", "")
        return PipelineResults(
            [(result.name, result) for result in results],
            pipeline_name=self.pipeline_name,
            context=context,
            outcome=ending.outcome,
            error=ending.error,
            exception=ending.exception,
            reason=ending.reason or None,
            first_failed_stage=failed.name if failed else None,
            started_ns=began + self.origin,
            ended_ns=self.ended_at + self.origin,
        )
