"""The channel from the library to one sink: calls the sink and counts its events."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from .._safe_log import log_safely
from ..errors import InvalidArgumentError, describe
from ..interrupts import INTERRUPTS
from .counters import SinkStats
from .event import Event
from .outbox import Item, Loops, Outbox
from .sink import DirectSink, EventLost, ForwardingSink, overrides

__all__ = ["Channel"]

log = logging.getLogger("stageflow.events")

SLOW_SECONDS = 0.05
"""Seconds; a sink that blocks its caller or the loop for longer is logged, and the time is counted."""


class Delivers(Loops, Protocol):
    """The part of `Delivery` that a channel uses."""

    def delivery_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that delivers an event emitted by the caller."""
        ...


class Channel:
    """Counts and calls one sink. `offer` never raises and never waits for anything but the sink.

    Args:
        sink: The sink. The channel does not keep it alive; `offer` receives it again.
        method: The method to call: "take", "emit" or "try_emit"; "" for the one that the sink implements.
        delivery: Provides the event loops.
    """

    def __init__(self, sink: Any, method: str, delivery: Delivers) -> None:
        self.name = type(sink).__name__
        self.stalled = False
        self._call, self._in_place, self.method = _how_to_call(sink, method)
        self.direct = self._call is _TAKE
        # Not for a direct sink: events of a journal on a separate thread would be lost on SIGKILL.
        self._advice = "" if self.direct else "; BackgroundEventSink(sink) runs it on a separate thread"
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
        """Hand an event to the sink, synchronously or through its queue."""
        if not self._in_place:
            self._enqueue(sink, event, counted=False)
            return
        error: BaseException | None = None
        outcome = None
        began = time.monotonic()
        try:
            outcome = sink.take(event) if self.direct else self._call(sink, event)
        except BaseException as caught:
            error = caught
        blocked = time.monotonic() - began
        if blocked > SLOW_SECONDS:
            self.blocked_for(blocked)
        if error is None and (outcome is None or not inspect.isawaitable(outcome)):
            # Once, when the call is over: so the counters hold at every moment, for one lock an event.
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
                self.dropped_some(reason, 1)
            else:
                self._in_call += 1
        if error is None:
            # A synchronous method that returns an awaitable: await it on the loop.
            assert outcome is not None
            self._enqueue(sink, outcome, counted=True)
            return
        self.log_dropped(reason, 1, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            INTERRUPTS.keep(error)  # most likely from a signal handler: it is for the application

    def _enqueue(self, sink: Any, item: Item, *, counted: bool) -> None:
        reason = None
        try:
            loop = sink.delivery_loop() if self._forwards else self._delivery.delivery_loop()
        except RuntimeError:  # the interpreter is exiting: no thread can be started any more
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
                    self.dropped_some(reason or "no_loop", 1)
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

    # What an outbox reports; it holds the lock for the first three.

    def delivered_one(self) -> None:
        self._delivered += 1
        self.stalled = False

    def dropped_some(self, reason: str, count: int) -> None:
        # In two steps, between which nothing is called: a signal handler that counts as well, in this
        # very thread, can only run where something is called.
        self._dropped.setdefault(reason, 0)
        self._dropped[reason] += count

    def log_dropped(self, reason: str, count: int, error: BaseException | None) -> None:
        # Without the lock: a logging handler may emit events, and wait for a thread that waits for the lock.
        lost = f"{count} event{'s were' if count != 1 else ' was'} dropped ({reason})"
        self._log_once(reason, lost + (f": {describe(error)}" if error is not None else ""))

    def adopt(self, outbox: Outbox) -> None:
        self._outboxes.setdefault(outbox.loop, outbox)

    def forget(self, outbox: Outbox) -> None:
        if self._outboxes.get(outbox.loop) is outbox:
            del self._outboxes[outbox.loop]

    def blocked_for(self, seconds: float) -> None:
        if seconds > SLOW_SECONDS and not self._forwards:
            with self._lock:
                self._blocked += seconds
            self._log_once("slow", f"it blocked its caller for {seconds * 1000:.0f} ms{self._advice}")

    def _log_once(self, what: str, text: str) -> None:
        """Warn once a sink and reason; the rest is in the counters."""
        if what not in self._logged:
            self._logged.add(what)
            log_safely(
                log,
                "event sink %s: %s (logged once; see stageflow.events.stats())",
                self.name,
                text,
            )

    def count_sync_failure(self) -> None:
        """Count a failed sync of the sink."""
        with self._lock:
            self._sync_failures += 1

    def stats(self) -> SinkStats:
        """Return the counters, as they stand at one moment."""
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


def _take(sink: DirectSink, event: Event) -> None:
    sink.take(event)


_TAKE: Callable[[Any, Event], Any] = _take


def _forward(sink: ForwardingSink, event: Event) -> Any:
    call, _, _ = _how_to_call(sink.sink, "")
    return call(sink.sink, event)


def _how_to_call(sink: Any, method: str) -> tuple[Callable[[Any, Event], Any], bool, str]:
    """Return how to call a sink with an event, whether to do so in place, and the name of the method.

    Raises:
        InvalidArgumentError: It has no method that takes events.
    """
    kind = type(sink)
    implemented = [name for name in ("try_emit", "emit") if overrides(sink, name)]
    # Check the real class: a mock passes `isinstance`, but has neither the methods nor the state of a sink.
    if issubclass(kind, ForwardingSink) and (method == "forward" or not implemented):
        _how_to_call(sink.sink, "")
        return _forward, False, "forward"
    if issubclass(kind, DirectSink) and (method == "take" or not implemented):
        return _TAKE, True, "take"
    if inspect.isclass(sink):
        raise InvalidArgumentError(f"{sink.__name__} is a class; give a sink: {sink.__name__}()")
    name = method or (implemented[0] if implemented else "emit")
    if name not in implemented:
        raise InvalidArgumentError(
            f"{kind.__name__} is no event sink: it has neither an `emit` nor a `try_emit` of its own",
            hint="class MySink(EventSink): async def emit(self, *, type, data): ...",
        )
    called = getattr(sink, name)
    try:
        inspect.signature(called).bind(type="stage.wide", data={})
    except TypeError as error:
        raise InvalidArgumentError(
            f"{kind.__name__}.{name} cannot take an event ({error})",
            hint=f"define it as {name}(self, *, type, data)",
        ) from None
    except ValueError:  # a signature that Python cannot tell
        pass
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        raise InvalidArgumentError(
            f"{kind.__name__}.{name} is a generator function, so calling it does not deliver the event",
            hint=f"remove `yield` from {name}",
        )
    in_place = not inspect.iscoroutinefunction(called)
    return (lambda sink, event: getattr(sink, name)(type=event.type, data=event.data())), in_place, name
