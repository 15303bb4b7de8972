"""The bounded queue of one sink on one loop, and the task that empties it in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, Protocol

from .._cpython import exclude_from_all_tasks, forget_unfinished, running_loop
from .._drive import drive
from .event import Event

__all__ = ["CAPACITY", "Item", "Loops", "Outbox", "Outlet", "delivering"]

CAPACITY = 4096
"""Events that may wait in one outbox. At 1 ms an event, that many drain within the default bound."""

Item = Event | Awaitable[Any]


class Outlet(Protocol):
    """Something with events waiting on a loop."""

    @property
    def stalled(self) -> bool:
        """True for a sink that already outlasted a drain: it is not waited for again."""
        ...

    def drained(self) -> concurrent.futures.Future[None]:
        """Return a future that is done when all currently pending events have been delivered or dropped."""
        ...

    def give_up(self, reason: str) -> None:
        """Drop all pending events and count them under `reason`."""
        ...


delivering: ContextVar[Outlet | None] = ContextVar("stageflow_delivering", default=None)
"""The outbox that is delivering in the current context: a sink that flushes must not wait for itself."""


class Loops(Protocol):
    """The part of `Delivery` that an outbox uses."""

    def enter(self, loop: asyncio.AbstractEventLoop, outlet: Outlet) -> None: ...

    def leave(self, loop: asyncio.AbstractEventLoop, outlet: Outlet) -> None: ...

    def watch_end(self) -> None: ...

    def is_draining(self, loop: asyncio.AbstractEventLoop) -> bool: ...


class Counter(Protocol):
    """The counters of the sink that an outbox serves."""

    stalled: bool

    def delivered_one(self) -> None: ...

    def dropped_some(self, reason: str, count: int) -> None: ...

    def log_dropped(self, reason: str, count: int, error: BaseException | None) -> None: ...

    def blocked_for(self, seconds: float) -> None: ...

    def adopt(self, outbox: Outbox) -> None: ...

    def forget(self, outbox: Outbox) -> None: ...


class Outbox:
    """Lives while something waits in it. The counters' lock guards all of its fields."""

    def __init__(
        self,
        counter: Counter,
        lock: Any,
        deliver: Callable[[Event], Any],
        loop: asyncio.AbstractEventLoop,
        loops: Loops,
    ) -> None:
        self.loop = loop
        self._loops = loops
        self._counter = counter
        self._lock = lock
        self._deliver = deliver
        self._queue: deque[Item] = deque()
        self._in_flight = False
        self._put = 0
        self._taken_care_of = 0
        self._waiters: list[tuple[int, concurrent.futures.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._given_up = False

    @property
    def pending(self) -> int:
        """Events that wait, the one in flight included."""
        return len(self._queue) + self._in_flight

    @property
    def full(self) -> bool:
        """True when no further event fits."""
        return len(self._queue) >= CAPACITY

    @property
    def stalled(self) -> bool:
        return self._counter.stalled

    def put(self, item: Item) -> None:
        """Append an event. The caller holds the lock."""
        self._put += 1
        self._queue.append(item)

    def open(self) -> None:
        """Start delivery, from any thread."""
        self._loops.enter(self.loop, self)
        try:
            if running_loop() is self.loop:
                self._start()
            else:
                self.loop.call_soon_threadsafe(self._start)
        except RuntimeError:  # the loop was closed in between
            self.give_up("loop_closed")

    def _start(self) -> None:
        if self._given_up:
            return
        self._loops.watch_end()
        # A context of its own: what the run that came first had set is no business of the sink.
        self._task = asyncio.Task(
            self._run(), loop=self.loop, name="stageflow-delivery", context=contextvars.Context()
        )
        self._task.add_done_callback(_looked_at)
        # Not among `all_tasks()`: the end of `asyncio.run`, and whoever cancels everything, would
        # take delivery down before the runs it cancels at the same moment have spoken.
        exclude_from_all_tasks(self._task)

    async def _run(self) -> None:
        counter = self._counter
        delivering.set(self)
        turn = 0
        while True:
            with self._lock:
                if self._given_up:
                    return
                if not self._queue:
                    # Forgotten first: what a signal handler emits between these lines either finds
                    # another outbox, or is found here.
                    counter.forget(self)
                    if not self._queue:
                        break
                    counter.adopt(self)
                item = self._queue.popleft()
                self._in_flight = True
            error: BaseException | None = None
            try:
                # An awaitable is what a plain `try_emit` handed back: it only has to be awaited.
                outcome = self._deliver(item) if isinstance(item, Event) else item
                if outcome is not None:
                    steps = outcome if type(outcome) is CoroutineType else _as_coroutine(outcome)
                    await drive(steps, self._timed)
            except KeyboardInterrupt as interrupt:
                self._settle("sink_error", interrupt)
                self.loop.call_soon(self._start)  # the rest goes on, in another task
                raise
            except BaseException as caught:
                error = caught
            self._settle("sink_closed" if self._ending() else "sink_error", error)
            turn += 1
            if turn % 64 == 0:  # a sink that never waits must not keep the loop to itself
                await asyncio.sleep(0)
        self._loops.leave(self.loop, self)
        self._wake()

    def _timed(self, method: Callable[..., Any], *args: Any) -> Any:
        """Run one step of a sink's coroutine, and count how long it blocked the loop."""
        began = time.monotonic()
        try:
            return method(*args)
        finally:
            self._counter.blocked_for(time.monotonic() - began)

    def _ending(self) -> bool:
        return self._loops.is_draining(self.loop)

    def _settle(self, reason: str, error: BaseException | None) -> None:
        with self._lock:
            if self._given_up:
                return
            self._in_flight = False
            self._taken_care_of += 1
            if error is None:
                self._counter.delivered_one()
            else:
                self._counter.dropped_some(reason, 1)
        if error is not None:
            self._counter.log_dropped(reason, 1, error)
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            due = [future for mark, future in self._waiters if mark <= self._taken_care_of]
            self._waiters = [(mark, future) for mark, future in self._waiters if mark > self._taken_care_of]
        for future in due:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def drained(self) -> concurrent.futures.Future[None]:
        future: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            # Without those that nobody waits for any more.
            self._waiters = [waiter for waiter in self._waiters if not waiter[1].cancelled()]
            self._waiters.append((self._put, future))
        self._wake()
        return future

    def give_up(self, reason: str) -> None:
        with self._lock:
            if self._given_up:
                return
            self._given_up = True
            lost = self.pending
            self._taken_care_of += lost
            for item in self._queue:
                if isinstance(item, Coroutine):
                    item.close()
            self._queue.clear()
            self._in_flight = False
            if lost:
                self._counter.dropped_some(reason, lost)
                self._counter.stalled = reason == "drain_timeout"
            self._counter.forget(self)
        if lost:
            self._counter.log_dropped(reason, lost, None)
        self._loops.leave(self.loop, self)
        task = self._task
        if task is not None and not self.loop.is_closed():
            # It may be destroyed with the loop while it still hangs: that is told in the counters.
            forget_unfinished(task)
            if running_loop() is self.loop:
                task.cancel()
        self._wake()


def _looked_at(task: asyncio.Task[None]) -> None:
    # Only an interrupt ends delivery, and that has been raised already: no need to report it again.
    if not task.cancelled():
        task.exception()


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
