"""The way from the library to one sink: how the sink is called, in whose thread, and counted."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ..errors import describe
from ..telling import tell
from . import loops
from .counters import SinkStats
from .event import Event
from .lost import EventLost
from .outbox import Item, Outbox

__all__ = ["Channel", "channel_of", "channels", "default_method", "offer"]

log = logging.getLogger("stageflow.events")

SLOW_SECONDS = 0.05
"""A sink that holds its caller or the loop for longer than this is named and its time counted."""


class Channel:
    """Counts and calls one sink. `offer` never raises and never waits for anything but the sink."""

    def __init__(self, sink: Any, *, through: str | None = None) -> None:
        self.name = type(sink).__name__
        self.stalled = False
        self._call, self._in_place = _how_to_call(sink, through)
        # Not for ours: a journal in the background would no longer survive a SIGKILL.
        ours = self._call is getattr(type(sink), "_take_event", None)
        self._way_out = "" if ours else "; BackgroundEventSink(sink) gives it a thread of its own"
        self._own_loop: Callable[[Any], asyncio.AbstractEventLoop] | None = getattr(
            type(sink), "_own_loop", None
        )
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
        self._told: set[str] = set()

    def offer(self, sink: Any, event: Event) -> None:
        """Hand `event` to the sink, here and now or through its queue."""
        if not self._in_place:
            self._enqueue(sink, event, counted=False)
            return
        began = time.monotonic()
        error: BaseException | None = None
        reason = "sink_error"
        outcome = None
        try:
            outcome = self._call(sink, event)
        except BaseException as caught:
            error = caught
            if isinstance(caught, EventLost):
                reason = caught.reason
        held = time.monotonic() - began
        if held > SLOW_SECONDS:
            self.blocked_for(held)
        rest = outcome if outcome is not None and inspect.isawaitable(outcome) else None
        # Once, when the call is over: so the counters hold at every moment, for one lock an event.
        with self._lock:
            self._offered += 1
            self._accepted += 1
            if error is not None:
                self.dropped_some(reason, 1)
            elif rest is None:
                self._delivered += 1
            else:
                self._in_call += 1
        if error is not None:
            self.tell_dropped(reason, 1, error)
        if rest is not None:
            # A plain method that hands back an awaitable: the rest of it runs on the loop.
            self._enqueue(sink, rest, counted=True)
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error  # of a signal handler, most likely: it is for the application

    def _enqueue(self, sink: Any, item: Item, *, counted: bool) -> None:
        reason = None
        try:
            loop = self._own_loop(sink) if self._own_loop else loops.delivery_loop()
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
                    outbox = opened = Outbox(self, self._lock, call, loop)
                    self._outboxes[loop] = outbox
                if not counted:
                    self._accepted += 1
                outbox.put(item)
        if opened is not None:
            opened.open()
        elif reason is not None:
            self._tell(reason, f"an event was rejected ({reason})")

    # What an outbox reports; it holds the lock for the first three.

    def delivered_one(self) -> None:
        self._delivered += 1
        self.stalled = False

    def dropped_some(self, reason: str, count: int) -> None:
        # In two steps, between which nothing is called: a signal handler that counts as well, in this
        # very thread, can only come in where something is.
        self._dropped.setdefault(reason, 0)
        self._dropped[reason] += count

    def tell_dropped(self, reason: str, count: int, error: BaseException | None) -> None:
        # Not under the lock: a logging handler may emit events, and wait for who waits for us.
        lost = f"{count} event{'s were' if count != 1 else ' was'} dropped ({reason})"
        self._tell(reason, lost + (f": {describe(error)}" if error is not None else ""))

    def adopt(self, outbox: Outbox) -> None:
        self._outboxes.setdefault(outbox.loop, outbox)

    def forget(self, outbox: Outbox) -> None:
        if self._outboxes.get(outbox.loop) is outbox:
            del self._outboxes[outbox.loop]

    def blocked_for(self, seconds: float) -> None:
        if seconds > SLOW_SECONDS and self._own_loop is None:
            with self._lock:
                self._blocked += seconds
            self._tell(
                "slow",
                f"it held up its caller for {seconds * 1000:.0f} ms{self._way_out}",
            )

    def _tell(self, what: str, text: str) -> None:
        """Warn once a sink and reason; the rest is in the counters."""
        if what not in self._told:
            self._told.add(what)
            tell(log, "event sink %s: %s (said once; see stageflow.events.stats())", self.name, text)

    def count_sync_failure(self) -> None:
        """Count that what the sink had written could not be synced."""
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


def default_method(method: Any) -> Any:
    """Mark a method of the base class, which stands for "not written by the subclass"."""
    method.stageflow_default = True
    return method


def _how_to_call(sink: Any, through: str | None) -> tuple[Callable[[Any, Event], Any], bool]:
    """Return how to call a sink with an event, and whether to do so in place."""
    kind = type(sink)
    inner = getattr(kind, "_wrapped", None)
    if inner is not None:  # a sink with a loop of its own: how it calls, the one inside says
        call, _ = _how_to_call(inner(sink), None)
        return (lambda wrapper, event: call(inner(wrapper), event)), False
    # On the class, not the object: a stand-in that has every attribute is none of ours.
    take = getattr(kind, "_take_event", None)
    if take is not None and (through == "_take_event" or _nearest_is_take(kind)):
        return take, True
    written = {
        name: method
        for name in ("try_emit", "emit")
        if callable(method := getattr(sink, name, None)) and not getattr(method, "stageflow_default", False)
    }
    if inspect.isclass(sink):
        raise TypeError(f"{sink.__name__} is a class; give a sink: {sink.__name__}()")
    name = through or ("try_emit" if "try_emit" in written else "emit")
    method = written.get(name)
    if method is None:
        raise TypeError(
            f"{kind.__name__} is no event sink: it has neither an `emit` nor a `try_emit` of its own"
            "\n  hint: class MySink(EventSink): async def emit(self, *, type, data): ..."
        )
    try:
        inspect.signature(method).bind(type="stage.wide", data={})
    except TypeError as error:
        raise TypeError(
            f"{kind.__name__}.{name} cannot take an event ({error})"
            f"\n  hint: define it as {name}(self, *, type, data)"
        ) from None
    except ValueError:  # a signature that Python cannot tell
        pass
    in_place = not inspect.iscoroutinefunction(method)
    return (lambda sink, event: getattr(sink, name)(type=event.type, data=event.data())), in_place


def _nearest_is_take(kind: type) -> bool:
    """Tell whether a sink of ours is used as it is: no class derived from it overrides a public method."""
    for ancestor in kind.__mro__:
        if "_take_event" in vars(ancestor):
            return True
        if "try_emit" in vars(ancestor) or "emit" in vars(ancestor):
            break
    return False


Key = int | tuple[int, str]
_channels: dict[Key, tuple[Any, Channel]] = {}
_registry_lock = threading.RLock()


def channel_of(sink: Any, through: str | None = None) -> Channel:
    """Return the channel of `sink`, made at first sight.

    Raises:
        TypeError: It has no method that takes events.
    """
    # The identity alone is the key in the common case: a tuple costs more than the look-up.
    key = id(sink) if through is None else (id(sink), through)
    found = _channels.get(key)
    if found is not None:
        return found[1]
    with _registry_lock:
        return _register(sink, through, key)


def _register(sink: Any, through: str | None, key: Key) -> Channel:
    found = _channels.get(key)
    if found is not None:
        return found[1]
    channel = Channel(sink, through=through)
    try:
        # By identity, not equality, and without keeping the sink alive.
        alive: Any = weakref.ref(sink, lambda _: _channels.pop(key, None))
    except TypeError:
        alive = sink  # it takes no weak references: it stays
    _channels[key] = (alive, channel)
    return channel


def offer(sink: Any, event: Event) -> None:
    """Offer `event` to `sink`."""
    channel_of(sink).offer(sink, event)


def channels() -> list[Channel]:
    """Return the channels of all sinks that exist, oldest first."""
    return [channel for _, channel in list(_channels.values())]


def _forget_parent() -> None:
    # The counts of a forked child start at zero: what its parent had counted, its parent reports.
    global _registry_lock
    _registry_lock = threading.RLock()
    _channels.clear()


os.register_at_fork(after_in_child=_forget_parent)
