"""The base class of event sinks, and the one that discards."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from .channel import channel_of, default_method
from .event import Event

__all__ = ["EventSink", "NoOpEventSink"]


class _Done:
    """An awaitable that has nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


class EventSink:
    """Takes events. `emit` is the one method a subclass must write.

    The library calls `emit` through a bounded queue, on the loop of the run, one event after the
    other. A subclass that overrides `try_emit` has that called instead: an `async` one through
    the same queue, a plain one in place, so that it must not block.

    A sink that raises or hangs costs a run nothing but this sink's events, and those are counted
    (`stageflow.events.stats()`).

    Example:
        class Analytics(EventSink):
            async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
                await client.send(type, data)
    """

    @default_method
    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        """Take one event.

        Args:
            type: "stage.wide", "pipeline.wide" or the name of an event of your own.
            data: The event; it belongs to this sink alone and `json.dumps` takes it as it is.
        """
        if hasattr(self, "_take_event"):
            channel_of(self, "_take_event").offer(self, Event(type, data))
        elif not _is_default(self.try_emit):
            outcome = self.try_emit(type=type, data=data)
            if outcome is not None:
                await outcome

    @default_method
    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> Awaitable[None] | None:
        """Hand one event over to the library, which delivers it by `emit`: never waits, never raises."""
        through = None
        if not _is_default(self.try_emit):
            # An override that calls `super().try_emit(...)` asks for delivery, not for itself.
            through = "_take_event" if hasattr(self, "_take_event") else "emit"
        channel_of(self, through).offer(self, Event(type, data))
        return _Done()


def _is_default(method: Any) -> bool:
    return getattr(method, "stageflow_default", False)


class NoOpEventSink(EventSink):
    """Discards events. It is the default, and for it no event is even built."""

    def _take_event(self, event: Event) -> None:
        """Take nothing."""
