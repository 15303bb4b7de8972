"""A sink that keeps events in a list, for tests and notebooks."""

from __future__ import annotations

from typing import Any

from .event import Event
from .sink import DirectSink

__all__ = ["MemoryEventSink"]


class MemoryEventSink(DirectSink):
    """Keeps every event, in order, in `events`: pairs of type and data. It has no bound.

    Example:
        >>> sink = MemoryEventSink()
        >>> sink.try_emit(type="note", data={"n": 1}) and sink.events
        [('note', {'n': 1})]
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any] | None]] = []

    def take(self, event: Event) -> None:
        """Append an event to `events`."""
        self.events.append((event.type, event.data()))

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """Return the data of all events of this type."""
        return [data or {} for event_type, data in self.events if event_type == type]

    def clear(self) -> None:
        """Forget all events."""
        self.events.clear()
