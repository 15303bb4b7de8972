"""`Delivery`: manages all sinks, the event loops that deliver events, and the shutdown of these loops.

`asyncio.run` first cancels all tasks during shutdown and then closes all asynchronous generators. On each
loop with pending events, the library registers such a generator, which drains the events when it is closed.
By then all runs have written their record, and delivery tasks, which are excluded from `asyncio.all_tasks()`,
still run.
"""

from __future__ import annotations

import asyncio
import atexit

# Exit hooks run in reverse order of registration. This one must run before the one that shuts down the
# default executor, which a sink may need for DNS lookups, so that module must already be imported here.
import concurrent.futures.thread
import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any, TypeGuard

from .._cpython import register_before_threads_end, running_loop
from .._fork import reset_in_child
from .._interrupts import INTERRUPTS
from ..errors import invalid_argument
from ._channel import GLOBAL_COUNTERS, Channel, Drainable, EventStats, delivering
from ._sink import DirectSink, Event, EventSink, NoOpEventSink

__all__ = [
    "DELIVERY",
    "BackgroundLoop",
    "Delivery",
    "accepts_marks",
    "clear_event_sink",
    "flush",
    "get_event_sink",
    "home_loop",
    "offer",
    "set_drain_timeout",
    "set_event_sink",
    "stats",
]

Loop = asyncio.AbstractEventLoop

home_loop: ContextVar[tuple[Loop, int] | None] = ContextVar("stageflow_home_loop", default=None)
"""The loop of the run, for code that runs in its threads, and the pid: a forked child has no such loop."""


class BackgroundLoop:
    """An event loop in a daemon thread, which does not delay process exit."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def stop(self) -> None:
        """Stop the thread; events still pending on its loop are dropped and counted."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)


