"""The sink for whoever names none."""

from __future__ import annotations

from typing import Any

from .channel import channel_of
from .sink import EventSink, NoOpEventSink

__all__ = ["clear_event_sink", "get_event_sink", "set_event_sink"]

_NOOP = NoOpEventSink()
_sink: EventSink = _NOOP


def set_event_sink(sink: EventSink | Any) -> None:
    """Make `sink` the one that receives the events of every emitter without a sink of its own.

    It counts from the next event on, also for graphs that are built and runs that are under way.

    Raises:
        TypeError: The object has neither `emit` nor `try_emit`.
    """
    global _sink
    channel_of(sink)
    _sink = sink


def get_event_sink() -> EventSink:
    """Return the global sink; a `NoOpEventSink` where none was set."""
    return _sink


def clear_event_sink() -> None:
    """Go back to discarding."""
    global _sink
    _sink = _NOOP
