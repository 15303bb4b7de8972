"""A sink that hands each event to several others."""

from __future__ import annotations

from typing import Any

from ..schema import RunClosed, RunOpen
from .channel import channel_of, offer
from .event import Event
from .run_marks import mark, takes_marks
from .sink import EventSink

__all__ = ["FanoutEventSink"]


class FanoutEventSink(EventSink):
    """Hands each event to every one of `sinks`, each in its own way, apart from the others.

    One that raises, hangs or is slow takes nothing from the rest; each is counted by itself, and
    each gets a copy of the event of its own.

    Raises:
        TypeError: One of them has neither `emit` nor `try_emit`.

    Example:
        sink = FanoutEventSink(JournalSink("journal"), LoggingEventSink())
    """

    def __init__(self, *sinks: EventSink | Any) -> None:
        for sink in sinks:
            channel_of(sink)
        self.sinks = sinks

    def _take_event(self, event: Event) -> None:
        for sink in self.sinks:
            offer(sink, event)

    def _takes_marks(self) -> bool:
        return any(takes_marks(sink) for sink in self.sinks)

    def _take_mark(self, what: RunOpen | RunClosed) -> None:
        for sink in self.sinks:
            if takes_marks(sink):
                mark(sink, what)