class Delivery:
    """The state of delivery in one process.

    Attributes:
        sink: The global sink.
        drain_timeout: Seconds that loop shutdown, process exit and `flush()` wait for pending events.
    """

    def __init__(self) -> None:
        self.sink: EventSink | Any = NoOpEventSink()
        self.drain_timeout = 5.0
        self._exit_hooks_registered = False
        self.reset()

    def reset(self) -> None:
        """Reset the state in a forked child: it has no threads, and must not deliver events of its parent."""
        self._lock = threading.RLock()
        self._channels: dict[int | tuple[int, str], tuple[Any, Channel]] = {}
        self._open_outboxes: dict[Loop, set[Drainable]] = {}
        self._shutdown_watchers: dict[Loop, AsyncGenerator[None, None]] = {}
        self._ended: set[Loop] = set()
        self._draining: set[Loop] = set()
        self._background: BackgroundLoop | None = None
        self._drain_seconds_spent = 0.0

    # ------------------------------------------------------------ sinks

    def channel_of(self, sink: Any, method: str = "") -> Channel:
        """Return the channel of a sink; create it on first use.

        Raises:
            TypeError: The sink has no method that accepts events.
        """
        # In the common case, the key is only the identity: creating a tuple costs more than the lookup.
        key: int | tuple[int, str] = (id(sink), method) if method else id(sink)
        found = self._channels.get(key)
        if found is not None:
            return found[1]
        with self._lock:
            if (found := self._channels.get(key)) is not None:
                return found[1]
            channel = Channel(sink, method, self)
            try:
                # By identity, not equality, and without keeping the sink alive.
                alive: Any = weakref.ref(sink, lambda _: self._channels.pop(key, None))
            except TypeError:
                alive = sink  # no weak references: keep it alive
            self._channels[key] = (alive, channel)
            return channel

    def offer_through(self, sink: Any, method: str, event: Event) -> None:
        """Offer an event to a sink through a specific method of the sink."""
        channel = self.channel_of(sink)
        # An unmodified sink has one channel, whichever method offers the event.
        if method and method != channel.method:
            channel = self.channel_of(sink, method)
        channel.offer(sink, event)
        INTERRUPTS.raise_held()

    def channels(self) -> list[Channel]:
        """Return the channels of all sinks that exist, oldest first."""
        return [channel for _, channel in list(self._channels.values())]

    # ------------------------------------------------------------ event loops

    def delivery_loop(self) -> Loop:
        """Return the loop that delivers an event emitted by the caller.

        This is the running loop; in a thread of a run, the loop of that run; otherwise the background loop of
        the library.

        Raises:
            RuntimeError: The interpreter is exiting and cannot start a thread.
        """
        loop = running_loop()
        if loop is None:
            loop, pid = home_loop.get() or (None, 0)
            if loop is not None and (pid != os.getpid() or not loop.is_running()):
                loop = None
        if loop is not None and loop not in self._ended:
            return loop
        with self._lock:
            if self._background is None:
                self._background = BackgroundLoop("stageflow-delivery")
            return self._background.loop

    def register(self, loop: Loop, outbox: Drainable) -> None:
        """Register an outbox that has pending events on `loop`."""
        with self._lock:
            if not self._exit_hooks_registered:
                self._exit_hooks_registered = True
                with contextlib.suppress(RuntimeError):  # threads are already being shut down
                    register_before_threads_end(self._drain_at_exit)
                # Drain again after the exit handlers of the application, which may emit events.
                with contextlib.suppress(RuntimeError):
                    atexit.register(self._drain_at_exit)
            self._open_outboxes.setdefault(loop, set()).add(outbox)

    def unregister(self, loop: Loop, outbox: Drainable) -> None:
        """Unregister an outbox without pending events."""
        with self._lock:
            outboxes = self._open_outboxes.get(loop)
            if outboxes is not None:
                outboxes.discard(outbox)
                if not outboxes:
                    del self._open_outboxes[loop]

    def watch_shutdown(self) -> None:
        """Drain the running event loop when it shuts down. Must be called on that loop."""
        loop = asyncio.get_running_loop()
        if loop in self._shutdown_watchers:
            return
        self.drop_closed_loops()
        watcher = self._drain_when_closed(loop)
        with contextlib.suppress(StopIteration):
            # The first step registers the generator with the loop and suspends it.
            watcher.__anext__().send(None)
        self._shutdown_watchers[loop] = watcher

    async def _drain_when_closed(self, loop: Loop) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._draining.add(loop)
            await self._drain(loop, self.drain_timeout)
            with self._lock:
                self._draining.discard(loop)
                # Events emitted between now and the close of this loop are delivered by the background loop.
                self._ended.add(loop)
                self._shutdown_watchers.pop(loop, None)

    async def _drain(self, loop: Loop, timeout: float) -> None:
        start = time.monotonic()
        while waiting := [outbox for outbox in self._open_outboxes.get(loop, ()) if not outbox.stalled]:
            left = timeout - (time.monotonic() - start)
            if left <= 0:
                break
            futures = [asyncio.wrap_future(outbox.drained()) for outbox in waiting]
            _done, late = await asyncio.wait(futures, timeout=max(0.0, left))
            if late:
                self._drain_seconds_spent += time.monotonic() - start
                for future in late:
                    future.cancel()
                break
        for outbox in list(self._open_outboxes.get(loop, ())):
            outbox.abandon("drain_timeout")
        # Run another iteration, so that abandoned tasks process their cancellation before the loop closes.
        await asyncio.sleep(0)

    def _drain_at_exit(self) -> None:
        self.drop_closed_loops()
        deadline = time.monotonic() + max(0.0, self.drain_timeout - self._drain_seconds_spent)
        for loop in list(self._open_outboxes):
            if not loop.is_running() and not loop.is_closed():
                with contextlib.suppress(Exception):
                    loop.run_until_complete(self._drain(loop, max(0.0, deadline - time.monotonic())))
        futures = [outbox.drained() for outbox in self.open_outboxes() if not outbox.stalled]
        if futures:
            concurrent.futures.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
        for outbox in self.open_outboxes():
            outbox.abandon("drain_timeout")

    def is_draining(self, loop: Loop) -> bool:
        """Return whether `loop` is shutting down, which may be the cause of an error in a sink."""
        return loop in self._draining

    def open_outboxes(self) -> list[Drainable]:
        """Return all outboxes with pending events, on any event loop."""
        with self._lock:
            return [outbox for outboxes in self._open_outboxes.values() for outbox in outboxes]

    def drop_closed_loops(self) -> None:
        """Drop and count the events that are pending on closed event loops."""
        with self._lock:
            closed = [loop for loop in self._open_outboxes if loop.is_closed()]
            gone = [outbox for loop in closed for outbox in self._open_outboxes[loop]]
            for loop in [loop for loop in (*self._shutdown_watchers, *self._ended) if loop.is_closed()]:
                self._shutdown_watchers.pop(loop, None)
                self._ended.discard(loop)
        for outbox in gone:
            outbox.abandon("loop_closed")


