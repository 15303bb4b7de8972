"""Sinks for events, and their delivery: in order, bounded, isolated, counted."""

from .background_sink import BackgroundEventSink
from .counters import EventStats, SinkStats
from .event import Event
from .fanout_sink import FanoutEventSink
from .flush import flush, stats
from .global_sink import clear_event_sink, get_event_sink, set_event_sink
from .logging_sink import LoggingEventSink
from .loops import set_drain_timeout
from .memory_sink import MemoryEventSink
from .sink import EventSink, NoOpEventSink

__all__ = [
    "BackgroundEventSink",
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
