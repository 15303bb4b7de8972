"""The store: events in columns that last, and the questions that can be asked of them."""

from .compactor import Compacted, Compactor
from .event_store import EventStore
from .queries import Rows
from .questions import Comparison, ErrorGroup, Slow, Stat

__all__ = ["Compacted", "Compactor", "Comparison", "ErrorGroup", "EventStore", "Rows", "Slow", "Stat"]
