"""A sink that hands each event to several others."""

from __future__ import annotations

from typing import Any

from ..schema import Heartbeat, RunClosed, RunOpen
from ._delivery import DELIVERY, offer, takes_marks
from .event import Event
from .sink import DirectSink, EventSink

__all__ = ["FanoutEventSink"]


class FanoutEventSink(DirectSink):
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
            DELIVERY.channel_of(sink)
        self.sinks = sinks

    def take(self, event: Event) -> None:
        """Offer an event to every sink."""
        for sink in self.sinks:
            offer(sink, event)

    @property
    def takes_marks(self) -> bool:
        """Whether any of the sinks accepts marks."""
        return any(takes_marks(sink) for sink in self.sinks)

    def take_mark(self, mark: RunOpen | RunClosed | Heartbeat) -> None:
        """Hand a mark to each sink that accepts marks."""
        for sink in self.sinks:
            if takes_marks(sink):
                sink.take_mark(mark)
