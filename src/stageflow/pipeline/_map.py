"""Calls the function of a mapped stage for each item of its input, inside one attempt of the stage.

Items run in *workers*. A worker is a task that processes items one after another. When an item suspends,
another worker starts, up to `max_concurrency`. A worker ends after an item that has left a reference to its
task, such as a generator with an open `asyncio.timeout`, which could cancel the next item.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sized
from contextvars import Context, copy_context
from sys import getrefcount
from typing import Any, cast
from weakref import getweakrefcount

from msgspec.structs import replace

from .._drive import UNSTARTED, drive
from .._interrupts import INTERRUPTS, is_a
from .._items import ItemAttempt, ItemTally
from .._time import get_clock
from ..budget import Account
from ..context import StageContext
from ..errors import (
    LimitDeadlockError,
    SerializationError,
    WorkerLostError,
    as_text,
    describe,
    invalid_argument,
    name_of_error,
    with_message,
)
from ..executors import Executor, Raised, Returned, Session
from ..stages import ItemFailure, StageOutput, StageStatus
from ._attempt import Attempt, Call, StageScope, failure, first_step, retried_or_failed, timed_out
from ._batch_size import BatchSize
from ._executor_call import close_session, next_outcome, open_session
from ._item_attempts import SuspendedItem, Work, acquire_permit, acquire_thread
from ._item_context import ItemContext
from ._item_timeout import ItemTimeout
from ._limits import innermost_permit
from ._output import PLAIN_TYPES, output_of
from ._plan import Node
from ._spec import MapSpec, returns_coroutine
from ._thread_call import call_in_thread

__all__ = ["run_map"]

_YIELD_EVERY = 16
"""Number of items that a worker processes before it yields to the event loop."""

_UNCHANGED = PLAIN_TYPES | {dict, type(None)}
"""Types of return values that need no conversion."""

_COLLECTING_NS = 5_000_000
"""How long to collect the items of a batch: the source may be slow, and it blocks the event loop."""

_MAX_KEY_CHARS = 256
"""Maximum length of the key of an item."""

_PENDING: Any = object()
_OMITTED: Any = object()


async def run_map(node: Node, call: Call, others: list[Any], ctx: StageContext) -> StageOutput:
    """Call `call` for each item of the first input, and return their values in the order of the items.

    Args:
        node: The mapped stage.
        call: The function of the stage.
        others: Further arguments of the function.
        ctx: The context of the attempt.

    Raises:
        MissingInputError: The input does not contain the key of the items.
        InvalidArgumentError: The items are not iterable.
    """
    return await _Map(node, ctx, call, others).run(_items(node, ctx))


def _items(node: Node, ctx: StageContext) -> Iterable[Any] | AsyncIterable[Any]:
    assert node.inputs
    assert node.map is not None
    ref, key = node.inputs[0], node.map.key
    items = ctx.inputs.value(ref) if key is None else ctx.inputs.require_from(ref.name, key)
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, (Iterable, AsyncIterable)):
        raise invalid_argument(
            "map",
            f"the value of stage {ref.name!r}" if key is None else f"{key!r} of stage {ref.name!r}",
            items,
            "an iterable of items",
            hint="map over a list; for a mapping, use list(mapping.items())",
        )
    return items


class _Map:
    """One attempt of a mapped stage: its items, its workers and their results."""

    def __init__(self, node: Node, ctx: StageContext, call: Call, others: list[Any]) -> None:
        assert node.map is not None
        self._node = node
        self._spec: MapSpec = node.map
        self._ctx = ctx
        self._call = call
        self._others = others
        self._in_thread = node.executor is None and not returns_coroutine(call)
        self._batches = BatchSize()
        self._max_workers = self._spec.max_concurrency
        if node.executor is not None and node.executor.max_calls is not None:
            self._max_workers = min(self._max_workers, node.executor.max_calls)
        self._loop = asyncio.get_running_loop()
        self._now = get_clock().monotonic_ns
        self._variables = copy_context()
        self._run_id = str(ctx.run.pipeline_run_id)
        self._timeout_ns = None if self._spec.timeout is None else self._spec.timeout * 1e9
        self._slow_us = self._spec.slow_after * 1e6
        self._tally = ctx._items = ItemTally()
        self._account = ctx._recorder.account
        self._values: list[Any] = []
        self._source: Iterator[Any] = iter(())
        self._source_variables = copy_context()
        self._exhausted = False
        self._received: deque[Any] = deque()
        self._has_room = asyncio.Event()
        self._due: deque[Work] = deque()
        self._backoffs: dict[int, asyncio.TimerHandle] = {}
        self._workers: dict[asyncio.Task[None], SuspendedItem | None] = {}
        self._feeder: asyncio.Task[None] | None = None
        self._feeding: Attempt | None = None
        self._stopped_by: StageOutput | BaseException | None = None
        self._was_cancelled = False
        self._grace: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self, items: Iterable[Any] | AsyncIterable[Any]) -> StageOutput:
        """Process all items; see `run_map`."""
        if isinstance(items, Sized):
            with contextlib.suppress(Exception):  # a size that is wrong is corrected at the end
                self._tally.total = max(0, len(items))
        if isinstance(items, Iterable):
            self._source = iter(items)
        else:
            self._feeder = asyncio.Task(
                self._receive(items), loop=self._loop, name=self._node.name, context=self._variables.copy()
            )
            self._feeder.add_done_callback(self._feeder_done)
        self._start_worker()
        while not self._done.done():
            try:
                await asyncio.shield(self._done)
            except asyncio.CancelledError as cancelled:
                for attempt in self._attempts():
                    attempt.caller_cancelled()
                self._stop(cancelled)
            except GeneratorExit:  # this coroutine is closed, and cannot wait any more
                self._stopped_by = asyncio.CancelledError()
                self._cancel_tasks()
                raise
        outcome = self._stopped_by
        if self._was_cancelled:
            # A task of an item was cancelled externally: the engine ends the run, as for other stages.
            cast("asyncio.Task[None]", asyncio.current_task()).cancel()
        if inspect.isgenerator(self._source):
            self._source_variables.run(self._source.close)
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                self._stopped_by = outcome = None  # avoid a reference cycle with this frame
        if outcome is not None:
            return outcome
        values = self._values
        self._tally.total = len(values)
        if self._tally.ok < len(values):
            values = [value for value in values if value is not _OMITTED]
        return StageOutput(StageStatus.OK, {"items": values}, returned=values)

    # ------------------------------------------------------------ items and workers

    async def _receive(self, items: AsyncIterable[Any]) -> None:
        """Receive the items of an asynchronous iterable; like an item, it is abandoned if it does not end."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._feeding = Attempt(
            self._node.index, ItemContext(self._ctx, 1), self._now(), self._now, task, self._source_variables
        )
        try:
            await drive(self._feed(items), self._feeding.step, UNSTARTED, self._feeding.gives_up)
        except (SystemExit, KeyboardInterrupt) as error:
            self._interrupted(error)

    async def _feed(self, items: AsyncIterable[Any]) -> None:
        """Receive one item after another, each when a worker is free."""
        iterator = aiter(items)
        try:
            async for item in iterator:
                self._received.append(item)
                while self._received and self._stopped_by is None:
                    self._start_worker_if_free()
                    self._has_room.clear()
                    await self._has_room.wait()
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    def _feeder_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._feeder is None:
            return  # it was abandoned
        self._feeder = self._feeding = None
        if task.cancelled():
            self._cancelled_externally(asyncio.CancelledError("the iteration over the items was cancelled"))
        elif error is not None:
            self._stop(error)
        self._finish_if_done()

    def _may_start(self, account: Account, attempts: int) -> bool:
        """Count attempts that start now. Return False, and stop the map, if the budget does not allow it."""
        if account.start_attempt(self._ctx._sequence, attempts):
            return True
        # The engine cancels the map, but until it is resumed, items that do not suspend would spend more.
        self._stop(asyncio.CancelledError("the budget of the run was exceeded"))
        return False

    def _take(self) -> Work | None:
        """Return the next attempt that can start, or None if there is none now."""
        if self._stopped_by is not None:
            return None
        if self._account is not None and not self._may_start(self._account, 0):
            return None
        if self._due:
            return self._due.popleft()
        if self._received:
            item = self._received.popleft()
            self._has_room.set()
        else:
            try:
                item = self._source_variables.run(next, self._source)
            except StopIteration:
                self._exhausted = True
                return None
            except BaseException as error:
                self._stop(error)
                return None
        index = len(self._values)
        self._values.append(_PENDING)
        if index >= self._tally.total:
            self._tally.total = index + 1
        return Work(index, item)

    def _start_worker(self) -> None:
        # The constructor, not `loop.create_task`: an eager task factory would start an item within another.
        task = asyncio.Task(
            self._work(), loop=self._loop, name=self._node.name, context=self._variables.copy()
        )
        self._workers[task] = None
        task.add_done_callback(self._worker_done)

    def _start_worker_if_free(self) -> None:
        """Start a worker if there may be work for it and `max_concurrency` allows it."""
        if self._has_work and len(self._workers) < self._max_workers:
            self._start_worker()

    @property
    def _has_work(self) -> bool:
        return self._stopped_by is None and bool(self._due or self._received or not self._exhausted)

    def _worker_done(self, task: asyncio.Task[None]) -> None:
        """Process the end of a worker that was cancelled or has failed."""
        error = None if task.cancelled() else task.exception()
        if task not in self._workers:
            return  # it has ended normally, or its item was abandoned
        del self._workers[task]
        if error is None:
            self._cancelled_externally(asyncio.CancelledError("a task of the map was cancelled"))
        else:
            self._stop(error)
        self._finish_if_done()

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        if task in self._workers:
            del self._workers[task]
            task.remove_done_callback(self._worker_done)
            self._start_worker_if_free()
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._workers or self._done.done():
            return
        if self._has_work:
            self._start_worker()
        elif self._feeder is None and not self._backoffs:
            self._end()

    def _end(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        if not self._done.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._done.set_result(None)

    async def _work(self) -> None:
        """Process one item after another, until none is left or one leaves a reference to the task."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        strong_references = functools.partial(getrefcount, task)
        weak_references = functools.partial(getweakrefcount, task)
        strong, weak = strong_references(), weak_references()
        call, ctx, others, now = self._call, self._ctx, self._others, self._now
        node = self._node
        direct = not self._in_thread and node.item_limit is None and node.executor is None
        takes_context, account = node.takes_context, self._account
        completed = 0
        try:
            while (work := self._take()) is not None:
                if direct:
                    if account is not None and not self._may_start(account, 1):
                        break
                    variables = self._variables.copy()
                    value, raised, was_immediate = None, None, True
                    item_ctx = ItemContext(ctx, work.attempt) if takes_context or work.attempt > 1 else None
                    began = now()
                    try:
                        if item_ctx is not None and takes_context:
                            started = variables.run(first_step, item_ctx, call, item_ctx, work.item, *others)
                        else:
                            started = variables.run(first_step, item_ctx or ctx, call, work.item, *others)
                    except StopIteration as stop:
                        value = stop.value
                    except BaseException as error:
                        raised = error
                    else:
                        was_immediate = False
                        suspended = self._workers[task] = SuspendedItem(work)
                        await self._drive(
                            suspended, *started, item_ctx or ItemContext(ctx, work.attempt), began, variables
                        )
                        del suspended, started, item_ctx
                    if was_immediate:
                        ended = now()
                        if ended - began > ctx._blocked_ns:
                            ctx._blocked_ns = ended - began
                        self._ended(work, value, raised, began, ended, is_late=False)
                    del value, raised
                else:
                    was_immediate = False
                    await self._process(work, task)
                if not was_immediate:
                    if task not in self._workers:
                        return  # the item was abandoned
                    self._workers[task] = None
                if strong_references() != strong or weak_references() != weak or task.cancelling():
                    break
                completed += 1
                if completed % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
                    strong, weak = strong_references(), weak_references()
        except (SystemExit, KeyboardInterrupt) as error:
            self._interrupted(error)
        self._worker_ended(task)

    # ------------------------------------------------------------ one attempt of an item

    async def _process(self, work: Work, task: asyncio.Task[None]) -> None:
        """Run an attempt that needs a permit of a limit, a thread or an executor."""
        suspended = self._workers[task] = SuspendedItem(work)
        self._start_worker_if_free()
        variables = self._variables.copy()
        try:
            suspended.permit = await acquire_permit(
                self._node, self._run_id, self._loop, variables.get(innermost_permit)
            )
        except LimitDeadlockError as error:
            began = self._now()
            self._failed(work, StageOutput(StageStatus.FAIL, {}, describe(error), error), began, began)
            return
        try:
            if suspended.permit is not None:
                variables.run(innermost_permit.set, suspended.permit)
            if self._node.executor is not None:
                if self._account is None or self._may_start(self._account, 1):
                    await self._run_batch(self._node.executor, work, suspended, task)
                return
            item_ctx = ItemContext(self._ctx, work.attempt)
            call: Call = functools.partial(self._call, *([item_ctx] if self._node.takes_context else []))
            if self._in_thread:
                scope = suspended.scope = StageScope()
                scope.permit = await acquire_thread(self._loop)
                function = functools.partial(call, work.item, *self._others)
                call = functools.partial(call_in_thread, lambda _: function(), item_ctx, scope, False)
            else:
                call = functools.partial(call, work.item, *self._others)
            if self._account is not None and not self._may_start(self._account, 1):
                return
            began, value, raised = self._now(), None, None
            try:
                steps, waits_for = variables.run(first_step, item_ctx, call)
            except StopIteration as stop:
                value = stop.value
            except BaseException as error:
                raised = error
            else:
                await self._drive(suspended, steps, waits_for, item_ctx, began, variables)
                return
            self._ended(work, value, raised, began, self._now(), is_late=False)
            del value, raised
        finally:
            suspended.release()

    async def _run_batch(
        self, executor: Executor, first: Work, suspended: SuspendedItem, task: asyncio.Task[None]
    ) -> None:
        """Run a batch of items on the executor, starting with this one.

        If the worker ends, or an item takes too long, the items after that one have not started: they are
        processed in other batches. If that is not known of an executor, an item with a timeout is processed
        alone, and all items of a lost batch fail.
        """
        works = deque([first])
        size = self._size_of_batch(executor, suspended)
        until = self._now() + _COLLECTING_NS
        while len(works) < size and self._now() < until and (more := self._take()) is not None:
            works.append(more)
        arguments = [(work.item, *self._others) for work in works]
        attempts = [work.attempt for work in works]
        session: Session | None = None
        try:
            while works and self._stopped_by is None:
                if session is not None:
                    self._take_results(session, works)
                    if not works or self._stopped_by is not None:
                        break
                work = works.popleft()
                item_ctx = ItemContext(self._ctx, work.attempt)
                suspended.work = work
                attempt = suspended.attempt = Attempt(
                    self._node.index, item_ctx, self._now(), self._now, task, self._variables
                )
                value = raised = None
                is_interrupted = False
                try:
                    if session is None:
                        session = open_session(
                            executor,
                            self._node,
                            self._ctx,
                            attempts,
                            arguments,
                            {},
                            announce=self._spec.timeout is not None,
                        )
                        started = functools.partial(self._start_timeout, attempt, session, executor, task)
                    else:
                        started = None
                        self._start_timeout(attempt, session, executor, task)
                    outcome = await next_outcome(session, item_ctx, started)
                except GeneratorExit:
                    raise
                except BaseException as error:
                    raised, is_interrupted = error, True
                    took = self._now() - attempt.began
                else:
                    took = outcome.duration_ns
                    if isinstance(outcome, Raised):
                        raised = outcome.error
                    else:
                        value = outcome.value
                    self._batches.add(took)
                    del outcome
                attempt.stop_timers()
                suspended.attempt = None
                has_started = True
                if session is not None:
                    self._ctx._worker = session.worker or self._ctx._worker
                    if is_interrupted and is_a(raised, WorkerLostError):
                        item_ctx.timed_out = session.killed
                        number = len(attempts) - len(works)
                        has_started = session.items_started == 0 or number <= session.items_started
                if is_interrupted:
                    if works and is_a(raised, SerializationError):
                        works.appendleft(work)  # any of them may be the one that cannot be sent
                        self._batches.send_one_by_one(len(works))
                        self._due.extendleft(reversed(works))
                        break
                    if executor.confirms_calls or not is_a(raised, WorkerLostError):
                        self._due.extendleft(reversed(works))
                        works.clear()
                if not has_started:
                    self._due.appendleft(work)
                    break
                if (
                    raised is not None
                    and is_a(raised, asyncio.CancelledError)
                    and attempt.cancelled_externally
                ):
                    self._cancelled_externally(raised)
                if not item_ctx.abandoned:
                    now = self._now()
                    self._ended(work, value, raised, now - took, now, is_late=item_ctx.timed_out)
                del value, raised
        finally:
            if session is not None:
                close_session(session)

    def _size_of_batch(self, executor: Executor, suspended: SuspendedItem) -> int:
        if self._spec.timeout is not None and not executor.confirms_calls:
            return 1  # the end of its worker would leave it open whether the other items have run
        if suspended.permit is not None or (self._account is not None and self._account.limits_attempts):
            return 1  # each attempt acquires its permit, or is counted, when it starts
        return self._batches.next(self._tally.total - len(self._values), self._max_workers)

    def _take_results(self, session: Session, works: deque[Work]) -> None:
        """Process the values that have arrived; those of short items arrive together."""
        while works and (message := session.receive_now(Returned)) is not None:
            self._batches.add(message.duration_ns)
            now = self._now()
            self._ended(works.popleft(), message.value, None, now - message.duration_ns, now, is_late=False)

    def _start_timeout(
        self, attempt: Attempt, session: Session, executor: Executor, task: asyncio.Task[None]
    ) -> None:
        """Start the timeout of an item, which has started on a worker."""
        attempt.began = self._now()
        seconds = self._spec.timeout
        if seconds is not None and executor.confirms_calls:
            ItemTimeout(session, seconds, self._loop).start(attempt)
        elif seconds is not None:
            attempt.timer = self._loop.call_later(seconds, self._timed_out, task)

    async def _drive(
        self,
        suspended: SuspendedItem,
        steps: Any,
        waits_for: Any,
        item_ctx: ItemContext,
        began: int,
        variables: Context,
    ) -> None:
        """Drive a suspended attempt to its end, and process its outcome."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if suspended.permit is None and suspended.scope is None:
            self._start_worker_if_free()
        attempt = suspended.attempt = Attempt(self._node.index, item_ctx, began, self._now, task, variables)
        if self._spec.timeout is not None:
            seconds = self._spec.timeout - (self._now() - began) / 1e9
            attempt.timer = self._loop.call_later(max(seconds, 0), self._timed_out, task)
        value = raised = None
        try:
            value = await drive(steps, attempt.step, waits_for, attempt.gives_up)
        except GeneratorExit:
            raise
        except BaseException as error:
            raised = error
            with INTERRUPTS:
                variables.run(steps.close)
        if suspended.scope is None and attempt.blocked > self._ctx._blocked_ns:
            self._ctx._blocked_ns = attempt.blocked
        if item_ctx.abandoned:
            raised = None  # it refers to this frame
            return  # its outcome has already been processed
        attempt.stop_timers()
        suspended.attempt = None
        if raised is not None and is_a(raised, asyncio.CancelledError) and attempt.cancelled_externally:
            self._cancelled_externally(raised)
        self._ended(suspended.work, value, raised, began, self._now(), is_late=item_ctx.timed_out)
        del value, raised

    def _ended(
        self,
        work: Work,
        value: Any,
        raised: BaseException | None,
        began: int,
        ended: int,
        *,
        is_late: bool,
    ) -> None:
        """Process the outcome of an attempt."""
        late = is_late or (self._timeout_ns is not None and ended - began > self._timeout_ns)
        if raised is None and not late and type(value) in _UNCHANGED:
            self._succeeded(work, value, began, ended)
            return
        if late:
            if raised is not None:
                failure(raised)  # removes the frames of the engine, which refer to the exception
            raised = timed_out(
                self._node, f"took longer than its timeout of {self._spec.timeout:g} s", self._run_id, raised
            )
        if raised is not None:
            output = failure(raised)
        else:
            try:
                output = output_of(value, self._node, None)
            except BaseException as error:  # the class of the value may override any method
                INTERRUPTS.postpone(error)
                raised, output = error if is_a(error, Exception) else None, failure(error)
        if raised is not None and is_a(raised, (SystemExit, KeyboardInterrupt)):
            self._interrupted(raised)
            return
        if raised is not None and self._stopped_by is not None:
            return  # most likely because the item was cancelled
        if raised is not None or output.status is StageStatus.RETRY:
            since = (ended - work.start(began)) / 1e9
            output = retried_or_failed(output, self._spec.retry, work.attempt, raised, since)
        if output.status is StageStatus.OK:
            self._succeeded(work, output.value, began, ended)
        elif output.status is StageStatus.SKIP:
            self._values[work.index] = _OMITTED
            self._tally.skipped += 1
            self._note_end(work, output, began, ended)
        elif output.status is StageStatus.RETRY:
            self._retry(work, output, began, ended)
        elif output.status is StageStatus.FAIL:
            self._failed(work, output, began, ended)
        else:
            self._stop(output)

    def _succeeded(self, work: Work, value: Any, began: int, ended: int) -> None:
        self._values[work.index] = value
        self._tally.ok += 1
        self._note_end(work, _SUCCEEDED, began, ended)

    def _failed(self, work: Work, output: StageOutput, began: int, ended: int) -> None:
        key, error = self._key(work), output.error or "failed"
        type_name = None if output.exception is None else name_of_error(output.exception)
        message = error if output.exception is None else as_text(output.exception)
        self._tally.add_failure(key, type_name, message)
        self._note_end(work, output, began, ended)
        policy = self._spec.on_item_failure
        if policy == "collect":
            self._values[work.index] = ItemFailure(work.index, key, error, output.exception, work.attempt)
        elif policy == "skip":
            self._values[work.index] = _OMITTED
        else:
            # The error contains no key, so that equal errors have the same text.
            reason = f"item {key} failed" + (f": {output.reason}" if output.reason else "")
            self._stop(StageOutput(StageStatus.FAIL, {}, error, output.exception, reason))

    def _retry(self, work: Work, output: StageOutput, began: int, ended: int) -> None:
        if work.attempt == 1:
            self._tally.retried += 1
        self._emit(work, output, began, ended)
        if self._stopped_by is None:
            again = Work(work.index, work.item, work.attempt + 1, work.start(began))
            self._backoffs[work.index] = self._loop.call_later(output.after or 0, self._retry_due, again)

    def _retry_due(self, work: Work) -> None:
        del self._backoffs[work.index]
        self._due.append(work)
        self._start_worker_if_free()

    def _note_end(self, work: Work, output: StageOutput, began: int, ended: int) -> None:
        """Count the duration of an item that has ended, and emit its event if necessary."""
        us, tally = (ended - work.start(began)) // 1000, self._tally
        tally.add_duration(us)
        if us > tally.max_us:
            tally.max_us = us
            tally.slowest = self._key(work)
        if output.status is StageStatus.FAIL or us >= self._slow_us or self._spec.item_events == "all":
            self._emit(work, output, began, ended)

    def _emit(self, work: Work, output: StageOutput, began: int, ended: int) -> None:
        if self._spec.item_events == "none" or self._ctx.abandoned:
            return
        duration_ms = (ended // 1000 - began // 1000) / 1000
        self._ctx._recorder.item_ended(
            self._node.name,
            self._ctx.attempt,
            ItemAttempt(work.index, self._key(work), work.attempt, output, duration_ms),
        )

    def _key(self, work: Work) -> str:
        """Return the key of an item; its index if `item_key` raises."""
        if self._spec.item_key is not None:
            try:
                return as_text(self._spec.item_key(work.item))[:_MAX_KEY_CHARS]
            except BaseException as error:
                INTERRUPTS.postpone(error)
        return str(work.index)

    # ------------------------------------------------------------ timeouts and cancellation

    def _timed_out(self, task: asyncio.Task[None]) -> None:
        suspended = self._workers.get(task)
        if suspended is not None and (attempt := suspended.attempt) is not None:
            timeout = self._spec.timeout or 0
            attempt.cancel(f"the item exceeded its timeout of {timeout:g} s", timed_out=True)
            attempt.timer = self._loop.call_later(self._node.grace, self._abandon, task)

    def _abandon(self, task: asyncio.Task[None]) -> None:
        """Continue without an attempt that did not end within the grace period of its timeout."""
        suspended = self._workers.pop(task, None)
        if suspended is None or (attempt := suspended.attempt) is None:
            return
        self._leave(suspended)
        self._ended(suspended.work, None, None, attempt.began, self._now(), is_late=True)
        self._start_worker_if_free()
        self._finish_if_done()

    def _abandon_all(self) -> None:
        """End without the attempts that did not end within the grace period after the map was stopped."""
        left = sum(suspended is not None for suspended in self._workers.values())
        if isinstance(self._stopped_by, StageOutput) and left:
            items = "1 item" if left == 1 else f"{left} items"
            was = "was" if left == 1 else "were"
            reason = f"{items} did not end within {self._node.grace:g} s and {was} left running"
            self._stopped_by = replace(
                self._stopped_by,
                reason=f"{self._stopped_by.reason}; {reason}" if self._stopped_by.reason else reason,
            )
        if self._feeding is not None:
            self._feeding.abandon()
        for suspended in self._workers.values():
            if suspended is not None:
                self._leave(suspended)
        self._workers.clear()
        self._feeder = self._feeding = None
        self._end()

    def _leave(self, suspended: SuspendedItem) -> None:
        """Stop waiting for an attempt, which continues in the background."""
        if suspended.attempt is not None:
            suspended.attempt.stop_timers()
            suspended.attempt.abandon()
        suspended.release()
        if suspended.scope is not None and suspended.scope.returned is not None:
            suspended.scope.returned.cancel()

    def _attempts(self) -> Iterator[Attempt]:
        """Yield the suspended attempts of items, and that of the source."""
        if self._feeding is not None:
            yield self._feeding
        for suspended in self._workers.values():
            if suspended is not None and suspended.attempt is not None:
                yield suspended.attempt

    def _interrupted(self, error: BaseException) -> None:
        """End the map, and the run, with a `SystemExit` or `KeyboardInterrupt`."""
        self._stop(error)
        self._stopped_by = error

    def _cancelled_externally(self, error: BaseException) -> None:
        """End the map and the run because code outside the run has cancelled one of its tasks."""
        if self._stopped_by is None:
            self._was_cancelled = True
            self._stop(error)

    def _stop(self, outcome: StageOutput | BaseException) -> None:
        """End the map with this outcome: start no further item, and cancel those that are running."""
        if self._stopped_by is not None:
            return  # a second cancellation would interrupt the cleanup of the items
        self._stopped_by = outcome
        self._due.clear()
        self._received.clear()
        self._has_room.set()
        for timer in self._backoffs.values():
            timer.cancel()
        self._backoffs.clear()
        self._grace = self._loop.call_later(self._node.grace, self._abandon_all)
        self._cancel_tasks()
        self._finish_if_done()

    def _cancel_tasks(self) -> None:
        reason = "the map has failed"
        if isinstance(self._stopped_by, asyncio.CancelledError):
            reason = with_message("the map was cancelled", self._stopped_by)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._feeding is not None:
                self._feeding.cancel(reason, timed_out=False)
            elif self._feeder is not None:
                self._feeder.cancel()
            current = asyncio.current_task(self._loop)
            for task, suspended in list(self._workers.items()):
                if task is current:
                    continue
                if suspended is None or suspended.attempt is None:
                    task.cancel()
                else:
                    suspended.attempt.cancel(reason, timed_out=False)


_SUCCEEDED = StageOutput(StageStatus.OK, {})
