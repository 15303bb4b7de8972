"""Event sinks, and the ordered, bounded, isolated and counted delivery of events to them."""

from ._builtin import BackgroundEventSink, FanoutEventSink, LoggingEventSink, MemoryEventSink

# For other packages of stageflow.
from ._channel import GLOBAL_COUNTERS as GLOBAL_COUNTERS, EventStats, SinkStats
from ._delivery import (
    DELIVERY as DELIVERY,
    accepts_marks as accepts_marks,
    clear_event_sink,
    flush,
    get_event_sink,
    home_loop as home_loop,
    offer as offer,
    set_drain_timeout,
    set_event_sink,
    stats,
)
from ._sink import DirectSink, Event, EventLost as EventLost, EventSink, NoOpEventSink

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
