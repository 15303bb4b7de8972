"""Sinks for events, and their delivery: in order, bounded, isolated, counted."""

from ._delivery import clear_event_sink, flush, get_event_sink, set_drain_timeout, set_event_sink, stats
from .background_sink import BackgroundEventSink
from .counters import EventStats, SinkStats
from .event import Event
from .fanout_sink import FanoutEventSink
from .logging_sink import LoggingEventSink
from .memory_sink import MemoryEventSink
from .sink import DirectSink, EventSink, NoOpEventSink

__all__ = [
    "BackgroundEventSink",
    "DirectSink",
    "Event",
    "EventSink",
    "EventStats",
    "FanoutEventSink",
    "LoggingEventSink",
    "MemoryEventSink",
    "NoOpEventSink",
    "SinkStats",
    "clear_event_sink",
    "flush",
    "get_event_sink",
    "set_drain_timeout",
    "set_event_sink",
    "stats",
]
