"""The base classes of event sinks, and the sink that discards."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Generator
from typing import Any, ClassVar, Protocol

from ..schema import RunClosed, RunOpen
from .event import Event

__all__ = ["DirectSink", "EventLost", "EventSink", "ForwardingSink", "NoOpEventSink", "overrides"]


class EventLost(Exception):
    """An event that a sink accepted and could not keep.

    Attributes:
        reason: Under which it is counted, in `SinkStats.dropped`.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Offers(Protocol):
    """What hands events over to sinks; `Delivery` is the one implementation."""

    def offer_through(self, sink: Any, method: str, event: Event) -> None:
        """Offer an event to a sink, to be handed over by one of its methods."""
        ...


class _Done:
    """An awaitable that has nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


class EventSink:
    """A destination for events. `emit` is the only method that a subclass must implement.

    The library calls `emit` through a bounded queue, on the event loop of the run, one event after the
    other. A subclass that overrides `try_emit` has that called instead: an asynchronous one through the same
    queue, a synchronous one in place, so that it must not block.

    If a sink raises or hangs, only its own events are lost, and they are counted
    (`stageflow.events.stats()`).

    Example:
        class Analytics(EventSink):
            async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
                await client.send(type, data)
    """

    _delivery: ClassVar[Offers]

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Take one event.

        Args:
            type: "stage.wide", "pipeline.wide" or the name of an event of your own.
            data: The event; it belongs to this sink alone, and `json.dumps` accepts it.
        """
        if overrides(self, "try_emit"):
            outcome = self.try_emit(type=type, data=data)
            if outcome is not None:
                await outcome

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Hand one event over to the library, which delivers it by `emit`: never waits, never raises."""
        # An override that calls `super().try_emit(...)` asks for delivery, not for itself.
        method = "emit" if overrides(self, "try_emit") else ""
        self._delivery.offer_through(self, method, Event(type, data))
        return _Done()


class DirectSink(EventSink, ABC):
    """A sink that takes each event in place, before its emission returns, and without a dict of it.

    Its `take` must not block. A subclass of it that overrides `emit` or `try_emit` has that called instead.
    """

    @abstractmethod
    def take(self, event: Event) -> None:
        """Take one event.

        Raises:
            EventLost: It was lost for a reason that the sink names.
        """

    @property
    def takes_marks(self) -> bool:
        """Whether the sink is notified of the start of each run, and of its end without `pipeline.wide`."""
        return False

    def take_mark(self, mark: RunOpen | RunClosed) -> None:
        """Take the mark of the start or the end of a run. It never raises, and is not counted."""

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Take one event."""
        self._delivery.offer_through(self, "take", Event(type, data))

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Take one event."""
        self._delivery.offer_through(self, "take", Event(type, data))
        return _Done()


class ForwardingSink(EventSink, ABC):
    """A sink that has another sink called on an event loop of its own."""

    sink: EventSink | Any

    @abstractmethod
    def delivery_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop on which `sink` is called.

        Raises:
            RuntimeError: No thread can be started any more.
        """

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Forward one event."""
        self._delivery.offer_through(self, "forward", Event(type, data))

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Forward one event."""
        self._delivery.offer_through(self, "forward", Event(type, data))
        return _Done()


class NoOpEventSink(DirectSink):
    """Discards events. It is the default, and no event is even built for it."""

    def take(self, event: Event) -> None:
        """Discard an event."""


_DEFAULTS = frozenset(
    method for base in (EventSink, DirectSink, ForwardingSink) for method in (base.emit, base.try_emit)
)


def overrides(sink: Any, name: str) -> bool:
    """Return whether a sink has a method `emit` or `try_emit` of its own."""
    method = getattr(sink, name, None)
    return callable(method) and getattr(method, "__func__", None) not in _DEFAULTS