DELIVERY = Delivery()
EventSink._delivery = DELIVERY
reset_in_child(DELIVERY.reset)


def offer(sink: Any, event: Event) -> None:
    """Offer an event to a sink."""
    DELIVERY.channel_of(sink).offer(sink, event)


def accepts_marks(sink: Any) -> TypeGuard[DirectSink]:
    """Return whether a sink accepts marks."""
    return issubclass(type(sink), DirectSink) and sink.accepts_marks


# ------------------------------------------------------------ the global sink

_NO_OP = DELIVERY.sink


def set_event_sink(sink: EventSink | Any) -> None:
    """Set the global sink, which receives the events of every emitter without its own sink.

    The change takes effect with the next event, even for existing graphs and runs in progress.

    Raises:
        TypeError: The object has neither `emit` nor `try_emit`.
    """
    DELIVERY.channel_of(sink)
    DELIVERY.sink = sink


def get_event_sink() -> EventSink:
    """Return the global sink, or a `NoOpEventSink` if none was set."""
    sink: EventSink = DELIVERY.sink
    return sink


def clear_event_sink() -> None:
    """Reset the global sink, so that events of emitters without their own sink are discarded."""
    DELIVERY.sink = _NO_OP


# ------------------------------------------------------------ waiting and counting


async def flush(timeout: float | None = None) -> bool:
    """Wait until every event accepted so far was delivered or dropped, by any sink, on any event loop.

    Call it before closing a resource that a sink needs, such as a connection pool or an HTTP client.

    Args:
        timeout: Maximum time to wait, in seconds; default: the drain timeout (5 s, see `set_drain_timeout`).
            Events that were not delivered in time stay pending and are not lost.

    Returns:
        True if all events were delivered or dropped in time.
    """
    DELIVERY.drop_closed_loops()
    own = delivering.get()
    futures = [
        asyncio.wrap_future(outbox.drained()) for outbox in DELIVERY.open_outboxes() if outbox is not own
    ]
    if not futures:
        return True
    deadline = time.monotonic() + (DELIVERY.drain_timeout if timeout is None else timeout)
    _done, late = await asyncio.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
    for future in late:
        future.cancel()
    return not late


def stats() -> EventStats:
    """Return the current counters of every sink that was offered an event.

    Example:
        >>> stats().emitter_errors >= 0
        True
    """
    DELIVERY.drop_closed_loops()
    return EventStats(
        sinks=[channel.stats() for channel in DELIVERY.channels()],
        emitter_errors=GLOBAL_COUNTERS.emitter_errors,
        coerced_values=GLOBAL_COUNTERS.coerced_values,
    )


def set_drain_timeout(seconds: float) -> None:
    """Set how long the shutdown of an event loop, process exit and `flush()` wait for sinks.

    Args:
        seconds: The timeout in seconds, for all sinks together; default 5.

    Raises:
        InvalidArgumentError: The timeout is negative or not finite.
    """
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise invalid_argument("set_drain_timeout()", "seconds", seconds, "a finite number, 0 or more")
    DELIVERY.drain_timeout = float(seconds)
