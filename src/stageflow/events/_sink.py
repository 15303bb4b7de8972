"""`Event`, and the base classes of sinks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Generator
from typing import Any, ClassVar, Protocol

import msgspec
from msgspec import Struct

from ..schema import Heartbeat, RunClosed, RunOpen

__all__ = ["DirectSink", "Event", "EventLost", "EventSink", "ForwardingSink", "NoOpEventSink", "overrides"]


_encoder = msgspec.json.Encoder()
_encode, _encode_lines = _encoder.encode, _encoder.encode_lines


class Event(Struct, frozen=True, gc=False, rename={"body": "data"}):
    """An event. Its body is immutable or a private copy, and contains only values that JSON can represent."""

    type: str
    body: Struct | dict[str, Any] | None

    def data(self) -> dict[str, Any] | None:
        """Return the body as a new dict. It is a deep copy that belongs to the caller."""
        data: dict[str, Any] | None = msgspec.to_builtins(self.body)
        return data

    def json(self) -> bytes:
        """Return the body as JSON."""
        return _encode(self.body)

    def line(self) -> bytes:
        """Return `{"type": ..., "data": {...}}` and a newline, as UTF-8."""
        # A list: msgspec 0.22.0 leaks the iterator that it creates for any other iterable (see
        # pyproject.toml).
        return _encode_lines([self])


class EventLost(Exception):
    """A sink accepted an event but could not store it.

    Attributes:
        reason: The key under which the event is counted in `SinkStats.dropped`.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Offers(Protocol):
    """Offers events to sinks. `Delivery` is the only implementation."""

    def offer_through(self, sink: Any, method: str, event: Event) -> None:
        """Offer an event to a sink through a specific method of the sink."""
        ...


class _Done:
    """An awaitable that completes immediately."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


class EventSink:
    """A destination for events. `emit` is the only method that a subclass must implement.

    The library puts events into a bounded queue and calls `emit` for one event at a time, on the event loop
    of the run. If a subclass overrides `try_emit`, the library calls that method instead: through the same
    queue if it is asynchronous, and directly if it is synchronous, in which case it must not block.

    If a sink raises or hangs, only its own events are lost, and they are counted
    (`stageflow.events.stats()`).

    Example:
        class Analytics(EventSink):
            async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
                await client.send(type, data)
    """

    _delivery: ClassVar[Offers]

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Process one event.

        Args:
            type: "stage.wide", "pipeline.wide" or the type of a custom event.
            data: The data of the event. It belongs to this sink, and `json.dumps` accepts it.
        """
        if overrides(self, "try_emit"):
            outcome = self.try_emit(type=type, data=data)
            if outcome is not None:
                await outcome

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Queue one event for delivery through `emit`. Never blocks and never raises."""
        # An override that calls `super().try_emit(...)` requests delivery through `emit`, not through itself.
        method = "emit" if overrides(self, "try_emit") else ""
        self._delivery.offer_through(self, method, Event(type, data))
        return _Done()


class DirectSink(EventSink, ABC):
    """A sink that receives each event synchronously as an `Event`, before the emitting call returns.

    `deliver` must not block. If a subclass overrides `emit` or `try_emit`, the library calls that method
    instead.
    """

    @abstractmethod
    def deliver(self, event: Event) -> None:
        """Process one event.

        Raises:
            EventLost: The event was lost; `reason` states why.
        """

    @property
    def accepts_marks(self) -> bool:
        """Whether the sink is notified of the start of each run, and of its end without `pipeline.wide`."""
        return False

    def accept_mark(self, mark: RunOpen | RunClosed | Heartbeat) -> None:
        """Process the mark of the start or the end of a run, or a heartbeat.

        Must not raise. Marks are not counted.
        """

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Process one event."""
        self._delivery.offer_through(self, "deliver", Event(type, data))

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Process one event."""
        self._delivery.offer_through(self, "deliver", Event(type, data))
        return _Done()


class ForwardingSink(EventSink, ABC):
    """A sink that calls another sink on a separate event loop."""

    sink: EventSink | Any

    @abstractmethod
    def delivery_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop on which `sink` is called.

        Raises:
            RuntimeError: The interpreter can no longer start threads.
        """

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Forward one event."""
        self._delivery.offer_through(self, "forward", Event(type, data))

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Forward one event."""
        self._delivery.offer_through(self, "forward", Event(type, data))
        return _Done()


class NoOpEventSink(DirectSink):
    """Discards events. This is the default; the library does not even build events for it."""

    def deliver(self, event: Event) -> None:
        """Discard an event."""


_DEFAULTS = frozenset(
    method for base in (EventSink, DirectSink, ForwardingSink) for method in (base.emit, base.try_emit)
)


def overrides(sink: Any, name: str) -> bool:
    """Return whether a sink overrides the method `emit` or `try_emit`."""
    method = getattr(sink, name, None)
    return callable(method) and getattr(method, "__func__", None) not in _DEFAULTS
