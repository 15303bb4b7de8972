"""The channel between an emitter and one sink: ordering, bounded queues, isolation and counters."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, Protocol

from msgspec import Struct

from .._cpython import exclude_from_all_tasks, forget_unfinished, running_loop
from .._drive import drive
from .._interrupts import INTERRUPTS
from .._log import log_safely
from ..errors import InvalidArgumentError, describe
from ._sink import DirectSink, Event, EventLost, ForwardingSink, overrides

__all__ = [
    "CAPACITY",
    "Channel",
    "Drainable",
    "EventStats",
    "Item",
    "LoopRegistry",
    "Outbox",
    "SinkStats",
    "delivering",
]


log = logging.getLogger("stageflow.events")

CAPACITY = 4096
"""Maximum number of events in one outbox. At 1 ms per event, they drain within the default drain timeout."""

SLOW_SECONDS = 0.05
"""Blocking time in seconds above which a call of a sink is logged and counted."""

Item = Event | Awaitable[Any]


class SinkStats(Struct, frozen=True):
    """A consistent snapshot of the counters of one sink.

    `offered = accepted + rejected` and `accepted = delivered + dropped + pending` always hold.

    Attributes:
        sink: Name of the sink's class.
        offered: Number of events emitted to this sink.
        accepted: Number of events passed to the sink or queued for it.
        delivered: Number of events for which the call of the sink returned.
        pending: Number of accepted events that are not yet delivered or dropped.
        rejected: Number of events that were not accepted, by reason: `queue_full`, `no_loop`.
        dropped: Number of accepted events that were lost, by reason: `sink_error`, `sink_closed` (an error
            while the event loop was shutting down), `drain_timeout`, `loop_closed`; for a journal also
            `disk_full`, `journal_unwritable` and `line_too_long`.
        blocked_ms: Total time for which the sink blocked its caller or its event loop, in milliseconds. Calls
            that block for 50 ms or less are not counted.
        sync_failures: Number of failed syncs of a journal, which retries them.
    """

    sink: str
    offered: int
    accepted: int
    delivered: int
    pending: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    blocked_ms: float
    sync_failures: int = 0


class EventStats(Struct, frozen=True):
    """The counters of every sink in use, and of event building.

    Attributes:
        sinks: One `SinkStats` for each existing sink that was offered an event.
        emitter_errors: Number of times that a subclass of `WideEventEmitter` raised.
        coerced_values: Number of values that JSON cannot represent and that were recorded by their `repr`.
    """

    sinks: list[SinkStats]
    emitter_errors: int
    coerced_values: int

    def __iter__(self) -> Iterator[SinkStats]:
        return iter(self.sinks)

    def of(self, name: str) -> SinkStats:
        """Return the counters of the newest sink whose class is called `name`.

        Raises:
            KeyError: No sink with this class name was offered an event yet.
        """
        for sink in reversed(self.sinks):
            if sink.sink == name:
                return sink
        known = ", ".join(sorted({sink.sink for sink in self.sinks})) or "none"
        raise KeyError(f"no sink {name!r} was offered an event; known sinks: {known}")


class GlobalCounters:
    """Counters that do not belong to a sink."""

    __slots__ = ("coerced_values", "emitter_errors")

    def __init__(self) -> None:
        self.emitter_errors = 0
        self.coerced_values = 0


GLOBAL_COUNTERS = GlobalCounters()


class Drainable(Protocol):
    """A queue with pending events on an event loop."""

    @property
    def stalled(self) -> bool:
        """True if the sink exceeded the timeout of an earlier drain; later drains do not wait for it."""
        ...

    def drained(self) -> concurrent.futures.Future[None]:
        """Return a future that completes when all currently pending events were delivered or dropped."""
        ...

    def abandon(self, reason: str) -> None:
        """Drop all pending events and count them under `reason`."""
        ...


delivering: ContextVar[Drainable | None] = ContextVar("stageflow_delivering", default=None)
"""The outbox that is delivering in the current context: a sink that flushes must not wait for itself."""


class LoopRegistry(Protocol):
    """The part of `Delivery` that an outbox uses."""

    def register(self, loop: asyncio.AbstractEventLoop, outbox: Drainable) -> None: ...

    def unregister(self, loop: asyncio.AbstractEventLoop, outbox: Drainable) -> None: ...

    def watch_shutdown(self) -> None: ...

    def is_draining(self, loop: asyncio.AbstractEventLoop) -> bool: ...


class SinkCounters(Protocol):
    """The counters of the sink that an outbox serves."""

    stalled: bool

    def count_delivered(self) -> None: ...

    def count_dropped(self, reason: str, count: int) -> None: ...

    def log_dropped(self, reason: str, count: int, error: BaseException | None) -> None: ...

    def count_blocked(self, seconds: float) -> None: ...

    def add_outbox(self, outbox: Outbox) -> None: ...

    def remove_outbox(self, outbox: Outbox) -> None: ...


class Outbox:
    """The queue of one sink on one event loop. It exists while events are pending.

    The lock of the counters guards all fields.
    """

    def __init__(
        self,
        counter: SinkCounters,
        lock: Any,
        deliver: Callable[[Event], Any],
        loop: asyncio.AbstractEventLoop,
        loops: LoopRegistry,
    ) -> None:
        self.loop = loop
        self._loops = loops
        self._counter = counter
        self._lock = lock
        self._deliver = deliver
        self._queue: deque[Item] = deque()
        self._in_flight = False
        self._enqueued = 0
        self._finished = 0
        self._waiters: list[tuple[int, concurrent.futures.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._abandoned = False

    @property
    def pending(self) -> int:
        """Number of pending events, including the one that is being delivered."""
        return len(self._queue) + self._in_flight

    @property
    def full(self) -> bool:
        """True if the queue cannot accept another event."""
        return len(self._queue) >= CAPACITY

    @property
    def stalled(self) -> bool:
        return self._counter.stalled

    def put(self, item: Item) -> None:
        """Append an event. The caller must hold the lock."""
        self._enqueued += 1
        self._queue.append(item)

    def open(self) -> None:
        """Start delivery. Can be called from any thread."""
        self._loops.register(self.loop, self)
        try:
            if running_loop() is self.loop:
                self._start()
            else:
                self.loop.call_soon_threadsafe(self._start)
        except RuntimeError:  # the loop was closed in between
            self.abandon("loop_closed")

    def _start(self) -> None:
        if self._abandoned:
            return
        self._loops.watch_shutdown()
        # Use an empty context, so that the sink does not see context variables of the first run.
        self._task = asyncio.Task(
            self._run(), loop=self.loop, name="stageflow-delivery", context=contextvars.Context()
        )
        self._task.add_done_callback(_retrieve_exception)
        # Exclude the task from `all_tasks()`. Otherwise the end of `asyncio.run`, which cancels all tasks at
        # once, would cancel delivery before the cancelled runs have emitted their events.
        exclude_from_all_tasks(self._task)

    async def _run(self) -> None:
        counter = self._counter
        delivering.set(self)
        iterations = 0
        while True:
            with self._lock:
                if self._abandoned:
                    return
                if not self._queue:
                    # Remove the outbox first: an event emitted by a signal handler between these lines either
                    # creates another outbox, or is found by the second check.
                    counter.remove_outbox(self)
                    if not self._queue:
                        break
                    counter.add_outbox(self)
                item = self._queue.popleft()
                self._in_flight = True
            error: BaseException | None = None
            try:
                # A synchronous `try_emit` returned an awaitable, which only has to be awaited.
                outcome = self._deliver(item) if isinstance(item, Event) else item
                if outcome is not None:
                    steps = outcome if type(outcome) is CoroutineType else _as_coroutine(outcome)
                    await drive(steps, self._timed)
            except KeyboardInterrupt as interrupt:
                self._finish_item("sink_error", interrupt)
                self.loop.call_soon(self._start)  # deliver the remaining events in another task
                raise
            except BaseException as caught:
                error = caught
            self._finish_item("sink_closed" if self._is_draining() else "sink_error", error)
            iterations += 1
            if iterations % 64 == 0:  # a sink that never waits must not block the event loop
                await asyncio.sleep(0)
        self._loops.unregister(self.loop, self)
        self._notify_waiters()

    def _timed(self, method: Callable[..., Any], *args: Any) -> Any:
        """Run one step of a sink's coroutine, and count how long it blocked the event loop."""
        start = time.monotonic()
        try:
            return method(*args)
        finally:
            self._counter.count_blocked(time.monotonic() - start)

    def _is_draining(self) -> bool:
        return self._loops.is_draining(self.loop)

    def _finish_item(self, reason: str, error: BaseException | None) -> None:
        with self._lock:
            if self._abandoned:
                return
            self._in_flight = False
            self._finished += 1
            if error is None:
                self._counter.count_delivered()
            else:
                self._counter.count_dropped(reason, 1)
        if error is not None:
            self._counter.log_dropped(reason, 1, error)
        if self._waiters:
            self._notify_waiters()

    def _notify_waiters(self) -> None:
        with self._lock:
            due = [future for mark, future in self._waiters if mark <= self._finished]
            self._waiters = [(mark, future) for mark, future in self._waiters if mark > self._finished]
        for future in due:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def drained(self) -> concurrent.futures.Future[None]:
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            # Remove futures that are no longer awaited.
            self._waiters = [waiter for waiter in self._waiters if not waiter[1].cancelled()]
            self._waiters.append((self._enqueued, future))
        self._notify_waiters()
        return future

    def abandon(self, reason: str) -> None:
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
            lost = self.pending
            self._finished += lost
            for item in self._queue:
                if isinstance(item, Coroutine):
                    item.close()
            self._queue.clear()
            self._in_flight = False
            if lost:
                self._counter.count_dropped(reason, lost)
                self._counter.stalled = reason == "drain_timeout"
            self._counter.remove_outbox(self)
        if lost:
            self._counter.log_dropped(reason, lost, None)
        self._loops.unregister(self.loop, self)
        task = self._task
        if task is not None and not self.loop.is_closed():
            # The task may be destroyed with the loop while it hangs. The counters already report this.
            forget_unfinished(task)
            if running_loop() is self.loop:
                task.cancel()
        self._notify_waiters()


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    # Only an interrupt ends delivery, and it has already been raised. Avoid a second report by asyncio.
    if not task.cancelled():
        task.exception()


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class LoopProvider(LoopRegistry, Protocol):
    """The part of `Delivery` that a channel uses."""

    def delivery_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that delivers an event emitted by the caller."""
        ...


class Channel:
    """Calls one sink and counts its events. `offer` never raises, and waits only for a synchronous sink.

    Args:
        sink: The sink. The channel does not keep it alive; `offer` receives it again.
        method: The method to call: "deliver", "emit" or "try_emit"; "" for the one that the sink implements.
        delivery: Provides the event loops.
    """

    def __init__(self, sink: Any, method: str, delivery: LoopProvider) -> None:
        self.name = type(sink).__name__
        self.stalled = False
        self._call, self._in_place, self.method = _how_to_call(sink, method)
        self.direct = self._call is _DELIVER
        # No hint for a direct sink: a journal in a separate thread would lose events on SIGKILL.
        self._hint = "" if self.direct else "; BackgroundEventSink(sink) runs it in a separate thread"
        self._forwards = isinstance(sink, ForwardingSink)
        self._delivery = delivery
        # Reentrant: a signal handler may emit while its thread is counting.
        self._lock = threading.RLock()
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox] = {}
        self._offered = 0
        self._accepted = 0
        self._delivered = 0
        self._in_call = 0
        self._rejected: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._blocked = 0.0
        self._sync_failures = 0
        self._logged: set[str] = set()

    def offer(self, sink: Any, event: Event) -> None:
        """Pass an event to the sink, synchronously or through its queue."""
        if not self._in_place:
            self._enqueue(sink, event, counted=False)
            return
        error: BaseException | None = None
        outcome = None
        start = time.monotonic()
        try:
            outcome = sink.deliver(event) if self.direct else self._call(sink, event)
        except BaseException as caught:
            error = caught
        blocked = time.monotonic() - start
        if blocked > SLOW_SECONDS:
            self.count_blocked(blocked)
        if error is None and (outcome is None or not inspect.isawaitable(outcome)):
            # Count after the call: the counters are always consistent, with one lock per event.
            with self._lock:
                self._offered += 1
                self._accepted += 1
                self._delivered += 1
            return
        reason = error.reason if isinstance(error, EventLost) else "sink_error"
        with self._lock:
            self._offered += 1
            self._accepted += 1
            if error is not None:
                self.count_dropped(reason, 1)
            else:
                self._in_call += 1
        if error is None:
            # A synchronous method that returns an awaitable: await it on the loop.
            assert outcome is not None
            self._enqueue(sink, outcome, counted=True)
            return
        self.log_dropped(reason, 1, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            INTERRUPTS.keep(error)  # probably raised by a signal handler, so it is for the application

    def _enqueue(self, sink: Any, item: Item, *, counted: bool) -> None:
        reason = None
        try:
            loop = sink.delivery_loop() if self._forwards else self._delivery.delivery_loop()
        except RuntimeError:  # the interpreter is exiting and cannot start a thread
            reason, loop = "no_loop", None
        opened: Outbox | None = None
        with self._lock:
            if counted:
                self._in_call -= 1
            else:
                self._offered += 1
            outbox = None if loop is None else self._outboxes.get(loop)
            if outbox is not None and outbox.full:
                reason = "queue_full"
            if reason is not None or loop is None:
                if counted:
                    self.count_dropped(reason or "no_loop", 1)
                else:
                    self._rejected.setdefault(reason or "no_loop", 0)
                    self._rejected[reason or "no_loop"] += 1
            else:
                if outbox is None:
                    call = functools.partial(self._call, sink)
                    outbox = opened = Outbox(self, self._lock, call, loop, self._delivery)
                    self._outboxes[loop] = outbox
                if not counted:
                    self._accepted += 1
                outbox.put(item)
        if opened is not None:
            opened.open()
        elif reason is not None:
            self._log_once(reason, f"an event was rejected ({reason})")

    # Called by an outbox, which holds the lock for the first two and for `add_outbox` and `remove_outbox`.

    def count_delivered(self) -> None:
        self._delivered += 1
        self.stalled = False

    def count_dropped(self, reason: str, count: int) -> None:
        # The increment must not contain a call: a signal handler in this thread, which may count as well,
        # runs only at calls.
        self._dropped.setdefault(reason, 0)
        self._dropped[reason] += count

    def log_dropped(self, reason: str, count: int, error: BaseException | None) -> None:
        # Log without the lock: a logging handler may emit events, and wait for a thread that needs the lock.
        lost = f"{count} event{'s were' if count != 1 else ' was'} dropped ({reason})"
        self._log_once(reason, lost + (f": {describe(error)}" if error is not None else ""))

    def add_outbox(self, outbox: Outbox) -> None:
        self._outboxes.setdefault(outbox.loop, outbox)

    def remove_outbox(self, outbox: Outbox) -> None:
        if self._outboxes.get(outbox.loop) is outbox:
            del self._outboxes[outbox.loop]

    def count_blocked(self, seconds: float) -> None:
        if seconds > SLOW_SECONDS and not self._forwards:
            with self._lock:
                self._blocked += seconds
            self._log_once("slow", f"blocked its caller for {seconds * 1000:.0f} ms{self._hint}")

    def _log_once(self, reason: str, message: str) -> None:
        """Log a message once per sink and reason; the counters contain further occurrences."""
        if reason not in self._logged:
            self._logged.add(reason)
            log_safely(
                log,
                "event sink %s: %s (further occurrences are not logged; see stageflow.events.stats())",
                self.name,
                message,
            )

    def count_sync_failure(self) -> None:
        """Count a failed sync of the sink."""
        with self._lock:
            self._sync_failures += 1

    def stats(self) -> SinkStats:
        """Return a consistent snapshot of the counters."""
        with self._lock:
            return SinkStats(
                sink=self.name,
                offered=self._offered,
                accepted=self._accepted,
                delivered=self._delivered,
                pending=self._in_call + sum(box.pending for box in self._outboxes.values()),
                rejected=dict(self._rejected),
                dropped=dict(self._dropped),
                blocked_ms=round(self._blocked * 1000, 3),
                sync_failures=self._sync_failures,
            )


def _deliver(sink: DirectSink, event: Event) -> None:
    sink.deliver(event)


_DELIVER: Callable[[Any, Event], Any] = _deliver


def _forward(sink: ForwardingSink, event: Event) -> Any:
    call, _, _ = _how_to_call(sink.sink, "")
    return call(sink.sink, event)


def _how_to_call(sink: Any, method: str) -> tuple[Callable[[Any, Event], Any], bool, str]:
    """Return a function that passes an event to a sink, whether to call it in place, and the method's name.

    Raises:
        InvalidArgumentError: The sink has no method that accepts events.
    """
    kind = type(sink)
    implemented = [name for name in ("try_emit", "emit") if overrides(sink, name)]
    # Check the real class: a mock passes `isinstance`, but has neither the methods nor the state of a sink.
    if issubclass(kind, ForwardingSink) and (method == "forward" or not implemented):
        _how_to_call(sink.sink, "")
        return _forward, False, "forward"
    if issubclass(kind, DirectSink) and (method == "deliver" or not implemented):
        return _DELIVER, True, "deliver"
    if inspect.isclass(sink):
        raise InvalidArgumentError(
            f"event sink must be an instance, got the class {sink.__name__}; use {sink.__name__}()"
        )
    name = method or (implemented[0] if implemented else "emit")
    if name not in implemented:
        raise InvalidArgumentError(
            f"{kind.__name__} is not an event sink: it implements neither `emit` nor `try_emit`",
            hint="class MySink(EventSink): async def emit(self, *, type, data): ...",
        )
    called = getattr(sink, name)
    try:
        inspect.signature(called).bind(type="stage.wide", data={})
    except TypeError as error:
        raise InvalidArgumentError(
            f"{kind.__name__}.{name} has the wrong parameters for an event sink ({error})",
            hint=f"define it as {name}(self, *, type, data)",
        ) from None
    except ValueError:  # Python cannot determine the signature
        pass
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        raise InvalidArgumentError(
            f"{kind.__name__}.{name} is a generator function, so calling it does not deliver the event",
            hint=f"remove `yield` from `{name}`",
        )
    in_place = not inspect.iscoroutinefunction(called)
    return (lambda sink, event: getattr(sink, name)(type=event.type, data=event.data())), in_place, name
